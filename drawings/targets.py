"""Notebooks 1 to 3: the target, its log Z, and flows."""

from __future__ import annotations

import torch

from drawings.sheet import Frame, Sheet
from flowrl_lab.exact import (
    exact_log_flows,
    exact_target,
    optimal_log_z,
    reference_log_partition,
)
from flowrl_lab.losses import trajectory_balance_loss
from flowrl_lab.metrics import kl_divergence

# The five answers that these drawings share.
NAMES = "ABCDE"
REWARDS = torch.tensor([0.0, 0.9, 1.0, 0.9, 0.1])
REFERENCE = torch.tensor([0.40, 0.25, 0.10, 0.15, 0.10])
SCALE = 3.0


def tilted(scale: float) -> torch.Tensor:
    """π_ref e^{βr} / Z, as probabilities."""
    return exact_target(REFERENCE.log(), REWARDS, reward_scale=scale).exp()


def named_bars(
    sheet: Sheet,
    x: float,
    base: float,
    values: torch.Tensor,
    color: str,
    *,
    high: float,
    form: str = "",
    wide: float = 24,
) -> None:
    """Bars of five answers, ``high`` for the largest, with names and numbers."""
    top = float(values.max())
    heights = [high * float(value) / top for value in values]
    middles = sheet.bars(x, base, heights, color, width=wide, gap=8)
    for middle, name, height, value in zip(
        middles, NAMES, heights, values.tolist(), strict=True
    ):
        sheet.label(middle, base + 17, name)
        if form:
            words = form.format(value)
            sheet.label(middle, base - height - 5, words, color, size=14)


def mass_moves() -> Sheet:
    """Maximising and matching, from the same start."""
    sheet = Sheet(
        386,
        "The same start, two aims",
        "Five answers A to E as bars, per cent, from the same start to the end. "
        "Maximising keeps pushing until only the best answer C is left; matching "
        "stops at p*, where B, C and D all keep a share.",
    )
    sheet.text(20, 52, "rewards: A 0 · B 0.9 · C 1 · D 0.9 · E 0.1", "soft")
    for column, name in enumerate(("start", "on the way", "end")):
        sheet.label(226 + 184 * column, 80, name)
    rows = [
        (200, "orange", "maximise", "only the best\nis left", (0.0, 12.0, 60.0)),
        (334, "blue", "match p*", "stops at\nπ_ref·exp(βr)/Z", (0.0, 1.0, SCALE)),
    ]
    for base, color, name, remark, scales in rows:
        sheet.text(20, base - 50, name, color, bold=True, size=17)
        for row, line in enumerate(remark.split("\n")):
            sheet.text(20, base - 26 + 20 * row, line, "soft", size=14)
        for column, scale in enumerate(scales):
            probs, x = 100 * tilted(scale), 150 + 184 * column
            share = float(probs.max()) / 100
            named_bars(
                *(sheet, x, base, probs, color), high=30 + 52 * share, form="{:.0f}"
            )
            if column:
                sheet.arrow([(x - 27, base - 20), (x - 9, base - 20)], color)
    sheet.lines(376, "bars: probability in per cent; β = 3")
    return sheet


def reward_to_target() -> Sheet:
    """From a reward to a distribution, in four moves."""
    sheet = Sheet(
        226,
        "From a reward to a distribution (β = 3)",
        "Bars of five answers: the reward r, stretched to exp of beta r, times the "
        "reference's probability, divided by the sum Z, gives the target p*.",
    )
    stretched = (SCALE * REWARDS).exp()
    mass = REFERENCE * stretched
    total = reference_log_partition(
        REFERENCE.log(), REWARDS, reward_scale=SCALE, exhaustive=True
    ).exp()
    steps = [
        ("r", REWARDS, "orange", "from a verifier"),
        ("exp(βr)", stretched, "orange", "never negative"),
        ("π_ref", REFERENCE, "soft", "the base model"),
        ("π_ref·exp(βr)", mass, "blue", f"sum: Z = {total:.2f}"),
        ("p*", tilted(SCALE), "blue", "sum: 1"),
    ]
    signs = ("exp β·", "×", "=", "÷ Z")
    for column, (name, values, color, remark) in enumerate(steps):
        x = 22 + 140 * column
        top = float(values.max())
        heights = [86 * value / top for value in values.tolist()]
        sheet.bars(x, 170, heights, color, width=13, gap=5)
        for place, letter in enumerate(NAMES):
            sheet.label(x + 6.5 + 18 * place, 186, letter, size=14)
        sheet.label(x + 42, 66, name, color, bold=True)
        sheet.label(x + 42, 210, remark, size=14)
        if column:
            sheet.label(x - 27, 132, signs[column - 1], "ink", size=16)
    return sheet


def why_z() -> Sheet:
    """log Z* = log Z - KL(π ‖ p*): the bound that the policy closes."""
    log_ref, target = REFERENCE.log(), tilted(SCALE).log()
    true = float(
        reference_log_partition(log_ref, REWARDS, reward_scale=SCALE, exhaustive=True)
    )
    sheet = Sheet(
        276,
        "What a learned log Z settles at",
        "Three bars of the same length, log Z. At the start part of it is the best "
        "learned log Z and the rest the distance KL of the policy to the target; as "
        "the policy learns, the distance goes to 0 and the learned value to log Z.",
    )
    left, unit = 130, 470 / true
    for row, (name, scale) in enumerate(
        (("π = π_ref", 0.0), ("half-way", SCALE / 2), ("π = p*", SCALE))
    ):
        policy, y = tilted(scale).log(), 62 + 52 * row
        learned = float(optimal_log_z(policy, log_ref, REWARDS, reward_scale=SCALE))
        gap = float(kl_divergence(policy, target))
        sheet.text(left - 14, y + 25, name, "blue", anchor="end")
        words = f"log Z* = {learned:.2f}"
        sheet.box(left, y, learned * unit, 38, "green", words, radius=2)
        if gap > 0.01:
            wide = gap * unit
            inside = f"KL(π‖p*) = {gap:.2f}" if wide > 130 else ""
            sheet.box(left + learned * unit, y, wide, 38, "orange", inside, radius=2)
            if not inside:
                sheet.text(left + true * unit + 8, y + 25, f"KL {gap:.2f}", "orange")
    end = left + true * unit
    sheet.line([(end, 50), (end, 212)], "ink", dash="5 4")
    sheet.text(end, 44, f"log Z = {true:.2f}", anchor="end", bold=True)
    sheet.text(
        *(20, 240, [("log Z*", "green"), " = log Z − ", ("KL(π‖p*)", "orange")]),
        bold=True,
    )
    sheet.text(
        *(20, 262, "a lower bound (ELBO): it is tight only when the policy has arrived")
    )
    return sheet


def tree_words() -> tuple[torch.Tensor, torch.Tensor]:
    """The eight words of three letters 0 and 1, and what each is worth."""
    words = torch.tensor([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)])
    return words, torch.tensor([0.0, 1.2, 0.3, 0.0, 1.0, 1.0, 0.0, 1.6])


def flow_tree() -> Sheet:
    """A tree of prefixes as pipes: Z flows in, each word lets its share out."""
    spelled, worth = tree_words()
    even = torch.full(spelled.shape, 0.5).log()
    all_count = torch.ones_like(spelled, dtype=torch.bool)
    relative = exact_log_flows(spelled, even, worth, all_count, reward_scale=2.0)
    flows = relative.exp() * 0.5 ** torch.arange(4)  # times π_ref(prefix)
    sheet = Sheet(
        372,
        "Prefixes are pipes",
        "A tree of the words of three letters. The root carries the whole flow Z; at "
        "each letter it splits, and each word lets out what its reward is worth. A "
        "letter's probability is its share of the flow.",
    )
    columns = [(70.0, 1), (230.0, 2), (390.0, 4), (550.0, 8)]
    unit = 52 / float(flows[0, 0])

    def place(depth: int, index: int) -> tuple[float, float, float]:
        """x, y and flow of a prefix."""
        x, count = columns[depth]
        flow = float(flows[index * 8 // count, depth])
        return x, 62 + (index + 0.5) * 256 / count, flow

    for depth in (1, 2, 3):
        for index in range(columns[depth][1]):
            x0, middle, whole = place(depth - 1, index // 2)
            x1, y1, flow = place(depth, index)
            # the two children share the width of their parent's pipe
            y0 = middle + (1 if index % 2 else -1) * (whole - flow) * unit / 2
            half = max(0.8, flow * unit / 2)
            corners = [(x0, -half, y0), (x1, -half, y1), (x1, half, y1), (x0, half, y0)]
            hue = "green" if depth == 3 else "blue"
            sheet.area([(x, y + side) for x, side, y in corners], hue)
    for depth, (_, count) in enumerate(columns):
        for index in range(count):
            x, y, flow = place(depth, index)
            word = spelled[index * 8 // count, :depth]
            prefix = "".join(str(letter) for letter in word.tolist())
            high = max(26, flow * unit + 6)
            if depth == 0:
                sheet.box(x - 48, y - high / 2, 84, high, "blue", f"Z\n{flow:.2f}")
            elif depth < 3:
                words = f"{prefix}: {flow:.2f}"
                sheet.box(x - 36, y - high / 2, 72, high, "blue", words)
            else:
                sheet.text(x + 8, y + 5, f"{prefix}  R = {flow:.2f}", "green")
    top, root = float(flows[4, 1]), float(flows[0, 0])
    shares = f"{top:.2f} / {root:.2f} = {top / root:.2f}"
    sheet.text(20, 344, f"π(1) = flow(1) / flow(root) = {shares}")
    sheet.lines(364, "flow in = flow out at every prefix; R = π_ref·exp(βr)")
    return sheet


def trajectory_balance() -> Sheet:
    """Z·π(y) against π_ref(y)·exp(βr): δ is the log of their ratio."""
    policy = tilted(1.0)
    total = reference_log_partition(
        REFERENCE.log(), REWARDS, reward_scale=SCALE, exhaustive=True
    ).exp()
    sent, due = total * policy, REFERENCE * (SCALE * REWARDS).exp()
    sheet = Sheet(
        330,
        "Balance, answer by answer",
        "For five answers two bars each: the flow that the policy sends, Z times pi, "
        "and the flow that the answer is due. Where the first is longer, delta is "
        "above 0 and the answer too likely; where it is shorter, below 0.",
    )
    runs = [("Z·π(y)", "blue"), " what the policy sends\u2003"]
    runs += [("π_ref(y)·exp(βr)", "green"), " what y is due"]
    sheet.text(20, 54, runs)
    unit = 330 / float(torch.maximum(sent, due).max())
    for row, name in enumerate(NAMES):
        y, a, b = 72 + 44 * row, float(sent[row]), float(due[row])
        sheet.text(24, y + 24, name, anchor="start", bold=True)
        sheet.box(50, y, max(2, a * unit), 16, "blue", radius=2, strong=True)
        sheet.box(50, y + 17, max(2, b * unit), 16, "green", radius=2, strong=True)
        delta = float((sent[row] / due[row]).log())
        hue = "orange" if delta > 0 else "pink"
        verdict = "too likely" if delta > 0 else "not likely enough"
        sheet.text(440, y + 22, f"δ = {delta:+.2f}".replace("-", "−"), hue, bold=True)
        sheet.text(540, y + 22, verdict, hue)
    sheet.text(20, 312, "δ = log Z + log π(y) − βr(y) − log π_ref(y);  the loss is δ²")
    return sheet


def two_kls() -> Sheet:
    """The best single bell for a target with two humps, by either KL."""
    states = torch.arange(100.0)

    def bell(middle: float, width: float) -> torch.Tensor:
        return (-0.5 * ((states - middle) / width) ** 2).log_softmax(dim=0)

    target = torch.logaddexp(
        bell(28, 6) + torch.tensor(0.6).log(), bell(70, 6) + torch.tensor(0.4).log()
    )
    bells = [bell(m, w) for m in range(10, 90, 2) for w in range(4, 34, 2)]
    ways = [
        ("KL(π‖p*)", "blue", "what π writes must be good", kl_divergence),
        (
            "KL(p*‖π)",
            "orange",
            "what is good must be written",
            lambda policy, goal: kl_divergence(goal, policy),
        ),
    ]
    sheet = Sheet(
        270,
        "Two directions of KL",
        "A target with two humps, in grey, and the best single bell for it. By KL from "
        "policy to target the bell sits on one hump; by KL from target to policy it "
        "lies broadly over both and over the gap between them.",
    )
    for column, (name, color, remark, distance) in enumerate(ways):
        frame = Frame(sheet, 30 + 340 * column, 88, 300, 120, (0, 99), (0, 0.07))
        best = min(bells, key=lambda policy: float(distance(policy, target)))
        points = zip(states.tolist(), target.exp().tolist(), strict=True)
        sheet.area(
            [frame.at(0, 0), *(frame.at(*p) for p in points), frame.at(99, 0)], "soft"
        )
        frame.curve(states.tolist(), best.exp().tolist(), color)
        frame.axes((), ())
        least = float(distance(best, target))
        sheet.text(
            30 + 340 * column, 70, f"smallest {name}: {least:.2f}", color, bold=True
        )
        sheet.text(30 + 340 * column, 230, remark, "soft")
    sheet.lines(256, "FlowRL minimises the left one, with a policy that has many humps")
    return sheet


def z_as_a_network() -> Sheet:
    """log Z is read from the prompt alone."""
    sheet = Sheet(
        226,
        "log Z is a number for each prompt",
        "The prompt goes through the reference model; its hidden states are averaged "
        "and a small network of three layers makes one number of them, log Z. No "
        "completion goes in, and no gradient goes back to the reference.",
    )
    stations = [
        ("soft", "prompt x\n24!37:"),
        ("soft", "reference\nhidden states"),
        ("soft", "mean over\nthe prompt"),
        ("green", "small network\n3 layers"),
        ("green", "log Z(x)\none number"),
    ]
    for place, (color, words) in enumerate(stations):
        x = 20 + 135 * place
        sheet.box(x, 66, 116, 64, color, words, bold=place == 4)
        if place:
            sheet.arrow([(x - 18, 98), (x - 2, 98)], "ink")
    sheet.line([(416, 54), (416, 146)], "pink", dash="5 4", width=2)
    sheet.label(416, 166, "no gradient goes back past here", "pink")
    sheet.lines(206, "the same log Z stands in the residual of all G completions of x")
    return sheet


def log_z_meets() -> Sheet:
    """Policy and log Z learn together: exact expected gradients of the TB loss."""
    log_ref = REFERENCE.log()
    true = float(
        reference_log_partition(log_ref, REWARDS, reward_scale=SCALE, exhaustive=True)
    )
    logits = log_ref.clone().requires_grad_()
    log_z = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([logits, log_z], lr=0.06)
    learned, bound, steps = [], [], 81
    for _ in range(steps):
        policy = logits.log_softmax(dim=0)
        bound.append(
            float(optimal_log_z(policy.detach(), log_ref, REWARDS, reward_scale=SCALE))
        )
        learned.append(float(log_z.detach()))
        squares = trajectory_balance_loss(
            *(log_z.expand(5), policy, log_ref, REWARDS),
            reward_scale=SCALE,
            reduction="none",
        )
        optimizer.zero_grad()
        (policy.detach().exp() * squares).sum().backward()
        optimizer.step()
    sheet = Sheet(
        320,
        "log Z follows, the policy lifts the roof",
        "Curves over training steps: the learned log Z starts at 0 and rises quickly "
        "to the best value for the present policy, which itself rises to the true "
        "log Z as the policy comes closer to the target.",
    )
    frame = Frame(sheet, 60, 56, 430, 190, (0, steps - 1), (0, 1.1 * true))
    frame.axes(range(0, steps, 20), (0, 1, 2), "step (exact expected gradients)")
    flat = frame.at(0, true)[1]
    sheet.line([(60, flat), (490, flat)], "ink", dash="6 4", width=2)
    frame.curve(range(steps), bound, "orange", dash="8 4")
    frame.curve(range(steps), learned, "green")
    sheet.text(500, flat + 5, f"true log Z = {true:.2f}")
    sheet.text(500, frame.at(0, bound[-1])[1] + 26, "log Z − KL(π‖p*)", "orange")
    sheet.text(500, frame.at(0, learned[-1])[1] + 48, "learned log Z", "green")
    sheet.lines(
        310, "the gap between the dashed lines is the policy's distance from p*"
    )
    return sheet

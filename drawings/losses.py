"""Notebooks 4 to 6: tokens, groups, and the losses made of them."""

from __future__ import annotations

import torch

from drawings.sheet import Frame, Sheet
from flowrl_lab.advantages import group_normalized
from flowrl_lab.exact import length_normalized_target
from flowrl_lab.losses import (
    IMPORTANCE_MODES,
    clipped_surrogate,
    flowrl_terms,
    sequence_importance_weights,
)
from flowrl_lab.tasks.make_number import verify_answer

PROMPT = "24!37:"
GROUP = ("6*4", "4*6=24", "5+1=6", "8*2+8")
CELL = 30


def signed(value: float, form: str = ".2f") -> str:
    """A number with a true minus sign."""
    return format(value, form).replace("-", "−")


def tokens(
    sheet: Sheet, x: float, y: float, words: str, color: str, *, dashed: bool = False
) -> None:
    """One box for each character."""
    for place, letter in enumerate(words):
        sheet.box(
            *(x + CELL * place, y, CELL - 2, 30, color, letter),
            radius=3,
            dashed=dashed,
        )


def rollout() -> Sheet:
    """One prompt, G completions, T tokens; what is padding; what the verifier says."""
    sheet = Sheet(
        318,
        "A rollout: one prompt, G completions",
        "One prompt, make 24 without the digits 3 and 7, and four completions of it "
        "as rows of tokens: each ends with an end token, the rest is padding that the "
        "mask leaves out. The verifier gives each whole row one reward.",
    )
    sheet.text(20, 92, "prompt", "soft")
    tokens(sheet, 20, 102, PROMPT, "soft")
    sheet.lines(158, "make 24; 3 and 7 are banned", width=22)
    sheet.text(262, 66, "completions [G, T]", "blue")
    sheet.text(558, 66, "reward [G]", "orange")
    longest = max(map(len, GROUP)) + 1
    for row, answer in enumerate(GROUP):
        y = 80 + 46 * row
        sheet.arrow([(204, 117), (228, 117), (236, y + 15), (256, y + 15)], "blue")
        tokens(sheet, 262, y, answer, "blue")
        tokens(sheet, 262 + CELL * len(answer), y, "⏎", "pink")
        used = len(answer) + 1
        tokens(sheet, 262 + CELL * used, y, "·" * (longest - used), "soft", dashed=True)
        right = verify_answer(PROMPT, answer)
        sheet.arrow([(262 + CELL * longest + 6, y + 15), (552, y + 15)], "orange")
        words = "1  right" if right else "0  wrong"
        sheet.box(558, y, 84, 30, "orange" if right else "soft", words, radius=3)
    runs = [("■ counts\u2003", "blue"), ("■ the end token counts too\u2003", "pink")]
    sheet.text(20, 284, [*runs, ("□ padding: the mask is False", "soft")])
    sheet.lines(306, "one number for a whole row, and none for a single token")
    return sheet


LOG_PI = torch.tensor([[-0.9, -0.3, -1.2, -0.4]])
LOG_REF = torch.tensor([[-1.4, -0.3, -1.5, -0.6]])


def flowrl_loss_terms() -> Sheet:
    """The residual as a staircase of four terms, then square and weight."""
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0])
    score = group_normalized(rewards, 4)[:1]
    log_z, scale = torch.tensor([0.4]), 2.0
    terms = flowrl_terms(
        *(log_z, LOG_PI, LOG_PI - 0.05, LOG_REF, score),
        torch.ones_like(LOG_PI, dtype=torch.bool),
        reward_scale=scale,
    )
    steps = [
        ("log Z(x)", float(log_z), "green"),
        ("+ mean log π", float(LOG_PI.mean()), "blue"),
        ("− β·r̂", -scale * float(score), "orange"),
        ("− mean log π_ref", -float(LOG_REF.mean()), "soft"),
    ]
    sheet = Sheet(
        334,
        "The loss of one completion, taken apart",
        "The residual of one completion as a staircase: log Z, plus the mean log "
        "probability of its tokens, minus beta times the normalised reward, minus the "
        "mean log probability under the reference. It ends below 0: not likely enough.",
    )
    zero, unit, at = 480.0, 112.0, 0.0
    sheet.line([(zero, 62), (zero, 260)], dash="3 4")
    sheet.text(zero, 56, "0 nats", "soft", size=14, anchor="middle")
    for row, (name, value, color) in enumerate(steps):
        y, end = 70 + 38 * row, at + value
        left, right = sorted((zero + unit * at, zero + unit * end))
        sheet.text(20, y + 20, name, color, bold=True)
        inside = signed(value, "+.2f") if right - left > 60 else ""
        sheet.box(left, y, right - left, 28, color, inside, radius=2)
        if not inside:
            sheet.text(right + 8, y + 20, signed(value, "+.2f"), color)
        sheet.line([(zero + unit * end, y + 28), (zero + unit * end, y + 38)])
        at = end
    delta = float(terms.residuals)
    left, right = sorted((zero, zero + unit * delta))
    sheet.text(20, 242, "= δ, the residual", "pink", bold=True)
    sheet.box(left, 222, right - left, 28, "pink", signed(delta), radius=2)
    sheet.text(right + 8, 242, "not likely enough", "pink")
    weight, loss = float(terms.weights), float(terms.losses)
    square = (f"({signed(delta)})²", "pink")
    runs = ["loss = w · δ² = ", f"{weight:.2f} · ", square, f" = {loss:.2f}"]
    sheet.text(20, 288, runs, size=17, bold=True)
    sheet.lines(
        314, "gradients flow to log π and log Z, not through w (β = 2 here, not 15)"
    )
    return sheet


def grpo_group() -> Sheet:
    """A group's rewards become advantages; a group that agrees says nothing."""
    sheet = Sheet(
        300,
        "GRPO: judged by the group",
        "Two groups of six rewards. Where two of six are right, those get an advantage "
        "well above 0 and the others one below. Where all six are right, every "
        "advantage is 0 and nothing is learned.",
    )
    sheet.text(20, 54, "advantage = (r − mean of the group) / std of the group", "soft")
    groups = [
        ("two of six are right", torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0, 0.0])),
        ("all are right", torch.ones(6)),
    ]
    for column, (name, rewards) in enumerate(groups):
        x = 30 + 340 * column
        advantages = group_normalized(rewards, 6)
        sheet.text(x, 88, name, bold=True)
        for place, reward in enumerate(rewards.tolist()):
            hue = "orange" if reward else "soft"
            sheet.box(x + 50 * place, 100, 40, 28, hue, f"{reward:g}", radius=3)
        heights = [42 * value for value in advantages.tolist()]
        hues = ["blue" if value > 0 else "pink" for value in heights]
        middles = sheet.bars(x, 212, heights, hues, width=40, gap=10)
        for middle, high in zip(middles, heights, strict=True):
            y = 212 - high - 6 if high >= 0 else 212 - high + 16
            hue = "blue" if high > 0 else "pink" if high < 0 else "soft"
            words = signed(high / 42, "+.2f") if high else "0"
            sheet.label(middle, y, words, hue, size=14)
    sheet.text(30, 280, "up: written more often; down: less", "soft")
    sheet.text(370, 280, "no difference, no gradient", "soft")
    return sheet


def shift() -> Sheet:
    """The logits above a token speak of the next one."""
    sheet = Sheet(
        300,
        "The shift by one",
        "A row of tokens goes into the model, a row of logits comes out. The logits "
        "above a token are about the next token, so each completion token is looked up "
        "in the column to its left.",
    )
    row, answer = PROMPT + "6*4⏎", "6*4⏎"
    for place, letter in enumerate(row):
        x, inside = 110 + 56 * place, place < len(PROMPT)
        hue = "soft" if inside else "blue" if letter != "⏎" else "pink"
        sheet.box(x, 200, 48, 34, hue, letter, radius=3)
        used = len(PROMPT) - 1 <= place < len(row) - 1
        sheet.box(x, 90, 48, 40, "green" if used else "soft", "", dashed=not used)
        sheet.arrow([(x + 24, 198), (x + 24, 134)], "green" if used else "soft")
        if used:
            words = f"→ {row[place + 1]}"
            sheet.label(x + 24, 115, words, "green")
    sheet.text(20, 222, "token t", "soft")
    sheet.text(20, 115, "logits t", "soft")
    sheet.lines(62, "logits at t give the probability of token t + 1")
    start, end = 110 + 56 * len(PROMPT), 110 + 56 * len(row) - 8
    sheet.line([(start, 244), (end, 244)], "blue", width=3)
    sheet.label((start + end) / 2, 264, f"completion, T = {len(answer)}", "blue")
    sheet.line([(start - 56, 80), (end - 56, 80)], "green", width=3)
    sheet.lines(290, "the last prompt token's logits count; the end token's do not")
    return sheet


def masks() -> Sheet:
    """One row, three masks."""
    sheet = Sheet(
        266,
        "What is attended, what counts",
        "A row of tokens padded left and right. Attention covers prompt and "
        "completion; the completion mask covers the completion up to and with its end "
        "token, and nothing else.",
    )
    row = "··" + PROMPT + "6*4⏎" + "··"
    first, last = 2, len(row) - 2
    start = first + len(PROMPT)
    rows = [
        ("tokens", lambda i: row[i]),
        ("attended", lambda i: "1" if first <= i < last else "0"),
        ("completion", lambda i: "1" if start <= i < last else "0"),
    ]
    for line, (name, says) in enumerate(rows):
        y = 60 + 50 * line
        sheet.text(20, y + 21, name, "ink", bold=not line)
        for place in range(len(row)):
            counts = (first if line < 2 else start) <= place < last
            hue = "blue" if place >= start else "soft"
            hue = "pink" if place == last - 1 else hue
            hue = hue if line == 0 or not counts else ("soft", "green", "orange")[line]
            sheet.box(
                *(124 + 39 * place, y, 35, 32, hue if counts else "soft", says(place)),
                radius=3,
                dashed=not counts,
            )
    runs = [("padding\u2003prompt: read, not judged\u2003", "soft")]
    sheet.text(20, 226, [*runs, ("completion: judged, its end token too", "orange")])
    sheet.lines(252, "what lies under a 0 may be garbage: no loss may depend on it")
    return sheet


def clip() -> Sheet:
    """PPO's clipped loss against the ratio, for either sign of the advantage."""
    ratios = torch.linspace(0.5, 1.5, 101)
    sheet = Sheet(
        310,
        "The clip: far enough is far enough",
        "The clipped loss over the ratio of new to old probability. For a good token "
        "it falls until 1.2 and is flat from there; for a bad one it is flat below 0.8 "
        "and rises above. Where it is flat there is no gradient.",
    )
    for column, (sign, name, color) in enumerate(
        (
            (1.0, "A > 0: more likely, please", "blue"),
            (-1.0, "A < 0: less likely", "pink"),
        )
    ):
        left = 56 + 340 * column
        loss = clipped_surrogate(
            ratios.log(), torch.zeros(101), torch.full((101,), sign)
        ).tolist()
        low, high = (-1.5, -0.4) if sign > 0 else (0.4, 1.5)
        frame = Frame(sheet, left, 86, 264, 150, (0.5, 1.5), (low, high))
        flat = (1.2, 1.5) if sign > 0 else (0.5, 0.8)
        (x0, y0), (x1, y1) = frame.at(flat[0], high), frame.at(flat[1], low)
        sheet.area([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], "soft")
        frame.axes(
            (0.5, 0.8, 1, 1.2, 1.5),
            (-1, -0.5) if sign > 0 else (0.5, 1),
            "ratio π/π_old",
        )
        frame.curve(ratios.tolist(), loss, color)
        sheet.text(left - 26, 68, name, color, bold=True)
        sheet.label((x0 + x1) / 2, frame.top + (20 if sign > 0 else 140), "flat")
    sheet.lines(298, "the loss of one token; in the grey part it has no gradient")
    return sheet


def losses_family() -> Sheet:
    """Two families, and what each member changes."""
    sheet = Sheet(
        344,
        "Two families of losses",
        "On the left the losses that match a target: trajectory balance, VarGrad, "
        "sub-trajectory balance, FlowRL. On the right those that maximise the reward: "
        "REINFORCE++, GRPO, DAPO, PPO, and KL-regularised REINFORCE, which meets the "
        "first family.",
    )
    sides = [
        (
            "match a distribution",
            "δ² → 0",
            "blue",
            [
                ("trajectory balance", "learns log Z"),
                ("VarGrad", "log Z from the group"),
                ("SubTB", "balance of pieces"),
                ("FlowRL", "means, w, r̂, learned log Z"),
            ],
        ),
        (
            "maximise the reward",
            "A·log π ↑",
            "orange",
            [
                ("REINFORCE++", "whitened returns"),
                ("GRPO", "z-scores in the group"),
                ("DAPO", "clips higher, drops idle groups"),
                ("PPO", "a learned critic"),
            ],
        ),
    ]
    for column, (name, aim, color, members) in enumerate(sides):
        x = 20 + 340 * column
        sheet.text(x, 64, [(f"{name}: ", color), aim], bold=True)
        for row, (member, what) in enumerate(members):
            y = 78 + 46 * row
            strong = member == "FlowRL"
            sheet.box(x, y, 320, 38, color if strong else "soft")
            sheet.text(x + 12, y + 24, member, color, bold=True)
            sheet.text(x + 308, y + 24, what, "soft", size=14, anchor="end")
    sheet.box(
        100, 276, 500, 34, "green", "KL-regularised REINFORCE: r − KL/β", bold=True
    )
    sheet.lines(332, "on its own samples, its gradient is that of trajectory balance")
    return sheet


def length_normalisation() -> Sheet:
    """The same reward, two lengths: the mean form multiplies the exponent by |y|."""
    lengths = torch.tensor([4, 16])
    zero = torch.zeros(2)
    mass = length_normalized_target(zero, torch.ones(2), lengths, 0.0, reward_scale=0.5)
    sheet = Sheet(
        290,
        "Token sums or token means",
        "Two answers with the same reward, 4 and 16 tokens long. With sums both are "
        "raised by the same exponent. With means the exponent is multiplied by the "
        "length, so that the long one is raised four times as far.",
    )
    rows = [
        ("sums: textbook", "log π − log π_ref = βr − log Z", "blue", [0.5, 0.5]),
        (
            "means: the paper",
            "log π − log π_ref = |y|·(βr − log Z)",
            "orange",
            mass.tolist(),
        ),
    ]
    for line, (name, formula, color, values) in enumerate(rows):
        y = 60 + 104 * line
        sheet.text(20, y + 4, [(f"{name}\u2003", color), formula], bold=True)
        for row, (length, value) in enumerate(zip((4, 16), values, strict=True)):
            top = y + 16 + 34 * row
            sheet.text(20, top + 19, f"|y| = {length}", "soft")
            sheet.box(110, top, 50 * value, 26, color, radius=2)
            sheet.text(120 + 50 * value, top + 19, f"+{value:g} nats", color)
    sheet.lines(
        276, "how far balance lifts an answer with βr = 0.5, here with log Z = 0"
    )
    return sheet


def importance_weight() -> Sheet:
    """What each mode makes of the ratio of a whole sequence."""
    logs = torch.linspace(-1.5, 3, 91)[:, None]
    mask = torch.ones_like(logs, dtype=torch.bool)
    sheet = Sheet(
        340,
        "The importance weight w",
        "The weight over the log ratio of new to old probability. Without weighting it "
        "is 1; the paper clips it to 0.8 to 1.2; the authors' first code takes the raw "
        "ratio, their later code stops it at 10.",
    )
    frame = Frame(sheet, 60, 62, 420, 200, (-1.5, 3), (0, 12))
    frame.axes((-1, 0, 1, 2, 3), (1, 5, 10), "log ratio of the whole completion, nats")
    styles = {
        "none": ("soft", "3 4"),
        "clip": ("blue", ""),
        "raw": ("pink", "8 4"),
        "max10": ("orange", ""),
    }
    says = {
        "none": "none: 1",
        "clip": "clip: the paper's",
        "raw": "raw: first code",
        "max10": "max10: later code",
    }
    for row, mode in enumerate(IMPORTANCE_MODES):
        weights = sequence_importance_weights(
            logs, torch.zeros_like(logs), mask, importance=mode
        )
        color, dash = styles[mode]
        kept = weights <= 12
        frame.curve(logs[kept, 0].tolist(), weights[kept].tolist(), color, dash=dash)
        y = 84 + 30 * row
        sheet.line([(500, y), (536, y)], color, dash=dash, width=2.5)
        sheet.text(544, y + 5, says[mode], color)
    sheet.lines(326, "no gradient flows through w; 1 where the sampler is the policy")
    return sheet

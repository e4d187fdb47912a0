"""The course itself, the training step, adapters, and machines."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch

from drawings.losses import PROMPT
from drawings.sheet import Frame, Sheet
from flowrl_lab.measuring.recorded import load_recorded
from flowrl_lab.measuring.significance import (
    FAILS,
    HOLDS,
    Test,
    compare_runs_by_name,
    judge_more,
)
from flowrl_lab.measuring.tables import beside_untrained, group_runs
from flowrl_lab.metrics import exact_pass_at_k
from flowrl_lab.scaling.data_parallel import combine_gradients
from flowrl_lab.scaling.planner import (
    MACHINES,
    MODELS,
    Workload,
    make_plan,
)
from flowrl_lab.tasks import load_task
from flowrl_lab.tasks.programs import check_program, list_programs


def training_step() -> Sheet:
    """One step as a loop of six stations."""
    sheet = Sheet(
        340,
        "One training step",
        "A loop of six stations: draw prompts, sample G completions each, let the "
        "verifier pay, score the tokens under policy and reference, form delta and the "
        "loss, update policy and log Z; then again.",
    )
    stations = [
        ("soft", "1 prompts\na batch of questions"),
        ("blue", "2 rollout\nG completions each"),
        ("orange", "3 verifier\nr of every answer"),
        ("blue", "4 log-probs\nlog π and log π_ref"),
        ("green", "5 log Z\nread from the prompt"),
        ("pink", "6 loss\nw·δ², averaged"),
    ]
    spots = [(24, 60), (248, 60), (472, 60), (472, 190), (248, 190), (24, 190)]
    wide, high = 204, 62
    for (x, y), (color, words) in zip(spots, stations, strict=True):
        sheet.box(x, y, wide, high, color, words, bold=True)
    for x in (228, 452):
        sheet.arrow([(x, 91), (x + 20, 91)], "ink")
        sheet.arrow([(x + 20, 221), (x, 221)], "ink")
    sheet.arrow([(574, 122), (574, 190)], "ink")
    sheet.arrow([(126, 190), (126, 122)], "ink")
    sheet.text(138, 152, "backward, clip, update", "pink", bold=True)
    sheet.text(138, 172, "policy and log Z move; π_ref stays", "soft")
    sheet.text(562, 162, "the same tokens", "soft", anchor="end")
    sheet.text(20, 290, "δ = log Z + log π − β·r − log π_ref, sums over the tokens")
    words = "the paper: means over the tokens, and r̂, z-scored in its group, for r"
    sheet.text(20, 314, words, "soft")
    return sheet


def lora() -> Sheet:
    """On: the policy. Off: the reference. The same frozen weights below."""
    sheet = Sheet(
        330,
        "LoRA: one model, two policies",
        "Two pictures of one layer. With the adapter on, the input goes through the "
        "frozen matrix W and through two thin matrices A and B, and both are added: "
        "the policy. With the adapter off only W is left: the reference.",
    )
    for x, on in ((30, True), (380, False)):
        hue = "green" if on else "soft"
        name = "adapter on: policy π" if on else "adapter off: reference π_ref"
        sheet.text(x, 62, name, "blue" if on else "ink", bold=True)
        sheet.box(x, 120, 130, 110, "soft", "W\nfrozen", bold=True)
        sheet.box(x + 170, 120, 110, 30, hue, "B", dashed=not on)
        sheet.box(x + 200, 154, 50, 42, hue, "", dashed=not on)
        sheet.text(x + 225, 180, "r", hue, anchor="middle")
        sheet.box(x + 170, 200, 110, 30, hue, "A", dashed=not on)
        sheet.arrow([(x + 65, 262), (x + 65, 232)], "ink")
        sheet.text(x + 65, 280, "x", anchor="middle", bold=True)
        sheet.arrow([(x + 65, 118), (x + 65, 98)], "ink")
        sheet.text(
            x + 65, 90, "h = W·x" + (" + α/r·B·A·x" if on else ""), anchor="middle"
        )
        if on:
            sheet.line([(x + 65, 250), (x + 225, 250), (x + 225, 232)], "green")
            sheet.line([(x + 225, 118), (x + 225, 108), (x + 75, 108)], "green")
    sheet.lines(312, "B starts at 0: on = off before the first step; W never moves")
    return sheet


CHAPTERS = {
    "what to aim at": ("blue", {1: "target", 2: "log Z", 3: "balance"}),
    "what a model trains on": ("pink", {4: "tokens", 5: "maximisers", 6: "the loss"}),
    "trained and judged": ("green", {7: "maths", 8: "code", 9: "a real LLM"}),
    "measured and scaled": ("orange", {10: "diversity", 11: "limits", 12: "scale"}),
}


def course_map() -> Sheet:
    """Twelve notebooks in four rows."""
    sheet = Sheet(
        330,
        "The course at a glance",
        "Four rows of three notebooks: what to aim at, what a model trains on, trained "
        "and judged, measured and scaled; each notebook uses what the earlier ones "
        "built.",
    )
    for row, (name, (color, books)) in enumerate(CHAPTERS.items()):
        y = 54 + 66 * row
        sheet.text(20, y + 30, name, color, bold=True)
        spots = [258 + 145 * place for place in range(3)]
        for x, (number, words) in zip(spots, books.items(), strict=True):
            sheet.box(x, y, 126, 48, color, f"{number} {words}")
        for left, right in pairwise(spots):
            sheet.arrow([(left + 128, y + 24), (right - 2, y + 24)], "ink")
        if row < 3:
            down = [(611, y + 49), (611, y + 57), (321, y + 57), (321, y + 65)]
            sheet.arrow(down, "ink")
    sheet.lines(320, "what you write in one is used in the next")
    return sheet


def one_prompt_many_answers() -> Sheet:
    """All right answers of a prompt; maximising needs one, matching keeps them."""
    answers = load_task("make_number").answers(PROMPT)
    right = [
        label
        for label, good in zip(answers.labels, answers.correct, strict=True)
        if good
    ]
    sheet = Sheet(
        300,
        "One question, many right answers",
        f"The prompt {PROMPT} has {len(right)} right answers, some of which are shown. "
        "To be paid it is enough to write one of them; to match the reward's "
        "distribution a policy has to keep them all.",
    )
    sheet.box(20, 110, 124, 60, "soft", f"{PROMPT}\nmake 24", bold=True)
    rules = "3 and 7 are banned", "worked out", "from left to right"
    for row, rule in enumerate(rules):
        sheet.text(20, 194 + 19 * row, rule, "soft", size=14)
    shown = [right[place * (len(right) - 1) // 11] for place in range(12)]
    for place, answer in enumerate(shown):
        x, y = 222 + 155 * (place // 4), 56 + 46 * (place % 4)
        sheet.box(x, y, 142, 36, "blue", answer)
    for row in range(4):
        y = 74 + 46 * row
        sheet.arrow([(146, 140), (180, 140), (192, y), (218, y)], "blue")
    count = f"12 of its {len(right)} right answers"
    sheet.text(222, 258, count, "blue", bold=True)
    sheet.lines(284, "one of them earns the full reward; matching keeps them all")
    return sheet


def exact_referee() -> Sheet:
    """Sampling estimates; listing every right answer knows."""
    right = int(load_task("make_number").answers(PROMPT).correct.sum())
    share, samples = 0.5, (64, 1024)
    floors = [100 * (share * (1 - share) / n) ** 0.5 for n in samples]
    sheet = Sheet(
        286,
        "Ask for samples, or ask for all",
        "Left: the share of right samples scatters around the truth, by 6 points with "
        "64 samples. Right: the model gives every right answer a probability; their "
        "sum is the accuracy, without any scatter.",
    )
    sheet.text(20, 64, "samples: an estimate", "orange", bold=True)
    frame = Frame(sheet, 40, 84, 260, 90, (30, 70), (0, 1))
    frame.axes((30, 40, 50, 60, 70), (), "per cent right")
    middle = frame.at(50, 0)[0]
    for row, (count, floor) in enumerate(zip(samples, floors, strict=True)):
        y = 104 + 40 * row
        left, right_end = frame.at(50 - floor, 0)[0], frame.at(50 + floor, 0)[0]
        sheet.box(left, y, right_end - left, 18, "orange", radius=2)
        words = f"{count} samples: ± {floor:.1f}"
        sheet.label(middle, y - 4, words, "orange", size=14)
    sheet.text(370, 64, "all answers: the truth", "blue", bold=True)
    for row, words in enumerate(("log π(6*4)", "log π(4*6=24)", "log π(8*2+8)")):
        sheet.box(370, 84 + 34 * row, 150, 28, "blue", words)
        sheet.arrow([(522, 98 + 34 * row), (552, 132)], "blue")
    sheet.label(445, 204, f"… {right} of them")
    sheet.box(556, 108, 122, 48, "blue", "Σ exp\naccuracy", bold=True)
    sheet.lines(
        240, "the answers are scored, not sampled: sums of probabilities have no"
    )
    sheet.lines(
        260, "noise. This needs a list of all right answers, which our tasks have."
    )
    return sheet


def code_reward() -> Sheet:
    """A program, the shown examples, the hidden ones, the reward."""
    prompt = "012>430,432>111;mnt:"
    right, plausible = list_programs(prompt)
    shown, hint = prompt.rstrip(":").split(";")
    sheet = Sheet(
        290,
        "Tests that are shown, tests that are hidden",
        "A prompt with two examples. Two programs pass both of them; run on every "
        "other input one is right and one is only plausible. The reward asks for all.",
    )
    sheet.text(20, 66, "prompt", "soft")
    for row, example in enumerate(shown.split(",")):
        sheet.box(20, 78 + 38 * row, 150, 30, "soft", example.replace(">", " → "))
    sheet.text(20, 174, f"hint: {hint.strip('.')}", "soft")
    for place, name in enumerate(("program", "shown examples", "all inputs", "reward")):
        sheet.label((262, 386, 520, 636)[place], 66, name)
    for row, program in enumerate((right[0], plausible[0], "dd")):
        y, verdict = 78 + 56 * row, check_program(prompt, program)
        passes = [verdict.fits, verdict.right]
        sheet.box(210, y, 104, 36, "blue", program)
        for place, good in enumerate(passes):
            x = 334 + 134 * place
            sheet.arrow([(x - 18, y + 18), (x - 2, y + 18)])
            words = "✓ pass" if good else "✗ fail"
            sheet.box(x, y, 104, 36, "green" if good else "pink", words)
        sheet.arrow([(574, y + 18), (594, y + 18)])
        good = passes[1]
        sheet.box(
            598, y, 76, 36, "orange" if good else "soft", f"{int(good)}", bold=True
        )
    sheet.lines(276, "a reward that looks only at the shown examples can be gamed")
    return sheet


def cold_start() -> Sheet:
    """How often a group of G holds at least one right answer."""
    shares = torch.logspace(-3, 0, 61)
    sheet = Sheet(
        330,
        "No right answer, nothing to learn",
        "The chance that a group of samples holds at least one right answer, over the "
        "model's accuracy. At one in a thousand a group of 8 is almost always all "
        "wrong; at one in five it hardly ever is.",
    )
    frame = Frame(sheet, 66, 60, 400, 190, (-3, 0), (0, 1))
    frame.axes((), (0, 0.5, 1), "the model's accuracy")
    for place, words in zip(
        (-3, -2, -1, 0), ("0.1 %", "1 %", "10 %", "100 %"), strict=True
    ):
        sheet.label(frame.at(place, 0)[0], 268, words, size=14)
    for group, color in ((8, "blue"), (64, "green")):
        chance = [exact_pass_at_k(float(share), group) for share in shares]
        frame.curve(shares.log10().tolist(), chance, color)
        at = -1.3 if group == 8 else -2.2
        x, y = frame.at(at, exact_pass_at_k(10.0**at, group))
        sheet.text(
            x + (20 if group == 8 else -12),
            y + (12 if group == 8 else 0),
            f"G = {group}",
            color,
            anchor="start" if group == 8 else "end",
            bold=True,
        )
    low = exact_pass_at_k(0.001, 8)
    sheet.text(492, 92, "chance that a group", "soft")
    sheet.text(492, 112, "has a right answer", "soft")
    sheet.text(492, 160, f"at 0.1 %, G = 8: {100 * low:.1f} %", "blue")
    sheet.text(492, 184, "else: all rewards 0,", "pink")
    sheet.text(492, 204, "no difference, no signal", "pink", size=14)
    sheet.lines(318, "so: a short warm-up on examples first, then reward")
    return sheet


def where_it_plugs_in() -> Sheet:
    """What a measure of diversity looks at, from letters to the whole list."""
    sheet = Sheet(
        312,
        "Which measure looks at what",
        "A ladder of four rungs. Measures of texts see letters; measures of answers "
        "see what was answered; classes see the idea; the exact referee sees the whole "
        "distribution. Errors are the most varied texts of all.",
    )
    rungs = [
        ("soft", "texts", "distinct-n, self-BLEU, Vendi", "errors count as variety"),
        ("blue", "right answers", "different ones, entropy", "spellings count twice"),
        ("green", "ideas", "different ideas", "needs the task's help"),
        (
            "orange",
            "the whole list",
            "KL, effective number, exact",
            "needs all answers",
        ),
    ]
    for row, (color, what, names, catch) in enumerate(rungs):
        y = 56 + 56 * row
        sheet.box(20, y, 140, 44, color, what, bold=True)
        sheet.box(180, y, 262, 44, color, names)
        sheet.text(460, y + 27, catch, "soft")
        if row:
            sheet.arrow([(90, y - 12), (90, y - 1)], "ink")
    sheet.lines(300, "put the noise floor beside every sampled one")
    return sheet


def memory() -> Sheet:
    """Gigabytes of a 7B step by part, all weights against an adapter."""
    sheet = Sheet(
        300,
        "What fills the memory",
        "Stacked bars of gigabytes for a model of seven billion weights: training all "
        "weights needs the optimiser's state and a second model as the reference; with "
        "LoRA both are nearly gone.",
    )
    hues = {"weights": "soft", "reference": "blue", "optimiser": "orange"}
    hues |= {"update or sampling": "green", "allocator": "pink"}
    left, unit = 150, 440 / 200
    limit = left + 80 * unit
    model, machine = MODELS["Qwen2.5-7B"], MACHINES["H100"]
    for row, (name, rank) in enumerate((("all weights", 0), ("LoRA, rank 16", 16))):
        work = Workload(
            64, 8, 300, 1000, lora_rank=rank, checkpointing=True, rows_at_once=2
        )
        plan = make_plan(model, work, machine, devices=8)
        parts = plan.memory
        updating = parts["logits"] + parts["activations"] + parts["attention"]
        parts["optimiser"] = parts["optimizer"]
        parts["update or sampling"] = max(updating, parts["sampling cache"])
        counted = sum(parts.get(part, 0) for part in hues) + parts["log Z"]
        parts["allocator"] = plan.peak_bytes - counted
        x, y = left, 66 + 76 * row
        sheet.text(20, y + 30, name, bold=True)
        for part, hue in hues.items():
            size = parts[part] / 1e9
            words = f"{size:.0f}" if size * unit > 26 else ""
            sheet.box(x, y, max(size * unit, 0.5), 48, hue, words, radius=1)
            x += size * unit
        x += 10 + max(0, limit - x) * (x < limit)
        sheet.text(x, y + 30, f"{plan.peak_bytes / 1e9:.0f} GB")
    sheet.line([(limit, 56), (limit, 200)], "ink", dash="5 4")
    sheet.label(limit, 218, "one device of 80 GB", "ink")
    sheet.text(20, 250, [(f"■ {part}\u2003", hue) for part, hue in hues.items()])
    words = "Qwen2.5-7B in bfloat16; on each of 8 devices 8 prompts × 8 completions"
    sheet.lines(282, words)
    return sheet


def data_parallel() -> Sheet:
    """Two processes with unequal shares: weigh by rows."""
    parts = torch.tensor([[6.0], [3.0]])
    counts = (4, 8)
    mean = float(combine_gradients(parts, counts))
    plain = float(parts.mean())
    sheet = Sheet(
        300,
        "Two processes, one gradient",
        "Two processes average the gradient over 4 and 8 rows. The plain mean of the "
        "two is wrong; weighted by their rows it is the gradient of all twelve.",
    )
    for column, (name, rows) in enumerate((("process 0", 4), ("process 1", 8))):
        x, value = 40 + 220 * column, float(parts[column])
        sheet.text(x, 68, f"{name}: {rows} rows", "blue", bold=True)
        for row in range(rows):
            left, top = x + 34 * (row % 4), 80 + 22 * (row // 4)
            sheet.box(left, top, 30, 18, "blue", radius=2)
        sheet.box(x, 136, 132, 36, "soft", f"mean g = {value:g}")
        sheet.arrow([(x + 66, 174), (x + 66, 190), (250, 190), (250, 206)], "ink")
    sheet.box(100, 208, 300, 40, "green", f"(4·6 + 8·3) / 12 = {mean:g}", bold=True)
    sheet.text(460, 100, "every process:", bold=True)
    for row, words in enumerate(
        (
            "whole prompts",
            "its own rollout",
            "own loss and gradient",
            "same weights after",
        )
    ):
        sheet.text(460, 126 + 22 * row, f"· {words}", "soft")
    sheet.text(420, 234, f"the plain mean says {plain:g}", "pink")
    sheet.lines(284, "here no group is cut; 12.3: what if one is?")
    return sheet


def four_verdicts() -> Sheet:
    """Which claims can fail, and what a test says; four recorded comparisons.

    Each p is multiplied by the number of tests, which is never less than Holm's rule.
    """
    sheet = Sheet(
        388,
        "Four things that a claim can turn out to be",
        "A claim without a figure is not measured; one that can be computed holds or "
        "does not hold exactly. A claim of more is drawn as a difference with its 95 % "
        "interval on an axis with a zero, and its corrected p decides: right of zero, "
        "it holds; left of it, it does not; where p is 0.05 or more no difference is "
        "found, whether the interval crosses zero or lies a little beside it.",
    )
    sheet.box(20, 54, 160, 60, "soft", "a claim\nwith “more” in it", bold=True)
    sheet.arrow([(182, 70), (222, 70)], "ink")
    sheet.text(232, 75, ["no figure:  ", ("not measured", "soft")], bold=True)
    sheet.arrow([(182, 98), (222, 98)], "ink")
    exact = ["computed:  ", ("holds", "green"), "  or  ", ("does not", "orange")]
    sheet.text(232, 103, exact, bold=True)
    sheet.arrow([(100, 116), (100, 142)], "ink")
    sheet.text(
        *(20, 162),
        "FlowRL (β = 8) over ..., first study, end: five seeds each, the 95 % interval",
    )
    frame = Frame(sheet, 288, 178, 192, 150, (-0.15, 0.15), (0, 4))
    frame.axes((-0.1, 0, 0.1), (), "difference")
    frame.curve((0, 0), (0, 4), "ink", width=1.2, dash="4 4")
    for row, (task, test) in enumerate(_four_tests()):
        verdict, _ = judge_more([test])
        color = {HOLDS: "green", FAILS: "orange"}.get(verdict, "blue")
        height = 3.5 - row
        frame.curve((test.low, test.high), (height, height), color, width=5)
        _, y = frame.at(0, height)
        words = f"{task}: {test.figure}, over {test.second}"
        sheet.text(280, y + 5, words, "soft", anchor="end")
        sheet.text(492, y - 3, verdict, color, bold=True)
        below = f"p = {test.p:.1g}; Holm ≤ {test.p_holm:.1g}"
        sheet.text(492, y + 13, below, "soft", size=14)
    return sheet


def _four_tests() -> list[tuple[str, Test]]:
    """FlowRL (β = 8) ahead, not told apart (twice), behind; corrected for 78 tests."""
    found = []
    for task, study, second, figure in (
        ("code", "programs", "ppo", "accuracy"),
        ("code", "programs", "reinforce_pp", "accuracy"),
        ("maths", "make_number", "reinforce_pp", "accuracy"),
        ("code", "programs", "untrained", "pass@64"),
    ):
        runs = group_runs(beside_untrained(load_recorded(study)))
        (test,) = compare_runs_by_name(runs, [("flowrl β=8", second, figure)])
        # as in notebook 11, whose plan has 78 tests
        found.append((task, replace(test, p_holm=min(1.0, 78 * test.p))))
    return found

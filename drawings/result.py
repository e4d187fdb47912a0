"""The figure of the README: what is left of the answers, and at which accuracy."""

from __future__ import annotations

from drawings.sheet import Frame, Sheet
from flowrl_lab.measuring.recorded import load_recorded
from flowrl_lab.measuring.tables import (
    UNTRAINED,
    beside_untrained,
    compute_spread,
    group_runs,
    metric_of,
)
from flowrl_lab.plots.static import num

MATCHING, MAXIMISING, NEITHER = "blue", "orange", "soft"
ROWS = {
    UNTRAINED: ("untrained", NEITHER),
    "pass@4 training": ("pass@4 training", MAXIMISING),
    "kl_reinforce β=8": ("KL-regularised REINFORCE, β = 8", MATCHING),
    "flowrl β=8": ("FlowRL, textbook form, β = 8", MATCHING),
    "flowrl β=15": ("FlowRL, textbook form, β = 15", MATCHING),
    "grpo kl=0.1": ("GRPO + KL penalty 0.1", MATCHING),
    "reinforce_pp": ("REINFORCE++", MAXIMISING),
    "grpo lr=0.001": ("GRPO, half the learning rate", MAXIMISING),
    "grpo entropy=0.03": ("GRPO + entropy bonus 0.03", MAXIMISING),
    "ppo": ("PPO", MAXIMISING),
    "flowrl paper form β=15": ("FlowRL, the paper's form, β = 15", MATCHING),
    "grpo": ("GRPO", MAXIMISING),
    "dapo": ("DAPO", MAXIMISING),
}
HEIGHT, MOST = 26, 20


def result() -> Sheet:
    """One row a method, one dot a seed; the recorded runs of `make_number`."""
    groups = group_runs(beside_untrained(load_recorded("make_number")))
    rows = {
        name: (
            [metric_of(run, "effective_answers") for run in groups[name]],
            compute_spread(groups[name], "accuracy"),
        )
        for name in ROWS
    }
    top, height = 76, HEIGHT * len(rows)
    sheet = Sheet(
        top + height + 92,
        "Right answers that are still written, after 200 steps",
        "One dot a seed, and the accuracy beside it. "
        + "; ".join(
            f"{ROWS[name][0]}: {sum(answers) / len(answers):.1f} answers, "
            f"{100 * accuracy.mean:.0f} % right"
            for name, (answers, accuracy) in rows.items()
        )
        + ".",
    )
    sheet.text(680, 56, "accuracy, %", "soft", anchor="end")
    frame = Frame(sheet, 290, top, 290, height, (0, MOST), (len(rows), 0))
    frame.axes((0, 5, 10, 15, 20), (), "effective number of right answers")
    for place, (name, (answers, accuracy)) in enumerate(rows.items()):
        words, color = ROWS[name]
        _, y = frame.at(0, place + 0.5)
        sheet.text(270, y + 5, words, color, anchor="end")
        sheet.line([(290, y), (580, y)], "soft", width=0.4)
        for answer in dict.fromkeys(answers):
            x, _ = frame.at(answer, 0)
            sheet.parts.append(
                f'<circle class="s-{color}" cx="{num(x)}" cy="{num(y)}" r="4.5" '
                'fill-opacity=".6"/>'
            )
        deviation = f" ± {100 * accuracy.deviation:.1f}" if name != UNTRAINED else ""
        value = f"{100 * accuracy.mean:.1f}{deviation}"
        sheet.text(680, y + 5, value, "ink", anchor="end", size=14)
    bottom = top + height + 62
    sheet.text(
        20,
        bottom,
        [
            ("blue", "blue"),
            (": the objective holds on to the model it started from; ", "soft"),
            ("orange", "orange"),
            (": it does not.", "soft"),
        ],
    )
    sheet.text(
        20, bottom + 20, "make_number, 370 held-out prompts, one dot a seed.", "soft"
    )
    return sheet

"""The figure of the README: answers that are left, at the best step and at the end."""

from __future__ import annotations

from drawings.sheet import Frame, Sheet
from flowrl_lab.measuring.fronts import Moment, moments, spread_of, untrained
from flowrl_lab.measuring.protocol import load_curves, load_protocol
from flowrl_lab.plots.static import num

ANSWERS, ACCURACY = "effective_answers", "accuracy"
MATCHING, MAXIMISING = "blue", "orange"
ROWS = {
    "pass_at_k=4": ("pass@4 training", MAXIMISING),
    "kl_reinforce=8": ("REINFORCE + KL, β = 8", MATCHING),
    "vargrad=8": ("VarGrad, β = 8", MATCHING),
    "flowrl=8": ("FlowRL, β = 8", MATCHING),
    "flowrl_paper=1": ("paper's form, β = 1", MATCHING),
    "flowrl_paper=15": ("paper's form, β = 15", MATCHING),
    "grpo_kl=0.1": ("GRPO + KL 0.1", MATCHING),
    "grpo_entropy=0.03": ("GRPO + entropy 0.03", MAXIMISING),
    "reinforce_pp": ("REINFORCE++", MAXIMISING),
    "ppo": ("PPO", MAXIMISING),
    "grpo": ("GRPO", MAXIMISING),
    "dapo": ("DAPO", MAXIMISING),
}
PANELS = {"make_number": "maths", "programs": "code"}
LEFT, WIDTH, STEP = 206, 152, 246  # of the first panel; from one to the next
HEIGHT, TOP, MOST = 26, 100, 24


def result() -> Sheet:
    """One row a method, a panel a task; the protocol's runs on test prompts."""
    protocol = load_protocol()
    curves = {task: load_curves(task) for task in PANELS}
    found = {
        (task, when): {
            str(cell): moment
            for cell, moment in moments(protocol, curves[task], when).items()
        }
        for task in PANELS
        for when in ("chosen", "end")
    }
    rows = [name for name in ROWS if all(name in cells for cells in found.values())]
    height = HEIGHT * (len(rows) + 1)
    words = " ".join(describe(PANELS[task], found, task, rows) for task in PANELS)
    sheet = Sheet(TOP + height + 96, "Right answers that are still written", words)
    for place, (task, title) in enumerate(PANELS.items()):
        left = LEFT + STEP * place
        sheet.label(left + WIDTH / 2, 62, title, "ink", bold=True)
        sheet.text(left + WIDTH + 82, 62, "% right", "soft", anchor="end")
        frame = Frame(
            sheet, left, TOP - 26, WIDTH, height, (0, MOST), (len(rows) + 1, 0)
        )
        frame.axes((0, 10, 20), (), "effective answers")
        start = untrained(curves[task])
        draw_start(frame, start)
        for row, name in enumerate(rows, 1):
            chosen, end = (found[task, when][name] for when in ("chosen", "end"))
            draw_row(frame, row + 0.5, ROWS[name][1], chosen, end)
    for row, name in enumerate(["untrained", *rows]):
        words, color = ROWS.get(name, ("untrained", "soft"))
        y = TOP - 26 + HEIGHT * (row + 0.5) + 5
        sheet.text(LEFT - 14, y, words, color, anchor="end")
    draw_legend(sheet, TOP + height + 36)
    return sheet


def describe(title: str, found: dict, task: str, rows: list[str]) -> str:
    """A panel in words."""
    said = (
        f"{ROWS[name][0]}: {say(found[task, 'chosen'][name])} where it was stopped, "
        f"{say(found[task, 'end'][name])} at the end"
        for name in rows
    )
    return f"{title}: {'; '.join(said)}."


def say(moment: Moment) -> str:
    """Answers and accuracy of a cell, in words."""
    answers, accuracy = (spread_of(moment, key).mean for key in (ANSWERS, ACCURACY))
    return f"{answers:.1f} answers, {100 * accuracy:.0f} % right"


def draw_start(frame: Frame, start: dict[str, float]) -> None:
    """The first row, and a line down from it: the model before training."""
    x, y = frame.at(start[ANSWERS], 0.5)
    _, bottom = frame.at(0, frame.y_range[0])
    frame.sheet.line([(x, y), (x, bottom)], "soft", width=1, dash="2 4")
    draw_dot(frame, start[ANSWERS], 0.5, "soft")
    draw_number(frame, 0.5, f"{100 * start[ACCURACY]:.1f}")


def draw_row(frame: Frame, row: float, color: str, chosen: Moment, end: Moment) -> None:
    """One dot a seed where it was stopped, one ring a seed at the end."""
    means = [spread_of(moment, ANSWERS).mean for moment in (chosen, end)]
    frame.sheet.line([frame.at(mean, row) for mean in means], color, width=1)
    for answers in end.values(ANSWERS):
        draw_dot(frame, answers, row, color, ring=True)
    for answers in chosen.values(ANSWERS):
        draw_dot(frame, answers, row, color)
    accuracy = spread_of(chosen, ACCURACY)
    draw_number(
        frame, row, f"{100 * accuracy.mean:.1f} ± {100 * accuracy.deviation:.1f}"
    )


def draw_dot(
    frame: Frame, x: float, row: float, color: str, *, ring: bool = False
) -> None:
    """A seed."""
    x, y = frame.at(x, row)
    look = f'class="l-{color}" stroke-width="1.4"' if ring else f'class="s-{color}"'
    frame.sheet.parts.append(
        f'<circle {look} cx="{num(x)}" cy="{num(y)}" r="4" opacity=".7"/>'
    )


def draw_number(frame: Frame, row: float, words: str) -> None:
    """Beside a row."""
    _, y = frame.at(0, row)
    x = frame.left + frame.width + 82
    frame.sheet.text(x, y + 5, words, "ink", anchor="end", size=14)


def draw_legend(sheet: Sheet, y: float) -> None:
    """What the marks are."""
    for row, (look, words) in enumerate(
        (
            (
                'class="s-soft"',
                "where it was stopped: rate and step chosen on validation prompts",
            ),
            (
                'class="l-soft" stroke-width="1.4"',
                "at the end, after 200 steps; five seeds, 128 test prompts each",
            ),
        )
    ):
        base = y + 22 * row
        sheet.parts.append(f'<circle {look} cx="26" cy="{num(base - 5)}" r="4"/>')
        sheet.text(40, base, words, "soft")
    sheet.text(
        20,
        y + 48,
        [
            ("Blue", "blue"),
            (": aims to stay near its start; ", "soft"),
            ("orange", "orange"),
            (": does not. Dotted: untrained.", "soft"),
        ],
    )

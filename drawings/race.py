"""The picture of the README: a recorded race of a real language model, moving."""

from __future__ import annotations

import math
from itertools import pairwise
from xml.sax.saxutils import escape

from drawings.sheet import Frame, Sheet
from flowrl_lab.measuring.recorded import load_replay
from flowrl_lab.plots.panels import colour_floor, count_alive
from flowrl_lab.plots.static import LIGHT_CELL, num, viridis
from flowrl_lab.types import StepRecord

SECONDS, MOVING = 12, 0.75  # of one round; the share of it before it stands still
COLORS = {"grpo": "orange", "flowrl": "blue"}
NAMES = {"grpo": "GRPO", "flowrl": "FlowRL"}
SIDE = 40


def looks(name: str) -> list[StepRecord]:
    """The steps of a recorded run at which its solution map was taken."""
    (run,) = (run for run in load_replay("open_sets") if run.config["name"] == name)
    return [record for record in run.records if record.snapshot is not None]


def animate(attribute: str, values: list[str]) -> str:
    """Values one after the other, the last one held.

    All of the picture jumps from look to look at the same moments: nothing that was not
    recorded is shown, and no word is ahead of its picture.
    """
    times = [MOVING * place / (len(values) - 1) for place in range(len(values))]
    return (
        f'<animate attributeName="{attribute}" dur="{SECONDS}s" '
        f'repeatCount="indefinite" calcMode="discrete" values="{";".join(values)}" '
        f'keyTimes="{";".join(f"{time:.4g}" for time in times)}"/>'
    )


def changing_text(
    sheet: Sheet, x: float, y: float, words: list[str], color: str
) -> None:
    """One of several texts at a time; a still viewer shows the last."""
    for place, line in enumerate(words):
        shown = ["1" if place == now else "0" for now in range(len(words))]
        change = animate("opacity", shown)
        sheet.parts.append(
            f'<text class="t-{color}" x="{num(x)}" y="{num(y)}" '
            f'opacity="{shown[-1]}">{escape(line)}{change}'
            "</text>"
        )


def cells(
    sheet: Sheet,
    x: float,
    y: float,
    labels: tuple[str, ...],
    frames: list,
    floor: float,
) -> None:
    """Five by five answers, lit by the log of their probability, frame by frame."""
    for place, label in enumerate(labels):
        left, top = x + SIDE * (place % 5), y + SIDE * (place // 5)
        lights = [
            1 - math.log10(max(float(probs[place]), floor)) / math.log10(floor)
            for probs in frames
        ]
        fills = [viridis(light) for light in lights]
        inks = ["#000000" if light > LIGHT_CELL else "#ffffff" for light in lights]
        still = len(frames) == 1
        fill = "" if still else animate("fill", fills)
        ink = "" if still else animate("fill", inks)
        sheet.parts.append(
            f'<rect x="{num(left)}" y="{num(top)}" width="{SIDE - 3}" '
            f'height="{SIDE - 3}" rx="3" fill="{fills[-1]}">{fill}</rect>'
            f'<text x="{num(left + SIDE / 2 - 1.5)}" y="{num(top + 24)}" '
            f'text-anchor="middle" fill="{inks[-1]}">{label}{ink}</text>'
        )


def curves(sheet: Sheet, runs: dict[str, list[StepRecord]]) -> None:
    """How many primes are alive, drawn as the steps go by."""
    steps = [record.step for record in next(iter(runs.values()))]
    frame = Frame(sheet, 52, 348, 396, 110, (0, steps[-1]), (0, 10))
    frame.axes(range(0, steps[-1] + 1, 20), (0, 5, 10), "training step")
    widths = [num(frame.at(step, 0)[0] - frame.left + 3) for step in steps]
    sheet.parts.append(
        f'<clipPath id="now"><rect x="{num(frame.left)}" y="{num(frame.top - 5)}" '
        f'width="{widths[-1]}" height="{num(frame.height + 10)}">'
        f'{animate("width", widths)}</rect></clipPath><g clip-path="url(#now)">'
    )
    for name, records in runs.items():
        alive = [count_alive(record.snapshot.probs) for record in records]
        frame.curve(steps, alive, COLORS[name], width=3)
    sheet.parts.append("</g>")
    target = count_alive(next(iter(runs.values()))[0].snapshot.target_probs)
    frame.curve((0, steps[-1]), (target, target), "soft", dash="6 4", width=1.5)
    sheet.text(470, 360, "primes still written,", "soft")
    sheet.text(470, 380, "as an effective number", "soft")
    sheet.text(470, 402, f"dashed: the target, {target:.1f}", "soft")
    for row, (name, records) in enumerate(runs.items()):
        words = [
            f"{NAMES[name]}: {count_alive(r.snapshot.probs):.1f}; "
            f"right {100 * r.snapshot.probs.sum():.0f} %"
            for r in records
        ]
        changing_text(sheet, 470, 432 + 26 * row, words, COLORS[name])


def race() -> Sheet:
    """Maps above, curves below; recorded runs, nothing made up."""
    runs = {name: looks(name) for name in COLORS}
    first = runs["grpo"][0].snapshot
    assert all(len(one.snapshot.labels) == 25 for run in runs.values() for one in run)
    (scale,) = {run.config["reward_scale"] for run in load_replay("open_sets")}
    assert scale == 6
    for one, other in pairwise(runs.values()):
        assert [r.step for r in one] == [r.step for r in other]
    ends = {
        name: count_alive(records[-1].snapshot.probs) for name, records in runs.items()
    }
    sheet = Sheet(
        514,
        "“A prime number”: a real language model, trained twice",
        "SmolLM2-135M is asked for a prime number and rewarded for any of the 25 below "
        "100. Both runs learn to answer right. GRPO ends with "
        f"{ends['grpo']:.1f} effective primes, FlowRL with {ends['flowrl']:.1f}.",
    )
    floor = colour_floor(first.target_probs)
    steps = [f"step {record.step} of 60" for record in runs["grpo"]]
    changing_text(sheet, 580, 30, steps, "soft")
    panels = {
        "grpo": ("GRPO: maximise", runs["grpo"]),
        "flowrl": ("FlowRL: match", runs["flowrl"]),
    }
    for column, (name, (title, records)) in enumerate(panels.items()):
        x = 24 + 226 * column
        sheet.text(x, 64, title, COLORS[name], bold=True)
        frames = [record.snapshot.probs for record in records]
        cells(sheet, x, 76, first.labels, frames, floor)
    sheet.text(476, 64, "the target p*", "ink", bold=True)
    cells(sheet, 476, 76, first.labels, [first.target_probs], floor)
    sheet.lines(
        298, "bright: likely; dark: no longer written. All 25 primes are right."
    )
    sheet.lines(
        318, "SmolLM2-135M, LoRA, seed 0, 60 steps of 4 × 32 samples; FlowRL at β = 6."
    )
    curves(sheet, runs)
    return sheet

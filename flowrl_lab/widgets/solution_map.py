"""The solution map of finished runs, with a slider over the training steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import traitlets

from flowrl_lab._validation import bad_input
from flowrl_lab.plots.panels import (
    Page,
    colour_floor,
    describe_page,
    effective_text,
    is_landscape,
    map_panels,
    merge_cells,
    run_styles,
)
from flowrl_lab.plots.placement import place_page
from flowrl_lab.plots.static import VIRIDIS, draw_svg
from flowrl_lab.types import Snapshot, StepRecord
from flowrl_lab.widgets._base import Explorer, read_script

__all__ = ["SolutionMap", "solution_map"]

Frames = Sequence[tuple[int, Snapshot]]


def solution_map(
    records: Iterable[StepRecord], *, target_label: str = "target p*"
) -> SolutionMap:
    """The solution map of finished runs.

    Args:
        records: of one run or several, such as ``plot.records``; those without a
            snapshot are passed over.
        target_label: what the target is called.

    Returns:
        A widget; the last line of a cell shows it.

    Raises:
        ValueError: if no record has a snapshot, or the runs watched different
            prompts.
    """
    history: dict[str, dict[int, Snapshot]] = {}
    algorithms: dict[str, str] = {}
    for record in records:
        algorithms[record.run] = record.algorithm
        if record.snapshot is not None:
            history.setdefault(record.run, {})[record.step] = record.snapshot
    frames = {run: sorted(seen.items()) for run, seen in history.items()}
    return SolutionMap(frames, target_label=target_label, algorithms=algorithms)


class SolutionMap(Explorer):
    """Scrubs through the distributions of finished runs, side by side.

    Every answer is a cell (many numbered states: a curve), lit by its probability
    on one logarithmic scale for all runs.  At a step where a run was not evaluated,
    its latest evaluation before that step is shown.  When the cell runs again, a map
    of the same runs opens at the step where the last one was left.

    Args:
        snapshots: run name -> a ``Snapshot``, or a list of (step, ``Snapshot``) in
            rising order of steps.
        target_label: what the target is called.
        algorithms: run name -> algorithm, for the colours; None where the names say
            it.

    Raises:
        ValueError: if there is nothing to show, or the answers differ.
    """

    _esm = read_script("solution_map.js")
    _frames = traitlets.Bytes().tag(sync=True)
    _target = traitlets.Bytes().tag(sync=True)
    _labels = traitlets.List(traitlets.Unicode()).tag(sync=True)
    _runs = traitlets.List(traitlets.Dict()).tag(sync=True)
    _steps = traitlets.List(traitlets.Int()).tag(sync=True)
    _remarks = traitlets.List(traitlets.List(traitlets.Unicode())).tag(sync=True)
    _shape = traitlets.Unicode().tag(sync=True)
    _floor = traitlets.Float().tag(sync=True)
    _colors = traitlets.List(traitlets.Unicode()).tag(sync=True)
    _target_label = traitlets.Unicode().tag(sync=True)
    _target_remark = traitlets.Unicode().tag(sync=True)
    step_index = traitlets.Int(0).tag(sync=True)
    _left_at: ClassVar[dict[tuple, int]] = {}  # step at which the same one was left

    def __init__(
        self,
        snapshots: Mapping[str, Snapshot | Frames],
        *,
        target_label: str = "target p*",
        algorithms: Mapping[str, str] | None = None,
    ) -> None:
        self.frames = check_frames(snapshots)
        first = next(iter(self.frames.values()))[0][1]
        self.styles = run_styles(
            [(run, (algorithms or {}).get(run, run)) for run in self.frames]
        )
        steps = sorted({step for seen in self.frames.values() for step, _ in seen})
        shown = [self.at_step(step) for step in steps]
        labels, target = merge_cells(first.labels, first.target_probs)
        merged = [
            [merge_cells(s.labels, s.probs)[1] for s in row.values()] for row in shown
        ]
        super().__init__(
            _frames=np.asarray(merged, dtype=np.float32).tobytes(),
            _target=np.asarray(target, dtype=np.float32).tobytes(),
            _labels=list(labels),
            _runs=[
                {"name": run, "color": style.color, "glyph": style.glyph}
                for run, style in self.styles.items()
            ],
            _steps=steps,
            _remarks=[[remark(s) for s in row.values()] for row in shown],
            _shape="states" if is_landscape(first) else "cells",
            _floor=colour_floor(np.asarray(first.target_probs)),
            _colors=list(VIRIDIS),
            _target_label=target_label,
            _target_remark=remark(replace(first, probs=first.target_probs)),
            step_index=len(steps) - 1,
        )
        self._key = (first.prompt, first.labels, tuple(self.frames))
        left_at = self._left_at.get(self._key)
        if left_at in steps:
            self.step_index = steps.index(left_at)
        self.observe(self._remember, "step_index")

    def _remember(self, _change) -> None:
        # At the end, where a map opens anyway, nothing is kept: runs that are trained
        # for longer then open at their own end.
        if self.step_index == len(self._steps) - 1:
            self._left_at.pop(self._key, None)
        else:
            self._left_at[self._key] = self.step

    @property
    def step(self) -> int:
        """The training step that the slider stands at."""
        return self._steps[self.step_index]

    @traitlets.validate("step_index")
    def _check_step_index(self, proposal):
        index = proposal["value"]
        if not 0 <= index < len(self._steps):
            raise bad_input(
                "step_index",
                f"is {index}",
                f"0 … {len(self._steps) - 1}",
                "count the evaluated steps from 0",
            )
        return index

    def at_step(self, step: int) -> dict[str, Snapshot]:
        """Each run's latest snapshot at or before ``step`` (else its first)."""
        return {
            run: [snap for at, snap in seen if at <= step or at == seen[0][0]][-1]
            for run, seen in self.frames.items()
        }

    def still(self) -> tuple[str, str, str]:
        """The map at the present step."""
        panels = map_panels(self.at_step(self.step), self.styles, self._target_label)
        first = next(iter(self.frames.values()))[0][1]
        page = Page(
            "", f"step {self.step}", (), (), panels, f"solution map of {first.prompt}"
        )
        rows = [f"{panel.run}: {panel.title}, {panel.note}" for panel in panels]
        return draw_svg(page, place_page(page)), describe_page(page), "\n".join(rows)


def remark(snapshot: Snapshot) -> str:
    """The effective number; below it the sum, or the peak where a curve is cut."""
    probs = np.asarray(snapshot.probs)
    text = effective_text(probs)
    if not is_landscape(snapshot):
        return f"{text}\ntogether {probs.sum():.3f}"
    if probs.max() > 1.6 * np.max(snapshot.target_probs):
        return f"{text}\n↑ {probs.max():.2f} at {snapshot.labels[probs.argmax()]}"
    return f"{text}\n\N{NO-BREAK SPACE}"  # keeps the pictures level


def check_frames(snapshots: Mapping) -> dict[str, list[tuple[int, Snapshot]]]:
    """Every run as a list of (step, snapshot) over the same answers.

    Raises:
        ValueError: if there is nothing to show, or the answers differ.
    """
    frames = {
        run: [(0, seen)] if isinstance(seen, Snapshot) else list(seen)
        for run, seen in snapshots.items()
    }
    if not frames or not all(frames.values()):
        raise bad_input(
            "snapshots",
            "has no snapshot" + (" for some run" if frames else ""),
            "at least one for each run",
            "pass records of evaluation steps",
        )
    every = [snapshot for seen in frames.values() for _, snapshot in seen]
    if not every[0].labels or any(s.labels != every[0].labels for s in every):
        raise bad_input(
            "snapshots",
            "list different answers (or none)",
            "the same answers in every run",
            "give the runs the same task and watch_prompt",
        )
    return frames

"""Distributions over words, drawn as the pictures that the words are pixels of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowrl_lab._validation import bad_input
from flowrl_lab.plots.live import LivePlot
from flowrl_lab.plots.panels import (
    CellsPanel,
    Page,
    RunStyle,
    colour_floor,
    effective_text,
    run_styles,
)
from flowrl_lab.plots.pictures import Picture
from flowrl_lab.tasks.strings import Strings

__all__ = ["LivePictures", "draw_pictures"]


class LivePictures(LivePlot):
    """A live plot whose map shows each run's words as the picture that they are.

    Args:
        task: a strings task whose picture is as wide as it is high.
        metrics: panels of curves above the pictures; none if empty.
        beside_target: show the target's picture first.
        options: of ``LivePlot``.

    Raises:
        ValueError: as of ``LivePlot``; a picture that is not square.
    """

    def __init__(
        self,
        task: Strings,
        metrics: tuple[str, ...] = (),
        *,
        beside_target: bool = True,
        **options,
    ):
        _check_square(task)
        self.task, self.beside_target = task, beside_target
        super().__init__(metrics, solution_map=True, **options)

    def page(self) -> Page:
        """What the figure shows now: the curves, the target, each run's picture."""
        page, shown = super().page(), self._history.snapshots
        if not shown:
            return page
        first = next(iter(shown.values()))
        probs = {run: snapshot.probs for run, snapshot in shown.items()}
        panels = _panels(
            self.task, first.target_probs, probs, dict(page.legend), self.target_label
        )
        maps = panels if self.beside_target else panels[1:]
        return replace(page, maps=maps, map_title="")


def draw_pictures(
    task: Strings,
    target: Float[Tensor, " N"],
    curves: Mapping[str, Float[Tensor, " N"]],
    *,
    title: str = "",
    target_label: str = "target p*",
) -> Picture:
    """Draw log-probabilities over all words as the pictures they are, target first.

    Args:
        task: a strings task whose picture is as wide as it is high.
        target: log-probabilities of the target, in the order of ``task.answers``.
        curves: name -> log-probabilities in the same order; one picture each, at
            most four.
        title: headline.
        target_label: what the target is called.

    Returns:
        A picture; as a cell's last value it shows itself.

    Raises:
        ValueError: for no curves or too many, a picture that is not square, or
            lengths that differ from the task's number of words.
    """
    if not 1 <= len(curves) <= 4:
        raise bad_input(
            "curves", f"has {len(curves)} entries", "1 to 4", "draw them in two cells"
        )
    _check_square(task)
    styles = run_styles([(name, name) for name in curves])
    goal, *probs = (
        values.detach().double().exp().cpu().numpy()
        for values in (target, *curves.values())
    )
    found = dict(zip(curves, probs, strict=True))
    panels = _panels(task, goal, found, styles, target_label)
    return Picture(Page(title, "", tuple(styles.items()), (), panels, ""))


def _check_square(task: Strings) -> None:
    if task.width != task.height:
        raise bad_input(
            "task",
            f"makes a picture of {task.width} × {task.height}",
            "a square picture",
            "use an even length",
        )


def _panels(
    task: Strings,
    target: np.ndarray,
    runs: Mapping[str, np.ndarray],
    styles: Mapping[str, RunStyle],
    target_label: str,
) -> tuple[CellsPanel, ...]:
    """One picture for the target and one for each run, pixels row by row."""
    labels = task.answers(task.prompts("train")[0]).labels
    places = task.picture(torch.arange(task.num_words).double()).flatten().long()
    words = tuple(labels[place] for place in places.tolist())
    floor = colour_floor(target)
    panels = []
    for name, values in {target_label: target, **runs}.items():
        probs = task.picture(torch.as_tensor(values)).flatten().numpy()
        panels.append(
            CellsPanel(
                effective_text(probs),
                name,
                styles.get(name),
                words,
                probs,
                floor,
                f"probability of all: {probs.sum():.3f}",
                picture=True,
            )
        )
    return tuple(panels)

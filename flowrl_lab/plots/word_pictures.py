"""Distributions over words, drawn as the pictures that the words are pixels of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from flowrl_lab._validation import bad_input
from flowrl_lab.plots.figures import bundle_from_page
from flowrl_lab.plots.panels import (
    CellsPanel,
    Page,
    alive_text,
    colour_floor,
    run_styles,
)
from flowrl_lab.plots.pictures import Picture
from flowrl_lab.plots.placement import place_page
from flowrl_lab.tasks.strings import Strings

__all__ = ["WordPicture", "draw_pictures"]

PANEL_WIDTH = 184  # leaves a square, so that a square picture keeps its shape
SCALE_WIDTH = 680.0


class WordPicture(Picture):
    """Pictures side by side, each as wide as it is high."""

    def _repr_mimebundle_(self, **_formats) -> dict:
        placement = place_page(self.page, width=PANEL_WIDTH * len(self.page.maps))
        # the colour scale and its remark may need more room than the pictures
        placement = replace(placement, width=max(placement.width, SCALE_WIDTH))
        bundle = bundle_from_page(self.page, placement)
        return {**bundle, "text/plain": repr(self)}


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
    if task.width != task.height:
        raise bad_input(
            "task",
            f"makes a picture of {task.width} × {task.height}",
            "a square picture",
            "use an even length",
        )
    styles = run_styles([(name, name) for name in curves])
    labels = task.answers(task.prompts("train")[0]).labels
    places = task.picture(_numbers(target)).flatten().tolist()
    words = tuple(labels[int(place)] for place in places)
    floor = colour_floor(target.detach().double().exp().cpu().numpy())
    panels = []
    for name, log_probs in {target_label: target, **curves}.items():
        probs = task.picture(log_probs.detach().double().cpu().exp()).flatten().numpy()
        panels.append(
            CellsPanel(
                alive_text(probs),
                name,
                styles.get(name),
                words,
                probs,
                floor,
                f"probability of all: {probs.sum():.3f}",
            )
        )
    return WordPicture(Page(title, "", tuple(styles.items()), (), tuple(panels), ""))


def _numbers(values: Tensor) -> Tensor:
    """0, 1, …: the place of each word in the list."""
    return values.new_ones(values.shape).cumsum(0).double().cpu() - 1

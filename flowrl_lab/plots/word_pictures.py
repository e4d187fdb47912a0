"""Distributions over words, drawn as the pictures that the words are pixels of."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from torch import Tensor

from flowrl_lab._validation import bad_input
from flowrl_lab.plots.panels import Page, picture_panels, run_styles
from flowrl_lab.plots.pictures import Picture
from flowrl_lab.tasks.strings import Strings

__all__ = ["draw_pictures"]


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
    for name, log_probs in {target_label: target, **curves}.items():
        if tuple(log_probs.shape) != (len(labels),):
            raise bad_input(
                *(name, f"has shape {tuple(log_probs.shape)}", f"[{len(labels)}]"),
                "one log-probability for each word",
            )
    runs = {name: (styles[name], _probs(log_p)) for name, log_p in curves.items()}
    maps = picture_panels(labels, _probs(target), runs, target_label, task.picture)
    return Picture(Page(title, "", tuple(styles.items()), (), maps, ""))


def _probs(log_probs: Tensor) -> np.ndarray:
    return log_probs.detach().double().exp().cpu().numpy()

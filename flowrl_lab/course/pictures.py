"""Still pictures for the lessons: distributions over states beside a target."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from flowrl_lab.figures import bundle_from_page
from flowrl_lab.panels import (
    Page,
    describe_page,
    run_styles,
    states_panel,
)
from flowrl_lab.placement import place_page
from flowrl_lab.types import Snapshot

__all__ = ["Picture", "draw_distributions"]


class Picture:
    """A finished figure; a notebook draws it, ``print`` says it in words."""

    def __init__(self, page: Page):
        self.page = page

    def __repr__(self) -> str:
        return describe_page(self.page)

    def _repr_mimebundle_(self, **_formats) -> dict:
        bundle = bundle_from_page(self.page, place_page(self.page))
        return {**bundle, "text/plain": repr(self)}


def draw_distributions(
    target: Float[Tensor, " N"],
    curves: Mapping[str, Float[Tensor, " N"]],
    *,
    title: str = "",
    target_label: str = "target p*",
) -> Picture:
    """Draw log-probabilities over states 0 … N-1, each as a line over the target.

    A spike higher than 1.6 times the target's peak is cut, and named above its
    panel.

    Args:
        target: log-probabilities of the target, drawn in grey.
        curves: name -> log-probabilities; one panel each.
        title: headline.
        target_label: what the target is called.

    Returns:
        A picture; as a cell's last value it shows itself.

    Raises:
        ValueError: for no curves, fewer than two states, or lengths that differ.
    """
    if not curves:
        raise ValueError("curves: got none, expected at least one name: log_probs")
    if target.ndim != 1 or len(target) < 2:
        raise ValueError(
            f"target: got shape {tuple(target.shape)}, expected [N], N ≥ 2"
        )
    styles = run_styles([(name, name) for name in curves])
    panels = []
    for name, log_probs in curves.items():
        if log_probs.shape != target.shape:
            raise ValueError(
                f"{name}: got shape {tuple(log_probs.shape)}, "
                f"expected {tuple(target.shape)}, like the target"
            )
        probs, goal = (_to_probs(values) for values in (log_probs, target))
        labels = tuple(str(state) for state in range(len(goal)))
        snapshot = Snapshot("", labels, probs, goal, goal)
        panels.append(states_panel(name, styles[name], snapshot, target_label))
    return Picture(Page(title, "", tuple(styles.items()), (), tuple(panels), ""))


def _to_probs(log_probs: Tensor):
    return torch.exp(log_probs.detach().double().cpu()).numpy()

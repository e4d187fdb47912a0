"""From reward to distribution, with a slider for β."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import traitlets

from flowrl_lab._validation import bad_input
from flowrl_lab.plots.panels import (
    Page,
    RunStyle,
    StatesPanel,
    count_alive,
    describe_page,
    format_number,
)
from flowrl_lab.plots.placement import place_page
from flowrl_lab.plots.static import draw_svg
from flowrl_lab.widgets._base import Explorer, read_script

__all__ = ["BetaExplorer"]

SLIDER_RANGE = (0.1, 100.0)


class BetaExplorer(Explorer):
    """Shows ``p*(x) = π_ref(x) exp(βr(x)) / Z`` while β moves under a slider.

    The browser computes the picture, so the slider also works while the kernel is
    busy; where the slider was left comes back as ``reward_scale``, and when the cell
    is run again.

    Source: arXiv 2509.15207, Eq. 2 and 5.

    Args:
        rewards: r(x), one number for each of N states.
        reference: π_ref(x), positive, summing to 1; None for the uniform 1/N.  It
            enters log Z: ``Z = Σ π_ref(x) exp(βr(x))``.
        labels: names of the states; None for 0 … N−1.
        reward_scale: β at the start, above 0.

    Raises:
        ValueError: for no states, a reward that is not finite, a reference that is
            no distribution, a wrong number of labels, or β ≤ 0.
    """

    _esm = read_script("beta_explorer.js")
    _rewards = traitlets.Bytes().tag(sync=True)
    _log_reference = traitlets.Bytes().tag(sync=True)
    _labels = traitlets.List(traitlets.Unicode()).tag(sync=True)
    _range = traitlets.List(traitlets.Float()).tag(sync=True)
    reward_scale = traitlets.Float(1.0).tag(sync=True)
    _left_at: ClassVar[dict[tuple, float]] = {}  # where the same one was left

    def __init__(
        self, rewards, reference=None, labels=None, *, reward_scale: int | float = 1.0
    ) -> None:
        self.rewards = check_rewards(rewards)
        count = len(self.rewards)
        self.reference = check_reference(reference, count)
        names = [str(name) for name in (range(count) if labels is None else labels)]
        if len(names) != count:
            raise bad_input(
                "labels", f"has {len(names)} names", f"{count}", "name each state once"
            )
        asked = check_scale(reward_scale)
        self._key = (self.rewards.tobytes(), self.reference.tobytes(), asked)
        scale = self._left_at.get(self._key, asked)
        super().__init__(
            _rewards=self.rewards.tobytes(),
            _log_reference=np.log(self.reference).tobytes(),
            _labels=names,
            _range=[min(SLIDER_RANGE[0], scale), max(SLIDER_RANGE[1], scale)],
            reward_scale=scale,
        )
        self.observe(self._remember, "reward_scale")

    def _remember(self, change) -> None:
        self._left_at[self._key] = change["new"]

    @traitlets.validate("reward_scale")
    def _check_reward_scale(self, proposal):
        return check_scale(proposal["value"])

    def target(
        self, reward_scale: int | float | None = None
    ) -> tuple[np.ndarray, float]:
        """``p*`` [N] and log Z (nats) at β, by default where the slider stands.

        Raises:
            ValueError: for β ≤ 0.
        """
        scale = check_scale(self.reward_scale if reward_scale is None else reward_scale)
        return tilt(np.log(self.reference), scale * self.rewards)

    def still(self) -> tuple[str, str, str]:
        """Three values of β side by side: a tenth, this one, ten times it."""
        scales = [self.reward_scale * factor for factor in (0.1, 1.0, 10.0)]
        panels, rows = [], ["β         effective  entropy  log Z    best state"]
        for scale in scales:
            probs, log_z = self.target(scale)
            number = count_alive(probs)
            best = probs[self.rewards == self.rewards.max()].sum()
            panels.append(self._panel(scale, probs, log_z))
            cells = (scale, number, np.log(number), log_z, best)
            heads = (10, 11, 9, 9, 10)
            texts = (format_number(cell) for cell in cells)
            rows.append("".join(t.ljust(n) for t, n in zip(texts, heads, strict=True)))
        page = Page(
            "Target p* ∝ π_ref exp(βr) at three values of β", "", (), (), (*panels,), ""
        )
        return draw_svg(page, place_page(page)), describe_page(page), "\n".join(rows)

    def _panel(self, scale: float, probs: np.ndarray, log_z: float) -> StatesPanel:
        number = f"{count_alive(probs):.1f} of {len(probs)} effective"
        return StatesPanel(
            title=number,
            run=f"β = {format_number(scale)}",
            style=RunStyle("#0072B2", "solid", "circle"),
            states=np.arange(len(probs), dtype=float),
            probs=probs,
            target=self.reference,
            y_max=1.05 * float(max(probs.max(), self.reference.max())),
            note=f"log Z {log_z:.2f} · largest {probs.max():.2f} · grey: π_ref",
        )


def tilt(log_reference, scores: np.ndarray) -> tuple[np.ndarray, float]:
    """``p* = π_ref exp(scores) / Z`` [N] and log Z, nats."""
    scores = log_reference + scores
    log_z = float(np.logaddexp.reduce(scores))
    return np.exp(scores - log_z), log_z


def check_rewards(rewards) -> np.ndarray:
    """The rewards as a float64 array [N].

    Raises:
        ValueError: unless they are N ≥ 1 finite numbers.
    """
    values = np.array(rewards, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise bad_input(
            "rewards",
            f"has shape {list(values.shape)}",
            "[N] with at least one state",
            "give one reward for each state",
        )
    if not np.isfinite(values).all():
        raise bad_input(
            "rewards",
            f"is not finite at state {int(np.argmin(np.isfinite(values)))}",
            "finite numbers",
            "replace NaN and infinities",
        )
    return values


def check_reference(reference, count: int) -> np.ndarray:
    """The reference distribution as a float64 array [N]; uniform for None.

    Raises:
        ValueError: unless it has N positive entries that sum to 1.
    """
    if reference is None:
        return np.full(count, 1.0 / count)
    values = np.array(reference, dtype=np.float64)
    good = values.shape == (count,) and np.isfinite(values).all()
    if not (good and (values > 0).all() and abs(values.sum() - 1) < 1e-6):
        raise bad_input(
            "reference",
            f"has shape {list(values.shape)} and sum {values.sum():.6g}",
            f"{count} positive probabilities that sum to 1",
            "divide it by its sum, or leave it out for the uniform one",
        )
    return values


def check_scale(reward_scale: int | float) -> float:
    """β as a float.

    Raises:
        ValueError: unless it is finite and above 0.
    """
    if not (np.isfinite(reward_scale) and reward_scale > 0):
        raise bad_input(
            "reward_scale", f"is {reward_scale}", "a number above 0", "try 1.0"
        )
    return float(reward_scale)

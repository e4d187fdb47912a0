"""Still pictures for the lessons: distributions beside a target, and curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowrl_lab._validation import bad_input
from flowrl_lab.plots.figures import bundle_from_page
from flowrl_lab.plots.panels import (
    LinePanel,
    Page,
    RunStyle,
    Series,
    axis_title,
    curve_range,
    describe_page,
    run_styles,
    states_panel,
)
from flowrl_lab.plots.placement import place_page
from flowrl_lab.types import Snapshot

__all__ = ["Picture", "draw_curves", "draw_distributions"]

MOST_MARKED = 20  # points of a curve that each wear a marker


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
    target: Float[Tensor, " N"] | Float[Tensor, "R N"],
    curves: Mapping[str, Float[Tensor, " N"]],
    *,
    title: str = "",
    target_label: str = "target p*",
    labels: Sequence[str] = (),
    x_title: str = "state",
) -> Picture:
    """Draw log-probabilities over states 0 … N-1, each over the target.

    Few states, or such as have names, are bars; many are a landscape.  A spike
    higher than 1.6 times the target's peak is cut, and named above its panel.

    Args:
        target: log-probabilities of the target, drawn in grey; or of one target for
            each of the R curves.
        curves: name -> log-probabilities; one panel each.
        title: headline.
        target_label: what the target is called.
        labels: a name for each state.
        x_title: what a state is.

    Returns:
        A picture; as a cell's last value it shows itself.

    Raises:
        ValueError: for no curves, fewer than two states, or lengths that differ.
    """
    if not curves:
        raise ValueError("curves: got none, expected at least one name: log_probs")
    rows, states = target.shape if target.ndim == 2 else (1, target.numel())
    if target.ndim > 2 or states < 2 or rows not in (1, len(curves)):
        raise ValueError(
            f"target: got shape {tuple(target.shape)}, expected [N], N ≥ 2, or "
            "[R, N], one row for each curve"
        )
    if labels and len(labels) != states:
        raise bad_input(
            "labels", f"has {len(labels)} names", f"{states}", "name each state"
        )
    goals = target.expand(len(curves), states)
    peak = float(target.exp().max())  # one scale: panels stand side by side
    styles = run_styles([(name, name) for name in curves])
    panels = []
    for (name, log_probs), own in zip(curves.items(), goals, strict=True):
        if log_probs.shape != own.shape:
            raise ValueError(
                f"{name}: got shape {tuple(log_probs.shape)}, "
                f"expected {tuple(own.shape)}, like the target"
            )
        probs, goal = (_to_probs(values) for values in (log_probs, own))
        states = tuple(str(state) for state in range(len(goal)))
        snapshot = Snapshot("", states, probs, goal, goal)
        panel = states_panel(
            name, styles[name], snapshot, target_label, tuple(labels), peak
        )
        panels.append(replace(panel, x_title=x_title))
    return Picture(Page(title, "", tuple(styles.items()), (), tuple(panels), ""))


def draw_curves(
    curves: Mapping[str, tuple[Sequence[int | float], Sequence[int | float]]],
    *,
    title: str = "",
    x_title: str = "x",
    y_title: str = "y",
    log_x: bool = False,
    log_y: bool = False,
    marks: Mapping[str, int | float | None] | None = None,
    labels: Mapping[str, Sequence[str]] | None = None,
    points: Sequence[str] = (),
    dots: Mapping[str, tuple[Sequence[int | float], Sequence[int | float]]]
    | None = None,
    large: Mapping[str, Sequence[bool]] | None = None,
    x_from_zero: bool = False,
    closer: float | None = None,
    x_names: Sequence[str] = (),
) -> Picture:
    """Draw one panel of curves; those named as an algorithm wear its colours.

    Args:
        curves: name -> (x, y), in the order in which the points are joined.
        title: headline.
        x_title: what lies along the horizontal axis.
        y_title: what the heights are; written above the panel.
        log_x: a log axis to the right; every x above 0.
        log_y: heights on a log axis; values of 0 or less are left out.
        marks: name -> a height to mark with a level line, such as
            ``{"your prediction": predicted("02.log_z")}``; None is left out.
        labels: name -> words beside its points, one for each.  Where all curves have
            them no legend is needed.
        points: names whose points no line joins.
        dots: name of a curve -> (x, y) of what its points are the means of, such as
            seeds: small dots of its colour.
        large: name of a curve -> which of its points wear a large marker.
        x_from_zero: the horizontal axis begins at 0; every x above it.
        closer: a height; a second panel shows the same from there up.
        x_names: what stands below the x of 0, 1, 2 …, where these are no numbers;
            points may lie a little beside theirs.

    Returns:
        A picture; as a cell's last value it shows itself.

    Raises:
        ValueError: for no curves, an empty one, x and y of different lengths, an x of
            0 or less on a log axis, points, dots or large markers of no curve, a mark
            that is no finite number (above 0 on a log axis), nothing above ``closer``.
    """
    if not curves:
        raise ValueError("curves: got none, expected at least one name: (x, y)")
    given_names = ("points", points), ("dots", dots or {}), ("large", large or {})
    for given, named in given_names:
        if unknown := set(named) - set(curves):
            raise bad_input(given, f"names {unknown}", f"{set(curves)}", "name a curve")
    styles = run_styles([(name, name) for name in curves])
    series = []
    for name, ends in (dots or {}).items():  # first: curves are drawn over them
        style = replace(styles[name], joined=False)
        series.append(replace(_series(name, style, ends, (), log_x), dots=True))
    for name, ends in curves.items():
        styles[name] = replace(styles[name], joined=name not in points)
        words = tuple((labels or {}).get(name, ()))
        drawn = _series(name, styles[name], ends, words, log_x)
        big = tuple(map(bool, (large or {}).get(name, ())))
        if big and len(big) != len(drawn.x):
            raise bad_input(
                "large", f"has {len(big)}", f"{len(drawn.x)}", "one a point"
            )
        series.append(replace(drawn, large=big))
    levels = _check_marks(marks or {}, log_y)
    axes = (x_title, y_title, log_x, log_y, x_from_zero)
    if log_x and x_names:
        raise bad_input("x_names", "came with log_x", "one of the two", "drop log_x")
    panels = [_line_panel(series, levels, *axes)]
    if closer is not None:
        kept = [part for one in series if (part := _from_height(one, closer))]
        if not kept:
            raise bad_input("closer", f"is {closer:g}", "a height below some", "less")
        whole = [_worded_below(one, closer) for one in series]
        panels = [_line_panel(whole, levels, *axes), _line_panel(kept, (), *axes)]
    if x_names:
        ends = (-0.5, len(x_names) - 0.5)
        panels = [replace(p, x_names=tuple(x_names), x_range=ends) for p in panels]
    named = all(any(curve.labels) for curve in series if not curve.dots)
    legend = () if named else tuple(styles.items())
    return Picture(Page(title, "", legend, tuple(panels), (), ""))


def _line_panel(
    series: Sequence[Series],
    levels: tuple[tuple[str, float], ...],
    x_title: str,
    y_title: str,
    log_x: bool,
    log_y: bool,
    x_from_zero: bool,
) -> LinePanel:
    """A panel with room for all of its curves, dots and marks."""
    heights = [curve.y for curve in series] + [np.array([v]) for _, v in levels]
    every = np.concatenate(heights)
    low, high = curve_range(every, log_y)
    places = np.concatenate([curve.x for curve in series])
    x_range = curve_range(places, log_x, from_zero=False)
    worded = any(curve.labels for curve in series)
    return LinePanel(
        axis_title(y_title, every, (low, high), log_y),
        y_title,
        log_y,
        tuple(series),
        (0.0, x_range[1]) if x_from_zero else x_range,
        # room for the words of marks and points
        (low, high + 0.1 * (high - low) * bool(levels or worded)),
        x_title,
        levels,
        log_x,
    )


def _worded_below(curve: Series, height: float) -> Series:
    """A curve whose points from ``height`` up say nothing: a second panel does."""
    pairs = zip(curve.y, curve.labels, strict=False)
    return replace(curve, labels=tuple(w * bool(y < height) for y, w in pairs))


def _from_height(curve: Series, height: float) -> Series | None:
    """What of a curve lies at ``height`` or above; None where nothing does."""
    kept = curve.y >= height
    if not kept.any():
        return None
    words, large = (
        tuple(mark for mark, one in zip(marks, kept, strict=False) if one)
        for marks in (curve.labels, curve.large)
    )
    return replace(curve, x=curve.x[kept], y=curve.y[kept], labels=words, large=large)


def _series(
    name: str,
    style: RunStyle,
    ends: tuple[Sequence[int | float], Sequence[int | float]],
    words: tuple[str, ...],
    log_x: bool,
) -> Series:
    """A curve of a picture, its lengths and its x checked."""
    x, y = (np.asarray(values, dtype=float) for values in ends)
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise ValueError(
            f"{name}: got x {x.shape} and y {y.shape}, expected two equally "
            "long lists with at least one number"
        )
    if log_x and not (x > 0).all():
        raise bad_input(name, f"has an x of {x.min():g}", "x > 0", "drop log_x")
    if words and len(words) != len(x):
        raise bad_input(
            f"labels[{name!r}]", f"has {len(words)}", f"{len(x)}", "one a point"
        )
    return Series(name, style, x, y, words, marked=len(x) <= MOST_MARKED)


def _check_marks(
    marks: Mapping[str, int | float | None], log_y: bool
) -> tuple[tuple[str, float], ...]:
    """The marks that are there, as floats."""
    kept = [(name, value) for name, value in marks.items() if value is not None]
    for name, value in kept:
        number = isinstance(value, int | float) and math.isfinite(value)
        if not number or (log_y and value <= 0):
            raise ValueError(
                f"marks: got {value!r} for {name!r}, expected a finite number"
                f"{' above 0 (log axis)' if log_y else ''}. Fix: leave it out with None"
            )
    return tuple((name, float(value)) for name, value in kept)


def _to_probs(log_probs: Tensor):
    return torch.exp(log_probs.detach().double().cpu()).numpy()

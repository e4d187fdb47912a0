"""Whether a returned value is the expected one, and if not, what differs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flowrl_lab.assignments.encoding import flatten_value

__all__ = ["differ", "difference"]

Part = Tensor | str | None


def difference(
    got: Sequence[Any],
    expected: Sequence[Any],
    tolerance: tuple[float, float],
    names: Sequence[str] = (),
    *,
    told: bool = True,
) -> str:
    """What differs first, without telling the expected numbers; "" if nothing does.

    Args:
        got: a result and its gradients.
        expected: the same of the solution.
        tolerance: relative and absolute.
        names: of the arguments that the gradients are with respect to.
        told: whether the whole shape of a result may be told; the lengths that code
            chooses could carry the inputs of a hidden test out.
    """
    for place, wanted in enumerate(expected):
        if place >= len(got):
            return "a part of the result is missing"
        what = "result"
        if place:
            label = names[place - 1] if place <= len(names) else f"argument {place}"
            what = f"gradient with respect to {label}"
        problem = differ(got[place], wanted, tolerance, told=told)
        if problem:
            return f"the {what} {problem}"
    return ""


def differ(
    got: Any, expected: Any, tolerance: tuple[float, float], *, told: bool = True
) -> str:
    """What is wrong with one value: "" if it agrees."""
    if got is None and expected is not None:
        return "is None. Is the `return` missing?"
    try:
        ours, theirs = flatten_value(got), flatten_value(expected)
    except (ValueError, TypeError, RuntimeError, OverflowError):
        return "holds something else than numbers"
    if [path for path, _ in ours] != [path for path, _ in theirs]:
        return "is built differently: other parts than were asked for"
    for (_, a), (_, b) in zip(ours, theirs, strict=True):
        problem = _differ_leaf(a, b, tolerance, told)
        if problem:
            return problem
    return ""


def _differ_leaf(
    got: Part, expected: Part, tolerance: tuple[float, float], told: bool
) -> str:
    if not (isinstance(got, Tensor) and isinstance(expected, Tensor)):
        same = type(got) is type(expected) and got == expected
        return "" if same else "is another text or kind"
    if got.shape != expected.shape:
        return _shapes(list(got.shape), list(expected.shape), told)
    if torch.isnan(got).any() and not torch.isnan(expected).any():
        return "holds NaN (log of 0, 0 × ∞ or ∞ − ∞?)"
    relative, absolute = tolerance
    if torch.allclose(got, expected, rtol=relative, atol=absolute, equal_nan=True):
        return ""
    return "has other numbers than expected"


def _shapes(got: list[int], expected: list[int], told: bool) -> str:
    """Where two shapes differ; untold, only which axes are wrong, or how many."""
    if told:
        return f"has shape {got}, expected {expected}"
    if len(got) != len(expected):
        axes = "more" if len(got) > len(expected) else "fewer"
        return f"has {axes} axes than expected, which is shape {expected}"
    pairs = zip(got, expected, strict=True)
    shown = ", ".join(str(a) if a == b else "?" for a, b in pairs)
    return f"has another shape, [{shown}], expected {expected}"

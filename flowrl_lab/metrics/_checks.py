"""Checks that several measures share."""

from __future__ import annotations

from torch import Tensor

from flowrl_lab._validation import bad_input, check_tensor
from flowrl_lab.tokens import at_least_float32

__all__ = ["SUM_TOLERANCE", "any_batch", "check_log_probs", "check_probs"]

# How far probabilities may add up to something else than 1 through rounding.
SUM_TOLERANCE = 1e-3


def check_log_probs(
    name: str, values: Tensor, *, like: Tensor | None = None, complete: bool = True
) -> None:
    """Check for log-probabilities whose probabilities sum to 1, or to less."""
    shape = any_batch(values) if like is None else like.shape
    check_tensor(name, values, shape, "[..., N] log-probabilities")
    total = at_least_float32(values.detach()).exp().sum(dim=-1)
    within = total <= 1 + SUM_TOLERANCE  # False for NaN
    if complete:
        within &= total >= 1 - SUM_TOLERANCE
    if not bool(within.all()):
        worst = total[~within].flatten()[0].item()
        raise bad_input(
            name,
            f"has probabilities that sum to {worst:.6g}",
            "log-probabilities that sum to 1" + ("" if complete else " or less"),
            "pass log-probabilities, as torch.log_softmax gives them, not logits "
            "or probabilities",
        )


def any_batch(values: object) -> tuple[None, ...]:
    """A shape of any lengths, with at least the one axis that is summed over."""
    return (None,) * max(getattr(values, "ndim", 1), 1)


def check_probs(name: str, probs: Tensor) -> None:
    """Check that every value lies between 0 and 1, rounding forgiven."""
    if not probs.dtype.is_floating_point:
        raise bad_input(
            name, f"has dtype {probs.dtype}", "a floating dtype", "use .float()"
        )
    inside = (probs >= -1e-6) & (probs <= 1 + 1e-6)
    if not bool(inside.all()):
        raise bad_input(
            name,
            f"holds {probs[~inside].flatten()[0].item():.6g}",
            "probabilities between 0 and 1",
            "pass probabilities, not their logs",
        )

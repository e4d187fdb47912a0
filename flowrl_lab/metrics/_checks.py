"""Checks that several measures share."""

from __future__ import annotations

from torch import Tensor
from torch.func import debug_unwrap

from flowrl_lab._validation import bad_input, check_range, check_tensor, holds
from flowrl_lab.tokens import at_least_float32

__all__ = ["SUM_TOLERANCE", "check_log_probs", "check_probs"]

# How far probabilities may add up to something else than 1 through rounding.
SUM_TOLERANCE = 1e-3


def check_log_probs(
    name: str, values: Tensor, *, like: Tensor | None = None, complete: bool = True
) -> None:
    """Check for log-probabilities whose probabilities sum to 1, or to less."""
    shape = (..., None) if like is None else like
    check_tensor(name, values, shape, "[..., N] log-probabilities")
    total = at_least_float32(values.detach()).exp().sum(dim=-1)
    within = total <= 1 + SUM_TOLERANCE  # False for NaN
    if complete:
        within &= total >= 1 - SUM_TOLERANCE
    if not holds(within):
        total, within = debug_unwrap(total), debug_unwrap(within)
        worst = total[~within].flatten()[0].item()
        raise bad_input(
            name,
            f"has probabilities that sum to {worst:.6g}",
            "log-probabilities that sum to 1" + ("" if complete else " or less"),
            "pass log-probabilities, as torch.log_softmax gives them, not logits "
            "or probabilities",
        )


def check_probs(name: str, probs: Tensor) -> None:
    """Check that every value lies between 0 and 1, rounding forgiven."""
    fix = "pass probabilities, not their logs"
    check_range(name, probs, -1e-6, 1 + 1e-6, "probabilities between 0 and 1", fix)

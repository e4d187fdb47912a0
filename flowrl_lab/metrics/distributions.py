"""Distances between distributions, and how spread out one is.

All take log-probabilities along the last axis; distances are in nats.  They are
exact, not estimated: sampled estimates belong beside them, with their noise.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowrl_lab._validation import (
    bad_input,
    check_finite,
    check_number,
    check_tensor,
    holds,
)
from flowrl_lab.metrics._checks import check_log_probs
from flowrl_lab.tokens import at_least_float32

__all__ = [
    "effective_groups",
    "effective_number",
    "effective_sample_size",
    "js_divergence",
    "kl_divergence",
    "mode_coverage",
    "total_variation",
]


def kl_divergence(
    log_p: Float[Tensor, "*batch N"], log_q: Float[Tensor, "*batch N"]
) -> Float[Tensor, "*batch"]:
    """KL(p ‖ q): how much q misses of what p does.

        Σ_i p_i (log p_i - log q_i),   0 log 0 = 0,   p_i > 0 = q_i gives inf

    KL(π ‖ p*), the reverse KL that FlowRL minimises, punishes mass where the target
    has none; KL(p* ‖ π), the forward one, punishes lost modes.

    Args:
        log_p: log-probabilities that sum to 1; -inf is probability 0.
        log_q: the same, but may sum to less than 1 (mass that is not listed).

    Returns:
        Nats, never NaN, possibly inf.  Gradients flow to both.

    Raises:
        ValueError: shapes that differ, NaN, values that are no log-probabilities.
    """
    check_log_probs("log_p", log_p)
    check_log_probs("log_q", log_q, like=log_p, complete=False)
    return _kl(log_p, log_q)


def total_variation(
    log_p: Float[Tensor, "*batch N"], log_q: Float[Tensor, "*batch N"]
) -> Float[Tensor, "*batch"]:
    """Total variation: the most by which p and q can disagree about an event.

        ½ Σ_i |p_i - q_i|

    Args:
        log_p, log_q: log-probabilities that sum to 1; -inf is probability 0.

    Returns:
        Between 0 and 1.

    Raises:
        ValueError: shapes that differ, NaN, values that are no log-probabilities.
    """
    check_log_probs("log_p", log_p)
    check_log_probs("log_q", log_q, like=log_p)
    return (log_p.exp() - log_q.exp()).abs().sum(dim=-1) / 2


def js_divergence(
    log_p: Float[Tensor, "*batch N"], log_q: Float[Tensor, "*batch N"]
) -> Float[Tensor, "*batch"]:
    """Jensen-Shannon divergence: symmetric, and finite for any two distributions.

        ½ KL(p ‖ m) + ½ KL(q ‖ m),   m = (p + q) / 2

    scipy's ``jensenshannon`` returns the square root of this.

    Args:
        log_p, log_q: log-probabilities that sum to 1; -inf is probability 0.

    Returns:
        Nats, between 0 and log 2.

    Raises:
        ValueError: shapes that differ, NaN, values that are no log-probabilities.
    """
    check_log_probs("log_p", log_p)
    check_log_probs("log_q", log_q, like=log_p)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (_kl(log_p, log_m) + _kl(log_q, log_m)) / 2


def effective_number(log_p: Float[Tensor, "*batch N"]) -> Float[Tensor, "*batch"]:
    """How many equally likely outcomes would be as uncertain as p.

        exp(-Σ_i p_i log p_i)

    Source: Hill number of order 1 (Hill, Ecology 1973).

    Args:
        log_p: log-probabilities that sum to 1; -inf is probability 0.

    Returns:
        Between 1 and N.

    Raises:
        ValueError: NaN, values that are no log-probabilities.
    """
    check_log_probs("log_p", log_p)
    # KL to the constant 1 is minus the entropy.
    return (-_kl(log_p, torch.zeros_like(log_p))).exp()


def effective_groups(
    log_probs: Float[Tensor, " N"], groups: Int[Tensor, " N"]
) -> Float[Tensor, ""]:
    """How many equally likely *groups* of answers would be as uncertain as this.

        exp(-Σ_g q_g log q_g),   q_g = Σ_{i in g} π_i / Σ_{i in any g} π_i

    Variety of ideas, where ``effective_number`` counts spellings: answers of one group
    count as one.

    Source: Hill number of order 1 (Hill, Ecology 1973), of the groups.

    Args:
        log_probs: log π of the answers; may sum to less than 1.
        groups: the group of each answer; -1 belongs to none and is left out.

    Returns:
        Between 1 and the number of groups.

    Raises:
        ValueError: bad tensors, no group with probability above 0.
    """
    _check_grouped(log_probs, groups)
    held = _sum_groups(log_probs, groups)
    if not holds(held.sum() > 0):
        raise bad_input(
            "groups",
            "names no group with probability",
            "at least one group >= 0 whose answers can be written",
            "give every answer of a group the same number, 0 or more",
        )
    return effective_number((held / held.sum()).log())


def effective_sample_size(
    log_weights: Float[Tensor, "*batch N"],
) -> Float[Tensor, "*batch"]:
    """How many equally weighted samples are worth N samples with these weights.

        ESS = (Σ w)² / Σ w²,   w = exp(log_weights)

    Source: Kong (1992).  Between 1 (one sample has all the weight) and N; a
    constant factor of all weights changes nothing.

    Args:
        log_weights: log importance weights log π - log π_old, nats.

    Returns:
        A number of samples, along the last axis.

    Raises:
        ValueError: no sample, NaN or infinity, a wrong dtype.
    """
    check_tensor("log_weights", log_weights, (..., None), "[..., N]: log weights")
    check_finite({"log_weights": log_weights})
    log_weights = at_least_float32(log_weights)
    # In logs, and relative to the largest: the weights themselves would overflow.
    log_weights = log_weights - log_weights.amax(dim=-1, keepdim=True)
    total = 2 * log_weights.logsumexp(dim=-1)
    squares = (2 * log_weights).logsumexp(dim=-1)
    return (total - squares).exp()


def mode_coverage(
    log_probs: Float[Tensor, " N"],
    target_log_probs: Float[Tensor, " N"],
    groups: Int[Tensor, " N"],
    *,
    share: float = 0.5,
) -> Float[Tensor, ""]:
    """Share of the modes that the policy keeps.

        mean over groups g of [π(g) >= share · p*(g)],   π(g) = Σ_{i in g} π_i

    Args:
        log_probs: log π of the answers; may sum to less than 1.
        target_log_probs: log p* of the same.
        groups: the mode of each answer; -1 belongs to none.
        share: how much of its target probability a mode must keep.

    Returns:
        Between 0 and 1.  Groups with no target probability are not counted.

    Raises:
        ValueError: bad tensors, share outside (0, 1], no group to count.
    """
    _check_grouped(log_probs, groups)
    check_log_probs("target_log_probs", target_log_probs, like=log_probs)
    check_number("share", share, high=1.0, above=True)
    held, wanted = (
        _sum_groups(values.detach(), groups) for values in (log_probs, target_log_probs)
    )
    counted = wanted > 0
    if not holds(counted.any()):
        raise bad_input(
            "groups",
            "names no group with target probability",
            "at least one group >= 0 with p* > 0",
            "give every answer of a mode the same number, 0 or more",
        )
    kept = counted & (held >= share * wanted)
    return kept.sum().to(wanted.dtype) / counted.sum()


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    # Where p is 0 both logs may be -inf; their difference must not be formed.
    p = log_p.exp()
    nothing = p == 0
    gap = log_p.masked_fill(nothing, 0.0) - log_q.masked_fill(nothing, 0.0)
    return (p * gap).sum(dim=-1)


def _check_grouped(log_probs: Tensor, groups: Tensor) -> None:
    check_tensor("log_probs", log_probs, (None,), "[N]: one per answer")
    check_log_probs("log_probs", log_probs, complete=False)
    check_tensor("groups", groups, log_probs, "[N]: one group per answer", "int")


def _sum_groups(log_probs: Tensor, groups: Tensor) -> Tensor:
    """Probability of each group, in N slots of which some stay empty.

    The groups' numbers are only names: a large one costs no memory.
    """
    ordered, order = groups.sort()
    another = (ordered[1:] != ordered[:-1]).long()
    slot = torch.nn.functional.pad(another.cumsum(0), (1, 0))
    probs = at_least_float32(log_probs).exp().masked_fill(groups < 0, 0.0)
    return torch.zeros_like(probs).scatter_add(0, slot, probs.gather(0, order))

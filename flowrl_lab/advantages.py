"""From rewards to learning signals: which samples did better than expected.

All results are detached: an advantage is a number that weighs a gradient, never
a path for one.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowrl_lab._validation import (
    bad_input,
    check_batch,
    check_count,
    check_finite,
    check_groups,
    check_number,
    check_readable,
    check_tensor,
    holds,
)
from flowrl_lab.tokens import at_least_float32

__all__ = [
    "gae",
    "group_normalized",
    "pass_at_k_advantages",
    "reinforce_pp_advantages",
    "whiten",
]


def group_normalized(
    rewards: Float[Tensor, " B"], num_generations: int, *, eps: float = 1e-6
) -> Float[Tensor, " B"]:
    """Rewards relative to the other samples of the same prompt (z-scores).

        r̂ = (r - mean(r)) / (std(r) + eps),   std with G - 1 in the denominator

    Source: FlowRL (arXiv 2509.15207) Eq. 7; GRPO (arXiv 2402.03300) §4.1.
    A group whose rewards are all equal gives zeros.  A group of one gives zero
    too: verl passes its reward through unchanged, which is no comparison.

    Args:
        rewards: one per sequence, the G samples of a prompt in contiguous rows.
        num_generations: G, the size of a group.
        eps: added to the standard deviation.

    Returns:
        z-scores, detached; each group's mean is 0.

    Raises:
        ValueError: wrong shape or dtype, NaN or infinite rewards, groups that do
            not divide the batch, eps < 0.
    """
    check_tensor("rewards", rewards, (None,), "[B]: one reward per sequence")
    check_groups(len(rewards), num_generations)
    check_number("eps", eps)
    check_finite({"rewards": rewards})
    groups = at_least_float32(rewards.detach()).view(-1, num_generations)
    if num_generations == 1:
        return torch.zeros_like(groups).flatten()
    centred = groups - groups.mean(dim=1, keepdim=True)
    # Rounding leaves specks where all rewards are equal; eps would blow them up.
    equal = groups.amax(dim=1, keepdim=True) == groups.amin(dim=1, keepdim=True)
    std = groups.std(dim=1, keepdim=True)
    equal = equal | (std + eps == 0)  # differences whose squares are 0
    std = std.masked_fill(equal, 1.0)
    return (centred / (std + eps)).masked_fill(equal, 0.0).flatten()


def pass_at_k_advantages(
    rewards: Float[Tensor, " B"], num_generations: int, k: int, *, eps: float = 1e-6
) -> Float[Tensor, " B"]:
    """What a sample adds to the best of k: exact over all subsets of its group.

        M_S = max_{i in S} r_i,   R = mean_S M_S,   σ = std_S M_S   (|S| = k)
        A_i = (mean_{S containing i} M_S - R) / (σ + eps)

    The subsets are not listed: sorted rewards and binomials give both means.  For
    rewards 0 and 1, R is pass@k, and with n wrong ones
    A_right = (1 - R)/σ,   A_wrong = (1 - R - C(n-1, k-1)/C(G-1, k-1))/σ.

    Source: pass@k training (arXiv 2508.10751) §2.4; its binary case, here for any
    rewards.  A group that passes (or fails) whichever k are taken gives zeros: with
    fewer than k wrong ones nothing is left to gain.

    Args:
        rewards: one per sequence, the G samples of a prompt in contiguous rows.
        num_generations: G, the size of a group.
        k: size of the subsets, 1 to G.
        eps: added to the standard deviation.

    Returns:
        Advantages, detached; each group's mean is 0.

    Raises:
        ValueError: wrong shape or dtype, NaN or infinite rewards, groups that do
            not divide the batch, k outside 1 to G, eps < 0.
    """
    check_tensor("rewards", rewards, (None,), "[B]: one reward per sequence")
    check_groups(len(rewards), num_generations)
    check_count("k", k)
    check_number("eps", eps)
    check_finite({"rewards": rewards})
    if k > num_generations:
        raise bad_input(
            "k", f"is {k}", f"at most num_generations, {num_generations}", "lower k"
        )
    check_readable("rewards", rewards)
    # On the CPU in float64: the sums of binomials are large, the groups small.
    groups = rewards.detach().cpu().double().view(-1, num_generations)
    ordered, order = groups.sort(dim=1)
    shares, with_member = _subset_shares(num_generations, k)
    mean = ordered @ shares
    deviation = ((ordered - mean[:, None]).square() @ shares).sqrt()
    signal = ordered @ with_member.T - mean[:, None]
    # Rounding leaves specks where every subset has the same best.
    equal = (deviation <= 1e-9 * (1 + ordered.abs().amax(dim=1)))[:, None]
    signal = (signal / (deviation[:, None] + eps)).masked_fill(equal, 0.0)
    advantages = torch.empty_like(signal).scatter(1, order, signal)
    return advantages.flatten().to(at_least_float32(rewards))


def _subset_shares(group: int, k: int) -> tuple[Tensor, Tensor]:
    """Of the k-subsets of 0 … G-1, the share whose largest member is j: of all
    subsets [G], and of those that contain i [G, G] (row i)."""
    every, containing = math.comb(group, k), math.comb(group - 1, k - 1)
    shares = [math.comb(j, k - 1) / every for j in range(group)]
    rows = []
    for i in range(group):
        # i and the largest j > i are taken; the other k - 2 lie below j.
        above = [math.comb(j - 1, k - 2) if k > 1 else 0 for j in range(i + 1, group)]
        ways = [0] * i + [math.comb(i, k - 1)] + above
        # divided as whole numbers, which may be too large to become floats
        rows.append([count / containing for count in ways])
    double = torch.float64
    return torch.tensor(shares, dtype=double), torch.tensor(rows, dtype=double)


def whiten(
    values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], *, eps: float = 1e-8
) -> Float[Tensor, "B T"]:
    """Shift and scale all counted tokens of a batch to mean 0 and variance 1.

        x̂ = (x - mean(x)) / sqrt(var(x) + eps),   var with n - 1

    Source: verl's ``masked_whiten``; used by PPO and REINFORCE++.

    Args:
        values: one per token.
        mask: True where a token counts.
        eps: added to the variance.

    Returns:
        Whitened values, detached, 0 where the mask is False.  All zeros when the
        counted values are all equal: nothing is better than anything else.

    Raises:
        ValueError: wrong shapes or dtypes, no counted token, NaN, eps < 0.
    """
    check_tensor("mask", mask, (None, None), "[B, T]", "bool")
    check_tensor("values", values, mask, "[B, T]: one per token")
    check_number("eps", eps)
    check_finite({"values": values}, mask)
    if not holds(mask.any()):
        raise bad_input(
            "mask",
            "keeps no token",
            "at least one True",
            "drop empty completions from the batch",
        )
    # Sums over a mask, not a selection: their shapes do not depend on values.
    counted = at_least_float32(values.detach()).masked_fill(~mask, 0.0)
    count = mask.sum()
    centred = (counted - counted.sum() / count).masked_fill(~mask, 0.0)
    variance = centred.square().sum() / (count - 1).clamp(min=1) + eps
    lowest = counted.masked_fill(~mask, math.inf).amin()
    equal = (counted.masked_fill(~mask, -math.inf).amax() == lowest) | (variance == 0)
    return torch.where(equal, 0.0, centred * variance.rsqrt())


def reinforce_pp_advantages(
    rewards: Float[Tensor, " B"], completion_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """REINFORCE++: every token's return, whitened over the whole batch.

        A_{b,t} = whiten(Σ_{u>=t} r_{b,u}) = whiten(r_b)   (reward at the end, γ = 1)

    Source: REINFORCE++ (arXiv 2501.03262), as verl computes it.  The mean is over
    *tokens*, so long completions weigh more in it.

    Args:
        rewards: one per sequence.
        completion_mask: True where a token counts.

    Returns:
        Advantages per token, detached, 0 where masked out.

    Raises:
        ValueError: wrong shapes or dtypes, NaN rewards, a row with no token.
    """
    check_batch(completion_mask, {}, {"rewards": rewards})
    returns = rewards.unsqueeze(1).expand(completion_mask.shape)
    return whiten(returns, completion_mask)


def gae(
    rewards: Float[Tensor, " B"],
    values: Float[Tensor, "B T"],
    completion_mask: Bool[Tensor, "B T"],
    *,
    discount: float = 1.0,
    gae_lambda: float = 1.0,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Generalised advantage estimation with one reward at the last token.

        d_t = r_t + γ V_{t+1} - V_t,   A_t = d_t + γ λ A_{t+1},   R_t = A_t + V_t

    Source: GAE (arXiv 1506.02438) Eq. 16; γ = λ = 1 as in FlowRL's PPO runs, where
    A_t = r - V_t.  Tokens the mask leaves out are stepped over.

    Args:
        rewards: one per sequence, paid at its last counted token.
        values: the critic's V_t before each token.
        completion_mask: True where a token counts.
        discount: γ, in [0, 1].
        gae_lambda: λ, in [0, 1]: 0 trusts the critic, 1 the sampled return.

    Returns:
        (advantages, returns), both detached and 0 where masked out.  Not
        whitened: :func:`whiten` is a step of its own.

    Raises:
        ValueError: wrong shapes or dtypes, NaN, a row with no token, γ or λ
            outside [0, 1].
    """
    check_batch(completion_mask, {"values": values}, {"rewards": rewards})
    check_number("discount", discount, high=1.0)
    check_number("gae_lambda", gae_lambda, high=1.0)
    values = at_least_float32(values.detach()).masked_fill(~completion_mask, 0.0)
    advantages = torch.zeros_like(values)
    payment = rewards.detach().to(values.dtype)
    next_value = next_advantage = torch.zeros_like(payment)
    for t in reversed(range(values.shape[1])):
        counts = completion_mask[:, t]
        delta = payment + discount * next_value - values[:, t]
        advantage = delta + discount * gae_lambda * next_advantage
        advantages[:, t] = torch.where(counts, advantage, 0.0)
        next_advantage = torch.where(counts, advantage, next_advantage)
        next_value = torch.where(counts, values[:, t], next_value)
        # Walking backwards, the first counted token met is the last one: it
        # takes the reward, and nothing is left for earlier tokens.
        payment = payment.masked_fill(counts, 0.0)
    return advantages, (advantages + values).masked_fill(~completion_mask, 0.0)

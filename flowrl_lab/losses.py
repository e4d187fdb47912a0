"""The losses: matching a target distribution, and maximising reward.

Pure functions of flat tensors and keyword numbers.  Every loss takes completions
whose padding may hold garbage, checks the rest, works in float32 at least, and
returns a scalar; with ``reduction="none"`` it returns one value per sequence,
whose mean is that scalar.

Two families share the argument names:

- *matching* (``flowrl_loss``, ``trajectory_balance_loss``, ``vargrad_loss``,
  ``subtrajectory_balance_loss``, ``detailed_balance_loss``): the square of a
  residual, zero when the policy is the target;
- *maximising* (``reinforce_pp_loss``, ``grpo_loss``, ``dapo_loss``, ``ppo_loss``,
  ``kl_reinforce_loss``): a surrogate whose gradient is that of the expected reward;
  its value means nothing by itself.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowrl_lab._validation import (
    LARGEST,
    bad_input,
    check_batch,
    check_choice,
    check_finite,
    check_flag,
    check_groups,
    check_number,
    check_tensor,
    holds,
)
from flowrl_lab.partition import log_target_ratios
from flowrl_lab.tokens import at_least_float32, sum_counted

__all__ = [
    "IMPORTANCE_MODES",
    "FlowRLTerms",
    "clip_fraction",
    "clipped_surrogate",
    "dapo_loss",
    "detailed_balance_loss",
    "flowrl_loss",
    "flowrl_residuals",
    "flowrl_terms",
    "grpo_loss",
    "k1",
    "k2",
    "k3",
    "kl_reinforce_loss",
    "ppo_loss",
    "reinforce_pp_loss",
    "sequence_importance_weights",
    "step_loss",
    "subtrajectory_balance_loss",
    "trajectory_balance_loss",
    "vargrad_loss",
]

IMPORTANCE_MODES = ("none", "clip", "raw", "max10")

# exp overflows float32 at 88.7.  A log ratio beyond ±60 (a factor of 1e26) says
# only "hopelessly off-policy", so it is held there and stays finite.
MAX_LOG_RATIO = 60.0
MAX_WEIGHT = 10.0  # the ceiling of importance="max10"


def flowrl_residuals(
    log_z: Float[Tensor, " B"],
    log_probs: Float[Tensor, "B T"],
    ref_log_probs: Float[Tensor, "B T"],
    rewards: Float[Tensor, " B"],
    completion_mask: Bool[Tensor, "B T"],
    *,
    reward_scale: float = 15.0,
    length_normalize: bool = True,
) -> Float[Tensor, " B"]:
    """How far each sequence is from balance, in nats.

        δ = log Z(x) + (1/|y|) log π(y|x) - β r - (1/|y|) log π_ref(y|x)

    Source: FlowRL (arXiv 2509.15207) Eq. 6.  δ > 0: the policy finds y too
    likely; δ < 0: not likely enough.  With ``length_normalize=False`` the factors
    1/|y| go, and δ = 0 is the textbook target π = π_ref exp(βr) / Z; with them it
    is π = π_ref exp(|y| (βr - log Z)), which is far sharper.

    Args:
        log_z: log Z of each sequence's prompt (repeated for its G samples).
        log_probs: log π of the completion tokens.
        ref_log_probs: log π_ref of the same; detached.
        rewards: one per sequence; detached.  Used as given: pass
            ``group_normalized(rewards, G)`` for the paper's form.
        completion_mask: True where a token counts.
        reward_scale: β, at least 0.
        length_normalize: token means (the paper) or token sums.

    Returns:
        Residuals; gradients flow to ``log_z`` and ``log_probs`` only.

    Raises:
        ValueError: wrong shapes or dtypes, NaN, a row with no token, β < 0.
    """
    check_batch(
        completion_mask,
        {"log_probs": log_probs, "ref_log_probs": ref_log_probs},
        {"log_z": log_z, "rewards": rewards},
    )
    check_number("reward_scale", reward_scale, high=LARGEST)
    check_flag("length_normalize", length_normalize)
    return _residuals(
        log_z,
        log_probs,
        ref_log_probs,
        rewards,
        completion_mask,
        reward_scale=reward_scale,
        length_normalize=length_normalize,
    )


def sequence_importance_weights(
    log_probs: Float[Tensor, "B T"],
    old_log_probs: Float[Tensor, "B T"],
    completion_mask: Bool[Tensor, "B T"],
    *,
    importance: str = "clip",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Float[Tensor, " B"]:
    """Detached weights for samples drawn from an older policy.

        ρ = exp(Σ_t (log π(y_t) - log π_old(y_t)))       (whole sequences)
        "none": 1   "clip": clip(ρ, 1-ε_low, 1+ε_high)   "raw": ρ   "max10": min(ρ, 10)

    Source: FlowRL (arXiv 2509.15207) Eq. 7 for "clip".  The authors' code of
    September 2025 computes that weight but applies "raw"; their later code
    applies "max10".  log ρ is held to ±60 so that no weight overflows.

    Args:
        log_probs: log π now.
        old_log_probs: log π when sampled.
        completion_mask: True where a token counts.
        importance: one of ``IMPORTANCE_MODES``.
        clip_low, clip_high: ε below and above 1, for "clip".

    Returns:
        Weights, detached.

    Raises:
        ValueError: unknown importance, negative clips, bad tensors.
    """
    check_choice("importance", importance, IMPORTANCE_MODES)
    _check_clips(clip_low, clip_high)
    tokens = {"log_probs": log_probs, "old_log_probs": old_log_probs}
    check_batch(completion_mask, tokens, {})
    ratios = _sequence_ratios(log_probs, old_log_probs, completion_mask)
    return _weigh(ratios, importance, clip_low, clip_high)


class FlowRLTerms(NamedTuple):
    """FlowRL's loss taken apart, one row a sequence: ``losses = weights * residuals²``.

    Attributes:
        residuals: δ, nats; with the gradient.
        ratios: ρ of whole sequences, detached.
        weights: what importance weighting makes of ρ, detached.
        losses: w δ².
    """

    residuals: Float[Tensor, " B"]
    ratios: Float[Tensor, " B"]
    weights: Float[Tensor, " B"]
    losses: Float[Tensor, " B"]


def flowrl_terms(
    log_z: Float[Tensor, " B"],
    log_probs: Float[Tensor, "B T"],
    old_log_probs: Float[Tensor, "B T"],
    ref_log_probs: Float[Tensor, "B T"],
    rewards: Float[Tensor, " B"],
    completion_mask: Bool[Tensor, "B T"],
    *,
    reward_scale: float = 15.0,
    importance: str = "clip",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    length_normalize: bool = True,
) -> FlowRLTerms:
    """What :func:`flowrl_loss` is made of, each computed once.

    Args: as :func:`flowrl_loss`.

    Raises:
        ValueError: as :func:`flowrl_loss`.
    """
    check_choice("importance", importance, IMPORTANCE_MODES)
    _check_clips(clip_low, clip_high)
    check_batch(
        completion_mask,
        {
            "log_probs": log_probs,
            "old_log_probs": old_log_probs,
            "ref_log_probs": ref_log_probs,
        },
        {"log_z": log_z, "rewards": rewards},
    )
    check_number("reward_scale", reward_scale, high=LARGEST)
    check_flag("length_normalize", length_normalize)
    residuals = _residuals(
        log_z,
        log_probs,
        ref_log_probs,
        rewards,
        completion_mask,
        reward_scale=reward_scale,
        length_normalize=length_normalize,
    )
    ratios = _sequence_ratios(log_probs, old_log_probs, completion_mask)
    weights = _weigh(ratios, importance, clip_low, clip_high)
    return FlowRLTerms(residuals, ratios, weights, weights * residuals.square())


def flowrl_loss(
    log_z: Float[Tensor, " B"],
    log_probs: Float[Tensor, "B T"],
    old_log_probs: Float[Tensor, "B T"],
    ref_log_probs: Float[Tensor, "B T"],
    rewards: Float[Tensor, " B"],
    completion_mask: Bool[Tensor, "B T"],
    *,
    reward_scale: float = 15.0,
    importance: str = "clip",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    length_normalize: bool = True,
    reduction: str = "mean",
) -> Float[Tensor, "*reduced"]:
    """FlowRL: importance-weighted squared residuals.

        L = w δ²,   δ: flowrl_residuals,   w: sequence_importance_weights

    Source: FlowRL (arXiv 2509.15207) Eq. 6.

    Args:
        log_z, log_probs, ref_log_probs, rewards, completion_mask, reward_scale,
            length_normalize: as in :func:`flowrl_residuals`.
        old_log_probs: log π when sampled; detached.
        importance, clip_low, clip_high: as in
            :func:`sequence_importance_weights`; w carries no gradient.
        reduction: "mean" over sequences, or "none".

    Returns:
        Scalar, or [B].  Gradients flow to ``log_z`` and ``log_probs``.

    Raises:
        ValueError: as the two functions above; unknown reduction.
    """
    _check_reduction(reduction)
    terms = flowrl_terms(
        log_z,
        log_probs,
        old_log_probs,
        ref_log_probs,
        rewards,
        completion_mask,
        reward_scale=reward_scale,
        importance=importance,
        clip_low=clip_low,
        clip_high=clip_high,
        length_normalize=length_normalize,
    )
    return _reduce(terms.losses, reduction)


def step_loss(
    log_z: Float[Tensor, " P"],
    log_probs: Float[Tensor, "B T"],
    old_log_probs: Float[Tensor, "B T"],
    ref_log_probs: Float[Tensor, "B T"],
    rewards: Float[Tensor, " B"],
    completion_mask: Bool[Tensor, "B T"],
    *,
    num_generations: int,
    reward_scale: float,
) -> Float[Tensor, ""]:
    """FlowRL's loss of one step in its textbook form, as notebook 7 assembles it.

    Args:
        log_z: of each prompt.
        log_probs, old_log_probs, ref_log_probs, rewards, completion_mask,
            reward_scale: as in :func:`flowrl_loss`, the answers of one prompt next to
            each other.
        num_generations: answers of each prompt; B = P x num_generations.

    Returns:
        Scalar, the mean over the answers.

    Raises:
        ValueError: as :func:`flowrl_loss`; log Zs that are not one a prompt.
    """
    tokens = {
        "log_probs": log_probs,
        "old_log_probs": old_log_probs,
        "ref_log_probs": ref_log_probs,
    }
    check_batch(completion_mask, tokens, {"rewards": rewards})
    check_groups(len(rewards), num_generations)
    check_tensor("log_z", log_z, (len(rewards) // num_generations,), "[P]")
    return flowrl_loss(
        log_z.repeat_interleave(num_generations),
        log_probs,
        old_log_probs,
        ref_log_probs,
        rewards,
        completion_mask,
        reward_scale=reward_scale,
        length_normalize=False,
    )


def trajectory_balance_loss(
    log_z: Float[Tensor, " B"],
    sequence_log_probs: Float[Tensor, " B"],
    ref_sequence_log_probs: Float[Tensor, " B"],
    rewards: Float[Tensor, " B"],
    *,
    reward_scale: float,
    reduction: str = "mean",
) -> Float[Tensor, "*reduced"]:
    """Trajectory balance (TB) for text, where each sequence has one way to be made.

        L = (log Z + log π(y) - β r - log π_ref(y))²

    Source: Malkin et al. (arXiv 2201.13259) Eq. 14, with P_B = 1; FlowRL Eq. 3.
    Under samples of π its gradient with respect to π is 2 ∇KL(π ‖ p*), whatever
    log Z is: there log Z is a baseline.

    Args:
        log_z: log Z of each sequence's prompt.
        sequence_log_probs: log π of whole sequences.
        ref_sequence_log_probs: log π_ref of the same; detached.
        rewards: one per sequence; detached.
        reward_scale: β, at least 0.
        reduction: "mean" over sequences, or "none".

    Returns:
        Scalar, or [B].  Gradients flow to ``log_z`` and ``sequence_log_probs``.

    Raises:
        ValueError: wrong shapes or dtypes, NaN, β < 0, unknown reduction.
    """
    _check_reduction(reduction)
    ratios = log_target_ratios(
        sequence_log_probs, ref_sequence_log_probs, rewards, reward_scale=reward_scale
    )
    check_tensor("log_z", log_z, ratios, "[B]: one per sequence")
    check_finite({"log_z": log_z})
    return _reduce((at_least_float32(log_z) - ratios).square(), reduction)


def vargrad_loss(
    sequence_log_probs: Float[Tensor, " B"],
    ref_sequence_log_probs: Float[Tensor, " B"],
    rewards: Float[Tensor, " B"],
    num_generations: int,
    *,
    reward_scale: float,
    reduction: str = "mean",
) -> Float[Tensor, "*reduced"]:
    """Trajectory balance with the batch's own best log Z: no network to learn it.

        L = (s - mean_group(s))²,   s = log π - log π_ref - βr

    Source: log-partition variance loss (arXiv 2302.05446); the group mean of -s is
    ``vargrad_log_z``.  The mean carries a gradient here; for "mean" it makes no
    difference, because the deviations of a group add up to zero.

    Args:
        sequence_log_probs, ref_sequence_log_probs, rewards, reward_scale,
            reduction: as in :func:`trajectory_balance_loss`.
        num_generations: G, at least 2.

    Returns:
        Scalar, or [B].  Gradients flow to ``sequence_log_probs``.

    Raises:
        ValueError: as :func:`trajectory_balance_loss`; groups of one, or groups
            that do not divide B.
    """
    _check_reduction(reduction)
    ratios = log_target_ratios(
        sequence_log_probs, ref_sequence_log_probs, rewards, reward_scale=reward_scale
    )
    check_groups(len(ratios), num_generations, least=2)
    groups = ratios.view(-1, num_generations)
    deviations = groups.mean(dim=1, keepdim=True) - groups
    return _reduce(deviations.square().flatten(), reduction)


def subtrajectory_balance_loss(
    log_flows: Float[Tensor, "B prefixes"],
    log_probs: Float[Tensor, "B T"],
    ref_log_probs: Float[Tensor, "B T"],
    rewards: Float[Tensor, " B"],
    completion_mask: Bool[Tensor, "B T"] | None = None,
    *,
    reward_scale: float,
    subtb_lambda: float = 0.9,
    reduction: str = "mean",
) -> Float[Tensor, "*reduced"]:
    """SubTB(λ): balance on every stretch of a sequence, long ones weighing λ^length.

        δ_ij = F_i + Σ_{i<=t<j} (log π - log π_ref)(y_t) - F_j,   F_|y| = β r
        L = Σ_{i<j} λ^(j-i) δ_ij² / Σ_{i<j} λ^(j-i)

    Source: Madan et al. (arXiv 2209.12782) Eq. 8, with flows relative to π_ref.
    λ -> 0 leaves single tokens (detailed balance); a large λ leaves the whole
    sequence (trajectory balance with log Z = F_0).

    Args:
        log_flows: learned log flow F of each prefix, F_0 (empty) to F_T.  The one
            of the complete text is replaced by βr, later ones are ignored.
        log_probs: log π of the completion tokens.
        ref_log_probs: log π_ref of the same; detached.
        rewards: one per sequence; detached.
        completion_mask: True on the tokens, then False: no gaps; None counts all.
        reward_scale: β, at least 0.
        subtb_lambda: λ, above 0.
        reduction: "mean" over sequences, or "none".

    Returns:
        Scalar, or [B].  Gradients flow to ``log_flows`` and ``log_probs``.

    Raises:
        ValueError: bad tensors or numbers, a mask with gaps, unknown reduction.
    """
    check_number("subtb_lambda", subtb_lambda, above=True)
    _check_reduction(reduction)
    potentials, valid = _flow_potentials(
        log_flows, log_probs, ref_log_probs, rewards, completion_mask, reward_scale
    )
    # δ_ij is a difference of two potentials, so all pairs come at once.
    residuals = potentials.unsqueeze(2) - potentials.unsqueeze(1)
    steps = torch.arange(potentials.shape[1], device=potentials.device)
    length = steps - steps.unsqueeze(1)
    pairs = (length > 0) & valid.unsqueeze(1)
    # Weights relative to the longest stretch, or the shortest, never overflow.
    longest = (valid.sum(dim=1) - 1).view(-1, 1, 1) if subtb_lambda > 1 else 1
    exponent = length - longest
    base = potentials.new_tensor(float(subtb_lambda))
    weights = torch.where(pairs, base.pow(exponent), 0.0)
    weighted = (weights * residuals.square()).sum(dim=(1, 2))
    return _reduce(weighted / weights.sum(dim=(1, 2)), reduction)


def detailed_balance_loss(
    log_flows: Float[Tensor, "B prefixes"],
    log_probs: Float[Tensor, "B T"],
    ref_log_probs: Float[Tensor, "B T"],
    rewards: Float[Tensor, " B"],
    completion_mask: Bool[Tensor, "B T"] | None = None,
    *,
    reward_scale: float,
    reduction: str = "mean",
) -> Float[Tensor, "*reduced"]:
    """Detailed balance: every single token on its own.

        L = (1/|y|) Σ_t (F_t + log π(y_t) - log π_ref(y_t) - F_{t+1})²,   F_|y| = β r

    Source: Bengio et al. (arXiv 2111.09266), with flows relative to π_ref.

    Args:
        log_flows, log_probs, ref_log_probs, rewards, completion_mask,
            reward_scale, reduction: as in :func:`subtrajectory_balance_loss`.

    Returns:
        Scalar, or [B].  Gradients flow to ``log_flows`` and ``log_probs``.

    Raises:
        ValueError: as :func:`subtrajectory_balance_loss`.
    """
    _check_reduction(reduction)
    potentials, exists = _flow_potentials(
        log_flows, log_probs, ref_log_probs, rewards, completion_mask, reward_scale
    )
    edges, counted = potentials[:, :-1] - potentials[:, 1:], exists[:, 1:]
    per_sequence = sum_counted(edges.square(), counted) / counted.sum(dim=1)
    return _reduce(per_sequence, reduction)


def clipped_surrogate(
    log_probs: Float[Tensor, "*shape"],
    old_log_probs: Float[Tensor, "*shape"],
    advantages: Float[Tensor, "*shape"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Float[Tensor, "*shape"]:
    """The clipped loss of single tokens, before they are averaged.

        l = -min(ρA, clip(ρ, 1-ε_low, 1+ε_high) A),   ρ = π/π_old

    Where A > 0 the gradient is 0 above 1 + ε_high, where A < 0 below 1 - ε_low: a
    token that has gone far enough the *right* way is left alone; one that went the
    wrong way is always pulled back.

    Source: PPO (arXiv 1707.06347) Eq. 7.  log ρ is held to ±60.

    Args:
        log_probs: log π of the sampled tokens.
        old_log_probs: log π when they were sampled; detached.
        advantages: one per token; detached.
        clip_low, clip_high: ε below and above 1.

    Returns:
        One loss per token.  Gradients flow to ``log_probs``.

    Raises:
        ValueError: shapes that differ, a wrong dtype, NaN, ε < 0.
    """
    _check_clips(clip_low, clip_high)
    check_tensor("log_probs", log_probs, (...,), "any")
    others = {"old_log_probs": old_log_probs, "advantages": advantages}
    for name, value in others.items():
        check_tensor(name, value, log_probs, "that of log_probs")
    check_finite({"log_probs": log_probs, **others})
    return _surrogate(log_probs, old_log_probs, advantages, clip_low, clip_high)


def _surrogate(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    clip_low: float,
    clip_high: float,
) -> Tensor:
    """:func:`clipped_surrogate` for callers that have checked their input."""
    signal = at_least_float32(advantages.detach())
    ratio = _bounded_exp(at_least_float32(log_probs) - old_log_probs.detach())
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratio * signal, clipped * signal)


def reinforce_pp_loss(
    log_probs: Float[Tensor, "B T"],
    old_log_probs: Float[Tensor, "B T"],
    advantages: Float[Tensor, " B"] | Float[Tensor, "B T"],
    completion_mask: Bool[Tensor, "B T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    ref_log_probs: Float[Tensor, "B T"] | None = None,
    kl_coef: float = 0.0,
    reduction: str = "mean",
) -> Float[Tensor, "*reduced"]:
    """REINFORCE++: the clipped surrogate, every token of the batch weighing the same.

        L = mean over tokens of -min(ρA, clip(ρ, 1-ε_low, 1+ε_high) A) + c k3

    Source: REINFORCE++ (arXiv 2501.03262), token mean as in verl.  Its advantages
    are ``reinforce_pp_advantages``.

    Args:
        log_probs: log π of the completion tokens.
        old_log_probs: the same when sampled; detached.
        advantages: [B] (one per sequence) or [B, T]; detached.
        completion_mask: True where a token counts.
        clip_low, clip_high: ε below and above 1.
        ref_log_probs: log π_ref, needed for kl_coef > 0; detached.
        kl_coef: weight c of the ``k3`` penalty.
        reduction: "mean", or "none" for each sequence's part of that mean.

    Returns:
        Scalar, or [B].  Gradients flow to ``log_probs``.

    Raises:
        ValueError: bad tensors or numbers, kl_coef > 0 without ref_log_probs.
    """
    _check_reduction(reduction)
    per_token = _counted_surrogate(
        log_probs, old_log_probs, advantages, completion_mask, clip_low, clip_high
    )
    per_token = per_token + _kl_penalty(
        log_probs, ref_log_probs, completion_mask, kl_coef
    )
    return _reduce(_token_mean_parts(per_token, completion_mask), reduction)


def grpo_loss(
    log_probs: Float[Tensor, "B T"],
    old_log_probs: Float[Tensor, "B T"],
    advantages: Float[Tensor, " B"] | Float[Tensor, "B T"],
    completion_mask: Bool[Tensor, "B T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    ref_log_probs: Float[Tensor, "B T"] | None = None,
    kl_coef: float = 0.0,
    reduction: str = "mean",
) -> Float[Tensor, "*reduced"]:
    """GRPO: the clipped surrogate, every sequence weighing the same.

        L = mean_b (1/|y_b|) Σ_t [-min(ρA, clip(ρ, 1-ε_low, 1+ε_high) A) + c k3]

    Source: GRPO (arXiv 2402.03300) Eq. 3, FlowRL Eq. 1.  verl's default differs:
    it takes the mean over all tokens of the batch, which is what
    :func:`reinforce_pp_loss` does.  Its advantages are ``group_normalized``.

    Args:
        log_probs, old_log_probs, advantages, completion_mask, clip_low,
            clip_high, ref_log_probs, kl_coef: as in :func:`reinforce_pp_loss`.
        reduction: "mean" over sequences, or "none".

    Returns:
        Scalar, or [B].  Gradients flow to ``log_probs``.

    Raises:
        ValueError: bad tensors or numbers, kl_coef > 0 without ref_log_probs.
    """
    _check_reduction(reduction)
    per_token = _counted_surrogate(
        log_probs, old_log_probs, advantages, completion_mask, clip_low, clip_high
    )
    per_token = per_token + _kl_penalty(
        log_probs, ref_log_probs, completion_mask, kl_coef
    )
    totals = sum_counted(per_token, completion_mask)
    return _reduce(totals / completion_mask.sum(dim=1), reduction)


def dapo_loss(
    log_probs: Float[Tensor, "B T"],
    old_log_probs: Float[Tensor, "B T"],
    advantages: Float[Tensor, " B"],
    completion_mask: Bool[Tensor, "B T"],
    num_generations: int,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    ref_log_probs: Float[Tensor, "B T"] | None = None,
    kl_coef: float = 0.0,
    reduction: str = "mean",
) -> Float[Tensor, "*reduced"]:
    """DAPO: GRPO that lets unlikely tokens rise further, and skips idle groups.

        L = mean over the tokens of informative groups of
            -min(ρA, clip(ρ, 1-ε_low, 1+ε_high) A) + c k3,   ε_high > ε_low

    A group is informative if its samples differ in advantage.  The clip acts only
    once π has left π_old: give a batch several updates, or "clip-higher" is idle.

    Source: DAPO (arXiv 2503.14476) Eq. 8 (clip-higher, token mean), which has no KL
    penalty: c is 0 unless it is asked for.  Its dynamic sampling draws new prompts
    until every group is informative; here the idle ones are left out of the mean, so
    that the sampling budget stays that of the others.

    Args:
        log_probs, old_log_probs, completion_mask, clip_low, clip_high,
            ref_log_probs, kl_coef: as in :func:`reinforce_pp_loss`.
        advantages: one per sequence, ``group_normalized``; detached.
        num_generations: G; the samples of a prompt are contiguous.
        reduction: "mean", or "none" for each sequence's part of that mean.

    Returns:
        Scalar, or [B]; 0 where no group is informative.  Gradients flow to
        ``log_probs``.

    Raises:
        ValueError: bad tensors or numbers, groups that do not divide B, kl_coef > 0
            without ref_log_probs.
    """
    _check_reduction(reduction)
    per_token = _counted_surrogate(
        log_probs, old_log_probs, advantages, completion_mask, clip_low, clip_high
    ) + _kl_penalty(log_probs, ref_log_probs, completion_mask, kl_coef)
    check_tensor(
        "advantages", advantages, completion_mask.shape[:1], "[B]: one per sequence"
    )
    check_groups(len(advantages), num_generations)
    groups = advantages.detach().view(-1, num_generations)
    informative = (groups.amax(dim=1) > groups.amin(dim=1)).repeat_interleave(
        num_generations
    )
    counted = completion_mask & informative.unsqueeze(1)
    return _reduce(_token_mean_parts(per_token, counted), reduction)


def ppo_loss(
    log_probs: Float[Tensor, "B T"],
    old_log_probs: Float[Tensor, "B T"],
    advantages: Float[Tensor, " B"] | Float[Tensor, "B T"],
    completion_mask: Bool[Tensor, "B T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = 3.0,
    ref_log_probs: Float[Tensor, "B T"] | None = None,
    kl_coef: float = 0.0,
    values: Float[Tensor, "B T"] | None = None,
    old_values: Float[Tensor, "B T"] | None = None,
    returns: Float[Tensor, "B T"] | None = None,
    value_coef: float = 0.5,
    value_clip: float = 0.5,
    reduction: str = "mean",
) -> Float[Tensor, "*reduced"]:
    """PPO with dual clipping and, where values are given, a clipped value loss.

        l = -min(ρA, clip(ρ, 1-ε_low, 1+ε_high) A),   l <- min(l, -cA) where A < 0
        v = max((V - R)², (clip(V, V_old ± value_clip) - R)²)
        L = mean over tokens of l + c k3 + value_coef v

    Source: PPO (arXiv 1707.06347) Eq. 7 and 9; dual clip c: arXiv 1912.09729
    Eq. 5; token mean, c = 3 and value clip as in verl.

    Args:
        log_probs, old_log_probs, advantages, completion_mask, clip_low,
            clip_high, ref_log_probs, kl_coef: as in :func:`reinforce_pp_loss`.
        dual_clip: c, above 1: bounds the loss of a bad token that became likely;
            None leaves it out.
        values: V now; the value loss is left out without it.
        old_values: V when sampled, detached; None leaves value clipping out.
        returns: R, detached; needed with ``values``.
        value_coef: weight of the value loss.
        value_clip: how far V may move from ``old_values``.
        reduction: "mean", or "none" for each sequence's part of that mean.

    Returns:
        Scalar, or [B].  Gradients flow to ``log_probs`` and ``values``.

    Raises:
        ValueError: bad tensors or numbers, values without returns, kl_coef > 0
            without ref_log_probs.
    """
    _check_reduction(reduction)
    per_token = _counted_surrogate(
        log_probs, old_log_probs, advantages, completion_mask, clip_low, clip_high
    )
    if dual_clip is not None:
        check_number("dual_clip", dual_clip, low=1.0, above=True)
        bad = _advantage_per_token(advantages, completion_mask).clamp(max=0.0)
        per_token = torch.where(
            bad < 0, torch.minimum(per_token, -dual_clip * bad), per_token
        )
    per_token = per_token + _kl_penalty(
        log_probs, ref_log_probs, completion_mask, kl_coef
    )
    if values is not None:
        check_number("value_coef", value_coef)
        per_token = per_token + value_coef * _value_errors(
            values, old_values, returns, completion_mask, value_clip
        )
    return _reduce(_token_mean_parts(per_token, completion_mask), reduction)


def kl_reinforce_loss(
    sequence_log_probs: Float[Tensor, " B"],
    ref_sequence_log_probs: Float[Tensor, " B"],
    rewards: Float[Tensor, " B"],
    num_generations: int,
    *,
    kl_coef: float,
    reduction: str = "mean",
) -> Float[Tensor, "*reduced"]:
    """REINFORCE on a reward that pays for straying from the reference.

        R = r - c log(π/π_ref) (detached),   L = -(R - b) log π(y)

    with b the mean of R over the *other* samples of the group, which leaves the
    gradient unbiased: ∇L = -∇(E[r] - c KL(π ‖ π_ref)) in expectation.

    Source: RLOO (arXiv 2402.14740) Eq. 8.  With c = 1/β the expected gradient is
    that of on-policy trajectory balance over 2β: the fair control for FlowRL.
    Samples must come from π itself: there is no importance weight.

    Args:
        sequence_log_probs: log π of whole sequences.
        ref_sequence_log_probs: log π_ref of the same; detached.
        rewards: one per sequence; detached.
        num_generations: G; a group of one has baseline 0.
        kl_coef: c, at least 0.
        reduction: "mean" over sequences, or "none".

    Returns:
        Scalar, or [B].  Gradients flow to ``sequence_log_probs``.

    Raises:
        ValueError: bad tensors or numbers, groups that do not divide B.
    """
    _check_reduction(reduction)
    check_number("kl_coef", kl_coef)
    # At scale 0 the ratio is log π_ref - log π: the same checks, one home.
    log_ratio = log_target_ratios(
        sequence_log_probs, ref_sequence_log_probs, rewards, reward_scale=0.0
    )
    check_groups(len(rewards), num_generations)
    paid = (at_least_float32(rewards) + kl_coef * log_ratio).detach()
    groups = paid.view(-1, num_generations)
    others = groups.sum(dim=1, keepdim=True) - groups
    baseline = others / max(num_generations - 1, 1)
    advantages = (groups - baseline).flatten()
    return _reduce(-advantages * at_least_float32(sequence_log_probs), reduction)


def k1(
    log_probs: Float[Tensor, "*shape"], ref_log_probs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """KL(π ‖ π_ref) from samples of π: log π - log π_ref.

    Unbiased, noisy, negative half the time.  As a *loss* it is a trap: the
    expected gradient of k1 itself is zero.

    Source: Schulman, "Approximating KL divergence" (2020).

    Args:
        log_probs: log π of the sampled tokens (or sequences).
        ref_log_probs: log π_ref of the same; detached.

    Returns:
        One value per token, nats.  Gradients flow to ``log_probs``.

    Raises:
        ValueError: shapes that differ, a wrong dtype, NaN or infinity.
    """
    check_tensor("log_probs", log_probs, (...,), "any")
    check_tensor("ref_log_probs", ref_log_probs, log_probs, "that of log_probs")
    check_finite({"log_probs": log_probs, "ref_log_probs": ref_log_probs})
    return at_least_float32(log_probs) - ref_log_probs.detach()


def k2(
    log_probs: Float[Tensor, "*shape"], ref_log_probs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """KL(π ‖ π_ref) from samples of π: ½ (log π - log π_ref)².

    Biased in value, low in noise; its expected *gradient* is exactly ∇KL(π ‖ π_ref).

    Source, Args, Returns, Raises: as :func:`k1`.
    """
    return k1(log_probs, ref_log_probs).square() / 2


def k3(
    log_probs: Float[Tensor, "*shape"], ref_log_probs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """KL(π ‖ π_ref) from samples of π: e^d - d - 1 with d = log π_ref - log π.

    Unbiased in value, never negative.  Its expected *gradient* is that of the other
    direction, KL(π_ref ‖ π).  Beyond d = 60 the curve goes on as its tangent, so that
    nothing overflows and a token that has become far too unlikely is still pulled back.

    Source, Args, Returns, Raises: as :func:`k1`.
    """
    return _k3(-k1(log_probs, ref_log_probs))


def _k3(difference: Tensor) -> Tensor:
    """e^d - d - 1, and its tangent from d = 60 on."""
    top = math.expm1(MAX_LOG_RATIO)  # there: the value + 60, and the slope
    tangent = top * (difference - (MAX_LOG_RATIO - 1)) - MAX_LOG_RATIO
    # expm1 keeps the digits that e^d - 1 loses for small d.
    beyond = difference > MAX_LOG_RATIO
    # Not clamp: what its slope is at the bound itself differs between torch's versions.
    curve = torch.expm1(difference.masked_fill(beyond, 0.0)) - difference
    return torch.where(beyond, tangent, curve)


def clip_fraction(
    log_probs: Float[Tensor, "B T"],
    old_log_probs: Float[Tensor, "B T"],
    completion_mask: Bool[Tensor, "B T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    level: str = "token",
) -> Float[Tensor, ""]:
    """Share of the ratios π/π_old that lie outside [1 - clip_low, 1 + clip_high].

    Args:
        log_probs, old_log_probs, completion_mask: as in :func:`grpo_loss`.
        clip_low, clip_high: ε below and above 1.
        level: "token" ratios, or those of whole "sequence"s (FlowRL's).

    Returns:
        Scalar in [0, 1], detached.

    Raises:
        ValueError: bad tensors or numbers, unknown level.
    """
    check_choice("level", level, ("token", "sequence"))
    _check_clips(clip_low, clip_high)
    tokens = {"log_probs": log_probs, "old_log_probs": old_log_probs}
    check_batch(completion_mask, tokens, {})
    if level == "sequence":
        ratios = _sequence_ratios(log_probs, old_log_probs, completion_mask)
        return share_outside(ratios, clip_low, clip_high)
    difference = at_least_float32(log_probs.detach()) - old_log_probs.detach()
    # Padding has ratio 1, which is never outside: counted, not selected, because a
    # selection's shape would depend on values.
    ratios = _bounded_exp(difference.masked_fill(~completion_mask, 0.0))
    share = share_outside(ratios, clip_low, clip_high)
    return share * ratios.numel() / completion_mask.sum()


def share_outside(ratios: Tensor, clip_low: float, clip_high: float) -> Tensor:
    """:func:`clip_fraction` of ratios that are known already."""
    outside = (ratios < 1 - clip_low) | (ratios > 1 + clip_high)
    return outside.to(ratios.dtype).mean()


def _residuals(
    log_z: Tensor,
    log_probs: Tensor,
    ref_log_probs: Tensor,
    rewards: Tensor,
    mask: Tensor,
    *,
    reward_scale: float,
    length_normalize: bool,
) -> Tensor:
    """:func:`flowrl_residuals` for callers that have checked their input."""
    difference = at_least_float32(log_probs) - ref_log_probs.detach()
    log_ratio = sum_counted(difference, mask)
    if length_normalize:
        log_ratio = log_ratio / mask.sum(dim=1)
    reward_term = reward_scale * at_least_float32(rewards.detach())
    return at_least_float32(log_z) + log_ratio - reward_term


def _sequence_ratios(log_probs: Tensor, old_log_probs: Tensor, mask: Tensor) -> Tensor:
    """[B] detached ρ = π/π_old of whole sequences, log ρ held to ±60."""
    difference = at_least_float32(log_probs.detach()) - old_log_probs.detach()
    return _bounded_exp(sum_counted(difference, mask))


def _weigh(ratios: Tensor, importance: str, low: float, high: float) -> Tensor:
    if importance == "none":
        return torch.ones_like(ratios)
    if importance == "clip":
        return ratios.clamp(1 - low, 1 + high)
    return ratios.clamp(max=MAX_WEIGHT) if importance == "max10" else ratios


def _check_reduction(reduction: str) -> None:
    check_choice("reduction", reduction, ("mean", "none"))


def _check_clips(clip_low: float, clip_high: float) -> None:
    check_number("clip_low", clip_low)
    check_number("clip_high", clip_high)


def _reduce(per_sequence: Tensor, reduction: str) -> Tensor:
    return per_sequence.mean() if reduction == "mean" else per_sequence


def _bounded_exp(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def _token_mean_parts(per_token: Tensor, mask: Tensor) -> Tensor:
    """[B] values whose plain mean is the mean over all counted tokens."""
    # Divided by a whole number: a quotient of two would be float32 for any values.
    return len(mask) * sum_counted(per_token, mask) / mask.sum().clamp(min=1)


def _advantage_per_token(advantages: Tensor, mask: Tensor) -> Tensor:
    """Advantages as a detached [B, T], 0 in the padding."""
    if isinstance(advantages, Tensor) and advantages.ndim == 1:
        shape, meaning = mask.shape[:1], "[B]: one per sequence"
        check_tensor("advantages", advantages, shape, meaning, beside=mask)
        advantages = advantages.unsqueeze(1).expand(mask.shape)
    check_tensor("advantages", advantages, mask, "[B, T]: one per token")
    check_finite({"advantages": advantages}, mask)
    return at_least_float32(advantages.detach()).masked_fill(~mask, 0.0)


def _counted_surrogate(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
) -> Tensor:
    """``clipped_surrogate`` per token, 0 in the padding; checks its input."""
    tokens = {"log_probs": log_probs, "old_log_probs": old_log_probs}
    check_batch(mask, tokens, {})
    _check_clips(clip_low, clip_high)
    return _surrogate(
        log_probs.masked_fill(~mask, 0.0),
        old_log_probs.masked_fill(~mask, 0.0),
        _advantage_per_token(advantages, mask),
        clip_low,
        clip_high,
    )


def _kl_penalty(
    log_probs: Tensor, ref_log_probs: Tensor | None, mask: Tensor, kl_coef: float
) -> Tensor:
    """kl_coef · k3 per token, 0 in the padding."""
    check_number("kl_coef", kl_coef)
    if ref_log_probs is None:
        if kl_coef > 0:
            raise bad_input(
                "ref_log_probs",
                f"is None with kl_coef={kl_coef}",
                "the reference's token log-probs",
                "pass ref_log_probs, or leave kl_coef at 0",
            )
        return torch.zeros_like(log_probs)
    check_batch(mask, {"ref_log_probs": ref_log_probs}, {})
    difference = ref_log_probs.detach() - at_least_float32(log_probs)
    return kl_coef * _k3(difference.masked_fill(~mask, 0.0))


def _value_errors(
    values: Tensor,
    old_values: Tensor | None,
    returns: Tensor | None,
    mask: Tensor,
    value_clip: float,
) -> Tensor:
    """PPO's clipped squared value error per token."""
    check_number("value_clip", value_clip, above=True)
    if returns is None:
        raise bad_input(
            "returns",
            "is None although values are given",
            "the return of each token",
            "pass the returns that advantages.gae gives",
        )
    tokens = {"values": values, "returns": returns}
    if old_values is not None:
        tokens["old_values"] = old_values
    check_batch(mask, tokens, {})
    targets = at_least_float32(returns.detach()).masked_fill(~mask, 0.0)
    values = at_least_float32(values).masked_fill(~mask, 0.0)
    errors = (values - targets).square()
    if old_values is None:
        return errors
    anchor = old_values.detach().to(values.dtype).masked_fill(~mask, 0.0)
    held = anchor + (values - anchor).clamp(-value_clip, value_clip)
    return torch.maximum(errors, (held - targets).square())


def _flow_potentials(
    log_flows: Tensor,
    log_probs: Tensor,
    ref_log_probs: Tensor,
    rewards: Tensor,
    mask: Tensor | None,
    reward_scale: float,
) -> tuple[Tensor, Tensor]:
    """F_i - Σ_{t<i} (log π - log π_ref), and which prefixes i exist; [B, T+1] both."""
    if mask is None:
        check_tensor("log_probs", log_probs, (None, None), "[B, T]")
        mask = torch.ones_like(log_probs, dtype=torch.bool)
    tokens = {"log_probs": log_probs, "ref_log_probs": ref_log_probs}
    check_batch(mask, tokens, {"rewards": rewards})
    check_number("reward_scale", reward_scale, high=LARGEST)
    rows, width = mask.shape
    shape, meaning = (rows, width + 1), "[B, T+1]: one per prefix"
    check_tensor("log_flows", log_flows, shape, meaning, beside=mask)
    if not holds(~mask[:, 1:] | mask[:, :-1]):
        raise bad_input(
            "completion_mask",
            "has a gap",
            "True on the tokens, then False",
            "pad on the right only",
        )
    lengths = mask.sum(dim=1, keepdim=True)
    steps = torch.arange(width + 1, device=mask.device)
    check_finite({"log_flows": log_flows}, steps < lengths)
    log_ratio = at_least_float32(log_probs) - ref_log_probs.detach()
    travelled = log_ratio.masked_fill(~mask, 0.0).cumsum(dim=1)
    travelled = torch.nn.functional.pad(travelled, (1, 0))
    paid = reward_scale * at_least_float32(rewards.detach()).unsqueeze(1)
    flows = torch.where(steps < lengths, at_least_float32(log_flows), paid)
    return flows - travelled, steps <= lengths

"""Notebook 2: the partition function, exact, learned and estimated."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowrl_lab.course.checking import Exercise, Mistake
from flowrl_lab.course.exercises._cases import (
    policy_reference_rewards_and_log_z,
    sampled_sequences,
)

__all__ = ["EXERCISES"]


def _ratios(policy: Tensor, reference: Tensor, rewards: Tensor, scale: float) -> Tensor:
    return scale * rewards.detach() + reference.detach() - policy


LOG_TARGET_RATIOS = Exercise(
    name="log_target_ratios",
    solution="flowrl_lab.partition:log_target_ratios",
    cases=sampled_sequences,
    gradients=("sequence_log_probs", "ref_sequence_log_probs", "rewards"),
    mistakes=(
        Mistake(
            "sign",
            "The sign is turned round: that is log π − β r − log π_ref. We want "
            "what log Z has to be, and log Z = β r + log π_ref − log π.",
            lambda policy, reference, rewards, *, reward_scale: (
                -_ratios(policy, reference, rewards, reward_scale)
            ),
        ),
        Mistake(
            "reference not detached",
            "The value is right, but a gradient flows into the reference or the "
            "reward. Both are fixed: use ref_sequence_log_probs.detach() and "
            "rewards.detach().",
            lambda policy, reference, rewards, *, reward_scale: (
                reward_scale * rewards + reference - policy
            ),
        ),
        Mistake(
            "policy detached",
            "The value is right, but you cut the policy's gradient too. With no "
            "gradient in log π there is nothing left to train.",
            lambda policy, reference, rewards, *, reward_scale: _ratios(
                policy.detach(),
                reference,
                rewards,
                reward_scale,
            ),
        ),
        Mistake(
            "sign of the reference",
            "log π_ref has the wrong sign: solved for log Z it is added, "
            "log Z = β r + log π_ref − log π.",
            lambda policy, reference, rewards, *, reward_scale: _ratios(
                policy, -reference, rewards, reward_scale
            ),
        ),
        Mistake(
            "no reference",
            "log π_ref is missing: the target is π_ref · exp(β r), not exp(β r).",
            lambda policy, reference, rewards, *, reward_scale: (  # noqa: ARG005
                reward_scale * rewards.detach() - policy
            ),
        ),
        Mistake(
            "no scale",
            "reward_scale has no effect in your function.",
            lambda policy, reference, rewards, *, reward_scale: (  # noqa: ARG005
                _ratios(policy, reference, rewards, 1.0)
            ),
        ),
        Mistake(
            "scaled the log-probs",
            "You multiplied everything by reward_scale. It is worth nats per unit of "
            "reward; the log-probs are in nats already.",
            lambda policy, reference, rewards, *, reward_scale: (
                reward_scale * _ratios(policy, reference, rewards, 1.0)
            ),
        ),
    ),
    hint="Solve δ = log Z + log π − β r − log π_ref = 0 for log Z. Then ask of each "
    "term whether training may change it: what it may not, .detach().",
)


def _groups(
    policy: Tensor, reference: Tensor, rewards: Tensor, size: int, scale: float
) -> Tensor:
    return _ratios(policy, reference, rewards, scale).view(-1, size)


def _log_mean_exp(groups: Tensor, dim: int) -> Tensor:
    return groups.logsumexp(dim) - math.log(groups.shape[dim])


VARGRAD_LOG_Z = Exercise(
    name="vargrad_log_z",
    solution="flowrl_lab.partition:vargrad_log_z",
    cases=lambda: sampled_sequences(3, 2),
    mistakes=(
        Mistake(
            "sign",
            "The sign is turned round. The residual log Z − ratio must be 0 on "
            "average, so log Ẑ = + mean(β r + log π_ref − log π).",
            lambda policy, reference, rewards, num_generations, *, reward_scale: (
                -_groups(policy, reference, rewards, num_generations, reward_scale)
            ).mean(1),
        ),
        Mistake(
            "across prompts",
            "You averaged over the prompts. The G samples of one prompt are "
            "*contiguous*: view(-1, num_generations), then the mean of each row.",
            lambda policy, reference, rewards, num_generations, *, reward_scale: (
                _ratios(policy, reference, rewards, reward_scale)
                .view(num_generations, -1)
                .mean(0)
            ),
        ),
        Mistake(
            "one for all",
            "That is one log Z for the whole batch. Every prompt has a Z of its own: "
            "average inside each group.",
            lambda policy, reference, rewards, num_generations, *, reward_scale: (  # noqa: ARG005
                _ratios(policy, reference, rewards, reward_scale).mean()
            ),
        ),
        Mistake(
            "sum",
            "You summed over the group; a mean was asked for.",
            lambda policy, reference, rewards, num_generations, *, reward_scale: (
                _groups(policy, reference, rewards, num_generations, reward_scale)
            ).sum(1),
        ),
        Mistake(
            "one per sample",
            "You gave the group's estimate to each of its samples. One for each "
            "prompt was asked for: [B] samples give [B / num_generations] values.",
            lambda policy, reference, rewards, num_generations, *, reward_scale: (
                _groups(policy, reference, rewards, num_generations, reward_scale)
                .mean(1)
                .repeat_interleave(num_generations)
            ),
        ),
        Mistake(
            "mean of exp",
            "That is the importance-sampled estimate, the log of the mean *weight* "
            "(the next exercise). VarGrad averages the logarithms themselves.",
            lambda policy, reference, rewards, num_generations, *, reward_scale: (
                _log_mean_exp(
                    _groups(policy, reference, rewards, num_generations, reward_scale),
                    1,
                )
            ),
        ),
    ),
    hint="A sum of squares Σ (c − x_i)² is smallest at the mean of the x_i. Here x_i "
    "is log_target_ratios; reshape to [P, G] and average each row.",
)

IMPORTANCE_LOG_Z = Exercise(
    name="importance_log_z",
    solution="flowrl_lab.partition:importance_log_z",
    cases=lambda: sampled_sequences(3, 2),
    mistakes=(
        Mistake(
            "no division",
            "You summed the weights. Z is their *mean*: divide by G, which in log "
            "space is − log(num_generations).",
            lambda policy, reference, rewards, num_generations, *, reward_scale: (
                _groups(policy, reference, rewards, num_generations, reward_scale)
            ).logsumexp(1),
        ),
        Mistake(
            "divided the log",
            "You divided the *logarithm* by G. Dividing Z by G subtracts log G from "
            "log Z.",
            lambda policy, reference, rewards, num_generations, *, reward_scale: (
                _groups(policy, reference, rewards, num_generations, reward_scale)
                .logsumexp(1)
                .div(num_generations)
            ),
        ),
        Mistake(
            "mean of logs",
            "That is the mean of the logarithms, which is VarGrad's estimate. Here "
            "the *weights* exp(ratio) are averaged, and the log comes last.",
            lambda policy, reference, rewards, num_generations, *, reward_scale: (
                _groups(policy, reference, rewards, num_generations, reward_scale)
            ).mean(1),
        ),
        Mistake(
            "no logarithm",
            "That is Ẑ itself; take its logarithm at the end, or better stay in log "
            "space with logsumexp.",
            lambda policy, reference, rewards, num_generations, *, reward_scale: (
                _groups(policy, reference, rewards, num_generations, reward_scale)
                .exp()
                .mean(1)
            ),
        ),
        Mistake(
            "no policy term",
            "You averaged exp(β r) π_ref without dividing by π. The samples come from "
            "π: each must be weighed by π_ref/π.",
            lambda policy, reference, rewards, num_generations, *, reward_scale: (
                _log_mean_exp(
                    _groups(
                        policy * 0, reference, rewards, num_generations, reward_scale
                    ),
                    1,
                )
            ),
        ),
        Mistake(
            "across prompts",
            "You averaged over the prompts. The G samples of one prompt are "
            "*contiguous*: view(-1, num_generations), then one log Z for each row.",
            lambda policy, reference, rewards, num_generations, *, reward_scale: (
                _log_mean_exp(
                    _ratios(policy, reference, rewards, reward_scale).view(
                        num_generations, -1
                    ),
                    0,
                )
            ),
        ),
    ),
    hint="Z = E_π[exp(ratio)], so log Ẑ is the log of a mean of exps: logsumexp over "
    "the group, minus log G.",
)


def _noise(
    log_probs: Tensor,
    ref_log_probs: Tensor,
    rewards: Tensor,
    log_z: Tensor,
    reward_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """π, δ and the one-sample gradients [N, N], one row for each answer."""
    probs = log_probs.exp()
    residuals = log_z + log_probs - ref_log_probs - reward_scale * rewards
    scores = torch.eye(len(probs), dtype=probs.dtype) - probs
    return probs, residuals, 2 * residuals[:, None] * scores


def _scatter(probs: Tensor, gradients: Tensor) -> Tensor:
    mean = (probs[:, None] * gradients).sum(0)
    return (probs[:, None] * (gradients - mean).square()).sum()


def _second_moment(log_probs, ref_log_probs, rewards, log_z, *, reward_scale):
    probs, _, gradients = _noise(log_probs, ref_log_probs, rewards, log_z, reward_scale)
    return (probs[:, None] * gradients.square()).sum()


def _without_two(log_probs, ref_log_probs, rewards, log_z, *, reward_scale):
    probs, _, gradients = _noise(log_probs, ref_log_probs, rewards, log_z, reward_scale)
    return _scatter(probs, gradients / 2)


def _of_the_residual(log_probs, ref_log_probs, rewards, log_z, *, reward_scale):
    probs, residuals, _ = _noise(log_probs, ref_log_probs, rewards, log_z, reward_scale)
    return (probs * (residuals - (probs * residuals).sum()).square()).sum()


def _unweighted(log_probs, ref_log_probs, rewards, log_z, *, reward_scale):
    probs, _, gradients = _noise(log_probs, ref_log_probs, rewards, log_z, reward_scale)
    return _scatter(torch.full_like(probs, 1 / len(probs)), gradients)


def _without_centre(log_probs, ref_log_probs, rewards, log_z, *, reward_scale):
    probs, residuals, _ = _noise(log_probs, ref_log_probs, rewards, log_z, reward_scale)
    onehot = torch.eye(len(probs), dtype=probs.dtype)
    return _scatter(probs, 2 * residuals[:, None] * onehot)


def _root(log_probs, ref_log_probs, rewards, log_z, *, reward_scale):
    probs, _, gradients = _noise(log_probs, ref_log_probs, rewards, log_z, reward_scale)
    return _scatter(probs, gradients).sqrt()


GRADIENT_NOISE = Exercise(
    name="gradient_noise",
    solution="flowrl_lab.exact:gradient_noise",
    cases=policy_reference_rewards_and_log_z,
    mistakes=(
        Mistake(
            "mean not removed",
            "That is E‖g‖², which also counts the signal. Noise is what scatters "
            "around the mean: subtract ‖E g‖².",
            _second_moment,
        ),
        Mistake(
            "no factor of two",
            "A quarter of the right value. The gradient of δ² is *two* δ ∇log π, and "
            "noise counts its square.",
            _without_two,
        ),
        Mistake(
            "residual only",
            "That is the variance of δ. A gradient is δ times a vector: log Z shifts "
            "all δ alike and would not change this number at all.",
            _of_the_residual,
        ),
        Mistake(
            "unweighted",
            "You counted every answer alike. The samples come from the policy: weigh "
            "each answer by π, in both averages.",
            _unweighted,
        ),
        Mistake(
            "softmax forgotten",
            "∇log π(y) with respect to the logits is onehot(y) − π; you took "
            "onehot(y) alone. Raising one logit lowers all other probabilities.",
            _without_centre,
        ),
        Mistake(
            "root",
            "That is the standard deviation; the variance was asked for.",
            _root,
        ),
    ),
    hint="Build all N one-sample gradients as rows: 2 · δ[:, None] · (eye(N) − π). "
    "Then a mean weighted by π, and the weighted squares around it.",
)

EXERCISES = (LOG_TARGET_RATIOS, VARGRAD_LOG_Z, IMPORTANCE_LOG_Z, GRADIENT_NOISE)

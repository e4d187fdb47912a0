"""Notebook 3: from the reverse KL to trajectory balance and its family."""

from __future__ import annotations

import torch
from torch import Tensor

from flowrl_lab.course.checking import Case, Exercise, Mistake
from flowrl_lab.course.exercises._cases import (
    draw_log_probs,
    draw_rewards,
    sampled_sequences,
)

__all__ = ["EXERCISES"]


def _reduce(values: Tensor, reduction: str) -> Tensor:
    return values.mean() if reduction == "mean" else values


# ------------------------------------------------------------------ trajectory balance


def _sequences_with_log_z() -> list[Case]:
    """6 sequences with a log Z each; the last case asks for one value a sequence."""
    cases = []
    for seed, reduction in enumerate(("mean", "none")):
        ((tensors, settings),) = sampled_sequences()[seed : seed + 1]
        log_z = 3 * draw_rewards(6, seed=60 + seed)
        settings = {**settings, "reduction": reduction}
        cases.append(((log_z, *tensors), settings))
    return cases


def _delta(log_z, policy, reference, rewards, scale) -> Tensor:
    return log_z + policy - scale * rewards - reference.detach()


TRAJECTORY_BALANCE_LOSS = Exercise(
    name="trajectory_balance_loss",
    solution="flowrl_lab.losses:trajectory_balance_loss",
    cases=_sequences_with_log_z,
    gradients=("log_z", "sequence_log_probs", "ref_sequence_log_probs"),
    mistakes=(
        Mistake(
            "sign of β r",
            "The sign of β r is wrong: you reward what should be avoided. At balance "
            "log Z + log π = β r + log π_ref, so β r is subtracted.",
            lambda log_z, policy, ref, rewards, *, reward_scale, reduction="mean": (
                _reduce(
                    _delta(log_z, policy, ref, -rewards, reward_scale).square(),
                    reduction,
                )
            ),
        ),
        Mistake(
            "forgot the square",
            "You forgot the square. Residuals of both signs cancel, and the minimum "
            "of a straight line is at minus infinity.",
            lambda log_z, policy, ref, rewards, *, reward_scale, reduction="mean": (
                _reduce(_delta(log_z, policy, ref, rewards, reward_scale), reduction)
            ),
        ),
        Mistake(
            "square of the mean",
            "You squared after averaging. Residuals of both signs cancel before the "
            "square sees them; square each residual first.",
            lambda log_z, policy, ref, rewards, *, reward_scale, reduction="mean": (
                _reduce(
                    _delta(log_z, policy, ref, rewards, reward_scale), reduction
                ).square()
            ),
        ),
        Mistake(
            "reference with gradient",
            "The value is right, but a gradient flows into the reference. It is "
            "fixed: use ref_sequence_log_probs.detach().",
            lambda log_z, policy, ref, rewards, *, reward_scale, reduction="mean": (
                _reduce(
                    (log_z + policy - reward_scale * rewards - ref).square(), reduction
                )
            ),
        ),
        Mistake(
            "log Z detached",
            "The value is right, but log Z gets no gradient, so nothing can learn "
            "it. Leave log_z as it comes.",
            lambda log_z, policy, ref, rewards, *, reward_scale, reduction="mean": (
                _reduce(
                    _delta(log_z.detach(), policy, ref, rewards, reward_scale).square(),
                    reduction,
                )
            ),
        ),
        Mistake(
            "sign of log Z",
            "The sign of log Z is wrong. The target is π_ref e^(βr) / Z: what is "
            "divided by Z on the right is multiplied by Z on the left.",
            lambda log_z, policy, ref, rewards, *, reward_scale, reduction="mean": (
                _reduce(
                    _delta(-log_z, policy, ref, rewards, reward_scale).square(),
                    reduction,
                )
            ),
        ),
        Mistake(
            "reward divided by β",
            "You divided the reward by reward_scale. It multiplies: β is how many "
            "nats one unit of reward is worth.",
            lambda log_z, policy, ref, rewards, *, reward_scale, reduction="mean": (
                _reduce(
                    _delta(log_z, policy, ref, rewards, 1 / reward_scale).square(),
                    reduction,
                )
            ),
        ),
        Mistake(
            "plus log π_ref",
            "You added log π_ref. At balance log Z + log π = β r + log π_ref, so the "
            "reference is subtracted, as β r is.",
            lambda log_z, policy, ref, rewards, *, reward_scale, reduction="mean": (
                _reduce(
                    _delta(log_z, policy, -ref, rewards, reward_scale).square(),
                    reduction,
                )
            ),
        ),
        Mistake(
            "no reference",
            "log π_ref is missing: this loss pulls the policy to e^(βr)/Z, and "
            "forgets everything the reference knew.",
            lambda log_z, policy, ref, rewards, *, reward_scale, reduction="mean": (
                _reduce(
                    _delta(log_z, policy, 0 * ref, rewards, reward_scale).square(),
                    reduction,
                )
            ),
        ),
        Mistake(
            "ignores reduction",
            'You always average. With reduction="none" the caller wants one value '
            "for each sequence.",
            lambda log_z, policy, ref, rewards, *, reward_scale, reduction="mean": (  # noqa: ARG005
                _delta(log_z, policy, ref, rewards, reward_scale).square().mean()
            ),
        ),
        Mistake(
            "sum",
            "You summed over the batch; average it, so that the size of a step does "
            "not depend on the number of samples.",
            lambda log_z, policy, ref, rewards, *, reward_scale, reduction="mean": (
                _reduce(
                    _delta(log_z, policy, ref, rewards, reward_scale).square(),
                    reduction,
                )
                * (len(rewards) if reduction == "mean" else 1)
            ),
        ),
    ),
    hint="δ = log_z + log π − β r − log π_ref, one number for each sequence. Detach "
    "the reference, square, then average (or not, if reduction says so).",
)

# ----------------------------------------------------------------------------- VarGrad


def _grouped_sequences() -> list[Case]:
    cases = []
    for (tensors, settings), reduction in zip(
        sampled_sequences(3, 2), ("mean", "none"), strict=True
    ):
        cases.append((tensors, {**settings, "reduction": reduction}))
    return cases


def _scores(policy, reference, rewards, scale) -> Tensor:
    return policy - reference.detach() - scale * rewards


def _spread(scores: Tensor, size: int, reduction: str) -> Tensor:
    groups = scores.view(-1, size)
    return _reduce(
        (groups - groups.mean(1, keepdim=True)).square().flatten(), reduction
    )


def _across_prompts(scores: Tensor, size: int) -> Tensor:
    """Deviations when the groups are taken for columns."""
    columns = scores.view(size, -1)
    return (columns - columns.mean(0)).square().flatten()


VARGRAD_LOSS = Exercise(
    name="vargrad_loss",
    solution="flowrl_lab.losses:vargrad_loss",
    cases=_grouped_sequences,
    gradients=("sequence_log_probs", "ref_sequence_log_probs"),
    mistakes=(
        Mistake(
            "Z not per prompt",
            "You took one mean over the whole batch. Every prompt has a log Z of its "
            "own: take the mean inside each group of num_generations.",
            lambda policy, ref, rewards, size, *, reward_scale, reduction="mean": (
                _spread(
                    _scores(policy, ref, rewards, reward_scale),
                    size * (len(rewards) // size),
                    reduction,
                )
            ),
        ),
        Mistake(
            "mean over the wrong axis",
            "You averaged across prompts. The samples of one prompt lie next to each "
            "other: view(-1, num_generations), then the mean over dim 1.",
            lambda policy, ref, rewards, size, *, reward_scale, reduction="mean": (
                _reduce(
                    _across_prompts(_scores(policy, ref, rewards, reward_scale), size),
                    reduction,
                )
            ),
        ),
        Mistake(
            "sign of β r",
            "The sign of β r is wrong: s = log π − log π_ref − β r.",
            lambda policy, ref, rewards, size, *, reward_scale, reduction="mean": (
                _spread(_scores(policy, ref, -rewards, reward_scale), size, reduction)
            ),
        ),
        Mistake(
            "forgot the square",
            "You forgot the square: deviations from a mean add up to 0, so the loss "
            "is 0 whatever the policy does.",
            lambda policy, ref, rewards, size, *, reward_scale, reduction="mean": (
                _reduce(
                    (
                        _scores(policy, ref, rewards, reward_scale).view(-1, size)
                        - _scores(policy, ref, rewards, reward_scale)
                        .view(-1, size)
                        .mean(1, keepdim=True)
                    ).flatten(),
                    reduction,
                )
            ),
        ),
        Mistake(
            "log Z forgotten",
            "You squared s itself: that is log Z = 0. Subtract the group's mean of s "
            "first; it stands for −log Z.",
            lambda policy, ref, rewards, size, *, reward_scale, reduction="mean": (  # noqa: ARG005
                _reduce(_scores(policy, ref, rewards, reward_scale).square(), reduction)
            ),
        ),
        Mistake(
            "divided by G − 1",
            "You divided by G − 1, as torch's var does by default. The loss is the "
            "mean of the squares: divide by G.",
            lambda policy, ref, rewards, size, *, reward_scale, reduction="mean": (
                _spread(_scores(policy, ref, rewards, reward_scale), size, reduction)
                * size
                / (size - 1)
            ),
        ),
        Mistake(
            "divided by G − 1, one a prompt",
            "You divided by G − 1, as torch's var does unless told otherwise; the loss "
            "is the mean of the squares: divide by G. And var gives one a prompt, "
            'where reduction="none" wants one for each sample.',
            lambda policy, ref, rewards, size, *, reward_scale, reduction="mean": (
                _reduce(
                    _scores(policy, ref, rewards, reward_scale).view(-1, size).var(1),
                    reduction,
                )
            ),
        ),
        Mistake(
            "one a prompt",
            "That is one number for each prompt. The mean is right, but "
            'reduction="none" wants one for each sample: return the squares.',
            lambda policy, ref, rewards, size, *, reward_scale, reduction="mean": (
                _reduce(
                    _scores(policy, ref, rewards, reward_scale)
                    .view(-1, size)
                    .var(1, correction=0),
                    reduction,
                )
            ),
        ),
        Mistake(
            "reference with gradient",
            "The value is right, but a gradient flows into the reference. It is "
            "fixed: use ref_sequence_log_probs.detach().",
            lambda policy, ref, rewards, size, *, reward_scale, reduction="mean": (
                _spread(policy - ref - reward_scale * rewards, size, reduction)
            ),
        ),
        Mistake(
            "plus log π_ref",
            "You added log π_ref: s = log π − log π_ref − β r.",
            lambda policy, ref, rewards, size, *, reward_scale, reduction="mean": (
                _spread(_scores(policy, -ref, rewards, reward_scale), size, reduction)
            ),
        ),
        Mistake(
            "no reference",
            "log π_ref is missing: the target is π_ref · e^(βr), not e^(βr).",
            lambda policy, ref, rewards, size, *, reward_scale, reduction="mean": (
                _spread(
                    _scores(policy, 0 * ref, rewards, reward_scale), size, reduction
                )
            ),
        ),
    ),
    hint="s = log π − log π_ref − β r. View it as [prompts, num_generations], subtract "
    "each row's mean, square, flatten, reduce.",
)

# -------------------------------------------------------------------- detailed balance


def _words_with_flows() -> list[Case]:
    """3 words of 4 letters, with a flow before each letter and after the last."""
    cases = []
    for seed, reduction in enumerate(("mean", "none")):
        log_flows = 4 * draw_rewards(15, seed=70 + seed).view(3, 5)
        log_probs = draw_log_probs(3, 4, seed=72 + seed)
        ref_log_probs = draw_log_probs(3, 4, seed=74 + seed)
        rewards = draw_rewards(3, seed=76 + seed)
        settings = {"reward_scale": (3.0, 0.5)[seed], "reduction": reduction}
        cases.append(((log_flows, log_probs, ref_log_probs, rewards), settings))
    return cases


def _paid_flows(log_flows, rewards, scale) -> Tensor:
    """The flows, with βr in the place of the complete word's."""
    return torch.cat([log_flows[:, :-1], scale * rewards.unsqueeze(1)], dim=1)


def _edges(flows, log_probs, ref_log_probs) -> Tensor:
    return flows[:, :-1] + log_probs - ref_log_probs.detach() - flows[:, 1:]


def _mean_square(edges: Tensor) -> Tensor:
    return edges.square().mean(1)


def _edge_mistake(name: str, message: str, edges, mean=_mean_square) -> Mistake:
    """A mistake in the edges, or in how they are averaged."""

    def wrong(flows, log_probs, ref, rewards, *, reward_scale, reduction="mean"):
        paid = _paid_flows(flows, rewards, reward_scale)
        off = edges(flows, paid, log_probs, ref, reward_scale * rewards)
        return _reduce(mean(off), reduction)

    return Mistake(name, message, wrong)


def _right_edges(_flows, paid, log_probs, ref, _bonus) -> Tensor:
    return _edges(paid, log_probs, ref)


DETAILED_BALANCE_LOSS = Exercise(
    name="detailed_balance_loss",
    solution="flowrl_lab.losses:detailed_balance_loss",
    cases=_words_with_flows,
    gradients=("log_flows", "log_probs", "ref_log_probs"),
    mistakes=(
        _edge_mistake(
            "reward is missing",
            "The reward is missing. The flow of a complete word is not learned: it "
            "*is* β r. Without it nothing says which word is good.",
            lambda flows, _p, log_probs, ref, _b: _edges(flows, log_probs, ref),
        ),
        _edge_mistake(
            "sum over letters",
            "You summed over the letters. Divide by their number |y|, so that long "
            "words do not weigh more.",
            _right_edges,
            lambda edges: edges.square().sum(1),
        ),
        _edge_mistake(
            "forgot the square",
            "You forgot the square: flows of both signs cancel along the word, and "
            "what is left is a straight line without a minimum.",
            _right_edges,
            lambda edges: edges.mean(1),
        ),
        _edge_mistake(
            "squared the sum",
            "You added the edges up before squaring. Then the flows in the middle "
            "cancel and trajectory balance is left; square each edge.",
            _right_edges,
            lambda edges: edges.sum(1).square(),
        ),
        _edge_mistake(
            "squared the mean",
            "You averaged the edges before squaring. Then the flows in the middle "
            "cancel; square each edge, then average.",
            _right_edges,
            lambda edges: edges.mean(1).square(),
        ),
        _edge_mistake(
            "edge turned round",
            "The edge is turned round. Flow in = flow out: F_t + log π − log π_ref "
            "arrives as F_{t+1}.",
            lambda _f, paid, log_probs, ref, _b: (
                paid[:, 1:] + log_probs - ref.detach() - paid[:, :-1]
            ),
        ),
        _edge_mistake(
            "sign of β r",
            "The sign of β r is wrong: the flow that must arrive at a complete word is "
            "+β r.",
            lambda flows, _p, log_probs, ref, bonus: _edges(
                _paid_flows(flows, -bonus, 1.0), log_probs, ref
            ),
        ),
        _edge_mistake(
            "reference with gradient",
            "The value is right, but a gradient flows into the reference. It is "
            "fixed: use ref_log_probs.detach().",
            lambda _f, paid, log_probs, ref, _b: (
                paid[:, :-1] + log_probs - ref - paid[:, 1:]
            ),
        ),
        _edge_mistake(
            "next flow detached",
            "The value is right, but the next flow gets no gradient. Q-learning stops "
            "it there; balance pulls on both ends of an edge.",
            lambda _f, paid, log_probs, ref, _b: (
                paid[:, :-1] + log_probs - ref.detach() - paid[:, 1:].detach()
            ),
        ),
    ),
    hint="Put β r in the place of the last flow: torch.cat([log_flows[:, :-1], "
    "β r[:, None]], 1). Then one edge a letter: flows[:, :-1] + log π − log π_ref − "
    "flows[:, 1:].",
)

# --------------------------------------------------------------- effective sample size


def _log_weights() -> list[Case]:
    few = torch.tensor([0.0, 0.0, 0.0, 0.5], dtype=torch.float64)
    return [
        ((few,), {}),
        ((draw_log_probs(3, 5, seed=80),), {}),
        ((draw_log_probs(6, seed=81) - 900.0,), {}),
    ]


def _ess(log_weights: Tensor) -> Tensor:
    shifted = log_weights - log_weights.amax(-1, keepdim=True)
    return shifted.exp().sum(-1) ** 2 / shifted.exp().square().sum(-1)


EFFECTIVE_SAMPLE_SIZE = Exercise(
    name="effective_sample_size",
    solution="flowrl_lab.metrics:effective_sample_size",
    cases=_log_weights,
    mistakes=(
        Mistake(
            "underflow",
            "The formula is right, but it gives NaN when all log weights are near "
            "−900: their exp is 0. A common factor cancels, so subtract the largest "
            "log weight of each row before exp (or use logsumexp).",
            lambda log_weights: (
                log_weights.exp().sum(-1) ** 2 / log_weights.exp().square().sum(-1)
            ),
        ),
        Mistake(
            "no exp",
            "These are *log* weights: take exp before you square and sum.",
            lambda log_weights: log_weights.sum(-1) ** 2 / log_weights.square().sum(-1),
        ),
        Mistake(
            "share",
            "That is the share of samples that count; the number was asked for. Do "
            "not divide by N.",
            lambda log_weights: _ess(log_weights) / log_weights.shape[-1],
        ),
        Mistake(
            "upside down",
            "You turned the fraction round: (Σ w)² goes on top.",
            lambda log_weights: 1 / _ess(log_weights),
        ),
        Mistake(
            "entropy",
            "That is exp of the entropy of the weights, another good count of what "
            "is alive. The sample size uses squares, because it is about variance.",
            lambda log_weights: torch.exp(
                -(log_weights.softmax(-1) * log_weights.log_softmax(-1)).sum(-1)
            ),
        ),
        Mistake(
            "not per row",
            "You summed over everything. With a batch, sum over the last dimension "
            "only: [..., N] gives [...].",
            lambda log_weights: _ess(log_weights.flatten()),
        ),
        Mistake(
            "square inside",
            "(Σ w)² is the square of the sum; you took the sum of squares twice, so "
            "that every weighting gives 1.",
            lambda log_weights: torch.ones_like(_ess(log_weights)),
        ),
    ),
    hint="Subtract log_weights.amax(-1, keepdim=True), exp, then (Σ w)² / Σ w² over "
    "the last dimension.",
)

EXERCISES = (
    TRAJECTORY_BALANCE_LOSS,
    VARGRAD_LOSS,
    DETAILED_BALANCE_LOSS,
    EFFECTIVE_SAMPLE_SIZE,
)

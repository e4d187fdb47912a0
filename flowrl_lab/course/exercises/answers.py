"""Notebook 7: counting answers, exactly and from samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowrl_lab.course.checking import Case, Exercise, Mistake
from flowrl_lab.course.exercises._cases import draw_log_probs, draw_rewards

__all__ = ["EXERCISES"]


def _listed_answers() -> list[Case]:
    """Probabilities of right answers, which need not sum to 1, and n."""
    return [
        ((torch.tensor([0.5, 0.25], dtype=torch.float64), 3), {}),
        ((0.8 * draw_log_probs(6, seed=16).exp(), 16), {}),
        ((0.4 * draw_log_probs(3, 5, seed=17).exp(), 4), {}),
    ]


EXPECTED_DISTINCT = Exercise(
    name="expected_distinct",
    solution="flowrl_lab.metrics:expected_distinct",
    cases=_listed_answers,
    mistakes=(
        Mistake(
            "pass@k",
            "That is the chance of finding *any* right answer. Here each answer "
            "counts by itself: apply 1 − (1 − p)^n to each, then sum.",
            lambda probs, num_samples: 1 - (1 - probs.sum(-1)) ** num_samples,
        ),
        Mistake(
            "counts repeats",
            "That is the number of right samples, n · Σ p. An answer that comes "
            "twice is still one answer.",
            lambda probs, num_samples: num_samples * probs.sum(-1),
        ),
        Mistake(
            "not found",
            "You summed (1 − p)^n, which is how many answers are *missed*. Found is "
            "1 minus that, for each answer.",
            lambda probs, num_samples: ((1 - probs) ** num_samples).sum(-1),
        ),
        Mistake(
            "every time",
            "p^n is the chance that all n samples are this answer. One of them is "
            "enough: 1 minus the chance that none is.",
            lambda probs, num_samples: (probs**num_samples).sum(-1),
        ),
        Mistake(
            "average",
            "You averaged over the answers; a number of answers is a sum.",
            lambda probs, num_samples: (1 - (1 - probs) ** num_samples).mean(-1),
        ),
        Mistake(
            "not per row",
            "You summed over everything. With a batch, sum over the last dimension "
            "only: [..., N] gives [...].",
            lambda probs, num_samples: (1 - (1 - probs) ** num_samples).sum(),
        ),
        Mistake(
            "one step short",
            "You raised to n − 1. All n samples must miss an answer for it to stay "
            "unfound.",
            lambda probs, num_samples: (1 - (1 - probs) ** (num_samples - 1)).sum(-1),
        ),
    ),
    hint="One answer of probability p is missed by one sample with 1 − p, by n with "
    "(1 − p)^n. Expected counts of several answers simply add up.",
)


def _right_and_unlisted() -> list[Case]:
    rewards = torch.tensor([1.0, 1.0, 0.5, 1.0], dtype=torch.float64)
    return [
        (
            (draw_log_probs(4, seed=18) + math.log(0.45), rewards),
            {"reward_scale": 5.0, "exhaustive": False},
        ),
        (
            (draw_log_probs(6, seed=19) + math.log(0.8), draw_rewards(6, 20)),
            {"reward_scale": 2.0, "exhaustive": False},
        ),
        (
            (draw_log_probs(5, seed=21), draw_rewards(5, 22)),
            {"reward_scale": 3.0, "exhaustive": True},
        ),
    ]


def _log_z_with_rest(ref_log_probs, rewards, reward_scale, rest):
    listed = (ref_log_probs.exp() * torch.exp(reward_scale * rewards)).sum()
    return torch.log(listed + rest)


def _unlisted(ref_log_probs: Tensor, exhaustive: bool) -> Tensor | float:
    return 0.0 if exhaustive else 1 - ref_log_probs.exp().sum()


REFERENCE_LOG_PARTITION = Exercise(
    name="reference_log_partition",
    solution="flowrl_lab.exact:reference_log_partition",
    cases=_right_and_unlisted,
    mistakes=(
        Mistake(
            "forgot the rest",
            "What is not listed is missing. It has reward 0, so it adds its "
            "probability times e^0 = 1 (unless exhaustive is True).",
            lambda ref_log_probs, rewards, *, reward_scale, exhaustive: (  # noqa: ARG005
                _log_z_with_rest(ref_log_probs, rewards, reward_scale, 0.0)
            ),
        ),
        Mistake(
            "Z, not its log",
            "That is Z itself; its logarithm was asked for.",
            lambda ref_log_probs, rewards, *, reward_scale, exhaustive: torch.exp(
                _log_z_with_rest(
                    ref_log_probs,
                    rewards,
                    reward_scale,
                    _unlisted(ref_log_probs, exhaustive),
                )
            ),
        ),
        Mistake(
            "adds 1",
            "You added 1 for the rest. The rest is less than everything: it weighs "
            "1 − Σ π_ref, what the list leaves over.",
            lambda ref_log_probs, rewards, *, reward_scale, exhaustive: (
                _log_z_with_rest(
                    ref_log_probs, rewards, reward_scale, 0.0 if exhaustive else 1.0
                )
            ),
        ),
        Mistake(
            "no reference",
            "The reference is missing: each e^(βr) is weighed by π_ref of its answer.",
            lambda ref_log_probs, rewards, *, reward_scale, exhaustive: (  # noqa: ARG005
                torch.logsumexp(reward_scale * rewards, -1)
            ),
        ),
        Mistake(
            "log inside the mean",
            "You averaged βr, which is the mean of logs. log Z is the log of the mean "
            "of e^(βr), and that is larger (Jensen).",
            lambda ref_log_probs, rewards, *, reward_scale, exhaustive: (  # noqa: ARG005
                (ref_log_probs.exp() * reward_scale * rewards).sum()
            ),
        ),
        Mistake(
            "the rest is rewarded",
            "You paid the rest as well: e^β times its probability. Only right answers "
            "have a reward; everything else keeps e^0 = 1.",
            lambda ref_log_probs, rewards, *, reward_scale, exhaustive: (
                _log_z_with_rest(
                    ref_log_probs,
                    rewards,
                    reward_scale,
                    _unlisted(ref_log_probs, exhaustive) * math.exp(reward_scale),
                )
            ),
        ),
    ),
    hint="Z has two parts: Σ π_ref e^(βr) over the listed answers, and 1 − Σ π_ref for "
    "all the others together. Add them, then take the log.",
)


def _pass_at_k_cases() -> list[Case]:
    return [
        ((16, 3, 4), {}),
        ((64, 5, 16), {}),
        ((10, 8, 4), {}),
        ((8, 0, 2), {}),
        ((200, 120, 64), {}),
    ]


PASS_AT_K = Exercise(
    name="pass_at_k",
    solution="flowrl_lab.metrics:pass_at_k",
    cases=_pass_at_k_cases,
    mistakes=(
        Mistake(
            "plug-in",
            "You put the measured share c/n into 1 − (1 − a)^k. That is biased: too "
            "low on average. Count draws of k out of your n samples instead, without "
            "putting any back.",
            lambda num_samples, num_correct, k: (
                1 - (1 - num_correct / num_samples) ** k
            ),
        ),
        Mistake(
            "all wrong",
            "That is the chance that all k are wrong. pass@k is 1 minus it.",
            lambda num_samples, num_correct, k: (
                math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)
            ),
        ),
        Mistake(
            "all right",
            "That is the chance that all k are right. One right one is enough.",
            lambda num_samples, num_correct, k: (
                math.comb(num_correct, k) / math.comb(num_samples, k)
            ),
        ),
        Mistake(
            "not all right",
            "1 − C(c, k)/C(n, k) is the chance that at least one is *wrong*. The wrong "
            "samples belong into the binomial: there are n − c of them.",
            lambda num_samples, num_correct, k: (
                1 - math.comb(num_correct, k) / math.comb(num_samples, k)
            ),
        ),
        Mistake(
            "accuracy",
            "That is the share of right samples, which is pass@1. k has no effect.",
            lambda num_samples, num_correct, k: num_correct / num_samples,  # noqa: ARG005
        ),
        Mistake(
            "any of all",
            "You asked whether any of all n samples is right. Only k are drawn.",
            lambda num_samples, num_correct, k: float(num_correct > 0),  # noqa: ARG005
        ),
    ),
    hint="The share of ways that hold no right one is the chance to fail. "
    "With fewer than k wrong samples there is no such way: math.comb gives 0.",
)

EXERCISES = (EXPECTED_DISTINCT, REFERENCE_LOG_PARTITION, PASS_AT_K)

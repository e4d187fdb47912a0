"""The exercises of the course: cases, hints, and the mistakes we know.

Every exercise's solution is a function of the library, so there is one source.
The known mistakes are written as short wrong functions: a learner whose output
equals one of them on every case is told which one it is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowrl_lab.course.checking import Case, Exercise, Mistake

__all__ = ["EXERCISES"]


def _log_probs(*shape: int, seed: int, spread: float = 1.5) -> Tensor:
    """Random normalised log-probabilities, float64."""
    generator = torch.Generator().manual_seed(seed)
    scores = spread * torch.randn(shape, generator=generator, dtype=torch.float64)
    return torch.log_softmax(scores, dim=-1)


def _rewards(number: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(number, generator=generator, dtype=torch.float64)


def _one_distribution() -> list[Case]:
    even = torch.full((8,), -math.log(8), dtype=torch.float64)
    return [
        ((even,), {}),
        ((_log_probs(6, seed=1),), {}),
        ((_log_probs(3, 5, seed=2),), {}),
    ]


def _two_distributions() -> list[Case]:
    return [
        ((_log_probs(6, seed=3), _log_probs(6, seed=4)), {}),
        ((_log_probs(3, 5, seed=5), _log_probs(3, 5, seed=6)), {}),
    ]


def _reference_and_rewards() -> list[Case]:
    uniform = torch.full((5,), -math.log(5), dtype=torch.float64)
    return [
        ((uniform, _rewards(5, 7)), {"reward_scale": 4.0}),
        ((_log_probs(7, seed=8), _rewards(7, 9)), {"reward_scale": 2.0}),
    ]


def _policy_reference_and_rewards() -> list[Case]:
    return [
        (
            (_log_probs(6, seed=10), _log_probs(6, seed=11), _rewards(6, 12)),
            {"reward_scale": 3.0},
        ),
        (
            (_log_probs(4, seed=13), _log_probs(4, seed=14), _rewards(4, 15)),
            {"reward_scale": 0.5},
        ),
    ]


def _entropy(log_probs: Tensor) -> Tensor:
    return -(log_probs.exp() * log_probs).sum(-1)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


EFFECTIVE_NUMBER = Exercise(
    name="effective_number",
    solution="flowrl_lab.metrics:effective_number",
    cases=_one_distribution,
    mistakes=(
        Mistake(
            "no exp",
            "That is the entropy itself, in nats. The effective number is its exp: "
            "8 equal states give log 8 = 2.08 nats, and exp(2.08) = 8.",
            _entropy,
        ),
        Mistake(
            "sign",
            "You lost a minus sign: entropy is −Σ p log p, never negative, so its "
            "exp is never below 1.",
            lambda log_probs: torch.exp(-_entropy(log_probs)),
        ),
        Mistake(
            "counts states",
            "You counted the states. A state with hardly any probability must "
            "hardly count: weigh each log p by its own p.",
            lambda log_probs: log_probs.exp().gt(0).sum(-1),
        ),
        Mistake(
            "unweighted",
            "Each log p must be weighed by its own p; you averaged the log p "
            "themselves, as if the distribution were uniform.",
            lambda log_probs: torch.exp(-log_probs.mean(-1)),
        ),
        Mistake(
            "not per row",
            "You summed over everything. With a batch, sum over the last dimension "
            "only: [..., N] gives [...].",
            lambda log_probs: torch.exp(-(log_probs.exp() * log_probs).sum()),
        ),
        Mistake(
            "inverse Simpson",
            "That is 1/Σ p², another good measure (the inverse Simpson index). Here "
            "we want the one made of the entropy: exp(−Σ p log p).",
            lambda log_probs: 1 / log_probs.exp().square().sum(-1),
        ),
    ),
    hint="The probabilities are log_p.exp(). Entropy is −Σ p log p over the last "
    "dimension; take its exp at the end.",
)

TOTAL_VARIATION = Exercise(
    name="total_variation",
    solution="flowrl_lab.metrics:total_variation",
    cases=_two_distributions,
    mistakes=(
        Mistake(
            "no half",
            "You forgot the ½: whatever leaves one state arrives at another, so the "
            "plain sum of |p − q| counts every moved bit twice.",
            lambda log_p, log_q: (log_p.exp() - log_q.exp()).abs().sum(-1),
        ),
        Mistake(
            "of log-probs",
            "You compared the log-probabilities. Turn them into probabilities with "
            ".exp() first.",
            lambda log_p, log_q: 0.5 * (log_p - log_q).abs().sum(-1),
        ),
        Mistake(
            "no absolute value",
            "Without the absolute value the differences cancel: two distributions "
            "both sum to 1, so Σ (p − q) is always 0.",
            lambda log_p, log_q: 0.5 * (log_p.exp() - log_q.exp()).sum(-1),
        ),
        Mistake(
            "largest difference",
            "That is the largest difference of a single state. Total variation adds "
            "the differences of all states (and halves the sum).",
            lambda log_p, log_q: (log_p.exp() - log_q.exp()).abs().amax(-1),
        ),
        Mistake(
            "squared",
            "You squared the differences. Total variation takes absolute values.",
            lambda log_p, log_q: 0.5 * (log_p.exp() - log_q.exp()).square().sum(-1),
        ),
        Mistake(
            "mean",
            "You averaged over the states; the differences are to be summed.",
            lambda log_p, log_q: 0.5 * (log_p.exp() - log_q.exp()).abs().mean(-1),
        ),
    ),
    hint="p = log_p.exp(), q = log_q.exp(), then ½ Σ |p − q| over the last dimension.",
)

EXACT_TARGET = Exercise(
    name="exact_target",
    solution="flowrl_lab.exact:exact_target",
    cases=_reference_and_rewards,
    mistakes=(
        Mistake(
            "not normalised",
            "Not normalised: log π_ref + β r is the target up to log Z. Subtract "
            "the logsumexp, so that the probabilities sum to 1.",
            lambda ref_log_probs, rewards, *, reward_scale: (
                ref_log_probs + reward_scale * rewards
            ),
        ),
        Mistake(
            "probabilities",
            "These are the probabilities; log-probabilities were asked for. Use "
            "log_softmax rather than softmax.",
            lambda ref_log_probs, rewards, *, reward_scale: torch.softmax(
                ref_log_probs + reward_scale * rewards, -1
            ),
        ),
        Mistake(
            "no reference",
            "The reference is missing: p* ∝ π_ref · exp(β r). In log space that is "
            "log π_ref + β r.",
            lambda ref_log_probs, rewards, *, reward_scale: torch.log_softmax(  # noqa: ARG005
                reward_scale * rewards, -1
            ),
        ),
        Mistake(
            "divided by the scale",
            "You divided by reward_scale. It multiplies the reward: a larger scale "
            "makes the target sharper.",
            lambda ref_log_probs, rewards, *, reward_scale: torch.log_softmax(
                ref_log_probs + rewards / reward_scale, -1
            ),
        ),
        Mistake(
            "scaled the reference",
            "You multiplied the reference by reward_scale too. Only the reward is "
            "scaled.",
            lambda ref_log_probs, rewards, *, reward_scale: torch.log_softmax(
                reward_scale * (ref_log_probs + rewards), -1
            ),
        ),
        Mistake(
            "no scale",
            "reward_scale has no effect in your function.",
            lambda ref_log_probs, rewards, *, reward_scale: torch.log_softmax(  # noqa: ARG005
                ref_log_probs + rewards, -1
            ),
        ),
        Mistake(
            "probability of the reference",
            "You added the reference's probability. In log space the product "
            "π_ref · exp(β r) becomes a sum of *logs*.",
            lambda ref_log_probs, rewards, *, reward_scale: torch.log_softmax(
                ref_log_probs.exp() + reward_scale * rewards, -1
            ),
        ),
    ),
    hint="log p* = log π_ref + β r − log Z, where log Z is the logsumexp of the first "
    "two terms. torch.log_softmax does both steps.",
)

KL_DIVERGENCE = Exercise(
    name="kl_divergence",
    solution="flowrl_lab.metrics:kl_divergence",
    cases=_two_distributions,
    mistakes=(
        Mistake(
            "direction",
            "That is KL(q ‖ p), the other direction. KL(p ‖ q) weighs by its *first* "
            "argument: Σ p (log p − log q).",
            lambda log_p, log_q: _kl(log_q, log_p),
        ),
        Mistake(
            "weighed by the second",
            "You took log p − log q but weighed it by q. Weigh by p, the "
            "distribution that the samples would come from.",
            lambda log_p, log_q: (log_q.exp() * (log_p - log_q)).sum(-1),
        ),
        Mistake(
            "sign",
            "The sign is turned round: KL is never negative. It is Σ p (log p − "
            "log q), with log p first.",
            lambda log_p, log_q: -_kl(log_p, log_q),
        ),
        Mistake(
            "unweighted",
            "You summed log p − log q without weighing it by p.",
            lambda log_p, log_q: (log_p - log_q).sum(-1),
        ),
        Mistake(
            "mean",
            "You averaged over the states. Weighing by p is the averaging already: "
            "sum.",
            lambda log_p, log_q: (log_p.exp() * (log_p - log_q)).mean(-1),
        ),
        Mistake(
            "cross-entropy",
            "That is the cross-entropy −Σ p log q. Subtract the entropy of p: use "
            "log p − log q.",
            lambda log_p, log_q: -(log_p.exp() * log_q).sum(-1),
        ),
        Mistake(
            "bits",
            "Right in bits; we count in nats. Use natural logarithms.",
            lambda log_p, log_q: _kl(log_p, log_q) / math.log(2),
        ),
    ),
    hint="An average over p of log p − log q: (log_p.exp() * (…)).sum(-1).",
)

OPTIMAL_LOG_Z = Exercise(
    name="optimal_log_z",
    solution="flowrl_lab.exact:optimal_log_z",
    cases=_policy_reference_and_rewards,
    mistakes=(
        Mistake(
            "exact log Z",
            "That is the exact log Z, log Σ π_ref exp(β r). What the squared residual "
            "is smallest at, for samples of the policy, is lower by KL(π ‖ p*).",
            lambda log_probs, ref_log_probs, rewards, *, reward_scale: (  # noqa: ARG005
                torch.logsumexp(ref_log_probs + reward_scale * rewards, -1)
            ),
        ),
        Mistake(
            "sign",
            "The sign is turned round. log Z + log π − β r − log π_ref must be 0 on "
            "average, so log Z = E[β r + log π_ref − log π].",
            lambda log_probs, ref_log_probs, rewards, *, reward_scale: (
                -(
                    log_probs.exp()
                    * (reward_scale * rewards + ref_log_probs - log_probs)
                ).sum(-1)
            ),
        ),
        Mistake(
            "unweighted",
            "You averaged over all states alike. The samples come from the policy: "
            "weigh each state by π = log_probs.exp().",
            lambda log_probs, ref_log_probs, rewards, *, reward_scale: (
                reward_scale * rewards + ref_log_probs - log_probs
            ).mean(-1),
        ),
        Mistake(
            "weighed by the reference",
            "You weighed by π_ref. On-policy training samples from the policy: weigh "
            "by log_probs.exp().",
            lambda log_probs, ref_log_probs, rewards, *, reward_scale: (
                ref_log_probs.exp()
                * (reward_scale * rewards + ref_log_probs - log_probs)
            ).sum(-1),
        ),
        Mistake(
            "no policy term",
            "The policy's own log π is missing from the residual.",
            lambda log_probs, ref_log_probs, rewards, *, reward_scale: (
                log_probs.exp() * (reward_scale * rewards + ref_log_probs)
            ).sum(-1),
        ),
        Mistake(
            "no reference",
            "The reference's log π_ref is missing from the residual.",
            lambda log_probs, ref_log_probs, rewards, *, reward_scale: (  # noqa: ARG005
                log_probs.exp() * (reward_scale * rewards - log_probs)
            ).sum(-1),
        ),
    ),
    hint="A mean squared error is smallest at the mean. Which mean makes log Z + log π "
    "− β r − log π_ref zero, when the states are drawn from π?",
)


def _listed_answers() -> list[Case]:
    """Probabilities of right answers, which need not sum to 1, and n."""
    return [
        ((torch.tensor([0.5, 0.25], dtype=torch.float64), 3), {}),
        ((0.8 * _log_probs(6, seed=16).exp(), 16), {}),
        ((0.4 * _log_probs(3, 5, seed=17).exp(), 4), {}),
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
            (_log_probs(4, seed=18) + math.log(0.45), rewards),
            {"reward_scale": 5.0, "exhaustive": False},
        ),
        (
            (_log_probs(6, seed=19) + math.log(0.8), _rewards(6, 20)),
            {"reward_scale": 2.0, "exhaustive": False},
        ),
        (
            (_log_probs(5, seed=21), _rewards(5, 22)),
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
    hint="math.comb(n − c, k) of the math.comb(n, k) ways to draw k samples hold no "
    "right one.",
)

EXERCISES: dict[str, Exercise] = {
    exercise.name: exercise
    for exercise in (
        EFFECTIVE_NUMBER,
        TOTAL_VARIATION,
        EXACT_TARGET,
        KL_DIVERGENCE,
        OPTIMAL_LOG_Z,
        EXPECTED_DISTINCT,
        REFERENCE_LOG_PARTITION,
        PASS_AT_K,
    )
}

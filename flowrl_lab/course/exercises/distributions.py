"""Notebooks 0 and 1: distributions, their distances, and the target."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from flowrl_lab.course.checking import Exercise, Mistake
from flowrl_lab.course.exercises._cases import (
    one_distribution,
    policy_reference_and_rewards,
    reference_and_rewards,
    two_distributions,
)

__all__ = ["EXERCISES"]


def _entropy(log_probs: Tensor) -> Tensor:
    """As the formula is printed: NaN where a probability is 0."""
    return -(log_probs.exp() * log_probs).sum(-1)


def _either_way(
    name: str, message: str, of_entropy: Callable[[Tensor], Tensor]
) -> tuple[Mistake, ...]:
    """A mistake made on the entropy, with 0 log 0 as NaN, and with it as 0."""

    def counted(log_probs: Tensor) -> Tensor:
        return of_entropy(torch.special.entr(log_probs.exp()).sum(-1))

    return (
        Mistake(name, message, lambda log_probs: of_entropy(_entropy(log_probs))),
        Mistake(name, message, counted),
    )


def _overflows(ref_log_probs, rewards, *, reward_scale) -> Tensor:
    """The formula as it is printed: products and a sum of exponentials."""
    weights = ref_log_probs.exp() * (reward_scale * rewards).exp()
    return (weights / weights.sum(-1, keepdim=True)).log()


def _sum_overflows(ref_log_probs, rewards, *, reward_scale) -> Tensor:
    """Logarithms, but for the sum of what they stand for."""
    scores = ref_log_probs + reward_scale * rewards
    return scores - scores.exp().sum(-1, keepdim=True).log()


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _torch_kl(log_p: Tensor, log_q: Tensor, *, turned: bool, reduction: str) -> Tensor:
    """torch's own KL, whose first argument is the second distribution."""
    pair = (log_q, log_p) if turned else (log_p, log_q)
    with warnings.catch_warnings():  # it warns of its own default
        warnings.simplefilter("ignore")
        return F.kl_div(*pair, reduction=reduction, log_target=True)


EFFECTIVE_NUMBER = Exercise(
    name="effective_number",
    solution="flowrl_lab.metrics:effective_number",
    cases=one_distribution,
    mistakes=(
        Mistake(
            "0 · (−∞)",
            "A state of probability 0 has log p = −∞, and 0 · (−∞) is NaN. Its term is "
            "0: put a 0 in place of that log p, with masked_fill or torch.where.",
            lambda log_probs: torch.exp(_entropy(log_probs)),
        ),
        *_either_way(
            "no exp",
            "That is the entropy itself, in nats. The effective number is its exp: "
            "8 equal states give log 8 = 2.08 nats, and exp(2.08) = 8.",
            lambda entropy: entropy,
        ),
        *_either_way(
            "base 2",
            "You took the logarithm to base 2, and e to the power of that: of 8 equal "
            "states exp(3) = 20.09. log_p holds natural logarithms already.",
            lambda entropy: torch.exp(entropy / math.log(2)),
        ),
        *_either_way(
            "sign",
            "You lost a minus sign: entropy is −Σ p log p, never negative, so its "
            "exp is never below 1.",
            lambda entropy: torch.exp(-entropy),
        ),
        *_either_way(
            "minus outside exp",
            "The minus must stand inside exp: −Σ p log p first, its exp after that. A "
            "number of states cannot be negative.",
            lambda entropy: -torch.exp(-entropy),
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
    "dimension; take its exp at the end. Where p is 0 put 0 in place of log p.",
)

TOTAL_VARIATION = Exercise(
    name="total_variation",
    solution="flowrl_lab.metrics:total_variation",
    cases=two_distributions,
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
    hint="What moves is probability, not its logarithm: turn both arguments into "
    "probabilities before you subtract. The states are the last dimension, `dim=-1`; "
    "what stands before it is a batch, and stays.",
)

EXACT_TARGET = Exercise(
    name="exact_target",
    solution="flowrl_lab.exact:exact_target",
    cases=reference_and_rewards,
    mistakes=(
        *(
            Mistake(
                name,
                "The formula is right, but at reward_scale = 1000 it gives NaN or −∞: "
                "exp(β r) does not fit into a number. Stay with logarithms: add log "
                "π_ref and β r, then subtract their logsumexp (log_softmax does that).",
                wrong,
            )
            for name, wrong in (
                ("overflow", _overflows),
                ("overflow of the sum", _sum_overflows),
            )
        ),
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
            "divided by the reference",
            "log π_ref has the wrong sign: the target is π_ref · exp(β r), so it is "
            "added, as β r is.",
            lambda ref_log_probs, rewards, *, reward_scale: torch.log_softmax(
                reward_scale * rewards - ref_log_probs, -1
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
    cases=two_distributions,
    mistakes=(
        Mistake(
            "direction",
            "That is KL(q ‖ p), the other direction. KL(p ‖ q) weighs by its *first* "
            "argument: Σ p (log p − log q). (`F.kl_div(a, b)` is KL(b ‖ a): it takes "
            "its arguments the other way round.)",
            lambda log_p, log_q: _kl(log_q, log_p),
        ),
        *(
            Mistake(
                f"F.kl_div, {order} {reduction}",
                f"That is `F.kl_div` with reduction={reduction!r}, one number for "
                "everything. It has two traps: `F.kl_div(a, b)` is KL(b ‖ a), and its "
                "reductions mix the rows. Take reduction='none' and sum over the last "
                "dimension, or write Σ p (log p − log q).",
                partial(_torch_kl, turned=order == "turned", reduction=reduction),
            )
            for order in ("as given", "turned")
            for reduction in ("sum", "batchmean", "mean")
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
    cases=policy_reference_and_rewards,
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
            "sign of the reference",
            "log π_ref has the wrong sign: log Z = E[β r + log π_ref − log π].",
            lambda log_probs, ref_log_probs, rewards, *, reward_scale: (
                log_probs.exp() * (reward_scale * rewards - ref_log_probs - log_probs)
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

EXERCISES = (
    EFFECTIVE_NUMBER,
    TOTAL_VARIATION,
    EXACT_TARGET,
    KL_DIVERGENCE,
    OPTIMAL_LOG_Z,
)

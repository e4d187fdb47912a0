"""Measures of distance between distributions, and of diversity.

Distances take log-probabilities along the last axis and are in nats.  They are
exact, not estimated: sampled estimates belong beside them, with their noise.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Hashable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowrl_lab._validation import (
    bad_input,
    check_count,
    check_finite,
    check_number,
    check_tensor,
)
from flowrl_lab.tokens import at_least_float32

__all__ = [
    "distinct_n",
    "distinct_solutions",
    "effective_number",
    "effective_sample_size",
    "exact_pass_at_k",
    "expected_distinct",
    "js_divergence",
    "kl_divergence",
    "mode_coverage",
    "pass_at_k",
    "self_bleu",
    "total_variation",
    "vendi_score",
]

# How far probabilities may add up to something else than 1 through rounding.
SUM_TOLERANCE = 1e-3


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
    _check_log_probs("log_p", log_p)
    _check_log_probs("log_q", log_q, like=log_p, complete=False)
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
    _check_log_probs("log_p", log_p)
    _check_log_probs("log_q", log_q, like=log_p)
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
    _check_log_probs("log_p", log_p)
    _check_log_probs("log_q", log_q, like=log_p)
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
    _check_log_probs("log_p", log_p)
    # KL to the constant 1 is minus the entropy.
    return (-_kl(log_p, torch.zeros_like(log_p))).exp()


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
    dims = max(getattr(log_weights, "ndim", 1), 1)
    check_tensor("log_weights", log_weights, (None,) * dims, "[..., N]: log weights")
    check_finite({"log_weights": log_weights})
    log_weights = at_least_float32(log_weights)
    # In logs: the weights themselves would overflow long before their ratio does.
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
    _check_log_probs("log_probs", log_probs, complete=False)
    _check_log_probs("target_log_probs", target_log_probs, like=log_probs)
    check_tensor("groups", groups, log_probs.shape, "[N]: one group per answer", "int")
    check_number("share", share, high=1.0, above=True)
    named = groups >= 0
    size = int(groups.max()) + 1
    index = groups[named].long()
    probs, target = (
        at_least_float32(values[named].detach()).exp()
        for values in (log_probs, target_log_probs)
    )
    held = probs.new_zeros(max(size, 1)).index_add(0, index, probs)
    wanted = target.new_zeros(max(size, 1)).index_add(0, index, target)
    counted = wanted > 0
    if not bool(counted.any()):
        raise bad_input(
            "groups",
            "names no group with target probability",
            "at least one group >= 0 with p* > 0",
            "give every answer of a mode the same number, from 0 on",
        )
    return (held[counted] >= share * wanted[counted]).to(wanted.dtype).mean()


def pass_at_k(
    num_samples: int, num_correct: int | Int[Tensor, "*prompts"], k: int
) -> float | Float[Tensor, "*prompts"]:
    """Unbiased estimate of the chance that k samples hold a correct one.

        1 - C(n - c, k) / C(n, k)

    Source: Codex (arXiv 2107.03374) Eq. 1.  Whole numbers are used throughout, so
    that nothing overflows and small chances keep all their digits.

    Args:
        num_samples: n, samples drawn.
        num_correct: c, how many were correct; a tensor for several prompts.
        k: samples that would be drawn, at most n.

    Returns:
        A float, or a float64 tensor in the shape of ``num_correct``.

    Raises:
        ValueError: k > n, c outside 0..n, anything that is not a whole number.
    """
    check_count("num_samples", num_samples)
    check_count("k", k)
    if k > num_samples:
        raise bad_input(
            "k",
            f"is {k} with {num_samples} samples",
            "at most the number of samples",
            "draw more samples; the estimate does not exist beyond them",
        )
    if not isinstance(num_correct, Tensor):
        return _pass_at_k(num_samples, num_correct, k)
    check_tensor("num_correct", num_correct, num_correct.shape, "any", "int")
    flat = [_pass_at_k(num_samples, c, k) for c in num_correct.flatten().tolist()]
    return torch.tensor(flat, dtype=torch.float64).view(num_correct.shape)


def _pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    check_count("num_correct", num_correct, least=0)
    if num_correct > num_samples:
        raise bad_input(
            "num_correct",
            f"is {num_correct} of {num_samples} samples",
            "at most the number of samples",
            "check the order of the arguments: (num_samples, num_correct, k)",
        )
    ways = math.comb(num_samples, k)
    return (ways - math.comb(num_samples - num_correct, k)) / ways


def exact_pass_at_k(
    success_prob: float | Float[Tensor, "*prompts"], k: int
) -> float | Float[Tensor, "*prompts"]:
    """Chance that k independent samples hold a correct one, from the exact accuracy.

        1 - (1 - a)^k

    Args:
        success_prob: a, between 0 and 1 (rounding up to 1e-6 beyond is forgiven).
        k: samples drawn.

    Returns:
        A float for a float, a tensor for a tensor.

    Raises:
        ValueError: a outside [0, 1], k below 1.
    """
    check_count("k", k)
    given = torch.as_tensor(success_prob)
    prob = given if isinstance(success_prob, Tensor) else given.double()
    _check_probs("success_prob", prob)
    prob = prob.clamp(0.0, 1.0)
    # log1p and expm1 keep the digits of tiny probabilities.
    chance = -torch.expm1(k * torch.log1p(-prob))
    return chance if isinstance(success_prob, Tensor) else chance.item()


def expected_distinct(
    probs: Float[Tensor, "*batch N"], num_samples: int
) -> Float[Tensor, "*batch"]:
    """Expected number of different listed answers among n samples.

        Σ_i 1 - (1 - p_i)^n

    Of the target's own probabilities it is the noise floor: what a perfect sampler
    would find with n samples.

    Args:
        probs: probabilities (not logs) of the answers that count; may sum to less
            than 1.
        num_samples: n.

    Returns:
        Between 0 and min(n, N).

    Raises:
        ValueError: probabilities outside [0, 1], NaN, num_samples below 1.
    """
    check_tensor("probs", probs, _any_batch(probs), "[..., N]: one per answer")
    return exact_pass_at_k(probs, num_samples).sum(dim=-1)


def distinct_solutions(
    solutions: Sequence[Hashable], correct: Sequence[bool] | None = None
) -> int:
    """Number of different solutions among samples, counting only correct ones.

    Args:
        solutions: one per sample, in a form where equal means the same solution.
        correct: which samples are correct; None counts all.

    Returns:
        The count.

    Raises:
        ValueError: lists of different lengths.
    """
    if correct is None:
        return len(set(solutions))
    if len(correct) != len(solutions):
        raise bad_input(
            "correct",
            f"has {len(correct)} entries",
            f"{len(solutions)}, one per solution",
            "judge every sample",
        )
    return len({s for s, good in zip(solutions, correct, strict=True) if good})


def distinct_n(sequences: Sequence[Sequence[Hashable]], n: int) -> float:
    """Share of the n-grams that are different from each other (1: no repetition).

        |set of n-grams| / |n-grams|, over all sequences together

    Source: Li et al. (arXiv 1510.03055), "distinct-n".

    Args:
        sequences: token lists or strings.
        n: length of the n-grams.

    Returns:
        Between 0 and 1.

    Raises:
        ValueError: n below 1, no sequence as long as n.
    """
    check_count("n", n)
    grams = [tuple(s[i : i + n]) for s in sequences for i in range(len(s) - n + 1)]
    if not grams:
        raise bad_input(
            "sequences",
            f"hold no {n}-gram",
            f"a sequence of at least {n} tokens",
            "use a smaller n or longer samples",
        )
    return len(set(grams)) / len(grams)


def self_bleu(texts: Sequence[str]) -> float:
    """Mean BLEU of each text against all others: 1 when all are the same.

    Source: Zhu et al. (arXiv 1802.01886).  Needs ``sacrebleu``.

    Args:
        texts: at least two samples.

    Returns:
        Between 0 (nothing shared) and 1.

    Raises:
        ValueError: fewer than two texts.
        ImportError: sacrebleu is missing; the message says what to install.
    """
    if len(texts) < 2:
        raise bad_input(
            "texts", f"has {len(texts)} entries", "at least 2", "draw more samples"
        )
    try:
        sacrebleu = importlib.import_module("sacrebleu")
    except ImportError as error:
        raise ImportError(
            'self_bleu needs sacrebleu. Fix: pip install "flowrl-lab[metrics]".'
        ) from error
    scores = [
        sacrebleu.sentence_bleu(text, [*texts[:i], *texts[i + 1 :]]).score
        for i, text in enumerate(texts)
    ]
    return sum(scores) / len(scores) / 100


def vendi_score(similarity: Float[Tensor, "n n"]) -> float:
    """Effective number of different samples, from how alike each pair is.

        exp(-Σ_i λ_i log λ_i),   λ: eigenvalues of K / n

    Source: Vendi score (arXiv 2210.02410) Eq. 1.

    Args:
        similarity: K, symmetric, with ones on the diagonal.

    Returns:
        Between 1 (all alike) and n (nothing in common).

    Raises:
        ValueError: not square, not symmetric, a diagonal other than 1, NaN, or
            clearly negative eigenvalues (K is no similarity kernel).
    """
    check_tensor("similarity", similarity, (None, None), "[n, n]: one row per sample")
    size = similarity.shape[0]
    check_tensor("similarity", similarity, (size, size), "a square matrix")
    kernel = similarity.detach().cpu().double()
    diagonal = torch.ones(size, dtype=kernel.dtype)
    if not torch.allclose(kernel, kernel.T, atol=1e-5) or not torch.allclose(
        kernel.diagonal(), diagonal, atol=1e-5
    ):
        raise bad_input(
            "similarity",
            "is not symmetric with ones on the diagonal (or holds NaN)",
            "K[i, j] = K[j, i] and K[i, i] = 1",
            "divide by the norms: K[i, j] / sqrt(K[i, i] K[j, j])",
        )
    eigenvalues = torch.linalg.eigvalsh(kernel / size)
    if eigenvalues.min() < -1e-5:
        raise bad_input(
            "similarity",
            f"has an eigenvalue of {eigenvalues.min().item():.3g}",
            "none below 0",
            "use a positive semi-definite kernel, such as a cosine of features",
        )
    return torch.special.entr(eigenvalues.clamp(min=0.0)).sum().exp().item()


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    # Where p is 0 both logs may be -inf; their difference must not be formed.
    nothing = torch.isneginf(log_p)
    gap = log_p.masked_fill(nothing, 0.0) - log_q.masked_fill(nothing, 0.0)
    return (log_p.exp() * gap).sum(dim=-1)


def _check_log_probs(
    name: str, values: Tensor, *, like: Tensor | None = None, complete: bool = True
) -> None:
    shape = _any_batch(values) if like is None else like.shape
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


def _any_batch(values: object) -> tuple[None, ...]:
    """A shape of any lengths, with at least the one axis that is summed over."""
    return (None,) * max(getattr(values, "ndim", 1), 1)


def _check_probs(name: str, probs: Tensor) -> None:
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

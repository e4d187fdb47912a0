"""Right answers and different answers, counted exactly and from samples."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowrl_lab._validation import (
    bad_input,
    check_count,
    check_flag,
    check_hashable,
    check_items,
    check_number,
    check_range,
    check_readable,
    check_tensor,
    holds,
)
from flowrl_lab.metrics._checks import SUM_TOLERANCE, check_probs
from flowrl_lab.tokens import at_least_float32

__all__ = [
    "accuracy_after_filter",
    "answer_entropy",
    "avg_at_k",
    "distinct_solutions",
    "exact_pass_at_k",
    "expected_answer_entropy",
    "expected_coverage",
    "expected_distinct",
    "pass_at_k",
]

# Binomials of more samples than this, or a sum over their counts, take too long.
MOST_SAMPLES = 100_000


def pass_at_k(
    num_samples: int, num_correct: int | Int[Tensor, "*prompts"], k: int
) -> float | Float[Tensor, "*prompts"]:
    """Unbiased estimate of the chance that k samples hold a correct one.

        1 - C(n - c, k) / C(n, k)

    Source: Codex (arXiv 2107.03374) Eq. 1.  Whole numbers are used throughout, so
    that nothing overflows and small chances keep all their digits.

    Args:
        num_samples: n, samples drawn, at most 100,000.
        num_correct: c, how many were correct; a tensor for several prompts.
        k: samples that would be drawn, at most n.

    Returns:
        A float, or a float64 tensor in the shape of ``num_correct``.

    Raises:
        ValueError: k > n, c outside 0..n, anything that is not a whole number.
    """
    check_count("num_samples", num_samples, most=MOST_SAMPLES)
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
    check_tensor("num_correct", num_correct, (...,), "any", "int")
    check_readable("num_correct", num_correct)
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
    if isinstance(success_prob, Tensor):
        check_tensor("success_prob", success_prob, (...,), "any")
        check_probs("success_prob", success_prob)
        return _chance_of_one(success_prob, k)
    check_number("success_prob", success_prob, low=-1e-6, high=1 + 1e-6)
    prob = torch.tensor(success_prob, dtype=torch.float64)
    return _chance_of_one(prob, k).item()


def _chance_of_one(prob: Tensor, k: int) -> Tensor:
    # log1p and expm1 keep the digits of tiny probabilities.
    return -torch.expm1(k * torch.log1p(-at_least_float32(prob).clamp(0.0, 1.0)))


def accuracy_after_filter(
    fits_prob: Float[Tensor, "*prompts"],
    right_prob: Float[Tensor, "*prompts"],
    num_samples: int,
) -> Float[Tensor, "*prompts"]:
    """Chance that the submitted program is right, if a visible test chooses it.

        (1 - (1 - f)^n) · a / f

    Of n samples one that passes the visible test is submitted (none passes: wrong).
    It passes the hidden test with a / f, whatever n is: more samples help to pass
    the visible test, not to be right.

    Source: filtering by example tests as in AlphaCode (arXiv 2203.07814) section 4.5,
    without its clustering.

    Args:
        fits_prob: f, the chance that one sample passes the visible test.
        right_prob: a <= f, that it passes the hidden test as well.
        num_samples: n, how many are drawn.

    Returns:
        Between 0 and 1; 0 where f is 0.

    Raises:
        ValueError: probabilities outside [0, 1], a > f, num_samples below 1.
    """
    check_count("num_samples", num_samples)
    check_tensor("fits_prob", fits_prob, (...,), "any")
    check_tensor("right_prob", right_prob, fits_prob, "one for each fits_prob")
    check_probs("fits_prob", fits_prob)
    check_probs("right_prob", right_prob)
    if not holds(right_prob <= fits_prob + 1e-6):
        raise bad_input(
            "right_prob",
            "is larger than fits_prob",
            "at most fits_prob: what is right passes the visible test too",
            "check the order of the arguments: (fits_prob, right_prob, num_samples)",
        )
    passed = _chance_of_one(fits_prob, num_samples)
    # f = 0 means a = 0: nothing is submitted.
    return passed * right_prob / fits_prob.clamp(min=torch.finfo(fits_prob.dtype).tiny)


def avg_at_k(correct: Sequence[bool]) -> float:
    """Avg@k: the share of k samples of one prompt that are correct.

        c / k

    It estimates pass@1, with less noise the larger k is.  It is accuracy: the k
    samples may all be the same.

    Args:
        correct: True or False for each sample; k is their number.

    Returns:
        Between 0 and 1.

    Raises:
        ValueError: no sample, anything but True and False.
    """
    check_items("correct", correct, bool, "marks, True or False")
    return sum(correct) / len(correct)


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
        num_samples: n, how many are drawn.

    Returns:
        Between 0 and min(n, N).

    Raises:
        ValueError: probabilities outside [0, 1], NaN, num_samples below 1.
    """
    check_count("num_samples", num_samples)
    check_tensor("probs", probs, (..., None), "[..., N]: one per answer")
    check_probs("probs", probs)
    return _chance_of_one(probs, num_samples).sum(dim=-1)


def expected_coverage(
    probs: Float[Tensor, "*batch N"], num_samples: int
) -> Float[Tensor, "*batch"]:
    """Expected share of the listed answers that n samples find.

        (1/N) Σ_i 1 - (1 - p_i)^n

    Args:
        probs: probabilities (not logs) of the N answers; may sum to less than 1.
        num_samples: n, how many are drawn.

    Returns:
        Between 0 and 1.

    Raises:
        ValueError: as ``expected_distinct``.
    """
    return expected_distinct(probs, num_samples) / probs.shape[-1]


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
        ValueError: no lists, lists of different lengths, solutions that cannot be
            compared.
    """
    check_hashable("solutions", solutions, "solutions", least=0)
    if correct is None:
        return len(set(solutions))
    check_items("correct", correct, bool, "marks, True or False", least=0)
    if len(correct) != len(solutions):
        raise bad_input(
            "correct",
            f"has {len(correct)} entries",
            f"{len(solutions)}, one per solution",
            "judge every sample",
        )
    return len({s for s, good in zip(solutions, correct, strict=True) if good})


def answer_entropy(
    solutions: Sequence[Hashable], *, bias_corrected: bool = False
) -> float:
    """Entropy of the answers in a sample, as their counts suggest it.

        -Σ_i (c_i/n) log(c_i/n)     [ + (K - 1) / 2n ]

    The plain ("plug-in") value is too low on average: n samples cannot show more
    than log n nats, and answers that were not drawn are missing.  With
    ``bias_corrected`` the Miller-Madow term is added, which repairs the first order
    in 1/n only.

    Source: Miller (1955), "Note on the bias of information estimates".

    Args:
        solutions: one per sample, in a form where equal means the same answer.
        bias_corrected: add (K - 1) / 2n, K being the different answers seen.

    Returns:
        Nats, at least 0.

    Raises:
        ValueError: no sample, or samples that cannot be compared.
    """
    check_hashable("solutions", solutions, "samples")
    check_flag("bias_corrected", bias_corrected)
    n = len(solutions)
    shares = [count / n for count in Counter(solutions).values()]
    plain = -math.fsum(share * math.log(share) for share in shares)
    return max(plain, 0.0) + bias_corrected * (len(shares) - 1) / (2 * n)


def expected_answer_entropy(
    probs: Float[Tensor, "*batch N"], num_samples: int
) -> Float[Tensor, "*batch"]:
    """What ``answer_entropy`` gives on average for n samples: its noise floor.

        -Σ_i Σ_{c=1..n} Binomial(c; n, p_i) (c/n) log(c/n)

    Each count is binomial, so the expectation is a double sum, and exact.

    Args:
        probs: probabilities (not logs) of all answers; they sum to 1.
        num_samples: n, at most 100,000.

    Returns:
        Nats; below the entropy of ``probs``, and below log n.

    Raises:
        ValueError: probabilities that do not sum to 1, num_samples below 1.
    """
    check_count("num_samples", num_samples, most=MOST_SAMPLES)
    check_tensor("probs", probs, (..., None), "[..., N]: one per answer")
    check_probs("probs", probs)
    check_range(
        "probs.sum(-1)",
        probs.sum(dim=-1),
        1 - SUM_TOLERANCE,
        1 + SUM_TOLERANCE,
        "probabilities of all answers, which sum to 1",
        "add the probability of what is not listed, or divide by the sum",
    )
    chance = at_least_float32(probs).clamp(0.0, 1.0)
    total = torch.zeros_like(chance.sum(dim=-1))
    for count in range(1, num_samples):  # a count of n adds n/n log 1 = 0
        # in logs, for the binomial coefficients of a large n
        ways = math.lgamma(num_samples + 1) - math.lgamma(count + 1)
        ways -= math.lgamma(num_samples - count + 1)
        hits = torch.special.xlogy(count, chance)
        misses = torch.special.xlog1py(num_samples - count, -chance)
        share = count / num_samples
        seen = (ways + hits + misses).exp().sum(dim=-1)
        total = total - share * math.log(share) * seen
    return total

"""Notebook 10: noise floors, n-grams, Vendi, and a distance that has a root."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowrl_lab.course.checking import Case, Exercise, Mistake
from flowrl_lab.course.exercises._cases import draw_log_probs, two_distributions
from flowrl_lab.metrics import ngram_similarity

__all__ = ["EXERCISES"]


def _known_answers() -> list[Case]:
    """Probabilities of all answers, and a number of samples."""
    return [
        ((torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64), 3), {}),
        ((torch.full((8,), 1 / 8, dtype=torch.float64), 5), {}),
        ((draw_log_probs(3, 5, seed=60).exp(), 4), {}),
    ]


def _over_counts(probs: Tensor, n: int, value, coefficient=math.comb) -> Tensor:
    """Σ_i Σ_c coefficient(n, c) p^c (1-p)^(n-c) value(c)."""
    terms = [
        coefficient(n, c) * probs**c * (1 - probs) ** (n - c) * value(c)
        for c in range(1, n + 1)
    ]
    return torch.stack(terms).sum(dim=0).sum(dim=-1)


def _entropy(probs: Tensor) -> Tensor:
    return torch.special.entr(probs).sum(dim=-1)


EXPECTED_ANSWER_ENTROPY = Exercise(
    name="expected_answer_entropy",
    solution="flowrl_lab.metrics:expected_answer_entropy",
    cases=_known_answers,
    mistakes=(
        Mistake(
            "the true entropy",
            "That is the entropy of the distribution itself, which n samples do not "
            "show: num_samples has no effect on your result.",
            lambda probs, num_samples: _entropy(probs),  # noqa: ARG005
        ),
        Mistake(
            "first order only",
            "H − (N − 1)/2n is the bias to first order in 1/n, and far off for few "
            "samples. Sum over the counts c instead; the result is exact.",
            lambda probs, num_samples: (
                _entropy(probs) - (probs.shape[-1] - 1) / (2 * num_samples)
            ),
        ),
        Mistake(
            "no binomial coefficient",
            "p^c (1−p)^(n−c) is the chance of one *order* of hits and misses. There "
            "are math.comb(n, c) orders.",
            lambda probs, num_samples: _over_counts(
                probs,
                num_samples,
                lambda c: -c / num_samples * math.log(c / num_samples),
                lambda _n, _c: 1,
            ),
        ),
        Mistake(
            "not weighed by the share",
            "You averaged −log(c/n). In an entropy each −log of a share is weighed by "
            "the share c/n itself.",
            lambda probs, num_samples: _over_counts(
                probs, num_samples, lambda c: -math.log(c / num_samples)
            ),
        ),
        Mistake(
            "counts instead of shares",
            "The logarithm is of the share c/n, not of the count c.",
            lambda probs, num_samples: _over_counts(
                probs, num_samples, lambda c: -c / num_samples * math.log(c)
            ),
        ),
        Mistake(
            "sign",
            "Entropy is −Σ share · log share, never negative. You lost the minus.",
            lambda probs, num_samples: _over_counts(
                probs,
                num_samples,
                lambda c: c / num_samples * math.log(c / num_samples),
            ),
        ),
        Mistake(
            "not per row",
            "You summed over everything. With a batch, sum over the last dimension "
            "only: [..., N] gives [...].",
            lambda probs, num_samples: _over_counts(
                probs,
                num_samples,
                lambda c: -c / num_samples * math.log(c / num_samples),
            ).sum(),
        ),
    ),
    hint="Answer i appears c times with probability "
    "math.comb(n, c) · p_i^c · (1 − p_i)^(n − c), and then adds −(c/n) log(c/n). Sum "
    "over c = 1 … n, then over the answers: expectations add up.",
)


def _token_lists() -> list[Case]:
    words = [[3, 1, 2, 3, 1], [2, 3, 1], [2, 3, 1]]
    return [
        ((["4+8*2", "8+4*2", "4+8*2", "6*4"], 2), {}),
        ((words, 1), {}),
        ((words, 3), {}),
        ((["aaaa", "abab", "b"], 2), {}),
    ]


def _grams(sequences, n: int) -> list[list[tuple]]:
    return [
        [tuple(s[i : i + n]) for i in range(len(s) - n + 1)]
        for s in map(list, sequences)
    ]


def _pool(sequences, n: int) -> list[tuple]:
    return [gram for grams in _grams(sequences, n) for gram in grams]


def _share_of_kinds(grams: list) -> float:
    return len(set(grams)) / max(len(grams), 1)


DISTINCT_N = Exercise(
    name="distinct_n",
    solution="flowrl_lab.metrics:distinct_n",
    cases=_token_lists,
    mistakes=(
        Mistake(
            "text by text",
            "You took the share in each text and averaged. Two copies of one text then "
            "look as varied as one. Pool the n-grams of all texts first.",
            lambda sequences, n: (
                sum(map(_share_of_kinds, _grams(sequences, n))) / len(sequences)
            ),
        ),
        Mistake(
            "across the borders",
            "You joined the texts first, which makes n-grams of the end of one and the "
            "beginning of the next. Nobody wrote those.",
            lambda sequences, n: _share_of_kinds(
                _grams([[token for s in sequences for token in s]], n)[0]
            ),
        ),
        Mistake(
            "the last one is missing",
            "A text of length L has L − n + 1 n-grams; the last of each is missing.",
            lambda sequences, n: _share_of_kinds(
                [gram for grams in _grams(sequences, n) for gram in grams[:-1]]
            ),
        ),
        Mistake(
            "not a share",
            "That is the number of different n-grams. Divide by how many there are.",
            lambda sequences, n: float(len(set(_pool(sequences, n)))),
        ),
        Mistake(
            "the repeated share",
            "That is the share of repetitions; 1 minus it was asked for.",
            lambda sequences, n: 1 - _share_of_kinds(_pool(sequences, n)),
        ),
        Mistake(
            "whole texts",
            "You compared whole texts. distinct-n looks at pieces of n tokens.",
            lambda sequences, n: _share_of_kinds([tuple(s) for s in sequences]),  # noqa: ARG005
        ),
        Mistake(
            "only n in steps",
            "Your pieces do not overlap. An n-gram starts at *every* token.",
            lambda sequences, n: _share_of_kinds(
                [gram for grams in _grams(sequences, n) for gram in grams[::n]]
            ),
        ),
    ),
    hint="s[i : i + n] for i in range(len(s) − n + 1) are the n-grams of one text. "
    "Collect those of all texts as tuples; a set keeps one of each kind.",
)


def _kernels() -> list[Case]:
    kinds = torch.tensor([0, 0, 0, 1])
    same = (kinds[:, None] == kinds[None, :]).double()
    texts = ["4+8*2", "8+4*2", "6*4", "6*4", "9+8+7"]
    return [
        ((torch.eye(4, dtype=torch.float64),), {}),
        ((same,), {}),
        ((ngram_similarity(texts),), {}),
    ]


def _spectrum(similarity: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(similarity / len(similarity)).clamp(min=0.0)


def _off_diagonal_mean(similarity: Tensor) -> Tensor:
    n = len(similarity)
    return (similarity.sum() - n) / (n * (n - 1))


VENDI_SCORE = Exercise(
    name="vendi_score",
    solution="flowrl_lab.metrics:vendi_score",
    cases=_kernels,
    mistakes=(
        Mistake(
            "0 log 0",
            "You took the log of an eigenvalue that is 0, or that rounding has made "
            "slightly negative, and got NaN. 0 log 0 counts as 0: clamp the λ at 0; "
            "`torch.special.entr` does the rest.",
            lambda similarity: (
                (-_spectrum(similarity) * _spectrum(similarity).log()).sum().exp()
            ),
        ),
        Mistake(
            "not divided by n",
            "The eigenvalues of K add up to n. Divide K by n first: then they add up "
            "to 1, as probabilities do.",
            lambda similarity: (
                torch.special.entr(torch.linalg.eigvalsh(similarity).clamp(min=0.0))
                .sum()
                .exp()
            ),
        ),
        Mistake(
            "no exp",
            "That is the entropy of the eigenvalues, in nats. The score is its exp, a "
            "number of texts.",
            lambda similarity: _entropy(_spectrum(similarity)),
        ),
        Mistake(
            "sum of squares",
            "1/Σ λ² is a relative (the score of order 2). Here it is the exp of the "
            "entropy.",
            lambda similarity: 1 / _spectrum(similarity).square().sum(),
        ),
        Mistake(
            "rank",
            "You counted the eigenvalues above 0. A tiny one must hardly count: weigh "
            "each log λ by λ.",
            lambda similarity: torch.linalg.matrix_rank(similarity).double(),
        ),
        Mistake(
            "row sums",
            "You took the entropy of the row sums. They say who is popular, not how "
            "many kinds there are; the eigenvalues do.",
            lambda similarity: _entropy(similarity.sum(-1) / similarity.sum()).exp(),
        ),
        Mistake(
            "mean difference",
            "That is the mean difference of a pair. It cannot tell two groups from "
            "many lone texts that are half alike.",
            lambda similarity: 1 - _off_diagonal_mean(similarity),
        ),
    ),
    hint="torch.linalg.eigvalsh(K / n) gives the λ, which add up to 1. Then "
    "exp(−Σ λ log λ); torch.special.entr(λ) is −λ log λ and knows that 0 log 0 = 0 "
    "(rounding may make a λ slightly negative: clamp it).",
)


def _with_lost_answers() -> list[Case]:
    """Two distributions, and two of which each lacks an answer of the other's."""
    first, second = (
        torch.tensor(probs, dtype=torch.float64).log()
        for probs in ([0.5, 0.0, 0.3, 0.2, 0.0], [0.1, 0.6, 0.0, 0.3, 0.0])
    )
    return [*two_distributions(), ((first, second), {})]


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    terms = log_p.exp() * (log_p - log_q)
    return torch.where(log_p.isinf(), 0.0, terms).sum(-1)


def _middle(log_p: Tensor, log_q: Tensor) -> Tensor:
    return torch.logaddexp(log_p, log_q) - math.log(2)


def _jsd(log_p: Tensor, log_q: Tensor) -> Tensor:
    log_m = _middle(log_p, log_q)
    return (_kl(log_p, log_m) + _kl(log_q, log_m)) / 2


JS_DIVERGENCE = Exercise(
    name="js_divergence",
    solution="flowrl_lab.metrics:js_divergence",
    cases=_with_lost_answers,
    mistakes=(
        Mistake(
            "0 · (−∞)",
            "An answer of probability 0 has log-probability −∞, and 0 · (−∞) is NaN. "
            "Its term is 0: pick those places out with torch.where.",
            lambda log_p, log_q: (
                (
                    log_p.exp() * (log_p - _middle(log_p, log_q))
                    + log_q.exp() * (log_q - _middle(log_p, log_q))
                ).sum(-1)
                / 2
            ),
        ),
        Mistake(
            "the root",
            "That is the square root, the *distance* (scipy's `jensenshannon` gives "
            "it). The divergence is its square.",
            lambda log_p, log_q: _jsd(log_p, log_q).sqrt(),
        ),
        Mistake(
            "bits",
            "You divided by log 2: that is bits. Here all distances are in nats.",
            lambda log_p, log_q: _jsd(log_p, log_q) / math.log(2),
        ),
        Mistake(
            "no half",
            "Each of the two KLs counts one half.",
            lambda log_p, log_q: 2 * _jsd(log_p, log_q),
        ),
        Mistake(
            "mean of the logs",
            "You averaged the log-probabilities. m is the mean of the *probabilities*: "
            "torch.logaddexp(log_p, log_q) − log 2.",
            lambda log_p, log_q: (
                (_kl(log_p, (log_p + log_q) / 2) + _kl(log_q, (log_p + log_q) / 2)) / 2
            ),
        ),
        Mistake(
            "one side",
            "That is KL(p ‖ m) alone. Add KL(q ‖ m), and halve.",
            lambda log_p, log_q: _kl(log_p, _middle(log_p, log_q)),
        ),
        Mistake(
            "Jeffreys",
            "That is the mean of the two KLs between p and q, which is infinite as "
            "soon as one lacks an answer. Compare each with the middle m.",
            lambda log_p, log_q: (_kl(log_p, log_q) + _kl(log_q, log_p)) / 2,
        ),
        Mistake(
            "turned round",
            "You averaged over m: KL(m ‖ p). It is KL(p ‖ m), averaged over p.",
            lambda log_p, log_q: (
                (_kl(_middle(log_p, log_q), log_p) + _kl(_middle(log_p, log_q), log_q))
                / 2
            ),
        ),
    ),
    hint="log m = torch.logaddexp(log_p, log_q) − log 2, then the mean of KL(p ‖ m) "
    "and KL(q ‖ m) over the last dimension; where p is 0 a term is 0 (torch.where).",
)

EXERCISES = (EXPECTED_ANSWER_ENTROPY, DISTINCT_N, VENDI_SCORE, JS_DIVERGENCE)

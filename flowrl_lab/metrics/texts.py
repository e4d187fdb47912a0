"""How varied texts look: n-grams, BLEU among themselves, compression, Vendi.

These see letters, not mathematics: they cannot tell a right answer from a wrong one,
nor 2+3 from 3+2.  Notebook 10 measures how far they can be trusted.
"""

from __future__ import annotations

import importlib
import zlib
from collections import Counter
from collections.abc import Hashable, Sequence
from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor

from flowrl_lab._validation import (
    bad_input,
    check_choice,
    check_count,
    check_finite,
    check_hashable,
    check_items,
    check_readable,
    check_tensor,
)

__all__ = [
    "compression_ratio",
    "distinct_n",
    "ngram_similarity",
    "self_bleu",
    "vendi_score",
]

TOKENIZERS = ("13a", "char")
_ORDERS = 4  # BLEU compares n-grams of 1 to 4 tokens


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
    _check_sequences(sequences)
    grams = [tuple(s[i : i + n]) for s in sequences for i in range(len(s) - n + 1)]
    if not grams:
        raise bad_input(
            "sequences",
            f"hold no {n}-gram",
            f"a sequence of at least {n} tokens",
            "use a smaller n or longer samples",
        )
    return len(set(grams)) / len(grams)


def self_bleu(texts: Sequence[str], *, tokenize: str = "13a") -> float:
    """Mean BLEU of each text against all others: 1 when all are the same.

    Source: Zhu et al. (arXiv 1802.01886).  Needs ``sacrebleu``, whose sentence BLEU
    of each text with the others as references this equals; the references are
    counted once for all texts, so the time grows with n, not with n².

    Args:
        texts: at least two samples.
        tokenize: sacrebleu's "13a" for words, "char" for characters.

    Returns:
        Between 0 (nothing shared) and 1.

    Raises:
        ValueError: fewer than two texts, an unknown tokenizer.
        ImportError: sacrebleu is missing; the message says what to install.
    """
    check_items("texts", texts, str, "texts", least=2)
    check_choice("tokenize", tokenize, TOKENIZERS)
    bleu = _import_bleu().BLEU(tokenize=tokenize, effective_order=True)
    copies = Counter(texts)
    tokens = {text: bleu.tokenizer(text.rstrip()).split() for text in copies}
    grams = {text: _count_grams(words) for text, words in tokens.items()}
    best = _best_counts(grams)
    lengths = Counter(len(tokens[text]) for text in texts)
    total = 0.0
    for text, times in copies.items():
        if times > 1:  # a copy of it is among the references
            total += times * float(bool(tokens[text]))
            continue
        size = len(tokens[text])
        near = min(
            (other for other in lengths if other != size or lengths[other] > 1),
            key=lambda other: (abs(other - size), other),
        )
        score = bleu.compute_bleu(
            *_matches(text, grams[text], best), size, near, "exp", None, True
        )
        total += score.score / 100
    return total / len(texts)


def _import_bleu() -> ModuleType:
    try:
        return importlib.import_module("sacrebleu")
    except ImportError as error:
        raise ImportError(
            'self_bleu needs sacrebleu. Fix: pip install "flowrl-lab[metrics]".'
        ) from error


def _count_grams(tokens: Sequence[str]) -> Counter[tuple[str, ...]]:
    return Counter(
        tuple(tokens[i : i + n])
        for n in range(1, _ORDERS + 1)
        for i in range(len(tokens) - n + 1)
    )


def _best_counts(grams: dict[str, Counter]) -> dict[tuple, tuple[int, str, int]]:
    """Of each n-gram: its largest count, the text that has it, and the next largest."""
    best: dict[tuple, tuple[int, str, int]] = {}
    for text, counts in grams.items():
        for gram, count in counts.items():
            first, owner, second = best.get(gram, (0, "", 0))
            if count > first:
                best[gram] = (count, text, first)
            elif count > second:
                best[gram] = (first, owner, count)
    return best


def _matches(text: str, counts: Counter, best: dict) -> tuple[list[int], list[int]]:
    """n-grams of ``text`` that another text has too, and all of them, by length."""
    correct, total = [0] * _ORDERS, [0] * _ORDERS
    for gram, count in counts.items():
        first, owner, second = best[gram]
        total[len(gram) - 1] += count
        correct[len(gram) - 1] += min(count, second if owner == text else first)
    return correct, total


def compression_ratio(texts: Sequence[str]) -> float:
    """How much shorter the texts become when compressed together.

        bytes of all texts / bytes after zlib

    Source: Shaib et al. (arXiv 2403.00553).  The larger, the more repetition.  It
    grows with the number of texts, so compare equal numbers only.

    Args:
        texts: at least one sample; they are joined by line ends.

    Returns:
        Above 0; below 1 for a few short texts, which gain nothing.

    Raises:
        ValueError: no text.
    """
    check_items("texts", texts, str, "texts")
    # half a surrogate pair, as broken decoding leaves it, is a text as well
    content = "\n".join(texts).encode(errors="surrogatepass")
    return max(len(content), 1) / len(zlib.compress(content, 9))


def ngram_similarity(
    sequences: Sequence[Sequence[Hashable]], n: int = 2
) -> Float[Tensor, "n n"]:
    """Cosine of the n-gram counts of each pair: a kernel for ``vendi_score``.

        K_ij = c_i · c_j / (‖c_i‖ ‖c_j‖),   c: counts of the n-grams of length 1 to n

    Args:
        sequences: token lists or strings.
        n: longest n-grams that count.

    Returns:
        Symmetric, ones on the diagonal, 0 where nothing is shared; two empty
        sequences are alike.

    Raises:
        ValueError: no sequence, n below 1.
    """
    check_count("n", n)
    _check_sequences(sequences)
    counts = [
        Counter(
            tuple(sequence[i : i + size])
            for size in range(1, min(n, len(sequence)) + 1)
            for i in range(len(sequence) - size + 1)
        )
        or Counter({(): 1})  # so that an empty text has a direction too
        for sequence in sequences
    ]
    column = {
        gram: i for i, gram in enumerate(dict.fromkeys(g for c in counts for g in c))
    }
    table = torch.zeros(len(counts), len(column), dtype=torch.float64)
    for row, count in enumerate(counts):
        places = torch.tensor([column[gram] for gram in count])
        table[row, places] = torch.tensor(list(count.values()), dtype=torch.float64)
    table = table / table.norm(dim=1, keepdim=True)
    return table @ table.T


def _check_sequences(sequences: Sequence) -> None:
    check_items("sequences", sequences, Sequence, "texts or token lists")
    for place, sequence in enumerate(sequences):
        if not isinstance(sequence, str | bytes):
            check_hashable(f"sequences[{place}]", sequence, "tokens", least=0)


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
    check_finite({"similarity": similarity})
    check_readable("similarity", similarity)
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

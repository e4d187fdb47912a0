"""What samples say about a policy, beside what a perfect sampler would score.

The referee (``flowrl_lab.evaluation``) needs a list of all right answers.  Where there
is none, one draws samples and computes some figure of them.  Such a figure means
little by itself: at 64 samples even the target does not show all its answers.  So
each stands beside its *noise floor*, the same figure of as many samples of the exact
target, in exact expectation where a formula exists and by simulation elsewhere.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl_lab._validation import bad_input, check_count
from flowrl_lab.measuring.samples import PromptSamples, draw_perfect_samples
from flowrl_lab.measuring.tables import Metric
from flowrl_lab.metrics import (
    Judge,
    answer_entropy,
    avg_at_k,
    compression_ratio,
    distinct_n,
    distinct_solutions,
    exact_pass_at_k,
    expected_answer_entropy,
    expected_distinct,
    judge_diversity,
    ngram_similarity,
    pass_at_k,
    self_bleu,
    vendi_score,
)
from flowrl_lab.types import AnswerSet

__all__ = [
    "SampleMeasure",
    "SampledFigure",
    "make_measures",
    "measure_samples",
]

PASS_AT = (4, 16, 64, 256)
# What a formula says n samples give on average: (probabilities, answers, n) -> value.
Expectation = Callable[[Tensor, AnswerSet, int], float]


@dataclass(frozen=True)
class SampleMeasure(Metric):
    """One figure of a prompt's samples.

    Attributes:
        of: samples of one prompt -> value; NaN where it does not apply.
        expected: its exact mean over draws from known probabilities, if there is a
            formula.
    """

    of: Callable[[PromptSamples], float]
    expected: Expectation | None = None


@dataclass(frozen=True)
class SampledFigure(Metric):
    """A measure of a policy's samples, mean over prompts.

    Attributes:
        value: what the samples gave.
        error: its standard error over the prompts; NaN for a single one.
        exact: what it is on average over draws from this very policy; NaN where
            no formula or no list of answers exists.
        perfect: what as many samples of the exact target give on average; NaN
            where the target is not known.
        perfect_spread: the standard deviation of that from draw to draw, of the
            mean over these prompts.
        prompts: how many prompts the measure applied to.
        untrained: what as many samples of the untrained policy gave, where there is
            no list of answers; else NaN.
        untrained_error: the standard error of that over the prompts.
    """

    value: float
    error: float
    exact: float
    perfect: float
    perfect_spread: float
    prompts: int
    untrained: float = math.nan
    untrained_error: float = math.nan


# ---------------------------------------------------------------------- measures


def make_measures(
    num_samples: int,
    *,
    words: bool = False,
    texts: bool = True,
    ideas: bool = True,
    judge: Judge | None = None,
) -> tuple[SampleMeasure, ...]:
    """The measures of n samples a prompt.

    Args:
        num_samples: n; pass@k is measured for k up to n.
        words: n-grams are of words instead of characters.
        texts: include what looks at the letters; pointless for one-token answers.
        ideas: include the count of different ideas.
        judge: include the rating of this judge.
    """
    check_count("num_samples", num_samples, least=2)
    n, ways = num_samples, SampleMeasure
    found = [ways("avg", f"Avg@{n} (accuracy)", "↑", _average, _expected_accuracy)]
    found += [_pass_measure(k) for k in PASS_AT if k <= n]
    found.append(
        ways("distinct_correct", "different right answers", "↑", _right, _expect_right)
    )
    if ideas:
        words_for = "different right ideas"
        found.append(
            ways("distinct_ideas", words_for, "↑", _count_ideas, _expected_ideas)
        )
    nats = "entropy of the answers, nats"
    found += [
        ways(
            "entropy", nats, "", lambda s: answer_entropy(s.solutions), _expect_entropy
        ),
        ways(
            *("entropy_correct", "entropy of the right ones, nats", "↑"),
            _right_entropy,
            _expect_right_entropy,
        ),
    ]
    if texts:
        found += _text_measures(words)
    if judge is not None:

        def rate(s: PromptSamples) -> float:
            return judge_diversity(judge, {s.prompt: s.texts})[s.prompt]

        found.append(ways("judge", "judge's rating, 1 to 5", "↑", rate))
    return tuple(found)


def _pass_measure(k: int) -> SampleMeasure:
    def seen(s: PromptSamples) -> float:
        return pass_at_k(len(s), sum(s.correct), k)

    def expected(probs: Tensor, answers: AnswerSet, n: int) -> float:
        return exact_pass_at_k(_expected_accuracy(probs, answers, n), k)

    return SampleMeasure(f"pass@{k}", f"pass@{k}, unbiased", "↑", seen, expected)


def _text_measures(words: bool) -> list[SampleMeasure]:
    unit, tokenize = ("words", "13a") if words else ("characters", "char")

    def units(s: PromptSamples) -> list:
        return [text.split() if words else text for text in s.texts]

    def distinct_pairs(s: PromptSamples) -> float:
        sequences = units(s)
        long_enough = max(map(len, sequences)) >= 2
        return distinct_n(sequences, 2) if long_enough else math.nan

    def bleu(s: PromptSamples) -> float:
        return self_bleu(s.texts, tokenize=tokenize)

    def vendi(s: PromptSamples) -> float:
        return vendi_score(ngram_similarity(units(s), 2))

    def compression(s: PromptSamples) -> float:
        return compression_ratio(s.texts)

    return [
        SampleMeasure("distinct_2", f"distinct-2 ({unit})", "↑", distinct_pairs),
        SampleMeasure("self_bleu", f"self-BLEU ({unit})", "↓", bleu),
        SampleMeasure("compression", "compression ratio", "↓", compression),
        SampleMeasure("vendi", f"Vendi score (pairs of {unit})", "↑", vendi),
    ]


def _average(s: PromptSamples) -> float:
    return avg_at_k(s.correct)


def _right(s: PromptSamples) -> float:
    return float(distinct_solutions(s.solutions, s.correct))


def _entropy(s: PromptSamples) -> float:
    return answer_entropy(s.solutions)


def _right_entropy(s: PromptSamples) -> float:
    return answer_entropy(s.right) if s.right else math.nan


def _expect_right(probs: Tensor, answers: AnswerSet, n: int) -> float:
    return expected_distinct(probs[answers.correct], n).item()


def _expected_accuracy(probs: Tensor, answers: AnswerSet, _n: int) -> float:
    return probs[answers.correct].sum().clamp(max=1.0).item()


def _count_ideas(s: PromptSamples) -> float:
    known = [idea is not None for idea in s.ideas]
    good = [a and b for a, b in zip(known, s.correct, strict=True)]
    return float(distinct_solutions(s.ideas, good))


def _expected_ideas(probs: Tensor, answers: AnswerSet, n: int) -> float:
    counted = answers.correct & (answers.groups >= 0)
    size = int(answers.groups.max()) + 1
    if size < 1:
        return 0.0
    held = probs.new_zeros(size)
    held = held.index_add(0, answers.groups[counted].long(), probs[counted])
    return expected_distinct(held.clamp(max=1.0), n).item()


def _expect_entropy(probs: Tensor, _answers: AnswerSet, n: int) -> float:
    if probs.sum().item() < 1 - 1e-3:  # what is not listed has an unknown entropy
        return math.nan
    return expected_answer_entropy(probs, n).item()


def _expect_right_entropy(probs: Tensor, answers: AnswerSet, n: int) -> float:
    """Where all n samples are right; else their number is chance, without a formula."""
    return _expect_entropy(probs[answers.correct], answers, n)


# ----------------------------------------------------------------------- figures


def measure_samples(
    samples: Sequence[PromptSamples],
    measures: Sequence[SampleMeasure],
    *,
    answers: Sequence[AnswerSet] = (),
    log_probs: Sequence[Tensor] = (),
    targets: Sequence[Tensor] = (),
    repeats: int = 20,
    generator: torch.Generator | None = None,
) -> list[SampledFigure]:
    """Every measure of the samples, mean over prompts, beside its noise floor.

    Args:
        samples: of at least one prompt, equally many of each.
        measures: as ``make_measures`` gives them.
        answers: the listed answers of the same prompts; empty where there is no
            list, and then nothing is said about a perfect sampler.
        log_probs: the policy's own log π of them, for ``exact``; empty leaves it out.
        targets: log p* of them.
        repeats: draws of a perfect sampler for each prompt.
        generator: for those draws; None takes one with seed 0.

    Raises:
        ValueError: no samples, or unequally many; repeats below 2.
    """
    sizes = {len(s) for s in samples}
    if len(sizes) != 1:
        got = f"have {sorted(sizes)} texts a prompt"
        fix = "draw equally many samples of every prompt"
        raise bad_input("samples", got, "the same of each", fix)
    check_count("repeats", repeats, least=2)
    if generator is None:
        generator = torch.Generator().manual_seed(0)
    num_samples = sizes.pop()
    perfect = [
        [
            draw_perfect_samples(listed, target, num_samples, generator=generator)
            for listed, target in zip(answers, targets, strict=True)
        ]
        for _ in range(repeats if answers else 0)
    ]
    return [
        _figure(measure, samples, answers, log_probs, targets, perfect)
        for measure in measures
    ]


def _figure(measure, samples, answers, log_probs, targets, perfect) -> SampledFigure:
    values = [measure.of(s) for s in samples]
    kept = [value for value in values if not math.isnan(value)]
    error = math.nan
    if len(kept) > 1:
        error = statistics.stdev(kept) / math.sqrt(len(kept))
    drawn = [_mean([measure.of(s) for s in draw]) for draw in perfect]
    floor = _mean(drawn)
    known = _expect(measure, answers, targets, len(samples[0]))
    return SampledFigure(
        *(measure.key, measure.heading, measure.better),
        value=_mean(values),
        error=error,
        exact=_expect(measure, answers, log_probs, len(samples[0])),
        perfect=floor if math.isnan(known) else known,
        perfect_spread=_spread(drawn),
        prompts=len(kept),
    )


def _expect(measure, answers, log_probs, num_samples: int) -> float:
    """The exact mean over prompts; NaN without a formula or probabilities."""
    if measure.expected is None or not len(log_probs):
        return math.nan
    return statistics.fmean(
        measure.expected(row.exp(), listed, num_samples)
        for listed, row in zip(answers, log_probs, strict=True)
    )


def _mean(values: Sequence[float]) -> float:
    """Without NaNs; NaN if nothing is left."""
    kept = [value for value in values if not math.isnan(value)]
    return statistics.fmean(kept) if kept else math.nan


def _spread(values: Sequence[float]) -> float:
    kept = [value for value in values if not math.isnan(value)]
    return statistics.stdev(kept) if len(kept) > 1 else math.nan

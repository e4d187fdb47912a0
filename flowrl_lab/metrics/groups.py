"""What the completions of a batch say of their groups: no list of answers is needed."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Hashable, Sequence

from flowrl_lab._validation import bad_input, check_count
from flowrl_lab.metrics.answers import pass_at_k

__all__ = ["GROUP_MEASURES", "GROUP_PASS_AT", "measure_groups", "spread_of_mean"]

GROUP_PASS_AT = (4, 16, 64)
# measure -> what it is, in words
GROUP_MEASURES = {
    "right": "right, sampled",
    "distinct": "different right answers in a group",
    "effective": "effective right answers in a group",
    "idle": "share of groups with equal rewards",
    **{f"pass@{k}": f"pass@{k}, sampled" for k in GROUP_PASS_AT},
}


def measure_groups(
    answers: Sequence[Hashable | None], rewards: Sequence[float], num_generations: int
) -> dict[str, list[float]]:
    """Measures of each group of G completions of one prompt.

    ``distinct`` counts the different right answers; ``effective`` is
    exp(-Σ c/n log c/n) of their counts c among the group's n right ones, 0 without
    any: how many equally frequent answers they are worth.  ``idle`` is 1 where all
    rewards of the group are equal, so that methods that compare them learn nothing.
    All but ``right`` and ``pass@k`` depend on G: compare at equal G only.

    Args:
        answers: B answers; equal ones are the same, None is a wrong one.
        rewards: B rewards; the rows of a group are contiguous.
        num_generations: G, the size of a group.

    Returns:
        measure -> its B/G values; ``pass@k`` (unbiased) for the k of
        ``GROUP_PASS_AT`` up to G.

    Raises:
        ValueError: rows that do not share out into groups.
    """
    check_count("num_generations", num_generations)
    rows = len(answers)
    if not rows or rows % num_generations or len(rewards) != rows:
        raise bad_input(
            "answers",
            f"has {rows} entries beside {len(rewards)} rewards",
            f"as many, in whole groups of {num_generations}",
            "pass one answer and one reward a completion",
        )
    starts = range(0, rows, num_generations)
    groups = [
        _measure(
            answers[start : start + num_generations],
            rewards[start : start + num_generations],
        )
        for start in starts
    ]
    return {name: [group[name] for group in groups] for name in groups[0]}


def _measure(answers, rewards) -> dict[str, float]:
    """The measures of one group."""
    size = len(answers)
    counts = Counter(answer for answer in answers if answer is not None)
    right = counts.total()
    entropy = 0.0
    if right:
        entropy = (
            math.log(right)
            - math.fsum(count * math.log(count) for count in counts.values()) / right
        )
    found = {
        "right": right / size,
        "distinct": float(len(counts)),
        "effective": math.exp(max(entropy, 0.0)) if right else 0.0,
        "idle": float(min(rewards) == max(rewards)),
    }
    passes = [k for k in GROUP_PASS_AT if k <= size]
    return found | {f"pass@{k}": pass_at_k(size, right, k) for k in passes}


def spread_of_mean(values: Sequence[float], groups: int) -> float:
    """Standard deviation of the mean over ``groups`` groups, from some groups' values.

    0 where a single value says nothing of it.
    """
    if len(values) < 2:
        return 0.0
    return statistics.stdev(values) / math.sqrt(groups)

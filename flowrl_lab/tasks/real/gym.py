"""Tasks written by reasoning-gym: countdown, arithmetic, word problems.

reasoning-gym makes the problems; its judges are not used, because they hand the
model's text to a parser that evaluates it.  Ours do not.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

from flowrl_lab.tasks.real.answers import NotAnAnswer, evaluate_arithmetic
from flowrl_lab.tasks.real.math_checking import read_number
from flowrl_lab.tasks.real.word_problems import AnswerTask, Problem, known_value
from flowrl_lab.tasks.text import DEFAULT_WEIGHTS, RewardWeights

__all__ = ["FAMILIES", "Arithmetic", "Countdown", "GsmSymbolic"]

# reasoning-gym's sets whose answers are single numbers.
FAMILIES = (
    *("basic_arithmetic", "chain_sum", "decimal_chain_sum", "products"),
    *("gcd", "lcm", "leg_counting", "count_bits"),
)
# Problems of the two splits come from seeds that never meet: an item's own seed is
# the set's seed plus its number.
HELDOUT_SEED = 1_000_000_000


def make_problems(dataset: str, size: int, seed: int, **settings: Any):
    """``size`` problems of one of reasoning-gym's sets, the same for the same seed.

    Raises:
        ImportError: where reasoning-gym is missing.
        ValueError: for settings that it refuses.
    """
    try:
        with warnings.catch_warnings():  # of a package it needs, on its first import
            warnings.simplefilter("ignore", SyntaxWarning)
            import reasoning_gym
    except ImportError as error:
        raise ImportError(
            f"this task is written by reasoning-gym, which does not load ({error}). "
            "Fix: pip install 'flowrl-lab[gym]' (it builds one package in C, so a "
            "C compiler must be there)."
        ) from error
    try:
        items = reasoning_gym.create_dataset(dataset, size=size, seed=seed, **settings)
    except (AssertionError, TypeError) as error:
        raise ValueError(
            f"settings of {dataset!r} are {settings}; reasoning-gym says: {error}. "
            "Fix: see the set's configuration in reasoning-gym."
        ) from error
    return _read_items(items)


def _read_items(items) -> Iterator[Problem]:
    for item in items:
        yield Problem(item["question"], str(item["answer"]), item["metadata"])


class _GymTask(AnswerTask):
    """Both splits of one of reasoning-gym's sets."""

    def __init__(
        self,
        dataset: str,
        *,
        name: str,
        size: int,
        heldout_size: int,
        seed: int,
        settings: dict[str, Any],
        **options: Any,
    ) -> None:
        for label, value in (("size", size), ("heldout_size", heldout_size)):
            if value < 1:
                raise ValueError(
                    f"{label} is {value}; expected at least 1. Fix: ask for a problem."
                )
        if not 0 <= seed < HELDOUT_SEED - size:
            raise ValueError(
                f"seed is {seed}; expected 0 to {HELDOUT_SEED - size - 1}. Fix: a "
                "smaller one."
            )
        train, heldout = (
            [self.prepare(p) for p in make_problems(dataset, count, start, **settings)]
            for count, start in ((size, seed), (heldout_size, HELDOUT_SEED + seed))
        )
        super().__init__(name, train, heldout, **options)

    def prepare(self, problem: Problem) -> Problem:
        """What a task changes about a problem before it is asked."""
        return problem


class Countdown(_GymTask):
    """Make a target from all of the given numbers with ``+ - * /``.

    Many expressions are right.  They are worked out exactly, as fractions, by a
    parser that knows nothing else.

    Args:
        numbers: how many numbers each problem gives.
        largest: the largest of them.
        target: smallest and largest target.
        size: problems to train on.
        heldout_size: problems to test on.
        seed: other problems for another seed.
        weights: what correctness, format and length count.
        max_completion_tokens: how long a completion may be.
    """

    def __init__(
        self,
        *,
        numbers: int = 3,
        largest: int = 20,
        target: tuple[int, int] = (10, 99),
        size: int = 500,
        heldout_size: int = 100,
        seed: int = 0,
        weights: RewardWeights = DEFAULT_WEIGHTS,
        max_completion_tokens: int = 128,
    ) -> None:
        super().__init__(
            "countdown",
            name="countdown",
            size=size,
            heldout_size=heldout_size,
            seed=seed,
            settings={
                "min_numbers": numbers,
                "max_numbers": numbers,
                "max_value": largest,
                "min_target": target[0],
                "max_target": target[1],
            },
            judge=judge_countdown,
            weights=weights,
            max_completion_tokens=max_completion_tokens,
        )

    def prepare(self, problem: Problem) -> Problem:
        numbers = ", ".join(map(str, problem.facts["numbers"]))
        question = (
            f"Make {problem.facts['target']} from the numbers {numbers}. Use each of "
            "them exactly once, with + - * / and brackets. The result is the "
            "expression alone, without =."
        )
        return Problem(question, problem.answer, problem.facts)


def judge_countdown(problem: Problem, answer: str) -> tuple[bool, str]:
    """Whether an expression uses just the given numbers and makes the target."""
    value, used = evaluate_arithmetic(answer)
    given = Counter(problem.facts["numbers"])
    if used != given:
        wrong = sorted((used - given).elements()) or sorted((given - used).elements())
        what = "not given" if used - given else "not used"
        return False, f"{', '.join(map(str, wrong))} {what}"
    target = problem.facts["target"]
    return value == target, "right" if value == target else f"makes {value}"


class Arithmetic(_GymTask):
    """One of reasoning-gym's arithmetic families; answers are compared exactly.

    Args:
        family: one of FAMILIES.
        size: problems to train on.
        heldout_size: problems to test on.
        seed: other problems for another seed.
        settings: passed on to the family's configuration in reasoning-gym.
        weights: what correctness, format and length count.
        max_completion_tokens: how long a completion may be.
    """

    def __init__(
        self,
        *,
        family: str = "basic_arithmetic",
        size: int = 500,
        heldout_size: int = 100,
        seed: int = 0,
        settings: dict[str, Any] | None = None,
        weights: RewardWeights = DEFAULT_WEIGHTS,
        max_completion_tokens: int = 128,
    ) -> None:
        if family not in FAMILIES:
            raise ValueError(
                f"family is {family!r}; expected one of {', '.join(FAMILIES)}. Fix: "
                "pick one whose answers are numbers."
            )
        super().__init__(
            family,
            name=f"arithmetic-{family}",
            size=size,
            heldout_size=heldout_size,
            seed=seed,
            settings=settings or {},
            judge=judge_number,
            key=known_value,
            weights=weights,
            max_completion_tokens=max_completion_tokens,
        )


def judge_number(problem: Problem, answer: str) -> tuple[bool, str]:
    """Whether an answer is the known number."""
    value, known = read_number(answer), read_number(problem.answer)
    if value is None:
        raise NotAnAnswer("the answer is not a number")
    return value == known, "right" if value == known else "another number"


class GsmSymbolic(_GymTask):
    """Word problems in the style of GSM8K, from templates with fresh numbers.

    Args:
        size: problems to train on.
        heldout_size: problems to test on, of the same templates.
        seed: other problems for another seed.
        weights: what correctness, format and length count.
        max_completion_tokens: how long a completion may be.
    """

    def __init__(
        self,
        *,
        size: int = 500,
        heldout_size: int = 100,
        seed: int = 0,
        weights: RewardWeights = DEFAULT_WEIGHTS,
        max_completion_tokens: int = 256,
    ) -> None:
        super().__init__(
            "gsm_symbolic",
            name="gsm_symbolic",
            size=size,
            heldout_size=heldout_size,
            seed=seed,
            settings={},
            weights=weights,
            max_completion_tokens=max_completion_tokens,
        )

    def prepare(self, problem: Problem) -> Problem:
        # Its closing request is for another way of answering than ours.
        question = problem.question.partition(" Give the result as")[0]
        return Problem(question, problem.answer, problem.facts)

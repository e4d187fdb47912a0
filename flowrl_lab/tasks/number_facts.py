"""Maths for a real language model: name a number from 1 to 99 with a property.

    A multiple of 7: 42        A number between 30 and 50 that ends in 4: 44

Each kind of question has parameters.  Some values of them are never trained on: what
is judged is whether a rule was learned, and how many of its answers are in use.  The
kinds were chosen by how often untrained SmolLM2-135M is right on training questions:
a quarter of the time over all, and hardly ever with two conditions on a multiple.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence

from flowrl_lab._validation import check_choice, check_items
from flowrl_lab.tasks.few_shot import FewShotTask, no_question

__all__ = ["FACTS", "NumberFacts"]

NUMBERS = range(1, 100)

# how it is asked, values of its parameters, and whether n is an answer
FACTS: dict[str, tuple[Sequence[tuple[int, ...]], Callable[..., bool]]] = {
    "A multiple of {}": (
        [(k,) for k in range(2, 14)],
        lambda n, k: n % k == 0,
    ),
    "A number that ends in {}": (
        [(d,) for d in range(10)],
        lambda n, d: n % 10 == d,
    ),
    "A number larger than {}": (
        [(a,) for a in range(52, 95, 4)],
        lambda n, a: n > a,
    ),
    "A number between {} and {}": (
        [(a, a + w) for a in range(10, 75, 13) for w in (8, 15, 24)],
        lambda n, a, b: a < n < b,
    ),
    "A divisor of {}": (
        [(m,) for m in (12, 16, 18, 20, 24, 30, 32, 36, 40, 42, 48, 60, 72, 84, 90)],
        lambda n, m: m % n == 0,
    ),
    "A number whose digits add up to {}": (
        [(s,) for s in range(3, 16)],
        lambda n, s: n // 10 + n % 10 == s,
    ),
    "A number larger than {} that ends in {}": (
        [(a, d) for a in (20, 40) for d in range(1, 10)],
        lambda n, a, d: n > a and n % 10 == d,
    ),
}


def _order(question: str) -> str:
    """A fixed shuffle, so that the first k questions are a fair sample of all."""
    return hashlib.sha256(question.encode()).hexdigest()


@functools.cache
def _answers() -> dict[str, tuple[str, ...]]:
    """Question -> its answers in rising order."""
    return {
        fact.format(*values): tuple(str(n) for n in NUMBERS if holds(n, *values))
        for fact, (parameters, holds) in FACTS.items()
        for values in parameters
    }


class NumberFacts(FewShotTask):
    """Name a number with a property: up to 47 right answers a question, all listed.

    Args:
        facts: keys of ``FACTS``, the kinds of question to ask.

    Raises:
        ValueError: no kind of question, or one that does not exist.
    """

    name = "number_facts"
    max_completion_tokens = 4  # two digits and the end of the line, and one to spare
    examples = (
        ("A multiple of 15", "45"),
        ("A number that ends in 2", "72"),
        ("A number larger than 60", "88"),
        ("A number between 11 and 32", "17"),
        ("A divisor of 28", "14"),
        ("A number whose digits add up to 8", "53"),
        ("A multiple of 3 larger than 50", "69"),
        ("A number larger than 30 that ends in 6", "96"),
    )

    def __init__(self, facts: Sequence[str] = tuple(FACTS)):
        facts = (facts,) if isinstance(facts, str) else facts
        check_items("facts", facts, str, "kinds of question")
        shown = {question for question, _ in self.examples}
        train, heldout = [], []
        for fact in facts:
            check_choice("facts", fact, FACTS)
            asked = {fact.format(*values) for values in FACTS[fact][0]} - shown
            third = len(asked) // 3
            heldout += sorted(asked, key=_order)[:third]
            train += sorted(asked, key=_order)[third:]
        super().__init__(sorted(train, key=_order), sorted(heldout, key=_order))

    def answer_texts(self, prompt: str) -> tuple[str, ...]:
        """Every right answer, in rising order."""
        if prompt not in _answers():
            raise no_question(prompt, self.name)
        return _answers()[prompt]

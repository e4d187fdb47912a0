"""Every program of the stack language, sorted by what it computes.

There are only 125 lists of three digits, so a program's meaning is a table of 125
outputs, and two programs mean the same if and only if their tables are equal: nothing
is left to chance.  The search goes through the programs word by word and does
each word once for each *meaning* on the stack instead of once for each program, which
makes all 35,743 programs of up to five words a matter of a second.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from flowrl_lab.tasks.stack_language import (
    BINARY,
    DIGITS,
    LENGTH,
    MAX_STACK,
    MAX_WORDS,
    UNARY,
    WORDS,
    Numbers,
)

__all__ = ["Meaning", "from_number", "meanings", "to_number"]

INPUTS = DIGITS**LENGTH


def to_number(numbers: Numbers) -> int:
    """The place of a list among all 125: ``(3, 1, 2)`` -> 3·25 + 1·5 + 2 = 82."""
    return functools.reduce(lambda value, digit: value * DIGITS + digit, numbers, 0)


def from_number(number: int) -> Numbers:
    """82 -> ``(3, 1, 2)``."""
    places = range(LENGTH - 1, -1, -1)
    return tuple(number // DIGITS**place % DIGITS for place in places)


@dataclass(frozen=True)
class Meaning:
    """One function that programs compute, with all programs that compute it.

    Attributes:
        outputs: ``[125]``, the output of each input, as its place (``to_number``).
        programs: the programs, shortest first.
        classes: for each program, the words that are left of it once its detours
            are cut out, in alphabetical order; see ``_Search.class_of``.
    """

    outputs: np.ndarray
    programs: tuple[str, ...]
    classes: tuple[str, ...]

    @property
    def simplest(self) -> str:
        """The first of the shortest programs."""
        return self.programs[0]


@functools.cache
def meanings(max_words: int = MAX_WORDS) -> tuple[Meaning, ...]:
    """All functions that programs of up to ``max_words`` words compute.

    Returns:
        One ``Meaning`` each, simplest first (length, then alphabet).
    """
    search, found = _Search(), {}
    for program, path in search.programs(max_words):
        if program and len(path[-1]) == 1:
            found.setdefault(path[-1][0], []).append((program, search.class_of(path)))
    rows = []
    for value, pairs in found.items():
        pairs.sort(key=lambda pair: (len(pair[0]), pair[0]))
        rows.append(Meaning(search.values[value], *zip(*pairs, strict=True)))
    return tuple(sorted(rows, key=lambda row: (len(row.simplest), row.simplest)))


class _Search:
    """Meanings are interned: equal tables get the same number, the input's is 0."""

    def __init__(self) -> None:
        everything = np.arange(INPUTS)
        self.values = [everything]
        self._numbers = {everything.tobytes(): 0}
        self._digits = np.array([from_number(n) for n in range(INPUTS)]).T
        self._place_values = DIGITS ** np.arange(LENGTH)[::-1]
        self._unary = {
            word: np.array([to_number(do(from_number(n))) for n in range(INPUTS)])
            for word, do in UNARY.items()
        }
        self._binary = {
            word: np.array([[do(a, b) for b in range(DIGITS)] for a in range(DIGITS)])
            for word, do in BINARY.items()
        }
        self._done: dict[tuple, int] = {}

    def _intern(self, table: np.ndarray) -> int:
        number = self._numbers.setdefault(table.tobytes(), len(self.values))
        if number == len(self.values):
            self.values.append(table)
        return number

    def _compute(self, word: str, *operands: int) -> int:
        """The meaning of ``word`` applied to meanings, worked out once."""
        key = (word, *operands)
        if key not in self._done:
            tables = [self.values[operand] for operand in operands]
            if word in UNARY:
                table = self._unary[word][tables[0]]
            else:
                below, top = (self._digits[:, t] for t in tables)
                table = self._place_values @ self._binary[word][below, top]
            self._done[key] = self._intern(table)
        return self._done[key]

    def step(self, stack: tuple[int, ...], word: str) -> tuple[int, ...] | None:
        """The stack of meanings after ``word``; None where it is a mistake."""
        if word in UNARY:
            return (*stack[:-1], self._compute(word, stack[-1]))
        if word in BINARY:
            if len(stack) < 2:
                return None
            return (*stack[:-2], self._compute(word, *stack[-2:]))
        if len(stack) == MAX_STACK:
            return None
        return (*stack, stack[-1] if word == "d" else 0)

    def programs(self, max_words: int) -> Iterator[tuple[str, tuple]]:
        """Every start of a program that can still end well, with its stacks."""
        level = [("", ((0,),))]
        for length in range(max_words + 1):
            yield from level
            left = max_words - length - 1
            longer = []
            for program, path in level:
                for word in WORDS:
                    stack = self.step(path[-1], word)
                    # each list too many needs a word to go away
                    if stack is not None and len(stack) - 1 <= left:
                        longer.append((program + word, (*path, stack)))
            level = longer

    def class_of(self, path: tuple) -> str:
        """What a program does, without detours and without its order.

        A detour leads back to a stack that was there before (``rr``, ``d-i+``, ...):
        it is cut out.  Each step that is left counts as the first word of the
        language that would do the same there (``i`` right at the start is ``d``).
        Sorted, they are the class: programs that differ by detours, by synonyms or
        by the order of steps share it.
        """
        kept: list = []
        for stack in path:
            if stack in kept:
                del kept[kept.index(stack) + 1 :]
            else:
                kept.append(stack)
        words = [
            next(word for word in WORDS if self.step(before, word) == after)
            for before, after in itertools.pairwise(kept)
        ]
        return "".join(sorted(words))

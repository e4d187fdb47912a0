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


@dataclass(frozen=True, eq=False)
class Meaning:
    """One function that programs compute, with all programs that compute it.

    Attributes:
        outputs: ``[125]``, the output of each input, as its place (``to_number``).
        programs: the programs, shortest first.
    """

    outputs: np.ndarray
    programs: tuple[str, ...]

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        """For each program the words left of it, sorted; see ``_Search.class_of``."""
        return tuple(_search().class_of(program) for program in self.programs)

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
    search, found = _search(), {}
    for program, stack in search.programs(max_words):
        if program and len(stack) == 1:
            found.setdefault(stack[0], []).append(program)
    rows = [
        Meaning(search.values[value], tuple(sorted(rows, key=lambda p: (len(p), p))))
        for value, rows in found.items()
    ]
    return tuple(sorted(rows, key=lambda row: (len(row.simplest), row.simplest)))


@functools.cache
def _search() -> _Search:
    return _Search()


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
        self._words: dict[tuple, str] = {}

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

    def programs(self, max_words: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every start of a program that can still end well, with its stack."""
        level = [("", (0,))]
        for length in range(max_words + 1):
            yield from level
            left = max_words - length - 1
            # each list too many needs a word to go away
            level = [
                (program + word, longer)
                for program, stack in level
                for word in WORDS
                if (longer := self.step(stack, word)) and len(longer) - 1 <= left
            ]

    def class_of(self, program: str) -> str:
        """What a program does, without detours and without its order.

        A detour leads back to a stack that was there before (``rr``, ``d-i+``, ...):
        it is cut out.  Each step that is left counts as the first word of the
        language that would do the same there (``i`` right at the start is ``d``).
        Sorted, they are the class: programs that differ by detours, by synonyms or
        by the order of steps share it.
        """
        kept = [(0,)]
        for word in program:
            kept.append(self.step(kept[-1], word))
            del kept[kept.index(kept[-1]) + 1 :]  # all of a detour, if this ends one
        pairs = itertools.pairwise(kept)
        return "".join(sorted(self._first_word(*pair) for pair in pairs))

    def _first_word(self, before: tuple[int, ...], after: tuple[int, ...]) -> str:
        if (before, after) not in self._words:
            self._words[before, after] = next(
                word for word in WORDS if self.step(before, word) == after
            )
        return self._words[before, after]

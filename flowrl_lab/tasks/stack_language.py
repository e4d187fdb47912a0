"""A tiny programming language: one letter a word, lists of three digits on a stack.

A program is a row of words without spaces.  The stack starts with the input list;
each word takes its lists off the top and puts its result there; at the end exactly
one list must be left, the output::

    dr+     [312] -> d [312 312] -> r [312 213] -> + [020]

There are five digits, 0 to 4, and they count round: 4 + 1 is 0, as on a clock with
five hours. The language is total: a program has at most
``MAX_WORDS`` words and each is done once, so every program ends; a value is always
three digits, and the stack never holds more than ``MAX_STACK`` of them.  Text that is
no program gets a reason, never an exception: it is what a model wrote, and models
write anything.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

__all__ = [
    "BINARY",
    "DIGITS",
    "LENGTH",
    "MAX_STACK",
    "MAX_WORDS",
    "UNARY",
    "WORDS",
    "Numbers",
    "Outcome",
    "ProgramError",
    "do_word",
    "run_program",
    "trace_program",
]

DIGITS = 5
LENGTH = 3
MAX_WORDS = 5
MAX_STACK = 3

Numbers = tuple[int, int, int]

WORDS: dict[str, str] = {
    "r": "reverse the list",
    "s": "sort it, smallest first",
    "t": "turn it: the first number goes to the end",
    "u": "up: one more to each number",
    "w": "twice each number",
    "n": "negate each number: 1↔4, 2↔3, and 0 stays",
    "m": "running maximum: the largest number so far at each place",
    "d": "put a second copy on the stack",
    "i": "put the input on the stack again",
    "+": "add the two top lists, number by number",
    "-": "take the top list away from the one below it, number by number",
}
# What takes one list and gives one; what takes two, number by number.
UNARY: dict[str, Callable[[Numbers], Numbers]] = {
    "r": lambda numbers: numbers[::-1],
    "s": lambda numbers: tuple(sorted(numbers)),
    "t": lambda numbers: numbers[1:] + numbers[:1],
    "u": lambda numbers: tuple((number + 1) % DIGITS for number in numbers),
    "w": lambda numbers: tuple(2 * number % DIGITS for number in numbers),
    "n": lambda numbers: tuple(-number % DIGITS for number in numbers),
    "m": lambda numbers: tuple(itertools.accumulate(numbers, max)),
}
BINARY: dict[str, Callable[[int, int], int]] = {
    "+": lambda below, top: (below + top) % DIGITS,
    "-": lambda below, top: (below - top) % DIGITS,
}


class ProgramError(ValueError):
    """A program is no program; ``run_program`` turns it into an ``Outcome``."""


@dataclass(frozen=True)
class Outcome:
    """What came of running a program: a list, or the reason why there is none."""

    result: Numbers | None
    problem: str = ""


def run_program(program: str, numbers: Numbers) -> Outcome:
    """Run ``program`` on one input.

    Args:
        program: any text.
        numbers: the input, three digits.

    Returns:
        The output, or a readable problem, such as an unknown word, too many words, a
        word that finds too few lists, a full stack, not exactly one list at the end.

    Raises:
        ValueError: the input is not three digits (the program's fault it never is).
    """
    stacks, problem = trace_program(program, numbers)
    if problem:
        return Outcome(None, problem)
    return Outcome(stacks[-1][0])


def trace_program(
    program: str, numbers: Numbers
) -> tuple[list[tuple[Numbers, ...]], str]:
    """The stack at the start and after each word, for looking on.

    Returns:
        ``(stacks, problem)``; the stacks stop where the problem is, and an empty
        problem means that the last stack holds the output alone.

    Raises:
        ValueError: the input is not three digits.
    """
    _check_numbers(numbers)
    stacks = [(tuple(numbers),)]
    if len(program) > MAX_WORDS:
        return stacks, f"{len(program)} words; at most {MAX_WORDS} are allowed"
    for word in program:
        try:
            stacks.append(do_word(word, stacks[-1], stacks[0][0]))
        except ProgramError as error:
            return stacks, str(error)
    left = len(stacks[-1])
    if left != 1:
        return stacks, f"{left} lists are left at the end; expected one"
    return stacks, ""


def do_word(word: str, stack: tuple[Numbers, ...], first: Numbers):
    """The stack after one word.

    Args:
        word: one letter.
        stack: the lists, the top one last.
        first: the program's input, for ``i``.

    Raises:
        ProgramError: the word cannot be done, with the reason.
    """
    if word in UNARY:
        return (*stack[:-1], UNARY[word](stack[-1]))
    if word in BINARY:
        if len(stack) < 2:
            raise ProgramError(f"{word!r} needs two lists; the stack holds one")
        pairs = zip(stack[-2], stack[-1], strict=True)
        return (*stack[:-2], tuple(BINARY[word](below, top) for below, top in pairs))
    if word not in WORDS:
        raise ProgramError(f"{word!r} is no word of the language")
    if len(stack) == MAX_STACK:
        raise ProgramError(f"{word!r} finds the stack full: it holds {MAX_STACK} lists")
    return (*stack, stack[-1] if word == "d" else first)


def _check_numbers(numbers: Numbers) -> None:
    digits = isinstance(numbers, tuple) and all(
        type(number) is int and 0 <= number < DIGITS for number in numbers
    )
    if not digits or len(numbers) != LENGTH:
        raise ValueError(
            f"the input is {numbers!r}; expected a tuple of {LENGTH} whole numbers "
            f"from 0 to {DIGITS - 1}. Fix: pass for example (3, 1, 2)."
        )

"""Sums with workings of three lengths: the same answers in 6, 21 and 57 tokens.

A prompt such as ``14!37s:`` reads "three digits from 1 to 9 that make 14; 3 and 7 are
banned; write it short".  Its last letter is all that differs between the lengths::

    s   4+8+2
    m   4+8+2=04+08=12+02=14
    l   4+8+2=04+08=12+02=14;14-02=12-08=04-04=00;02+08=10+04=14

``m`` adds up, ``l`` also takes away again and adds up the other way round.  The digits
are the choice and the rest follows from them, so every length has the same right
answers, and one that is right is right in every step.
"""

from __future__ import annotations

import functools
import hashlib
import re
from itertools import combinations, product

from flowrl_lab.tasks._characters import CharacterTask
from flowrl_lab.types import AnswerSet

__all__ = [
    *("LENGTHS", "Sums", "Sums6", "Sums21", "Sums57"),
    *("explain_answer", "list_digits", "spell_answer"),
]

CHARACTERS = "0123456789+-=;!:sml"
PAD, EOS = len(CHARACTERS), len(CHARACTERS) + 1
LENGTHS = {"s": 6, "m": 21, "l": 57}  # tokens of an answer, its end among them
TOTALS = range(10, 21)
MIN_ANSWERS = 12
HELDOUT_SHARE = 0.2
PROMPT_PATTERN = re.compile(r"(1[0-9]|20)!([1-9])([1-9])([sml]):")
DIGITS_PATTERN = re.compile(r"([1-9])\+([1-9])\+([1-9])")


def parse_prompt(prompt: str) -> tuple[int, frozenset[int], str]:
    """``"14!37s:"`` -> ``(14, {3, 7}, "s")``; ValueError for anything else."""
    match = PROMPT_PATTERN.fullmatch(prompt)
    if match is None or match[2] >= match[3]:
        raise ValueError(
            f"prompt is {prompt!r}; expected a number from 10 to 20, '!', two "
            "different banned digits in rising order, one of s, m, l, and ':'. Fix: "
            "write it like '14!37s:'."
        )
    return int(match[1]), frozenset((int(match[2]), int(match[3]))), match[4]


def spell_answer(digits: tuple[int, int, int], length: str) -> str:
    """Three digits with the working of a length: a key of ``LENGTHS``."""
    a, b, c = digits
    total, bare = a + b + c, f"{a}+{b}+{c}"
    up = f"={a:02}+{b:02}={a + b:02}+{c:02}={total:02}"
    down = f";{total:02}-{c:02}={a + b:02}-{b:02}={a:02}-{a:02}=00"
    back = f";{c:02}+{b:02}={b + c:02}+{a:02}={total:02}"
    return {"s": bare, "m": bare + up, "l": bare + up + down + back}[length]


def explain_answer(prompt: str, answer: str) -> str:
    """Why ``answer`` is wrong, in one line; empty if it is right.

    Raises:
        ValueError: if the prompt is malformed.  A malformed answer is just wrong.
    """
    total, banned, length = parse_prompt(prompt)
    match = DIGITS_PATTERN.match(answer)
    if match is None:
        return f"{answer[:40]!r} does not begin like 4+8+2"
    digits = tuple(map(int, match.groups()))
    if forbidden := sorted(banned.intersection(digits)):
        return f"the digit {forbidden[0]} is banned"
    if sum(digits) != total:
        return f"it makes {sum(digits)}, not {total}"
    right = spell_answer(digits, length)
    same = max(i for i in range(len(right) + 1) if answer[:i] == right[:i])
    rest = right[same:] or "the end"
    return "" if answer == right else f"after {right[:same]!r} comes {rest!r}"


@functools.cache
def list_digits(total: int, banned: frozenset[int]) -> tuple[tuple[int, ...], ...]:
    """Every three digits that make ``total`` without the banned ones."""
    allowed = [digit for digit in range(1, 10) if digit not in banned]
    return tuple(d for d in product(allowed, repeat=3) if sum(d) == total)


@functools.cache
def _split(lengths: str, heldout: bool) -> tuple[str, ...]:
    """A fixed 20 % of the questions are held out, in every length the same."""

    def digest(text: str) -> bytes:
        return hashlib.sha256(text.encode()).digest()

    questions = [
        f"{total}!{low}{high}"
        for total, (low, high) in product(TOTALS, combinations(range(1, 10), 2))
        if len(list_digits(total, frozenset((low, high)))) >= MIN_ANSWERS
    ]
    kept = [q for q in questions if (digest(q)[0] / 256 < HELDOUT_SHARE) == heldout]
    return tuple(f"{q}{mark}:" for q in sorted(kept, key=digest) for mark in lengths)


class Sums(CharacterTask):
    """The ``sums`` task in all three lengths, 12 to 37 right answers a prompt."""

    name = "sums"
    lengths = "sml"
    characters = CHARACTERS
    vocab_size = len(CHARACTERS) + 2
    pad_id = PAD
    eos_id = EOS
    max_completion_tokens = LENGTHS["l"]
    max_prompt_tokens = len("14!37s:")

    def _split(self, heldout: bool) -> tuple[str, ...]:
        return _split(self.lengths, heldout)

    def _check_prompt(self, prompt: str) -> None:
        parse_prompt(prompt)

    def reward_of(self, prompt: str, answer: str) -> float:
        """1 for a right answer, 0 for any other."""
        return float(not explain_answer(prompt, answer))

    def answers(self, prompt: str) -> AnswerSet:
        """Every right answer of ``prompt``; a group is the same digits reordered."""
        total, banned, length = parse_prompt(prompt)
        found = list_digits(total, banned)
        ones = [1.0] * len(found)
        return self.answer_set(
            prompt,
            [spell_answer(digits, length) for digits in found],
            rewards=ones,
            correct=[True] * len(found),
            classes=[tuple(sorted(digits)) for digits in found],
        )


class Sums6(Sums):
    """The short prompts of ``sums``."""

    name, lengths, max_completion_tokens = "sums_6", "s", LENGTHS["s"]


class Sums21(Sums):
    """The prompts of ``sums`` with a working that adds up."""

    name, lengths, max_completion_tokens = "sums_21", "m", LENGTHS["m"]


class Sums57(Sums):
    """The prompts of ``sums`` with the longest working."""

    name, lengths = "sums_57", "l"

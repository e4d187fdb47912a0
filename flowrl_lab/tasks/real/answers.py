"""Find the answer in what a model wrote, and read numbers without evaluating text.

A completion thinks first and then answers between ``<answer>`` and ``</answer>``.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

__all__ = [
    "ANSWER_STOP",
    "NotAnAnswer",
    "evaluate_arithmetic",
    "extract_answer",
    "read_number",
]

ANSWER_STOP = ("</answer>",)
MAX_ANSWER, MAX_DIGITS, MAX_DEPTH = 200, 12, 20

_NUMBER = re.compile(
    r"(?P<sign>[+-]?)\s*\$?\s*(?P<whole>\d{1,3}(?:,\d{3})+|\d+)?"
    r"(?P<decimals>\.\d+)?(?:\s*/\s*(?P<below>\d+))?"
    r"(?P<words>(?:\s+[A-Za-z]+){0,3})\s*\.?",
    re.ASCII,
)
_JOINING = {"or", "and", "to", "of", "not", "times", "plus", "minus", "percent"}
_TOKEN = re.compile(r"\s*(?:(\d+)|([-+*/()]))", re.ASCII)


class NotAnAnswer(ValueError):
    """What was written cannot be judged; the message says why, for a learner."""


def extract_answer(completion: str) -> str:
    """The text between the only ``<answer>`` and the end or ``</answer>``.

    Raises:
        NotAnAnswer: with no answer, two answers, or text after the answer.
    """
    pieces = completion.split("<answer>")
    if len(pieces) != 2:
        count = "no" if len(pieces) == 1 else "more than one"
        raise NotAnAnswer(f"{count} <answer>")
    answer, _, rest = pieces[1].partition("</answer>")
    if rest.strip():
        raise NotAnAnswer("text after </answer>")
    answer = answer.strip()
    if not answer:
        raise NotAnAnswer("the answer is empty")
    if len(answer) > MAX_ANSWER:
        raise NotAnAnswer(f"the answer is longer than {MAX_ANSWER} characters")
    if not answer.isascii():
        raise NotAnAnswer("the answer holds characters other than plain ASCII")
    return answer


def read_number(text: str) -> Fraction | None:
    """``"1,250"``, ``"-3.50"``, ``"$18"``, ``"3/4"`` or ``"18 red apples"`` exactly.

    Returns:
        The value; None for anything else: words that join numbers, scientific
        notation, digits of other scripts, more than twelve digits.
    """
    match = _NUMBER.fullmatch(text.strip())
    if match is None or len(text) > MAX_ANSWER:
        return None
    if match["whole"] is None and match["decimals"] is None:
        return None
    if _JOINING & set(match["words"].lower().split()):
        return None
    digits = (match["whole"] or "0").replace(",", "") + (match["decimals"] or "")
    below = match["below"]
    if len(digits) > MAX_DIGITS + 1 or len(below or "") > MAX_DIGITS:
        return None
    if below is not None and (int(below) == 0 or match["decimals"]):
        return None
    value = Fraction(digits) / int(below or 1)
    return -value if match["sign"] == "-" else value


@dataclass
class _Reader:
    """A cursor over the tokens of an expression."""

    tokens: list[str]
    position: int = 0
    depth: int = 0

    def peek(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.position += 1
        return token

    def sum(self) -> Fraction:
        value = self.product()
        while self.peek() in ("+", "-"):
            sign = 1 if self.take() == "+" else -1
            value += sign * self.product()
        return value

    def product(self) -> Fraction:
        value = self.factor()
        while self.peek() in ("*", "/"):
            if self.take() == "*":
                value *= self.factor()
                continue
            below = self.factor()
            if below == 0:
                raise NotAnAnswer("division by zero")
            value /= below
        return value

    def factor(self) -> Fraction:
        token = self.take()
        if token.isdigit():
            return Fraction(int(token))
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise NotAnAnswer(f"nested more than {MAX_DEPTH} deep")
        if token == "-":
            value = -self.factor()
        elif token == "(":
            value = self.sum()
            if self.take() != ")":
                raise NotAnAnswer("a bracket is not closed")
        else:
            raise NotAnAnswer(f"{token!r} where a number should stand")
        self.depth -= 1
        return value


def evaluate_arithmetic(text: str) -> tuple[Fraction, Counter[int]]:
    """The exact value of an expression of whole numbers, ``+ - * /`` and brackets.

    A parser of its own: ``**``, names and calls do not exist in it, so text from a
    model can be wrong but not dangerous, and its cost is bounded by its length.

    Returns:
        (value, how often each number occurs).

    Raises:
        NotAnAnswer: if it is not such an expression.
    """
    if len(text) > MAX_ANSWER:
        raise NotAnAnswer(f"longer than {MAX_ANSWER} characters")
    tokens, position = [], 0
    while position < len(text.rstrip()):
        match = _TOKEN.match(text, position)
        if match is None:
            found = text[position:].strip()[:1]
            raise NotAnAnswer(f"{found!r} is not part of an expression")
        if len(match[1] or "") > MAX_DIGITS:
            raise NotAnAnswer(f"a number of more than {MAX_DIGITS} digits")
        tokens.append(match[1] or match[2])
        position = match.end()
    reader = _Reader(tokens)
    value = reader.sum()
    if reader.peek():
        raise NotAnAnswer(f"{reader.peek()!r} after the end of the expression")
    return value, Counter(int(token) for token in tokens if token.isdigit())

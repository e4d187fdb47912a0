"""Find the answer in what a model wrote, and read numbers without evaluating text.

A completion thinks first and then answers between ``<answer>`` and ``</answer>``.
"""

from __future__ import annotations

import math
import operator as op
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction

__all__ = [
    "ANSWER_STOP",
    "NotAnAnswer",
    "Reader",
    "Value",
    "bounded",
    "evaluate_arithmetic",
    "extract_answer",
    "same_number",
    "split_tokens",
    "to_ascii",
]

ANSWER_STOP = ("</answer>",)
MAX_ANSWER, MAX_DIGITS, MAX_DEPTH, MAX_ROOTS = 200, 12, 20, 4

MAX_BITS = 4_096  # of a numerator or denominator
# Where no fraction is exact: a hundred digits, for numbers below 10^20.
_rounded = Context(prec=100)
_EXACT = {"+": op.add, "-": op.sub, "*": op.mul, "/": op.truediv}
_ROUNDED = {
    **{"+": _rounded.add, "-": _rounded.subtract},
    **{"*": _rounded.multiply, "/": _rounded.divide},
}
_MAX_DECIMAL, _SAME = Decimal(10**20), Decimal("1e-40")
_PI = Decimal(
    "3.141592653589793238462643383279502884197169399375105820974944592307816406286"
    "208998628034825342117068"
)
_PAIRS = {"(": ")", "{": "}"}
TOO_LARGE = "a power or factorial that is too large to work out"

_TOKEN = re.compile(r"\s*(?:(\d+)|([-+*/()]))", re.ASCII)
# What a keyboard lacks and a model writes all the same.
_TYPOGRAPHIC = str.maketrans(
    {
        **dict.fromkeys("\u2212\u2010\u2011\ufe63\uff0d", "-"),
        **dict.fromkeys("\u00d7\u00b7\u22c5\u2219\u2217", "*"),
        **dict.fromkeys("\u00f7\u2044\u2215", "/"),
        **dict.fromkeys("\u00a0\u2009\u202f", " "),
        **dict.fromkeys("\u20ac\u00a3\u00a5\u20b9", "$"),
        **dict.fromkeys("\u201c\u201d\u201e", '"'),
        **dict.fromkeys("\u2018\u2019", "'"),
        **{"\u00b0": r"^\circ", "\u03c0": r"\pi", "\u221a": r"\sqrt"},
        **{"\u00a2": " cents", "\u00df": "ss"},
    }
)
# A dash where no range can be meant; groups of three digits as French and Swiss print
# them; a root without braces; exponents.
_DASH = re.compile(r"(?:^|(?<=[=:(${*\[]))(\s*)\u2013(?=\s*[\d.$\\])")
_GROUPS = re.compile("(?<=[0-9])['\u2019\u00a0\u2009\u202f](?=[0-9]{3}(?![0-9]))")
_ROOT = re.compile(r"\u221a\s*([0-9]+)(?![0-9.,])")
_RAISED = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b"
_EXPONENT = re.compile(f"[{_RAISED}]+")
_LOWERED = str.maketrans(_RAISED, "0123456789-")


Value = Fraction | Decimal


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
    return to_ascii(answer)


def to_ascii(answer: str) -> str:
    """An answer with typographic signs (minus, times, euro) as a keyboard has them.

    Raises:
        NotAnAnswer: for one that is too long, or of other characters.
    """
    if len(answer) > MAX_ANSWER:
        raise NotAnAnswer(f"the answer is longer than {MAX_ANSWER} characters")
    if not answer.isascii():
        answer = _on_a_keyboard(answer)
    answer = _GROUPS.sub(",", answer)
    if not answer.isascii():
        raise NotAnAnswer("the answer holds characters other than plain ASCII")
    return answer


def _on_a_keyboard(answer: str) -> str:
    """What a typewriter would have written, as far as it is certain."""
    answer = _GROUPS.sub(",", unicodedata.normalize("NFC", answer))
    answer = _ROOT.sub(r"\\sqrt{\1}", _DASH.sub(r"\1-", answer))
    answer = _EXPONENT.sub(lambda m: f"^{{{m[0].translate(_LOWERED)}}}", answer)
    return "".join(map(_plain_sign, answer.translate(_TYPOGRAPHIC)))


def _plain_sign(sign: str) -> str:
    """A Latin letter without its accents; a fraction of one sign as a whole."""
    if sign.isascii():
        return sign
    if "<fraction>" in unicodedata.decomposition(sign):
        over, _, under = unicodedata.normalize("NFKC", sign).partition("\u2044")
        return rf" \frac{{{over}}}{{{under}}}"
    if unicodedata.name(sign, "").startswith("LATIN "):
        bare = unicodedata.normalize("NFKD", sign).encode("ascii", "ignore").decode()
        return bare if bare.isalpha() else sign
    return sign


def bounded(number: Value) -> Value:
    """``number``, if it is of a size that an answer has; else NotAnAnswer."""
    if isinstance(number, Fraction):
        bits = max(number.numerator.bit_length(), number.denominator.bit_length())
        small = bits <= MAX_BITS
    else:
        small = abs(number) < _MAX_DECIMAL
    if not small:
        raise NotAnAnswer(TOO_LARGE)
    return number


def same_number(left: Value, right: Value) -> bool:
    """Exactly for fractions; to forty decimals where a root or pi is left."""
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return left == right
    return abs(_rounded.subtract(_to_decimal(left), _to_decimal(right))) < _SAME


@dataclass
class Reader:
    """A cursor over the tokens of an expression; its cost is bounded by their number.

    Which tokens there are is for the caller to say: ``evaluate_arithmetic`` knows
    whole numbers, ``+ - * /`` and round brackets; an answer may hold LaTeX as well.
    """

    tokens: list[str]
    follow: tuple[str, ...] = ()  # what may follow a value as its factor, without *
    position: int = 0
    depth: int = 0
    roots: int = 0

    def whole(self) -> Value:
        """The value of all tokens.

        Raises:
            NotAnAnswer: if they are no expression.
        """
        value = self.sum()
        if self.peek():
            raise NotAnAnswer(f"{self.peek()!r} after the end of the expression")
        return value

    def peek(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.position += 1
        return token

    def sum(self) -> Value:
        value = self.product()
        while self.peek() in ("+", "-"):
            value = _combine(self.take(), value, self.product())
        return value

    def product(self) -> Value:
        value = self.power()
        while True:
            if self.peek() in ("*", "/"):
                value = _combine(self.take(), value, self.power())
            elif self.peek() in self.follow:
                value = _combine("*", value, self.power())
            else:
                return value

    def power(self) -> Value:
        value = self.factor()
        if self.peek() != "^":
            return value
        self.take()
        braced = self.peek() == "{" and bool(self.take())
        negative = self.peek() == "-" and bool(self.take())
        exponent = self.take()
        if not exponent.isdigit() or len(exponent) > 2:
            raise NotAnAnswer(TOO_LARGE)
        if (braced and self.take() != "}") or self.peek() == "^":
            raise NotAnAnswer(TOO_LARGE)
        return _raise_to(value, -int(exponent) if negative else int(exponent))

    def factor(self) -> Value:
        token = self.take()
        if token[:1].isdigit() or token[:1] == ".":
            return Fraction(token.replace(",", ""))
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise NotAnAnswer(f"nested more than {MAX_DEPTH} deep")
        if token == "-":
            value = _combine("-", Fraction(0), self.power())
        elif token in _PAIRS:
            value = self.inside(token)
        elif token == "frac":
            above, below = self.argument(), self.argument()
            value = _combine("/", above, below)
        elif token == "sqrt":
            value = self.root()
        elif token == "pi":
            value = _PI
        else:
            raise NotAnAnswer(f"{token!r} where a number should stand")
        self.depth -= 1
        return value

    def argument(self) -> Value:
        r"""What a command of LaTeX takes: a group in braces, or else one digit."""
        token = self.peek()
        if not token.isdigit():
            return self.inside(self.take())
        self.tokens[self.position : self.position + 1] = [token[0], token[1:]]
        self.position += 1
        if not self.peek():
            del self.tokens[self.position]
        return Fraction(token[0])

    def inside(self, opening: str) -> Value:
        if opening not in _PAIRS:
            raise NotAnAnswer(f"{opening!r} where a bracket should open")
        value = self.sum()
        self.close(_PAIRS[opening])
        return value

    def close(self, closing: str) -> None:
        if self.take() != closing:
            raise NotAnAnswer("a bracket is not closed")

    def root(self) -> Value:
        self.roots += 1
        if self.roots > MAX_ROOTS:
            raise NotAnAnswer(f"more than {MAX_ROOTS} roots")
        if self.peek().isdigit() and len(self.peek()) > 1:
            raise NotAnAnswer("a root of several digits without braces")
        return _square_root(self.argument())


def _combine(operation: str, left: Value, right: Value) -> Value:
    least = 1 / _MAX_DECIMAL if isinstance(right, Decimal) else 0
    if operation == "/" and abs(right) <= least:
        raise NotAnAnswer("division by zero")
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return bounded(_EXACT[operation](left, right))
    return bounded(_ROUNDED[operation](_to_decimal(left), _to_decimal(right)))


def _to_decimal(number: Value) -> Decimal:
    if isinstance(number, Decimal):
        return number
    above, below = bounded(number).as_integer_ratio()
    return _rounded.divide(Decimal(above), Decimal(below))


def _raise_to(base: Value, exponent: int) -> Value:
    if base == 0 and exponent < 0:
        raise NotAnAnswer("division by zero")
    if isinstance(base, Decimal):
        return bounded(_rounded.power(base, exponent))
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if bits * abs(exponent) > MAX_BITS:
        raise NotAnAnswer(TOO_LARGE)
    return bounded(base**exponent)


def _square_root(number: Value) -> Value:
    if number < 0:
        raise NotAnAnswer("the root of a negative number")
    if isinstance(number, Decimal):
        return _rounded.sqrt(number)
    above, below = number.as_integer_ratio()
    root = Fraction(math.isqrt(above), math.isqrt(below))
    return root if root**2 == number else _rounded.sqrt(_to_decimal(number))


def evaluate_arithmetic(text: str) -> tuple[Fraction, Counter[int]]:
    """The exact value of an expression of whole numbers, ``+ - * /`` and brackets.

    A parser of its own: ``**``, names and calls do not exist in it, so text from a
    model can be wrong but not dangerous, and its cost is bounded by its length.

    Returns:
        (value, how often each number occurs).

    Raises:
        NotAnAnswer: if it is not such an expression.
    """
    tokens = split_tokens(text, _TOKEN)
    value = Reader(tokens).whole()
    assert isinstance(value, Fraction)  # these tokens make nothing else
    return value, Counter(int(token) for token in tokens if token.isdigit())


def split_tokens(text: str, pattern: re.Pattern[str]) -> list[str]:
    """The tokens of an expression: for each match its first group, or its second.

    Raises:
        NotAnAnswer: for what the pattern does not know, or numbers that are too long.
    """
    if len(text) > MAX_ANSWER:
        raise NotAnAnswer(f"longer than {MAX_ANSWER} characters")
    text, tokens, position = text.rstrip(), [], 0
    while position < len(text):
        match = pattern.match(text, position)
        if match is None:
            found = text[position:].strip()[:1]
            raise NotAnAnswer(f"{found!r} is not part of an expression")
        if len(match[1] or "") > MAX_DIGITS:
            raise NotAnAnswer(f"a number of more than {MAX_DIGITS} digits")
        tokens.append(match[1] or match[2])
        position = match.end()
    return tokens

r"""What number does an answer state?  One rule, and nothing is evaluated as code.

An answer states exactly one number, or it is refused with a reason:

1.  **Wrappers fall off**, from the outside in: spaces, ``$…$``, ``\(…\)``, ``\[…\]``,
    ``{…}``, ``**…**``, quotes, ``\boxed{…}``, ``\text{…}``, ``\mathbf{…}`` and their
    like, punctuation at the end, and a label in front: ``Answer:``, ``The answer
    is``, ``x =``.  A wrapper goes around the whole answer; two of them side by side
    are two answers.
2.  **A number** is whole, decimal, a fraction (``3/4``, ``\frac{3}{4}``) or mixed
    (``1 1/2``); with a comma before each group of three digits, if any; with a
    currency sign before or after, if any; of at most twelve digits.
3.  **Words of scale multiply**, and so do ``k``, ``M`` and ``bn``: ``5 million`` is
    5,000,000, ``2 dozen`` is 24, ``18 half`` is 9.
4.  **Units fall off**: up to five words, such as ``18 red apples``, ``18 km/h``,
    ``18 cm^2``.  A percent sign is a unit like any other, so ``18%`` is 18 and never
    0.18.  Units are not converted.  Words that make another number of it
    (``18 squared``, ``18 or so``), and single letters that may (``18 x``), are
    refused.
5.  Else the answer is **an expression** of such numbers with ``+ - * / ^``, brackets,
    ``\frac``, ``\sqrt`` and ``\pi``, small enough to be worked out exactly; with a
    root or pi left, to forty decimals.

So ``18, 19``, ``18|19``, ``18 or 19``, ``±18``, ``18 = 18``, ``1e3`` and ``about 18``
are refused, ``18-19`` is -1 and ``18/19`` a fraction.
"""

from __future__ import annotations

import re
from fractions import Fraction

from flowrl_lab.tasks.real.answers import (
    MAX_DIGITS,
    TOO_LARGE,
    NotAnAnswer,
    Reader,
    Value,
    same_number,
    split_tokens,
    to_ascii,
)

__all__ = ["read_number", "read_value", "same_value"]

_PAIRS = (
    *(("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("{", "}")),
    *(("***", "***"), ("**", "**"), ("*", "*"), ("__", "__"), ("_", "_")),
    *(("`", "`"), ('"', '"'), ("'", "'")),
)
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*(?=\{)")
_STYLE = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal|up)?|math(?:bf|rm|it|sf|tt|bb|cal|normal)"
    r"|[mh]box|bm|boldsymbol|emph|underline|operatorname)\s*\{([^{}]*)\}"
)
_SWITCH = re.compile(
    r"\\(?:displaystyle|textstyle|bf|rm|it|sf|tt|bfseries)(?![A-Za-z])"
)
_SPACE = re.compile(r"\\[,;:! ]|(?<=\d)~(?=[A-Za-z\\])|\\q?quad(?![A-Za-z])")
_THOUSANDS = re.compile(r"(?<=\d)(?:\\,|\{,\}|,\\!)(?=\d{3}(?!\d))")
_LABEL = re.compile(
    r"[*_]*(?:the\s+)?(?:final\s+|correct\s+)?(?:answer|result|solution|total|value)"
    r"\s*(?:is\s*:?|[:=])[*_]*\s*|[A-Za-z]\s*=\s*|=\s*",
    re.IGNORECASE,
)
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
_SLASHED = r"(?P<top>\d+)\s*/\s*(?P<bottom>\d+)"
_FRAC = (
    r"\\[dt]?frac\s*(?:\{\s*(?P<over>\d+)\s*\}\s*\{\s*(?P<under>\d+)\s*\}"
    r"|(?P<o>\d)(?P<u>\d))"
)
_MONEY = r"(?:(?:US|CA|AU)?\\?\$\s*|(?:USD|EUR|GBP)\s+)"
_FRONT = rf"(?:{_MONEY}(?=[+-]))?(?P<sign>[+-]?)\s*{_MONEY}?"
# Mixed before fractions before plain numbers: the first that fits is meant.
_NUMBERS = [
    re.compile(_FRONT + shape, re.ASCII)
    for shape in (
        rf"(?P<whole>\d+)(?:\s+{_SLASHED}|\s*{_FRAC})(?!\d)",
        rf"(?:{_SLASHED}|{_FRAC})(?![\d.])",
        rf"(?P<whole>{_DIGITS})(?![\d.,])",
    )
]
_REST = re.compile(
    r"\s*(?:(?P<sign>\\?[%$]|(?:\^\s*\{?\s*\\circ\s*\}?|\\degree)(?:\s*[CF]\b)?)"
    r"|(?P<word>[A-Za-z]+)(?:\s*\^\{?[23]\}?)?|(?P<per>/)(?=\s*[A-Za-z]))"
)
_WORDS = 5

_MULTIPLES = {
    **{2: "pair couple double twice", 3: "triple thrice treble trio", 4: "quadruple"},
    **{5: "quintuple", 10: "tens", 12: "dozen", 20: "score", 100: "hundred"},
    **{144: "gross", 1_000: "thousand grand k K", 10_000: "myriad", 10**5: "lakh"},
    **{10**6: "million mn M", 10**7: "crore", 10**9: "billion milliard bn B"},
    **{10**12: "trillion"},
}
_PARTS = {
    **{2: "half halves", 3: "third", 4: "quarter fourth", 5: "fifth", 6: "sixth"},
    **{7: "seventh", 8: "eighth", 9: "ninth", 10: "tenth", 11: "eleventh"},
    **{12: "twelfth", 20: "twentieth", 100: "hundredth", 1_000: "thousandth"},
    **{10**6: "millionth", 10**9: "billionth"},
}
_SCALES = {
    **{
        w: Fraction(number)
        for number, words in _MULTIPLES.items()
        for w in words.split()
    },
    **{
        w: Fraction(1, number)
        for number, words in _PARTS.items()
        for w in words.split()
    },
}


def _words(*lines: str) -> frozenset[str]:
    return frozenset(" ".join(lines).split())


# Units that may follow without a space; of single letters, only these are units.
_SHORT = _words(
    "mm cm dm km ml cl dl mg kg lb lbs oz ft in yd mi min hr hrs sec ms mph kph kmh",
    "g h s L l a C F",
)
_COUNTING = _words(
    "zero nil nought one two three four five six seven eight nine ten eleven twelve",
    "thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty forty",
    "fifty sixty seventy eighty ninety mil mille hundert tausend dutzend mio",
)
_CHANGING = _words(
    # What is done to numbers, or makes others of them.
    "and or to not nor no times plus minus over by divided multiplied squared cubed",
    "power root sqrt pi factorial mod modulo log ln exp sin cos tan fold point dot",
    "negative opposite inverse reciprocal base binary octal hex hexadecimal remainder",
    "st nd rd th kilo mega giga tera milli micro nano centi deci hecto infinity nan",
    # What is said about them.
    "less fewer than below under above beyond short except but without versus vs",
    "through thru till until between about approximately approx roughly around almost",
    "nearly maybe perhaps probably possibly ish least most if unless else wrong false",
    "incorrect instead rather either neither never none so",
)


def same_value(known: str, given: str) -> tuple[bool, str]:
    """Whether ``given`` states the value ``known``, and a reason in words.

    A known answer that is no number must be written just so, but for spaces and
    wrappers.

    Args:
        known: the right answer.
        given: what the model answered, a short line.

    Raises:
        NotAnAnswer: if ``given`` does not state exactly one value.
    """
    try:
        right = read_value(known)
    except NotAnAnswer:
        same = _squeeze(given) == _squeeze(known)
        return same, "right" if same else "another answer"
    same = same_number(right, read_value(given))
    return same, "right" if same else "another number"


def _squeeze(text: str) -> str:
    return "".join(_unwrap(text).split())


def _unwrap(text: str) -> str:
    """An answer without its wrappers (point 1 of the rule).

    Raises:
        NotAnAnswer: for one that is too long, or of characters it cannot have.
    """
    text = _THOUSANDS.sub(",", to_ascii(text.strip()))
    text = _SPACE.sub(" ", _SWITCH.sub(" ", text))
    before = None
    while text != before:
        before = text
        text = _STYLE.sub(r" \1 ", text).strip().rstrip(".,;:").rstrip()
        box = _BOX.match(text)
        inside = _unpair(text[box.end() :] if box else text)
        if box and inside == text[box.end() :]:
            return text  # a box around a part only
        label = _LABEL.match(inside)
        text = inside[label.end() :] if label else inside
    return text


def _unpair(text: str) -> str:
    """Without a pair of marks around all of it."""
    for opening, closing in _PAIRS:
        inner = text[len(opening) : len(text) - len(closing)]
        if not (text.startswith(opening) and text.endswith(closing) and inner):
            continue
        if opening == closing:
            whole = opening not in inner
        else:
            whole = _stays_inside(inner, opening, closing)
        return inner.strip() if whole else text
    return text


def _stays_inside(inner: str, opening: str, closing: str) -> bool:
    """Whether no closing mark in ``inner`` belongs to the mark before it."""
    depth = 0
    for mark in re.findall(f"{re.escape(opening)}|{re.escape(closing)}", inner):
        depth += 1 if mark == opening else -1
        if depth < 0:
            return False
    return depth == 0


def read_number(text: str) -> Fraction | None:
    """The number that ``text`` states (points 1 to 4); None if it states none."""
    try:
        return _find_number(_unwrap(text))
    except NotAnAnswer:
        return None


def read_value(text: str) -> Value:
    """The value that ``text`` states, by the rule at the head of this file.

    Raises:
        NotAnAnswer: if it does not state exactly one; the message says why.
    """
    text = _unwrap(text)
    if not re.search(r"\d|\\pi|\bpi\b", text):
        raise NotAnAnswer("no number in the answer")
    number = _find_number(text)
    if number is not None:
        return number
    if re.search(r"[A-Za-z\\\n]", _COMMAND.sub(" ", text)):
        raise NotAnAnswer("words beside the answer")
    if re.search(r"[=<>~;:|&]|,(?!\d{3})", text):
        raise NotAnAnswer("more than one value in the answer")
    if "!" in text:
        raise NotAnAnswer(TOO_LARGE)
    tokens = [_NAMES.get(token, token) for token in split_tokens(text, _TOKEN)]
    return Reader(tokens, follow=("sqrt", "pi", "(")).whole()


_COMMAND = re.compile(
    r"\\[dt]?frac(?![A-Za-z])|\\?sqrt\b|\\?\bpi\b|\\(?:cdot|times|div)(?![A-Za-z])"
    r"|\\(?:left(?=\s*\()|right(?=\s*\)))"
)
_TOKEN = re.compile(
    r"(?:\s|\\left(?=\s*\()|\\right(?=\s*\)))*"
    rf"(?:(?:({_DIGITS})(?![\d.,]))"
    r"|(\*\*|[-+*/^(){}]|\\[dt]?frac(?![A-Za-z])|\\?sqrt(?=\s*[({])|\\?pi(?![A-Za-z])"
    r"|\\(?:cdot|times|div)(?![A-Za-z])))",
    re.ASCII,
)
_NAMES = {
    **dict.fromkeys((r"\frac", r"\dfrac", r"\tfrac"), "frac"),
    **{r"\sqrt": "sqrt", r"\pi": "pi", "**": "^"},
    **{r"\cdot": "*", r"\times": "*", r"\div": "/"},
}


def _find_number(text: str) -> Fraction | None:
    """Points 2 to 4; None for what begins or goes on otherwise."""
    for pattern in _NUMBERS:
        match = pattern.match(text)
        if match is not None:
            break
    else:
        return None
    scale = _read_units(text, match.end())
    number = None if scale is None else _as_fraction(match.groupdict())
    if number is None:
        return None
    return -number * scale if match["sign"] == "-" else number * scale


def _as_fraction(parts: dict[str, str | None]) -> Fraction | None:
    whole = (parts.get("whole") or "0").replace(",", "")
    above = parts.get("top") or parts.get("over") or parts.get("o")
    below = parts.get("bottom") or parts.get("under") or parts.get("u") or "1"
    if max(len(whole) - ("." in whole), len(above or ""), len(below)) > MAX_DIGITS:
        return None
    if above is None:
        return Fraction(whole)
    if int(below) == 0 or (parts.get("whole") and int(above) >= int(below)):
        return None
    return Fraction(whole) + Fraction(int(above), int(below))


def _read_units(text: str, position: int) -> Fraction | None:
    """What the words behind a number multiply it by; None for anything but words.

    Raises:
        NotAnAnswer: for a word that makes another number of it.
    """
    scale, count, per = Fraction(1), 0, False
    while position < len(text.rstrip()):
        match = _REST.match(text, position)
        if match is None:
            return None
        attached = match.start() == match.start("word") and count == 0
        position, count = match.end(), count + 1
        word = match["word"]
        if word is None:
            per = per or match["per"] is not None
            continue
        factor = _find_scale(word)
        if count > _WORDS or (factor is None and _changes(word, attached)):
            return _refuse_unless_more(text, word)
        if factor is not None and per:
            raise NotAnAnswer(f"the answer is per {word}")
        scale *= factor or 1
        per = per or word.lower() == "per"
    return scale


def _refuse_unless_more(text: str, word: str) -> None:
    """A word that is no unit: the reason, unless there is more to it than words."""
    if len(re.findall(r"\d+", text)) == 1:
        raise NotAnAnswer(f"words beside the answer: {word!r}")


def _find_scale(word: str) -> Fraction | None:
    if len(word) == 1:
        return _SCALES.get(word)
    word = word.lower()
    return _SCALES.get(word, _SCALES.get(word.removesuffix("s")))


def _changes(word: str, attached: bool) -> bool:
    """Whether a word may be more than a unit."""
    if attached or len(word) == 1:
        return word not in _SHORT
    word = word.lower()
    counts = word in _COUNTING or word.removesuffix("s") in _COUNTING
    return counts or word in _CHANGING

r"""What number does an answer state?  One rule, and nothing is evaluated as code.

An answer states exactly one number, or it is refused with a reason:

1.  **Wrappers fall off**, from the outside in: spaces, ``$…$``, ``\(…\)``, ``\[…\]``,
    ``{…}``, ``**…**``, quotes, ``\boxed{…}``, ``\text{…}``, ``\mathbf{…}`` and their
    like, punctuation at the end, and a label in front: ``Answer:``, ``The answer
    is``, ``Total cost =``, ``x =``, ``####``.  A wrapper goes around the whole answer,
    or around all of it but the unit (``\boxed{18} apples``); two of them side by side
    are two answers.
2.  **A number** is whole, decimal, a fraction (``3/4``, ``\frac{3}{4}``, ``¾``) or
    mixed (``1 1/2``); with a point before its decimals, so ``1.250`` is less than two
    and ``3,5`` refused; with a comma before each group of three digits, if any, or a
    narrow space or an apostrophe; with a currency sign before or after, if any; of
    at most twelve digits.
3.  **Words of scale multiply**, right behind the number, and so do ``k``, ``M`` and
    ``bn``: ``5 million`` is 5,000,000, ``2 dozen`` is 24, ``18 half`` is 9.
4.  **Units fall off**: up to five words, such as ``18 red apples``, ``18 km/h``,
    ``18 cm^2``.  A percent sign is a unit like any other, so ``18%`` is 18 and never
    0.18.  Units are not converted.  Words that make another number of it
    (``18 squared``, ``18 or so``, ``18 Millionen``, ``18 et demi``), and single letters
    that may (``18 x``), are refused.
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
    *(("```", "```"), ("`", "`"), ('"', '"'), ("'", "'")),
)
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*(?=\{)")
_STYLE = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|sc|normal|up)?|math(?:bf|rm|it|sf|tt|bb|cal|normal)"
    r"|[mh]box|pmb|bm|boldsymbol|emph|underline|operatorname)\s*\{([^{}]*)\}"
)
_SWITCH = re.compile(
    r"\\(?:displaystyle|textstyle|bf|rm|it|sf|tt|bfseries)(?![A-Za-z])"
)
_SPACE = re.compile(r"\\[,;:! ]|(?<=[\d{])~(?=[A-Za-z\\])|\\q?quad(?![A-Za-z])")
_THOUSANDS = re.compile(r"(?<=\d)(?:\\,|\{,\}|,\\!)(?=\d{3}(?!\d))")
# Bold or slanted, all of it or all but the sign at its end: **Answer:** and **Answer**:
_LABEL = re.compile(
    r"(?P<mark>\*{1,3}|_{1,2}|)(?:"
    r"(?:(?:so|thus|hence|therefore),?\s+)?(?:the\s+)?(?:final\s+|correct\s+)?"
    r"(?:answer|result|solution|total|value)"
    r"(?:(?P=mark)\s*(?:is\s*:?|[:=])|\s*(?:is\s*:?|[:=])(?P=mark))\s*"
    r"|(?P<name>\\?[A-Za-z]+(?:_(?:\w{1,2}|\{\w{1,2}\}))?(?:\s[A-Za-z]+){0,4})"
    r"(?:(?P=mark)\s*[:=]|\s*[:=](?P=mark))\s*)|=\s*|#+\s+",
    re.IGNORECASE,
)
# A unit behind what is wrapped.
_BEHIND = re.compile(r"\s*(?!pi\b)(?:\\?[%$]|\^?\s*\\circ|[A-Za-z])[A-Za-z%$/\s]*")
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+"
_SLASHED = r"(?P<top>\d+)\s*/\s*(?P<bottom>\d+)"
_FRAC = (
    r"\\[cdt]?frac\s*(?:\{\s*(?P<over>\d+)\s*\}\s*\{\s*(?P<under>\d+)\s*\}"
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
    **{144: "gross", 1_000: "thousand grand k K", 10_000: "myriad", 10**5: "lakh lac"},
    **{10**6: "million mn M", 10**7: "crore", 10**9: "billion milliard bn B"},
    **{10**12: "trillion"},
}
_PARTS = {
    **{2: "half halves", 3: "third", 4: "quarter fourth", 5: "fifth", 6: "sixth"},
    **{7: "seventh", 8: "eighth", 9: "ninth", 10: "tenth", 11: "eleventh"},
    **{12: "twelfth", 16: "sixteenth", 20: "twentieth", 100: "hundredth"},
    **{1_000: "thousandth"},
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
    "fifty sixty seventy eighty ninety thou doz dz dtz mln bln trn tn tsd mio mrd kk",
    "null ein eine eins zwei drei vier funf fuenf sechs sieben acht neun elf zwolf",
    "deux trois quatre cinq sept huit neuf dix onze douze treize quatorze quinze seize",
    "vingt trente quarante cinquante soixante mil mille mila cien ciento cento",
    "dos tres cuatro cinco seis siete ocho nueve diez once doce trece quince veinte",
    "treinta quattro cinque sette otto nove dieci venti trenta",
)
# Words that count, multiply or divide, in the languages of Europe and in all forms:
# Millionen, miljard, thousandfold, neunzehn, dizaines, anderthalb, demie, thirtieths.
_NUMERAL = re.compile(
    r"[a-z]{1,5}il{1,2}[ijh]?(?:oe?n|ao|oes|ard)|.*(?:fold|fach|zehn|z?zig|ssig|uple)s?$"
    r"|.*(?:tausend|hundert|thousand|hundred|duizend|honderd|tusen|hundra)"
    r"|d[ou]u?(?:tzend|zain|zzin|zin|cena|zia)|(?:di[xz]|cent|vingt|quinz)(?:ain|en)|mill?ier"
    r"|(?:ander|ein|drei|vier)t?(?:halb|tel)|halb|demi|mezz|medi[oa]s?$|drittel|tiers"
    r"|terc(?:io|eir)|terz[oi]|.*t(?:een|ie)ths?$"
)
_CHANGING = _words(
    # What is done to numbers, or makes others of them.
    "and or to not nor no times plus minus over by divided multiplied squared cubed",
    "power root sqrt pi factorial mod modulo log ln exp sin cos tan fold point dot",
    "halved doubled tripled trebled quadrupled negated inverted googol googols",
    "negative opposite inverse reciprocal base binary octal hex hexadecimal remainder",
    "st nd rd th kilo mega giga tera milli micro nano centi deci hecto infinity nan",
    # What is said about them.
    "less fewer than below under above beyond short except but without versus vs",
    "through thru till until between about approximately approx roughly around almost",
    "nearly maybe perhaps probably possibly ish least most if unless else wrong false",
    "incorrect instead rather either neither never none so too nope unlikely",
    "und oder bis mal hoch durch weniger fast etwa et ou fois moins carre environ",
    "menos entre por casi meno circa ca",
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
        text = inside[label.end() :] if label and _is_label(label) else inside
    return text


def _is_label(found: re.Match[str]) -> bool:
    """Whether what stands before a colon or = only names the number."""
    words = re.findall(r"[A-Za-z]+", found["name"] or "")
    return all(len(w) == 1 or not (_find_scale(w) or _changes(w, False)) for w in words)


def _unpair(text: str) -> str:
    """Without a pair of marks around all of it, or all but a unit."""
    for opening, closing in _PAIRS:
        if not text.startswith(opening):
            continue
        end = _closes(text, opening, closing)
        inner, behind = text[len(opening) : end], text[end + len(closing) :]
        if end < 0 or not inner:
            continue
        if not behind or (_BEHIND.fullmatch(behind) and opening not in behind):
            return f"{inner.strip()} {behind.strip()}".rstrip()
        return text
    return text


def _closes(text: str, opening: str, closing: str) -> int:
    """Where the mark that a text begins with is closed; -1 if nowhere."""
    if opening == closing:
        return text.find(closing, len(opening))
    depth = 0
    for mark in re.finditer(f"{re.escape(opening)}|{re.escape(closing)}", text):
        depth += 1 if mark[0] == opening else -1
        if depth == 0:
            return mark.start()
    return -1


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
    r"\\[cdt]?frac(?![A-Za-z])|\\?sqrt(?![A-Za-z])|\\?\bpi\b|\\(?:cdot|times|div)(?![A-Za-z])"
    r"|\\(?:left(?=\s*\()|right(?=\s*\)))"
)
_TOKEN = re.compile(
    r"(?:\s|\\left(?=\s*\()|\\right(?=\s*\)))*"
    rf"(?:(?:({_DIGITS})(?![\d.,]))"
    r"|(\*\*|[-+*/^(){}]|\\[cdt]?frac(?![A-Za-z])|\\?sqrt(?=\s*[({\d])|\\?pi(?![A-Za-z])"
    r"|\\(?:cdot|times|div)(?![A-Za-z])))",
    re.ASCII,
)
_NAMES = {
    **dict.fromkeys((r"\frac", r"\cfrac", r"\dfrac", r"\tfrac"), "frac"),
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
        per = per or factor is None  # 18 dollars a quarter, 18 out of a million
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
    return counts or word in _CHANGING or _NUMERAL.match(word) is not None

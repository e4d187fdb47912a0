"""Code for a real language model: write an expression in x from three examples.

    f(0)=1, f(1)=3, f(10)=21: f(x)=2*x+1

Operands are x and digits, joined by ``+ - *``: up to three of them, or four if x is
among them twice.  Every expression that gives the three values is right, however it
is written: ``x+x+1`` and ``1+x*2`` too.  Whole functions are held out, not wordings.

Few models get this right from examples in front of the question (SmolLM2-135M: 0-3 %).
``training.cold_start`` shows one careless solutions first, of no held-out function.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import re
from collections.abc import Iterator

from flowrl_lab.tasks.few_shot import FewShotTask, no_question

__all__ = ["Formulas", "evaluate_formula", "list_formulas"]

INPUTS = (0, 1, 10)  # in base ten, f(10) often shows what f is made of
LARGEST = 199  # of the values that a question shows
FEWEST, MOST = 12, 32  # right answers of a question

Values = tuple[int, ...]

_TERM = r"[x1-9](?:\*[x1-9])*"
_FORMULA = re.compile(rf"{_TERM}(?:[+-]{_TERM})*")
_SIGNED_TERM = re.compile(rf"([+-]?)({_TERM})")


def evaluate_formula(text: str, *inputs: int) -> Values:
    """The values at ``inputs`` of an expression of x, digits 1 to 9, ``+ - *``.

    Raises:
        ValueError: it is something else.
    """
    if not _FORMULA.fullmatch(text):
        raise ValueError(f"{text!r} is no expression in x. Fix: write one like 2*x+1.")
    totals = [0] * len(inputs)
    for sign, term in _SIGNED_TERM.findall(text):
        factors = term.split("*")
        power, number = factors.count("x"), -1 if sign == "-" else 1
        number *= math.prod(int(factor) for factor in factors if factor != "x")
        totals = [t + number * x**power for t, x in zip(totals, inputs, strict=True)]
    return tuple(totals)


def _spell() -> Iterator[str]:
    """Every expression that counts: with an x, and none of its factors a 1."""
    for count in (2, 3, 4):
        for operands in itertools.product("x123456789", repeat=count):
            if operands.count("x") < max(1, count - 2):
                continue
            for operators in itertools.product("+-*", repeat=count - 1):
                pairs = zip(operators, operands[1:], strict=True)
                text = operands[0] + "".join(map("".join, pairs))
                if "1*" not in text and "*1" not in text:
                    yield text


@functools.cache
def list_formulas() -> dict[str, tuple[str, ...]]:
    """Every question with its right answers, in a fixed shuffled order."""
    found: dict[Values, list[str]] = {}
    for text in _spell():
        found.setdefault(evaluate_formula(text, *INPUTS), []).append(text)
    asked = {
        make_question(values): tuple(texts)
        for values, texts in found.items()
        if FEWEST <= len(texts) <= MOST
        and all(0 <= value <= LARGEST for value in values)
        and len(set(values)) > 1  # a constant needs no x
    }
    order = sorted(asked, key=lambda q: hashlib.sha256(q.encode()).hexdigest())
    return {question: asked[question] for question in order}


def make_question(values: Values) -> str:
    """``f(0)=1, f(1)=3, f(10)=21: f(x)``."""
    shown = (f"f({x})={value}" for x, value in zip(INPUTS, values, strict=True))
    return f"{', '.join(shown)}: f(x)"


class Formulas(FewShotTask):
    """Write an expression with three given values: 12 to 32 right answers, all listed.

    A third of the functions is held out.
    """

    name = "formulas"
    max_completion_tokens = 8  # four operands, three operators, the end of the line
    between = "="

    def __init__(self):
        questions = list(list_formulas())
        heldout = questions[::3]
        super().__init__([q for q in questions if q not in set(heldout)], heldout)

    def answer_texts(self, prompt: str) -> tuple[str, ...]:
        """Every right answer."""
        if prompt not in list_formulas():
            raise no_question(prompt, self.name)
        return list_formulas()[prompt]

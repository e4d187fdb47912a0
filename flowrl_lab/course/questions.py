"""What a learner is asked to predict: the question, its answers, its plain form."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from flowrl_lab._validation import bad_input, check_choice, check_number
from flowrl_lab.course.showing import ShownOnce, markup_to_text
from flowrl_lab.plots.panels import format_number

__all__ = [
    "Answer",
    "Question",
    "StillQuestion",
    "as_number",
    "check_key",
    "make_question",
    "say",
]

KEY = re.compile(r"\d\d\.\w+\Z")
Answer = str | float


@dataclass(frozen=True)
class Question:
    """A question with choices, or one for a number.

    Attributes:
        key: ``"NN.word"``, NN being the notebook.
        text: the question.
        choices: what can be chosen; empty where a number is asked for.
        ends: the range of the number; None where it is not known.
        unit: of that number.
    """

    key: str
    text: str
    choices: tuple[str, ...] = ()
    ends: tuple[float, float] | None = None
    unit: str = ""

    def check_answer(self, value: object) -> Answer:
        """The answer, if it can be one.

        Raises:
            ValueError: a choice that is not offered, or a number out of range.
        """
        name = f"answer to {self.key}"
        if self.choices:
            check_choice(name, value, self.choices)
            return str(value)
        number = as_number(name, value)
        if self.ends:
            check_number(name, number, low=self.ends[0], high=self.ends[1])
        return number

    def check_result(self, value: object) -> Answer:
        """What came out; a number may lie outside the range.

        Raises:
            ValueError: a choice that was not offered, or no finite number.
        """
        name = f"result of {self.key}"
        if self.choices:
            check_choice(name, value, self.choices)
            return str(value)
        return as_number(name, value)

    def facts(self) -> dict[str, object]:
        """What the progress file keeps of it."""
        facts: dict[str, object] = {"question": self.text, "unit": self.unit}
        if self.choices:
            facts["choices"] = list(self.choices)
        if self.ends:
            facts["range"] = list(self.ends)
        return facts

    def span(self) -> str:
        """Between what and what the number is asked for."""
        low, high = (format_number(end) for end in self.ends or (math.nan, math.nan))
        return f"a number between {low} and {high} {self.unit}".rstrip()


class StillQuestion(ShownOnce):
    """A question where no widget can load: it shows itself as text.

    Args:
        question: what is asked.
        given: the saved prediction, if there is one.
    """

    def __init__(self, question: Question, given: Answer | None = None) -> None:
        self.question, self.given = question, given

    def status(self) -> str:
        """What has been predicted, or how to do so without buttons."""
        asked = self.question
        if self.given is not None:
            return f"Your prediction: {say(self.given, asked.unit)}"
        example = asked.choices[0] if asked.choices else asked.ends and asked.ends[0]
        call = f"flowrl_lab.course.answer({asked.key!r}, {example!r})"
        return f"No buttons? {call} does the same."

    def __repr__(self) -> str:
        asked = self.question
        rows = [f"  ( ) {choice}" for choice in asked.choices] or [f"  {asked.span()}"]
        return "\n".join([f"Predict: {asked.text}", *rows, self.status()])

    def _repr_html_(self) -> str:
        asked = self.question
        rows = "".join(f"<li>{escape(choice)}</li>" for choice in asked.choices)
        body = f"<ul>{rows}</ul>" if rows else f"<p>{escape(asked.span())}</p>"
        return (
            '<div style="border-left:5px solid #0072B2;padding:.4em 1em;margin:.3em 0">'
            f"<b>Predict: {escape(asked.text)}</b>{body}{escape(self.status())}</div>"
        )

    def _repr_mimebundle_(self, **_options) -> dict:
        return {"text/html": self._repr_html_(), "text/plain": repr(self)}


def make_question(
    key: str,
    text: str,
    choices: Sequence[str] | None,
    low: int | float | None,
    high: int | float | None,
    unit: str,
) -> Question:
    """The question of ``predict``.

    Raises:
        ValueError: see ``predict``.
    """
    check_key(key)
    if not isinstance(text, str) or not text.strip():
        raise bad_input("question", f"is {text!r}", "a sentence", "write the question")
    text = markup_to_text(text)
    numeric = low is not None or high is not None
    if numeric == (choices is not None):
        raise bad_input(
            "choices",
            "and a range came together" if numeric else "and a range are both missing",
            "either choices=(…) or low=… and high=…",
            "give one of the two",
        )
    if choices is not None:
        return Question(key, text, _check_choices(choices), unit=unit)
    ends = (as_number("low", low), as_number("high", high))
    if not ends[0] < ends[1]:
        raise bad_input(
            "low", f"is {low!r} and high is {high!r}", "low < high", "turn them round"
        )
    return Question(key, text, ends=ends, unit=unit)


def check_key(key: object) -> None:
    """Check a prediction's key.

    Raises:
        ValueError: unless it has the form ``NN.word``.
    """
    if not isinstance(key, str) or not KEY.match(key):
        raise bad_input(
            "key",
            f"is {key!r}",
            'the notebook\'s two digits, a dot and a word, such as "02.frozen"',
            "give the question such a key",
        )


def _check_choices(choices: Sequence[str]) -> tuple[str, ...]:
    good = not isinstance(choices, str) and all(
        isinstance(choice, str) and choice.strip() for choice in choices
    )
    if not good or len(choices) < 2 or len(set(choices)) < len(choices):
        raise bad_input(
            "choices",
            f"is {choices!r}",
            "at least two different texts",
            'write choices=("yes", "no")',
        )
    return tuple(choices)


def as_number(name: str, value: object) -> float:
    """A finite float; a tensor or an array that holds one number is welcome.

    Raises:
        ValueError: anything else.
    """
    try:
        number = math.nan if isinstance(value, str | bool) else float(value)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        raise bad_input(
            name, f"is {value!r}", "one finite number", "give the number itself"
        )
    return number


def say(value: Answer, unit: str = "") -> str:
    """An answer in words: the choice itself, or the number with its unit."""
    if isinstance(value, str):
        return value
    return f"{format_number(value)} {unit}".rstrip()

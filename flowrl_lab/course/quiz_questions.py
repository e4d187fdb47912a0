"""A few questions at the end of a notebook, each choice with its explanation."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

from flowrl_lab._validation import bad_input
from flowrl_lab.course.showing import ShownOnce

__all__ = ["FOLDER", "Choice", "QuizQuestion", "StillQuiz", "load_quiz", "parse_quiz"]

FOLDER = Path(__file__).parent / "quizzes"
QUESTIONS, CHOICES = (3, 5), (3, 4)


@dataclass(frozen=True)
class Choice:
    """One answer: its text, whether it is the right one, and why."""

    text: str
    right: bool
    why: str


@dataclass(frozen=True)
class QuizQuestion:
    """A question and its choices, exactly one of them right."""

    text: str
    choices: tuple[Choice, ...]

    def find(self, text: str) -> Choice | None:
        """The choice with this text."""
        return next((choice for choice in self.choices if choice.text == text), None)


class StillQuiz(ShownOnce):
    """The quiz where no widget can load: every choice unfolds its explanation."""

    def __init__(self, questions: tuple[QuizQuestion, ...]) -> None:
        self.questions = questions

    def __repr__(self) -> str:
        lines = []
        for number, question in enumerate(self.questions, start=1):
            lines += [f"{number}. {question.text}"]
            lines += [f"   ( ) {choice.text}" for choice in question.choices]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        parts = []
        for number, question in enumerate(self.questions, start=1):
            parts.append(f"<p><b>{number}. {escape(question.text)}</b></p>")
            parts += [
                f"<details><summary>{escape(choice.text)}</summary>"
                f"<p>{verdict(choice)} {escape(choice.why)}</p></details>"
                for choice in question.choices
            ]
        return f"<div>{''.join(parts)}</div>"

    def _repr_mimebundle_(self, **_options) -> dict:
        return {"text/html": self._repr_html_(), "text/plain": repr(self)}


def verdict(choice: Choice) -> str:
    """A choice's sign and word."""
    return "✓ Right." if choice.right else "✗ Not quite."


def load_quiz(name: str) -> tuple[QuizQuestion, ...]:
    """The questions of one quiz.

    Raises:
        ValueError: there is no such quiz, or its file is not as it should be.
    """
    known = sorted(path.stem for path in FOLDER.glob("*.json"))
    if name not in known:
        close = difflib.get_close_matches(str(name), known, n=1)
        fix = f"did you mean {close[0]!r}" if close else "use one of these names"
        raise bad_input("name", f"is {name!r}", f"one of {known}", fix)
    path = FOLDER / f"{name}.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise bad_input(
            "name", f"is {name!r}, whose file is no JSON ({error})", "JSON", "mend it"
        ) from None
    return parse_quiz(content, name)


def parse_quiz(content: object, name: str) -> tuple[QuizQuestion, ...]:
    """Check a quiz's JSON and make it questions.

    Args:
        content: ``{"questions": [{"question", "choices": [{"text", "right",
            "why"}]}]}``.
        name: what messages call it.

    Raises:
        ValueError: not 3-5 questions of 3-4 different choices with an explanation
            each and exactly one right, or a key that does not belong there.
    """
    (rows,) = _fields(content, ("questions",), name)
    _check_list(rows, QUESTIONS, f"{name}: questions")
    questions = tuple(
        _parse_question(row, f"{name}: question {number}")
        for number, row in enumerate(rows, start=1)
    )
    _check_different([question.text for question in questions], f"{name}: questions")
    return questions


def _parse_question(row: object, where: str) -> QuizQuestion:
    text, rows = _fields(row, ("question", "choices"), where)
    _check_text(text, f"{where}: question")
    _check_list(rows, CHOICES, f"{where}: choices")
    choices = []
    for number, one in enumerate(rows, start=1):
        here = f"{where}: choice {number}"
        label, right, why = _fields(one, ("text", "right", "why"), here)
        _check_text(label, f"{here}: text")
        _check_text(why, f"{here}: why")
        if not isinstance(right, bool):
            raise bad_input(
                f"{here}: right", f"is {right!r}", "true or false", "mend it"
            )
        choices.append(Choice(label, right, why))
    _check_different([choice.text for choice in choices], f"{where}: choices")
    if sum(choice.right for choice in choices) != 1:
        raise bad_input(
            f"{where}: choices",
            f"has {sum(choice.right for choice in choices)} right ones",
            "exactly one",
            "set right to true for one of them",
        )
    return QuizQuestion(text, tuple(choices))


def _fields(value: object, names: tuple[str, ...], where: str) -> tuple:
    if not isinstance(value, Mapping) or set(value) != set(names):
        got = sorted(value) if isinstance(value, Mapping) else type(value).__name__
        raise bad_input(where, f"holds {got}", f"the keys {list(names)}", "mend it")
    return tuple(value[name] for name in names)


def _check_list(value: object, ends: tuple[int, int], where: str) -> None:
    low, high = ends
    if not isinstance(value, list) or not low <= len(value) <= high:
        got = len(value) if isinstance(value, list) else type(value).__name__
        raise bad_input(where, f"is a list of {got}", f"{low} to {high}", "mend it")


def _check_text(value: object, where: str) -> None:
    if not isinstance(value, str) or not value.strip():
        raise bad_input(where, f"is {value!r}", "a text", "write one")


def _check_different(texts: list[str], where: str) -> None:
    if len(set(texts)) < len(texts):
        raise bad_input(where, "holds the same text twice", "different ones", "mend it")

"""Predict, then run: a question before a result, and the answer beside it after.

The answer is kept in the progress file, so a cell that runs again still shows it.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Sequence

from flowrl_lab._validation import bad_input
from flowrl_lab.course.ledger import open_ledger
from flowrl_lab.course.questions import (
    Answer,
    Question,
    StillQuestion,
    check_key,
    make_question,
)
from flowrl_lab.course.showing import ShownOnce, show
from flowrl_lab.course.verdicts import outcome_html, outcome_text

__all__ = ["answer", "outcome", "predict", "predicted"]

_asked: dict[str, Question] = {}


def predict(
    key: str,
    question: str,
    *,
    choices: Sequence[str] | None = None,
    low: int | float | None = None,
    high: int | float | None = None,
    unit: str = "",
) -> ShownOnce:
    """Ask for a prediction, before the result is shown.

    Args:
        key: ``"NN.word"``: the notebook's number and a word of its own.
        question: what is asked.
        choices: at least two answers to choose from; or
        low, high: the range of a number, shown as a field with a slider.
        unit: of that number, such as ``"nats"``.

    Returns:
        The widget (where none can load, its text); it has been shown already.

    Raises:
        ValueError: a bad key, no question, neither or both of choices and a range,
            repeated choices, or ``low`` not below ``high``.
    """
    asked = make_question(key, question, choices, low, high, unit)
    _asked[key] = asked
    given = _find_answer(asked)
    if importlib.util.find_spec("anywidget") is None:  # only the core is installed
        view = StillQuestion(asked, given)
    else:
        from flowrl_lab.course.prediction_field import PredictionField

        view = PredictionField(asked, given, on_answer=lambda value: answer(key, value))
    view.show_now()
    return view


def answer(key: str, value: object) -> None:
    """Predict without a widget: what choosing an answer does.

    Args:
        key: of a question that ``predict`` has asked.
        value: one of its choices, or a number in its range.

    Raises:
        ValueError: nothing was asked under this key, or this cannot be an answer.
    """
    if key not in _asked:
        raise bad_input(
            "key",
            f"is {key!r}, which nothing has asked yet",
            f"one of {sorted(_asked)}",
            f"run the cell with predict({key!r}, …) first",
        )
    question = _asked[key]
    facts = {**question.facts(), "answer": question.check_answer(value)}
    open_ledger().record("prediction", key, facts)


def predicted(key: str) -> Answer | None:
    """The learner's prediction, without showing it; None where there is none.

    Raises:
        ValueError: the key has not the form of one, or is a slip of one that was
            asked.
    """
    check_key(key)
    if key in _asked:
        return _find_answer(_asked[key])
    event = open_ledger().latest("prediction", key)
    if event is not None:  # asked in an earlier session
        return event.get("answer")
    close = difflib.get_close_matches(key, _asked, n=1, cutoff=0.85)
    if close:
        raise bad_input(
            "key",
            f"is {key!r}, which nothing has asked",
            f"one of {sorted(_asked)}",
            f"did you mean {close[0]!r}",
        )
    return None


def outcome(key: str, result: object) -> Answer | None:
    """Show what was predicted beside what came out, and record both.

    Args:
        key: of the prediction.
        result: one of its choices, or the number that came out.

    Returns:
        The learner's prediction, or None; without one the result is shown alone.

    Raises:
        ValueError: a bad key, a result that was not among the choices, or one that
            is no finite number.
    """
    guess = predicted(key)
    question = _asked.get(key) or _remember(key, result)
    came_out = question.check_result(result)
    facts = {**question.facts(), "result": came_out}
    if isinstance(guess, str) == isinstance(came_out, str) and guess is not None:
        facts["predicted"] = guess
    open_ledger().record("outcome", key, facts)
    show({"text/html": outcome_html(facts), "text/plain": outcome_text(facts)})
    return _quiet(facts.get("predicted"))


class _QuietText(str):
    """As a cell's last value it says nothing: the picture above it has."""

    def _ipython_display_(self) -> None:
        pass


class _QuietNumber(float):
    """The same for a number."""

    def _ipython_display_(self) -> None:
        pass


def _quiet(guess: Answer | None) -> Answer | None:
    if guess is None:
        return None
    return _QuietText(guess) if isinstance(guess, str) else _QuietNumber(guess)


def _remember(key: str, result: object) -> Question:
    """The question as an earlier session asked it, if that fits the result."""
    event = open_ledger().latest("prediction", key) or {}
    choices = tuple(event.get("choices", ()))
    if isinstance(result, str):
        choices = choices if result in choices else (result,)
    else:
        choices = ()
    ends = tuple(event["range"]) if "range" in event else None
    return Question(
        key, event.get("question", ""), choices, ends, event.get("unit", "")
    )


def _find_answer(question: Question) -> Answer | None:
    """The saved answer, if this question can still have it."""
    event = open_ledger().latest("prediction", question.key)
    if event is None:
        return None
    try:
        return question.check_answer(event.get("answer"))
    except ValueError:  # the question has changed since
        return None

"""``quiz``: a notebook's questions on the page, what is chosen in the progress file."""

from __future__ import annotations

import importlib.util

from flowrl_lab.course.ledger import open_ledger
from flowrl_lab.course.quiz_questions import QuizQuestion, StillQuiz, load_quiz
from flowrl_lab.course.showing import ShownOnce

__all__ = ["quiz"]


def quiz(name: str) -> ShownOnce:
    """Show the quiz of a notebook; what is chosen goes to the progress file.

    Args:
        name: the notebook's, such as ``"02_partition_function"``.

    Returns:
        The widget (where none can load, its text); it has been shown already.

    Raises:
        ValueError: there is no such quiz, or its file is not as it should be.
    """
    questions = load_quiz(name)
    if importlib.util.find_spec("anywidget") is None:  # only the core is installed
        view = StillQuiz(questions)
    else:
        from flowrl_lab.course.quiz_field import QuizField

        view = QuizField(
            questions,
            _chosen_before(name, questions),
            on_choice=lambda index, text: _record(name, questions[index], text),
        )
    view.show_now()
    return view


def _chosen_before(
    name: str, questions: tuple[QuizQuestion, ...]
) -> dict[str, list[int]]:
    """question number -> the choices tried so far, in order, from the file."""
    tried: dict[str, list[int]] = {}
    for event in open_ledger().events():
        if event["kind"] != "quiz" or event["key"] != name:
            continue
        for index, question in enumerate(questions):
            choice = question.find(str(event.get("choice")))
            if question.text == event.get("question") and choice is not None:
                tried.setdefault(str(index), []).append(question.choices.index(choice))
    return tried


def _record(name: str, question: QuizQuestion, text: str) -> None:
    choice = question.find(text)
    facts = {"question": question.text, "choice": text, "right": choice.right}
    open_ledger().record("quiz", name, facts)

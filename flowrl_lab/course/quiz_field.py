"""Quiz questions with radio buttons; the browser shows each explanation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import traitlets

from flowrl_lab._validation import bad_input
from flowrl_lab.course.quiz_questions import QuizQuestion, StillQuiz
from flowrl_lab.course.showing import ShownOnce
from flowrl_lab.widgets._base import Explorer

FOLDER = Path(__file__).parent

__all__ = ["QuizField"]


class QuizField(ShownOnce, Explorer):
    """All questions of a quiz; choosing an answer explains it at once.

    Args:
        questions: what is asked.
        tried: question number (as text) -> the choices made so far, in order.
        on_choice: called with the question's number and the chosen text.
    """

    _esm = FOLDER / "quiz_field.js"
    _css = FOLDER / "question.css"
    _questions = traitlets.List(traitlets.Dict()).tag(sync=True)
    tried = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        questions: tuple[QuizQuestion, ...],
        tried: dict[str, list[int]] | None = None,
        *,
        on_choice: Callable[[int, str], None] | None = None,
    ) -> None:
        self.questions = questions
        rows = [
            {
                "text": question.text,
                "choices": [
                    {"text": choice.text, "right": choice.right, "why": choice.why}
                    for choice in question.choices
                ],
            }
            for question in questions
        ]
        super().__init__(_questions=rows, tried=tried or {})
        if on_choice is not None:
            self.observe(lambda change: self._tell(change, on_choice), "tried")

    @traitlets.validate("tried")
    def _check_tried(self, proposal):
        for key, choices in proposal["value"].items():
            known = key.isdecimal() and int(key) < len(self.questions)
            count = len(self.questions[int(key)].choices) if known else 0
            if not all(isinstance(i, int) and 0 <= i < count for i in choices):
                raise bad_input(
                    "tried",
                    f"has {choices} for question {key}",
                    "numbers of its choices, counted from 0",
                    "count again",
                )
        return proposal["value"]

    def _tell(self, change: dict, on_choice: Callable[[int, str], None]) -> None:
        """Pass on what is new: the browser sends the whole list each time."""
        for key, choices in change["new"].items():
            question = self.questions[int(key)]
            for index in choices[len(change["old"].get(key, ())) :]:
                on_choice(int(key), question.choices[index].text)

    def score(self) -> int:
        """Questions that were right at the first try."""
        return sum(
            self.questions[int(key)].choices[choices[0]].right
            for key, choices in self.tried.items()
            if choices
        )

    def still_bundle(self) -> dict[str, str]:
        """The quiz with folded explanations."""
        return StillQuiz(self.questions)._repr_mimebundle_()

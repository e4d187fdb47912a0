"""A question with radio buttons, or a number field with a slider."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape
from pathlib import Path

import traitlets

from flowrl_lab.course.questions import Answer, Question, StillQuestion, say
from flowrl_lab.course.showing import ShownOnce
from flowrl_lab.plots.live import in_notebook
from flowrl_lab.widgets._base import Explorer

FOLDER = Path(__file__).parent

__all__ = ["PredictionField"]


class PredictionField(ShownOnce, Explorer):
    """Takes one prediction; choosing again replaces it.

    Args:
        question: what is asked.
        given: the prediction so far, or None.
        on_answer: called with each new answer.
    """

    _esm = FOLDER / "prediction_field.js"
    _css = FOLDER / "question.css"
    _text = traitlets.Unicode().tag(sync=True)
    _choices = traitlets.List(traitlets.Unicode()).tag(sync=True)
    _range = traitlets.List(traitlets.Float()).tag(sync=True)
    _step = traitlets.Float(0.0).tag(sync=True)
    _unit = traitlets.Unicode().tag(sync=True)
    answer = traitlets.Any(None, allow_none=True).tag(sync=True)

    def __init__(
        self,
        question: Question,
        given: Answer | None = None,
        *,
        on_answer: Callable[[Answer], None] | None = None,
    ) -> None:
        self.question = question
        ends = question.ends or ()
        super().__init__(
            _text=question.text,
            _choices=list(question.choices),
            _range=list(ends),
            _step=slider_step(*ends) if ends else 0.0,
            _unit=question.unit,
            answer=given,
        )
        if on_answer is not None:
            self.observe(lambda change: on_answer(change["new"]), "answer")

    @traitlets.validate("answer")
    def _check_answer(self, proposal):
        value = proposal["value"]
        return None if value is None else self.question.check_answer(value)

    def show_now(self) -> None:
        """Show the field, and beside it in words what a page without it would lack.

        A browser that opens the saved page makes a widget when a kernel runs, and
        exported pages have none; the words are there at once, and where the field is
        they are hidden.
        """
        super().show_now()
        if self.comm is not None and in_notebook():
            from IPython.display import HTML, display

            words = display(HTML(self._kept()), display_id=True)
            self.observe(lambda _: words.update(HTML(self._kept())), "answer")

    def _kept(self) -> str:
        if self.answer is None:
            return ""
        said = escape(say(self.answer, self.question.unit))
        return f'<div class="flowrl-kept">Your prediction: {said}.</div>'

    def still_bundle(self) -> dict[str, str]:
        """The question as text."""
        return StillQuestion(self.question, self.answer)._repr_mimebundle_()


def slider_step(low: float, high: float) -> float:
    """A round step, at least a hundred of them from ``low`` to ``high``."""
    return 10.0 ** math.floor(math.log10((high - low) / 100) + 1e-9)

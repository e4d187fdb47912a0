"""The hint and the solution of an exercise, folded away until asked for."""

from __future__ import annotations

import html

from flowrl_lab.course.checking import load_solution
from flowrl_lab.course.exercises import EXERCISES
from flowrl_lab.course.pasting import pasteable_source
from flowrl_lab.course.showing import markup_to_html, markup_to_text

__all__ = ["Reveal", "hint_and_solution"]


class Reveal:
    """Two folded lines in a notebook; as text, the hint only.

    Attributes:
        hint: the nudge.
        source: the library function, the solution, with the imports it needs: it runs
            where it is pasted.
        where: its ``"module:function"``.
    """

    def __init__(self, hint: str, source: str, where: str):
        self.hint, self.source, self.where = hint, source, where

    def __repr__(self) -> str:
        hint = markup_to_text(self.hint)
        return f"Hint: {hint}\nSolution: print(….source), or read {self.where}"

    def _repr_html_(self) -> str:
        return (
            f"<details><summary>Hint</summary><p>{markup_to_html(self.hint)}</p>"
            "</details><details><summary>Solution: "
            f"<code>{html.escape(self.where)}</code></summary>"
            f"<pre>{html.escape(self.source)}</pre></details>"
        )


def hint_and_solution(name: str) -> Reveal:
    """The exercise's hint, and its solution: the library's own source.

    Args:
        name: of the exercise.

    Raises:
        ValueError: for an unknown exercise.
    """
    if name not in EXERCISES:
        raise ValueError(f"exercise: got {name!r}, expected one of {sorted(EXERCISES)}")
    exercise = EXERCISES[name]
    source = pasteable_source(load_solution(exercise))
    return Reveal(exercise.hint, source, exercise.solution)

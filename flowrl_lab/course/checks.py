"""``check``: the verdict on a learner's function, shown and recorded."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from flowrl_lab.course.checking import Exercise, Result, judge, load_solution
from flowrl_lab.course.exercises import EXERCISES
from flowrl_lab.course.hints import hint_and_solution
from flowrl_lab.course.ledger import open_ledger
from flowrl_lab.course.using import note_verdict, read_source, unguarded

__all__ = ["check"]


def check(
    name: str,
    function: object,
    *,
    seconds: float = 5.0,
    exercises: Mapping[str, Exercise] | None = None,
) -> Result:
    """Check a learner's function, show and record the verdict, and never raise.

    Below the verdict the hint and the solution are folded.

    Args:
        name: the exercise's name.
        function: the learner's function itself, not a call of it.
        seconds: a single call that takes longer counts as an endless loop.
        exercises: where to look the name up; the course's own by default.

    Returns:
        The verdict; it has been shown already.
    """
    course = exercises is None
    exercises = EXERCISES if exercises is None else exercises
    function = unguarded(function)
    if name in exercises:
        result = _judge(exercises[name], function, seconds)
        if course:
            result.folded = hint_and_solution(name)._repr_html_()
            note_verdict(name, function, result.status)
            _record(result, function)
    else:
        close = difflib.get_close_matches(str(name), list(exercises), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        result = Result(str(name), "failed", f"There is no exercise {name!r}.{hint}")
    result.show_now()
    return result


def _judge(exercise: Exercise, function: object, seconds: float) -> Result:
    name = exercise.name
    if not callable(function):
        problem = (
            f"Pass the function itself, check({name!r}, {name}), not its result "
            f"(got {type(function).__name__})."
        )
        return Result(name, "failed", problem)
    if function is load_solution(exercise):
        return Result(
            name,
            "not attempted",
            "This is the library's own function. Write yours in the cell above, run "
            "that cell, and then this one.",
        )
    return judge(exercise, function, seconds)


def _record(result: Result, function: object) -> None:
    """Note a verdict in the learner's progress file, with what has passed."""
    if result.status == "not attempted":
        return
    facts = {"status": result.status, "mistake": result.mistake}
    if result.status == "passed":
        facts["source"] = read_source(function)
    open_ledger().record("check", result.name, facts)

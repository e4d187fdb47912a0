"""``check``: the verdict on a learner's function, shown and recorded."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from flowrl_lab.course.checking import Exercise, Result, judge, show_result
from flowrl_lab.course.exercises import EXERCISES
from flowrl_lab.course.ledger import open_ledger
from flowrl_lab.course.using import read_source

__all__ = ["check"]


def check(
    name: str,
    function: object,
    *,
    seconds: float = 5.0,
    exercises: Mapping[str, Exercise] | None = None,
) -> Result:
    """Check a learner's function, show and record the verdict, and never raise.

    Args:
        name: the exercise's name.
        function: the learner's function itself, not a call of it.
        seconds: a single call that takes longer counts as an endless loop.
        exercises: where to look the name up; the course's own by default.

    Returns:
        The verdict; it has been shown already.
    """
    recorded = exercises is None
    exercises = EXERCISES if exercises is None else exercises
    if name not in exercises:
        close = difflib.get_close_matches(str(name), list(exercises), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        result = Result(str(name), "failed", f"There is no exercise {name!r}.{hint}")
    elif not callable(function):
        result = Result(
            name,
            "failed",
            f"Pass the function itself, check({name!r}, {name}), not its result "
            f"(got {type(function).__name__}).",
        )
    else:
        result = judge(exercises[name], function, seconds)
    show_result(result)
    result._shown = True
    if recorded and name in exercises and result.status != "not attempted":
        facts = {"status": result.status, "mistake": result.mistake}
        if result.status == "passed":
            facts["source"] = read_source(function)
        open_ledger().record("check", name, facts)
    return result

"""``use``: the learner's own function in later cells, where its check has passed."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from flowrl_lab._validation import bad_input
from flowrl_lab.course.checking import judge, load_solution
from flowrl_lab.course.exercises import EXERCISES
from flowrl_lab.course.given import COLUMNS, describe_inputs
from flowrl_lab.course.ledger import open_ledger, progress_path

__all__ = ["LearnersError", "note_verdict", "read_source", "unguarded", "use"]

MAX_SOURCE = 20_000  # characters that a progress file keeps of one function
# What the cells of every notebook have imported, beside the library's own names.
COURSE_NAMES = {"torch": torch, "math": math, "np": np, "F": torch.nn.functional}

# The function of each check in this kernel: None where the last one failed.
_checked: dict[tuple[Path, str], object] = {}


class LearnersError(RuntimeError):
    """A learner's function passed its check, and stopped in a later run."""


def use(name: str, *, library: bool = False) -> Callable:
    """The learner's function where it has passed its check, else the library's.

    Says in one line whose it is.  The same line stands everywhere: below the check,
    and in every later notebook that needs the function::

        masked_sum = use("masked_sum")

    Args:
        name: the exercise's name.
        library: take the library's, whatever has passed.

    Returns:
        The library's function, or the learner's, which is the one that was checked
        last in this kernel, or that passed in another notebook (its text is in the
        progress file, and is checked again).  The learner's raises ``LearnersError``,
        with its name and its inputs, where it stops.

    Raises:
        ValueError: there is no such exercise.
    """
    if name not in EXERCISES:
        close = difflib.get_close_matches(str(name), EXERCISES, n=1)
        raise bad_input(
            "name",
            f"is {name!r}, which is no exercise",
            "the name of one",
            f"did you mean {close[0]!r}" if close else "see EXERCISES",
        )
    mine, why = (None, "as you asked") if library else _find_mine(name)
    if mine is None:
        said = f"{name}: the library's ({why})"
        print(textwrap.fill(said, COLUMNS, subsequent_indent="    "))
        return load_solution(EXERCISES[name])
    print(f"{name}: yours{why}")
    return _guarded(name, mine)


def note_verdict(name: str, function: object, status: str) -> None:
    """Remember for ``use`` what a check has said of a function."""
    if status != "not attempted":
        passed = function if status == "passed" else None
        _checked[progress_path(), name] = passed


def unguarded(function: object) -> object:
    """The learner's function itself, of one that ``use`` has given out."""
    return getattr(function, "_learners", function)


def read_source(function: Callable) -> str:
    """The text of a function, for the progress file; empty where there is none."""
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):
        return ""
    return source if len(source) <= MAX_SOURCE else ""


def _find_mine(name: str) -> tuple[Callable | None, str]:
    """The learner's function and where it is from; or None and why not."""
    key = (progress_path(), name)
    if key in _checked:
        mine = _checked[key]
        return mine, "" if mine else "yours failed its last check"
    event = open_ledger().latest("check", name)
    if event is None or event.get("status") != "passed" or not event.get("source"):
        return None, "yours has not passed its check yet"
    where = event.get("notebook") or "another session"
    mine, problem = _revive(name, event["source"])
    if mine is None:
        return None, f"yours passed in {where}, but not here: {problem}"
    return mine, f", from {where}"


def _revive(name: str, source: object) -> tuple[Callable | None, str]:
    """A function from its text, beside the library's own names, checked again."""
    solution = load_solution(EXERCISES[name])
    home = COURSE_NAMES | vars(inspect.getmodule(solution))
    del home[solution.__name__]
    try:
        exec(compile(str(source), f"<your {name}>", "exec"), home)
    except Exception as error:  # whatever stands in a damaged progress file
        return None, f"{type(error).__name__}: {error}"
    mine = home.get(solution.__name__)
    if not callable(mine):
        return None, "its text defines no such function"
    verdict = judge(EXERCISES[name], mine, 5.0)
    return (mine, "") if verdict.status == "passed" else (None, verdict.message)


def _guarded(name: str, mine: Callable) -> Callable:
    """The function; where it raises, the run stops with its name and its inputs."""

    @functools.wraps(mine)
    def guarded(*args, **kwargs):
        try:
            return mine(*args, **kwargs)
        except LearnersError:  # of another function that this one calls
            raise
        except Exception as error:
            names = list(inspect.signature(mine).parameters)
            raise LearnersError(
                f"your {name} passed its check, but stopped this run with "
                f"{type(error).__name__}: {error}\nIt was given\n"
                f"{textwrap.indent(describe_inputs(names, args, kwargs), '    ')}\n"
                "Fix: mend it, and run its check and this cell again. Or go on with "
                f'the library\'s:\n    {name} = use("{name}", library=True)'
            ) from error

    guarded._learners = mine
    return guarded

"""The tasks, by name.  Each is imported only when somebody asks for it."""

from __future__ import annotations

from typing import Any

from flowrl_lab.tasks._registry import build_named, did_you_mean
from flowrl_lab.tasks.base import Task
from flowrl_lab.tasks.own import place_of, text_task
from flowrl_lab.tasks.real import TEXT_TASKS, load_text_task
from flowrl_lab.tasks.text import TextTask

__all__ = ["TASKS", "Task", "load_task", "place_of", "text_task"]

# name -> "module:class"
TASKS: dict[str, str] = {
    "landscape": "flowrl_lab.tasks.landscape:Landscape",
    "strings": "flowrl_lab.tasks.strings:Strings",
    "make_number": "flowrl_lab.tasks.make_number:MakeNumber",
    "programs": "flowrl_lab.tasks.programs:Programs",
    "sums": "flowrl_lab.tasks.sums:Sums",
    "sums_6": "flowrl_lab.tasks.sums:Sums6",
    "sums_21": "flowrl_lab.tasks.sums:Sums21",
    "sums_57": "flowrl_lab.tasks.sums:Sums57",
    "open_sets": "flowrl_lab.tasks.open_sets:OpenSets",
    "number_facts": "flowrl_lab.tasks.number_facts:NumberFacts",
    "formulas": "flowrl_lab.tasks.formulas:Formulas",
    "required_operator": "flowrl_lab.tasks.required_operator:RequiredOperator",
}


def load_task(name: str, **options: Any) -> Task | TextTask:
    """Build the task called ``name``.

    Args:
        name: a key of ``TASKS`` or of ``tasks.real.TEXT_TASKS``, or
            ``"package.module:name"`` of a task of your own, or of its class.
        options: the keyword arguments of that task's class.

    Returns:
        A ready task.

    Raises:
        ValueError: for an unknown name or option (the message lists the known
            ones and the closest match), or an option that the task refuses.
    """
    if ":" in name:
        return _check_own(name, build_named("task", name, {name: name}, options))
    if name in TEXT_TASKS:
        return load_text_task(name, **options)
    if name not in TASKS:
        known = [*TASKS, *TEXT_TASKS]
        raise ValueError(
            f"task: got {name!r}, expected one of {sorted(known)}"
            f"{did_you_mean(name, known)}"
        )
    return build_named("task", name, TASKS, options)


def _check_own(name: str, task: Any) -> Task | TextTask:
    """Refuse what an import path leads to if it is no task."""
    if all(callable(getattr(task, part, None)) for part in ("prompts", "score")):
        return task
    raise ValueError(
        f"task {name!r} is a {type(task).__name__}, which has no prompts and score. "
        "Fix: name a task, such as text_task(prompts, reward) makes."
    )

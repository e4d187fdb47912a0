"""The tasks, by name.  Each is imported only when somebody asks for it."""

from __future__ import annotations

import difflib
import importlib
import inspect
from typing import Any

from flowrl_lab.tasks.base import Task
from flowrl_lab.tasks.real import TEXT_TASKS, load_text_task
from flowrl_lab.tasks.text import TextTask

__all__ = ["TASKS", "Task", "load_task"]

# name -> "module:class"; a string, so that one task's missing dependency never
# stops the others from loading.
TASKS: dict[str, str] = {
    "landscape": "flowrl_lab.tasks.landscape:Landscape",
    "strings": "flowrl_lab.tasks.strings:Strings",
    "make_number": "flowrl_lab.tasks.make_number:MakeNumber",
    "programs": "flowrl_lab.tasks.programs:Programs",
    "open_sets": "flowrl_lab.tasks.open_sets:OpenSets",
    "required_operator": "flowrl_lab.tasks.required_operator:RequiredOperator",
}


def load_task(name: str, **options: Any) -> Task | TextTask:
    """Build the task called ``name``.

    Args:
        name: a key of ``TASKS`` or of ``tasks.real.TEXT_TASKS``.
        options: the keyword arguments of that task's class.

    Returns:
        A ready task.

    Raises:
        ValueError: for an unknown name or option (the message lists the known
            ones and the closest match), or an option that the task refuses.
    """
    if name in TEXT_TASKS:
        return load_text_task(name, **options)
    if name not in TASKS:
        known = [*TASKS, *TEXT_TASKS]
        raise ValueError(
            f"task: got {name!r}, expected one of {sorted(known)}"
            f"{_did_you_mean(name, known)}"
        )
    module_name, class_name = TASKS[name].split(":")
    task_class = getattr(importlib.import_module(module_name), class_name)
    known = [p for p in inspect.signature(task_class).parameters if p != "self"]
    for option in options:
        if option not in known:
            raise ValueError(
                f"options of task {name!r}: got {option!r}, expected some of "
                f"{known}{_did_you_mean(option, known)}"
            )
    return task_class(**options)


def _did_you_mean(word: str, known) -> str:
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""

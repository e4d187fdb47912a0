"""Tasks are named in tables and loaded only when somebody asks for one."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = [
    "build_named",
    "did_you_mean",
    "find_named",
    "main_module",
    "refuse_while_imported",
]


def build_named(
    kind: str, name: str, places: dict[str, str], options: dict[str, Any]
) -> Any:
    """Import the class that ``name`` stands for, and make one.

    Args:
        kind: what messages call it, such as "task".
        name: a key of ``places``.
        places: name -> "module:class"; strings, so that one entry's missing
            dependency never stops the others from loading.
        options: keyword arguments of the class.

    Raises:
        ValueError: an option that the class does not have, or refuses.
    """
    named = find_named(kind, name, places[name])
    if not callable(named):  # a task that is ready
        named = functools.partial(_as_it_is, named)
    known = list(inspect.signature(named).parameters)
    for option in options:
        if option not in known:
            raise ValueError(
                f"options of {kind} {name!r}: got {option!r}, expected some of "
                f"{known}{did_you_mean(option, known)}"
            )
    return named(**options)


def _as_it_is(value: Any) -> Any:
    return value


def find_named(kind: str, name: str, place: str) -> Any:
    """What ``place``, ``"package.module:name"``, stands for.

    The folder that Python was started in is looked in as well, last.

    Raises:
        ValueError: no such module, one that cannot be imported, or no such name.
    """
    module_name, _, attribute = place.partition(":")
    here = os.getcwd()
    if not {here, ""} & set(sys.path):
        sys.path.append(here)
    try:
        module = _import(module_name)
    except ImportError as error:
        raise ValueError(
            f"{kind} {name!r} cannot be found: {error} (looked in {here} and where "
            f"Python's packages are). Fix: start in the folder that holds it, install "
            f"it, or hand over the {kind} itself: Run.load(folder, task=...)."
        ) from error
    if hasattr(module, attribute):
        return getattr(module, attribute)
    if module_name == "__main__":
        raise ValueError(
            f"{kind} {name!r} cannot be found: it was made in a notebook or a "
            "function, and a saved run holds a name, not its code. Fix: put it into a "
            "file, such as my_task.py, under a name; or hand it over: "
            "Run.load(folder, task=...)."
        )
    raise ValueError(
        f"{kind} {name!r} cannot be found: the module {module_name!r} has no "
        f"{attribute!r}{did_you_mean(attribute, vars(module))} Fix: put it back, or "
        "name another."
    )


_being_imported: list[str] = []


def _import(name: str) -> Any:
    if name == main_module():  # a script is here already, and would run again
        return sys.modules["__main__"]
    _being_imported.append(name)
    try:
        return importlib.import_module(name)
    finally:
        _being_imported.pop()


def refuse_while_imported() -> None:
    """Stop a script that trains as soon as somebody asks it for its task.

    Raises:
        ValueError: a module is being imported for the task in it.
    """
    if _being_imported:
        raise ValueError(
            f"{_being_imported[-1]} trains while it is imported for its task. Fix: put "
            'what trains under `if __name__ == "__main__":`, or the task into a file '
            "of its own."
        )


def main_module() -> str:
    """The name under which others import what Python was started with."""
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None and spec.name != "__main__":
        return spec.name
    stem = Path(file).stem if file else ""
    return stem if stem.isidentifier() else "__main__"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint at the closest known word, or nothing."""
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""

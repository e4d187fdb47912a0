"""Tasks are named in tables and loaded only when somebody asks for one."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Iterable
from typing import Any

__all__ = ["build_named", "did_you_mean"]


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
    module_name, class_name = places[name].split(":", 1)
    module = importlib.import_module(module_name)
    if not hasattr(module, class_name):
        raise ValueError(
            f"{kind} {name!r}: {module_name} has no {class_name!r}. Fix: name a class "
            "of that module"
        )
    named = getattr(module, class_name)
    known = list(inspect.signature(named).parameters)
    for option in options:
        if option not in known:
            raise ValueError(
                f"options of {kind} {name!r}: got {option!r}, expected some of "
                f"{known}{did_you_mean(option, known)}"
            )
    return named(**options)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint at the closest known word, or nothing."""
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""

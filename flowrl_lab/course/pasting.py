"""A library function as a piece of text that runs where it is pasted."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import sys
from collections.abc import Callable
from types import ModuleType

__all__ = ["find_imports", "pasteable_source"]


def pasteable_source(function: Callable) -> str:
    """The function's source, below the imports that it needs.

    A learner who pastes what the library holds would otherwise meet a NameError: the
    names that it uses were imported at the top of its module.

    Args:
        function: a function of a module, with its source at hand.

    Returns:
        The imports, two blank lines, and the source; the source alone if it needs
        nothing.
    """
    function = inspect.unwrap(function)
    source = inspect.getsource(function)
    imports = find_imports(source, sys.modules[function.__module__])
    return "\n".join([*imports, "", "", source]) if imports else source


def find_imports(source: str, home: ModuleType) -> list[str]:
    """Import statements for every name that ``source`` takes from its module.

    Args:
        source: one function.
        home: the module that it stands in.

    Returns:
        Whole modules first, then names sorted by the module they come from.
    """
    tree = ast.parse(source)
    own = {tree.body[0].name, *dir(builtins)}
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    modules, members = [], {}
    for name in sorted((used & vars(home).keys()) - own):
        value = getattr(home, name)
        if isinstance(value, ModuleType):
            modules.append(_import_module(name, value))
        else:
            members.setdefault(_find_source(name, value, home), []).append(name)
    return modules + [
        f"from {module} import {', '.join(names)}"
        for module, names in sorted(members.items())
    ]


def _import_module(name: str, module: ModuleType) -> str:
    parent, _, last = module.__name__.rpartition(".")
    if name == module.__name__:
        return f"import {name}"
    if name == last and parent:
        return f"from {parent} import {name}"
    return f"import {module.__name__} as {name}"


def _find_source(name: str, value: object, home: ModuleType) -> str:
    """The public module that offers ``value`` under ``name``; else its user's."""
    origin = getattr(value, "__module__", None) or home.__name__
    for candidate in (origin.partition(".")[0], origin):
        if candidate == "flowrl_lab":  # its functions are shown with their module
            continue
        module = sys.modules.get(candidate) or importlib.import_module(candidate)
        if getattr(module, name, None) is value:
            return candidate
    return home.__name__

"""After an error in a cell: which section has to be run first."""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

from flowrl_lab.course.showing import show
from flowrl_lab.plots.live import LivePlot

__all__ = ["find_section", "remind", "remind_after_errors"]

# What a cell meets where an earlier one did not run, or not to its end.
MISSING = (LookupError, AssertionError, ValueError, AttributeError, TypeError)
HEADING = re.compile(r"^#+ (\d+\.\d+)", flags=re.MULTILINE)


def remind_after_errors() -> None:
    """From now on say below an error what to run first, where that is known.

    In a kernel only; asking twice changes nothing.
    """
    from IPython import get_ipython

    events = getattr(get_ipython(), "events", None)
    if events is not None and _after_cell not in events.callbacks["post_run_cell"]:
        events.register("post_run_cell", _after_cell)


def remind(error: BaseException, names: Mapping[str, object], path: Path | None) -> str:
    """What to run before the cell that raised ``error``; "" where nobody can tell.

    Args:
        error: what the cell raised.
        names: the notebook's variables.
        path: the notebook's file, if it is known.
    """
    if isinstance(error, NameError):
        section = find_section(path, error.name) if path else ""
        if section:
            return f"{error.name} is made in section {section}: run that first."
    if not isinstance(error, (NameError, *MISSING)):
        return ""
    for name, plot in names.items():
        if isinstance(plot, LivePlot) and plot.interrupted and name[0] != "_":
            section = find_section(path, name) if path else ""
            where = f"section {section}" if section else f"the cell of {name}"
            return (
                f"“{plot.title}” was interrupted, and the cells after it expect the "
                f"whole run: run {where} to its end first."
            )
    return ""


def find_section(path: Path, name: str) -> str:
    """The number of the section, such as 7.5, whose code makes ``name``; else ""."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    section = ""
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            section = [section, *HEADING.findall(source)][-1]
        elif name in _made_names(source):
            return section
    return ""


def _made_names(source: str) -> Iterator[str]:
    """The names that a cell binds at its top level or in a loop or a ``with``."""
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a learner's cell, half written
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).partition(".")[0]


def _after_cell(result) -> None:
    """IPython calls this after each cell, below what the cell has shown."""
    from IPython import get_ipython

    if result.error_in_exec is None:
        return
    text = remind(result.error_in_exec, get_ipython().user_ns, _notebook_file())
    if text:
        style = "border-left:5px solid #0072B2;padding:.4em 1em"
        page = f'<div style="{style}">{escape(text)}</div>'
        show({"text/html": page, "text/plain": text})


def _notebook_file() -> Path | None:
    """The file of the notebook that this kernel serves, where JupyterLab tells."""
    told = os.environ.get("JPY_SESSION_NAME", "")
    here = (Path(told), Path(told).name and Path.cwd() / Path(told).name)
    return next((path for path in here if told and path.is_file()), None)

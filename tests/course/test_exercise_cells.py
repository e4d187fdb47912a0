"""Every notebook's exercises where a learner's function is broken.

The cells themselves run, in order, in one namespace: the setup, all imports, and of
each exercise the stub, its check, its hint and its adopting import.  Left alone and
solved they run with the whole notebook, under nbval (``notebook_copies``).
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from notebook_copies import MAY_BE_WIDE, write_copies

from flowrl_lab.course import EXERCISES
from flowrl_lab.course.checking import load_solution

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def unsolved(cell: nbformat.NotebookNode) -> Callable:
    """The stub as it is shipped."""
    names: dict = {}
    exec(cell.source, names)
    return names[ast.parse(cell.source).body[-1].name]


def run_exercises(path: Path, write: Callable) -> dict[str, str]:
    """Run the cells; every exercise's verdict."""
    cells = nbformat.read(path, as_version=nbformat.NO_CONVERT).cells
    cells = [cell for cell in cells if cell.cell_type == "code"]
    names: dict = {"__name__": "__main__"}
    verdicts = {}
    exec(cells[0].source, names)  # the setup
    for cell in cells[1:]:
        mark = cell.metadata.get("flowrl", {})
        if "exercise" in mark:
            learners = write(cell)
            name = learners.__name__
            names[name] = learners
        elif cell.source.startswith("check("):
            call, _, rest = cell.source.partition("\n")
            result = eval(call, names)
            verdicts[result.name] = f"{result.status} {result.mistake}".strip()
            exec(rest, names)  # use: the library's takes over
            assert not rest or names[name] is load_solution(EXERCISES[result.name])
        elif cell.source.startswith("hint_and_solution("):
            assert eval(cell.source, names).hint
        else:
            body = ast.parse(cell.source).body
            imports = [s for s in body if isinstance(s, ast.Import | ast.ImportFrom)]
            exec(compile(ast.Module(imports, []), "<imports>", "exec"), names)
            for one in imports:
                assert_adopted(one, names)
    return verdicts


def assert_adopted(statement: ast.stmt, names: dict) -> None:
    """After an import the library's function stands where the learner's was."""
    if isinstance(statement, ast.ImportFrom) and statement.module.startswith("flowrl"):
        module = importlib.import_module(statement.module)
        for alias in statement.names:
            assert names[alias.asname or alias.name] is getattr(module, alias.name)


def exercise_names(path: Path) -> set[str]:
    cells = nbformat.read(path, as_version=nbformat.NO_CONVERT).cells
    marks = (cell.metadata.get("flowrl", {}) for cell in cells)
    return {mark["exercise"] for mark in marks if "exercise" in mark}


@each_notebook
def test_a_crash_or_an_endless_loop_in_a_cell_stops_nothing(path, monkeypatch):
    """The same cells with broken solutions: each check says so and the next runs."""
    import flowrl_lab.course as course

    def write(cell: nbformat.NotebookNode) -> Callable:
        name = unsolved(cell).__name__
        crash = len(name) % 2

        def broken(*_arguments, **_settings):
            if crash:
                raise ZeroDivisionError("made for this test")
            while True:
                pass

        broken.__name__ = name
        return broken

    slow = course.check
    monkeypatch.setattr(course, "check", lambda *given: slow(*given, seconds=0.2))
    verdicts = run_exercises(path, write)
    assert verdicts == dict.fromkeys(exercise_names(path), "failed")


def test_in_a_copy_every_cell_is_there_and_every_exercise_is_solved(tmp_path):
    """The copies run whole under nbval; here, that nothing in them was left out."""
    for copy, path in zip(write_copies(tmp_path), NOTEBOOKS, strict=True):
        shipped, copied = (
            nbformat.read(file, as_version=nbformat.NO_CONVERT).cells
            for file in (path, copy)
        )
        assert [c for c in copied if c.id in {c.id for c in shipped}] == shipped
        added = [c.source for c in copied if c not in shipped]
        for demand in ("not attempted", "passed"):
            found = sum(f"verdict.status == {demand!r}" in source for source in added)
            assert found == len(exercise_names(path)) > 0
        watched = 2 * (path.stem not in MAY_BE_WIDE)
        assert len(added) == 3 * len(exercise_names(path)) + watched

"""The learner's functions flow on: a spoilt one changes what a later cell shows.

Of a notebook only the cells run that the later cell needs, once with the solution and
once with a function that gives other numbers.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
import torch

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
TRAINING = ("race(", "Run(", "train(", "train_hills(", "train_tb(", "one_run(")


@dataclass(frozen=True)
class Flow:
    """One exercise, and the cells with which a later one is reached.

    Attributes:
        name: of the function.
        solution: ``"module:function"``.
        ways: sources of cells, in order; the last one calls the function.  The
            cheapest way first; one that leaves out a cell that it needed is passed
            over.
    """

    name: str
    solution: str
    ways: tuple[tuple[str, ...], ...]

    @property
    def trains(self) -> bool:
        """Whether even the cheapest way needs a training run."""
        return trains(self.ways[0])


def trains(way: tuple[str, ...]) -> bool:
    return any(word in "".join(way) for word in TRAINING)


def names_in(tree: ast.AST, context: type) -> set[str]:
    """The names that a tree loads, or stores (definitions and imports too)."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, context):
            found.add(node.id)
        elif context is ast.Store:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.alias):
                found.add((node.asname or node.name).partition(".")[0])
    return found


@functools.cache  # here and below: each exercise asks all cells of its notebook
def names_loaded(source: str) -> set[str]:
    """The names that a cell loads."""
    return names_in(ast.parse(source), ast.Load)


@functools.cache
def names_made(source: str) -> set[str]:
    """What a cell leaves to later ones: not what is local to its functions."""
    made: set[str] = set()
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            made.add(statement.name)
        else:
            made |= names_in(statement, ast.Store)
    return made


@functools.cache
def names_taken(source: str) -> set[str]:
    """What a cell takes from earlier ones."""
    taken: set[str] = set()
    made: set[str] = set()
    for statement in ast.parse(source).body:
        inner = {n.arg for n in ast.walk(statement) if isinstance(n, ast.arg)}
        for node in ast.walk(statement):
            if isinstance(node, ast.comprehension):
                inner |= names_in(node.target, ast.Store)
        if not isinstance(statement, ast.Assign | ast.AugAssign):
            inner |= names_in(statement, ast.Store)  # loop variables, and the like
        taken |= names_in(statement, ast.Load) - made - inner
        made |= names_in(statement, ast.Store)
    return taken


def find_needed(cells: list[str], target: int, own: str) -> tuple[str, ...]:
    """The earlier cells that make what ``cells[target]`` uses, and itself."""
    wanted, needed = names_taken(cells[target]) - {own}, [cells[target]]
    for source in reversed(cells[:target]):
        made = names_made(source)
        if made & wanted and "NotImplementedError" not in source:
            needed.insert(0, source)
            wanted = wanted - made | names_taken(source) - {own}
    return tuple(needed)


def find_showing(cells: list[str], start: int, name: str) -> list[int]:
    """The cells from ``start`` on that show what may have come from ``name``."""
    touched, showing = {name}, []
    for number in range(start, len(cells)):
        if names_taken(cells[number]) & touched:
            touched |= names_made(cells[number])
            body = ast.parse(cells[number]).body
            if "print(" in cells[number] or isinstance(body[-1], ast.Expr):
                showing.append(number)
    return showing


def find_flows(path: Path) -> list[Flow]:
    """Every exercise of a notebook whose function a later cell calls."""
    cells = [
        cell
        for cell in nbformat.read(path, as_version=nbformat.NO_CONVERT).cells
        if cell.cell_type == "code"
    ]
    # of another exercise only the line that takes the library's function
    sources = [re.sub(r"^check\(.*\n", "", cell.source) for cell in cells]
    flows = []
    for index, cell in enumerate(cells[:-1]):
        mark = cell.metadata.get("flowrl", {})
        if "exercise" not in mark or " = use(" not in sources[index + 1]:
            continue
        module, _, name = mark["solution"].partition(":")
        ways = [
            way
            for target in find_showing(sources, index + 2, name)
            for way in [find_needed(sources, target, name)]
            if any(name in names_loaded(source) for source in way)
        ]
        if ways:  # the one without training, or else the shortest
            cost = lambda way: (trains(way), len(way))
            flows.append(Flow(name, mark["solution"], tuple(sorted(ways, key=cost))))
    return flows


FLOWS = {
    f"{path.stem}-{flow.name}": flow for path in NOTEBOOKS for flow in find_flows(path)
}


def spoil(value):
    """The same shape and type with other numbers in it."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, torch.Tensor):
        return 0.25 - 1.5 * value if value.is_floating_point() else value + 1
    if isinstance(value, int | float):
        return value * 2 + 1
    if isinstance(value, tuple | list):
        return type(value)(map(spoil, value))
    raise TypeError(f"no way to spoil a {type(value).__name__}")


def show_cells(cells: tuple[str, ...], name: str, function: Callable) -> str:
    """What the last cell prints, shows and raises, with ``function`` in place."""
    names: dict = {"__name__": "__main__"}
    shown = io.StringIO()
    for number, source in enumerate(cells):
        names[name] = function
        body = ast.parse(source).body
        last = body.pop() if isinstance(body[-1], ast.Expr) else None
        with contextlib.redirect_stdout(shown):
            if number + 1 == len(cells):
                shown.seek(0)
                shown.truncate()
            try:
                exec(compile(ast.Module(body, []), "<cell>", "exec"), names)
                if last is not None:
                    code = compile(ast.Expression(last.value), "<cell>", "eval")
                    print(eval(code, names))
            except Exception as error:
                print(type(error).__name__, error)
                if not isinstance(error, AssertionError):
                    break
    return shown.getvalue()


def test_every_exercise_s_function_flows_on():
    written = {
        f"{path.stem}-{cell.metadata.flowrl['solution'].partition(':')[2]}"
        for path in NOTEBOOKS
        for cell in nbformat.read(path, as_version=nbformat.NO_CONVERT).cells
        if "exercise" in cell.metadata.get("flowrl", {})
    }
    assert not written - set(FLOWS)


@pytest.mark.bad_input  # as a learner runs it: without the checks of annotations
@pytest.mark.parametrize(
    "flow",
    [
        pytest.param(flow, id=name, marks=pytest.mark.full if flow.trains else ())
        for name, flow in FLOWS.items()
    ],
)
def test_a_later_cell_shows_other_numbers_with_another_function(flow, monkeypatch):
    monkeypatch.setenv("FLOWRL_BUDGET", "quick")
    module, _, name = flow.solution.partition(":")
    solution = getattr(importlib.import_module(module), name)
    calls = []

    def spoilt(*given, **settings):
        calls.append(name)
        return spoil(solution(*given, **settings))

    for cells in flow.ways:
        right = show_cells(cells, flow.name, solution)
        # Without the training, what the cell claims of it need not hold.
        if "Error" not in right.replace("AssertionError", ""):
            break
    else:
        pytest.fail(f"no later cell runs by itself: {right}")
    assert show_cells(cells, flow.name, spoilt) != right
    assert calls

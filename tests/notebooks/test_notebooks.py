"""The form that every notebook keeps, so that each reads like the others.

That they run, and that their claims hold, is tested by running them: nbval takes
each cell as a test (``python3 lab.py test`` does both).
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path
from statistics import median

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXPECTED = (
    "00_start_here",
    "01_reward_to_distribution",
    "02_partition_function",
    "03_trajectory_balance",
    "04_token_log_probs",
    "05_reward_maximisers",
    "06_flowrl_loss",
    "07_tiny_lm_maths",
    "08_tiny_lm_code",
    "09_lora_llm",
    "10_measuring_diversity",
    "11_ablations_and_limits",
    "12_scale_out",
)
MAY_KEEP_OUTPUTS = {"nbval-check-output", "stored-figure"}
MAX_LINES, MAX_MEDIAN_LINES, MAX_COLUMNS = 25, 11, 76
MIN_EXERCISES = 3

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    """A notebook, without upgrading it."""
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    """Cells that run and hold something."""
    return [c for c in read(path).cells if c.cell_type == "code" and c.source.strip()]


def markdown_cells(path: Path) -> list[nbformat.NotebookNode]:
    """Cells that are read."""
    return [c for c in read(path).cells if c.cell_type == "markdown"]


def tags(cell: nbformat.NotebookNode) -> set[str]:
    """The tags of a cell."""
    return set(cell.metadata.get("tags", ()))


def count_lines(cell: nbformat.NotebookNode) -> int:
    """Lines of a code cell as a reader sees them."""
    return len(cell.source.splitlines())


def test_the_course_is_there():
    assert set(EXPECTED) <= {path.stem for path in NOTEBOOKS}


@each_notebook
def test_it_is_a_valid_notebook_without_widget_state(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata
    assert notebook.metadata.kernelspec.name == "python3"
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids)


@each_notebook
def test_it_begins_with_what_it_takes(path):
    first = read(path).cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert re.search(r"\bmin(ute)?s?\b", first.source), (
        "say how many minutes on CPU and GPU"
    )
    assert "CPU" in first.source


@each_notebook
def test_the_first_code_cell_sets_up(path):
    source = code_cells(path)[0].source
    assert "import flowrl_lab" in source
    assert re.search(r"\bsetup\(seed=0\)", source)


@each_notebook
def test_cells_are_short(path):
    cells = code_cells(path)
    for cell in cells:
        assert count_lines(cell) <= MAX_LINES, cell.source
        assert max(map(len, cell.source.splitlines())) <= MAX_COLUMNS, cell.source
    assert median(map(count_lines, cells)) <= MAX_MEDIAN_LINES


@each_notebook
def test_headings_are_numbered(path):
    number = int(path.stem[:2])
    for cell in markdown_cells(path):
        text = re.sub(r"```.*?```", "", cell.source, flags=re.DOTALL)
        for heading in re.findall(r"^#{2,} .*$", text, flags=re.MULTILINE):
            assert re.match(rf"#+ {number}\.\d+", heading), heading


@each_notebook
def test_code_cells_are_plain_python_by_themselves(path):
    """No magics: what runs here can be pasted into a file."""
    for cell in code_cells(path):
        ast.parse(cell.source)


@each_notebook
def test_outputs_are_stored_only_where_they_are_meant(path):
    for cell in code_cells(path):
        if tags(cell) & MAY_KEEP_OUTPUTS:
            continue
        assert cell.outputs == []
        assert cell.execution_count is None
    for cell in code_cells(path):
        assert all(output.output_type != "error" for output in cell.outputs)


@each_notebook
def test_a_compared_output_is_there_to_compare_with(path):
    """nbval runs a cell without a count, but does not compare its output."""
    for cell in code_cells(path):
        if "nbval-check-output" in tags(cell):
            assert cell.outputs
            assert cell.execution_count is not None


@each_notebook
def test_claims_are_measured(path):
    """A notebook that runs proves nothing unless some cell can fail."""
    asserts = [
        node
        for cell in code_cells(path)
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.Assert)
    ]
    assert asserts


# ------------------------------------------------------------------------ exercises


def find_exercises(path: Path) -> list[tuple[int, nbformat.NotebookNode]]:
    """(position, cell) of every exercise stub."""
    return [
        (index, cell)
        for index, cell in enumerate(read(path).cells)
        if "exercise" in cell.metadata.get("flowrl", {})
    ]


def load_solution(cell: nbformat.NotebookNode):
    """The library function that a stub's metadata names as its solution."""
    module, _, name = cell.metadata["flowrl"]["solution"].partition(":")
    assert module.split(".")[0] == "flowrl_lab"
    return getattr(importlib.import_module(module), name)


@each_notebook
def test_there_are_exercises(path):
    names = [cell.metadata["flowrl"]["exercise"] for _, cell in find_exercises(path)]
    assert len(names) >= (2 if path.stem.startswith("00") else MIN_EXERCISES)
    assert len(set(names)) == len(names)


@each_notebook
def test_stubs_are_unsolved_and_ask_for_the_library_function(path):
    """The stub has its solution's parameters and does nothing but refuse."""
    for _, cell in find_exercises(path):
        definitions = [
            node
            for node in ast.parse(cell.source).body
            if isinstance(node, ast.FunctionDef)
        ]
        assert len(definitions) == 1, cell.source
        statements = definitions[0].body[bool(ast.get_docstring(definitions[0])) :]
        assert len(statements) == 1, "a stub holds its docstring and one raise"
        assert isinstance(statements[0], ast.Raise)
        assert "NotImplementedError" in ast.unparse(statements[0])
        solution = load_solution(cell)
        assert definitions[0].name == solution.__name__
        parameters = [
            a.arg for a in ast.walk(definitions[0].args) if isinstance(a, ast.arg)
        ]
        wanted = inspect.signature(solution).parameters
        assert set(parameters) <= set(wanted)
        required = {n for n, p in wanted.items() if p.default is p.empty}
        assert required <= set(parameters)


@each_notebook
def test_an_exercise_is_its_stub_and_one_cell_that_checks_and_uses_it(path):
    """The same two lines everywhere; from there on no import takes the name back."""
    cells = read(path).cells
    for index, cell in find_exercises(path):
        key, name = cell.metadata["flowrl"]["exercise"], load_solution(cell).__name__
        check = f'check("{key}", {name})\n{name} = use("{key}")'
        assert cells[index + 1].source == check
        for later in cells[index + 2 :]:
            if later.cell_type == "code":
                assert name not in imported_names(later), later.source


def imported_names(cell: nbformat.NotebookNode) -> set[str]:
    """The names that a cell's import statements bind."""
    return {
        alias.asname or alias.name
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }

"""Copies of the notebooks in which every exercise is left alone, and then solved.

    python tests/support/notebook_copies.py FOLDER

``python3 lab.py test`` runs the copies: all cells of a notebook as they are shipped,
and after each exercise's check a few more.  The stub must have been "not attempted";
what ``hint_and_solution`` shows is pasted over it; then the check must say "passed".
One run so covers both learners, the one who skips and the one who solves.  And no
line that is printed may be too long for the page.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell

from flowrl_lab.course import hint_and_solution

# What a page of 1,360 pixels shows in one line; longer ones are cut or wrapped.
COLUMNS = 100
WATCH = f"""\
import builtins

_wide, _print = [], builtins.print


def _measured(*given, sep=" ", file=None, **settings):
    text = "" if file else (sep or " ").join(map(str, given))
    _wide.extend(line for line in text.splitlines() if len(line) > {COLUMNS})
    _print(*given, sep=sep, file=file, **settings)


builtins.print = _measured
"""
DEMAND_NARROW = "builtins.print = _print\nassert not _wide, _wide"
# May only get shorter: what has not been seen to keep to it yet.
MAY_BE_WIDE = {
    *("03_trajectory_balance", "04_token_log_probs", "05_reward_maximisers"),
    *("09_lora_llm", "12_scale_out"),
}
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def add_solutions(notebook: nbformat.NotebookNode) -> int:
    """Add the cells that solve each exercise; how many exercises there are."""
    cells, exercise, count = [], "", 0
    for cell in notebook.cells:
        cells.append(cell)
        exercise = cell.metadata.get("flowrl", {}).get("exercise", exercise)
        if exercise and cell.source.startswith(f'check("{exercise}",'):
            count += 1
            solution = hint_and_solution(exercise).source
            cells += [
                _demand(cell.source, "not attempted", f"left-alone-{count}"),
                new_code_cell(solution, id=f"solution-{count}"),
                _demand(cell.source, "passed", f"solved-{count}"),
            ]
    notebook.cells = cells
    return count


def _demand(check: str, status: str, name: str) -> nbformat.NotebookNode:
    """The cell once more, its verdict held; what follows runs on with that function."""
    call, _, rest = check.partition("\n")
    source = f"verdict = {call}\nassert verdict.status == {status!r}, verdict\n{rest}"
    return new_code_cell(source, id=name)


def write_copies(folder: Path) -> list[Path]:
    """Write a copy of every notebook into ``folder``; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
        if not add_solutions(notebook):
            raise ValueError(f"{path.name} has no exercise. Fix: see DESIGN.")
        if path.stem not in MAY_BE_WIDE:
            notebook.cells.insert(0, new_code_cell(WATCH, id="watch-width"))
            notebook.cells.append(new_code_cell(DEMAND_NARROW, id="demand-width"))
        nbformat.write(notebook, folder / path.name)
        written.append(folder / path.name)
    return written


if __name__ == "__main__":
    print(f"{len(write_copies(Path(sys.argv[1])))} notebooks: {sys.argv[1]}")

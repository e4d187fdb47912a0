"""Copies of the notebooks as a learner leaves them who has solved every exercise.

    python tests/solve_notebooks.py FOLDER

Over each stub goes what ``hint_and_solution`` shows, and each check must say
"passed".  ``python3 lab.py test`` runs the copies beside the notebooks themselves,
whose exercises are not attempted.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat

from flowrl_lab.course import hint_and_solution

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def solve(notebook: nbformat.NotebookNode) -> int:
    """Fill in all exercises of a notebook; how many there were."""
    exercises = []
    for cell in notebook.cells:
        mark = cell.metadata.get("flowrl", {})
        if "exercise" in mark:
            exercises.append(mark["exercise"])
            cell.source = hint_and_solution(mark["exercise"]).source
        elif exercises and cell.source.startswith(f'check("{exercises[-1]}",'):
            cell.source = (
                f"verdict = {cell.source}\n"
                'assert verdict.status == "passed", verdict\n'
                "verdict"
            )
    return len(exercises)


def write_solved(folder: Path) -> list[Path]:
    """Write a solved copy of every notebook into ``folder``; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
        if not solve(notebook):
            raise ValueError(f"{path.name} has no exercise. Fix: see DESIGN.")
        copy = folder / f"{path.stem}_solved.ipynb"
        nbformat.write(notebook, copy)
        written.append(copy)
    return written


if __name__ == "__main__":
    print(f"{len(write_solved(Path(sys.argv[1])))} notebooks, solved: {sys.argv[1]}")

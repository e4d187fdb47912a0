"""Notebook 9 as a learner has it who trains: two lines changed, and few steps."""

from __future__ import annotations

from pathlib import Path

import nbformat

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "09_lora_llm.ipynb"
CHANGES = (
    ('way = "replay"', 'way = "train"'),
    (
        "llm_config(chosen, name)",
        "llm_config(chosen, name, steps=4, num_generations=8, eval_every=1)",
    ),
)


def write_trained_copy(path: Path) -> None:
    """Write the copy to ``path``; its runs take about a minute on one core."""
    notebook = nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT)
    for before, after in CHANGES:
        (cell,) = (
            cell
            for cell in notebook.cells
            if cell.cell_type == "code" and before in cell.source
        )
        cell.source = cell.source.replace(before, after)
    nbformat.write(notebook, path)

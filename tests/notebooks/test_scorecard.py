"""Notebook 11's scorecard: the protocol's curves are drawn and judged."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import nbformat
import pytest

from flowrl_lab.course import draw_curves
from flowrl_lab.measuring import protocol as protocol_of
from flowrl_lab.measuring.protocol import (
    FIGURES,
    CellKey,
    Curve,
    add_curves,
    load_protocol,
)
from flowrl_lab.measuring.significance import HOLDS, NO_DIFFERENCE, NOT_MEASURED

PATH = Path(__file__).resolve().parents[2] / "notebooks/11_ablations_and_limits.ipynb"
STEPS = (0, 25, 50)
CELLS = (
    "def judge(",
    "def enter_tests",
    "load_protocol()",
    "def ask_curves",
    "def show_planned",
    "DRAWN = ",
)
MORE = "FlowRL: more {} than GRPO"


def run_cells(monkeypatch, folder: Path, shown: list) -> dict:
    """Run the cells of the protocol's curves: the names they leave."""
    monkeypatch.setattr(protocol_of, "curves_path", lambda t: folder / f"{t}.jsonl")
    cells = nbformat.read(PATH, as_version=nbformat.NO_CONVERT).cells
    sources = [cell.source for cell in cells if cell.cell_type == "code"]
    names: dict = {"ACC": "accuracy", "MANY": "effective_answers"}
    names |= {"draw_curves": draw_curves, "display": shown.append}
    for source in sources:
        if any(mark in source for mark in CELLS):
            exec(source, names)
    return names


def show_curves(monkeypatch, folder: Path) -> tuple[list[str], list]:
    """The verdicts, and the pictures and tables."""
    shown: list = []
    names = run_cells(monkeypatch, folder, shown)
    for task in names["curves"]:
        for what, key in (("answers", "effective_answers"), ("accurate", "accuracy")):
            claim = MORE.format(what)
            names["enter_planned"](claim, task, "flowrl=8", ["grpo"], key)
    assert {by for _, by in names["card"]} == {names["BEST"]}  # one row each
    pairs = {name: ("flowrl=8", name) for name in ("grpo", "ppo", "nobody")}
    shown += [names["show_planned"]("", pairs, key) for key in FIGURES[:2]]
    return [verdict for verdict, *_ in names["card"].values()], shown


def write_curves(folder: Path, *, leave_out: str = "") -> None:
    """Runs that nobody made: FlowRL keeps three times the answers, as accurate."""
    protocol = load_protocol()
    cells = {name for pair in protocol.comparisons["pairs"] for name in pair}
    for task in protocol.tasks:
        curves = []
        for cell in sorted(cells - {leave_out}):
            family, _, value = cell.partition("=")
            key = CellKey(family, float(value) if value else None)
            rates = protocol.search["learning_rates"]
            plan = [("report", rates[0], s) for s in protocol.report["seeds"]]
            if key.value == protocol.families[family].middle:
                plan += product(["search"], rates, protocol.search["seeds"])
            for part, rate, seed in plan:
                noise = 0.001 * (seed % 5)
                figures = dict.fromkeys(FIGURES, (1.0, 1.0 + noise, 2.0 + noise))
                figures["accuracy"] = (0.4, 0.6 + noise, 0.8 + noise)
                level = 3.0 if family == "flowrl" else 1.0
                figures["effective_answers"] = (9.0, 5.0, level + noise)
                curve = Curve(1, part, task, key, rate, seed, STEPS, figures, {})
                curves.append(curve)
        add_curves(folder / f"{task}.jsonl", curves)


@pytest.mark.bad_input  # cells run without the checks of annotations
@pytest.mark.parametrize("leave_out", ["", "ppo"])
def test_recorded_curves_are_drawn_and_judged(monkeypatch, tmp_path, leave_out):
    """Also while a cell is missing: p is then multiplied by all tests planned."""
    write_curves(tmp_path, leave_out=leave_out)
    found, shown = show_curves(monkeypatch, tmp_path)
    assert found == [HOLDS, NO_DIFFERENCE] * 2  # more answers; more accurate
    *pictures, accuracy, answers = shown
    assert len(pictures) == 2  # one for each task
    made = [name for name in ("grpo", "ppo") if name != leave_out]
    for table in (accuracy, answers):  # no row for a comparison nobody made
        assert [row[0] for row in table.rows[1:]] == made


@pytest.mark.bad_input
def test_what_was_not_run_is_entered_as_that(monkeypatch, tmp_path):
    write_curves(tmp_path, leave_out="grpo")
    names = run_cells(monkeypatch, tmp_path, [])
    names["enter_planned"]("more", "maths", "flowrl=8", ["grpo"], "accuracy")
    entered = {
        ("more, maths", names["BEST"]): (NOT_MEASURED, "not run yet", "The paper")
    }
    assert names["card"] == entered

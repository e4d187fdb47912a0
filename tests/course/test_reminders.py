"""After an error: which section to run first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flowrl_lab import LivePlot
from flowrl_lab.course.reminders import find_section, remind

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


@pytest.fixture
def interrupted() -> LivePlot:
    """A plot whose loop was stopped by the learner."""
    with LivePlot(("reward",), title="Four policies") as plot:
        raise KeyboardInterrupt
    return plot


@pytest.fixture
def book(tmp_path) -> Path:
    """Two sections; the second uses what the first makes."""
    cells = [
        ("markdown", "# 7. Title\n\n## 7.1 One"),
        (
            "code",
            "import math\nwith LivePlot() as plot:\n    for step in range(3): pass",
        ),
        ("code", "broken ("),
        ("markdown", "text\n\n## 7.2 Two\n"),
        ("code", "def loss(x):\n    return x\n\n\nlast, (a, b) = 1, (2, 3)"),
    ]
    path = tmp_path / "07.ipynb"
    rows = [{"cell_type": kind, "source": [text]} for kind, text in cells]
    path.write_text(json.dumps({"cells": rows}))
    return path


def fail(source: str) -> Exception:
    with pytest.raises(Exception) as caught:
        exec(source, {})
    return caught.value


@pytest.mark.parametrize(
    ("name", "section"),
    [
        *(("math", "7.1"), ("plot", "7.1"), ("step", "7.1"), ("loss", "7.2")),
        *(("last", "7.2"), ("b", "7.2"), ("x", ""), ("nothing", "")),
    ],
)
def test_a_name_is_found_in_its_section(book, name, section):
    assert find_section(book, name) == section


def test_a_name_that_is_not_there_yet_names_its_section(book):
    said = remind(fail("loss(3)"), {}, book)
    assert said == "loss is made in section 7.2: run that first."
    assert remind(fail("nothing"), {}, book) == ""
    assert remind(fail("loss"), {}, None) == ""
    assert remind(fail("loss"), {}, book.with_name("gone.ipynb")) == ""


@pytest.mark.parametrize(
    "source", ["{}['flowrl']", "[][-1]", "assert False", "max([])"]
)
def test_after_an_interrupt_the_run_is_named_not_the_key(book, interrupted, source):
    said = remind(fail(source), {"plot": interrupted}, book)
    assert "“Four policies” was interrupted" in said
    assert "run section 7.1 to its end first" in said
    assert "run the cell of plot" in remind(fail(source), {"plot": interrupted}, None)
    assert remind(fail(source), {"plot": LivePlot(("reward",))}, book) == ""
    assert remind(fail("1 / 0"), {"plot": interrupted}, book) == ""


def test_the_races_of_the_course_are_found():
    assert find_section(NOTEBOOKS / "00_start_here.ipynb", "plot") == "0.1"
    assert find_section(NOTEBOOKS / "07_tiny_lm_maths.ipynb", "training_step") == "7.5"


def test_in_a_kernel_it_stands_below_the_error(book, monkeypatch):
    """A real shell, which calls us after each cell."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    from flowrl_lab.course import reminders

    shell = InteractiveShell()
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    monkeypatch.setenv("JPY_SESSION_NAME", str(book))
    for _ in range(2):
        reminders.remind_after_errors()
    with capture_output() as shown:
        shell.run_cell("loss(3)")
        shell.run_cell("2 + 2")
    assert shown.stdout.count("loss is made in section 7.2: run that first.") == 1

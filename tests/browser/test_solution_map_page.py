"""The solution map in JupyterLab: moved by keyboard, played, and run again."""

from __future__ import annotations

import re

import pytest
from pages import (
    Visit,
    error_outputs,
    open_notebook,
    run_all_cells,
    wait_until_done,
    write_notebook,
)
from playwright.sync_api import Locator, expect

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.full]

# Two runs over six answers: one keeps to the target, one piles onto the last answer.
CELLS = [
    "import numpy as np\n"
    "from flowrl_lab.types import Snapshot\n"
    "labels = tuple('abcdef')\n"
    "target = np.full(6, 1 / 6)\n"
    "def snapshot(pile):\n"
    "    probs = (1 - pile) * target + pile * np.eye(6)[5]\n"
    "    return Snapshot('prompt', labels, probs, target, np.ones(6))",
    "from flowrl_lab.widgets import SolutionMap\n"
    "solutions = SolutionMap({\n"
    "    'flowrl': [(step, snapshot(0.0)) for step in (0, 10, 20)],\n"
    "    'grpo': [(0, snapshot(0)), (10, snapshot(0.7)), (20, snapshot(0.9999))]})\n"
    "solutions",
    "print('stands at', solutions.step)",
]


@pytest.fixture(scope="module")
def visit(shared_visit: Visit) -> Visit:
    return shared_visit


@pytest.fixture(scope="module")
def solutions(visit: Visit, lab_folder, lab_address) -> Locator:
    """The widget, shown and ready."""
    write_notebook(lab_folder, "solutions", CELLS)
    open_notebook(visit, lab_address, "solutions")
    run_all_cells(visit)
    wait_until_done(visit, "solutions")
    widget = visit.page.locator(".flowrl-explorer").first
    expect(widget.locator(".panels svg")).to_have_count(3)
    return widget


def read_cells(widget: Locator, run: str) -> list[float]:
    """The probabilities that one panel's cells tell when they are pointed at."""
    titles = widget.locator(".panel", has_text=run).locator("title")
    return [float(text.split(": ")[1]) for text in titles.all_text_contents()]


def colours(widget: Locator, run: str) -> list[str]:
    cells = widget.locator(".panel", has_text=run).locator("rect")
    return [cell.get_attribute("fill") for cell in cells.all()]


def test_the_slider_lights_the_cells_and_is_found_again(solutions, visit):
    slider = solutions.get_by_label("training step")
    assert slider.get_attribute("aria-valuetext") == "step 20"
    assert read_cells(solutions, "flowrl") == pytest.approx([1 / 6] * 6, rel=0.01)
    collapsed = read_cells(solutions, "grpo")
    assert max(collapsed[:5]) < 1e-4 < 0.99 < collapsed[5]
    dark, bright = colours(solutions, "grpo")[0], colours(solutions, "grpo")[5]
    assert dark != bright

    slider.focus()
    slider.press("ArrowLeft")
    expect(solutions.locator("output")).to_have_text("step 10")
    assert read_cells(solutions, "grpo") == pytest.approx([0.05] * 5 + [0.75], rel=0.02)
    assert colours(solutions, "grpo")[0] != dark
    expect(solutions.locator(".spoken")).to_contain_text("Step 10")
    visit.screenshot("solutions-moved")

    run_all_cells(visit)  # the same cells again: the map opens where it was left
    wait_until_done(visit, "solutions")
    expect(solutions.locator("output")).to_have_text("step 10")
    printed = visit.page.get_by_text(re.compile("stands at 10"))
    expect(printed.last).to_be_visible(timeout=30_000)
    assert error_outputs(visit) == []


def test_play_goes_from_the_start_to_the_end(solutions):
    button = solutions.get_by_role("button")
    button.click()
    expect(button).to_have_text("■ stop")
    expect(solutions.locator("output")).to_have_text("step 20", timeout=15_000)
    expect(button).to_have_text("▶ play", timeout=15_000)
    assert max(read_cells(solutions, "grpo")[:5]) < 1e-4

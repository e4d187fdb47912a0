"""A real browser opens JupyterLab as a learner does, and looks at what moves.

Chromium without a window, JupyterLab with the course's own settings, the quick
budget.  Screenshots of what was seen go to test-artifacts/browser/.
"""

from __future__ import annotations

import os
import re
import time

import pytest
from pages import (
    LOOKS,
    ROOT,
    RUN_SECONDS,
    TOKEN,
    Visit,
    error_outputs,
    keep_finished_page,
    look_at_plots,
    open_notebook,
    run_all_cells,
    show_cell,
    wait_until_done,
    write_notebook,
)
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.slow]
FULL = os.environ["FLOWRL_BUDGET"] == "full"

# Different states of one plot, seen before its cell had ended: short runs are over
# after a few drawings, the tiny language model's take some seconds.
MIN_PICTURES = {"07_tiny_lm_maths": 5}

# The picture that belongs to a slider: everything drawn in the same output.
SEE_PICTURE_OF_SLIDER = """slider => {
  const output = slider.closest('.jp-OutputArea-output');
  return [...output.querySelectorAll('svg')].map(e => e.innerHTML).join('')
    + [...output.querySelectorAll('canvas')].map(e => e.toDataURL()).join('');
}"""


def move_slider(visit: Visit, name: str) -> tuple[str, str]:
    """Move the first slider that has a picture by keyboard, as a person would.

    Returns:
        What was drawn beside it, before and after.
    """
    output = '.jp-OutputArea-output:has(svg, canvas) input[type="range"]'
    slider = visit.page.locator(output).first
    slider.scroll_into_view_if_needed()
    before = slider.evaluate(SEE_PICTURE_OF_SLIDER)
    value = slider.input_value()
    slider.focus()
    for _ in range(5):
        slider.press("ArrowRight")
    if slider.input_value() == value:  # it stood at its right end
        for _ in range(5):
            slider.press("ArrowLeft")
    assert slider.input_value() != value, "the arrow keys do not reach the slider"
    after, deadline = before, time.monotonic() + 30
    while after == before and time.monotonic() < deadline:
        visit.page.wait_for_timeout(100)
        after = slider.evaluate(SEE_PICTURE_OF_SLIDER)
    visit.screenshot(f"{name}-slider")
    return before, after


# In the quick suite the others run without a browser, and their explorers in tests
# of their own.
ALWAYS = ("00_start_here",)
FIRST = "/lab/tree/notebooks/00_start_here.ipynb"
NOTEBOOKS = [
    pytest.param(path.stem, marks=() if path.stem in ALWAYS else pytest.mark.full)
    for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
]


def test_it_opens_with_the_contents_and_room_for_the_names(shared_visit, lab_address):
    """As the launcher opens it: by a notebook's address, in the first workspace."""
    visit = shared_visit
    visit.page.goto(f"{lab_address}{FIRST}?token={TOKEN}")
    contents = visit.page.locator("#table-of-contents")
    contents.get_by_text("0.1").first.wait_for()
    assert contents.bounding_box()["width"] >= 300
    visit.screenshot("first-look")
    visit.page.locator('[data-id="filebrowser"]').first.click()
    name = visit.page.get_by_text("03_trajectory_balance.ipynb").first
    name.wait_for()
    assert name.evaluate("e => e.scrollWidth <= e.clientWidth")


def test_a_link_to_the_glossary_shows_the_entry(shared_visit, lab_address) -> None:
    visit = shared_visit
    open_notebook(visit, lab_address, "00_start_here")
    visit.page.get_by_role("link", name="effective number", exact=True).click()
    entry = visit.page.locator(".jp-MarkdownViewer").get_by_role(
        "heading", name="effective number"
    )
    expect(entry).to_be_in_viewport()  # scrolled to it, and not shown as source text
    visit.screenshot("glossary")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_and_its_live_plots_move(visit, lab_address, name):
    open_notebook(visit, lab_address, name)
    visit.screenshot(f"{name}-opened")
    run_all_cells(visit)
    seen = wait_until_done(visit, name)
    assert error_outputs(visit) == []
    if "LivePlot(" in (ROOT / "notebooks" / f"{name}.ipynb").read_text("utf-8"):
        check_live_plot(visit, seen, MIN_PICTURES.get(name, 2))
    visit.screenshot(f"{name}-done")
    # every run keeps two looks of what it ran anyway, the full one all four
    keep_finished_page(visit, name, LOOKS if FULL else LOOKS[::3])
    if name.startswith("01"):
        before, after = move_slider(visit, name)
        assert before
        assert after != before


def check_live_plot(
    visit: Visit, seen: dict[int, list[tuple[int, str]]], least: int
) -> None:
    """Some plot changed while its cell ran, and its last state is still there."""
    assert max(map(len, seen.values()), default=0) >= least, seen
    cell = max(seen, key=lambda index: len(seen[index]))
    assert len({picture for picture, _ in seen[cell]}) >= least
    assert len({words for _, words in seen[cell]}) >= 2, "no word or number changed"
    show_cell(visit, cell)
    last = [plot for plot in look_at_plots(visit) if plot["cell"] == cell]
    assert last, "the finished plot is gone"
    assert "finished" in last[0]["words"]


INTERRUPTED = (
    """from flowrl_lab import LivePlot, preset, race
from flowrl_lab.training.run import Run
small = {"budget": "quick", "steps": 12}
runs = [Run(preset("make_number", name, **small)) for name in ("grpo", "flowrl")]""",
    """with LivePlot(("reward", "accuracy")) as plot:
    for record in race(*runs):
        plot.update(record)""",
    "print('stopped', plot.interrupted, [run.step for run in runs], len(plot.records))",
    "print([[record.step for record in run.records] for run in runs])",
)


@pytest.mark.full
def test_a_race_that_was_interrupted_goes_on(visit, lab_folder, lab_address):
    """■ in the toolbar, in the middle: nothing is lost, and nothing trained twice."""
    write_notebook(lab_folder, "interrupted", INTERRUPTED)
    open_notebook(visit, lab_address, "interrupted")
    run_all_cells(visit)
    cells = visit.page.locator(".jp-Notebook .jp-CodeCell")
    words = cells.nth(1).locator(".js-plotly-plot .annotation-text")
    moving = words.filter(has_text="step 3/12").first
    expect(moving).to_be_visible(timeout=RUN_SECONDS * 1000)
    visit.page.locator('[data-command="notebook:interrupt-kernel"]').first.click()
    expect(words.filter(has_text="interrupted at step").first).to_be_visible()
    visit.screenshot("interrupted")
    said = cells.nth(2).locator(".jp-OutputArea-output")
    expect(said).to_contain_text("stopped True")
    steps = [int(number) for number in re.findall(r"\d+", said.inner_text())][:2]
    assert all(2 <= step < 12 for step in steps), steps
    wait_until_done(visit, "interrupted")

    run_cells_from(visit, 1, 3)
    ended = words.filter(has_text="finished").first
    expect(ended).to_be_visible(timeout=RUN_SECONDS * 1000)
    expect(said).to_contain_text("stopped False [12, 12] 26")  # the plot has all
    every = str([list(range(13))] * 2)
    expect(cells.nth(3).locator(".jp-OutputArea-output")).to_have_text(every)
    assert error_outputs(visit) == []
    visit.screenshot("interrupted-went-on")


def run_cells_from(visit: Visit, first: int, last: int) -> None:
    """Shift+Enter, from one cell to another."""
    cell = visit.page.locator(".jp-Notebook .jp-CodeCell").nth(first)
    cell.locator(".cm-content").click()
    for _ in range(first, last + 1):
        visit.page.keyboard.press("Shift+Enter")


SLOW_LOADING = (
    """import plotly.graph_objects as go
wait = "await new Promise(done => setTimeout(done, 3000));"
go.FigureWidget._esm = wait + str(go.FigureWidget._esm)
import time
from flowrl_lab import LivePlot, preset, train
records = list(train(preset("landscape", "flowrl", steps=40, eval_every=4)))""",
    """with LivePlot(("reward", "kl_policy_target")) as plot:
    for record in records:
        plot.update(record)
        time.sleep(0.25)""",
)


@pytest.mark.full
def test_a_plot_moves_where_plotly_loads_slowly(visit, lab_folder, lab_address):
    """anywidget drops every update of a widget whose script takes two seconds."""
    write_notebook(lab_folder, "slow_loading", SLOW_LOADING)
    open_notebook(visit, lab_address, "slow_loading")
    run_all_cells(visit)
    seen = wait_until_done(visit, "slow_loading")
    check_live_plot(visit, seen, 4)
    assert error_outputs(visit) == []

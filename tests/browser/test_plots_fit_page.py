"""Live and finished plots take the room they have: side bar open, 200 % zoom."""

from __future__ import annotations

import pytest
from pages import (
    Visit,
    error_outputs,
    open_notebook,
    run_all_cells,
    wait_until_done,
    write_notebook,
)
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SETUP = "import flowrl_lab; flowrl_lab.setup(seed=0)"
# Training waits in the middle until the test has looked and clicked.
LIVE = """
import time
from pathlib import Path
from flowrl_lab import preset, race
from flowrl_lab.plots.live import LivePlot

configs = [preset("landscape", name, steps=40) for name in ("flowrl", "grpo")]
with LivePlot(("reward", "kl_policy_target"), solution_map=True,
              title="Two runs on one landscape, watched in a narrow window") as plot:
    for record in race(*configs):
        plot.update(record)
        if len(plot.records) in (40, 44):
            time.sleep(2.5)  # so that this state is drawn
        while len(plot.records) == 45 and not Path("go on").exists():
            time.sleep(0.05)
"""
STILL = """
from flowrl_lab.course import draw_curves
draw_curves({f"a run with a long name, number {i}": ((0, 1), (1, 2 * i))
             for i in range(1, 6)}, title="Legends of five rows are not cut",
            y_title="a height with a long name, in nats, at each training step")
"""
# Of each plot with its output: what lies outside, and what is scrolled sideways.
OUTSIDE = """() => [...document.querySelectorAll('.js-plotly-plot')].map(plot => {
  const output = plot.closest('.jp-OutputArea-output');
  const room = output.getBoundingClientRect();
  const parts = [...plot.querySelectorAll('.main-svg, text, .bglayer rect, .legend')];
  return {
    wide: plot.layout.width,
    scrolls: output.scrollWidth > output.clientWidth + 1
      || plot.scrollHeight > plot.clientHeight + 1,
    cut: parts.filter(e => e.getBoundingClientRect().width > 0)
      .filter(e => { const box = e.getBoundingClientRect();
        return box.left < room.left - 1 || box.right > room.right + 1
          || box.bottom > room.bottom + 1; })
      .map(e => e.textContent.slice(0, 60)),
  };
})"""
# Words that lie on others; the thin line from a curve's end to its value is none.
OVERLAPS = """() => [...document.querySelectorAll('.js-plotly-plot')].flatMap(plot => {
  const words = [...plot.querySelectorAll('.annotation-text, .legendtext, .xtitle')]
    .filter(e => e.textContent).map(e => [e.textContent, e.getBoundingClientRect()]);
  const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3;
  return words.flatMap(([one, a], i) => words.slice(i + 1)
    .filter(([, b]) => meet(a, b)).map(([other]) => `${one} | ${other}`));
})"""
# The curves and areas that a plot draws of a run, in all panels.
DRAWN = """([number, run]) => {
  const plot = document.querySelectorAll('.js-plotly-plot')[number];
  return plot.calcdata.filter(([c]) => c.trace.name === run
    && c.trace.visible === true && !c.trace.showlegend).length;
}"""


def check_fit(visit: Visit, width: int, plots: int) -> None:
    """In a window of this width no plot is wider than its output, and no text cut."""
    visit.page.set_viewport_size({"width": width, "height": 1000})
    least = {1360: 740}.get(width, 0)
    visit.page.wait_for_function(
        f"() => {{ const all = ({OUTSIDE})(); return all.length === {plots}"
        f" && all.every(p => !p.scrolls && p.wide >= {least}) }}",
        timeout=20_000,
    )
    visit.page.wait_for_timeout(500)
    found = visit.page.evaluate(OUTSIDE)
    assert [plot["cut"] for plot in found] == [[]] * plots, found
    assert visit.page.evaluate(OVERLAPS) == []


# A machine that needs more than two seconds for plotly's 5 MB shows an empty live plot
# (anywidget gives up), and this test waits in the middle of one.
@pytest.mark.full
def test_plots_fit_and_a_run_stays_off(visit, lab_address, lab_folder) -> None:
    write_notebook(lab_folder, "narrow", [SETUP, LIVE, STILL])
    visit.page.set_viewport_size({"width": 700, "height": 1000})
    open_notebook(visit, lab_address, "narrow")
    run_all_cells(visit)
    plot = visit.page.locator(".js-plotly-plot").first
    now = plot.locator(".annotation-text", has_text="step 2")
    expect(now).to_be_visible(timeout=90_000)
    for width in (1360, 680, 700):  # 680: a window of 1,360 pixels at 200 %
        check_fit(visit, width, plots=1)
    visit.screenshot("narrow-live")
    assert visit.page.evaluate(DRAWN, [0, "grpo"]) == 3
    entry = plot.locator(".legend .traces", has_text="grpo").locator(".legendtoggle")
    entry.click()
    switched = f"([{DRAWN}][0])([0, 'grpo']) === 0"
    visit.page.wait_for_function(switched)
    (lab_folder / "notebooks" / "go on").touch()
    wait_until_done(visit, "narrow")
    assert error_outputs(visit) == []
    expect(plot.locator(".annotation-text", has_text="finished")).to_be_visible()
    visit.page.wait_for_function(switched)
    assert visit.page.evaluate(DRAWN, [0, "flowrl"]) == 3
    off = plot.locator(".annotation-text", has_text="■")
    expect(off).to_have_count(0)  # nor the value at its end
    for width in (1360, 680, 700):
        check_fit(visit, width, plots=2)
    visit.screenshot("narrow-finished")


@pytest.mark.full
def test_finished_plots_fit_and_do_when_opened_again(
    visit, lab_address, lab_folder
) -> None:
    write_notebook(lab_folder, "again", [SETUP, STILL])
    visit.page.set_viewport_size({"width": 700, "height": 1000})
    open_notebook(visit, lab_address, "again")
    run_all_cells(visit)
    wait_until_done(visit, "again")
    for width in (1360, 680, 700):
        check_fit(visit, width, plots=1)
    visit.page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    visit.page.wait_for_timeout(2000)
    open_notebook(visit, lab_address, "again")
    check_fit(visit, 700, plots=1)

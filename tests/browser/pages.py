"""What a learner does in JupyterLab, as functions on a page of a real browser."""

from __future__ import annotations

import contextlib
import json
import os
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import Error, Page, expect

ROOT = Path(__file__).resolve().parents[2]
ARTIFACTS = ROOT / "test-artifacts" / "browser"
TOKEN = "only-for-this-test"
START_SECONDS = 120
RUN_SECONDS = {"quick": 480, "full": 1500}[os.environ["FLOWRL_BUDGET"]]

# Looks at every plot whenever something in the page has changed, so that nothing is
# missed on a slow machine, and nothing is spent on looking at what stands still: of
# each cell the different states of its plot (lines, maps and words as one short hash)
# seen while it showed [*].
WATCH_PLOTS = """() => {
  const hash = text => {
    let h = 0;
    for (const c of text) h = (h * 31 + c.codePointAt(0)) | 0;
    return h;
  };
  const drawn = element => [...element.querySelectorAll('path, image, text, rect')]
    .map(e => ['d', 'href', 'height', 'width', 'x', 'y', 'style', 'transform']
      .map(name => e.getAttribute(name)).join(',')
      + (e.tagName === 'text' ? e.textContent : '')).join('|');
  const prompt = cell => cell.querySelector('.jp-InputPrompt').textContent.trim();
  const look = () => {
    const cells = [...document.querySelectorAll('.jp-Notebook .jp-CodeCell')];
    const prompts = cells.map(prompt);
    return {
      prompts: prompts.join(' '),
      running: prompts.includes('[*]:'),
      plots: cells.flatMap((cell, index) =>
        [...cell.querySelectorAll('.js-plotly-plot')].map(plot => ({
          cell: index,
          running: prompt(cell) === '[*]:',
          picture: hash(drawn(plot)),
          words: [...plot.querySelectorAll('.annotation-text')]
            .map(e => e.textContent).join(' | '),
        }))),
    };
  };
  window.flowrlLook = look;
  window.flowrlBefore = look().prompts;
  window.flowrlSeen = {};
  const note = () => {
    for (const plot of look().plots.filter(plot => plot.running)) {
      const seen = window.flowrlSeen[plot.cell] ??= [];
      if (!seen.some(s => s[0] === plot.picture && s[1] === plot.words))
        seen.push([plot.picture, plot.words]);
    }
  };
  new MutationObserver(note).observe(document.querySelector('.jp-Notebook'), {
    subtree: true, childList: true, characterData: true, attributes: true,
  });
}"""

# Shows a notebook from a height on; where the next stretch begins, if there is more.
SCROLL_TO = """at => {
  const panel = document.querySelector('.jp-WindowedPanel-outer');
  panel.scrollTop = at;
  const next = at + panel.clientHeight - 60;
  return panel.scrollTop >= at && next < panel.scrollHeight - 60 ? next : null;
}"""

# The machine may be busy with other tests; five seconds are Playwright's default.
expect.set_options(timeout=60_000)


@dataclass
class Visit:
    """One notebook open in the browser, and every address it asked for."""

    page: Page
    addresses: set[str] = field(default_factory=set)
    errors: list[str] = field(default_factory=list)

    def screenshot(self, name: str) -> None:
        """Keep what the window shows now."""
        ARTIFACTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=ARTIFACTS / f"{name}.png")


def call_api(address: str, path: str, method: str = "GET") -> bytes:
    """One call of JupyterLab's own interface."""
    headers = {"Authorization": f"token {TOKEN}"}
    request = urllib.request.Request(
        f"{address}/api/{path}", headers=headers, method=method
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read()


# Both themes, a wide window and a narrow one (the same as a wide one at 200 %).
LOOKS = [(theme, width) for theme in ("Light", "Dark") for width in (1360, 700)]
PAGE_HEIGHT = 5000


def keep_finished_page(visit: Visit, name: str, looks=tuple(LOOKS)) -> None:
    """Screenshots of a whole notebook, for eyes: one a theme, width and stretch."""
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    before = visit.page.viewport_size
    for theme, width in looks:
        visit.page.set_viewport_size({"width": width, "height": PAGE_HEIGHT})
        visit.page.evaluate(
            "theme => window.jupyterapp.commands.execute('apputils:change-theme',"
            " {theme: `JupyterLab ${theme}`})",
            theme,
        )
        visit.page.wait_for_selector(
            f'body[data-jp-theme-light="{str(theme == "Light").lower()}"]',
            state="attached",
        )
        at = 0
        while at is not None:
            stretch = f"{name}-{theme.lower()}-{width}-{at // 1000:02}"
            at = visit.page.evaluate(SCROLL_TO, at)
            visit.page.wait_for_timeout(400)  # drawn anew at this width
            path = ARTIFACTS / f"{stretch}.jpg"
            visit.page.screenshot(path=path, type="jpeg", quality=55)
    visit.page.set_viewport_size(before)


def end_kernels(address: str) -> None:
    """End every kernel, so that the next notebook has the machine to itself."""
    for kernel in json.loads(call_api(address, "kernels")):
        call_api(address, f"kernels/{kernel['id']}", "DELETE")


def write_notebook(folder: Path, name: str, cells: Sequence[str]) -> None:
    """A notebook of code cells only, beside the course's own."""
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in cells],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )
    nbformat.write(notebook, folder / "notebooks" / f"{name}.ipynb")


def open_notebook(visit: Visit, address: str, name: str) -> None:
    """Open a notebook by its address, wait for its kernel, and scroll it through."""
    path = f"/lab/workspaces/{name}/tree/notebooks/{name}.ipynb"
    visit.page.goto(f"{address}{path}?token={TOKEN}")
    visit.page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    # Before a kernel has been asked for, the notebook's own indicator says "idle"
    # too, and Run All would ask which kernel to take: the status bar tells.
    kernel = visit.page.locator("#jp-main-statusbar").get_by_text("(ipykernel) | Idle")
    expect(kernel).to_be_visible(timeout=START_SECONDS * 1000)
    source = json.loads(call_api(address, f"contents/notebooks/{name}.ipynb"))
    cells = source["content"]["cells"]
    attach_cells(visit, sum(cell["cell_type"] == "code" for cell in cells))


def attach_cells(visit: Visit, count: int) -> None:
    """Scroll until all cells are drawn: JupyterLab puts off those out of sight."""
    scroll = """() => {
      const panel = document.querySelector('.jp-WindowedPanel-outer');
      const end = panel.scrollTop + panel.clientHeight >= panel.scrollHeight - 2;
      panel.scrollTop = end ? 0 : panel.scrollTop + panel.clientHeight;
      return document.querySelectorAll('.jp-Notebook .jp-CodeCell').length;
    }"""
    deadline = time.monotonic() + START_SECONDS
    while visit.page.evaluate(scroll) < count:
        if time.monotonic() > deadline:
            pytest.fail(f"not all of the {count} code cells were drawn")
        visit.page.wait_for_timeout(100)
    visit.page.evaluate(
        "() => { document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0 }"
    )


def run_all_cells(visit: Visit) -> None:
    """Menu Run, Run All Cells; what every plot shows is noted from now on."""
    visit.page.evaluate(WATCH_PLOTS)
    menu = visit.page.get_by_role("menuitem", name="Run", exact=True)
    menu.click()
    visit.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def wait_until_done(
    visit: Visit, name: str = "notebook"
) -> dict[int, list[tuple[int, str]]]:
    """Wait until no cell shows [*].

    Returns:
        For each code cell with a plot: the different (picture, words) that were
        seen while that cell was still running, in order.
    """
    deadline = time.monotonic() + RUN_SECONDS
    before, shot = visit.page.evaluate("() => window.flowrlBefore"), False
    while time.monotonic() < deadline:
        view = visit.page.evaluate("() => window.flowrlLook()")
        seen = visit.page.evaluate("() => window.flowrlSeen")
        moving = [int(cell) for cell, pictures in seen.items() if len(pictures) >= 3]
        if moving and view["running"] and not shot:
            with contextlib.suppress(Error):  # the plot is being replaced just now
                show_cell(visit, moving[0])
            visit.screenshot(f"{name}-running")
            shot = True
        # short cells may run without ever being seen running: their numbers tell
        if view["prompts"] != before and not view["running"]:
            visit.screenshot(f"{name}-ended")
            return {int(c): [(p, w) for p, w in seen[c]] for c in seen}
        visit.page.wait_for_timeout(100)
    visit.screenshot(f"{name}-timeout")
    pytest.fail(f"{name}: cells still running after {RUN_SECONDS} s")


def look_at_plots(visit: Visit) -> list[dict]:
    """Every plot now: its code cell, whether that runs, its picture and words."""
    return visit.page.evaluate("() => window.flowrlLook()")["plots"]


def show_cell(visit: Visit, index: int) -> None:
    """Scroll to the output of a code cell."""
    cells = visit.page.locator(".jp-Notebook .jp-CodeCell")
    cells.nth(index).locator(".jp-OutputArea-output").first.scroll_into_view_if_needed()


def error_outputs(visit: Visit) -> list[str]:
    """Every red output: errors, and warnings that a learner would stumble over."""
    mime = "application/vnd.jupyter.stderr"
    return visit.page.locator(f'[data-mime-type="{mime}"]').all_text_contents()

"""A real browser opens JupyterLab as a learner does, and looks at what moves.

Chromium without a window, JupyterLab with the course's own settings, the quick
budget.  Screenshots of what was seen go to test-artifacts/browser/.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

pytestmark = [pytest.mark.browser, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
ARTIFACTS = ROOT / "test-artifacts" / "browser"
TOKEN = "only-for-this-test"
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM_FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
]
START_SECONDS = 120
RUN_SECONDS = {"quick": 480, "full": 1500}[os.environ["FLOWRL_BUDGET"]]
MIN_PICTURES = 3  # different states of one plot, seen before its cell had ended

# What a person sees of every plot: its lines, maps and words, as one short hash;
# and whether the cell it belongs to still shows [*].
SEE_PLOTS = """() => {
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
  const cells = [...document.querySelectorAll('.jp-Notebook .jp-CodeCell')];
  return {
    running: cells.some(cell => prompt(cell) === '[*]:'),
    started: cells.some(cell => prompt(cell) !== '[ ]:'),
    plots: cells.flatMap((cell, index) =>
      [...cell.querySelectorAll('.js-plotly-plot')].map(plot => ({
        cell: index,
        running: prompt(cell) === '[*]:',
        picture: hash(drawn(plot)),
        words: [...plot.querySelectorAll('.annotation-text')]
          .map(e => e.textContent).join(' | '),
      }))),
  };
}"""

# The picture that belongs to a slider: everything drawn in the same output.
SEE_PICTURE_OF_SLIDER = """slider => {
  const output = slider.closest('.jp-OutputArea-output');
  return [...output.querySelectorAll('svg')].map(e => e.innerHTML).join('')
    + [...output.querySelectorAll('canvas')].map(e => e.toDataURL()).join('');
}"""


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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium; skipped where there is none, but not in CI."""
    executable = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if executable is None:
        reason = "no Chromium on the PATH (Debian: apt install chromium)"
        if os.environ.get("CI", "").lower() in ("", "0", "false"):
            pytest.skip(reason)
        pytest.fail(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, args=CHROMIUM_FLAGS
        )
        yield browser
        browser.close()


def find_free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def lab_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """JupyterLab on a copy of the notebooks, with a home of its own."""
    folder = tmp_path_factory.mktemp("jupyterlab")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    port = find_free_port()
    address = f"http://127.0.0.1:{port}"
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
        f"--ServerApp.root_dir={folder}",
        *("--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}"),
        f"--IdentityProvider.token={TOKEN}",
        f"--LabApp.app_settings_dir={ROOT / '.jupyter'}",
    ]
    environment = {k: v for k, v in os.environ.items() if k != "FLOWRL_HEADLESS"}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "IPYTHONDIR": str(folder / "ipython"),
    }
    with open(folder / "jupyterlab.log", "wb") as log:
        server = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log
        )
        try:
            wait_for_server(server, address, folder / "jupyterlab.log")
            yield address
        finally:
            server.terminate()
            server.wait(timeout=60)


def wait_for_server(server: subprocess.Popen, address: str, log: Path) -> None:
    """Until JupyterLab answers; fails with its own words if it ends first."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            call_api(address, "status")
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


def call_api(address: str, path: str, method: str = "GET") -> bytes:
    """One call of JupyterLab's own interface."""
    headers = {"Authorization": f"token {TOKEN}"}
    request = urllib.request.Request(
        f"{address}/api/{path}", headers=headers, method=method
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read()


def end_kernels(address: str) -> None:
    """End every kernel, so that the next notebook has the machine to itself."""
    for kernel in json.loads(call_api(address, "kernels")):
        call_api(address, f"kernels/{kernel['id']}", "DELETE")


@pytest.fixture
def visit(browser: Browser, lab_address: str) -> Iterator[Visit]:
    """A fresh window that notes every address; all must be on this machine."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    page = context.new_page()
    visit = Visit(page)
    context.on("request", lambda request: visit.addresses.add(request.url))
    page.on("websocket", lambda socket: visit.addresses.add(socket.url))
    page.on("pageerror", lambda error: visit.errors.append(str(error)))
    yield visit
    context.close()
    end_kernels(lab_address)
    web = [urlsplit(address) for address in visit.addresses]
    hosts = {a.hostname for a in web if a.scheme in ("http", "https", "ws", "wss")}
    assert hosts == {urlsplit(lab_address).hostname}
    assert visit.errors == []


# ------------------------------------------------------------------ what people do


def open_notebook(visit: Visit, address: str, name: str) -> None:
    """Open a notebook by its address and wait until its kernel is idle."""
    path = f"/lab/workspaces/{name}/tree/notebooks/{name}.ipynb"
    visit.page.goto(f"{address}{path}?token={TOKEN}")
    visit.page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    # Before a kernel has been asked for, the notebook's own indicator says "idle"
    # too, and Run All would ask which kernel to take: the status bar tells.
    kernel = visit.page.locator("#jp-main-statusbar").get_by_text("(ipykernel) | Idle")
    expect(kernel).to_be_visible(timeout=START_SECONDS * 1000)


def run_all_cells(visit: Visit) -> None:
    """Menu Run, Run All Cells."""
    menu = visit.page.get_by_role("menuitem", name="Run", exact=True)
    menu.click()
    visit.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def watch_until_done(visit: Visit, name: str) -> dict[int, list[tuple[int, str]]]:
    """Look at every plot ten times a second until no cell shows [*].

    Returns:
        For each cell with a plot: the different (picture, words) that were seen
        while that cell was still running, in order.
    """
    seen: dict[int, list[tuple[int, str]]] = {}
    deadline = time.monotonic() + RUN_SECONDS
    started = False
    while time.monotonic() < deadline:
        view = visit.page.evaluate(SEE_PLOTS)
        for plot in view["plots"]:
            pictures = seen.setdefault(plot["cell"], [])
            picture = (plot["picture"], plot["words"])
            if plot["running"] and picture not in pictures:
                pictures.append(picture)
                if len(pictures) == MIN_PICTURES:
                    show_cell(visit, plot["cell"])
                    visit.screenshot(f"{name}-running")
        started = started or view["running"]
        if started and not view["running"]:
            visit.screenshot(f"{name}-ended")
            return seen
        time.sleep(0.1)
    visit.screenshot(f"{name}-timeout")
    pytest.fail(f"{name}: cells still running after {RUN_SECONDS} s")


def show_cell(visit: Visit, index: int) -> None:
    """Scroll to the output of a code cell."""
    cells = visit.page.locator(".jp-Notebook .jp-CodeCell")
    cells.nth(index).locator(".jp-OutputArea-output").first.scroll_into_view_if_needed()


def error_outputs(visit: Visit) -> list[str]:
    """Every red output: errors, and warnings that a learner would stumble over."""
    mime = "application/vnd.jupyter.stderr"
    return visit.page.locator(f'[data-mime-type="{mime}"]').all_text_contents()


def move_slider(visit: Visit, name: str) -> tuple[str, str]:
    """Move the first slider by keyboard, as a person would.

    Returns:
        What was drawn beside it, before and after.
    """
    slider = visit.page.locator('.jp-OutputArea-output input[type="range"]').first
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


# ------------------------------------------------------------------------ the tests


@pytest.mark.parametrize(
    ("name", "has_slider"),
    [
        ("00_start_here", False),
        ("01_reward_to_distribution", True),
        ("07_tiny_lm_maths", False),
    ],
)
def test_plots_move_while_cells_run_and_sliders_move_pictures(
    visit, lab_address, name, has_slider
):
    open_notebook(visit, lab_address, name)
    visit.screenshot(f"{name}-opened")
    run_all_cells(visit)
    seen = watch_until_done(visit, name)
    assert error_outputs(visit) == []
    check_live_plot(visit, seen)
    visit.screenshot(f"{name}-done")
    if has_slider:
        before, after = move_slider(visit, name)
        assert before
        assert after != before


def check_live_plot(visit: Visit, seen: dict[int, list[tuple[int, str]]]) -> None:
    """Some plot changed while its cell ran, and its last state is still there."""
    assert max(map(len, seen.values()), default=0) >= MIN_PICTURES, seen
    cell = max(seen, key=lambda index: len(seen[index]))
    assert len({picture for picture, _ in seen[cell]}) >= MIN_PICTURES
    progress = {words for _, words in seen[cell] if "step" in words}
    assert len(progress) >= 2, "the progress line did not move"
    show_cell(visit, cell)
    last = [p for p in visit.page.evaluate(SEE_PLOTS)["plots"] if p["cell"] == cell]
    assert last, "the finished plot is gone"
    assert "finished" in last[0]["words"]

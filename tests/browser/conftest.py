"""JupyterLab with the course's own settings, and a Chromium without a window."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pages import ROOT, START_SECONDS, TOKEN, Visit, call_api, end_kernels
from playwright.sync_api import Browser, BrowserContext, sync_playwright

# anywidget gives a widget two seconds to start, which even a small one can exceed on
# a busy machine; whether it works all the same is checked by the tests.
ANYWIDGET_GAVE_UP = "[anywidget] Failed to initialize model."
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM_FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
]


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def lab_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the notebooks: what JupyterLab opens."""
    folder = tmp_path_factory.mktemp("jupyterlab")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    return folder


@pytest.fixture(scope="session")
def lab_address(lab_folder: Path) -> Iterator[str]:
    """JupyterLab on ``lab_folder``, with a home of its own."""
    port = find_free_port()
    address = f"http://127.0.0.1:{port}"
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
        f"--ServerApp.root_dir={lab_folder}",
        *("--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}"),
        f"--IdentityProvider.token={TOKEN}",
        "--LabApp.expose_app_in_browser=True",  # a theme is chosen by its command
        f"--LabApp.app_settings_dir={ROOT / '.jupyter'}",
        f"--LabApp.workspaces_dir={load_launcher().write_workspace(lab_folder)}",
    ]
    environment = {k: v for k, v in os.environ.items() if k != "FLOWRL_HEADLESS"}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "JUPYTER_CONFIG_DIR": str(lab_folder / "config"),
        "JUPYTER_DATA_DIR": str(lab_folder / "data"),
        "JUPYTER_RUNTIME_DIR": str(lab_folder / "runtime"),
        "IPYTHONDIR": str(lab_folder / "ipython"),
    }
    with open(lab_folder / "jupyterlab.log", "wb") as log:
        server = subprocess.Popen(
            command, cwd=lab_folder, env=environment, stdout=log, stderr=log
        )
        try:
            wait_for_server(server, address, lab_folder / "jupyterlab.log")
            yield address
        finally:
            server.terminate()
            server.wait(timeout=60)


@pytest.fixture(scope="session")
def context(browser: Browser) -> Iterator[BrowserContext]:
    """One profile for all windows: what JupyterLab is made of is fetched once."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    yield context
    context.close()


@contextlib.contextmanager
def open_window(context: BrowserContext, lab_address: str) -> Iterator[Visit]:
    """A fresh window that notes every address; all must be on this machine."""
    page = context.new_page()
    visit = Visit(page)
    page.on("request", lambda request: visit.addresses.add(request.url))
    page.on("websocket", lambda socket: visit.addresses.add(socket.url))
    page.on("pageerror", lambda error: visit.errors.append(str(error)))
    yield visit
    page.close()
    end_kernels(lab_address)
    web = [urlsplit(address) for address in visit.addresses]
    hosts = {a.hostname for a in web if a.scheme in ("http", "https", "ws", "wss")}
    assert hosts == {urlsplit(lab_address).hostname}
    assert [error for error in visit.errors if error != ANYWIDGET_GAVE_UP] == []


@pytest.fixture
def visit(context: BrowserContext, lab_address: str) -> Iterator[Visit]:
    """A window for one test."""
    with open_window(context, lab_address) as visit:
        yield visit


@pytest.fixture(scope="module")
def shared_visit(context: BrowserContext, lab_address: str) -> Iterator[Visit]:
    """A window for all tests of a file: each goes on where the one before left it."""
    with open_window(context, lab_address) as visit:
        yield visit


def load_launcher():
    """lab.py as a module: the first look is its own."""
    spec = importlib.util.spec_from_file_location("lab", ROOT / "lab.py")
    launcher = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(launcher)
    return launcher


def find_free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


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

"""The hub: a stub that serves, refuses and does not know; and a hub out of reach."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from huggingface_hub import constants
from llm_models import model_folder

from flowrl_lab.policies import hub as hubs
from flowrl_lab.policies.hub import hub_answers

pytestmark = pytest.mark.bad_input
ROOT = Path(__file__).resolve().parents[2]


class StubHub(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does, for one model, a gated one, and nothing else."""

    folder = ""

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        path = self.path.split("?")[0]
        name = path.rsplit("/", 1)[-1]
        file = Path(self.folder) / name
        if "/me/gated" in path:
            return self.refuse(403, "GatedRepo", "Access is restricted")
        if "/me/tiny" not in path:
            return self.refuse(401, "RepoNotFound", "Repository not found")
        if path.startswith("/api/models/me/tiny"):
            names = [{"rfilename": p.name} for p in Path(self.folder).iterdir()]
            body = {"id": "me/tiny", "sha": "0" * 40, "siblings": names}
            if "/tree/" in path:
                body = []
            return self.send(json.dumps(body).encode(), with_body)
        if not file.is_file():
            return self.refuse(404, "EntryNotFound", "Entry not found")
        return self.send(file.read_bytes(), with_body)

    def refuse(self, status: int, code: str, text: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", text)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send(self, body: bytes, with_body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_given):
        """Quiet."""


@pytest.fixture(name="hub", scope="module")
def fixture_hub():
    handler = functools.partial(StubHub)
    StubHub.folder = model_folder()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


ASK = """
import sys
from flowrl_lab.policies.loading import load_language_model
for name in sys.argv[1:]:
    try:
        loaded = load_language_model(name)
        print("LOADED", name, loaded.source, loaded.base_name)
    except (ValueError, ConnectionError) as error:
        print(type(error).__name__.upper(), name, str(error).replace("\\n", " "))
"""


def ask(endpoint: str, cache: Path, *names: str) -> list[str]:
    """What loading says, in a process of its own: the hub's address is read once."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, *names],
        capture_output=True,
        text=True,
        timeout=300,
        env={
            **os.environ,
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(cache),
            "PYTHONPATH": str(ROOT),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "no_proxy": "127.0.0.1",
            "HF_HUB_DISABLE_XET": "1",
            # other tests of this process may have said that there is no hub
            "HF_HUB_OFFLINE": "0",
            # the stub shares a busy machine with other tests
            "HF_HUB_ETAG_TIMEOUT": "120",
            "HF_HUB_DOWNLOAD_TIMEOUT": "120",
        },
    )
    assert done.returncode == 0, done.stderr
    assert "Retrying" not in done.stderr  # five times for each file, with pauses
    return [line for line in done.stdout.splitlines() if line]


def test_the_hub_serves_refuses_and_does_not_know(hub, tmp_path):
    lines = ask(hub, tmp_path, "me/tiny", "me/gated", "me/unknown")
    assert lines[0] == "LOADED me/tiny the hub me/tiny"
    assert lines[1].startswith("VALUEERROR me/gated") and "is gated" in lines[1]
    assert "accept them on the model's page" in lines[1]
    assert lines[2].startswith("VALUEERROR me/unknown") and "not on the hub" in lines[2]


NOWHERE = "http://127.0.0.1:9"


def test_a_hub_out_of_reach_is_said(tmp_path):
    (line,) = ask(NOWHERE, tmp_path, "me/tiny")
    assert line.startswith("CONNECTIONERROR me/tiny the hub cannot be reached")
    assert "take 'smollm2-135m'" in line
    assert "(it does not answer, and the cache has no copy)" in line


@pytest.mark.full
def test_a_cached_model_loads_where_the_hub_does_not_answer(hub, tmp_path):
    assert ask(hub, tmp_path, "me/tiny") == ["LOADED me/tiny the hub me/tiny"]
    (line,) = ask(NOWHERE, tmp_path, "me/tiny")
    assert line == (
        "LOADED me/tiny the hub (it does not answer; this is the copy in the cache) "
        "me/tiny"
    )


def test_the_hub_is_called_once_unless_a_proxy_stands_between(hub, monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub)
    assert hub_answers()
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    assert not hub_answers()
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    assert hub_answers()  # only the proxy could say
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert not hub_answers()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "ENDPOINT", hub)
    assert not hub_answers()


def test_a_name_that_never_resolves_is_not_waited_for(monkeypatch):
    called, released = threading.Event(), threading.Event()

    def hang(*_given):
        called.set()
        released.wait()
        raise OSError("too late")

    monkeypatch.setattr(socket, "create_connection", hang)
    assert not hubs._opens("hub.example", 443, patience=0.05)
    assert called.is_set()
    released.set()

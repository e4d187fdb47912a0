"""Every test of the sandbox leaves the machine as it found it."""

from __future__ import annotations

import os
import sys

import psutil
import pytest

from flowrl_lab.sandbox import sandbox_problem


def processes_of_this_one() -> set[int]:
    # Not from /proc/self/task: a thread that ends meanwhile hands its children on.
    return {child.pid for child in psutil.Process().children()}


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(tmp_path_factory, monkeypatch):
    """After each test: no process, no scratch folder, no descriptor is left."""
    if sys.platform != "linux":
        yield
        return
    folder = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    sandbox_problem()
    before, handles = processes_of_this_one(), len(os.listdir("/proc/self/fd"))
    yield
    assert processes_of_this_one() <= before
    assert list(folder.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) <= handles

"""Notebook 9 from start to adapter, with the real model and without it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from llm_models import write_stand_in
from trained_copy import write_trained_copy

from flowrl_lab.policies.loading import fetch_model
from flowrl_lab.training.run import Run

ROOT = Path(__file__).resolve().parents[2]
NOWHERE = "http://127.0.0.1:9"  # nothing listens on the discard port


def run_notebook(folder: Path, **environment: str) -> str:
    """Run the quick copy in ``folder`` with no index and no hub; what it printed."""
    path = folder / "trained.ipynb"
    write_trained_copy(path)
    done = subprocess.run(
        [sys.executable, "-m", "jupyter", "execute", "--inplace", path.name],
        capture_output=True, text=True, cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "FLOWRL_HEADLESS": "1",
             "PIP_INDEX_URL": f"{NOWHERE}/simple", "HF_ENDPOINT": NOWHERE,
             **environment},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return "".join(
        output.get("text", "")
        for cell in nbformat.read(path, as_version=4).cells
        for output in cell.get("outputs", ())
    )


def check_trained(folder: Path, said: str) -> None:
    """Three runs of two steps were trained live, and one left an adapter."""
    assert "live: smollm2-135m is here" in said
    assert "in the library" in said and said.count("gradients differ by") == 2
    assert "step 2/2" in said and "tokens/s" in said
    for name in ("grpo", "flowrl", "kl_reinforce"):
        run = Run.load(folder / "runs" / f"llm_quick_{name}")
        assert run.step == 2 and run.config.policy == "hf_lm"
        assert len(run.records) == 3
    written = {file.name for file in (folder / "my_adapter").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} <= written


@pytest.mark.full
@pytest.mark.slow
def test_it_trains_three_runs_and_leaves_an_adapter(tmp_path):
    fetch_model("smollm2-135m")
    check_trained(tmp_path, run_notebook(tmp_path))


@pytest.mark.slow
def test_the_live_way_with_a_tiny_model_in_the_place_of_the_real_one(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("FLOWRL_CACHE", str(tmp_path / "cache"))
    write_stand_in(tmp_path / "cache")
    check_trained(tmp_path, run_notebook(tmp_path))


@pytest.mark.full
@pytest.mark.slow
def test_without_the_model_it_plays_the_recording_and_says_why(tmp_path):
    said = run_notebook(tmp_path, FLOWRL_CACHE=str(tmp_path / "empty"))
    assert "replay: smollm2-135m is not on this machine. Fix: python3 lab.py" in said
    # The loop by hand runs all the same, on the small model of notebook 7.
    assert "in the library" in said and said.count("gradients differ by") == 2
    assert not (tmp_path / "runs").exists() and not (tmp_path / "my_adapter").exists()

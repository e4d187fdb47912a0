"""Notebook 9 with ``way = "train"``: the real model, from start to adapter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from trained_copy import write_trained_copy

from flowrl_lab.training.run import Run

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.full
@pytest.mark.slow
def test_it_trains_two_runs_and_leaves_an_adapter(tmp_path):
    path = tmp_path / "trained.ipynb"
    write_trained_copy(path)
    done = subprocess.run(
        [sys.executable, "-m", "jupyter", "execute", "--inplace", path.name],
        capture_output=True, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "FLOWRL_HEADLESS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    said = "".join(
        output.get("text", "")
        for cell in nbformat.read(path, as_version=4).cells
        for output in cell.get("outputs", ())
    )
    assert "step 4/4" in said and "tokens/s" in said
    for name in ("grpo", "flowrl"):
        run = Run.load(tmp_path / "runs" / f"llm_{name}")
        assert run.step == 4 and run.config.policy == "hf_lm"
        assert len(run.records) == 5
    written = {file.name for file in (tmp_path / "my_adapter").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} <= written

"""From a new notebook kernel to the first plot of a live run.

The floor is what nothing of ours can avoid: importing PyTorch and, for the second
number, plotly in a kernel that does nothing else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

FIRST_PLOT = """
import flowrl_lab
flowrl_lab.setup(seed=0)
from flowrl_lab.training.config import ExperimentConfig
from flowrl_lab.training.run import train
from flowrl_lab.plots.live import LivePlot
config = ExperimentConfig(task="landscape", algorithm="flowrl", steps=2)
with LivePlot(("reward",), backend="{backend}") as plot:
    for record in train(config):
        plot.update(record)
        break
"""
IMPORTS = "import torch\nimport numpy\n{plotly}"
TIMED = """
import contextlib, io, json, sys, time
began = time.perf_counter()
with contextlib.redirect_stdout(io.StringIO()):
    exec({code!r})
print(json.dumps(time.perf_counter() - began))
"""


def time_code(code: str) -> float:
    """Seconds that ``code`` takes in a Python of its own, its start not counted.

    Raises:
        RuntimeError: the code failed.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), "FLOWRL_HEADLESS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", TIMED.format(code=code)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"cold start failed: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(rounds: int) -> list[dict]:
    """A row for the first plot without widgets; the best of some rounds."""
    code = FIRST_PLOT.replace("{backend}", "static")
    imports = IMPORTS.replace("{plotly}", "import plotly.graph_objects")
    time_code(imports)  # the files are read from the disk once
    ours = min(time_code(code) for _ in range(rounds))
    floor = min(time_code(imports) for _ in range(rounds))
    return [
        {
            "what": "cold start to the first plot",
            "unit": "s",
            "ours": ours,
            "peer": "import torch, plotly",
            "theirs": floor,
            "floor": floor,
        }
    ]

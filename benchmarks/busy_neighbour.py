"""A language model's layers on all cores, alone and beside other busy programs.

OpenMP's threads wait for each other after every operation.  By default they spin
meanwhile; when another program has one of the cores, all of them spin until it gives
way.  ``import flowrl_lab`` before torch makes them sleep instead.

    python -m benchmarks --only neighbour
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# SmolLM2's width, a short batch: many small products, each shared among threads.
WORKER = """
import sys, time
{imports}
torch.set_num_threads(int(sys.argv[1]))
layers = torch.nn.Sequential(*(torch.nn.Linear(576, 576) for _ in range(60)))
batch = torch.randn(64, 576)
def step():
    layers(batch).sum().backward()
step()
for steps in sys.stdin:
    began = time.perf_counter()
    for _ in range(int(steps)):
        step()
    print((time.perf_counter() - began) / int(steps), flush=True)
"""
OURS, DEFAULT = "import flowrl_lab, torch", "import torch, flowrl_lab"
BUSY = "while True: pass"


@contextlib.contextmanager
def started(code: str, *words: str) -> Iterator[subprocess.Popen]:
    """A Python that runs ``code`` until the block ends, with OpenMP as it comes."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        env={**kept, "PYTHONPATH": str(ROOT)},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def time_steps(worker: subprocess.Popen, steps: int) -> float:
    """Seconds a step; the other worker waits for its own turn meanwhile."""
    worker.stdin.write(f"{steps}\n")
    worker.stdin.flush()
    return float(worker.stdout.readline())


def measure(rounds: int, steps: int = 20) -> list[dict]:
    """Both ways to wait, alone and beside a busy process a core, in turns."""
    cores = os.cpu_count() or 1
    names = ("ours", "default")
    alone: dict[str, list[float]] = {name: [] for name in names}
    beside: dict[str, list[float]] = {name: [] for name in names}
    with contextlib.ExitStack() as stack:
        workers = {
            name: stack.enter_context(
                started(WORKER.format(imports=imports), str(cores))
            )
            for name, imports in zip(names, (OURS, DEFAULT), strict=True)
        }
        for _ in range(rounds):
            for name, worker in workers.items():
                alone[name].append(time_steps(worker, steps))
            with contextlib.ExitStack() as neighbours:
                for _ in range(cores):
                    neighbours.enter_context(started(BUSY))
                for name, worker in workers.items():
                    beside[name].append(time_steps(worker, steps))
    idle, shared = (
        {name: statistics.median(times) for name, times in kind.items()}
        for kind in (alone, beside)
    )
    for name in names:
        print(f"{name}: {shared[name] / idle[name]:.1f} times slower beside busy cores")
    return [
        {
            "what": f"layers, {state}",
            "unit": "s",
            "ours": seconds["ours"],
            "peer": "threads that spin",
            "theirs": seconds["default"],
            "floor": idle["ours"],
        }
        for state, seconds in (("alone", idle), ("beside busy cores", shared))
    ]

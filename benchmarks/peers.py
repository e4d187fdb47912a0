"""TRL's side of the step benchmark: its worker process, and how to come by one."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

__all__ = ["PEERS", "WORKER", "Peer", "find_trl"]

WORKER = Path(__file__).with_name("trl_worker.py")
RECIPE = """\
    python3 -m venv trl-env
    trl-env/bin/pip install torch==2.13.0 --index-url \\
        https://download.pytorch.org/whl/cpu
    trl-env/bin/pip install trl==1.16.0 transformers==5.23.0 peft==0.21.2 \\
        datasets==5.2.0 jaxtyping==0.3.11
    python benchmarks/step_vs_trl.py --trl-python trl-env/bin/python"""
# TRL in float32 at its fastest, and with what GRPOConfig switches on by default.
PEERS = {
    "trl": {"gradient_checkpointing": False, "bf16": False},
    "trl, checkpointing": {"gradient_checkpointing": True, "bf16": False},
    "trl, as it comes": {"gradient_checkpointing": True, "bf16": True},
}


class Peer:
    """TRL's worker process: ``step()`` asks for one step and returns its message."""

    def __init__(self, command: list[str], settings: dict, log):
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            encoding="utf-8",
        )
        self._log = log
        self.facts = self._ask(settings)

    def _ask(self, message: dict) -> dict:
        """Send one line, wait for one line."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            last = self._log.read().strip().splitlines()[-1:] or ["it said nothing"]
            raise RuntimeError(
                f"TRL's worker ended with code {self._process.wait()}: {last[0]}. "
                "Fix: make its environment as benchmarks/README.md says."
            )
        return json.loads(line)

    def step(self) -> dict:
        return self._ask({"command": "step"})

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"command": "stop"}) + "\n")
            self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


def find_trl(given: str | None) -> str:
    """The Python that has TRL.

    Raises:
        ValueError: none was given and this one has no TRL.
    """
    if given is not None:
        if not Path(given).exists():
            raise ValueError(f"--trl-python {given} does not exist. {_how()}")
        return given
    if importlib.util.find_spec("trl") is None:
        raise ValueError(f"this Python has no TRL. {_how()}")
    return sys.executable


def _how() -> str:
    return f"Fix: make an environment for it and name its Python:\n{RECIPE}"

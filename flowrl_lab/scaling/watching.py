"""What a run of a language model tells while it trains: speed, memory, samples."""

from __future__ import annotations

import importlib
import sys
import textwrap
from pathlib import Path

import torch

from flowrl_lab.plots.live import clock
from flowrl_lab.scaling.machine import in_colab
from flowrl_lab.types import StepRecord

__all__ = ["checkpoint_folder", "describe_progress", "describe_samples", "peak_memory"]

_DRIVE = Path("/content/drive/MyDrive")


def peak_memory(device: torch.device | str = "cpu") -> float:
    """The most memory used so far, in GB: of the GPU, else of this process.

    NaN where nothing says.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    if device.type == "mps":
        return torch.mps.driver_allocated_memory() / 1e9
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used * (1 if sys.platform == "darwin" else 1024) / 1e9


def describe_progress(record: StepRecord, device: torch.device | str = "cpu") -> str:
    """Step, completion tokens a second, peak memory and time left, in one line."""
    if not record.step or not record.seconds:
        return f"{record.run}: before the first step"
    left = record.seconds / record.step * (record.steps - record.step)
    speed = record.tokens / record.seconds
    return (
        f"{record.run}: step {record.step}/{record.steps} · {speed:.1f} tokens/s · "
        f"{peak_memory(device):.1f} GB at most · {clock(left)} left"
    )


def describe_samples(record: StepRecord, task=None) -> str:
    """The record's sampled completions with their rewards, a line each.

    With the run's task, each line ends with the parts of the reward and the reason.
    """
    lines = []
    for prompt, text, reward in record.samples:
        question = textwrap.shorten(prompt, 60, placeholder=" …")
        line = f"{reward:5.2f}  {question}: {text!r}"
        if hasattr(task, "task"):
            scored = task.task.score(prompt, text)
            parts = ", ".join(f"{k} {v:g}" for k, v in scored.parts.items())
            line += f"   [{parts}] {scored.reason}"
        lines.append(line)
    return "\n".join(lines)


def checkpoint_folder(name: str, *, drive: bool = False) -> Path:
    """Where a run should be saved.

    Args:
        name: of the run.
        drive: on Google Drive, so that it survives the end of a Colab session; it is
            mounted first if need be.

    Returns:
        A path; the folder is made by the run.

    Raises:
        ValueError: Drive was asked for outside Colab, or it is not mounted.
    """
    if not drive:
        return Path("runs") / name
    if not _DRIVE.is_dir():
        if not in_colab():
            raise ValueError(
                "Google Drive was asked for, but this is not Colab. Fix: use "
                "drive=False, or name a folder of your own."
            )
        # Colab has it built in; no package of that name could be asked for.
        importlib.import_module("google.colab.drive").mount("/content/drive")
    if not _DRIVE.is_dir():
        raise ValueError(
            "Google Drive is not mounted. Fix: allow it in the window that opens, or "
            "use drive=False (the run is then lost with the session)."
        )
    return _DRIVE / "flowrl_lab" / name

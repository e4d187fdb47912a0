"""One finished run as a folder of plain files, and back.

``Run.save`` writes what it needs to go on: ``config.json``, ``records.jsonl`` and
``checkpoint.pt``.  This module adds what a reader of the results needs:

====================  ======================================================
``environment.json``  versions, device, threads, and the wall time so far
``snapshot.json``     the watched prompt's last distribution, if there is one
``summary.json``      the referee's last report and the run's totals; written
                      last, so a folder that has it holds a finished run
====================  ======================================================
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flowrl_lab._files import read_json, read_lines, write_json
from flowrl_lab.training.records import record_from_dict
from flowrl_lab.types import ExactReport, Snapshot, StepRecord

__all__ = [
    "RunResult",
    "describe_environment",
    "is_finished",
    "load_result",
    "read_environment",
    "save_result",
    "write_environment",
]

PACKAGES = ("flowrl-lab", "torch", "numpy", "transformers", "peft")
MAX_PICTURE = 20_000  # answers; a larger distribution is not worth a JSON file
_SUMMARY = "summary.json"


@dataclass(frozen=True)
class RunResult:
    """What one run leaves behind, for tables and reports.

    Attributes:
        config: the run's ``ExperimentConfig`` as a plain dict.
        records: its records in order; at least one carries an exact report.
        environment: as ``describe_environment`` gives it, with ``wall_seconds``.
    """

    config: dict
    records: tuple[StepRecord, ...]
    environment: dict

    def __post_init__(self) -> None:
        if not any(record.exact is not None for record in self.records):
            raise ValueError(
                f"got {len(self.records)} records without an exact report; expected "
                "at least one evaluated step. Fix: keep the record of the last step, "
                "or evaluate more often (eval_every)."
            )

    @property
    def name(self) -> str:
        """What tables and legends call the run."""
        return self.records[-1].run

    @property
    def algorithm(self) -> str:
        return self.records[-1].algorithm

    @property
    def seed(self) -> int:
        return self.records[-1].seed

    @property
    def seconds(self) -> float:
        """Training time, without evaluation."""
        return self.records[-1].seconds

    @property
    def wall_seconds(self) -> float:
        """Time from start to end, evaluation included; training time if unknown."""
        return float(self.environment.get("wall_seconds", self.seconds))

    @property
    def exact(self) -> ExactReport:
        """The last report of the referee."""
        return next(r.exact for r in reversed(self.records) if r.exact is not None)

    @property
    def snapshot(self) -> Snapshot | None:
        """The last distribution of the watched prompt."""
        found = (r.snapshot for r in reversed(self.records) if r.snapshot is not None)
        return next(found, None)


def describe_environment(device: str = "cpu") -> dict:
    """Versions, machine, device and threads: what a result depends on."""
    import torch

    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "machine": f"{platform.system()} {platform.machine()}",
        "device": str(device),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


def is_finished(folder: str | Path) -> bool:
    """Whether ``folder`` holds a finished run."""
    return (Path(folder) / _SUMMARY).is_file()


def write_environment(folder: Path, environment: dict) -> None:
    """Write ``environment.json``."""
    write_json(folder / "environment.json", environment)


def read_environment(folder: Path) -> dict:
    """What ``write_environment`` wrote; empty if it never got that far."""
    path = folder / "environment.json"
    return read_json(path) if path.is_file() else {}


def save_result(result: RunResult, folder: str | Path) -> None:
    """Add the reader's files to a folder that ``Run.save`` wrote.

    ``summary.json`` comes last and marks the run as finished.
    """
    folder = Path(folder)
    write_environment(folder, result.environment)
    if result.snapshot is not None and len(result.snapshot.labels) <= MAX_PICTURE:
        write_json(folder / "snapshot.json", dataclasses.asdict(result.snapshot))
    last = result.records[-1]
    summary = {
        "run": result.name,
        "algorithm": result.algorithm,
        "seed": result.seed,
        "step": last.step,
        "steps": last.steps,
        "tokens": last.tokens,
        "training_seconds": result.seconds,
        "wall_seconds": result.wall_seconds,
        "exact": dataclasses.asdict(result.exact),
    }
    write_json(folder / _SUMMARY, summary)


def load_result(folder: str | Path) -> RunResult:
    """Read a finished run's folder.

    Raises:
        ValueError: no finished run there, or a file that cannot be read.
    """
    folder = Path(folder)
    if not is_finished(folder):
        raise ValueError(
            f"{folder} holds no finished run (no {_SUMMARY}). Fix: finish it with "
            "`train --resume`, or name another folder."
        )
    try:
        lines = read_lines(folder / "records.jsonl")
        records = [record_from_dict(json.loads(line)) for line in lines]
        picture = folder / "snapshot.json"
        if picture.is_file():
            records = _with_snapshot(records, read_json(picture))
        config = read_json(folder / "config.json")
        return RunResult(config, tuple(records), read_environment(folder))
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"the run in {folder} cannot be read ({type(error).__name__}: {error}). "
            "Fix: delete that folder and run it again."
        ) from error


def _with_snapshot(records: list[StepRecord], content: dict) -> list[StepRecord]:
    """Hang the saved picture on the last evaluated record."""
    arrays = {
        name: np.array(content[name], dtype=np.float64)
        for name in ("probs", "target_probs", "rewards")
    }
    labels = tuple(content["labels"])
    snapshot = Snapshot(prompt=content["prompt"], labels=labels, **arrays)
    last = max(i for i, record in enumerate(records) if record.exact is not None)
    changed = dataclasses.replace(records[last], snapshot=snapshot)
    return [*records[:last], changed, *records[last + 1 :]]

"""A run on disk: its records as plain values, a folder of files, or one line.

``Run.save`` writes what it needs to go on: ``config.json``, ``records.jsonl`` and
``checkpoint.pt``.  This module adds what a reader of the results needs:

====================  ======================================================
``environment.json``  versions, device, threads, and the wall time so far
``snapshot.json``     the watched prompt's last distribution, if there is one
``summary.json``      the referee's last report and the run's totals; written
                      last, so a folder that has it holds a finished run
====================  ======================================================

``run_to_line`` and ``run_from_line`` put a whole run into one line of JSON: what the
recordings in ``data/results`` are made of.
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
from flowrl_lab.training.records import record_from_dict, record_to_dict
from flowrl_lab.types import ExactReport, Snapshot, StepRecord

__all__ = [
    "RunResult",
    "describe_environment",
    "is_finished",
    "load_result",
    "read_environment",
    "record_from_plain",
    "record_to_plain",
    "run_from_line",
    "run_to_line",
    "save_result",
    "write_environment",
]

PACKAGES = ("flowrl-lab", "torch", "numpy", "transformers", "peft")
MAX_PICTURE = 20_000  # answers; a larger distribution is not worth a JSON file
FORMAT = 1  # of a run as one line
DIGITS = 5  # of the numbers in a recorded map
_SUMMARY = "summary.json"
_MAP = ("probs", "target_probs", "rewards")


@dataclass(frozen=True)
class RunResult:
    """What one run leaves behind, for tables and reports.

    Attributes:
        config: the run's ``ExperimentConfig`` as a plain dict.
        records: its records in order.
        environment: as ``describe_environment`` gives it, with ``wall_seconds``.
    """

    config: dict
    records: tuple[StepRecord, ...]
    environment: dict

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
        """The last report of the referee.

        Raises:
            ValueError: no record has one.
        """
        reports = [r.exact for r in self.records if r.exact is not None]
        if not reports:
            raise ValueError(
                f"got {len(self.records)} records without an exact report; expected "
                "at least one evaluated step. Fix: keep the record of the last step, "
                "or evaluate more often (eval_every)."
            )
        return reports[-1]

    @property
    def snapshot(self) -> Snapshot | None:
        """The last distribution of the watched prompt."""
        found = (r.snapshot for r in reversed(self.records) if r.snapshot is not None)
        return next(found, None)


def record_to_plain(record: StepRecord) -> dict:
    """A record with its map as lists of rounded numbers."""
    fields, shot = record_to_dict(record), record.snapshot
    if shot is not None:
        rounded = {
            name: [float(f"{value:.{DIGITS}g}") for value in getattr(shot, name)]
            for name in _MAP
        }
        fields["snapshot"] = {
            "prompt": shot.prompt,
            "labels": list(shot.labels),
            **rounded,
        }
    return fields


def record_from_plain(fields: dict) -> StepRecord:
    """What ``record_to_plain`` gave, as a record again."""
    record = record_from_dict({**fields, "snapshot": None})
    shot = fields.get("snapshot")
    return record if shot is None else _with_map(record, shot)


def _with_map(record: StepRecord, shot: dict) -> StepRecord:
    arrays = {name: np.array(shot[name], dtype=np.float64) for name in _MAP}
    snapshot = Snapshot(shot["prompt"], tuple(shot["labels"]), **arrays)
    return dataclasses.replace(record, snapshot=snapshot)


def run_to_line(result: RunResult) -> str:
    """A whole run as one line of JSON."""
    content = {
        "format": FORMAT,
        "config": result.config,
        "records": [record_to_plain(record) for record in result.records],
        "environment": result.environment,
    }
    return json.dumps(content, ensure_ascii=False)


def run_from_line(line: str) -> RunResult:
    """What ``run_to_line`` gave.

    Raises:
        ValueError, KeyError, TypeError: a damaged line, or one of another format.
    """
    row = json.loads(line)
    if row["format"] != FORMAT:
        raise ValueError(f"format {row['format']!r}, expected {FORMAT}")
    records = tuple(map(record_from_plain, row["records"]))
    return RunResult(row["config"], records, row["environment"])


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
        last = max(i for i, record in enumerate(records) if record.exact is not None)
        picture = folder / "snapshot.json"
        if picture.is_file():  # of the last evaluation
            records[last] = _with_map(records[last], read_json(picture))
        config = read_json(folder / "config.json")
        return RunResult(config, tuple(records), read_environment(folder))
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"the run in {folder} cannot be read ({type(error).__name__}: {error}). "
            "Fix: delete that folder and run it again."
        ) from error

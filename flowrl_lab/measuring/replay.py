"""Recorded runs with their solution maps, played again through the live plots.

A recording holds what a run yielded, step for step: ``replay`` yields the same
records again, marked as recorded, so that a notebook without a GPU or without the
time shows exactly what was seen when the run was made.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from flowrl_lab._files import data_path, read_lines, write_atomically
from flowrl_lab.measuring.folder import read_environment
from flowrl_lab.training.records import record_from_dict, record_to_dict
from flowrl_lab.types import Snapshot, StepRecord

__all__ = ["Recording", "append_step", "load_replay", "replay", "write_replay"]

FORMAT = 1
STEPS_FILE = "steps.jsonl"
DIGITS = 5  # of the probabilities in a map


@dataclasses.dataclass(frozen=True)
class Recording:
    """One run as it was recorded.

    Attributes:
        config: the run's settings.
        environment: versions, device, threads, wall time.
        records: what it yielded, in order.
    """

    config: dict
    environment: dict
    records: tuple[StepRecord, ...]


def append_step(folder: Path, record: StepRecord) -> None:
    """Add one step to the recording in a run's folder.

    A line at a time: what is cut off by a crash is one line, and a step that is done
    again after a resume is written again and replaces the first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / STEPS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(_to_plain(record), ensure_ascii=False) + "\n")


def read_steps(folder: Path) -> list[StepRecord]:
    """The steps that ``append_step`` wrote; of a step written twice, the last."""
    found: dict[int, StepRecord] = {}
    for line in read_lines(folder / STEPS_FILE):
        try:
            record = _from_plain(json.loads(line))
        except json.JSONDecodeError:  # the line at which a crash cut it off
            continue
        found[record.step] = record
    return [found[step] for step in sorted(found)]


def write_replay(path: str | Path, folders: Sequence[str | Path]) -> None:
    """Gather the recordings of runs' folders in one file.

    Raises:
        ValueError: ``path`` exists already; a folder without a recording.
    """
    path = Path(path)
    if path.exists():
        raise ValueError(f"{path} exists already. Fix: name a new file, or remove it.")
    lines = []
    for folder in map(Path, folders):
        if not (folder / STEPS_FILE).is_file():
            raise ValueError(
                f"{folder} holds no recorded steps. Fix: name the folder of a run that "
                "`python -m flowrl_lab record` made."
            )
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        row = {
            "format": FORMAT,
            "config": config,
            "environment": read_environment(folder),
            "records": [_to_plain(record) for record in read_steps(folder)],
        }
        lines.append(json.dumps(row, ensure_ascii=False))
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def load_replay(name: str) -> list[Recording]:
    """The recordings in ``data/results/<name>.replay.jsonl``.

    Raises:
        ValueError: a damaged or foreign line.
        FileNotFoundError: no such recording.
    """
    path = data_path(f"results/{name}.replay.jsonl")
    recordings = []
    for number, line in enumerate(read_lines(path), 1):
        try:
            row = json.loads(line)
            if row["format"] != FORMAT:
                raise ValueError(f"format {row['format']!r}, expected {FORMAT}")
            records = tuple(map(_from_plain, row["records"]))
            recordings.append(Recording(row["config"], row["environment"], records))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}, line {number}, cannot be read ({error}). Fix: restore the "
                "file from the repository."
            ) from error
    return recordings


def replay(
    recordings: Sequence[Recording],
    *,
    seconds: int | float = 0.0,
    last_step: int | None = None,
) -> Iterator[StepRecord]:
    """The recorded steps, runs in turns as ``race`` has them.

    Args:
        recordings: runs with different names.
        seconds: how long the whole should take, for the eye; 0 is at once.
        last_step: where to stop; None plays everything.

    Yields:
        The records, their runs named "… (recorded)".
    """
    columns = [
        [r for r in recording.records if last_step is None or r.step <= last_step]
        for recording in recordings
    ]
    total = sum(map(len, columns))
    longest = max(map(len, columns), default=0)
    for step in range(longest):
        for column in columns:
            if step < len(column):
                record = column[step]
                yield dataclasses.replace(record, run=f"{record.run} (recorded)")
                if seconds:
                    time.sleep(seconds / total)


def _to_plain(record: StepRecord) -> dict:
    """A record with its map as lists, NaN as JSON's readers in Python write it."""
    fields = record_to_dict(record)
    shot = record.snapshot
    if shot is not None:
        fields["snapshot"] = {
            "prompt": shot.prompt,
            "labels": list(shot.labels),
            "probs": _rounded(shot.probs),
            "target_probs": _rounded(shot.target_probs),
            "rewards": _rounded(shot.rewards),
        }
    return fields


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in values.tolist()]


def _from_plain(fields: dict) -> StepRecord:
    shot = fields.get("snapshot")
    record = record_from_dict({**fields, "snapshot": None})
    if shot is None:
        return record
    arrays = {key: np.array(shot[key]) for key in ("probs", "target_probs", "rewards")}
    labels = tuple(shot["labels"])
    snapshot = Snapshot(prompt=shot["prompt"], labels=labels, **arrays)
    return dataclasses.replace(record, snapshot=snapshot)

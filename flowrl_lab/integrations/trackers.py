"""Watch a run where you watch all others: TensorBoard, Weights & Biases, Trackio.

    for record in track(train(config), "tensorboard", "runs/one/logs"):
        plot.update(record)

``track`` passes every record on and writes its numbers on the way, whatever yields
them: ``train``, a ``Run``, a ``race`` of several.  ``"csv"`` and ``"jsonl"`` need no
package; the others are imported when they are asked for, and nothing is sent
anywhere unless that package was told to.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

from flowrl_lab._validation import check_choice
from flowrl_lab.training.records import record_to_dict
from flowrl_lab.types import StepRecord

__all__ = ["TRACKERS", "Tracker", "numbers_of", "track"]

_ABOUT_THE_RUN = ("run", "algorithm", "seed", "step", "steps", "samples", "snapshot")
_OF_GROUPS = ("sampled", "floor")


@runtime_checkable
class Tracker(Protocol):
    """Where numbers go.  A run of a race is told apart by its name and seed."""

    def write(self, run: str, step: int, values: dict[str, float]) -> None:
        """Note the numbers of one step."""

    def close(self) -> None:
        """Write what is left; called once, also after an error."""


def track(
    records: Iterable[StepRecord],
    tracker: str,
    folder: str | Path,
    *,
    project: str = "",
) -> Iterator[StepRecord]:
    """Pass records on, and write their numbers to a tracker.

    Args:
        records: from ``train(config)``, a ``Run`` or a ``race``.
        tracker: key of ``TRACKERS``.
        folder: where the tracker keeps its files; made if need be.
        project: name under which W&B and Trackio file the runs; by default the
            folder's name.

    Yields:
        The same records, each after it was written.

    Raises:
        ValueError: an unknown tracker; a file there that would be overwritten.
        ImportError: its package is missing; the text names the extra.
    """
    check_choice("tracker", tracker, TRACKERS)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Opened here and not on the first record: mistakes show before any work.
    opened = TRACKERS[tracker](folder, project or folder.resolve().name)
    return _pass_on(records, opened)


def _pass_on(records: Iterable[StepRecord], tracker: Tracker) -> Iterator[StepRecord]:
    with contextlib.closing(tracker):
        for record in records:
            run = f"{record.run}_seed{record.seed}"
            tracker.write(run, record.step, numbers_of(record))
            yield record


def numbers_of(record: StepRecord) -> dict[str, float]:
    """A record's finite numbers by name.

    The referee's begin with ``exact/``, those of the batch's groups with
    ``sampled/``, and what they were before training with ``floor/``.
    """
    values: dict[str, float] = {}
    fields = record_to_dict(record)
    exact = fields.pop("exact") or {}
    passes = exact.pop("pass_at_k", {})
    sampled, floor = fields.pop("sampled"), fields.pop("floor")
    named = {k: v for k, v in fields.items() if k not in _ABOUT_THE_RUN}
    named |= {f"exact/{name}": value for name, value in exact.items()}
    named |= {f"exact/pass_at_{k}": value for k, value in passes.items()}
    named |= {f"sampled/{_plain(name)}": value for name, value in sampled.items()}
    named |= {f"floor/{_plain(name)}": pair[0] for name, pair in floor.items()}
    for name, value in named.items():
        if isinstance(value, int | float) and math.isfinite(value):
            values[name] = float(value)
    return values


def _plain(measure: str) -> str:
    """``pass@4`` as ``pass_at_4``, which every tracker takes."""
    return measure.replace("@", "_at_")


# ------------------------------------------------------------------ plain files


class JsonLines:
    """One JSON object a step, in ``steps.jsonl``."""

    def __init__(self, folder: Path, _project: str) -> None:
        self._file = _new_file(folder / "steps.jsonl")

    def write(self, run: str, step: int, values: dict[str, float]) -> None:
        self._file.write(json.dumps({"run": run, "step": step, **values}) + "\n")
        self._file.flush()  # what a crash leaves behind can be read

    def close(self) -> None:
        self._file.close()


class Csv:
    """One line a step, in ``steps.csv``; what does not apply stays empty."""

    def __init__(self, folder: Path, _project: str) -> None:
        self._file = _new_file(folder / "steps.csv")
        self._writer = csv.DictWriter(
            self._file, ["run", "step", *_every_number()], restval=""
        )
        self._writer.writeheader()

    def write(self, run: str, step: int, values: dict[str, float]) -> None:
        self._writer.writerow({"run": run, "step": step, **values})
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _new_file(path: Path) -> io.TextIOWrapper:
    try:
        return open(path, "x", newline="", encoding="utf-8")
    except FileExistsError:
        raise ValueError(
            f"{path} already exists; nothing is overwritten. Fix: name a new folder."
        ) from None


def _every_number() -> list[str]:
    """All columns that a record can have; pass@k at the referee's own k."""
    from flowrl_lab.exact import PASS_AT
    from flowrl_lab.metrics import GROUP_MEASURES as measures
    from flowrl_lab.types import ExactReport

    own = [f.name for f in dataclasses.fields(StepRecord)]
    columns = [n for n in own if n not in (*_ABOUT_THE_RUN, "exact", *_OF_GROUPS)]
    report = [f.name for f in dataclasses.fields(ExactReport)]
    columns += [f"exact/{name}" for name in report if name != "pass_at_k"]
    columns += [f"exact/pass_at_{k}" for k in PASS_AT]
    return columns + [f"{kind}/{_plain(m)}" for kind in _OF_GROUPS for m in measures]


# --------------------------------------------------------------------- packages


class TensorBoard:
    """Event files, one folder a run: ``tensorboard --logdir FOLDER`` shows them."""

    def __init__(self, folder: Path, _project: str) -> None:
        with _needs("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
        self._make, self._folder = SummaryWriter, folder
        self._writers: dict = {}

    def write(self, run: str, step: int, values: dict[str, float]) -> None:
        if run not in self._writers:
            self._writers[run] = self._make(self._folder / _safe(run))
        for name, value in values.items():
            self._writers[run].add_scalar(name, value, step)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


class WandB:
    """Weights & Biases; without a key set ``WANDB_MODE=offline`` beforehand."""

    def __init__(self, folder: Path, project: str) -> None:
        with _needs("wandb"):
            import wandb
        self._wandb, self._folder, self._project = wandb, folder, project
        self._runs: dict = {}

    def write(self, run: str, step: int, values: dict[str, float]) -> None:
        if run not in self._runs:
            self._runs[run] = self._wandb.init(
                project=_safe(self._project),
                name=run,
                dir=str(self._folder),
                reinit="create_new",  # the runs of a race are open side by side
            )
        self._runs[run].log(values, step=step)

    def close(self) -> None:
        for run in self._runs.values():
            run.finish()


class Trackio:
    """Trackio: a local data base, ``trackio show`` shows it.

    It keeps its files where ``TRACKIO_DIR`` says, for all projects together; the
    folder of ``track`` only names the project.  It can have one run open at a time,
    so the first run of a race is live and the others follow at the end.
    """

    def __init__(self, _folder: Path, project: str) -> None:
        with _needs("trackio"):
            import trackio
        self._trackio, self._project = trackio, project
        self._live: tuple[str, object] | None = None
        self._waiting: dict[str, list[tuple[int, dict[str, float]]]] = {}

    def _open(self, run: str):
        quiet = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        return self._trackio.init(project=_safe(self._project), name=run, **quiet)

    def write(self, run: str, step: int, values: dict[str, float]) -> None:
        if self._live is None:
            self._live = (run, self._open(run))
        name, opened = self._live
        if name == run:
            opened.log(values, step=step)
        else:
            self._waiting.setdefault(run, []).append((step, values))

    def close(self) -> None:
        if self._live is not None:
            self._live[1].finish()
        for run, rows in self._waiting.items():
            opened = self._open(run)
            for step, values in rows:
                opened.log(values, step=step)
            opened.finish()


@contextlib.contextmanager
def _needs(package: str):
    """Turn a failed import into the name of the extra that mends it."""
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"tracker {package!r} needs the package {package} ({error}). "
            "Fix: pip install 'flowrl-lab[trackers]', or use tracker 'csv'."
        ) from error


def _safe(name: str) -> str:
    """A name that any tracker and file system takes."""
    return re.sub(r"[^A-Za-z0-9_.=+-]+", "-", name)


TRACKERS = {
    "csv": Csv,
    "jsonl": JsonLines,
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
}

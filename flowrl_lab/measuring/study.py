"""The study: a grid of config files, run over seeds, checked against what is stored.

``data/study/<study>/<cell>.json`` is one way to train on one task: an
``ExperimentConfig`` without its seed, whose ``name`` is what tables call it.
``data/results/<study>.jsonl`` holds the runs that were made of them, a line each.
``data/study/<study>/_search.json`` says how the cells were tuned.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowrl_lab._files import data_path, read_json, write_json
from flowrl_lab.measuring.folder import RunResult, is_finished, load_result
from flowrl_lab.measuring.recorded import (
    Comparison,
    config_of,
    load_recorded,
    recorded_names,
    trim_run,
)
from flowrl_lab.measuring.runner import Job
from flowrl_lab.measuring.tables import (
    metric_of,
)
from flowrl_lab.training.config import CONFIG_VERSION, ExperimentConfig

__all__ = [
    "TOLERANCE",
    "Cell",
    "Search",
    "Try",
    "cell_results",
    "compare_with_stored",
    "differing_settings",
    "load_cells",
    "load_search",
    "plan_runs",
    "plan_search",
    "rank_tries",
    "stored_result",
    "write_cell",
]

_SEARCH = "_search"
ALWAYS_WRITTEN = ("task", "algorithm", "name", "steps", "learning_rate")

# How far a rerun of a cell may lie from its stored result: absolute, or relative to
# the stored value, whichever is more.  On the machine and versions of the stored run
# it is equal to all printed digits; elsewhere sums are rounded in another order, and
# training spreads that out, to at most the spread over seeds.
TOLERANCE: dict[str, tuple[float, float]] = {
    "accuracy": (0.03, 0.0),
    "pass@64": (0.02, 0.0),
    "effective_answers": (0.3, 0.2),
    "kl_policy_target": (0.02, 0.25),
    "kl_target_policy": (0.02, 0.35),
}


@dataclass(frozen=True)
class Cell:
    """One config file of the grid.

    Attributes:
        study: the folder it lies in, and the recording its runs go to.
        name: the file's name without ``.json``.
        config: its settings, with seed 0.
    """

    study: str
    name: str
    config: ExperimentConfig

    @property
    def key(self) -> str:
        """How the command line calls it: ``"make_number/grpo"``."""
        return f"{self.study}/{self.name}"

    @property
    def label(self) -> str:
        """What tables and recordings call its runs."""
        return self.config.run_name


@dataclass(frozen=True)
class Search:
    """How the cells of a study were tuned: the same few tries for each.

    Attributes:
        settings: changes for every try, such as fewer steps and another seed.
        last_steps: the try with the highest mean reward over these is taken.
        tries: cell name -> the values that are tried, by setting.
    """

    settings: dict
    last_steps: int
    tries: dict[str, dict[str, list]]


def load_cells(wanted: Sequence[str] = ()) -> list[Cell]:
    """The cells of all studies, or of those that ``wanted`` names.

    Args:
        wanted: studies ("programs") and cells ("programs/grpo"); empty means all.

    Raises:
        ValueError: a name that is not there, a config file that cannot be read, or
            two cells of a study with the same label.
    """
    folder = data_path("study")
    cells = [
        _read_cell(path)
        for path in sorted(folder.glob("*/*.json"))
        if path.stem != _SEARCH
    ]
    _refuse_twins(cells)
    known = {cell.key for cell in cells} | {cell.study for cell in cells}
    for name in wanted:
        if name not in known:
            close = difflib.get_close_matches(name, sorted(known), n=1)
            hint = close[0] if close else ", ".join(sorted({c.study for c in cells}))
            raise ValueError(
                f"{name!r} is no cell or study of {folder}. Fix: did you mean {hint}?"
            )
    return [c for c in cells if not wanted or {c.key, c.study} & set(wanted)]


def _read_cell(path: Path) -> Cell:
    try:
        config = ExperimentConfig.from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Cell(path.parent.name, path.stem, config.replace(seed=0))


def _refuse_twins(cells: Iterable[Cell]) -> None:
    seen: dict[tuple[str, str], str] = {}
    for cell in cells:
        twin = seen.setdefault((cell.study, cell.label), cell.key)
        if twin != cell.key:
            raise ValueError(
                f"{twin} and {cell.key} are both called {cell.label!r}; their runs "
                "could not be told apart. Fix: give one another `name`."
            )


def plan_runs(cells: Sequence[Cell], seeds: Iterable[int], out: Path) -> list[Job]:
    """Every run of the cells, seed by seed: what is cut off still has whole seeds."""
    return [
        Job(
            cell.config.replace(seed=seed),
            out / "runs" / cell.study / f"{cell.name}_seed{seed}",
        )
        for seed in seeds
        for cell in cells
    ]


def cell_results(cell: Cell, out: Path, seeds: Iterable[int]) -> list[RunResult]:
    """The finished runs of a cell below ``out``, start and end only."""
    folders = (out / "runs" / cell.study / f"{cell.name}_seed{s}" for s in seeds)
    return [trim_run(load_result(f), cell.label) for f in folders if is_finished(f)]


# ------------------------------------------------------------------------- tuning


def load_search(study: str) -> Search:
    """How the cells of ``study`` were tuned.

    Raises:
        ValueError: there is no such file, or it lacks a part.
    """
    path = data_path("study") / study / f"{_SEARCH}.json"
    if not path.is_file():
        raise ValueError(
            f"study {study!r} has no {path.name}; it was not tuned. Fix: name another."
        )
    content = read_json(path)
    try:
        return Search(content["settings"], content["last_steps"], content["tries"])
    except KeyError as error:
        raise ValueError(f"{path} lacks {error}. Fix: add it.") from None


@dataclass(frozen=True)
class Try:
    """One run of a search: a cell with one setting at one value."""

    cell: str
    setting: str
    value: float
    job: Job


def plan_search(cells: Sequence[Cell], out: Path) -> list[Try]:
    """Every try of the searches of the cells' studies.

    Raises:
        ValueError: none of the cells was tuned.
    """
    tries = []
    for cell in cells:
        search = load_search(cell.study)
        for setting, values in search.tries.get(cell.name, {}).items():
            for value in values:
                tag = f"{cell.name}_{setting}={value:g}"
                config = cell.config.replace(
                    **search.settings, **{setting: value}, name=tag
                )
                job = Job(config, out / "search" / cell.study / tag)
                tries.append(Try(cell.name, setting, value, job))
    if not tries:
        raise ValueError(
            f"no search covers {[cell.key for cell in cells]}. Fix: name cells that "
            "_search.json lists."
        )
    return tries


def rank_tries(tries: Sequence[Try], last_steps: int) -> list[dict]:
    """The finished tries of one study, and which of each search is taken.

    Returns:
        One row a try, with cell, setting, value, mean training reward over the last
        steps, held-out accuracy and effective answers (which play no part in the
        choice), and whether it is taken.
    """
    rows = []
    for attempt in tries:
        if not is_finished(attempt.job.folder):
            continue
        result = load_result(attempt.job.folder)
        rewards = [record.reward for record in result.records[-last_steps:]]
        row = {
            "cell": attempt.cell,
            "setting": attempt.setting,
            "value": attempt.value,
            "steps": result.records[-1].step,
            "train_reward": sum(rewards) / len(rewards),
            "accuracy": result.exact.accuracy,
            "effective_answers": result.exact.effective_answers,
        }
        rows.append(row)
    best: dict[str, float] = {}
    for row in rows:
        best[row["cell"]] = max(best.get(row["cell"], -math.inf), row["train_reward"])
    return [row | {"taken": row["train_reward"] == best[row["cell"]]} for row in rows]


# ------------------------------------------------------------------------ checking


def stored_result(cell: Cell, seed: int) -> RunResult:
    """The stored run of a cell and seed.

    Raises:
        ValueError: there is none.
    """
    runs = load_recorded(cell.study) if cell.study in recorded_names() else []
    found = [run for run in runs if run.name == cell.label and run.seed == seed]
    if not found:
        seeds = sorted(run.seed for run in runs if run.name == cell.label)
        raise ValueError(
            f"no stored run of {cell.key} with seed {seed}; there are seeds {seeds}. "
            "Fix: choose one of them, or run the study with --publish first."
        )
    return found[0]


def compare_with_stored(stored: RunResult, now: RunResult) -> list[Comparison]:
    """Every figure that has a tolerance, now and as stored."""
    rows = []
    for metric, (absolute, relative) in TOLERANCE.items():
        before, after = metric_of(stored, metric), metric_of(now, metric)
        allowed = max(absolute, relative * abs(before))
        rows.append(Comparison(metric, before, after, allowed))
    return rows


def differing_settings(cell: Cell, stored: RunResult) -> dict[str, tuple]:
    """Settings that a stored run and its cell's file disagree on: name -> (file, run).

    Name, seed and device may differ; settings that came later have their defaults.
    """
    then = config_of(stored)
    return {
        field.name: (getattr(cell.config, field.name), getattr(then, field.name))
        for field in dataclasses.fields(ExperimentConfig)
        if field.name not in ("name", "seed", "device")
        and getattr(cell.config, field.name) != getattr(then, field.name)
    }


def write_cell(path: Path, config: ExperimentConfig) -> None:
    """Write a cell's file: the settings that are not the defaults."""
    defaults = ExperimentConfig(task=config.task, algorithm=config.algorithm)
    kept = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if field.name in ALWAYS_WRITTEN
        or getattr(config, field.name) != getattr(defaults, field.name)
    }
    kept.pop("seed", None)
    write_json(path, {"config_version": CONFIG_VERSION, **kept})

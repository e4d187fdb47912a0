"""Finished runs as one small file that ships with the course.

``python -m flowrl_lab collect FILE FOLDER ...`` gathers what ``compare`` left in
the folders; ``load_recorded`` reads it back, so that a notebook can show five
seeds without training them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

from flowrl_lab._files import data_path, read_lines, write_atomically
from flowrl_lab.measuring.folder import RunResult, is_finished, load_result
from flowrl_lab.training.algorithms import ALGORITHMS
from flowrl_lab.training.config import ExperimentConfig
from flowrl_lab.training.presets import preset
from flowrl_lab.training.records import record_from_dict, record_to_dict

__all__ = [
    "add_recorded",
    "collect_runs",
    "load_recorded",
    "recorded_names",
    "trim_run",
    "variant_label",
    "write_recorded",
]

FORMAT = 1


def variant_label(config: ExperimentConfig) -> str:
    """What distinguishes a run in words: ``"flowrl β=8"``, ``"grpo kl=0.1"``.

    The learning rate is named where it is not the preset's.
    """
    name = config.algorithm
    if name == "flowrl" and config.length_normalize:
        name = "flowrl paper form"
    elif name == "flowrl" and config.reward_form == "group_normalized":
        name = "flowrl z-scored sums"
    if config.algorithm == "flowrl" and config.log_z == "vargrad":
        name += " group log Z"
    if config.algorithm in ("flowrl", "vargrad"):
        name += f" β={config.reward_scale:g}"
    if config.algorithm == "kl_reinforce":
        name += f" β={1 / config.kl_coef:g}" if config.kl_coef else " β=∞"
    elif config.kl_coef:
        name += f" kl={config.kl_coef:g}"
    if config.entropy_coef:
        name += f" entropy={config.entropy_coef:g}"
    usual = preset(config.task, config.algorithm).learning_rate
    if config.learning_rate != usual:
        name += f" lr={config.learning_rate:g}"
    if config.dtype not in ("auto", "float32"):
        name += f" {config.dtype}"
    return name


def collect_runs(folders: Iterable[str | Path]) -> list[RunResult]:
    """The finished runs below ``folders``, named by what distinguishes them.

    Raises:
        ValueError: a folder without a finished run.
    """
    results = []
    for folder in map(Path, folders):
        found = [path.parent for path in sorted(folder.rglob("summary.json"))]
        if not found:
            raise ValueError(
                f"{folder} holds no finished run. Fix: name a folder that "
                "`python -m flowrl_lab compare --out` wrote."
            )
        results += [_labelled(load_result(run)) for run in found if is_finished(run)]
    return sorted(results, key=lambda result: (result.name, result.seed))


def _labelled(result: RunResult) -> RunResult:
    fields = {k: v for k, v in result.config.items() if k != "config_version"}
    return trim_run(result, variant_label(ExperimentConfig(**fields)))


def trim_run(result: RunResult, label: str) -> RunResult:
    """The run with its start and end only, under the name ``label``."""
    fields = {k: v for k, v in result.config.items() if k != "config_version"}
    ends = [r for r in result.records if r.exact is not None]
    kept = tuple(
        dataclasses.replace(record, run=label, samples=(), snapshot=None)
        for record in (ends[0], ends[-1])
    )
    return RunResult(fields, kept, result.environment)


def write_recorded(path: str | Path, results: Iterable[RunResult]) -> None:
    """Write runs to one JSON file, a line each.

    Raises:
        ValueError: ``path`` exists already; nothing is overwritten.
    """
    path = Path(path)
    if path.exists():
        raise ValueError(f"{path} exists already. Fix: name a new file, or remove it.")
    _write_lines(path, [_to_line(result) for result in results])


def add_recorded(path: str | Path, results: Iterable[RunResult]) -> int:
    """Add runs to a recording, new or there already; what it holds stays as it is.

    Returns:
        How many runs were added: those with a name and seed that it lacked.
    """
    path = Path(path)
    lines = read_lines(path) if path.exists() else []
    held = {(run.name, run.seed) for run in map(_from_line, lines)}
    fresh = [run for run in results if (run.name, run.seed) not in held]
    if fresh:
        _write_lines(path, lines + [_to_line(run) for run in fresh])
    return len(fresh)


def _write_lines(path: Path, lines: list[str]) -> None:
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def _to_line(result: RunResult) -> str:
    content = {
        "format": FORMAT,
        "config": result.config,
        "records": [record_to_dict(record) for record in result.records],
        "environment": result.environment,
    }
    return json.dumps(content, ensure_ascii=False)


def _from_line(line: str) -> RunResult:
    row = json.loads(line)
    if row["format"] != FORMAT:
        raise ValueError(f"format {row['format']!r}, expected {FORMAT}")
    records = tuple(record_from_dict(record) for record in row["records"])
    return RunResult(row["config"], records, row["environment"])


def recorded_names() -> list[str]:
    """The recordings that ship: the names ``load_recorded`` takes."""
    return sorted(file.stem for file in data_path("results").glob("*.jsonl"))


def load_recorded(name: str) -> list[RunResult]:
    """The recorded runs ``data/results/<name>.jsonl``.

    Returns:
        The runs by algorithm and name, seeds in rising order.

    Raises:
        ValueError: no such recording, or a damaged or foreign line in it.
    """
    path = data_path("results") / f"{name}.jsonl"
    if not path.is_file():
        known = recorded_names()
        raise ValueError(f"no recording {name!r}; there are {known}. Fix: pick one.")
    results = []
    for number, line in enumerate(read_lines(path), 1):
        try:
            results.append(_from_line(line))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}, line {number}, cannot be read ({error}). Fix: restore the "
                "file from the repository."
            ) from error
    order = list(ALGORITHMS)
    return sorted(
        results, key=lambda run: (order.index(run.algorithm), run.name, run.seed)
    )

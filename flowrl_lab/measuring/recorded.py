"""Runs that ship with the course, so that a notebook can show what it does not train.

Three kinds, all made by a command:

* finished runs, start and end (``collect``): the five seeds behind a table;
* runs step by step with their solution maps (``record``, ``gather-replay``), played
  again through the live plots, marked as recorded;
* every objective at every β on Figure 1's landscape (``explorer-data``), as log-probs
  in float16; ``RunScrubber`` moves through them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flowrl_lab._files import (
    data_path,
    read_json,
    read_lines,
    refuse_used,
    write_atomically,
)
from flowrl_lab._validation import bad_input, check_choice
from flowrl_lab.measuring.folder import (
    RunResult,
    describe_environment,
    is_finished,
    load_result,
    read_environment,
    record_from_plain,
    record_to_plain,
    run_from_line,
    run_to_line,
)
from flowrl_lab.training.algorithms import ALGORITHMS
from flowrl_lab.training.config import ExperimentConfig
from flowrl_lab.training.log_z import is_of_batch
from flowrl_lab.training.presets import preset
from flowrl_lab.types import StepRecord

__all__ = [
    "COMMAND",
    "EVERY",
    "OBJECTIVES",
    "REWARD_SCALES",
    "STEPS",
    "Comparison",
    "LandscapeRuns",
    "add_recorded",
    "append_step",
    "collect_runs",
    "compare_runs",
    "config_of",
    "grid_config",
    "load_landscape_runs",
    "load_recorded",
    "load_replay",
    "make_grid",
    "read_steps",
    "recorded_names",
    "replay",
    "trace_run",
    "trim_run",
    "variant_label",
    "write_grid",
    "write_recorded",
    "write_replay",
]

STEPS_FILE = "steps.jsonl"
# The landscape's grid.  β is not in two objectives, so one run stands for all of it.
OBJECTIVES = ("reinforce_pp", "grpo", "kl_reinforce", "flowrl", "flowrl_paper")
WITHOUT_SCALE = ("reinforce_pp", "grpo")
REWARD_SCALES = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
STEPS, EVERY, SEED, STATES = 400, 10, 0, 100
GRID_FORMAT = 1
DATA, FACTS = "landscape_runs.npz", "landscape_runs.json"
COMMAND = "python -m flowrl_lab explorer-data --out data/explorer"


def config_of(result: RunResult) -> ExperimentConfig:
    """A stored run's settings; those that came later have their defaults."""
    fields = {k: v for k, v in result.config.items() if k != "config_version"}
    return ExperimentConfig(**fields)


def variant_label(config: ExperimentConfig) -> str:
    """What distinguishes a run in words: ``"flowrl β=8"``, ``"grpo kl=0.1"``.

    The learning rate is named where it is not the preset's.
    """
    name = config.algorithm
    if name == "flowrl" and config.length_normalize:
        name = "flowrl paper form"
    elif name == "flowrl" and config.reward_form == "group_normalized":
        name = "flowrl z-scored sums"
    if config.algorithm == "flowrl" and is_of_batch(config):
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
        done = [load_result(run) for run in found if is_finished(run)]
        results += [trim_run(run, variant_label(config_of(run))) for run in done]
    return sorted(results, key=lambda result: (result.name, result.seed))


def trim_run(result: RunResult, label: str) -> RunResult:
    """The run with its start and end only, under the name ``label``."""
    fields = {k: v for k, v in result.config.items() if k != "config_version"}
    ends = [r for r in result.records if r.exact is not None]
    kept = tuple(
        dataclasses.replace(record, run=label, samples=(), snapshot=None)
        for record in (ends[0], ends[-1])
    )
    return RunResult(fields, kept, result.environment)


# ------------------------------------------------------------- files of a run a line


def write_recorded(path: str | Path, results: Iterable[RunResult]) -> None:
    """Write runs to one JSON file, a line each.

    Raises:
        ValueError: ``path`` exists already; nothing is overwritten.
    """
    refuse_used(path)
    _write_lines(Path(path), map(run_to_line, results))


def add_recorded(path: str | Path, results: Iterable[RunResult]) -> int:
    """Add runs to a recording, new or there already; what it holds stays as it is.

    Returns:
        How many runs were added, those with a name and seed that it lacked.
    """
    path = Path(path)
    lines = read_lines(path) if path.exists() else []
    held = {(run.name, run.seed) for run in map(run_from_line, lines)}
    fresh = [run for run in results if (run.name, run.seed) not in held]
    if fresh:
        _write_lines(path, [*lines, *map(run_to_line, fresh)])
    return len(fresh)


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def _read_lines(path: Path) -> list[RunResult]:
    results = []
    for number, line in enumerate(read_lines(path), 1):
        try:
            results.append(run_from_line(line))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}, line {number}, cannot be read ({error}). Fix: restore the "
                "file from the repository."
            ) from error
    return results


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
    order = list(ALGORITHMS)
    return sorted(
        _read_lines(path),
        key=lambda run: (order.index(run.algorithm), run.name, run.seed),
    )


# ------------------------------------------------------------------ played step by step


def append_step(folder: Path, record: StepRecord) -> None:
    """Add one step to the recording in a run's folder.

    A line at a time: what is cut off by a crash is one line, and a step that is done
    again after a resume is written again and replaces the first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / STEPS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record_to_plain(record), ensure_ascii=False) + "\n")


def read_steps(folder: Path) -> list[StepRecord]:
    """The steps that ``append_step`` wrote; of a step written twice, the last."""
    found: dict[int, StepRecord] = {}
    for line in read_lines(folder / STEPS_FILE):
        try:
            record = record_from_plain(json.loads(line))
        except json.JSONDecodeError:  # the line at which a crash cut it off
            continue
        found[record.step] = record
    return [found[step] for step in sorted(found)]


def write_replay(path: str | Path, folders: Sequence[str | Path]) -> None:
    """Gather the recordings of runs' folders in one file.

    Raises:
        ValueError: ``path`` exists already; a folder without a recording.
    """
    runs = []
    for folder in map(Path, folders):
        if not (folder / STEPS_FILE).is_file():
            raise ValueError(
                f"{folder} holds no recorded steps. Fix: name the folder of a run that "
                "`python -m flowrl_lab record` made."
            )
        config, steps = read_json(folder / "config.json"), tuple(read_steps(folder))
        runs.append(RunResult(config, steps, read_environment(folder)))
    write_recorded(path, runs)


def load_replay(name: str) -> list[RunResult]:
    """The runs in ``data/results/<name>.replay.jsonl``, step by step.

    Raises:
        ValueError: a damaged or foreign line.
        FileNotFoundError: no such recording.
    """
    return _read_lines(data_path(f"results/{name}.replay.jsonl"))


def replay(
    recordings: Sequence[RunResult],
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
        The records, their runs named "… (recorded)"; FlowRL without a learned log Z
        is not called FlowRL alone.
    """
    columns = [
        [
            dataclasses.replace(record, run=_played_name(recording, record))
            for record in recording.records
            if last_step is None or record.step <= last_step
        ]
        for recording in recordings
    ]
    total = sum(map(len, columns))
    for step in range(max(map(len, columns), default=0)):
        for record in (column[step] for column in columns if step < len(column)):
            yield record
            if seconds:
                time.sleep(seconds / total)


def _played_name(recording: RunResult, record: StepRecord) -> str:
    of_group = recording.algorithm == "flowrl" and is_of_batch(config_of(recording))
    return f"{record.run}{' group log Z' * of_group} (recorded)"


# ------------------------------------------------------------------------ run again


@dataclass(frozen=True)
class Comparison:
    """One figure of a run made now beside its stored value.

    Attributes:
        metric: what it is.
        stored: its value in the recording.
        now: its value in the new run.
        allowed: how far they may lie apart.
    """

    metric: str
    stored: float
    now: float
    allowed: float

    @property
    def difference(self) -> float:
        return abs(self.now - self.stored)

    @property
    def agrees(self) -> bool:
        return self.difference <= self.allowed


def compare_runs(now: np.ndarray, stored: np.ndarray) -> Comparison:
    """Compare log-probs of a run with its stored float16 form, both [time, N].

    Returns:
        The probability that differs most of those that rounding to float16 does not
        explain, or of all where it explains every one; ``allowed`` is the rounding.

    Raises:
        ValueError: the two have different shapes.
    """
    if now.shape != stored.shape:
        raise bad_input(
            "now", f"has shape {now.shape}", f"{stored.shape}", "train all steps"
        )
    kept = stored.astype(np.float64)
    ends = (np.nextafter(stored, np.float16(end)) for end in (-np.inf, np.inf))
    gaps = np.maximum(*(np.abs(end.astype(np.float64) - kept) for end in ends))
    # half the way to the next float16, and a little for float32 sums
    rounding = np.exp(kept) * np.expm1(gaps / 2 + 1e-6)
    apart = np.abs(np.exp(now) - np.exp(kept))
    beyond = apart > rounding
    shown = np.where(beyond, apart, 0.0) if beyond.any() else apart
    worst = np.unravel_index(shown.argmax(), shown.shape)
    values = (float(part[worst]) for part in (np.exp(kept), np.exp(now), rounding))
    return Comparison("probability", *values)


# ----------------------------------------------------------------- the landscape's grid


@dataclass(frozen=True)
class LandscapeRuns:
    """The stored grid.

    Attributes:
        rewards: r of each of the N states, float64.
        log_probs: objective -> float16 array [β, time, N] of log π; its first axis
            has length 1 where the objective does not contain β.
        provenance: command, versions, machine, seed, sha256.
    """

    rewards: np.ndarray
    log_probs: dict[str, np.ndarray]
    provenance: dict

    @property
    def steps(self) -> tuple[int, ...]:
        """The training steps that are stored."""
        return tuple(range(0, STEPS + 1, EVERY))

    def run(self, objective: str, reward_scale: int | float) -> np.ndarray:
        """log π over time, as stored: float16 [time, N].

        Raises:
            ValueError: for a point that is not in the grid.
        """
        check_point(objective, reward_scale)
        scale = 0 if objective in WITHOUT_SCALE else REWARD_SCALES.index(reward_scale)
        return self.log_probs[objective][scale]

    def target(self, reward_scale: int | float) -> np.ndarray:
        """``log p* = βr − log Σ exp(βr)`` [N]: the reference is uniform here."""
        scores = float(reward_scale) * self.rewards
        return scores - np.logaddexp.reduce(scores)


def check_point(objective: str, reward_scale: int | float) -> None:
    """Check that a point lies in the grid.

    Raises:
        ValueError: for an unknown objective or another β.
    """
    check_choice("objective", objective, OBJECTIVES)
    if reward_scale not in REWARD_SCALES:
        near = min(REWARD_SCALES, key=lambda scale: abs(scale - reward_scale))
        known = ", ".join(f"{scale:g}" for scale in REWARD_SCALES)
        raise bad_input(
            "reward_scale", f"is {reward_scale!r}", f"one of {known}", f"try {near:g}"
        )


def grid_config(objective: str, reward_scale: int | float) -> ExperimentConfig:
    """The settings of one run of the grid: the preset, at another β.

    ``kl_reinforce`` gets the penalty that has the same optimum, 1/β.

    Raises:
        ValueError: for a point that is not in the grid.
    """
    check_point(objective, reward_scale)
    changes = {"reward_scale": float(reward_scale), "steps": STEPS, "seed": SEED}
    if objective == "kl_reinforce":
        changes["kl_coef"] = 1 / reward_scale
    return preset("landscape", objective, eval_every=EVERY, **changes)


def trace_run(
    config: ExperimentConfig, report: Callable[[int], None] = lambda _step: None
) -> np.ndarray:
    """Train now; log π at every evaluation, float64 [time, N].

    Args:
        config: of a run on a landscape.
        report: is told every step.
    """
    from flowrl_lab.training.run import train

    rows = []
    for record in train(config):
        if record.snapshot is not None:
            rows.append(np.log(record.snapshot.probs))
        report(record.step)
    return np.stack(rows)


def grid_points() -> list[tuple[str, float]]:
    """(objective, β) of every run of the grid."""
    return [
        (objective, scale)
        for objective in OBJECTIVES
        for scale in ((15.0,) if objective in WITHOUT_SCALE else REWARD_SCALES)
    ]


def make_grid(
    report: Callable[[int, str], None] = lambda _done, _name: None,
) -> dict[str, np.ndarray]:
    """Train all runs of the grid; objective -> float16 [β, time, N].

    Args:
        report: is told the number of steps done in all, and which run is on.
    """
    runs: dict[str, list[np.ndarray]] = {}
    for number, (objective, scale) in enumerate(grid_points()):
        name = objective if objective in WITHOUT_SCALE else f"{objective} β={scale:g}"

        def tell(step: int, start: int = number * STEPS, name: str = name) -> None:
            report(start + step, name)

        row = trace_run(grid_config(objective, scale), tell)
        runs.setdefault(objective, []).append(row)
    return {name: np.stack(rows).astype(np.float16) for name, rows in runs.items()}


def write_grid(
    folder: str | Path, grid: Mapping[str, np.ndarray], seconds: int | float
) -> dict:
    """Write the grid and its provenance into ``folder``.

    Returns:
        The provenance.

    Raises:
        ValueError: the folder holds stored runs already.
        OSError: the disk is full or not writable.
    """
    folder = Path(folder)
    refuse_used(folder / DATA, folder / FACTS)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **grid)
    content = buffer.getvalue()
    facts = {
        "format": GRID_FORMAT,
        "what": "log π of runs on the landscape figure1: float16 [β, time, state]",
        "command": COMMAND,
        "made": time.strftime("%Y-%m-%d", time.gmtime()),
        "environment": describe_environment(),
        "seed": SEED,
        "steps": STEPS,
        "every": EVERY,
        "reward_scales": list(REWARD_SCALES),
        "objectives": list(OBJECTIVES),
        "seconds": round(seconds, 1),
        "sha256": hashlib.sha256(content).hexdigest(),
        "licence": "Apache-2.0, as the project",
    }
    write_atomically(folder / DATA, content)
    text = json.dumps(facts, indent=2, ensure_ascii=False)
    write_atomically(folder / FACTS, text.encode() + b"\n")
    return facts


def load_landscape_runs(folder: str | Path | None = None) -> LandscapeRuns:
    """Read the stored grid, by default the one in ``data/explorer``.

    Raises:
        ValueError: the files are missing, damaged, or of another version; the
            message has the command that makes them anew.
    """
    from flowrl_lab.tasks import load_task

    try:
        folder = data_path("explorer") if folder is None else Path(folder)
        grid, facts = _read_grid(folder)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"the stored runs on the landscape cannot be read ({error}). Fix: restore "
            "data/explorer from the repository, or delete its "
            f"{DATA} and {FACTS} and make them anew: {COMMAND} (about two minutes)."
        ) from None
    return LandscapeRuns(load_task("landscape").rewards.double().numpy(), grid, facts)


def _read_grid(folder: Path) -> tuple[dict[str, np.ndarray], dict]:
    """The arrays and the provenance, if they are this version's."""
    missing = [name for name in (DATA, FACTS) if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} has no {' and no '.join(missing)}")
    facts, content = read_json(folder / FACTS), (folder / DATA).read_bytes()
    if facts["format"] != GRID_FORMAT:
        raise ValueError(f"its format is {facts['format']!r}, expected {GRID_FORMAT}")
    found = hashlib.sha256(content).hexdigest()
    if found != facts["sha256"]:
        raise ValueError(
            f"{folder / DATA} is damaged: its sha256 is {found[:12]}…, {FACTS} says "
            f"{facts['sha256'][:12]}… ({len(content):,} bytes)"
        )
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        grid = {name: arrays[name] for name in arrays.files}
    for objective in OBJECTIVES:
        scales = 1 if objective in WITHOUT_SCALE else len(REWARD_SCALES)
        expected = (scales, STEPS // EVERY + 1, STATES)
        array = grid.get(objective, np.zeros(0))
        if array.shape != expected or array.dtype != np.float16:
            raise ValueError(
                f"{folder / DATA} holds {objective} as {array.dtype} {array.shape}, "
                f"expected float16 {expected}"
            )
    return grid, facts

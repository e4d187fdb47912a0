"""Stored runs on Figure 1's landscape: every objective at every β, step by step.

``python -m flowrl_lab explorer-data --out DIR`` trains them and writes two files:
``landscape_runs.npz`` with log-probs as float16, and ``landscape_runs.json`` with
where they come from.  ``RunScrubber`` reads them.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flowrl_lab._files import data_path, write_atomically
from flowrl_lab._validation import bad_input
from flowrl_lab.training.config import ExperimentConfig
from flowrl_lab.training.presets import preset

__all__ = [
    "COMMAND",
    "EVERY",
    "OBJECTIVES",
    "REWARD_SCALES",
    "STEPS",
    "Comparison",
    "LandscapeRuns",
    "compare_runs",
    "grid_config",
    "load_landscape_runs",
    "make_grid",
    "trace_run",
    "write_grid",
]

FORMAT = 1
OBJECTIVES = ("reinforce_pp", "grpo", "kl_reinforce", "flowrl", "flowrl_paper")
REWARD_SCALES = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
STEPS, EVERY, SEED = 400, 10, 0
STATES = 100
# β is not in these objectives, so one run stands for all values of β.
WITHOUT_SCALE = ("reinforce_pp", "grpo")
COMMAND = "python -m flowrl_lab explorer-data --out data/explorer"
DATA, FACTS = "landscape_runs.npz", "landscape_runs.json"


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
        runs = self.log_probs[objective]
        index = REWARD_SCALES.index(float(reward_scale)) if len(runs) > 1 else 0
        return runs[index]

    def target(self, reward_scale: int | float) -> np.ndarray:
        """``log p* = βr − log Σ exp(βr)`` [N]: the reference is uniform here."""
        scores = float(reward_scale) * self.rewards
        top = scores.max()
        return scores - top - np.log(np.exp(scores - top).sum())


@dataclass(frozen=True)
class Comparison:
    """How far a run trained now is from the stored one.

    Attributes:
        difference: the largest |π_now − π_stored| over all times and states.
        times: the largest ratio of such a difference to what rounding to float16
            can make of that probability; at most 1 where the runs are the same.
    """

    difference: float
    times: float

    @property
    def agrees(self) -> bool:
        """Whether rounding alone explains every difference."""
        return self.times <= 1.0

    def __str__(self) -> str:
        largest = f"largest difference of a probability {self.difference:.1e}"
        if self.agrees:
            return f"{largest}: the same run; rounding to float16 explains it all."
        return (
            f"{largest}: at worst {self.times:.3g} times what rounding to float16 "
            "explains. Another processor or torch adds up in another order, and now "
            "and then a sample falls on the next state."
        )


def compare_runs(now: np.ndarray, stored: np.ndarray) -> Comparison:
    """Compare log-probs of a run with its stored float16 form, both [time, N].

    Raises:
        ValueError: the two have different shapes.
    """
    if now.shape != stored.shape:
        raise bad_input(
            "now", f"has shape {now.shape}", f"{stored.shape}", "train all steps"
        )
    kept = stored.astype(np.float64)
    difference = np.abs(np.exp(now) - np.exp(kept))
    ends = (np.nextafter(stored, np.float16(end)) for end in (-np.inf, np.inf))
    gaps = np.maximum(*(np.abs(end.astype(np.float64) - kept) for end in ends))
    # half the way to the next float16, and a little for float32 sums
    rounding = np.exp(kept) * np.expm1(gaps / 2 + 1e-6)
    return Comparison(float(difference.max()), float((difference / rounding).max()))


def check_point(objective: str, reward_scale: int | float) -> None:
    """Check that a point lies in the grid.

    Raises:
        ValueError: for an unknown objective or another β.
    """
    if objective not in OBJECTIVES:
        known = ", ".join(OBJECTIVES)
        raise bad_input(
            "objective", f"is {objective!r}", f"one of {known}", "use one of these"
        )
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
    matched = {"kl_coef": 1 / reward_scale} if objective == "kl_reinforce" else {}
    return preset(
        "landscape", objective, seed=SEED, steps=STEPS, eval_every=EVERY,
        reward_scale=float(reward_scale), **matched,
    )  # fmt: skip


def trace_run(
    config: ExperimentConfig, report: Callable[[int], None] | None = None
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
        if report is not None:
            report(record.step)
    return np.stack(rows)


def make_grid(
    report: Callable[[int, str], None] | None = None,
) -> dict[str, np.ndarray]:
    """Train all runs of the grid; objective -> float16 [β, time, N].

    Args:
        report: is told the number of steps done in all, and which run is on.
    """
    grid, done = {}, 0
    for objective in OBJECTIVES:
        scales = (15.0,) if objective in WITHOUT_SCALE else REWARD_SCALES
        runs = []
        for scale in scales:
            name = objective if len(scales) == 1 else f"{objective} β={scale:g}"

            def tell(step: int, start: int = done, name: str = name) -> None:
                if report is not None:
                    report(start + step, name)

            runs.append(trace_run(grid_config(objective, scale), tell))
            done += STEPS
        grid[objective] = np.stack(runs).astype(np.float16)
    return grid


def count_steps() -> int:
    """Training steps of the whole grid."""
    scaled = len(OBJECTIVES) - len(WITHOUT_SCALE)
    return STEPS * (len(WITHOUT_SCALE) + scaled * len(REWARD_SCALES))


def refuse_used_folder(folder: Path) -> None:
    """Nothing is overwritten.

    Raises:
        ValueError: the folder holds stored runs already, or is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file. Fix: name a folder with --out.")
    used = [name for name in (DATA, FACTS) if (folder / name).exists()]
    if used:
        raise ValueError(
            f"{folder} already holds {' and '.join(used)}; nothing is overwritten. "
            "Fix: name a new folder, or remove these files first."
        )


def write_grid(
    folder: str | Path, grid: Mapping[str, np.ndarray], seconds: int | float
):
    """Write the grid and its provenance into ``folder``.

    Returns:
        The provenance.

    Raises:
        ValueError: the folder holds stored runs already.
        OSError: the disk is full or not writable.
    """
    from flowrl_lab.measuring.folder import describe_environment

    folder = Path(folder)
    refuse_used_folder(folder)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **grid)
    content = buffer.getvalue()
    facts = {
        "format": FORMAT,
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
    if folder is None:
        try:
            folder = data_path("explorer")
        except FileNotFoundError as error:
            raise broken_data(str(error).split(";")[0]) from None
    folder = Path(folder)
    missing = [name for name in (DATA, FACTS) if not (folder / name).is_file()]
    if missing:
        raise broken_data(f"{folder} has no {' and no '.join(missing)}")
    facts = read_facts(folder / FACTS)
    content = (folder / DATA).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != facts.get("sha256"):
        raise broken_data(
            f"{folder / DATA} is damaged: its sha256 is {found[:12]}…, "
            f"{FACTS} says {str(facts.get('sha256'))[:12]}… ({len(content):,} bytes)"
        )
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        grid = {name: arrays[name] for name in arrays.files}
    check_grid(grid, folder / DATA)
    from flowrl_lab.tasks import load_task

    rewards = load_task("landscape").rewards.double().numpy()
    return LandscapeRuns(rewards, grid, facts)


def read_facts(path: Path) -> dict:
    """The provenance beside the data.

    Raises:
        ValueError: it cannot be read, or belongs to another version.
    """
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts["format"] != FORMAT:
            raise ValueError(f"its format is {facts['format']!r}, expected {FORMAT}")
    except (KeyError, TypeError, ValueError) as error:
        raise broken_data(f"{path} cannot be read ({error})") from None
    return facts


def check_grid(grid: Mapping[str, np.ndarray], path: Path) -> None:
    """Check that the arrays are this version's grid.

    Raises:
        ValueError: an objective is missing, or has another shape or type.
    """
    for objective in OBJECTIVES:
        scales = 1 if objective in WITHOUT_SCALE else len(REWARD_SCALES)
        expected = (scales, STEPS // EVERY + 1, STATES)
        found = grid.get(objective, np.zeros(0))
        if found.shape != expected or found.dtype != np.float16:
            raise broken_data(
                f"{path} holds {objective} as {found.dtype} {found.shape}, "
                f"expected float16 {expected}"
            )


def broken_data(problem: str) -> ValueError:
    """The error for stored runs that cannot be used, with both ways out."""
    return ValueError(
        f"{problem}. Fix: restore data/explorer from the repository, or delete its "
        f"{DATA} and {FACTS} and make them anew: {COMMAND} (about two minutes)."
    )

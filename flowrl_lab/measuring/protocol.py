"""The protocol of ``data/study``: what is run, how settings are chosen, what is kept.

``data/study/PROTOCOL.md`` says it in words, ``protocol.json`` beside it in numbers.
Every family of algorithms has the same search (learning rate and stopping step, on
validation prompts); then its dial is swept with fresh seeds, judged on test prompts.
``data/results/curves/<task>.jsonl`` holds what came out: a line a run, its figures at
every evaluated step.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowrl_lab._files import data_path, read_json, read_lines, write_atomically
from flowrl_lab._validation import bad_input, check_choice
from flowrl_lab.measuring.folder import RunResult, is_finished, load_result
from flowrl_lab.measuring.runner import Job
from flowrl_lab.training.config import ExperimentConfig

__all__ = [
    "FIGURES",
    "CellKey",
    "Chosen",
    "Curve",
    "Family",
    "Protocol",
    "add_curves",
    "already_kept",
    "choose",
    "curve_of",
    "curves_path",
    "gather_curves",
    "load_curves",
    "load_protocol",
    "plan_report",
    "plan_search",
    "read_curves",
    "refuse_strangers",
]

# What is kept of every evaluated step; all but log Z's of the referee's report.
FIGURES = (
    *("accuracy", "effective_answers", "pass@64", "kl_policy_target"),
    *("kl_target_policy", "distinct_64", "lost_prompts"),
    *("log_z_exact", "log_z_learned"),
    "pass@16",
)
ADDED = ("pass@16",)  # the first recorded runs were kept without
DIGITS = 5
PROTOCOLS = ("protocol", "real_models", "long_answers")  # files of data/study


@dataclass(frozen=True)
class Family:
    """An algorithm with everything but its learning rate and its dial.

    Attributes:
        key: how cells are called: ``"flowrl"``, ``"grpo_kl"``.
        title: for people.
        stage: families of stage 1 are run first.
        settings: what distinguishes it, ``algorithm`` among them.
        dial: the setting that is swept; empty for a family of one cell.
        values: of the dial.
        middle: the value at which learning rate and stopping step are chosen.
        inverse: the setting is 1/value (a KL weight that is told as β).
    """

    key: str
    title: str
    stage: int
    settings: dict
    dial: str = ""
    values: tuple[int | float, ...] = ()
    middle: int | float | None = None
    inverse: bool = False

    def at(self, value: int | float | None) -> dict:
        """The settings with the dial at ``value``."""
        if value is None:
            return dict(self.settings)
        kind = type(getattr(ExperimentConfig, self.dial))  # of its default: int, float
        setting = kind(1 / value if self.inverse else value)
        return {**self.settings, self.dial: setting}


@dataclass(frozen=True, order=True)
class CellKey:
    """One family at one place of its dial: ``"flowrl=8"``, ``"grpo"``."""

    family: str
    value: int | float | None = None

    def __str__(self) -> str:
        return self.family if self.value is None else f"{self.family}={self.value:g}"


@dataclass(frozen=True)
class Protocol:
    """``protocol.json``, read and checked; see PROTOCOL.md for what it means.

    ``task_settings`` holds what one task has otherwise: task -> settings.
    """

    version: int
    tasks: tuple[str, ...]
    settings: dict
    search: dict
    report: dict
    families: dict[str, Family]
    comparisons: dict
    task_settings: dict = dataclasses.field(default_factory=dict)
    name: str = "protocol"
    small: bool = False

    def cells(self, family: str) -> list[CellKey]:
        """Every place of a family's dial."""
        return [CellKey(family, v) for v in self.families[family].values or (None,)]

    def config(
        self, part: str, task: str, cell: CellKey, learning_rate: float, seed: int
    ) -> ExperimentConfig:
        """The settings of one run; ``part`` is "search" or "report"."""
        return ExperimentConfig(
            task=task,
            name=str(cell),
            seed=seed,
            learning_rate=learning_rate,
            eval_split=getattr(self, part)["split"],
            **{
                **self.settings,
                **self.task_settings.get(task, {}),
                **self.families[cell.family].at(cell.value),
            },
        )

    def count_runs(self) -> int:
        """All runs of search and report."""
        search = len(self.search["seeds"]) * len(self.search["learning_rates"])
        cells = sum(len(self.cells(family)) for family in self.families)
        report = cells * len(self.report["seeds"])
        return len(self.tasks) * (search * len(self.families) + report)

    def only(self, names: Sequence[str]) -> Protocol:
        """The part of it that tasks and families are named of; all where none is."""
        for name in names:
            check_choice("--only", name, [*self.tasks, *self.families])
        tasks = tuple(task for task in self.tasks if task in names)
        families = {k: family for k, family in self.families.items() if k in names}
        return dataclasses.replace(
            self, tasks=tasks or self.tasks, families=families or self.families
        )

    def stages(self) -> list[list[str]]:
        """The families, in the order in which they are run."""
        numbers = sorted({family.stage for family in self.families.values()})
        return [
            [key for key, family in self.families.items() if family.stage == number]
            for number in numbers
        ]


def load_protocol(name: str = "protocol", *, small: bool = False) -> Protocol:
    """The protocol; ``small`` is the part of it that a laptop does in 20 minutes.

    Args:
        name: "protocol" (the small models), "real_models" or "long_answers".
        small: only what its ``small`` part names.

    Raises:
        ValueError: the file lacks a part or a cell's settings are refused.
    """
    check_choice("protocol", name, PROTOCOLS)
    path = data_path("study") / f"{name}.json"
    content = read_json(path)
    try:
        reduced = content.pop("small")
        families = {row["key"]: _family(row) for row in content.pop("families")}
        if small:
            families = _reduce(families, reduced.pop("families"))
            for part, changes in reduced.items():
                content[part] = content[part] | changes
        content["tasks"] = tuple(content["tasks"])
        return Protocol(**content, families=families, name=name, small=small)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}). Fix: restore it from the repository."
        ) from None


def _family(row: dict) -> Family:
    return Family(**{**row, "values": tuple(row.get("values", ()))})


def _reduce(families: dict[str, Family], kept: dict[str, list]) -> dict[str, Family]:
    found = {}
    for key, values in kept.items():
        middle = families[key].middle if values else None
        found[key] = dataclasses.replace(
            families[key], values=tuple(values), middle=middle
        )
    return found


# ---------------------------------------------------------------------- what is run


def plan_search(protocol: Protocol, families: Sequence[str], out: Path) -> list[Job]:
    """Every rate and seed for each family at its middle; seed by seed."""
    jobs = []
    for seed in protocol.search["seeds"]:
        for rate in protocol.search["learning_rates"]:
            for family in families:
                cell = CellKey(family, protocol.families[family].middle)
                for task in protocol.tasks:
                    config = protocol.config("search", task, cell, rate, seed)
                    name = f"{cell}_lr={rate:g}_seed{seed}"
                    jobs.append(Job(config, out / "search" / task / name))
    return jobs


def plan_report(
    protocol: Protocol,
    families: Sequence[str],
    chosen: dict[tuple[str, str], Chosen],
    out: Path,
) -> list[Job]:
    """Every cell of the families at the chosen rate, with the seeds of the report."""
    jobs = []
    for seed in protocol.report["seeds"]:
        for family in families:
            for cell in protocol.cells(family):
                for task in protocol.tasks:
                    rate = chosen[task, family].learning_rate
                    config = protocol.config("report", task, cell, rate, seed)
                    folder = out / "report" / task / f"{cell}_seed{seed}"
                    jobs.append(Job(config, folder))
    return jobs


@dataclass(frozen=True)
class Chosen:
    """What the search of one family on one task took.

    Attributes:
        learning_rate: the choice.
        step: where it says to stop.
        accuracy: on validation prompts there, the mean over the search's seeds.
    """

    learning_rate: float
    step: int
    accuracy: float


def choose(
    protocol: Protocol, curves: Iterable[Curve]
) -> dict[tuple[str, str], Chosen]:
    """(task, family) -> the learning rate and step of highest validation accuracy.

    The mean over the seeds decides; of equals, the lower rate and the earlier step.
    A family whose search is incomplete is left out.
    """
    tries: dict[tuple[str, str], dict[float, list[Curve]]] = {}
    for curve in curves:
        if curve.part == "search":
            rates = tries.setdefault((curve.task, curve.cell.family), {})
            rates.setdefault(curve.learning_rate, []).append(curve)
    wanted = sorted(protocol.search["seeds"])
    found = {}
    for key, rates in tries.items():
        seeds = [sorted(c.seed for c in rows) for rows in rates.values()]
        if seeds == [wanted] * len(protocol.search["learning_rates"]):
            found[key] = _best(rates)
    return found


def _best(rates: dict[float, list[Curve]]) -> Chosen:
    candidates = [
        Chosen(rate, step, statistics.fmean(c.at("accuracy", step) for c in curves))
        for rate, curves in sorted(rates.items())
        for step in curves[0].steps[1:]
    ]
    return max(candidates, key=lambda candidate: candidate.accuracy)


# --------------------------------------------------------------------- what is kept


@dataclass(frozen=True)
class Curve:
    """What is kept of one run.

    Attributes:
        version: of the protocol it was run under.
        part: "search" (validation prompts) or "report" (test prompts).
        task: which one was trained on.
        cell: which one it is a run of.
        learning_rate: it was run at.
        seed: of the run.
        steps: at which it was judged; the first is 0, the untrained model.
        figures: name (one of ``FIGURES``) -> a value for each of ``steps``.
        environment: versions, device and seconds.
    """

    version: int
    part: str
    task: str
    cell: CellKey
    learning_rate: float
    seed: int
    steps: tuple[int, ...]
    figures: dict[str, tuple[float, ...]]
    environment: dict

    def at(self, figure: str, step: int) -> float:
        """A figure at a step."""
        return self.figures[figure][self.steps.index(step)]


def curve_of(protocol: Protocol, part: str, cell: CellKey, result: RunResult) -> Curve:
    """The compact form of a finished run."""
    judged = [record for record in result.records if record.exact is not None]
    figures = {
        name: tuple(_rounded(_figure(record.exact, name)) for record in judged)
        for name in FIGURES
    }
    versions, environment = result.environment["versions"], result.environment
    kept = {"torch": versions["torch"], "python": versions["python"]}
    kept |= {name: environment[name] for name in ("machine", "device")}
    kept["wall_seconds"] = round(result.wall_seconds, 1)
    config = result.config
    return Curve(
        protocol.version,
        part,
        config["task"],
        cell,
        config["learning_rate"],
        result.seed,
        tuple(record.step for record in judged),
        figures,
        kept,
    )


def _figure(report, name: str) -> float:
    if name.startswith("pass@"):
        return report.pass_at_k[int(name[5:])]
    return float(getattr(report, name))


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.{DIGITS}g}")


def already_kept(
    part: str, jobs: Sequence[Job], kept: Iterable[Curve]
) -> tuple[list[Job], list[Curve]]:
    """The jobs that are still to be run, and the kept curves of the others."""
    found = {(curve.task, *_identity(curve)): curve for curve in kept}
    left, done = [], []
    for job in jobs:
        config = job.config
        cell = str(_cell_of(config.name))
        key = (config.task, part, cell, config.learning_rate, config.seed)
        if key in found:
            done.append(found[key])
        else:
            left.append(job)
    return left, done


def gather_curves(protocol: Protocol, part: str, jobs: Sequence[Job]) -> list[Curve]:
    """The finished ones of ``jobs``."""
    return [
        curve_of(protocol, part, _cell_of(job.config.name), load_result(job.folder))
        for job in jobs
        if is_finished(job.folder)
    ]


def _cell_of(name: str) -> CellKey:
    family, equals, value = name.partition("=")
    return CellKey(family, float(value) if equals else None)


def curves_path(task: str) -> Path:
    """Where the curves of a task are kept."""
    return data_path("results") / "curves" / f"{task}.jsonl"


def add_curves(path: Path, curves: Iterable[Curve]) -> int:
    """Add runs to a file; what is there already stays as it is.

    Returns:
        How many were added.
    """
    held = {_identity(c): c for c in (read_curves(path) if path.is_file() else [])}
    before = len(held)
    for curve in curves:
        held.setdefault(_identity(curve), curve)
    if len(held) == before:
        return 0
    lines = [_to_line(held[key]) for key in sorted(held)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, ("\n".join(lines) + "\n").encode())
    return len(held) - before


def _identity(curve: Curve) -> tuple:
    return (curve.part, str(curve.cell), curve.learning_rate, curve.seed)


def _to_line(curve: Curve) -> str:
    fields = dataclasses.asdict(curve) | {"cell": str(curve.cell)}
    return json.dumps(fields, ensure_ascii=False)


def read_curves(path: Path) -> list[Curve]:
    """The runs of one file.

    Raises:
        ValueError: a line that cannot be read.
    """
    curves = []
    for number, line in enumerate(read_lines(path), 1):
        try:
            row = json.loads(line)
            row["cell"], row["steps"] = _cell_of(row["cell"]), tuple(row["steps"])
            figures = {
                name: tuple(map(_value, row["figures"][name]))
                for name in FIGURES
                if name in row["figures"] or name not in ADDED
            }
            curves.append(Curve(**{**row, "figures": figures}))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}, line {number}, cannot be read ({error}). Fix: restore the "
                "file from the repository."
            ) from error
    return curves


def _value(number: float | None) -> float:
    return math.nan if number is None else number


def load_curves(task: str, protocol: Protocol | None = None) -> list[Curve]:
    """The recorded runs of the protocol on ``task``.

    Raises:
        ValueError: no such file, or it holds runs of another protocol version or
            with settings that the protocol does not have.
    """
    protocol = load_protocol() if protocol is None else protocol
    path = curves_path(task)
    if not path.is_file():
        raise ValueError(
            f"there are no recorded runs of the protocol on {task!r} ({path}). Fix: "
            "python -m flowrl_lab study --protocol --out runs/protocol --publish"
        )
    curves = read_curves(path)
    refuse_strangers(protocol, curves, path)
    return curves


def refuse_strangers(protocol: Protocol, curves: Sequence[Curve], path: Path) -> None:
    """Refuse runs of another version of the protocol, by name."""
    others = [c for c in curves if c.version != protocol.version]
    known = {cell for key in protocol.families for cell in protocol.cells(key)}
    others += [
        c for c in curves if c.version == protocol.version and c.cell not in known
    ]
    if others:
        names = ", ".join(
            f"{c.cell} seed {c.seed} (version {c.version})" for c in others[:3]
        )
        raise bad_input(
            str(path),
            f"holds {len(others)} runs of other protocols: {names}",
            f"runs of protocol {protocol.version} only",
            "keep the others in another file, or read them with their own protocol",
        )

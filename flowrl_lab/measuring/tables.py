"""Tables of runs: mean ± standard deviation over seeds, and averaged curves."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from flowrl_lab.measuring.folder import RunResult
from flowrl_lab.plots.panels import format_number
from flowrl_lab.plots.tabulate import markdown_table, text_table
from flowrl_lab.types import ExactReport, StepRecord

__all__ = [
    "CONTROLS",
    "LEGEND",
    "METRICS",
    "UNTRAINED",
    "Metric",
    "Spread",
    "average_runs",
    "beside_untrained",
    "compute_spread",
    "format_markdown",
    "format_table",
    "fronts",
    "group_runs",
    "join_dials",
    "metric_of",
    "name_betas",
    "summarize",
]


@dataclass(frozen=True)
class Metric:
    """A figure's key in JSON, its heading for people, and which direction is good."""

    key: str
    heading: str
    better: str

    @property
    def title(self) -> str:
        """Heading and direction."""
        return f"{self.heading} {self.better}".strip()


UNTRAINED = "untrained"

METRICS = (
    Metric("accuracy", "accuracy", "↑"),
    Metric("pass@64", "pass@64", "↑"),
    Metric("distinct_64", "distinct right in 64", "↑"),
    Metric("effective_answers", "effective answers", "↑"),
    Metric("kl_policy_target", "KL(π‖p*), nats", "↓"),
    Metric("kl_target_policy", "KL(p*‖π), nats", "↓"),
    Metric("total_variation", "total variation", "↓"),
    Metric("modes_covered", "modes covered", "↑"),
    Metric("lost_prompts", "lost prompts", "↓"),
    Metric("log_z_rmse", "error of log Z, nats", "↓"),
    Metric("seconds", "training, s", ""),
)


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of a metric over seeds, without NaNs."""

    mean: float
    deviation: float
    count: int

    def __str__(self) -> str:
        if not self.count:
            return "–"
        if self.count == 1:
            return format_number(self.mean)
        if not self.deviation > 1e-6 * abs(self.mean):
            return f"{format_number(self.mean)} ± 0"
        # two digits of the deviation say how many digits of the mean mean anything
        decimals = min(6, max(0, 1 - math.floor(math.log10(self.deviation))))
        return f"{self.mean:,.{decimals}f} ± {self.deviation:.{decimals}f}"


def metric_of(result: RunResult, key: str) -> float:
    """A run's final value of a metric."""
    if key == "seconds":
        return result.seconds
    if key.startswith("pass@"):
        return result.exact.pass_at_k.get(int(key[5:]), math.nan)
    return float(getattr(result.exact, key))


def group_runs(results: Iterable[RunResult]) -> dict[str, list[RunResult]]:
    """Runs by name, in order of appearance, seeds in rising order."""
    groups: dict[str, list[RunResult]] = {}
    for result in results:
        groups.setdefault(result.name, []).append(result)
    return {k: sorted(v, key=lambda result: result.seed) for k, v in groups.items()}


def beside_untrained(results: Iterable[RunResult]) -> list[RunResult]:
    """The runs, after what those of each seed started from, called "untrained".

    Seeds without a run that reports its start are left out of that first group.
    """
    results = list(results)
    starts: dict[int, RunResult] = {}
    for result in results:
        first = result.records[0]
        if first.step == 0 and first.exact is not None and result.seed not in starts:
            record = dataclasses.replace(first, run=UNTRAINED, seconds=0.0)
            starts[result.seed] = dataclasses.replace(result, records=(record,))
    return [*starts.values(), *results]


def join_dials(names: Iterable[str]) -> list[list[str]]:
    """Names that differ in one number only, such as β, in that number's order.

    A name that stands alone is a list of one.
    """
    families: dict[str, list[tuple[float, str]]] = {}
    for name in names:
        stem, found, number = name.rpartition("=")
        value = math.nan
        with contextlib.suppress(ValueError):
            value = float(number) if found else math.nan
        stem = name if math.isnan(value) else stem
        families.setdefault(stem, []).append((value, name))
    return [[name for _, name in sorted(family)] for family in families.values()]


# Families that a picture shows, and what it calls them: more marks than colours could
# not be told apart.
LEGEND = {
    UNTRAINED: UNTRAINED,
    "reinforce_pp": "reinforce_pp",
    "ppo": "ppo",
    "grpo": "grpo",
    "pass@4 training": "pass@4",
    "flowrl": "flowrl",
    "flowrl β=8": "flowrl",  # where that is the only one
    "flowrl paper form β=15": "paper β=15",
}
# And the controls, in a picture that asks which part of a method does it.
CONTROLS = {
    "grpo kl=0.1": "grpo + KL",
    "grpo lr=0.001": "grpo, half rate",
    "kl_reinforce β=8": "kl_reinforce β=8",
    "vargrad β=8": "vargrad β=8",
}


def fronts(
    results: Iterable[RunResult],
    legend: Mapping[str, str] = LEGEND,
    *,
    each_seed: bool = False,
) -> dict[str, tuple[list[float], list[float]]]:
    """Accuracy against variety, the untrained model first, each dial a curve.

    Args:
        results: runs of one study.
        legend: family -> what the picture calls it.  A family of several values of a
            dial is named without them: "flowrl" for "flowrl β=4" and "flowrl β=8".
        each_seed: every run's figures instead, the untrained model left out.

    Returns:
        name -> (effective answers, accuracy), means over seeds, in the order of the
        dial: what ``draw_curves`` takes.  Families without runs are left out.
    """
    results = list(results)
    groups = group_runs(results if each_seed else beside_untrained(results))

    def figures(name: str, key: str) -> list[float]:
        if each_seed:
            return [metric_of(run, key) for run in groups[name]]
        return [compute_spread(groups[name], key).mean]

    families = {_stem(names): names for names in join_dials(groups)}
    return {
        shown: tuple(
            [value for name in families[family] for value in figures(name, key)]
            for key in ("effective_answers", "accuracy")
        )
        for family, shown in legend.items()
        if family in families
    }


def name_betas(
    results: Iterable[RunResult], legend: Mapping[str, str] = LEGEND
) -> dict[str, list[str]]:
    """The β at each point of ``fronts`` that its name does not say.

    Returns:
        name -> "β=4", "β=8", … or "", in the order of the dial, as ``draw_curves``
        takes them for its ``labels``.
    """
    groups = group_runs(beside_untrained(results))
    families = {_stem(names): names for names in join_dials(groups)}
    return {
        shown: [
            "".join(name.partition("β=")[1:]) * ("β=" not in shown)
            for name in families[family]
        ]
        for family, shown in legend.items()
        if family in families
    }


def _stem(names: Sequence[str]) -> str:
    """What the names of one dial share."""
    if len(names) == 1:
        return names[0]
    return names[0].rpartition("=")[0].removesuffix(" β")


def summarize(results: Iterable[RunResult]) -> dict[str, dict[str, Spread]]:
    """Mean ± standard deviation over seeds of every metric.

    Returns:
        run name -> metric key -> spread; NaN values ("does not apply") are left
        out, and a metric that no run has is left out altogether.
    """
    table = {
        name: {metric.key: compute_spread(runs, metric.key) for metric in METRICS}
        for name, runs in group_runs(results).items()
    }
    kept = [m.key for m in METRICS if any(row[m.key].count for row in table.values())]
    return {name: {key: row[key] for key in kept} for name, row in table.items()}


def compute_spread(runs: Sequence[RunResult], key: str) -> Spread:
    """Mean ± standard deviation of one metric over runs, NaNs left out."""
    values = [value for run in runs if not math.isnan(value := metric_of(run, key))]
    if not values:
        return Spread(math.nan, math.nan, 0)
    if len(values) == 1 or not all(map(math.isfinite, values)):
        return Spread(statistics.fmean(values), math.nan, len(values))
    return Spread(statistics.fmean(values), statistics.stdev(values), len(values))


def format_table(results: Sequence[RunResult]) -> str:
    """The summary as plain text, one line a metric and one column a run name."""
    results = beside_untrained(results)
    groups, table = group_runs(results), summarize(results)
    rows = [["", *table], ["seeds", *(str(len(runs)) for runs in groups.values())]]
    headings = {metric.key: metric.heading for metric in METRICS}
    for key in next(iter(table.values()), {}):
        rows.append([headings[key], *(str(row[key]) for row in table.values())])
    return text_table(rows)


MARKDOWN = {
    "accuracy": ("accuracy", 3),
    "pass@64": ("pass@64", 3),
    "effective_answers": ("effective answers", 1),
    "kl_target_policy": ("KL(p*‖π), nats", 2),
    "kl_policy_target": ("KL(π‖p*), nats", 2),
}


def format_markdown(results: Sequence[RunResult]) -> str:
    """The table that README and notes show: a row a run name, mean ± deviation.

    The first row is the untrained model, which has no spread.
    """
    rows = []
    for name, runs in group_runs(beside_untrained(results)).items():
        spreads = [(compute_spread(runs, key), d) for key, (_, d) in MARKDOWN.items()]
        cells = [
            f"{s.mean:.{d}f}" + f" ± {s.deviation:.{d}f}" * (name != UNTRAINED)
            for s, d in spreads
        ]
        rows.append([name, *cells])
    return markdown_table(["variant", *(h for h, _ in MARKDOWN.values())], rows)


def average_runs(results: Sequence[RunResult]) -> list[StepRecord]:
    """Records of one name averaged over seeds, for one readable curve.

    Steps that not all seeds have are left out.  The snapshot is the first seed's.
    """
    by_step: dict[int, list[StepRecord]] = {}
    for result in results:
        for record in result.records:
            by_step.setdefault(record.step, []).append(record)
    complete = (by_step[step] for step in sorted(by_step))
    return [_average(rows) for rows in complete if len(rows) == len(results)]


def _average(records: Sequence[StepRecord]) -> StepRecord:
    exact = [record.exact for record in records]
    changes = _mean_fields(records)
    if all(report is not None for report in exact):
        ks = exact[0].pass_at_k
        table = {k: statistics.fmean(e.pass_at_k[k] for e in exact) for k in ks}
        changes["exact"] = dataclasses.replace(
            exact[0], pass_at_k=table, **_mean_fields(exact)
        )
    return dataclasses.replace(records[0], **changes)


def _mean_fields(rows: Sequence[StepRecord] | Sequence[ExactReport]) -> dict:
    return {
        field.name: statistics.fmean(getattr(row, field.name) for row in rows)
        for field in dataclasses.fields(rows[0])
        if isinstance(getattr(rows[0], field.name), float)
    }

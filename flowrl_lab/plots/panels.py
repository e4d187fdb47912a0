"""What a figure shows, before it is drawn: records → panels.

Three steps, each in its own file: ``panels`` turns training records into plain
arrays with a title and a style, ``figures`` draws those with plotly and ``svg``
draws the same ones without any library.  Nothing here imports a plotting package.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from flowrl_lab._validation import bad_input
from flowrl_lab.metrics import GROUP_MEASURES, effective_number
from flowrl_lab.plots.tabulate import text_table
from flowrl_lab.types import ExactReport, Snapshot, StepRecord

__all__ = [
    "CellsPanel",
    "History",
    "LinePanel",
    "Page",
    "RunStyle",
    "Series",
    "StatesPanel",
    "build_page",
    "check_metrics",
    "count_alive",
    "describe_page",
    "format_number",
    "format_seconds",
    "run_styles",
    "tabulate_page",
    "thin",
]

MAX_POINTS = 500
MAX_CELLS = 1024
MIN_STATES = 50
MOST_BARS_SEEN_BEHIND = 24  # more would be too narrow for one behind another
# Curves over a log axis: what lies more decades below the top is out of sight.
LOG_DECADES = 6.0
# A share of these is a share of something: their axis starts at 0.
COUNTS = ("effective_answers", "distinct_64")
ALWAYS_LOG = ("kl_policy_target", "kl_target_policy")


@dataclass(frozen=True)
class RunStyle:
    """How a run looks: a colour, and a dash and a marker for who cannot see it.

    ``joined``: a line goes through its points.
    """

    color: str
    dash: str
    marker: str
    joined: bool = True

    @property
    def glyph(self) -> str:
        """The marker as a character, for labels."""
        return (GLYPHS | GLYPHS_OPEN)[self.marker]


GLYPHS = {
    "circle": "●",
    "square": "■",
    "diamond": "◆",
    "triangle-up": "▲",
    "cross": "✚",
    "star": "★",
    "triangle-down": "▼",
    "x": "✖",
}
GLYPHS_OPEN = {"square-open": "□", "diamond-open": "◇", "circle-open": "○"}
GLYPHS_OPEN |= {"triangle-up-open": "△"}
# Okabe-Ito, a palette whose colours stay apart under colour blindness.
STYLES = {
    "flowrl": RunStyle("#0072B2", "solid", "circle"),
    "grpo": RunStyle("#D55E00", "dash", "square"),
    "ppo": RunStyle("#009E73", "dot", "diamond"),
    "reinforce_pp": RunStyle("#CC79A7", "dashdot", "triangle-up"),
    "kl_reinforce": RunStyle("#E69F00", "longdash", "cross"),
    "vargrad": RunStyle("#56B4E9", "longdashdot", "star"),
}
# In the pictures of the recorded study, the same in each; controls are open marks.
STUDY_STYLES = {
    "untrained": RunStyle("#7A828C", "solid", "x"),
    "pass@4": RunStyle("#56B4E9", "longdashdot", "star"),
    "paper β=15": RunStyle("#0072B2", "dash", "triangle-down"),
    "grpo + KL": RunStyle("#D55E00", "dash", "square-open"),
    "grpo, half rate": RunStyle("#D55E00", "dash", "diamond-open"),
    "kl_reinforce β=8": RunStyle("#E69F00", "longdash", "circle-open"),
    "vargrad β=8": RunStyle("#009E73", "solid", "triangle-up-open"),
}
# What the runs are held against is grey, like the target behind a policy.
TRUTH_STYLES = {
    "target p*": RunStyle("#7A828C", "dot", "square-open"),
    "true": RunStyle("#7A828C", "dot", "square-open"),
}
TITLES = {
    "reward": "mean reward of the batch",
    "loss": "loss",
    "entropy": "entropy per token, nats",
    "kl_to_reference": "KL(π‖π_ref), sampled, nats",
    "log_z": "learned log Z, nats",
    "residual_mean": "mean residual, nats",
    "residual_rms": "residual (RMS), nats",
    "clip_fraction": "share of ratios clipped",
    "grad_norm": "gradient norm",
    "zero_variance_groups": "share of groups with equal rewards",
    "all_wrong_groups": "groups with no reward",
    "tokens": "tokens sampled",
    "seconds": "training time, s",
    "skipped": "updates skipped",
    "accuracy": "accuracy, exact",
    "distinct_64": "distinct answers in 64 samples",
    "effective_answers": "effective number of answers",
    "kl_policy_target": "KL(π‖p*), exact, nats",
    "kl_target_policy": "KL(p*‖π), exact, nats",
    "total_variation": "total variation to p*",
    "modes_covered": "share of modes covered",
    "lost_prompts": "share of prompts lost",
    "log_z_exact": "exact log Z, nats",
    "log_z_learned": "learned log Z, nats",
    "log_z_rmse": "error of log Z (RMS), nats",
    "num_prompts": "prompts evaluated",
}
TITLES |= {f"sampled/{name}": words for name, words in GROUP_MEASURES.items()}
PASS_AT = re.compile(r"pass@([1-9]\d*)\Z")
NOT_A_CURVE = {"run", "algorithm", "seed", "step", "steps", "exact", "snapshot"}
NOT_A_CURVE |= {"samples", "parts", "note", "sampled", "floor"}
STEP_METRICS = tuple(f.name for f in fields(StepRecord) if f.name not in NOT_A_CURVE)
EXACT_METRICS = tuple(f.name for f in fields(ExactReport) if f.name != "pass_at_k")
SAMPLED_METRICS = tuple(f"sampled/{name}" for name in GROUP_MEASURES)


@dataclass(frozen=True)
class Series:
    """One curve: a run (and seed) seen through one metric.

    ``labels``, if any, are words beside its points.  ``marked``: each point wears its
    marker; else those with words do, or a few.  ``dots``: no curve, but what another
    one is the mean of, a small dot each.  ``large``: which points wear a large marker.
    """

    run: str
    style: RunStyle
    x: np.ndarray
    y: np.ndarray
    labels: tuple[str, ...] = ()
    marked: bool = False
    dots: bool = False
    large: tuple[bool, ...] = ()

    @property
    def worded(self) -> list[int]:
        """The points that have words."""
        return [i for i, words in enumerate(self.labels) if words]

    @property
    def last(self) -> float:
        """The last value that is a number, or NaN."""
        finite = self.y[np.isfinite(self.y)]
        return float(finite[-1]) if len(finite) else float("nan")


@dataclass(frozen=True)
class LinePanel:
    """Curves of one metric over the training step, or over ``x_title``.

    ``marks`` are named heights, each drawn as a level line.  ``x_names``: what stands
    below 0, 1, 2 …, where x is no number.  The ranges of log axes are in log10 units.
    """

    title: str
    metric: str
    log_y: bool
    series: tuple[Series, ...]
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    x_title: str = "step"
    marks: tuple[tuple[str, float], ...] = ()
    log_x: bool = False
    x_names: tuple[str, ...] = ()

    def place_of(self, x: int | float | np.ndarray) -> np.ndarray:
        """How far to the right it lies: 0 at the left edge, 1 at the right one."""
        low, high = self.x_range
        along = np.log10(x) if self.log_x else x
        return np.asarray((along - low) / (high - low))

    def height_of(self, value: float) -> float:
        """Where a value lies: 0 at the bottom of the panel, 1 at the top."""
        low, high = self.y_range
        if self.log_y:
            value = np.log10(value) if value > 0 else low
        return float(np.clip((value - low) / (high - low), 0.0, 1.0))

    def ends(self) -> dict[str, float]:
        """run -> where its longest curve ends: 0 at the left, 1 at the right."""
        found: dict[str, float] = {}
        for curve in (one for one in self.series if not one.dots):
            reached = curve.x[np.isfinite(curve.y)]
            if len(reached):
                place = float(self.place_of(reached[-1]))
                found[curve.run] = max(place, found.get(curve.run, 0.0))
        return found

    def last_values(self) -> dict[str, tuple[RunStyle, float]]:
        """run -> its style and last value (mean over seeds where there are some)."""
        found: dict[str, tuple[RunStyle, list[float]]] = {}
        for curve in self.series:
            if np.isfinite(curve.last) and not curve.dots:
                found.setdefault(curve.run, (curve.style, []))[1].append(curve.last)
        return {run: (style, float(np.mean(v))) for run, (style, v) in found.items()}


@dataclass(frozen=True)
class StatesPanel:
    """A distribution over states, drawn over the target in grey.

    Many states are a landscape; few, or such as have ``names``, are bars, since
    nothing lies between them.  Behind very many bars the target would not be seen: it
    is a mark over each.
    """

    title: str
    run: str
    style: RunStyle
    states: np.ndarray
    probs: np.ndarray
    target: np.ndarray
    y_max: float
    note: str
    names: tuple[str, ...] = ()
    x_title: str = "state"

    @property
    def as_bars(self) -> bool:
        return bool(self.names) or len(self.states) < MIN_STATES

    @property
    def marks_target(self) -> bool:
        return self.as_bars and len(self.states) > MOST_BARS_SEEN_BEHIND

    @property
    def opacity(self) -> float:
        """Of the filled steps: a spike that is cut is one bar, not its two edges."""
        return 0.9 if np.nanmax(self.probs, initial=0.0) > self.y_max else 0.35

    @property
    def x_range(self) -> tuple[float, float]:
        air = 0.5 if self.as_bars else 0.0
        return float(self.states[0]) - air, float(self.states[-1]) + air


@dataclass(frozen=True)
class CellsPanel:
    """A distribution over answers: one cell an answer, lit by its probability.

    ``style`` is None for the target.  ``labels`` and ``probs`` have one entry for
    each cell; a cell may stand for several answers where there are very many.  In a
    ``picture`` the cells are the pixels of a square, row by row.
    """

    title: str
    run: str
    style: RunStyle | None
    labels: tuple[str, ...]
    probs: np.ndarray
    floor: float
    note: str
    picture: bool = False

    def gap(self, columns: int) -> float:
        """Pixels between two cells: none where thousands of lines would be a mesh."""
        if self.picture or columns > 32:
            return 0.0
        return 2.0 if columns <= 16 else 0.5

    @property
    def levels(self) -> np.ndarray:
        """log10 of the probabilities, cut off at the floor of the colour scale."""
        return np.log10(np.clip(self.probs, self.floor, 1.0))

    def grid(self, width: float, height: float) -> tuple[int, int]:
        """Rows and columns that make the cells of a ``width``×``height`` box square."""
        count = max(1, len(self.probs))
        if self.picture:
            return math.isqrt(count), math.isqrt(count)
        columns = min(count, max(1, round(np.sqrt(count * width / height))))
        return -(-count // columns), columns

    def names_fit(self, width: float, height: float) -> bool:
        """Whether every answer can be written into its cell."""
        rows, columns = self.grid(width, height)
        letters = max(map(len, self.labels), default=0)
        return width / columns >= 7 * letters + 8 and height / rows >= 18


@dataclass(frozen=True)
class Page:
    """A whole figure: a header, a legend, curves, and the solution map below."""

    title: str
    progress: str
    legend: tuple[tuple[str, RunStyle], ...]
    curves: tuple[LinePanel, ...]
    maps: tuple[StatesPanel | CellsPanel, ...]
    map_title: str


def check_metrics(metrics: Sequence[str], *, solution_map: bool = False) -> tuple:
    """Check metric names before anything is trained.

    Args:
        metrics: fields of ``StepRecord`` or ``ExactReport``, ``"pass@K"``, or
            ``"sampled/..."`` of ``metrics.GROUP_MEASURES``.
        solution_map: whether a map will be drawn; without one, at least one metric
            is needed.

    Returns:
        The metrics, as a tuple.

    Raises:
        ValueError: for an unknown name (with close matches), or nothing to draw.
    """
    if isinstance(metrics, str):
        raise bad_input(
            "metrics",
            f"is the string {metrics!r}",
            "a tuple of names",
            f"write metrics=({metrics!r},)",
        )
    known = [*STEP_METRICS, *EXACT_METRICS, *SAMPLED_METRICS]
    for name in metrics:
        if name in known or PASS_AT.match(str(name)):
            continue
        close = difflib.get_close_matches(str(name), [*known, "pass@1"], n=3)
        raise bad_input(
            "metrics",
            f"names {name!r}, which no record has",
            f"some of {', '.join(known)}, pass@K",
            f"did you mean {' or '.join(close)}?" if close else "use one of these",
        )
    if not metrics and not solution_map:
        raise bad_input(
            "metrics",
            "is empty and there is no solution map",
            "something to draw",
            "name a metric or pass solution_map=True",
        )
    return tuple(metrics)


def metric_title(metric: str) -> str:
    """A metric's name in words, with its unit."""
    if PASS_AT.match(metric):
        return f"{metric}, exact"
    return TITLES.get(metric, metric.replace("_", " "))


def metric_value(record: StepRecord, metric: str) -> float | None:
    """A metric's value in a record; None where the record was not evaluated."""
    if metric in STEP_METRICS:
        return float(getattr(record, metric))
    if metric in SAMPLED_METRICS:
        return record.sampled.get(metric.partition("/")[2])
    if record.exact is None:
        return None
    match = PASS_AT.match(metric)
    if match:
        return float(record.exact.pass_at_k.get(int(match.group(1)), np.nan))
    return float(getattr(record.exact, metric))


def run_styles(runs: Sequence[tuple[str, str]]) -> dict[str, RunStyle]:
    """A distinct style for every run.

    A run named as an algorithm, or the first run of one, wears that algorithm's
    style; what is held to be true is grey; others take what is left, then colours
    repeat with other dashes.

    Args:
        runs: (name, algorithm) of each run, in order of appearance.

    Returns:
        name -> style.
    """
    chosen: dict[str, RunStyle] = {}
    for claim in (0, 1):
        for pair in runs:
            style = (STYLES | STUDY_STYLES | TRUTH_STYLES).get(pair[claim])
            if pair[0] not in chosen and style and style not in chosen.values():
                chosen[pair[0]] = style
    colors = [style.color for style in STYLES.values()]
    dashes = [style.dash for style in STYLES.values()]
    spare = [style for style in STYLES.values() if style not in chosen.values()]
    for name, _ in runs:
        if name not in chosen:
            turn = len(chosen)
            again = RunStyle(
                colors[turn % len(colors)],
                dashes[(turn + turn // len(dashes)) % len(dashes)],
                list(GLYPHS)[(turn + turn // len(GLYPHS) + 1) % len(GLYPHS)],
            )
            chosen[name] = spare.pop(0) if spare else again
    return {name: chosen[name] for name, _ in runs}


def thin(values: np.ndarray, max_points: int = MAX_POINTS) -> np.ndarray:
    """At most ``max_points`` indices into ``values``, evenly, first and last kept."""
    if len(values) <= max_points:
        return np.arange(len(values))
    return np.unique(np.linspace(0, len(values) - 1, max_points).round().astype(int))


def count_alive(probs: np.ndarray) -> float:
    """``metrics.effective_number`` of listed answers, whatever they sum to.

    0 when there is no mass.
    """
    mass = torch.as_tensor(np.asarray(probs, dtype=np.float64))
    if not bool(mass.sum() > 0):
        return 0.0
    return effective_number((mass / mass.sum()).log()).item()


def format_number(value: float) -> str:
    """Three significant digits, "–" for what is not a number."""
    if not math.isfinite(value):
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"


def format_seconds(seconds: int | float) -> str:
    """``"8 s"``, ``"3 min 20 s"`` or ``"2 h 5 min"``."""
    whole = max(0, round(seconds))
    if whole < 90:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


class History:
    """Records as columns, so that redrawing does not walk over all of them."""

    def __init__(self, metrics: Sequence[str]) -> None:
        self.metrics = tuple(metrics)
        self.runs: dict[str, str] = {}
        self.progress: dict[tuple[str, int], tuple[int, int, int]] = {}
        self.snapshots: dict[str, Snapshot] = {}
        self.floors: dict[tuple[str, int], dict[str, tuple[float, float]]] = {}
        self.columns: dict[str, dict[tuple[str, int], tuple[list, list]]] = {
            metric: {} for metric in self.metrics
        }

    def append(self, record: StepRecord) -> None:
        """Add one record to the columns of its run and seed."""
        key = (record.run, record.seed)
        self.runs.setdefault(record.run, record.algorithm)
        first = self.progress.get(key, (record.step,))[0]
        self.progress[key] = (first, record.step, record.steps)
        for metric in self.metrics:
            steps, values = self.columns[metric].setdefault(key, ([], []))
            value = metric_value(record, metric)
            if value is not None:
                steps.append(record.step)
                values.append(value)
        if record.floor:
            self.floors[key] = record.floor
        if record.snapshot is not None:
            self.snapshots[record.run] = record.snapshot

    def floor(self, metric: str) -> tuple[tuple[str, float], ...]:
        """The level of a sampled measure before training, mean over the runs."""
        name = metric.removeprefix("sampled/")
        found = [f[name][0] for f in self.floors.values() if name in f]
        if metric not in SAMPLED_METRICS or not found:
            return ()
        return (("untrained", float(np.mean(found))),)

    @classmethod
    def of(cls, records: Iterable[StepRecord], metrics: Sequence[str]) -> History:
        """The columns of finished records."""
        history = cls(metrics)
        for record in records:
            history.append(record)
        return history


def curve_range(
    values: np.ndarray, log_y: bool, *, from_zero: bool = True
) -> tuple[float, float]:
    """A y range that shows all finite values with some air; log10 units if log.

    Heights above 0 that are not all alike stand on 0; a log axis has at most
    ``LOG_DECADES``.
    """
    values = values[np.isfinite(values)]
    if log_y:
        values = np.log10(values[values > 0])
    if not len(values):
        return (-1.0, 0.0) if log_y else (0.0, 1.0)
    low, high = float(values.min()), float(values.max())
    if log_y:
        low = max(low, high - LOG_DECADES)
    elif from_zero and 0 < low < 0.5 * high:
        low = 0.0
    least = 1.0 if log_y else max(1e-3, 0.02 * abs(high))
    missing = max(0.0, least - (high - low)) / 2
    air = 0.06 * max(high - low, least)
    return low - missing - air, high + missing + air


def axis_title(
    title: str, values: np.ndarray, y_range: tuple[float, float], log_y: bool
) -> str:
    """A panel's title, with what the eye could mistake about its axis."""
    if not log_y:
        cut = y_range[0] > 0 and bool(np.isfinite(values).any())
        return f"{title} (axis from {y_range[0]:.3g})" if cut else title
    seen = values[np.isfinite(values)]
    remark = "log axis"
    if (seen <= 0).any():
        remark += ", zeros left out"
    if ((seen > 0) & (seen < 10.0 ** y_range[0])).any():
        remark += f", cut at {10.0 ** y_range[0]:.0e}"
    return f"{title} ({remark})"


def line_panel(
    history: History, metric: str, styles: dict[str, RunStyle], log_y: bool
) -> LinePanel:
    """The curves of one metric, thinned."""
    series, values, end = [], [np.zeros(0)], 1
    for key, (steps, column) in history.columns[metric].items():
        x, y = np.asarray(steps, dtype=float), np.asarray(column, dtype=float)
        y = np.where(np.isfinite(y), y, np.nan)
        keep = thin(x)
        series.append(Series(key[0], styles[key[0]], x[keep], y[keep]))
        values.append(y)
        end = max(end, history.progress[key][2], *steps[-1:])
    marks = history.floor(metric)
    if metric in COUNTS and not log_y:
        values.append(np.zeros(1))
    values.append(np.array([height for _, height in marks]))
    every = np.concatenate(values)
    y_range = curve_range(every, log_y)
    return LinePanel(
        title=axis_title(metric_title(metric), every, y_range, log_y),
        metric=metric,
        log_y=log_y,
        series=tuple(series),
        x_range=(-0.01 * end, 1.01 * end),
        y_range=y_range,
        marks=marks,
    )


def is_landscape(snapshot: Snapshot) -> bool:
    """True for many numbered states, better drawn as a curve than as cells."""
    if len(snapshot.labels) < MIN_STATES:
        return False
    try:
        states = [float(label) for label in snapshot.labels]
    except ValueError:
        return False
    return bool(np.all(np.diff(states) > 0))


def effective_text(probs: np.ndarray) -> str:
    """The effective number in words: ``12.3 of 34 effective``."""
    number = count_alive(probs)
    return f"{number:,.{1 if number < 1000 else 0}f} of {len(probs):,} effective"


def states_panel(
    run: str,
    style: RunStyle,
    snapshot: Snapshot,
    target_label: str,
    names: tuple[str, ...] = (),
    peak: float | None = None,
) -> StatesPanel:
    """One run's distribution over numbered states; spikes are cut and named.

    ``peak`` is the highest target of all panels that are to be compared.
    """
    states = np.asarray([float(label) for label in snapshot.labels])
    probs = np.asarray(snapshot.probs, dtype=float)
    target = np.asarray(snapshot.target_probs, dtype=float)
    y_max = 1.6 * (peak or float(np.nanmax(target, initial=1e-9)))
    top = int(np.nanargmax(probs)) if np.isfinite(probs).any() else 0
    note = f"grey: {target_label}, {count_alive(target):.1f}"
    if probs[top] > y_max:
        note = f"↑ {probs[top]:.2f} at {(names or snapshot.labels)[top]} · {note}"
    return StatesPanel(
        effective_text(probs), run, style, states, probs, target, y_max, note, names
    )


def merge_cells(
    labels: Sequence[str], probs: np.ndarray, max_cells: int = MAX_CELLS
) -> tuple[tuple[str, ...], np.ndarray]:
    """Add neighbouring answers up until at most ``max_cells`` cells are left."""
    probs = np.asarray(probs, dtype=float)
    if len(probs) <= max_cells:
        return tuple(labels), probs
    starts = np.unique(np.linspace(0, len(probs), max_cells, False).astype(int))
    ends = np.append(starts[1:], len(probs)) - 1
    names = tuple(
        f"{labels[a]} … {labels[b]} ({b - a + 1} answers)"
        for a, b in zip(starts, ends, strict=True)
    )
    return names, np.add.reduceat(probs, starts)


def cells_panel(
    run: str,
    style: RunStyle | None,
    labels: Sequence[str],
    probs: np.ndarray,
    floor: float,
) -> CellsPanel:
    """One distribution over answers as cells."""
    probs = np.nan_to_num(np.asarray(probs, dtype=float))
    names, merged = merge_cells(labels, probs)
    note = f"probability of all: {probs.sum():.3f}"
    title = effective_text(probs)
    return CellsPanel(title, run, style, names, merged, floor, note)


def colour_floor(target: np.ndarray) -> float:
    """Where the colour scale goes dark: about a thirtieth of the target's."""
    _, merged = merge_cells([""] * len(target), target)
    positive = merged[merged > 0]
    typical = float(np.median(positive)) if len(positive) else 0.03
    return 10.0 ** float(np.clip(np.round(np.log10(typical / 30)), -6, -2))


def map_panels(
    snapshots: dict[str, Snapshot],
    styles: dict[str, RunStyle],
    target_label: str,
) -> tuple[StatesPanel | CellsPanel, ...]:
    """One panel for each run, after the target for answers that are cells."""
    shown = {run: snap for run, snap in snapshots.items() if len(snap.labels)}
    if not shown:
        return ()
    first = next(iter(shown.values()))
    if all(is_landscape(snapshot) for snapshot in shown.values()):
        return tuple(
            states_panel(run, styles[run], snapshot, target_label)
            for run, snapshot in shown.items()
        )
    floor = colour_floor(np.asarray(first.target_probs))
    target = cells_panel(target_label, None, first.labels, first.target_probs, floor)
    return (
        target,
        *(
            cells_panel(run, styles[run], snapshot.labels, snapshot.probs, floor)
            for run, snapshot in shown.items()
        ),
    )


def build_page(
    history: History,
    *,
    title: str = "",
    progress: str = "",
    solution_map: bool = False,
    target_label: str = "target p*",
    log_y: Sequence[str] = ALWAYS_LOG,
) -> Page:
    """Everything a figure shows, from the columns so far.

    Args:
        history: records as columns.
        title: headline.
        progress: the line below it.
        solution_map: add each run's latest snapshot, and the target.
        target_label: what the target is called.
        log_y: metrics drawn on a log axis.

    Returns:
        The page, for ``figures.plotly_figure`` and ``svg.draw_svg``.
    """
    styles = run_styles(list(history.runs.items()))
    maps: tuple = ()
    map_title = ""
    if solution_map:
        maps = map_panels(history.snapshots, styles, target_label)
        prompts = dict.fromkeys(s.prompt for s in history.snapshots.values())
        map_title = f"solution map of {', '.join(prompts)}" if maps else ""
    return Page(
        title=title,
        progress=progress,
        legend=tuple(styles.items()),
        curves=tuple(
            line_panel(history, metric, styles, metric in log_y)
            for metric in history.metrics
        ),
        maps=maps,
        map_title=map_title,
    )


def describe_page(page: Page) -> str:
    """The figure in words and numbers, for who cannot see it (alt text)."""
    parts = [page.title] if page.title else []
    for panel in page.curves:
        ends = [
            f"{run} {format_number(value)}"
            for run, (_, value) in panel.last_values().items()
        ]
        said = f"at the end {', '.join(ends)}" if ends else "no value yet"
        over = "training steps" if panel.x_title == "step" else panel.x_title
        said += "".join(f"; {name} {format_number(v)}" for name, v in panel.marks)
        parts.append(f"{panel.title} over {over}: {said}")
    for panel in page.maps:
        parts.append(f"{panel.run}: {panel.title}, {panel.note}")
    return ". ".join(parts or ["empty figure"]) + "."


def tabulate_page(page: Page) -> str:
    """The end values as a plain table, one row a run."""
    heads = ["run", *(panel.metric for panel in page.curves)]
    alive = {panel.run: panel.title for panel in page.maps}
    if alive:
        heads.append("solution map")
    columns = [panel.last_values() for panel in page.curves]
    rows = []
    for run in [*dict(page.legend), *(r for r in alive if r not in dict(page.legend))]:
        ends = [column.get(run, (None, np.nan))[1] for column in columns]
        row = [run, *(format_number(value) for value in ends)]
        rows.append([*row, alive.get(run, "–")] if alive else row)
    table = text_table([heads, *rows], numbers=False)
    return f"{page.title}\n{table}" if page.title else table

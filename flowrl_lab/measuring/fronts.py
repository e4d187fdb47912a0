"""What the protocol's runs say: tables, tests, and accuracy against variety."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from flowrl_lab.measuring.protocol import CellKey, Chosen, Curve, Protocol, choose
from flowrl_lab.measuring.significance import Test, compare_values, corrected
from flowrl_lab.measuring.tables import UNTRAINED, Spread
from flowrl_lab.plots.tabulate import markdown_table, text_table

__all__ = [
    "Moment",
    "moments",
    "planned_tests",
    "protocol_markdown",
    "protocol_table",
    "spread_of",
    "training_paths",
    "training_tests",
    "untrained",
]

TABLE = {
    "accuracy": ("accuracy", 3),
    "effective_answers": ("effective answers", 1),
    "pass@64": ("pass@64", 3),
    "kl_target_policy": ("KL(p*‖π)", 2),
    "kl_policy_target": ("KL(π‖p*), of right answers", 2),
}
PAGE = ("accuracy", "effective_answers", "pass@64")  # what a page has room for


@dataclass(frozen=True)
class Moment:
    """A cell of the report at one step: a value of each seed.

    Attributes:
        cell: which.
        step: of the run.
        curves: the runs, seeds in rising order.
    """

    cell: CellKey
    step: int
    curves: tuple[Curve, ...]

    def values(self, figure: str) -> list[float]:
        """The figure of each seed."""
        return [curve.at(figure, self.step) for curve in self.curves]


def spread_of(moment: Moment, figure: str) -> Spread:
    """Mean and sample standard deviation over seeds."""
    values = moment.values(figure)
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return Spread(statistics.fmean(values), deviation, len(values))


def moments(
    protocol: Protocol, curves: Iterable[Curve], when: str
) -> dict[CellKey, Moment]:
    """The complete cells of one task's report, at ``when``: "chosen" or "end".

    A cell that lacks a seed, or whose family's search is incomplete, is left out.
    """
    curves, found = list(curves), {}
    for (_, family), choice in choose(protocol, curves).items():
        for cell in protocol.cells(family):
            runs = _report_runs(protocol, curves, cell, choice)
            if runs:
                step = choice.step if when == "chosen" else runs[0].steps[-1]
                found[cell] = Moment(cell, step, runs)
    order = [cell for family in protocol.families for cell in protocol.cells(family)]
    return {cell: found[cell] for cell in order if cell in found}


def _report_runs(
    protocol: Protocol, curves: Sequence[Curve], cell: CellKey, choice: Chosen
) -> tuple[Curve, ...]:
    """The runs of a cell at the chosen rate; none if a seed is missing."""
    runs = {
        curve.seed: curve
        for curve in curves
        if curve.part == "report"
        and curve.cell == cell
        and curve.learning_rate == choice.learning_rate
    }
    seeds = sorted(protocol.report["seeds"])
    return tuple(runs[s] for s in seeds) if set(seeds) <= set(runs) else ()


def training_paths(
    protocol: Protocol, curves: Iterable[Curve], cells: Sequence[str]
) -> tuple[dict[str, tuple[list[float], list[float]]], dict[str, list[str]]]:
    """How variety and accuracy move over training, the means over the report's seeds.

    Returns:
        name -> (effective answers, accuracy) at every judged step, and the words
        beside its points: the step that was chosen for it.  What ``draw_curves``
        takes, with its ``labels``; first of all the point where all of them start.
        Incomplete cells are left out; nothing where all are.
    """
    paths, labels = {}, {}
    for cell, chosen in moments(protocol, curves, "chosen").items():
        name, steps = str(cell), chosen.curves[0].steps
        if name in cells:
            x, y = (
                [spread_of(replace(chosen, step=step), key).mean for step in steps]
                for key in ("effective_answers", "accuracy")
            )
            paths.setdefault(UNTRAINED, (x[:1], y[:1]))
            paths[name] = x, y
            labels[name] = [str(step) * (step == chosen.step) for step in steps]
    return paths, labels


def untrained(curves: Iterable[Curve]) -> dict[str, float]:
    """The figures before training, which all runs on a split share."""
    start: dict[str, float] = {}
    for curve in curves:
        if curve.part == "report":  # the first recorded runs lack a figure
            start |= {name: values[0] for name, values in curve.figures.items()}
    return start


def planned_tests(
    protocol: Protocol, curves: Iterable[Curve], *, partly: bool = False
) -> list[Test]:
    """The tests of a cell against a cell that PROTOCOL.md names, on one task's runs.

    Args:
        protocol: what is planned.
        curves: the runs.
        partly: make those whose runs are complete; each p is then multiplied by the
            number of all planned tests, and never smaller than Holm's will be.

    Returns:
        corrected together.

    Raises:
        ValueError: a cell that is to be compared is incomplete, and not ``partly``.
    """
    plan = protocol.comparisons
    asked = itertools.product(plan["moments"], plan["pairs"], plan["figures"])
    return _make_tests(
        protocol,
        curves,
        [(a, b, figure, when) for when, (a, b), figure in asked],
        partly,
    )


def training_tests(
    protocol: Protocol, curves: Iterable[Curve], *, partly: bool = False
) -> list[Test]:
    """What training changed: each family at its middle against the untrained model.

    Args, Returns, Raises: as ``planned_tests``; these are a group of their own.
    """
    plan = protocol.comparisons
    middles = [
        str(CellKey(family.key, family.middle)) for family in protocol.families.values()
    ]
    asked = itertools.product(plan["moments"], middles, plan["against_untrained"])
    return _make_tests(
        protocol,
        curves,
        [(cell, UNTRAINED, figure, when) for when, cell, figure in asked],
        partly,
    )


def _make_tests(
    protocol: Protocol,
    curves: Iterable[Curve],
    asked: Sequence[tuple[str, str, str, str]],
    partly: bool,
) -> list[Test]:
    """Tests of (first, second, figure, when), those of incomplete cells left out."""
    curves, values = list(curves), {}
    for when in protocol.comparisons["moments"]:
        for cell, moment in moments(protocol, curves, when).items():
            for figure in moment.curves[0].figures:
                values[str(cell), figure, when] = moment.values(figure)
                values[UNTRAINED, figure, when] = [untrained(curves)[figure]] * 2
    missing = {
        name
        for a, b, figure, when in asked
        for name in (a, b)
        if (name, figure, when) not in values
    }
    if missing and not partly:
        raise ValueError(
            f"the cells {sorted(missing)} are incomplete, so the planned tests "
            "cannot be made. Fix: finish the protocol's runs."
        )
    made = [
        compare_values(
            (a, values[a, figure, when]), (b, values[b, figure, when]), figure, when
        )
        for a, b, figure, when in asked
        if not {a, b} & missing
    ]
    if not missing:
        return corrected(made)
    return [replace(test, p_holm=min(1.0, len(asked) * test.p)) for test in made]


def protocol_table(protocol: Protocol, curves: Sequence[Curve]) -> str:
    """One task's complete cells at both moments, the untrained model first.

    Below it: what is incomplete, by name.
    """
    if not any(curve.part == "report" for curve in curves):
        done = len(curves)
        return f"{done} runs of the search; no cell of the report is complete yet"
    rows = [["", "rate", "step", *(heading for heading, _ in TABLE.values())]]
    start = untrained(curves)
    rows.append([UNTRAINED, "", "0", *_beside(start, TABLE)])
    chosen = choose(protocol, curves)
    for when in ("chosen", "end"):
        rows += [
            _row(moment, chosen) for moment in moments(protocol, curves, when).values()
        ]
    return "\n".join([text_table(rows), *_incomplete(protocol, curves)])


def protocol_markdown(protocol: Protocol, curves: Sequence[Curve]) -> str:
    """One task's complete cells for a page: at the chosen step, then at the end.

    A row a cell; one whose chosen step is its last has no second row.
    """
    start, chosen = untrained(curves), choose(protocol, curves)
    stopped, ends = (moments(protocol, curves, when) for when in ("chosen", "end"))
    tables = [[[UNTRAINED, "", "0", *_beside(start, PAGE)]], []]
    for cell, first in stopped.items():
        for rows, moment in zip(tables, (first, ends[cell]), strict=True):
            if moment is first or moment.step != first.step:
                rows.append(_row(moment, chosen, PAGE))
    head = ["", "rate", "step", *(TABLE[key][0] for key in PAGE)]
    found = [markdown_table(head, rows) for rows in tables if rows]
    return "\n\nAt the end, where validation chose an earlier step:\n\n".join(found)


def _beside(figures: Mapping[str, float | Spread], keys: Iterable[str]) -> list[str]:
    """Figures as text, with their spread where they have one."""
    return [
        f"{f.mean:.{d}f} ± {f.deviation:.{d}f}"
        if isinstance(f, Spread)
        else f"{f:.{d}f}"
        for f, d in ((figures[key], TABLE[key][1]) for key in keys)
    ]


def _row(
    moment: Moment,
    chosen: Mapping[tuple[str, str], Chosen],
    keys: Iterable[str] = tuple(TABLE),
) -> list[str]:
    rate = chosen[moment.curves[0].task, moment.cell.family].learning_rate
    cells = _beside({key: spread_of(moment, key) for key in keys}, keys)
    return [str(moment.cell), f"{rate:g}", str(moment.step), *cells]


def _incomplete(protocol: Protocol, curves: Sequence[Curve]) -> list[str]:
    complete = moments(protocol, curves, "end")
    missing = [
        str(cell)
        for family in protocol.families
        for cell in protocol.cells(family)
        if cell not in complete
    ]
    return [f"incomplete, not shown: {', '.join(missing)}"] if missing else []

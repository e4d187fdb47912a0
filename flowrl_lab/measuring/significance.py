"""Is it more, or chance?  Welch's test over seeds, and Holm's correction.

Seeds are the unit: a small p says that other seeds would very likely give the same
order on these prompts and this model; it says nothing of other tasks.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from flowrl_lab.measuring.folder import RunResult
from flowrl_lab.measuring.tables import metric_of
from flowrl_lab.plots.tabulate import Gauge, Table

__all__ = [
    "COLORS",
    "FAILS",
    "HOLDS",
    "LEVEL",
    "NOT_MEASURED",
    "NO_DIFFERENCE",
    "Test",
    "compare_runs_by_name",
    "compare_values",
    "correct_by_holm",
    "corrected",
    "interval_table",
    "judge_more",
    "judge_values",
    "welch_p",
]

LEVEL = 0.05  # of the corrected p, below which a sentence may say "more"
# What may come out for a claim.
HOLDS, FAILS = "holds here", "does not hold here"
NO_DIFFERENCE, NOT_MEASURED = "no difference found", "not measured"
FACTORS = ("effective_answers",)  # compared as logarithms
# Of "the first has more", in the colours of the course's drawings of verdicts.
COLORS = {HOLDS: "#009E73", FAILS: "#D55E00", NO_DIFFERENCE: "#0072B2"}


def welch_p(first: Sequence[float], second: Sequence[float]) -> float:
    """Two-sided p of Welch's test: how likely so large a difference is by chance.

    A sample without spread (the untrained model) is a known number, and the other is
    tested against it; two such samples give 1 if they are equal, else 0.
    """
    return _welch(first, second)[0]


def _welch(first: Sequence[float], second: Sequence[float]) -> tuple[float, ...]:
    """p, and the ends of the 95 % interval of the difference of the means."""
    from scipy.stats import ttest_1samp, ttest_ind

    if min(len(first), len(second)) < 2:
        raise ValueError(
            f"got {len(first)} and {len(second)} values; expected two or more each. "
            "Fix: compare cells with several seeds."
        )
    gap = statistics.fmean(first) - statistics.fmean(second)
    if _is_one_number([*first, *second]):
        return 1.0, gap, gap
    level = [_is_one_number(values) for values in (first, second)]
    if all(level):
        return 0.0, gap, gap
    if not any(level):
        test = ttest_ind(first, second, equal_var=False)
    elif level[1]:
        test = ttest_1samp([x - statistics.fmean(second) for x in first], 0)
    else:
        test = ttest_1samp([statistics.fmean(first) - x for x in second], 0)
    low, high = test.confidence_interval(1 - LEVEL)
    return float(test.pvalue), float(low), float(high)


def _is_one_number(values: Sequence[float]) -> bool:
    """Equal up to rounding: no spread that a test could be made of."""
    return max(values) - min(values) <= 1e-6 * max(abs(max(values)), abs(min(values)))


def correct_by_holm(ps: Sequence[float]) -> list[float]:
    """Holm's corrected p of each of several tests, in their order.

    Source: Holm, A simple sequentially rejective multiple test procedure (1979).
    """
    corrected, worst = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        worst = max(worst, min(1.0, (len(ps) - rank) * ps[place]))
        corrected[place] = worst
    return corrected


def judge_values(
    first: Sequence[float], second: Sequence[float], num_planned: int
) -> tuple[float, float, float, int]:
    """Has the first more than the second?  One question of ``num_planned``.

    Args:
        first, second: a value of each seed.
        num_planned: how many tests were planned; p is multiplied by it, up to 1.

    Returns:
        The ends of the 95 % interval of the difference of the means (Welch's, for this
        question alone), the corrected p of the two-sided test, and the verdict: 1 for
        more, -1 for less, 0 where no difference is found.

    Raises:
        ValueError: fewer than two values on a side.
    """
    p, low, high = _welch(first, second)
    p = min(1.0, num_planned * p)
    sign = 1 if low + high > 0 else -1
    return low, high, p, sign * (p < LEVEL)


@dataclass(frozen=True)
class Test:
    """One planned comparison, two-sided.

    Attributes:
        first: what is compared.
        second: what it is compared with, "untrained" or a cell.
        figure: on which figure.
        when: at which moment of a run: "chosen" or "end".
        difference: mean of the first minus that of the second.
        low: where the 95 % interval of what is tested begins, uncorrected: of the
            difference, or of a factor's logarithm.
        high: where it ends.
        p: uncorrected.
        p_holm: corrected with all planned tests of its kind.
    """

    first: str
    second: str
    figure: str
    when: str
    difference: float
    p: float
    p_holm: float = math.nan
    low: float = math.nan
    high: float = math.nan

    __test__ = False  # no test of pytest's

    @property
    def effect(self) -> str:
        """With its interval: "+1.9 points (−0.8 to +4.6)", "×4.2 (3.6 to 4.9)"."""
        ends = (self.low + self.high) / 2, self.low, self.high
        if self.figure in FACTORS:
            middle, low, high = (f"{math.exp(end):.2f}" for end in ends)
            return f"×{middle} ({low} to {high})"
        share = _is_share(self.figure)
        texts = [f"{100 * end:+.1f}" if share else f"{end:+.3f}" for end in ends]
        middle, low, high = (text.replace("-", "−") for text in texts)
        return f"{middle}{' points' * share} ({low} to {high})"


def _is_share(figure: str) -> bool:
    return figure == "accuracy" or figure.startswith("pass@")


def compare_values(
    first: tuple[str, Sequence[float]],
    second: tuple[str, Sequence[float]],
    figure: str,
    when: str = "end",
) -> Test:
    """Welch's test of two samples, each with its name; uncorrected."""
    (a, x), (b, y) = first, second
    difference = statistics.fmean(x) - statistics.fmean(y)
    if figure in FACTORS:  # a factor, not a difference
        x, y = ([math.log(value) for value in values] for values in (x, y))
    p, low, high = _welch(x, y)
    return Test(a, b, figure, when, difference, p, low=low, high=high)


def corrected(tests: Sequence[Test]) -> list[Test]:
    """The tests with Holm's p, corrected together."""
    ps = correct_by_holm([test.p for test in tests])
    return [dataclasses.replace(t, p_holm=p) for t, p in zip(tests, ps, strict=True)]


def judge_more(tests: Sequence[Test]) -> tuple[str, Test | None]:
    """What corrected tests say of "the first is more than every second".

    Returns:
        ``HOLDS`` if every test says so; ``FAILS`` if one says the opposite;
        ``NO_DIFFERENCE`` if neither; ``NOT_MEASURED`` without tests.  And the test
        that decides: the weakest, the clearest opposite, the lowest difference.
    """
    against = [t for t in tests if t.difference < 0 and t.p_holm < LEVEL]
    short = [t for t in tests if not t.p_holm < LEVEL]
    if not tests:
        return NOT_MEASURED, None
    if against:
        return FAILS, min(against, key=lambda test: test.p_holm)
    if short:
        return NO_DIFFERENCE, min(short, key=lambda test: test.difference)
    return HOLDS, max(tests, key=lambda test: test.p_holm)


def interval_table(
    caption: str, head: Sequence[str], rows: Mapping[str, Sequence[Test]]
) -> Table:
    """Tests with their 95 % intervals drawn, those of one figure on one axis.

    Green and orange, with a star: more and less, by the corrected test.  The dashed
    line is no difference: 0, or of a factor 1.  That shares are in points is said in
    the caption, once.
    """
    axes: dict[str, tuple[float, float]] = {}
    for test in (test for row in rows.values() for test in row):
        low, high = axes.get(test.figure, (0.0, 0.0))
        axes[test.figure] = min(low, test.low), max(high, test.high)
    cells = {
        name: [_gauge(test, axes[test.figure]) for test in row]
        for name, row in rows.items()
    }
    shares = ", ".join(filter(_is_share, axes))
    caption += f"; {shares} in points" * bool(shares)
    return Table(caption, head, [[name, *row] for name, row in cells.items()])


def _gauge(test: Test, axis: tuple[float, float]) -> Gauge:
    verdict, _ = judge_more([test])
    return Gauge(
        test.effect.replace(" points", "") + " *" * (verdict != NO_DIFFERENCE),
        axis,
        at=(test.low + test.high) / 2,
        span=(test.low, test.high),
        level=0.0,
        color=COLORS[verdict],
    )


def compare_runs_by_name(
    groups: Mapping[str, Sequence[RunResult]], pairs: Iterable[tuple[str, str, str]]
) -> list[Test]:
    """The ends of runs compared: (name, other name, figure) each; corrected."""

    def values(name: str, figure: str) -> tuple[str, list[float]]:
        return name, [metric_of(run, figure) for run in groups[name]]

    return corrected(
        [compare_values(values(a, f), values(b, f), f) for a, b, f in pairs]
    )

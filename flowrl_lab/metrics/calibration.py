"""Does the learned log Z say how hard a prompt is?  And do two rankings agree?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from flowrl_lab._validation import (
    LARGEST,
    bad_input,
    check_count,
    check_finite,
    check_items,
    check_number,
    check_readable,
    check_tensor,
)
from flowrl_lab.metrics._checks import check_probs
from flowrl_lab.tokens import at_least_float32

# What a difference is divided by at least: β may be too small for 1 - e^-β.
TINY = 1e-30

__all__ = [
    "LogZCalibration",
    "ReliabilityBin",
    "calibrate_log_z",
    "calibration_error",
    "rank_correlation",
    "reliability",
    "stated_pass_rate",
]


@dataclass(frozen=True)
class LogZCalibration:
    """How the learned log Z of several prompts relates to the exact one.

    Attributes:
        slope: of the least-squares line learned = intercept + slope · exact; 1 is
            right, 0 means that Z_φ says the same of every prompt.  NaN where the
            exact values are all equal.
        intercept: of that line, nats.
        correlation: of the two; NaN where either is constant.
        bias: mean of learned - exact, nats.
        rmse: root mean square of learned - exact, nats.
        count: prompts.
    """

    slope: float
    intercept: float
    correlation: float
    bias: float
    rmse: float
    count: int


def calibrate_log_z(
    learned: Float[Tensor, " P"], exact: Float[Tensor, " P"]
) -> LogZCalibration:
    """Compare the learned log Z with the exact one, over prompts.

    A learned log Z that is off by a constant costs nothing on-policy (it is a
    baseline), so the slope and the correlation say what the error cannot.

    Args:
        learned: what Z_φ says of each prompt, nats.
        exact: the exact log Z of the same, nats.

    Returns:
        Slope, intercept, correlation, bias and error.

    Raises:
        ValueError: shapes that differ, no prompt, NaN or infinity.
    """
    check_tensor("exact", exact, (None,), "[P]: one per prompt")
    check_tensor("learned", learned, exact, "[P]: one per prompt")
    check_readable("exact", exact)
    check_finite({"learned": learned, "exact": exact})
    x, y = exact.detach().cpu().double(), learned.detach().cpu().double()
    x_mean, y_mean = x.mean(), y.mean()
    spread_x, spread_y = (x - x_mean).square().sum(), (y - y_mean).square().sum()
    together = ((x - x_mean) * (y - y_mean)).sum()
    slope = _ratio(together, spread_x)
    return LogZCalibration(
        slope=slope,
        intercept=y_mean.item() - slope * x_mean.item(),
        correlation=_ratio(together, (spread_x * spread_y).sqrt()),
        bias=(y - x).mean().item(),
        rmse=(y - x).square().mean().sqrt().item(),
        count=len(x),
    )


def _ratio(top: Tensor, bottom: Tensor) -> float:
    """NaN where the bottom is 0 but for rounding."""
    return (top / bottom).item() if bottom.item() > 1e-12 else math.nan


def stated_pass_rate(
    log_z: Float[Tensor, "*prompts"], *, reward_scale: float
) -> Float[Tensor, "*prompts"]:
    """The reference's pass rate that a log Z implies, for a reward of 0 or 1.

        Z = 1 - a + a e^β   ⇔   a = (Z - 1) / (e^β - 1)

    So log Z is the difficulty of a prompt in other units.  Values that no pass rate
    gives are cut to 0 and 1.

    Args:
        log_z: nats.
        reward_scale: β, above 0.

    Returns:
        Between 0 and 1.

    Raises:
        ValueError: NaN or infinity, a reward_scale that is not above 0.
    """
    check_tensor("log_z", log_z, (...,), "[...]: log Z of prompts")
    check_finite({"log_z": log_z})
    check_number("reward_scale", reward_scale, above=True, high=LARGEST)
    # (e^z - 1) / (e^β - 1) with e^-β taken out of both, and cut off at z = β, so that
    # nothing overflows.
    log_z = at_least_float32(log_z)
    top = torch.exp((log_z - reward_scale).clamp(max=0.0)) - math.exp(-reward_scale)
    return (top / max(-math.expm1(-reward_scale), TINY)).clamp(0.0, 1.0)


@dataclass(frozen=True)
class ReliabilityBin:
    """Prompts whose stated pass rates lie close together.

    Attributes:
        low: where the range of stated rates begins; it belongs to it.
        high: where it ends.
        stated: their mean.
        observed: mean pass rate of the same prompts.
        count: how many prompts.
    """

    low: float
    high: float
    stated: float
    observed: float
    count: int


def reliability(
    stated: Float[Tensor, " P"], observed: Float[Tensor, " P"], *, bins: int = 5
) -> tuple[ReliabilityBin, ...]:
    """Of the prompts said to pass at about s, how many do?

    Args:
        stated: pass rate that was stated of each prompt.
        observed: its true or measured pass rate.
        bins: equally wide ranges from 0 to 1, at most 10,000.

    Returns:
        The bins that hold a prompt, in rising order; well calibrated is
        ``stated`` = ``observed`` in each.

    Raises:
        ValueError: shapes that differ, values outside [0, 1], bins below 1.
    """
    check_count("bins", bins, most=10_000)
    check_tensor("observed", observed, (None,), "[P]: one per prompt")
    check_tensor("stated", stated, observed, "[P]: one per prompt")
    check_readable("stated", stated)
    for name, values in (("stated", stated), ("observed", observed)):
        check_probs(name, values)
    place = (stated.double() * bins).long().clamp(0, bins - 1)
    found = []
    for number in place.unique().tolist():
        inside = place == number
        found.append(
            ReliabilityBin(
                low=number / bins,
                high=(number + 1) / bins,
                stated=stated[inside].mean().item(),
                observed=observed[inside].mean().item(),
                count=int(inside.sum()),
            )
        )
    return tuple(found)


def calibration_error(bins: tuple[ReliabilityBin, ...]) -> float:
    """Mean distance of stated from observed over the prompts of all bins.

        Σ_b n_b |stated_b - observed_b| / Σ_b n_b

    Args:
        bins: as ``reliability`` gives them.

    Returns:
        Between 0 (reliable) and 1.

    Raises:
        ValueError: no bin.
    """
    check_items("bins", bins, ReliabilityBin, "bins, as reliability gives them")
    for one in bins:
        check_count("bins.count", one.count)
        check_number("bins.stated", one.stated, low=-1e-6, high=1 + 1e-6)
        check_number("bins.observed", one.observed, low=-1e-6, high=1 + 1e-6)
    gaps = (b.count * abs(b.stated - b.observed) for b in bins)
    return math.fsum(gaps) / sum(b.count for b in bins)


def rank_correlation(x: Float[Tensor, " N"], y: Float[Tensor, " N"]) -> float:
    """Do x and y put things in the same order?

    The correlation of the ranks; equal values share the mean of their ranks.

    Source: Spearman (1904).

    Args:
        x, y: one value of each thing; at least two.

    Returns:
        1 for the same order, -1 for the reverse; NaN where x or y is constant.

    Raises:
        ValueError: shapes that differ, fewer than two values, NaN.
    """
    check_tensor("x", x, (None,), "[N]: one per thing")
    check_tensor("y", y, x, "[N]: one per thing")
    check_readable("x", x)
    if len(x) < 2 or bool(x.isnan().any() | y.isnan().any()):
        raise bad_input(
            "x",
            f"and y have {len(x)} values, or NaN",
            "at least 2 numbers each",
            "rank what has a value",
        )
    return calibrate_log_z(_ranks(x), _ranks(y)).correlation


def _ranks(values: Tensor) -> Tensor:
    _, place, count = values.unique(return_inverse=True, return_counts=True)
    return (count.cumsum(0).double() - (count - 1) / 2)[place]

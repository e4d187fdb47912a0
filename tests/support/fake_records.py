"""Hand-made training records: a run that matches the target, others that do not."""

from __future__ import annotations

import math

import numpy as np

from flowrl_lab.types import ExactReport, Snapshot, StepRecord


def make_snapshot(share: float, *, size: int = 6, landscape: bool = False) -> Snapshot:
    """``share`` = 1 is the target itself, 0 puts everything on one answer."""
    target = np.arange(1.0, size + 1)
    target /= target.sum()
    one = np.zeros(size)
    one[-1] = 1.0
    probs = share * target + (1 - share) * one
    labels = tuple(str(i) if landscape else f"{i}*5<9 & {i}" for i in range(size))
    return Snapshot("24!37:", labels, probs, target, np.ones(size))


def make_exact(accuracy: float, kl: float) -> ExactReport:
    return ExactReport(
        accuracy=accuracy,
        pass_at_k={1: accuracy, 8: min(1.0, 2 * accuracy)},
        distinct_64=5.0,
        effective_answers=4.0,
        kl_policy_target=kl,
        kl_target_policy=2 * kl,
        total_variation=0.25,
        modes_covered=0.5,
        lost_prompts=0.0,
        log_z_exact=1.5,
        log_z_learned=math.nan,
        log_z_rmse=math.nan,
        num_prompts=3,
    )


def make_record(
    step: int,
    *,
    run: str = "flowrl",
    algorithm: str = "flowrl",
    seed: int = 0,
    steps: int = 10,
    reward: float | None = None,
    exact: ExactReport | None = None,
    snapshot: Snapshot | None = None,
) -> StepRecord:
    return StepRecord(
        run=run,
        algorithm=algorithm,
        seed=seed,
        step=step,
        steps=steps,
        reward=step / steps if reward is None else reward,
        loss=1.0,
        entropy=0.5,
        kl_to_reference=0.1,
        log_z=math.nan,
        residual_mean=math.nan,
        residual_rms=math.nan,
        clip_fraction=0.0,
        grad_norm=1.0,
        zero_variance_groups=0.0,
        all_wrong_groups=0.0,
        tokens=64 * step,
        seconds=0.5 * step,
        exact=exact,
        snapshot=snapshot,
    )


def make_race(
    runs: tuple[str, ...] = ("flowrl", "grpo"),
    *,
    steps: int = 10,
    size: int = 6,
    landscape: bool = False,
) -> list[StepRecord]:
    """Runs in turn, evaluated at every other step; only "flowrl" matches."""
    records = []
    for step in range(steps + 1):
        for number, run in enumerate(runs):
            share = 1.0 if run == "flowrl" else 0.5
            look = step % 2 == 0
            records.append(
                make_record(
                    step,
                    run=run,
                    algorithm=run,
                    steps=steps,
                    reward=step / steps - 0.05 * number,
                    exact=make_exact(0.5, 1.0 / (1 + step)) if look else None,
                    snapshot=make_snapshot(share, size=size, landscape=landscape)
                    if look
                    else None,
                )
            )
    return records

"""Turn a training step into numbers, and records into JSON and back."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from flowrl_lab.losses import clip_fraction, share_outside
from flowrl_lab.training.step import Update
from flowrl_lab.types import ExactReport, Rollout, StepRecord

__all__ = [
    "make_record",
    "measure",
    "nothing_measured",
    "record_from_dict",
    "record_to_dict",
]

# The numbers of a step: what ``StepRecord`` lists from the reward to the groups.
MEASURED = tuple(
    field.name
    for field in dataclasses.fields(StepRecord)
    if field.type == "float" and field.name != "seconds"
)


def nothing_measured() -> dict[str, float]:
    """The numbers of step 0: there is a policy, but nothing was sampled yet."""
    return dict.fromkeys(MEASURED, float("nan"))


def make_record(run: str, step: int, steps: int, **known) -> StepRecord:
    """A record of a loop of your own, for ``LivePlot``; NaN where nothing is known.

    Args:
        run: its name in the legend.
        step: updates done so far; 0 is the policy before training.
        steps: updates that the loop will do.
        known: other fields of ``StepRecord``, such as ``reward`` or ``exact``.
    """
    blank = {"algorithm": run, "seed": 0, "tokens": 0, "seconds": float("nan")}
    facts = {**blank, **nothing_measured(), **known}
    return StepRecord(run=run, step=step, steps=steps, **facts)


@torch.no_grad()
def measure(rollout: Rollout, update: Update, config) -> dict[str, float]:
    """The measured fields of a StepRecord, brought to the CPU in one go."""
    groups = rollout.rewards.view(-1, rollout.num_generations)
    loss, parts = update.loss, update.parts
    missing = loss.new_tensor(float("nan"))
    residuals, log_z = (
        missing[None] if part is None else part
        for part in (parts.residuals, parts.log_z)
    )
    values = (
        groups.mean(),
        loss,
        update.entropy,
        (rollout.old_log_probs - rollout.ref_log_probs).sum(-1).mean(),
        log_z.mean(),
        residuals.mean(),
        residuals.square().mean().sqrt(),
        _clip_fraction(rollout, update, config),
        update.grad_norm,
        (groups.amax(-1) == groups.amin(-1)).float().mean(),
        (groups.amax(-1) <= 0).float().mean(),
    )
    flat = [torch.as_tensor(v).detach().float().to(loss.device) for v in values]
    return dict(zip(MEASURED, torch.stack(flat).tolist(), strict=True))


def _clip_fraction(rollout: Rollout, update: Update, config) -> Tensor:
    """FlowRL weighs whole sequences, the clipped policy losses tokens."""
    bounds = {"clip_low": config.clip_low, "clip_high": config.clip_high}
    if update.parts.ratios is not None:
        return share_outside(update.parts.ratios, **bounds)
    log_probs = update.output.log_probs
    return clip_fraction(
        log_probs, rollout.old_log_probs, rollout.completion_mask, **bounds
    )


def record_to_dict(record: StepRecord) -> dict:
    """A record as plain values (without its snapshot, which can be recomputed)."""
    return dataclasses.asdict(dataclasses.replace(record, snapshot=None))


def record_from_dict(fields: dict) -> StepRecord:
    """What ``record_to_dict`` gave, as a record again."""
    fields = dict(fields)
    if fields["exact"] is not None:
        exact = dict(fields["exact"])
        exact["pass_at_k"] = {int(k): v for k, v in exact["pass_at_k"].items()}
        fields["exact"] = ExactReport(**exact)
    floor = fields.get("floor", {})  # records of earlier versions have none
    fields["floor"] = {name: tuple(pair) for name, pair in floor.items()}
    fields["samples"] = tuple(tuple(sample) for sample in fields["samples"])
    return StepRecord(**fields)

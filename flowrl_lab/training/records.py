"""Turn a training step into numbers, and records into JSON and back."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from flowrl_lab.losses import clip_fraction
from flowrl_lab.training.algorithms import LossParts
from flowrl_lab.types import ExactReport, PolicyOutput, Rollout, StepRecord

__all__ = ["measure", "nothing_measured", "record_from_dict", "record_to_dict"]

MEASURED = (
    "reward", "loss", "entropy", "kl_to_reference", "log_z", "residual_mean",
    "residual_rms", "clip_fraction", "grad_norm", "zero_variance_groups",
    "all_wrong_groups",
)  # fmt: skip


def nothing_measured() -> dict[str, float]:
    """The numbers of step 0: there is a policy, but nothing was sampled yet."""
    return dict.fromkeys(MEASURED, float("nan"))


@torch.no_grad()
def measure(
    rollout: Rollout,
    output: PolicyOutput,
    parts: LossParts,
    loss: Tensor,
    entropy: Tensor,
    grad_norm: Tensor,
    config,
) -> dict[str, float]:
    """The measured fields of a StepRecord, brought to the CPU in one go."""
    groups = rollout.rewards.view(-1, rollout.num_generations)
    missing = loss.new_tensor(float("nan"))
    residuals, log_z = (
        missing[None] if part is None else part
        for part in (parts.residuals, parts.log_z)
    )
    values = (
        groups.mean(),
        loss,
        entropy,
        (rollout.old_log_probs - rollout.ref_log_probs).sum(-1).mean(),
        log_z.mean(),
        residuals.mean(),
        residuals.square().mean().sqrt(),
        clip_fraction(
            output.log_probs, rollout.old_log_probs, rollout.completion_mask,
            clip_low=config.clip_low, clip_high=config.clip_high,
            # FlowRL weighs whole sequences, the clipped policy losses tokens.
            level="sequence" if config.algorithm == "flowrl" else "token",
        ),
        grad_norm,
        (groups.amax(-1) == groups.amin(-1)).float().mean(),
        (groups.amax(-1) <= 0).float().mean(),
    )  # fmt: skip
    flat = [torch.as_tensor(v).detach().float().to(loss.device) for v in values]
    return dict(zip(MEASURED, torch.stack(flat).tolist(), strict=True))


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
    fields["samples"] = tuple(tuple(sample) for sample in fields["samples"])
    return StepRecord(**fields)

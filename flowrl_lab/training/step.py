"""One training step, in view: what notebook 7 assembles is what trains."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowrl_lab.training.algorithms import Algorithm
from flowrl_lab.training.batch import Batch, LossParts
from flowrl_lab.training.config import ExperimentConfig
from flowrl_lab.types import PolicyOutput

__all__ = ["BadUpdateError", "Update", "make_optimizer", "training_step"]


@dataclass(frozen=True)
class Update:
    """What one step found, still as tensors.

    Attributes:
        output: the policy's scores of the batch before the update.
        parts: the loss, and what it is made of.
        loss: the scalar that was minimised, an entropy bonus included.
        entropy: mean over tokens of the next-token entropy, nats.
        grad_norm: of the policy's gradient before clipping.
    """

    output: PolicyOutput
    parts: LossParts
    loss: Tensor
    entropy: Tensor
    grad_norm: Tensor


class BadUpdateError(FloatingPointError):
    """An update that would do harm; nothing was changed.

    Attributes:
        of_gradient: the loss was well, its gradient was not.
    """

    of_gradient = False


def training_step(policy, optimizer, batch: Batch, algorithm: Algorithm) -> Update:
    """One update of ``policy``, and of the log Z or critic beside it, on a batch.

    Raises:
        BadUpdateError: loss or gradient is not finite, or a residual has exploded.
    """
    # The rollout: sampled completions, their rewards, log π_old and log π_ref.
    rollout, config = batch.rollout, algorithm.config
    mask = rollout.completion_mask

    # What the policy says of the same tokens now: log π, with its gradient.
    now = policy.evaluate(
        rollout.prompts, rollout.completion_ids, mask, temperature=config.temperature
    )
    # log Z of every prompt (FlowRL), then the loss.
    log_z = algorithm.log_z(batch, now) if algorithm.log_z else None
    parts = algorithm.loss(batch, now, log_z)
    entropy = now.entropies.sum() / mask.sum()
    loss = parts.loss
    if config.entropy_coef:
        loss = loss - config.entropy_coef * entropy
    _check_finite("loss", loss, config)
    _check_residuals(parts.residuals, config)

    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    weights = optimizer.param_groups[0]["params"]  # the policy's own
    grad_norm = nn.utils.clip_grad_norm_(weights, config.max_grad_norm)
    _check_finite("gradient norm", grad_norm, config)
    optimizer.step()
    return Update(now, parts, loss, entropy, grad_norm)


def make_optimizer(
    policy, modules: nn.ModuleDict, config: ExperimentConfig
) -> torch.optim.Optimizer:
    """AdamW over the policy and its riders, each with its own peak rate."""
    rates = {
        "log_z": config.log_z_learning_rate,
        "critic": config.value_learning_rate,
    }
    groups = [{"params": policy.trainable_parameters(), "lr": config.learning_rate}]
    groups += [
        {"params": list(module.parameters()), "lr": rates[name]}
        for name, module in modules.items()
    ]
    for group in groups:
        group["peak_lr"] = group["lr"]
    # fused: many small tensors in one operation
    return torch.optim.AdamW(groups, weight_decay=0.0, fused=True)


def _check_finite(what: str, value: Tensor, config: ExperimentConfig) -> None:
    if not torch.isfinite(value):
        said = f"the {what} of run {config.run_name!r} is {value.item()}"
        error = BadUpdateError(said)
        error.of_gradient = what.startswith("gradient")
        raise error


def _check_residuals(residuals: Tensor | None, config: ExperimentConfig) -> None:
    """An exploded residual is finite, but its square would move everything."""
    if residuals is None or not config.max_residual:
        return
    largest = residuals.abs().max().item()
    if largest > config.max_residual:
        raise BadUpdateError(
            f"a residual of run {config.run_name!r} is {largest:.1f} nats, above "
            f"max_residual ({config.max_residual:g}),"
        )

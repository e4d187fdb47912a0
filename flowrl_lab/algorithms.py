"""The algorithms side by side: one row of ``ALGORITHMS`` each.

An algorithm turns a rollout and the policy's fresh log-probs into a scalar to
minimise.  The formulas live in ``losses`` and ``advantages``; this module only
says which pieces each algorithm puts together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowrl_lab import advantages, losses
from flowrl_lab.partition import vargrad_log_z
from flowrl_lab.tokens import masked_sum
from flowrl_lab.types import PolicyOutput, Rollout

__all__ = ["ALGORITHMS", "Algorithm", "Batch", "LossParts", "shaped_rewards"]


@dataclass(frozen=True)
class Batch:
    """A rollout with what is computed from it once, before its first update.

    Attributes:
        rollout: the sampled and scored completions.
        log_z_features: what log Z reads, one row a prompt; None without Z_φ.
        advantages: [B, T] or [B]; None for the flow losses.
        old_values: [B, T] the critic's values before the update; None without.
        returns: [B, T] what the critic should say; None without.
    """

    rollout: Rollout
    log_z_features: Tensor | None = None
    advantages: Tensor | None = None
    old_values: Tensor | None = None
    returns: Tensor | None = None


@dataclass(frozen=True)
class LossParts:
    """A loss and what the flow losses can say about it.

    Attributes:
        loss: the scalar to minimise.
        residuals: [B] detached, nats; None where the loss has none.
        log_z: [P] detached, nats; None where nothing estimates it.
    """

    loss: Tensor
    residuals: Tensor | None = None
    log_z: Tensor | None = None


@dataclass(frozen=True)
class Algorithm:
    """How one algorithm learns.

    Attributes:
        loss: (batch, output, modules, config) -> LossParts.
        advantages: (rollout, config) -> [B, T] or [B]; None for flow losses.
        uses_log_z: it trains a log-partition module.
        uses_values: it trains a value head.
    """

    loss: Callable[..., LossParts]
    advantages: Callable[..., Tensor] | None = None
    uses_log_z: bool = False
    uses_values: bool = False


def shaped_rewards(rollout: Rollout, config) -> Tensor:
    """The rewards as the flow losses see them: raw, or z-scored in their group."""
    if config.reward_form == "raw":
        return rollout.rewards
    return advantages.group_normalized(rollout.rewards, rollout.num_generations)


def _flowrl(batch: Batch, output: PolicyOutput, modules: nn.ModuleDict, config):
    rollout = batch.rollout
    prompt_log_z = modules["log_z"](batch.log_z_features)
    log_z = prompt_log_z.repeat_interleave(rollout.num_generations)
    shared = (rollout.ref_log_probs, shaped_rewards(rollout, config))
    mask = rollout.completion_mask
    form = {
        "reward_scale": config.reward_scale,
        "length_normalize": config.length_normalize,
    }
    loss = losses.flowrl_loss(
        log_z, output.log_probs, rollout.old_log_probs, *shared, mask,
        importance=config.importance, clip_low=config.clip_low,
        clip_high=config.clip_high, **form,
    )  # fmt: skip
    with torch.no_grad():
        residuals = losses.flowrl_residuals(
            log_z, output.log_probs, *shared, mask, **form
        )
    return LossParts(loss, residuals, prompt_log_z.detach())


def _vargrad(batch: Batch, output: PolicyOutput, _modules: nn.ModuleDict, config):
    rollout = batch.rollout
    policy, reference = (
        masked_sum(values, rollout.completion_mask)
        for values in (output.log_probs, rollout.ref_log_probs)
    )
    rewards = shaped_rewards(rollout, config)
    loss = losses.vargrad_loss(
        policy, reference, rewards, rollout.num_generations,
        reward_scale=config.reward_scale,
    )  # fmt: skip
    with torch.no_grad():
        log_z = vargrad_log_z(
            policy, reference, rewards, rollout.num_generations,
            reward_scale=config.reward_scale,
        )  # fmt: skip
        scores = policy - reference - config.reward_scale * rewards
        residuals = log_z.repeat_interleave(rollout.num_generations) + scores
    return LossParts(loss, residuals, log_z)


def _kl_reinforce(batch: Batch, output: PolicyOutput, _modules: nn.ModuleDict, config):
    rollout = batch.rollout
    loss = losses.kl_reinforce_loss(
        masked_sum(output.log_probs, rollout.completion_mask),
        masked_sum(rollout.ref_log_probs, rollout.completion_mask),
        rollout.rewards,
        rollout.num_generations,
        kl_coef=config.kl_coef,
    )
    return LossParts(loss)


def _clipped(loss_function: Callable[..., Tensor]):
    """GRPO and REINFORCE++ share their arguments."""

    def loss(batch: Batch, output: PolicyOutput, _modules: nn.ModuleDict, config):
        rollout = batch.rollout
        value = loss_function(
            output.log_probs,
            rollout.old_log_probs,
            batch.advantages,
            rollout.completion_mask,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
            ref_log_probs=rollout.ref_log_probs,
            kl_coef=config.kl_coef,
        )
        return LossParts(value)

    return loss


def _ppo(batch: Batch, output: PolicyOutput, modules: nn.ModuleDict, config):
    rollout = batch.rollout
    loss = losses.ppo_loss(
        output.log_probs,
        rollout.old_log_probs,
        batch.advantages,
        rollout.completion_mask,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        values=modules["critic"](output.states),
        old_values=batch.old_values,
        returns=batch.returns,
    )
    return LossParts(loss)


def _grpo_advantages(rollout: Rollout, _config) -> Tensor:
    return advantages.group_normalized(rollout.rewards, rollout.num_generations)


def _reinforce_pp_advantages(rollout: Rollout, _config) -> Tensor:
    return advantages.reinforce_pp_advantages(rollout.rewards, rollout.completion_mask)


ALGORITHMS: dict[str, Algorithm] = {
    "reinforce_pp": Algorithm(
        _clipped(losses.reinforce_pp_loss), _reinforce_pp_advantages
    ),
    "ppo": Algorithm(_ppo, uses_values=True),
    "grpo": Algorithm(_clipped(losses.grpo_loss), _grpo_advantages),
    "flowrl": Algorithm(_flowrl, uses_log_z=True),
    "vargrad": Algorithm(_vargrad),
    "kl_reinforce": Algorithm(_kl_reinforce),
}

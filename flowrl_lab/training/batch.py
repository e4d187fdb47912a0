"""What a step works on: a rollout, and what is computed from it once."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from flowrl_lab.advantages import group_normalized
from flowrl_lab.types import Rollout

__all__ = ["Batch", "LossParts", "shaped_rewards"]


@dataclass(frozen=True)
class Batch:
    """A rollout with what is computed from it once, before its first update.

    Attributes:
        rollout: the sampled and scored completions.
        rewards: [B] as the flow losses see them; see ``shaped_rewards``.
        log_z_input: what log Z is read from, one row a prompt; see ``LogZ.prepare``.
        advantages: [B, T] or [B]; None for the flow losses.
        old_values: [B, T] the critic's values before the update; None without.
        returns: [B, T] what the critic should say; None without.
    """

    rollout: Rollout
    rewards: Tensor
    log_z_input: Tensor | None = None
    advantages: Tensor | None = None
    old_values: Tensor | None = None
    returns: Tensor | None = None


@dataclass(frozen=True)
class LossParts:
    """A loss and what it can say about itself.

    Attributes:
        loss: the scalar to minimise.
        residuals: [B] detached, nats; None where the loss has none.
        log_z: [P] detached, nats; None where nothing estimates it.
        ratios: [B] importance ratios of whole sequences, detached; None where the
            loss weighs tokens, or nothing.
    """

    loss: Tensor
    residuals: Tensor | None = None
    log_z: Tensor | None = None
    ratios: Tensor | None = None


def shaped_rewards(rollout: Rollout, config) -> Tensor:
    """The rewards as the flow losses see them: raw, or z-scored in their group."""
    if config.reward_form == "raw":
        return rollout.rewards
    return group_normalized(rollout.rewards, rollout.num_generations)

"""Library losses under the arguments that assignment 2 asks for.

The visible check of a student's own test runs the test on these.
"""

from __future__ import annotations

from torch import Tensor

from flowrl_lab.losses import flowrl_loss, grpo_loss

__all__ = ["clipped_loss", "matching_loss"]


def matching_loss(
    log_z: Tensor,
    log_probs: Tensor,
    old_log_probs: Tensor,
    ref_log_probs: Tensor,
    rewards: Tensor,
    mask: Tensor,
    reward_scale: float,
    clip_low: float,
    clip_high: float,
) -> Tensor:
    """``losses.flowrl_loss`` in the paper's form, with clipped weights."""
    return flowrl_loss(
        log_z,
        log_probs,
        old_log_probs,
        ref_log_probs,
        rewards,
        mask,
        reward_scale=reward_scale,
        clip_low=clip_low,
        clip_high=clip_high,
    )


def clipped_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    ref_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
    kl_coef: float,
) -> Tensor:
    """``losses.grpo_loss`` with its penalty."""
    return grpo_loss(
        log_probs,
        old_log_probs,
        advantages,
        mask,
        clip_low=clip_low,
        clip_high=clip_high,
        ref_log_probs=ref_log_probs,
        kl_coef=kl_coef,
    )

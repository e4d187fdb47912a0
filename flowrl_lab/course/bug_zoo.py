"""Losses that all claim to be Eq. 6 of the paper; most of them are not.

Each is short, runs, trains, and gives 196.875 on the first step, as it should.
Notebook 6 finds out which are wrong by looking at what they *do*.

Source: FlowRL (arXiv 2509.15207) Eq. 6 and 7, with clipped weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowrl_lab._validation import bad_input
from flowrl_lab.losses import flowrl_loss

__all__ = ["ZOO", "ProbeBatch", "in_a_run", "make_probe_batch", "passes_probes"]


class ProbeBatch(NamedTuple):
    """The six tensors that a loss takes, in its order."""

    log_z: Float[Tensor, " B"]
    log_probs: Float[Tensor, "B T"]
    old_log_probs: Float[Tensor, "B T"]
    ref_log_probs: Float[Tensor, "B T"]
    rewards: Float[Tensor, " B"]
    completion_mask: Bool[Tensor, "B T"]


def make_probe_batch(seed: int = 0) -> ProbeBatch:
    """A batch on which nothing is zero by accident and no two rows are alike.

    Four sequences of 1 to 4 tokens, of two prompts with different log Z; the policy
    has moved away from the sampler and from the reference.  float64.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    lengths = torch.tensor([1, 3, 2, 4])
    log_probs = -0.5 - draw(4, 4)
    return ProbeBatch(
        log_z=torch.tensor([0.5, 0.5, -1.0, -1.0], dtype=torch.float64),
        log_probs=log_probs,
        old_log_probs=log_probs + draw(4, 4) - 0.5,
        ref_log_probs=-0.5 - draw(4, 4),
        rewards=draw(4) - 0.5,
        completion_mask=torch.arange(4) < lengths.unsqueeze(1),
    )


# The animals say nothing about themselves, and share no code: each is to be read, and
# found out, as if somebody had sent it in.  They take the tensors of a ``ProbeBatch``.


def adder(*batch, reward_scale=15.0, clip_low=0.2, clip_high=0.2):
    log_z, log_probs, old_log_probs, ref_log_probs, rewards, completion_mask = batch
    lengths = completion_mask.sum(1)
    gained = (log_probs - ref_log_probs).masked_fill(~completion_mask, 0).sum(1)
    moved = (log_probs - old_log_probs).masked_fill(~completion_mask, 0).sum(1)
    weights = moved.exp().detach().clamp(1 - clip_low, 1 + clip_high)
    residuals = log_z + gained / lengths - reward_scale * rewards
    return (weights * residuals**2).mean()


def bat(*batch, reward_scale=15.0, clip_low=0.2, clip_high=0.2):
    log_z, log_probs, old_log_probs, ref_log_probs, rewards, completion_mask = batch
    lengths = completion_mask.sum(1)
    gained = (log_probs - ref_log_probs).masked_fill(~completion_mask, 0).sum(1)
    moved = (log_probs - old_log_probs).masked_fill(~completion_mask, 0).sum(1)
    ratio = moved.exp().detach()
    weights = ratio.clamp(1 - clip_low, 1 + clip_high)  # noqa: F841 - the bug
    residuals = log_z + gained / lengths - reward_scale * rewards
    return (ratio * residuals**2).mean()


def crow(*batch, reward_scale=15.0, clip_low=0.2, clip_high=0.2):
    log_z, log_probs, old_log_probs, ref_log_probs, rewards, completion_mask = batch
    lengths = completion_mask.sum(1)
    gained = (log_probs - ref_log_probs).masked_fill(~completion_mask, 0).sum(1)
    moved = (log_probs - old_log_probs).masked_fill(~completion_mask, 0).sum(1)
    weights = moved.exp().clamp(1 - clip_low, 1 + clip_high)
    residuals = log_z + gained / lengths - reward_scale * rewards
    return (weights * residuals**2).mean()


def dingo(*batch, reward_scale=15.0, clip_low=0.2, clip_high=0.2):
    log_z, log_probs, old_log_probs, ref_log_probs, rewards, completion_mask = batch
    gained = (log_probs - ref_log_probs).masked_fill(~completion_mask, 0).mean(1)
    moved = (log_probs - old_log_probs).masked_fill(~completion_mask, 0).sum(1)
    weights = moved.exp().detach().clamp(1 - clip_low, 1 + clip_high)
    residuals = log_z + gained - reward_scale * rewards
    return (weights * residuals**2).mean()


def eel(*batch, reward_scale=15.0, clip_low=0.2, clip_high=0.2):
    log_z, log_probs, old, ref, rewards, mask = batch
    gained = (log_probs - ref).masked_fill(~mask, 0).sum(1)
    moved = (log_probs - old).masked_fill(~mask, 0).sum(1)
    weights = moved.exp().detach().clamp(1 - clip_low, 1 + clip_high)
    log_z = log_z.unsqueeze(-1)  # as it comes out of a linear layer
    residuals = log_z + gained / mask.sum(1) - reward_scale * rewards
    return (weights * residuals**2).mean()


def fox(*batch, reward_scale=15.0, clip_low=0.2, clip_high=0.2):
    log_z, log_probs, old_log_probs, ref_log_probs, rewards, completion_mask = batch
    share = completion_mask / completion_mask.sum(1, keepdim=True)
    difference = torch.where(completion_mask, ref_log_probs - log_probs, 0)
    moved = torch.where(completion_mask, old_log_probs - log_probs, 0).sum(1)
    weights = 1 / moved.exp().clamp(1 / (1 + clip_high), 1 / (1 - clip_low))
    deficit = reward_scale * rewards + (share * difference).sum(1) - log_z
    return (deficit.square() * weights.detach()).sum() / len(rewards)


def gnu(*batch, reward_scale=15.0, clip_low=0.2, clip_high=0.2):
    log_z, log_probs, old_log_probs, ref_log_probs, rewards, completion_mask = batch
    lengths = completion_mask.sum(1)
    gained = (ref_log_probs - log_probs).masked_fill(~completion_mask, 0).sum(1)
    moved = (log_probs - old_log_probs).masked_fill(~completion_mask, 0).sum(1)
    weights = moved.exp().detach().clamp(1 - clip_low, 1 + clip_high)
    residuals = log_z + gained / lengths - reward_scale * rewards
    return (weights * residuals**2).mean()


def hare(*batch, reward_scale=15.0, clip_low=0.2, clip_high=0.2):
    log_z, log_probs, old_log_probs, ref_log_probs, rewards, completion_mask = batch
    lengths = completion_mask.sum(1)
    gained = (log_probs - ref_log_probs).masked_fill(~completion_mask, 0).sum(1)
    moved = (log_probs - old_log_probs).masked_fill(~completion_mask, 0).sum(1)
    weights = moved.exp().detach().clamp(1 - clip_low, 1 + clip_high)
    residuals = log_z.detach() + gained / lengths - reward_scale * rewards
    return (weights * residuals**2).mean()


ZOO: dict[str, Callable[..., Tensor]] = {
    loss.__name__: loss for loss in (adder, bat, crow, dingo, eel, fox, gnu, hare)
}


def passes_probes(loss) -> bool:
    """Whether ``loss`` does what Eq. 6 says: its value and both of its gradients.

    On batches that are padded, off-policy and have more than one log Z, it is
    compared with :func:`flowrl_lab.losses.flowrl_loss`.

    Args:
        loss: takes log_z, log_probs, old_log_probs, ref_log_probs, rewards and
            completion_mask, and returns a scalar.

    Returns:
        True if nothing tells the two apart.
    """
    for seed in range(3):
        found = []
        for function in (loss, flowrl_loss):
            log_z, log_probs, *rest = make_probe_batch(seed)
            log_z.requires_grad_(), log_probs.requires_grad_()
            value = function(log_z, log_probs, *rest)
            slopes = torch.autograd.grad(value, (log_z, log_probs), allow_unused=True)
            found.append((value, *slopes))
        for theirs, ours in zip(*found, strict=True):
            if theirs is None or not torch.allclose(theirs, ours):
                return False
    return True


def in_a_run(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """An animal of the zoo as a loss for ``Run(config, flowrl_loss=...)``.

    Raises:
        ValueError: when it is called for another form than the zoo has.
    """

    def flowrl_loss(*batch, importance, length_normalize, **settings):
        if importance != "clip" or not length_normalize:
            raise bad_input(
                "config",
                f"has importance={importance!r}, length_normalize={length_normalize}",
                "the form that the zoo claims to have: 'clip' and True",
                "set both in the config",
            )
        return loss(*batch, **settings)

    flowrl_loss.__qualname__ = f"in_a_run({loss.__name__})"
    return flowrl_loss

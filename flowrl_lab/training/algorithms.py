"""The algorithms side by side: one row of ``ALGORITHMS`` each.

An algorithm turns a rollout and the policy's fresh log-probs into a scalar to
minimise.  The formulas live in ``losses`` and ``advantages``; this module only
says which pieces each algorithm puts together.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowrl_lab import advantages, losses
from flowrl_lab._validation import bad_input
from flowrl_lab.partition import vargrad_log_z
from flowrl_lab.tokens import masked_sum
from flowrl_lab.types import PolicyOutput, Rollout

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "Batch",
    "LossParts",
    "flowrl_with",
    "shaped_rewards",
]


@dataclass(frozen=True)
class Batch:
    """A rollout with what is computed from it once, before its first update.

    Attributes:
        rollout: the sampled and scored completions.
        log_z_features: what log Z reads, one row a prompt; None without Z_φ.
        fixed_log_z: [P] a log Z that nothing learns; None where something does.
        advantages: [B, T] or [B]; None for the flow losses.
        old_values: [B, T] the critic's values before the update; None without.
        returns: [B, T] what the critic should say; None without.
    """

    rollout: Rollout
    log_z_features: Tensor | None = None
    fixed_log_z: Tensor | None = None
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
        uses_log_z: it needs a log Z, learned or not (``config.log_z``).
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


def flowrl_with(flowrl_loss: Callable[..., Tensor]) -> Algorithm:
    """FlowRL with a loss from outside in the place of ``losses.flowrl_loss``.

    Args:
        flowrl_loss: takes the arguments of ``losses.flowrl_loss`` under the same
            names, all but ``reduction``, and returns a scalar to minimise.

    Returns:
        The algorithm.  Residuals and log Z are measured as ever, whatever the loss.

    Raises:
        ValueError: it is no function, or takes other arguments; and, in the first
            step of a run, it returns no scalar or one that does not depend on π.
    """
    _check_signature(flowrl_loss)

    def loss(batch: Batch, output: PolicyOutput, modules: nn.ModuleDict, config):
        rollout = batch.rollout
        prompt_log_z = _prompt_log_z(batch, output, modules, config)
        log_z = prompt_log_z.repeat_interleave(rollout.num_generations)
        shared = (rollout.ref_log_probs, shaped_rewards(rollout, config))
        mask = rollout.completion_mask
        form = {
            "reward_scale": config.reward_scale,
            "length_normalize": config.length_normalize,
        }
        value = flowrl_loss(
            log_z, output.log_probs, rollout.old_log_probs, *shared, mask,
            importance=config.importance, clip_low=config.clip_low,
            clip_high=config.clip_high, **form,
        )  # fmt: skip
        if flowrl_loss is not losses.flowrl_loss:
            _check_value(flowrl_loss, value, output.log_probs)
        with torch.no_grad():
            residuals = losses.flowrl_residuals(
                log_z, output.log_probs, *shared, mask, **form
            )
        return LossParts(value, residuals, prompt_log_z.detach())

    return Algorithm(loss, uses_log_z=True)


def _prompt_log_z(
    batch: Batch, output: PolicyOutput, modules: nn.ModuleDict, config
) -> Tensor:
    """[P] the log Z of the batch's prompts, from where ``config.log_z`` says."""
    rollout = batch.rollout
    if config.log_z == "vargrad":
        with torch.no_grad():  # zero residuals, turned round, are the log Z they need
            negated = losses.flowrl_residuals(
                torch.zeros_like(rollout.rewards), output.log_probs,
                rollout.ref_log_probs, shaped_rewards(rollout, config),
                rollout.completion_mask, reward_scale=config.reward_scale,
                length_normalize=config.length_normalize,
            )  # fmt: skip
        return -negated.view(-1, rollout.num_generations).mean(dim=1)
    if config.log_z == "attached":
        # The state before the first token has seen the whole prompt.
        states = output.states[:: rollout.num_generations, 0]
        return modules["log_z"](states)
    if batch.fixed_log_z is not None:
        return batch.fixed_log_z
    return modules["log_z"](batch.log_z_features)


def _check_signature(flowrl_loss: object) -> None:
    """Check that a loss from outside can be called as the library's is."""
    wanted = list(inspect.signature(losses.flowrl_loss).parameters.values())
    wanted = [p for p in wanted if p.name != "reduction"]
    expected = f"a function of {', '.join(p.name for p in wanted)}"
    if not callable(flowrl_loss):
        raise bad_input(
            "flowrl_loss",
            f"is a {type(flowrl_loss).__name__}",
            expected,
            "pass the function itself, not its result",
        )
    positional = [p for p in wanted if p.kind is p.POSITIONAL_OR_KEYWORD]
    named = {p.name: p for p in wanted if p.kind is p.KEYWORD_ONLY}
    try:
        inspect.signature(flowrl_loss).bind(*positional, **named)
    except (TypeError, ValueError) as error:  # ValueError: built in, no signature
        raise bad_input(
            "flowrl_loss",
            f"cannot be called as the library's is ({error})",
            expected,
            "take the arguments of flowrl_lab.losses.flowrl_loss; unused ones too",
        ) from None


def _check_value(flowrl_loss: Callable, value: object, log_probs: Tensor) -> None:
    """Check that a loss from outside gave a scalar that can train the policy."""
    name = getattr(flowrl_loss, "__name__", type(flowrl_loss).__name__)
    expected = "one number, as a tensor with a gradient"
    if not isinstance(value, Tensor) or value.ndim:
        shape = list(value.shape) if isinstance(value, Tensor) else ""
        raise bad_input(
            "flowrl_loss",
            f"({name}) returned a {type(value).__name__} {shape}".rstrip(),
            expected,
            "end it with `return (...).mean()`",
        )
    reaches = value.requires_grad and (
        torch.autograd.grad(value, log_probs, retain_graph=True, allow_unused=True)[0]
        is not None
    )
    if not reaches:
        raise bad_input(
            "flowrl_loss",
            f"({name}) returned a number without a gradient for log_probs",
            expected,
            "keep log_probs out of .detach(), .item() and torch.no_grad()",
        )


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


def _dapo(batch: Batch, output: PolicyOutput, _modules: nn.ModuleDict, config):
    rollout = batch.rollout
    loss = losses.dapo_loss(
        output.log_probs,
        rollout.old_log_probs,
        batch.advantages,
        rollout.completion_mask,
        rollout.num_generations,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
    )
    return LossParts(loss)


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


def _pass_at_k_advantages(rollout: Rollout, config) -> Tensor:
    return advantages.pass_at_k_advantages(
        rollout.rewards, rollout.num_generations, config.pass_k
    )


def _reinforce_pp_advantages(rollout: Rollout, _config) -> Tensor:
    return advantages.reinforce_pp_advantages(rollout.rewards, rollout.completion_mask)


ALGORITHMS: dict[str, Algorithm] = {
    "reinforce_pp": Algorithm(
        _clipped(losses.reinforce_pp_loss), _reinforce_pp_advantages
    ),
    "ppo": Algorithm(_ppo, uses_values=True),
    "grpo": Algorithm(_clipped(losses.grpo_loss), _grpo_advantages),
    "dapo": Algorithm(_dapo, _grpo_advantages),
    "pass_at_k": Algorithm(_clipped(losses.grpo_loss), _pass_at_k_advantages),
    "flowrl": flowrl_with(losses.flowrl_loss),
    "vargrad": Algorithm(_vargrad),
    "kl_reinforce": Algorithm(_kl_reinforce),
}

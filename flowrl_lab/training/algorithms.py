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
from flowrl_lab.training.batch import Batch, LossParts, shaped_rewards
from flowrl_lab.training.config import ExperimentConfig
from flowrl_lab.training.log_z import LogZ
from flowrl_lab.types import PolicyOutput, Rollout

__all__ = ["ALGORITHMS", "Algorithm", "Objective", "flowrl_with"]


@dataclass(frozen=True)
class Objective:
    """One row of ``ALGORITHMS``: which pieces an algorithm puts together.

    Attributes:
        loss: (batch, output, log_z, algorithm) -> LossParts; log_z is ``[P]``, or
            None where ``uses_log_z`` is not set.
        advantages: (rollout, config) -> [B, T] or [B]; None for flow losses.
        uses_log_z: it needs a log Z, learned or not.
        uses_values: it trains a value head.
    """

    loss: Callable[..., LossParts]
    advantages: Callable[..., Tensor] | None = None
    uses_log_z: bool = False
    uses_values: bool = False


class Algorithm:
    """An objective with a run's settings, and the riders that learn beside the policy.

    Args:
        config: the run's settings; ``config.algorithm`` names the objective.
        policy: makes the riders.
        flowrl_loss: a loss of the caller's own for "flowrl"; see ``flowrl_with``.

    Attributes:
        config: the settings.
        log_z: where log Z comes from; None for the maximisers.
        modules: what is trained beside the policy: ``"log_z"``, ``"critic"``, or none.

    Raises:
        ValueError: a ``flowrl_loss`` that is no such function, or for another
            algorithm; a log Z that the policy cannot have.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        policy,
        flowrl_loss: Callable[..., Tensor] | None = None,
    ):
        self.config = config
        self._objective = _pick_objective(config, flowrl_loss)
        self.log_z: LogZ | None = None
        self.modules = nn.ModuleDict()
        with torch.random.fork_rng(devices=[]):  # weights: a matter of the seed alone
            torch.manual_seed(config.seed)
            if self._objective.uses_log_z:
                self.log_z = LogZ(config, policy)
                if self.log_z.network is not None:
                    self.modules["log_z"] = self.log_z.network
            if self._objective.uses_values:
                self.modules["critic"] = policy.make_value_head()

    def prepare(self, rollout: Rollout, policy, step: int) -> Batch:
        """The batch of a rollout: all that stays as it is during its updates.

        Args:
            rollout: sampled and scored completions.
            policy: gives log Z its features, the critic its states.
            step: updates done so far.
        """
        rewards = shaped_rewards(rollout, self.config)
        if self.log_z is not None:
            log_z_input = self.log_z.prepare(rollout, policy, step)
            return Batch(rollout, rewards, log_z_input)
        if self._objective.uses_values:
            return self._with_values(rollout, rewards, policy)
        if self._objective.advantages is None:
            return Batch(rollout, rewards)
        found = self._objective.advantages(rollout, self.config)
        return Batch(rollout, rewards, advantages=found)

    def loss(self, batch: Batch, output: PolicyOutput, log_z: Tensor | None):
        """``LossParts`` of a batch, from the policy's scores and log Z ``[P]``."""
        return self._objective.loss(batch, output, log_z, self)

    def _with_values(self, rollout: Rollout, rewards: Tensor, policy) -> Batch:
        """Advantages, and what the critic is to say."""
        mask = rollout.completion_mask
        with torch.no_grad():
            output = policy.evaluate(
                rollout.prompts,
                rollout.completion_ids,
                mask,
                temperature=self.config.temperature,
            )
            values = self.modules["critic"](output.states) * mask
        raw, returns = advantages.gae(rollout.rewards, values, mask)
        whitened = advantages.whiten(raw, mask)
        return Batch(
            rollout, rewards, advantages=whitened, old_values=values, returns=returns
        )


def _pick_objective(config: ExperimentConfig, flowrl_loss) -> Objective:
    if flowrl_loss is None:
        return ALGORITHMS[config.algorithm]
    if config.algorithm != "flowrl":
        raise bad_input(
            "flowrl_loss",
            f"was given for algorithm {config.algorithm!r}, which does not use it",
            "algorithm 'flowrl'",
            "leave flowrl_loss out, or set algorithm='flowrl'",
        )
    return flowrl_with(flowrl_loss)


def _flowrl(batch: Batch, output: PolicyOutput, log_z: Tensor, algorithm: Algorithm):
    rollout, config = batch.rollout, algorithm.config
    terms = losses.flowrl_terms(
        log_z.repeat_interleave(rollout.num_generations),
        output.log_probs,
        rollout.old_log_probs,
        rollout.ref_log_probs,
        batch.rewards,
        rollout.completion_mask,
        **_flowrl_settings(config),
    )
    residuals = terms.residuals.detach()
    return LossParts(terms.losses.mean(), residuals, log_z.detach(), terms.ratios)


def _flowrl_settings(config: ExperimentConfig) -> dict:
    names = ("reward_scale", "importance", "clip_low", "clip_high", "length_normalize")
    return {name: getattr(config, name) for name in names}


def flowrl_with(flowrl_loss: Callable[..., Tensor]) -> Objective:
    """FlowRL with a loss from outside in the place of ``losses.flowrl_loss``.

    Args:
        flowrl_loss: takes the arguments of ``losses.flowrl_loss`` under the same
            names, all but ``reduction``, and returns a scalar to minimise.

    Returns:
        The objective.  Residuals and log Z are measured as ever, whatever the loss.

    Raises:
        ValueError: it is no function, or takes other arguments; and, in the first
            step of a run, it returns no scalar or one that does not depend on π.
    """
    _check_signature(flowrl_loss)

    def loss(batch: Batch, output: PolicyOutput, log_z: Tensor, algorithm: Algorithm):
        rollout = batch.rollout
        value = flowrl_loss(
            log_z.repeat_interleave(rollout.num_generations),
            output.log_probs,
            rollout.old_log_probs,
            rollout.ref_log_probs,
            batch.rewards,
            rollout.completion_mask,
            **_flowrl_settings(algorithm.config),
        )
        _check_value(flowrl_loss, value, output.log_probs)
        with torch.no_grad():
            parts = _flowrl(batch, output, log_z, algorithm)
        return LossParts(value, parts.residuals, parts.log_z, parts.ratios)

    return Objective(loss, uses_log_z=True)


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


def _vargrad(batch: Batch, output: PolicyOutput, _log_z: None, algorithm: Algorithm):
    rollout = batch.rollout
    policy, reference = (
        masked_sum(values, rollout.completion_mask)
        for values in (output.log_probs, rollout.ref_log_probs)
    )
    rewards, config = batch.rewards, algorithm.config
    loss = losses.vargrad_loss(
        policy,
        reference,
        rewards,
        rollout.num_generations,
        reward_scale=config.reward_scale,
    )
    with torch.no_grad():
        log_z = vargrad_log_z(
            policy,
            reference,
            rewards,
            rollout.num_generations,
            reward_scale=config.reward_scale,
        )
        scores = policy - reference - config.reward_scale * rewards
        residuals = log_z.repeat_interleave(rollout.num_generations) + scores
    return LossParts(loss, residuals, log_z)


def _kl_reinforce(
    batch: Batch, output: PolicyOutput, _log_z: None, algorithm: Algorithm
):
    rollout = batch.rollout
    loss = losses.kl_reinforce_loss(
        masked_sum(output.log_probs, rollout.completion_mask),
        masked_sum(rollout.ref_log_probs, rollout.completion_mask),
        rollout.rewards,
        rollout.num_generations,
        kl_coef=algorithm.config.kl_coef,
    )
    return LossParts(loss)


def _clipped(loss_function: Callable[..., Tensor]):
    """GRPO and REINFORCE++ share their arguments."""

    def loss(batch: Batch, output: PolicyOutput, _log_z: None, algorithm: Algorithm):
        rollout = batch.rollout
        value = loss_function(
            output.log_probs,
            rollout.old_log_probs,
            batch.advantages,
            rollout.completion_mask,
            clip_low=algorithm.config.clip_low,
            clip_high=algorithm.config.clip_high,
            ref_log_probs=rollout.ref_log_probs,
            kl_coef=algorithm.config.kl_coef,
        )
        return LossParts(value)

    return loss


def _dapo(batch: Batch, output: PolicyOutput, _log_z: None, algorithm: Algorithm):
    rollout = batch.rollout
    loss = losses.dapo_loss(
        output.log_probs,
        rollout.old_log_probs,
        batch.advantages,
        rollout.completion_mask,
        rollout.num_generations,
        clip_low=algorithm.config.clip_low,
        clip_high=algorithm.config.clip_high,
        ref_log_probs=rollout.ref_log_probs,
        kl_coef=algorithm.config.kl_coef,
    )
    return LossParts(loss)


def _ppo(batch: Batch, output: PolicyOutput, _log_z: None, algorithm: Algorithm):
    rollout = batch.rollout
    loss = losses.ppo_loss(
        output.log_probs,
        rollout.old_log_probs,
        batch.advantages,
        rollout.completion_mask,
        clip_low=algorithm.config.clip_low,
        clip_high=algorithm.config.clip_high,
        ref_log_probs=rollout.ref_log_probs,
        kl_coef=algorithm.config.kl_coef,
        values=algorithm.modules["critic"](output.states),
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


ALGORITHMS: dict[str, Objective] = {
    "reinforce_pp": Objective(
        _clipped(losses.reinforce_pp_loss), _reinforce_pp_advantages
    ),
    "ppo": Objective(_ppo, uses_values=True),
    "grpo": Objective(_clipped(losses.grpo_loss), _grpo_advantages),
    "dapo": Objective(_dapo, _grpo_advantages),
    "pass_at_k": Objective(_clipped(losses.grpo_loss), _pass_at_k_advantages),
    "flowrl": Objective(_flowrl, uses_log_z=True),
    "vargrad": Objective(_vargrad),
    "kl_reinforce": Objective(_kl_reinforce),
}

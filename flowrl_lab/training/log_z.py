"""Where a run's log Z comes from: the one place that reads ``config.log_z``.

=============  ==============================================================
``learned``    Z_φ of the reference's features of the prompt, detached
``attached``   Z_φ of the policy's own state, with a gradient into it
``vargrad``    the batch's own best log Z, nothing is learned
``constant``   a number; ``frozen`` and ``random`` add noise to it
=============  ==============================================================
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from flowrl_lab._validation import bad_input
from flowrl_lab.losses import flowrl_residuals
from flowrl_lab.partition import start_log_z, unlearned_log_z
from flowrl_lab.training.batch import Batch, shaped_rewards
from flowrl_lab.training.config import ExperimentConfig
from flowrl_lab.types import PolicyOutput, Rollout

__all__ = ["LogZ", "is_learned", "needs_network"]


def is_learned(config: ExperimentConfig) -> bool:
    """Whether Z_φ learns from features of the prompt that stay as they are."""
    return config.log_z == "learned"


def needs_network(config: ExperimentConfig) -> bool:
    """Whether there is a Z_φ at all."""
    return config.log_z in ("learned", "attached")


class LogZ:
    """log Z of a batch's prompts, from where ``config.log_z`` says.

    Args:
        config: the run's settings.
        policy: makes the Z_φ that reads its features.

    Attributes:
        network: Z_φ, its weights a matter of the seed alone; None if nothing learns.

    Raises:
        ValueError: "attached" with a table, which has no states.
    """

    def __init__(self, config: ExperimentConfig, policy):
        if config.log_z == "attached" and policy.name == "tabular":
            raise bad_input(
                "log_z",
                "is 'attached' with a table, which has no states to attach it to",
                "a language model, or another log_z",
                "set log_z='learned'",
            )
        self._config = config
        self.network: nn.Module | None = None
        if needs_network(config):
            self.network = policy.make_log_z()

    def __call__(self, batch: Batch, output: PolicyOutput) -> Tensor:
        """``[P]`` log Z in nats, with the gradient that it is to have."""
        if self._config.log_z == "learned":
            return self.network(batch.log_z_input)
        if self._config.log_z == "attached":
            # The state before the first token has seen the whole prompt.
            return self.network(output.states[:: batch.rollout.num_generations, 0])
        if self._config.log_z == "vargrad":
            return self._of_batch(batch, output)
        return batch.log_z_input

    def prepare(self, rollout: Rollout, policy, step: int) -> Tensor | None:
        """``Batch.log_z_input``: what stays as it is during a batch's updates."""
        config = self._config
        if step == 0 and config.log_z_start == "batch" and self.network:
            self._start(rollout)
        prompts = rollout.prompts.to(policy.device)
        if config.log_z == "learned":
            return policy.prompt_features(prompts, config.log_z_features)
        if config.log_z in ("attached", "vargrad"):
            return None
        fixed = unlearned_log_z(
            config.log_z,
            prompts.indices.cpu(),
            value=config.log_z_value,
            seed=config.seed,
            step=step,
        )
        return fixed.to(policy.device)

    @property
    def textbook(self) -> nn.Module | None:
        """Z_φ, if what it learns is the log Z that the referee computes."""
        config = self._config
        textbook = config.reward_form == "raw" and not config.length_normalize
        return self.network if textbook and is_learned(config) else None

    def _start(self, rollout: Rollout) -> None:
        """At log mean exp(βr): the first batch is drawn from π_ref."""
        config = self._config
        estimate = config.reward_scale * shaped_rewards(rollout, config)
        log_mean = estimate.logsumexp(0) - math.log(len(estimate))
        start_log_z(self.network, log_mean.item())

    @torch.no_grad()
    def _of_batch(self, batch: Batch, output: PolicyOutput) -> Tensor:
        """Residuals at log Z = 0, turned round, are the log Z that they need."""
        rollout, config = batch.rollout, self._config
        negated = flowrl_residuals(
            torch.zeros_like(rollout.rewards),
            output.log_probs,
            rollout.ref_log_probs,
            batch.rewards,
            rollout.completion_mask,
            reward_scale=config.reward_scale,
            length_normalize=config.length_normalize,
        )
        return -negated.view(-1, rollout.num_generations).mean(dim=1)

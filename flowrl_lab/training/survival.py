"""Gradient steps that survive: in parts, scaled, and skipped where they would harm."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from flowrl_lab.training.algorithms import Algorithm, Batch
from flowrl_lab.training.config import ExperimentConfig
from flowrl_lab.training.microbatches import (
    as_leaves,
    backward_in_parts,
    evaluate_in_parts,
)
from flowrl_lab.training.records import measure
from flowrl_lab.types import PolicyOutput, Rollout

__all__ = ["BadUpdateError", "Updater", "is_out_of_memory"]

# The gradients of float16 activations vanish below 6e-8; a loss that is this many
# times as large keeps them above it, and the gradient is divided again afterwards.
FIRST_SCALE = 2.0**12
SCALE_PATIENCE = 100  # good steps until the scale is doubled

Result = TypeVar("Result")


class BadUpdateError(FloatingPointError):
    """An update that would do harm; nothing was changed."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that an accelerator (or the computer) has no memory left.

    Not every back end has an exception of its own for it.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text
    )


class Updater:
    """Updates of one run's policy and riders.

    Args:
        policy: what is trained.
        modules: Z_φ or the critic.
        algorithm: its loss.
        config: the run's settings.

    Attributes:
        optimizer: AdamW over the policy and its riders.
        rows: completions in one pass at most; 0 is all of them.
        scale: what the loss is multiplied with on its way back (float16 only).
        skipped: updates that were skipped so far.
        note: what happened in the last step that a reader should know; empty if
            nothing did.
    """

    def __init__(
        self,
        policy,
        modules: nn.ModuleDict,
        algorithm: Algorithm,
        config: ExperimentConfig,
    ):
        self._policy, self._modules = policy, modules
        self._algorithm, self._config = algorithm, config
        self.optimizer = _make_optimizer(policy, modules, config)
        self.rows = config.micro_batch
        half = getattr(policy, "dtype", torch.float32) == torch.float16
        self.scale = FIRST_SCALE if half else 1.0
        self._good_steps = 0
        self.skipped = self._in_a_row = 0
        self.note = ""

    def evaluate(self, rollout: Rollout) -> PolicyOutput:
        """Scores of the rollout under the policy, in as many parts as are needed."""
        return evaluate_in_parts(
            self._policy, rollout.prompts, rollout.completion_ids,
            rollout.completion_mask, rows=self.rows,
            temperature=self._config.temperature,
        )  # fmt: skip

    def step(self, batch: Batch, number: int) -> dict[str, float]:
        """One gradient step; returns what was measured on the way.

        Args:
            batch: the rollout with its advantages.
            number: of the step, for messages.

        Raises:
            FloatingPointError: the update would do harm, and ``on_bad_update`` is
                "stop", or too many in a row were skipped.
        """
        while True:
            try:
                measured = self._try_step(batch, number)
            except BadUpdateError as error:
                if self.scale > 1 and "gradient" in str(error):
                    self.scale, self._good_steps = self.scale / 2, 0
                    continue  # float16 overflowed: the same step, half as loud
                return self._skip(error, batch)
            self._in_a_row = 0
            self._good_steps += 1
            if self._good_steps >= SCALE_PATIENCE and self.scale > 1:
                self.scale, self._good_steps = 2 * self.scale, 0
            return measured

    def _try_step(self, batch: Batch, number: int) -> dict[str, float]:
        config, rollout = self._config, batch.rollout
        output = self.evaluate(rollout)
        in_parts = 0 < self.rows < len(rollout.rewards)
        if in_parts:
            output = as_leaves(output)
        parts = self._algorithm.loss(batch, output, self._modules, config)
        entropy = output.entropies.sum() / rollout.completion_mask.sum()
        loss = parts.loss
        if config.entropy_coef:
            loss = loss - config.entropy_coef * entropy
        _check_finite("loss", loss, number, config)
        _check_residuals(parts.residuals, number, config)
        self.optimizer.zero_grad(set_to_none=True)
        (loss * self.scale).backward()
        if in_parts:
            backward_in_parts(
                self._policy, rollout.prompts, rollout.completion_ids,
                rollout.completion_mask, output, rows=self.rows,
                temperature=config.temperature,
            )  # fmt: skip
        grad_norm = self._clip_gradient(number)
        self.optimizer.step()
        return measure(rollout, output, parts, loss, entropy, grad_norm, config)

    def _clip_gradient(self, number: int) -> Tensor:
        """Undo the scale, limit the norm; the norm before."""
        config = self._config
        if self.scale != 1:
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.grad /= self.scale
        # the policy's own group: to list a model's parameters takes a millisecond
        parameters = self.optimizer.param_groups[0]["params"]
        norm = nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        _check_finite("gradient norm", norm, number, config)
        return norm

    def _skip(self, error: BadUpdateError, batch: Batch) -> dict[str, float]:
        """Leave the update out, if that is wanted and not done too often."""
        config = self._config
        self.optimizer.zero_grad(set_to_none=True)
        self.skipped += 1
        self._in_a_row += 1
        if config.on_bad_update == "stop":
            raise error
        if self._in_a_row > config.max_skips:
            raise FloatingPointError(
                f"{self._in_a_row} updates in a row were skipped; the last one: {error}"
            ) from error
        self.announce(f"update skipped ({self.skipped} so far): {error}")
        reward = batch.rollout.rewards.mean().item()
        return {"reward": reward}

    def announce(self, text: str) -> None:
        """Say something now, and have the step's record say it too."""
        self.note = f"{self.note}; {text}" if self.note else text
        print(f"[{self._config.run_name}] {text}", flush=True)

    def fitting(
        self, action: Callable[[], Result], batch_rows: int, undo: Callable[[], None]
    ) -> Result:
        """``action()``; while memory runs out, again with half the rows a pass.

        The batch stays as large as it is, and so does what is learned from it.

        Args:
            action: reads ``self.rows``.
            batch_rows: completions in the batch.
            undo: puts back the random generators before another try.

        Raises:
            MemoryError: not even single rows fit.
        """
        while True:
            try:
                return action()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(error, batch_rows)
            # outside of the handler, which holds the failed pass's tensors
            undo()
            self.optimizer.zero_grad(set_to_none=True)
            _free_memory()

    def _halve(self, error: BaseException, batch_rows: int) -> None:
        now = self.rows if 0 < self.rows < batch_rows else batch_rows
        if now == 1:
            raise MemoryError(
                "not even one completion at a time fits into memory. Fix: shorter "
                "completions (max_completion_tokens), a smaller model, or a smaller "
                "lora_rank."
            ) from error
        self.rows = now // 2
        self.announce(
            f"out of memory with {now} completions in a pass; going on with "
            f"{self.rows}, the batch stays at {batch_rows}"
        )

    def state(self) -> dict:
        """What a checkpoint needs."""
        counts = (self.rows, self.scale, self._good_steps, self.skipped, self._in_a_row)
        return {"optimizer": self.optimizer.state_dict(), "survival": list(counts)}

    def load_state(self, state: dict) -> None:
        """Put back what ``state`` gave; older checkpoints hold the optimiser only."""
        self.optimizer.load_state_dict(state["optimizer"])
        if "survival" in state:
            self.rows, self.scale, *counts = state["survival"]
            self._good_steps, self.skipped, self._in_a_row = counts


def _free_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def _make_optimizer(policy, modules: nn.ModuleDict, config: ExperimentConfig):
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


def _check_finite(
    what: str, value: Tensor, number: int, config: ExperimentConfig
) -> None:
    if not torch.isfinite(value):
        raise BadUpdateError(
            f"the {what} of run {config.run_name!r} is {value.item()} at step "
            f"{number}; the weights are as they were before this update. Fix: lower "
            f"learning_rate (now {config.learning_rate:g}) or reward_scale "
            f"(now {config.reward_scale:g}), and go on from the last checkpoint."
        )


def _check_residuals(
    residuals: Tensor | None, number: int, config: ExperimentConfig
) -> None:
    """An exploded residual is finite, but its square would move everything."""
    if residuals is None or not config.max_residual:
        return
    largest = residuals.abs().max().item()
    if largest > config.max_residual:
        raise BadUpdateError(
            f"a residual of run {config.run_name!r} is {largest:.1f} nats at step "
            f"{number}, above max_residual ({config.max_residual:g}); the weights are "
            "as they were before this update. Fix: lower learning_rate (now "
            f"{config.learning_rate:g}) or reward_scale (now {config.reward_scale:g})."
        )

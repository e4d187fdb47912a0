"""What keeps a run alive: halves of a pass, float16's scale, updates left out.

``training_step`` knows nothing of this.  Where it must be, it is given a policy that
works in parts (``InParts``), and it is tried again, or left out, from here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from flowrl_lab.training.config import ExperimentConfig
from flowrl_lab.training.microbatches import InParts
from flowrl_lab.training.step import BadUpdateError

__all__ = ["Survival", "is_out_of_memory"]

# The gradients of float16 activations vanish below 6e-8; a loss that is this many
# times as large keeps them above it, and the gradient is divided again afterwards.
FIRST_SCALE = 2.0**12
SCALE_PATIENCE = 100  # good steps until the scale is doubled

Result = TypeVar("Result")


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


class Survival:
    """Tries what a run does again, in smaller parts or more softly, or leaves it out.

        for attempt in survival.attempts():
            with attempt:
                update = training_step(survival.policy, …)

    Args:
        policy: what is trained.
        config: the run's settings.
        batch_rows: completions in a batch.
        generators: put back before another try.

    Attributes:
        parts: the policy in parts: how many rows at a time, and float16's scale.
        skipped: updates that were left out so far.
        note: what happened in the last step that a reader should know; empty if
            nothing did.
    """

    def __init__(
        self,
        policy,
        config: ExperimentConfig,
        *,
        batch_rows: int,
        generators: Sequence[torch.Generator],
    ):
        half = policy.dtype == torch.float16
        self._whole = policy
        self.parts = InParts(policy, config.micro_batch, FIRST_SCALE if half else 1.0)
        self._config, self._batch_rows = config, batch_rows
        self._generators = generators
        self._good_steps = 0
        self.skipped = self._in_a_row = 0
        self.note = ""

    @property
    def policy(self):
        """For ``training_step`` and for sampling: whole as long as that will do."""
        plain = not self.parts.rows and self.parts.scale == 1
        return self._whole if plain else self.parts

    def attempts(self, step: int = 0) -> Iterator[_Attempt]:
        """Tries until one ends without an error, or is left out.

        Args:
            step: of an update, for messages.

        Raises:
            MemoryError: not even single rows fit.
            FloatingPointError: the update would do harm, and ``on_bad_update`` is
                "stop", or too many in a row were skipped.
        """
        before = [generator.get_state() for generator in self._generators]
        while True:
            attempt = _Attempt(self, step)
            yield attempt
            if attempt.over:
                return
            # only now: the handler still holds the failed pass's tensors
            for generator, state in zip(self._generators, before, strict=True):
                generator.set_state(state)
            for weight in self.parts.trainable_parameters():
                weight.grad = None
            _free_memory()

    def fitting(self, action: Callable[[], Result]) -> Result:
        """``action()``; while memory runs out, again with half the rows a pass.

        The batch stays as large as it is, and so does what is learned from it.
        """
        for attempt in self.attempts():
            with attempt:
                result = action()
        return result

    def went_well(self) -> None:
        """After an update: the row of bad ones is over, and float16 may be louder."""
        self._in_a_row = 0
        self._good_steps += 1
        if self._good_steps >= SCALE_PATIENCE and self.parts.scale > 1:
            self.parts.scale, self._good_steps = 2 * self.parts.scale, 0

    def handle(self, error: BaseException, step: int) -> bool:
        """Get ready for another try (False), or leave the update out (True).

        Raises:
            MemoryError, FloatingPointError: as ``attempts``.
        """
        if not isinstance(error, BadUpdateError):
            self._halve(error)
            return False
        if self.parts.scale > 1 and error.of_gradient:
            # float16 overflowed: the same step, half as loud
            self.parts.scale, self._good_steps = self.parts.scale / 2, 0
            return False
        self._skip(error, step)
        return True

    def _skip(self, bad: BadUpdateError, step: int) -> None:
        """Leave the update out, if that is wanted and not done too often."""
        config = self._config
        self.skipped += 1
        self._in_a_row += 1
        error = BadUpdateError(
            f"{bad} at step {step}; the weights are as they were before this update. "
            f"Fix: lower learning_rate (now {config.learning_rate:g}) or reward_scale "
            f"(now {config.reward_scale:g}), and go on from the last checkpoint."
        )
        if config.on_bad_update == "stop":
            raise error from bad
        if self._in_a_row > config.max_skips:
            raise FloatingPointError(
                f"{self._in_a_row} updates in a row were skipped; the last one: {error}"
            ) from bad
        self.announce(f"update skipped ({self.skipped} so far): {error}")

    def announce(self, text: str) -> None:
        """Say something now, and have the step's record say it too."""
        self.note = f"{self.note}; {text}" if self.note else text
        print(f"[{self._config.run_name}] {text}", flush=True)

    def _halve(self, error: BaseException) -> None:
        rows, batch = self.parts.rows, self._batch_rows
        now = rows if 0 < rows < batch else batch
        if now == 1:
            raise MemoryError(
                "not even one completion at a time fits into memory. Fix: shorter "
                "completions (max_completion_tokens), a smaller model, or a smaller "
                "lora_rank."
            ) from error
        self.parts.rows = now // 2
        self.announce(
            f"out of memory with {now} completions in a pass; going on with "
            f"{now // 2}, the batch stays at {batch}"
        )

    def state(self) -> list:
        """What a checkpoint needs."""
        rows, scale = self.parts.rows, self.parts.scale
        return [rows, scale, self._good_steps, self.skipped, self._in_a_row]

    def load_state(self, state: Sequence) -> None:
        """Put back what ``state`` gave."""
        self.parts.rows, self.parts.scale, *counts = state
        if not 1e-9 < self.parts.scale < 1e9:  # float16 needs 2^16 at most
            raise ValueError(f"the loss is scaled with {self.parts.scale:g}")
        self._good_steps, self.skipped, self._in_a_row = counts


class _Attempt:
    """One try of ``Survival.attempts``; its errors are handled there."""

    def __init__(self, survival: Survival, step: int):
        self._survival, self._step = survival, step
        self.over = False

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind, error: BaseException | None, _traceback) -> bool:
        if error is None:
            self.over = True
            return False
        if not isinstance(error, BadUpdateError) and not is_out_of_memory(error):
            return False
        self.over = self._survival.handle(error, self._step)
        return True


def _free_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()

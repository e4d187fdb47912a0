"""What a policy must offer: sample, score, and the modules that ride along."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from flowrl_lab.types import Completions, PolicyOutput, PromptBatch

__all__ = ["Policy"]


@runtime_checkable
class Policy(Protocol):
    """A distribution over completions that can be sampled, scored and trained.

    Attributes:
        name: the policy's key in ``flowrl_lab.policies.POLICIES``.
        device: where its tensors live.
        dtype: of its frozen weights; half precision is trained with a scaled loss.
        pad_id: the token that fills up shorter rows.
        large_tensors: whether single products are worth several threads.
        reference_memo: what the reference said of earlier rows and prompts, for
            checkpoints: computed again in another batch it would differ in the last
            digits.
    """

    name: str
    device: torch.device
    dtype: torch.dtype
    pad_id: int
    large_tensors: bool
    reference_memo: dict[str, list[list[float]] | Tensor]

    def sample(
        self,
        prompts: PromptBatch,
        num_generations: int,
        *,
        temperature: float = 1.0,
        generator: torch.Generator,
    ) -> Completions:
        """Draw ``num_generations`` completions of every prompt, without gradient."""

    def evaluate(
        self,
        prompts: PromptBatch,
        completion_ids: Int[Tensor, "B T"],
        completion_mask: Bool[Tensor, "B T"],
        *,
        temperature: float = 1.0,
        reference: bool = False,
    ) -> PolicyOutput:
        """Log-probs of given completions; B is a multiple of the prompts' number.

        ``reference=True`` scores them under the frozen reference, without gradient.
        """

    def prompt_features(self, prompts: PromptBatch, pooling: str = "last") -> Tensor:
        """What log Z is computed from: of the frozen reference, detached.

        ``[P, H]`` for a language model, prompt numbers ``[P]`` for a table.
        """

    def make_log_z(self) -> nn.Module:
        """A new log-partition module: ``prompt_features`` -> ``[P]``, nats."""

    def make_value_head(self) -> nn.Module:
        """A new value head for PPO: ``PolicyOutput.states`` -> ``[B, T]``."""

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters that training changes."""

    def state_dict(self) -> dict[str, Tensor]:
        """The trainable part, for checkpoints."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put back what ``state_dict`` gave; ValueError if it does not fit."""

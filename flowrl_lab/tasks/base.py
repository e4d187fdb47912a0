"""What a task must offer: prompts, a verifier, and its enumerated answers."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowrl_lab.types import AnswerSet, PromptBatch

__all__ = ["Task"]


@runtime_checkable
class Task(Protocol):
    """A task in tokens of its own; a class that inherits has the defaults below.

    Attributes:
        name: the task's key in ``flowrl_lab.tasks.TASKS``.
        vocab_size: number of tokens V.
        pad_id: token that fills up short rows.
        eos_id: token that ends a completion; None when every completion has
            exactly ``max_completion_tokens`` tokens.
        max_completion_tokens: T, the most that are sampled.
        reward_scale: the scale at which the exact target is defined; None means
            "the reference restricted to the correct answers".  The target of a task
            that is not exhaustive lives on the correct answers either way.
        has_referee: whether ``answers`` can list them; without it, runs are judged
            by samples.
        has_verdicts: whether ``judge`` tells more of a completion than its reward.
        in_text: whether any tokenizer can spell it (``TextTask``).
        characters: what it spells its texts with, one token each, in the order of
            their ids; empty for states and symbols.
    """

    name: str
    vocab_size: int
    pad_id: int
    eos_id: int | None
    max_completion_tokens: int
    reward_scale: float | None
    has_referee: bool = True
    has_verdicts: bool = False
    in_text: bool = False
    characters: str = ""

    def prompts(self, split: str) -> tuple[str, ...]:
        """All prompts of ``split``: ``"train"`` or ``"heldout"``.

        Tasks on which settings are chosen cut the latter in two, ``"validation"`` and
        ``"test"``; the others refuse these two.
        """

    def render(self, prompt: str) -> str:
        """The prompt as a model reads it."""
        return prompt

    def encode(self, texts: tuple[str, ...]) -> PromptBatch:
        """Token ids of prompts, left-padded, on the CPU."""

    def decode(
        self, completion_ids: Int[Tensor, "B T"], completion_mask: Bool[Tensor, "B T"]
    ) -> list[str]:
        """Completions as text, without the end token."""

    def score(
        self,
        prompts: PromptBatch,
        completion_ids: Int[Tensor, "B T"],
        completion_mask: Bool[Tensor, "B T"],
        num_generations: int,
    ) -> Float[Tensor, " B"]:
        """The verifier's reward of each completion, on the ids' device."""

    def are_right(
        self,
        completion_ids: Int[Tensor, "B T"],  # noqa: ARG002 - for those that need it
        rewards: Float[Tensor, " B"],
    ) -> Bool[Tensor, " B"]:
        """Which completions count as right, for measures of a batch's groups."""
        return rewards > 0

    def answers(self, prompt: str) -> AnswerSet:
        """Every correct answer of ``prompt``, and any other with a reward above 0.

        All completions if exhaustive.
        """

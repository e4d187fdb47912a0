"""What tasks share whose prompts and answers are written in single characters."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from flowrl_lab._validation import check_choice
from flowrl_lab.tasks.base import Task
from flowrl_lab.types import AnswerSet, PromptBatch

__all__ = ["CharacterTask"]


class CharacterTask(Task):
    """A token for each character, then one for padding and one for the end.

    Every prompt has the same number of characters.  A task adds ``name``,
    ``characters``, the class attributes of ``tasks.Task`` and the methods that raise
    NotImplementedError here.
    """

    name: str
    characters: str
    vocab_size: int
    pad_id: int
    eos_id: int
    max_completion_tokens: int
    max_prompt_tokens: int
    reward_scale: float | None = None

    def _split(self, heldout: bool) -> tuple[str, ...]:
        raise NotImplementedError

    def _half(self, second: bool) -> tuple[str, ...]:
        """Every other held-out prompt; together the halves are all of them."""
        return self.prompts("heldout")[second::2]

    def _check_prompt(self, prompt: str) -> None:
        """ValueError, with a fix, for what is no prompt of this task."""
        raise NotImplementedError

    def reward_of(self, prompt: str, answer: str) -> float:
        """The reward of one finished answer."""
        raise NotImplementedError

    def prompts(self, split: str) -> tuple[str, ...]:
        """The prompts of ``split``, in a fixed shuffled order.

        ``"train"``, ``"heldout"``, or one of the two halves of the latter:
        ``"validation"``, to choose settings on, and ``"test"``, to report.
        """
        check_choice("split", split, ("train", "heldout", "validation", "test"))
        if split in ("train", "heldout"):
            return self._split(split == "heldout")
        return self._half(split == "test")

    @functools.cached_property
    def _positions(self) -> dict[str, int]:
        every = self.prompts("train") + self.prompts("heldout")
        return {prompt: position for position, prompt in enumerate(every)}

    def encode(self, texts: Sequence[str]) -> PromptBatch:
        """Token ids of prompts; all have equally many tokens: nothing is padded."""
        texts = tuple(texts)
        if not texts:
            raise ValueError("no prompt was given. Fix: pass at least one.")
        for text in texts:
            self._check_prompt(text)
        ids = torch.tensor([self.to_ids(text) for text in texts])
        indices = torch.tensor([self._positions.get(text, -1) for text in texts])
        return PromptBatch(texts, ids, torch.ones_like(ids, dtype=torch.bool), indices)

    def decode(self, completion_ids: Tensor, completion_mask: Tensor) -> list[str]:
        """Completions as text, without the end token; "?" is no character."""
        rows = completion_ids.tolist()
        lengths = completion_mask.sum(-1).tolist()
        return [
            self._to_text(row[:length])
            for row, length in zip(rows, lengths, strict=True)
        ]

    def score(
        self,
        prompts: PromptBatch,
        completion_ids: Tensor,
        completion_mask: Tensor,
        num_generations: int,
    ) -> Tensor:
        """The reward of a right, finished answer, 0 otherwise; ``[B]``."""
        if len(prompts) * num_generations != len(completion_ids):
            raise ValueError(
                f"got {len(completion_ids)} completions for {len(prompts)} prompts x "
                f"{num_generations} generations. Fix: pass P*G rows, groups contiguous."
            )
        texts = self.decode(completion_ids, completion_mask)
        ended = (completion_ids == self.eos_id) & completion_mask
        reward_of = functools.cache(self.reward_of)  # samples repeat each other
        rewards = [
            reward_of(prompts.texts[row // num_generations], text) if done else 0.0
            for row, (text, done) in enumerate(
                zip(texts, ended.any(-1).tolist(), strict=True)
            )
        ]
        return torch.tensor(rewards, device=completion_ids.device)

    def to_ids(self, text: str) -> list[int]:
        """The token of each character; ValueError for one that is none."""
        return [self.characters.index(character) for character in text]

    def _to_text(self, ids: list[int]) -> str:
        """Characters without a closing end token; "?" is any other special token."""
        if ids and ids[-1] == self.eos_id:
            ids = ids[:-1]
        return "".join(map(self._letters.__getitem__, ids))

    @functools.cached_property
    def _letters(self) -> str:
        """What stands for each token."""
        return self.characters.ljust(self.vocab_size, "?")

    def answer_set(
        self,
        prompt: str,
        texts: Sequence[str],
        *,
        rewards: Sequence[float],
        correct: Sequence[bool],
        classes: Sequence[object],
    ) -> AnswerSet:
        """Tokenise answers; equal classes become one group, None becomes -1."""
        width = self.max_completion_tokens
        ids = torch.full((len(texts), width), self.pad_id)
        for row, text in enumerate(texts):
            tokens = torch.tensor([*self.to_ids(text), self.eos_id])
            ids[row, : len(tokens)] = tokens
        keys = dict.fromkeys(key for key in classes if key is not None)
        numbers: dict = {key: number for number, key in enumerate(keys)}
        return AnswerSet(
            prompt=prompt,
            labels=tuple(texts),
            completion_ids=ids,
            completion_mask=ids != self.pad_id,
            rewards=torch.tensor(rewards),
            correct=torch.tensor(correct),
            groups=torch.tensor([numbers.get(key, -1) for key in classes]),
            exhaustive=False,
        )

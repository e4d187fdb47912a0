"""Strings: short words over a small alphabet, read as points of a picture.

The letters of a word are digits, coarse to fine, of the coordinates x and y in
turn: the first pair of letters picks one of the big tiles, the next pair a tile
inside it, and so on.  With 6 letters from an alphabet of 8 there are 262,144
words, one for each pixel of a 512 × 512 picture, so the distribution of a policy
that writes words *is* a picture.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowrl_lab.tasks._fixed_length import (
    check_completions,
    check_prompts,
    check_range,
)
from flowrl_lab.tasks.base import Task
from flowrl_lab.types import AnswerSet, PromptBatch

__all__ = ["MAX_WORDS", "Strings"]

LETTERS = "abcdefghijklmnopqrstuvwxyz"
MAX_WORDS = 2**20  # every word is enumerated, so this bounds memory
GRID = 4  # blobs sit in different cells of a GRID × GRID board


class Strings(Task):
    """Write a word that lands on a blob of the prompt's picture.

    ``reward = max over blobs exp(−distance² / (2 · blob_width²))``, in [0, 1],
    distance in units of the picture's side.  The target ``p* ∝ exp(reward_scale ·
    reward)`` shows all blobs, equally bright.  A word is *correct*, and belongs to
    the *mode* of its nearest blob, within two standard deviations of the target's
    blob, ``2 · blob_width / √reward_scale``.

    Each prompt is a picture with its own blobs, drawn from ``seed``: the first
    ``train_prompts`` are for training, the others are held out.  A table cannot
    generalise, on held-out prompts it stays at its start: with
    ``heldout_prompts=0`` it is judged on the prompts it trains on.

    Args:
        length: letters in a word, at least 2.
        alphabet: letters to choose from, 2 to 26.
        blobs: modes of each prompt, 1 to 16.
        train_prompts: prompts to train on, at least 1.
        heldout_prompts: prompts held out; 0 makes both splits the same.
        blob_width: width of a blob, in sides of the picture.
        reward_scale: the scale at which the target is defined.
        seed: of the blobs' places.

    Raises:
        ValueError: for options out of range, or more than ``MAX_WORDS`` words.
    """

    name = "strings"
    pad_id = 0
    eos_id = None

    def __init__(
        self,
        *,
        length: int = 6,
        alphabet: int = 8,
        blobs: int = 8,
        train_prompts: int = 2,
        heldout_prompts: int = 1,
        blob_width: float = 0.06,
        reward_scale: float = 10.0,
        seed: int = 0,
    ):
        check_range("length", length, 2, 20)
        check_range("alphabet", alphabet, 2, len(LETTERS))
        check_range("blobs", blobs, 1, GRID * GRID)
        check_range("train_prompts", train_prompts, 1, 1000)
        check_range("heldout_prompts", heldout_prompts, 0, 1000)
        for key, value in (("blob_width", blob_width), ("reward_scale", reward_scale)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{key}: got {value}, expected a positive number")
        if alphabet**length > MAX_WORDS:
            raise ValueError(
                f"strings: got {alphabet}^{length} = {alphabet**length} words, "
                f"expected at most {MAX_WORDS}; shorten length or alphabet"
            )
        self.vocab_size, self.max_completion_tokens = alphabet, length
        self.num_words = alphabet**length
        self.reward_scale: float | None = float(reward_scale)
        self.blob_width = float(blob_width)
        # x takes every other letter starting with the first, y the rest.
        self.width = alphabet ** ((length + 1) // 2)
        self.height = alphabet ** (length // 2)
        self._train = tuple(f"picture {i}" for i in range(train_prompts))
        self._heldout = tuple(
            f"picture {i}"
            for i in range(train_prompts, train_prompts + heldout_prompts)
        )
        self._all = self._train + self._heldout
        self._centres = _place_blobs(
            len(self._all), blobs, self.width, self.height, seed
        )
        self._words: Int[Tensor, "N T"] | None = None
        self._answers: dict[str, AnswerSet] = {}

    def prompts(self, split: str) -> tuple[str, ...]:
        """The prompts of "train" or "heldout"."""
        if split not in ("train", "heldout"):
            raise ValueError(f"split: got {split!r}, expected 'train' or 'heldout'")
        return self._train if split == "train" else self._heldout or self._train

    def encode(self, texts: tuple[str, ...]) -> PromptBatch:
        """A prompt's number, written in letters of the alphabet."""
        check_prompts(texts, self._all)
        indices = torch.tensor([self._all.index(text) for text in texts])
        digits = 1
        while self.vocab_size**digits < len(self._all):
            digits += 1
        ids = _to_digits(indices, digits, self.vocab_size)
        return PromptBatch(
            tuple(texts), ids, torch.ones_like(ids, dtype=torch.bool), indices
        )

    def decode(
        self, completion_ids: Int[Tensor, "B T"], completion_mask: Bool[Tensor, "B T"]
    ) -> list[str]:
        """The words, in letters."""
        self._check(completion_ids, completion_mask, None)
        return ["".join(LETTERS[i] for i in row) for row in completion_ids.tolist()]

    def points(
        self, completion_ids: Int[Tensor, "B T"]
    ) -> tuple[Int[Tensor, " B"], Int[Tensor, " B"]]:
        """Column x and row y of the pixel that each word stands for."""
        x = _from_digits(completion_ids[:, 0::2], self.vocab_size)
        y = _from_digits(completion_ids[:, 1::2], self.vocab_size)
        return x, y

    def picture(self, values: Float[Tensor, " N"]) -> Float[Tensor, "height width"]:
        """Lay a number for each word (in ``answers`` order) out as a picture."""
        if tuple(values.shape) != (self.num_words,):
            raise ValueError(
                f"values: got shape {tuple(values.shape)}, "
                f"expected [{self.num_words}], one number for each word"
            )
        x, y = self.points(self._all_words())
        image = values.new_empty(self.height, self.width)
        image[y, x] = values
        return image

    def score(
        self,
        prompts: PromptBatch,
        completion_ids: Int[Tensor, "B T"],
        completion_mask: Bool[Tensor, "B T"],
        num_generations: int,
    ) -> Float[Tensor, " B"]:
        """How near each word's point is to a blob of its prompt."""
        self._check(completion_ids, completion_mask, len(prompts) * num_generations)
        x, y = self.points(completion_ids.cpu())
        which = prompts.indices.cpu().repeat_interleave(num_generations)
        distance, _ = self._nearest(x, y, self._centres[which])
        rewards = torch.exp(-(distance**2) / (2 * self.blob_width**2))
        return rewards.to(completion_ids.device, torch.float32)

    def are_right(
        self,
        completion_ids: Int[Tensor, "B T"],  # noqa: ARG002 - the reward says it
        rewards: Float[Tensor, " B"],
    ) -> Bool[Tensor, " B"]:
        """Whether each word lies within two deviations of a blob, as in ``answers``."""
        return rewards >= math.exp(-2 / self.reward_scale) * (1 - 1e-6)

    def answers(self, prompt: str) -> AnswerSet:
        """Every word, with its reward and blob; kept once computed."""
        check_prompts((prompt,), self._all)
        if prompt not in self._answers:
            words = self._all_words()
            mask = torch.ones_like(words, dtype=torch.bool)
            x, y = self.points(words)
            centres = self._centres[self._all.index(prompt)]
            distance, blob = self._nearest(x, y, centres)
            inside = distance <= 2 * self.blob_width / math.sqrt(self.reward_scale)
            rewards = torch.exp(-(distance**2) / (2 * self.blob_width**2))
            self._answers[prompt] = AnswerSet(
                prompt=prompt,
                labels=tuple(self.decode(words, mask)),
                completion_ids=words,
                completion_mask=mask,
                rewards=rewards.to(torch.float32),
                correct=inside,
                groups=torch.where(inside, blob, torch.full_like(blob, -1)),
                exhaustive=True,
            )
        return self._answers[prompt]

    def _nearest(self, x: Tensor, y: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
        """Distance to the nearest of ``centres`` [..., K, 2], and which one."""
        across = (x[:, None] - centres[..., 0]).double() / self.width
        down = (y[:, None] - centres[..., 1]).double() / self.height
        nearest = (across**2 + down**2).min(dim=-1)
        return nearest.values.sqrt(), nearest.indices

    def _all_words(self) -> Int[Tensor, "N T"]:
        if self._words is None:
            numbers = torch.arange(self.num_words)
            self._words = _to_digits(
                numbers, self.max_completion_tokens, self.vocab_size
            )
        return self._words

    def _check(self, ids: Tensor, mask: Tensor, rows: int | None) -> None:
        check_completions(
            ids, mask, self.max_completion_tokens, self.vocab_size, rows=rows
        )


def _place_blobs(
    prompts: int, blobs: int, width: int, height: int, seed: int
) -> Int[Tensor, "P K 2"]:
    """Pixels of the blobs' centres: different board cells, jittered inside."""
    generator = torch.Generator().manual_seed(seed)
    centres = []
    for _ in range(prompts):
        cells = torch.randperm(GRID * GRID, generator=generator)[:blobs]
        corner = torch.stack([cells % GRID, cells // GRID], dim=-1)
        # Stay in the middle half of a cell, so that blobs do not touch.
        jitter = 0.25 + 0.5 * torch.rand(blobs, 2, generator=generator)
        side = torch.tensor([width, height])
        centres.append(((corner + jitter) / GRID * side).long())
    return torch.stack(centres)


def _to_digits(numbers: Int[Tensor, " N"], digits: int, base: int) -> Tensor:
    """Digits of each number, most significant first: [N] -> [N, digits]."""
    powers = base ** torch.arange(digits - 1, -1, -1)
    return numbers[:, None] // powers % base


def _from_digits(digits: Int[Tensor, "N D"], base: int) -> Tensor:
    powers = base ** torch.arange(digits.shape[1] - 1, -1, -1, device=digits.device)
    return (digits * powers).sum(dim=-1)

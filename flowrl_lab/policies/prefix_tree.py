"""Completions of one prompt share beginnings: compute each beginning once.

Sixteen samples of a prompt repeat each other, in their first tokens at the latest.
As a tree of distinct prefixes they need about half of the tokens that sixteen
padded rows need, and what the model says about a token depends on its prefix
alone, so nothing changes but the work.

A node is a prompt token or a distinct non-empty prefix of a prompt's completions;
its state predicts the token after it.  The nodes of a prompt fill its *slots*
0, 1, …; attention runs over slots, with a mask that lets a node see its ancestors
and itself.
"""

# no strings as annotations: TorchScript reads `Level` and `_grow_level`
from dataclasses import dataclass
from typing import NamedTuple, no_type_check

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from flowrl_lab.policies.torchscript import without_lock
from flowrl_lab.types import PromptBatch

__all__ = [
    "Level",
    "PrefixTree",
    "build_tree",
    "grow_level",
    "join_levels",
    "plant_prompts",
    "sort_by_prompt",
]


class Level(NamedTuple):
    """Nodes that are computed together; a node's parent is in it or before it."""

    tokens: Tensor  # [N] token of each node
    positions: Tensor  # [N] how many tokens come before it
    prompts: Tensor  # [N] which prompt it belongs to
    slots: Tensor  # [N] its place among its prompt's nodes
    sees: Tensor  # [N, L] which slots of its prompt it attends to
    filled: Tensor  # [P] slots in use in each prompt, these nodes included


@dataclass(frozen=True)
class PrefixTree:
    """All prefixes of a batch, and where each token of it is predicted.

    Attributes:
        level: every node, parents first.
        predictor: node whose state predicts each completion token; 0 where the
            token does not count.
    """

    level: Level
    predictor: Int[Tensor, "B T"]

    def __len__(self) -> int:
        return len(self.level.tokens)

    def sorted(self) -> "PrefixTree":
        """The same tree, its nodes prompt after prompt."""
        level, _, back = sort_by_prompt(self.level)
        return self if back is None else PrefixTree(level, back[self.predictor])


@no_type_check
def _rank_in_prompt(prompts: Tensor, counts: Tensor) -> Tensor:
    """0, 1, 2, … within each prompt; the nodes of a prompt are contiguous."""
    starts = counts.cumsum(0) - counts
    return torch.arange(prompts.shape[0], device=prompts.device) - starts[prompts]


def plant_prompts(prompts: PromptBatch, slots: int) -> tuple[Level, Tensor]:
    """The prompts' own tokens as the first level.

    Args:
        prompts: left-padded; the padding gets no node.
        slots: L, places to reserve for each prompt.

    Returns:
        The level, and the node of each prompt's last token, ``[P]``.
    """
    mask = prompts.prompt_mask
    owner = mask.nonzero()[:, 0]
    lengths = mask.sum(-1)
    rank = _rank_in_prompt(owner, lengths)
    sees = torch.arange(slots, device=mask.device) <= rank[:, None]
    tokens = prompts.prompt_ids[mask]
    level = Level(tokens, rank, owner, rank, sees, lengths)
    return level, lengths.cumsum(0) - 1


def grow_level(
    last: Level, parents: Tensor, tokens: Tensor, vocab_size: int
) -> tuple[Level, Tensor]:
    """The next level: one node for each different (parent, token).

    Args:
        last: the level that the parents are in.
        parents: node, within ``last``, that each row continues.
        tokens: the token it continues with.
        vocab_size: V.

    Returns:
        The level, and the node within it of each row.
    """
    level, nodes = without_lock(_grow_level)(last, parents, tokens, vocab_size)
    return Level(*level), nodes  # TorchScript has a type of its own


@no_type_check
def _grow_level(
    last: Level, parents: Tensor, tokens: Tensor, vocab_size: int
) -> tuple[Level, Tensor]:
    """``grow_level``."""
    keys, nodes = torch.unique(parents * vocab_size + tokens, return_inverse=True)
    parent = keys.div(vocab_size, rounding_mode="floor")
    owner = last.prompts[parent]
    counts = torch.bincount(owner, minlength=last.filled.shape[0])
    # keys are sorted by parent, so by prompt: those of a prompt are contiguous
    slots = last.filled[owner] + _rank_in_prompt(owner, counts)
    sees = last.sees[parent].scatter(1, slots.unsqueeze(1), True)
    filled = last.filled + counts
    positions = last.positions[parent] + 1
    level = Level(keys % vocab_size, positions, owner, slots, sees, filled)
    return level, nodes


def build_tree(
    prompts: PromptBatch,
    completion_ids: Int[Tensor, "B T"],
    completion_mask: Bool[Tensor, "B T"],
    vocab_size: int,
) -> PrefixTree:
    """The tree of given completions; groups contiguous.

    The last token of a completion predicts nothing, so it gets no node.
    """
    rows, width = completion_ids.shape
    copies = rows // len(prompts)
    slots = prompts.prompt_ids.shape[1] + copies * (width - 1)
    level, ends = plant_prompts(prompts, slots)
    levels, first = [level], 0  # first: number of this level's first node
    node = ends.repeat_interleave(copies)
    predictor = torch.zeros_like(completion_ids)
    predictor[:, 0] = node
    for place in range(1, width):
        live = completion_mask[:, place].nonzero().squeeze(-1)
        if not len(live):
            break
        first += len(levels[-1].tokens)
        level, grown = grow_level(
            levels[-1], node[live], completion_ids[live, place - 1], vocab_size
        )
        levels.append(level)
        node = node.clone()
        node[live] = grown
        predictor[live, place] = first + grown
    return PrefixTree(join_levels(levels), predictor)


def join_levels(levels: list[Level]) -> Level:
    """All levels as one; slots that nobody uses are cut off."""
    used = int(levels[-1].filled.max())
    parts = [
        torch.cat([getattr(level, name) for level in levels])
        for name in ("tokens", "positions", "prompts", "slots")
    ]
    sees = torch.cat([level.sees[:, :used] for level in levels])
    return Level(*parts, sees, levels[-1].filled)


def sort_by_prompt(level: Level) -> tuple[Level, Tensor | None, Tensor | None]:
    """The same nodes, prompt after prompt.

    Returns:
        The sorted level; the old number of each node; the new number of each node.
        None for both where nothing had to be moved.
    """
    order = level.prompts.argsort(stable=True)
    numbers = torch.arange(len(order), device=order.device)
    if torch.equal(order, numbers):
        return level, None, None
    back = torch.empty_like(order)
    back[order] = numbers
    *parts, filled = level
    return Level(*(part[order] for part in parts), filled), order, back

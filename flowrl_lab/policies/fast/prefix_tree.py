"""Completions of one prompt share beginnings: compute each beginning once.

Sixteen samples of a prompt repeat each other, in their first tokens at the latest.
As a tree of distinct prefixes they need about half of the tokens that sixteen
padded rows need, and what the model says about a token depends on its prefix
alone, so nothing changes but the work.

A node is a prompt token or a distinct non-empty prefix of a prompt's completions;
its state predicts the token after it.  It attends to its ancestors and itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from flowrl_lab.policies.fast.kernels import Nodes, grow
from flowrl_lab.types import PromptBatch

__all__ = ["PrefixTree", "build_tree", "new_nodes", "plant_prompts"]


@dataclass(frozen=True)
class PrefixTree:
    """All prefixes of a batch, and where each token of it is predicted.

    Attributes:
        nodes: every node, parents first; the prompts' own tokens come first of all,
            prompt after prompt.
        predictor: node whose state predicts each completion token; 0 where the
            token does not count.
    """

    nodes: Nodes
    predictor: Int[Tensor, "B T"]

    def __len__(self) -> int:
        return len(self.nodes.tokens)


def new_nodes(room: int) -> Nodes:
    """Room for so many nodes."""
    return Nodes(*(np.empty(room, np.int64) for _ in Nodes._fields))


def plant_prompts(prompts: PromptBatch, nodes: Nodes) -> tuple[int, Tensor]:
    """The prompts' own tokens as the first nodes.

    Args:
        prompts: left-padded; the padding gets no node.
        nodes: gets them.

    Returns:
        How many they are, and the node of each prompt's last token, ``[P]``.
    """
    mask = prompts.prompt_mask
    lengths = mask.sum(-1)
    ends = lengths.cumsum(0) - 1
    count = int(lengths.sum())
    rows = torch.arange(count)
    positions = rows - (ends + 1 - lengths).repeat_interleave(lengths)
    nodes.tokens[:count] = prompts.prompt_ids[mask].numpy()
    nodes.positions[:count] = positions.numpy()
    nodes.parents[:count] = torch.where(positions > 0, rows - 1, -1).numpy()
    return count, ends


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
    nodes = new_nodes(prompts.prompt_mask.numel() + rows * (width - 1))
    end, node = plant_prompts(prompts, nodes)
    first, node = 0, node.repeat_interleave(rows // len(prompts))
    visited = [node]
    for place in range(1, width):
        alive = completion_mask[:, place]
        if not alive.any():
            break
        place_of = np.zeros(rows, np.int64)
        last = grow(
            nodes,
            first,
            end,
            node.numpy(),
            completion_ids[:, place - 1].contiguous().numpy(),
            alive.contiguous().numpy(),
            vocab_size,
            place_of,
        )
        first, end, node = end, last, torch.from_numpy(place_of)
        visited.append(node)
    predictor = torch.zeros_like(completion_ids)
    predictor[:, : len(visited)] = torch.stack(visited, dim=1)
    cut = Nodes(*(table[:end] for table in nodes))
    return PrefixTree(cut, predictor.where(completion_mask, 0))

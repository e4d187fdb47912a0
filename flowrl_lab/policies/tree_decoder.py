"""Sampling on a tree: every distinct prefix goes through the model once.

The prompts are shared out among the workers; each grows the trees of its own, a
level at a time, and they meet where the next tokens are drawn.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from flowrl_lab.policies import tree_passes
from flowrl_lab.policies.prefix_tree import PrefixTree, new_nodes, plant_prompts
from flowrl_lab.policies.tree_grad import Grove
from flowrl_lab.policies.tree_kernels import Nodes
from flowrl_lab.policies.tree_llama import Tape, TreeLlama
from flowrl_lab.policies.tree_passes import Weights
from flowrl_lab.policies.workers import run_together, share
from flowrl_lab.types import PromptBatch

__all__ = ["TreeDecoder", "cut_prompts", "find_tape"]


class TreeDecoder:
    """Next-token logits of the distinct prefixes, and which row is at which.

    Args:
        model: of the policy.
        prompts: P.
        copies: G, completions of each.
        width: T, the most tokens of a completion.
        tapes: of the last rollout, or empty; they are used again if they are large
            enough, and this one's are put there.

    Attributes:
        logits: one row for each distinct prefix, ``[M, V]``.
        node: which of them each completion is at, ``[P * G]``; any for one that has
            ended.
        weights: the weights of the policy that samples.
    """

    def __init__(
        self,
        model: TreeLlama,
        prompts: PromptBatch,
        copies: int,
        width: int,
        tapes: list[Tape],
    ):
        self.weights = model.weights()
        parts = share(len(prompts))
        self._rows = [slice(p.start * copies, p.stop * copies) for p in parts]
        most = prompts.prompt_ids.shape[1] + copies * (width - 1)
        tasks = []
        for number, part in enumerate(parts):
            mine = cut_prompts(prompts, part)
            tape = find_tape(model, tapes, number, len(mine) * most)
            tasks.append(
                partial(_Grower, model, self.weights, mine, copies, width, tape)
            )
        self._growers = run_together(tasks)
        self._gather()

    def _gather(self) -> None:
        """What the workers have found, as one."""
        logits, nodes, first = [], [], 0
        for grower in self._growers:
            logits.append(grower.logits)
            nodes.append(grower.node + first)
            first += len(grower.logits)
        self.logits = torch.from_numpy(np.concatenate(logits))
        self.node = torch.from_numpy(np.concatenate(nodes))

    def step(self, token: Tensor, alive: Tensor) -> None:
        """Append a token to every live row."""
        run_together(
            [
                partial(grower.step, token[rows].numpy(), alive[rows].numpy())
                for grower, rows in zip(self._growers, self._rows, strict=True)
            ]
        )
        self._gather()

    def harvest(self, mask: Tensor) -> list[Grove]:
        """Each worker's trees, grown while sampling, and their activations."""
        return [
            grower.grove(mask[rows])
            for grower, rows in zip(self._growers, self._rows, strict=True)
        ]


class _Grower:
    """One worker's prompts: their tree so far, and which node each row is at."""

    def __init__(
        self,
        model: TreeLlama,
        weights: Weights,
        prompts: PromptBatch,
        copies: int,
        width: int,
        tape: Tape,
    ):
        self._frame, self._weights, self._tape = model.frame, weights, tape
        tape.begin(model.versions())
        self._nodes = new_nodes(tape.room)
        self._depth = prompts.prompt_ids.shape[1] + width - 1
        end, ends = plant_prompts(prompts, self._nodes)
        self._level = 0, end
        self._at = ends.repeat_interleave(copies).numpy()
        self._visited = [self._at]  # node of the tree, for each row
        states = tree_passes.forward(
            self._nodes, 0, end, self._depth, self._frame, weights, tape.tables
        )
        self._states = [states]
        self.logits = states @ self._frame.head.T

    @property
    def node(self) -> np.ndarray:
        """Which of the logits each row is at; any for one that has ended."""
        return np.maximum(self._at - self._level[0], 0)

    def step(self, token: np.ndarray, alive: np.ndarray) -> None:
        """Append a token to every live row."""
        if not alive.any():  # another worker's rows are still alive
            self._at = np.zeros_like(self._at)
            self._visited.append(self._at)
            return
        at, self._at = self._at, np.empty_like(self._at)
        end, states, self.logits = tree_passes.grow_forward(
            self._level, at, token, alive, self._depth, self._nodes, self._frame,
            self._weights, self._tape.tables, self._at,
        )  # fmt: skip
        self._level = self._level[1], end
        self._visited.append(self._at)
        self._states.append(states)

    def grove(self, mask: Tensor) -> Grove:
        """The tree of this worker's prompts, and its activations."""
        rows = torch.from_numpy(np.stack(self._visited[: mask.shape[1]], axis=1))
        nodes = Nodes(*(table[: self._level[1]] for table in self._nodes))
        states = torch.from_numpy(np.concatenate(self._states))
        return Grove(PrefixTree(nodes, rows.where(mask, 0)), self._tape, states)


def find_tape(
    model: TreeLlama,
    kept: list[Tape],
    number: int,
    nodes: int,
    layers: int | None = None,
) -> Tape:
    """The kept tape of this number if it is large enough, else a new one instead."""
    if number == len(kept) or kept[number].room < nodes:
        kept[number : number + 1] = [model.new_tape(nodes, layers=layers)]
    return kept[number]


def cut_prompts(prompts: PromptBatch, part: slice) -> PromptBatch:
    """Some of the prompts."""
    return PromptBatch(
        prompts.texts[part],
        prompts.prompt_ids[part],
        prompts.prompt_mask[part],
        prompts.indices[part],
    )

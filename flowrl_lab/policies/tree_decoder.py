"""Sampling on a tree: every distinct prefix goes through the model once.

The prompts are shared out among the workers; each grows the trees of its own, a
level at a time, and they meet where the next tokens are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from flowrl_lab.policies.prefix_tree import (
    Level,
    PrefixTree,
    grow_level,
    join_levels,
    plant_prompts,
)
from flowrl_lab.policies.tree_layers import LayerWeights
from flowrl_lab.policies.tree_llama import Tape, TreeLlama
from flowrl_lab.policies.workers import run_together, share
from flowrl_lab.types import PromptBatch

__all__ = ["Room", "TreeDecoder", "cut_prompts"]


@dataclass(frozen=True)
class Room:
    """Memory for one worker's part of a rollout; the next rollout uses it again."""

    tape: Tape
    cache: list[Tensor]


class TreeDecoder:
    """Next-token logits of the distinct prefixes, and which row is at which.

    Args:
        model: of the policy.
        prompts: P.
        copies: G, completions of each.
        width: T, the most tokens of a completion.
        rooms: of the last rollout, or empty; this one's are put there.

    Attributes:
        logits: one row for each distinct prefix, ``[M, V]``.
        node: which of them each completion is at, ``[P * G]``.
        weights: the weights of the policy that samples.
    """

    def __init__(
        self,
        model: TreeLlama,
        prompts: PromptBatch,
        copies: int,
        width: int,
        rooms: list[Room | None],
    ):
        self.weights = model.weights()
        parts = share(len(prompts))
        self._rows = [slice(p.start * copies, p.stop * copies) for p in parts]
        rooms += [None] * (len(parts) - len(rooms))
        longest = prompts.prompt_ids.shape[1]
        slots = longest + copies * (width - 1)
        tasks = []
        for number, part in enumerate(parts):
            mine = cut_prompts(prompts, part)
            shape = len(mine), slots, max(longest, copies)
            rooms[number] = room = _find_room(model, rooms[number], *shape)
            tasks.append(
                partial(_Grower, model, self.weights, mine, copies, slots, room)
            )
        self._growers = run_together(tasks)
        self._gather()

    def _gather(self) -> None:
        """What the workers have found, as one."""
        growers = self._growers
        starts, first = [], 0
        for grower in growers:
            starts.append(first)
            first += len(grower.logits)
        self.logits = torch.cat([grower.logits for grower in growers])
        self.node = torch.cat(
            [grower.node + start for grower, start in zip(growers, starts, strict=True)]
        )

    def step(self, token: Tensor, alive: Tensor) -> None:
        """Append a token to every live row."""
        run_together(
            [
                partial(grower.step, token[rows], alive[rows])
                for grower, rows in zip(self._growers, self._rows, strict=True)
            ]
        )
        self._gather()

    def harvest(self, mask: Tensor) -> list[tuple[PrefixTree, Tape]]:
        """Each worker's trees, grown while sampling, and their activations."""
        return [
            (grower.tree(mask[rows]), grower.tape.rows(0, grower.tape.length))
            for grower, rows in zip(self._growers, self._rows, strict=True)
        ]


class _Grower:
    """One worker's prompts: their levels so far, and which node each row is at."""

    def __init__(
        self,
        model: TreeLlama,
        weights: list[LayerWeights],
        prompts: PromptBatch,
        copies: int,
        slots: int,
        room: Room,
    ):
        self._model, self._weights = model, weights
        self.tape, self._cache = room.tape, room.cache
        self.tape.length, self.tape.versions = 0, model.versions()
        for table in self._cache:
            table.zero_()  # what an earlier rollout left could be NaN
        self._levels: list[Level] = []
        self._visited: list[Tensor] = []  # node of the tree, for each row
        level, ends = plant_prompts(prompts, slots)
        self._enter(level, ends.repeat_interleave(copies))

    def _enter(self, level: Level, node: Tensor) -> None:
        self._visited.append(self.tape.length + node)
        states = self._model.level_states(level, self._weights, self._cache, self.tape)
        self.logits, self.node = self._model.logits(states), node
        self._levels.append(level)

    def step(self, token: Tensor, alive: Tensor) -> None:
        """Append a token to every live row."""
        live = alive.nonzero().squeeze(-1)
        if not len(live):  # another worker's rows are still alive
            self._visited.append(torch.zeros_like(self.node))
            return
        level, grown = grow_level(
            self._levels[-1], self.node[live], token[live], self.logits.shape[-1]
        )
        node = torch.zeros_like(self.node)
        node[live] = grown
        self._enter(level, node)

    def tree(self, mask: Tensor) -> PrefixTree:
        """The tree of this worker's prompts."""
        rows = torch.stack(self._visited[: mask.shape[1]], dim=1)
        return PrefixTree(join_levels(self._levels), rows.where(mask, 0))


def _find_room(
    model: TreeLlama, room: Room | None, prompts: int, slots: int, width: int
) -> Room:
    """The given room if it is large enough, else a new one."""
    nodes = prompts * slots
    rows = model.count_cache_rows(prompts, slots, width)
    if room is None or room.tape.room < nodes or len(room.cache[0]) < rows:
        return Room(model.new_tape(nodes), model.new_cache(rows))
    return room


def cut_prompts(prompts: PromptBatch, part: slice) -> PromptBatch:
    """Some of the prompts."""
    return PromptBatch(
        prompts.texts[part],
        prompts.prompt_ids[part],
        prompts.prompt_mask[part],
        prompts.indices[part],
    )

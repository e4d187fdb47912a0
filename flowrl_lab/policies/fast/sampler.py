"""Sampling on a tree: every distinct prefix goes through the model once.

The prompts are shared out among the workers; each grows the trees of its own, from
the prompts to the last token, in one compiled call.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from flowrl_lab.policies.fast import passes as tree_passes
from flowrl_lab.policies.fast.gradient import Grove
from flowrl_lab.policies.fast.kernels import Nodes
from flowrl_lab.policies.fast.llama import Tape, TreeLlama
from flowrl_lab.policies.fast.passes import Draws, Weights
from flowrl_lab.policies.fast.prefix_tree import PrefixTree, new_nodes, plant_prompts
from flowrl_lab.policies.fast.workers import run_together, share
from flowrl_lab.types import Completions, PromptBatch

__all__ = ["Sampler", "find_tape"]


@dataclass(frozen=True)
class Sampler:
    """How completions are drawn.

    Args:
        model: that draws them.
        version: of its adapter.
        copies: G, completions of each prompt.
        width: T, the most tokens of a completion.
        temperature: of the draws.
        eos_id: the token that ends a completion.
        pad_id: the token that fills up finished rows.
    """

    model: TreeLlama
    version: int
    copies: int
    width: int
    temperature: float
    eos_id: int
    pad_id: int

    def sample(
        self, prompts: PromptBatch, tapes: list[Tape], generator: torch.Generator
    ) -> tuple[Completions, list[Grove], Weights]:
        """Completions, each worker's trees with their activations, and the weights.

        Args:
            prompts: P of them.
            tapes: of the last rollout, or empty; they are used again if they are large
                enough, and this one's are put there.
            generator: the same draws as ``LanguageModelPolicy`` takes from it.
        """
        before = generator.get_state()
        rows = len(prompts) * self.copies
        noise, weights = run_together(
            [
                partial(self._make_noise, rows, self.width, generator),
                self.model.weights,
            ]
        )
        tasks = self._share_out(prompts, noise, weights, tapes)
        trees, drawn, used = zip(*run_together(tasks), strict=True)
        if max(used) < self.width:  # as if nobody had drawn further
            generator.set_state(before)
            self._make_noise(rows, max(used), generator)
        tokens, mask, log_probs, predictor = (
            torch.from_numpy(np.concatenate(levels, axis=1)[: max(used)].T.copy())
            for levels in zip(*drawn, strict=True)
        )
        parts = predictor.split([one.tokens.shape[1] for one in drawn])
        groves = [
            Grove(PrefixTree(nodes, part), tape, states)
            for part, (nodes, tape, states) in zip(parts, trees, strict=True)
        ]
        return Completions(tokens, mask, log_probs), groves, weights

    def _make_noise(self, rows: int, levels: int, generator) -> Tensor:
        """For an exponential race at every level, ``[levels, rows, V]``."""
        noise = torch.empty(levels, rows, len(self.model.frame.head))
        for level in noise:
            level.exponential_(generator=generator)
        return noise

    def _share_out(
        self, prompts: PromptBatch, noise: Tensor, weights: Weights, tapes: list[Tape]
    ):
        """Each worker's part of the sampling."""
        longest = prompts.prompt_ids.shape[1]
        most, depth = longest + self.copies * (self.width - 1), longest + self.width - 1
        tasks = []
        for number, part in enumerate(share(len(prompts))):
            mine = prompts.part(part)
            tape = find_tape(self.model, tapes, number, (len(mine) * most, depth))
            tape.begin(self.version)
            rows = slice(part.start * self.copies, part.stop * self.copies)
            draws = noise[:, rows].contiguous().numpy()
            tasks.append(partial(self._grow, mine, draws, weights, tape))
        return tasks

    def _grow(
        self, prompts: PromptBatch, noise: np.ndarray, weights: Weights, tape: Tape
    ):
        """One worker's nodes, tape and states; what it drew; for how many levels."""
        nodes = new_nodes(tape.room)
        end, ends = plant_prompts(prompts, nodes)
        shape = noise.shape[:2]
        drawn = Draws(
            np.full(shape, self.pad_id, np.int64),
            np.zeros(shape, bool),
            np.zeros(shape, np.float32),
            np.zeros(shape, np.int64),
        )
        end, used = tree_passes.sample(
            nodes,
            end,
            ends.repeat_interleave(self.copies).numpy(),
            noise,
            np.float32(self.temperature),
            self.eos_id,
            self.model.frame,
            weights,
            tape.tables,
            drawn,
        )
        nodes = Nodes(*(table[:end] for table in nodes))
        states = tape.tables.normed[:end] * self.model.frame.norm
        return (nodes, tape, torch.from_numpy(states)), drawn, used


def find_tape(
    model: TreeLlama,
    kept: list[Tape],
    number: int,
    size: tuple[int, int],
    layers: int | None = None,
) -> Tape:
    """The kept tape of this number if it is large enough, else a new one instead.

    Args:
        model: of the policy.
        kept: tapes by number.
        number: at most one more than there are.
        size: nodes, and how many on a way down.
        layers: as ``TreeLlama.new_tape``.
    """
    if number == len(kept) or not kept[number].holds(*size):
        kept[number : number + 1] = [model.new_tape(*size, layers=layers)]
    return kept[number]

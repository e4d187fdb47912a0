"""The language-model policy, computing every shared prefix once.

Same samples and same log-probs as ``LanguageModelPolicy`` (the tests compare
both), two to three times as fast on a CPU for small models.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl_lab.policies.language_model import LanguageModelPolicy
from flowrl_lab.policies.prefix_tree import (
    Level,
    PrefixTree,
    build_tree,
    grow_level,
    join_levels,
    plant_prompts,
)
from flowrl_lab.policies.tree_attention import TreeGrid
from flowrl_lab.policies.tree_grad import differentiable_states
from flowrl_lab.policies.tree_llama import LayerWeights, Tape, TreeLlama
from flowrl_lab.policies.workers import count_workers, run_together
from flowrl_lab.types import Completions, PromptBatch

__all__ = ["TreeLanguageModelPolicy"]

# Attention over a tree costs slots x slots; beyond this, plain rows are cheaper.
MAX_SLOTS = 1024


@dataclass
class _Part:
    """Some of a batch's prompts: their rows, their tree, and what is known of it."""

    rows: slice
    tree: PrefixTree
    grid: TreeGrid
    tape: Tape | None = None


@dataclass
class _Grown:
    """The trees of one batch, one for each worker."""

    tensors: tuple[Tensor, ...]
    versions: list[int]
    parts: list[_Part]
    weights: list[LayerWeights] | None = None


class TreeLanguageModelPolicy(LanguageModelPolicy):
    """``LanguageModelPolicy`` for models that ``TreeLlama.supports``."""

    def __init__(self, model, **settings):
        super().__init__(model, **settings)
        self._tree_model = TreeLlama(model)
        self._decoder: _Decoders | None = None
        self._grown: _Grown | None = None
        self._tapes: list[Tape] = []  # used again by the next rollout

    def sample(
        self,
        prompts: PromptBatch,
        num_generations: int,
        *,
        temperature: float = 1.0,
        generator: torch.Generator,
    ) -> Completions:
        """As in ``LanguageModelPolicy``; its activations serve ``evaluate``."""
        completions = super().sample(
            prompts, num_generations, temperature=temperature, generator=generator
        )
        decoder, self._decoder = self._decoder, None
        tensors = _key(prompts, completions.completion_ids, completions.completion_mask)
        parts = decoder.parts(completions.completion_mask)
        self._grown = _Grown(tensors, _versions(tensors), parts, decoder.weights)
        return completions

    def _start_decoding(self, prompts: PromptBatch, copies: int):
        model, width = self._tree_model, self.max_completion_tokens
        spans = _share(len(prompts))
        tapes = self._tapes = (self._tapes + [None] * len(spans))[: len(spans)]
        for number, (first, last) in enumerate(spans):
            mask = prompts.prompt_mask[first:last]
            room = int(mask.sum()) + (last - first) * copies * (width - 1)
            if tapes[number] is None or tapes[number].room < room:
                tapes[number] = model.new_tape(room)
        self._grown = None  # its tapes are about to be written over
        self._decoder = _Decoders(model, prompts, copies, width, spans, tapes)
        return self._decoder

    def _score(
        self,
        prompts: PromptBatch,
        completion_ids: Tensor,
        completion_mask: Tensor,
        reference: bool,
    ) -> tuple[Tensor, Tensor]:
        grown = self._grow(prompts, completion_ids, completion_mask)
        if any(part.tree.level.sees.shape[1] > MAX_SLOTS for part in grown.parts):
            return super()._score(prompts, completion_ids, completion_mask, reference)
        states = self._states(grown, reference)
        sizes = [len(part.tree.level) for part in grown.parts]
        predictors = [
            part.tree.predictor + sum(sizes[:number])
            for number, part in enumerate(grown.parts)
        ]
        predictor = torch.cat(predictors)
        return states[predictor], self._tree_model.logits(states)[predictor]

    def _states(self, grown: _Grown, reference: bool) -> Tensor:
        """States of all nodes, from the tapes where they are of the adapter now."""
        model, parts = self._tree_model, grown.parts
        if reference:
            return self._run(parts, model.weights(reference=True), keep=False)
        current = model.versions()
        if any(part.tape is None or part.tape.versions != current for part in parts):
            grown.weights = model.weights()
            for part in parts:
                part.tape = None
            keep = torch.is_grad_enabled()
            states = self._run(parts, grown.weights, keep=keep)
            if not keep:
                return states
        jobs = [(part.tree.level, part.grid, part.tape) for part in parts]
        return differentiable_states(model, grown.weights, jobs)

    def _run(
        self, parts: list[_Part], weights: list[LayerWeights], *, keep: bool
    ) -> Tensor:
        """A pass over all nodes; ``keep`` puts it on new tapes."""

        def run(part: _Part) -> Tensor:
            level = part.tree.level
            if keep:
                part.tape = self._tree_model.new_tape(len(level))
            tape = part.tape if keep else None
            return self._tree_model.states(level, weights, part.grid, tape=tape)

        return torch.cat(run_together([functools.partial(run, p) for p in parts]))

    def _grow(self, prompts: PromptBatch, ids: Tensor, mask: Tensor) -> _Grown:
        """The batch's trees; policy and reference score the same batch in turn.

        Kept while the tensors are the same and unchanged (torch counts a tensor's
        changes in ``_version``).
        """
        tensors, grown = _key(prompts, ids, mask), self._grown
        if grown is not None:
            same = all(a is b for a, b in zip(grown.tensors, tensors, strict=True))
            if same and grown.versions == _versions(tensors):
                return grown
        prompts, copies = prompts.to(self.device), len(ids) // len(prompts)

        def plant(first: int, last: int) -> _Part:
            rows = slice(first * copies, last * copies)
            tree = build_tree(
                prompts.part(first, last), ids[rows], mask[rows],
                self._lm_head.out_features,
            )  # fmt: skip
            return _Part(rows, tree, self._tree_model.new_grid(tree.level))

        tasks = [functools.partial(plant, *span) for span in _share(len(prompts))]
        self._grown = _Grown(tensors, _versions(tensors), run_together(tasks))
        return self._grown


def _key(prompts: PromptBatch, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    return prompts.prompt_ids, prompts.prompt_mask, ids, mask


def _versions(tensors: tuple[Tensor, ...]) -> list[int]:
    return [tensor._version for tensor in tensors]


def _share(prompts: int) -> list[tuple[int, int]]:
    """(first, last) prompt of each worker's part, as even as can be."""
    parts = min(count_workers(), prompts)
    ends = [number * prompts // parts for number in range(parts + 1)]
    return list(itertools.pairwise(ends))


class _Decoders:
    """One decoder for each part of the prompts, side by side."""

    def __init__(self, model, prompts, copies, width, spans, tapes):
        self._model, self.weights = model, model.weights()
        self._rows = [slice(a * copies, b * copies) for a, b in spans]

        def start(span: tuple[int, int], tape: Tape) -> _TreeDecoder:
            part = prompts.part(*span)
            return _TreeDecoder(model, self.weights, part, copies, width, tape)

        pairs = zip(spans, tapes, strict=True)
        self._decoders = run_together([functools.partial(start, *p) for p in pairs])
        self._collect()

    def step(self, token: Tensor, alive: Tensor) -> None:
        """Append a token to every live row."""
        pairs = zip(self._decoders, self._rows, strict=True)
        run_together(
            [functools.partial(d.step, token[rows], alive[rows]) for d, rows in pairs]
        )
        self._collect()

    def _collect(self) -> None:
        """``logits`` [M, V] and ``node`` [B] of all parts."""
        sizes = [len(decoder.logits) for decoder in self._decoders]
        self.logits = torch.cat([decoder.logits for decoder in self._decoders])
        self.node = torch.cat(
            [d.node + sum(sizes[:n]) for n, d in enumerate(self._decoders)]
        )

    def parts(self, completion_mask: Tensor) -> list[_Part]:
        """The trees that were grown while sampling, with their activations."""

        def part(decoder: _TreeDecoder, rows: slice) -> _Part:
            tree = decoder.tree(completion_mask[rows])
            tape = decoder.tape.rows(0, decoder.tape.length)
            return _Part(rows, tree, self._model.new_grid(tree.level), tape)

        pairs = zip(self._decoders, self._rows, strict=True)
        return run_together([functools.partial(part, *pair) for pair in pairs])


class _TreeDecoder:
    """Next-token logits of the distinct prefixes, and which row is at which."""

    def __init__(
        self,
        model: TreeLlama,
        weights: list[LayerWeights],
        prompts: PromptBatch,
        copies: int,
        width: int,
        tape: Tape,
    ):
        self._model, self._weights, self.tape = model, weights, tape
        tape.length = 0
        slots = prompts.prompt_ids.shape[1] + copies * (width - 1)
        self._cache = model.new_cache(len(prompts), slots)
        self._levels: list[Level] = []
        self._rows: list[Tensor] = []  # which node of the tree each row is at
        level, ends = plant_prompts(prompts, slots)
        self._enter(level, ends.repeat_interleave(copies))

    def _enter(self, level: Level, node: Tensor) -> None:
        self._rows.append(self.tape.length + node)
        grid = self._model.new_level_grid(level)
        states = self._model.states(
            level, self._weights, grid, cache=self._cache, tape=self.tape
        )
        self.logits, self.node = self._model.logits(states), node
        self._levels.append(level)

    def step(self, token: Tensor, alive: Tensor) -> None:
        """Append a token to every live row; nothing happens where none lives."""
        live = alive.nonzero().squeeze(-1)
        if not len(live):
            return
        level, grown = grow_level(
            self._levels[-1], self.node[live], token[live], self.logits.shape[-1]
        )
        node = torch.zeros_like(self.node)
        node[live] = grown
        self._enter(level, node)

    def tree(self, completion_mask: Tensor) -> PrefixTree:
        """The tree that was grown while sampling."""
        rows = torch.zeros_like(completion_mask, dtype=torch.long)
        grown = torch.stack(self._rows, dim=1)[:, : completion_mask.shape[1]]
        rows[:, : grown.shape[1]] = grown
        return PrefixTree(join_levels(self._levels), rows.where(completion_mask, 0))

"""The language-model policy, computing every shared prefix once.

Same samples and same log-probs as ``LanguageModelPolicy`` (the tests compare
both), two to three times as fast on a CPU for small models.
"""

from __future__ import annotations

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
from flowrl_lab.policies.tree_grad import differentiable_states
from flowrl_lab.policies.tree_llama import LayerWeights, Tape, TreeLlama
from flowrl_lab.types import Completions, PromptBatch

__all__ = ["TreeLanguageModelPolicy"]

# Attention over a tree costs slots x slots; beyond this, plain rows are cheaper.
MAX_SLOTS = 1024


@dataclass
class _Grown:
    """The tree of one batch, and what is known of it so far."""

    tensors: tuple[Tensor, ...]
    versions: list[int]
    tree: PrefixTree
    tape: Tape | None = None
    weights: list[LayerWeights] | None = None


class TreeLanguageModelPolicy(LanguageModelPolicy):
    """``LanguageModelPolicy`` for models that ``TreeLlama.supports``."""

    def __init__(self, model, **settings):
        super().__init__(model, **settings)
        self._tree_model = TreeLlama(model)
        self._decoder: _TreeDecoder | None = None
        self._grown: _Grown | None = None
        self._tape: Tape | None = None  # used again by the next rollout

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
        tree = decoder.tree(completions.completion_mask)
        tape = decoder.tape.rows(0, decoder.tape.length)
        self._grown = _Grown(tensors, _versions(tensors), tree, tape, decoder.weights)
        return completions

    def _start_decoding(self, prompts: PromptBatch, copies: int):
        model, width = self._tree_model, self.max_completion_tokens
        room = int(prompts.prompt_mask.sum()) + len(prompts) * copies * (width - 1)
        if self._tape is None or self._tape.room < room:
            self._tape = model.new_tape(room)
        self._grown = None  # its tape is about to be written over
        self._decoder = _TreeDecoder(model, prompts, copies, width, self._tape)
        return self._decoder

    def _score(
        self,
        prompts: PromptBatch,
        completion_ids: Tensor,
        completion_mask: Tensor,
        reference: bool,
    ) -> tuple[Tensor, Tensor]:
        grown = self._grow(prompts, completion_ids, completion_mask)
        level = grown.tree.level
        if level.sees.shape[1] > MAX_SLOTS:
            return super()._score(prompts, completion_ids, completion_mask, reference)
        states = self._states(grown, reference)
        logits = self._tree_model.logits(states)
        return states[grown.tree.predictor], logits[grown.tree.predictor]

    def _states(self, grown: _Grown, reference: bool) -> Tensor:
        """States of all nodes, from the tape where it is of the adapter as it is."""
        model, level = self._tree_model, grown.tree.level
        if reference:
            return model.states(level, model.weights(reference=True))
        if grown.tape is None or grown.tape.versions != model.versions():
            grown.weights, grown.tape = model.weights(), None
            if not torch.is_grad_enabled():
                return model.states(level, grown.weights)
            grown.tape = model.new_tape(len(level))
            model.states(level, grown.weights, tape=grown.tape)
        return differentiable_states(model, level, grown.weights, grown.tape)

    def _grow(self, prompts: PromptBatch, ids: Tensor, mask: Tensor) -> _Grown:
        """The batch's tree; policy and reference score the same batch in turn.

        Kept while the tensors are the same and unchanged (torch counts a tensor's
        changes in ``_version``).
        """
        tensors, grown = _key(prompts, ids, mask), self._grown
        if grown is not None:
            same = all(a is b for a, b in zip(grown.tensors, tensors, strict=True))
            if same and grown.versions == _versions(tensors):
                return grown
        tree = build_tree(
            prompts.to(self.device), ids, mask, self._lm_head.out_features
        )
        self._grown = _Grown(tensors, _versions(tensors), tree)
        return self._grown


def _key(prompts: PromptBatch, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    return prompts.prompt_ids, prompts.prompt_mask, ids, mask


def _versions(tensors: tuple[Tensor, ...]) -> list[int]:
    return [tensor._version for tensor in tensors]


class _TreeDecoder:
    """Next-token logits of the distinct prefixes, and which row is at which."""

    def __init__(
        self,
        model: TreeLlama,
        prompts: PromptBatch,
        copies: int,
        width: int,
        tape: Tape,
    ):
        self._model, self.weights, self.tape = model, model.weights(), tape
        tape.length = 0
        slots = prompts.prompt_ids.shape[1] + copies * (width - 1)
        self._cache = model.new_cache(len(prompts), slots)
        self._levels: list[Level] = []
        self._rows: list[Tensor] = []  # which node of the tree each row is at
        level, ends = plant_prompts(prompts, slots)
        self._enter(level, ends.repeat_interleave(copies))

    def _enter(self, level: Level, node: Tensor) -> None:
        self._rows.append(self.tape.length + node)
        states = self._model.states(level, self.weights, self._cache, self.tape)
        self.logits, self.node = self._model.logits(states), node
        self._levels.append(level)

    def step(self, token: Tensor, alive: Tensor) -> None:
        """Append a token to every live row."""
        live = alive.nonzero().squeeze(-1)
        level, grown = grow_level(
            self._levels[-1], self.node[live], token[live], self.logits.shape[-1]
        )
        node = torch.zeros_like(self.node)
        node[live] = grown
        self._enter(level, node)

    def tree(self, completion_mask: Tensor) -> PrefixTree:
        """The tree that was grown while sampling."""
        rows = torch.stack(self._rows[: completion_mask.shape[1]], dim=1)
        return PrefixTree(join_levels(self._levels), rows.where(completion_mask, 0))

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
        tape = Tape.join(decoder.tapes)
        self._grown = _Grown(tensors, _versions(tensors), tree, tape, decoder.weights)
        return completions

    def _start_decoding(self, prompts: PromptBatch, copies: int):
        self._decoder = _TreeDecoder(
            self._tree_model, prompts, copies, self.max_completion_tokens
        )
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
        if reference:
            weights = self._tree_model.weights(reference=True)
            states = self._tree_model.states(level, weights)
        else:
            self._fill(grown)
            states = differentiable_states(
                self._tree_model, level, grown.weights, grown.tape
            )
        logits = self._tree_model.logits(states)
        return states[grown.tree.predictor], logits[grown.tree.predictor]

    def _fill(self, grown: _Grown) -> None:
        """Make sure that the tape is of the adapter as it is now."""
        if (
            grown.tape is not None
            and grown.tape.versions == self._tree_model.versions()
        ):
            return
        grown.tape, grown.weights = Tape(), self._tree_model.weights()
        self._tree_model.states(grown.tree.level, grown.weights, tape=grown.tape)

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

    def __init__(self, model: TreeLlama, prompts: PromptBatch, copies: int, width: int):
        self._model = model
        self.weights = model.weights()
        slots = prompts.prompt_ids.shape[1] + copies * (width - 1)
        self._cache = model.new_cache(len(prompts), slots)
        self._levels: list[Level] = []
        self._rows: list[Tensor] = []  # which node of the tree each row is at
        self.tapes: list[Tape] = []
        self._count = 0
        level, ends = plant_prompts(prompts, slots)
        self._enter(level, ends.repeat_interleave(copies))

    def _enter(self, level: Level, node: Tensor) -> None:
        tape = Tape()
        states = self._model.states(level, self.weights, self._cache, tape)
        self.logits, self.node = self._model.logits(states), node
        self._rows.append(self._count + node)
        self._count += len(level)
        self._levels.append(level)
        self.tapes.append(tape)

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

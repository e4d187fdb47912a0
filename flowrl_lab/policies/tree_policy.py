"""The language-model policy, computing every shared prefix once.

Same samples and same log-probs as ``LanguageModelPolicy`` (the tests compare
both), several times as fast on a CPU for small models.  The prompts of a batch are
shared out among the workers: each has trees of its own, so they meet only where
tokens are drawn and gradients added up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from flowrl_lab.policies.language_model import LanguageModelPolicy, pool_features
from flowrl_lab.policies.prefix_tree import PrefixTree, build_tree
from flowrl_lab.policies.tree_decoder import Room, TreeDecoder, cut_prompts
from flowrl_lab.policies.tree_grad import Grove, differentiable_states
from flowrl_lab.policies.tree_layers import LayerWeights
from flowrl_lab.policies.tree_llama import Tape, TreeLlama
from flowrl_lab.policies.workers import run_together, share
from flowrl_lab.types import Completions, PromptBatch

__all__ = ["TreeLanguageModelPolicy"]

# Attention over a tree costs slots x slots; beyond this, plain rows are cheaper.
MAX_SLOTS = 1024


@dataclass
class _Grown:
    """The trees of one batch, and what is known of them so far.

    Attributes:
        tensors: the batch, by which it is recognised.
        versions: how often each of them had been changed.
        groves: one for each worker.
        weights: those of the groves' tapes.
        prompt_states: the reference's of the prompts, ``[P, S, H]``, once known.
    """

    tensors: tuple[Tensor, ...]
    versions: list[int]
    groves: list[Grove]
    weights: list[LayerWeights] | None = None
    prompt_states: Tensor | None = None

    def holds(self, *tensors: Tensor) -> bool:
        """Whether it is of these tensors, unchanged (torch counts changes)."""
        pairs = zip(self.tensors, tensors, strict=False)
        same = all(mine is other for mine, other in pairs)
        return same and self.versions[: len(tensors)] == _versions(tensors)

    def predictor(self) -> Tensor:
        """Where each token is predicted, ``[B, T]``: nodes of all groves in a row."""
        found, first = [], 0
        for grove in self.groves:
            found.append(grove.tree.predictor + first)
            first += len(grove.tree)
        return torch.cat(found)


class TreeLanguageModelPolicy(LanguageModelPolicy):
    """``LanguageModelPolicy`` for models that ``TreeLlama.supports``.

    Args:
        products: dtype of the layers' products, as ``TreeLlama.narrow``.
    """

    def __init__(self, model, *, products: torch.dtype | None = None, **settings):
        super().__init__(model, **settings)
        self._tree_model = TreeLlama(model)
        self._tree_model.narrow = products
        self._decoder: TreeDecoder | None = None
        self._grown: _Grown | None = None
        self._rooms: list[Room | None] = []  # used again by the next rollout

    @contextlib.contextmanager
    def in_full(self) -> Iterator[None]:
        """Products in the model's own dtype meanwhile: how the referee judges."""
        model = self._tree_model
        narrow, model.narrow = model.narrow, None
        try:
            yield
        finally:
            model.narrow = narrow

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
        grown = decoder.harvest(completions.completion_mask)
        groves = [self._plant(tree, tape) for tree, tape in grown]
        self._grown = _Grown(tensors, _versions(tensors), groves, decoder.weights)
        return completions

    def _start_decoding(self, prompts: PromptBatch, copies: int):
        self._grown = None  # its tapes are about to be written over
        self._decoder = TreeDecoder(
            self._tree_model, prompts, copies, self.max_completion_tokens, self._rooms
        )
        return self._decoder

    def _plant(self, tree: PrefixTree, tape: Tape | None = None) -> Grove:
        return Grove(tree, self._tree_model.tree_grid(tree.level), tape)

    def _score(
        self,
        prompts: PromptBatch,
        completion_ids: Tensor,
        completion_mask: Tensor,
        reference: bool,
    ) -> tuple[Tensor, Tensor]:
        grown = self._grow(prompts, completion_ids, completion_mask)
        if any(grove.tree.level.sees.shape[1] > MAX_SLOTS for grove in grown.groves):
            return super()._score(prompts, completion_ids, completion_mask, reference)
        states = self._reference(grown) if reference else self._states(grown)
        logits, place = self._tree_model.logits(states), grown.predictor()
        return states[place], logits[place]

    def _reference(self, grown: _Grown) -> Tensor:
        """The frozen model's states of all nodes."""
        states = self._run(grown.groves, self._tree_model.weights(reference=True))
        grown.prompt_states = _find_prompts(grown.tensors[1], grown.groves, states)
        pairs = zip(grown.groves, states, strict=True)
        return torch.cat([grove.grid.take(part) for grove, part in pairs])

    def _states(self, grown: _Grown) -> Tensor:
        """The policy's, from the tapes where they are of the adapter as it is."""
        model, now = self._tree_model, self._tree_model.versions()
        if any(g.tape is None or g.tape.versions != now for g in grown.groves):
            grown.weights = model.weights()
            grown.groves = [self._plant(g.tree.sorted()) for g in grown.groves]
            if not torch.is_grad_enabled():
                return torch.cat(self._run(grown.groves, grown.weights))
            for grove in grown.groves:
                grove.tape = model.new_tape(len(grove.tree))
            self._run(grown.groves, grown.weights, keep=True)
        return differentiable_states(model, grown.groves, grown.weights)

    def _run(
        self, groves: list[Grove], weights: list[LayerWeights], keep: bool = False
    ) -> list[Tensor]:
        """States of each grove's nodes, prompt after prompt; ``keep`` fills tapes."""
        run = self._tree_model.tree_states
        return run_together(
            [partial(run, g.grid, weights, g.tape if keep else None) for g in groves]
        )

    def _grow(self, prompts: PromptBatch, ids: Tensor, mask: Tensor) -> _Grown:
        """The batch's trees, kept: policy and reference score a batch in turn."""
        tensors = _key(prompts, ids, mask)
        if self._grown is not None and self._grown.holds(*tensors):
            return self._grown
        here, copies = prompts.to(self.device), len(ids) // len(prompts)
        vocab_size = self._lm_head.out_features

        def plant(part: slice) -> Grove:
            rows = slice(part.start * copies, part.stop * copies)
            mine = cut_prompts(here, part)
            return self._plant(
                build_tree(mine, ids[rows], mask[rows], vocab_size).sorted()
            )

        groves = run_together([partial(plant, part) for part in share(len(prompts))])
        self._grown = _Grown(tensors, _versions(tensors), groves)
        return self._grown

    def prompt_features(self, prompts: PromptBatch, pooling: str = "last") -> Tensor:
        """As in ``LanguageModelPolicy``; known already where the reference has
        scored completions of these prompts."""
        grown, tensors = self._grown, (prompts.prompt_ids, prompts.prompt_mask)
        if grown is None or grown.prompt_states is None or not grown.holds(*tensors):
            return super().prompt_features(prompts, pooling)
        return pool_features(grown.prompt_states, prompts.prompt_mask, pooling)


def _find_prompts(mask: Tensor, groves: list[Grove], states: list[Tensor]) -> Tensor:
    """States of the prompts' own tokens, left-padded as the prompts are."""
    filled = torch.cat([grove.grid.level.filled for grove in groves])
    first = filled.cumsum(0) - filled  # prompt after prompt, its own tokens first
    place = first[:, None] + (mask.cumsum(-1) - 1).clamp(min=0)
    return torch.cat(states)[place]


def _key(prompts: PromptBatch, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    return prompts.prompt_ids, prompts.prompt_mask, ids, mask


def _versions(tensors: tuple[Tensor, ...]) -> list[int]:
    return [tensor._version for tensor in tensors]

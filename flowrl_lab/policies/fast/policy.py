"""The language-model policy, computing every shared prefix once.

Same samples and same log-probs as ``LanguageModelPolicy`` (the tests compare
both), several times as fast on a CPU for small models.  The prompts of a batch are
shared out among the workers: each has trees of its own, so they meet only where
tokens are drawn and gradients added up.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from flowrl_lab._validation import (
    bad_input,
    check_count,
    check_finite,
    check_number,
)
from flowrl_lab.policies.fast import passes as tree_passes
from flowrl_lab.policies.fast.gradient import Grove, differentiable_states
from flowrl_lab.policies.fast.llama import Tape, TreeLlama, count_depth
from flowrl_lab.policies.fast.passes import Weights
from flowrl_lab.policies.fast.prefix_tree import build_tree
from flowrl_lab.policies.fast.sampler import Sampler, find_tape
from flowrl_lab.policies.fast.workers import run_together, share
from flowrl_lab.policies.language_model import LanguageModelPolicy, pool_features
from flowrl_lab.types import Completions, PromptBatch

__all__ = ["TreeLanguageModelPolicy"]


@dataclass
class _Grown:
    """The trees of one batch, and what is known of them so far.

    Attributes:
        tensors: the batch, by which it is recognised.
        versions: how often each of them had been changed.
        groves: one for each worker.
        weights: those of the groves' tapes.
        reference: its states of the nodes of each grove, once known.
    """

    tensors: tuple[Tensor, ...]
    versions: list[int]
    groves: list[Grove]
    weights: Weights | None = None
    reference: list[Tensor] | None = None

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

    Raises:
        ValueError: another model.
    """

    def __init__(self, model, *, eos_id: int, pad_id: int, **settings):
        if settings.get("ended") is not None:
            raise bad_input(
                "ended",
                "is given",
                "None: here an end token ends a completion",
                "use LanguageModelPolicy",
            )
        super().__init__(model, eos_id=eos_id, pad_id=pad_id, **settings)
        self._tree_model = TreeLlama(model)
        tree_passes.warm_up()
        self._grown: _Grown | None = None
        # used again by the next rollout, and by the next pass that keeps nothing
        self._tapes: list[Tape] = []
        self._scratch: list[Tape] = []

    def sample(
        self,
        prompts: PromptBatch,
        num_generations: int,
        *,
        temperature: float = 1.0,
        generator: torch.Generator,
    ) -> Completions:
        """As in ``LanguageModelPolicy``; its activations serve ``evaluate``."""
        check_number("temperature", temperature, above=True)
        check_count("num_generations", num_generations)
        _check_words(prompts, len(self._tree_model.frame.head))
        self._grown = None  # its tapes are about to be written over
        sampler = Sampler(
            self._tree_model,
            self._tree_model.version(),
            num_generations,
            self.max_completion_tokens,
            temperature,
            self.eos_id,
            self.pad_id,
        )
        drawn, groves, weights = sampler.sample(
            prompts.to(self.device), self._tapes, generator
        )
        tensors = _key(prompts, drawn.completion_ids, drawn.completion_mask)
        self._grown = _Grown(tensors, _versions(tensors), groves, weights)
        return drawn

    def _token_scores(
        self,
        prompts: PromptBatch,
        completion_ids: Tensor,
        completion_mask: Tensor,
        temperature: float,
        reference: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As in ``LanguageModelPolicy``; softmax and entropy once a node."""
        grown = self._grow(prompts, completion_ids, completion_mask)
        states = self._reference(grown) if reference else self._states(grown)
        place, logits = grown.predictor(), self._tree_model.logits(states)
        log_probs = (logits / temperature).log_softmax(-1)
        entropies = -(log_probs.exp() * log_probs).sum(-1)  # no word is banned here
        check_finite({"logits": entropies})
        picked = place * logits.shape[1] + completion_ids
        flat = place.flatten()  # to select rows is faster than to index with a table
        return (
            states.index_select(0, flat).unflatten(0, place.shape),
            log_probs.flatten().gather(0, picked.flatten()).view_as(place),
            entropies.gather(0, flat).view_as(place),
        )

    def _reference(self, grown: _Grown) -> Tensor:
        """The frozen model's states of all nodes."""
        states = self._run(grown.groves, self._tree_model.weights(reference=True))
        grown.reference = states
        return torch.cat(states)

    def _states(self, grown: _Grown) -> Tensor:
        """The policy's, from the tapes where they are of the adapter as it is."""
        model, now = self._tree_model, self._tree_model.version()
        if any(g.tape is None or g.tape.version != now for g in grown.groves):
            grown.weights = model.weights()
            if not torch.is_grad_enabled():
                return torch.cat(self._run(grown.groves, grown.weights))
            trees = [grove.tree for grove in grown.groves]
            tapes = [model.new_tape(len(t), count_depth(t.nodes)) for t in trees]
            for tape in tapes:
                tape.begin(now)
            states = run_together(
                [
                    partial(model.states, tree.nodes, grown.weights, tape)
                    for tree, tape in zip(trees, tapes, strict=True)
                ]
            )
            grown.groves = list(map(Grove, trees, tapes, states))
        return differentiable_states(model, grown.groves, grown.weights)

    def _run(self, groves: list[Grove], weights: Weights) -> list[Tensor]:
        """States of each grove's nodes; nothing else is kept."""
        model, passes = self._tree_model, []
        for number, grove in enumerate(groves):
            nodes = grove.tree.nodes
            size = len(grove.tree), count_depth(nodes)
            tape = find_tape(model, self._scratch, number, size, layers=1)
            passes.append(partial(model.states, nodes, weights, tape))
        return run_together(passes)

    def _grow(self, prompts: PromptBatch, ids: Tensor, mask: Tensor) -> _Grown:
        """The batch's trees, kept: policy and reference score a batch in turn."""
        tensors = _key(prompts, ids, mask)
        if self._grown is not None and self._grown.holds(*tensors):
            return self._grown
        _check_words(prompts, self._lm_head.out_features)
        here, copies = prompts.to(self.device), len(ids) // len(prompts)
        vocab_size = self._lm_head.out_features

        def plant(part: slice) -> Grove:
            rows = slice(part.start * copies, part.stop * copies)
            mine = here.part(part)
            return Grove(build_tree(mine, ids[rows], mask[rows], vocab_size))

        groves = run_together([partial(plant, part) for part in share(len(prompts))])
        self._grown = _Grown(tensors, _versions(tensors), groves)
        return self._grown

    def prompt_features(self, prompts: PromptBatch, pooling: str = "last") -> Tensor:
        """As in ``LanguageModelPolicy``; known already where the reference has
        scored completions of these prompts."""
        grown, tensors = self._grown, (prompts.prompt_ids, prompts.prompt_mask)
        if grown is None or grown.reference is None or not grown.holds(*tensors):
            return super().prompt_features(prompts, pooling)
        states = _find_prompts(prompts.prompt_mask, grown.reference)
        return pool_features(states, prompts.prompt_mask, pooling)


def _check_words(prompts: PromptBatch, vocab_size: int) -> None:
    """Compiled code does not look where it reads, so look before.

    Raises:
        ValueError: a token that is not in the vocabulary, or a prompt without any.
    """
    if not prompts.prompt_mask.any(-1).all():
        raise bad_input(
            "prompts", "have one without a token", "at least one each", "leave it out"
        )
    low, high = torch.stack(prompts.prompt_ids.aminmax()).tolist()
    if low < 0 or high >= vocab_size:
        raise bad_input(
            "prompt_ids",
            f"range from {low} to {high}",
            f"0 to {vocab_size - 1}",
            "encode the prompts with this model's task",
        )


def _find_prompts(mask: Tensor, states: list[Tensor]) -> Tensor:
    """States of the prompts' own tokens, left-padded as the prompts are.

    Args:
        mask: of the prompts, ``[P, S]``.
        states: of the trees of each worker's share of them; the prompts come first.
    """
    parts = []
    for part, rows in zip(share(len(mask)), states, strict=True):
        mine = mask[part]
        first = mine.sum(-1).cumsum(0) - mine.sum(-1)
        place = first[:, None] + (mine.cumsum(-1) - 1).clamp(min=0)
        parts.append(rows[place])
    return torch.cat(parts)


def _key(prompts: PromptBatch, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
    return prompts.prompt_ids, prompts.prompt_mask, ids, mask


def _versions(tensors: tuple[Tensor, ...]) -> list[int]:
    return [tensor._version for tensor in tensors]

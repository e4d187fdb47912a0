"""The language-model policy, computing every shared prefix once.

Same samples and same log-probs as ``LanguageModelPolicy`` (the tests compare
both), two to three times as fast on a CPU for small models.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from flowrl_lab.policies.language_model import LanguageModelPolicy
from flowrl_lab.policies.prefix_tree import (
    Level,
    PrefixTree,
    build_tree,
    grow_level,
    plant_prompts,
)
from flowrl_lab.policies.tree_llama import TreeLlama
from flowrl_lab.tokens import entropy_from_logits, gather_log_probs
from flowrl_lab.types import Completions, PolicyOutput, PromptBatch

__all__ = ["TreeLanguageModelPolicy"]

# Attention over a tree costs slots x slots; beyond this, plain rows are cheaper.
MAX_SLOTS = 1024


class TreeLanguageModelPolicy(LanguageModelPolicy):
    """``LanguageModelPolicy`` for models that ``TreeLlama.supports``."""

    def __init__(self, model, **settings):
        super().__init__(model, **settings)
        self._tree_model = TreeLlama(model)
        self._grown: tuple[Tensor, Tensor, PrefixTree] | None = None

    @torch.no_grad()
    def sample(
        self,
        prompts: PromptBatch,
        num_generations: int,
        *,
        temperature: float = 1.0,
        generator: torch.Generator,
    ) -> Completions:
        """Draw completions token by token; rows that agree so far are one row."""
        if temperature <= 0:
            raise ValueError(
                f"temperature is {temperature}; expected a number above 0. "
                "Fix: use 1.0 to sample from the policy itself."
            )
        decode = _TreeDecoder(self._tree_model, prompts.to(self.device),
                              num_generations, self.max_completion_tokens)  # fmt: skip
        rows = len(prompts) * num_generations
        alive = torch.ones(rows, dtype=torch.bool, device=self.device)
        tokens, masks, log_probs = [], [], []
        for position in range(self.max_completion_tokens):
            scaled = decode.logits.float() / temperature
            noise = scaled.new_empty(rows, scaled.shape[-1])
            noise.exponential_(generator=generator)  # an exponential race
            token = (scaled.softmax(-1)[decode.node] / noise).argmax(-1)
            token = torch.where(alive, token, self.pad_id)
            chosen = scaled.log_softmax(-1)[decode.node, token]
            tokens.append(token)
            masks.append(alive)
            log_probs.append(torch.where(alive, chosen, 0.0))
            alive = alive & (token != self.eos_id)
            if position + 1 == self.max_completion_tokens or not alive.any():
                break
            decode.step(token, alive)
        return Completions(
            *(torch.stack(rows, dim=1) for rows in (tokens, masks, log_probs))
        )

    def evaluate(
        self,
        prompts: PromptBatch,
        completion_ids: Tensor,
        completion_mask: Tensor,
        *,
        temperature: float = 1.0,
        reference: bool = False,
    ) -> PolicyOutput:
        """Teacher-forced log-probs and entropies of given completions."""
        tree = self._tree(prompts, completion_ids, completion_mask)
        if tree.level.sees.shape[1] > MAX_SLOTS:
            return super().evaluate(
                prompts, completion_ids, completion_mask,
                temperature=temperature, reference=reference,
            )  # fmt: skip
        with torch.no_grad() if reference else contextlib.nullcontext():
            weights = self._tree_model.weights(reference=reference)
            states = self._tree_model.states(tree.level, weights)
            logits = self._tree_model.logits(states)[tree.predictor]
        log_probs = gather_log_probs(logits, completion_ids, temperature=temperature)
        entropies = entropy_from_logits(logits, temperature=temperature)
        zero = log_probs.new_zeros(())
        return PolicyOutput(
            torch.where(completion_mask, log_probs, zero),
            torch.where(completion_mask, entropies, zero),
            states[tree.predictor],
        )

    def _tree(self, prompts: PromptBatch, ids: Tensor, mask: Tensor) -> PrefixTree:
        """The batch's tree; policy and reference score the same batch in turn."""
        if (
            self._grown is None
            or self._grown[0] is not ids
            or self._grown[1] is not mask
        ):
            tree = build_tree(
                prompts.to(self.device), ids, mask, self._lm_head.out_features
            )
            self._grown = (ids, mask, tree)
        return self._grown[2]


class _TreeDecoder:
    """Next-token logits of the distinct prefixes, and which row is at which."""

    def __init__(self, model: TreeLlama, prompts: PromptBatch, copies: int, width: int):
        self._model = model
        self._weights = model.weights()
        slots = prompts.prompt_ids.shape[1] + copies * (width - 1)
        self._cache = model.new_cache(len(prompts), slots)
        level, ends = plant_prompts(prompts, slots)
        self._enter(level, ends.repeat_interleave(copies))

    def _enter(self, level: Level, node: Tensor) -> None:
        self._level, self.node = level, node
        states = self._model.states(level, self._weights, self._cache)
        self.logits = self._model.logits(states)

    def step(self, token: Tensor, alive: Tensor) -> None:
        """Append a token to every live row."""
        live = alive.nonzero().squeeze(-1)
        level, grown = grow_level(
            self._level, self.node[live], token[live], self.logits.shape[-1]
        )
        node = torch.zeros_like(self.node)
        node[live] = grown
        self._enter(level, node)

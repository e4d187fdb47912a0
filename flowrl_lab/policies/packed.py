"""Any causal language model as a policy that computes each shared beginning once.

All prompts of a batch and all their completions are written into *one* sequence, as
a tree: a beginning that several rows share (the examples in front of every question,
the first tokens of an answer) stands there once.  An attention mask lets a token see
its own beginning only, so what the model says does not change; the tests compare it
with one plain pass for each row.

Unlike ``policies.fast`` this asks nothing of the model but a mask and positions, and
autograd does the backward pass, so it works for every dtype and device, and for every
architecture whose layers obey both.  ``self_check`` tries that out; other models, and
rows longer than a layer's window, are computed in rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from flowrl_lab.policies.changes import ChangeCounter
from flowrl_lab.policies.language_model import (
    LanguageModelPolicy,
    as_cache,
    pick_prompts,
    pool_features,
)
from flowrl_lab.policies.plain_rows import PlainDecoder, plain_states
from flowrl_lab.policies.self_check import Ways, is_as_sampled
from flowrl_lab.types import Completions, PolicyOutput, PromptBatch

__all__ = ["PackedLanguageModelPolicy", "Packing", "pack_prompts", "pack_rows"]

# Attention costs nodes x nodes: up to here it does not count, ...
MAX_NODES = 1024
# ... and with so many nodes it is taken to cost as much as all else.  On the safe
# side: for SmolLM2-135M on two cores that seems to be nearer 2,700 (rough timings).
EQUAL_COST_NODES = 1536
# Longer completions hardly ever come twice.
MEMO_TOKENS = 8


class Packing:
    """A growing tree of tokens, parents before children.

    Attributes:
        tokens: the token of each node.
        depths: how many tokens come before it.
        sees: ``[N, N]``, which nodes each node attends to: its beginning and itself.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.depths: list[int] = []
        self.sees = np.zeros((0, 0), dtype=bool)
        self._parents: list[int] = []
        self._children: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, parent: int, token: int) -> int:
        """The child of ``parent`` (-1: none) with that token, made if there is none."""
        if (parent, token) not in self._children:
            self._children[parent, token] = self.grow(parent, token)
        return self._children[parent, token]

    def grow(self, parent: int, token: int) -> int:
        """A new child of ``parent``, even where it has one with that token."""
        self.tokens.append(token)
        self._parents.append(parent)
        self.depths.append(0 if parent < 0 else self.depths[parent] + 1)
        return len(self.tokens) - 1

    def path(self, tokens: list[int], parent: int = -1) -> list[int]:
        """The nodes of a row of tokens that follows ``parent``."""
        nodes = []
        for token in tokens:
            parent = self.add(parent, token)
            nodes.append(parent)
        return nodes

    def mask(self, first: int, dtype: torch.dtype, device) -> Tensor:
        """What is added to the attention scores of nodes ``first`` and later."""
        done, total = len(self.sees), len(self)
        grown = np.zeros((total, total), dtype=bool)
        grown[:done, :done] = self.sees
        for node in range(done, total):
            if self._parents[node] >= 0:
                grown[node] = grown[self._parents[node]]
            grown[node, node] = True
        self.sees = grown
        seen = torch.from_numpy(grown[first:]).to(device)
        mask = torch.zeros(seen.shape, dtype=dtype, device=device)
        return mask.masked_fill(~seen, torch.finfo(dtype).min)[None, None]


def pack_prompts(prompts: PromptBatch) -> tuple[Packing, list[list[int]]]:
    """The prompts in one tree, and the nodes of each."""
    packing = Packing()
    return packing, [packing.path(row) for row in _rows(prompts)]


def pack_rows(
    prompts: PromptBatch, completion_ids: Tensor, completion_mask: Tensor
) -> tuple[Packing, Tensor]:
    """Every prompt and completion in one tree.

    Returns:
        The tree, and ``[B, T]``, the node whose state predicts each completion
        token (0 where the token does not count).
    """
    packing, paths = pack_prompts(prompts)
    copies = len(completion_ids) // len(prompts)
    starts = [path[-1] for path in paths for _ in range(copies)]
    predictor = np.zeros(completion_ids.shape, dtype=np.int64)
    rows = zip(completion_ids.tolist(), completion_mask.sum(-1).tolist(), strict=True)
    for number, (ids, length) in enumerate(rows):
        if length:
            nodes = packing.path(ids[: length - 1], starts[number])
            predictor[number, :length] = [starts[number], *nodes]
    return packing, torch.from_numpy(predictor)


def _rows(prompts: PromptBatch) -> list[list[int]]:
    """The prompts' tokens without padding."""
    pairs = zip(prompts.prompt_ids, prompts.prompt_mask, strict=True)
    return [ids[mask].tolist() for ids, mask in pairs]


@dataclass
class _Grown:
    """What sampling computed, with its gradient: the first update reads it again."""

    completion_ids: Tensor
    version: int  # of the adapter
    states: Tensor  # [N, H]
    predictor: Tensor  # [B, T]: the node that predicts each token


class PackedLanguageModelPolicy(LanguageModelPolicy):
    """``LanguageModelPolicy`` with one packed sequence in the place of rows.

    Sampling keeps its activations, so the first update on a batch needs no forward
    pass of its own; what the reference says about a short completion is remembered,
    since it never changes.
    """

    def __init__(self, model, **settings):
        super().__init__(model, **settings)
        self.ways = Ways()
        self._proven = 0  # the longest row whose samples were compared
        self._decoder: _PackedDecoder | None = None
        self._grown: _Grown | None = None
        self._changes = ChangeCounter(
            lambda: [weight.detach().clone() for weight in self.trainable_parameters()]
        )

    def sample(
        self,
        prompts: PromptBatch,
        num_generations: int,
        *,
        temperature: float = 1.0,
        generator: torch.Generator,
    ) -> Completions:
        """As in ``LanguageModelPolicy``; its activations serve ``evaluate``."""
        self._grown = self._decoder = None
        sampled = super().sample(
            prompts, num_generations, temperature=temperature, generator=generator
        )
        if self._decoder is not None:
            decoder, self._decoder = self._decoder, None
            self._grown = _Grown(
                sampled.completion_ids,
                self._changes.count(),
                torch.cat(decoder.states),
                torch.stack(decoder.predictors, dim=1),
            )
        elif self._is_doubtful(prompts, sampled, temperature):
            self.ways = replace(self.ways, cached=False)
            return self.sample(
                prompts, num_generations, temperature=temperature, generator=generator
            )
        return sampled

    @torch.no_grad()
    def _is_doubtful(
        self, prompts: PromptBatch, sampled: Completions, temperature: float
    ) -> bool:
        """Whether a cache gives other log-probs, in the first rows past a window."""
        longest = prompts.prompt_ids.shape[1] + sampled.completion_ids.shape[1]
        if not self.ways.cached or longest <= max(self.ways.window, self._proven):
            return False
        self._proven = longest
        prompts = prompts.to(self.device)
        return not is_as_sampled(self, prompts, sampled, temperature)

    def _start_decoding(self, prompts: PromptBatch, copies: int):
        packing, paths = pack_prompts(prompts)
        most = len(paths) * copies * (self.max_completion_tokens - 1)
        if self._packs(len(packing) + most, int(prompts.prompt_mask.sum()) + most):
            starts = [path[-1] for path in paths]
            self._decoder = _PackedDecoder(self, packing, starts, copies)
            return self._decoder
        if self.ways.cached:
            return super()._start_decoding(prompts, copies)
        return PlainDecoder(self, prompts, copies)

    def _packs(self, nodes: int, in_rows: int) -> bool:
        """Whether so many nodes go through the model as a tree, or rather in rows."""
        if not self.ways.packed or nodes > self.ways.window:
            return False
        cost = nodes * (1 + nodes / EQUAL_COST_NODES)
        return nodes <= MAX_NODES or cost <= in_rows

    def evaluate(
        self,
        prompts: PromptBatch,
        completion_ids: Tensor,
        completion_mask: Tensor,
        *,
        temperature: float = 1.0,
        reference: bool = False,
    ) -> PolicyOutput:
        """As in ``LanguageModelPolicy``; short rows of the reference are remembered."""
        score = partial(super().evaluate, temperature=temperature, reference=reference)
        if not reference or completion_ids.shape[1] > MEMO_TOKENS:
            return score(prompts, completion_ids, completion_mask)
        return self._remember(
            prompts, completion_ids, completion_mask, temperature, score
        )

    def _completion_states(
        self, prompts: PromptBatch, completion_ids: Tensor, completion_mask: Tensor
    ) -> Tensor:
        packed = self._packed_states(prompts, completion_ids, completion_mask)
        if packed is None:
            return self._row_states(prompts, completion_ids, completion_mask)
        states, predictor = packed
        return states[predictor]

    def _row_states(
        self, prompts: PromptBatch, completion_ids: Tensor, completion_mask: Tensor
    ) -> Tensor:
        longest = prompts.prompt_ids.shape[1] + completion_ids.shape[1]
        if self.ways.shared and longest <= self.ways.window:
            return super()._completion_states(prompts, completion_ids, completion_mask)
        return plain_states(self._backbone, prompts, completion_ids)

    def _packed_states(
        self, prompts: PromptBatch, completion_ids: Tensor, completion_mask: Tensor
    ) -> tuple[Tensor, Tensor] | None:
        """States of nodes [N, H], and which of them predicts each token [B, T].

        None where the rows are too long, or the model asks for rows.
        """
        grown = self._grown
        if grown is not None and torch.is_grad_enabled():
            self._grown = None  # its graph serves one backward pass
            same = grown.completion_ids is completion_ids
            if same and grown.version == self._changes.count():
                return grown.states, grown.predictor
        if not self.ways.packed:
            return None
        packing, predictor = pack_rows(prompts, completion_ids, completion_mask)
        in_rows = int(prompts.prompt_mask.sum()) + completion_ids.numel()
        if not self._packs(len(packing), in_rows):
            return None
        states = self._run_nodes(packing, 0).last_hidden_state[0]
        return states, predictor.to(states.device)

    def _pooled_states(self, prompts: PromptBatch, pooling: str) -> Tensor:
        packing, paths = pack_prompts(prompts)
        if self._packs(len(packing), int(prompts.prompt_mask.sum())):
            states = self._run_nodes(packing, 0).last_hidden_state[0]
            rows = [states[path][None].float() for path in paths]
        else:  # alone and unpadded, which suits every model
            run = partial(self._backbone, use_cache=False)
            alone = [torch.tensor([r], device=self.device) for r in _rows(prompts)]
            rows = [run(input_ids=ids).last_hidden_state.float() for ids in alone]
        return torch.cat(
            [pool_features(r, r.new_ones(r.shape[:2]), pooling) for r in rows]
        )

    def _remember(
        self,
        prompts: PromptBatch,
        completion_ids: Tensor,
        completion_mask: Tensor,
        temperature: float,
        score: Callable[..., PolicyOutput],
    ) -> PolicyOutput:
        """Score the rows that were never seen; look up the others."""
        copies = len(completion_ids) // len(prompts)
        lengths = completion_mask.sum(-1).tolist()
        owners = [number for number in range(len(prompts)) for _ in range(copies)]
        keys = [
            f"{prompts.texts[owner]}\n{temperature!r} {ids[:length]}"
            for owner, ids, length in zip(
                owners, completion_ids.tolist(), lengths, strict=True
            )
        ]
        first = {key: row for row, key in reversed(list(enumerate(keys)))}
        new = [row for key, row in first.items() if key not in self.reference_memo]
        if new:
            asked = pick_prompts(prompts, [owners[row] for row in new])
            output = score(asked, completion_ids[new], completion_mask[new])
            for place, row in enumerate(new):
                both = (output.log_probs[place], output.entropies[place])
                kept = [part[: lengths[row]].tolist() for part in both]
                self.reference_memo[keys[row]] = kept
        found = torch.zeros(2, *completion_ids.shape, device=self.device)
        for row, key in enumerate(keys):
            known = torch.tensor(self.reference_memo[key], device=self.device)
            found[:, row, : lengths[row]] = known
        return PolicyOutput(*found, found.new_zeros(*completion_ids.shape, 0))

    def _run_nodes(self, packing: Packing, first: int, cache=None):
        """The backbone's output for nodes ``first`` and later."""
        device, dtype = self.device, self._backbone.dtype
        return self._backbone(
            input_ids=torch.tensor([packing.tokens[first:]], device=device),
            position_ids=torch.tensor([packing.depths[first:]], device=device),
            attention_mask=packing.mask(first, dtype, device),
            use_cache=cache is not None,
            **as_cache(self._backbone, cache),
        )


class _PackedDecoder:
    """Next-token logits of the distinct beginnings, and which row is at which.

    Attributes:
        states: of the nodes, level by level, with their gradients.
        predictors: for each token, the node that each row is at.
    """

    def __init__(
        self,
        policy: PackedLanguageModelPolicy,
        packing: Packing,
        starts: list[int],
        copies: int,
    ):
        from transformers import DynamicCache

        self._policy, self._packing = policy, packing
        self._cache = DynamicCache(config=policy._backbone.config)
        self.states: list[Tensor] = []
        self.predictors: list[Tensor] = []
        states = self._run(0)
        self.logits = policy._lm_head(states[starts])
        rows = torch.arange(len(starts), device=states.device)
        self.node = rows.repeat_interleave(copies)
        self._move_to([start for start in starts for _ in range(copies)])

    def _run(self, first: int) -> Tensor:
        with torch.enable_grad():
            output = self._policy._run_nodes(self._packing, first, self._cache)
            self.states.append(output.last_hidden_state[0])
        return self.states[-1].detach()

    def _move_to(self, nodes: list[int]) -> None:
        self._at = nodes
        self.predictors.append(torch.tensor(nodes, device=self.node.device))

    def step(self, token: Tensor, alive: Tensor) -> None:
        """Feed one token to every live row; equal beginnings are fed once."""
        first, at = len(self._packing), list(self._at)
        grown: dict[tuple[int, int], int] = {}
        tokens, node = token.tolist(), [0] * len(token)
        for row in alive.nonzero().squeeze(-1).tolist():
            key = (at[row], tokens[row])
            if key not in grown:
                # Another prompt may go on in this very way; its states are gone.
                grown[key] = self._packing.grow(*key)
            at[row] = grown[key]
            node[row] = at[row] - first
        self.logits = self._policy._lm_head(self._run(first))
        self.node = torch.tensor(node, device=token.device)
        self._move_to(at)

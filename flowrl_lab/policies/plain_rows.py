"""Rows as a model reads them by itself: whole, without padding before them or a cache.

Right for every causal language model, whatever its layers remember and however they
count positions, since nothing is shared between rows.  Slow in sampling, where each
token is computed from the beginning of its row.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowrl_lab.types import PromptBatch

__all__ = ["PlainDecoder", "plain_states"]


def plain_states(
    backbone, prompts: PromptBatch, completion_ids: Int[Tensor, "B T"]
) -> Float[Tensor, "B T H"]:
    """The states that predict each completion token.

    Rows of different lengths are filled up at their ends, which a causal model does
    not see.

    Args:
        backbone: the model without its head.
        prompts: P of them, left-padded.
        completion_ids: B a multiple of P, groups contiguous.
    """
    copies = len(completion_ids) // len(prompts)
    lengths = prompts.prompt_mask.sum(-1).repeat_interleave(copies)[:, None]
    padded = prompts.prompt_ids.repeat_interleave(copies, 0)
    rows = torch.cat([padded, completion_ids[:, :-1]], dim=1)
    shift = padded.shape[1] - lengths
    places = torch.arange(rows.shape[1] - int(shift.min()), device=rows.device)
    rows = rows.gather(1, (places + shift).clamp(max=rows.shape[1] - 1))
    states = backbone(input_ids=rows, use_cache=False).last_hidden_state
    width = completion_ids.shape[1]
    predictor = lengths - 1 + torch.arange(width, device=rows.device)
    return states.gather(1, predictor[..., None].expand(-1, -1, states.shape[-1]))


class PlainDecoder:
    """Next-token logits of P*G rows, each computed from its beginning."""

    def __init__(self, policy, prompts: PromptBatch, copies: int):
        self._policy, self._prompts = policy, prompts
        number = torch.arange(len(prompts), device=prompts.prompt_ids.device)
        self.node = number.repeat_interleave(copies)
        self._tokens = prompts.prompt_ids.new_empty(len(self.node), 0)
        self.logits = self._predict(prompts.prompt_ids[:, :0])

    def _predict(self, tokens: Tensor) -> Tensor:
        # The last column of completions predicts nothing and is not read.
        room = torch.cat([tokens, tokens.new_zeros(len(tokens), 1)], dim=1)
        states = plain_states(self._policy._backbone, self._prompts, room)
        return self._policy._lm_head(states[:, -1])

    def step(self, token: Tensor, alive: Tensor) -> None:  # noqa: ARG002 - all rows go
        """Feed one token a row; ``logits`` then predict the next."""
        self._tokens = torch.cat([self._tokens, token[:, None]], dim=1)
        self.logits = self._predict(self._tokens)
        self.node = torch.arange(len(token), device=token.device)

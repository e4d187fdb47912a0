"""Log-probs and entropies of tokens from a frozen head, without holding the scores.

The scores ``[N, V]`` of a large vocabulary are made for a few tokens at a time and
thrown away.  Since the head does not learn, a token's gradient is known then but for
its factor: the slope of its log-prob, ``[H]`` numbers.  The backward pass multiplies,
and makes no scores again, unless a loss asks for the entropy's gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["TOKENS_AT_ONCE", "frozen_head_scores"]

# With 150,000 words, the scores of 64 tokens are 40 MB in float32.
TOKENS_AT_ONCE = 64


def frozen_head_scores(
    states: Tensor, head: nn.Linear, token_ids: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """What a model says of tokens: log-probs and entropies, each ``[N]``, in float32.

        z = head(states) / temperature
        log π(y) = z_y - log Σ_v exp(z_v),   H = -Σ_v π_v log π_v

    Args:
        states: ``[N, H]``, of the head's dtype; gradients flow to them alone.
        head: frozen, with or without bias.
        token_ids: ``[N]``.
        temperature: of sampling.

    Raises:
        ValueError: the head is to be trained, which this does not do.
    """
    if head.weight.requires_grad:
        raise ValueError(
            "the head's weight requires a gradient; expected a frozen head. Fix: "
            "leave it out of the adapter's target_modules (add_lora does)."
        )
    if not torch.is_grad_enabled():  # autograd.Function does not ask for it
        states = states.detach()
    return _FrozenHeadScores.apply(states, head, token_ids, temperature)


def _log_probs_of_words(rows: Tensor, head: nn.Linear, temperature: float) -> Tensor:
    return (head(rows).float() / temperature).log_softmax(-1)


class _FrozenHeadScores(torch.autograd.Function):
    """Forward and backward of ``frozen_head_scores``."""

    @staticmethod
    def forward(ctx, states, head, token_ids, temperature):
        chosen, entropies = states.new_empty(2, len(states), dtype=torch.float32)
        slopes = None
        if ctx.needs_input_grad[0]:
            slopes = states.new_empty(states.shape, dtype=torch.float32)
        for start in range(0, len(states), TOKENS_AT_ONCE):
            rows = slice(start, start + TOKENS_AT_ONCE)
            words = _log_probs_of_words(states[rows], head, temperature)
            chosen[rows] = words.gather(-1, token_ids[rows, None]).squeeze(-1)
            probs = words.exp()
            entropies[rows] = -(probs * words).sum(-1)
            if slopes is not None:  # (onehot - π) W
                mean = probs.to(head.weight.dtype) @ head.weight
                slopes[rows] = head.weight[token_ids[rows]].float() - mean.float()
        ctx.save_for_backward(states, entropies, slopes)
        ctx.head, ctx.temperature = head, temperature
        ctx.set_materialize_grads(False)  # None: nobody asked
        return chosen, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_chosen, grad_entropies):
        states, entropies, slopes = ctx.saved_tensors
        found = torch.zeros_like(slopes)
        if grad_chosen is not None:
            found += slopes * grad_chosen[:, None]
        if grad_entropies is not None:
            found += grad_entropies[:, None] * _entropy_slopes(
                states, ctx.head, entropies, ctx.temperature
            )
        return (found / ctx.temperature).to(states.dtype), None, None, None


def _entropy_slopes(
    states: Tensor, head: nn.Linear, entropies: Tensor, temperature: float
) -> Tensor:
    """Gradients of the entropies with respect to the scores, times the head: [N, H].

    dH / dz_v = -π_v (log π_v + H)
    """
    slopes = states.new_empty(states.shape, dtype=torch.float32)
    for start in range(0, len(states), TOKENS_AT_ONCE):
        rows = slice(start, start + TOKENS_AT_ONCE)
        words = _log_probs_of_words(states[rows], head, temperature)
        slope = words.exp() * (words + entropies[rows, None])
        slopes[rows] = -(slope.to(head.weight.dtype) @ head.weight).float()
    return slopes

"""From the scores of a language model to log-probabilities of tokens.

A causal model that has read tokens 0..i predicts token i + 1.  The shift by one
is made in exactly one place, :func:`next_token_logits`; every other function
takes inputs that are already aligned with the tokens they score.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from flowrl_lab._validation import (
    bad_input,
    check_count,
    check_finite,
    check_nonempty_rows,
    check_number,
    check_range,
    check_tensor,
)

__all__ = [
    "entropy_from_logits",
    "gather_log_probs",
    "log_probs_from_hidden",
    "masked_mean",
    "masked_sum",
    "next_token_logits",
]


def at_least_float32(values: Tensor) -> Tensor:
    """Half-precision values as float32; float32 and float64 as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def without_autocast(values: Tensor) -> torch.autocast:
    """Products stay in the precision of their inputs, wherever ``values`` lie."""
    kind = values.device.type
    return torch.autocast("cpu" if kind == "meta" else kind, enabled=False)


def next_token_logits(
    logits: Float[Tensor, "B L V"], num_completion_tokens: int
) -> Float[Tensor, "B T V"]:
    """Cut out the model outputs that predict the last T tokens of a sequence.

    Output ``i`` predicts token ``i + 1``, so tokens L-T .. L-1 are predicted by
    outputs L-T-1 .. L-2.  Works for hidden states ``[B, L, H]`` just the same.

    Args:
        logits: outputs of a causal model for prompt and completion together.
        num_completion_tokens: T, padding included.

    Returns:
        A view, aligned with the T completion tokens; gradients flow through.

    Raises:
        ValueError: without at least one prompt token before the completion.
    """
    check_tensor("logits", logits, (None, None, None), "[B, L, V]")
    check_count("num_completion_tokens", num_completion_tokens)
    length = logits.shape[1]
    if num_completion_tokens >= length:
        raise bad_input(
            "num_completion_tokens",
            f"is {num_completion_tokens} of {length} tokens",
            "fewer than all: the first token of a text is predicted by nothing",
            "keep at least one prompt token (or a start token) in front",
        )
    return logits[:, length - num_completion_tokens - 1 : length - 1]


def gather_log_probs(
    logits: Float[Tensor, "B T V"],
    token_ids: Int[Tensor, "B T"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, "B T"]:
    """Log-probability of each given token under softmax(logits / temperature).

        log π(y_t) = z_{y_t} - log Σ_v exp(z_v),   z = logits / temperature

    Source: FlowRL (arXiv 2509.15207) scores tokens at the sampling temperature.

    Args:
        logits: scores already aligned with ``token_ids``; -inf bans a token.
        token_ids: the tokens to score, padding included.
        temperature: must equal the temperature the tokens were sampled with.

    Returns:
        Log-probs in nats, at most 0, float32 or float64 whatever the input's
        precision.  Gradients flow to ``logits``.

    Raises:
        ValueError: wrong shapes or dtypes, a token id outside the vocabulary,
            a temperature <= 0, NaN scores.
    """
    check_tensor("logits", logits, (None, None, None), "[B, T, V]")
    _check_token_ids(token_ids, logits, logits.shape[2])
    check_number("temperature", temperature, above=True)
    scores = at_least_float32(logits) / temperature
    # Scores that hold a NaN, a +inf or nothing but -inf all show up here.
    log_normalizer = scores.logsumexp(dim=-1)
    check_finite({"logits / temperature": log_normalizer})
    chosen = scores.gather(-1, token_ids.long().unsqueeze(-1)).squeeze(-1)
    return chosen - log_normalizer


def entropy_from_logits(
    logits: Float[Tensor, "B T V"], *, temperature: float = 1.0
) -> Float[Tensor, "B T"]:
    """Entropy of each next-token distribution.

        H = -Σ_v π(v) log π(v)

    Args:
        logits: scores; -inf bans a token, which then adds nothing.
        temperature: the scores are divided by it first.

    Returns:
        Entropies in nats, between 0 and log V.  Gradients flow to ``logits``.

    Raises:
        ValueError: wrong shape or dtype, a temperature <= 0, NaN scores.
    """
    check_tensor("logits", logits, (None, None, None), "[B, T, V]")
    check_number("temperature", temperature, above=True)
    log_probs = (at_least_float32(logits) / temperature).log_softmax(dim=-1)
    probs = log_probs.exp()
    # 0 · log 0 = 0, in the value and in the gradient.
    entropy = -(probs * log_probs.masked_fill(probs == 0, 0.0)).sum(dim=-1)
    check_finite({"logits / temperature": entropy})
    return entropy


def log_probs_from_hidden(
    hidden: Float[Tensor, "B T H"],
    lm_head_weight: Float[Tensor, "V H"],
    token_ids: Int[Tensor, "B T"],
    *,
    temperature: float = 1.0,
    chunk_size: int = 256,
) -> Float[Tensor, "B T"]:
    """Token log-probs from hidden states, never holding all the logits at once.

        z = hidden · Wᵀ / temperature,   log π(y_t) = z_{y_t} - log Σ_v exp(z_v)

    The logits ``[B, T, V]`` are the largest tensor of a training step.  Here they
    are made for ``chunk_size`` tokens at a time, reduced, thrown away, and made
    again in the backward pass, where dz = g · (onehot - π) is known in closed
    form (with a frozen head it is worked out at once).  Peak memory grows with
    chunk_size · V, not with B · T · V; the price is one more matrix product, or none
    with a frozen head.  Half-precision inputs are multiplied in float32.

    Args:
        hidden: final hidden states, aligned with ``token_ids``.
        lm_head_weight: weight of the output layer (no bias).
        token_ids: the tokens to score, padding included.
        temperature: the sampling temperature.
        chunk_size: tokens whose logits are held at the same time.

    Returns:
        Log-probs in nats, float32 or float64.  Exact first-order gradients flow
        to ``hidden`` and, if it requires them, to ``lm_head_weight``; not under
        torch.vmap, where :func:`gather_log_probs` will do.

    Raises:
        ValueError: as :func:`gather_log_probs`, and for a hidden size that
            differs from the weight's.
    """
    check_tensor("hidden", hidden, (None, None, None), "[B, T, H]")
    shape = (None, hidden.shape[2])
    check_tensor("lm_head_weight", lm_head_weight, shape, "[V, H]", beside=hidden)
    _check_token_ids(token_ids, hidden, lm_head_weight.shape[0])
    check_number("temperature", temperature, above=True)
    check_count("chunk_size", chunk_size)
    if not torch.is_grad_enabled():  # autograd.Function does not ask for it
        hidden, lm_head_weight = hidden.detach(), lm_head_weight.detach()
    log_probs = _ChunkedLogProbs.apply(
        hidden.flatten(0, 1),
        lm_head_weight,
        token_ids.long().flatten(),
        temperature,
        chunk_size,
    )
    check_finite({"hidden · lm_head_weight": log_probs})
    return log_probs.view(token_ids.shape)


class _ChunkedLogProbs(torch.autograd.Function):
    """Forward and backward of :func:`log_probs_from_hidden`, tokens flattened."""

    @staticmethod
    def forward(ctx, hidden, weight, token_ids, temperature, chunk_size):
        dtype = torch.promote_types(
            torch.promote_types(hidden.dtype, weight.dtype), torch.float32
        )
        log_probs = hidden.new_empty(token_ids.shape, dtype=dtype)
        normalizers = torch.empty_like(log_probs)
        # With the head frozen, a row's gradient is known now but for its factor g:
        # (onehot - π) W, [H] numbers; the backward pass then needs no scores again.
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        slopes = None
        if wants_hidden and not wants_weight:
            slopes = hidden.new_empty(hidden.shape, dtype=dtype)
        # Autocast would quietly turn the products back into half precision.
        with without_autocast(hidden):
            wide_weight = weight.to(dtype)
            for start in range(0, len(token_ids), chunk_size):
                rows = slice(start, start + chunk_size)
                # dividing the few states is cheaper than dividing the many scores
                scores = (hidden[rows].to(dtype) / temperature) @ wide_weight.T
                chosen = scores.gather(-1, token_ids[rows, None]).squeeze(-1)
                normalizers[rows] = _logsumexp_(scores)
                log_probs[rows] = chosen - normalizers[rows]
                if slopes is not None:  # scores are exp(score - largest) now
                    probs = scores.div_(scores.sum(dim=-1, keepdim=True))
                    slopes[rows] = _minus_onehot_(probs, token_ids[rows]) @ wide_weight
        ctx.save_for_backward(hidden, weight, token_ids, normalizers, slopes)
        ctx.temperature, ctx.chunk_size = temperature, chunk_size
        return log_probs

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_log_probs):
        hidden, weight, token_ids, normalizers, slopes = ctx.saved_tensors
        if slopes is not None:
            factor = grad_log_probs[:, None] / -ctx.temperature
            return (slopes * factor).to(hidden.dtype), None, None, None, None
        dtype, chunk_size = normalizers.dtype, ctx.chunk_size
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=dtype) if wants_weight else None
        with without_autocast(hidden):
            wide_weight = weight.to(dtype)
            for start in range(0, len(token_ids), chunk_size):
                rows = slice(start, start + chunk_size)
                states = hidden[rows].to(dtype) / ctx.temperature
                scores = states @ wide_weight.T
                # In place, scores become probabilities π, and then π - onehot; the
                # factor -g goes to the small matrices that this is multiplied with.
                probs = scores.sub_(normalizers[rows, None]).exp_()
                slope = _minus_onehot_(probs, token_ids[rows])
                upstream = -grad_log_probs[rows, None]
                if wants_hidden:
                    below = (slope @ wide_weight).mul_(upstream / ctx.temperature)
                    grad_hidden[rows] = below.to(hidden.dtype)
                if wants_weight:
                    grad_weight.addmm_(slope.T, states * upstream)
        if wants_weight:
            grad_weight = grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None


def _minus_onehot_(probs: Tensor, token_ids: Tensor) -> Tensor:
    """π - onehot, in place."""
    minus_one = probs.new_full((len(probs), 1), -1.0)
    return probs.scatter_add_(-1, token_ids[:, None], minus_one)


def _logsumexp_(scores: Tensor) -> Tensor:
    """log Σ exp of each row, using up ``scores`` in place of more memory."""
    largest = scores.amax(dim=-1, keepdim=True)
    # a row of -inf alone: -inf - 0, not -inf + inf
    largest.masked_fill_(largest.isinf(), 0.0)
    total = scores.sub_(largest).exp_().sum(dim=-1)
    return total.log_() + largest.squeeze(-1)


def masked_sum(
    values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, " B"]:
    """Sum of the counted values of each row; 0 for a row that counts nothing.

    Args:
        values: anything per token; what the mask leaves out may be garbage.
        mask: True where a token counts.

    Returns:
        One sum per row, float32 or float64.  No gradient reaches padding.

    Raises:
        ValueError: wrong shapes or dtypes, NaN or infinity among what counts.
    """
    check_tensor("mask", mask, (None, None), "[B, T]", "bool")
    check_tensor("values", values, mask, "[B, T]: one per token")
    check_finite({"values": values}, mask)
    return sum_counted(values, mask)


def masked_mean(
    values: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, " B"]:
    """Mean of the counted values of each row.

    Args:
        values: anything per token; what the mask leaves out may be garbage.
        mask: True where a token counts, at least once in every row.

    Returns:
        One mean per row, float32 or float64.  No gradient reaches padding.

    Raises:
        ValueError: as :func:`masked_sum`, and for a row that counts no token:
            its mean does not exist.
    """
    total = masked_sum(values, mask)
    check_nonempty_rows("mask", mask)
    return total / mask.sum(dim=1)


def sum_counted(values: Tensor, mask: Tensor) -> Tensor:
    """:func:`masked_sum` for callers that have checked their input."""
    # where(), not a product: 0 · NaN would let garbage in the padding through.
    return at_least_float32(values).masked_fill(~mask, 0.0).sum(dim=1)


def _check_token_ids(token_ids: Tensor, scored: Tensor, vocab_size: int) -> None:
    shape, meaning = scored.shape[:2], "[B, T]: one per token"
    check_tensor("token_ids", token_ids, shape, meaning, "int", beside=scored)
    check_range(
        "token_ids",
        token_ids,
        0,
        vocab_size - 1,
        f"ids from 0 to {vocab_size - 1}",
        "pad with a real token id and leave padding out with the mask "
        "(-100 is a label convention, not a token)",
    )

"""From the scores of a language model to log-probabilities of tokens.

A causal model that has read tokens 0..i predicts token i + 1.  The shift by one
is made in exactly one place, :func:`next_token_logits`; every other function
takes inputs that are already aligned with the tokens they score.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from flowrl_lab._validation import (
    FLOAT_DTYPES,
    bad_input,
    check_count,
    check_finite,
    check_nonempty_rows,
    check_number,
    check_range,
    check_tensor,
    shown,
)

__all__ = [
    "entropy_from_logits",
    "gather_log_probs",
    "log_probs_from_hidden",
    "log_probs_from_logits",
    "masked_mean",
    "masked_sum",
    "next_token_logits",
    "token_scores_from_hidden",
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


def log_probs_from_logits(logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Log-probabilities of every word of the vocabulary, for sampling and tables.

        log π(v) = z_v - log Σ_u exp(z_u),   z = logits / temperature

    Args:
        logits: ``[..., V]`` scores; their values are not looked at: sampling asks for
            them every token.
        temperature: above 0.

    Returns:
        ``[..., V]`` nats, float32 or float64.  Gradients flow to ``logits``.

    Raises:
        ValueError: a wrong dtype, a temperature <= 0.
    """
    check_tensor("logits", logits, (..., None), "[..., V]")
    check_number("temperature", temperature, above=True)
    return (at_least_float32(logits) / temperature).log_softmax(dim=-1)


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
    log_probs = log_probs_from_logits(logits, temperature=temperature)
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
    log_probs, _ = _chunked_head(
        hidden,
        lm_head_weight,
        token_ids,
        temperature,
        _HeadSettings(chunk_size, with_entropies=False),
    )
    return log_probs.view(token_ids.shape)


def token_scores_from_hidden(
    hidden: Float[Tensor, "N H"],
    lm_head_weight: Float[Tensor, "V H"],
    token_ids: Int[Tensor, " N"],
    *,
    bias: Float[Tensor, " V"] | None = None,
    temperature: float = 1.0,
    chunk_size: int = 256,
    product_dtype: torch.dtype | None = None,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """:func:`log_probs_from_hidden` with the entropies, for tokens that count alone.

        H = -Σ_v π(v) log π(v)

    Args:
        hidden: final hidden states of N tokens, whatever rows they come from.
        lm_head_weight: as there.
        token_ids: the N tokens to score.
        bias: of the output layer, where it has one; it gets no gradient.
        temperature, chunk_size: as there.
        product_dtype: what the head is multiplied in; None is float32 or wider.  The
            head's own half precision saves a large model a copy of its head.

    Returns:
        Log-probs and entropies, nats.  Gradients of both flow to ``hidden`` and, if
        it requires them, to ``lm_head_weight``.

    Raises:
        ValueError: as :func:`log_probs_from_hidden`.
    """
    check_tensor("hidden", hidden, (None, None), "[N, H]")
    settings = _HeadSettings(chunk_size, True, product_dtype, bias)
    return _chunked_head(hidden, lm_head_weight, token_ids, temperature, settings)


class _HeadSettings(NamedTuple):
    chunk_size: int
    with_entropies: bool
    product_dtype: torch.dtype | None = None
    bias: Tensor | None = None


def _chunked_head(
    hidden: Tensor,
    weight: Tensor,
    token_ids: Tensor,
    temperature: float,
    settings: _HeadSettings,
) -> tuple[Tensor, Tensor | None]:
    shape = (None, hidden.shape[-1])
    check_tensor("lm_head_weight", weight, shape, "[V, H]", beside=hidden)
    _check_token_ids(token_ids, hidden, weight.shape[0])
    check_number("temperature", temperature, above=True)
    check_count("chunk_size", settings.chunk_size)
    if settings.bias is not None:
        check_tensor("bias", settings.bias, weight.shape[:1], "[V]", beside=hidden)
    if settings.product_dtype not in (None, *FLOAT_DTYPES):
        raise bad_input(
            "product_dtype",
            f"is {shown(settings.product_dtype)}",
            "a floating dtype of torch, or None",
            "pass the head's own dtype, such as torch.bfloat16",
        )
    if not torch.is_grad_enabled():  # autograd.Function does not ask for it
        hidden, weight = hidden.detach(), weight.detach()
    log_probs, entropies = _ChunkedHead.apply(
        hidden.flatten(0, -2), weight, token_ids.long().flatten(), temperature, settings
    )
    check_finite({"hidden · lm_head_weight": log_probs})
    return log_probs, entropies


class _ChunkedHead(torch.autograd.Function):
    """Forward and backward of :func:`token_scores_from_hidden`."""

    @staticmethod
    def forward(ctx, hidden, weight, token_ids, temperature, settings):
        dtype = _wide_dtype(hidden, weight)
        ctx.temperature, ctx.settings = temperature, settings
        log_probs = hidden.new_empty(token_ids.shape, dtype=dtype)
        normalizers = torch.empty_like(log_probs)
        entropies = torch.empty_like(log_probs) if settings.with_entropies else None
        # With the head frozen, a row's gradient is known now but for its factor g:
        # (onehot - π) W, [H] numbers; the backward pass then needs no scores again.
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        slopes = None
        if wants_hidden and not wants_weight:
            slopes = hidden.new_empty(hidden.shape, dtype=dtype)
        with _Head(ctx, hidden, weight) as head:
            for rows in _chunks(len(token_ids), settings.chunk_size):
                scores = head.scores(rows)
                chosen = scores.gather(-1, token_ids[rows, None]).squeeze(-1)
                exps, total, normalizers[rows] = _exponentiate_(
                    scores, keep=entropies is not None
                )
                log_probs[rows] = chosen - normalizers[rows]
                if entropies is not None:  # Σ π (score - largest) is what it lacks
                    lower = torch.linalg.vecdot(exps, scores) / total.squeeze(-1)
                    entropies[rows] = total.log().squeeze(-1) - lower
                if slopes is not None:
                    probs = exps.div_(total)
                    slopes[rows] = head.down(_minus_onehot_(probs, token_ids[rows]))
        ctx.save_for_backward(hidden, weight, token_ids, normalizers, slopes, entropies)
        ctx.set_materialize_grads(False)  # None: nobody asked
        return log_probs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_log_probs, grad_entropies):
        hidden, weight, token_ids, normalizers, slopes, _ = ctx.saved_tensors
        grad_hidden = grad_weight = None
        if grad_log_probs is None and grad_entropies is None:
            return None, None, None, None, None
        if slopes is not None and grad_entropies is None:
            factor = grad_log_probs[:, None] / -ctx.temperature
            return (slopes * factor).to(hidden.dtype), None, None, None, None
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        if wants_hidden:
            grad_hidden = torch.empty_like(hidden)
        if wants_weight:
            grad_weight = torch.zeros_like(weight, dtype=normalizers.dtype)
        with _Head(ctx, hidden, weight) as head:
            for rows in _chunks(len(token_ids), ctx.settings.chunk_size):
                slope = _score_slopes(ctx, head, rows, grad_log_probs, grad_entropies)
                if wants_hidden:
                    below = head.down(slope) / ctx.temperature
                    grad_hidden[rows] = below.to(hidden.dtype)
                if wants_weight:
                    grad_weight.addmm_(slope.T, head.states(rows))
        if wants_weight:
            grad_weight = grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None


class _Head:
    """The output layer, in the dtype of its products; autocast would narrow them."""

    def __init__(self, ctx, hidden: Tensor, weight: Tensor):
        self._hidden, self._temperature = hidden, ctx.temperature
        self._wide, self._bias = _wide_dtype(hidden, weight), ctx.settings.bias
        self._weight = weight.to(ctx.settings.product_dtype or self._wide)
        self._autocast = without_autocast(hidden)

    def __enter__(self) -> _Head:
        self._autocast.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._autocast.__exit__(*error)

    def states(self, rows: slice) -> Tensor:
        """``[n, H]``, divided by the temperature: states are fewer than scores."""
        return self._hidden[rows].to(self._wide) / self._temperature

    def scores(self, rows: slice) -> Tensor:
        """``[n, V]``, in float32 at least."""
        if self._weight.dtype == self._wide:
            scores = self.states(rows) @ self._weight.T
        else:  # half precision: divided afterwards, when it is wide again
            product = self._hidden[rows].to(self._weight.dtype) @ self._weight.T
            scores = product.to(self._wide).div_(self._temperature)
        return scores if self._bias is None else scores + self._bias / self._temperature

    def down(self, slope: Tensor) -> Tensor:
        """``[n, V]`` gradients of scores -> ``[n, H]`` of what they came from."""
        return (slope.to(self._weight.dtype) @ self._weight).to(self._wide)


def _wide_dtype(*tensors: Tensor) -> torch.dtype:
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _chunks(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))


def _exponentiate_(scores: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """exp(score - largest), its sums, and log Σ exp(score).

    The scores become score - largest, or, if they need not be kept, the exps.
    """
    largest = scores.amax(dim=-1, keepdim=True)
    # a row of -inf alone: -inf - 0, not -inf + inf
    largest.masked_fill_(largest.isinf(), 0.0)
    scores.sub_(largest)
    exps = scores.exp() if keep else scores.exp_()
    total = exps.sum(dim=-1, keepdim=True)
    return exps, total, (total.log() + largest).squeeze(-1)


def _score_slopes(ctx, head, rows, grad_log_probs, grad_entropies) -> Tensor:
    """``[n, V]``: the gradient of what is asked for with respect to the scores.

    d log π(y) / dz_v = onehot - π_v,    dH / dz_v = -π_v (log π_v + H)
    """
    _, _, token_ids, normalizers, _, entropies = ctx.saved_tensors
    log_probs = head.scores(rows).sub_(normalizers[rows, None])
    if grad_entropies is None:  # in place, and with no second matrix of this size
        minus = _minus_onehot_(log_probs.exp_(), token_ids[rows])
        return minus.mul_(-grad_log_probs[rows, None])
    probs = log_probs.exp()
    slope = probs * (log_probs + entropies[rows, None])
    slope.mul_(-grad_entropies[rows, None])
    if grad_log_probs is not None:
        minus = _minus_onehot_(probs, token_ids[rows])
        slope.sub_(minus.mul_(grad_log_probs[rows, None]))
    return slope


def _minus_onehot_(probs: Tensor, token_ids: Tensor) -> Tensor:
    """π - onehot, in place."""
    minus_one = probs.new_full((len(probs), 1), -1.0)
    return probs.scatter_add_(-1, token_ids[:, None], minus_one)


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
    shape, meaning = scored.shape[:-1], "one per token"
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

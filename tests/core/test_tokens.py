"""Token log-probs against loops, closed forms and the plain route."""

import math

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from flowrl_lab.tokens import (
    entropy_from_logits,
    gather_log_probs,
    log_probs_from_hidden,
    masked_mean,
    masked_sum,
    next_token_logits,
)


def rand(*shape, seed=0):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def rand_ids(rows, width, vocab, seed=0):
    return torch.randint(
        vocab, (rows, width), generator=torch.Generator().manual_seed(seed)
    )


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements any single result had."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        results = result if isinstance(result, tuple | list) else [result]
        sizes = [r.numel() for r in results if isinstance(r, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return result


# --- the shift -------------------------------------------------------------


def test_next_token_logits_align_with_the_tokens_they_predict():
    # A "model" that always gives all its weight to (token it has just read) + 1.
    text = torch.tensor([[3, 4, 5, 6, 7]])
    logits = 50.0 * torch.nn.functional.one_hot(text + 1, 10).double()
    completion = text[:, 2:]
    aligned = next_token_logits(logits, 3)
    assert_close(gather_log_probs(aligned, completion), torch.zeros(1, 3).double())


# --- log-probs from logits -------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.6, 2.0])
def test_gather_log_probs_equals_a_loop(temperature):
    logits, ids = rand(2, 3, 5), rand_ids(2, 3, 5)
    result = gather_log_probs(logits, ids, temperature=temperature)
    for b in range(2):
        for t in range(3):
            weights = [math.exp(x / temperature) for x in logits[b, t].tolist()]
            expected = math.log(weights[ids[b, t]] / sum(weights))
            assert result[b, t].item() == pytest.approx(expected, abs=1e-12)


def test_gather_log_probs_has_the_gradient_onehot_minus_softmax():
    logits, ids = rand(2, 3, 5).requires_grad_(), rand_ids(2, 3, 5)
    gather_log_probs(logits, ids, temperature=0.5).sum().backward()
    onehot = torch.nn.functional.one_hot(ids, 5)
    assert_close(logits.grad, (onehot - (logits / 0.5).softmax(-1)) / 0.5)


def test_gather_log_probs_banned_tokens_take_no_probability():
    logits = torch.tensor([[[0.0, -math.inf, 0.0]]], dtype=torch.float64)
    assert_close(
        gather_log_probs(logits, torch.tensor([[2]])),
        torch.tensor([[-math.log(2)]], dtype=torch.float64),
    )


def test_gather_log_probs_works_in_float32_for_half_precision():
    logits = rand(2, 3, 50).bfloat16()
    ids = rand_ids(2, 3, 50)
    result = gather_log_probs(logits, ids)
    assert result.dtype == torch.float32
    assert_close(result, gather_log_probs(logits.float(), ids))


def test_gather_log_probs_survives_huge_logits():
    logits = torch.tensor([[[1e4, 0.0, -1e4]]])
    ids = torch.tensor([[1]])
    assert_close(gather_log_probs(logits, ids), torch.tensor([[-1e4]]))


# --- log-probs from hidden states ------------------------------------------


@pytest.mark.parametrize("chunk_size", [1, 4, 5, 15, 1000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_from_hidden_equals_the_plain_route(chunk_size, temperature):
    ids = rand_ids(3, 5, 11)
    upstream = rand(3, 5, seed=3)
    results = []
    for route in ("plain", "chunked"):
        hidden = rand(3, 5, 4, seed=1).requires_grad_()
        weight = rand(11, 4, seed=2).requires_grad_()
        if route == "plain":
            logits = hidden @ weight.T
            log_probs = gather_log_probs(logits, ids, temperature=temperature)
        else:
            log_probs = log_probs_from_hidden(
                hidden, weight, ids, temperature=temperature, chunk_size=chunk_size
            )
        (log_probs * upstream).sum().backward()
        results.append((log_probs.detach(), hidden.grad, weight.grad))
    for plain, chunked in zip(*results, strict=True):
        assert_close(chunked, plain)


def test_log_probs_from_hidden_passes_numerical_gradients():
    hidden = rand(2, 2, 3, seed=1).requires_grad_()
    weight = rand(5, 3, seed=2).requires_grad_()
    ids = rand_ids(2, 2, 5)

    def function(h, w):
        return log_probs_from_hidden(h, w, ids, temperature=0.8, chunk_size=3)

    assert torch.autograd.gradcheck(function, (hidden, weight))


def test_log_probs_from_hidden_multiplies_bfloat16_in_float32():
    ids = rand_ids(3, 5, 200)
    upstream = rand(3, 5, seed=3).float()
    results = []
    for wide in (True, False):
        hidden = rand(3, 5, 16, seed=1).bfloat16()
        weight = rand(200, 16, seed=2).bfloat16()
        if wide:
            hidden, weight = hidden.float(), weight.float()
        hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
        log_probs = log_probs_from_hidden(hidden, weight, ids, chunk_size=4)
        assert log_probs.dtype == torch.float32
        (log_probs * upstream).sum().backward()
        assert hidden.grad.dtype == hidden.dtype
        assert weight.grad.dtype == weight.dtype
        results.append((log_probs.detach(), hidden.grad, weight.grad))
    (values, grad_h, grad_w), (half_values, half_grad_h, half_grad_w) = results
    assert_close(half_values, values)
    # The gradients are summed in float32 and rounded once, at the very end.
    assert_close(half_grad_h, grad_h.bfloat16())
    assert_close(half_grad_w, grad_w.bfloat16())


def test_log_probs_from_hidden_ignores_autocast():
    hidden, weight, ids = rand(1, 4, 8).float(), rand(9, 8).float(), rand_ids(1, 4, 9)
    expected = log_probs_from_hidden(hidden, weight, ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(log_probs_from_hidden(hidden, weight, ids), expected)


def test_log_probs_from_hidden_leaves_a_frozen_head_alone():
    hidden = rand(2, 3, 4).requires_grad_()
    weight, ids, upstream = rand(7, 4), rand_ids(2, 3, 7), rand(2, 3, seed=5)
    found = log_probs_from_hidden(hidden, weight, ids, temperature=0.7, chunk_size=4)
    (below,) = torch.autograd.grad((found * upstream).sum(), hidden)
    assert weight.grad is None
    plain = gather_log_probs(hidden @ weight.T, ids, temperature=0.7)
    (expected,) = torch.autograd.grad((plain * upstream).sum(), hidden)
    assert below.abs().sum() > 0
    assert_close(below, expected)


def test_log_probs_from_hidden_never_holds_all_the_logits():
    rows, width, vocab, size, chunk = 4, 16, 300, 8, 8
    ids = rand_ids(rows, width, vocab)
    hidden = rand(rows, width, size).requires_grad_()
    weight = rand(vocab, size).requires_grad_()
    with LargestTensor() as chunked:
        log_probs_from_hidden(hidden, weight, ids, chunk_size=chunk).sum().backward()
    assert chunked.numel == vocab * max(chunk, size)
    with LargestTensor() as plain:
        gather_log_probs(hidden @ weight.T, ids).sum().backward()
    assert plain.numel >= rows * width * vocab


# --- masked sums and means -------------------------------------------------


def masked_example():
    values = rand(3, 4)
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 1], [0, 0, 0, 1]]).bool()
    return values, mask


def test_masked_sum_and_mean_equal_the_sums_of_the_kept_values():
    values, mask = masked_example()
    kept = [row[keep] for row, keep in zip(values, mask, strict=True)]
    assert_close(masked_sum(values, mask), torch.stack([k.sum() for k in kept]))
    assert_close(masked_mean(values, mask), torch.stack([k.mean() for k in kept]))


@pytest.mark.parametrize("function", [masked_sum, masked_mean])
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e300])
def test_masked_values_may_be_anything(function, garbage):
    values, mask = masked_example()
    dirty = values.masked_fill(~mask, garbage).requires_grad_()
    clean = values.clone().requires_grad_()
    function(dirty, mask).sum().backward()
    function(clean, mask).sum().backward()
    assert_close(function(dirty, mask), function(clean, mask))
    assert_close(dirty.grad, clean.grad)
    assert bool((dirty.grad[~mask] == 0).all())


def test_masked_sum_of_nothing_is_zero():
    mask = torch.tensor([[False, False], [True, True]])
    assert_close(masked_sum(torch.ones(2, 2), mask), torch.tensor([0.0, 2.0]))


def test_masked_sum_of_half_precision_is_summed_in_float32():
    values = torch.ones(1, 1000, dtype=torch.bfloat16)  # bfloat16 stops counting at 256
    total = masked_sum(values, torch.ones(1, 1000, dtype=torch.bool))
    assert_close(total, torch.tensor([1000.0]))


# --- entropy ---------------------------------------------------------------


def test_entropy_of_known_distributions():
    logits = torch.tensor(
        [[[0.0, 0.0, 0.0, 0.0], [0.0, -math.inf, 0.0, -math.inf]]],
        dtype=torch.float64,
    )
    expected = torch.tensor([[math.log(4), math.log(2)]], dtype=torch.float64)
    assert_close(entropy_from_logits(logits), expected)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_entropy_equals_a_loop_and_has_its_gradient(temperature):
    logits = rand(2, 3, 5).requires_grad_()
    entropy = entropy_from_logits(logits, temperature=temperature)
    probs = (logits / temperature).softmax(-1)
    assert_close(entropy, -(probs * probs.log()).sum(-1))
    (grad,) = torch.autograd.grad(entropy.sum(), logits)
    # dH/dz_i = -p_i (log p_i + H) / temperature
    expected = -probs * (probs.log() + entropy.unsqueeze(-1)) / temperature
    assert_close(grad, expected)


def test_entropy_gradient_is_finite_where_a_token_is_banned():
    logits = torch.tensor([[[0.3, -math.inf, -0.2]]], dtype=torch.float64)
    logits.requires_grad_()
    entropy_from_logits(logits).sum().backward()
    free = torch.tensor([[[0.3, -0.2]]], dtype=torch.float64, requires_grad=True)
    entropy_from_logits(free).sum().backward()
    assert_close(logits.grad[..., [0, 2]], free.grad)
    assert logits.grad[0, 0, 1] == 0

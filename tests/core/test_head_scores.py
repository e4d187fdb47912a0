"""A frozen head's log-probs and entropies against plain autograd; its draws."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from flowrl_lab.policies.hf_lm import TOKENS_AT_ONCE, HFLanguageModelPolicy
from flowrl_lab.tokens import log_probs_from_hidden, token_scores_from_hidden

TOKENS, HIDDEN, VOCAB = 2 * TOKENS_AT_ONCE + 3, 8, 50


@pytest.fixture(name="work", params=["float32", "bfloat16", "with a bias"])
def fixture_work(request):
    torch.manual_seed(0)
    dtype = torch.bfloat16 if request.param == "bfloat16" else torch.float32
    head = nn.Linear(HIDDEN, VOCAB, bias=request.param == "with a bias").to(dtype)
    head.requires_grad_(False)
    states = torch.randn(TOKENS, HIDDEN).to(dtype).requires_grad_()
    return head, states, torch.randint(0, VOCAB, (TOKENS,))


def chunked(states, head, tokens, temperature):
    """As the policy asks: in the head's own dtype."""
    return token_scores_from_hidden(
        states,
        head.weight,
        tokens,
        bias=head.bias,
        temperature=temperature,
        chunk_size=TOKENS_AT_ONCE,
        product_dtype=head.weight.dtype,
    )


def plain(head, states, tokens, temperature):
    words = (head(states).float() / temperature).log_softmax(-1)
    chosen = words.gather(-1, tokens[:, None]).squeeze(-1)
    return chosen, -(words.exp() * words).sum(-1)


@pytest.mark.parametrize("wanted", [(1, 0), (0, 1), (1, 1)])
def test_values_and_gradients_equal_autograds(work, wanted):
    head, states, tokens = work
    close = {"rtol": 1e-5, "atol": 1e-6}
    if states.dtype == torch.bfloat16:
        close = {"rtol": 2e-2, "atol": 2e-3}  # eight bits, rounded in other places
    weights, gradients = torch.randn(2, TOKENS), []
    for score in (plain, chunked):
        found = (
            score(head, states, tokens, 0.7)
            if score is plain
            else score(states, head, tokens, 0.7)
        )
        if score is plain:
            expected = [part.detach() for part in found]
        else:
            torch.testing.assert_close(list(found), expected, rtol=1e-5, atol=1e-6)
        parts = zip(wanted, weights, found, strict=True)
        loss = sum((weight * part).sum() for asked, weight, part in parts if asked)
        (gradient,) = torch.autograd.grad(loss, states)
        gradients.append(gradient)
    torch.testing.assert_close(gradients[1], gradients[0], **close)


def test_slopes_are_left_out_where_no_gradient_is_recorded(work):
    head, states, tokens = work
    with torch.no_grad():
        chosen, entropies = chunked(states, head, tokens, 1.0)
    assert not chosen.requires_grad and not entropies.requires_grad
    assert chunked(states, head, tokens, 1.0)[0].requires_grad


@pytest.mark.parametrize("wanted", [(1, 0), (0, 1), (1, 1)])
def test_a_head_that_learns_gets_its_gradient_too(wanted):
    torch.manual_seed(1)
    head = nn.Linear(HIDDEN, VOCAB, bias=False).double()
    states = torch.randn(TOKENS, HIDDEN).double().requires_grad_()
    tokens, weights = torch.randint(0, VOCAB, (TOKENS,)), torch.randn(2, TOKENS)
    gradients = []
    for found in (plain(head, states, tokens, 0.7), chunked(states, head, tokens, 0.7)):
        parts = zip(wanted, weights, found, strict=True)
        loss = sum((weight * part).sum() for asked, weight, part in parts if asked)
        gradients.append(torch.autograd.grad(loss, (states, head.weight)))
    # plain() rounds to float32 on its way
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-5)


def test_with_and_without_entropies_the_log_probs_are_the_same(work):
    head, states, tokens = work
    if head.bias is not None:
        return
    both, _ = token_scores_from_hidden(states, head.weight, tokens)
    alone = log_probs_from_hidden(states[None], head.weight, tokens[None])
    torch.testing.assert_close(both, alone[0])


def draw(scores, node, seed=0):
    policy = object.__new__(HFLanguageModelPolicy)
    generator = torch.Generator().manual_seed(seed)
    return policy._draw(scores, node, generator)


def test_words_are_drawn_as_often_as_the_scores_say():
    probs = torch.tensor([[0.5, 0.0, 0.3, 0.2, 0.0], [0.0, 0.1, 0.0, 0.0, 0.9]])
    rows = 20_000
    tokens = draw(probs.log(), torch.tensor([0, 1]).repeat(rows))
    for number in range(2):
        share = torch.bincount(tokens[number::2], minlength=5) / rows
        assert (share[probs[number] == 0] == 0).all()
        spread = (probs[number] * (1 - probs[number]) / rows).sqrt()
        assert ((share - probs[number]).abs() <= 4 * spread).all()


def test_rare_words_of_a_large_vocabulary_are_not_lost_to_rounding():
    """Half of the probability is spread over 49,999 words of 1e-5 each."""
    scores = torch.zeros(1, 50_000)
    scores[0, 0] = torch.tensor(49_999.0).log()
    scores = scores.log_softmax(-1)
    tokens = draw(scores, torch.zeros(4000, dtype=torch.long))
    rare = tokens[tokens > 0]
    assert abs(len(rare) / 4000 - 0.5) < 0.04
    assert abs(rare.float().mean() / 25_000 - 1) < 0.05


def test_draws_repeat_with_the_generators_state():
    scores, node = torch.randn(3, 40).log_softmax(-1), torch.tensor([0, 2, 1, 1])
    assert torch.equal(draw(scores, node, seed=5), draw(scores, node, seed=5))

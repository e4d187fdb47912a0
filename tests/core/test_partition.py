"""log Z: the head's promises, the table, and the batch estimates by enumeration."""

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from flowrl_lab.partition import (
    LogPartitionHead,
    LogZTable,
    importance_log_z,
    log_target_ratios,
    start_log_z,
    vargrad_log_z,
)

SCALE = 1.7


def rand(*shape, seed=0):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def trained_head(**settings):
    """A head whose last layer is no longer zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = LogPartitionHead(8, **settings)
        torch.nn.init.normal_(head.layers[-1].weight)
    return head


# --- the head --------------------------------------------------------------


def test_head_starts_at_zero_for_every_prompt():
    assert bool((LogPartitionHead(8)(rand(5, 8).float()) == 0).all())


@pytest.mark.parametrize("num_layers", [1, 2, 3, 4])
def test_head_is_linear_gelu_layernorm_dropout(num_layers):
    head = trained_head(num_layers=num_layers, dropout=0.1).eval()
    kinds = [type(layer).__name__ for layer in head.layers]
    block = ["Linear", "GELU", "LayerNorm", "Dropout"]
    assert kinds == block * (num_layers - 1) + ["Linear"]
    features = rand(5, 8).float()
    expected = features
    for layer in head.layers:
        expected = layer(expected)
    assert_close(head(features), expected.squeeze(-1))
    assert head(features).shape == (5,)


def test_a_started_module_says_the_value_for_every_prompt():
    head, table = trained_head(), LogZTable(5)
    start_log_z(head, -2.5)
    start_log_z(table, 7.0)
    assert_close(head(rand(4, 8).float()), torch.full((4,), -2.5))
    assert_close(table(torch.tensor([0, 4])), torch.full((2,), 7.0))
    before = head.layers[-1].bias.clone()
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="value"):
            start_log_z(head, value)
    assert torch.equal(head.layers[-1].bias, before)


def test_head_can_learn_different_log_zs():
    head = trained_head()
    features, goal = rand(4, 8).float(), torch.tensor([0.0, 3.0, -2.0, 8.0])
    optimiser = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(1000):
        loss = (head(features) - goal).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert (head(features) - goal).abs().max() < 0.05


def test_head_computes_in_float32_even_when_cast_to_bfloat16():
    head = trained_head().bfloat16()
    features = rand(5, 8).bfloat16()
    wide = trained_head()
    wide.load_state_dict({k: v.float() for k, v in head.state_dict().items()})
    result = head(features)
    assert result.dtype == torch.float32
    assert_close(result, wide(features.float()))
    result.sum().backward()
    assert all(p.grad.dtype == torch.bfloat16 for p in head.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(wide(features), result.detach())


def test_head_gives_samples_of_one_prompt_the_same_log_z_unless_dropout_is_asked_for():
    features = rand(1, 8).float().expand(16, 8)
    plain = trained_head().train()(features)
    assert_close(plain, plain[:1].expand(16))
    noisy = trained_head(dropout=0.5).train()(features)
    assert noisy.std() > 0


# --- the table -------------------------------------------------------------


def test_table_looks_up_and_sends_gradients_to_the_rows_it_used():
    table = LogZTable(4)
    assert table.log_z.tolist() == [0.0] * 4
    with torch.no_grad():
        table.log_z.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    picked = table(torch.tensor([2, 0, 2]))
    assert picked.tolist() == [3.0, 1.0, 3.0]
    picked.sum().backward()
    assert table.log_z.grad.tolist() == [1.0, 0.0, 2.0, 0.0]


# --- batch estimates -------------------------------------------------------


def problem():
    """A policy, a reference and rewards over 5 answers; log Z and KL(π ‖ p*)."""
    log_probs = rand(5, seed=1).log_softmax(0)
    ref = rand(5, seed=2).log_softmax(0)
    rewards = rand(5, seed=3)
    log_z = (ref + SCALE * rewards).logsumexp(0)
    target = ref + SCALE * rewards - log_z
    kl = (log_probs.exp() * (log_probs - target)).sum()
    return log_probs, ref, rewards, log_z, target, kl


def expectation(log_probs, ref, rewards, estimate, group=3):
    """Exact mean of an estimate over all groups of ``group`` samples of π."""
    total = 0.0
    for rows in itertools.product(range(len(rewards)), repeat=group):
        rows = list(rows)
        value = estimate(
            log_probs[rows], ref[rows], rewards[rows], group, reward_scale=SCALE
        )
        total = total + log_probs[rows].sum().exp() * value[0]
    return total


def test_vargrad_estimate_expects_log_z_minus_kl():
    log_probs, ref, rewards, log_z, _, kl = problem()
    estimate = expectation(log_probs, ref, rewards, vargrad_log_z)
    assert_close(estimate, log_z - kl)


def test_importance_estimate_of_z_is_unbiased():
    log_probs, ref, rewards, log_z, _, _ = problem()

    def z(*arguments, **settings):
        return importance_log_z(*arguments, **settings).exp()

    assert_close(expectation(log_probs, ref, rewards, z), log_z.exp())
    in_logs = expectation(log_probs, ref, rewards, importance_log_z)
    vargrad = expectation(log_probs, ref, rewards, vargrad_log_z)
    assert vargrad < in_logs < log_z


@pytest.mark.parametrize("estimate", [vargrad_log_z, importance_log_z])
def test_every_estimate_is_exact_at_the_target(estimate):
    _, ref, rewards, log_z, target, _ = problem()
    result = estimate(target[:4], ref[:4], rewards[:4], 2, reward_scale=SCALE)
    assert_close(result, log_z.expand(2))


def test_estimates_keep_groups_apart():
    log_probs, ref, rewards = rand(6, seed=1), rand(6, seed=2), rand(6, seed=3)
    ratios = SCALE * rewards + ref - log_probs
    arguments = (log_probs, ref, rewards)
    assert_close(log_target_ratios(*arguments, reward_scale=SCALE), ratios)
    assert_close(
        vargrad_log_z(*arguments, 3, reward_scale=SCALE),
        torch.stack([ratios[:3].mean(), ratios[3:].mean()]),
    )
    assert_close(
        importance_log_z(*arguments, 3, reward_scale=SCALE),
        torch.stack([ratios[:3].exp().mean(), ratios[3:].exp().mean()]).log(),
    )

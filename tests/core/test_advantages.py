"""Advantages against plain-Python re-derivations."""

import itertools
import math
import statistics

import pytest
import torch
from torch.testing import assert_close

from flowrl_lab.advantages import (
    gae,
    group_normalized,
    pass_at_k_advantages,
    reinforce_pp_advantages,
    whiten,
)


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def rand(*shape, seed=0):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


# --- group_normalized ------------------------------------------------------


@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_group_normalized_equals_the_statistics_module(eps):
    rewards = [0.0, 1.0, 1.0, 0.5, 3.0, -2.0, 0.25, 0.0]
    expected = []
    for group in (rewards[:4], rewards[4:]):
        mean, std = statistics.fmean(group), statistics.stdev(group)
        expected += [(r - mean) / (std + eps) for r in group]
    assert_close(group_normalized(double(rewards), 4, eps=eps), double(expected))


def test_group_normalized_by_hand():
    # mean 1/4, std with G-1: sqrt((3·1/16 + 9/16)/3) = 1/2
    result = group_normalized(double([1.0, 0.0, 0.0, 0.0]), 4, eps=0.0)
    assert_close(result, double([1.5, -0.5, -0.5, -0.5]))


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e-30, 12345.678])
@pytest.mark.parametrize("eps", [1e-6, 0.0])
def test_group_normalized_of_equal_rewards_is_exactly_zero(value, eps):
    rewards = torch.tensor([value] * 7 + [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    result = group_normalized(rewards, 7, eps=eps)
    assert bool((result[:7] == 0).all())
    assert_close(result[7:].std(), torch.tensor(1.0))


def test_group_normalized_of_a_group_of_one_is_zero():
    assert bool((group_normalized(double([3.0, -1.0]), 1) == 0).all())


def test_group_normalized_ignores_shift_and_scale_of_the_rewards():
    rewards = rand(12)
    expected = group_normalized(rewards, 4, eps=0.0)
    assert_close(group_normalized(5 * rewards - 3, 4, eps=0.0), expected)


def test_group_normalized_carries_no_gradient():
    rewards = rand(4).requires_grad_()
    assert not group_normalized(rewards, 2).requires_grad


# --- the best of k ---------------------------------------------------------


def best_of_k_by_listing(rewards, k, eps):
    """Every k-subset is listed, each scores its best member."""
    teams = list(itertools.combinations(range(len(rewards)), k))
    best = [max(rewards[i] for i in team) for team in teams]
    mean, std = statistics.fmean(best), statistics.pstdev(best)
    return [
        (statistics.fmean(b for b, t in zip(best, teams, strict=True) if i in t) - mean)
        / (std + eps)
        for i in range(len(rewards))
    ]


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_pass_at_k_advantages_equal_the_listed_subsets(k, eps):
    # ties, negative rewards, and a second group in another order
    groups = [[0.0, 1.0, 1.0, 0.5, 3.0, -2.0], [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]]
    expected = [x for group in groups for x in best_of_k_by_listing(group, k, eps)]
    result = pass_at_k_advantages(double(groups).flatten(), 6, k, eps=eps)
    assert_close(result, double(expected))


@pytest.mark.parametrize("right", range(1, 8))
def test_pass_at_k_advantages_of_a_binary_reward_are_the_papers(right):
    group, k = 8, 3
    wrong = group - right
    passes = 1 - math.comb(wrong, k) / math.comb(group, k)
    result = pass_at_k_advantages(double([1.0] * right + [0.0] * wrong), group, k)
    if wrong < k:  # whichever three are taken, one is right
        assert bool((result == 0).all())
        return
    std = math.sqrt(passes * (1 - passes)) + 1e-6
    alone = math.comb(wrong - 1, k - 1) / math.comb(group - 1, k - 1)
    expected = [(1 - passes) / std] * right + [(1 - passes - alone) / std] * wrong
    assert_close(result, double(expected))


def test_pass_at_1_advantages_are_group_z_scores_with_another_std():
    rewards = rand(12)
    expected = group_normalized(rewards, 6, eps=0.0) * math.sqrt(6 / 5)
    assert_close(pass_at_k_advantages(rewards, 6, 1, eps=0.0), expected)


def test_pass_at_k_advantages_sum_to_zero_and_keep_no_gradient():
    rewards = rand(12).requires_grad_()
    result = pass_at_k_advantages(rewards, 6, 4)
    assert not result.requires_grad
    assert_close(result.view(2, 6).sum(1), torch.zeros(2, dtype=torch.float64))
    half = pass_at_k_advantages(torch.ones(4, dtype=torch.bfloat16), 4, 2)
    assert half.dtype == torch.float32 and bool((half == 0).all())


# --- whitening -------------------------------------------------------------


def test_whiten_equals_the_statistics_module_on_counted_tokens():
    values = rand(3, 4)
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 1], [0, 0, 0, 1]]).bool()
    kept = values[mask].tolist()
    mean, var = statistics.fmean(kept), statistics.variance(kept)
    expected = torch.zeros(3, 4, dtype=torch.float64)
    for b in range(3):
        for t in range(4):
            if mask[b, t]:
                expected[b, t] = (values[b, t] - mean) / math.sqrt(var + 1e-8)
    assert_close(whiten(values, mask), expected)
    assert_close(whiten(values.masked_fill(~mask, math.nan), mask), expected)


def test_whiten_of_equal_values_or_a_single_token_is_zero():
    everything = torch.ones(2, 3, dtype=torch.bool)
    assert bool((whiten(torch.full((2, 3), 0.1), everything) == 0).all())
    single = torch.tensor([[True, False]])
    assert bool((whiten(torch.tensor([[5.0, 7.0]]), single) == 0).all())


def test_reinforce_pp_counts_tokens_not_sequences():
    # Tokens carry 1, 1, 1 and 0: mean 3/4, variance 1/4.
    mask = torch.tensor([[True, True, True], [True, False, False]])
    result = reinforce_pp_advantages(double([1.0, 0.0]), mask)
    assert_close(result, double([[0.5, 0.5, 0.5], [-1.5, 0.0, 0.0]]))


# --- GAE -------------------------------------------------------------------


def gae_by_definition(reward, values, discount, gae_lambda):
    """A_t = Σ_l (γλ)^l d_{t+l}, for one sequence without padding."""
    steps = len(values)
    after = [*values[1:], 0.0]
    deltas = [
        (reward if t == steps - 1 else 0.0) + discount * after[t] - values[t]
        for t in range(steps)
    ]
    return [
        sum((discount * gae_lambda) ** (u - t) * deltas[u] for u in range(t, steps))
        for t in range(steps)
    ]


@pytest.mark.parametrize(
    ("discount", "gae_lambda"), [(1.0, 1.0), (0.9, 0.8), (1.0, 0.0), (0.0, 1.0)]
)
@pytest.mark.parametrize("garbage", [0.0, math.nan])
def test_gae_equals_its_definition(discount, gae_lambda, garbage):
    values = rand(3, 5)
    # Right padding, a gap (a tool's answer, say), left padding.
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 1, 1, 0], [0, 1, 1, 1, 1]]).bool()
    rewards = double([1.0, -0.5, 2.0])
    advantages, returns = gae(
        rewards,
        values.masked_fill(~mask, garbage),
        mask,
        discount=discount,
        gae_lambda=gae_lambda,
    )
    for b in range(3):
        expected = gae_by_definition(
            rewards[b].item(), values[b][mask[b]].tolist(), discount, gae_lambda
        )
        assert_close(advantages[b][mask[b]], double(expected))
    assert_close(returns[mask], advantages[mask] + values[mask])
    assert bool((advantages[~mask] == 0).all() and (returns[~mask] == 0).all())


def test_gae_of_flowrl_settings_is_reward_minus_value():
    values, rewards = rand(2, 3), double([1.0, 0.0])
    mask = torch.ones(2, 3, dtype=torch.bool)
    advantages, returns = gae(rewards, values, mask)
    assert_close(advantages, rewards.unsqueeze(1) - values)
    assert_close(returns, rewards.unsqueeze(1).expand(2, 3))


def test_gae_carries_no_gradient():
    values = rand(2, 3).requires_grad_()
    results = gae(double([1.0, 0.0]), values, torch.ones(2, 3, dtype=torch.bool))
    assert not any(result.requires_grad for result in results)

"""Rollouts: who is asked, what is sampled, and how it is scored."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from flowrl_lab.policies.tabular import TabularPolicy
from flowrl_lab.tasks import Task, load_task
from flowrl_lab.training.rollouts import collect_rollout, sample_prompts


@pytest.fixture(name="task")
def fixture_task():
    return load_task("strings", length=3, alphabet=3, train_prompts=5)


@pytest.fixture(name="policy")
def fixture_policy(task):
    policy = TabularPolicy(task)
    with torch.no_grad():
        policy.logits.normal_(generator=torch.Generator().manual_seed(0))
    return policy


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_prompts_are_drawn_without_repeats_from_training(task):
    generator, counts = seeded(), Counter()
    for _ in range(500):
        prompts = sample_prompts(task, 3, generator)
        assert len(set(prompts.texts)) == 3
        assert set(prompts.texts) <= set(task.prompts("train"))
        counts.update(prompts.texts)
        positions = [task.prompts("train").index(text) for text in prompts.texts]
        assert prompts.indices.tolist() == positions
    # each of 5 prompts in 3 of 5 draws: 300 ± 11 (one standard error)
    assert all(abs(counts[text] - 300) < 55 for text in task.prompts("train"))


def test_all_prompts_are_taken_where_there_are_fewer(task):
    prompts = sample_prompts(task, 99, seeded())
    assert sorted(prompts.texts) == sorted(task.prompts("train"))


def test_the_generator_decides(task):
    draws = [sample_prompts(task, 4, seeded(seed)).texts for seed in (1, 1, 2, 3)]
    assert draws[0] == draws[1]
    assert len(set(draws)) > 1


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_rollout_is_what_was_sampled_and_what_it_was_worth(task, policy, temperature):
    prompts = task.encode(task.prompts("train")[:3])
    rollout = collect_rollout(
        policy, task, prompts, 4, temperature=temperature, generator=seeded()
    )
    sampled = policy.sample(prompts, 4, temperature=temperature, generator=seeded())
    assert torch.equal(rollout.completion_ids, sampled.completion_ids)
    assert torch.equal(rollout.completion_mask, sampled.completion_mask)
    assert torch.equal(rollout.old_log_probs, sampled.log_probs)
    assert rollout.num_generations == 4 and rollout.prompts is prompts
    now = policy.evaluate(
        prompts,
        rollout.completion_ids,
        rollout.completion_mask,
        temperature=temperature,
    )
    torch.testing.assert_close(rollout.old_log_probs, now.log_probs.detach())
    assert not rollout.old_log_probs.requires_grad
    expected = torch.full((12, 3), -math.log(3))
    torch.testing.assert_close(rollout.ref_log_probs, expected)
    for row, ids in enumerate(rollout.completion_ids.tolist()):
        answers = task.answers(prompts.texts[row // 4])
        which = answers.completion_ids.tolist().index(ids)
        assert rollout.rewards[row] == answers.rewards[which]
    assert len(set(rollout.rewards.tolist())) > 3


@pytest.mark.bad_input
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_no_number_names_its_prompt(task, policy, value):
    class Broken(Task):
        name = "broken"

        def score(self, prompts, completion_ids, completion_mask, num_generations):
            rewards = task.score(
                prompts, completion_ids, completion_mask, num_generations
            )
            rewards[6] = value  # the third of the second prompt's four
            return rewards

    prompts = task.encode(task.prompts("train")[:2])
    with pytest.raises(ValueError, match=r"'broken' gave reward .*Fix:") as caught:
        collect_rollout(
            policy, Broken(), prompts, 4, temperature=1.0, generator=seeded()
        )
    assert repr(prompts.texts[1]) in str(caught.value)
    assert str(value) in str(caught.value)


@pytest.mark.bad_input
@pytest.mark.parametrize("shape", [(7,), (9,), (8, 1), ()])
def test_rewards_of_the_wrong_length_are_refused(task, policy, shape):
    class Short(Task):
        name = "short"

        def score(self, *_given):
            return torch.ones(shape)

    prompts = task.encode(task.prompts("train")[:2])
    message = rf"'short' gave rewards of shape \[{', '.join(map(str, shape))}\] for 8"
    with pytest.raises(ValueError, match=message):
        collect_rollout(
            policy, Short(), prompts, 4, temperature=1.0, generator=seeded()
        )

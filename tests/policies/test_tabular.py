"""The table policy against enumeration: probabilities, samples, gradients."""

import itertools
import math

import pytest
import torch

from flowrl_lab.policies.tabular import TabularPolicy
from flowrl_lab.tasks import load_task
from flowrl_lab.types import PromptBatch


@pytest.fixture
def task():
    return load_task("strings", length=3, alphabet=4, train_prompts=2)


@pytest.fixture
def policy(task):
    table = TabularPolicy(task, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        table.logits.copy_(torch.randn(table.logits.shape, generator=generator))
    return table


def _everything(task, texts):
    answers = [task.answers(text) for text in texts]
    ids = torch.cat([a.completion_ids for a in answers])
    return task.encode(texts), ids, torch.ones_like(ids, dtype=torch.bool)


def test_all_completions_of_a_prompt_share_probability_one(task, policy):
    texts = task.prompts("train") + task.prompts("heldout")
    output = policy.evaluate(*_everything(task, texts), temperature=0.7)
    total = output.log_probs.sum(1).reshape(3, 64).exp().sum(1)
    torch.testing.assert_close(total, torch.ones(3))


def test_evaluate_by_hand(task, policy):
    """Walk the prefix tree in plain Python."""
    logits = policy.logits.detach().double()
    texts = task.prompts("train")[1:]
    output = policy.evaluate(*_everything(task, texts), temperature=2.0)
    expected, entropies = [], []
    for word in itertools.product(range(4), repeat=3):
        # prefixes: 0 | 1 + a | 1 + 4 + 4a + b
        prefixes = (0, 1 + word[0], 5 + 4 * word[0] + word[1])
        rows = [torch.log_softmax(logits[1, p] / 2.0, 0) for p in prefixes]
        expected.append([float(r[c]) for r, c in zip(rows, word, strict=True)])
        entropies.append([float(-(r.exp() * r).sum()) for r in rows])
    torch.testing.assert_close(output.log_probs, torch.tensor(expected))
    torch.testing.assert_close(output.entropies, torch.tensor(entropies))


def test_samples_follow_the_probabilities(task, policy):
    prompts = task.encode(task.prompts("train"))
    draws = 40_000
    generator = torch.Generator().manual_seed(3)
    sampled = policy.sample(prompts, draws, temperature=1.5, generator=generator)
    digits = torch.tensor([16, 4, 1])
    for row, text in enumerate(task.prompts("train")):
        rows = slice(row * draws, (row + 1) * draws)
        words = (sampled.completion_ids[rows] * digits).sum(1)
        counts = torch.bincount(words, minlength=64)
        one = policy.evaluate(*_everything(task, (text,)), temperature=1.5)
        p = one.log_probs.sum(1).exp().detach()
        deviation = (draws * p * (1 - p)).sqrt()
        # 128 cells, five binomial standard deviations: a false alarm in 10,000.
        assert bool(((counts - draws * p).abs() <= 5 * deviation + 1).all())


def test_sampled_log_probs_equal_evaluated_ones(task, policy):
    prompts = task.encode(task.prompts("train"))
    generator = torch.Generator().manual_seed(4)
    sampled = policy.sample(prompts, 16, temperature=0.5, generator=generator)
    output = policy.evaluate(
        prompts, sampled.completion_ids, sampled.completion_mask, temperature=0.5
    )
    assert not sampled.log_probs.requires_grad and output.log_probs.requires_grad
    torch.testing.assert_close(sampled.log_probs, output.log_probs.detach())
    again = policy.sample(
        prompts, 16, temperature=0.5, generator=torch.Generator().manual_seed(4)
    )
    assert torch.equal(again.completion_ids, sampled.completion_ids)


def test_start_and_reference_are_uniform(task, policy):
    batch = _everything(task, task.prompts("train"))
    reference = policy.evaluate(*batch, reference=True)
    start = TabularPolicy(task).evaluate(*batch)
    uniform = torch.full((128, 3), -math.log(4))
    for output in (reference, start):
        torch.testing.assert_close(output.log_probs.detach(), uniform)
        torch.testing.assert_close(output.entropies.detach(), -uniform)
    assert not reference.log_probs.requires_grad


def test_gradient_of_the_log_prob_is_onehot_minus_softmax(task, policy):
    prompts = task.encode(task.prompts("train")[:1])
    ids = torch.tensor([[2, 0, 3]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    policy.evaluate(prompts, ids, mask).log_probs.sum().backward()
    expected = torch.zeros_like(policy.logits)
    for prefix, token in ((0, 2), (1 + 2, 0), (5 + 8 + 0, 3)):
        expected[0, prefix] = -torch.softmax(policy.logits.detach()[0, prefix], 0)
        expected[0, prefix, token] += 1
    torch.testing.assert_close(policy.logits.grad, expected)


def test_states_tell_prompts_and_prefixes_apart(task, policy):
    output = policy.evaluate(*_everything(task, task.prompts("train")))
    states = output.states.reshape(2, 64, 3)
    assert states[0, :, 0].unique().tolist() == [0]
    assert states[0].unique().tolist() == list(range(21))
    assert states[1].unique().tolist() == list(range(21, 42))
    values = policy.make_value_head()
    torch.nn.init.normal_(values.values)
    assert torch.equal(values(output.states), values.values[output.states])


def test_log_z_is_a_table_over_prompts(task, policy):
    prompts = task.encode(task.prompts("train"))
    log_z = policy.make_log_z()
    features = policy.prompt_features(prompts)
    torch.testing.assert_close(log_z(features).detach(), torch.zeros(2))
    log_z(features)[1].backward()
    grads = torch.cat([p.grad.flatten() for p in log_z.parameters()])
    assert grads.tolist() == [0, 1, 0]


@pytest.mark.bad_input
def test_state_dict_round_trip(task, policy):
    other = TabularPolicy(task)
    state = {key: value.clone() for key, value in policy.state_dict().items()}
    other.load_state_dict(state)
    assert torch.equal(other.logits, policy.logits)
    for bad, message in (
        ({}, "expected"),
        ({"logits": torch.zeros(2)}, "saved for another task"),
        ({"logits": policy.logits.detach() * float("nan")}, "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(bad)


def test_landscape_policy_has_one_logit_for_each_state():
    policy = TabularPolicy(load_task("landscape"))
    assert policy.trainable_parameters()[0].shape == (1, 1, 100)


@pytest.mark.bad_input
def test_bad_input_is_refused(task, policy):
    prompts = task.encode(task.prompts("train"))
    generator = torch.Generator().manual_seed(0)
    ids = torch.zeros(4, 3, dtype=torch.long)
    mask = torch.ones_like(ids, dtype=torch.bool)
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="temperature"):
            policy.sample(prompts, 2, temperature=temperature, generator=generator)
        with pytest.raises(ValueError, match="temperature"):
            policy.evaluate(prompts, ids, mask, temperature=temperature)
    with pytest.raises(ValueError, match="num_generations"):
        policy.sample(prompts, 0, generator=generator)
    for bad_ids, bad_mask in (
        (ids[:, :2], mask[:, :2]),
        (ids[:3], mask[:3]),
        (ids + 4, mask),
        (ids, ~mask),
        (ids, mask[:2]),
    ):
        with pytest.raises(ValueError, match="got"):
            policy.evaluate(prompts, bad_ids, bad_mask)
    with pytest.raises(ValueError, match="pooling"):
        policy.prompt_features(prompts, "max")
    stranger = PromptBatch(("x",), prompts.prompt_ids[:1], mask[:1, :1], ids[:1, 0] + 9)
    with pytest.raises(ValueError, match="indices"):
        policy.sample(stranger, 2, generator=generator)


@pytest.mark.bad_input
def test_tasks_with_an_end_token_or_too_many_prefixes_are_refused(task):
    task.eos_id = 1
    with pytest.raises(ValueError, match="tiny_lm"):
        TabularPolicy(task)
    huge = load_task("strings", length=20, alphabet=2, train_prompts=40)
    with pytest.raises(ValueError, match="logits"):
        TabularPolicy(huge)

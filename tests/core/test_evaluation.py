"""The referee against brute force: softmax tables and plain forward passes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from flowrl_lab import evaluation
from flowrl_lab._files import data_path
from flowrl_lab.evaluation import Referee, evaluate_policy
from flowrl_lab.policies.tabular import TabularPolicy
from flowrl_lab.policies.tiny_lm import load_base_model, load_tiny_lm
from flowrl_lab.tasks import load_task

COUNT = 3


class FixedLogZ(torch.nn.Module):
    """A log Z that reads its features, so that mixed-up prompts would show."""

    def forward(self, features):
        return features.double().mean(-1) if features.ndim == 2 else 2.0 + features


# ------------------------------------------------------------------------ landscape


@pytest.fixture(name="landscape")
def fixture_landscape():
    task = load_task("landscape", variant="two_modes")
    policy = TabularPolicy(task)
    with torch.no_grad():
        policy.logits.normal_(generator=torch.Generator().manual_seed(1))
        policy.logits.mul_(3)
    return task, policy


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_landscape_report_by_softmax(landscape, temperature):
    task, policy = landscape
    (prompt,) = task.prompts("heldout")
    referee = Referee(
        policy, task, (prompt,), reward_scale=3.0, temperature=temperature
    )
    report = referee.report(FixedLogZ())
    rewards = task.rewards.double().numpy()
    logits = policy.logits[0, 0].detach().double().numpy() / temperature
    probs = np.exp(logits) / np.exp(logits).sum()
    target = np.exp(10 * rewards) / np.exp(10 * rewards).sum()
    accuracy = probs[task.groups.numpy() >= 0].sum()
    assert report.accuracy == pytest.approx(accuracy, rel=1e-5)
    for k, value in report.pass_at_k.items():
        assert value == pytest.approx(1 - (1 - accuracy) ** k, rel=1e-5)
    forward = (probs * np.log(probs / target)).sum()
    backward = (target * np.log(target / probs)).sum()
    assert report.kl_policy_target == pytest.approx(forward, rel=1e-5)
    assert report.kl_target_policy == pytest.approx(backward, rel=1e-5)
    variation = np.abs(probs - target).sum() / 2
    assert report.total_variation == pytest.approx(variation, rel=1e-5)
    log_z = math.log(np.exp(3 * rewards).mean())
    assert report.log_z_exact == pytest.approx(log_z, rel=1e-5)
    assert report.log_z_learned == 2.0
    assert report.log_z_rmse == pytest.approx(abs(2.0 - log_z), rel=1e-5)
    snapshot = referee.snapshot(prompt)
    np.testing.assert_allclose(snapshot.probs, probs, rtol=1e-5)
    np.testing.assert_allclose(snapshot.target_probs, target, rtol=1e-4)
    np.testing.assert_array_equal(snapshot.rewards, task.rewards.double().numpy())
    assert snapshot.probs.sum() == pytest.approx(1.0, abs=1e-6)


def test_another_target_can_be_asked_for(landscape):
    task, policy = landscape
    prompts = task.prompts("heldout")
    gentle = Referee(policy, task, prompts, target_reward_scale=0.5)
    expected = (0.5 * task.rewards.double()).softmax(0).numpy()
    snapshot = gentle.snapshot(prompts[0])
    np.testing.assert_allclose(snapshot.target_probs, expected, rtol=1e-5)
    usual = Referee(policy, task, prompts).report().kl_policy_target
    assert gentle.report().kl_policy_target != pytest.approx(usual, rel=0.1)


def test_the_referee_follows_the_training(landscape):
    """The answers are kept, the policy's probabilities are not."""
    task, policy = landscape
    prompts = task.prompts("heldout")
    referee = Referee(policy, task, prompts)
    before = referee.report()
    with torch.no_grad():
        policy.logits.copy_(10 * task.rewards)
    after = referee.report()
    assert before.kl_policy_target > 1
    assert after.kl_policy_target == pytest.approx(0.0, abs=1e-6)
    assert after.kl_target_policy == pytest.approx(0.0, abs=1e-6)
    assert after.modes_covered == 1.0 and after.total_variation < 1e-4


def test_several_prompts_are_averaged():
    task = load_task("strings", length=2, alphabet=4, train_prompts=3)
    policy = TabularPolicy(task)
    with torch.no_grad():
        policy.logits.normal_(generator=torch.Generator().manual_seed(1))
    texts = task.prompts("train")
    together = evaluate_policy(policy, task, (*texts, texts[0]), log_z=FixedLogZ())
    alone = [evaluate_policy(policy, task, (t,), log_z=FixedLogZ()) for t in texts]
    assert together.num_prompts == 3  # a repeated prompt counts once
    for name in ("accuracy", "distinct_64", "kl_policy_target", "log_z_exact"):
        mean = sum(getattr(report, name) for report in alone) / 3
        assert getattr(together, name) == pytest.approx(mean, rel=1e-6)
    assert together.log_z_learned == pytest.approx(2.0 + 1.0)  # prompts 0, 1, 2
    squares = [(number + 2.0 - alone[number].log_z_exact) ** 2 for number in range(3)]
    assert together.log_z_rmse == pytest.approx(math.sqrt(sum(squares) / 3), rel=1e-6)


# ---------------------------------------------------------------------- make_number


@pytest.fixture(name="maths", scope="module")
def fixture_maths():
    """The shipped model with an adapter that has learnt something (at random)."""
    task = load_task("make_number")
    policy = load_tiny_lm(task, rank=2, alpha=4.0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in policy.model.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    return task, policy, task.prompts("heldout")[:COUNT]


def by_plain_passes(model, task, prompt: str) -> np.ndarray:
    """log-probability of every right answer: one uncached pass over all rows."""
    answers = task.answers(prompt)
    ids = task.encode((prompt,)).prompt_ids
    rows = torch.cat([ids.expand(len(answers), -1), answers.completion_ids], dim=1)
    with torch.no_grad():
        scores = model(input_ids=rows, use_cache=False).logits.double().log_softmax(-1)
    found = []
    for row, length in enumerate(answers.completion_mask.sum(-1).tolist()):
        tokens = answers.completion_ids[row, :length].tolist()
        found.append(sum(scores[row, 5 + t, k].item() for t, k in enumerate(tokens)))
    return np.array(found)


def test_maths_report_by_brute_force(maths):
    task, policy, prompts = maths
    referee = Referee(policy, task, prompts, reward_scale=2.0)
    report = referee.report(FixedLogZ())
    expected: dict[str, list[float]] = {}
    base = load_base_model()
    features = policy.prompt_features(task.encode(prompts)).double().mean(-1).tolist()
    for prompt, learned in zip(prompts, features, strict=True):
        now, reference = (
            np.exp(by_plain_passes(model, task, prompt))
            for model in (policy.model, base)
        )
        accuracy, target = now.sum(), reference / reference.sum()
        within = now / accuracy
        log_z = math.log(math.exp(2.0) * reference.sum() + 1 - reference.sum())
        groups = task.answers(prompt).groups.numpy()
        kept = [
            now[groups == group].sum() >= target[groups == group].sum() / 2
            for group in np.unique(groups)
        ]
        values = {
            "accuracy": accuracy,
            "distinct_64": (1 - (1 - now) ** 64).sum(),
            "effective_answers": math.exp(-(within * np.log(within)).sum()),
            "kl_policy_target": (within * np.log(within / target)).sum(),
            "kl_target_policy": (target * np.log(target / now)).sum(),
            "total_variation": np.abs(within - target).sum() / 2,
            "modes_covered": np.mean(kept),
            "lost_prompts": float(1 - (1 - accuracy) ** 64 < 0.5),
            "log_z_exact": log_z,
            "log_z_learned": learned,
            "log_z_rmse": (learned - log_z) ** 2,
            "pass@16": 1 - (1 - accuracy) ** 16,
        }
        for name, value in values.items():
            expected.setdefault(name, []).append(value)
        snapshot = referee.snapshot(prompt)
        np.testing.assert_allclose(snapshot.probs, now, rtol=2e-4)
        np.testing.assert_allclose(snapshot.target_probs, target, rtol=2e-4)
        assert snapshot.labels == task.answers(prompt).labels
        assert snapshot.probs.sum() == pytest.approx(accuracy, rel=1e-4)
        assert snapshot.target_probs.sum() == pytest.approx(1.0)
    means = {name: float(np.mean(values)) for name, values in expected.items()}
    means["log_z_rmse"] = math.sqrt(means["log_z_rmse"])
    assert report.pass_at_k[16] == pytest.approx(means.pop("pass@16"), rel=1e-4)
    for name, value in means.items():
        assert getattr(report, name) == pytest.approx(value, rel=1e-3), name
    assert report.kl_policy_target > 0.01 and report.num_prompts == COUNT


def test_graded_maths_report_by_brute_force(maths):
    """π_ref exp(8 r) over the right answers, whatever scale the run trains at."""
    _, policy, prompts = maths
    task, base = load_task("make_number", reward="graded"), load_base_model()
    referee = Referee(policy, task, prompts, reward_scale=3.0)
    report, expected = referee.report(), []
    for prompt in prompts:
        now, reference = (
            np.exp(by_plain_passes(model, task, prompt))
            for model in (policy.model, base)
        )
        rewards = np.array(
            [
                1.0 - 0.1 * (sum(c in "+-*" for c in text) - 1) - 0.2 * ("=" in text)
                for text in task.answers(prompt).labels
            ]
        )
        masses = reference * np.exp(8.0 * rewards)
        target, within = masses / masses.sum(), now / now.sum()
        log_z = np.log((reference * np.exp(3.0 * rewards)).sum() + 1 - reference.sum())
        expected.append(
            [
                (within * np.log(within / target)).sum(),
                (target * np.log(target / now)).sum(),
                log_z,
                now.sum(),
            ]
        )
        snapshot = referee.snapshot(prompt)
        np.testing.assert_allclose(snapshot.target_probs, target, rtol=2e-4)
        np.testing.assert_allclose(snapshot.rewards, rewards, rtol=1e-6)
    found = (
        report.kl_policy_target,
        report.kl_target_policy,
        report.log_z_exact,
        report.accuracy,
    )
    np.testing.assert_allclose(found, np.mean(expected, axis=0), rtol=1e-3)
    # the grades move the target: briefer answers than the reference's
    plain = Referee(policy, load_task("make_number"), prompts).report()
    assert report.kl_policy_target > 2 * plain.kl_policy_target


def test_the_size_of_a_chunk_does_not_matter(maths, monkeypatch):
    task, policy, prompts = maths
    usual = evaluate_policy(policy, task, prompts)
    for rows in (1, 100_000):
        monkeypatch.setattr(evaluation, "ROWS_AT_ONCE", rows)
        referee = Referee(policy, task, prompts)
        assert len(referee._chunks) == (COUNT if rows == 1 else 1)
        report = referee.report()
        for name in ("accuracy", "kl_policy_target", "effective_answers"):
            assert getattr(report, name) == pytest.approx(
                getattr(usual, name), rel=1e-4
            )


def test_a_fresh_adapter_is_at_the_target():
    task = load_task("make_number")
    policy = load_tiny_lm(task, rank=1, alpha=1.0)
    report = evaluate_policy(policy, task, task.prompts("heldout")[:2])
    assert report.kl_policy_target == pytest.approx(0.0, abs=1e-9)
    assert report.total_variation == pytest.approx(0.0, abs=1e-9)
    # what is missing is accuracy: KL(p* ‖ π) = -log accuracy, prompt by prompt
    one = evaluate_policy(policy, task, task.prompts("heldout")[:1])
    assert one.kl_target_policy == pytest.approx(-math.log(one.accuracy), rel=1e-6)
    assert math.isnan(report.log_z_learned) and math.isnan(report.log_z_rmse)


# ------------------------------------------------------------------------- programs


@pytest.mark.parametrize(
    ("reward", "plausible"),
    [pytest.param("graded", 0.5, marks=pytest.mark.full), ("examples", 1.0)],
)
def test_plausible_programs_are_paid_but_not_right(reward, plausible):
    """log Z counts them, accuracy and target do not; by a plain pass over all rows."""
    task = load_task("programs", reward=reward)
    policy = load_tiny_lm(task, rank=1, alpha=1.0)
    prompt = "042>302,032>302;-dr:"
    answers = task.answers(prompt)
    base = load_base_model(data_path("programs_tiny_lm"))
    ids = task.encode((prompt,)).prompt_ids
    rows = torch.cat([ids.expand(len(answers), -1), answers.completion_ids], dim=1)
    with torch.no_grad():
        scores = base(input_ids=rows, use_cache=False).logits.double().log_softmax(-1)
    scores = scores[:, ids.shape[1] - 1 : -1]
    tokens = scores.gather(-1, answers.completion_ids[..., None]).squeeze(-1)
    probs = (tokens * answers.completion_mask).sum(-1).exp().numpy()
    right = answers.correct.numpy()
    assert 5 < (~right).sum() < right.sum()
    referee = Referee(policy, task, (prompt,), reward_scale=2.0)
    report, snapshot = referee.report(), referee.snapshot(prompt)
    assert report.accuracy == pytest.approx(probs[right].sum(), rel=1e-4)
    paid = np.where(right, 1.0, plausible)
    log_z = math.log((probs * np.exp(2.0 * paid)).sum() + 1 - probs.sum())
    assert report.log_z_exact == pytest.approx(log_z, rel=1e-4)
    target = np.where(right, probs, 0.0) / probs[right].sum()
    np.testing.assert_allclose(snapshot.target_probs, target, rtol=2e-4, atol=1e-12)
    assert report.kl_policy_target == pytest.approx(0.0, abs=1e-6)


# ----------------------------------------------------------------------- bad input


@pytest.mark.bad_input
def test_bad_questions_are_refused(landscape):
    task, policy = landscape
    with pytest.raises(ValueError, match=r"^`prompts` is empty; expected at least 1"):
        Referee(policy, task, ())
    referee = Referee(policy, task, task.prompts("heldout"))
    with pytest.raises(ValueError, match=r"'other' is not among.*Fix:.*two_modes"):
        referee.snapshot("other")

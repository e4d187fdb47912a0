"""The referee against small worlds worked out by hand."""

import math

import pytest
import torch
from torch.testing import assert_close

from flowrl_lab.exact import (
    answers_target,
    exact_log_flows,
    exact_report,
    exact_target,
    gradient_noise,
    length_normalized_target,
    mean_report,
    optimal_log_z,
    reference_log_partition,
    target_accuracy,
)
from flowrl_lab.losses import detailed_balance_loss, flowrl_residuals
from flowrl_lab.types import AnswerSet

SCALE = 1.7


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def rand(*shape, seed=0):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def answer_set(rewards, correct, groups, exhaustive):
    count = len(rewards)
    return AnswerSet(
        prompt="?",
        labels=tuple(str(i) for i in range(count)),
        completion_ids=torch.arange(count).unsqueeze(1),
        completion_mask=torch.ones(count, 1, dtype=torch.bool),
        rewards=torch.tensor(rewards),
        correct=torch.tensor(correct),
        groups=torch.tensor(groups),
        exhaustive=exhaustive,
    )


# --- log Z and targets -----------------------------------------------------


def test_log_partition_by_hand():
    # Z = ½ e^2 + ¼ e^0 + ¼ e^1
    ref, rewards = double([0.5, 0.25, 0.25]).log(), double([1.0, 0.0, 0.5])
    result = reference_log_partition(ref, rewards, reward_scale=2.0, exhaustive=True)
    expected = math.log(0.5 * math.exp(2) + 0.25 + 0.25 * math.exp(1))
    assert_close(result, double(expected))


def test_log_partition_counts_what_is_not_listed_with_reward_zero():
    ref, rewards = double([0.5, 0.25, 0.25]).log(), double([1.0, 0.0, 0.5])
    whole = reference_log_partition(ref, rewards, reward_scale=2.0, exhaustive=True)
    rows = [0, 2]  # the middle one has reward 0 and need not be listed
    part = reference_log_partition(
        ref[rows], rewards[rows], reward_scale=2.0, exhaustive=False
    )
    assert_close(part, whole)
    complete = reference_log_partition(ref, rewards, reward_scale=2.0, exhaustive=False)
    assert_close(complete, whole)


def test_log_partition_survives_a_large_scale():
    ref, rewards = double([0.5, 0.5]).log(), double([1.0, 0.0])
    result = reference_log_partition(ref, rewards, reward_scale=1e4, exhaustive=True)
    assert_close(result, double(1e4 + math.log(0.5)))


def test_target_is_ref_times_exp_reward_over_z():
    ref, rewards = rand(6).log_softmax(0), rand(6, seed=1)
    log_z = reference_log_partition(ref, rewards, reward_scale=SCALE, exhaustive=True)
    target = exact_target(ref, rewards, reward_scale=SCALE)
    assert_close(target, ref + SCALE * rewards - log_z)
    assert_close(target.exp().sum(), double(1.0))


def test_target_with_forbidden_answers_is_the_reference_restricted():
    ref = double([0.5, 0.25, 0.25]).log()
    target = exact_target(ref, double([0.0, -math.inf, 0.0]), reward_scale=1.0)
    assert_close(target.exp(), double([2 / 3, 0.0, 1 / 3]))


def test_equal_rewards_keep_the_ratios_of_the_reference():
    ref = rand(6).log_softmax(0)
    assert_close(exact_target(ref, torch.ones(6).double(), reward_scale=15.0), ref)


def test_best_log_z_is_log_z_minus_kl_by_enumeration():
    log_probs, ref = rand(6).log_softmax(0), rand(6, seed=2).log_softmax(0)
    rewards = rand(6, seed=1)
    log_z = reference_log_partition(ref, rewards, reward_scale=SCALE, exhaustive=True)
    target = exact_target(ref, rewards, reward_scale=SCALE)
    kl = sum(
        p * (math.log(p) - t)
        for p, t in zip(log_probs.exp().tolist(), target.tolist(), strict=True)
    )
    result = optimal_log_z(log_probs, ref, rewards, reward_scale=SCALE)
    assert_close(result, log_z - kl)
    at_target = optimal_log_z(target, ref, rewards, reward_scale=SCALE)
    assert_close(at_target, log_z)


def test_best_log_z_of_a_policy_with_zeros():
    log_probs, ref = double([1.0, 0.0]).log(), double([0.5, 0.5]).log()
    rewards = double([1.0, 5.0])
    result = optimal_log_z(log_probs, ref, rewards, reward_scale=2.0)
    assert_close(result, double(2.0 + math.log(0.5)))
    never = optimal_log_z(ref, log_probs, rewards, reward_scale=2.0)
    assert never.item() == -math.inf


def test_length_normalized_target_balances_the_length_normalized_residual():
    lengths, log_z = torch.tensor([1, 2, 3, 3]), 0.7
    ref, rewards = rand(4).log_softmax(0), rand(4, seed=1)
    mass = length_normalized_target(ref, rewards, lengths, log_z, reward_scale=SCALE)
    # Spread each answer's log-prob evenly over its tokens.
    mask = torch.arange(3) < lengths.unsqueeze(1)
    residuals = flowrl_residuals(
        torch.full((4,), log_z, dtype=torch.float64),
        (mass / lengths).unsqueeze(1).expand(4, 3),
        (ref / lengths).unsqueeze(1).expand(4, 3),
        rewards,
        mask,
        reward_scale=SCALE,
    )
    assert_close(residuals, torch.zeros(4, dtype=torch.float64))


def test_length_normalized_target_of_one_token_answers_is_the_textbook_one():
    ref, rewards = rand(4).log_softmax(0), rand(4, seed=1)
    log_z = reference_log_partition(ref, rewards, reward_scale=SCALE, exhaustive=True)
    ones = torch.ones(4, dtype=torch.long)
    mass = length_normalized_target(ref, rewards, ones, log_z, reward_scale=SCALE)
    assert_close(mass, exact_target(ref, rewards, reward_scale=SCALE))


# --- reports ---------------------------------------------------------------


def exhaustive_report(**settings):
    """π = (0.7, 0.1, 0.2), uniform reference, target (½, ¼, ¼)."""
    answers = answer_set(
        [math.log(2), 0.0, 0.0], [True, False, True], [0, -1, 1], exhaustive=True
    )
    arguments = {"target_reward_scale": 1.0, "run_reward_scale": 1.0} | settings
    return exact_report(
        double([0.7, 0.1, 0.2]).log(), double([1 / 3] * 3).log(), answers, **arguments
    )


def test_report_of_an_exhaustive_world_by_hand():
    report = exhaustive_report(log_z_learned=1.0)
    policy, target = [0.7, 0.1, 0.2], [0.5, 0.25, 0.25]
    pairs = list(zip(policy, target, strict=True))
    # float32 rewards (log 2) limit the target to about 1e-8.
    assert report.accuracy == pytest.approx(0.9)
    assert report.pass_at_k == pytest.approx(
        {k: 1 - 0.1**k for k in (1, 4, 16, 64, 256)}
    )
    assert report.distinct_64 == pytest.approx(2 - 0.3**64 - 0.8**64)
    share = [0.7 / 0.9, 0.2 / 0.9]
    entropy = -sum(p * math.log(p) for p in share)
    assert report.effective_answers == pytest.approx(math.exp(entropy))
    forward = sum(t * math.log(t / p) for p, t in pairs)
    reverse = sum(p * math.log(p / t) for p, t in pairs)
    assert report.kl_policy_target == pytest.approx(reverse, abs=1e-7)
    assert report.kl_target_policy == pytest.approx(forward, abs=1e-7)
    assert report.total_variation == pytest.approx(0.2, abs=1e-7)
    assert report.modes_covered == 1.0
    assert report.lost_prompts == 0.0
    assert report.log_z_exact == pytest.approx(math.log(4 / 3), abs=1e-7)
    assert report.log_z_learned == 1.0
    assert report.log_z_rmse == pytest.approx(1 - math.log(4 / 3), abs=1e-7)
    assert report.num_prompts == 1


def test_report_restricted_to_the_correct_answers_by_hand():
    # Two of the answers are right; the rest of the policy's mass is not listed.
    answers = answer_set([1.0, 1.0], [True, True], [0, 1], exhaustive=False)
    report = exact_report(
        double([0.6, 0.01]).log(),
        double([0.06, 0.02]).log(),
        answers,
        target_reward_scale=None,
        run_reward_scale=3.0,
    )
    target, compared = [0.75, 0.25], [60 / 61, 1 / 61]
    reverse = sum(p * math.log(p / t) for p, t in zip(compared, target, strict=True))
    forward = 0.75 * math.log(0.75 / 0.6) + 0.25 * math.log(0.25 / 0.01)
    assert report.accuracy == pytest.approx(0.61)
    assert report.kl_policy_target == pytest.approx(reverse)
    assert report.kl_target_policy == pytest.approx(forward)
    assert report.total_variation == pytest.approx(60 / 61 - 0.75)
    assert report.modes_covered == 0.5
    assert report.log_z_exact == pytest.approx(math.log(0.92 + 0.08 * math.exp(3)))
    assert math.isnan(report.log_z_learned) and math.isnan(report.log_z_rmse)


def test_report_at_the_target_is_perfect():
    answers = answer_set([1.0, 0.0, 2.0, 0.5], [True] * 4, [0, 0, 1, 2], True)
    ref = rand(4).log_softmax(0)
    target = exact_target(ref, answers.rewards.double(), reward_scale=SCALE)
    report = exact_report(
        target, ref, answers, target_reward_scale=SCALE, run_reward_scale=SCALE
    )
    for value in (
        report.kl_policy_target,
        report.kl_target_policy,
        report.total_variation,
    ):
        assert value == pytest.approx(0.0, abs=1e-12)
    assert report.modes_covered == 1.0 and report.accuracy == pytest.approx(1.0)


def test_report_of_a_collapsed_policy_is_infinite_forward_and_finite_reverse():
    answers = answer_set([1.0, 1.0], [True, True], [0, 1], exhaustive=True)
    collapsed, uniform = double([1.0, 0.0]).log(), double([0.5, 0.5]).log()
    report = exact_report(
        collapsed, uniform, answers, target_reward_scale=1.0, run_reward_scale=1.0
    )
    assert report.kl_target_policy == math.inf
    assert report.kl_policy_target == pytest.approx(math.log(2))
    assert report.effective_answers == pytest.approx(1.0)
    assert report.modes_covered == 0.5


def test_a_lost_prompt_is_one_that_64_samples_miss():
    answers = answer_set([1.0], [True], [0], exhaustive=False)
    for accuracy, lost in ((0.011, 0.0), (0.010, 1.0)):  # 1 - 0.989^64 = 0.507
        report = exact_report(
            double([accuracy]).log(),
            double([0.1]).log(),
            answers,
            target_reward_scale=None,
            run_reward_scale=1.0,
        )
        assert report.lost_prompts == lost


def test_report_of_graded_answers_by_hand():
    """A list that is not exhaustive, with a wrong answer that is paid a little."""
    probs, reference = double([0.3, 0.1, 0.2]), double([0.1, 0.2, 0.3])
    answers = answer_set([1.0, 0.5, 0.25], [True, True, False], [0, 1, -1], False)
    report = exact_report(
        probs.log(),
        reference.log(),
        answers,
        target_reward_scale=2.0,
        run_reward_scale=3.0,
    )
    masses = [0.1 * math.exp(2.0), 0.2 * math.exp(1.0)]  # the right ones only
    target = [mass / sum(masses) for mass in masses]
    within = [0.75, 0.25]
    log_z = math.log(
        0.1 * math.exp(3) + 0.2 * math.exp(1.5) + 0.3 * math.exp(0.75) + 0.4
    )
    assert report.accuracy == pytest.approx(0.4)
    assert report.log_z_exact == pytest.approx(log_z)
    assert report.kl_policy_target == pytest.approx(
        sum(p * math.log(p / t) for p, t in zip(within, target, strict=True))
    )
    assert report.kl_target_policy == pytest.approx(
        sum(t * math.log(t / p) for t, p in zip(target, [0.3, 0.1], strict=True))
    )
    assert report.total_variation == pytest.approx(abs(within[0] - target[0]))
    assert target[1] / 2 > 0.1 and report.modes_covered == 0.5
    assert report.effective_answers == pytest.approx(
        math.exp(-sum(p * math.log(p) for p in within))
    )


@pytest.mark.parametrize("scale", [None, 0.0, 2.0])
def test_the_target_of_an_answer_set_lives_on_what_is_allowed(scale):
    ref = double([0.1, 0.2, 0.3, 0.4]).log()
    rewards, correct = [1.0, 0.5, 0.25, 0.0], [True, True, False, False]
    for exhaustive in (True, False):
        answers = answer_set(rewards, correct, [0, 1, -1, -1], exhaustive)
        target = answers_target(ref, answers, reward_scale=scale).exp()
        kept = 4 if exhaustive and scale is not None else 2
        masses = ref.exp() * ((scale or 0.0) * double(rewards)).exp()
        masses[kept:] = 0
        assert_close(target, masses / masses.sum())


def test_mean_report_is_the_mean_and_the_root_mean_square():
    first = exhaustive_report(log_z_learned=1.0)
    second = exhaustive_report(log_z_learned=3.0, run_reward_scale=2.0)
    mean = mean_report([first, second])
    for name in ("accuracy", "kl_policy_target", "log_z_exact", "log_z_learned"):
        expected = (getattr(first, name) + getattr(second, name)) / 2
        assert getattr(mean, name) == pytest.approx(expected)
    assert mean.pass_at_k[4] == pytest.approx(first.pass_at_k[4])
    square = (first.log_z_rmse**2 + second.log_z_rmse**2) / 2
    assert mean.log_z_rmse == pytest.approx(math.sqrt(square))
    assert mean.num_prompts == 2
    # A report over two prompts weighs as much as two reports.
    third = exhaustive_report(log_z_learned=-4.0)
    nested, flat = mean_report([mean, third]), mean_report([first, second, third])
    assert nested.log_z_learned == pytest.approx(flat.log_z_learned)
    assert nested.log_z_rmse == pytest.approx(flat.log_z_rmse)


# --- noise of the gradient ---------------------------------------------------


def one_sample_gradients(logits, ref, rewards, log_z):
    """The TB gradient of each answer alone, by autograd: [N, N]."""

    def loss(values, index):
        log_p = values.log_softmax(0)[index]
        return (log_z + log_p - SCALE * rewards[index] - ref[index]).square()

    rows = [
        torch.autograd.functional.jacobian(lambda v, i=i: loss(v, i), logits)
        for i in range(len(logits))
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("log_z", [-4.0, 0.0, 1.3])
def test_gradient_noise_is_the_variance_over_the_enumerated_samples(log_z):
    logits, ref = rand(6, seed=1), rand(6, seed=2).log_softmax(0)
    rewards = rand(6, seed=3)
    gradients = one_sample_gradients(logits, ref, rewards, log_z)
    probs = logits.softmax(0)[:, None]
    mean = (probs * gradients).sum(0)
    expected = (probs * (gradients - mean).square()).sum()
    noise = gradient_noise(
        logits.log_softmax(0), ref, rewards, log_z, reward_scale=SCALE
    )
    assert_close(noise, expected)


def test_gradient_noise_vanishes_at_the_target_with_the_true_log_z_only():
    ref, rewards = rand(5, seed=4).log_softmax(0), rand(5, seed=5)
    target = exact_target(ref, rewards, reward_scale=SCALE)
    log_z = reference_log_partition(ref, rewards, reward_scale=SCALE, exhaustive=True)
    at_truth = gradient_noise(target, ref, rewards, log_z, reward_scale=SCALE)
    assert_close(at_truth, torch.zeros_like(at_truth))
    # There every residual is the error b of log Z: 4 b² (1 - Σ p²).
    off = gradient_noise(target, ref, rewards, log_z + 3.0, reward_scale=SCALE)
    assert_close(off, 4 * 9 * (1 - target.exp().square().sum()))


def test_gradient_noise_ignores_what_the_policy_never_writes():
    log_p, ref, rewards = rand(4, seed=6).log_softmax(0), rand(4, seed=7), rand(4)
    ref = ref.log_softmax(0)
    alone = gradient_noise(log_p, ref, rewards, 0.7, reward_scale=SCALE)
    never = double([-math.inf])
    longer = [torch.cat([log_p, never]), torch.cat([ref, never])]
    rewards = torch.cat([rewards, double([1.0])])
    assert_close(gradient_noise(*longer, rewards, 0.7, reward_scale=SCALE), alone)


@pytest.mark.bad_input
def test_gradient_noise_refuses_what_makes_no_sense():
    even, rewards = double([0.5, 0.5]).log(), double([0.0, 1.0])
    with pytest.raises(ValueError, match="log_z"):
        gradient_noise(even, even, rewards, math.nan, reward_scale=1.0)
    with pytest.raises(
        ValueError, match=r"ranges from 0\.5 to 0\.5; expected a sum of 1"
    ):
        half = even - math.log(2)
        gradient_noise(half, even, rewards, 0.0, reward_scale=1.0)
    with pytest.raises(ValueError, match="log_probs"):
        gradient_noise(even[:1], even, rewards, 0.0, reward_scale=1.0)
    with pytest.raises(ValueError, match="log_probs - ref_log_probs"):
        impossible = double([0.0, -math.inf])
        gradient_noise(even, impossible, rewards, 0.0, reward_scale=1.0)


# --- flows -----------------------------------------------------------------


def texts_of_different_length():
    """Texts "a" (ends there), "ba" and "bb", token ids 0 and 1; padding is garbage."""
    ids = torch.tensor([[0, 7], [1, 0], [1, 1]])
    mask = torch.tensor([[True, False], [True, True], [True, True]])
    probs = double([[0.4, 9.0], [0.6, 0.25], [0.6, 0.75]])
    return ids, probs.log(), double([0.5, 1.0, -1.0]), mask


def test_flows_by_hand():
    ids, ref, rewards, mask = texts_of_different_length()
    flows = exact_log_flows(ids, ref, rewards, mask, reward_scale=2.0)
    gains = [math.exp(2.0 * r) for r in rewards.tolist()]
    after_b = 0.25 * gains[1] + 0.75 * gains[2]
    start = 0.4 * gains[0] + 0.6 * after_b
    expected = double(
        [
            [start, gains[0], gains[0]],
            [start, after_b, gains[1]],
            [start, after_b, gains[2]],
        ]
    ).log()
    assert_close(flows, expected)


def test_flows_and_target_leave_nothing_for_detailed_balance():
    ids, ref, rewards, mask = texts_of_different_length()
    flows = exact_log_flows(ids, ref, rewards, mask, reward_scale=2.0)
    step = flows.diff(dim=1).masked_fill(~mask, 0.0)
    policy = ref + step
    target = exact_target((ref * mask).sum(1), rewards, reward_scale=2.0)
    assert_close((policy * mask).sum(1), target)
    loss = detailed_balance_loss(flows, policy, ref, rewards, mask, reward_scale=2.0)
    assert_close(loss, double(0.0))


def test_flows_survive_rewards_that_underflow():
    ids, ref, rewards, mask = texts_of_different_length()
    flows = exact_log_flows(ids, ref, rewards - 3000.0, mask, reward_scale=2.0)
    plain = exact_log_flows(ids, ref, rewards, mask, reward_scale=2.0)
    assert_close(flows, plain - 6000.0)


@pytest.mark.bad_input
def test_flows_refuse_a_list_that_is_not_complete():
    ids, ref, rewards, mask = texts_of_different_length()
    with pytest.raises(ValueError, match=r"ranges from 0\.55 to 0\.55; expected"):
        exact_log_flows(ids[:2], ref[:2], rewards[:2], mask[:2], reward_scale=2.0)
    with pytest.raises(ValueError, match="completion_ids"):
        exact_log_flows(ids[:, :1], ref, rewards, mask, reward_scale=2.0)


def test_target_accuracy_is_what_enumeration_gives():
    for accuracy in (0.0, 0.3, 1.0):
        shares = torch.tensor([accuracy / 2, accuracy / 2, 1 - accuracy])
        target = exact_target(
            shares.log(), torch.tensor([1.0, 1.0, 0.0]), reward_scale=SCALE
        )
        right = target_accuracy(torch.tensor([accuracy]), reward_scale=SCALE)
        torch.testing.assert_close(right, target[:2].exp().sum()[None])
    assert target_accuracy(torch.tensor([0.5]), reward_scale=1e4).item() == 1.0

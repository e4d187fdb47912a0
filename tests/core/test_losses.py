"""The losses against enumeration, loops, and each other. All in float64.

"Exact expectation" below means: list every sequence of a small policy, weigh each
sequence's loss with its (detached) probability, and sum. No sampling, no noise.
"""

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from flowrl_lab import losses
from flowrl_lab.advantages import group_normalized
from flowrl_lab.partition import vargrad_log_z

SCALE = 1.7  # reward scale of the enumerated problems
COEF = 0.3  # a KL weight


def rand(*shape, seed=0):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


class Enumerated:
    """All 9 two-letter words over 3 letters, under a policy with free logits."""

    def __init__(self):
        self.first = rand(3, seed=1).requires_grad_()
        self.second = rand(3, 3, seed=2).requires_grad_()
        self.rewards = rand(9, seed=3)
        self.ref_tokens = self._tokens(rand(3, seed=4), rand(3, 3, seed=5))
        self.ref = self.ref_tokens.sum(1)
        self.tokens = self._tokens(self.first, self.second)
        self.log_probs = self.tokens.sum(1)
        self.mask = torch.ones(9, 2, dtype=torch.bool)

    @staticmethod
    def _tokens(first, second):
        """[9, 2] token log-probs of the words (0, 0), (0, 1), ... (2, 2)."""
        first, second = first.log_softmax(-1), second.log_softmax(-1)
        return torch.stack([first.repeat_interleave(3), second.flatten()], dim=1)

    @property
    def log_target(self):
        return (self.ref + SCALE * self.rewards).log_softmax(0)

    @property
    def log_z(self):
        return (self.ref + SCALE * self.rewards).logsumexp(0)

    def kl(self, log_q):
        return (self.log_probs.exp() * (self.log_probs - log_q)).sum()

    def gradient(self, scalar):
        grads = torch.autograd.grad(
            scalar, (self.first, self.second), retain_graph=True
        )
        return torch.cat([g.flatten() for g in grads])

    def expected(self, per_sequence):
        """Exact on-policy expectation; the sampler is not differentiated."""
        return (self.log_probs.detach().exp() * per_sequence).sum()


@pytest.fixture
def words():
    return Enumerated()


def token_batch(rows=4, width=5, seed=0):
    """Made-up token log-probs with uneven lengths, ratios on both sides of clips."""
    lengths = torch.tensor([5, 2, 1, 4])[:rows]
    mask = torch.arange(width) < lengths.unsqueeze(1)
    old = -rand(rows, width, seed=seed).abs()
    new = old + 0.4 * rand(rows, width, seed=seed + 1)
    ref = old + 0.5 * rand(rows, width, seed=seed + 2)
    return mask, new, old, ref


# --- the paper's number ----------------------------------------------------


@pytest.mark.parametrize("length_normalize", [True, False])
@pytest.mark.parametrize("importance", losses.IMPORTANCE_MODES)
def test_flowrl_first_step_is_196_875(length_normalize, importance):
    # β² (G-1)/G with β = 15 and G = 8, for any rewards that are not all equal.
    rewards = torch.tensor([1.0, 0, 0, 1, 1, 0, 0, 0, 3, 1, 4, 1, 5, 9, 2, 6]).double()
    log_probs = -rand(16, 5).abs()
    result = losses.flowrl_loss(
        torch.zeros(16, dtype=torch.float64),
        log_probs,
        log_probs,
        log_probs,
        group_normalized(rewards, 8, eps=0.0),
        torch.ones(16, 5, dtype=torch.bool),
        importance=importance,
        length_normalize=length_normalize,
    )
    assert_close(result, torch.tensor(196.875, dtype=torch.float64))


# --- trajectory balance and KL ---------------------------------------------


@pytest.mark.parametrize("log_z", [-3.0, 0.0, 2.5])
def test_on_policy_tb_gradient_is_twice_the_kl_gradient(words, log_z):
    per_sequence = losses.trajectory_balance_loss(
        torch.full((9,), log_z, dtype=torch.float64),
        words.log_probs,
        words.ref,
        words.rewards,
        reward_scale=SCALE,
        reduction="none",
    )
    gradient = words.gradient(words.expected(per_sequence))
    assert_close(gradient, 2 * words.gradient(words.kl(words.log_target)))


@pytest.mark.parametrize("importance", losses.IMPORTANCE_MODES)
def test_on_policy_flowrl_gradient_with_sums_is_twice_the_kl_gradient(
    words, importance
):
    per_sequence = losses.flowrl_loss(
        torch.full((9,), 0.4, dtype=torch.float64),
        words.tokens,
        words.tokens.detach(),
        words.ref_tokens,
        words.rewards,
        words.mask,
        reward_scale=SCALE,
        importance=importance,
        length_normalize=False,
        reduction="none",
    )
    gradient = words.gradient(words.expected(per_sequence))
    assert_close(gradient, 2 * words.gradient(words.kl(words.log_target)))


@pytest.mark.parametrize("group", [2, 3])
def test_rewards_less_their_groups_mean_rest_at_a_lower_beta(words, group):
    """r − r̄ holds 1/G of a sample's own reward: β acts as β(G−1)/G."""
    samples = torch.cartesian_prod(*[torch.arange(9)] * group)
    log_probs = words.log_probs[samples]  # [9^G, G]
    rewards = words.rewards[samples]
    centred = rewards - rewards.mean(1, keepdim=True)
    first = log_probs[:, 0]
    losses_of_first = losses.trajectory_balance_loss(
        torch.full_like(first, 0.4),
        first,
        words.ref[samples[:, 0]],
        centred[:, 0],
        reward_scale=SCALE,
        reduction="none",
    )
    chance = log_probs.sum(1).exp().detach()
    gradient = words.gradient((chance * losses_of_first).sum())
    lower = SCALE * (group - 1) / group
    target = (words.ref + lower * words.rewards).log_softmax(0)
    assert_close(gradient, 2 * words.gradient(words.kl(target)))


def test_best_log_z_is_the_true_one_minus_the_kl(words):
    log_z = torch.zeros((), dtype=torch.float64, requires_grad=True)
    expected = words.expected(
        losses.trajectory_balance_loss(
            log_z.expand(9),
            words.log_probs.detach(),
            words.ref,
            words.rewards,
            reward_scale=SCALE,
            reduction="none",
        )
    )
    # The loss is (log Z - log Z*)² + const, so its slope at 0 is -2 log Z*.
    (slope,) = torch.autograd.grad(expected, log_z)
    assert_close(-slope / 2, words.log_z - words.kl(words.log_target).detach())


def test_tb_is_zero_at_the_target_and_only_there(words):
    log_z = words.log_z.expand(9)
    arguments = (words.ref, words.rewards)
    at_target = losses.trajectory_balance_loss(
        log_z, words.log_target, *arguments, reward_scale=SCALE
    )
    assert_close(at_target, torch.zeros((), dtype=torch.float64))
    away = losses.trajectory_balance_loss(
        log_z, words.log_probs.detach(), *arguments, reward_scale=SCALE
    )
    assert away > 0.1


def test_flowrl_with_sums_equals_tb_on_sequences(words):
    log_z = rand(9, seed=8)
    flowrl = losses.flowrl_loss(
        log_z,
        words.tokens,
        words.tokens,
        words.ref_tokens,
        words.rewards,
        words.mask,
        reward_scale=SCALE,
        length_normalize=False,
    )
    tb = losses.trajectory_balance_loss(
        log_z, words.log_probs, words.ref, words.rewards, reward_scale=SCALE
    )
    assert_close(flowrl, tb)


# --- FlowRL's residual -----------------------------------------------------


@pytest.mark.parametrize("length_normalize", [True, False])
def test_flowrl_residuals_equal_a_loop(length_normalize):
    mask, new, _, ref = token_batch()
    log_z, rewards = rand(4, seed=5), rand(4, seed=6)
    result = losses.flowrl_residuals(
        log_z,
        new,
        ref,
        rewards,
        mask,
        reward_scale=2.5,
        length_normalize=length_normalize,
    )
    for b in range(4):
        length = int(mask[b].sum())
        log_ratio = sum((new[b, t] - ref[b, t]).item() for t in range(length))
        if length_normalize:
            log_ratio /= length
        expected = log_z[b].item() + log_ratio - 2.5 * rewards[b].item()
        assert result[b].item() == pytest.approx(expected, abs=1e-12)


def test_length_normalised_residual_is_zero_at_the_sharper_target():
    # π = π_ref exp(|y| (βr - log Z)): an inverse temperature of β |y|.
    mask, _, _, ref = token_batch()
    log_z, rewards = rand(4, seed=5), rand(4, seed=6)
    gain = (15.0 * rewards - log_z).unsqueeze(1)
    residuals = losses.flowrl_residuals(log_z, ref + gain, ref, rewards, mask)
    assert_close(residuals, torch.zeros(4, dtype=torch.float64))


def test_a_group_with_equal_rewards_still_pulls_to_the_reference():
    mask, new, old, ref = token_batch()
    rewards = group_normalized(torch.ones(4, dtype=torch.float64), 4)
    log_probs = new.clone().requires_grad_()
    loss = losses.flowrl_loss(
        torch.zeros(4).double(), log_probs, old, ref, rewards, mask, importance="none"
    )
    (grad,) = torch.autograd.grad(loss, log_probs)
    length = mask.sum(1, keepdim=True)
    gap = ((new - ref) * mask).sum(1, keepdim=True) / length
    assert_close(grad, 2 * gap / length * mask / 4)


def test_flowrl_gradients_reach_log_z_and_the_policy_only():
    mask, new, old, ref = token_batch()
    leaves = [t.clone().requires_grad_() for t in (rand(4), new, old, ref, rand(4))]
    log_z, log_probs, old, ref, rewards = leaves
    losses.flowrl_loss(log_z, log_probs, old, ref, rewards, mask).backward()
    assert log_z.grad.abs().min() > 0
    assert log_probs.grad[mask].abs().min() > 0
    assert old.grad is ref.grad is rewards.grad is None


# --- importance weights ----------------------------------------------------


def weights(log_ratios, importance, **clips):
    """Weights of sequences whose token log ratios add up to ``log_ratios``."""
    total = torch.tensor(log_ratios, dtype=torch.float64)
    tokens = torch.stack([total / 4, 3 * total / 4, total + 99], dim=1)
    mask = torch.tensor([[True, True, False]]).expand(len(total), 3)
    return losses.sequence_importance_weights(
        tokens, torch.zeros_like(tokens), mask, importance=importance, **clips
    )


@pytest.mark.parametrize(
    ("importance", "expected"),
    [
        ("none", [1.0, 1.0, 1.0, 1.0, 1.0]),
        ("clip", [0.8, 0.9, 1.0, 1.2, 1.2]),
        ("raw", [0.25, 0.9, 1.0, 2.0, 40.0]),
        ("max10", [0.25, 0.9, 1.0, 2.0, 10.0]),
    ],
)
def test_importance_weights_by_hand(importance, expected):
    log_ratios = [math.log(r) for r in (0.25, 0.9, 1.0, 2.0, 40.0)]
    result = weights(log_ratios, importance)
    assert_close(result, torch.tensor(expected, dtype=torch.float64))


def test_importance_clips_are_used_each_on_its_side():
    result = weights([-5.0, 5.0], "clip", clip_low=0.5, clip_high=0.28)
    assert_close(result, torch.tensor([0.5, 1.28], dtype=torch.float64))


@pytest.mark.parametrize(
    ("importance", "low", "high"),
    [
        ("none", 1.0, 1.0),
        ("clip", 0.8, 1.2),
        ("raw", math.exp(-60), math.exp(60)),
        ("max10", math.exp(-60), 10.0),
    ],
)
def test_extreme_ratios_do_not_overflow(importance, low, high):
    # 4096 tokens, each a little off: exp of the sum is far beyond float32.
    new = torch.full((2, 4096), -1.0)
    old = torch.stack([torch.zeros(4096), torch.full((4096,), -2.0)])
    mask = torch.ones(2, 4096, dtype=torch.bool)
    result = losses.sequence_importance_weights(new, old, mask, importance=importance)
    assert_close(result, torch.tensor([low, high]))
    log_probs = new.clone().requires_grad_()
    loss = losses.flowrl_loss(
        torch.zeros(2), log_probs, old, new, torch.ones(2), mask, importance=importance
    )
    loss.backward()
    # δ = -15, so the gradient is w · 2δ/|y| / B
    expected = torch.tensor([low, high]) * 2 * -15 / 4096 / 2
    assert_close(log_probs.grad, expected.unsqueeze(1).expand(2, 4096))


@pytest.mark.parametrize("importance", losses.IMPORTANCE_MODES)
def test_the_weight_carries_no_gradient(importance):
    mask, new, old, ref = token_batch()
    rewards = rand(4, seed=6)
    log_probs = new.clone().requires_grad_()
    arguments = (rand(4, seed=5), log_probs)
    loss = losses.flowrl_loss(
        *arguments, old, ref, rewards, mask, importance=importance
    )
    w = losses.sequence_importance_weights(new, old, mask, importance=importance)
    residuals = losses.flowrl_residuals(*arguments, ref, rewards, mask)
    by_hand = (w * residuals.square()).mean()
    assert_close(loss, by_hand)
    (grad,) = torch.autograd.grad(loss, log_probs, retain_graph=True)
    (expected,) = torch.autograd.grad(by_hand, log_probs)
    assert_close(grad, expected)


# --- VarGrad ---------------------------------------------------------------


def vargrad_batch():
    log_probs = rand(12, seed=1).requires_grad_()
    return log_probs, rand(12, seed=2), rand(12, seed=3)


def test_vargrad_is_tb_at_the_batch_optimal_log_z():
    log_probs, ref, rewards = vargrad_batch()
    vargrad = losses.vargrad_loss(log_probs, ref, rewards, 4, reward_scale=SCALE)
    best = torch.zeros(3, dtype=torch.float64, requires_grad=True)

    def tb(log_z):
        return losses.trajectory_balance_loss(
            log_z.repeat_interleave(4), log_probs, ref, rewards, reward_scale=SCALE
        )

    estimate = vargrad_log_z(log_probs, ref, rewards, 4, reward_scale=SCALE)
    assert_close(vargrad, tb(estimate))
    # It is the optimum: TB is quadratic in log Z, with zero slope there.
    best = estimate.detach().requires_grad_()
    (slope,) = torch.autograd.grad(tb(best), best)
    assert_close(slope, torch.zeros(3, dtype=torch.float64))


def test_vargrad_gradient_is_the_same_with_and_without_stop_gradient():
    log_probs, ref, rewards = vargrad_batch()
    vargrad = losses.vargrad_loss(log_probs, ref, rewards, 4, reward_scale=SCALE)
    stopped = vargrad_log_z(log_probs, ref, rewards, 4, reward_scale=SCALE).detach()
    tb = losses.trajectory_balance_loss(
        stopped.repeat_interleave(4), log_probs, ref, rewards, reward_scale=SCALE
    )
    (grad,) = torch.autograd.grad(vargrad, log_probs, retain_graph=True)
    (expected,) = torch.autograd.grad(tb, log_probs)
    assert_close(grad, expected)


def test_contrastive_tb_over_pairs_is_vargrad_times_group_size_squared():
    log_probs, ref, rewards = (t.detach() for t in vargrad_batch())
    scores = (log_probs - ref - SCALE * rewards)[:4]
    pairs = sum((a - b) ** 2 for a, b in itertools.combinations(scores, 2))
    # Σ_pairs (s_i - s_j)² = G Σ (s - s̄)², and VarGrad is the mean over G.
    vargrad = losses.vargrad_loss(
        log_probs[:4], ref[:4], rewards[:4], 4, reward_scale=SCALE
    )
    assert_close(pairs, 4 * 4 * vargrad)


def test_expected_vargrad_gradient_is_the_kl_gradient_times_2_g_minus_1_over_g(words):
    per_pair = []
    for i, j in itertools.product(range(9), repeat=2):
        rows = [i, j]
        loss = losses.vargrad_loss(
            words.log_probs[rows],
            words.ref[rows],
            words.rewards[rows],
            2,
            reward_scale=SCALE,
        )
        per_pair.append(words.log_probs[rows].sum().detach().exp() * loss)
    gradient = words.gradient(torch.stack(per_pair).sum())
    assert_close(gradient, 2 * (2 - 1) / 2 * words.gradient(words.kl(words.log_target)))


# --- SubTB and detailed balance --------------------------------------------


def subtb_loop(log_flows, new, ref, rewards, mask, lam):
    per_sequence = []
    for b in range(len(mask)):
        n = int(mask[b].sum())
        flow = [log_flows[b, i] for i in range(n)] + [SCALE * rewards[b]]
        total = weight_sum = 0.0
        for i in range(n):
            for j in range(i + 1, n + 1):
                steps = (new[b, i:j] - ref[b, i:j]).sum()
                weight = lam ** (j - i)
                total = total + weight * (flow[i] + steps - flow[j]) ** 2
                weight_sum += weight
        per_sequence.append(total / weight_sum)
    return torch.stack(per_sequence)


@pytest.mark.parametrize("lam", [0.3, 0.9, 1.0, 2.0])
def test_subtb_equals_a_triple_loop(lam):
    mask, new, _, ref = token_batch()
    flows, rewards = rand(4, 6, seed=7), rand(4, seed=8)
    results = []
    for function in ("module", "loop"):
        log_flows = flows.clone().requires_grad_()
        log_probs = new.clone().requires_grad_()
        if function == "loop":
            value = subtb_loop(log_flows, log_probs, ref, rewards, mask, lam)
        else:
            value = losses.subtrajectory_balance_loss(
                log_flows,
                log_probs,
                ref,
                rewards,
                mask,
                reward_scale=SCALE,
                subtb_lambda=lam,
                reduction="none",
            )
        value.sum().backward()
        results.append((value.detach(), log_flows.grad, log_probs.grad))
    for result, expected in zip(*results, strict=True):
        assert_close(result, expected)


def test_subtb_turns_into_tb_and_into_detailed_balance():
    mask, new, _, ref = token_batch()
    flows, rewards = rand(4, 6, seed=7), rand(4, seed=8)
    arguments = (flows, new, ref, rewards, mask)
    whole = losses.subtrajectory_balance_loss(
        *arguments, reward_scale=SCALE, subtb_lambda=1e12
    )
    tb = losses.trajectory_balance_loss(
        flows[:, 0],
        (new * mask).sum(1),
        (ref * mask).sum(1),
        rewards,
        reward_scale=SCALE,
    )
    assert_close(whole, tb)
    single = losses.subtrajectory_balance_loss(
        *arguments, reward_scale=SCALE, subtb_lambda=1e-12
    )
    balance = losses.detailed_balance_loss(*arguments, reward_scale=SCALE)
    assert_close(single, balance)


def test_detailed_balance_equals_a_loop():
    mask, new, _, ref = token_batch()
    flows, rewards = rand(4, 6, seed=7), rand(4, seed=8)
    result = losses.detailed_balance_loss(
        flows, new, ref, rewards, mask, reward_scale=SCALE, reduction="none"
    )
    for b in range(4):
        n = int(mask[b].sum())
        flow = [flows[b, i].item() for i in range(n)] + [SCALE * rewards[b].item()]
        edges = [
            (flow[t] + new[b, t].item() - ref[b, t].item() - flow[t + 1]) ** 2
            for t in range(n)
        ]
        assert result[b].item() == pytest.approx(sum(edges) / n, abs=1e-12)


@pytest.mark.parametrize("name", ["detailed_balance", "subtrajectory_balance"])
def test_without_a_mask_every_token_counts(name):
    _, new, _, ref = token_batch()
    flows, rewards = rand(4, 6, seed=7), rand(4, seed=8)
    loss = getattr(losses, f"{name}_loss")
    arguments, everything = (flows, new, ref, rewards), torch.ones(4, 5).bool()
    assert_close(
        loss(*arguments, reward_scale=SCALE),
        loss(*arguments, everything, reward_scale=SCALE),
    )


@pytest.mark.bad_input
@pytest.mark.parametrize("bad", [torch.zeros(5), [[0.0]], None])
@pytest.mark.parametrize("name", ["detailed_balance", "subtrajectory_balance"])
def test_without_a_mask_log_probs_are_checked_first(name, bad):
    loss = getattr(losses, f"{name}_loss")
    with pytest.raises(ValueError, match="`log_probs`"):
        loss(rand(4, 6), bad, rand(4, 5), rand(4), reward_scale=SCALE)


def test_flow_losses_are_zero_for_the_true_flows(words):
    # F(prefix) = log Σ over its endings of π_ref(ending | prefix) exp(βr).
    ref_second = words.ref_tokens[:, 1].view(3, 3)
    middle = (ref_second + SCALE * words.rewards.view(3, 3)).logsumexp(1)
    flows = torch.stack(
        [words.log_z.expand(9), middle.repeat_interleave(3), rand(9)], dim=1
    )
    first = words.log_target.view(3, 3).logsumexp(1).repeat_interleave(3)
    target_tokens = torch.stack([first, words.log_target - first], dim=1)
    arguments = (flows, target_tokens, words.ref_tokens, words.rewards, words.mask)
    zero = torch.zeros((), dtype=torch.float64)
    assert_close(losses.detailed_balance_loss(*arguments, reward_scale=SCALE), zero)
    assert_close(
        losses.subtrajectory_balance_loss(*arguments, reward_scale=SCALE), zero
    )


# --- clipped surrogates ----------------------------------------------------


def surrogate_loop(new, old, advantage, ref, *, low, high, coef, dual=None):
    """One token's loss, straight from the formula."""
    ratio = torch.exp(new - old)
    clipped = min(max(ratio, torch.tensor(1 - low)), torch.tensor(1 + high))
    loss = -min(ratio * advantage, clipped * advantage)
    if dual is not None and advantage < 0:
        loss = min(loss, -dual * advantage)
    if coef:
        gap = ref - new
        loss = loss + coef * (torch.exp(gap) - gap - 1)
    return loss


def surrogate_table(mask, new, old, ref, advantages, **settings):
    """Token losses of each sequence, as lists."""
    return [
        [
            surrogate_loop(
                new[b, t], old[b, t], advantages[b, t], ref[b, t], **settings
            )
            for t in range(mask.shape[1])
            if mask[b, t]
        ]
        for b in range(mask.shape[0])
    ]


@pytest.mark.parametrize("per_token", [True, False])
@pytest.mark.parametrize(
    ("name", "coef"),
    [
        ("grpo", 0.0),
        ("grpo", COEF),
        ("reinforce_pp", 0.0),
        ("reinforce_pp", COEF),
        ("ppo", 0.0),
        ("ppo", COEF),
    ],
)
def test_clipped_losses_equal_their_loops(name, coef, per_token):
    mask, new, old, ref = token_batch()
    new = new + torch.tensor([[0.0], [2.0], [0.0], [0.0]])  # dual clip has work
    by_row = torch.tensor([1.1, -0.7, 0.4, -2.0], dtype=torch.float64)
    advantages = rand(4, 5, seed=9) if per_token else by_row
    wide = advantages if per_token else advantages.unsqueeze(1).expand(4, 5)
    assert (wide[1, :2] < 0).any()
    outcomes = []
    for loop in (True, False):
        log_probs = new.clone().requires_grad_()
        if loop:
            table = surrogate_table(
                mask,
                log_probs,
                old,
                ref,
                wide,
                low=0.2,
                high=0.28,
                coef=coef,
                dual=3.0 if name == "ppo" else None,
            )
            if name == "grpo":
                loss = sum(sum(row) / len(row) for row in table) / len(table)
            else:
                tokens = [x for row in table for x in row]
                loss = sum(tokens) / len(tokens)
        else:
            loss = getattr(losses, f"{name}_loss")(
                log_probs,
                old,
                advantages,
                mask,
                clip_low=0.2,
                clip_high=0.28,
                ref_log_probs=ref,
                kl_coef=coef,
            )
        loss.backward()
        outcomes.append((loss.detach(), log_probs.grad))
    for expected, result in zip(*outcomes, strict=True):
        assert_close(result, expected)


@pytest.mark.parametrize("advantage", [1.5, -0.5])
def test_clipped_surrogate_and_where_it_lets_go(advantage):
    """Value by the loop above; the gradient -ρA survives on one side only."""
    ratios = torch.tensor([0.1, 0.79, 0.95, 1.05, 1.31, 4.0], dtype=torch.float64)
    old = rand(6, seed=21)
    log_probs = (old + ratios.log()).requires_grad_()
    signal = torch.full_like(ratios, advantage)
    result = losses.clipped_surrogate(
        log_probs, old, signal, clip_low=0.2, clip_high=0.3
    )
    expected = [
        surrogate_loop(*row, None, low=0.2, high=0.3, coef=0.0)
        for row in zip(log_probs, old, signal, strict=True)
    ]
    assert_close(result, torch.stack(expected))
    (slope,) = torch.autograd.grad(result.sum(), log_probs)
    held = ratios > 1.3 if advantage > 0 else ratios < 0.8
    assert held.any() and not held.all()
    assert_close(slope, torch.where(held, 0.0, -ratios * advantage))


def test_dual_clip_bounds_the_loss_of_a_bad_token_that_became_likely():
    old, mask = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
    new, bad = torch.full((1, 1), math.log(50.0)), torch.tensor([-2.0])
    assert_close(losses.ppo_loss(new, old, bad, mask), torch.tensor(6.0))
    free = losses.ppo_loss(new, old, bad, mask, dual_clip=None)
    assert_close(free, torch.tensor(100.0))


@pytest.mark.parametrize("clipped", [True, False])
def test_ppo_value_loss_equals_a_loop(clipped):
    mask, new, old, _ = token_batch()
    advantages = rand(4, 5, seed=9)
    values, old_values = rand(4, 5, seed=10), rand(4, 5, seed=11)
    returns = rand(4, 5, seed=12)
    values.requires_grad_()
    policy_only = losses.ppo_loss(new, old, advantages, mask)
    both = losses.ppo_loss(
        new,
        old,
        advantages,
        mask,
        values=values,
        returns=returns,
        old_values=old_values if clipped else None,
        value_coef=0.7,
        value_clip=0.3,
    )
    errors = []
    for b, t in mask.nonzero().tolist():
        v, v_old, goal = values[b, t], old_values[b, t], returns[b, t]
        error = (v - goal) ** 2
        if clipped:
            held = v_old + min(max(v - v_old, torch.tensor(-0.3)), torch.tensor(0.3))
            error = max(error, (held - goal) ** 2)
        errors.append(error)
    by_hand = 0.7 * sum(errors) / len(errors)
    assert_close(both - policy_only, by_hand)
    (grad,) = torch.autograd.grad(both, values)
    (expected,) = torch.autograd.grad(by_hand, values)
    assert_close(grad, expected)


@pytest.mark.parametrize("name", ["grpo", "reinforce_pp", "ppo"])
def test_on_policy_surrogate_gradient_is_the_policy_gradient(words, name):
    # At ratio 1 every clip is idle and the gradient is -E[A ∇ log π]: with A = r
    # that is -∇E[r]. (Two tokens each, so token means divide by 2.)
    per_sequence = getattr(losses, f"{name}_loss")(
        words.tokens,
        words.tokens.detach(),
        words.rewards,
        words.mask,
        reduction="none",
    )
    gradient = words.gradient(words.expected(per_sequence))
    reward = (words.log_probs.exp() * words.rewards).sum()
    assert_close(gradient, -words.gradient(reward) / 2)


@pytest.mark.parametrize("coef", [0.0, COEF])
@pytest.mark.parametrize("idle", [(), (0,), (1,), (0, 1)])
def test_dapo_is_the_token_mean_over_groups_that_differ(idle, coef):
    """Idle groups leave the mean, numerator and denominator; a loop says the same."""
    mask, new, old, ref = token_batch()
    advantages = torch.tensor([1.0, -1.0, 0.0, -0.7], dtype=torch.float64)
    for group in idle:
        advantages[2 * group : 2 * group + 2] = 0.0
    log_probs = new.clone().requires_grad_()
    result = losses.dapo_loss(
        log_probs, old, advantages, mask, 2, ref_log_probs=ref, kl_coef=coef
    )
    table = surrogate_table(
        mask,
        log_probs,
        old,
        ref,
        advantages.unsqueeze(1).expand(4, 5),
        low=0.2,
        high=0.28,
        coef=coef,
    )
    kept = [row for b, row in enumerate(table) if b // 2 not in idle]
    tokens = [x for row in kept for x in row]
    expected = sum(tokens) / len(tokens) if tokens else 0.0 * log_probs.sum()
    assert_close(result, expected)
    slopes = [
        torch.autograd.grad(v, log_probs, retain_graph=True)[0]
        for v in (result, expected)
    ]
    assert_close(*slopes)
    assert bool(slopes[0].any()) == (len(idle) < 2)


def test_clip_higher_lets_an_unlikely_token_rise_further():
    old, mask = torch.zeros(2, 1), torch.ones(2, 1, dtype=torch.bool)
    signal = torch.tensor([1.0, -1.0])
    slopes = {}
    for ratio in (1.1, 1.25, 1.3):
        new = torch.full((2, 1), math.log(ratio)).requires_grad_()
        for high in (0.2, 0.28):
            loss = losses.dapo_loss(new, old, signal, mask, 2, clip_high=high)
            slopes[ratio, high] = torch.autograd.grad(loss, new)[0][0, 0].item()
    assert slopes[1.1, 0.2] < 0 and slopes[1.1, 0.28] < 0
    assert slopes[1.25, 0.2] == 0 and slopes[1.25, 0.28] < 0  # what it is for
    assert slopes[1.3, 0.2] == slopes[1.3, 0.28] == 0


def test_grpo_weighs_sequences_and_reinforce_pp_weighs_tokens():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    zeros = torch.zeros(2, 3)
    advantages = torch.tensor([1.0, -3.0])
    assert_close(losses.grpo_loss(zeros, zeros, advantages, mask), torch.tensor(1.0))
    token_mean = losses.reinforce_pp_loss(zeros, zeros, advantages, mask)
    assert_close(token_mean, torch.tensor(0.0))


# --- KL-regularised REINFORCE ----------------------------------------------


def kl_reinforce_gradient(words, kl_coef):
    """Exact expectation over all 81 pairs of words (groups of 2)."""
    terms = []
    for i, j in itertools.product(range(9), repeat=2):
        rows = [i, j]
        loss = losses.kl_reinforce_loss(
            words.log_probs[rows],
            words.ref[rows],
            words.rewards[rows],
            2,
            kl_coef=kl_coef,
        )
        terms.append(words.log_probs[rows].sum().detach().exp() * loss)
    return words.gradient(torch.stack(terms).sum())


@pytest.mark.parametrize("kl_coef", [0.0, COEF])
def test_kl_reinforce_gradient_is_that_of_reward_minus_kl(words, kl_coef):
    reward = (words.log_probs.exp() * words.rewards).sum()
    objective = reward - kl_coef * words.kl(words.ref)
    assert_close(kl_reinforce_gradient(words, kl_coef), -words.gradient(objective))


def test_kl_reinforce_at_the_matched_temperature_is_tb(words):
    tb = words.expected(
        losses.trajectory_balance_loss(
            torch.full((9,), 0.8, dtype=torch.float64),
            words.log_probs,
            words.ref,
            words.rewards,
            reward_scale=SCALE,
            reduction="none",
        )
    )
    matched = kl_reinforce_gradient(words, 1 / SCALE)
    assert_close(matched, words.gradient(tb) / (2 * SCALE))


def test_kl_reinforce_by_hand():
    log_probs = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    ref = torch.tensor([-2.0, -2.0, -2.0])
    rewards = torch.tensor([1.0, 0.0, 0.0])
    # paid: 1 - 0.5·1, 0, 0.5; minus the mean of the other two
    advantages = torch.tensor([0.5 - 0.25, 0.0 - 0.5, 0.5 - 0.25])
    loss = losses.kl_reinforce_loss(log_probs, ref, rewards, 3, kl_coef=0.5)
    assert_close(loss, -(advantages * log_probs.detach()).mean())
    loss.backward()
    assert_close(log_probs.grad, -advantages / 3)
    alone = losses.kl_reinforce_loss(
        log_probs, ref, rewards, 1, kl_coef=0.0, reduction="none"
    )
    assert_close(alone, -rewards * log_probs)


# --- KL estimators ---------------------------------------------------------


@pytest.mark.parametrize("estimator", [losses.k1, losses.k3])
def test_k1_and_k3_are_the_kl_in_exact_expectation(words, estimator):
    expected = words.expected(estimator(words.log_probs, words.ref))
    assert_close(expected, words.kl(words.ref))


def test_expected_gradients_of_the_three_estimators(words):
    k1, k2, k3 = (
        words.gradient(words.expected(k(words.log_probs, words.ref)))
        for k in (losses.k1, losses.k2, losses.k3)
    )
    reverse = words.gradient(words.kl(words.ref))
    forward = words.gradient((words.ref.exp() * (words.ref - words.log_probs)).sum())
    assert_close(k1, torch.zeros_like(k1))
    assert_close(k2, reverse)
    assert_close(k3, forward)
    assert (reverse - forward).abs().max() > 0.1


def test_k_estimators_by_hand():
    log_probs, ref = torch.tensor([-1.0]).double(), torch.tensor([-3.0]).double()
    assert losses.k1(log_probs, ref).item() == 2.0
    assert losses.k2(log_probs, ref).item() == 2.0
    assert losses.k3(log_probs, ref).item() == pytest.approx(math.exp(-2) + 1)


def test_k3_stays_finite_and_pulls_back_from_anywhere():
    """Beyond d = 60 its tangent: value and slope join, and the slope keeps its sign."""
    distance = torch.tensor([1.0, 59.9, 60.0, 60.1, 500.0, 1e9], dtype=torch.float64)
    log_probs = (-distance).requires_grad_()
    values = losses.k3(log_probs, torch.zeros(6, dtype=torch.float64))
    values.sum().backward()
    held = distance.clamp(max=60.0)
    slope = held.expm1()
    expected = held.expm1() - held + slope * (distance - held)
    assert_close(values.detach(), expected, rtol=1e-12, atol=0.0)
    # what has become far too unlikely must rise: minus the slope, never plus one
    assert_close(log_probs.grad, -slope, rtol=1e-12, atol=0.0)
    assert bool(losses.k3(log_probs.float(), torch.zeros(6)).isfinite().all())


@pytest.mark.parametrize("name", ["reinforce_pp_loss", "dapo_loss", "ppo_loss"])
def test_token_means_keep_the_digits_of_float64(name):
    """17 tokens of 3 sequences: 17/3 has more digits than float32 holds."""
    mask = torch.arange(8) < torch.tensor([[8], [6], [3]])
    log_probs = -torch.ones(3, 8, dtype=torch.float64)
    advantages = torch.tensor([1.0, 0.3, -0.7], dtype=torch.float64)
    settings = {"num_generations": 3} if name == "dapo_loss" else {}
    loss = getattr(losses, name)(log_probs, log_probs, advantages, mask, **settings)
    assert abs(loss.item() + (8 * 1.0 + 6 * 0.3 - 3 * 0.7) / 17) < 1e-15


# --- diagnostics -----------------------------------------------------------


def test_clip_fraction_counts_ratios_outside():
    ratio = torch.tensor([[0.7, 1.0, 1.25], [1.1, 50.0, 50.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    old = torch.zeros(2, 3)

    def fraction(**settings):
        return losses.clip_fraction(ratio.log(), old, mask, **settings).item()

    assert fraction() == 0.5
    assert fraction(clip_high=0.28) == 0.25
    assert fraction(clip_low=0.4) == 0.25
    assert fraction(level="sequence") == 0.0  # 0.875 and 1.1
    assert fraction(level="sequence", clip_high=0.05) == 0.5


# --- what holds for every loss ---------------------------------------------


def token_losses():
    """name -> function of (log_probs, old, ref, mask, per-token extra, reduction)."""

    def extras(mask, seed):
        return rand(mask.shape[0], 9, seed=seed)[:, : mask.shape[1]]

    def log_flows(mask):
        return rand(mask.shape[0], 9, seed=23)[:, : mask.shape[1] + 1]

    def flowrl(importance, length_normalize):
        return lambda new, old, ref, mask, reduction: losses.flowrl_loss(
            rand(4, seed=5),
            new,
            old,
            ref,
            rand(4, seed=6),
            mask,
            importance=importance,
            length_normalize=length_normalize,
            reduction=reduction,
        )

    table = {
        f"flowrl-{importance}-{'mean' if normalize else 'sum'}": flowrl(
            importance, normalize
        )
        for importance in losses.IMPORTANCE_MODES
        for normalize in (True, False)
    }
    for name in ("grpo", "reinforce_pp"):
        function = getattr(losses, f"{name}_loss")
        table[name] = lambda new, old, ref, mask, reduction, f=function: f(
            new,
            old,
            extras(mask, 20),
            mask,
            ref_log_probs=ref,
            kl_coef=COEF,
            reduction=reduction,
        )
    table["dapo"] = lambda new, old, _ref, mask, reduction: losses.dapo_loss(
        new, old, rand(4, seed=20), mask, 2, reduction=reduction
    )
    table["ppo"] = lambda new, old, ref, mask, reduction: losses.ppo_loss(
        new,
        old,
        extras(mask, 20),
        mask,
        values=ref,
        old_values=extras(mask, 21),
        returns=extras(mask, 22),
        reduction=reduction,
    )
    table["subtb"] = lambda new, _old, ref, mask, reduction: (
        losses.subtrajectory_balance_loss(
            log_flows(mask),
            new,
            ref,
            rand(4, seed=6),
            mask,
            reward_scale=SCALE,
            reduction=reduction,
        )
    )
    table["detailed_balance"] = lambda new, _old, ref, mask, reduction: (
        losses.detailed_balance_loss(
            log_flows(mask),
            new,
            ref,
            rand(4, seed=6),
            mask,
            reward_scale=SCALE,
            reduction=reduction,
        )
    )
    return table


@pytest.mark.parametrize("garbage", [0.0, 1e6, -1e6, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", token_losses())
def test_padding_never_changes_a_loss_or_its_gradient(name, garbage):
    function = token_losses()[name]
    mask, *tokens = token_batch()
    results = []
    for pad in (0, 3):
        wide_mask = torch.nn.functional.pad(mask, (0, pad))
        wide = [
            torch.nn.functional.pad(t, (0, pad)).masked_fill(~wide_mask, garbage)
            if pad
            else t
            for t in tokens
        ]
        log_probs = wide[0].clone().requires_grad_()
        loss = function(log_probs, *wide[1:], wide_mask, "mean")
        loss.backward()
        results.append((loss.detach(), log_probs.grad))
    (loss, grad), (padded_loss, padded_grad) = results
    assert_close(padded_loss, loss)
    assert_close(padded_grad[:, :5], grad)
    assert bool((padded_grad[:, 5:] == 0).all())
    assert bool((grad[~mask] == 0).all())


@pytest.mark.parametrize("name", token_losses())
def test_mean_is_the_mean_of_none(name):
    function = token_losses()[name]
    mask, *tokens = token_batch()
    per_sequence = function(*tokens, mask, "none")
    assert per_sequence.shape == (4,)
    assert_close(function(*tokens, mask, "mean"), per_sequence.mean())


def test_mean_is_the_mean_of_none_for_sequence_losses():
    log_probs, ref, rewards = vargrad_batch()
    for function in (
        lambda reduction: losses.trajectory_balance_loss(
            rand(12, seed=4),
            log_probs,
            ref,
            rewards,
            reward_scale=SCALE,
            reduction=reduction,
        ),
        lambda reduction: losses.vargrad_loss(
            log_probs, ref, rewards, 4, reward_scale=SCALE, reduction=reduction
        ),
        lambda reduction: losses.kl_reinforce_loss(
            log_probs, ref, rewards, 4, kl_coef=COEF, reduction=reduction
        ),
    ):
        per_sequence = function("none")
        assert per_sequence.shape == (12,)
        assert_close(function("mean"), per_sequence.mean())


@pytest.mark.parametrize("name", token_losses())
def test_half_precision_inputs_are_computed_in_float32(name):
    function = token_losses()[name]
    mask, *tokens = token_batch()
    half = [t.bfloat16() for t in tokens]
    result = function(*half, mask, "mean")
    expected = function(*[t.double() for t in half], mask, "mean")
    assert_close(result.float(), expected.float())

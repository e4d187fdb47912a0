"""Notebook 5: REINFORCE++, PPO and GRPO from their parts, and their KL penalties."""

from __future__ import annotations

import torch
from torch import Tensor

from flowrl_lab.course.checking import Case, Exercise, Mistake
from flowrl_lab.course.exercises._cases import draw_log_probs, draw_rewards

__all__ = ["EXERCISES"]

# ------------------------------------------------------------- group_normalized


def _groups() -> list[Case]:
    """Groups of 4, 3 and 2; one of them has nothing to compare."""
    equal = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.5, 0.5, 0.5, 0.5]).double()
    return [
        ((draw_rewards(8, 31), 4), {}),
        ((equal, 4), {}),
        ((draw_rewards(6, 32), 3), {"eps": 0.1}),
        ((3 * draw_rewards(6, 33), 2), {}),
    ]


def _z_scores(rewards: Tensor, num_generations: int, eps: float, ddof: int) -> Tensor:
    groups = rewards.view(-1, num_generations)
    centred = groups - groups.mean(1, keepdim=True)
    return (centred / (groups.std(1, correction=ddof, keepdim=True) + eps)).flatten()


def _whole_batch(rewards, num_generations, *, eps=1e-6):  # noqa: ARG001
    return (rewards - rewards.mean()) / (rewards.std() + eps)


def _only_centred(rewards, num_generations, *, eps=1e-6):  # noqa: ARG001
    groups = rewards.view(-1, num_generations)
    return (groups - groups.mean(1, keepdim=True)).flatten()


def _divided_by_variance(rewards, num_generations, *, eps=1e-6):
    groups = rewards.view(-1, num_generations)
    centred = groups - groups.mean(1, keepdim=True)
    return (centred / (groups.var(1, keepdim=True) + eps)).flatten()


def _across_the_groups(rewards, num_generations, *, eps=1e-6):
    columns = rewards.view(num_generations, -1)
    centred = columns - columns.mean(0, keepdim=True)
    return (centred / (columns.std(0, keepdim=True) + eps)).flatten()


def _eps_under_the_root(rewards, num_generations, *, eps=1e-6):
    groups = rewards.view(-1, num_generations)
    centred = groups - groups.mean(1, keepdim=True)
    return (centred / (groups.var(1, keepdim=True) + eps).sqrt()).flatten()


GROUP_NORMALIZED = Exercise(
    name="group_normalized",
    solution="flowrl_lab.advantages:group_normalized",
    cases=_groups,
    mistakes=(
        Mistake(
            "ddof 0",
            "Your standard deviation divides by G. The published one divides by "
            "G − 1, which is what `.std()` of torch does by itself.",
            lambda rewards, num_generations, *, eps=1e-6: _z_scores(
                rewards, num_generations, eps, ddof=0
            ),
        ),
        Mistake(
            "whole batch",
            "You compared with the whole batch. Each sample is compared with the "
            "samples of its *own* prompt: view the rewards as [P, G] first.",
            _whole_batch,
        ),
        Mistake(
            "not divided",
            "You took the mean away but did not divide by the standard deviation.",
            _only_centred,
        ),
        Mistake(
            "no eps",
            "A group of equal rewards has standard deviation 0, and 0/0 is NaN. Add "
            "eps to the standard deviation.",
            lambda rewards, num_generations, *, eps=1e-6: _z_scores(  # noqa: ARG005
                rewards, num_generations, 0.0, ddof=1
            ),
        ),
        Mistake(
            "variance",
            "You divided by the variance; take its root, the standard deviation.",
            _divided_by_variance,
        ),
        Mistake(
            "wrong neighbours",
            "You mixed samples of different prompts: the G samples of a prompt lie "
            "next to each other, so the view is [P, G], not [G, P].",
            _across_the_groups,
        ),
        Mistake(
            "eps under the root",
            "You added eps to the variance. Here it is added to the standard "
            "deviation, after the root.",
            _eps_under_the_root,
        ),
    ),
    hint="groups = rewards.view(-1, num_generations); mean and std over dim=1 with "
    "keepdim=True; .flatten() at the end.",
)

# -------------------------------------------------------------------------- gae


def _critics() -> list[Case]:
    """Rewards, values with garbage in the padding, and masks."""
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]).bool()
    values = draw_rewards(12, 34).view(3, 4)
    rewards = torch.tensor([1.0, 0.0, 0.5]).double()
    whole = torch.ones(2, 3, dtype=torch.bool)
    return [
        ((rewards[:2], values[:2, :3].clone(), whole), {}),
        ((rewards, values, mask), {}),
        ((rewards, values, mask), {"discount": 0.9, "gae_lambda": 0.5}),
        ((rewards, values, mask), {"gae_lambda": 0.0}),
    ]


def _walk_back(
    rewards, values, mask, discount, decay, *, paid_at="last", cut=True, plus=1.0
) -> tuple[Tensor, Tensor]:
    """GAE with the slips that can be made on the way."""
    values = values * mask if cut else values
    last = mask.sum(1) - 1
    after, trace = torch.zeros_like(rewards), torch.zeros_like(rewards)
    columns = []
    for t in reversed(range(values.shape[1])):
        if paid_at == "every":
            paid = rewards * mask[:, t]
        else:
            end = last if paid_at == "last" else values.shape[1] - 1
            paid = torch.where(torch.as_tensor(end) == t, rewards, 0.0)
        delta = paid + discount * after - values[:, t]
        trace = delta + decay * trace
        trace = torch.where(mask[:, t], trace, 0.0) if cut else trace
        after = values[:, t]
        columns.insert(0, trace)
    advantages = torch.stack(columns, 1)
    returns = advantages + plus * values
    if cut:
        advantages, returns = advantages * mask, returns * mask
    return advantages, returns


def _gae_slip(decays_by=lambda discount, gae_lambda: discount * gae_lambda, **slip):
    """A wrong gae that makes one slip."""

    def wrong(rewards, values, completion_mask, *, discount=1.0, gae_lambda=1.0):
        decay = decays_by(discount, gae_lambda)
        return _walk_back(rewards, values, completion_mask, discount, decay, **slip)

    return wrong


def _reward_minus_value(rewards, values, completion_mask, **_factors):
    returns = rewards[:, None] * completion_mask
    return returns - values * completion_mask, returns


GAE = Exercise(
    name="gae",
    solution="flowrl_lab.advantages:gae",
    cases=_critics,
    mistakes=(
        Mistake(
            "reward at every token",
            "You paid the reward at every token. It is paid once, at the last token "
            "that counts.",
            _gae_slip(paid_at="every"),
        ),
        Mistake(
            "paid in the padding",
            "You paid the reward in the last *column*. A short completion ends "
            "earlier: pay at its last token that counts.",
            _gae_slip(paid_at="end"),
        ),
        Mistake(
            "padding counted",
            "The critic's values in the padding leaked into your result. After the "
            "last token that counts there is nothing: V and A are 0 there.",
            _gae_slip(cut=False),
        ),
        Mistake(
            "no lambda",
            "γ and λ have no effect in your function: A = r − V is right for "
            "γ = λ = 1 only. Walk back from the last token with "
            "A_t = d_t + γ λ A_{t+1}.",
            _reward_minus_value,
        ),
        Mistake(
            "lambda without discount",
            "The trace decays by γ λ for each token, not by λ alone.",
            _gae_slip(decays_by=lambda _discount, gae_lambda: gae_lambda),
        ),
        Mistake(
            "returns without values",
            "Your advantages are right; the returns are A + V, what the critic "
            "should have said.",
            _gae_slip(plus=0.0),
        ),
    ),
    hint="Loop over t from the last token to the first. d_t = r_t + γ V_{t+1} − V_t, "
    "where r_t is the reward at the last counted token and 0 before it; "
    "A_t = d_t + γ λ A_{t+1}. Set V and A to 0 in the padding.",
)

# ------------------------------------------------------------ clipped_surrogate


def _ratios() -> list[Case]:
    """Ratios below, inside and above the clip, good and bad samples."""
    old = draw_log_probs(8, seed=35)
    moves = torch.tensor([-0.9, -0.3, -0.1, 0.0, 0.1, 0.25, 0.5, 1.2]).double()
    good, bad = torch.full_like(old, 1.5), torch.full_like(old, -0.7)
    mixed = torch.where(torch.arange(8) % 3 == 0, good, bad)
    return [
        ((old + moves, old, good), {}),
        ((old + moves, old, bad), {}),
        (
            ((old - moves).view(2, 4), old.view(2, 4), mixed.view(2, 4)),
            {"clip_low": 0.1, "clip_high": 0.3},
        ),
    ]


def _ratio_and_clipped(new, old, low, high) -> tuple[Tensor, Tensor]:
    ratio = (new - old).exp()
    return ratio, ratio.clamp(1 - low, 1 + high)


def _clipped_right(new, old, advantages, low, high) -> Tensor:
    ratio, clipped = _ratio_and_clipped(new, old, low, high)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def _larger_of_both(new, old, advantages, low, high) -> Tensor:
    ratio, clipped = _ratio_and_clipped(new, old, low, high)
    return -torch.maximum(ratio * advantages, clipped * advantages)


def _clip_alone(new, old, advantages, low, high) -> Tensor:
    _, clipped = _ratio_and_clipped(new, old, low, high)
    return -clipped * advantages


def _smaller_ratio(new, old, advantages, low, high) -> Tensor:
    ratio, clipped = _ratio_and_clipped(new, old, low, high)
    return -torch.minimum(ratio, clipped) * advantages


def _surrogate_slip(form):
    """A wrong clipped_surrogate with another formula."""

    def wrong(log_probs, old_log_probs, advantages, *, clip_low=0.2, clip_high=0.2):
        return form(log_probs, old_log_probs, advantages, clip_low, clip_high)

    return wrong


CLIPPED_SURROGATE = Exercise(
    name="clipped_surrogate",
    solution="flowrl_lab.losses:clipped_surrogate",
    cases=_ratios,
    mistakes=(
        Mistake(
            "max for min",
            "You took the larger of ρA and clip(ρ)A. The smaller one is wanted: the "
            "clip may only make the objective worse, never better.",
            _surrogate_slip(_larger_of_both),
        ),
        Mistake(
            "clip alone",
            "You clipped the ratio and left out the min. Then a sample that went the "
            "*wrong* way has no gradient either, and never comes back.",
            _surrogate_slip(_clip_alone),
        ),
        Mistake(
            "min of the ratios",
            "You took the min of the two ratios. For A < 0 that is the wrong side: "
            "multiply by A first, then take the min.",
            _surrogate_slip(_smaller_ratio),
        ),
        Mistake(
            "sign",
            "The sign is turned round. min(ρA, clip(ρ)A) is to be made large, a "
            "*loss* is made small.",
            _surrogate_slip(lambda *inputs: -_clipped_right(*inputs)),
        ),
        Mistake(
            "ratio upside down",
            "Your ratio is π_old/π. It must be π/π_old: exp(log_probs − "
            "old_log_probs).",
            _surrogate_slip(lambda new, old, *rest: _clipped_right(old, new, *rest)),
        ),
        Mistake(
            "detached ratio",
            "The value is right, but no gradient reaches log_probs: the ratio itself "
            "must stay attached. Only π_old and A are constants.",
            _surrogate_slip(lambda new, *rest: _clipped_right(new.detach(), *rest)),
        ),
        Mistake(
            "one epsilon",
            "You used clip_low on both sides. The upper bound is 1 + clip_high.",
            _surrogate_slip(
                lambda new, old, advantages, low, _high: _clipped_right(
                    new, old, advantages, low, low
                )
            ),
        ),
    ),
    hint="ratio = exp(log_probs − old_log_probs); clamp a copy of it; −torch.minimum "
    "of the two products with A.",
    gradients=("log_probs",),
)

# --------------------------------------------------------------------------- k3


def _policy_and_reference() -> list[Case]:
    return [
        ((draw_log_probs(6, seed=36), draw_log_probs(6, seed=37)), {}),
        ((draw_log_probs(2, 4, seed=38), draw_log_probs(2, 4, seed=39)), {}),
    ]


def _k3(log_probs, ref_log_probs) -> Tensor:
    gap = ref_log_probs - log_probs
    return gap.exp() - gap - 1


K3 = Exercise(
    name="k3",
    solution="flowrl_lab.losses:k3",
    cases=_policy_and_reference,
    mistakes=(
        Mistake(
            "direction",
            "Your d has the wrong sign: with d = log π − log π_ref the formula "
            "estimates nothing that we want under samples of π. Take "
            "d = log π_ref − log π.",
            lambda log_probs, ref_log_probs: _k3(ref_log_probs, log_probs),
        ),
        Mistake(
            "k1",
            "That is k1, log π − log π_ref. k3 is e^d − d − 1 with "
            "d = log π_ref − log π.",
            lambda log_probs, ref_log_probs: log_probs - ref_log_probs,
        ),
        Mistake(
            "k2",
            "That is k2, half the square. k3 is e^d − d − 1 with "
            "d = log π_ref − log π.",
            lambda log_probs, ref_log_probs: (log_probs - ref_log_probs) ** 2 / 2,
        ),
        Mistake(
            "no one",
            "The −1 is missing: where π = π_ref, d is 0 and k3 must be 0.",
            lambda log_probs, ref_log_probs: _k3(log_probs, ref_log_probs) + 1,
        ),
        Mistake(
            "plus d",
            "You added d. It is taken away: e^d − 1 − d is never negative, because "
            "e^d lies above its tangent 1 + d.",
            lambda log_probs, ref_log_probs: (
                _k3(log_probs, ref_log_probs) + 2 * (ref_log_probs - log_probs)
            ),
        ),
        Mistake(
            "averaged",
            "You averaged. One value for each token is wanted; averaging comes later.",
            lambda log_probs, ref_log_probs: _k3(log_probs, ref_log_probs).mean(),
        ),
        Mistake(
            "detached",
            "The value is right, but no gradient reaches log_probs: as a penalty it "
            "would do nothing. Detach the reference only.",
            lambda log_probs, ref_log_probs: _k3(log_probs.detach(), ref_log_probs),
        ),
    ),
    hint="d = ref_log_probs − log_probs, then exp(d) − d − 1 for each element.",
    gradients=("log_probs",),
)

# -------------------------------------------------------------------- grpo_loss


def _surrogate_batches() -> list[Case]:
    """Ragged completions; the padding holds numbers that must not count."""
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]]).bool()
    old = draw_log_probs(4, 4, seed=40)
    new = old + 0.5 * draw_log_probs(4, 4, seed=41).add(1.5)
    ref = draw_log_probs(4, 4, seed=42)
    advantages = torch.tensor([1.2, -0.8, 0.5, -0.9]).double()
    batch = (new, old, advantages, mask)
    return [
        (batch, {}),
        (batch, {"ref_log_probs": ref, "kl_coef": 0.3}),
        (
            (old, old, advantages, mask),
            {"ref_log_probs": ref, "kl_coef": 0.1, "clip_high": 0.28},
        ),
    ]


def _grpo(
    batch, clip, ref, coef, *, penalty=_k3, surrogate=_clipped_right, pool="sequence"
) -> Tensor:
    """GRPO with the slips that can be made on the way."""
    (new, old, advantages, mask), (low, high) = batch, clip
    tokens = surrogate(new, old, advantages[:, None], low, high)
    if ref is not None:
        tokens = tokens + coef * penalty(new, ref)
    if pool == "padded":
        return tokens.mean()
    counted = torch.where(mask, tokens, 0.0)
    if pool == "zeros":
        return counted.mean()
    if pool == "token":
        return counted.sum() / mask.sum()
    sums = counted.sum(1)
    return (sums if pool == "sum" else sums / mask.sum(1)).mean()


def _grpo_slip(**slip):
    """A wrong grpo_loss that makes one slip."""

    def wrong(*batch, clip_low=0.2, clip_high=0.2, ref_log_probs=None, kl_coef=0.0):
        return _grpo(batch, (clip_low, clip_high), ref_log_probs, kl_coef, **slip)

    return wrong


def _plain_ratio(new, old, advantages, _low, _high) -> Tensor:
    return -(new - old).exp() * advantages


GRPO_LOSS = Exercise(
    name="grpo_loss",
    solution="flowrl_lab.losses:grpo_loss",
    cases=_surrogate_batches,
    mistakes=(
        Mistake(
            "padding counted",
            "Your mean runs over the padding too. Only tokens where completion_mask "
            "is True count, in the sum *and* in the number you divide by.",
            _grpo_slip(pool="padded"),
        ),
        Mistake(
            "divided by the width",
            "You left the padding out of the sum, but divided by the width T. Divide "
            "by the tokens that count, completion_mask.sum(1).",
            _grpo_slip(pool="zeros"),
        ),
        Mistake(
            "token mean",
            "You averaged over all tokens of the batch, so a long completion weighs "
            "more. Average inside each completion first, then over completions. "
            "(REINFORCE++ and verl's default do it your way.)",
            _grpo_slip(pool="token"),
        ),
        Mistake(
            "token sum",
            "You summed over the tokens. The formula has 1/|y|: a mean inside each "
            "completion.",
            _grpo_slip(pool="sum"),
        ),
        Mistake(
            "not clipped",
            "The ratio is never clipped. Use −min(ρA, clip(ρ)A), your "
            "clipped_surrogate.",
            _grpo_slip(surrogate=_plain_ratio),
        ),
        Mistake(
            "penalty turned round",
            "You subtracted the KL penalty. In a loss, which is made small, a "
            "penalty is added.",
            _grpo_slip(penalty=lambda new, ref: -_k3(new, ref)),
        ),
        Mistake(
            "k1 penalty",
            "Your penalty is k1. As a loss it has no effect on average; GRPO uses k3.",
            _grpo_slip(penalty=lambda new, ref: new - ref),
        ),
        Mistake(
            "no penalty",
            "ref_log_probs and kl_coef have no effect in your function.",
            _grpo_slip(penalty=lambda new, _ref: torch.zeros_like(new)),
        ),
    ),
    hint="tokens = clipped_surrogate(…, advantages[:, None].expand_as(log_probs)), "
    "plus kl_coef · k3 where a reference is given. Then "
    "masked_mean(tokens, completion_mask).mean().",
    gradients=("log_probs",),
)

# ------------------------------------------------------------ kl_reinforce_loss


def _sequences() -> list[Case]:
    def batch(number, seed):
        policy, reference = (draw_log_probs(number, seed=seed + i) for i in (0, 1))
        return policy, reference, draw_rewards(number, seed + 2)

    return [
        ((*batch(8, 43), 4), {"kl_coef": 0.5}),
        ((*batch(6, 46), 3), {"kl_coef": 0.1}),
        ((*batch(4, 49), 2), {"kl_coef": 0.0}),
    ]


def _reinforce(batch, coef, *, attached=False, sign=1.0, baseline="others") -> Tensor:
    """KL-regularised REINFORCE with the slips that can be made on the way."""
    policy, reference, rewards, group = batch
    inside = policy if attached else policy.detach()
    paid = (rewards - sign * coef * (inside - reference)).view(-1, group)
    mean = paid.mean(1, keepdim=True)
    others = (paid.sum(1, keepdim=True) - paid) / (group - 1)
    taken = {"others": others, "group": mean, "none": 0.0, "z": mean}[baseline]
    signal = paid - taken
    if baseline == "z":
        signal = signal / (paid.std(1, keepdim=True) + 1e-6)
    return -(signal.flatten() * policy).mean()


def _reinforce_slip(factor=1.0, **slip):
    """A wrong kl_reinforce_loss that makes one slip."""

    def wrong(*batch, kl_coef):
        return factor * _reinforce(batch, kl_coef, **slip)

    return wrong


KL_REINFORCE_LOSS = Exercise(
    name="kl_reinforce_loss",
    solution="flowrl_lab.losses:kl_reinforce_loss",
    cases=_sequences,
    mistakes=(
        Mistake(
            "KL with gradient",
            "Right value, wrong gradient: the penalty inside the reward must be "
            "detached. It is a number that was paid, like the reward.",
            _reinforce_slip(attached=True),
        ),
        Mistake(
            "KL rewarded",
            "You pay for *leaving* the reference. The penalty is taken away from the "
            "reward: r − c (log π − log π_ref).",
            _reinforce_slip(sign=-1.0),
        ),
        Mistake(
            "sign",
            "The sign is turned round: the loss is −(R − b) log π, so that making it "
            "small makes good answers likelier.",
            _reinforce_slip(factor=-1.0),
        ),
        Mistake(
            "own sample in the baseline",
            "Your baseline is the mean of the whole group, the sample itself "
            "included; that shrinks the gradient by (G − 1)/G. Take the mean of the "
            "*others*.",
            _reinforce_slip(baseline="group"),
        ),
        Mistake(
            "no baseline",
            "There is no baseline. The gradient is right on average, but its noise "
            "is large: take the mean of the group's others away.",
            _reinforce_slip(baseline="none"),
        ),
        Mistake(
            "z-scored",
            "You divided by the standard deviation. Then the penalty's weight "
            "changes from group to group, and with it the target.",
            _reinforce_slip(baseline="z"),
        ),
    ),
    hint="paid = (rewards − kl_coef · (log π − log π_ref)).detach(), viewed as [P, G]; "
    "the mean of the others is (sum − own) / (G − 1).",
    gradients=("sequence_log_probs",),
)

EXERCISES: tuple[Exercise, ...] = (
    GROUP_NORMALIZED,
    GAE,
    CLIPPED_SURROGATE,
    K3,
    GRPO_LOSS,
    KL_REINFORCE_LOSS,
)

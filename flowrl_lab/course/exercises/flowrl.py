"""Notebooks 6 and 7: the FlowRL loss, put together, taken apart, and in a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from flowrl_lab.course.bug_zoo import ZOO, ProbeBatch, make_probe_batch, passes_probes
from flowrl_lab.course.checking import Case, Exercise, Mistake
from flowrl_lab.course.exercises._cases import draw_log_probs, draw_rewards
from flowrl_lab.losses import flowrl_loss

__all__ = ["EXERCISES"]


def _slips(
    function: Callable[..., Tensor], messages: Mapping[str, str]
) -> tuple[Mistake, ...]:
    """One mistake for each ``slip`` that the function can be told to make."""
    return tuple(
        Mistake(slip, message, partial(function, slip=slip))
        for slip, message in messages.items()
    )


# --------------------------------------------------------------------- the residual


def _batch(seed: int) -> dict[str, Tensor]:
    """Four sequences of 1 to 4 tokens; the padding holds other numbers."""
    return make_probe_batch(seed)._asdict()


def _residual_cases() -> list[Case]:
    def case(seed: int, **settings) -> Case:
        batch = _batch(seed)
        del batch["old_log_probs"]
        return tuple(batch.values()), settings

    return [
        case(0),
        case(1, reward_scale=2.0),
        case(2, reward_scale=4.0, length_normalize=False),
    ]


def _total(values: Tensor, mask: Tensor) -> Tensor:
    return values.masked_fill(~mask, 0.0).sum(1)


def _residuals(
    log_z,
    log_probs,
    ref_log_probs,
    rewards,
    completion_mask,
    *,
    reward_scale=15.0,
    length_normalize=True,
    slip="",
):
    """The residual with one slip in it."""
    mask = completion_mask if slip != "no mask" else torch.ones_like(completion_mask)
    lengths = mask.sum(1) if slip != "padding" else mask.shape[1]
    lengths = lengths if length_normalize or slip == "always means" else 1
    lengths = 1 if slip == "always sums" else lengths
    reference = ref_log_probs if slip == "reference" else ref_log_probs.detach()
    policy = _total(log_probs, mask) / lengths
    prior = _total(reference, mask) / (1 if slip == "mixed" else lengths)
    reward = reward_scale * rewards
    reward = reward / mask.sum(1) if slip == "reward divided" else reward
    if slip == "turned round":
        policy, prior = prior, policy
    if slip == "no reference":
        prior = 0.0
    if slip == "plus log π_ref":
        prior = -prior
    if slip == "reward sign":
        reward = -reward
    if slip == "log Z sign":
        log_z = -log_z
    if slip == "log Z cut":
        log_z = log_z.detach()
    return log_z + policy - reward - prior


# What to say about a slip in the residual, alone or inside the loss.
_RESIDUAL_MESSAGES = {
    "reward sign": "The reward pulls the wrong way: the policy should be *more* likely "
    "where r is high, so β r has a minus sign in δ.",
    "turned round": "The log-ratio is turned round: δ > 0 means *too likely*, so it "
    "grows with log π and falls with log π_ref.",
    "log Z sign": "log Z has the wrong sign. From π = π_ref exp(βr)/Z comes "
    "log Z + log π − βr − log π_ref = 0.",
    "plus log π_ref": "You added log π_ref. From π = π_ref exp(βr)/Z comes log Z + "
    "log π − βr − log π_ref = 0: the reference is subtracted.",
    "no reference": "The reference is missing: subtract log π_ref, summed or averaged "
    "just as log π is.",
    "mixed": "You mixed a mean and a sum: the log-probs of policy and reference must "
    "be treated alike, or their lengths no longer cancel.",
    "padding": "You averaged over padding: divide by the tokens that count, "
    "completion_mask.sum(1), not by T.",
    "no mask": "Padding was added in. Set what the mask leaves out to 0, then sum.",
    "always sums": "You never divide by |y|. With length_normalize=True both log-probs "
    "are means over the tokens that count.",
    "always means": "You always divide by |y|. With length_normalize=False the "
    "log-probs are plain sums.",
    "reward divided": "You divided β r by |y| as well. In the paper's form only the "
    "two log-probs are averaged; β r and log Z stay as they are.",
    "reference": "The gradient flows into the reference. It is frozen: use "
    "ref_log_probs.detach().",
    "log Z cut": "log Z gets no gradient, so it would never be learned. Do not "
    "detach it.",
}


RESIDUALS = Exercise(
    name="flowrl_residuals",
    solution="flowrl_lab.losses:flowrl_residuals",
    cases=_residual_cases,
    mistakes=_slips(_residuals, _RESIDUAL_MESSAGES),
    hint="difference = (log_probs − ref_log_probs.detach()), set to 0 outside the mask "
    "and summed over dim 1; divide by completion_mask.sum(1) if length_normalize. Then "
    "log_z + that − reward_scale · rewards.",
    gradients=("log_z", "log_probs", "ref_log_probs"),
)


# ---------------------------------------------------- what the paper's form balances


def _target_cases() -> list[Case]:
    lengths = torch.tensor([1, 2, 2, 3, 5])
    return [
        (
            (draw_log_probs(5, seed=21), draw_rewards(5, 22), lengths, 0.7),
            {"reward_scale": 3.0},
        ),
        (
            (draw_log_probs(5, seed=23), draw_rewards(5, 24), lengths.flip(0), -0.4),
            {"reward_scale": 1.0},
        ),
    ]


NORMALIZED_TARGET = Exercise(
    name="length_normalized_target",
    solution="flowrl_lab.exact:length_normalized_target",
    cases=_target_cases,
    mistakes=(
        Mistake(
            "textbook",
            "That is the textbook form. Set the residual with (1/|y|) log π and "
            "(1/|y|) log π_ref to zero, and multiply the whole line by |y|.",
            lambda ref, r, _n, z, *, reward_scale: ref + reward_scale * r - z,
        ),
        Mistake(
            "log Z not multiplied",
            "log Z is multiplied by |y| too: every term of the line is.",
            lambda ref, r, n, z, *, reward_scale: ref + n * reward_scale * r - z,
        ),
        Mistake(
            "reference multiplied",
            "log π_ref is of the whole answer: (1/|y|) log π_ref, times |y|, is "
            "log π_ref itself.",
            lambda ref, r, n, z, *, reward_scale: n * (ref + reward_scale * r - z),
        ),
        Mistake(
            "divided",
            "You divided by |y|. In δ the log-probs are divided; solved for log π, the "
            "other terms are multiplied.",
            lambda ref, r, n, z, *, reward_scale: ref + (reward_scale * r - z) / n,
        ),
        Mistake(
            "normalised",
            "Do not normalise: for most log Z these masses do not sum to 1, and that "
            "is what we want to see.",
            lambda ref, r, n, z, *, reward_scale: (
                ref + n * (reward_scale * r - z)
            ).log_softmax(0),
        ),
    ),
    hint="0 = log Z + (1/|y|) log π − β r − (1/|y|) log π_ref. Multiply by |y|, and "
    "bring log π to the other side.",
)


# ------------------------------------------------------------- the importance weight


def _weight_cases() -> list[Case]:
    def case(seed: int, **settings) -> Case:
        batch = make_probe_batch(seed)
        # far from the sampler: some weights are above 10, some below 0.1
        old = batch.log_probs + 8 * (batch.old_log_probs - batch.log_probs)
        return (batch.log_probs, old, batch.completion_mask), settings

    return [
        case(0),
        case(5, importance="clip", clip_low=0.1, clip_high=0.5),
        case(2, importance="raw"),
        case(3, importance="max10"),
        case(4, importance="none"),
    ]


def _weights(
    log_probs,
    old_log_probs,
    completion_mask,
    *,
    importance="clip",
    clip_low=0.2,
    clip_high=0.2,
    slip="",
):
    """The importance weight with one slip in it."""
    mask = completion_mask if slip != "no mask" else torch.ones_like(completion_mask)
    difference = log_probs - old_log_probs
    difference = -difference if slip == "ratio turned round" else difference
    log_ratio = _total(difference, mask)
    if slip == "token ratio":
        log_ratio = log_ratio / mask.sum(1)
    if slip == "clipped in log space" and importance == "clip":
        return log_ratio.clamp(-clip_low, clip_high).exp().detach()
    ratio = log_ratio.exp()
    if slip == "mean of token ratios":
        ratio = _total(difference.exp(), mask) / mask.sum(1)
    ratio = ratio if slip == "not detached" else ratio.detach()
    if importance == "none":
        return torch.ones_like(ratio)
    if importance == "clip" and slip != "clip not applied":
        high = clip_low if slip == "one clip" else clip_high
        return ratio.clamp(1 - clip_low, 1 + high)
    return ratio.clamp(max=10.0) if importance == "max10" else ratio


_WEIGHT_MESSAGES = {
    "not detached": "The weight has a gradient. It says how much a sample counts and "
    "must not be optimised itself: detach it.",
    "clip not applied": "You return the ratio without its clip. The authors' code of "
    "September 2025 does that too; the paper prints clip(ρ, 1−ε, 1+ε).",
    "token ratio": "That is the ratio per token (a mean in log space, as in GSPO). The "
    "paper's is of whole sequences: sum the log-ratios, then exp.",
    "mean of token ratios": "You averaged the ratios of single tokens. The ratio of a "
    "whole sequence is their *product*: sum the log-ratios, then exp.",
    "ratio turned round": "The ratio is turned round: the policy now, over the policy "
    "that sampled.",
    "clipped in log space": "You clipped log ρ. The bounds 1 − ε and 1 + ε are of ρ "
    "itself.",
    "no mask": "Padding was added in. Set what the mask leaves out to 0, then sum.",
    "one clip": "The upper bound is 1 + clip_high; you used clip_low for both.",
}


WEIGHTS = Exercise(
    name="sequence_importance_weights",
    solution="flowrl_lab.losses:sequence_importance_weights",
    cases=_weight_cases,
    mistakes=_slips(_weights, _WEIGHT_MESSAGES),
    hint="ratio = exp of the masked sum of (log_probs − old_log_probs), detached. Then "
    'torch.ones_like for "none", .clamp(1 − clip_low, 1 + clip_high) for "clip", '
    '.clamp(max=10) for "max10".',
    gradients=("log_probs",),
)


# ------------------------------------------------------------------------- the loss


def _loss_cases() -> list[Case]:
    def case(seed: int, **settings) -> Case:
        return tuple(make_probe_batch(seed)), settings

    on_policy = make_probe_batch(5)
    on_policy = on_policy._replace(old_log_probs=on_policy.log_probs.clone())
    return [
        case(0),
        case(1, reward_scale=3.0, clip_low=0.1, clip_high=0.5),
        case(2, importance="raw", length_normalize=False),
        case(3, importance="max10", reduction="none"),
        (tuple(on_policy), {"importance": "none"}),
        (tuple(on_policy), {"reduction": "none"}),
    ]


def _loss(
    log_z,
    log_probs,
    old_log_probs,
    ref_log_probs,
    rewards,
    completion_mask,
    *,
    reduction="mean",
    importance="clip",
    clip_low=0.2,
    clip_high=0.2,
    reward_scale=15.0,
    length_normalize=True,
    slip="",
):
    """The loss with one slip in it."""
    residuals = _residuals(
        log_z,
        log_probs,
        ref_log_probs,
        rewards,
        completion_mask,
        reward_scale=reward_scale,
        length_normalize=length_normalize,
        slip=slip if slip in _RESIDUAL_MESSAGES else "",
    )
    weights = _weights(
        log_probs,
        old_log_probs,
        completion_mask,
        importance=importance,
        clip_low=clip_low,
        clip_high=clip_high,
        slip=slip if slip in _WEIGHT_MESSAGES else "",
    )
    losses = weights * residuals.square()
    if slip == "weight squared":
        losses = (weights * residuals).square()
    if slip == "not squared":
        losses = weights * residuals.abs()
    if slip == "half":
        losses = losses / 2
    if reduction == "none" and slip != "reduction ignored":
        return losses
    if slip == "weighted mean":
        return losses.sum() / weights.sum()
    return losses.sum() if slip == "sum" else losses.mean()


_LOSS_MESSAGES = {
    "not detached": "The weight carries a gradient into the loss. Its value is right, "
    "but what is minimised is not: detach the weight.",
    "clip not applied": "The clip is computed but not applied: with importance='clip' "
    "multiply by the *clipped* weight.",
    "token ratio": _WEIGHT_MESSAGES["token ratio"],
    "mixed": _RESIDUAL_MESSAGES["mixed"],
    "plus log π_ref": _RESIDUAL_MESSAGES["plus log π_ref"],
    "padding": _RESIDUAL_MESSAGES["padding"],
    "reward divided": _RESIDUAL_MESSAGES["reward divided"],
    "reward sign": _RESIDUAL_MESSAGES["reward sign"],
    "turned round": _RESIDUAL_MESSAGES["turned round"],
    "reference": _RESIDUAL_MESSAGES["reference"],
    "log Z cut": _RESIDUAL_MESSAGES["log Z cut"],
    "weight squared": "You squared the weight as well: it is w · δ², not (w · δ)².",
    "not squared": "The residual is squared in the loss; you took its absolute value.",
    "weighted mean": "You divided by the sum of the weights. Eq. 6 is a plain mean "
    "over the sequences.",
    "sum": 'You summed over the sequences; reduction="mean" is their mean.',
    "half": "There is no factor ½ in Eq. 6.",
    "reduction ignored": 'With reduction="none" return one number for each sequence.',
}


LOSS = Exercise(
    name="flowrl_loss",
    solution="flowrl_lab.losses:flowrl_loss",
    cases=_loss_cases,
    mistakes=_slips(_loss, _LOSS_MESSAGES),
    hint="residuals from flowrl_residuals(...), weights from "
    "sequence_importance_weights(...), then weights * residuals.square(), and its mean "
    "unless reduction is 'none'. Pass every setting on.",
    gradients=("log_z", "log_probs", "ref_log_probs"),
)


# --------------------------------------------------------------------- the detective


def _unseen(slip: str):
    """A loss that the zoo does not hold: right (""), or with a slip of its own."""

    def loss(*tensors):
        return _loss(*tensors, slip=slip)

    return loss


def _suspects() -> list[Case]:
    unseen = [_unseen(slip) for slip in ("", "mixed", "token ratio", "reward divided")]
    return [((loss,), {}) for loss in (*ZOO.values(), *unseen)]


def _compare(
    loss, batch: ProbeBatch, looked_at=("log_z", "log_probs"), right=flowrl_loss
) -> bool:
    """Whether value and the gradients looked at equal those of Eq. 6."""
    found = []
    for function in (loss, right):
        named = {k: v.clone() for k, v in batch._asdict().items()}
        leaves = [named[name].requires_grad_() for name in ("log_z", "log_probs")]
        value = function(*named.values())
        slopes = torch.autograd.grad(value, leaves, allow_unused=True)
        seen = dict(zip(("log_z", "log_probs"), slopes, strict=True))
        zero = torch.zeros(1, dtype=torch.float64)
        kept = [zero if seen[k] is None else seen[k].flatten() for k in looked_at]
        found.append([value.detach().reshape(1), *kept])
    return all(
        a.shape == b.shape and torch.allclose(a, b) for a, b in zip(*found, strict=True)
    )


def _published_number(loss) -> bool:
    scores = torch.linspace(-1, 1, 8, dtype=torch.float64)
    log_probs = -torch.ones(8, 2, dtype=torch.float64)
    mask = torch.ones(8, 2, dtype=torch.bool)
    value = loss(
        torch.zeros_like(scores),
        log_probs,
        log_probs,
        log_probs,
        scores / scores.std(),
        mask,
    )
    return abs(value.item() - 196.875) < 1e-3


def _on_policy_only(loss) -> bool:
    batch = make_probe_batch()
    return _compare(loss, batch._replace(old_log_probs=batch.log_probs.clone()))


def _without_padding(loss) -> bool:
    batch = make_probe_batch()
    return _compare(
        loss, batch._replace(completion_mask=torch.ones_like(batch.completion_mask))
    )


def _one_log_z(loss) -> bool:
    batch = make_probe_batch()
    single = torch.tensor(0.5, dtype=torch.float64)

    def shared(function):
        return lambda log_z, *rest: function(log_z.expand(len(batch.rewards)), *rest)

    return _compare(
        shared(loss), batch._replace(log_z=single), right=shared(flowrl_loss)
    )


PROBES = Exercise(
    name="passes_probes",
    solution="flowrl_lab.course.bug_zoo:passes_probes",
    cases=_suspects,
    mistakes=(
        Mistake(
            "the published number only",
            "196.875 is not enough: every loss of the zoo gives it. At the first step "
            "log Z and all log-ratios are 0, so most of the formula is not tested.",
            _published_number,
        ),
        Mistake(
            "values only",
            "Your probes look at values only, and let two animals escape that have the "
            "right value and a wrong *gradient*. Use torch.autograd.grad.",
            lambda loss: _compare(loss, make_probe_batch(), ()),
        ),
        Mistake(
            "no gradient of log Z",
            "One animal escapes: its log Z never learns. Look at the gradient with "
            "respect to log_z too.",
            lambda loss: _compare(loss, make_probe_batch(), ("log_probs",)),
        ),
        Mistake(
            "no gradient of the policy",
            "One animal escapes: its gradient with respect to log_probs is wrong.",
            lambda loss: _compare(loss, make_probe_batch(), ("log_z",)),
        ),
        Mistake(
            "on-policy only",
            "Your probes are on-policy, so every weight is 1, whatever its formula. "
            "Use old_log_probs that differ from log_probs.",
            _on_policy_only,
        ),
        Mistake(
            "no padding",
            "Nothing is padded in your probes: animals that count padding escape.",
            _without_padding,
        ),
        Mistake(
            "one log Z",
            "All rows of your probes share one log Z. One animal mixes up the rows, "
            "and only rows that differ show it.",
            _one_log_z,
        ),
        Mistake(
            "the other way round",
            "Return True for the losses that are right, False for the others.",
            lambda loss: not passes_probes(loss),
        ),
    ),
    hint="The strictest probe is your own flowrl_loss: same value, and the same two "
    "gradients, on make_probe_batch(). torch.autograd.grad(value, (log_z, log_probs), "
    "allow_unused=True) gives None where nothing flows.",
)


# ------------------------------------------------------------- the loss of a step


def _step_cases() -> list[Case]:
    def case(seed: int, num_generations: int, reward_scale: float) -> Case:
        batch = make_probe_batch(seed)
        log_z = torch.tensor([0.7, -1.3, 2.1, 0.4], dtype=torch.float64)
        args = log_z[: 4 // num_generations], *tuple(batch)[1:]
        settings = {"num_generations": num_generations, "reward_scale": reward_scale}
        return args, settings

    return [case(6, 2, 8.0), case(7, 2, 3.0), case(8, 1, 8.0), case(9, 4, 2.0)]


def _step_loss(
    log_z, log_probs, old, ref, rewards, mask, *, num_generations, reward_scale, slip=""
):
    """The step's loss with one slip in it."""
    rows = log_z.repeat_interleave(num_generations)
    if slip == "in turns":
        rows = log_z.repeat(num_generations)
    if slip == "log Z cut":
        rows = rows.detach()
    if slip == "old for now":
        old = log_probs.detach()
    if slip == "old reference":
        ref = old
    if slip == "no scale":
        reward_scale = 1.0
    losses = _loss(
        rows,
        log_probs,
        old,
        ref,
        rewards,
        mask,
        reward_scale=reward_scale,
        length_normalize=slip == "means",
        reduction="none",
    )
    return losses.sum() if slip == "sum" else losses.mean()


STEP_LOSS = Exercise(
    name="step_loss",
    solution="flowrl_lab.losses:step_loss",
    cases=_step_cases,
    mistakes=_slips(
        _step_loss,
        {
            "in turns": "Your log Zs take turns: row 1 has the first prompt's, row 2 "
            "the second's. The answers of one prompt stand next to each other, so use "
            "repeat_interleave.",
            "means": "That is the paper's form, with means over the tokens. The "
            "textbook form takes sums: length_normalize=False.",
            "log Z cut": "log Z gets no gradient, so it would never learn.",
            "old for now": "Your importance weight is always 1. old_log_probs are "
            "those of the policy that sampled.",
            "old reference": "You measured from the policy that sampled. The residual "
            "holds log π_ref: ref_log_probs.",
            "no scale": "β = reward_scale has no effect on your loss.",
            "sum": "You summed over the answers; a step's loss is their mean.",
        },
    ),
    hint="log_z.repeat_interleave(num_generations) gives each answer its prompt's "
    "log Z. Then flowrl_loss, with reward_scale and with sums instead of means.",
    gradients=("log_z", "log_probs", "ref_log_probs"),
)

EXERCISES: tuple[Exercise, ...] = (
    RESIDUALS,
    NORMALIZED_TARGET,
    WEIGHTS,
    LOSS,
    PROBES,
    STEP_LOSS,
)

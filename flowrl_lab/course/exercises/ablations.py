"""Notebook 11: the baselines of the other side, and how a study is judged."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from flowrl_lab.course.checking import Case, Exercise, Mistake
from flowrl_lab.course.exercises._cases import draw_log_probs
from flowrl_lab.types import AnswerSet

__all__ = ["EXERCISES"]

# ------------------------------------------------------------ the best of k


def _groups() -> list[Case]:
    """Binary rewards, graded ones with ties, and a group that always passes."""
    binary = torch.tensor([1.0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0]).double()
    graded = torch.tensor([0.0, 0.7, 0.7, 1.0, 0.2]).double()
    sure = torch.tensor([1.0, 1, 1, 0, 1, 0, 0, 0]).double()
    return [
        ((binary, 6, 2), {}),
        ((graded, 5, 3), {}),
        ((sure, 4, 2), {"eps": 0.1}),
    ]


def _best_of_k(
    groups, eps, *, members="with i", score=max, centre=True, scale="population"
) -> Tensor:
    """Every team of k is listed; with the slips that can be made on the way."""
    rewards, num_generations, k = groups
    signals = []
    for start in range(0, len(rewards), num_generations):
        group = rewards[start : start + num_generations]
        teams = list(itertools.combinations(range(num_generations), k))
        best = torch.stack([score(group[i] for i in team) for team in teams])
        spread = 1.0 if scale == "none" else best.std(correction=scale == "sample")
        for i in range(num_generations):
            with_i = members == "with i"
            mine = torch.tensor([(i in team) == with_i for team in teams])
            own = best if members == "all" else best[mine]
            signal = own.mean() - (best.mean() if centre else 0.0)
            signals.append(signal / (spread + eps) if scale != "none" else signal)
    return torch.stack(signals)


def _mean_of(values) -> Tensor:
    return torch.stack(list(values)).mean()


def _best_of_k_slip(**slip):
    """A wrong pass_at_k_advantages that makes one slip."""

    def wrong(rewards, num_generations, k, *, eps=1e-6):
        return _best_of_k((rewards, num_generations, k), eps, **slip)

    return wrong


def _z_scores(rewards, num_generations, k, *, eps=1e-6):  # noqa: ARG001
    groups = rewards.view(-1, num_generations)
    centred = groups - groups.mean(1, keepdim=True)
    return (centred / (groups.std(1, keepdim=True) + eps)).flatten()


PASS_AT_K_ADVANTAGES = Exercise(
    name="pass_at_k_advantages",
    solution="flowrl_lab.advantages:pass_at_k_advantages",
    cases=_groups,
    mistakes=(
        Mistake(
            "z-scores",
            "These are GRPO's z-scores of single samples. Here a *team* of k scores "
            "its best reward, and a sample is worth what teams with it score.",
            _z_scores,
        ),
        Mistake(
            "mean of the team",
            "You gave a team its mean reward. A team scores its *best* member's: "
            "that is what pass@k asks.",
            _best_of_k_slip(score=_mean_of),
        ),
        Mistake(
            "teams without it",
            "You averaged over the teams that do *not* contain sample i. Take those "
            "that do.",
            _best_of_k_slip(members="without"),
        ),
        Mistake(
            "not centred",
            "The mean over all teams was not taken off: a sample that changes nothing "
            "must have the advantage 0.",
            _best_of_k_slip(centre=False),
        ),
        Mistake(
            "sample deviation",
            "Your deviation has (number of teams − 1) below. All teams are listed, "
            "nothing is sampled: divide by their number (correction=0).",
            _best_of_k_slip(scale="sample"),
        ),
        Mistake(
            "not scaled",
            "You did not divide by the deviation over the teams, σ + eps.",
            _best_of_k_slip(scale="none"),
        ),
    ),
    hint="Loop over the groups: teams = list(itertools.combinations(range(G), k)), "
    "scores = [max(r[i] for i in team) for team in teams]. For sample i keep the "
    "scores of the teams with i in them. Equal scores: eps keeps 0 / 0 away.",
)

# ------------------------------------------------------------------ DAPO's loss


def _dapo_batches() -> list[Case]:
    """Two groups of two; in the second case one of them is idle."""
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]]).bool()
    old = draw_log_probs(4, 4, seed=60)
    new = old + 0.5 * draw_log_probs(4, 4, seed=61).add(1.5)
    both = torch.tensor([0.9, -0.9, -0.6, 0.6]).double()
    one = torch.tensor([0.9, -0.9, 0.0, 0.0]).double()
    return [
        ((new, old, both, mask, 2), {}),
        ((new, old, one, mask, 2), {"clip_low": 0.1, "clip_high": 0.4}),
    ]


def _dapo(batch, low, high, *, pool="tokens", idle="left out", clip="both") -> Tensor:
    """DAPO's loss, with the slips that can be made on the way."""
    new, old, advantages, mask, group = batch
    ratio = (new - old).exp()
    if clip == "one epsilon":
        high = low
    if clip == "swapped":
        low, high = high, low
    signal = advantages[:, None]
    clipped = ratio.clamp(1 - low, 1 + high)
    tokens = -torch.minimum(ratio * signal, clipped * signal)
    if clip == "none":
        tokens = -ratio * signal
    keep = advantages.view(-1, group)
    keep = (keep.amax(1) > keep.amin(1)).repeat_interleave(group)
    counted = mask & keep[:, None] if idle == "left out" else mask
    total = torch.where(counted, tokens, 0.0)
    if pool == "sequences":
        kept = counted.any(1)
        return (total.sum(1)[kept] / counted.sum(1)[kept]).mean()
    return total.sum() / counted.sum()


def _dapo_slip(factor=1.0, **slip):
    """A wrong dapo_loss that makes one slip."""

    def wrong(*batch, clip_low=0.2, clip_high=0.28):
        return factor * _dapo(batch, clip_low, clip_high, **slip)

    return wrong


DAPO_LOSS = Exercise(
    name="dapo_loss",
    solution="flowrl_lab.losses:dapo_loss",
    cases=_dapo_batches,
    mistakes=(
        Mistake(
            "sequence mean",
            "You averaged inside each completion first: that is GRPO. DAPO takes one "
            "mean over *all* counted tokens, so a long completion weighs more.",
            _dapo_slip(pool="sequences"),
        ),
        Mistake(
            "idle groups counted",
            "The tokens of groups without a signal are in the number you divide by. "
            "They add 0 to the sum, and should not thin out the mean either.",
            _dapo_slip(idle="counted"),
        ),
        Mistake(
            "one epsilon",
            "You used clip_low on both sides: then nothing is higher. The upper bound "
            "is 1 + clip_high.",
            _dapo_slip(clip="one epsilon"),
        ),
        Mistake(
            "epsilons swapped",
            "clip_low and clip_high have changed places.",
            _dapo_slip(clip="swapped"),
        ),
        Mistake(
            "not clipped",
            "The ratio is never clipped. Use −min(ρA, clip(ρ)A).",
            _dapo_slip(clip="none"),
        ),
        Mistake(
            "sign",
            "The sign is turned round: the objective is to be made large, a loss is "
            "made small.",
            _dapo_slip(factor=-1.0),
        ),
    ),
    hint="tokens = clipped_surrogate(…); a group is informative where amax > amin of "
    "its advantages; counted = completion_mask & informative (repeated G times); sum "
    "of the counted tokens / counted.sum().",
    gradients=("log_probs",),
)

# ------------------------------------------- the target that a policy is judged by


def _answer_sets() -> list[Case]:
    """A complete list and one of right answers only, with a scale and in the limit."""

    def answers(rewards: list[float], exhaustive: bool) -> AnswerSet:
        number = len(rewards)
        return AnswerSet(
            prompt="x",
            labels=tuple(str(i) for i in range(number)),
            completion_ids=torch.arange(number)[:, None],
            completion_mask=torch.ones(number, 1, dtype=torch.bool),
            rewards=torch.tensor(rewards),
            correct=torch.tensor(rewards) > 0.5,
            groups=torch.arange(number),
            exhaustive=exhaustive,
        )

    whole = answers([0.0, 1.0, 0.2, 0.7, 0.9], True)
    listed = answers([0.7, 1.0, 0.9, 0.3], False)
    below_one = draw_log_probs(4, seed=71) - 1.0
    return [
        ((draw_log_probs(5, seed=70), whole), {"reward_scale": 3.0}),
        ((below_one, listed), {"reward_scale": 8.0}),
        ((draw_log_probs(5, seed=70), whole), {"reward_scale": None}),
        ((below_one, listed), {"reward_scale": None}),
    ]


def _target(reference, answers, scale, *, slip="") -> Tensor:
    """The target, with the slips that can be made on the way."""
    paid = answers.rewards.double() * (0.0 if scale is None else scale)
    mass = paid if slip == "no reference" else reference + paid
    if slip == "scale forgotten" and scale is not None:
        mass = reference + answers.rewards.double()
    strict = scale is None or not answers.exhaustive
    if slip == "always strict":
        strict = True
    if slip == "wrong ones allowed":
        strict = False
    if slip == "limit only":
        strict = scale is None
    if strict:
        mass = mass.masked_fill(~answers.correct, -math.inf)
    if slip == "not normalised":
        return mass
    return mass.softmax(0) if slip == "probabilities" else mass.log_softmax(0)


def _target_slip(slip: str):
    """A wrong answers_target that makes one slip."""

    def wrong(ref_log_probs, answers, *, reward_scale):
        return _target(ref_log_probs, answers, reward_scale, slip=slip)

    return wrong


_TARGET_MESSAGES = {
    "no reference": "π_ref is missing: FlowRL's target is π_ref·exp(βr), not exp(βr).",
    "scale forgotten": "The reward is not multiplied by reward_scale.",
    "wrong ones allowed": "Wrong answers keep some mass. In the limit (None), and "
    "where the list is not exhaustive, they are forbidden: -inf.",
    "limit only": "You forbid wrong answers only for reward_scale=None. A list that "
    "is not exhaustive has its target on the correct ones too.",
    "always strict": "You forbid wrong answers always. With a scale and a complete "
    "list, they keep their share exp(βr).",
    "not normalised": "The masses do not add up to 1: end with log_softmax.",
    "probabilities": "These are probabilities; log-probabilities are wanted.",
}

ANSWERS_TARGET = Exercise(
    name="answers_target",
    solution="flowrl_lab.exact:answers_target",
    cases=_answer_sets,
    mistakes=tuple(
        Mistake(slip, message, _target_slip(slip))
        for slip, message in _TARGET_MESSAGES.items()
    ),
    hint="mass = ref_log_probs + β · answers.rewards (β = 0 for None); where "
    "reward_scale is None or not answers.exhaustive, mass[~answers.correct] = -inf; "
    "then log_softmax.",
)

# ------------------------------------------------------- is it more, or chance?


def _pairs_of_seeds() -> list[Case]:
    """More, less, not told apart, and told apart only before the correction."""
    near = [0.52, 0.55, 0.56, 0.53, 0.54]
    wide = [0.41, 0.58, 0.47, 0.66, 0.52]
    ahead = [0.81, 0.83, 0.80, 0.82, 0.84, 0.83]
    return [
        ((ahead, near, 48), {}),
        ((near, ahead, 10), {}),
        ((near, wide, 48), {}),
        (([0.58, 0.57, 0.59, 0.56, 0.57], near, 48), {}),
        (([0.71, 0.62, 0.69, 0.75, 0.60], near, 4), {}),
    ]


def _judged(
    first, second, num_planned, *, equal_var=False, sides=2, level=0.05, slip=""
):
    """The judgement, with the slips that can be made on the way."""
    from scipy.stats import ttest_ind

    if slip == "turned round":
        first, second = second, first
    test = ttest_ind(first, second, equal_var=equal_var)
    share = level / num_planned if slip == "interval corrected" else level
    low, high = map(float, test.confidence_interval(1 - share))
    raw = float(test.pvalue) * sides / 2
    p = raw if slip == "not corrected" else num_planned * raw
    p = p if slip == "above 1" else min(1.0, p)
    found = (raw if slip == "verdict too early" else p) < level
    sign = 1 if slip == "no sign" or low + high > 0 else -1
    return low, high, p, sign * found


def _judged_slip(**slip):
    """A wrong judge_values that makes one slip."""

    def wrong(first, second, num_planned):
        return _judged(first, second, num_planned, **slip)

    return wrong


JUDGE_VALUES = Exercise(
    name="judge_values",
    solution="flowrl_lab.measuring.significance:judge_values",
    cases=_pairs_of_seeds,
    mistakes=(
        Mistake(
            "not corrected",
            "p was not multiplied by num_planned: whoever asks often finds a small p "
            "by chance.",
            _judged_slip(slip="not corrected"),
        ),
        Mistake(
            "verdict before the correction",
            "Your p is corrected, but the verdict asks the one before, or whether the "
            "interval leaves out 0. It is the corrected p that must be below 0.05.",
            _judged_slip(slip="verdict too early"),
        ),
        Mistake(
            "one spread for both",
            "That is Student's test, which takes one spread for both. Welch's has "
            "equal_var=False.",
            _judged_slip(equal_var=True),
        ),
        Mistake(
            "above 1",
            "A p above 1 is none: cut it off at 1.",
            _judged_slip(slip="above 1"),
        ),
        Mistake(
            "one side",
            "You halved p. The test is two-sided: before the runs nobody knows which "
            "of the two will have more.",
            _judged_slip(sides=1),
        ),
        Mistake(
            "turned round",
            "That is the second minus the first: which of the two has more?",
            _judged_slip(slip="turned round"),
        ),
        Mistake(
            "no sign",
            "Your verdict does not say which way: less is -1.",
            _judged_slip(slip="no sign"),
        ),
        Mistake(
            "interval corrected",
            "Your interval was widened for the number of questions. It is the 95 % "
            "interval of this one question; only p is corrected.",
            _judged_slip(slip="interval corrected"),
        ),
    ),
    hint="test = scipy.stats.ttest_ind(first, second, equal_var=False) has "
    "test.pvalue and test.confidence_interval(0.95). p = min(1, num_planned * "
    "test.pvalue). The verdict is 0 unless p < 0.05, else the sign of the difference "
    "of the means.",
)

EXERCISES: tuple[Exercise, ...] = (
    PASS_AT_K_ADVANTAGES,
    DAPO_LOSS,
    ANSWERS_TARGET,
    JUDGE_VALUES,
)

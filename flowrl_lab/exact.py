"""The referee: exact targets, exact log Z and exact distances by enumeration.

Where all answers of a prompt can be listed, their probabilities follow from
teacher-forced log-probs, and nothing needs to be sampled or estimated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowrl_lab._validation import (
    LARGEST,
    bad_input,
    check_batch,
    check_count,
    check_finite,
    check_flag,
    check_items,
    check_number,
    check_range,
    check_readable,
    check_tensor,
)
from flowrl_lab.metrics import (
    SUM_TOLERANCE,
    effective_number,
    exact_pass_at_k,
    expected_distinct,
    kl_divergence,
    mode_coverage,
    total_variation,
)
from flowrl_lab.tokens import at_least_float32
from flowrl_lab.types import AnswerSet, ExactReport

__all__ = [
    "PASS_AT",
    "answers_target",
    "exact_log_flows",
    "exact_report",
    "exact_target",
    "gradient_noise",
    "length_normalized_target",
    "mean_report",
    "optimal_log_z",
    "reference_log_partition",
    "target_accuracy",
]

PASS_AT = (1, 4, 16, 64, 256)


def reference_log_partition(
    ref_log_probs: Float[Tensor, " N"],
    rewards: Float[Tensor, " N"],
    *,
    reward_scale: float,
    exhaustive: bool,
) -> Float[Tensor, ""]:
    """The true log Z of one prompt.

        log Z = log Σ_y π_ref(y) exp(β r(y))

    Source: FlowRL (arXiv 2509.15207) Eq. 2 with the reference prior of Eq. 4-5.

    Args:
        ref_log_probs: log π_ref of the listed answers.
        rewards: their rewards.
        reward_scale: β.
        exhaustive: True if the list is complete.  If False, everything not listed
            has reward 0, and adds its probability times exp(0).

    Returns:
        Scalar, nats.

    Raises:
        ValueError: bad tensors; probabilities that do not sum to 1 (exhaustive) or
            exceed 1.
    """
    ref_log_probs, rewards = _check_answers(ref_log_probs, rewards, reward_scale)
    check_flag("exhaustive", exhaustive)
    log_listed = _check_total("ref_log_probs", ref_log_probs, exhaustive)
    log_z = (ref_log_probs + reward_scale * rewards).logsumexp(dim=0)
    if exhaustive:
        return log_z
    # log(1 - listed); rounding must not push the argument below 0.
    log_unlisted = torch.log1p(-log_listed.exp().clamp(max=1.0))
    return torch.logaddexp(log_z, log_unlisted)


def exact_target(
    ref_log_probs: Float[Tensor, " N"],
    rewards: Float[Tensor, " N"],
    *,
    reward_scale: float,
) -> Float[Tensor, " N"]:
    """The target over the listed answers, normalised.

        log p*(y) = log π_ref(y) + β r(y) - log Σ_listed π_ref exp(βr)

    Source: FlowRL (arXiv 2509.15207) Eq. 2 and 4.

    Args:
        ref_log_probs: log π_ref of the answers; -inf for one it cannot write.
        rewards: their rewards; -inf forbids an answer (with reward_scale > 0).
        reward_scale: β.

    Returns:
        Log-probabilities that sum to 1, nats.

    Raises:
        ValueError: bad tensors, no allowed answer with probability above 0.
    """
    check_tensor("rewards", rewards, (None,), "[N]: one reward per answer")
    check_number("reward_scale", reward_scale, high=LARGEST)
    allowed = rewards
    if reward_scale > 0:
        allowed = rewards.masked_fill(torch.isneginf(rewards), 0.0)
    ref_log_probs, _ = _check_answers(ref_log_probs, allowed, reward_scale)
    log_mass = ref_log_probs + reward_scale * at_least_float32(rewards)
    check_finite({"ref_log_probs + reward_scale · rewards": log_mass.logsumexp(0)})
    return log_mass.log_softmax(dim=0)


def answers_target(
    ref_log_probs: Float[Tensor, " N"],
    answers: AnswerSet,
    *,
    reward_scale: float | None,
) -> Float[Tensor, " N"]:
    """The target that the referee compares a policy with, over an answer set.

        p*(y) ∝ π_ref(y) exp(β r(y)) [y is allowed]

    Allowed is every answer of an exhaustive list, and every *correct* one of a list
    that is not.  In the second case, what is left out (wrong answers, listed or not)
    has a share of the full target that vanishes as β grows, as long as the verifier
    pays every correct answer more than any wrong one.

    Source: FlowRL (arXiv 2509.15207) Eq. 2 and 4, restricted.

    Args:
        ref_log_probs: log π_ref of the answers.
        answers: the list, with rewards and correctness.
        reward_scale: β; None is the limit for a reward that is equal on all correct
            answers: π_ref restricted to them, whether the list is exhaustive or not.

    Returns:
        Log-probabilities that sum to 1, nats; -inf where not allowed.

    Raises:
        ValueError: bad tensors, no allowed answer with probability above 0.
    """
    _check_answer_set(answers)
    if reward_scale is not None:
        check_number("reward_scale", reward_scale, high=LARGEST)
    meaning, listed = "[N]: one per answer", answers.rewards
    check_tensor("ref_log_probs", ref_log_probs, listed, meaning)
    rewards = answers.rewards.to(ref_log_probs)
    if reward_scale is None:
        rewards = torch.zeros_like(rewards)
    if reward_scale is None or not answers.exhaustive:
        # Not through the reward: a scale of 0 must forbid them as well.
        ref_log_probs = ref_log_probs.masked_fill(~answers.correct, -math.inf)
    return exact_target(ref_log_probs, rewards, reward_scale=reward_scale or 0.0)


def target_accuracy(
    accuracy: Float[Tensor, " N"], *, reward_scale: float
) -> Float[Tensor, " N"]:
    """How often the target is right, for a reward of 1 (right) or 0 (wrong).

        a e^β / (1 - a + a e^β)

    Source: FlowRL (arXiv 2509.15207) Eq. 2 and 4, summed over the right answers.

    Args:
        accuracy: a, the reference's probability of a right answer, per prompt.
        reward_scale: β.

    Returns:
        The target's probability of a right answer, per prompt.

    Raises:
        ValueError: bad tensors, an accuracy outside [0, 1].
    """
    check_tensor("accuracy", accuracy, (None,), "[N]: one per prompt")
    check_finite({"accuracy": accuracy})
    check_number("reward_scale", reward_scale, high=LARGEST)
    fix = "pass shares, not per cent"
    check_range("accuracy", accuracy, 0, 1, "probabilities, 0 to 1", fix)
    # e^β is taken out of the fraction, so that a large β does not overflow.
    share = accuracy + (1 - accuracy) * math.exp(-reward_scale)
    return torch.where(accuracy > 0, accuracy / share, 0.0)


def length_normalized_target(
    ref_log_probs: Float[Tensor, " N"],
    rewards: Float[Tensor, " N"],
    lengths: Int[Tensor, " N"],
    log_z: float | Float[Tensor, ""],
    *,
    reward_scale: float,
) -> Float[Tensor, " N"]:
    """What the length-normalised residual calls balanced: log mass, unnormalised.

        log π_ref(y) + |y| (β r(y) - log Z)

    Source: FlowRL (arXiv 2509.15207) Eq. 6 set to zero and solved for π.  The
    masses sum to 1 for one log Z only, which is not the textbook one.

    Args:
        ref_log_probs: log π_ref of whole answers (sums over tokens).
        rewards: their rewards.
        lengths: |y|, tokens in each answer.
        log_z: the log Z of this prompt.
        reward_scale: β.

    Returns:
        Log masses, nats; positive values are possible.

    Raises:
        ValueError: bad tensors, lengths below 1, a log Z that is not finite.
    """
    ref_log_probs, rewards = _check_answers(ref_log_probs, rewards, reward_scale)
    check_tensor("lengths", lengths, rewards, "[N]: one per answer", "int")
    fix = "count the end token, or drop empty answers"
    check_range("lengths", lengths, 1, LARGEST, "at least 1 token", fix)
    _check_log_z(log_z, rewards)
    return ref_log_probs + lengths * (reward_scale * rewards - log_z)


def optimal_log_z(
    log_probs: Float[Tensor, " N"],
    ref_log_probs: Float[Tensor, " N"],
    rewards: Float[Tensor, " N"],
    *,
    reward_scale: float,
) -> Float[Tensor, ""]:
    """The log Z that on-policy trajectory balance learns.

        log Z* = E_{y~π}[β r + log π_ref - log π] = log Z - KL(π ‖ p*)

    The minimum of E_π[(log Z + log π - βr - log π_ref)²] over log Z: a lower bound
    on the true log Z, reached when π = p*.

    Args:
        log_probs: log π of all completions; sums to 1.
        ref_log_probs: log π_ref of the same.
        rewards: their rewards.
        reward_scale: β.

    Returns:
        Scalar, nats; -inf if π writes what π_ref cannot.

    Raises:
        ValueError: bad tensors, probabilities that do not sum to 1.
    """
    ref_log_probs, rewards = _check_answers(ref_log_probs, rewards, reward_scale)
    check_tensor("log_probs", log_probs, rewards, "[N]: one per answer")
    log_probs = at_least_float32(log_probs)
    _check_total("log_probs", log_probs, True)
    _check_total("ref_log_probs", ref_log_probs, False)
    probs = log_probs.exp()
    never = probs == 0
    bonus = reward_scale * rewards + ref_log_probs.masked_fill(never, 0.0)
    return (probs * (bonus - log_probs.masked_fill(never, 0.0))).sum()


def gradient_noise(
    log_probs: Float[Tensor, " N"],
    ref_log_probs: Float[Tensor, " N"],
    rewards: Float[Tensor, " N"],
    log_z: float | Float[Tensor, ""],
    *,
    reward_scale: float,
) -> Float[Tensor, ""]:
    """How much the gradient of on-policy trajectory balance scatters.

        g(y) = 2 δ(y) ∇log π(y),   δ(y) = log Z + log π(y) - β r(y) - log π_ref(y)
        noise = E_{y~π} ‖g(y)‖² - ‖E_{y~π} g(y)‖²

    for one sample and a softmax with one logit for each answer, where
    ∇log π(y) = onehot(y) - π.  A mean over G samples has a G-th of it.  The mean
    gradient does not depend on log Z, the noise does: it is a parabola in log Z,
    and 0 for every answer once π = p* and log Z is the true one.

    Args:
        log_probs: log π of all answers; sums to 1.
        ref_log_probs: log π_ref of the same.
        rewards: their rewards.
        log_z: the log Z in the residual.
        reward_scale: β.

    Returns:
        A scalar, the variances of all N components added up, nats squared.

    Raises:
        ValueError: bad tensors, probabilities that do not sum to 1, a log Z that
            is not finite, an answer that π writes and π_ref cannot.
    """
    ref_log_probs, rewards = _check_answers(ref_log_probs, rewards, reward_scale)
    check_tensor("log_probs", log_probs, rewards, "[N]: one per answer")
    log_probs = at_least_float32(log_probs)
    _check_total("log_probs", log_probs, True)
    _check_log_z(log_z, rewards)
    probs = log_probs.exp()
    # What π never writes is never sampled, so it adds nothing.
    ratio = (log_probs - ref_log_probs).masked_fill(probs == 0, 0.0)
    check_finite({"log_probs - ref_log_probs": ratio})
    residuals = log_z + ratio - reward_scale * rewards
    slopes = 1 - 2 * probs + probs.square().sum()  # ‖onehot(y) - π‖²
    mean_gradient = probs * (residuals - (probs * residuals).sum())
    spread = (probs * residuals.square() * slopes).sum()
    return 4 * (spread - mean_gradient.square().sum())


def exact_log_flows(
    completion_ids: Int[Tensor, "N T"],
    ref_log_probs: Float[Tensor, "N T"],
    rewards: Float[Tensor, " N"],
    completion_mask: Bool[Tensor, "N T"],
    *,
    reward_scale: float,
) -> Float[Tensor, "N prefixes"]:
    """The flows that make detailed balance exact, for listed completions.

        F(prefix) = log Σ_endings π_ref(ending | prefix) exp(β r(prefix + ending))

    Source: GFlowNet state flows (arXiv 2111.09266), relative to π_ref, as in
    ``losses.detailed_balance_loss``.  F of the empty prefix is log Z, and the
    target's next-token probability is π_ref exp(F_child - F_parent).

    Args:
        completion_ids: all completions of one prompt, each once.
        ref_log_probs: log π_ref of their tokens.
        rewards: one per completion.
        completion_mask: True on the tokens, then False.
        reward_scale: β.

    Returns:
        log flow of each completion's prefixes, F_0 (empty) to F_T, nats; from the
        complete text on it is β r.

    Raises:
        ValueError: bad tensors, probabilities that do not sum to 1.
    """
    tokens = {"ref_log_probs": ref_log_probs}
    check_batch(completion_mask, tokens, {"rewards": rewards})
    check_tensor("completion_ids", completion_ids, completion_mask, "[N, T]", "int")
    check_readable("completion_ids", completion_ids)
    check_number("reward_scale", reward_scale, high=LARGEST)
    counted = at_least_float32(ref_log_probs).masked_fill(~completion_mask, 0.0)
    _check_total("ref_log_probs", counted.sum(dim=1), True)
    # Padding gets an id of its own, so that it never joins two prefixes.
    ids = completion_ids.long().masked_fill(~completion_mask, -1)
    paid = reward_scale * at_least_float32(rewards)
    group = torch.zeros_like(ids[:, 0])  # completions that share their first t tokens
    columns = []
    for t in range(ids.shape[1] + 1):
        if t > 0:
            longer = torch.stack([group, ids[:, t - 1]], dim=1)
            _, group = longer.unique(dim=0, return_inverse=True)
        endings = counted[:, t:].sum(dim=1) + paid
        columns.append(_group_logsumexp(endings, group)[group])
    return torch.stack(columns, dim=1)


def exact_report(
    log_probs: Float[Tensor, " N"],
    ref_log_probs: Float[Tensor, " N"],
    answers: AnswerSet,
    *,
    target_reward_scale: float | None,
    run_reward_scale: float,
    log_z_learned: float = math.nan,
) -> ExactReport:
    """Everything the referee can say about one prompt, in float64 on the CPU.

    Args:
        log_probs: log π of the listed answers (sums over tokens).
        ref_log_probs: log π_ref of the same.
        answers: the list, with rewards, correctness and modes.
        target_reward_scale: β of the target p* ∝ π_ref exp(βr), or None for the
            limit of a flat reward; see :func:`answers_target`.  With None, or for a
            list that is not exhaustive, p* lives on the correct answers alone, and
            KL(π ‖ p*) and TV are of π restricted likewise.
        run_reward_scale: β of ``log_z_exact``, the one log Z is trained at.
        log_z_learned: what Z_φ says; NaN without one.

    Returns:
        The report; see :class:`flowrl_lab.types.ExactReport` for each number.

    Raises:
        ValueError: bad tensors or totals, no correct answer.
    """
    _check_answer_set(answers)
    for name, value in (("log_probs", log_probs), ("ref_log_probs", ref_log_probs)):
        check_tensor(name, value, answers.rewards.shape, "[N]: one per answer")
        check_readable(name, value)
    check_number("run_reward_scale", run_reward_scale, high=LARGEST)
    if target_reward_scale is not None:
        check_number("target_reward_scale", target_reward_scale, high=LARGEST)
    policy, reference, rewards = (
        value.detach().cpu().double()
        for value in (log_probs, ref_log_probs, answers.rewards)
    )
    _check_report_input(policy, reference, rewards, answers)
    if not (isinstance(log_z_learned, float) and math.isnan(log_z_learned)):
        check_number("log_z_learned", log_z_learned, low=-LARGEST, high=LARGEST)
    correct = answers.correct
    target = answers_target(reference, answers, reward_scale=target_reward_scale)
    compared = policy
    if target_reward_scale is None or not answers.exhaustive:
        compared = policy.masked_fill(~correct, -math.inf)
    compared = compared.log_softmax(dim=0)
    probs = policy.exp()
    accuracy = probs[correct].sum().clamp(max=1.0).item()
    log_z = reference_log_partition(
        reference,
        rewards,
        reward_scale=run_reward_scale,
        exhaustive=answers.exhaustive,
    ).item()
    pass_at = {k: exact_pass_at_k(accuracy, k) for k in PASS_AT}
    return ExactReport(
        accuracy=accuracy,
        pass_at_k=pass_at,
        distinct_64=expected_distinct(probs[correct], 64).item(),
        effective_answers=effective_number(policy[correct].log_softmax(0)).item(),
        kl_policy_target=kl_divergence(compared, target).item(),
        kl_target_policy=kl_divergence(target, policy).item(),
        total_variation=total_variation(compared, target).item(),
        modes_covered=mode_coverage(policy, target, answers.groups).item(),
        lost_prompts=float(pass_at[64] < 0.5),
        log_z_exact=log_z,
        log_z_learned=log_z_learned,
        log_z_rmse=abs(log_z_learned - log_z),
        num_prompts=1,
    )


def mean_report(reports: Sequence[ExactReport]) -> ExactReport:
    """The mean of reports over their prompts (root mean square for the log Z error).

    Args:
        reports: at least one; each weighs as many prompts as it covers.

    Returns:
        One report.

    Raises:
        ValueError: no report at all.
    """
    check_items("reports", reports, ExactReport, "reports")
    for report in reports:
        check_count("reports.num_prompts", report.num_prompts)
        if report.pass_at_k.keys() != reports[0].pass_at_k.keys():
            raise bad_input(
                "reports",
                "have pass@k for different k",
                "the same k in all of them",
                "evaluate all prompts with the same version",
            )
    total = sum(report.num_prompts for report in reports)
    shares = [report.num_prompts / total for report in reports]

    def mean(values: list[float]) -> float:
        return sum(share * value for share, value in zip(shares, values, strict=True))

    plain = [
        name
        for name in ExactReport.__dataclass_fields__
        if name not in ("pass_at_k", "log_z_rmse", "num_prompts")
    ]
    return ExactReport(
        **{name: mean([getattr(report, name) for report in reports]) for name in plain},
        pass_at_k={
            k: mean([report.pass_at_k[k] for report in reports])
            for k in reports[0].pass_at_k
        },
        log_z_rmse=math.sqrt(mean([report.log_z_rmse**2 for report in reports])),
        num_prompts=total,
    )


def _check_answers(
    ref_log_probs: Tensor, rewards: Tensor, reward_scale: float
) -> tuple[Tensor, Tensor]:
    """Both as they are computed with: half precision could not hold β r."""
    check_tensor("rewards", rewards, (None,), "[N]: one reward per answer")
    check_tensor("ref_log_probs", ref_log_probs, rewards, "[N]: one per answer")
    check_finite({"rewards": rewards})
    check_number("reward_scale", reward_scale, high=LARGEST)
    # An answer may be impossible (-inf), but not all of them, and none is NaN.
    check_finite({"ref_log_probs": ref_log_probs.logsumexp(dim=0)})
    return at_least_float32(ref_log_probs), at_least_float32(rewards)


def _group_logsumexp(values: Tensor, group: Tensor) -> Tensor:
    """log Σ exp over the values of each group, numbered from 0."""
    count = int(group.max()) + 1
    # the largest of each group is taken out, so that no group underflows to 0
    top = values.new_full((count,), -math.inf).scatter_reduce(0, group, values, "amax")
    rest = (values - top[group]).exp()
    return top + values.new_zeros(count).index_add(0, group, rest).log()


def _check_total(name: str, log_probs: Tensor, exhaustive: bool) -> Tensor:
    """Check what the listed probabilities add up to; returns the log of it."""
    log_total = log_probs.logsumexp(dim=0)
    check_range(
        f"exp({name}).sum()",
        log_total.exp(),
        1 - SUM_TOLERANCE if exhaustive else 0.0,
        1 + SUM_TOLERANCE,
        "a sum of 1" if exhaustive else "a sum of at most 1",
        "pass log-probs of whole answers (token sums), each answer listed once"
        + (", or exhaustive=False" if exhaustive else ""),
    )
    return log_total


def _check_log_z(log_z: object, rewards: Tensor) -> None:
    if isinstance(log_z, Tensor):
        check_tensor("log_z", log_z, (), "a scalar", beside=rewards)
        check_finite({"log_z": log_z})
    else:
        check_number("log_z", log_z, low=-LARGEST, high=LARGEST)


def _check_answer_set(answers: object) -> None:
    if not all(hasattr(answers, name) for name in ("rewards", "correct", "groups")):
        raise bad_input(
            "answers",
            f"is a {type(answers).__name__}",
            "an AnswerSet",
            "take it from task.answers(prompt)",
        )
    rewards, meaning = answers.rewards, "[N]: one per answer"
    check_tensor("answers.rewards", rewards, (None,), meaning)
    check_tensor("answers.correct", answers.correct, rewards, meaning, "bool")
    check_tensor("answers.groups", answers.groups, rewards, meaning, "int")
    check_flag("answers.exhaustive", getattr(answers, "exhaustive", None))
    check_readable("answers.rewards", rewards)


def _check_report_input(
    policy: Tensor,
    reference: Tensor,
    rewards: Tensor,
    answers: AnswerSet,
) -> None:
    _check_answers(reference, rewards, 0.0)
    _check_total("log_probs", policy, answers.exhaustive)
    if not bool(torch.isfinite(policy[answers.correct].logsumexp(dim=0))):
        raise bad_input(
            "answers.correct",
            "holds no answer the policy can write",
            "a correct answer with probability above 0",
            "leave prompts without a solution out of the evaluation",
        )

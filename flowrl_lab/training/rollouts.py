"""Sample groups of completions, score them, and note what the reference says."""

from __future__ import annotations

import statistics
from collections import defaultdict

import torch

from flowrl_lab.metrics.groups import measure_groups, spread_of_mean
from flowrl_lab.tasks.text import RewardError
from flowrl_lab.types import Completions, PolicyOutput, PromptBatch, Rollout

__all__ = [
    "collect_rollout",
    "measure_floor",
    "sample_prompts",
    "why_nothing_is_learned",
]

# How many groups of the untrained policy a run draws for its floor, at least.
FLOOR_GROUPS = 8


def sample_prompts(task, count: int, generator: torch.Generator) -> PromptBatch:
    """Draw ``count`` different training prompts (all of them if there are fewer)."""
    texts = task.prompts("train")
    order = torch.randperm(len(texts), generator=generator)[:count]
    return task.encode(tuple(texts[i] for i in order.tolist()))


def collect_rollout(
    policy,
    task,
    prompts: PromptBatch,
    num_generations: int,
    *,
    temperature: float,
    generator: torch.Generator,
) -> Rollout:
    """Sample ``num_generations`` completions a prompt and score them.

    Args:
        policy: samples, and scores under its frozen reference.
        task: its verifier gives the rewards.
        prompts: P prompts.
        num_generations: G, the group's size.
        temperature: of sampling, and of every log-prob of the rollout.
        generator: on the policy's device; the only source of randomness.

    Returns:
        A Rollout of B = P * G rows.  ``old_log_probs`` are those of sampling, and
        exact because the policy has not moved since.

    Raises:
        RewardError: the verifier gave a NaN or infinite reward, or not one each.
    """
    sampled = policy.sample(
        prompts, num_generations, temperature=temperature, generator=generator
    )
    completions = (sampled.completion_ids, sampled.completion_mask)
    rewards, parts, answers = _score(task, prompts, sampled, num_generations)
    measured = measure_groups(answers, rewards.tolist(), num_generations)
    reference: PolicyOutput = policy.evaluate(
        prompts, *completions, temperature=temperature, reference=True
    )
    return Rollout(
        prompts,
        num_generations,
        sampled.completion_ids,
        sampled.completion_mask,
        sampled.log_probs,
        reference.log_probs,
        rewards,
        parts,
        {name: statistics.fmean(values) for name, values in measured.items()},
    )


def measure_floor(policy, task, config) -> dict[str, tuple[float, float]]:
    """Measures of groups that the policy samples as it is, from draws of their own.

    Of whole batches, as the run's are, until there are ``FLOOR_GROUPS`` groups.

    Returns:
        measure -> (mean, its standard deviation from one batch to another).
    """
    draws = torch.Generator().manual_seed(config.seed)
    generator = torch.Generator(policy.device).manual_seed(config.seed)
    batch = min(config.prompts_per_step, len(task.prompts("train")))
    size, found = config.num_generations, defaultdict(list)
    for _ in range(-(-FLOOR_GROUPS // batch)):
        prompts = sample_prompts(task, batch, draws)
        sampled = policy.sample(
            prompts, size, temperature=config.temperature, generator=generator
        )
        rewards, _, answers = _score(task, prompts, sampled, size)
        for name, values in measure_groups(answers, rewards.tolist(), size).items():
            found[name] += values
    return {
        name: (statistics.fmean(values), spread_of_mean(values, batch))
        for name, values in found.items()
    }


def why_nothing_is_learned(rollout: Rollout) -> str:
    """What to say where every completion of a batch earned the same; else nothing."""
    rewards = rollout.rewards
    if rewards.min() != rewards.max():
        return ""
    return (
        f"all {len(rewards)} completions of the first batch earned {rewards[0]:g}: "
        "where all are equal, nothing can be learned. Try worked examples in front of "
        "each question, easier prompts, a reward for parts of an answer, more "
        "completions a prompt, a larger model, or a supervised warm-up on right answers"
    )


def _score(
    task, prompts: PromptBatch, sampled: Completions, num_generations: int
) -> tuple[torch.Tensor, dict[str, float], list]:
    """Rewards; the mean of each of their parts where the task names them; answers.

    Equal answers are the same one, and a wrong one is None.

    Raises:
        RewardError: as ``collect_rollout``.
    """
    ids, mask = sampled.completion_ids, sampled.completion_mask
    if not task.has_verdicts:
        rewards = task.score(prompts, ids, mask, num_generations)
        _check_rewards(task, prompts, rewards, len(ids))
        right = task.are_right(ids, rewards).tolist()
        rows = ids.masked_fill(~mask, -1).tolist()
        keys = [
            tuple(row) if good else None for row, good in zip(rows, right, strict=True)
        ]
        return rewards, {}, keys
    scored = task.judge(prompts, ids, mask, num_generations)
    rewards = torch.tensor([float(one.reward) for one in scored], device=ids.device)
    _check_rewards(task, prompts, rewards, len(ids))
    names = dict.fromkeys(name for one in scored for name in one.parts)
    means = {
        name: sum(one.parts.get(name, 0.0) for one in scored) / len(scored)
        for name in names
    }
    solved = sum(one.correct for one in scored) / len(scored)
    answers = [one.answer if one.correct else None for one in scored]
    return rewards, {"solved": solved, **means}, answers


def _check_rewards(task, prompts: PromptBatch, rewards: torch.Tensor, rows: int):
    """One finite number for each completion."""
    if rewards.shape != (rows,):
        raise RewardError(
            f"the verifier of task {task.name!r} gave rewards of shape "
            f"{list(rewards.shape)} for {rows} completions; expected one number each. "
            "Fix: return a tensor [B] from score."
        )
    if not torch.isfinite(rewards).all():
        row = int((~torch.isfinite(rewards)).nonzero()[0])
        raise RewardError(
            f"the verifier of task {task.name!r} gave reward {rewards[row].item()} for "
            f"prompt {prompts.texts[row * len(prompts) // rows]!r}; expected finite "
            "numbers. Fix: let the verifier return 0 for what it cannot judge."
        )

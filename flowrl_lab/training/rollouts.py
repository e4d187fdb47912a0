"""Sample groups of completions, score them, and note what the reference says."""

from __future__ import annotations

import torch

from flowrl_lab.types import PolicyOutput, PromptBatch, Rollout

__all__ = ["collect_rollout", "sample_prompts", "why_nothing_is_learned"]


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
        num_generations: G.
        temperature: of sampling, and of every log-prob of the rollout.
        generator: on the policy's device; the only source of randomness.

    Returns:
        A Rollout of B = P * G rows.  ``old_log_probs`` are those of sampling:
        exact, because the policy has not moved since.

    Raises:
        ValueError: the verifier gave a NaN or infinite reward, or not one each.
    """
    sampled = policy.sample(
        prompts, num_generations, temperature=temperature, generator=generator
    )
    completions = (sampled.completion_ids, sampled.completion_mask)
    rewards, parts = _score(task, prompts, completions, num_generations)
    if rewards.shape != sampled.completion_ids.shape[:1]:
        raise ValueError(
            f"the verifier of task {task.name!r} gave rewards of shape "
            f"{list(rewards.shape)} for {len(sampled.completion_ids)} completions; "
            "expected one number each. Fix: return a tensor [B] from score."
        )
    if not torch.isfinite(rewards).all():
        row = int((~torch.isfinite(rewards)).nonzero()[0])
        raise ValueError(
            f"the verifier of task {task.name!r} gave reward {rewards[row].item()} for "
            f"prompt {prompts.texts[row // num_generations]!r}; expected finite "
            "numbers. Fix: let the verifier return 0 for what it cannot judge."
        )
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
    )


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
    task, prompts: PromptBatch, completions, num_generations: int
) -> tuple[torch.Tensor, dict[str, float]]:
    """Rewards, and the mean of each of their parts where the task names them."""
    if not hasattr(task, "judge"):
        return task.score(prompts, *completions, num_generations), {}
    scored = task.judge(prompts, *completions, num_generations)
    device = completions[0].device
    rewards = torch.tensor([float(one.reward) for one in scored], device=device)
    names = dict.fromkeys(name for one in scored for name in one.parts)
    means = {
        name: sum(one.parts.get(name, 0.0) for one in scored) / len(scored)
        for name in names
    }
    solved = sum(one.correct for one in scored) / len(scored)
    return rewards, {"solved": solved, **means}

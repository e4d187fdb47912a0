"""One completion, one number: a task's verifier as other engines call it.

Other engines hand over text, or the tokens of one sample at a time.  Both kinds of
task answer here: those that spell with characters of their own (``make_number``) and
those for any tokenizer (``TextTask``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from flowrl_lab.tasks import load_task
from flowrl_lab.tasks.text import cut_completion

__all__ = ["check_language_task", "load_scorer", "score_text", "score_texts"]


def check_language_task(task) -> None:
    """Refuse tasks that no language model can be trained on.

    Raises:
        ValueError: a task of states or symbols, without text.
    """
    if not (task.in_text or task.characters):
        raise ValueError(
            f"task {task.name!r} has no text, so no other engine can train on it. Fix: "
            "take a run of make_number or of another text task."
        )


def score_text(task, prompt: str, completion: str) -> float:
    """The reward of one completion, given as text without its end token."""
    check_language_task(task)
    if task.in_text:
        return task.score(prompt, cut_completion(task, completion)).reward
    known = all(character in task.characters for character in completion)
    if not known or len(completion) >= task.max_completion_tokens:
        return 0.0  # nothing the task can spell, or cut off before its end
    ids = [task.characters.index(character) for character in completion]
    tokens = torch.tensor([[*ids, task.eos_id]])
    mask = torch.ones_like(tokens, dtype=torch.bool)
    return task.score(task.encode((prompt,)), tokens, mask, 1).item()


def score_texts(
    task,
    prompts: Sequence[str],
    completions: Sequence,
    completion_ids: Sequence[Sequence[int]],
) -> list[float]:
    """Rewards of a batch of a ``TextTask``; TRL gives a chat's answers as messages."""
    texts = [one if isinstance(one, str) else one[0]["content"] for one in completions]
    if task.score_all is None:
        pairs = zip(prompts, texts, strict=True)
        return [score_text(task, *pair) for pair in pairs]
    texts = [cut_completion(task, text) for text in texts]
    return [one.reward for one in task.score_all(prompts, texts, completion_ids)]


def load_scorer(name: str, options: dict | None = None) -> Callable[..., float]:
    """A reward function as verl calls it, for the task called ``name``.

    Returns:
        ``compute_score(data_source, solution_str, ground_truth, extra_info=None)``,
        where ``ground_truth`` is the prompt: a verifier needs no answer key.
    """
    task = load_task(name, **(options or {}))
    check_language_task(task)

    def compute_score(
        data_source: str,
        solution_str: str,
        ground_truth: str,
        extra_info: dict | None = None,  # noqa: ARG001 - verl passes it
    ) -> float:
        if data_source != task.name:
            raise ValueError(
                f"data_source is {data_source!r}; this reward is for {task.name!r}. "
                "Fix: train on the data that lies beside it."
            )
        return score_text(task, ground_truth, solution_str)

    return compute_score

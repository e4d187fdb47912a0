"""Samples of a policy, of the exact target, or of any model, judged one by one."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from flowrl_lab._validation import bad_input, check_count
from flowrl_lab.tasks.text import Scored
from flowrl_lab.types import AnswerSet

__all__ = [
    "PromptSamples",
    "draw_perfect_samples",
    "draw_samples",
    "judge_texts",
    "needs_words",
]


@dataclass(frozen=True)
class PromptSamples:
    """Samples of one prompt, judged.

    Attributes:
        prompt: the prompt.
        texts: what was written.
        solutions: equal ones are the same answer, letter by letter.
        correct: which are correct.
        ideas: equal ones are the same idea (mode, or class up to commuting), None
            for what belongs to none; empty where the task knows no such thing.
    """

    prompt: str
    texts: tuple[str, ...]
    solutions: tuple[Hashable, ...]
    correct: tuple[bool, ...]
    ideas: tuple[Hashable, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def right(self) -> list[Hashable]:
        """The correct ones among the solutions."""
        pairs = zip(self.solutions, self.correct, strict=True)
        return [solution for solution, good in pairs if good]


@torch.no_grad()
def draw_samples(
    policy,
    task,
    prompts: Sequence[str],
    num_samples: int,
    *,
    temperature: float = 1.0,
    generator: torch.Generator,
) -> list[PromptSamples]:
    """Sample ``num_samples`` completions of every prompt, and judge them.

    By the task's list of answers; without one (``has_referee`` is False) by its
    verifier, which also says which are the same answer (else those of equal texts).

    Args:
        policy: a policy of ``task``.
        task: a ``Task``, or a ``TokenizedTask`` of a text task.
        prompts: at least one.
        num_samples: n, how many are drawn.
        temperature: of sampling.
        generator: on the policy's device; the only source of randomness.

    Returns:
        One entry a prompt.  An answer that lacks its end token is not a right one,
        even if its text is.

    Raises:
        ValueError: no prompt, num_samples below 1.
    """
    check_count("num_samples", num_samples)
    if not prompts:
        raise bad_input("prompts", "is empty", "at least one", "name some prompts")
    found = []
    for prompt in prompts:  # one at a time: n rows fit the cache, and any memory
        batch = task.encode((prompt,))
        drawn = policy.sample(
            batch, num_samples, temperature=temperature, generator=generator
        )
        ids, mask = drawn.completion_ids.cpu(), drawn.completion_mask.cpu()
        texts = tuple(task.decode(ids, mask))
        if not task.has_referee:
            scored = task.judge(batch, ids, mask, num_samples)
            found.append(_as_verified(prompt, texts, scored))
            continue
        keys = _keys(ids, mask)
        answers = task.answers(prompt)
        listed = _keys(answers.completion_ids, answers.completion_mask)
        rows = {key: row for row, key in enumerate(listed)}
        places = [rows.get(key, -1) for key in keys]
        found.append(_look_up(prompt, texts, keys, answers, places))
    return found


def _keys(ids: Tensor, mask: Tensor) -> tuple[tuple[int, ...], ...]:
    lengths = mask.sum(dim=-1).tolist()
    rows = zip(ids.tolist(), lengths, strict=True)
    return tuple(tuple(row[:length]) for row, length in rows)


def _look_up(prompt, texts, keys, answers: AnswerSet, places) -> PromptSamples:
    correct, groups = answers.correct.tolist(), answers.groups.tolist()
    return PromptSamples(
        prompt,
        tuple(texts),
        tuple(keys),
        tuple(place >= 0 and correct[place] for place in places),
        tuple(
            groups[place] if place >= 0 and groups[place] >= 0 else None
            for place in places
        ),
    )


def draw_perfect_samples(
    answers: AnswerSet,
    target_log_probs: Float[Tensor, " N"],
    num_samples: int,
    *,
    generator: torch.Generator,
) -> PromptSamples:
    """Samples of the exact target: what a policy that has learned all would write.

    Args:
        answers: the listed answers.
        target_log_probs: log p* of each; sums to 1.
        num_samples: n, how many are drawn.
        generator: on the CPU; the only source of randomness.
    """
    check_count("num_samples", num_samples)
    probs = target_log_probs.exp()
    # by the cumulative sum, since multinomial refuses more than 2^24 answers
    edges = probs.double().cumsum(0)
    dice = torch.rand(num_samples, generator=generator, dtype=torch.float64)
    # the first edge above the dice, so that no answer of probability 0 is drawn
    places = torch.searchsorted(edges, dice * edges[-1], right=True)
    places = places.clamp(max=len(probs) - 1)
    texts = [answers.labels[place] for place in places.tolist()]
    return _look_up(answers.prompt, texts, places.tolist(), answers, places.tolist())


def judge_texts(task, prompt: str, texts: Sequence[str]) -> PromptSamples:
    """Samples of a ``TextTask``: correct, and the same answer, as its verifier says.

    Args:
        task: a ``flowrl_lab.tasks.text.TextTask``.
        prompt: one of its prompts.
        texts: what a model wrote after it.
    """
    return _as_verified(prompt, texts, [task.score(prompt, text) for text in texts])


def _as_verified(
    prompt: str, texts: Sequence[str], scored: Sequence[Scored]
) -> PromptSamples:
    """Two are the same answer as the task says, or else letter by letter."""
    alike = tuple(
        text.strip() if one.answer is None else one.answer
        for text, one in zip(texts, scored, strict=True)
    )
    correct = tuple(one.correct for one in scored)
    return PromptSamples(prompt, tuple(texts), alike, correct)


def needs_words(samples: Sequence[PromptSamples]) -> bool:
    """Whether texts are compared word by word: as soon as one has two words."""
    return any(len(text.split()) > 1 for s in samples for text in s.texts)

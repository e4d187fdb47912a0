"""Tasks for a real language model: a prompt and a completion are plain text.

``Task`` (in ``base``) speaks in tokens of a vocabulary of its own and has an exact
referee.  A ``TextTask`` works with any tokenizer: it hands out prompts and says how
good a completion is, why, and what the reward is made of.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

__all__ = [
    "DEFAULT_WEIGHTS",
    "RewardError",
    "RewardWeights",
    "Scored",
    "TextTask",
    "combine_parts",
    "cut_completion",
    "score_batch",
    "score_safely",
]


class RewardError(ValueError):
    """A reward that raised, or gave something that is no reward."""


@dataclass(frozen=True)
class Scored:
    """What a task thinks of one completion.

    Attributes:
        reward: what the loss uses; the sum of ``parts``.
        correct: whether the completion solves the prompt.
        reason: one line that a person can read, also when all is well.
        parts: name -> contribution to the reward, as shown to the learner.
        answer: of a right completion: what tells it from other answers, such as a
            normal form or a value.  Equal ones are the same answer; None takes the
            text without spaces around it.
    """

    reward: float
    correct: bool
    reason: str
    parts: dict[str, float] = field(default_factory=dict)
    answer: Hashable = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.reward):
            raise ValueError(
                f"reward is {self.reward}; expected a finite number. Fix: score what "
                "cannot be judged with 0.0 and say why in reason."
            )
        total = math.fsum(self.parts.values())
        if self.parts and not math.isclose(total, self.reward, abs_tol=1e-9):
            raise ValueError(
                f"parts {self.parts} sum to {total:g}; expected the reward, "
                f"{self.reward:g}. Fix: build the score with combine_parts."
            )


@runtime_checkable
class TextTask(Protocol):
    """A task whose prompts and completions are text; inherit it for its defaults.

    Attributes:
        name: short, for file names and legends.
        max_completion_tokens: how many tokens a completion may have.
        stop: a completion ends before the first of these strings.
        cut: a function that says itself what of a completion counts; nothing is cut
            before one of ``stop`` stands in it.  None: the first of them ends it.
        reward_scale: as in ``tasks.Task``.
        has_referee: whether its right answers are listed (``answer_texts``).
        in_text: as in ``tasks.Task``: any tokenizer spells it.
        characters: likewise.
        chat: its prompts are messages, so the model's chat template writes them.
        score_all: judges a batch of prompts, completions and their tokens at once;
            None: row by row.
    """

    name: str
    max_completion_tokens: int
    stop: tuple[str, ...]
    cut: Callable[[str], str] | None = None
    reward_scale: float | None = None
    has_referee: bool = False
    in_text: bool = True
    characters: str = ""
    chat: bool = False
    score_all: Callable[..., list[Scored]] | None = None

    def render(self, prompt: str) -> str:
        """The prompt as a model reads it."""
        return prompt

    def messages(self, prompt: str) -> list[dict[str, str]]:
        """The prompt as a chat model reads it, before its template."""
        return [{"role": "user", "content": self.render(prompt)}]

    def prompts(self, split: str) -> tuple[str, ...]:
        """All prompts of ``split``: ``"train"`` or ``"heldout"``."""

    def score(self, prompt: str, completion: str) -> Scored:
        """Judge what was written after ``prompt``, without the stop string.

        Any text may come.  The answer to nonsense is reward 0 and a reason, never
        an exception; a prompt that is not the task's own is a ValueError.
        """


def cut_completion(task: TextTask, completion: str) -> str:
    """What counts of a completion: its text up to the end that ``task`` knows.

    The training loop and other engines cut in the same way.
    """
    places = [completion.find(stop) for stop in task.stop]
    end = min((place for place in places if place >= 0), default=len(completion))
    if end == len(completion) or task.cut is None:
        return completion[:end]
    return task.cut(completion)


@dataclass(frozen=True)
class RewardWeights:
    """What each part of a reward counts.

    Attributes:
        correct: for an answer that is right.
        format: for an answer written as the prompt asked, right or wrong.
        length: for a completion well within its limit; falls linearly from this at
            no characters to 0 at the limit, and only right answers get it.
    """

    correct: float = 1.0
    format: float = 0.0
    length: float = 0.0

    def __post_init__(self) -> None:
        for name in ("correct", "format", "length"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(
                    f"weight of {name!r} is {value}; expected a finite number of at "
                    "least 0. Fix: use 0.0 to leave the part out."
                )


DEFAULT_WEIGHTS = RewardWeights()


def combine_parts(
    *,
    correct: bool,
    well_formed: bool,
    used: float,
    reason: str,
    answer: Hashable = None,
    weights: RewardWeights,
) -> Scored:
    """Put a reward together from its parts.

    reward = w_correct·[correct] + w_format·[well formed]
             + w_length·[correct]·(1 − used)

    Args:
        correct: whether the answer is right.
        well_formed: whether it is written as asked.
        used: share of the allowed length that was used; cut to 0 … 1.
        reason: one readable line.
        answer: what tells a right completion from other right ones.
        weights: what each part counts.

    Returns:
        The score; a part of weight 0 is left out.
    """
    spared = 1.0 - min(max(used, 0.0), 1.0)
    parts = {
        "correct": weights.correct * correct,
        "format": weights.format * well_formed,
        "length": weights.length * correct * spared,
    }
    parts = {
        name: float(value) for name, value in parts.items() if getattr(weights, name)
    }
    return Scored(math.fsum(parts.values()), correct, reason, parts, answer)


def score_safely(
    judge: Callable[[str], Scored], completion: str, parts: Mapping[str, float] = {}
) -> Scored:
    """Call ``judge``; whatever goes wrong inside becomes reward 0 with a reason.

    For verifiers that stand on other people's parsers.  KeyboardInterrupt and
    other signals to stop pass through.

    Args:
        judge: takes the completion.
        completion: what the model wrote.
        parts: the names of the reward's parts, so that a failure has the same
            ones, all 0.

    Returns:
        What ``judge`` said, or a zero.
    """
    zeros = dict.fromkeys(parts, 0.0)
    try:
        return judge(completion)
    except Exception as error:  # a verifier of others may raise anything
        reason = f"could not be judged: {type(error).__name__}: {error}"
        return Scored(0.0, False, " ".join(reason.split())[:200], zeros)


def score_batch(
    task: TextTask, prompts: Sequence[str], completions: Sequence[str], workers: int = 0
) -> list[Scored]:
    """Score many completions, some at a time: a sandbox is mostly waiting.

    Args:
        task: judges from several threads at once.
        prompts: B prompts.
        completions: B texts, each written after the prompt of the same place.
        workers: threads; 0 means one for each processor, at most 8.

    Returns:
        B scores, in the same order.

    Raises:
        ValueError: if there are not as many completions as prompts.
    """
    if len(prompts) != len(completions):
        raise ValueError(
            f"got {len(prompts)} prompts and {len(completions)} completions; expected "
            "as many of each. Fix: repeat a prompt for each of its completions."
        )
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(task.score, prompts, completions))

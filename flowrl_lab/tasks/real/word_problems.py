"""Word problems with a number for an answer, in the style of GSM8K.

The data are not part of this project: give the path of your own copy of the set
(``train.jsonl`` and ``test.jsonl``, MIT licence), or let reasoning-gym write
problems of that style (``gsm_symbolic`` in ``gym``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flowrl_lab._files import read_lines
from flowrl_lab.tasks.real.answers import ANSWER_STOP, NotAnAnswer, extract_answer
from flowrl_lab.tasks.real.math_checking import same_value
from flowrl_lab.tasks.text import (
    DEFAULT_WEIGHTS,
    RewardWeights,
    Scored,
    TextTask,
    combine_parts,
    score_safely,
)

__all__ = ["AnswerTask", "Gsm8k", "Problem", "load_gsm8k"]

REQUEST = (
    "{question}\n\nThink step by step. Then write only the result between <answer> "
    "and </answer>.\n"
)
CHARACTERS_PER_TOKEN = 4
SPLITS = ("train", "heldout")


@dataclass(frozen=True)
class Problem:
    """A question with its known answer, and what a judge needs beside."""

    question: str
    answer: str
    facts: Mapping[str, object] = field(default_factory=dict)


def judge_value(problem: Problem, answer: str) -> tuple[bool, str]:
    """The usual judge: is it the known value?"""
    return same_value(problem.answer, answer)


def known_value(problem: Problem, _answer: str) -> Hashable:
    """Right answers of a problem with one value are the same answer."""
    return problem.answer


def as_written(_problem: Problem, answer: str) -> Hashable:
    """Two right answers are the same if they differ in spaces only."""
    return "".join(answer.split())


class AnswerTask(TextTask):
    """A text task whose completions end in one ``<answer>``.

    Args:
        name: of the task.
        train: its problems.
        heldout: problems that training must not see; those that also stand in
            ``train`` are left out.
        judge: says of a problem and an answer whether it is right, and why; may
            raise NotAnAnswer.
        key: what tells a right answer from another; None takes the problem's value
            where ``judge`` is the usual one, else the answer as it is written.
        weights: what correctness, format and length count.
        max_completion_tokens: how long a completion may be.
    """

    stop = ANSWER_STOP

    def __init__(
        self,
        name: str,
        train: Iterable[Problem],
        heldout: Iterable[Problem],
        *,
        judge: Callable[[Problem, str], tuple[bool, str]] = judge_value,
        key: Callable[[Problem, str], Hashable] | None = None,
        weights: RewardWeights = DEFAULT_WEIGHTS,
        max_completion_tokens: int = 256,
    ) -> None:
        self.name = name
        self.max_completion_tokens = max_completion_tokens
        self._judge, self._weights = judge, weights
        self._key = key or (known_value if judge is judge_value else as_written)
        self._problems: dict[str, Problem] = {}
        self._prompts: dict[str, tuple[str, ...]] = {}
        for split, problems in zip(SPLITS, (train, heldout), strict=True):
            new = {REQUEST.format(question=p.question.strip()): p for p in problems}
            new = {text: p for text, p in new.items() if text not in self._problems}
            self._problems |= new
            self._prompts[split] = tuple(new)

    def prompts(self, split: str) -> tuple[str, ...]:
        """All prompts of ``"train"`` or ``"heldout"``."""
        return self._prompts[check_split(split)]

    def problem(self, prompt: str) -> Problem:
        """The problem behind a prompt; ValueError for a prompt of another task."""
        if prompt not in self._problems:
            raise ValueError(
                f"prompt starts with {prompt[:60]!r}; expected one of the "
                f"{len(self._problems)} of task {self.name!r}. Fix: take it from "
                "prompts('train') or prompts('heldout')."
            )
        return self._problems[prompt]

    def score(self, prompt: str, completion: str) -> Scored:
        """Right, well formed and short, each with its part of the reward."""
        problem = self.problem(prompt)
        return score_safely(
            lambda text: self._score(problem, text), completion, self._names()
        )

    def _score(self, problem: Problem, completion: str) -> Scored:
        used = len(completion) / (CHARACTERS_PER_TOKEN * self.max_completion_tokens)
        well_formed = correct = False
        key = None
        try:
            answer = extract_answer(completion)
            correct, reason = self._judge(problem, answer)
            well_formed = True
            key = self._key(problem, answer) if correct else None
        except NotAnAnswer as error:
            reason = str(error)
        return combine_parts(
            correct=correct,
            well_formed=well_formed,
            used=used,
            reason=reason,
            answer=key,
            weights=self._weights,
        )

    def _names(self) -> dict[str, float]:
        names = ("correct", "format", "length")
        return {name: 0.0 for name in names if getattr(self._weights, name)}


def check_split(split: str) -> str:
    """``split`` if it is one of the two, else ValueError."""
    if split not in SPLITS:
        raise ValueError(
            f"split is {split!r}; expected 'train' or 'heldout'. Fix: use one of them."
        )
    return split


class Gsm8k(AnswerTask):
    """GSM8K from your own copy of its two files.

    Args:
        train: path of ``train.jsonl``.
        heldout: path of ``test.jsonl``.
        weights: what correctness, format and length count.
        max_completion_tokens: how long a completion may be.
    """

    def __init__(
        self,
        *,
        train: str | Path,
        heldout: str | Path,
        weights: RewardWeights = DEFAULT_WEIGHTS,
        max_completion_tokens: int = 256,
    ) -> None:
        super().__init__(
            "gsm8k",
            load_gsm8k(train),
            load_gsm8k(heldout),
            weights=weights,
            max_completion_tokens=max_completion_tokens,
        )


def load_gsm8k(path: str | Path) -> tuple[Problem, ...]:
    """Read a file in GSM8K's own format: one JSON object a line.

    Each has a ``question`` and an ``answer`` that ends in ``#### 42``.

    Raises:
        ValueError: for a line that does not fit; the message names it.
        FileNotFoundError: with where to get the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no file {str(path)!r}; expected GSM8K's train.jsonl or test.jsonl. Fix: "
            "download it from the set's own page and give the path."
        )
    problems = []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            answer = row["answer"].rpartition("####")[2].strip()
            problems.append(Problem(str(row["question"]), answer))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path.name}, line {number}: {type(error).__name__}: {error}; "
                'expected a JSON object with "question" and "answer". Fix: mend the '
                "line."
            ) from None
        if "####" not in row["answer"] or not answer:
            raise ValueError(
                f"{path.name}, line {number}: the answer ends in "
                f"{row['answer'][-30:]!r}; expected '#### ' and the result at its end. "
                "Fix: mend the line."
            )
    return tuple(problems)

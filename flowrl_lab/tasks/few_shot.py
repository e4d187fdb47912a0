"""Questions in words, right answers all listed: tasks for any language model.

    A multiple of 5: 35
    A number that ends in 2: 72
    A multiple of 7:

A few solved lines stand in front of every question, so that a model which was never
told what to do sees what is asked of it.  All right answers are known, so a model's
whole distribution over them is computed exactly, and collapse is seen without
sampling.  A task of this kind says what its solved lines are, what it asks, and which
answers are right.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from flowrl_lab._validation import bad_input, check_choice
from flowrl_lab.tasks.text import Scored, TextTask

__all__ = ["FewShotTask"]


class FewShotTask(TextTask):
    """A question, an answer on the same line; 1 for a right one, else 0.

    Args:
        train: questions to train on.
        heldout: questions to judge on, none of them among the first.

    Attributes:
        examples: (question, answer) of the solved lines.
        between: what stands between a question and its answer.
    """

    stop = ("\n",)
    reward_scale = None
    has_referee = True
    examples: Sequence[tuple[str, str]] = ()
    between: str = ": "

    def __init__(self, train: Sequence[str], heldout: Sequence[str]):
        self._splits = {
            "train": tuple(train),
            "heldout": tuple(heldout),
            "validation": tuple(heldout[::2]),
            "test": tuple(heldout[1::2]),
        }

    @abstractmethod
    def answer_texts(self, prompt: str) -> tuple[str, ...]:
        """Every right answer of ``prompt``; ValueError for what is no question."""

    def prompts(self, split: str) -> tuple[str, ...]:
        """The questions of ``split``.

        ``"train"``, ``"heldout"``, or one of the two halves of the latter:
        ``"validation"``, to choose settings on, and ``"test"``, to report.
        """
        check_choice("split", split, self._splits)
        return self._splits[split]

    def render(self, prompt: str) -> str:
        """What the model reads: the solved lines, then the question."""
        self.answer_texts(prompt)
        lines = [
            f"{question}{self.between}{answer}" for question, answer in self.examples
        ]
        return "\n".join([*lines, f"{prompt}{self.between}"])

    def score(self, prompt: str, completion: str) -> Scored:
        """1 for an answer exactly as it is listed, 0 for anything else."""
        right = completion in self.answer_texts(prompt)
        reason = f"{completion!r} is {'' if right else 'not '}right for {prompt!r}"
        return Scored(float(right), right, reason, {"correct": float(right)})


def no_question(prompt: object, task: str) -> ValueError:
    """The error for a prompt that is not the task's own."""
    return bad_input(
        "prompt",
        f"is {prompt!r}",
        f"a question of task {task!r}",
        "pass it as prompts() gives it",
    )

"""``make_number`` with a demand: the answer must use one particular operator.

The task of the third assignment; no lesson uses it.  The prompts, the spelling and
the shipped language model are those of ``make_number``, but every prompt bans one
common digit, and of the answers only those that use the required operator are right::

    24!37:   with "-" required:   4*8-8   9*3-3 is banned   6*4 is wrong now

So a policy has to move, and what it must keep is again listed in full.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from flowrl_lab.tasks.make_number import (
    CHARACTERS,
    OPERATORS,
    MakeNumber,
    enumerate_expressions,
    parse_prompt,
    verify_answer,
)
from flowrl_lab.types import AnswerSet

__all__ = ["RequiredOperator"]

MIN_ANSWERS = 12


class RequiredOperator(MakeNumber):
    """Make N without two digits, and with one operator that must occur.

    Args:
        operator: ``"+"``, ``"-"`` or ``"*"``: an answer without it is wrong.
        digit: the digit that every prompt bans (beside another one).

    Raises:
        ValueError: another operator or digit.
    """

    name = "required_operator"

    def __init__(self, *, operator: str = "-", digit: int = 7):
        if operator not in tuple(OPERATORS):
            raise ValueError(
                f"operator is {operator!r}; expected one of {list(OPERATORS)}. "
                "Fix: choose one of the three."
            )
        if isinstance(digit, bool) or digit not in range(10):
            raise ValueError(
                f"digit is {digit!r}; expected a whole number from 0 to 9. "
                "Fix: choose one digit."
            )
        super().__init__()
        self.operator, self.digit = operator, digit

    def prompts(self, split: str) -> tuple[str, ...]:
        """The prompts of ``make_number`` that ban the digit and have answers enough."""
        return _prompts(super().prompts(split), self.operator, self.digit)

    def score(
        self,
        prompts,
        completion_ids: Tensor,
        completion_mask: Tensor,
        num_generations: int,
    ) -> Tensor:
        """1 for a right, finished answer that uses the operator, 0 otherwise."""
        rewards = super().score(
            prompts, completion_ids, completion_mask, num_generations
        )
        uses = (completion_ids == CHARACTERS.index(self.operator)) & completion_mask
        return rewards * uses.any(-1)

    def answers(self, prompt: str) -> AnswerSet:
        """Every right answer of ``prompt`` that uses the operator, reward 1 each."""
        full = super().answers(prompt)
        kept = torch.tensor([self.operator in label for label in full.labels])
        if not kept.any():
            raise ValueError(
                f"prompt {prompt!r} has no right answer with {self.operator!r}. Fix: "
                "choose another prompt."
            )
        labels = tuple(label for label in full.labels if self.operator in label)
        return AnswerSet(
            prompt=prompt,
            labels=labels,
            completion_ids=full.completion_ids[kept],
            completion_mask=full.completion_mask[kept],
            rewards=full.rewards[kept],
            correct=full.correct[kept],
            groups=full.groups[kept],
            exhaustive=False,
        )

    def verify(self, prompt: str, answer: str) -> bool:
        """Is ``answer`` right, and does it use the operator?"""
        return self.operator in answer and verify_answer(prompt, answer)


@functools.cache
def _prompts(texts: tuple[str, ...], operator: str, digit: int) -> tuple[str, ...]:
    def enough(text: str) -> bool:
        answers = (answer for answer, _ in enumerate_expressions(text))
        return sum(operator in answer for answer in answers) >= MIN_ANSWERS

    return tuple(t for t in texts if digit in parse_prompt(t)[1] and enough(t))

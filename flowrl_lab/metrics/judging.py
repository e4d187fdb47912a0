"""An LLM as judge of diversity, as a plug-in: any function of prompt and responses.

The library never calls a model by itself.  ``judge_diversity`` takes whatever gives a
rating from 1 (all the same) to 5 (all different); ``TextJudge`` makes such a judge of
any function from text to text, for example a call of your own model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from flowrl_lab._validation import bad_input, check_count, check_items, shown

__all__ = [
    "CountingJudge",
    "Judge",
    "TextJudge",
    "judge_diversity",
]

LOWEST, HIGHEST = 1.0, 5.0
# The authors' judge sees this many characters of each response.
PAPER_CHARACTERS = 300


@runtime_checkable
class Judge(Protocol):
    """Rates how different several responses to one prompt are."""

    def __call__(self, prompt: str, responses: Sequence[str]) -> float:
        """A rating from 1 (one idea) to 5 (all of them different)."""


class CountingJudge:
    """A judge without a model: counts different responses, spaces and case ignored.

    The rating is 1 + 4 (K - 1) / (n - 1) for K different ones of n.  It is for tests,
    and shows what a judge can see at all.
    """

    def __call__(self, prompt: str, responses: Sequence[str]) -> float:  # noqa: ARG002
        check_items("responses", responses, str, "responses", least=2)
        kinds = {"".join(response.lower().split()) for response in responses}
        return LOWEST + (HIGHEST - LOWEST) * (len(kinds) - 1) / (len(responses) - 1)


class TextJudge:
    """A judge made of a function from text to text.

    Args:
        complete: sends a text to a model and returns what it writes.
    """

    def __init__(self, complete: Callable[[str], str]):
        _check_callable("complete", complete, "a function from text to text")
        self.complete = complete

    def __call__(self, prompt: str, responses: Sequence[str]) -> float:
        """Ask for a rating, and read the last one that the model names.

        Raises:
            ValueError: the model named no rating from 1 to 5.
        """
        reply = self.complete(self.ask(prompt, responses))
        text = reply.lower() if isinstance(reply, str) else ""
        ratings = re.findall(r"rating\W*([1-5](?:\.\d+)?)(?!\d)", text)
        if not ratings:
            raise ValueError(
                f"the judge wrote {shown(reply)}; expected 'Rating: N' with N from 1 "
                "to 5. Fix: use a model that follows the instruction, or a Judge "
                "of your own."
            )
        return float(ratings[-1])

    def ask(self, prompt: str, responses: Sequence[str]) -> str:
        """The text that the model gets."""
        if not isinstance(prompt, str):
            raise bad_input("prompt", f"is {shown(prompt)}", "a text", "pass its text")
        check_items("responses", responses, str, "responses")
        listed = "\n\n".join(
            f"Response {number}:\n{response}"
            for number, response in enumerate(responses, 1)
        )
        return (
            f"Here is a problem and {len(responses)} responses to it.\n\nProblem:\n"
            f"{prompt}\n\n{listed}\n\nHow many different ways to solve the problem are "
            "there among the responses? Other words for the same way do not count. "
            "1 means that all use one way, 5 that each has a way of its own. End with "
            "a line 'Rating: N', N from 1 to 5."
        )


def judge_diversity(
    judge: Judge,
    responses: Mapping[str, Sequence[str]],
    *,
    max_characters: int | None = PAPER_CHARACTERS,
) -> dict[str, float]:
    """Ratings of the responses to each prompt.

    Source: FlowRL (arXiv 2509.15207) Section 5, which asks a large model for 1 to 5.
    The authors' code shows it the first 300 characters of a response, and so does
    this by default; whatever differs only after them is invisible.

    Args:
        judge: gives the ratings.
        responses: prompt -> at least two responses.
        max_characters: of each response that the judge sees; None shows all.

    Returns:
        prompt -> rating from 1 to 5.

    Raises:
        ValueError: no prompt, fewer than two responses, a rating out of range.
    """
    if max_characters is not None:
        check_count("max_characters", max_characters)
    _check_callable("judge", judge, "a function of a prompt and its responses")
    if not isinstance(responses, Mapping) or not responses:
        raise bad_input(
            "responses",
            f"is a {type(responses).__name__}, or holds no prompt",
            "at least one prompt, with at least two responses to each",
            "pass a dict from prompt to responses",
        )
    for texts in responses.values():  # one alone has nothing to differ from
        check_items("responses", texts, str, "responses to each prompt", least=2)
    ratings = {}
    for prompt, texts in responses.items():
        rating = judge(prompt, [text[:max_characters] for text in texts])
        number = isinstance(rating, int | float) and not isinstance(rating, bool)
        if not number or not LOWEST <= rating <= HIGHEST:
            raise bad_input(
                "judge",
                f"gave {shown(rating)} for prompt {shown(prompt)}",
                "a rating from 1 to 5",
                "repair the judge; ratings out of range would spoil the mean",
            )
        ratings[prompt] = float(rating)
    return ratings


def _check_callable(name: str, value: object, expected: str) -> None:
    if not callable(value):
        raise bad_input(name, f"is a {type(value).__name__}", expected, "pass one")

"""Questions with many right answers, all of which can be listed: open sets.

    A prime number: 13          A multiple of 4: 88          A square number: 49

An answer is a number from 1 to 99 and the end of the line.

Trained on and judged are the same four questions unless ``heldout`` names others:
then a model has to know those sets already, and what is measured is whether their
answers stay in use while it learns to answer other questions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flowrl_lab._validation import bad_input, check_choice, check_items
from flowrl_lab.tasks.few_shot import FewShotTask, no_question

__all__ = ["QUESTIONS", "OpenSets"]

LARGEST = 99


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % d for d in range(2, int(number**0.5) + 1))


# question -> is this number an answer?
QUESTIONS: dict[str, Callable[[int], bool]] = {
    "A prime number": _is_prime,
    "A square number": lambda n: round(n**0.5) ** 2 == n,
    "A multiple of 4": lambda n: n % 4 == 0,
    "A number that ends in 3": lambda n: n % 10 == 3,
    "A power of 2": lambda n: n & (n - 1) == 0,
    "A multiple of 7": lambda n: n % 7 == 0,
    "An odd number": lambda n: n % 2 == 1,
    "An even number": lambda n: n % 2 == 0,
    "A number larger than 60": lambda n: n > 60,
    "A number between 20 and 40": lambda n: 20 < n < 40,
    "A number with two equal digits": lambda n: n > 9 and n % 11 == 0,
    "A multiple of 5": lambda n: n % 5 == 0,
    "A multiple of 6": lambda n: n % 6 == 0,
    "A multiple of 9": lambda n: n % 9 == 0,
    "A number that ends in 7": lambda n: n % 10 == 7,
    "A number smaller than 20": lambda n: n < 20,
    "A Fibonacci number": lambda n: n in {1, 2, 3, 5, 8, 13, 21, 34, 55, 89},
    "A number whose digits add up to 10": lambda n: n // 10 + n % 10 == 10,
}
EXAMPLES = (
    ("A multiple of 5", 35),
    ("An even number", 24),
    ("A prime number", 13),
    ("A number larger than 60", 88),
    ("A square number", 49),
)
DEFAULT = (
    "A prime number",
    "A square number",
    "A multiple of 4",
    "A number that ends in 3",
)


class OpenSets(FewShotTask):
    """Name a number with a property: 4 to 50 right answers a question, all listed.

    Args:
        questions: keys of ``QUESTIONS`` to train on.
        heldout: keys to judge on, none of them trained on; None: the same questions,
            to see how the answers of one question come to be spread.

    Raises:
        ValueError: no question, an unknown one, or one twice.
    """

    name = "open_sets"
    max_completion_tokens = 4  # two digits and the end of the line, and one to spare
    examples = EXAMPLES

    def __init__(
        self,
        questions: Sequence[str] = DEFAULT,
        heldout: Sequence[str] | None = None,
    ):
        self.questions = _as_questions("questions", questions)
        judged = (
            self.questions if heldout is None else _as_questions("heldout", heldout)
        )
        both = sorted(set(judged) & set(self.questions))
        if heldout is not None and both:
            wanted = "questions that are not trained on"
            raise bad_input("heldout", f"has {both}", wanted, "leave them out of one")
        super().__init__(self.questions, judged)

    def answer_texts(self, prompt: str) -> tuple[str, ...]:
        """Every right answer, in rising order."""
        if prompt not in self.prompts("train") + self.prompts("heldout"):
            raise no_question(prompt, self.name)
        rule = QUESTIONS[prompt]
        return tuple(str(n) for n in range(1, LARGEST + 1) if rule(n))


def _as_questions(name: str, asked: Sequence[str]) -> tuple[str, ...]:
    asked = (asked,) if isinstance(asked, str) else tuple(asked)
    check_items(name, asked, str, "questions")
    for question in asked:
        check_choice(name, question, QUESTIONS)
    if len(set(asked)) < len(asked):
        raise bad_input(name, f"is {asked}", "each question once", "name it once")
    return asked

"""Questions with many right answers, all of which can be listed: open sets.

    A prime number: 13          A multiple of 4: 88          A square number: 49

A few such lines stand in front of every question, so that any language model sees
what is asked of it.  An answer is a number from 1 to 99 and the end of the line.  All
right answers are known, so a model's whole distribution over them can be computed
exactly, and collapse is seen without sampling.

The same questions are trained on and judged: what is measured here is how the
answers of *one* question are spread, not whether a rule carries over to new ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flowrl_lab.tasks.text import Scored, TextTask

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


class OpenSets(TextTask):
    """Name a number with a property: 9 to 50 right answers a question, all listed.

    Args:
        questions: keys of ``QUESTIONS`` to train on and to judge.

    Raises:
        ValueError: no question, an unknown one, or one twice.
    """

    name = "open_sets"
    stop = ("\n",)
    max_completion_tokens = 4  # two digits and the end of the line, and one to spare
    reward_scale = None
    has_referee = True

    def __init__(self, questions: Sequence[str] = DEFAULT):
        questions = (questions,) if isinstance(questions, str) else tuple(questions)
        unknown = [question for question in questions if question not in QUESTIONS]
        if not questions or unknown or len(set(questions)) < len(questions):
            raise ValueError(
                f"questions: got {unknown or list(questions)!r}, expected different "
                f"ones of {list(QUESTIONS)}. Fix: spell them as they stand there."
            )
        self.questions = questions

    def prompts(self, split: str) -> tuple[str, ...]:
        """The questions; ``"train"`` and ``"heldout"`` are the same ones."""
        if split not in ("train", "heldout"):
            raise ValueError(
                f"split is {split!r}; expected 'train' or 'heldout'. "
                "Fix: choose one of the two."
            )
        return self.questions

    def render(self, prompt: str) -> str:
        """What the model reads: examples, then the question."""
        self._rule(prompt)
        lines = [f"{question}: {number}" for question, number in EXAMPLES]
        return "\n".join([*lines, f"{prompt}: "])

    def answer_texts(self, prompt: str) -> tuple[str, ...]:
        """Every right answer, in rising order."""
        rule = self._rule(prompt)
        return tuple(str(n) for n in range(1, LARGEST + 1) if rule(n))

    def score(self, prompt: str, completion: str) -> Scored:
        """1 for a right answer as a plain number, 0 for anything else."""
        right = completion in self.answer_texts(prompt)
        plain = completion.isascii() and completion.isdigit()
        if right:
            reason = f"{completion} is {_lower(prompt)}"
        elif plain:
            reason = f"{completion} is not {_lower(prompt)} from 1 to {LARGEST}"
        else:
            reason = f"{completion!r} is not a plain number"
        return Scored(float(right), right, reason, {"correct": float(right)})

    def _rule(self, prompt: str) -> Callable[[int], bool]:
        if prompt not in self.questions:
            raise ValueError(
                f"prompt is {prompt!r}; expected one of {list(self.questions)}. "
                "Fix: pass the question as prompts() gives it."
            )
        return QUESTIONS[prompt]


def _lower(question: str) -> str:
    """``"A prime number"`` within a sentence."""
    return question[0].lower() + question[1:]

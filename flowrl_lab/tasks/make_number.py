"""Maths with a working: write an expression that makes N without two digits.

A prompt such as ``24!37:`` reads "make 24; the digits 3 and 7 are banned".  An
answer is two or three one-digit operands joined by ``+ - *``, worked out from
left to right as on a pocket calculator.  It may be written bare or with its
working::

    6*4             6*4=24
    4+8*2           4+8=12*2=24

Banned digits may not be *operands*; results may contain them.  Every ``=`` must
be true, the intermediate result must not be negative, and the last value must
be N.  Both spellings are right, so a prompt has dozens of right answers, all
of which this module lists.

With ``reward="graded"`` a right answer is worth more the briefer it is, as with the
length penalties that reasoning models are trained on: see ``GRADES``.

The verifier walks the characters with a small state machine: model output is
never passed to ``eval``.
"""

from __future__ import annotations

import functools
import hashlib
import re
from itertools import product

from flowrl_lab.tasks._characters import CharacterTask
from flowrl_lab.types import AnswerSet

__all__ = [
    "GRADES",
    "MakeNumber",
    "enumerate_expressions",
    "explain_answer",
    "grade_answer",
    "verify_answer",
]

CHARACTERS = "0123456789+-*=!:"
PAD, EOS = len(CHARACTERS), len(CHARACTERS) + 1
TARGETS = range(10, 100)
OPERATORS = "+-*"
MIN_ANSWERS, MAX_ANSWERS = 16, 120
HELDOUT_SHARE = 0.2
REWARDS = ("binary", "graded")
# (operators, working shown) -> graded reward of a right answer.  One more operator
# costs 0.1 and the working 0.2: at the scale of GRADED_SCALE that is e^0.8 = 2.2 and
# e^1.6 = 5.0 in probability, enough to move the target and not enough to empty it.
GRADES = {(1, False): 1.0, (2, False): 0.9, (1, True): 0.8, (2, True): 0.7}
GRADED_SCALE = 8.0
PROMPT_PATTERN = re.compile(r"([1-9][0-9])!([0-9])([0-9]):")
ANSWER_PATTERN = re.compile(
    r"([0-9])([+*-])([0-9])(?:=([0-9]{1,2}))?"
    r"(?:([+*-])([0-9])(?:=([0-9]{1,2}))?)?"
)


def _apply(left: int, operator: str, right: int) -> int:
    if operator == "+":
        return left + right
    return left - right if operator == "-" else left * right


def parse_prompt(prompt: str) -> tuple[int, frozenset[int]]:
    """``"24!37:"`` -> ``(24, {3, 7})``; ValueError for anything else."""
    match = PROMPT_PATTERN.fullmatch(prompt)
    if match is None or match[2] >= match[3]:
        raise ValueError(
            f"prompt is {prompt!r}; expected a two-digit number, '!', two different "
            "banned digits in rising order and ':'. Fix: write it like '24!37:'."
        )
    return int(match[1]), frozenset((int(match[2]), int(match[3])))


def verify_answer(prompt: str, answer: str) -> bool:
    """Is ``answer`` a right answer to ``prompt``?

    Args:
        prompt: such as ``"24!37:"``.
        answer: what was written after it, without the end token.

    Returns:
        True if every operand is allowed, every ``=`` is true, a three-operand
        answer shows either all of its working or none, and the value is N.

    Raises:
        ValueError: if the prompt is malformed.  A malformed answer is just wrong.
    """
    return not explain_answer(prompt, answer)


def explain_answer(prompt: str, answer: str) -> str:
    """Why ``answer`` is wrong, in one line; empty if it is right.

    Args, raises: as ``verify_answer``.
    """
    target, banned = parse_prompt(prompt)
    match = ANSWER_PATTERN.fullmatch(answer)
    if match is None:
        return f"{answer[:40]!r} is not written like 3*8, 4+8*2 or 4+8=12*2=24"
    first, op1, second, middle, op2, third, last = match.groups()
    operands = [int(digit) for digit in (first, second, third) if digit is not None]
    forbidden = sorted(banned.intersection(operands))
    if forbidden:
        return f"the digit {forbidden[0]} is banned"
    value = _apply(operands[0], op1, operands[1])
    total = value if op2 is None else _apply(value, op2, operands[2])
    if op2 is not None and (middle is None) != (last is None):
        return "half of the working is shown; show all of it or none"
    if op2 is not None and value < 0:
        return f"the intermediate result {value} is negative"
    for shown, true in ((middle, value), (last, total)):
        if shown not in (None, str(true)):
            return f"={shown} is not true, it is {true}"
    return "" if total == target else f"it makes {total}, not {target}"


def grade_answer(prompt: str, answer: str) -> float:
    """The graded reward: 0 for a wrong answer, else 0.7 to 1, brief ones more.

    Args, raises: as ``verify_answer``.
    """
    if not verify_answer(prompt, answer):
        return 0.0
    operators = sum(character in OPERATORS for character in answer)
    return GRADES[operators, "=" in answer]


def _commuting_class(operands: tuple[int, ...], operators: str) -> tuple:
    """A key that is equal for expressions equal up to a+b = b+a and a*b = b*a."""
    head = operands[:2]
    if operators[0] != "-":
        head = tuple(sorted(head))
    if len(operators) == 2 and operators[0] == operators[1] != "-":
        return (*sorted(operands), operators)
    return (*head, *operands[2:], operators)


@functools.cache
def _all_expressions() -> dict[int, tuple[tuple[tuple[int, ...], str, int], ...]]:
    """Target -> every (operands, operators, intermediate value) that makes it."""
    found: dict[int, list] = {target: [] for target in TARGETS}
    for a, op1, b in product(range(10), OPERATORS, range(10)):
        value = _apply(a, op1, b)
        if value in found:
            found[value].append(((a, b), op1, value))
        if value < 0:
            continue
        for op2, c in product(OPERATORS, range(10)):
            total = _apply(value, op2, c)
            if total in found:
                found[total].append(((a, b, c), op1 + op2, value))
    return {target: tuple(rows) for target, rows in found.items()}


def _spellings(operands: tuple[int, ...], operators: str, value: int, target: int):
    head = f"{operands[0]}{operators[0]}{operands[1]}"
    if len(operands) == 2:
        return head, f"{head}={target}"
    tail = f"{operators[1]}{operands[2]}"
    return head + tail, f"{head}={value}{tail}={target}"


@functools.cache
def enumerate_expressions(prompt: str) -> tuple[tuple[str, tuple], ...]:
    """Every right answer of ``prompt`` with its class up to commuting.

    Returns:
        ``((answer, class key), ...)`` in a fixed order; the bare spelling and the
        one with working are two answers of one class.
    """
    target, banned = parse_prompt(prompt)
    answers = []
    for operands, operators, value in _all_expressions()[target]:
        if banned.isdisjoint(operands):
            key = _commuting_class(operands, operators)
            answers += [
                (text, key) for text in _spellings(operands, operators, value, target)
            ]
    return tuple(answers)


def _is_heldout(prompt: str) -> bool:
    """A fixed 20 % of the prompts, the same on every machine."""
    digest = hashlib.sha256(prompt.encode()).digest()
    return digest[0] / 256 < HELDOUT_SHARE


@functools.cache
def _split(heldout: bool) -> tuple[str, ...]:
    prompts = []
    for target in TARGETS:
        for low, high in product(range(10), range(10)):
            prompt = f"{target}!{low}{high}:"
            if low < high and _is_heldout(prompt) == heldout:
                count = len(enumerate_expressions(prompt))
                if MIN_ANSWERS <= count <= MAX_ANSWERS:
                    prompts.append(prompt)
    # A fixed shuffle, so that the first k prompts are a fair sample of all.
    return tuple(sorted(prompts, key=lambda p: hashlib.sha256(p.encode()).hexdigest()))


class MakeNumber(CharacterTask):
    """The ``make_number`` task: 16 to 120 right answers a prompt, all listed.

    Unfinished answers are wrong, and wrong ones get 0.

    Args:
        reward: ``"binary"``: 1 for every right answer.  ``reward_scale`` is None: the
            exact target is the reference restricted to the right answers, the limit
            that exp(βr) reaches as β grows.
            ``"graded"``: 0.7 to 1 for a right answer, brief ones more (``GRADES``).
            ``reward_scale`` is 8: the exact target is π_ref(y) exp(8 r(y)) over the
            right answers, normalised, whatever scale a run trains at.  Wrong answers
            have no part in it; in the full target at that scale all of them together
            weigh at most e^(-8·0.7) = 1/270 of what they do in the reference,
            compared with the right ones.
    """

    name = "make_number"
    characters = CHARACTERS
    vocab_size = len(CHARACTERS) + 2
    pad_id = PAD
    eos_id = EOS
    max_completion_tokens = len("9*9=81-9=72") + 1
    max_prompt_tokens = len("24!37:")
    reward_scale: float | None = None

    def __init__(self, *, reward: str = "binary"):
        if reward not in REWARDS:
            raise ValueError(
                f"reward is {reward!r}; expected one of {REWARDS}. "
                "Fix: choose one of the two."
            )
        self.reward = reward
        if reward == "graded":
            self.reward_scale = GRADED_SCALE

    def _split(self, heldout: bool) -> tuple[str, ...]:
        return _split(heldout)

    def _check_prompt(self, prompt: str) -> None:
        parse_prompt(prompt)

    def reward_of(self, prompt: str, answer: str) -> float:
        """The reward of one finished answer."""
        judge = verify_answer if self.reward == "binary" else grade_answer
        return float(judge(prompt, answer))

    def answers(self, prompt: str) -> AnswerSet:
        """Every right answer of ``prompt``, tokenised, with its reward."""
        return _answer_set(prompt, self.reward)


@functools.cache
def _answer_set(prompt: str, reward: str) -> AnswerSet:
    rows = enumerate_expressions(prompt)
    if not rows:
        raise ValueError(f"prompt {prompt!r} has no right answer. Fix: choose another.")
    texts = [text for text, _ in rows]
    rewards = [1.0 if reward == "binary" else grade_answer(prompt, t) for t in texts]
    return MakeNumber(reward=reward).answer_set(
        prompt,
        texts,
        rewards=rewards,
        correct=[True] * len(rows),
        classes=[key for _, key in rows],
    )

"""Code: write a short program that does what two examples show.

A prompt such as ``312>213,401>104;r..:`` shows two inputs with their outputs and a
hint: the words of one shortest solution, in alphabetical order.  An answer is a
program of the stack language (``stack_language``), with these words or others::

    r               reverse
    rrr             reverse, three times
    trt             turn, reverse, turn: the same

What is meant is the function of the *shortest* program that fits both examples.  A
right program computes that function: it also passes the hidden test, which is every
other input there is.  A program that fits the two examples and fails the hidden test
is wrong but plausible.

The whole language up to the length limit is enumerated (``program_search``), so all
right programs of a prompt are listed, and all plausible ones.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
from dataclasses import dataclass

import numpy as np

from flowrl_lab.tasks._characters import CharacterTask
from flowrl_lab.tasks.program_search import Meaning, from_number, meanings, to_number
from flowrl_lab.tasks.stack_language import (
    DIGITS,
    LENGTH,
    MAX_WORDS,
    WORDS,
    Numbers,
    run_program,
)
from flowrl_lab.types import AnswerSet

__all__ = ["Programs", "Verdict", "check_program", "intended_meaning", "list_programs"]

CHARACTERS = "".join(str(digit) for digit in range(DIGITS)) + ">,;.:" + "".join(WORDS)
PAD, EOS = len(CHARACTERS), len(CHARACTERS) + 1
REWARDS = ("binary", "graded", "examples")
PLAUSIBLE_REWARD = 0.5
# Functions to ask for: not too hard to guess from two examples, and with many programs.
MIN_PROGRAMS, MAX_PROGRAMS, LONGEST_SIMPLEST = 8, 300, 3
PROMPTS_PER_FUNCTION = 16
HELDOUT_SHARE = 0.2
_LIST = f"([0-{DIGITS - 1}]{{{LENGTH}}})"
_HINT = f"([.{re.escape(''.join(WORDS))}]{{{LONGEST_SIMPLEST}}})"
PROMPT_PATTERN = re.compile(f"{_LIST}>{_LIST},{_LIST}>{_LIST};{_HINT}:")
# Inputs that are shown have three different numbers: they tell most about a program.
TELLING = [
    place for place in range(DIGITS**LENGTH) if len(set(from_number(place))) == LENGTH
]

Example = tuple[Numbers, Numbers]


@dataclass(frozen=True)
class Verdict:
    """What the verifier says of one program.

    Attributes:
        fits: the program gives the two outputs that the prompt shows.
        right: it also passes the hidden test.
        reason: in words.
    """

    fits: bool
    right: bool
    reason: str


def parse_prompt(prompt: str) -> tuple[Example, Example]:
    """``"312>213,401>104;r..:"`` -> its two (input, output) pairs.

    The hint is for the reader of the prompt: it changes nothing in what is right.

    Raises:
        ValueError: for anything else, or the same input twice.
    """
    match = PROMPT_PATTERN.fullmatch(prompt)
    if match is None or match[1] == match[3]:
        raise ValueError(
            f"prompt is {prompt!r}; expected two examples with different inputs, each "
            f"of {LENGTH} digits from 0 to {DIGITS - 1}, and a hint of "
            f"{LONGEST_SIMPLEST} words or dots. "
            "Fix: write it like '312>213,401>104;r..:'."
        )
    first, first_out, second, second_out = (
        _numbers(text) for text in match.groups()[:4]
    )
    return (first, first_out), (second, second_out)


def _numbers(text: str) -> Numbers:
    return tuple(int(digit) for digit in text)


def _text(numbers: Numbers) -> str:
    return "".join(str(number) for number in numbers)


@functools.cache
def _fitting(prompt: str) -> tuple[Meaning, ...]:
    """Every function that fits the examples, simplest first."""
    tables = _tables()
    fits = np.ones(len(tables), dtype=bool)
    for shown, output in parse_prompt(prompt):
        fits &= tables[:, to_number(shown)] == to_number(output)
    found = tuple(meanings()[row] for row in np.flatnonzero(fits))
    if not found:
        raise ValueError(
            f"prompt {prompt!r} has no right answer: no program of up to {MAX_WORDS} "
            "words fits both examples. Fix: choose another."
        )
    return found


@functools.cache
def _tables() -> np.ndarray:
    return np.stack([meaning.outputs for meaning in meanings()])


def intended_meaning(prompt: str) -> Meaning:
    """The function that is meant: of the shortest program that fits.

    Among equally short ones the first in the alphabet decides; the task's own prompts
    are chosen so that all shortest programs agree.

    Raises:
        ValueError: a malformed prompt, or one that no program fits.
    """
    return _fitting(prompt)[0]


def list_programs(prompt: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """All right programs of ``prompt``, and all plausible ones, shortest first.

    Raises:
        ValueError: as ``intended_meaning``.
    """
    meant, *others = _fitting(prompt)
    plausible = [program for meaning in others for program in meaning.programs]
    return meant.programs, tuple(sorted(plausible, key=lambda p: (len(p), p)))


@functools.lru_cache(maxsize=1 << 16)
def check_program(prompt: str, program: str) -> Verdict:
    """Run ``program`` on the examples, then on every other input.

    Args:
        prompt: such as ``"312>213,401>104;r..:"``.
        program: any text.

    Raises:
        ValueError: as ``intended_meaning``.  What is wrong with the program is in the
            verdict.
    """
    for shown, output in parse_prompt(prompt):
        outcome = run_program(program, shown)
        if outcome.problem:
            return Verdict(False, False, f"no program: {outcome.problem}")
        if outcome.result != output:
            got = f"{_text(shown)} gives {_text(outcome.result)}"
            return Verdict(False, False, f"{got}; the example says {_text(output)}")
    outputs = intended_meaning(prompt).outputs
    for place, expected in enumerate(outputs.tolist()):
        result = run_program(program, from_number(place)).result
        if result != from_number(expected):
            got = f"{_text(from_number(place))} gives {_text(result)}"
            wanted = _text(from_number(expected))
            return Verdict(
                True,
                False,
                f"fits the examples; hidden test: {got} instead of {wanted}",
            )
    return Verdict(True, True, "right: fits the examples and passes the hidden test")


def draw_prompts(meaning: Meaning, count: int) -> tuple[str, ...]:
    """The first ``count`` prompts that ask for ``meaning``, in a fixed random order.

    A prompt asks for it if all shortest programs that fit compute it.
    """
    found: dict[str, None] = {}
    for number in range(200 * count):
        digest = hashlib.sha256(f"{meaning.simplest}:{number}".encode()).digest()
        places = [TELLING[byte % len(TELLING)] for byte in digest[:2]]
        if places[0] == places[1]:
            continue
        shown = [
            f"{_text(from_number(p))}>{_text(from_number(int(meaning.outputs[p])))}"
            for p in places
        ]
        hint = "".join(sorted(meaning.simplest)).ljust(LONGEST_SIMPLEST, ".")
        prompt = f"{','.join(shown)};{hint}:"
        first, *others = _fitting(prompt)
        if first is meaning and all(
            len(other.simplest) > len(meaning.simplest) for other in others
        ):
            found[prompt] = None
        if len(found) == count:
            break
    return tuple(found)


@functools.cache
def task_meanings(heldout: bool) -> tuple[Meaning, ...]:
    """The functions that training, or held-out, prompts ask for; none is in both."""
    return tuple(
        meaning
        for meaning in meanings()
        if MIN_PROGRAMS <= len(meaning.programs) <= MAX_PROGRAMS
        and len(meaning.simplest) <= LONGEST_SIMPLEST
        and _is_heldout(meaning) == heldout
    )


def _is_heldout(meaning: Meaning) -> bool:
    """A fixed 20 % of the functions, the same on every machine."""
    digest = hashlib.sha256(meaning.simplest.encode()).digest()
    return digest[0] / 256 < HELDOUT_SHARE


@functools.cache
def _prompts_for(functions: tuple[Meaning, ...]) -> tuple[str, ...]:
    prompts = itertools.chain.from_iterable(
        draw_prompts(meaning, PROMPTS_PER_FUNCTION) for meaning in functions
    )
    # A fixed shuffle, so that the first k prompts are a fair sample of all.
    return tuple(sorted(prompts, key=lambda p: hashlib.sha256(p.encode()).hexdigest()))


class Programs(CharacterTask):
    """The ``programs`` task: 8 to 300 right programs a prompt, all listed.

    The functions of held-out prompts occur in no training prompt.  ``reward_scale`` is
    None: the exact target is the reference restricted to the right programs, whatever
    the reward pays for the others.

    Args:
        reward: ``"binary"``: 1 for a right program, else 0.
            ``"graded"``: 1 for a right, 0.5 for a plausible program, else 0.
            ``"examples"``: 1 for every program that fits the two examples: a test
            that can be passed without being right.
    """

    name = "programs"
    characters = CHARACTERS
    vocab_size = len(CHARACTERS) + 2
    pad_id = PAD
    eos_id = EOS
    max_completion_tokens = MAX_WORDS + 1
    max_prompt_tokens = len("312>213,401>104;r..:")

    def __init__(self, *, reward: str = "binary"):
        if reward not in REWARDS:
            raise ValueError(
                f"reward is {reward!r}; expected one of {REWARDS}. "
                "Fix: choose one of the three."
            )
        self.reward = reward

    @property
    def _plausible_reward(self) -> float:
        return {"binary": 0.0, "graded": PLAUSIBLE_REWARD, "examples": 1.0}[self.reward]

    def _split(self, heldout: bool) -> tuple[str, ...]:
        return _prompts_for(task_meanings(heldout))

    def _half(self, second: bool) -> tuple[str, ...]:
        """Of every other held-out function: no function is in both halves."""
        return _prompts_for(task_meanings(True)[second::2])

    def _check_prompt(self, prompt: str) -> None:
        parse_prompt(prompt)

    def reward_of(self, prompt: str, answer: str) -> float:
        """The reward of one finished program."""
        verdict = check_program(prompt, answer)
        if verdict.right:
            return 1.0
        return self._plausible_reward if verdict.fits else 0.0

    def are_right(
        self,
        completion_ids,  # noqa: ARG002 - the reward says it
        rewards,
    ):
        """Whether each program earned all there is: right, for the reward at hand."""
        return rewards >= 1

    def answers(self, prompt: str) -> AnswerSet:
        """Every right program; plausible ones too where they have a reward."""
        return _answer_set(prompt, self.reward)


@functools.cache
def _answer_set(prompt: str, reward: str) -> AnswerSet:
    task = Programs(reward=reward)
    meant = intended_meaning(prompt)
    right, plausible = list_programs(prompt)
    if not task._plausible_reward:
        plausible = ()
    return task.answer_set(
        prompt,
        right + plausible,
        rewards=[1.0] * len(right) + [task._plausible_reward] * len(plausible),
        correct=[True] * len(right) + [False] * len(plausible),
        classes=[*meant.classes, *[None] * len(plausible)],
    )

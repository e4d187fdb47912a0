"""The words in which an assignment says what it asks and how it is marked.

The hidden blocks of a source file are run by whoever builds or grades, never by a
student's notebook and never in the sandbox.  They call the functions of
:class:`Marking`: ``function(...)``, ``number(...)``, ``own_test(...)``,
``recorded(...)``, ``argued(...)``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from flowrl_lab._validation import bad_input

__all__ = [
    "Argued",
    "Call",
    "Draw",
    "FunctionQuestion",
    "Marking",
    "Number",
    "OwnTest",
    "Question",
    "Recorded",
    "Slip",
    "Test",
    "call",
]


@dataclass(frozen=True)
class Call:
    """One call of a student's function: its arguments, by place and by name."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def call(*args: Any, **kwargs: Any) -> Call:
    """A call with these arguments."""
    return Call(args, kwargs)


@dataclass(frozen=True)
class Test:
    """Some calls that must all agree with the solution, for some points.

    Attributes:
        title: what a student may read about it.
        points: for all of it, or nothing.
        calls: on which the function is compared.
    """

    __test__ = False  # not one of pytest's

    title: str
    points: int | float
    calls: Sequence[Call]


@dataclass(frozen=True)
class Slip:
    """A mistake that students make, as a function, and what to tell them."""

    name: str
    message: str
    wrong: Callable[..., Any]


@dataclass(frozen=True)
class FunctionQuestion:
    """A function to write.

    Attributes:
        name: of the student's function, and of the solution in the same source.
        title: what a student may read.
        visible: calls of the check in the student's notebook.
        tests: hidden, with points.
        slips: known mistakes, the likeliest first.
        gradients: places of arguments whose gradient is compared too.
        tolerance: relative and absolute.
    """

    name: str
    title: str
    visible: tuple[Call, ...]
    tests: tuple[Test, ...]
    slips: tuple[Slip, ...] = ()
    gradients: tuple[int, ...] = ()
    tolerance: tuple[float, float] = (1e-4, 1e-5)

    @property
    def points(self) -> int | float:
        return sum(test.points for test in self.tests)


@dataclass(frozen=True)
class Number:
    """A number to find and to write down as a constant.

    Attributes:
        name: of the constant.
        title: what a student may read.
        points: all of them, or none.
        value: the right one, for this variant.
        tolerance: absolute.
    """

    name: str
    title: str
    points: int | float
    value: Any
    tolerance: int | float = 0.0


@dataclass(frozen=True)
class OwnTest:
    """A test that the student writes: it must find the faults, and no others.

    Attributes:
        name: of the student's test, a function of one implementation.
        title: what a student may read.
        right: sources of right implementations; a test that rejects one of them
            earns nothing.
        mutants: title that a student may read, points, source of a wrong one.
        harmless: names in ``flowrl_lab`` that the visible check runs the test on.
    """

    name: str
    title: str
    right: tuple[str, ...]
    mutants: tuple[tuple[str, int | float, str], ...]
    harmless: str

    @property
    def points(self) -> int | float:
        return sum(points for _, points, _ in self.mutants)


@dataclass(frozen=True)
class Recorded:
    """Files with trained numbers, handed in beside the notebook.

    Attributes:
        name: of the question.
        title: what a student may read.
        files: names of the files.
        judge: files that are there (name -> bytes) -> for each part the share that
            is earned (0 to 1) and a sentence.
        parts: title and points of each part.
    """

    name: str
    title: str
    files: tuple[str, ...]
    judge: Callable[[Mapping[str, bytes]], Sequence[tuple[float, str]]]
    parts: tuple[tuple[str, int | float], ...]

    @property
    def points(self) -> int | float:
        return sum(points for _, points in self.parts)


@dataclass(frozen=True)
class Argued:
    """A short argued answer: marked by a person, with a rubric."""

    name: str
    title: str
    points: int | float
    rubric: tuple[str, ...]


Question = FunctionQuestion | Number | OwnTest | Recorded | Argued


class Draw:
    """Numbers for tests, few digits each, the same on every machine.

    Args:
        seed: of Python's own generator, whose draws never change.
    """

    def __init__(self, seed: int | str):
        self._random = random.Random(seed)

    def uniform(
        self, *shape: int, low: int | float = 0.0, high: int | float = 1.0
    ) -> Tensor:
        """float64, evenly spread, four digits after the point."""
        return self._fill(shape, lambda: self._random.uniform(low, high))

    def log_probs(self, *shape: int, spread: int | float = 1.5) -> Tensor:
        """Log-probabilities that sum to 1 along the last axis."""
        scores = self._fill(shape, lambda: spread * self._random.uniform(-2, 2))
        return scores.log_softmax(-1)

    def whole(self, *shape: int, below: int) -> Tensor:
        """int64 from 0 to below - 1."""
        numbers = [self._random.randrange(below) for _ in range(_count(shape))]
        return torch.tensor(numbers).reshape(shape)

    def mask(self, rows: int, columns: int) -> Tensor:
        """True on the first tokens of each row, at least one; lengths differ."""
        lengths = [1 + (row * 2) % columns for row in range(rows)]
        self._random.shuffle(lengths)
        return torch.arange(columns) < torch.tensor(lengths).unsqueeze(1)

    def pick(self, *choices: Any) -> Any:
        """One of the choices."""
        return self._random.choice(choices)

    def _fill(self, shape: tuple[int, ...], draw: Callable[[], int | float]) -> Tensor:
        numbers = [round(draw(), 4) for _ in range(_count(shape))]
        return torch.tensor(numbers, dtype=torch.float64).reshape(shape)


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total


@dataclass
class Marking:
    """Collects the questions that the hidden blocks of one source ask.

    Attributes:
        variant: the number that the student's landscape or digits come from.
        secret: mixed into the draws of hidden tests.
        questions: in the order of the notebook.
        problem: what the student's notebook is given: plain values and tensors.
    """

    variant: int
    secret: str = ""
    questions: list[Question] = field(default_factory=list)
    problem: dict[str, Any] = field(default_factory=dict)

    def names(self) -> dict[str, Any]:
        """What a hidden block finds defined."""
        return {
            "torch": torch,
            "call": call,
            "Test": Test,
            "Slip": Slip,
            "variant": self.variant,
            "problem": self.problem,
            "hidden_draw": Draw(f"{self.secret}/hidden/{self.variant}"),
            "open_draw": Draw(f"visible/{self.variant}"),
            "variant_draw": Draw(f"problem/{self.variant}"),
            "function": self.function,
            "number": self.number,
            "own_test": self.own_test,
            "recorded": self.recorded,
            "argued": self.argued,
        }

    def function(self, name: str, title: str, **settings: Any) -> None:
        """Ask for a function; see :class:`FunctionQuestion`."""
        listed = {k: tuple(v) for k, v in settings.items()}
        tests = tuple(Test(t.title, t.points, tuple(t.calls)) for t in listed["tests"])
        self._add(FunctionQuestion(name, title, **{**listed, "tests": tests}))

    def number(self, name: str, title: str, **settings: Any) -> None:
        """Ask for a number; see :class:`Number`."""
        self._add(Number(name, title, **settings))

    def own_test(self, name: str, title: str, **settings: Any) -> None:
        """Ask for a test; see :class:`OwnTest`."""
        listed = {k: v if k == "harmless" else tuple(v) for k, v in settings.items()}
        self._add(OwnTest(name, title, **listed))

    def recorded(self, name: str, title: str, **settings: Any) -> None:
        """Ask for files; see :class:`Recorded`."""
        listed = {k: v if k == "judge" else tuple(v) for k, v in settings.items()}
        self._add(Recorded(name, title, **listed))

    def argued(self, name: str, title: str, **settings: Any) -> None:
        """Ask for an argument; see :class:`Argued`."""
        settings["rubric"] = tuple(settings["rubric"])
        self._add(Argued(name, title, **settings))

    def _add(self, question: Question) -> None:
        if any(question.name == other.name for other in self.questions):
            raise bad_input(
                "question",
                f"{question.name!r} is asked twice",
                "one name for each question",
                "rename one of them in the source",
            )
        self.questions.append(question)

"""The grading bundle: everything that marks an assignment, in one file.

It is for instructors only: it holds the solutions and the hidden tests.  Its code is
run by whoever grades, so only bundles that ``assign build`` wrote are to be used.
"""

from __future__ import annotations

import functools
import json
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowrl_lab._validation import bad_input
from flowrl_lab.assignments.spec import (
    Argued,
    Call,
    FunctionQuestion,
    Marking,
    Number,
    OwnTest,
    Question,
    Recorded,
)

__all__ = [
    "Bundle",
    "Loaded",
    "call_with_gradients",
    "is_by_hand",
    "read_bundle",
]

FORMAT = 2
SUFFIX = ".bundle.json"
_LOADING = threading.Lock()  # one submission loads a variant, the others wait
KINDS = {
    FunctionQuestion: "function",
    Number: "number",
    OwnTest: "own test",
    Recorded: "files",
    Argued: "argued",
}


@dataclass(frozen=True)
class Loaded:
    """An assignment for one variant, ready to build from or to grade with.

    Attributes:
        questions: in the order of the notebook.
        problem: what the student's notebook is given.
        solutions: everything that the solved cells define.
        expected: the solutions' results on hidden calls, as they are asked for.
    """

    questions: tuple[Question, ...]
    problem: dict[str, Any]
    solutions: dict[str, Any]
    expected: dict[tuple[str, int], list] = field(default_factory=dict)


@dataclass(frozen=True)
class Bundle:
    """What a bundle file holds.

    Attributes:
        key: of the assignment, the stem of its source.
        title: as the notebook's first line says it.
        digest: sha256 of the source.
        secret: mixed into the numbers of hidden tests.
        solutions: solved cells.
        hidden: hidden blocks.
        handed_out: cells as they are handed out: (kind, text, argued answer or "",
            names that are asked for in it).
    """

    key: str
    title: str
    digest: str
    secret: str
    solutions: tuple[str, ...]
    hidden: tuple[str, ...]
    handed_out: tuple[tuple[str, str, str, str], ...]

    @property
    def template(self) -> list[str]:
        """Code cells as they are handed out."""
        return [row[1] for row in self.handed_out if row[0] == "code"]

    @property
    def asked(self) -> tuple[str, ...]:
        """Names of the functions and numbers that it asks for."""
        return tuple(name for row in self.handed_out for name in row[3].split())

    def load(self, variant: int) -> Loaded:
        """The questions for one variant; loaded once."""
        with _LOADING:
            return _load(self, variant)

    def to_json(self) -> str:
        """The bundle as text, the same every time."""
        return json.dumps(
            {"format": FORMAT, **self.__dict__}, indent=1, ensure_ascii=False
        )


def read_bundle(path: Path) -> Bundle:
    """Read what ``Bundle.to_json`` wrote.

    Raises:
        ValueError: no such file, not a bundle, or of another version.
    """
    try:
        fields = json.loads(Path(path).read_text(encoding="utf-8"))
        version = fields.pop("format")
        bundle = _from_fields(fields) if version == FORMAT else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise bad_input(
            "bundle",
            f"{path} cannot be read ({type(error).__name__})",
            f"a file *{SUFFIX} of `assign build`",
            "build it again: python -m flowrl_lab assign build",
        ) from None
    if bundle is None:
        raise bad_input(
            "bundle",
            f"{path} has format {version!r}",
            f"format {FORMAT}",
            "build it again with this flowrl_lab",
        )
    return bundle


def _from_fields(fields: dict[str, Any]) -> Bundle:
    lists = {name: tuple(fields.pop(name)) for name in ("solutions", "hidden")}
    handed_out = tuple(map(tuple, fields.pop("handed_out")))
    return Bundle(**fields, **lists, handed_out=handed_out)


@functools.lru_cache(maxsize=256)
def _load(bundle: Bundle, variant: int) -> Loaded:
    marking = Marking(variant, bundle.secret)
    names: dict[str, Any] = {"__name__": bundle.key, "torch": torch, "math": math}
    for place, text in enumerate(bundle.solutions, 1):
        exec(compile(text, f"<{bundle.key}: solution {place}>", "exec"), names)
    solutions = dict(names)
    names |= marking.names()
    for place, text in enumerate(bundle.hidden, 1):
        exec(compile(text, f"<{bundle.key}: hidden block {place}>", "exec"), names)
    return Loaded(tuple(marking.questions), marking.problem, solutions)


def is_by_hand(question: Question) -> bool:
    """Whether a person marks it."""
    return isinstance(question, Argued)


def call_with_gradients(
    function: Callable[..., Any], call: Call, gradients: tuple[int, ...]
) -> list[Any]:
    """A function's value, and the gradient of its sum by some of its arguments."""
    args = [_copy(value) for value in call.args]
    leaves = [args[place].requires_grad_() for place in gradients]
    value = function(*args, **{k: _copy(v) for k, v in call.kwargs.items()})
    found = [_detached(value)]
    for leaf in leaves:
        slope = None
        if isinstance(value, Tensor) and value.requires_grad:
            (slope,) = torch.autograd.grad(
                value.sum(), leaf, retain_graph=True, allow_unused=True
            )
        found.append(torch.zeros_like(leaf) if slope is None else slope)
    return found


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, list | tuple):
        return [_detached(part) for part in value]
    return value

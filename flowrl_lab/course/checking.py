"""Run a learner's function on small cases, and say what is wrong in words."""

from __future__ import annotations

import copy
import html
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowrl_lab.course.showing import show
from flowrl_lab.course.time_limit import TimeUp, call_with_limit

__all__ = [
    "Case",
    "Exercise",
    "Mistake",
    "Result",
    "judge",
    "load_solution",
    "show_result",
]

Case = tuple[tuple[Any, ...], dict[str, Any]]
# What a call gave: its result and its gradients, by name.
Outputs = dict[str, Tensor]

# Loose enough for float32 working, tight enough that no known mistake slips by.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@dataclass(frozen=True)
class Mistake:
    """A wrong solution that learners write, and what to tell them.

    Attributes:
        name: a short name of the mistake, used in tests.
        message: what went wrong and where to look.
        wrong: the mistake as a function.
    """

    name: str
    message: str
    wrong: Callable[..., Any]


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Attributes:
        name: of the exercise and of the learner's function.
        solution: ``"module:function"`` of the library function that solves it.
        cases: builds the calls to compare on, as (args, kwargs).
        mistakes: known mistakes, the likeliest first.
        hint: a nudge, short of the solution.
        gradients: names of tensor arguments; the gradient of the summed result
            with respect to each is compared too, so that a missing or a wrong
            ``detach`` is seen.
    """

    name: str
    solution: str
    cases: Callable[[], list[Case]]
    mistakes: tuple[Mistake, ...]
    hint: str
    gradients: tuple[str, ...] = ()


@dataclass
class Result:
    """What a check found; shows itself in a notebook, and prints well.

    Attributes:
        name: the exercise.
        status: "passed", "failed" or "not attempted".
        message: the explanation.
        mistake: the known mistake's name, or "".
    """

    name: str
    status: str
    message: str
    mistake: str = ""
    _shown: bool = False

    def __str__(self) -> str:
        sign = {"passed": "✓", "failed": "✗"}.get(self.status, "○")
        return f"{sign} {self.name}: {self.status}\n  {self.message}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        colour, sign = {
            "passed": ("#009E73", "✓"),
            "failed": ("#D55E00", "✗"),
        }.get(self.status, ("#808080", "○"))
        message = html.escape(self.message).replace("\n", "<br>")
        return (
            f'<div role="status" style="border-left:5px solid {colour};'
            'padding:.4em 1em;margin:.3em 0">'
            f"<b>{sign} {html.escape(self.name)}: {self.status}</b>"
            f"<br>{message}</div>"
        )

    def _ipython_display_(self) -> None:
        # `check` has shown it already; as a cell's last value it would come twice.
        if self._shown:
            self._shown = False
        else:
            show_result(self)


def load_solution(exercise: Exercise) -> Callable[..., Any]:
    """The library function that solves the exercise."""
    module, function = exercise.solution.split(":")
    return getattr(importlib.import_module(module), function)


def judge(exercise: Exercise, function: Callable, seconds: float) -> Result:
    """Compare on every case; the first thing wrong decides."""
    cases = exercise.cases()
    outputs: list[Outputs] = []
    for case in cases:
        output, problem = _run(exercise, function, case, seconds)
        if problem == "not attempted":
            return Result(
                exercise.name,
                "not attempted",
                "Replace the line `raise NotImplementedError` with your own code, "
                "run the cell, and check again.",
            )
        if problem:
            return Result(exercise.name, "failed", problem)
        outputs.append(output)
    solution = load_solution(exercise)
    expected = [_call(exercise, solution, case) for case in cases]
    wrong = [_compare(o, e) for o, e in zip(outputs, expected, strict=True)]
    if not any(wrong):
        message = f"All {len(cases)} cases agree with {exercise.solution}."
        return Result(exercise.name, "passed", message)
    mistake = _find_mistake(exercise, cases, outputs)
    if mistake is not None:
        return Result(exercise.name, "failed", mistake.message, mistake.name)
    first = next(i for i, message in enumerate(wrong) if message)
    where = f"Case {first + 1} of {len(cases)}: {wrong[first]}"
    return Result(exercise.name, "failed", where)


def _run(
    exercise: Exercise, function: Callable, case: Case, seconds: float
) -> tuple[Outputs, str]:
    """Call the learner's function: what came out, or the problem."""
    given = copy.deepcopy(case)
    try:
        outputs = call_with_limit(lambda: _call(exercise, function, given), seconds)
    except NotImplementedError:
        return {}, "not attempted"
    except TimeUp:
        return {}, (
            f"Your function was still running after {seconds:g} seconds and was "
            "stopped. Is there a loop that never ends?"
        )
    except KeyboardInterrupt:
        return {}, "You interrupted the check."
    except _NoTensor as error:
        return {}, str(error)
    except BaseException as error:  # SystemExit too: a check never stops Run All
        return {}, f"Your function stopped with {type(error).__name__}: {error}"
    if not _same(case, given):
        return {}, (
            "Your function changed one of its inputs. Work on a copy: x = x - 1 "
            "makes a new tensor, x -= 1 changes the caller's."
        )
    return outputs, ""


def _call(exercise: Exercise, function: Callable, case: Case) -> Outputs:
    """The function's value on one case, and the gradients that are compared."""
    args, kwargs = case
    if not exercise.gradients:
        return {"result": _to_tensor(function(*args, **kwargs))}
    names = list(inspect.signature(load_solution(exercise)).parameters)
    # The learner's names may differ from ours; positions do not.
    named = {**dict(zip(names, args, strict=False)), **kwargs}
    leaves = {n: named[n].detach().clone() for n in exercise.gradients}
    for leaf in leaves.values():
        leaf.requires_grad_()
    args = tuple(leaves.get(n, a) for n, a in zip(names, args, strict=False))
    kwargs = {n: leaves.get(n, a) for n, a in kwargs.items()}
    value = function(*args, **kwargs)
    outputs = {"result": _to_tensor(value)}
    for name, leaf in leaves.items():
        slope = None
        if isinstance(value, Tensor) and value.requires_grad:
            (slope,) = torch.autograd.grad(
                value.sum(), leaf, retain_graph=True, allow_unused=True
            )
        # a path that is cut and a slope of 0 are the same to an optimiser
        slope = torch.zeros_like(leaf) if slope is None else slope
        outputs[f"gradient with respect to {name}"] = _to_tensor(slope)
    return outputs


def _compare(outputs: Outputs, expected: Outputs) -> str:
    """What differs, in words; "" where they agree."""
    for what, wanted in expected.items():
        problem = _compare_one(what, outputs[what], wanted)
        if problem:
            return problem
    return ""


def _compare_one(what: str, output: Tensor, expected: Tensor) -> str:
    if output.shape != expected.shape:
        return (
            f"your {what} has shape {list(output.shape)}, expected "
            f"{list(expected.shape)}. Check which dimension you sum over."
        )
    if torch.isnan(output).any() and not torch.isnan(expected).any():
        return (
            f"your {what} holds NaN. Log of 0, 0 × ∞ or ∞ − ∞? Stay with "
            "log-probabilities as long as you can."
        )
    if torch.allclose(output, expected, **TOLERANCE):
        return ""
    if what != "result":
        return (
            f"the value is right, but its {what} is {_brief(output)}, expected "
            f"{_brief(expected)}. What must be detached, and what must not?"
        )
    return f"you got {_brief(output)}, expected {_brief(expected)}."


def _find_mistake(
    exercise: Exercise, cases: list[Case], outputs: list[Outputs]
) -> Mistake | None:
    """The known mistake that gives just these outputs on every case."""
    for mistake in exercise.mistakes:
        theirs = [_call(exercise, mistake.wrong, case) for case in cases]
        if all(_alike(a, b) for a, b in zip(outputs, theirs, strict=True)):
            return mistake
    return None


def _alike(ours: Outputs, theirs: Outputs) -> bool:
    return all(
        value.shape == theirs[what].shape
        and torch.allclose(value, theirs[what], equal_nan=True, **TOLERANCE)
        for what, value in ours.items()
    )


class _NoTensor(Exception):
    """The function returned something that holds no numbers."""


def _to_tensor(value: Any) -> Tensor:
    if value is None:
        raise _NoTensor("Your function returned None. Is the `return` missing?")
    try:
        if isinstance(value, tuple | list):
            value = torch.stack([torch.as_tensor(part) for part in value])
        return torch.as_tensor(value).detach().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError):
        kind = type(value).__name__
        raise _NoTensor(
            f"Your function returned a {kind}; a tensor was expected."
        ) from None


def _same(before: Any, after: Any) -> bool:
    """Whether nested tuples and dicts of tensors are unchanged."""
    if isinstance(before, Tensor):
        return torch.equal(before, after)
    if isinstance(before, dict):
        return all(_same(before[key], after[key]) for key in before)
    if isinstance(before, tuple | list):
        return all(_same(a, b) for a, b in zip(before, after, strict=True))
    return True


def _brief(values: Tensor) -> str:
    flat = [f"{v:.4g}" for v in values.flatten()[:4].tolist()]
    if values.ndim == 0:
        return flat[0]
    return f"[{', '.join(flat)}{', …' if values.numel() > 4 else ''}]"


def show_result(result: Result) -> None:
    """As HTML in a notebook, as text elsewhere."""
    show({"text/html": result._repr_html_(), "text/plain": str(result)})

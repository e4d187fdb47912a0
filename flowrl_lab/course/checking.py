"""Run a learner's function on small cases, and say what is wrong in words."""

from __future__ import annotations

import copy
import html
import importlib
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowrl_lab.course.given import COLUMNS, brief, describe_inputs
from flowrl_lab.course.showing import ShownOnce, markup_to_html, markup_to_text
from flowrl_lab.course.time_limit import TimeUp, call_with_limit

__all__ = [
    "Case",
    "Exercise",
    "Mistake",
    "Result",
    "judge",
    "load_solution",
]

Case = tuple[tuple[Any, ...], dict[str, Any]]
# What a call gave: its result and its gradients, by name.
Outputs = dict[str, Tensor]

# Loose enough for float32 working, tight enough that no known mistake slips by.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
SHOWN_NUMBERS = 8  # of a wrong result, before only the first wrong one is named


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


@dataclass(repr=False)
class Result(ShownOnce):
    """What a check found; shows itself in a notebook, and prints well.

    Attributes:
        name: the exercise.
        status: "passed", "failed" or "not attempted".
        message: the explanation.
        mistake: the known mistake's name, or "".
        details: the case that showed it: what came out, and the inputs.
        folded: HTML below it, such as the hint and the solution.
    """

    name: str
    status: str
    message: str
    mistake: str = ""
    details: str = ""
    folded: str = ""

    def __str__(self) -> str:
        sign = {"passed": "✓", "failed": "✗"}.get(self.status, "○")
        lines = [f"{sign} {self.name}: {self.status}"]
        for line in markup_to_text(self.message).splitlines():
            lines += textwrap.wrap(line, COLUMNS)
        return "\n  ".join(lines + self.details.splitlines())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        colour, sign = {
            "passed": ("#009E73", "✓"),
            "failed": ("#D55E00", "✗"),
        }.get(self.status, ("#808080", "○"))
        details = ""
        if self.details:
            details = (
                '<pre style="white-space:pre-wrap;margin:.4em 0 0">'
                f"{html.escape(self.details)}</pre>"
            )
        return (
            f'<div role="status" style="border-left:5px solid {colour};'
            'padding:.4em 1em;margin:.3em 0">'
            f"<b>{sign} {html.escape(self.name)}: {self.status}</b>"
            f"<br>{markup_to_html(self.message)}{details}{self.folded}</div>"
        )

    def _repr_mimebundle_(self, **_options) -> dict:
        return {"text/html": self._repr_html_(), "text/plain": str(self)}


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
            inputs = _describe_case(exercise, case)
            return Result(exercise.name, "failed", problem, details=inputs)
        outputs.append(output)
    return _compare_all(exercise, cases, outputs)


def _compare_all(
    exercise: Exercise, cases: list[Case], outputs: list[Outputs]
) -> Result:
    """The verdict on what a function has given for every case."""
    solution = load_solution(exercise)
    expected = [_call(exercise, solution, case) for case in cases]
    wrong = [_compare(o, e) for o, e in zip(outputs, expected, strict=True)]
    if not any(wrong):
        message = f"All {len(cases)} cases agree with {exercise.solution}."
        return Result(exercise.name, "passed", message)
    first = next(i for i, message in enumerate(wrong) if message)
    where = f"Case {first + 1} of {len(cases)}: {wrong[first]}"
    inputs = _describe_case(exercise, cases[first])
    mistake = _find_mistake(exercise, cases, outputs, expected)
    if mistake is not None:
        details = f"{where}\n{inputs}"
        return Result(exercise.name, "failed", mistake.message, mistake.name, details)
    where += _find_pattern(outputs, expected)
    return Result(exercise.name, "failed", where, details=inputs)


def _describe_case(exercise: Exercise, case: Case) -> str:
    """The inputs of a case, under the names that they have in the solution."""
    names = inspect.signature(load_solution(exercise)).parameters
    return describe_inputs(list(names), *case)


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
            f"your {what} holds NaN. Log of 0, 0 × ∞ or ∞ − ∞? Stay in logs where you "
            "can; 0 log 0 counts 0."
        )
    if torch.allclose(output, expected, **TOLERANCE):
        return ""
    if what != "result":
        return (
            f"the value is right, but its {what} is {brief(output)}, expected "
            f"{brief(expected)}. What must be detached, and what must not?"
        )
    return _say_difference(output, expected)


def _say_difference(output: Tensor, expected: Tensor) -> str:
    """Both values; of a large tensor the first number that differs, and where."""
    if output.numel() <= SHOWN_NUMBERS:
        return f"you got {brief(output)}, expected {brief(expected)}."
    wrong = ~torch.isclose(output, expected, **TOLERANCE)
    place = wrong.nonzero()[0].tolist()
    mine, right = output[tuple(place)].item(), expected[tuple(place)].item()
    return (
        f"{int(wrong.sum())} of {wrong.numel()} numbers differ; the first, at "
        f"{place}: you got {mine:.4g}, expected {right:.4g}."
    )


def _find_pattern(outputs: list[Outputs], expected: list[Outputs]) -> str:
    """What all wrong numbers have in common with the right ones, in words."""
    mine = [output["result"].flatten() for output in outputs]
    right = [output["result"].flatten() for output in expected]
    if any(a.shape != b.shape for a, b in zip(mine, right, strict=True)):
        return ""
    got, wanted = torch.cat(mine), torch.cat(right)
    if len(got) < 2 or not (got.isfinite() & wanted.isfinite()).all():
        return ""
    shift, factor = (got - wanted).mean(), (got @ wanted) / (wanted @ wanted)
    if torch.allclose(got, wanted, **TOLERANCE):  # only its gradients differ
        return ""
    if torch.allclose(got, wanted + shift, **TOLERANCE):
        return f" Everywhere yours is {shift:+.4g} off: a term too many, or missing?"
    if torch.allclose(got, factor * wanted, **TOLERANCE):
        if abs(factor + 1) < 1e-3:
            return " Everywhere the sign is turned round."
        return f" Everywhere yours is {factor:.4g} times as large."
    return ""


def _find_mistake(
    exercise: Exercise,
    cases: list[Case],
    outputs: list[Outputs],
    expected: list[Outputs],
) -> Mistake | None:
    """The known mistake that gives just these outputs on every case.

    Failing that, the one with these values: two slips at once, such as a wrong sign
    and a missing detach, should still be told the first.
    """
    values = [{"result": output["result"]} for output in outputs]
    wrong_value, close = not all(map(_alike, values, expected)), None
    for mistake in exercise.mistakes:
        theirs = [_call(exercise, mistake.wrong, case) for case in cases]
        if all(map(_alike, outputs, theirs)):
            return mistake
        if close is None and wrong_value and all(map(_alike, values, theirs)):
            close = mistake
    return close


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

"""Run a submission in the sandbox, and take back what is well-formed.

A student's code gets inputs, and nothing that it could be compared with.  What comes
back is data that nobody trusts: it is checked for its form here, and judged elsewhere.
"""

from __future__ import annotations

import ast
import functools
import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from flowrl_lab.assignments.bundles import Loaded
from flowrl_lab.assignments.encoding import encode
from flowrl_lab.assignments.spec import FunctionQuestion, Number, OwnTest
from flowrl_lab.sandbox import Limits, SandboxResult, run_python

__all__ = ["CHANGES", "LIMITS", "Outcomes", "run_submission", "worker_parts"]

LIMITS = Limits(
    cpu_seconds=60.0,
    wall_seconds=300.0,
    memory_mb=1024,
    output_bytes=65_536,
    file_mb=16,
    processes=1,
)
SECONDS_A_CALL = 8.0
SECONDS_A_DEFINITION = 8.0
TAMPERED = "one of its functions writes into the files of the grader"
# An own test is run on everything twice, each time in another order that nobody can
# foresee: a test that counts its calls, instead of looking, does not say the same.
ROUNDS = 2
CHANGES = "changes"
INSIDE = Path(__file__).with_name("inside")

# All that a process which nobody trusts may say to a student about a cell: its own
# words could carry the inputs of a hidden test out.
CELL_PROBLEM = re.compile(
    r"code cell [0-9]{1,6} is not Python(, line [0-9]{1,6})?"
    r"|a definition in code cell [0-9]{1,6} (never ended|fails \([A-Za-z]{1,40}\))"
)


@dataclass
class Outcomes:
    """What came back from the sandbox.

    Attributes:
        calls: job -> its outcome.
        verdicts: (own test, place of the implementation) -> outcome.
        functions: names of the functions that the submission defines.
        literals: constants by name.
        problems: of cells and definitions.
        read: whether its definitions were read back.
    """

    calls: dict[str, dict] = field(default_factory=dict)
    verdicts: dict[tuple[str, int], dict] = field(default_factory=dict)
    functions: list[str] = field(default_factory=list)
    literals: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    read: bool = False


def run_submission(
    code: Sequence[str],
    loaded: Loaded,
    limits: Limits = LIMITS,
    run: Callable[..., SandboxResult] = run_python,
) -> Outcomes:
    """Run all jobs of a submission; a job that ends the process costs only itself.

    Args:
        code: texts of the code cells.
        loaded: the assignment for the student's variant.
        limits: of the first process; each later one gets half the processor time.
        run: the sandbox.
    """
    orders = _make_orders(loaded)
    jobs = _make_jobs(loaded, orders)
    plan = {
        "cells": list(code),
        "literals": [q.name for q in loaded.questions if isinstance(q, Number)],
        "seconds": SECONDS_A_DEFINITION,
    }

    def start(some: list[dict], within: Limits) -> SandboxResult:
        given = {"plan.json": json.dumps({**plan, "jobs": some})}
        parts = worker_parts()
        given |= {name: text for name, text in parts.items() if name != "worker.py"}
        return run(
            parts["worker.py"],
            limits=within,
            files={name: text.encode() for name, text in given.items()},
            readable=_packages(),
            collect=("found.json", "outcomes.jsonl"),
        )

    outcomes = Outcomes()
    result = start(jobs, limits)
    if not _take(outcomes, result.files, jobs):
        outcomes.calls.clear()  # forged by one of its functions: by which?
        outcomes.problems.append(TAMPERED)
    if outcomes.read:
        _run_left(outcomes, jobs, start, limits)
    else:  # its definitions end the process: they would do so again
        outcomes.problems.append(_why(result.outcome, "its definitions"))
        ended = {"problem": _kind(result.outcome)}
        outcomes.calls.update({job["id"]: ended for job in jobs})
    _unshuffle(outcomes, orders)
    return outcomes


def _run_left(
    outcomes: Outcomes,
    jobs: list[dict],
    start: Callable[[list[dict], Limits], SandboxResult],
    limits: Limits,
) -> None:
    """Run what is left by function: one that spoils its process costs only itself."""
    left = [job for job in jobs if job["id"] not in outcomes.calls]
    shorter = replace(limits, cpu_seconds=limits.cpu_seconds / 2)
    for name in dict.fromkeys(job["function"] for job in left):
        mine = [job for job in left if job["function"] == name]
        result = start(mine, shorter)
        honest = _take(outcomes, result.files, mine)
        for job in mine:
            if not honest or job["id"] not in outcomes.calls:
                outcomes.calls[job["id"]] = {"problem": _kind(result.outcome)}


def _kind(outcome: str) -> str:
    """Why a job has no outcome of its own, from how its process ended."""
    return {"timeout": "time", "memory": "memory"}.get(outcome, "stopped")


def _why(outcome: str, what: str) -> str:
    words = {
        "timeout": "took too long",
        "memory": "used too much memory",
        "output": "wrote too much",
    }
    return f"{what} {words.get(outcome, 'ended the process')}"


@functools.cache
def worker_parts() -> dict[str, str]:
    """The program that runs inside the sandbox: name of a file -> its text."""
    return {p.name: p.read_text(encoding="utf-8") for p in sorted(INSIDE.glob("*.py"))}


@functools.cache
def _packages() -> tuple[Path, ...]:
    """Where torch lies; flowrl_lab is kept out of reach by the worker."""
    return (Path(torch.__file__).resolve().parents[1],)


# -------------------------------------------------------------------- what comes back


def _take(outcomes: Outcomes, files: Mapping[str, bytes], jobs: list[dict]) -> bool:
    """Take what is well-formed out of the files of a process that nobody trusts.

    Returns:
        False if a job has two outcomes, or a line has none: then somebody else has
        written there.
    """
    known: set[str] = {job["id"] for job in jobs}
    found: dict[str, dict] = {}
    if not outcomes.read and "found.json" in files:
        _take_found(outcomes, files["found.json"])
    for line in files.get("outcomes.jsonl", b"").splitlines():
        try:
            row = json.loads(line)
            name = row["id"]
            if name in known and found.setdefault(name, row) != row:
                return False
        except (ValueError, KeyError, TypeError, RecursionError):
            return False
    outcomes.calls.update(found)
    return True


def _take_found(outcomes: Outcomes, content: bytes) -> None:
    try:
        found = json.loads(content)
        lists = {n: list(map(str, found[n])) for n in ("functions", "problems")}
        outcomes.literals.update(dict(found["literals"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    names = (n for n in lists["functions"][:500] if n.isidentifier() and len(n) < 80)
    outcomes.functions.extend(names)
    told = (p for p in lists["problems"][:20] if CELL_PROBLEM.fullmatch(p))
    outcomes.problems.extend(told)
    outcomes.read = True


# -------------------------------------------------------------------------------- jobs


def _make_jobs(loaded: Loaded, orders: Mapping[str, list[list[int]]]) -> list[dict]:
    jobs = []
    for question in loaded.questions:
        if isinstance(question, FunctionQuestion):
            jobs += _call_jobs(question)
        elif isinstance(question, OwnTest):
            jobs += _own_test_jobs(question, orders[question.name])
    return jobs


def _call_jobs(question: FunctionQuestion) -> list[dict]:
    return [
        {
            "id": f"{question.name}/{place}.{number}",
            "function": question.name,
            "args": encode(list(call.args)),
            "kwargs": encode(call.kwargs)["dict"],
            "gradients": list(question.gradients),
            "seconds": SECONDS_A_CALL,
        }
        for place, test in enumerate(question.tests)
        for number, call in enumerate(test.calls)
    ]


def _own_test_jobs(question: OwnTest, orders: list[list[int]]) -> list[dict]:
    """Right and wrong implementations, under numbers that say nothing."""
    sources = [*question.right, *(source for _, _, source in question.mutants)]
    bare = [_bare_source(source) for source in sources]
    return [
        {
            "id": f"{question.name}/{turn}.{number}",
            "function": question.name,
            "source": bare[index],
            "seconds": SECONDS_A_CALL,
        }
        for turn, order in enumerate(orders)
        for number, index in enumerate(order)
    ]


def _make_orders(loaded: Loaded) -> dict[str, list[list[int]]]:
    """Which implementation comes when, for each own test and round."""
    chance, orders = random.SystemRandom(), {}
    for question in loaded.questions:
        if isinstance(question, OwnTest):
            places = range(len(question.right) + len(question.mutants))
            orders[question.name] = [
                chance.sample(places, len(places)) for _ in range(ROUNDS)
            ]
    return orders


def _unshuffle(outcomes: Outcomes, orders: Mapping[str, list[list[int]]]) -> None:
    """Verdicts of own tests by the implementation's place in the question again."""
    for name, rounds in orders.items():
        told: dict[int, list[dict]] = {}
        for turn, order in enumerate(rounds):
            for number, index in enumerate(order):
                outcome = outcomes.calls.get(f"{name}/{turn}.{number}")
                told.setdefault(index, []).append(outcome or {"problem": "stopped"})
        for index, rows in told.items():
            outcomes.verdicts[name, index] = _agreed(rows)


def _agreed(rows: Sequence[dict]) -> dict:
    """One outcome of all rounds: a problem, or a verdict that did not change."""
    for row in rows:
        if "problem" in row:
            return row
    same = all(row.get("verdict") == rows[0].get("verdict") for row in rows)
    return rows[0] if same else {"problem": CHANGES}


def _bare_source(text: str) -> str:
    """An implementation without comments and docstrings, under a name like any."""
    tree = ast.parse(text)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    for node in functions:
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    functions[-1].name = "implementation"
    return ast.unparse(tree)

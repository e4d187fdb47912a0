"""Mark one submission: its functions in the sandbox, its files by the referee.

The line of trust: a student's code runs only inside the sandbox, with inputs and
without anything that it could be compared with.  Expected values, verdicts and points
are made out here, from plain numbers that came back.
"""

from __future__ import annotations

import ast
import builtins
import difflib
import functools
import hashlib
import json
import random
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from flowrl_lab.assignments.bundles import (
    Bundle,
    Loaded,
    call_with_gradients,
    is_by_hand,
)
from flowrl_lab.assignments.compare import differ, difference
from flowrl_lab.assignments.encoding import decode, encode
from flowrl_lab.assignments.spec import (
    FunctionQuestion,
    Number,
    OwnTest,
    Question,
    Recorded,
    Test,
)
from flowrl_lab.assignments.submissions import Submission
from flowrl_lab.sandbox import Limits, SandboxResult, run_python

__all__ = ["LIMITS", "Grade", "Part", "grade_submission", "judge_question"]

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
_REFEREE = threading.Lock()  # it builds models, which is not made for threads
WORKER = Path(__file__).with_name("worker.py")

# All that a process which nobody trusts may say to a student: its own words could
# carry the inputs of a hidden test out.
PLACE = re.compile(r"line [0-9]{1,6} of code cell [0-9]{1,6}")
CELL_PROBLEM = re.compile(
    r"code cell [0-9]{1,6} is not Python(, line [0-9]{1,6})?"
    r"|a definition in code cell [0-9]{1,6} (never ended|fails \([A-Za-z]{1,40}\))"
)

# What went wrong with a call, for the student.
_WORDS = {
    "missing": "there is no function of this name",
    "not attempted": "not attempted",
    "time": "took too long (an endless loop?)",
    "memory": "used too much memory",
    "stopped": "ended the whole process",
}


@dataclass(frozen=True)
class Part:
    """A part of a question: points, and what to tell the student."""

    title: str
    points: int | float
    earned: int | float
    note: str = ""


@dataclass
class Grade:
    """What one submission earned.

    Attributes:
        key: of the submission.
        student: whose it is.
        path: where it lay.
        assignment: key of the assignment, or "".
        variant: that it was marked for.
        digest: of everything that the result depends on, for resuming.
        status: "graded", or "not graded" (nothing could be marked).
        parts: by question.
        argued: answers for a person to read, by question.
        problems: (what, what the student must do).
        text: the code in one normal form, for the comparison of submissions.
    """

    key: str
    student: str
    path: str
    assignment: str
    variant: int
    digest: str
    status: str
    parts: dict[str, list[Part]] = field(default_factory=dict)
    argued: dict[str, str] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)
    text: str = ""

    @property
    def points(self) -> int | float:
        """All points that were marked automatically."""
        return sum(part.earned for parts in self.parts.values() for part in parts)

    def earned(self, question: str) -> int | float:
        """Points of one question."""
        return sum(part.earned for part in self.parts.get(question, ()))

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Grade:
        """What ``to_json`` gave."""
        fields = json.loads(text)
        fields["parts"] = {
            name: [Part(**part) for part in parts]
            for name, parts in fields["parts"].items()
        }
        fields["problems"] = [tuple(problem) for problem in fields["problems"]]
        return cls(**fields)


def grade_submission(
    submission: Submission,
    bundle: Bundle,
    variant: int,
    digest: str,
    *,
    limits: Limits = LIMITS,
    run: Callable[..., SandboxResult] = run_python,
) -> Grade:
    """Mark a submission that was read.

    Args:
        submission: what was read of it.
        bundle: of its assignment.
        variant: that the student was given.
        digest: kept in the grade.
        limits: of the sandbox.
        run: the sandbox; another one only where a grader's container is the fence.
    """
    loaded = bundle.load(variant)
    grade = Grade(
        key=submission.found.key,
        student=submission.found.student,
        path=str(submission.found.path.name),
        assignment=bundle.key,
        variant=variant,
        digest=digest,
        status="graded" if submission.readable else "not graded",
        problems=[(p.what, p.fix) for p in submission.problems],
    )
    outcomes = Outcomes()
    if submission.readable:
        outcomes = run_submission(submission.code, loaded, grade.key, limits, run)
        _note_found(grade, outcomes)
    for question in loaded.questions:
        if is_by_hand(question):
            grade.argued[question.name] = submission.argued.get(question.name, "")
        else:
            files = submission.files if submission.readable else {}
            grade.parts[question.name] = judge_question(
                question, loaded, outcomes, files
            )
    _note_missing(grade, loaded, submission, outcomes)
    grade.text = "\n".join(submission.code)
    return grade


# --------------------------------------------------------------------- in the sandbox


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
    verdicts: dict[tuple[str, int], dict | None] = field(default_factory=dict)
    functions: list[str] = field(default_factory=list)
    literals: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    read: bool = False


def run_submission(
    code: Sequence[str],
    loaded: Loaded,
    key: str,
    limits: Limits,
    run: Callable[..., SandboxResult],
) -> Outcomes:
    """Run all jobs of a submission; a job that ends the process costs only itself."""
    jobs = _make_jobs(loaded, key)
    plan = {
        "cells": list(code),
        "literals": [q.name for q in loaded.questions if isinstance(q, Number)],
        "seconds": SECONDS_A_DEFINITION,
    }

    def start(some: list[dict], within: Limits) -> SandboxResult:
        return run(
            _worker(),
            limits=within,
            files={"plan.json": json.dumps({**plan, "jobs": some}).encode()},
            readable=_packages(),
            collect=("found.json", "outcomes.jsonl"),
        )

    outcomes = Outcomes()
    result = start(jobs, limits)
    if not _take(outcomes, result.files, jobs):
        outcomes.calls.clear()  # forged by one of its functions: by which?
        outcomes.problems.append(TAMPERED)
    left = [job for job in jobs if job["id"] not in outcomes.calls]
    shorter = replace(limits, cpu_seconds=limits.cpu_seconds / 2)
    # A function that ends the process, or spoils its files, costs only itself.
    for name in dict.fromkeys(job["function"] for job in left):
        mine = [job for job in left if job["function"] == name]
        result = start(mine, shorter)
        honest = _take(outcomes, result.files, mine)
        kind = {"timeout": "time", "memory": "memory"}.get(result.outcome, "stopped")
        for job in mine:
            if not honest or job["id"] not in outcomes.calls:
                outcomes.calls[job["id"]] = {"problem": kind}
    if not outcomes.read:
        outcomes.problems.append(_why(result.outcome, "its definitions"))
    _unshuffle(outcomes, loaded, key)
    return outcomes


def _unshuffle(outcomes: Outcomes, loaded: Loaded, key: str) -> None:
    """Verdicts of own tests by the implementation's place in the question again."""
    for question in loaded.questions:
        if isinstance(question, OwnTest):
            order = own_test_order(question, key)
            told = [
                outcomes.calls.get(f"{question.name}/{p}") for p in range(len(order))
            ]
            for outcome, index in zip(told, order, strict=True):
                outcomes.verdicts[question.name, index] = outcome


@functools.cache
def _worker() -> str:
    return WORKER.read_text(encoding="utf-8")


@functools.cache
def _packages() -> tuple[Path, ...]:
    """Where torch lies; flowrl_lab is kept out of reach by the worker."""
    return tuple(dict.fromkeys([Path(torch.__file__).resolve().parents[1]]))


def _why(outcome: str, what: str) -> str:
    words = {
        "timeout": "took too long",
        "memory": "used too much memory",
        "output": "wrote too much",
    }
    return f"{what} {words.get(outcome, 'ended the process')}"


def _take(outcomes: Outcomes, files: Mapping[str, bytes], jobs: list[dict]) -> bool:
    """Take what is well-formed out of the files of a process that nobody trusts.

    Returns:
        False if a job has two outcomes: then somebody else has written there.
    """
    known, found = {job["id"] for job in jobs}, {}
    for line in files.get("outcomes.jsonl", b"").splitlines():
        try:
            row = json.loads(line)
            name = row["id"]
            if name in known and found.setdefault(name, row) != row:
                return False
        except (ValueError, KeyError, TypeError, RecursionError):
            return False
    outcomes.calls.update(found)
    if not outcomes.read and "found.json" in files:
        _take_found(outcomes, files["found.json"])
    return True


def _take_found(outcomes: Outcomes, content: bytes) -> None:
    try:
        found = json.loads(content)
        lists = {n: list(map(str, found[n])) for n in ("functions", "problems")}
        outcomes.literals.update(found["literals"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    names = (n for n in lists["functions"][:500] if n.isidentifier() and len(n) < 80)
    outcomes.functions.extend(names)
    told = (p for p in lists["problems"][:20] if CELL_PROBLEM.fullmatch(p))
    outcomes.problems.extend(told)
    outcomes.read = True


def _make_jobs(loaded: Loaded, key: str) -> list[dict]:
    jobs = []
    for question in loaded.questions:
        if isinstance(question, FunctionQuestion):
            jobs += _call_jobs(question)
        elif isinstance(question, OwnTest):
            jobs += _own_test_jobs(question, key)
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


def _own_test_jobs(question: OwnTest, key: str) -> list[dict]:
    """Right and wrong implementations under numbers, shuffled for each submission."""
    order = own_test_order(question, key)
    sources = [*question.right, *(source for _, _, source in question.mutants)]
    return [
        {
            "id": f"{question.name}/{place}",
            "function": question.name,
            "source": bare_source(sources[index]),
            "seconds": SECONDS_A_CALL,
        }
        for place, index in enumerate(order)
    ]


def own_test_order(question: OwnTest, key: str) -> list[int]:
    """Which implementation has which number, for one submission."""
    order = list(range(len(question.right) + len(question.mutants)))
    random.Random(f"{question.name}/{key}").shuffle(order)
    return order


def bare_source(text: str) -> str:
    """An implementation without comments and docstrings, under a name like any."""
    tree = ast.parse(text)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    for node in functions:
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    functions[-1].name = "implementation"
    return ast.unparse(tree)


# ----------------------------------------------------------------------------- judging


def judge_question(
    question: Question,
    loaded: Loaded,
    outcomes: Outcomes,
    files: Mapping[str, bytes],
) -> list[Part]:
    """The parts of one question, with their points."""
    if isinstance(question, FunctionQuestion):
        return [
            _judge_test(question, place, test, loaded, outcomes)
            for place, test in enumerate(question.tests)
        ]
    if isinstance(question, Number):
        return [_judge_number(question, outcomes)]
    if isinstance(question, OwnTest):
        return _judge_own_test(question, outcomes)
    return _judge_files(question, files)


def _judge_test(
    question: FunctionQuestion,
    place: int,
    test: Test,
    loaded: Loaded,
    outcomes: Outcomes,
) -> Part:
    """All calls of a test agree with the solution, or it earns nothing."""
    expected = _expected(loaded, question, place)
    for number, wanted in enumerate(expected):
        outcome = outcomes.calls.get(f"{question.name}/{place}.{number}")
        note = _compare(question, outcome, wanted)
        if note:
            return Part(test.title, test.points, 0.0, note)
    return Part(test.title, test.points, test.points)


def _expected(loaded: Loaded, question: FunctionQuestion, place: int) -> list:
    """The solution's results; computed once for each variant."""
    key = (question.name, place)
    if key not in loaded.expected:
        solution = loaded.solutions[question.name]
        loaded.expected[key] = [
            call_with_gradients(solution, call, question.gradients)
            for call in question.tests[place].calls
        ]
    return loaded.expected[key]


def _compare(question: FunctionQuestion, outcome: dict | None, expected: list) -> str:
    if outcome is None:
        return _WORDS["stopped"]
    if "problem" in outcome:
        return describe_problem(outcome)
    try:
        got = decode(outcome["result"])
    except (ValueError, KeyError):
        return "the result holds something else than numbers"
    if not isinstance(got, list) or len(got) != len(expected):
        return "the result holds something else than numbers"
    return difference(got, expected, question.tolerance)


def describe_problem(outcome: Mapping[str, Any]) -> str:
    """Why a call gave nothing, without a word that the submission chose."""
    problem = str(outcome["problem"])[:60]
    if problem in _WORDS:
        return _WORDS[problem]
    kind = getattr(builtins, problem, None)
    known = isinstance(kind, type) and issubclass(kind, BaseException)
    name = problem if known else "an error"
    place = str(outcome.get("place", ""))
    in_place = f" in {place}" if PLACE.fullmatch(place) else ""
    return f"stops with {name}{in_place}"


def _judge_number(question: Number, outcomes: Outcomes) -> Part:
    name, points = question.title, question.points
    try:
        given = decode(outcomes.literals.get(question.name))
    except ValueError:
        given = None
    if given is None:
        return Part(name, points, 0.0, "no value: write it as a plain constant")
    expected = question.value
    if isinstance(expected, set):
        expected = sorted(map(str, expected))
        given = given if isinstance(given, list) else [given]
        given = sorted(map(str, given))
    problem = differ(given, expected, (0.0, float(question.tolerance)))
    if problem:
        return Part(name, points, 0.0, "not the value that was asked for")
    return Part(name, points, points)


def _judge_own_test(question: OwnTest, outcomes: Outcomes) -> list[Part]:
    """A test earns a fault's points if it finds it, and accepts what is right."""
    rows = [
        outcomes.verdicts.get((question.name, place)) or {"problem": "stopped"}
        for place in range(len(question.right) + len(question.mutants))
    ]
    spoilt = ""
    for row in rows[: len(question.right)]:
        if row.get("verdict") != "accepted":
            told = "problem" in row and row["problem"] in _WORDS
            spoilt = _WORDS[row["problem"]] if told else "rejects a right loss"
            break
    parts = []
    wrong = rows[len(question.right) :]
    for (title, points, _), row in zip(question.mutants, wrong, strict=True):
        note = spoilt
        if not note and row.get("verdict") != "rejected":
            note = "your test does not find it"
        parts.append(Part(title, points, 0.0 if note else points, note))
    return parts


def _judge_files(question: Recorded, files: Mapping[str, bytes]) -> list[Part]:
    missing = [name for name in question.files if name not in files]
    if missing:
        note = f"{', '.join(missing)} was not handed in"
        return [Part(title, points, 0.0, note) for title, points in question.parts]
    try:
        with _REFEREE:
            shares = question.judge({name: files[name] for name in question.files})
    except ValueError as error:  # the referee's own words, about the file
        return [
            Part(title, points, 0.0, str(error)) for title, points in question.parts
        ]
    return [
        Part(title, points, points * share, "" if share == 1 else note)
        for (title, points), (share, note) in zip(question.parts, shares, strict=True)
    ]


def _note_found(grade: Grade, outcomes: Outcomes) -> None:
    for problem in outcomes.problems:
        grade.problems.append(
            (problem, "restart the kernel, run all cells, and mend the first error")
        )


def _note_missing(
    grade: Grade, loaded: Loaded, submission: Submission, outcomes: Outcomes
) -> None:
    """Name the functions and the files that are not there."""
    if not submission.readable:
        return
    for question in loaded.questions:
        if isinstance(question, Recorded):
            lost = [name for name in question.files if name not in submission.files]
            if lost:
                grade.problems.append(
                    (
                        f"missing file: {', '.join(lost)}",
                        "hand in the zip file that assignment.submit() writes",
                    )
                )
        needed = isinstance(question, FunctionQuestion | OwnTest)
        if needed and question.name not in outcomes.functions:
            close = _similar(question.name, outcomes.functions)
            hint = f" (there is {close})" if close else ""
            grade.problems.append(
                (
                    f"no function {question.name}{hint}",
                    f"keep the name {question.name}; it is called by its name",
                )
            )


def _similar(name: str, functions: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, functions, n=1, cutoff=0.6)
    return close[0] if close else ""


def digest_of(submission: Submission, bundle: Bundle | None, variant: int) -> str:
    """Of everything that a grade depends on: unchanged, it need not be made again."""
    parts = (
        submission.digest,
        submission.found.student,
        bundle.to_json() if bundle else "",
        str(variant),
        _worker(),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()

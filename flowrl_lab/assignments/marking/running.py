"""Run a submission in the sandbox, and take back what is well-formed.

A student's code gets inputs, and nothing that it could be compared with: each question
has a fresh process, and each own test one for each implementation, which it may ask and
which lies in another.  What comes back is data that nobody trusts: it is checked for
its form here, and judged elsewhere.
"""

from __future__ import annotations

import functools
import json
import random
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from packaging.requirements import Requirement

from flowrl_lab.assignments.bundles import Loaded
from flowrl_lab.assignments.encoding import encode
from flowrl_lab.assignments.spec import FunctionQuestion, Number, OwnTest
from flowrl_lab.sandbox import (
    ForkServer,
    Limits,
    SandboxResult,
    SandboxServer,
    ServerStopped,
)

__all__ = ["CHANGES", "LIMITS", "Outcomes", "run_submission", "worker_parts"]

# The time on the clock is for a whole submission, the rest for each of its processes.
LIMITS = Limits(
    cpu_seconds=60.0,
    wall_seconds=300.0,
    memory_mb=1024,
    output_bytes=65_536,
    file_mb=16,
    processes=1,
)
# For one question to a loss that is tested.
LOSS_LIMITS = replace(
    LIMITS, cpu_seconds=4.0, wall_seconds=16.0, output_bytes=2_000_000, file_mb=1
)
SECONDS_A_CALL = 8.0
SECONDS_A_DEFINITION = 8.0
TAMPERED = "one of its functions writes into the files of the grader"
# An own test is run on everything twice, and must say the same.  One that does not has
# to say it four times more: chance finds nothing.
ROUNDS, MORE_ROUNDS = 2, 4
CHANGES = "changes"
INSIDE = Path(__file__).with_name("inside")
PROGRAM = "import worker\nworker.main()\n"
# What is taken back of a process: more would take our own time and memory.
MAX_BACK, MAX_LISTS, MAX_WORD = 1_000_000, 10_000, 200
Reply = Callable[[bytes], bytes]
_OF_THREAD = threading.local()
SPENT = SandboxResult("timeout", -9, "", "", 0.0, 0.0)

# What a submission may import beside the standard library, where it is installed, with
# all that these need.  Nothing else that is installed can be read: flowrl_lab, which
# holds what the assignments ask for, is not there in whatever way it was installed.
SHELF = ("torch", "numpy", "scipy", "einops", "tqdm", "jaxtyping")

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
        endless: places of definitions that never ended, among those that are run.
        read: whether its definitions were read back.
    """

    calls: dict[str, dict] = field(default_factory=dict)
    verdicts: dict[tuple[str, int], dict] = field(default_factory=dict)
    functions: list[str] = field(default_factory=list)
    literals: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    endless: list[int] = field(default_factory=list)
    read: bool = False


def run_submission(
    code: Sequence[str],
    loaded: Loaded,
    limits: Limits = LIMITS,
    run: Callable[..., SandboxResult] | None = None,
) -> Outcomes:
    """Run all jobs of a submission; a question that ends its process costs only itself.

    Args:
        code: texts of the code cells.
        loaded: the assignment for the student's variant.
        limits: of each process; the time on the clock is for the whole submission.
        run: the sandbox; by default processes with nothing in them but torch.
    """
    asked = [q for q in loaded.questions if isinstance(q, FunctionQuestion | OwnTest)]
    plan = {
        "cells": list(code),
        "literals": [q.name for q in loaded.questions if isinstance(q, Number)],
        "functions": [q.name for q in asked],
        "seconds": SECONDS_A_DEFINITION,
        "skip": [],
    }
    if run is None and any(isinstance(question, OwnTest) for question in asked):
        _ask_loss("", b"null")  # its imports are on nobody's clock
    runs = _Runs(plan, limits, run or _fork_server().run, len(asked) + 1)
    outcomes = Outcomes()
    runs.next_part()
    result = runs.start([])
    _take_found(outcomes, result.files.get("found.json", b""))
    if not outcomes.read:  # its definitions end the process: they would do so again
        outcomes.problems.append(_why(result.outcome, "its definitions"))
        runs.spoilt = result
    plan["skip"] = outcomes.endless
    for question in asked:
        runs.next_part()
        if isinstance(question, FunctionQuestion):
            _run_function(outcomes, question, runs)
        else:
            _run_own_test(outcomes, question, runs)
    return outcomes


@dataclass
class _Runs:
    """The processes of one submission, which share its time.

    A part gets its share of what is left, so none can take the time of another.

    Attributes:
        plan: what all of them are told.
        limits: of each; the time on the clock is of all together.
        run: the sandbox.
        parts: that are still to come.
        spoilt: how all of them would end, if that is known.
    """

    plan: dict[str, Any]
    limits: Limits
    run: Callable[..., SandboxResult]
    parts: int
    spoilt: SandboxResult | None = None

    def __post_init__(self) -> None:
        self._end = time.monotonic() + self.limits.wall_seconds
        self._until = self._end

    def next_part(self) -> None:
        now = time.monotonic()
        self._until = now + (self._end - now) / self.parts
        self.parts -= 1

    def start(self, jobs: list[dict], reply: Reply | None = None) -> SandboxResult:
        """One process, for the time that the part has left."""
        if self.spoilt is not None:
            return self.spoilt
        seconds = self._until - time.monotonic()
        if seconds <= 0:
            return SPENT
        limits = replace(self.limits, wall_seconds=seconds)
        if reply is not None:  # what is said goes there
            limits = replace(limits, output_bytes=LOSS_LIMITS.output_bytes)
        return self.run(
            PROGRAM,
            limits=limits,
            reply=reply,
            files={"plan.json": json.dumps({**self.plan, "jobs": jobs}).encode()},
            collect=("found.json", "outcomes.jsonl"),
        )


def _run_function(outcomes: Outcomes, question: FunctionQuestion, runs: _Runs) -> None:
    """All calls of a function, in one process."""
    jobs = _call_jobs(question)
    outcomes.calls.update(_run_jobs(outcomes, jobs, runs))


def _run_own_test(outcomes: Outcomes, question: OwnTest, runs: _Runs) -> None:
    """A student's test on each implementation, in a process that may ask only that one.

    They come in an order that nobody can foresee and lie in another process, so
    nothing but what it computes tells a right one from a wrong one.
    """
    texts = [*question.right, *(text for _, _, text in question.mutants)]
    told: dict[int, list[dict]] = {place: [] for place in range(len(texts))}
    _take_turns(outcomes, question.name, runs, texts, told, ROUNDS)
    if any(_agreed(rows) == {"problem": CHANGES} for rows in told.values()):
        _take_turns(outcomes, question.name, runs, texts, told, MORE_ROUNDS)
    for place, rows in told.items():
        outcomes.verdicts[question.name, place] = _agreed(rows)


def _take_turns(
    outcomes: Outcomes,
    name: str,
    runs: _Runs,
    texts: Sequence[str],
    told: dict[int, list[dict]],
    rounds: int,
) -> None:
    """Each implementation so often, in any order; what is said is added to ``told``."""
    turns = [*told] * rounds
    random.SystemRandom().shuffle(turns)
    late = False  # one endless loop a question is enough
    for place in turns:
        job = {"id": name, "function": name, "seconds": SECONDS_A_CALL}
        outcome = {"problem": "time"}
        if not late:
            reply = functools.partial(_ask_loss, texts[place])
            outcome = _run_jobs(outcomes, [job], runs, reply)[name]
        late = outcome.get("problem") == "time"
        told[place].append(outcome)


def _run_jobs(
    outcomes: Outcomes, jobs: list[dict], runs: _Runs, reply: Reply | None = None
) -> dict[str, dict[str, Any]]:
    """An outcome for each job, from one process."""
    result = runs.start(jobs, reply)
    found = _take(result.files.get("outcomes.jsonl", b""), jobs)
    if found is None and TAMPERED not in outcomes.problems:
        outcomes.problems.append(TAMPERED)
    ended = {"problem": _kind(result.outcome)}
    return {job["id"]: (found or {}).get(job["id"], ended) for job in jobs}


def _ask_loss(text: str, line: bytes) -> bytes:
    """What an implementation gives for what a test asks it; see ``inside/apart.py``."""
    asked = line.decode("utf-8", "replace")
    try:
        told = str(_losses().ask({"text": text, "asked": asked}))
    except ServerStopped:
        told = json.dumps({"error": ["RuntimeError", "it takes too much for one call"]})
    return told.encode() + b"\n"


def _losses() -> SandboxServer:
    """The process that holds the implementations; each thread that marks has its own.

    So no submission waits for what another one asks.
    """
    if not hasattr(_OF_THREAD, "losses"):
        source = (INSIDE / "apart.py").read_text(encoding="utf-8")
        server = SandboxServer(source, limits=LOSS_LIMITS, readable=_homes())
        _OF_THREAD.losses = server
    return _OF_THREAD.losses


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
def _fork_server() -> ForkServer:
    """Processes with torch and the worker in them, and nothing of flowrl_lab."""
    return ForkServer(
        ("torch", "jaxtyping", "worker"),
        folders=(INSIDE, *_homes()),
        readable=_find_shelf(),
    )


def _homes() -> list[Path]:
    """The folders that torch and what is on the shelf are installed in."""
    homes = [Path(torch.__file__).resolve().parent, *_find_shelf()]
    return list(dict.fromkeys(path.parent for path in homes))


@functools.cache
def _find_shelf() -> tuple[Path, ...]:
    """Where the packages of SHELF lie, and those that they need."""
    waiting, seen, paths = list(SHELF), set(), {Path(torch.__file__).resolve().parent}
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        needs = map(Requirement, package.requires or ())
        waiting += [
            need.name
            for need in needs
            if need.marker is None or need.marker.evaluate({"extra": ""})
        ]
        tops = {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}
        found = {Path(package.locate_file(top)) for top in tops}
        paths |= {path.resolve() for path in found if path.exists()}
    return tuple(sorted(paths))


# -------------------------------------------------------------------- what comes back


def _take(content: bytes, jobs: list[dict]) -> dict[str, dict] | None:
    """Take what is well-formed out of a file that nobody trusts.

    Returns:
        job -> outcome; None if a job has two outcomes, or a line has none, for then
        somebody else has written there.
    """
    known: set[str] = {job["id"] for job in jobs}
    found: dict[str, dict] = {}
    for line in content.splitlines():
        try:
            row = _plain_row(line)
            name = row["id"]
            if name in known and found.setdefault(name, row) != row:
                return None
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
    return found


def _plain_row(line: bytes) -> dict[str, Any]:
    """A row of words beside its result; raises ValueError for anything else."""
    _check_size(line)
    row = dict(json.loads(line))
    words = [value for name, value in row.items() if name != "result"]
    if not all(isinstance(word, str) and len(word) <= MAX_WORD for word in words):
        raise ValueError
    return row


def _check_size(content: bytes) -> None:
    if len(content) > MAX_BACK or content.count(b"[") > MAX_LISTS:
        raise ValueError


def _take_found(outcomes: Outcomes, content: bytes) -> None:
    try:
        _check_size(content)
        found = json.loads(content)
        lists = {n: list(map(str, found[n])) for n in ("functions", "problems")}
        outcomes.literals.update(dict(found["literals"]))
        endless = [int(place) for place in found["endless"]]
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return
    outcomes.endless.extend(endless[:100])
    names = (n for n in lists["functions"][:500] if n.isidentifier() and len(n) < 80)
    outcomes.functions.extend(names)
    told = (p for p in lists["problems"][:20] if CELL_PROBLEM.fullmatch(p))
    outcomes.problems.extend(told)
    outcomes.read = True


# -------------------------------------------------------------------------------- jobs


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


def _agreed(rows: Sequence[dict]) -> dict:
    """One outcome of all rounds: a problem, or a verdict that did not change."""
    for row in rows:
        if "problem" in row:
            return row
    same = all(row.get("verdict") == rows[0].get("verdict") for row in rows)
    return rows[0] if same else {"problem": CHANGES}

"""Mark one submission: its functions in the sandbox, its files by the referee.

The line of trust: a student's code runs only inside the sandbox, with inputs and
without anything that it could be compared with.  Expected values, verdicts and points
are made out here, from plain numbers that came back.
"""

from __future__ import annotations

import builtins
import difflib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from flowrl_lab.assignments.bundles import (
    Bundle,
    Loaded,
    call_with_gradients,
    is_by_hand,
)
from flowrl_lab.assignments.compare import differ, difference
from flowrl_lab.assignments.encoding import decode
from flowrl_lab.assignments.marking.argued import find_argument
from flowrl_lab.assignments.marking.running import (
    CHANGES,
    LIMITS,
    Outcomes,
    run_submission,
    worker_parts,
)
from flowrl_lab.assignments.marking.submissions import Submission, reader_text
from flowrl_lab.assignments.spec import (
    FunctionQuestion,
    Number,
    OwnTest,
    Question,
    Recorded,
    Test,
)
from flowrl_lab.sandbox import Limits, SandboxResult

__all__ = ["LIMITS", "Grade", "Part", "grade_submission", "judge_question"]

_REFEREE = threading.Lock()  # it builds models, which is not made for threads

# The only words of a process that nobody trusts about where something failed: others
# could carry the inputs of a hidden test out.  So could a number, so only a line that
# the submission really has is told, and none at all if it has very many.
PLACE = re.compile(r"line ([0-9]{1,6}) of code cell ([0-9]{1,6})")
CELL_PLACE = re.compile(
    r"(?:.* )?code cell (?P<cell>[0-9]{1,6})(?: is not Python)?"
    r"(?:, line (?P<line>[0-9]{1,6})| never ended| fails \((?P<kind>[A-Za-z]{1,40})\))?"
)
MAX_LINES = 2_000
MAX_LEFT_OUT = 20
MAX_NOTE = 300  # letters of a note, whoever chose them

# What went wrong with a call, for the student.
_WORDS = {
    "missing": "there is no function of this name",
    "not attempted": "not attempted",
    "time": "took too long (an endless loop?)",
    "memory": "used too much memory",
    "stopped": "ended the whole process",
    CHANGES: "does not say the same twice",
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
        left_out: lines that only a notebook understands, which were not run.
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
    left_out: list[str] = field(default_factory=list)
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
    run: Callable[..., SandboxResult] | None = None,
) -> Grade:
    """Mark a submission that was read.

    Args:
        submission: what was read of it.
        bundle: of its assignment.
        variant: that the student was given.
        digest: kept in the grade.
        limits: of the sandbox.
        run: the sandbox, if it is to be another one.
    """
    loaded = bundle.load(variant)
    grade = Grade(
        key=submission.found.key,
        student=submission.found.student,
        path=submission.found.shown,
        assignment=bundle.key,
        variant=variant,
        digest=digest,
        status="graded" if submission.readable else "not graded",
        problems=[(p.what, p.fix) for p in submission.problems],
    )
    outcomes = Outcomes()
    if submission.readable:
        outcomes = run_submission(submission.code, loaded, limits, run)
        _keep_what_is_there(outcomes, submission.code)
        _note_found(grade, outcomes)
    for question in loaded.questions:
        if is_by_hand(question):
            _find_argued(grade, question, bundle, submission)
        else:
            files = submission.files if submission.readable else {}
            grade.parts[question.name] = judge_question(
                question, loaded, outcomes, files
            )
    _note_missing(grade, loaded, submission, outcomes)
    _note_left_out(grade, submission)
    grade.text = "\n".join(submission.code)
    return grade


def _find_argued(
    grade: Grade,
    question: Question,
    bundle: Bundle,
    submission: Submission,
) -> None:
    """An argued answer for the person who marks it; what is unsure is told."""
    found = find_argument(question.name, submission.cells, bundle.handed_out)
    grade.argued[question.name] = found.text
    if found.note:
        fix = "look below whether all of it is there; one cell is handed out for it"
        grade.problems.append((f"the argued answer {found.note}", fix))


def _note_left_out(grade: Grade, submission: Submission) -> None:
    """Name the lines that only a notebook understands."""
    for number, line, text, inside in submission.left_out[:MAX_LEFT_OUT]:
        place = f"line {line} of code cell {number}: {text}"
        grade.left_out.append(place)
        if inside:
            grade.problems.append(
                (f"inside a function, left out: {place}", "write it in Python")
            )


def _keep_what_is_there(outcomes: Outcomes, code: Sequence[str]) -> None:
    """Take nothing from the sandbox that the submission does not hold itself."""
    text = "\n".join(code)
    defined = set(re.findall(r"^[ \t]*(?:async )?def (\w+)", text, re.MULTILINE))
    defined |= set(re.findall(r"\b(\w+)[ \t]{0,9}(?::[^=\n]{0,80})?=", text))
    outcomes.functions[:] = [name for name in outcomes.functions if name in defined]
    for outcome in outcomes.calls.values():
        if "place" in outcome and not _is_there(str(outcome["place"]), code):
            outcome["place"] = ""
    outcomes.problems[:] = [p for p in outcomes.problems if _may_be_told(p, code)]


def _is_there(place: str, code: Sequence[str]) -> bool:
    """Whether a submission has this line, and few enough for it to tell nothing."""
    found = PLACE.fullmatch(place)
    if found is None or sum(text.count("\n") + 1 for text in code) > MAX_LINES:
        return False
    line, cell = int(found[1]), int(found[2])
    rows = code[cell - 1].split("\n") if 0 < cell <= len(code) else []
    bare = rows[line - 1].strip() if 0 < line <= len(rows) else ""
    return bool(bare) and not bare.startswith("#")


def _may_be_told(problem: str, code: Sequence[str]) -> bool:
    """Whether the sandbox names a cell, a line and an error that there are."""
    found = CELL_PLACE.fullmatch(problem)
    if found is None:  # our own words
        return True
    if not 0 < int(found["cell"]) <= len(code):
        return False
    lines = code[int(found["cell"]) - 1].count("\n") + 1
    kind = found["kind"]
    return int(found["line"] or 1) <= lines and (kind is None or _is_error(kind))


def _is_error(name: str) -> bool:
    """Whether a name is that of one of Python's own errors."""
    kind = getattr(builtins, name, None)
    return isinstance(kind, type) and issubclass(kind, BaseException)


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
    return difference(got, expected, question.tolerance, told=False)


def describe_problem(outcome: Mapping[str, Any]) -> str:
    """Why a call gave nothing, without a word that the submission chose."""
    problem = str(outcome["problem"])[:60]
    if problem in _WORDS:
        return _WORDS[problem]
    name = problem if _is_error(problem) else "an error"
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
        outcomes.verdicts.get((question.name, place), {"problem": "stopped"})
        for place in range(len(question.right) + len(question.mutants))
    ]
    spoilt = ""
    for row in rows[: len(question.right)]:
        if row.get("verdict") != "accepted":
            problem = str(row.get("problem"))
            told = problem != CHANGES and problem in _WORDS
            spoilt = _WORDS[problem] if told else "rejects a right loss"
            break
    parts = []
    wrong = rows[len(question.right) :]
    for (title, points, _), row in zip(question.mutants, wrong, strict=True):
        note = spoilt
        if not note and row.get("verdict") != "rejected":
            changes = row.get("problem") == CHANGES
            note = f"your test {_WORDS[CHANGES] if changes else 'does not find it'}"
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
        note = str(error)[:MAX_NOTE]
        return [Part(title, points, 0.0, note) for title, points in question.parts]
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
        submission.found.doubt,
        bundle.to_json() if bundle else "",
        str(variant),
        *worker_parts().values(),
        reader_text(),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()

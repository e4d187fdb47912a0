"""Build an assignment: student notebook, solved notebook, handout, bundle.

Everything is made from one source, and the same source gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowrl_lab._files import write_atomically
from flowrl_lab._validation import bad_input
from flowrl_lab.assignments.bundles import (
    KINDS,
    SUFFIX,
    Bundle,
    Loaded,
    call_with_gradients,
    is_by_hand,
)
from flowrl_lab.assignments.encoding import encode, rounded
from flowrl_lab.assignments.source import (
    Cell,
    Source,
    read_source,
    strip_solution,
    without_markers,
)
from flowrl_lab.assignments.spec import (
    Call,
    FunctionQuestion,
    Number,
    OwnTest,
    Question,
    Recorded,
)

__all__ = [
    "Built",
    "build_assignment",
    "find_sources",
    "make_bundle",
    "variant_of",
    "write_built",
]

HANDOUT_FORMAT = 1
ANSWER_STUB = "*Your answer here.*"
NUMBER_STUB = r"None  # your .*"  # "your number here", "your set of names here"
KERNEL = {
    "kernelspec": {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python"},
}


@dataclass(frozen=True)
class Built:
    """Everything of one assignment for one variant, as texts."""

    key: str
    student: str
    handout: str
    solved: str
    bundle: str


def find_sources(folder: Path) -> list[Path]:
    """The sources in a folder, in order.

    Raises:
        ValueError: there are none.
    """
    found = sorted(Path(folder).glob("[0-9]*_*.py"))
    if not found:
        raise bad_input(
            "folder",
            f"{folder} holds no assignment",
            "sources such as 1_partition_functions.py",
            "name the folder with --sources",
        )
    return found


def make_bundle(source: Source, secret: str = "") -> Bundle:
    """The grading bundle of a source."""
    return Bundle(
        key=source.key,
        title=source.title,
        digest=source.digest,
        secret=secret,
        solutions=tuple(source.solutions),
        hidden=tuple(source.hidden_blocks),
        handed_out=tuple(
            (
                cell.kind,
                _text_of(cell, solved=False),
                cell.marks.get("argued", ""),
                cell.marks.get("question", ""),
            )
            for cell in source.cells
            if not cell.hidden
        ),
    )


def variant_of(student: str, seed: int) -> int:
    """The variant of a student: a number that only the name and the seed decide."""
    digest = hashlib.sha256(f"{seed}/{student}".encode()).digest()
    return int.from_bytes(digest[:3], "big")


def build_assignment(
    path: Path, *, variant: int = 0, student: str = "", secret: str = ""
) -> Built:
    """Build one source for one variant.

    Args:
        path: of the source.
        variant: what landscapes and digits come from; 0 is the common one.
        student: whose it is, "" for everybody.
        secret: of the instructor, for the numbers of hidden tests.

    Raises:
        ValueError: a source that cannot be built; the message says where.
    """
    source = read_source(path)
    bundle = make_bundle(source, secret)
    loaded = bundle.load(variant)
    _check_questions(source, loaded)
    facts = {"assignment": source.key, "variant": variant, "student": student}
    return Built(
        key=source.key,
        student=_notebook(source, loaded, facts, solved=False),
        handout=_dump(_handout(source, loaded, facts)),
        solved=_notebook(source, loaded, facts, solved=True),
        bundle=bundle.to_json() + "\n",
    )


def write_built(built: Built, student_folder: Path, instructor_folder: Path) -> None:
    """Write what was built; files that are the same already are left alone."""
    files = {
        student_folder / f"{built.key}.ipynb": built.student,
        student_folder / f"{built.key}.json": built.handout,
        instructor_folder / f"{built.key}_solved.ipynb": built.solved,
        instructor_folder / f"{built.key}.json": built.handout,
        instructor_folder / f"{built.key}{SUFFIX}": built.bundle,
    }
    for path, text in files.items():
        if not path.is_file() or path.read_bytes() != text.encode():
            write_atomically(path, text.encode())


def _check_questions(source: Source, loaded: Loaded) -> None:
    """Every question has its cell, and every marked cell its question."""
    asked = {question.name for question in loaded.questions}
    marked = {
        name
        for cell in source.cells
        for key, value in cell.marks.items()
        if key in ("question", "argued")
        for name in value.split()
    }
    files = {q.name for q in loaded.questions if isinstance(q, Recorded)}
    if asked - files != marked - files:
        odd = sorted((asked - files) ^ (marked - files))
        raise bad_input(
            "source",
            f"{source.key} has {odd} as a marked cell or as a question, not both",
            'a cell marked question="…" or argued="…" for each question',
            "add the missing one",
        )


# -------------------------------------------------------------------------- notebooks


def _notebook(source: Source, loaded: Loaded, facts: dict, *, solved: bool) -> str:
    questions = {question.name: question for question in loaded.questions}
    cells, seen = [], {}
    for cell in source.cells:
        if cell.hidden:
            continue
        text = _fill_in(_text_of(cell, solved), facts)
        if solved:
            text = _fill_numbers(text, questions)
        content = f"{cell.kind}\n{text}"
        seen[content] = seen.get(content, 0) + 1
        name = hashlib.sha256(f"{content}\n{seen[content]}".encode()).hexdigest()[:8]
        made: dict[str, Any] = {
            "cell_type": cell.kind,
            "id": name,
            "metadata": _metadata(cell, questions),
            "source": text.splitlines(keepends=True),
        }
        if cell.kind == "code":
            made |= {"execution_count": None, "outputs": []}
        cells.append(made)
    notebook = {
        "cells": cells,
        "metadata": {"flowrl": facts, **KERNEL},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return _dump(notebook)


def _text_of(cell: Cell, solved: bool) -> str:
    if solved:
        return without_markers(cell.text)
    if cell.kind == "markdown":
        return strip_solution(cell.text, ANSWER_STUB)
    return strip_solution(cell.text)


def _fill_in(text: str, facts: dict) -> str:
    whose = f" of {facts['student']}" if facts["student"] else ""
    text = text.replace("{{variant}}", f"{facts['variant']}{whose}")
    return text


def _fill_numbers(text: str, questions: dict[str, Question]) -> str:
    """The solved notebook's numbers are those of its variant."""
    for question in questions.values():
        if isinstance(question, Number):
            value = question.value
            if isinstance(value, set):  # in one order, whatever the hash seed
                shown = "{" + ", ".join(map(repr, sorted(value))) + "}"
            else:
                shown = f"{value:.5g}" if isinstance(value, float) else repr(value)
            stub = rf"\b{re.escape(question.name)} = {NUMBER_STUB}"
            text = re.sub(stub, lambda _, s=f"{question.name} = {shown}": s, text)
    return text


def _metadata(cell: Cell, questions: dict[str, Question]) -> dict[str, Any]:
    """Marks that find a question again, in our words and in nbgrader's."""
    nbgrader = {"schema_version": 3, "task": False}
    marks = cell.marks
    if "question" in marks:
        name = marks["question"].split()[0]
        nbgrader |= {"grade": False, "solution": True, "locked": False}
        return {
            "flowrl": {"question": marks["question"]},
            "nbgrader": nbgrader | {"grade_id": name},
        }
    if "argued" in marks:
        name = marks["argued"]
        nbgrader |= {"grade": True, "solution": True, "locked": False}
        nbgrader |= {"grade_id": name, "points": questions[name].points}
        return {"flowrl": {"argued": name}, "nbgrader": nbgrader}
    if "check" in marks:
        name = marks["check"]
        nbgrader |= {"grade": True, "solution": False, "locked": True}
        nbgrader |= {"grade_id": f"{name}_check", "points": questions[name].points}
        return {"flowrl": {"check": name}, "nbgrader": nbgrader}
    return {}


# --------------------------------------------------------------------------- handouts


def _handout(source: Source, loaded: Loaded, facts: dict) -> dict[str, Any]:
    """What the student's notebook reads: the problem, and what its checks compare."""
    checks = {}
    for question in loaded.questions:
        if isinstance(question, FunctionQuestion):
            checks[question.name] = _function_check(question, loaded)
        elif isinstance(question, OwnTest):
            checks[question.name] = {"harmless": question.harmless}
        elif isinstance(question, Recorded):
            checks[question.name] = {"files": list(question.files)}
    return {
        "format": HANDOUT_FORMAT,
        **facts,
        "title": source.title,
        "problem": encode(rounded(loaded.problem))["dict"],
        "questions": [
            {
                "name": question.name,
                "title": question.title,
                "points": question.points,
                "kind": KINDS[type(question)],
                "by_hand": is_by_hand(question),
            }
            for question in loaded.questions
        ],
        "checks": checks,
    }


def _function_check(question: FunctionQuestion, loaded: Loaded) -> dict[str, Any]:
    solution = loaded.solutions[question.name]
    # The last digits of a logarithm depend on the processor.
    calls = [Call(tuple(rounded(c.args)), rounded(c.kwargs)) for c in question.visible]

    def results(function) -> list[Any]:
        return [
            encode(rounded(call_with_gradients(function, call, question.gradients)))
            for call in calls
        ]

    return {
        "calls": [
            {"args": encode(list(call.args)), "kwargs": encode(call.kwargs)["dict"]}
            for call in calls
        ],
        "gradients": list(question.gradients),
        "expected": results(solution),
        "slips": [
            {"name": slip.name, "message": slip.message, "outputs": results(slip.wrong)}
            for slip in question.slips
        ],
        "tolerance": list(question.tolerance),
    }


def _dump(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def build_all(
    sources: Iterable[Path], *, variant: int = 0, student: str = "", secret: str = ""
) -> list[Built]:
    """Build several sources for one variant."""
    return [
        build_assignment(path, variant=variant, student=student, secret=secret)
        for path in sources
    ]

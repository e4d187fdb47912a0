"""Grading: every known score, whatever is handed in; nothing stops it.

The submissions are those of ``synthetic_submissions.py``: here a sample of each sort,
and all two hundred with FLOWRL_BUDGET=full.
"""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import pytest
import synthetic_submissions as synthetic
from synthetic_submissions import INSTRUCTOR, ONE, TWO, Expected, write_submissions

from flowrl_lab.assignments.cohort import near_identical, render_cohort
from flowrl_lab.assignments.gradebook import write_gradebook
from flowrl_lab.assignments.grading import Grade, describe_problem
from flowrl_lab.assignments.inside import definitions
from flowrl_lab.assignments.marking import mark_all, plan_marking, read_bundles
from flowrl_lab.sandbox import sandbox_problem

needs_sandbox = pytest.mark.skipif(
    sandbox_problem() is not None, reason=str(sandbox_problem())
)
# Cheap ones, which never reach the sandbox, and a few of each sort that do.
UNREADABLE = {
    "empty file", "blank", "no cells", "corrupt", "bytes", "a list", "deep JSON",
    "damaged zip", "no notebook", "a text", "another course", "folders",
}  # fmt: skip
RUN = {"forges outcomes", "redefined check", "not UTF-8"}


def contents(folder: Path) -> dict[str, str]:
    """Every file's sha256."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def mark(folder: Path, out: Path, jobs: int = 2) -> list[tuple[str, Grade]]:
    """Mark a folder as the command does: (first part of the path, grade)."""
    bundles = read_bundles(INSTRUCTOR)
    plan = plan_marking(folder, out, bundles)
    grades = mark_all(plan, jobs=jobs)
    write_gradebook(out, grades, bundles)
    (out / "cohort.html").write_text(render_cohort(grades, bundles))
    firsts = [found.path.relative_to(folder).parts[0] for found in plan.found]
    return list(zip(firsts, grades, strict=True))


def check_all(expected: list[Expected], marked: list[tuple[str, Grade]]) -> None:
    """Every known score is met exactly, and what is wrong is named."""
    grades = dict(marked)
    wrong = []
    for row in expected:
        grade = grades[row.path]
        told = "; ".join(f"{what}: {fix}" for what, fix in grade.problems)
        named = row.problem is None or (
            row.problem in told if row.problem else not told
        )
        if (grade.points, grade.status, named) != (row.points, row.status, True):
            notes = [p.note for parts in grade.parts.values() for p in parts if p.note]
            wrong.append((row, grade.points, grade.status, told, notes))
    assert not wrong, "\n".join(map(str, wrong))


@needs_sandbox
@pytest.mark.slow
def test_a_sample_meets_every_known_score(tmp_path):
    """And the submissions stay as they are; a second run keeps all marks."""
    folder, out = tmp_path / "submissions", tmp_path / "grades"
    expected = write_submissions(folder, total=0, kinds=UNREADABLE | RUN)
    before = contents(folder)
    check_all(expected, mark(folder, out))
    assert contents(folder) == before
    first = contents(out)
    mark(folder, out)
    assert contents(out) == first
    pages = "\n".join(p.read_text() for p in (out / "feedback").iterdir())
    for path in INSTRUCTOR.glob("*.bundle.json"):
        hidden = json.loads(path.read_text())["hidden"]
        for line in "\n".join(hidden).splitlines():
            if len(line.strip()) >= 30 and "Test(" not in line and '", ' not in line:
                assert line.strip() not in pages
    with open(out / "gradebook.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(expected)


@pytest.mark.full
@needs_sandbox
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_two_hundred_submissions_meet_every_known_score(tmp_path):
    folder, out = tmp_path / "submissions", tmp_path / "grades"
    expected = write_submissions(folder, total=200)
    assert len(expected) == 200
    before = contents(folder)
    check_all(expected, mark(folder, out))
    assert contents(folder) == before


# ------------------------------------------------------------------- without a sandbox


def test_the_last_solved_definition_counts_wherever_it_stands():
    cells = [
        "import math\nSCALE = 2.0\nx = train(10)\nprint('no')",
        "%matplotlib inline\n!ls\ndef f(a):\n    return a",
        "def f(a):\n    return SCALE * a",
        "def f(a):\n    '''Doc.'''\n    raise NotImplementedError  # your code here",
        "def (:",
    ]
    statements, problems = definitions.parse_cells(cells)
    assert problems == ["code cell 5 is not Python, line 1"]
    kept = definitions.pick_definitions(statements)
    names, more = definitions.define(kept, 5.0)
    assert more == []
    assert names["f"](3.0) == 6.0
    assert "x" not in names


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ({"problem": "TypeError", "place": "line 3 of code cell 7"}, "line 3 of code"),
        ({"problem": "tensor([0.3, 0.4])", "place": "0.3 0.4"}, "stops with an error"),
        ({"problem": "E3141", "place": ""}, "stops with an error"),
        ({"problem": "time"}, "endless loop"),
    ],
)
def test_a_submission_cannot_speak_through_its_errors(outcome, words):
    told = describe_problem(outcome)
    assert words in told
    assert "0.4" not in told and "3141" not in told


def grade_of(student: str, text: str) -> Grade:
    facts = dict(variant=0, digest="", status="graded")
    return Grade(student, student, f"{student}.ipynb", ONE, text=text, **facts)


def test_near_identical_submissions_are_found_and_templates_are_not():
    template = tuple(f"given_{n} = {n} + {n}" for n in range(40))
    own = "\n".join(f"mine_{n} = f(a{n}, b{n}) + {n}" for n in range(30))
    other = "\n".join(f"yours[{n}].g({n}) - c{n}" for n in range(30))
    given = "\n".join(template)
    grades = [
        grade_of("ada", f"{given}\n{own}"),
        grade_of("bob", f"{own}  # mine\n{given}"),
        grade_of("cleo", f"{given}\n{other}"),
        grade_of("dan", given),
        grade_of("eve", given),
    ]
    pairs = near_identical(grades, template)
    assert [(a.student, b.student) for _, a, b in pairs] == [("ada", "bob")]


def test_a_name_is_no_formula_in_a_spreadsheet(tmp_path):
    grade = grade_of("=cmd()", "")
    write_gradebook(tmp_path, [grade], read_bundles(INSTRUCTOR))
    assert "'=cmd()" in (tmp_path / "gradebook.csv").read_text()


def test_marking_refuses_what_would_lose_something(tmp_path):
    bundles = read_bundles(INSTRUCTOR)
    folder = tmp_path / "submissions"
    with pytest.raises(ValueError, match="is no folder"):
        plan_marking(folder, tmp_path / "out", bundles)
    folder.mkdir()
    with pytest.raises(ValueError, match="is empty"):
        plan_marking(folder, tmp_path / "out", bundles)
    (folder / "a.ipynb").write_text("{}")
    with pytest.raises(ValueError, match="inside the submissions"):
        plan_marking(folder, folder / "out", bundles)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match="already holds something else"):
        plan_marking(folder, tmp_path / "mine", bundles)
    with pytest.raises(ValueError, match="is '4_none'"):
        plan_marking(folder, tmp_path / "out", bundles, assignment="4_none")
    with pytest.raises(ValueError, match="holds none"):
        read_bundles(tmp_path)


def test_the_two_hundred_are_of_every_sort():
    kinds = {*synthetic.ATTACKS, *synthetic.AT_THE_TOP, *synthetic.BROKEN_CELLS}
    assert len(kinds) >= 25
    assert {"no reference", "renamed"} <= {
        row[0] for key in (ONE, TWO) for row in synthetic.WRONG[key]
    }

"""Grading: every known score, whatever is handed in; nothing stops it.

The submissions are those of ``synthetic_submissions.py``: here a sample of each sort,
and all two hundred with FLOWRL_BUDGET=full.
"""

from __future__ import annotations

import csv
import hashlib
import html
import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import hostile_cells as hostile
import pytest
import synthetic_submissions as synthetic
import torch
from safetensors.torch import save
from synthetic_submissions import ASSIGNMENTS, Expected, instructor, write_submissions
from wrong_answers import ONE, TWO, WRONG

from flowrl_lab.__main__ import main
from flowrl_lab.assignments.marking.cohort import near_identical, render_cohort
from flowrl_lab.assignments.marking.folder import (
    mark_all,
    plan_marking,
    read_bundles,
    read_variants,
)
from flowrl_lab.assignments.marking.gradebook import (
    render_feedback,
    write_gradebook,
)
from flowrl_lab.assignments.marking.grading import (
    Grade,
    Part,
    describe_problem,
    grade_submission,
)
from flowrl_lab.assignments.marking.inside import definitions
from flowrl_lab.assignments.marking.submissions import (
    Found,
    Submission,
    find_submissions,
    read_submission,
)
from flowrl_lab.sandbox import SandboxResult, sandbox_problem

ROOT = Path(__file__).resolve().parents[2]

needs_sandbox = pytest.mark.skipif(
    sandbox_problem() is not None, reason=str(sandbox_problem())
)
# Cheap ones, which never reach the sandbox, and a few of each sort that do.
UNREADABLE = {
    "empty file",
    "blank",
    "no cells",
    "corrupt",
    "bytes",
    "a list",
    "deep JSON",
    "damaged zip",
    "no notebook",
    "a text",
    "another course",
    "folders",
}
RUN = {"forges outcomes", "not UTF-8"}


def contents(folder: Path) -> dict[str, str]:
    """Every file's sha256."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def mark(folder: Path, out: Path, jobs: int = 2) -> list[tuple[str, Grade]]:
    """Mark a folder as the command does: (first part of the path, grade)."""
    bundles = read_bundles(instructor())
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
def test_a_sample_meets_every_known_score(tmp_path, monkeypatch):
    """And the submissions stay as they are; a second run keeps all marks."""
    monkeypatch.setattr(synthetic, "adapters", None)  # the full budget trains them
    folder, out = tmp_path / "submissions", tmp_path / "grades"
    expected = write_submissions(folder, total=0, kinds=UNREADABLE | RUN)
    before = contents(folder)
    check_all(expected, mark(folder, out))
    assert contents(folder) == before
    first = contents(out)
    mark(folder, out)
    assert contents(out) == first
    pages = "\n".join(p.read_text() for p in (out / "feedback").iterdir())
    for path in instructor().glob("*.bundle.json"):
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


@pytest.mark.full
@needs_sandbox
@pytest.mark.slow
def test_killed_half_way_and_resumed_the_marks_are_the_same(tmp_path):
    """By kill -9: every file of the grades is the same, byte for byte."""
    folder = tmp_path / "submissions"
    kinds = {"blank", "redefined check", "printed grade"}
    expected = write_submissions(folder, total=0, kinds=kinds)
    program = [sys.executable, "-m", "flowrl_lab", "assign", "grade", str(folder)]
    program += ["--bundles", str(instructor()), "--jobs", "1", "--out"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    first = subprocess.Popen([*program, str(killed)], env=environment)
    marks = killed / "marks"
    while len(list(marks.glob("*.json"))) < 2:  # of three
        assert first.poll() is None, "ended before it could be killed"
        time.sleep(0.02)
    first.kill()
    assert first.wait() == -9
    assert not (killed / "gradebook.csv").exists()
    kept = {path: path.stat().st_mtime_ns for path in marks.glob("*.json")}
    for out in (killed, whole):
        mark(folder, out, jobs=1)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    texts = [
        {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
        for out in (killed, whole)
    ]
    assert texts[0] == texts[1]
    rows = csv.DictReader(texts[0][Path("gradebook.csv")].decode().splitlines())
    points = {row["submission"]: float(row["points"]) for row in rows}
    assert points == {row.path: row.points for row in expected}


# ---------------------------------------------------------------------------- variants


@needs_sandbox
@pytest.mark.slow
def test_each_student_has_other_numbers_and_is_marked_for_them(tmp_path, capsys):
    """Who hands in a friend's work gets no point for the friend's numbers."""
    sources, out = tmp_path / "sources", tmp_path / "handouts"
    sources.mkdir()
    shutil.copy(ASSIGNMENTS / f"{ONE}.py", sources)
    (tmp_path / "names.txt").write_text("Ada L.\nBob\n", encoding="utf-8")
    command = ["assign", "build", "--sources", str(sources), "--out", str(out)]
    command += ["--students", str(tmp_path / "names.txt"), "--seed", "7"]
    assert main([*command, "--secret", "lake"]) == 0
    ada, bob = (out / "student" / name / f"{ONE}.json" for name in ("Ada_L", "Bob"))
    problems = [
        json.loads(p.read_text(encoding="utf-8"))["problem"] for p in (ada, bob)
    ]
    assert problems[0]["rewards"] != problems[1]["rewards"]
    solved = json.loads(
        (out / f"instructor/solved/Ada_L/{ONE}_solved.ipynb").read_text()
    )
    files = {"landscape_policy.safetensors": synthetic.landscape_policy(0.0, 0.0, ada)}
    content = synthetic.handed_in(ONE, solved, files)
    folder = tmp_path / "submissions"
    folder.mkdir()
    for name, handed_in in {"Ada L.": content, "Bob": content, "Zoe": b""}.items():
        (folder / f"{name}-{ONE}.zip").write_bytes(handed_in)
    bundles = read_bundles(out / "instructor")
    variants = read_variants(out / "instructor" / "variants.csv")
    plan = plan_marking(folder, tmp_path / "grades", bundles, variants=variants)
    own, copied, unknown = mark_all(plan, jobs=2)
    assert (own.student, own.points, own.problems) == ("Ada L.", 44, [])
    lost = ("LOG_Z", "REFERENCE_GAP", "SCALE_FOR_80", "landscape_policy")
    assert {name for name in copied.parts if not copied.earned(name)} == set(lost)
    assert copied.points == 44 - 2 - 2 - 3 - 9
    assert "this student's is" in copied.problems[0][0]
    told = [what for what, _ in unknown.problems]
    assert "the name is not on the list of variants" in told
    capsys.readouterr()


# ------------------------------------------------------------------- without a sandbox


def any_value(chance: random.Random, depth: int = 0):
    """Whatever a hostile process could write instead of a result."""
    if depth > 4 or chance.random() < 0.4:
        odd = [None, 1, 2**70, 10**400, float("nan"), "nan", "x", [], {}, "9" * 5000]
        return chance.choice([*odd, "\ud800", True, -math.inf])
    if chance.random() < 0.3:
        return [any_value(chance, depth + 1) for _ in range(chance.randrange(4))]
    if chance.random() < 0.5:
        shape = chance.choice([[], [1], [-1], [2**62], "x", None, [2, 2]])
        kind = chance.choice(["float64", "int64", "bool", "float8", 3])
        numbers = [any_value(chance, depth + 2) for _ in range(chance.randrange(4))]
        return {"tensor": kind, "shape": shape, "numbers": numbers}
    keys = ("result", "verdict", "problem", "place", "dict", "number", "id")
    return {key: any_value(chance, depth + 1) for key in chance.sample(keys, 3)}


def test_whatever_comes_out_of_the_sandbox_is_judged(tmp_path):
    """And gives no point, stops nothing, and can be written and read again."""
    chance = random.Random(0)

    def forge(_source, *, files, **_more):
        plan = json.loads(files["plan.json"])
        parts = ("functions", "problems", "literals", "endless")
        found = {part: any_value(chance) for part in parts}
        if chance.random() < 0.7:
            found = {"functions": ["elbo"], "problems": [], "endless": [10**30]}
            found["literals"] = {name: any_value(chance) for name in plan["literals"]}
        told = ("result", "verdict", "problem")
        rows = [
            {"id": job["id"], chance.choice(told): any_value(chance)}
            for job in plan["jobs"]
        ]
        rows += [any_value(chance)] if chance.random() < 0.2 else []
        texts = {"found.json": json.dumps(found)}
        texts["outcomes.jsonl"] = "\n".join(map(json.dumps, rows))
        written = {name: text.encode() for name, text in texts.items()}
        return SandboxResult("ok", 0, "", "", 0.0, 0.0, written)

    bundles = read_bundles(instructor())
    for key in (ONE, TWO) * 10:
        path = tmp_path / f"{key}.ipynb"
        path.write_bytes(synthetic.to_bytes(synthetic.solved(key)))
        submission = read_submission(Found("a", "a", path))
        grade = grade_submission(submission, bundles[key], 0, "", run=forge)
        assert grade.points == 0
        assert Grade.from_json(grade.to_json()).points == 0
        write_gradebook(tmp_path / "out", [grade], bundles)


def test_a_damaged_submission_is_named_whatever_is_damaged(tmp_path):
    """Bytes changed and cut off at random, in every packing that Python reads."""
    chance = random.Random(0)
    notebook = synthetic.to_bytes(synthetic.solved(ONE))
    packed = {"a.ipynb": notebook}
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
            archive.writestr("a.ipynb", notebook)
        packed[f"{method}.zip"] = (tmp_path / "a.zip").read_bytes()
    for name, content in [*packed.items()] * 4:
        damaged = bytearray(content)
        for _ in range(chance.choice([1, 20])):
            damaged[-1 - chance.randrange(chance.choice([200, len(damaged)]))] = 7
        path = tmp_path / name
        path.write_bytes(damaged[: chance.choice([len(damaged), 3000])])
        submission = read_submission(Found("a", "a", path))
        assert submission.readable or all(p.fix for p in submission.problems)


def test_names_that_no_file_could_have_get_one(tmp_path):
    names = ("a" * 240, "Ada", "ada", "???", "=x()")
    for name in names:
        (tmp_path / f"{name}.ipynb").write_text("{}")
    (tmp_path / "pipe.ipynb").unlink(missing_ok=True)
    os.mkfifo(tmp_path / "pipe.ipynb")
    found = find_submissions(tmp_path)
    keys = {one.key.lower() for one in found}
    assert len(keys) == len(names) + 1
    assert all(0 < len(f"{key}.html".encode()) < 200 for key in keys)
    (pipe,) = (one for one in found if one.path.name == "pipe.ipynb")
    assert read_submission(pipe).problems[0].what == "not a plain file"


def test_a_copied_blank_does_not_undo_a_number():
    cells = ["LOG_Z = 7.1\nGAP = None", "LOG_Z = None  # your number here", "x = None"]
    statements, _ = definitions.parse_cells(cells)
    names, _, _ = definitions.define(
        definitions.pick_definitions(statements, ("LOG_Z", "GAP")), 5.0
    )
    assert (names["LOG_Z"], names["GAP"], names["x"]) == (7.1, None, None)


def test_the_last_solved_definition_counts_wherever_it_stands():
    cells = [
        "import math\nSCALE = 2.0\nx = train(10)\nprint('no')",
        "def f(a):\n    return a",
        "def f(a):\n    return SCALE * a",
        "def f(a):\n    '''Doc.'''\n    raise NotImplementedError  # your code here",
        "def (:",
    ]
    statements, problems = definitions.parse_cells(cells)
    assert problems == ["code cell 5 is not Python, line 1"]
    kept = definitions.pick_definitions(statements)
    names, more, _ = definitions.define(kept, 5.0)
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


def speaks(place: str, problem: str, function: str, shape: list[int]):
    """A sandbox that was taken over: it says these things, and knows the inputs."""

    def run(_source, *, files, **_more):
        jobs = json.loads(files["plan.json"])["jobs"]
        numbers = [0.0] * math.prod(shape)
        result = [{"tensor": "float64", "shape": shape, "numbers": numbers}]
        failed = {"problem": "ValueError", "place": place}
        found = {"functions": [function], "problems": [problem], "literals": {}}
        found["endless"] = []
        rows = [
            {"id": job["id"], **(failed if number % 2 else {"result": result})}
            for number, job in enumerate(jobs)
        ]
        texts = {"found.json": json.dumps(found)}
        texts["outcomes.jsonl"] = "\n".join(map(json.dumps, rows))
        written = {name: text.encode() for name, text in texts.items()}
        return SandboxResult("ok", 0, "", "", 0.0, 0.0, written)

    return run


@pytest.mark.parametrize(
    ("place", "problem", "function", "shape"),
    [
        ("line 70930 of code cell 1", "code cell 70930 is not Python", "x70930", [0]),
        (
            "line 2 of code cell 70930",
            "code cell 1 is not Python, line 70930",
            "x",
            [1],
        ),
        (
            "line 3 of code cell 1",
            "a definition in code cell 1 fails (sevenOninethree)",
            "elbo_70930",
            [0, 70930],
        ),
        (
            "line 0 of code cell 0",
            "a definition in code cell 70930 never ended",
            "elbo7",
            [0, 70930, 2, 2],
        ),
        (
            "line 4 of code cell 1",
            "code cell 0 is not Python",
            "e70930lbo",
            [0, 7, 70930],
        ),
    ],
)
def test_a_submission_tells_nothing_that_it_does_not_hold(
    place, problem, function, shape
):
    """Not by a line or a cell that it has not got, nor by lengths that it chose."""
    submission = Submission(Found("eve", "eve", Path("eve.ipynb")))
    submission.code = ["def elbo(*given):\n    return 0\n\n# nothing here"]
    bundle = read_bundles(instructor())[ONE]
    run = speaks(place, problem, function, shape)
    grade = grade_submission(submission, bundle, 0, "", run=run)
    notes = [part.note for parts in grade.parts.values() for part in parts]
    told = json.dumps([notes, grade.problems])
    for word in ("7093", "of code cell", "sevenOnine", "elbo7", "lbo)"):
        assert word not in told
    assert grade.points == 0


def test_a_line_that_is_there_is_told_unless_there_are_very_many():
    submission = Submission(Found("ada", "ada", Path("ada.ipynb")))
    submission.code = ["x = 1", "def elbo(*given):\n    return 1 / 0"]
    bundle = read_bundles(instructor())[ONE]
    run = speaks("line 2 of code cell 2", "", "elbo", [1])
    notes = []
    for _ in range(2):
        grade = grade_submission(submission, bundle, 0, "", run=run)
        notes.append(json.dumps([p.note for ps in grade.parts.values() for p in ps]))
        submission.code.append("pass\n" * 5_000)
    assert "in line 2 of code cell 2" in notes[0]
    assert "of code cell" not in notes[1] and "ValueError" in notes[1]


def test_what_a_student_called_things_is_quoted_in_short():
    """15 megabytes of a tensor's name are not written into notes and pages."""
    submission = Submission(Found("ada", "ada", Path("ada.ipynb")))
    submission.code = ["x = 1"]
    name, endless = "landscape_policy.safetensors", "n" * 1_000_000
    submission.files = {name: save({endless: torch.zeros(1)})}
    bundle = read_bundles(instructor())[ONE]
    run = speaks("", "", "", [1])
    grade = grade_submission(submission, bundle, 0, "", run=run)
    assert grade.parts["landscape_policy"][0].note
    assert len(grade.to_json()) < 20_000
    submission.note("x" * 10**6, "y" * 10**6)
    assert len(submission.problems[-1].what) == 300


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


@pytest.mark.parametrize(
    "name",
    [
        *("=1+1", "+1", "-1", "@x", "%x", "|x", "\t=1", "\r=1", " =1", '"=1+1', "'=1"),
        *("x;=1+1", "x; =1+1", 'x;"=1+1', "x\t=1", "x|=1", "x,=1", "x;+1", "x;@A1"),
        *(
            "＝1+1",
            "＋1",
            "－1",
            "＠x",
            "x;＝1",
            "\ufeff=1",
            "\u200b=1",
            "−1",
            "﹦1",
            "x\r\n=1",
        ),
        *("=cmd|' /C calc'!A0", "x;-2+3", "„=1", "x;«＝1»"),
    ],
)
def test_no_cell_of_the_gradebook_is_a_formula(tmp_path, name):
    """Whichever sign separates the cells, for whichever spreadsheet."""
    write_gradebook(tmp_path, [grade_of(name, "")], read_bundles(instructor()))
    text = (tmp_path / "gradebook.csv").read_text(encoding="utf-8")
    for separator in ",;\t|":
        for row in csv.reader(text.splitlines(), delimiter=separator):
            for cell in row:
                start = cell.lstrip(' \t\r\n"\ufeff\u200b„«')
                assert not start.startswith((*"=+-@%|＝＋－＠﹦−",)), (separator, row)


@pytest.mark.parametrize(
    "text",
    ["</pre><script>x</script>", "<img src=x onerror=x>", '"><b>', "&lt;b&gt;<b>"],
)
def test_no_page_holds_what_a_student_wrote_as_html(text):
    """Names, answers, lines, code: each stands on the pages as it was written."""
    bundles = read_bundles(instructor())
    code = "\n".join(f"f{n} = {text!r}" for n in range(60))
    grades = [grade_of(f"{name}{text}", code) for name in ("ada", "bob")]
    for grade in grades:
        grade.problems = [(text, text)]
        grade.left_out = [f"line 1 of code cell 1: !{text}"]
        grade.argued = {"argument": text}
        grade.parts = {"elbo": [Part(text, 5, 0, text)]}
    loaded = bundles[ONE].load(0)
    pages = [render_feedback(grade, bundles[ONE], loaded) for grade in grades]
    for page in [*pages, render_cohort(grades, bundles)]:
        assert text not in page
        assert html.escape(text) in page or html.escape(text, quote=False) in page


def test_marking_refuses_what_would_lose_something(tmp_path):
    bundles = read_bundles(instructor())
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
    kinds = {*hostile.ATTACKS, *hostile.AT_THE_TOP, *hostile.BROKEN_CELLS}
    kinds |= {*hostile.CHEATING_TESTS, *hostile.TAKEN_OVER}
    assert len(kinds) >= 39
    assert {"no reference", "renamed"} <= {
        row[0] for key in (ONE, TWO) for row in WRONG[key]
    }

"""otter-grader and nbgrader themselves: their marks are those of ``assign grade``.

Skipped where a tool is not installed (``pip install 'flowrl-lab[otter,nbgrader]'``).
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from synthetic_submissions import (
    FULL,
    answer,
    handed_in,
    instructor,
    right_files,
    solved,
    unsolve,
    untouched,
)
from wrong_answers import ONE, POINTS, THREE, TWO, WRONG

from flowrl_lab.assignments.build import find_sources
from flowrl_lab.assignments.elsewhere import WithoutStudentCells
from flowrl_lab.assignments.exports import export
from flowrl_lab.assignments.marking.folder import mark_all, plan_marking, read_bundles
from flowrl_lab.commands.assign import FOLDER
from flowrl_lab.sandbox import sandbox_problem

ROOT = Path(__file__).resolve().parents[2]
each_assignment = pytest.mark.parametrize("key", [ONE, TWO, THREE])


def needs(name: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(name) is None
    return pytest.mark.skipif(missing, reason=f"{name} is not installed")


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sandbox_problem() is not None, reason=str(sandbox_problem())),
]
ASSIGNMENTS = [ONE] + [
    pytest.param(key, marks=pytest.mark.full) for key in (TWO, THREE)
]
# A first cell that takes over the kernel in which other graders' tests run.
FORGING = (
    "import sys, types\n"
    "fake = types.ModuleType('flowrl_lab.assignments.elsewhere')\n"
    "fake.earn = lambda *a: None\nfake.points_of = lambda *a: 10.0\n"
    "sys.modules['flowrl_lab.assignments.elsewhere'] = fake\n"
)


@pytest.fixture(autouse=True)
def _programs(monkeypatch):
    """The tools call programs that lie beside this interpreter."""
    here = str(Path(sys.executable).parent)
    monkeypatch.setenv("PATH", os.pathsep.join([here, os.environ["PATH"]]))


def submissions(key: str) -> dict[str, tuple[bytes, float]]:
    """For each kind the file that is handed in, and its points, counted by hand."""
    first, second = [row for row in WRONG[key] if row[0] != "endless"][1:3]
    partly, points = solved(key), FULL[key]
    for _, question, text, left in (first, second):
        if question != first[1] or text == first[2]:
            partly = answer(partly, question, text)
            points -= POINTS[question] - left
    number = {ONE: "LOG_Z", TWO: "BROKEN", THREE: "START_ACCURACY"}[key]
    partly = unsolve(partly, number)
    points -= POINTS[number]
    forging = untouched(key)
    forging["cells"].insert(
        1, {**forging["cells"][1], "source": FORGING, "id": "forge"}
    )
    worse, lost = worse_files(key)
    return {
        "right": (handed_in(key, solved(key)), FULL[key]),
        "partly right": (handed_in(key, partly), points),
        "wrong": (handed_in(key, untouched(key), {}), 0),
        "trained worse": (handed_in(key, solved(key), worse), FULL[key] - lost),
        "forges": (handed_in(key, forging, {}), 0),
    }


def worse_files(key: str) -> tuple[dict[str, bytes], float]:
    """Files that are not what the notebook's own cells would write, and their cost."""
    files = dict(right_files(key))
    if key == ONE:
        files["landscape_policy.safetensors"] = b"nothing"
        return files, 9
    if key == THREE:
        claims = json.loads(files["runs.json"])
        claims["accurate"]["accuracy"] = [0.99, 0.99, 0.99]
        files["runs.json"] = json.dumps(claims).encode()
        return files, 4
    return files, 0


def our_marks(folder: Path, key: str) -> dict[str, float]:
    """What ``assign grade`` gives."""
    (folder / "ours").mkdir()
    for kind, (content, _) in submissions(key).items():
        (folder / "ours" / f"{kind}.zip").write_bytes(content)
    plan = plan_marking(folder / "ours", folder / "marks", read_bundles(instructor()))
    return {grade.student: grade.points for grade in mark_all(plan, jobs=1)}


def run(command: list[str], folder: Path) -> None:
    """One command of another tool, which must end well."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"[-3000:]


def source_of(key: str) -> Path:
    return next(p for p in find_sources(ROOT / FOLDER) if p.stem == key)


@needs("otter")
@pytest.mark.full
@each_assignment
def test_otter_gives_the_same_marks(tmp_path, key):
    export(source_of(key), tmp_path / "otter", "otter")
    marks = {}
    for kind, (content, _) in submissions(key).items():
        out = tmp_path / kind.replace(" ", "_")
        out.mkdir()
        (out / f"{key}.zip").write_bytes(content)
        bundle = str(tmp_path / "otter" / "autograder.zip")
        run(["otter", "run", "-a", bundle, "-o", str(out), f"{key}.zip"], out)
        tests = json.loads((out / "results.json").read_text())["tests"]
        marks[kind] = sum(test.get("score", 0) for test in tests)
    assert marks == {kind: points for kind, (_, points) in submissions(key).items()}
    assert marks == our_marks(tmp_path, key)


@needs("nbgrader")
@pytest.mark.filterwarnings("ignore")  # of the tool's own database layer
@pytest.mark.full
@each_assignment
def test_nbgrader_gives_the_same_marks(tmp_path, key):
    from nbgrader.api import Gradebook

    course = tmp_path / "course"
    export(source_of(key), course, "nbgrader")
    run(["nbgrader", "generate_assignment", key], course)
    release = (course / "release" / key / f"{key}.ipynb").read_text()
    assert "points_of" not in release and "BEGIN SOLUTION" not in release
    for kind, (content, _) in submissions(key).items():
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            archive.extractall(course / "submitted" / kind.replace(" ", "_") / key)
    run(["nbgrader", "autograde", key], course)
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as gradebook:
        marks = {
            found.student.id.replace("_", " "): found.score
            for found in gradebook.assignment_submissions(key)
        }
    assert marks == {kind: points for kind, (_, points) in submissions(key).items()}
    assert marks == our_marks(tmp_path, key)


def test_the_exports_refuse_what_would_lose_something(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="already holds something"):
        export(source_of(ONE), tmp_path, "otter")
    with pytest.raises(ValueError, match="is 'moodle'"):
        export(source_of(ONE), tmp_path / "new", "moodle")


def test_no_cell_of_a_student_runs_beside_otter_s_tests():
    plugin = WithoutStudentCells("a.ipynb", {}, {})
    assert plugin.before_execution({"cells": [1], "metadata": {}})["cells"] == []

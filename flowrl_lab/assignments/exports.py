"""Bundles for otter-grader and nbgrader.

Both tools run a submission's cells in a kernel and then a test in the same kernel.
There a student's code could change what the test says, and training cells would
overwrite the files that were handed in.  So the bundles leave the student's cells out,
and their tests mark the submitted notebook as ``assign grade`` does: the same marks.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

from flowrl_lab._files import write_atomically
from flowrl_lab._validation import bad_input
from flowrl_lab.assignments.build import Built, build_assignment
from flowrl_lab.assignments.bundles import SUFFIX, is_by_hand, read_bundle
from flowrl_lab.assignments.spec import Question

__all__ = ["export"]

FORMATS = ("otter", "nbgrader")
# Zip files keep a time; a fixed one keeps the bytes the same.
ZIP_TIME = (2020, 1, 1, 0, 0, 0)
BUNDLES = "bundles"


def export(
    path: Path, out: Path, form: str, *, variant: int = 0, secret: str = ""
) -> list[str]:
    """Write a bundle for another grader.

    Args:
        path: of the assignment's source.
        out: a new folder.
        form: "otter" or "nbgrader".
        variant: of the assignment.
        secret: for the numbers of hidden tests.

    Returns:
        Lines that say what was made and how to go on.

    Raises:
        ValueError: an unknown format, a folder that holds something already.
    """
    if form not in FORMATS:
        raise bad_input("format", f"is {form!r}", f"one of {FORMATS}", "name one")
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise bad_input(
            "--out",
            f"{out} already holds something",
            "a new folder",
            "choose another name; nothing is overwritten",
        )
    built = build_assignment(path, variant=variant, secret=secret)
    write = _write_otter if form == "otter" else _write_nbgrader
    return write(built, out, variant)


def _save(path: Path, text: str) -> None:
    write_atomically(path, text.encode())


# ------------------------------------------------------------------------------- otter

OTTER_TEST = '''"""{title} ({points:g} points); made by flowrl_lab."""

from otter.test_files import test_case

OK_FORMAT = False
name = {name!r}
points = None
{cases}'''
OTTER_CASE = """

@test_case(name={title!r}, points={points!r}, hidden=True)
def test_part_{place}(env):
    import os
    import sys

    sys.path[:] = [p for p in sys.path if p not in ("", os.getcwd())]
    from flowrl_lab.assignments.elsewhere import earn

    earn({bundle!r}, {variant}, {question!r}, {place})
"""
OTTER_CONFIG = {
    "lang": "python",
    "plugins": ["flowrl_lab.assignments.elsewhere.WithoutStudentCells"],
}


def _write_otter(built: Built, out: Path, variant: int) -> list[str]:
    """Test files, config, and the zip file that ``otter run`` takes."""
    bundle_name = f"{built.key}{SUFFIX}"
    _save(out / "student" / f"{built.key}.ipynb", built.student)
    _save(out / "student" / f"{built.key}.json", built.handout)
    files = {
        "otter_config.json": json.dumps(OTTER_CONFIG, indent=1) + "\n",
        "requirements.txt": "flowrl-lab[lm]\nipython\n",  # it reads the cells
        f"files/{bundle_name}": built.bundle,
        f"files/{built.key}.json": built.handout,
    }
    _save(out / f"files/{bundle_name}", built.bundle)
    bundle = read_bundle(out / "files" / bundle_name)
    for question in bundle.load(variant).questions:
        if not is_by_hand(question):
            text = _otter_test(question, bundle_name, variant)
            files[f"tests/{question.name}.py"] = text
    for name, text in files.items():
        _save(out / name, text)
    write_atomically(out / "autograder.zip", _zipped(files))
    return [
        f"{out}: autograder.zip for `otter run`, student/ for your students",
        "For otter's containers and Gradescope make the zip file with otter itself,",
        f"in {out / 'files'}:",
        "  otter generate -t ../tests -c ../otter_config.json -r "
        f"../requirements.txt -o ../autograder.zip {bundle_name} {built.key}.json",
    ]


def _otter_test(question: Question, bundle: str, variant: int) -> str:
    cases = "".join(
        OTTER_CASE.format(
            title=f"{question.title}: {title}",
            points=points,
            place=place,
            bundle=bundle,
            variant=variant,
            question=question.name,
        )
        for place, (title, points) in enumerate(_parts(question))
    )
    return OTTER_TEST.format(
        title=question.title, points=question.points, name=question.name, cases=cases
    )


def _parts(question: Question) -> list[tuple[str, int | float]]:
    """Titles and points of a question's parts, as the grader makes them."""
    for listed in ("tests", "mutants", "parts"):
        if hasattr(question, listed):
            rows = getattr(question, listed)
            if listed == "tests":
                return [(test.title, test.points) for test in rows]
            return [(row[0], row[1]) for row in rows]
    return [(question.title, question.points)]


def _zipped(files: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name, ZIP_TIME), files[name])
    return buffer.getvalue()


# ---------------------------------------------------------------------------- nbgrader

NBGRADER_CONFIG = '''"""The course; made by flowrl_lab."""

from nbconvert.preprocessors import ClearMetadataPreprocessor
from nbgrader.preprocessors import (
    AssignLatePenalties,
    CheckCellMetadata,
    Execute,
    IgnorePattern,
    LimitOutput,
    SaveAutoGrades,
)

MARKER = "### BEGIN HIDDEN TESTS\\n"


class ExecuteGraders(Execute):
    """Runs the grader's cells only, and none of the student's."""

    def preprocess_cell(self, cell, resources, index):
        ours = cell.metadata.get("nbgrader", {}).get("locked") and MARKER in cell.source
        if not ours:
            return cell, resources
        whole = cell.source
        cell.source = whole.partition(MARKER)[2]
        try:
            return super().preprocess_cell(cell, resources, index)
        finally:
            cell.source = whole


c = get_config()  # noqa: F821 - nbgrader gives it
c.Autograde.autograde_preprocessors = [
    ExecuteGraders,
    IgnorePattern,
    ClearMetadataPreprocessor,
    LimitOutput,
    SaveAutoGrades,
    AssignLatePenalties,
    CheckCellMetadata,
]
c.CourseDirectory.course_id = "flowrl"
c.ExecutePreprocessor.timeout = 900
c.ClearSolutions.code_stub = {"python": "raise NotImplementedError  # your code here"}
'''
NBGRADER_TEST = """{check}
### BEGIN HIDDEN TESTS
import os
import sys
sys.path[:] = [p for p in sys.path if p not in ("", os.getcwd())]
from flowrl_lab.assignments.elsewhere import points_of
points_of("../../../{folder}/{bundle}", {variant}, "{question}")
### END HIDDEN TESTS"""


def _write_nbgrader(built: Built, out: Path, variant: int) -> list[str]:
    """A course folder: the source notebook with its hidden tests, and the bundle."""
    bundle_name = f"{built.key}{SUFFIX}"
    notebook = json.loads(built.solved)
    student = json.loads(built.student)
    for cell, open_cell in zip(notebook["cells"], student["cells"], strict=True):
        name = cell["metadata"].get("flowrl", {}).get("check")
        if name:
            check = "".join(cell["source"])
            text = NBGRADER_TEST.format(
                check=check,
                folder=BUNDLES,
                bundle=bundle_name,
                variant=variant,
                question=name,
            )
            cell["source"] = text.splitlines(keepends=True)
        elif cell["source"] != open_cell["source"]:
            # the students' text is the one that this project builds
            cell["source"] = open_cell["source"]
    source = out / "source" / built.key
    _save(source / f"{built.key}.ipynb", json.dumps(notebook, indent=1) + "\n")
    _save(source / f"{built.key}.json", built.handout)
    _save(out / BUNDLES / bundle_name, built.bundle)
    _save(out / "nbgrader_config.py", NBGRADER_CONFIG)
    return [
        f"{out}: a course folder; keep {BUNDLES}/ to yourself. In it:",
        f"  nbgrader generate_assignment {built.key}",
        f"  nbgrader autograde {built.key}",
    ]

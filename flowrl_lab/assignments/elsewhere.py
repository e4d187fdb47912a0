"""What the tests of exported bundles call, inside otter-grader and nbgrader.

They mark the notebook in the current folder as ``assign grade`` does, and never look at
what ran in the kernel they stand in.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

from flowrl_lab._validation import bad_input
from flowrl_lab.assignments.bundles import read_bundle
from flowrl_lab.assignments.marking.grading import Grade, grade_submission
from flowrl_lab.assignments.marking.submissions import Found, read_submission

__all__ = ["WithoutStudentCells", "earn", "points_of"]


class WithoutStudentCells:
    """An otter plugin: nothing of the submission runs in the kernel of the tests.

    Args:
        path: of the submission; otter gives it, as the other two.
        metadata: of the submission.
        settings: of the plugin; there are none.
    """

    def __init__(self, path: str, metadata: Any, settings: Any):
        del path, metadata, settings

    def before_execution(self, submission: Any) -> Any:
        """The notebook that otter runs instead of the submitted one: no cells."""
        submission["cells"] = []
        return submission


def earn(bundle: str, variant: int, question: str, place: int) -> None:
    """An otter test: passes if one part of a question is earned in full.

    Raises:
        AssertionError: it is not; with the note that a student may read.
    """
    part = _grade_here(bundle, variant).parts[question][place]
    assert part.earned == part.points, part.note or part.title


def points_of(bundle: str, variant: int, question: str) -> float:
    """The points of a question, as an nbgrader cell's value."""
    return float(_grade_here(bundle, variant).earned(question))


def _grade_here(bundle: str, variant: int) -> Grade:
    """The grade of the notebook in the current folder; made once."""
    notebooks = sorted(Path.cwd().glob("*.ipynb"))
    if len(notebooks) != 1:
        raise bad_input(
            "the submission's folder",
            f"holds {len(notebooks)} notebooks",
            "one",
            "hand in one notebook with its files",
        )
    total = hashlib.sha256()
    for path in sorted(Path.cwd().iterdir()):
        if path.is_file():
            total.update(path.name.encode() + path.read_bytes())
    return _grade(notebooks[0], Path(bundle).resolve(), variant, total.hexdigest())


@functools.lru_cache(maxsize=4)
def _grade(notebook: Path, bundle: Path, variant: int, digest: str) -> Grade:
    found = Found(notebook.stem, notebook.parent.name, notebook.parent)
    marks = read_bundle(bundle)
    submission = read_submission(found, {marks.key: marks.asked})
    return grade_submission(submission, marks, variant, digest)

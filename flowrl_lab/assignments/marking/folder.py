"""Mark a folder of submissions: parallel, resumable, and stopped by none of them."""

from __future__ import annotations

import csv
import functools
import re
import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from flowrl_lab._files import write_atomically
from flowrl_lab._validation import bad_input
from flowrl_lab.assignments.bundles import SUFFIX, Bundle, read_bundle
from flowrl_lab.assignments.marking.downloads import name_keys
from flowrl_lab.assignments.marking.grading import Grade, digest_of, grade_submission
from flowrl_lab.assignments.marking.submissions import (
    Found,
    Problem,
    Submission,
    check_reader,
    find_submissions,
    read_submissions,
)

__all__ = ["Plan", "mark_all", "plan_marking", "read_bundles", "read_variants"]

MARKS = "marks"


@dataclass(frozen=True)
class Plan:
    """What is marked, with what, and where it goes.

    Attributes:
        found: the submissions.
        bundles: of the assignments, by key.
        variants: student (lower case) -> variant; None if everybody's own is taken.
        out: folder of the grades.
        assignment: the only one that is expected, or "".
    """

    found: tuple[Found, ...]
    bundles: Mapping[str, Bundle]
    variants: Mapping[str, int] | None
    out: Path
    assignment: str = ""

    @functools.cached_property
    def asked(self) -> dict[str, tuple[str, ...]]:
        """The names that each assignment asks for."""
        return {key: bundle.asked for key, bundle in self.bundles.items()}

    @functools.cached_property
    def names(self) -> dict[str, list[str]]:
        """The listed students whose names can be run together to this, by that."""
        listed: dict[str, list[str]] = {}
        for name in self.variants or {}:
            for key in name_keys(name):
                listed.setdefault(key, []).append(name)
        return listed

    def mark_path(self, found: Found) -> Path:
        """Where the grade of one submission is kept."""
        return self.out / MARKS / f"{found.key}.json"


def read_bundles(folder: Path) -> dict[str, Bundle]:
    """The bundles in a folder, by key.

    Raises:
        ValueError: there is none, or one is damaged.
    """
    bundles = [read_bundle(path) for path in sorted(Path(folder).glob(f"*{SUFFIX}"))]
    if not bundles:
        raise bad_input(
            "bundles",
            f"{folder} holds none",
            f"files *{SUFFIX}",
            "make them: python -m flowrl_lab assign build",
        )
    return {bundle.key: bundle for bundle in bundles}


def read_variants(path: Path) -> dict[str, int]:
    """The list that ``assign build --students`` writes: student, variant.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        return {_same_case(row["student"]): int(row["variant"]) for row in rows}
    except (OSError, KeyError, ValueError, AttributeError, TypeError) as error:
        raise bad_input(
            "variants",
            f"{path} cannot be read ({type(error).__name__})",
            "a CSV file with the columns student and variant",
            "use the variants.csv that `assign build --students` wrote",
        ) from None


def _same_case(name: str) -> str:
    """A name as names are compared: one case, one way to write an accent."""
    return unicodedata.normalize("NFC", name).strip().lower()


def plan_marking(
    submissions: Path,
    out: Path,
    bundles: Mapping[str, Bundle],
    *,
    variants: Mapping[str, int] | None = None,
    assignment: str = "",
) -> Plan:
    """Check everything before the first submission is read.

    Raises:
        ValueError: no submissions, a folder of grades that holds something else, an
            unknown assignment, grades inside the submissions, no IPython.
    """
    check_reader()
    submissions, out = Path(submissions), Path(out)
    if assignment and assignment not in bundles:
        raise bad_input(
            "assignment",
            f"is {assignment!r}",
            f"one of {sorted(bundles)}",
            "name one of them, or leave it out",
        )
    found = find_submissions(submissions)
    if out.resolve().is_relative_to(submissions.resolve()):
        raise bad_input(
            "--out",
            f"{out} lies inside the submissions",
            "another folder",
            "submissions are never changed: choose a folder beside them",
        )
    if out.exists() and (not out.is_dir() or _foreign(out)):
        raise bad_input(
            "--out",
            f"{out} already holds something else",
            "a new folder, or one of an earlier run to go on with",
            "choose another name; nothing is overwritten",
        )
    return Plan(tuple(found), bundles, variants, out, assignment)


def _foreign(out: Path) -> bool:
    return any(out.iterdir()) and not (out / MARKS).is_dir()


def mark_all(
    plan: Plan,
    *,
    jobs: int,
    report: Callable[[int, int], None] = lambda _done, _kept: None,
) -> list[Grade]:
    """Mark every submission; what an earlier run marked is kept.

    Args:
        plan: what to mark.
        jobs: how many at a time.
        report: called with (done, taken over from an earlier run).

    Returns:
        The grades, in the order of the plan; one for each assignment of a submission.
    """
    torch.set_num_threads(1)
    (plan.out / MARKS).mkdir(parents=True, exist_ok=True)
    done: dict[str, list[Grade]] = {}
    kept = 0
    pool = ThreadPoolExecutor(max_workers=jobs)
    # peft asks transformers by an old name; nothing that anybody here could change
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
    try:
        waiting = {pool.submit(_mark, plan, found): found for found in plan.found}
        for future in as_completed(waiting):
            grades, fresh = future.result()
            done[waiting[future].key] = grades
            kept += not fresh
            report(len(done), kept)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return _name_duplicates([g for found in plan.found for g in done[found.key]])


def _mark(plan: Plan, found: Found) -> tuple[list[Grade], bool]:
    """What one student handed in; never raises for what is in it.

    Returns:
        The grades, and whether one of them was made just now.
    """
    try:
        submissions = read_submissions(found, plan.asked, plan.assignment)
    except Exception as error:  # whatever it is, the other submissions go on
        submissions = [Submission(found, problems=[_fault(error)])]
    marked = [_mark_one(plan, submission) for submission in submissions]
    return [grade for grade, _ in marked], any(fresh for _, fresh in marked)


def _mark_one(plan: Plan, submission: Submission) -> tuple[Grade, bool]:
    digest = variant = None
    path = plan.mark_path(submission.found)
    try:
        bundle = _pick_bundle(plan, submission)
        variant = _pick_variant(plan, submission)
        digest = digest_of(submission, bundle, variant)
        kept = _kept(path, digest)
        if kept is not None:
            return kept, False
        if bundle is None:
            grade = _ungraded(submission, variant, digest)
        else:
            grade = grade_submission(submission, bundle, variant, digest)
    except Exception as error:  # whatever it is, the other submissions go on
        submission.problems.append(_fault(error))
        grade = _ungraded(submission, variant or 0, digest or "")
    write_atomically(path, grade.to_json().encode("utf-8", "replace"))
    return grade, True


def _fault(error: Exception) -> Problem:
    return Problem(
        f"could not be marked ({type(error).__name__})",
        "tell the instructor: this is a fault of the grader, or of the bundle",
        fatal=True,
    )


def _kept(path: Path, digest: str) -> Grade | None:
    """The grade of an earlier run, if nothing that it depends on has changed."""
    try:
        grade = Grade.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return grade if grade.digest == digest else None


def _ungraded(submission: Submission, variant: int, digest: str) -> Grade:
    found = submission.found
    return Grade(
        key=found.key,
        student=found.student,
        path=found.shown,
        assignment=submission.assignment,
        variant=variant,
        digest=digest,
        status="not graded",
        problems=[(p.what, p.fix) for p in submission.problems],
    )


def _pick_bundle(plan: Plan, submission: Submission) -> Bundle | None:
    """The assignment's bundle: as the notebook says, or as its functions look."""
    carried, wanted = submission.assignment, plan.assignment
    if wanted:
        if carried and carried != wanted:
            submission.note(
                f"a notebook of {carried} instead of {wanted}",
                "hand in the notebook of this assignment",
            )
        return plan.bundles[wanted]
    if carried in plan.bundles:
        return plan.bundles[carried]
    guessed = _guess(plan.bundles, submission) if submission.readable else ""
    if guessed:
        submission.note(
            f"does not say which assignment it is; taken for {guessed}",
            "work in the notebook that was handed out, or keep a copy of it",
        )
        return plan.bundles[guessed]
    if submission.readable:
        submission.note(
            "belongs to no assignment that is known here",
            "hand in the notebook that was handed out, with your work in it",
            fatal=True,
        )
    named = _named_in(plan.bundles, submission.found)
    return plan.bundles[named] if named else None


def _guess(bundles: Mapping[str, Bundle], submission: Submission) -> str:
    text = "\n".join(submission.code)
    counts = {}
    for key, bundle in bundles.items():
        names = [q.name for q in bundle.load(0).questions]
        counts[key] = sum(
            re.search(rf"^def {name}\(|^{name} *=", text, re.MULTILINE) is not None
            for name in names
        )
    best = max(counts, key=lambda key: counts[key])
    return best if counts[best] else ""


def _named_in(bundles: Mapping[str, Bundle], found: Found) -> str:
    """The assignment that a file's name tells, for what cannot be read."""
    named = [key for key in bundles if key in found.shown or key in found.key]
    return named[0] if named else ""


def _pick_variant(plan: Plan, submission: Submission) -> int:
    """The variant that the student was given; the notebook's own without a list."""
    carried = submission.variant or 0
    if plan.variants is None:
        return carried
    given = plan.variants.get(_listed_name(plan, submission.found.student))
    if given is None:
        submission.note(
            "the name is not on the list of variants",
            "hand in under the name that the course knows",
        )
        return carried
    if submission.variant is not None and carried != given:
        submission.note(
            f"made for variant {carried}, and this student's is {given}",
            "hand in the notebook that was handed out to you",
        )
    return given


def _listed_name(plan: Plan, student: str) -> str:
    """A student's name as the list writes it: platforms turn names round."""
    name = _same_case(student)
    if plan.variants is None or name in plan.variants:
        return name
    fitting = {n for key in name_keys(name) for n in plan.names.get(key, ())}
    return fitting.pop() if len(fitting) == 1 else name


def _name_duplicates(grades: Sequence[Grade]) -> list[Grade]:
    """Name submissions under one student's name; which counts, a person says."""
    groups: dict[tuple[str, str], list[Grade]] = defaultdict(list)
    for grade in grades:
        groups[grade.student.lower(), grade.assignment].append(grade)
    named = []
    for grade in grades:
        group = groups[grade.student.lower(), grade.assignment]
        if len(group) > 1:
            others = ", ".join(sorted(g.path for g in group))
            told = (
                f"{len(group)} submissions under this name: {others}",
                "tell the instructor which one counts",
            )
            grade = replace(grade, problems=[*grade.problems, told])
        named.append(grade)
    return named

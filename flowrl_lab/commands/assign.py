"""``assign``: build, hand in, grade and export the course's assignments."""

from __future__ import annotations

import argparse
import csv
import io
import os
from pathlib import Path

from flowrl_lab.commands import DONE, INTERRUPTED

FOLDER = Path("notebooks/assignments")
EXAMPLES = """examples:
  python -m flowrl_lab assign build
  python -m flowrl_lab assign build --students names.txt --seed 7 --out handouts
  python -m flowrl_lab assign submit 1_partition_functions.ipynb --student ada
  python -m flowrl_lab assign grade SUBMISSIONS --out GRADES
  python -m flowrl_lab assign export 1_partition_functions --format otter --out OTTER
"""


def add_parser(commands) -> None:
    """Add ``assign`` with its own commands."""
    assign = commands.add_parser(
        "assign",
        help="course assignments: build, submit, grade, export",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    inner = assign.add_subparsers(dest="what", required=True, metavar="WHAT")
    _add_build(inner)
    _add_submit(inner)
    _add_grade(inner)
    _add_export(inner)


def _add_sources(add) -> None:
    where = f"where the sources lie (default: {FOLDER}, here or as they were installed)"
    add("--sources", type=Path, metavar="FOLDER", help=where)


def _sources(args: argparse.Namespace) -> Path:
    """As named; else those of this folder, else those that came with the package."""
    from flowrl_lab._files import course_root

    here = FOLDER if FOLDER.is_dir() else course_root() / FOLDER
    return args.sources or here


def _add_build(inner) -> None:
    what = "student notebooks, solved ones and grading bundles"
    build = inner.add_parser("build", help=what)
    add = build.add_argument
    _add_sources(add)
    add(
        "--out",
        type=Path,
        metavar="FOLDER",
        help=f"default: the sources' folder, or {FOLDER}",
    )
    names = "one name a line: each gets a folder with a variant of their own"
    add("--students", type=Path, metavar="FILE", help=names)
    add("--student", metavar="NAME", help="the same for one student only")
    add("--seed", type=int, default=0, help="of the students' variants (default: 0)")
    why = "mixed into the numbers of hidden tests, so that who knows the sources does "
    add("--secret", default="", metavar="TEXT", help=f"{why}not know them")
    build.set_defaults(action=run_build)


def _add_submit(inner) -> None:
    submit = inner.add_parser("submit", help="a student's file to hand in")
    submit.add_argument("notebook", type=Path, metavar="NOTEBOOK")
    submit.add_argument("--student", required=True, metavar="NAME")
    submit.set_defaults(action=run_submit)


def _add_grade(inner) -> None:
    about = "mark a folder of submissions, or a platform's zip file of them"
    grade = inner.add_parser("grade", help=about)
    add, where = grade.add_argument, FOLDER / "instructor"
    add("submissions", type=Path, metavar="SUBMISSIONS")
    add("--out", type=Path, required=True, metavar="GRADES")
    made = "where `assign build` put the bundles (default: %(default)s)"
    add("--bundles", type=Path, default=where, metavar="FOLDER", help=made)
    who = "variants.csv of `assign build --students`: who has which variant"
    add("--variants", type=Path, metavar="FILE", help=who)
    add("--assignment", default="", metavar="KEY", help="all are of this one")
    many = "submissions at a time (default: the cores, %(default)s)"
    add("--jobs", type=int, default=os.cpu_count() or 1, help=many)
    grade.set_defaults(action=run_grade)


def _add_export(inner) -> None:
    export = inner.add_parser("export", help="a bundle for otter-grader or nbgrader")
    add = export.add_argument
    add("assignment", metavar="KEY")
    add("--format", choices=("otter", "nbgrader"), required=True)
    add("--out", type=Path, required=True, metavar="FOLDER")
    add("--variant", type=int, default=0)
    add("--secret", default="", metavar="TEXT")
    _add_sources(add)
    export.set_defaults(action=run_export)


# ---------------------------------------------------------------------------- commands


def run_build(args: argparse.Namespace) -> int:
    """``assign build``: everything from the sources."""
    from flowrl_lab.assignments.build import build_all, find_sources, write_built

    sources, out = find_sources(_sources(args)), args.out or args.sources or FOLDER
    students = _students(args)
    if not students:
        for built in build_all(sources, secret=args.secret):
            write_built(built, out / "student", out / "instructor")
        print(f"{len(sources)} assignments: {out / 'student'}, {out / 'instructor'}")
        return DONE
    from flowrl_lab.assignments.handing_in import plain_name

    variants = _variants(students, args.seed)
    for student, variant in variants.items():
        name = plain_name(student)
        for built in build_all(
            sources, variant=variant, student=student, secret=args.secret
        ):
            solved = out / "instructor" / "solved" / name
            write_built(built, out / "student" / name, solved)
            _write(out / "instructor" / f"{built.key}.bundle.json", built.bundle)
            (solved / f"{built.key}.bundle.json").unlink()
    _write(out / "instructor" / "variants.csv", _variants_csv(variants))
    print(f"{len(variants)} students, {len(sources)} assignments each: {out}")
    return DONE


def _students(args: argparse.Namespace) -> list[str]:
    names = [args.student] if args.student else []
    if args.students:
        try:
            text = args.students.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError(
                f"{args.students} is not UTF-8, so its names cannot be read. Fix: save "
                "it again with the encoding UTF-8."
            ) from None
        names += [line.strip() for line in text.splitlines() if line.strip()]
    return list(dict.fromkeys(names))


def _variants(students: list[str], seed: int) -> dict[str, int]:
    from flowrl_lab.assignments.build import variant_of
    from flowrl_lab.assignments.handing_in import plain_name

    folders = [plain_name(student).lower() for student in students]
    twice = sorted({f for f in folders if folders.count(f) > 1 or not f})
    if twice:
        raise ValueError(
            f"two students come to the same folder, {twice}. Fix: write their names so "
            "that they differ in letters or numbers."
        )
    return {student: variant_of(student, seed) for student in students}


def _variants_csv(variants: dict[str, int]) -> str:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("student", "variant"))
    writer.writerows(variants.items())
    return stream.getvalue()


def _write(path: Path, text: str) -> None:
    from flowrl_lab._files import write_atomically

    write_atomically(path, text.encode())


def run_submit(args: argparse.Namespace) -> int:
    """``assign submit``: the notebook with its recorded files, as one file."""
    from flowrl_lab.assignments.handing_in import write_submission
    from flowrl_lab.assignments.handout import open_assignment, read_key

    handout = args.notebook.parent / f"{read_key(args.notebook)}.json"
    files = open_assignment(handout).files() if handout.is_file() else set()
    path, notes = write_submission(args.notebook, args.student, files)
    print(f"Hand in this file: {path}")
    for note in notes:
        print(f"  {note}")
    return DONE


def run_grade(args: argparse.Namespace) -> int:
    """``assign grade``: marks, gradebook, feedback, cohort report."""
    from flowrl_lab.assignments.marking.cohort import render_cohort
    from flowrl_lab.assignments.marking.folder import (
        mark_all,
        plan_marking,
        read_bundles,
        read_variants,
    )
    from flowrl_lab.assignments.marking.gradebook import write_gradebook
    from flowrl_lab.measuring.progress import ProgressLine
    from flowrl_lab.sandbox import sandbox_problem

    problem = sandbox_problem()
    if problem is not None:
        raise ValueError(f"submissions cannot be run safely here: {problem}")
    if args.jobs < 1:
        raise ValueError(f"--jobs is {args.jobs}; expected at least 1. Fix: --jobs 2")
    bundles = read_bundles(args.bundles)
    variants = read_variants(args.variants) if args.variants else None
    which = {"variants": variants, "assignment": args.assignment}
    plan = plan_marking(args.submissions, args.out, bundles, **which)
    progress = ProgressLine(len(plan.found))

    def report(done: int, kept: int) -> None:
        note = f"{kept} from before" if kept else ""
        progress.update(done, note)

    try:
        grades = mark_all(plan, jobs=args.jobs, report=report)
    except KeyboardInterrupt:
        progress.close()
        print(f"Stopped; what is marked is kept in {args.out}. Start the same again.")
        return INTERRUPTED
    progress.close()
    write_gradebook(args.out, grades, bundles)
    report_page = render_cohort(grades, bundles).encode("utf-8", "replace").decode()
    _write(args.out / "cohort.html", report_page)
    failed = sum(grade.status != "graded" for grade in grades)
    told = sum(bool(grade.problems) for grade in grades)
    print(
        f"{len(grades)} submissions: {failed} could not be marked, {told} with notes."
    )
    print(f"Gradebook: {args.out / 'gradebook.csv'}")
    print(f"Report: {args.out / 'cohort.html'}; a page for each in feedback/")
    return DONE


def run_export(args: argparse.Namespace) -> int:
    """``assign export``: a bundle for another grader."""
    from flowrl_lab.assignments.exports import export

    sources = _sources(args)
    path = sources / f"{args.assignment}.py"
    if not path.is_file():
        known = sorted(p.stem for p in sources.glob("[0-9]*_*.py"))
        raise ValueError(
            f"there is no assignment {args.assignment!r} in {sources}. Fix: "
            f"choose one of {known}."
        )
    made = export(path, args.out, args.format, variant=args.variant, secret=args.secret)
    for line in made:
        print(line)
    return DONE

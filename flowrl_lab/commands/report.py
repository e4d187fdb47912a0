"""``report``: one page of a learner's course."""

from __future__ import annotations

import argparse

from flowrl_lab.commands import DONE


def add_parser(commands) -> None:
    """Add ``report`` and its options."""
    what = "one HTML page of a learner's course: predictions, checks, quiz"
    report = commands.add_parser("report", help=what)
    files = "progress files, merged; default: your own"
    report.add_argument("files", nargs="*", metavar="FILE", help=files)
    report.add_argument("--out", default="course.html", help="default: %(default)s")
    report.add_argument("--force", action="store_true", help="replace OUT")
    report.set_defaults(action=run_report)


def run_report(args: argparse.Namespace) -> int:
    """``report``: what a learner predicted, solved and answered."""
    from flowrl_lab.course.report import write_course

    count = write_course(args.files, args.out, overwrite=args.force)
    print(f"{count} events: {args.out}")
    return DONE

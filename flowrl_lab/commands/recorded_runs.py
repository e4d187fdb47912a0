"""``collect`` and ``recorded``: finished runs as one small file, and its table."""

from __future__ import annotations

import argparse
from pathlib import Path

from flowrl_lab.commands import DONE


def add_parser(commands) -> None:
    """Add ``collect`` and ``recorded``."""
    _add_collect(commands)
    _add_recorded(commands)


def _add_collect(commands) -> None:
    collect = commands.add_parser(
        "collect", help="finished runs of several folders as one small file"
    )
    collect.add_argument("file", type=Path, metavar="FILE", help="to write (.jsonl)")
    collect.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    collect.set_defaults(action=run_collect)


def _add_recorded(commands) -> None:
    recorded = commands.add_parser(
        "recorded", help="the table of runs that ship in data/results"
    )
    recorded.add_argument("name", help="such as make_number")
    recorded.add_argument("--report", type=Path, metavar="FILE", help="HTML to write")
    recorded.add_argument(
        "--markdown", action="store_true", help="the table as README shows it"
    )
    recorded.set_defaults(action=run_recorded)


def run_collect(args: argparse.Namespace) -> int:
    """``collect``: many run folders become one file."""
    from flowrl_lab.measuring.recorded import collect_runs, write_recorded
    from flowrl_lab.measuring.tables import format_table

    results = collect_runs(args.folders)
    write_recorded(args.file, results)
    print(format_table(results))
    print(f"{len(results)} runs: {args.file}")
    return DONE


def run_recorded(args: argparse.Namespace) -> int:
    """``recorded``: the table, and on request the report, of shipped runs."""
    from flowrl_lab.measuring.pages import write_report
    from flowrl_lab.measuring.recorded import load_recorded
    from flowrl_lab.measuring.tables import format_markdown, format_table

    results = load_recorded(args.name)
    print((format_markdown if args.markdown else format_table)(results))
    if args.report is not None:
        write_report(results, args.report)
        print(f"Report: {args.report}")
    return DONE

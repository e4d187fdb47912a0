"""``explorer-data``: the runs that notebook 1's scrubber moves through."""

from __future__ import annotations

import argparse
from pathlib import Path

from flowrl_lab.commands import DONE


def add_parser(commands) -> None:
    """Add ``explorer-data`` and its option."""
    explorer = commands.add_parser(
        "explorer-data", help="remake the runs that the scrubber of notebook 1 shows"
    )
    explorer.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    explorer.set_defaults(action=run_explorer_data)


def run_explorer_data(args: argparse.Namespace) -> int:
    """``explorer-data``: all runs of the scrubber, in about two minutes."""
    from time import perf_counter

    from flowrl_lab.measuring import landscape_runs
    from flowrl_lab.measuring.progress import ProgressLine

    landscape_runs.refuse_used_folder(args.out)
    progress, start = ProgressLine(landscape_runs.count_steps()), perf_counter()
    grid = landscape_runs.make_grid(progress.update)
    progress.close()
    facts = landscape_runs.write_grid(args.out, grid, perf_counter() - start)
    print(f"{landscape_runs.DATA} in {args.out}, sha256 {facts['sha256']}")
    return DONE

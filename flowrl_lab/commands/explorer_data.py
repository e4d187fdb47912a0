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

    from flowrl_lab._files import refuse_used
    from flowrl_lab.measuring import recorded
    from flowrl_lab.measuring.progress import ProgressLine

    refuse_used(args.out / recorded.DATA, args.out / recorded.FACTS)
    steps = len(recorded.grid_points()) * recorded.STEPS
    progress, start = ProgressLine(steps), perf_counter()
    grid = recorded.make_grid(progress.update)
    progress.close()
    facts = recorded.write_grid(args.out, grid, perf_counter() - start)
    print(f"{recorded.DATA} in {args.out}, sha256 {facts['sha256']}")
    return DONE

"""``export-adapter``: a saved run of a language model, for others to load."""

from __future__ import annotations

import argparse
from pathlib import Path

from flowrl_lab.commands import DONE


def add_parser(commands) -> None:
    """Add ``export-adapter`` and its options."""
    export = commands.add_parser(
        "export-adapter", help="a language model's adapter in peft's format, with card"
    )
    export.add_argument("folder", type=Path, metavar="RUN_FOLDER")
    export.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    export.add_argument(
        "--merged", action="store_true", help="base and adapter as one model"
    )
    export.add_argument(
        "--push", metavar="OWNER/NAME", help="put it on the hub, privately"
    )
    export.set_defaults(action=run_export)


def run_export(args: argparse.Namespace) -> int:
    """Load the run, write the folder, and push it on request."""
    from flowrl_lab.integrations.adapters import (
        export_adapter,
        export_merged,
        push_folder,
    )
    from flowrl_lab.training.run import Run

    run = Run.load(args.folder)
    write = export_merged if args.merged else export_adapter
    print(f"Written: {write(run, args.out)} (see its README.md)")
    if args.push:
        print(f"On the hub: {push_folder(args.out, args.push)}")
    return DONE

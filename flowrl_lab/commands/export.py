"""``export``: a run of this library for other people's engines."""

from __future__ import annotations

import argparse
from pathlib import Path

from flowrl_lab.commands import DONE


def add_parser(commands) -> None:
    """Add ``export`` and its kinds, one sub-command each."""
    export = commands.add_parser("export", help="a run for another engine: verl")
    kinds = export.add_subparsers(dest="kind", required=True, metavar="KIND")
    _add_verl(kinds)


def _add_verl(kinds) -> None:
    verl = kinds.add_parser(
        "verl", help="config, reward and data for verl's FlowRL recipe"
    )
    verl.add_argument("run", type=Path, metavar="RUN", help="folder of a saved run")
    verl.add_argument(
        "--out", type=Path, metavar="FOLDER", help="default: RUN/verl; must be new"
    )
    verl.add_argument(
        "--model", default="", help="to train there: a folder or a name on the hub"
    )
    verl.set_defaults(action=export_verl_run)


def export_verl_run(args: argparse.Namespace) -> int:
    """``export verl``: write the files and say what differs."""
    from flowrl_lab.integrations.verl import compare_meaning, export_verl
    from flowrl_lab.training.config import ExperimentConfig

    path = args.run / "config.json"
    if not path.is_file():
        raise ValueError(
            f"{args.run} holds no run (no config.json). Fix: name the folder that "
            "train --out or Run.save wrote."
        )
    config = ExperimentConfig.from_json(path.read_text(encoding="utf-8"))
    out = args.run / "verl" if args.out is None else args.out
    for written in export_verl(config, out, model=args.model):
        print(written)
    print("\nNot the same there:")
    for one in compare_meaning(config):
        print(f"  {one.setting}: here {one.here}; there {one.there}")
    return DONE

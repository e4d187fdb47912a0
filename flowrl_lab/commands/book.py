"""``book``: the course as a static site that opens offline."""

from __future__ import annotations

import argparse
from pathlib import Path

from flowrl_lab.commands import DONE


def add_parser(commands) -> None:
    """Add ``book``."""
    book = commands.add_parser(
        "book", help="the notebooks, run, and the API as a static site"
    )
    book.add_argument("out", type=Path, metavar="OUT", help="a new folder, or a book")
    book.add_argument(
        "--only",
        nargs="+",
        default=(),
        metavar="NN",
        help="only these notebooks, such as 00 06",
    )
    book.add_argument(
        "--budget",
        choices=("quick", "full"),
        default="quick",
        help="how long the notebooks train (default: quick)",
    )
    book.set_defaults(action=run_book)


def run_book(args: argparse.Namespace) -> int:
    """Run what has changed, and write the site."""
    from flowrl_lab.integrations.book.pages import build_book

    first = build_book(args.out, notebooks=args.only, budget=args.budget)
    print(f"Open {first}")
    return DONE

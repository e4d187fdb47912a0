"""``fetch-model``: a language model onto this machine, before a notebook needs it."""

from __future__ import annotations

import argparse

from flowrl_lab.commands import DONE


def add_parser(commands) -> None:
    """Add ``fetch-model`` and its argument."""
    fetch = commands.add_parser(
        "fetch-model", help="download notebook 9's model (93 MB), or another"
    )
    fetch.add_argument("name", nargs="?", default="smollm2-135m", metavar="MODEL")
    fetch.set_defaults(action=run_fetch)


def run_fetch(args: argparse.Namespace) -> int:
    """Fetch the model, or say that it is here."""
    from flowrl_lab.policies.loading import fetch_model

    print(f"{args.name} is in {fetch_model(args.name)}")
    return DONE

"""``colab``: notebooks that run in Colab by upload alone, or from a fork."""

from __future__ import annotations

import argparse
from pathlib import Path

from flowrl_lab.commands import DONE

FROM_SETTING = "[tool.flowrl_lab] repository"


def add_parser(commands) -> None:
    """Add ``colab`` and its options."""
    colab = commands.add_parser(
        "colab", help="self-contained copies of notebooks, to upload to Colab"
    )
    colab.add_argument("notebooks", nargs="+", type=Path, metavar="NOTEBOOK")
    colab.add_argument(
        "--out", type=Path, metavar="FOLDER",
        help="where the copies go (default: colab; with --git notebooks/colab, to be "
        "committed)",
    )  # fmt: skip
    colab.add_argument(
        "--git",
        nargs="?",
        const=FROM_SETTING,
        metavar="OWNER/NAME",
        help="clone this GitHub repository instead of carrying the library; without "
        f"a name, the one under {FROM_SETTING} in pyproject.toml",
    )
    colab.add_argument("--branch", default="main", help="default: %(default)s")
    colab.set_defaults(action=run_colab)


def run_colab(args: argparse.Namespace) -> int:
    """``colab``: one file a notebook, and for a fork its badges."""
    from flowrl_lab.integrations.colab import export_notebook, git_badge
    from flowrl_lab.integrations.colab.export import check_exports, find_repository

    address = ""
    if args.git is not None:
        name = find_repository("" if args.git == FROM_SETTING else args.git)
        address = f"https://github.com/{name}"
    out = args.out or Path("notebooks/colab" if address else "colab")
    targets = [out / path.name for path in args.notebooks]
    check_exports(args.notebooks, targets)
    for path, target in zip(args.notebooks, targets, strict=True):
        export_notebook(path, target, repository=address, branch=args.branch)
        print(f"{target}  {target.stat().st_size / 1e6:.1f} MB")
        if address:
            print(git_badge(target.as_posix(), repository=name, branch=args.branch))
    if not address:
        print("Upload one at colab.research.google.com (File > Upload notebook).")
    return DONE

"""``colab``: notebooks that run in Colab by upload alone, or from a fork."""

from __future__ import annotations

import argparse
import importlib.metadata
from pathlib import Path

from flowrl_lab.commands import DONE

FROM_SETTING = "[tool.flowrl_lab] repository"
THIS_VERSION = "flowrl-lab, this version"


def add_parser(commands) -> None:
    """Add ``colab`` and its options."""
    what = "self-contained copies of notebooks, to upload to Colab"
    colab = commands.add_parser("colab", help=what)
    add = colab.add_argument
    add("notebooks", nargs="+", type=Path, metavar="NOTEBOOK")
    where = "where the copies go (default: colab; with --git notebooks/colab, to be "
    add("--out", type=Path, metavar="FOLDER", help=f"{where}committed)")
    git = (
        "install from this GitHub repository instead of carrying the library; without "
        f"a name, the one under {FROM_SETTING} in pyproject.toml"
    )
    add("--git", nargs="?", const=FROM_SETTING, metavar="OWNER/NAME", help=git)
    pip = (
        "let pip install this instead of carrying the library, such as a wheel's "
        "address; without a name, this version from the package index"
    )
    add("--pip", nargs="?", const=THIS_VERSION, metavar="WHAT", help=pip)
    add("--branch", default="main", help="default: %(default)s")
    colab.set_defaults(action=run_colab)


def run_colab(args: argparse.Namespace) -> int:
    """``colab``: one file a notebook, and for a fork its badges."""
    from flowrl_lab.integrations.colab import export_notebook, git_badge
    from flowrl_lab.integrations.colab.export import check_exports, find_repository

    name, package = "", args.pip or ""
    if package == THIS_VERSION:
        package = f"flowrl-lab=={importlib.metadata.version('flowrl-lab')}"
    if args.git is not None:
        name = find_repository("" if args.git == FROM_SETTING else args.git)
        package = f"flowrl-lab @ git+https://github.com/{name}@{args.branch}"
    out = args.out or Path("notebooks/colab" if name else "colab")
    targets = [out / path.name for path in args.notebooks]
    check_exports(args.notebooks, targets)
    for path, target in zip(args.notebooks, targets, strict=True):
        export_notebook(path, target, package=package)
        print(f"{target}  {target.stat().st_size / 1e6:.1f} MB")
        if name:
            print(git_badge(target.as_posix(), repository=name, branch=args.branch))
    if not name:
        print("Upload one at colab.research.google.com (File > Upload notebook).")
    return DONE

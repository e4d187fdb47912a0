"""``notebooks``: the course into a folder of your own, and JupyterLab on it."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from flowrl_lab.commands import DONE

FIRST = "notebooks/00_start_here.ipynb"


def add_parser(commands) -> None:
    """Add ``notebooks`` and its options."""
    notebooks = commands.add_parser(
        "notebooks", help="copy the course into a folder and open JupyterLab on it"
    )
    add = notebooks.add_argument
    where = "made if need be; your own work in it stays (default: %(default)s)"
    add("folder", nargs="?", type=Path, default=Path("flowrl"), help=where)
    add("--copy-only", action="store_true", help="do not open JupyterLab")
    add("--no-browser", action="store_true", help="JupyterLab without a browser")
    add("--port", type=int, help="port of JupyterLab (default 8888)")
    notebooks.set_defaults(action=run_notebooks)


def run_notebooks(args: argparse.Namespace) -> int:
    """Copy what is missing, say what was left alone, and open it."""
    from flowrl_lab.course.copying import copy_course

    copied = copy_course(args.folder)
    files = "1 file" if len(copied.new) == 1 else f"{len(copied.new)} files"
    print(f"{args.folder}: {files} of the course copied")
    for path in copied.kept:
        print(f"  left as you have it: {path}")
    if args.copy_only:
        print(f"Open it with: {Path(sys.executable).name} -m jupyterlab {args.folder}")
        return DONE
    return subprocess.call(jupyter_command(args))


def jupyter_command(args: argparse.Namespace) -> list[str]:
    """JupyterLab on the copy, with the course's own settings and none of the user's."""
    folder = args.folder.resolve()
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={folder}"]
    command += [f"--LabApp.app_settings_dir={folder / '.jupyter'}"]
    command += [f"--LabApp.workspaces_dir={folder / '.jupyter' / 'workspaces'}"]
    command += [f"--LabApp.default_url=/lab/tree/{FIRST}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")  # as in a container; it listens to localhost
    command += ["--no-browser"] if args.no_browser else []
    return command + ([] if args.port is None else [f"--port={args.port}"])

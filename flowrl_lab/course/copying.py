"""The course in a folder of the learner's own; nothing of theirs is overwritten."""

from __future__ import annotations

import hashlib
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from flowrl_lab._files import course_root, read_json, write_atomically, write_json
from flowrl_lab._validation import bad_input

__all__ = ["Copied", "copy_course"]

PARTS = ("notebooks", "docs", ".jupyter")
LIST = ".jupyter/copied.json"  # what was copied, to tell it from what was changed
# Where JupyterLab looks for how it was left: the name that it gives its first one.
WORKSPACE = ".jupyter/workspaces/default-37a8.jupyterlab-workspace"
NOT_COPIED = {".ipynb_checkpoints", "instructor", "workspaces", "__pycache__"}


@dataclass(frozen=True)
class Copied:
    """What became of each file: written, or kept because somebody changed it."""

    new: tuple[str, ...]
    kept: tuple[str, ...]


def copy_course(folder: str | Path) -> Copied:
    """Copy notebooks and pages; files that were changed since stay as they are.

    A file that is just as an earlier version of the course wrote it is renewed.

    Raises:
        ValueError: ``folder`` is a file, the course itself, or was filled by a newer
            version of the course.
    """
    folder, source = Path(folder), course_root()
    if folder.exists() and not folder.is_dir():
        got = f"is {folder}, a file"
        raise bad_input("folder", got, "a folder", "name another one")
    if folder.resolve() == source.resolve():
        got = f"is {folder}, where the course itself lies"
        raise bad_input("folder", got, "another folder", "open that one as it is")
    known = _earlier(folder)
    wanted = {path: (source / path).read_bytes() for path in _files_of(source)}
    wanted[WORKSPACE] = (source / ".jupyter" / "workspace.json").read_bytes()
    new, kept = [], []
    for path, content in wanted.items():
        target = folder / path
        there = target.read_bytes() if target.is_file() else None
        if there is None or (there != content and _sha(there) == known.get(path)):
            write_atomically(target, content)
            new.append(path)
        elif there != content and path != WORKSPACE:
            kept.append(path)
    hashes = {path: _sha(content) for path, content in wanted.items()}
    write_json(folder / LIST, {"version": _version(), "files": hashes})
    return Copied(tuple(new), tuple(kept))


def _files_of(source: Path) -> list[str]:
    """What is copied, as paths below the course; no leftovers of somebody's work."""
    found = [path for part in PARTS for path in (source / part).rglob("*")]
    return [
        path.relative_to(source).as_posix()
        for path in sorted(found)
        if path.is_file() and not NOT_COPIED & set(path.relative_to(source).parts)
    ]


def _earlier(folder: Path) -> dict[str, str]:
    """path -> sha256 of what was copied here before; refuses a newer version's."""
    if not (folder / LIST).is_file():
        return {}
    list_of = read_json(folder / LIST)
    if Version(list_of["version"]) > Version(_version()):
        raise bad_input(
            "folder",
            f"was filled by version {list_of['version']} of the course",
            f"one of at most {_version()}, which is installed",
            "pip install --upgrade flowrl-lab, or name another folder",
        )
    return list_of["files"]


def _version() -> str:
    return importlib.metadata.version("flowrl-lab")


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

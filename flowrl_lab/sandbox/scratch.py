"""The folder a sandboxed program may write in: fill it, weigh it, empty it."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

__all__ = ["check_name", "collect_file", "fill_scratch", "remove_scratch", "weigh"]

MAX_ENTRIES = 256


def check_name(name: str, where: str) -> str:
    """``name`` if it stays inside the scratch folder, else ValueError."""
    path = PurePosixPath(name)
    bad = path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name
    if bad or str(path) != name:
        raise ValueError(
            f"{where} names {name!r}; expected a relative path inside the scratch "
            "folder. Fix: write it like 'answer.json' or 'folder/answer.json'."
        )
    return name


def fill_scratch(files: Mapping[str, bytes]) -> Path:
    """A new folder that only this user can enter, with ``files`` in it."""
    folder = Path(tempfile.mkdtemp(prefix="flowrl-sandbox-")).resolve()
    try:
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    except BaseException:
        remove_scratch(folder)
        raise
    return folder


def weigh(folder: Path, most: int = sys.maxsize) -> tuple[int, int]:
    """(entries, bytes on disk or promised) below ``folder``.

    Stops counting above ``most`` entries, so that a program that makes files faster
    than they can be counted is noticed at once.
    """
    entries = total = 0
    waiting = [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as found:
                for entry in found:
                    entries += 1
                    if entries > most:
                        return entries, total
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        except FileNotFoundError:
            continue  # removed while we looked
        except OSError:  # a path too long to be opened, or a closed folder
            return sys.maxsize, total
    return entries, total


def collect_file(folder: Path, name: str, limit: int) -> bytes | None:
    """The content of a plain file below ``folder``; None for anything else.

    No symbolic link is followed on the way, no pipe or device is opened, and a
    file with a second name (a hard link) is left alone.
    """
    *parents, last = PurePosixPath(name).parts
    handles = [os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)]
    try:
        for part in parents:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
            handles.append(os.open(part, flags, dir_fd=handles[-1]))
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        handles.append(os.open(last, flags, dir_fd=handles[-1]))
        found = os.fstat(handles[-1])
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            return None
        if found.st_size > limit:
            return None
        with os.fdopen(handles.pop(), "rb") as file:
            return file.read(limit)
    except OSError:
        return None
    finally:
        for handle in handles:
            os.close(handle)


def remove_scratch(folder: Path) -> None:
    """Remove the folder whatever the program left in it.

    Inner folders are moved out one by one before they are emptied, so that no
    nesting is too deep and no path too long.
    """
    heap = tempfile.mkdtemp(prefix="flowrl-sandbox-", dir=folder.parent)
    waiting, moved = [str(folder)], 0
    while waiting:
        current = waiting.pop()
        with os.scandir(current) as found:
            entries = list(found)
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                continue
            os.chmod(entry.path, 0o700)
            moved += 1
            waiting.append(os.path.join(heap, str(moved)))
            os.rename(entry.path, waiting[-1])
        os.rmdir(current)
    os.rmdir(heap)

"""The folder a sandboxed program may write in: weigh it, read from it, remove it."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

__all__ = ["MAX_ENTRIES", "Scratch", "check_name", "collect_file", "weigh"]

MAX_ENTRIES = 256
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


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


@dataclass
class Scratch:
    """A new folder that only this user can enter; the program puts its files there.

    Attributes:
        files: name -> content, what the folder holds at the start.
        path: where the folder is.
        handle: the folder as the program sees it, once it has been handed over.
        own: whether it is a file system of the program's own, which nobody else
            sees at ``path``, and which counts deleted files too.
    """

    files: Mapping[str, bytes] = field(default_factory=dict)
    path: Path = field(init=False)
    handle: int | None = None
    own: bool = False

    def __post_init__(self) -> None:
        name = tempfile.mkdtemp(prefix="flowrl-sandbox-")
        self.path = Path(name).resolve()

    @property
    def given(self) -> tuple[int, int]:
        """(entries, bytes in whole pages) that ``files`` take."""
        page = os.sysconf("SC_PAGE_SIZE")
        entries = {path for name in self.files for path in _with_parents(name)}
        pages = sum(-(-len(content) // page) for content in self.files.values())
        return len(entries), pages * page

    def take(self, handle: int, *, own: bool) -> None:
        """The program's side has made the folder ready, and hands it over."""
        self.close()
        self.handle, self.own = handle, own

    def weigh(self) -> tuple[int, int]:
        """(entries, bytes) beyond what was given; what the own file system holds."""
        entries, size = self.given
        if self.own and self.handle is not None:
            found = os.fstatvfs(self.handle)
            used = (found.f_blocks - found.f_bfree) * found.f_frsize
            # The folder itself is one of the entries.
            return found.f_files - found.f_ffree - 1 - entries, used - size
        now, total = weigh(self.path, MAX_ENTRIES + entries)
        return now - entries, total - size

    def collect(self, names: Iterable[str], limit: int) -> dict[str, bytes]:
        """Those of ``names`` that are plain files, ``limit`` bytes in all at most."""
        found = {}
        for name in names if self.handle is not None else ():
            content = collect_file(self.handle, name, limit)
            if content is not None:
                found[name] = content
                limit -= len(content)
        return found

    def close(self) -> None:
        """Let the handle go."""
        if self.handle is not None:
            os.close(self.handle)
            self.handle = None

    def remove(self) -> None:
        """Remove the folder whatever the program left in it."""
        self.close()
        _remove(self.path)


def _with_parents(name: str) -> list[str]:
    path = PurePosixPath(name)
    return [str(path), *map(str, path.parents)][:-1]  # without "."


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


def collect_file(folder: int, name: str, limit: int) -> bytes | None:
    """The content of a plain file below the open ``folder``; None for anything else.

    No symbolic link is followed on the way, no pipe or device is opened, and a
    file with a second name (a hard link) is left alone.
    """
    *parents, last = PurePosixPath(name).parts
    handles = [os.open(".", _FOLDER, dir_fd=folder)]
    try:
        for part in parents:
            handles.append(os.open(part, _FOLDER, dir_fd=handles[-1]))
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


def _remove(folder: Path) -> None:
    """Inner folders are moved out one by one before they are emptied, so that no
    nesting is too deep and no path too long."""
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

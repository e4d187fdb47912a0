"""What a process and its descendants use, as the kernel tells everybody in /proc."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Usage", "find_processes", "read_usage", "weigh_deleted"]

_CLOCK_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_GONE = (FileNotFoundError, ProcessLookupError)
# Anonymous memory, shared memory, what was swapped out, and the page tables.
_MEMORY = ("RssAnon", "RssShmem", "VmSwap", "VmPTE")


@dataclass(frozen=True)
class Usage:
    """What a process and its descendants use right now."""

    cpu_seconds: float = 0.0
    memory_bytes: int = 0
    threads: int = 0
    processes: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.cpu_seconds + other.cpu_seconds,
            self.memory_bytes + other.memory_bytes,
            self.threads + other.threads,
            self.processes + other.processes,
        )


def find_processes(pid: int, *, most: int = 1) -> Iterator[int]:
    """``pid`` and its descendants; stops once more than ``most`` are found."""
    waiting, found = [pid], 0
    while waiting and found <= most:
        current = waiting.pop()
        found += 1
        yield current
        with contextlib.suppress(*_GONE):
            for task in os.listdir(f"/proc/{current}/task") if most > 1 else ():
                path = f"/proc/{current}/task/{task}/children"
                waiting += map(int, Path(path).read_text().split())


def read_usage(pids: Iterable[int]) -> Usage:
    """Sum over processes of what they hold and have used.

    Memory is what the processes hold for themselves, with its page tables and
    without the libraries that all programs share.
    """
    total = Usage()
    for pid in pids:
        with contextlib.suppress(*_GONE):  # it has just ended
            total += _read_process(pid)
    return total


def _read_process(pid: int) -> Usage:
    status = _read_status(f"/proc/{pid}/status")
    threads = int(status.get("Threads", "1"))
    if "VmRSS" not in status and threads > 1:  # its first thread has left it
        status |= _status_of_others(pid)
    kilobytes = sum(int(status.get(key, "0").split()[0]) for key in _MEMORY)
    text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    fields = text.rpartition(")")[2].split()
    cpu = sum(map(int, fields[11:15])) / _CLOCK_TICKS  # own and waited-for children's
    return Usage(cpu, kilobytes * 1024, threads, 1)


def _read_status(path: str) -> dict[str, str]:
    lines = Path(path).read_text(errors="replace").splitlines()
    return {key: value.strip() for key, _, value in (x.partition(":") for x in lines)}


def _status_of_others(pid: int) -> dict[str, str]:
    for task in _living_tasks(pid):
        with contextlib.suppress(*_GONE):
            status = _read_status(f"{task}/status")
            if "VmRSS" in status:
                return status
    return {}


def _living_tasks(pid: int) -> list[str]:
    return [f"/proc/{pid}/task/{task}" for task in os.listdir(f"/proc/{pid}/task")]


def weigh_deleted(pids: Iterable[int], folder: Path, each: int) -> int:
    """Bytes of deleted files of ``folder`` that descriptors or mappings keep.

    Args:
        pids: the processes that may keep them.
        folder: where they were, on a file system that others use too.
        each: what to take for a file of unknown size: one that is only mapped,
            which the kernel shows to root alone.
    """
    found: dict[int, int] = {}
    device = os.stat(folder).st_dev
    for task in (task for pid in pids for task in _tasks_with_files(pid)):
        with contextlib.suppress(*_GONE, PermissionError):
            for name in os.listdir(f"{task}/fd"):
                _note_deleted(found, f"{task}/fd/{name}", device)
            for line in Path(f"{task}/maps").read_bytes().splitlines():
                _note_mapped(found, task, line.split(maxsplit=5), folder, each)
    return sum(found.values())


def _tasks_with_files(pid: int) -> list[str]:
    """The threads of a process share their files, so one that lives is enough."""
    with contextlib.suppress(*_GONE):
        return [task for task in _living_tasks(pid) if not _is_dead(f"{task}/stat")][:1]
    return []


def _is_dead(path: str) -> bool:
    with contextlib.suppress(*_GONE):
        return Path(path).read_bytes().rpartition(b")")[2].split()[0] in b"ZX"
    return True


def _note_deleted(found: dict[int, int], path: str, device: int) -> bool:
    """Whether ``path`` could be looked at; a deleted file is then in ``found``."""
    try:
        seen = os.stat(path)
    except OSError:
        return False
    if stat.S_ISREG(seen.st_mode) and not seen.st_nlink and seen.st_dev == device:
        found[seen.st_ino] = max(seen.st_size, seen.st_blocks * 512)
    return True


def _note_mapped(
    found: dict[int, int], task: str, line: list[bytes], folder: Path, each: int
) -> None:
    if len(line) < 6 or not line[5].endswith(b" (deleted)"):
        return
    if not line[5].startswith(os.fsencode(folder)) or int(line[4]) in found:
        return
    process = task.partition("/task/")[0]
    place = f"{process}/map_files/{line[0].decode()}"
    if not _note_deleted(found, place, os.stat(folder).st_dev):
        found[int(line[4])] = each

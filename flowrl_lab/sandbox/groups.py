"""A control group for one program: the kernel then holds its memory exactly.

Control groups (cgroup v2) count all that a program makes the kernel hold, such as
page tables, pipes and files in memory, and count the processor time of every process
whoever waited for it.  They need a folder of the group file system in which this user
may make groups: root has one where systemd runs, a user has one in a session of
systemd, and containers mostly have none.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

from flowrl_lab.sandbox.usage import read_usage

__all__ = ["Group", "find_place"]

_NAME = "flowrl-sandbox-{}-{}"
_NUMBERS = itertools.count()
_REMOVE_SECONDS = 5.0  # for the kernel to take the last process out


class Group:
    """One group, from before its program's first line to after its end.

    Args:
        place: the folder to make it in, see ``find_place``.
        memory_bytes: all that its processes may hold, files in memory included.
        tasks: threads and processes at most.
    """

    def __init__(self, place: Path, memory_bytes: int, tasks: int) -> None:
        self._memory = memory_bytes
        self._folder = place / _NAME.format(os.getpid(), next(_NUMBERS))
        self._folder.mkdir()
        try:
            self._set("memory.oom.group", 1)
            with contextlib.suppress(FileNotFoundError):  # a kernel without swap
                self._set("memory.swap.max", 0)
            with contextlib.suppress(FileNotFoundError):  # not handed on to us
                self._set("pids.max", tasks)
        except BaseException:
            self._folder.rmdir()
            raise

    def _set(self, name: str, value: int) -> None:
        (self._folder / name).write_text(str(value), "ascii")

    def _counters(self, name: str) -> dict[str, int]:
        lines = (self._folder / name).read_text("utf-8").splitlines()
        return {key: int(value) for key, value in map(str.split, lines)}

    def add(self, pid: int) -> None:
        """Move a process in; what it holds already is taken from what it may hold."""
        before = read_usage([pid]).memory_bytes
        self._set("memory.max", max(0, self._memory - before))
        self._set("cgroup.procs", pid)

    @property
    def cpu_seconds(self) -> float:
        """What all its processes have used, those that are gone included."""
        return self._counters("cpu.stat")["usage_usec"] / 1e6

    @property
    def went_over(self) -> bool:
        """Whether the kernel ended a process for its memory."""
        return self._counters("memory.events")["oom_kill"] > 0

    def close(self) -> None:
        """Kill what is left in it, and remove it."""
        with contextlib.suppress(FileNotFoundError):  # before Linux 5.14
            self._set("cgroup.kill", 1)
        end = time.monotonic() + _REMOVE_SECONDS
        while True:
            try:
                return self._folder.rmdir()
            except OSError:
                if time.monotonic() > end:  # the next one to look sweeps it up
                    return None
                time.sleep(0.001)


@functools.cache
def find_place() -> Path | None:
    """A folder of the group file system where groups can be made; None without."""
    for folder in _candidates(Path("/proc/self")):
        with contextlib.suppress(OSError):
            given = (folder / "cgroup.subtree_control").read_text("utf-8").split()
            if "memory" in given and os.access(folder, os.W_OK):
                _sweep(folder)
                _try_out(folder)
                return folder
    return None


def _candidates(process: Path) -> list[Path]:
    """The group of this process and those above it, nearest first."""
    try:
        lines = (process / "cgroup").read_text("utf-8", "surrogateescape").splitlines()
        mounts = (
            (process / "mountinfo").read_text("utf-8", "surrogateescape").splitlines()
        )
    except OSError:
        return []
    own = next((line[3:] for line in lines if line.startswith("0::/")), None)
    for mount in map(str.split, mounts):
        if own is not None and mount[mount.index("-") + 1] == "cgroup2":
            root, top = mount[3], Path(mount[4])
            inner = own.removeprefix(root) if root != "/" else own
            place = top / inner.lstrip("/")
            return [f for f in (place, *place.parents) if f.is_relative_to(top)]
    return []


def _sweep(folder: Path) -> None:
    """Remove the groups of processes that were killed before they could."""
    for left in folder.glob(_NAME.format("*", "*")):
        if not Path("/proc", left.name.split("-")[2]).exists():
            with contextlib.suppress(OSError):
                left.rmdir()


def _try_out(folder: Path) -> None:
    """OSError unless a process can be moved into a new group."""
    group = Group(folder, 1 << 30, 8)
    try:
        with subprocess.Popen(
            [sys.executable, "-ISc", "input()"], stdin=subprocess.PIPE
        ) as process:
            try:
                group.add(process.pid)
            finally:
                process.kill()
        _ = group.cpu_seconds, group.went_over  # the counters must be there
    finally:
        group.close()

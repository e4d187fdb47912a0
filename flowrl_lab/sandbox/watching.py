"""Follow a sandboxed process to its end: read its output, count, stop it in time."""

from __future__ import annotations

import contextlib
import math
import os
import selectors
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from flowrl_lab.sandbox.scratch import MAX_ENTRIES, weigh

if TYPE_CHECKING:
    from flowrl_lab.sandbox.forking import Forked
    from flowrl_lab.sandbox.running import Limits, Started

__all__ = ["Usage", "Watch", "read_usage"]

_TICK = 0.01  # seconds between two looks at a program's use of the machine
_START_SECONDS = 60.0  # an interpreter that takes longer to start is broken
_DRAIN_SECONDS = 5.0  # for what is left in the pipes of a dead process
_CLOCK_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


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


def read_usage(pid: int, *, most: int = 1) -> Usage:
    """Sum over the process tree of ``pid``; stops once more than ``most`` are found.

    Memory is what the processes hold for themselves (anonymous and shared memory,
    swapped out or not), without the libraries that all programs share.
    """
    total, waiting = Usage(), [pid]
    while waiting and total.processes <= most:
        current = waiting.pop()
        try:
            total += _read_process(current)
            if most > 1:
                for task in os.listdir(f"/proc/{current}/task"):
                    path = f"/proc/{current}/task/{task}/children"
                    waiting += map(int, Path(path).read_text().split())
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
    return total


def _read_process(pid: int) -> Usage:
    status: dict[str, str] = {}
    for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
        key, _, value = line.partition(":")
        status[key] = value.strip()
    kept = ("RssAnon", "RssShmem", "VmSwap")
    kilobytes = sum(int(status.get(key, "0").split()[0]) for key in kept)
    stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    fields = stat.rpartition(")")[2].split()
    cpu = sum(map(int, fields[11:15])) / _CLOCK_TICKS  # own and waited-for children's
    return Usage(cpu, kilobytes * 1024, int(status.get("Threads", "1")), 1)


@dataclass
class Watch:
    """One program from its start to its end.

    Attributes:
        process: the interpreter that was started, with pipes as its output.
        control: the pipe on which it says that it is locked in.
        limits: what the program may use.
        scratch: the folder it may write in.
        given: (entries, bytes) that were in the folder from the start.
        outcome: what it was stopped for; empty if it ended by itself.
        reason: the same in words.
        seconds: wall time of the program, without the interpreter's start.
        cpu_seconds: processor time of the process, the start included.
    """

    process: Started | Forked
    control: int
    limits: Limits
    scratch: Path
    given: tuple[int, int]
    outcome: str = ""
    reason: str = ""
    report: bytes = b""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    output: dict[str, bytearray] = field(
        default_factory=lambda: {"stdout": bytearray(), "stderr": bytearray()}
    )
    _started: float = 0.0
    _allowed: float = 0.0
    _cpu_before: float = 0.0
    _cpu_allowed: float = math.inf
    _deadline: float = 0.0
    _looked: float = 0.0

    def follow(self) -> None:
        """Return when the program and all it started are gone."""
        self.open()
        try:
            while not self.step():
                pass
        finally:
            self.finish()

    def open(self) -> None:
        """Begin to listen; ``step`` until it says True, then ``finish``."""
        self._cpu_allowed = self.limits.cpu_seconds
        self.allow(_START_SECONDS)
        self._ended = os.pidfd_open(self.process.pid)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._ended, selectors.EVENT_READ, "ended")
        self._selector.register(self.control, selectors.EVENT_READ, "control")
        for name in self.output:
            stream = getattr(self.process, name)
            self._selector.register(stream.fileno(), selectors.EVENT_READ, name)

    def step(self) -> bool:
        """Read what there is and look at the limits; True once it has ended."""
        over = self._take()
        if not over:
            self._look()
        return over

    def allow(
        self, seconds: int | float, cpu_seconds: int | float | None = None
    ) -> None:
        """Let the program run, and compute, for so long from now on."""
        self._allowed, self._deadline = seconds, time.monotonic() + seconds
        if cpu_seconds is not None:
            most = max(2, self.limits.processes + 1)
            self._cpu_before = read_usage(self.process.pid, most=most).cpu_seconds
            self._cpu_allowed = cpu_seconds

    def finish(self) -> None:
        """Kill whatever is left, note what it cost, and read the rest."""
        with self._selector as selector:
            selector.unregister(self._ended)
            os.close(self._ended)
            _kill_group(self.process.pid)
            status, self.cpu_seconds = self.process.wait4()
            self.process.returncode = os.waitstatus_to_exitcode(status)
            if self._started:
                self.seconds = time.monotonic() - self._started
            end = time.monotonic() + _DRAIN_SECONDS
            while len(selector.get_map()) and time.monotonic() < end:
                self._take()

    @property
    def ready(self) -> bool:
        """Whether the program is locked in and running."""
        return bool(self._started)

    def _take(self) -> bool:
        over = False
        for key, _ in self._selector.select(_TICK):
            if key.data == "ended":
                over = True
                continue
            chunk = os.read(key.fd, 65_536)
            if not chunk:
                self._selector.unregister(key.fd)
            elif key.data == "control":
                self._hear(chunk)
            else:
                self._keep(key.data, chunk)
        return over

    def _hear(self, chunk: bytes) -> None:
        self.report += chunk
        if self.report == b"ready":
            self._started = time.monotonic()
            self.allow(self.limits.wall_seconds)

    def _keep(self, name: str, chunk: bytes) -> None:
        kept = self.output[name]
        room = self.limits.output_bytes - len(kept)
        kept += chunk[:room]
        if len(chunk) > room:
            self._condemn(
                "output",
                f"wrote more than {self.limits.output_bytes:,} bytes to {name}",
            )

    def _look(self) -> None:
        """Stop the program if it has used up one of its limits."""
        now = time.monotonic()
        if now < self._looked + _TICK:
            return
        self._looked = now
        if now > self._deadline:
            what = "ran" if self.ready else "the interpreter started"
            self._condemn("timeout", f"{what} for more than {self._allowed:g} s")
        if not self._started:
            return
        limits, many = self.limits, self.limits.processes > 1
        waiting = 1 if many else 0  # the process that waits for the program
        most = limits.processes + waiting
        usage = read_usage(self.process.pid, most=most)
        if usage.cpu_seconds > self._cpu_before + self._cpu_allowed:
            allowed = f"{self._cpu_allowed:g} s of processor time"
            self._condemn("timeout", f"used more than {allowed}")
        elif usage.memory_bytes > limits.memory_mb << 20:
            self._condemn("memory", f"used more than {limits.memory_mb} MB of memory")
        elif usage.processes > most:
            self._condemn("killed", f"ran more than {limits.processes} processes")
        elif usage.threads > limits.threads + most:
            self._condemn("killed", f"ran more than {limits.threads} threads")
        else:
            self._look_at_files()

    def _look_at_files(self) -> None:
        most = MAX_ENTRIES + self.given[0]
        entries, size = weigh(self.scratch, most)
        if entries > most:
            self._condemn("output", f"made more than {MAX_ENTRIES} files and folders")
        elif size > (self.limits.file_mb << 20) + self.given[1]:
            self._condemn(
                "output", f"its files hold more than {self.limits.file_mb} MB"
            )

    def _condemn(self, outcome: str, reason: str) -> None:
        if not self.outcome:
            self.outcome, self.reason = outcome, reason
            _kill_group(self.process.pid)


def _kill_group(pid: int) -> None:
    """Kill the session: the program cannot leave it (no setsid, no setpgid)."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # already gone
        os.killpg(pid, signal.SIGKILL)

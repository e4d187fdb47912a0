"""Follow a sandboxed process to its end: read its output, count, stop it in time."""

from __future__ import annotations

import contextlib
import math
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import IO, Protocol, runtime_checkable

from flowrl_lab.sandbox.groups import Group
from flowrl_lab.sandbox.limits import Limits
from flowrl_lab.sandbox.scratch import MAX_ENTRIES, Scratch
from flowrl_lab.sandbox.usage import Usage, find_processes, read_usage, weigh_deleted

__all__ = ["Process", "Reply", "Started", "Watch", "widen"]

_TICK = 0.01  # seconds between two looks at a program's use of the machine
_SHORTEST_TICK = 0.001  # when it has nearly used up a limit
_FASTEST = 4 << 30  # bytes a second: no program fills memory faster
_START_SECONDS = 60.0  # an interpreter that takes longer to start is broken
_DRAIN_SECONDS = 5.0  # for what is left in the pipes of a dead process
_PIPE_BYTES = 1 << 20  # what Linux allows everybody
_CORES = os.cpu_count() or 1


Reply = Callable[[bytes], bytes]


def widen(stream: IO[bytes]) -> None:
    """Let a pipe take as much as one may at once, and never wait for room in it."""
    import fcntl  # not everywhere, and only here

    os.set_blocking(stream.fileno(), False)
    with contextlib.suppress(OSError):  # more than this user may have
        fcntl.fcntl(stream, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


@runtime_checkable
class Process(Protocol):
    """An interpreter, however it came to be; its number is its own until its end."""

    pid: int
    returncode: int | None
    stdin: IO[bytes]
    stdout: IO[bytes]
    stderr: IO[bytes]

    def end(self) -> float:
        """Kill it if it still runs, and set ``returncode``; its processor seconds."""


@dataclass
class Started:
    """An interpreter that is about to lock itself in.

    Attributes:
        process: with pipes as its output.
        control: where it hands over its folder and says that it is locked in.
        scratch: the folder it may write in.
        group: holds it to its memory; None where there are no control groups.
    """

    process: Process
    control: socket.socket
    scratch: Scratch
    group: Group | None


@dataclass
class Watch:
    """One program from its start to its end.

    Attributes:
        started: the process and what belongs to it.
        limits: what the program may use.
        outcome: what it was stopped for; empty if it ended by itself.
        reason: the same in words.
        seconds: wall time of the program, without the interpreter's start.
        cpu_seconds: processor time of all its processes, the start included.
    """

    started: Started
    limits: Limits
    outcome: str = ""
    reason: str = ""
    report: bytes = b""
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    output: dict[str, bytearray] = field(
        default_factory=lambda: {"stdout": bytearray(), "stderr": bytearray()}
    )
    _begun: float = 0.0
    _allowed: float = 0.0
    _cpu_before: float = 0.0
    _cpu_allowed: float = math.inf
    _deadline: float = 0.0
    _next_look: float = 0.0
    _next_close_look: float = 0.0

    def follow(self, reply: Reply | None = None) -> None:
        """Return when the program and all it started are gone.

        Args:
            reply: answers each line that it says; it stands still meanwhile.
        """
        self.open()
        try:
            while not self.step():
                if reply is not None and b"\n" in self.output["stdout"]:
                    self._answer(reply)
        finally:
            self.finish()

    def _answer(self, reply: Reply) -> None:
        said = self.output["stdout"]
        line = bytes(said[: said.index(b"\n")])
        del said[: len(line) + 1]
        self.hold()
        try:
            answer = reply(line)
        finally:
            self.release()
        with contextlib.suppress(BrokenPipeError):  # it ended
            if self.started.process.stdin.write(answer) != len(answer):
                self._condemn("output", "asked for more than it reads")

    def open(self) -> None:
        """Begin to listen; ``step`` until it says True, then ``finish``."""
        self._cpu_allowed = self.limits.cpu_seconds
        self.allow(_START_SECONDS)
        self._ended = os.pidfd_open(self.pid)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._ended, selectors.EVENT_READ, "ended")
        self._selector.register(self.started.control, selectors.EVENT_READ, "control")
        for name in self.output:
            stream = getattr(self.started.process, name)
            self._selector.register(stream.fileno(), selectors.EVENT_READ, name)

    def step(self) -> bool:
        """Read what there is and look at the limits; True once it has ended."""
        pause = self._next_look - time.monotonic()
        over = self._take(min(max(pause, 0.0), _TICK))
        if not over:
            self._look()
        return over

    def drain(self) -> dict[str, bytearray]:
        """Read what there is, without waiting; what was said and not yet taken."""
        self._take(0.0)
        return self.output

    def hold(self) -> None:
        """Let it stand still, so that it uses nothing while nobody looks."""
        _send(self.pid, signal.SIGSTOP)

    def release(self) -> None:
        """Let it go on."""
        _send(self.pid, signal.SIGCONT)

    def allow(
        self, seconds: int | float, cpu_seconds: int | float | None = None
    ) -> None:
        """Let the program run, and compute, for so long from now on."""
        self._allowed, self._deadline = seconds, time.monotonic() + seconds
        if cpu_seconds is not None:
            self._cpu_before = self._read_usage().cpu_seconds
            self._cpu_allowed = cpu_seconds

    def finish(self) -> None:
        """Kill whatever is left, note what it cost, and read the rest."""
        with self._selector as selector:
            selector.unregister(self._ended)
            os.close(self._ended)
            _send(self.pid, signal.SIGKILL)
            self._count_cpu(self.started.process.end())
            if self.ready:
                self.seconds = time.monotonic() - self._begun
                self._look_back()
            end = time.monotonic() + _DRAIN_SECONDS
            while len(selector.get_map()) and time.monotonic() < end:
                self._take(_TICK)

    @property
    def ready(self) -> bool:
        """Whether the program is locked in and running."""
        return bool(self._begun)

    @property
    def pid(self) -> int:
        """Of the process that was started; the program's own may be below it."""
        return self.started.process.pid

    @property
    def exit_code(self) -> int:
        """As a shell shows it negated: -9 for a process killed by signal 9."""
        return self.started.process.returncode

    def _take(self, seconds: float) -> bool:
        over = False
        for key, _ in self._selector.select(seconds):
            if key.data == "ended":
                over = True
            elif key.data == "control":
                self._hear()
            else:
                chunk = os.read(key.fd, 65_536)
                if not chunk:
                    self._selector.unregister(key.fd)
                self._keep(key.data, chunk)
        return over

    def _hear(self) -> None:
        """One message: the folder, then that it is ready, or why it is not."""
        control = self.started.control
        said, handles, _, _ = socket.recv_fds(
            control, 65_536, 1, socket.MSG_CMSG_CLOEXEC
        )
        for handle in handles:
            self.started.scratch.take(handle, own=said == b"own")
        if not said:
            self._selector.unregister(control)
        elif said == b"ready":
            self._begun = time.monotonic()
            self.allow(self.limits.wall_seconds)
        elif not handles:
            self.report = said

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
        if now < self._next_look:
            return
        if now > self._deadline:
            what = "ran" if self.ready else "the interpreter started"
            self._condemn("timeout", f"{what} for more than {self._allowed:g} s")
        if not self.ready:
            self._next_look = now + _TICK
            return
        usage = self._read_usage()
        self._look_at_usage(usage)
        self._look_at_files()
        room = (self.limits.memory_mb << 20) - usage.memory_bytes
        cpu = self._cpu_before + self._cpu_allowed - usage.cpu_seconds
        pause = min(_TICK, room / _FASTEST, cpu / _CORES)
        self._next_look = time.monotonic() + max(pause, _SHORTEST_TICK)

    def _read_usage(self) -> Usage:
        usage = read_usage(find_processes(self.pid, most=self._most_processes))
        self._count_cpu(usage.cpu_seconds)
        return replace(usage, cpu_seconds=self.cpu_seconds)

    def _count_cpu(self, seconds: float) -> None:
        """Keep the most that was seen: a process that is gone is not counted again."""
        if self.started.group is not None:
            seconds = max(seconds, self.started.group.cpu_seconds)
        self.cpu_seconds = max(self.cpu_seconds, seconds)

    @property
    def _most_processes(self) -> int:
        most = self.limits.processes
        return most + 1 if most > 1 else 1  # one waits for the program

    def _look_at_usage(self, usage: Usage) -> None:
        limits, most = self.limits, self._most_processes
        if usage.cpu_seconds > self._cpu_before + self._cpu_allowed:
            allowed = f"{self._cpu_allowed:g} s of processor time"
            self._condemn("timeout", f"used more than {allowed}")
        elif usage.memory_bytes > limits.memory_mb << 20:
            self._condemn_for_memory()
        elif usage.processes > most:
            self._condemn("killed", f"ran more than {limits.processes} processes")
        elif usage.threads > limits.threads + most:
            self._condemn("killed", f"ran more than {limits.threads} threads")

    def _look_at_files(self) -> None:
        entries, size = self.started.scratch.weigh()
        most = self.limits.file_mb << 20
        if entries > MAX_ENTRIES:
            self._condemn("output", f"made more than {MAX_ENTRIES} files and folders")
        elif size > most or size + self._weigh_deleted() > most:
            self._condemn(
                "output", f"its files hold more than {self.limits.file_mb} MB"
            )

    def _weigh_deleted(self) -> int:
        """What deleted files hold on a file system that others use too.

        Takes its time where a program has many mappings, so it is not done each time.
        """
        scratch, before = self.started.scratch, time.monotonic()
        if scratch.own or before < self._next_close_look:
            return 0
        pids = find_processes(self.pid, most=self._most_processes)
        size = weigh_deleted(pids, scratch.path, self.limits.file_mb << 20)
        now = time.monotonic()
        self._next_close_look = now + 10 * (now - before)
        return size

    def _look_back(self) -> None:
        """What the last look came too early for."""
        group = self.started.group
        if group is not None and group.went_over:
            self._condemn_for_memory()
        self._look_at_files()

    def _condemn_for_memory(self) -> None:
        self._condemn("memory", f"used more than {self.limits.memory_mb} MB of memory")

    def _condemn(self, outcome: str, reason: str) -> None:
        if not self.outcome:
            self.outcome, self.reason = outcome, reason
            if self.started.process.returncode is None:  # else the number is free
                _send(self.pid, signal.SIGKILL)


def _send(pid: int, number: int) -> None:
    """To the whole session, which the program cannot leave (no setsid, no setpgid)."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # already gone
        os.killpg(pid, number)

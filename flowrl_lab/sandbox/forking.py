"""Fresh sandboxed processes that need not wait for slow imports.

One interpreter, which is never told anything, imports what is slow.  Each program then
runs in a new process that is forked from it: as fresh as a new interpreter, as locked
in as by ``run_python``, and without the seconds that ``import torch`` takes.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import socket
import subprocess
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from flowrl_lab.sandbox.running import (
    Limits,
    SandboxResult,
    SandboxUnavailable,
    environment,
    interpreter,
    make_order,
    run_order,
    sandbox_problem,
)
from flowrl_lab.sandbox.scratch import check_name

__all__ = ["ForkServer", "Forked"]

_SCRIPT = Path(__file__).resolve().parent / "inside" / "forking.py"
_IMPORT_SECONDS = 300.0  # on a busy machine with a cold disk
_FORK_SECONDS = 60.0
_CONTROL = 3  # the handle on which a forked program reports


class ForkServer:
    """Runs programs as ``run_python`` does, each in a process that it forks.

    May be used from several threads at once.

    Args:
        imports: modules that are imported once, before any program is known.
        folders: where they are searched for; no program can read there for that.
        readable: what each program may read, as for ``run_python``.
    """

    def __init__(
        self,
        imports: Sequence[str],
        *,
        folders: Sequence[Path] = (),
        readable: Sequence[Path] = (),
    ) -> None:
        self._told = {"imports": list(imports), "folders": list(map(str, folders))}
        self._readable = tuple(readable)
        self._lock = threading.Lock()
        self._running: _Running | None = None

    def run(
        self,
        source: str,
        *,
        limits: Limits,
        files: Mapping[str, bytes] = {},
        collect: Sequence[str] = (),
    ) -> SandboxResult:
        """Run ``source``; everything else as ``run_python``, which see.

        Raises:
            SandboxUnavailable: where there is no sandbox, or an import fails.
            ValueError: for a name that leaves the scratch folder.
        """
        order = make_order(source, limits, self._readable, ())
        for name in (*files, *collect):
            check_name(name, "files or collect")
        problem = sandbox_problem()
        if problem is not None:
            raise SandboxUnavailable(problem)
        return run_order(order, limits, files, collect, self._start)

    def close(self) -> None:
        """End the interpreter with all that it forked; ``run`` starts a new one."""
        with self._lock:
            if self._running is not None:
                self._running.close()
                self._running = None

    @contextlib.contextmanager
    def _start(
        self, order: dict[str, Any], scratch: Path
    ) -> Iterator[tuple[Forked, int]]:
        """As ``running.start_process``."""
        with contextlib.ExitStack() as stack:
            parent, process, control = self._fork(stack)
            here = {"control": _CONTROL, "scratch": str(scratch), "parent": parent}
            with process.stdin, contextlib.suppress(BrokenPipeError):
                process.stdin.write(marshal.dumps({**order, **here}))
            yield process, control

    def _fork(self, stack: contextlib.ExitStack) -> tuple[int, Forked, int]:
        with self._lock:
            if self._running is None or self._running.owner != os.getpid():
                self._running = _Running(self._told)
            try:
                return self._running.fork(stack)
            except (OSError, ValueError):  # killed when memory was short, or by hand
                self._running.close()
                self._running = _Running(self._told)
                return self._running.fork(stack)


@dataclass
class Forked:
    """A forked program, as far as a process of ours is known by such things."""

    pid: int
    line: socket.socket
    stdin: IO[bytes]
    stdout: IO[bytes]
    stderr: IO[bytes]
    returncode: int | None = field(default=None)

    def wait4(self) -> tuple[int, float]:
        """Its exit status as the kernel gives it, and its processor seconds."""
        try:
            self.line.send(b"end")
            return marshal.loads(self.line.recv(64))
        except (OSError, EOFError, ValueError):  # the interpreter died, and so did it
            return 9, 0.0


class _Running:
    """The interpreter with its imports, from its start to its end."""

    def __init__(self, told: dict[str, list[str]]) -> None:
        self.owner = os.getpid()
        self._orders, theirs = _pair(_IMPORT_SECONDS)
        with theirs:
            self._process = subprocess.Popen(
                [interpreter(), "-S", "-s", "-P", "-X", "utf8", str(_SCRIPT)],
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=environment(Path("/")),
                start_new_session=True,
            )
        # Its end of the socket closes with this process, however that ends.
        self._end = weakref.finalize(
            self, _stop, self.owner, self._process, self._orders
        )
        self._orders.send(marshal.dumps(told))
        said = self._hear()
        if said != b"ready":
            self.close()
            what = said.decode(errors="replace") or "it ended at its start"
            raise SandboxUnavailable(f"an import failed: {what}")
        self._orders.settimeout(_FORK_SECONDS)

    def _hear(self) -> bytes:
        try:
            return self._orders.recv(1024)
        except OSError as error:
            return str(error).encode()

    def fork(self, stack: contextlib.ExitStack) -> tuple[int, Forked, int]:
        """A new child: its parent's number, the child, and the pipe it reports on.

        Everything is closed with ``stack``; then the child's end is asked for too.
        """
        with contextlib.ExitStack() as theirs:
            ends = []
            for mine, other in ((1, 0), (0, 1), (0, 1), (0, 1)):
                pipe = os.pipe()
                theirs.callback(os.close, pipe[other])
                ends.append((pipe[mine], pipe[other]))
            line, far = _pair(_FORK_SECONDS)
            stack.enter_context(line)
            theirs.enter_context(far)
            streams = [
                stack.enter_context(open(mine, mode, buffering=0))
                for (mine, _), mode in zip(ends[:3], ("wb", "rb", "rb"), strict=True)
            ]
            control = ends[3][0]
            stack.callback(os.close, control)
            handles = [*(other for _, other in ends), far.fileno()]
            socket.send_fds(self._orders, [b"fork"], handles)
        # Only now: with its far end open here too, a dead line would say nothing.
        return self._process.pid, Forked(int(line.recv(16)), line, *streams), control

    def close(self) -> None:
        self._end()


def _pair(seconds: float) -> tuple[socket.socket, socket.socket]:
    """Both ends of a line for whole messages; the first one does not wait for ever."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(seconds)
    return ours, theirs


def _stop(owner: int, process: subprocess.Popen, orders: socket.socket) -> None:
    """Its children die with it."""
    orders.close()
    if owner == os.getpid():  # a fork of who started it leaves it alone
        process.kill()
        process.wait()

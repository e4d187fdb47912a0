"""Fresh sandboxed processes that need not wait for slow imports.

One interpreter, which is never told anything, imports what is slow.  Each program then
runs in a new process that is forked from it: as fresh as a new interpreter, as locked
in as by ``run_python``, and without the seconds that ``import torch`` takes.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import signal
import socket
import subprocess
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from flowrl_lab.sandbox.limits import Limits
from flowrl_lab.sandbox.running import (
    Reply,
    SandboxResult,
    SandboxUnavailable,
    environment,
    interpreter,
    make_order,
    run_order,
)

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
        reply: Reply | None = None,
    ) -> SandboxResult:
        """Run ``source``; everything else as ``run_python``, which see.

        Args:
            source: the program.
            limits: as there; the output is that of one line, if they are answered.
            files: as there.
            collect: as there.
            reply: answers each line that the program writes; the answer stands on
                its standard input, if it reads it.

        Raises:
            SandboxUnavailable: as ``run_python``, or where an import fails.
            ValueError: for a name that leaves the scratch folder.
        """
        order = make_order(source, limits, self._readable, ())
        return run_order(order, limits, files, collect, self._launch, reply)

    def close(self) -> None:
        """End the interpreter with all that it forked; ``run`` starts a new one."""
        with self._lock:
            if self._running is not None:
                self._running.close()
                self._running = None

    def _launch(self, folder: Path, control: int) -> tuple[Forked, dict[str, Any]]:
        """See ``running.Launch``; what is forked goes to its folder by itself."""
        del folder
        with self._lock:
            if self._running is None or self._running.owner != os.getpid():
                self._running = _Running(self._told)
            try:
                process = self._running.fork(control)
            except (OSError, ValueError):  # killed when memory was short, or by hand
                self._running.close()
                self._running = _Running(self._told)
                process = self._running.fork(control)
            return process, {"control": _CONTROL, "parent": self._running.pid}


@dataclass
class Forked:
    """A forked program; see ``watching.Process``."""

    pid: int
    line: socket.socket
    stdin: IO[bytes]
    stdout: IO[bytes]
    stderr: IO[bytes]
    returncode: int | None = None

    def end(self) -> float:
        """See ``watching.Process``; its parent does it, for it is no child of ours."""
        status, seconds = signal.SIGKILL, 0.0  # if the parent died, and so it did
        with self.line, contextlib.suppress(OSError, EOFError, ValueError):
            self.line.send(b"end")
            status, seconds = marshal.loads(self.line.recv(64))
        self.returncode = os.waitstatus_to_exitcode(status)
        return seconds


class _Running:
    """The interpreter with its imports, from its start to its end."""

    def __init__(self, told: dict[str, list[str]]) -> None:
        self.owner = os.getpid()
        self._orders, theirs = _pair(_IMPORT_SECONDS)
        with theirs:
            self._process = subprocess.Popen(
                [*interpreter(), str(_SCRIPT)],
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

    @property
    def pid(self) -> int:
        """The parent of all that it forks."""
        return self._process.pid

    def fork(self, control: int) -> Forked:
        """A new child, which waits for its order and reports to ``control``."""
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            streams, handles = [], []
            for mode in ("wb", "rb", "rb"):
                reading, writing = os.pipe()
                mine, other = (writing, reading) if mode == "wb" else (reading, writing)
                streams.append(ours.enter_context(open(mine, mode, buffering=0)))
                theirs.callback(os.close, other)
                handles.append(other)
            line, far = _pair(_FORK_SECONDS)
            ours.enter_context(line)
            theirs.enter_context(far)
            socket.send_fds(self._orders, [b"fork"], [*handles, control, far.fileno()])
            theirs.close()  # else a line whose far end is gone would not say so
            child = Forked(int(line.recv(16)), line, *streams)
            ours.pop_all()
            return child

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

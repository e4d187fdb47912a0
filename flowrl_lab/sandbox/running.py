"""Start a program in the sandbox and say how it went."""

from __future__ import annotations

import contextlib
import functools
import marshal
import math
import os
import platform
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowrl_lab.sandbox.groups import Group, find_place
from flowrl_lab.sandbox.limits import Limits
from flowrl_lab.sandbox.scratch import MAX_ENTRIES, Scratch, check_name
from flowrl_lab.sandbox.watching import Process, Reply, Started, Watch, widen

__all__ = [
    "SandboxResult",
    "SandboxUnavailable",
    "run_python",
    "sandbox_problem",
    "sandbox_weaknesses",
]

_USUAL = Limits()
_START = Path(__file__).resolve().parent / "inside" / "start.py"
_OWN = Path(__file__).resolve().parents[1]  # this package
_MACHINES = ("x86_64", "aarch64")
_SHARED = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
_INSTALLED = ("site-packages", "dist-packages")
_OPEN_FILES = 64  # each pipe among them holds memory that belongs to nobody
_ROOM = 1.05  # what the kernel holds for a process, beside what the process holds
_MEMORY_WORDS = ("MemoryError", "allocate memory", "bad_alloc", "Cannot allocate")


class SandboxUnavailable(RuntimeError):
    """This machine cannot give the guarantees, so nothing was run."""


# Given a folder to start in and a handle to report on: an interpreter that waits for
# its order on its input, and what only this knows of the order (control and parent).
Launch = Callable[[Path, int], tuple[Process, dict[str, Any]]]


@dataclass(frozen=True)
class SandboxResult:
    """How a program ended.

    Attributes:
        outcome: ``"ok"`` (exit code 0), ``"error"`` (any other, such as an
            exception), ``"timeout"``, ``"memory"``, ``"output"`` (wrote too much),
            or ``"killed"`` (crashed, or too many processes or threads).
        exit_code: as a shell shows it negated: -9 for a process killed by signal 9.
        stdout: cut at the limit, decoded as UTF-8 with replacement.
        stderr: the same.
        seconds: wall time of the program.
        cpu_seconds: processor time of its processes, the interpreter's start included.
        files: the collected files that exist and are plain files.
        reason: one line in plain words.
    """

    outcome: str
    exit_code: int
    stdout: str
    stderr: str
    seconds: float
    cpu_seconds: float
    files: dict[str, bytes] = field(default_factory=dict)
    reason: str = ""


def run_python(
    source: str,
    *,
    limits: Limits = _USUAL,
    files: Mapping[str, bytes] = {},
    readable: Sequence[Path] = (),
    collect: Sequence[str] = (),
    arguments: Sequence[str] = (),
) -> SandboxResult:
    """Run ``source`` as a program that can reach nothing but its scratch folder.

    May be called from several threads at once.  The program is single-minded: a
    bare interpreter with the standard library, hash seed 0, no input, and the
    scratch folder as its working directory.

    Args:
        source: the program.
        limits: what it may use.
        files: name -> content, put into the scratch folder before the start.
        readable: more files and folders that it may read.  Folders are searched
            for modules too; a folder that is itself a package can be imported.
        collect: names of files in the scratch folder to bring back, in this order;
            what no longer fits into ``file_mb`` in all is left out.
        arguments: what the program finds in ``sys.argv[1:]``.

    Returns:
        How it ended.  Nothing that the program does raises an exception here.

    Raises:
        SandboxUnavailable: where the platform cannot give these guarantees, or
            not strictly, and ``limits`` are strict.
        ValueError: for a name that leaves the scratch folder, or a readable path
            that does not exist or is the root of the file system.
    """
    order = make_order(source, limits, readable, arguments)
    return run_order(order, limits, files, collect)


def run_order(
    order: dict[str, Any],
    limits: Limits,
    files: Mapping[str, bytes],
    collect: Sequence[str],
    launch: Launch | None = None,
    reply: Reply | None = None,
) -> SandboxResult:
    """Run what ``make_order`` made as ``run_python`` does, in what ``launch`` gives."""
    for name in (*files, *collect):
        check_name(name, "files or collect")
    check_available(limits)
    with _follow(order, limits, files, launch, reply) as watch:
        return _make_result(watch, limits, collect)


def check_available(limits: Limits) -> None:
    """SandboxUnavailable unless programs can be held to ``limits`` here."""
    problem = sandbox_problem()
    if problem is not None:
        raise SandboxUnavailable(problem)
    weak = sandbox_weaknesses() if limits.strict else ()
    if weak:
        raise SandboxUnavailable(
            f"strict limits cannot be had here: {'; '.join(weak)}. Fix: run in a "
            "session of systemd where namespaces are allowed, or set strict=False."
        )


@functools.cache
def sandbox_problem() -> str | None:
    """Why programs cannot be run safely here; None if they can.

    Looks at the platform, then proves it: a trial program tries to read a file
    outside, open a socket and start a process, and must be refused each time.
    """
    if sys.platform != "linux":
        return (
            f"the sandbox needs Linux, this is {platform.system()}: programs written "
            "by a model are not run here. Fix: use WSL 2, a Linux container or Colab."
        )
    if platform.machine() not in _MACHINES:
        return (
            f"the sandbox knows the processors {', '.join(_MACHINES)}; this is "
            f"{platform.machine()}. Fix: run on one of those."
        )
    try:
        result, _ = _run_trial()
    except (OSError, SandboxUnavailable) as error:
        return (
            f"the sandbox could not lock a program in ({error}). It needs a kernel "
            "with Landlock (5.13 or newer) and seccomp, and a container that allows "
            "both. Fix: run on a newer kernel or outside the container."
        )
    if result.outcome != "ok" or result.stdout != "refused refused refused\n":
        return (
            "the sandbox's trial program was not held back "
            f"({result.stdout.strip() or result.reason or result.stderr.strip()}). "
            "Fix: run on a kernel with Landlock and seccomp."
        )
    return None


_TRIAL = """
import os, socket, sys
def attempt(action):
    try:
        action()
    except PermissionError:
        return "refused"
    return "allowed"
print(attempt(lambda: open(sys.argv[1]).read()), attempt(socket.socket),
      attempt(os.fork))
"""


@functools.cache
def sandbox_weaknesses() -> tuple[str, ...]:
    """What the kernel does not hold to its limit at every moment here, in words.

    Empty where all is held.  What is named is still looked at, a hundred times a
    second or more often, and a program that is over is ended: in the meantime it can
    hold more.

    Raises:
        SandboxUnavailable: where programs cannot be run at all.
    """
    problem = sandbox_problem()
    if problem is not None:
        raise SandboxUnavailable(problem)
    found = []
    if find_place() is None:
        found.append("memory is looked at, because this user may make no cgroup (v2)")
    if not _run_trial()[1]:
        found.append("files are looked at, because no file system may be mounted")
    return tuple(found)


def _run_trial() -> tuple[SandboxResult, bool]:
    """How it ended, and whether its files were held by a file system of their own."""
    with tempfile.NamedTemporaryFile(prefix="flowrl-sandbox-") as secret:
        order = make_order(_TRIAL, _USUAL, (), (secret.name,))
        with _follow(order, _USUAL, {}) as watch:
            own = watch.started.scratch.own
            return _make_result(watch, _USUAL, ()), own


def make_order(
    source: str, limits: Limits, readable: Sequence[Path], arguments: Sequence[str]
) -> dict[str, Any]:
    """What the process inside is told, but for the scratch folder and the pipe."""
    paths = [_check_readable(path) for path in readable]
    packages = {p.name: str(p) for p in paths if (p / "__init__.py").is_file()}
    return {
        "source": source,
        "arguments": [str(argument) for argument in arguments],
        "readable": [str(path) for path in paths],
        "packages": packages,
        "folders": [str(p) for p in paths if p.is_dir() and p.name not in packages],
        **_libraries(),
        "serves": False,
        "talks": False,
        # The kernel counts in ticks, at times more than was used: the watch is first.
        "cpu_seconds": math.ceil(1.1 * limits.cpu_seconds),
        "memory_bytes": limits.memory_mb << 20,
        "file_bytes": limits.file_mb << 20,
        "processes": limits.processes,
        "threads": limits.threads,
        "open_files": _OPEN_FILES,
        "strict": limits.strict,
    }


def _check_readable(path: Path) -> Path:
    found = Path(path).resolve()
    if not found.exists() or found == Path(found.anchor):
        raise ValueError(
            f"readable names {str(path)!r}; expected an existing file or folder that "
            "is not the root. Fix: name the one folder that the program needs."
        )
    return found


@functools.cache
def _libraries() -> dict[str, list[str]]:
    """The standard library and the system's shared libraries, and nothing installed.

    Where packages are installed into a folder of libraries, that folder is named by
    its parts: all but the packages.  Its names may be listed, for imports need that.
    """
    base = Path(sys.base_prefix)
    folders = [*map(Path, _SHARED), base / "lib", base / "lib64"]
    for key in ("stdlib", "platstdlib"):
        folders.append(Path(sysconfig.get_path(key, vars=_base_variables())))
    libraries, listed = [], []
    waiting = {folder.resolve() for folder in folders if folder.is_dir()}
    while waiting:
        folder = waiting.pop()
        if not _holds_installed(folder):
            libraries.append(str(folder))
            continue
        listed.append(str(folder))
        # A link's target is named where it lies, or was never to be read.
        waiting |= {
            entry
            for entry in folder.iterdir()
            if not entry.is_symlink() and not _is_installed(entry)
        }
    return {"libraries": sorted(libraries), "listed": sorted(listed)}


def _is_installed(path: Path) -> bool:
    return path.name in _INSTALLED or path == _OWN


def _holds_installed(folder: Path) -> bool:
    if _OWN.is_relative_to(folder):
        return True
    return any(
        any(folder.glob(f"{below}{name}"))
        for name in _INSTALLED
        for below in ("", "*/")
    )


def _base_variables() -> dict[str, str]:
    base, platform_base = sys.base_prefix, sys.base_exec_prefix
    return {
        "base": base,
        "installed_base": base,
        "platbase": platform_base,
        "installed_platbase": platform_base,
    }


@contextlib.contextmanager
def _follow(
    order: dict[str, Any],
    limits: Limits,
    files: Mapping[str, bytes],
    launch: Launch | None = None,
    reply: Reply | None = None,
) -> Iterator[Watch]:
    """A program that has ended, and its folder while it is still there."""
    order = {**order, "talks": order["talks"] or reply is not None}
    with start_process(order, limits, files, launch) as started:
        watch = Watch(started, limits)
        watch.follow(reply)
        if not watch.ready and not watch.outcome:
            raise SandboxUnavailable(say_why(watch))
        yield watch


def say_why(watch: Watch) -> str:
    """Why a program never came to its first line."""
    said = (watch.report or bytes(watch.output["stderr"])).decode(errors="replace")
    return said.strip() or f"the interpreter ended with {watch.exit_code} at its start"


@contextlib.contextmanager
def start_process(
    order: dict[str, Any],
    limits: Limits,
    files: Mapping[str, bytes],
    launch: Launch | None = None,
) -> Iterator[Started]:
    """The locked-in interpreter, with all that goes when it goes.

    Args:
        order: as ``make_order`` made it.
        limits: what the program may use.
        files: name -> content of its folder.
        launch: makes the interpreter; by default a new one.
    """
    with contextlib.ExitStack() as stack:
        scratch = Scratch(files)
        stack.callback(scratch.remove)
        control, inner = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stack.enter_context(control)
        with inner:
            process, told = (launch or _start_interpreter)(scratch.path, inner.fileno())
            stack.callback(_end_process, process)
            message = _make_message({**order, **told}, scratch)
        group = _make_group(limits, scratch)
        if group is not None:
            stack.callback(group.close)
            group.add(process.pid)
        # If it ends early, what it said on the way is read next.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(message)
        if order["serves"] or order["talks"]:
            widen(process.stdin)
        else:
            process.stdin.close()
        yield Started(process, control, scratch, group)


class _Interpreter(subprocess.Popen):
    """A child of this process."""

    def end(self) -> float:
        """See ``Process``; not by ``wait``, which forgets what it cost."""
        os.kill(self.pid, signal.SIGKILL)  # its number is kept until it is waited for
        _, status, cost = os.wait4(self.pid, 0)
        self.returncode = os.waitstatus_to_exitcode(status)
        return cost.ru_utime + cost.ru_stime


def _start_interpreter(folder: Path, control: int) -> tuple[Process, dict[str, Any]]:
    process = _Interpreter(
        [*interpreter(), str(_START)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        cwd=folder,
        env=environment(folder),
        pass_fds=(control,),
        start_new_session=True,
    )
    return process, {"control": control, "parent": os.getpid()}


def _end_process(process: Process) -> None:
    if process.returncode is None:  # interrupted before it was watched
        process.end()
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()


def _make_message(order: dict[str, Any], scratch: Scratch) -> bytes:
    """The order, with what is known only once the folder is there."""
    entries, size = scratch.given
    return marshal.dumps(
        {
            **order,
            "scratch": str(scratch.path),
            "files": {name: bytes(content) for name, content in scratch.files.items()},
            "given_bytes": size,
            "entries": entries + MAX_ENTRIES,
        }
    )


def _make_group(limits: Limits, scratch: Scratch) -> Group | None:
    place = find_place()
    if place is None:
        return None
    files = (limits.file_mb << 20) + scratch.given[1]
    room = int((limits.memory_mb << 20) * _ROOM) + files
    return Group(place, room, limits.processes + 1 + limits.threads)


def interpreter() -> tuple[str, ...]:
    """How a bare one is started, but for the script that it is to run."""
    # Not the one of the virtual environment, which would look for its packages.
    base = getattr(sys, "_base_executable", None) or sys.executable
    return (base, "-S", "-s", "-P", "-X", "utf8")


def environment(scratch: Path) -> dict[str, str]:
    """All that the program finds in its environment."""
    one_thread = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "MALLOC_ARENA_MAX": "1",  # each thread's own would reserve 64 MB of addresses
        **dict.fromkeys(one_thread, "1"),
    }


def _make_result(watch: Watch, limits: Limits, collect: Sequence[str]) -> SandboxResult:
    code = watch.exit_code
    stdout, stderr = (
        bytes(watch.output[name]).decode(errors="replace")
        for name in ("stdout", "stderr")
    )
    outcome, reason = watch.outcome, watch.reason
    if not outcome:
        outcome, reason = _judge_end(code, stderr, watch.cpu_seconds, limits)
    return SandboxResult(
        outcome=outcome,
        exit_code=code,
        stdout=stdout,
        stderr=stderr,
        seconds=watch.seconds,
        cpu_seconds=watch.cpu_seconds,
        files=watch.started.scratch.collect(collect, limits.file_mb << 20),
        reason=reason,
    )


def _judge_end(
    code: int, stderr: str, cpu_seconds: float, limits: Limits
) -> tuple[str, str]:
    """Outcome and reason of a program that was not stopped by its watch."""
    if code == -signal.SIGXCPU or cpu_seconds > limits.cpu_seconds:
        return "timeout", f"used more than {limits.cpu_seconds:g} s of processor time"
    if code == 0:
        return "ok", "ended normally"
    last = stderr.strip().rpartition("\n")[2][:200]
    if any(word in last for word in _MEMORY_WORDS):
        return "memory", f"asked for more than {limits.memory_mb} MB of memory"
    if code < 0:
        return "killed", f"was ended by {signal.Signals(-code).name}"
    return "error", last or f"ended with exit code {code}"

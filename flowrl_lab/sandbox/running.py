"""Start a program in the sandbox and say how it went."""

from __future__ import annotations

import contextlib
import functools
import marshal
import math
import os
import platform
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from flowrl_lab.sandbox.scratch import (
    check_name,
    collect_file,
    fill_scratch,
    remove_scratch,
    weigh,
)
from flowrl_lab.sandbox.watching import Watch

__all__ = [
    "Limits",
    "SandboxResult",
    "SandboxUnavailable",
    "run_python",
    "sandbox_problem",
]

_START = Path(__file__).resolve().parent / "inside" / "start.py"
_OWN = Path(__file__).resolve().parents[1]  # this package
_MACHINES = ("x86_64", "aarch64")
_SHARED = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
_INSTALLED = ("site-packages", "dist-packages")
_OPEN_FILES = 256
_MEMORY_WORDS = ("MemoryError", "allocate memory", "bad_alloc", "Cannot allocate")


class SandboxUnavailable(RuntimeError):
    """This machine cannot give the guarantees, so nothing was run."""


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        cpu_seconds: processor time, the interpreter's start (about 0.05) included.
        wall_seconds: time on the clock, from the program's first line on.
        memory_mb: memory of its own, without shared libraries, so that PyTorch fits
            into the default.  The kernel refuses more to each process
            (RLIMIT_DATA: the program sees a MemoryError); and the parent ends it
            when all its processes together, with shared memory, hold more.  Address
            space is not limited: PyTorch reserves many times what it uses.
        output_bytes: of standard output and of standard error, each.
        file_mb: the largest file, and the sum of all, that the program may write;
            256 files and folders at most.
        processes: 1 means that new processes are refused.  More needs a pid
            namespace, so that none can outlive the run.
        threads: beside the main one.
    """

    cpu_seconds: int | float = 5.0
    wall_seconds: int | float = 10.0
    memory_mb: int = 512
    output_bytes: int = 65_536
    file_mb: int = 16
    processes: int = 1
    threads: int = 32

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name.endswith("_seconds"):
                good = isinstance(value, int | float) and 0 < value < math.inf
                expected = "a finite number of seconds above 0"
            else:
                least = {"memory_mb": 32, "processes": 1}.get(item.name, 0)
                good = isinstance(value, int) and least <= value < 1 << 40
                expected = f"a whole number of at least {least}"
            if not good or isinstance(value, bool):
                raise ValueError(
                    f"limit {item.name} is {value!r}; expected {expected}. "
                    f"Fix: the default is {item.default!r}."
                )


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
        cpu_seconds: processor time of the process, the interpreter's start included.
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
    limits: Limits = Limits(),
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
        collect: names of files in the scratch folder to bring back.
        arguments: what the program finds in ``sys.argv[1:]``.

    Returns:
        How it ended.  Nothing that the program does raises an exception here.

    Raises:
        SandboxUnavailable: where the platform cannot give these guarantees.
        ValueError: for a name that leaves the scratch folder, or a readable path
            that does not exist or is the root of the file system.
    """
    order = make_order(source, limits, readable, arguments)
    for name in (*files, *collect):
        check_name(name, "files or collect")
    problem = sandbox_problem()
    if problem is not None:
        raise SandboxUnavailable(problem)
    return run_order(order, limits, files, collect)


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
        result = _run_trial()
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


def _run_trial() -> SandboxResult:
    with tempfile.NamedTemporaryFile(prefix="flowrl-sandbox-") as secret:
        order = make_order(_TRIAL, Limits(), (), (secret.name,))
        return run_order(order, Limits(), {}, ())


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
        "parent": os.getpid(),
        "serves": False,
        "cpu_seconds": math.ceil(limits.cpu_seconds),
        "memory_bytes": limits.memory_mb << 20,
        "file_bytes": limits.file_mb << 20,
        "processes": limits.processes,
        "threads": limits.threads,
        "open_files": _OPEN_FILES,
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
    return {"base": base, "installed_base": base, "platbase": platform_base,
            "installed_platbase": platform_base}  # fmt: skip


def run_order(
    order: dict[str, Any],
    limits: Limits,
    files: Mapping[str, bytes],
    collect: Sequence[str],
    start: Callable[..., contextlib.AbstractContextManager] | None = None,
) -> SandboxResult:
    """Run what ``make_order`` made, in a process that ``start`` starts."""
    start = start or start_process
    scratch = fill_scratch(files)
    try:
        with start(order, scratch) as (process, control):
            watch = Watch(process, control, limits, scratch, weigh(scratch))
            watch.follow()
        if not watch.ready and not watch.outcome:
            raise SandboxUnavailable(say_why(watch))
        found = {
            name: collect_file(scratch, name, limits.file_mb << 20) for name in collect
        }
        return _make_result(watch, limits, found)
    finally:
        remove_scratch(scratch)


def say_why(watch: Watch) -> str:
    """Why a program never came to its first line."""
    said = (watch.report or bytes(watch.output["stderr"])).decode(errors="replace")
    code = watch.process.returncode
    return said.strip() or f"the interpreter ended with {code} at its start"


class Started(subprocess.Popen):
    """A process of ours, whose end can be asked for with what it cost."""

    def wait4(self) -> tuple[int, float]:
        """Its exit status as the kernel gives it, and its processor seconds."""
        _, status, cost = os.wait4(self.pid, 0)
        return status, cost.ru_utime + cost.ru_stime


@contextlib.contextmanager
def start_process(
    order: dict[str, Any], scratch: Path
) -> Iterator[tuple[Started, int]]:
    """The locked-in interpreter and the pipe on which it reports."""
    control, inner = os.pipe()
    try:
        process = Started(
            [interpreter(), "-S", "-s", "-P", "-X", "utf8", str(_START)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd=scratch,
            env=environment(scratch),
            pass_fds=(inner,),
            start_new_session=True,
        )
    except BaseException:
        os.close(control)
        raise
    finally:
        os.close(inner)
    try:
        message = {**order, "control": inner, "scratch": str(scratch)}
        # If it ends early, what it said on the way is read next.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(marshal.dumps(message))
        if not order["serves"]:
            process.stdin.close()
        yield process, control
    finally:
        if process.returncode is None:  # interrupted before it was watched
            process.kill()
            process.wait()
        os.close(control)
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()


def interpreter() -> str:
    # Not the one of the virtual environment, which would look for its packages.
    return getattr(sys, "_base_executable", None) or sys.executable


def environment(scratch: Path) -> dict[str, str]:
    """All that the program finds in its environment."""
    one_thread = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        **dict.fromkeys(one_thread, "1"),
    }


def _make_result(
    watch: Watch, limits: Limits, found: Mapping[str, bytes | None]
) -> SandboxResult:
    code = watch.process.returncode
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
        files={name: content for name, content in found.items() if content is not None},
        reason=reason,
    )


def _judge_end(
    code: int, stderr: str, cpu_seconds: float, limits: Limits
) -> tuple[str, str]:
    """Outcome and reason of a program that was not stopped by its watch."""
    if code == 0:
        return "ok", "ended normally"
    last = stderr.strip().rpartition("\n")[2][:200]
    if code == -signal.SIGXCPU or (code < 0 and cpu_seconds >= limits.cpu_seconds):
        return "timeout", f"used more than {limits.cpu_seconds:g} s of processor time"
    if any(word in last for word in _MEMORY_WORDS):
        return "memory", f"asked for more than {limits.memory_mb} MB of memory"
    if code < 0:
        return "killed", f"was ended by {signal.Signals(-code).name}"
    return "error", last or f"ended with exit code {code}"

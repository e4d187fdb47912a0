"""Run Python that a model wrote, so that it can neither harm nor look around.

Each program gets a process of its own that locks itself in before the program
starts.  Three things hold at once, and none needs the help of an administrator:

*   Landlock: the kernel refuses all files but the interpreter's libraries (without
    the packages that are installed there), what is named in ``readable``, and a
    scratch folder that is removed afterwards.
*   seccomp: the kernel refuses all system calls but a short list.  There are no
    sockets, no new programs, no tracing, no links, no changing of modes and owners,
    no reading of links, and no signals to anything but the program itself.
*   limits: the kernel and the parent count CPU time, memory, output, files, threads
    and processes, and end the program when it goes over one.  Memory that nobody
    could count is refused: shared memory without a file, mappings that grow down,
    huge pages.

``ForkServer`` gives the same to programs that need slow imports: their processes are
forked from an interpreter that has them behind it, and knows nothing else.

Where namespaces are allowed, the program also gets a network, a user and a file
system of its own.  It starts with a clean environment and without capabilities, so
root is no more than a user.  Where the platform cannot give this, ``run_python``
refuses and says why; it never falls back to something weaker.

How tight the limits are depends on the machine (``sandbox_weaknesses`` and the doctor
say how it is here):

*   Files: with a file system of its own the kernel refuses the first byte too many
    (64 kB later), deleted files included.  Without one, the parent weighs them, and
    a program can write more until it looks.
*   Memory: with control groups (cgroup v2) the kernel holds all of it to 105 % of
    ``memory_mb``, with ``file_mb`` on top.  Without them, the kernel holds what each
    process may write to (RLIMIT_DATA) to ``memory_mb``, and the parent looks at the
    rest, such as pages that were closed again, page tables and what several
    processes hold together, every 1 to 10 ms: a program can hold more for that
    moment.  Nobody then counts what the kernel notes for a program: 230 bytes for
    each of at most 65,530 mappings (15 MB a process), 2 MB of pipes a process, and
    record locks (3 MB for each second of processor time).
*   Processor time is looked at as often; each process is also held by the kernel to
    the next whole second above 110 %.

``Limits(strict=True)`` runs only where the kernel holds both files and memory.  What
the kernel keeps only as long as nobody else needs the room (files that were read,
names that were looked up) is not counted anywhere.

What it does not hide: the sizes and dates of files whose full path a program can
guess (their contents and the listings of folders it does hide), where a link to a
folder leads (the program may go there and ask where it is), the machine's processor
and memory size, and the clock.
"""

from __future__ import annotations

from flowrl_lab.sandbox.forking import ForkServer
from flowrl_lab.sandbox.limits import Limits
from flowrl_lab.sandbox.running import (
    SandboxResult,
    SandboxUnavailable,
    run_python,
    sandbox_problem,
    sandbox_weaknesses,
)
from flowrl_lab.sandbox.serving import SandboxServer, ServerStopped

__all__ = [
    "ForkServer",
    "Limits",
    "SandboxResult",
    "SandboxServer",
    "SandboxUnavailable",
    "ServerStopped",
    "run_python",
    "sandbox_problem",
    "sandbox_weaknesses",
]

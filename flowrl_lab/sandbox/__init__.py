"""Run Python that a model wrote, so that it can neither harm nor look around.

Each program gets a process of its own that locks itself in before the program
starts.  Three things hold at once, and none needs the help of an administrator:

*   Landlock: the kernel refuses all files but the interpreter's libraries (without
    the packages that are installed there), what is named in ``readable``, and a
    scratch folder that is removed afterwards.
*   seccomp: the kernel refuses all system calls but a short list.  There are no
    sockets, no new programs, no tracing, no links, no changing of modes and owners,
    and no signals to anything but the program itself.
*   limits: the kernel and the parent count CPU time, memory, output, files, threads
    and processes, and end the program when it goes over one.

`ForkServer` gives the same to programs that need slow imports: their processes are
forked from an interpreter that has them behind it, and knows nothing else.

Where namespaces are allowed, the program also gets a network and a user of its own.
It starts with a clean environment and without capabilities, so root is no more than
a user.  Where the platform cannot give this, `run_python` refuses and says why; it
never falls back to something weaker.

What it does not hide: the sizes and dates of files whose full path a program can
guess (their contents and the listings of folders it does hide), the machine's
processor and memory size, and the clock.
"""

from __future__ import annotations

from flowrl_lab.sandbox.forking import ForkServer
from flowrl_lab.sandbox.running import (
    Limits,
    SandboxResult,
    SandboxUnavailable,
    run_python,
    sandbox_problem,
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
]

"""What a sandboxed program may use."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
        cpu_seconds: processor time, the interpreter's start (about 0.05) included.
        wall_seconds: time on the clock, from the program's first line on.
        memory_mb: memory of its own with its page tables, without shared libraries,
            so that PyTorch fits into the default.  The kernel refuses more to each
            process (RLIMIT_DATA: the program sees a MemoryError), and the parent
            ends it when all its processes together hold more.
        output_bytes: of standard output and of standard error, each.
        file_mb: the largest file, and the sum of all, that the program may write,
            those that it deleted and keeps open included; 256 files and folders at
            most.  They are kept in memory where that can be had, on top of
            ``memory_mb``.
        processes: 1 means that new processes are refused.  More needs a pid
            namespace, so that none can outlive the run.
        threads: beside the main one.
        strict: run only where the kernel itself holds memory and files to their
            limits at every moment, see ``sandbox_weaknesses``.
    """

    cpu_seconds: int | float = 5.0
    wall_seconds: int | float = 10.0
    memory_mb: int = 512
    output_bytes: int = 65_536
    file_mb: int = 16
    processes: int = 1
    threads: int = 32
    strict: bool = False

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "strict":
                good, expected = value in (True, False), "True or False"
            elif item.name.endswith("_seconds"):
                good = isinstance(value, int | float) and 0 < value < math.inf
                expected = "a finite number of seconds above 0"
            else:
                least = {"memory_mb": 32, "processes": 1}.get(item.name, 0)
                good = isinstance(value, int) and least <= value < 1 << 40
                expected = f"a whole number of at least {least}"
            if not good or isinstance(value, bool) != (item.name == "strict"):
                raise ValueError(
                    f"limit {item.name} is {value!r}; expected {expected}. "
                    f"Fix: the default is {item.default!r}."
                )

"""Memory that this process holds, as the system counts it."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["memory_now", "peak_bytes"]


def memory_now(field: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (the peak so far) of this process, bytes; Linux."""
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def peak_bytes() -> int:
    """The most memory this process ever held resident.

    ``getrusage`` would do, but on Linux its peak of a child starts at its parent's.
    """
    if sys.platform == "linux":
        return memory_now("VmHWM")
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

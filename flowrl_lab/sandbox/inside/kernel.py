"""The few Linux calls that Python has no function for."""

from __future__ import annotations

import ctypes
import os

__all__ = [
    "die_with_parent",
    "drop_capabilities",
    "forbid_new_privileges",
    "mount",
    "prctl",
    "syscall",
    "unshare",
]

PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 24, 38
CAPABILITY_VERSION_3 = 0x20080522
SIGKILL = 9

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def syscall(number: int, *arguments) -> int:
    """The raw system call; OSError when the kernel says no."""
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _checked(_libc.syscall(ctypes.c_long(number), *wide))


def prctl(option: int, *arguments) -> int:
    """prctl(2) with its four arguments filled up; OSError when it fails."""
    filled = (*arguments, 0, 0, 0, 0)[:4]
    wide = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in filled]
    return _checked(_libc.prctl(option, *wide))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def unshare(flags: int) -> None:
    """Leave the parent's namespaces; OSError where that is not allowed."""
    _checked(_libc.unshare(flags))


def mount(kind: str, place: str, flags: int, options: str) -> None:
    """mount(2) of a file system that needs no device; OSError when it fails."""
    name, target = kind.encode(), place.encode()
    _checked(_libc.mount(name, target, name, ctypes.c_ulong(flags), options.encode()))


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the one that started it dies."""
    prctl(PR_SET_PDEATHSIG, SIGKILL)
    if os.getppid() != parent:  # it died before the call
        os._exit(1)


def forbid_new_privileges() -> None:
    """From now on no program that is started gains rights (setuid and the like)."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities() -> None:
    """Give up every capability, for good: root is then a user like any other."""
    for capability in range(64):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:  # not root, or past the last capability
            break
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    # The ambient ones go with the inheritable ones, which are none from here on.
    _checked(_libc.capset(header, nothing))

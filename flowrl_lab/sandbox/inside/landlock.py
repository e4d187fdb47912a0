"""Landlock: the kernel refuses every file that is not on a short list.

It needs no rights and holds for root too.  Whatever is not named, such as making
links, sockets, pipes or devices, or running a program, is refused everywhere.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable

import kernel

__all__ = ["landlock_version", "restrict_files"]

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on all machines
VERSION_FLAG, RULE_PATH_BENEATH = 1, 1
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REMOVE_DIR, REMOVE_FILE, MAKE_DIR, MAKE_REG = 1 << 4, 1 << 5, 1 << 7, 1 << 8
TRUNCATE = 1 << 14
FILE_RIGHTS = READ_FILE | WRITE_FILE | TRUNCATE  # what a rule on a file may name
READ = READ_FILE | READ_DIR
OWN = READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | TRUNCATE
# Rights known from each version on; a newer kernel offers more than we name.
RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
TCP_RIGHTS = 0b11  # bind and connect, from version 4
SCOPES = 0b11  # abstract sockets and signals, from version 6


def landlock_version() -> int:
    """The kernel's Landlock version; 0 without Landlock."""
    try:
        return kernel.syscall(CREATE_RULESET, None, 0, VERSION_FLAG)
    except OSError:
        return 0


def restrict_files(
    readable: Iterable[str], writable: Iterable[str], listed: Iterable[str] = ()
) -> None:
    """Refuse this process all files but these, from now on and for good.

    Args:
        readable: files and folders that may be read, with all below.
        writable: folders in which files and folders may be made, changed and
            removed, and device files that may be written.
        listed: folders whose names may be read, with all below, but no file.
    """
    version = landlock_version()
    handled = max(rights for since, rights in RIGHTS.items() if since <= version)
    attributes = struct.pack(
        "=QQQ",
        handled,
        TCP_RIGHTS if version >= 4 else 0,
        SCOPES if version >= 6 else 0,
    )
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    buffer = ctypes.create_string_buffer(attributes[:size], size)
    ruleset = kernel.syscall(CREATE_RULESET, buffer, size, 0)
    for paths, rights in ((readable, READ), (writable, OWN), (listed, READ_DIR)):
        for path in paths:
            _allow(ruleset, path, rights & handled)
    kernel.syscall(RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # not on this machine: nothing to allow
    if not os.path.isdir(path):
        rights &= FILE_RIGHTS
    rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, handle), 12)
    kernel.syscall(ADD_RULE, ruleset, RULE_PATH_BENEATH, rule, 0)
    os.close(handle)

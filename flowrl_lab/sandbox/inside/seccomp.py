"""seccomp: the kernel refuses every system call that is not on a short list.

What is missing from the list is what matters: no sockets, no new programs, no
tracing, no changing of modes or owners, no links, no mounts, no limits of other
processes, and no reading of links, which lead to names outside.  Some calls are
allowed with certain arguments only, because with others they reach out, such as
``kill``, ``fcntl`` (it can have signals sent to any process), ``prctl`` (it can undo
"die with the parent") and ``open`` (it can empty a file it only reads), or because
they take what nobody could count, such as ``mmap``.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Iterable

import kernel

__all__ = ["MACHINES", "restrict_calls"]

# name: (number on x86_64, number on aarch64); None where a machine has no such call.
_PLAIN = """
read 0 63, write 1 64, close 3 57, stat 4 -, fstat 5 80, lstat 6 -, poll 7 -,
lseek 8 62, mprotect 10 226, munmap 11 215, brk 12 214,
rt_sigprocmask 14 135, rt_sigreturn 15 139, pread64 17 67,
pwrite64 18 68, readv 19 65, writev 20 66, access 21 -, pipe 22 -, select 23 -,
sched_yield 24 124, mremap 25 216, mincore 27 232, madvise 28 233, dup 32 23,
dup2 33 -, pause 34 -, nanosleep 35 101, getitimer 36 102, alarm 37 -,
setitimer 38 103, getpid 39 172, sendfile 40 71, exit 60 93, wait4 61 260,
uname 63 160, fsync 74 82, fdatasync 75 83, ftruncate 77 46,
getcwd 79 17, chdir 80 49, fchdir 81 50, rename 82 -, mkdir 83 -, rmdir 84 -,
unlink 87 -, umask 95 166, gettimeofday 96 169, getrlimit 97 163,
getrusage 98 165, sysinfo 99 179, times 100 153, getuid 102 174, getgid 104 176,
geteuid 107 175, getegid 108 177, getppid 110 173, getpgrp 111 -, getgroups 115 158,
getresuid 118 148, getresgid 120 150, getpgid 121 155, getsid 124 156,
rt_sigpending 127 136, rt_sigtimedwait 128 137, rt_sigsuspend 130 133,
sigaltstack 131 132, sched_getparam 143 121, sched_getscheduler 145 120,
sched_get_priority_max 146 125, sched_get_priority_min 147 126, arch_prctl 158 -,
gettid 186 178, time 201 -, futex 202 98, sched_getaffinity 204 123,
getdents64 217 61, set_tid_address 218 96, restart_syscall 219 128, fadvise64 221 223,
clock_gettime 228 113, clock_getres 229 114, clock_nanosleep 230 115,
exit_group 231 94, epoll_wait 232 -, epoll_ctl 233 21, get_mempolicy 239 236,
waitid 247 95, mkdirat 258 34, newfstatat 262 79, unlinkat 263 35, renameat 264 38,
faccessat 269 48, pselect6 270 72, ppoll 271 73,
set_robust_list 273 99, get_robust_list 274 100, epoll_pwait 281 22, eventfd2 290 19,
epoll_create1 291 20, dup3 292 24, pipe2 293 59, preadv 295 69, pwritev 296 70,
getcpu 309 168, renameat2 316 276, getrandom 318 278, membarrier 324 283,
statx 332 291, rseq 334 293, faccessat2 439 439
"""
_SPECIAL = """
open 2 -, openat 257 56, ioctl 16 29, fcntl 72 25, prctl 157 167, prlimit64 302 261,
kill 62 129, tgkill 234 131, clone 56 220, clone3 435 435, openat2 437 437,
fork 57 -, vfork 58 -, mmap 9 222, rt_sigaction 13 134
"""
# machine: (column in the tables, AUDIT_ARCH of the kernel)
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

LOAD, JUMP_EQUAL, JUMP_ANY_BIT, AND, RETURN = 0x20, 0x15, 0x45, 0x54, 0x06
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
NUMBER, ARCHITECTURE = 0, 4  # offsets in struct seccomp_data
CLONE_THREAD, CLONE_FILES, CLONE_NEW_ANYTHING = 0x00010000, 0x400, 0x7E020080
SIGCHLD = 17
MAP_KIND, MAP_PRIVATE, MAP_ANONYMOUS = 0xF, 0x2, 0x20
MAP_GROWSDOWN, MAP_HUGETLB = 0x100, 0x40000  # memory that no limit counts
O_ACCESS_MODE, O_TRUNC = 0o3, 0o1000
# F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC, F_GETPIPE_SZ; no locks,
# of which the kernel keeps as many as are asked for.
FCNTL = (0, 1, 2, 3, 4, 1030, 1032)
IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # is it a terminal, and such
PRCTL = (15, 16)  # set and get the thread's name

Code = list[tuple[int, int, int, int]]


def restrict_calls(machine: str, *, pid: int | None) -> None:
    """Refuse this process all other system calls, from now on and for good.

    Args:
        machine: a key of MACHINES.
        pid: the only process that may be sent signals, and then new processes
            are refused; None allows both (in a pid namespace of our own).
    """
    program = b"".join(struct.pack("=HBBI", *step) for step in _program(machine, pid))
    code = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(
        struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    )
    kernel.prctl(22, 2, ctypes.cast(header, ctypes.c_void_p))  # SECCOMP_MODE_FILTER


def _program(machine: str, pid: int | None) -> Code:
    column, architecture = MACHINES[machine]
    plain, special = _numbers(_PLAIN, column), _numbers(_SPECIAL, column)
    code: Code = [
        (LOAD, 0, 0, ARCHITECTURE),
        (JUMP_EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER),
    ]
    for number in plain.values():
        code += _when(number, [(RETURN, 0, 0, ALLOW)])
    for name, number in special.items():
        code += _when(number, _rule(name, pid))
    return [*code, _refuse(errno.EPERM)]


def _numbers(table: str, column: int) -> dict[str, int]:
    rows = [row.split() for row in table.replace("\n", " ").split(",")]
    return {row[0]: int(row[1 + column]) for row in rows if row[1 + column] != "-"}


def _when(number: int, body: Code) -> Code:
    return [(JUMP_EQUAL, 0, len(body), number), *body]


def _refuse(number: int) -> tuple[int, int, int, int]:
    return (RETURN, 0, 0, REFUSE | number)


def _argument(index: int) -> tuple[int, int, int, int]:
    """Load the low half of an argument, which is all of an int."""
    return (LOAD, 0, 0, 16 + 8 * index)


def _one_of(index: int, values: Iterable[int]) -> Code:
    code = [_argument(index)]
    for value in values:
        code += [(JUMP_EQUAL, 0, 1, value), (RETURN, 0, 0, ALLOW)]
    return [*code, _refuse(errno.EPERM)]


def _rule(name: str, pid: int | None) -> Code:
    """What happens at a call that is allowed with certain arguments only."""
    allow = (RETURN, 0, 0, ALLOW)
    if name in ("clone3", "openat2"):  # their arguments cannot be looked at: libc
        return [_refuse(errno.ENOSYS)]  # falls back to the older call
    if name in ("open", "openat"):
        return [
            _argument(1 if name == "open" else 2),
            (AND, 0, 0, O_ACCESS_MODE | O_TRUNC),
            (JUMP_EQUAL, 0, 1, O_TRUNC),
            _refuse(errno.EPERM),
            allow,
        ]
    if name in ("fork", "vfork"):
        return [allow if pid is None else _refuse(errno.EPERM)]
    if name in ("kill", "tgkill"):
        return [allow] if pid is None else _one_of(0, [pid])
    if name == "clone":
        return _clone_rule(pid)
    if name == "mmap":
        return _mmap_rule()
    if name == "prlimit64":  # may look at its own limits
        return [_argument(0), *_ZERO_OR_REFUSE, *_null_or_refuse(2), allow]
    if name == "rt_sigaction" and pid is None:
        # Who does not care about its children lets the kernel forget what they cost.
        other = [(JUMP_EQUAL, 1, 0, SIGCHLD), allow]
        return [_argument(0), *other, *_null_or_refuse(1), allow]
    if name == "rt_sigaction":
        return [allow]
    allowed = {"fcntl": (1, FCNTL), "ioctl": (1, IOCTL), "prctl": (0, PRCTL)}
    return _one_of(*allowed[name])


_ZERO_OR_REFUSE: Code = [(JUMP_EQUAL, 1, 0, 0), _refuse(errno.EPERM)]


def _null_or_refuse(index: int) -> Code:
    """Go on only if both halves of a pointer are zero."""
    high_half = (LOAD, 0, 0, 16 + 8 * index + 4)
    return [_argument(index), *_ZERO_OR_REFUSE, high_half, *_ZERO_OR_REFUSE]


def _clone_rule(pid: int | None) -> Code:
    """Threads, which share their open files, and processes where allowed."""
    allow = (RETURN, 0, 0, ALLOW)
    refuse_namespaces = [(JUMP_ANY_BIT, 0, 1, CLONE_NEW_ANYTHING), _refuse(1)]
    process = _refuse(errno.EPERM) if pid else allow
    # A thread with a table of its own could hold files that nobody finds.
    thread = [(JUMP_ANY_BIT, 1, 0, CLONE_FILES), _refuse(errno.EPERM), allow]
    kind = [(JUMP_ANY_BIT, 1, 0, CLONE_THREAD), process]
    return [_argument(0), *refuse_namespaces, *kind, *thread]


def _mmap_rule() -> Code:
    """Memory of its own, and files; no shared memory without a file.

    What is given back of shared memory (MADV_DONTNEED) stays where it is, and is
    neither in RLIMIT_DATA nor in /proc; nor is a mapping that grows down in
    RLIMIT_DATA.  The program sees "not permitted".
    """
    allow = (RETURN, 0, 0, ALLOW)
    uncounted = [(JUMP_ANY_BIT, 0, 1, MAP_GROWSDOWN | MAP_HUGETLB), _refuse(1)]
    of_a_file = [(JUMP_ANY_BIT, 1, 0, MAP_ANONYMOUS), allow]
    private = [(AND, 0, 0, MAP_KIND), (JUMP_EQUAL, 1, 0, MAP_PRIVATE), _refuse(1)]
    return [_argument(3), *uncounted, *of_a_file, *private, allow]

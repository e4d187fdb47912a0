"""The sandbox against hostile programs: nothing is lost and nothing is reached.

Each hostile program tries, and the test looks from outside at what it could have
harmed or learnt.  Programs print ``refused`` only when the kernel said no.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import pytest

from flowrl_lab.sandbox import (
    Limits,
    SandboxServer,
    SandboxUnavailable,
    ServerStopped,
    run_python,
    running,
    sandbox_problem,
    scratch,
)
from flowrl_lab.sandbox.watching import Watch

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the sandbox needs Linux"
)
ROOT = Path(__file__).resolve().parents[2]
PATIENT = Limits(cpu_seconds=5.0, wall_seconds=60.0)

# What every hostile program may use: try something, say how it went.
TRY = """
import os, sys
def attempt(name, action):
    try:
        got = action()
    except (PermissionError, BlockingIOError) as error:
        print(name, "refused")
    except Exception as error:
        print(name, "failed:", type(error).__name__, error)
    else:
        print(name, "ALLOWED:", repr(got)[:200])
"""


def refused(source: str, *arguments, limits: Limits = PATIENT, **options) -> None:
    """Run attempts; every one of them must have been refused by the kernel."""
    names = [str(argument) for argument in arguments]
    result = run_python(TRY + source, limits=limits, arguments=names, **options)
    assert result.outcome == "ok", result
    lines = result.stdout.splitlines()
    assert lines
    assert [line for line in lines if not line.endswith(" refused")] == []


# ------------------------------------------------------------------ friendly programs


def test_this_machine_can_do_it():
    assert sandbox_problem() is None


def test_a_plain_program_runs():
    source = "import sys, time; print(sum(range(10)), sys.argv); time.sleep(0.2)"
    result = run_python(source, arguments=("a",), limits=PATIENT)
    assert (result.outcome, result.exit_code) == ("ok", 0)
    assert result.stdout == "45 ['program.py', 'a']\n"
    assert result.stderr == ""
    assert result.reason == "ended normally"
    assert 0 < result.cpu_seconds <= PATIENT.cpu_seconds
    assert 0.2 <= result.seconds <= PATIENT.wall_seconds


def test_files_go_in_and_come_back():
    result = run_python(
        "import helper, os; os.mkdir('d'); open('d/out.bin', 'wb').write(helper.DATA)",
        files={"helper.py": b"DATA = bytes(range(256))", "sub/x.txt": b"x"},
        collect=("d/out.bin", "sub/x.txt", "missing"),
    )
    assert result.files == {"d/out.bin": bytes(range(256)), "sub/x.txt": b"x"}


def test_an_error_shows_the_programs_own_lines_only():
    result = run_python("def f():\n    return 1 / 0\n\nf()\n")
    assert (result.outcome, result.exit_code) == ("error", 1)
    assert result.reason == "ZeroDivisionError: division by zero"
    assert result.stderr.count("File ") == 2
    assert "return 1 / 0" in result.stderr


@pytest.mark.parametrize(
    ("source", "outcome", "code", "reason"),
    [
        ("import sys; sys.exit(3)", "error", 3, "ended with exit code 3"),
        ("import sys; sys.exit('no')", "error", 1, "no"),
        ("def (", "error", 1, "SyntaxError: invalid syntax"),
        ("x = '\0'", "error", 1, "source code string cannot contain null bytes"),
        ("import os; os.abort()", "killed", -6, "was ended by SIGABRT"),
        ("import ctypes; ctypes.string_at(0)", "killed", -11, "was ended by SIGSEGV"),
        ("import os; os._exit(0)", "ok", 0, "ended normally"),
        ("print('\\ud800')", "error", 1, "surrogates not allowed"),
        ("def f(): f()\nf()", "error", 1, "RecursionError"),
    ],
)
def test_every_way_to_end(source, outcome, code, reason):
    result = run_python(source, limits=PATIENT)
    assert (result.outcome, result.exit_code) == (outcome, code), result
    assert reason in result.reason


def test_output_that_is_no_text_is_decoded_with_replacement():
    result = run_python("import os; os.write(1, b'a\\xffb'); os.write(2, b'\\xfe')")
    assert (result.stdout, result.stderr) == ("a\ufffdb", "\ufffd")


def test_a_program_gets_the_same_order_of_sets_each_time():
    source = "print(list({'a', 'b', 'c', 'd', 'e', 'f', 'g'}))"
    assert len({run_python(source).stdout for _ in range(3)}) == 1


def test_threads_and_alarms_of_the_program_work():
    source = """
import signal, threading
def ring(*_):
    raise TimeoutError
found = []
threads = [threading.Thread(target=found.append, args=(i,)) for i in range(4)]
[t.start() for t in threads], [t.join() for t in threads]
signal.signal(signal.SIGALRM, ring)
signal.setitimer(signal.ITIMER_REAL, 0.05)
try:
    threading.Event().wait(5)
except TimeoutError:
    print(sorted(found))
"""
    assert run_python(source).stdout == "[0, 1, 2, 3]\n"


def test_threads_share_the_memory_of_their_program():
    """The allocator of each thread must not reserve addresses of its own."""
    source = """
import threading
found = []
def work():
    found.append(len(bytearray(2 << 20)) >> 20)
    kept.append([bytes(1000) for _ in range(1000)])
kept = []
for _ in range(16):
    threading.Thread(target=work).start()
"""
    source += "while len(kept) < 16: pass\nprint(sum(found), len(kept))"
    result = run_python(source, limits=Limits(60.0, 120.0, memory_mb=64))
    assert (result.outcome, result.stdout) == ("ok", "32 16\n"), result


def test_many_run_at_once_from_threads():
    with ThreadPoolExecutor(8) as pool:
        results = pool.map(lambda i: run_python(f"print({i} ** 2)"), range(24))
        assert [result.stdout for result in results] == [
            f"{i * i}\n" for i in range(24)
        ]


def test_readable_folders_are_searched_and_packages_are_found(tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/module.py").write_text("NAME = 'module'")
    (tmp_path / "repo/package").mkdir(parents=True)
    (tmp_path / "repo/secret.txt").write_text("no")
    (tmp_path / "repo/package/__init__.py").write_text("from package.a import NAME")
    (tmp_path / "repo/package/a.py").write_text("NAME = 'package'")
    source = "import module, package; attempt(module.NAME + package.NAME, fail)\n"
    secret = str(tmp_path / "repo/secret.txt")
    refused(
        f"def fail(): return open({secret!r})\n" + source,
        readable=(tmp_path / "lib", tmp_path / "repo/package"),
    )


def site_packages() -> Path:
    return Path(numpy.__file__).parents[1]


def test_numpy_loads_from_a_readable_folder():
    source = "import numpy; print(numpy.arange(4).sum())"
    result = run_python(source, readable=(site_packages(),))
    assert (result.outcome, result.stdout) == ("ok", "6\n"), result


@pytest.mark.full
def test_torch_and_the_losses_fit_into_the_usual_memory():
    """What grades a learner's loss: torch, this library, and a backward pass."""
    source = """
import torch
from flowrl_lab.losses import vargrad_loss
log_probs = torch.zeros(4, requires_grad=True)
rewards = torch.arange(4.0)
loss = vargrad_loss(log_probs, torch.zeros(4), rewards, 4, reward_scale=1.0)
loss.backward()
print(round(float(loss.detach()), 4), log_probs.grad.shape)
"""
    result = run_python(
        source,
        readable=(site_packages(), ROOT / "flowrl_lab"),
        limits=Limits(cpu_seconds=60.0, wall_seconds=120.0),
    )
    assert (result.outcome, result.stdout) == ("ok", "1.25 torch.Size([4])\n"), result


def test_a_family_of_processes_may_be_allowed():
    source = """
import os
for i in range(3):
    if os.fork() == 0:
        os._exit(i)
print(sorted(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(3)))
"""
    result = run_python(source, limits=Limits(processes=4))
    assert (result.outcome, result.stdout) == ("ok", "[0, 1, 2]\n"), result


# ------------------------------------------------------------------- use of the machine


def test_an_endless_loop_ends_by_processor_time():
    result = run_python("while True: pass", limits=Limits(0.2, 60.0))
    assert result.outcome == "timeout"
    assert result.reason == "used more than 0.2 s of processor time"
    assert result.exit_code == -signal.SIGKILL


def test_a_sleeper_ends_by_the_clock():
    result = run_python("import time; time.sleep(1000)", limits=Limits(5.0, 0.2))
    assert result.outcome == "timeout"
    assert result.reason == "ran for more than 0.2 s"


def test_a_loop_that_ignores_signals_ends_too():
    source = """
import signal
for number in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}:
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
while True:
    try:
        while True: pass
    except BaseException:
        pass
"""
    assert run_python(source, limits=Limits(0.2, 60.0)).outcome == "timeout"


def test_the_kernel_ends_a_loop_even_if_nobody_watches(monkeypatch):
    monkeypatch.setattr("flowrl_lab.sandbox.watching.Watch._look", lambda _: None)
    result = run_python("while True: pass", limits=Limits(cpu_seconds=0.2))
    assert (result.outcome, result.exit_code) == ("timeout", -signal.SIGXCPU)


@pytest.mark.parametrize(
    "source",
    [
        "x = bytearray(10 ** 9)",
        "x = []\nwhile True: x.append(bytearray(1 << 20))",
        "x = 10 ** 10 ** 10",
        "x = 'a'\nwhile True: x += x",
    ],
)
def test_a_memory_bomb_meets_the_kernel(source):
    result = run_python(source, limits=Limits(cpu_seconds=0.3, memory_mb=64))
    assert result.outcome in ("memory", "timeout"), result
    assert "memory" in result.reason or "10 **" in source


def test_catching_the_memory_error_does_not_help():
    source = """
kept = []
while True:
    try:
        kept.append(bytearray(1 << 20))
    except MemoryError:
        print(len(kept)); break
"""
    result = run_python(source, limits=Limits(memory_mb=64))
    assert result.outcome == "ok"
    assert 0 < int(result.stdout) < 64


@pytest.mark.parametrize("stream", [1, 2])
def test_huge_output_is_cut_and_stopped(stream):
    source = f"import os\nwhile True: os.write({stream}, b'x' * 65536)"
    result = run_python(source, limits=Limits(output_bytes=1000))
    assert result.outcome == "output"
    assert result.reason.startswith("wrote more than 1,000 bytes to std")
    assert (result.stdout, result.stderr)[stream - 1] == "x" * 1000


def test_output_up_to_the_limit_is_kept_whole():
    result = run_python("print('x' * 999)", limits=Limits(output_bytes=1000))
    assert (result.outcome, len(result.stdout)) == ("ok", 1000)


def test_one_huge_file_is_refused_by_the_kernel():
    source = """
with open("big", "wb", buffering=0) as file:
    while True:
        file.write(b"x" * (1 << 20))
"""
    result = run_python(source, limits=Limits(file_mb=2), collect=("big",))
    assert (result.outcome, result.reason) == (
        "error",
        "OSError: [Errno 27] File too large",
    )
    assert len(result.files["big"]) == 2 << 20


def test_a_sparse_file_is_refused_too():
    refused(
        """
def grow():
    try:
        os.truncate(os.open("big", os.O_CREAT | os.O_RDWR), 1 << 40)
    except OSError as error:
        raise PermissionError if error.errno == 27 else error
attempt("sparse", grow)
"""
    )


def test_many_files_together_are_too_much():
    source = """
import itertools
for i in itertools.count():
    open(str(i), "wb").write(b"x" * (1 << 20))
"""
    result = run_python(source, limits=Limits(file_mb=4))
    assert (result.outcome, result.reason) == (
        "output",
        "its files hold more than 4 MB",
    )


@pytest.mark.parametrize(
    "make",
    [
        "open(str(i), 'w').close()",
        "os.mkdir('d'); os.chdir('d')",
        "os.mkdir(str(i), 0)",
    ],
)
def test_a_flood_of_files_and_folders_is_stopped_and_swept_up(make):
    result = run_python(f"import itertools, os\nfor i in itertools.count(): {make}")
    assert (result.outcome, result.reason) == (
        "output",
        "made more than 256 files and folders",
    )


def test_a_fork_bomb_does_not_get_a_single_child():
    source = """
import os
while True:
    try:
        os.fork()
    except PermissionError:
        print("refused"); break
"""
    assert run_python(source).stdout == "refused\n"


def test_a_fork_bomb_among_allowed_processes_is_stopped():
    source = """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
"""
    result = run_python(source, limits=Limits(processes=3, cpu_seconds=2.0))
    assert result.outcome in ("killed", "timeout"), result


def test_a_thread_bomb_is_stopped():
    source = """
import threading, time
threading.stack_size(32768)
while True:
    try:
        threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
    except RuntimeError:
        pass
"""
    result = run_python(source, limits=Limits(threads=8, cpu_seconds=2.0))
    assert result.outcome in ("killed", "timeout"), result


# -------------------------------------------------------------------- files and secrets


def test_nothing_outside_can_be_read(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("the parent's own")
    key = Path.home() / ".ssh"
    paths = ["/etc/passwd", "/etc/shadow", secret, ROOT / "pyproject.toml"]
    source = """
for path in sys.argv[1:]:
    attempt(path, lambda: open(path, "rb").read())
folders = ("/", "/etc", "/proc", "/tmp", "/home", "/root", "/dev/shm", "..")
for path in (*folders, *map(os.path.dirname, sys.argv[1:])):
    attempt(path, lambda: os.listdir(path))
"""
    refused(source, *paths, *([key / "x"] if key.is_dir() else []))


def test_the_environment_is_clean(monkeypatch):
    monkeypatch.setenv("FLOWRL_SECRET", "s3cr3t")
    result = run_python("import os; print(sorted(os.environ))")
    assert "s3cr3t" not in result.stdout
    names = ("HOME", "LANG", "MALLOC_ARENA_MAX", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
    more = ("OPENBLAS_NUM_THREADS", "PYTHONHASHSEED", "TMPDIR")
    assert result.stdout == f"{sorted(names + more)}\n"


def test_the_parents_process_cannot_be_looked_into():
    source = """
for pid in (sys.argv[1], str(os.getppid()), "1", "self"):
    for name in ("environ", "cmdline", "maps", "mem", "fd", "root", "cwd"):
        path = f"/proc/{pid}/{name}"
        if name == "cwd" and pid == "self":
            continue  # the scratch folder
        if name in ("fd", "root", "cwd"):
            attempt(path, lambda: os.listdir(path))
        else:
            attempt(path, lambda: open(path, "rb").read(100))
        if pid != "self" and name in ("root", "cwd"):
            attempt(path, lambda: os.readlink(path))
attempt("exe", lambda: os.readlink(f"/proc/{sys.argv[1]}/exe"))
attempt("descriptor", lambda: os.readlink(f"/proc/{sys.argv[1]}/fd/0"))
"""
    refused(source, os.getpid())


def test_no_descriptor_of_the_parent_is_inherited(tmp_path):
    with open(tmp_path / "open", "w") as file:
        os.set_inheritable(file.fileno(), True)
        source = """
import os
found = []
for number in range(256):
    try:
        os.fstat(number); found.append(number)
    except OSError:
        pass
print(found, os.read(0, 10))
"""
        assert run_python(source).stdout == "[0, 1, 2] b''\n"


def without_access_time(path: Path) -> tuple[int, ...]:
    found = path.stat()
    names = ("mode", "uid", "gid", "size", "nlink", "mtime_ns", "ctime_ns")
    return tuple(getattr(found, f"st_{name}") for name in names)


def test_nothing_outside_can_be_written_or_removed(tmp_path):
    target = tmp_path / "precious"
    target.write_text("precious")
    (tmp_path / "folder").mkdir()
    os.chmod(target, 0o666)
    os.chmod(tmp_path, 0o777)
    before = without_access_time(target)
    source = """
target, folder = sys.argv[1], os.path.dirname(sys.argv[1])
open("mine", "w").write("x")
attempt("write", lambda: open(target, "w"))
attempt("append", lambda: open(target, "a"))
attempt("truncate", lambda: os.truncate(target, 0))
attempt("read and truncate", lambda: os.open(target, os.O_RDONLY | os.O_TRUNC))
attempt("create", lambda: open(folder + "/new", "w"))
attempt("remove", lambda: os.remove(target))
attempt("rmdir", lambda: os.rmdir(folder + "/folder"))
attempt("mkdir", lambda: os.mkdir(folder + "/new"))
attempt("chmod", lambda: os.chmod(target, 0))
attempt("chown", lambda: os.chown(target, 1, 1))
attempt("touch", lambda: os.utime(target, (0, 0)))
attempt("xattr", lambda: os.setxattr(target, "user.x", b"x"))
attempt("shared memory", lambda: open("/dev/shm/flowrl-new", "w"))
attempt("memory file", lambda: os.memfd_create("x"))
attempt("library", lambda: open(os.__file__, "a"))
attempt("library removed", lambda: os.remove(os.__file__))
attempt("library truncated", lambda: os.open(os.__file__, os.O_RDONLY | os.O_TRUNC))
attempt("chroot", lambda: os.chroot("."))
def move(a, b):
    try:
        os.rename(a, b)
    except OSError as error:  # another file system is as good as no
        raise PermissionError if error.errno in (1, 13, 18) else error
attempt("move in", lambda: move(target, "theirs"))
attempt("move out", lambda: move("mine", folder + "/mine"))
attempt("replace", lambda: move("mine", target))
"""
    refused(source, target)
    assert target.read_text() == "precious"
    assert without_access_time(target) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "precious"]


def test_no_links_out_of_the_scratch_folder(tmp_path):
    target = tmp_path / "secret"
    target.write_text("secret")
    source = """
attempt("symlink", lambda: os.symlink(sys.argv[1], "out"))
attempt("folder symlink", lambda: os.symlink("/", "root"))
attempt("hard link", lambda: os.link(sys.argv[1], "hard"))
attempt("fifo", lambda: os.mkfifo("pipe"))
attempt("device", lambda: os.mknod("device", 0o60600, os.makedev(8, 0)))
"""
    refused(source, target)
    assert target.stat().st_nlink == 1


def test_deleting_everything_deletes_nothing(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c").write_text("x")
    source = """
import shutil, sys
for path in sys.argv[1:]:
    shutil.rmtree(path, ignore_errors=True)
"""
    result = run_python(source, arguments=(str(tmp_path), str(ROOT), "/"))
    assert result.outcome == "ok"
    assert (tmp_path / "a/b/c").read_text() == "x"
    assert (ROOT / "pyproject.toml").is_file()


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[int]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield handle
    finally:
        os.close(handle)


@pytest.mark.parametrize("kind", ["symlink", "hard link", "fifo", "folder symlink"])
def test_a_collected_file_that_is_no_plain_file_is_left_alone(tmp_path, kind):
    """The program cannot make these; the collector does not rely on that."""
    (tmp_path / "secret").write_text("secret")
    folder = tmp_path / "scratch"
    folder.mkdir()
    if kind == "symlink":
        (folder / "x").symlink_to(tmp_path / "secret")
    elif kind == "hard link":
        os.link(tmp_path / "secret", folder / "x")
    elif kind == "fifo":
        os.mkfifo(folder / "x")
    else:
        (folder / "d").symlink_to(tmp_path)
    name = "d/secret" if kind == "folder symlink" else "x"
    with opened(folder) as handle:
        assert scratch.collect_file(handle, name, 100) is None


def test_a_collected_file_above_the_limit_is_left_alone(tmp_path):
    (tmp_path / "x").write_text("12345")
    with opened(tmp_path) as handle:
        assert scratch.collect_file(handle, "x", 4) is None
        assert scratch.collect_file(handle, "x", 5) == b"12345"


# ------------------------------------------------------------ other processes, the net


def test_no_program_can_be_started():
    source = """
import ctypes, subprocess
attempt("exec", lambda: os.execv("/bin/sh", ["sh"]))
attempt("subprocess", lambda: subprocess.run(["/bin/true"]))
attempt("spawn", lambda: os.posix_spawn("/bin/true", ["true"], {}))
def system():
    if os.system("true") != 0:
        raise PermissionError
attempt("system", system)
libc = ctypes.CDLL(None, use_errno=True)
def raw(function, *arguments):
    code = function(*arguments)
    if code == -1 or code == 127 << 8:  # system(3) says so of a shell that failed
        raise OSError(ctypes.get_errno(), "libc")
attempt("libc system", lambda: raw(libc.system, b"true"))
attempt("libc fork", lambda: raw(libc.fork))
attempt("libc execve", lambda: raw(libc.execve, b"/bin/true", None, None))
"""
    refused(source)


def test_builtins_lead_nowhere():
    """The classic way out of eval jails finds everything, and it helps nobody."""
    source = """
classes = ().__class__.__base__.__subclasses__()
wrap = next(c for c in classes if c.__name__ == "_wrap_close")
reach = wrap.__init__.__globals__
attempt("open", lambda: reach["__builtins__"]["open"]("/etc/passwd"))
attempt("execv", lambda: reach["execv"]("/bin/sh", ["sh"]))
attempt("import", lambda: __builtins__.__import__("socket").socket())
frame = sys._getframe()
while frame.f_back:
    frame = frame.f_back
start = frame.f_globals
attempt("start", lambda: start["kernel"].unshare(0x10000000))
attempt("seccomp", lambda: start["seccomp"].restrict_calls("x86_64", pid=None))
def control():
    try:
        os.write(start["control"] if "control" in start else 3, b"x")
    except OSError:
        raise PermissionError
attempt("control", control)
"""
    refused(source)


def test_no_sockets_not_even_to_a_server_on_this_machine(tmp_path):
    heard = []
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as local,
    ):
        local.bind(str(tmp_path / "local"))
        local.listen()
        for listener in (server, local):
            listener.settimeout(0.2)
        source = """
import socket, ssl, urllib.request
port, path = int(sys.argv[1]), sys.argv[2]
attempt("tcp", lambda: socket.create_connection(("127.0.0.1", port), 1))
attempt("tcp6", lambda: socket.socket(socket.AF_INET6))
attempt("udp", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
attempt("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
attempt("unix", lambda: socket.socket(socket.AF_UNIX).connect(path))
attempt("pair", socket.socketpair)
attempt("netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
attempt("packet", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
attempt("listen", lambda: socket.create_server(("127.0.0.1", 0)))
def fetch():
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=1)
    except OSError as error:
        raise error.reason
attempt("http", fetch)
"""
        refused(source, server.getsockname()[1], tmp_path / "local")
        for listener in (server, local):
            with pytest.raises(TimeoutError):
                heard.append(listener.accept())
    assert heard == []


def test_no_signal_reaches_anybody_else():
    heard = []
    numbers = (signal.SIGUSR1, signal.SIGTERM, signal.SIGIO, signal.SIGHUP)
    before = {n: signal.signal(n, lambda n, _: heard.append(n)) for n in numbers}
    source = """
import fcntl, signal
for pid in (int(sys.argv[1]), os.getppid(), -1, 0, 1, -int(sys.argv[1])):
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP, 0):
        attempt(f"kill {pid} {number}", lambda: os.kill(pid, number))
reader, writer = os.pipe()
attempt("owner", lambda: fcntl.fcntl(reader, fcntl.F_SETOWN, int(sys.argv[1])))
attempt("signal", lambda: fcntl.fcntl(reader, 10, signal.SIGTERM))
attempt("pidfd", lambda: os.pidfd_open(int(sys.argv[1])))
attempt("priority", lambda: os.setpriority(os.PRIO_PROCESS, int(sys.argv[1]), 19))
attempt("affinity", lambda: os.sched_setaffinity(int(sys.argv[1]), {0}))
import resource
attempt("limits", lambda: resource.prlimit(int(sys.argv[1]), resource.RLIMIT_CPU))
def lift():
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    except ValueError as error:  # Python's word for EPERM here
        raise PermissionError if "not allowed" in str(error) else error
attempt("own", lift)
attempt("session", os.setsid)
"""
    try:
        refused(source, os.getpid())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert heard == []


def test_it_may_signal_itself():
    result = run_python("import os; os.kill(os.getpid(), 15)")
    assert (result.outcome, result.reason) == ("killed", "was ended by SIGTERM")


def test_no_tracing_no_strange_calls():
    """By number, past every library: what a kernel exploit would start with."""
    source = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    if libc.syscall(*map(ctypes.c_long, arguments)) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
parent = int(sys.argv[1])
for name, number in {
    "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312,
    "mount": 165, "umount2": 166, "pivot_root": 155, "setns": 308, "unshare": 272,
    "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "io_uring_setup": 425,
    "add_key": 248, "keyctl": 250, "init_module": 175, "kexec_load": 246,
    "reboot": 169, "swapoff": 168, "settimeofday": 164, "sethostname": 170,
    "personality": 135, "setuid": 105, "capset": 126, "open_by_handle_at": 304,
    "name_to_handle_at": 303, "pidfd_getfd": 438, "pidfd_send_signal": 424,
    "tkill": 200, "rt_sigqueueinfo": 129, "shmget": 29, "msgget": 68, "semget": 64,
    "mq_open": 240, "inotify_init": 253, "fanotify_init": 300, "modify_ldt": 154,
    "execve": 59, "execveat": 322, "seccomp": 317, "quotactl": 179, "acct": 163,
    "fchmod": 91, "fchown": 93, "link": 86, "symlink": 88, "mknod": 133,
    "truncate": 76, "utimensat": 280, "syslog": 103, "socket": 41, "vmsplice": 278,
    "x32 getpid": 0x40000027,
}.items():
    attempt(name, lambda: call(number, parent, 0, 0, 0, 0, 0))
# clone with a new user namespace, and prctl that undoes "die with the parent"
attempt("clone", lambda: call(56, 0x10000000 | 0x10000, 0, 0, 0, 0))
attempt("pdeathsig", lambda: call(157, 1, 0, 0, 0, 0))
"""
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers are those of x86_64")
    refused(source, os.getpid())


def test_the_32_bit_calls_of_x86_end_the_program():
    """`int 0x80` speaks another table of calls, so it is never answered."""
    if os.uname().machine != "x86_64":
        pytest.skip("x86 only")
    source = """
import ctypes, mmap
code = b"\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3"  # mov eax, 20 (getpid); int 0x80
room = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE, prot=7)
room.write(code)
address = ctypes.addressof(ctypes.c_char.from_buffer(room))
print("ALLOWED", ctypes.CFUNCTYPE(ctypes.c_long)(address)(), flush=True)
"""
    result = run_python(source)
    assert (result.outcome, result.stdout) == ("killed", ""), result
    assert result.reason == "was ended by SIGSYS"


def test_no_daemon_outlives_the_run(started):
    """Two forks and a closed output: the way of every daemon."""
    source = """
import os, time
if os.fork() == 0:
    if os.fork() == 0:
        for stream in (0, 1, 2):
            os.close(stream)
        while True:
            time.sleep(0.01)
            open("alive", "w").write(str(time.time()))
    os._exit(0)
os.wait()
print("gone")
"""
    result = run_python(source, limits=Limits(processes=4), collect=("alive",))
    assert (result.outcome, result.stdout) == ("ok", "gone\n"), result
    assert living_members(started) == []


@pytest.fixture
def started(monkeypatch) -> list[int]:
    """The session numbers of the programs that this test starts."""
    pids: list[int] = []

    def follow(self, *given) -> None:
        pids.append(self.pid)
        watch(self, *given)

    watch = Watch.follow
    monkeypatch.setattr(Watch, "follow", follow)
    return pids


def living_members(sessions: list[int]) -> list[str]:
    """Processes, anywhere on this machine, that belong to these sessions."""
    assert sessions
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        if int(fields[3]) in sessions and fields[0] not in "ZX":
            found.append(folder.name)
    return found


SLEEPS = "import time; time.sleep(60)"
STOPS = "import os; os.kill(os.getpid(), 19)"
LEAVES = """
import ctypes, os, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
ctypes.CDLL(None).syscall(60 if os.uname().machine == "x86_64" else 93, 0)
"""


@pytest.mark.parametrize(
    ("source", "processes", "state"),
    [(SLEEPS, 1, "S"), (SLEEPS, 2, "S"), (STOPS, 1, "T"), (LEAVES, 1, "Z")],
    ids=["sleeps", "has a family", "stopped", "first thread has left"],
)
def test_a_killed_parent_leaves_no_program_behind(tmp_path, source, processes, state):
    script = f"""
import sys
from flowrl_lab.sandbox import Limits, run_python
import flowrl_lab.sandbox.watching as watching
hear = watching.Watch._hear
def tell(self):
    before = self.ready
    hear(self)
    if self.ready and not before:
        print(self.pid, flush=True)
watching.Watch._hear = tell
limits = Limits(processes={processes}, wall_seconds=60.0)
run_python({source!r}, limits=limits)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment
    ) as parent:
        parent.stdout.readline()  # the trial program of sandbox_problem
        pid = int(parent.stdout.readline())
        wait_until(lambda: state_of(f"/proc/{pid}") == state)
        parent.kill()
    wait_until(lambda: not lives(pid))


def wait_until(reached) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def state_of(folder: str | Path) -> str:
    """S sleeps, T stands still, Z is dead and waits for somebody to notice."""
    try:
        return Path(folder, "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def lives(pid: int) -> bool:
    return any(state_of(t) not in "ZX" for t in Path(f"/proc/{pid}/task").glob("*"))


# ------------------------------------------------------- a program that stays to answer

SERVER = """
import os, time
def answer(question):
    print("noise")
    if question == "sleep": time.sleep(60)
    while question == "loop": pass
    if question == "crash": os.abort()
    if question == "memory": return len(bytearray(1 << 30))
    if question == "flood": return "x" * 100_000
    if question == "read": return open("/etc/passwd").read()
    if question == "kill": os.kill(os.getppid(), 9)
    return [question, os.getpid()]
"""


def test_a_server_answers_and_comes_back_after_hostile_questions():
    limits = Limits(cpu_seconds=0.3, wall_seconds=60.0, memory_mb=64)
    with SandboxServer(SERVER, limits=limits) as server:
        (text, first), (_, second) = server.ask("ü\n"), server.ask(2)
        assert (text, first) == ("ü\n", second)  # one process for both
        for question, reason in {
            "loop": "used more than 0.3 s of processor time",
            "crash": "was ended by SIGABRT",
            "memory": "MemoryError",
            "flood": "wrote more than 65,536 bytes",
            "read": "PermissionError",
            "kill": "PermissionError",
            "long" * 500_000: "a question of 2,000,002 bytes is too long",
        }.items():
            with pytest.raises(ServerStopped, match=reason):
                server.ask(question)
            assert server.ask(3)[0] == 3


def test_a_server_that_sleeps_is_woken_for_the_next_question():
    with SandboxServer(SERVER, limits=Limits(60.0, 0.3)) as server:
        with pytest.raises(ServerStopped, match=r"ran for more than 0.3 s"):
            server.ask("sleep")
        assert server._running is None


def test_a_server_answers_threads_that_come_and_go():
    """The kernel ends a program with the thread that started it: that one stays."""
    with SandboxServer(SERVER) as server:
        programs = set()
        for _ in range(2):
            with ThreadPoolExecutor(4) as pool:
                answers = list(pool.map(server.ask, range(8)))
            assert [number for number, _ in answers] == list(range(8))
            programs |= {pid for _, pid in answers}
        assert len(programs) == 1


def test_a_server_that_somebody_kills_is_started_again():
    with SandboxServer(SERVER) as server:
        pid = server.ask(1)[1]
        os.kill(pid, signal.SIGKILL)
        assert server.ask(2)[1] != pid


def test_a_server_that_is_forgotten_ends():
    server = SandboxServer(SERVER)
    pid = server.ask(1)[1]
    server.close()
    assert not Path(f"/proc/{pid}").exists()
    pid = server.ask(1)[1]
    del server
    gc.collect()
    assert not Path(f"/proc/{pid}").exists()


def test_a_fork_of_who_asks_gets_a_program_of_its_own():
    script = """
import os, sys
from flowrl_lab.sandbox import SandboxServer
server = SandboxServer("import os\\ndef answer(q): return os.getpid()")
first = server.ask(1)
if os.fork() == 0:
    mine = server.ask(1)
    server.close()
    os._exit(0 if mine != first else 1)
code = os.waitstatus_to_exitcode(os.wait()[1])
print(code, server.ask(1) == first)
"""
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.stdout == "0 True\n", result.stderr


def test_a_server_whose_program_is_broken_says_so():
    with (
        SandboxServer("import nothing_of_that_name") as server,
        pytest.raises(ServerStopped, match="nothing_of_that_name"),
    ):
        server.ask(1)


# What a program can say beside its answers: a hostile question got it to do so.
UNTIDY = """
import os, sys, threading, time
def say(text):
    os.write(1, text.encode() + b"\\n")
def late(text):
    threading.Thread(target=lambda: (time.sleep(0.05), say(text)), daemon=True).start()
def answer(question):
    mark = sys._getframe(1).f_locals.get("mark", "")
    if question == "more": say(mark + ' {"answer": "mine"}')
    if question == "late": late('{"answer": "mine"}')
    if question == "late mark": late(mark + ' {"answer": "mine"}')
    if question == "half": os.write(1, b'{"answer": ')
    if question == "slow": time.sleep(0.2)
    if question == "deep":
        deep = []
        for _ in range(100_000): deep = [deep]
        return deep
    if question == "deep text": say(mark + " " + "[" * 20_000 + "]" * 20_000)
    if question == "no object": say(mark + " [1]")
    if question == "odd": return {1, 2}
    return [question, os.getpid()]
"""


@pytest.mark.parametrize("untidy", ["more", "late", "late mark"])
def test_what_a_server_says_late_is_no_answer(untidy):
    """The next question, slow enough to be overtaken, gets its own answer."""
    with SandboxServer(UNTIDY, limits=PATIENT) as server:
        answer = server.ask(untidy)
        assert answer == "mine" if untidy == "more" else answer[0] == untidy
        for question in ("slow", 3):
            assert server.ask(question)[0] == question


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        ("half", "gave an answer to no question"),
        ("deep", "RecursionError"),
        ("deep text", "RecursionError"),
        ("no object", "TypeError"),
        ("odd", "TypeError"),
    ],
)
def test_an_answer_that_is_none_costs_only_its_question(question, reason):
    with SandboxServer(UNTIDY, limits=PATIENT) as server:
        with pytest.raises(ServerStopped, match=reason):
            server.ask(question)
        assert server.ask(3)[0] == 3


def test_a_question_that_json_cannot_hold_is_not_asked():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with SandboxServer(UNTIDY, limits=PATIENT) as server:
        for question in (deep, {1, 2}, b"x"):
            with pytest.raises(ServerStopped, match="JSON cannot hold the question"):
                server.ask(question)
        assert server.ask(3)[0] == 3


def test_a_server_stands_still_between_questions():
    source = """
import os, threading
def work():
    while True: pass
def answer(question):
    if question == "start": threading.Thread(target=work, daemon=True).start()
    return os.getpid()
"""
    with SandboxServer(source, limits=PATIENT) as server:
        pid = server.ask("start")
        wait_until(lambda: state_of(f"/proc/{pid}") == "T")
        assert server.ask(2) == pid


# -------------------------------------------------------------- bad input, bad machines


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "name", ["/etc/x", "../x", "a/../../x", "", ".", "a//b", "a\0"]
)
def test_names_that_leave_the_scratch_folder_are_refused(name):
    with pytest.raises(ValueError, match=r"expected a relative path.*Fix: write it"):
        run_python("", files={name: b""})
    with pytest.raises(ValueError, match=r"expected a relative path.*Fix: write it"):
        run_python("", collect=(name,))


@pytest.mark.bad_input
@pytest.mark.parametrize("path", ["/", "/no/such/folder"])
def test_readable_paths_must_exist_and_not_be_everything(path):
    with pytest.raises(ValueError, match=r"readable names .*Fix: name the one folder"):
        run_python("", readable=(Path(path),))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cpu_seconds", 0.0),
        ("wall_seconds", float("inf")),
        ("memory_mb", 8),
        ("processes", 0),
        ("output_bytes", -1),
        ("file_mb", 1.5),
        ("threads", True),
        ("strict", 1),
        ("strict", "yes"),
    ],
)
def test_limits_are_checked(name, value):
    with pytest.raises(ValueError, match=rf"limit {name} is .*Fix: the default is"):
        Limits(**{name: value})


@pytest.mark.parametrize(
    ("system", "machine", "words"),
    [("darwin", "arm64", "needs Linux"), ("linux", "riscv64", "knows the processors")],
)
def test_other_platforms_are_refused_with_the_reason(
    monkeypatch, system, machine, words
):
    monkeypatch.setattr(running.sys, "platform", system)
    monkeypatch.setattr(running.platform, "machine", lambda: machine)
    monkeypatch.setattr(running, "sandbox_problem", running.sandbox_problem.__wrapped__)
    with pytest.raises(SandboxUnavailable, match=rf"{words}.*Fix: "):
        run_python("print('ran')")


@pytest.mark.parametrize("missing", ["landlock", "seccomp"])
def test_a_kernel_without_one_of_the_two_is_refused(monkeypatch, tmp_path, missing):
    """The inside files, with a kernel call that fails as on such a kernel."""
    inside = running._START.parent
    for file in inside.glob("*.py"):
        text = file.read_text()
        if file.name == "kernel.py":
            head, number = {
                "landlock": ("def syscall(number: int, *arguments)", "444"),
                "seccomp": ("def prctl(option: int, *arguments)", "22"),
            }[missing]
            name = head.partition("(")[2].partition(":")[0]
            refuse = f"    if {name} == {number}:\n        raise OSError(38, 'no')\n"
            before, after = text.split(f"{head} -> int:\n")
            text = f"{before}{head} -> int:\n{refuse}{after}"
        (tmp_path / file.name).write_text(text)
    monkeypatch.setattr(running, "_START", tmp_path / "start.py")
    problem = running.sandbox_problem.__wrapped__()
    assert "could not lock a program in" in problem
    assert "Landlock (5.13 or newer) and seccomp" in problem
    monkeypatch.setattr(running, "sandbox_problem", lambda: problem)
    with pytest.raises(SandboxUnavailable, match="could not lock a program in"):
        run_python("print('ran')")


def test_a_sandbox_that_does_not_hold_is_refused(monkeypatch, tmp_path):
    """The trial program is a proof: without the locks it reports what it reached."""
    for file in running._START.parent.glob("*.py"):
        text = file.read_text()
        if file.name == "start.py":
            text = text.replace("        lock_in(order)\n", "")
        (tmp_path / file.name).write_text(text)
    monkeypatch.setattr(running, "_START", tmp_path / "start.py")
    problem = running.sandbox_problem.__wrapped__()
    assert "was not held back" in problem
    assert "allowed" in problem


def test_everything_holds_without_namespaces_too(monkeypatch, tmp_path):
    """As in a container that forbids unshare: only Landlock and seccomp are left."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    inside = tmp_path / "inside"
    inside.mkdir()
    for file in running._START.parent.glob("*.py"):
        text = file.read_text().replace(
            "    _checked(_libc.unshare(flags))", "    raise PermissionError(1, 'no')"
        )
        (inside / file.name).write_text(text)
    monkeypatch.setattr(running, "_START", inside / "start.py")
    source = """
import socket
attempt("read", lambda: open(sys.argv[1]).read())
attempt("socket", socket.socket)
attempt("fork", os.fork)
attempt("kill", lambda: os.kill(os.getppid(), 0))
attempt("environ", lambda: open(f"/proc/{os.getppid()}/environ").read())
"""
    refused(source, secret)
    with pytest.raises(SandboxUnavailable, match=r"no pid namespace.*processes=1"):
        run_python("print('ran')", limits=Limits(processes=2))


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5])
def test_older_landlocks_hold_with_the_help_of_seccomp(monkeypatch, tmp_path, version):
    """Truncating came with version 3, signals and abstract sockets with 6."""
    target = tmp_path / "precious"
    target.write_text("precious")
    for file in running._START.parent.glob("*.py"):
        text = file.read_text().replace(
            "        return kernel.syscall(CREATE_RULESET, None, 0, VERSION_FLAG)",
            f"        return {version}",
        )
        (tmp_path / file.name).write_text(text)
    monkeypatch.setattr(running, "_START", tmp_path / "start.py")
    source = """
import fcntl, socket
target, parent, readable = sys.argv[1], int(sys.argv[2]), sys.argv[3]
attempt("read", lambda: open(target).read())
attempt("write", lambda: open(target, "w"))
attempt("truncate", lambda: os.truncate(target, 0))
attempt("truncate readable", lambda: os.truncate(readable, 0))
attempt("open and truncate", lambda: os.open(readable, os.O_RDONLY | os.O_TRUNC))
attempt("kill", lambda: os.kill(parent, 0))
attempt("owner", lambda: fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, parent))
attempt("abstract", lambda: socket.socket(socket.AF_UNIX).connect("\\0x"))
attempt("link", lambda: os.link(readable, "x"))
open("own", "w").write("x" * 10)
os.truncate(os.open("own", os.O_RDWR), 5)
open("own", "w").write("y")
os.mkdir("d"); os.rename("own", "renamed")
attempt(open("renamed").read(), lambda: os.symlink("a", "b"))
"""
    readable = tmp_path / "start.py"
    before = readable.read_text()
    refused(source, target, os.getpid(), readable, readable=(readable,))
    assert (target.read_text(), readable.read_text()) == ("precious", before)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root")
def test_root_has_no_rights_inside(monkeypatch):
    """Asked from outside while the program runs."""
    found: dict[str, str] = {}

    def look(self, _usage) -> None:
        text = Path(f"/proc/{self.pid}/status").read_text()
        rows = (line.split(":\t") for line in text.splitlines())
        found.update({key: value for key, value in rows})
        folder = self.started.scratch.handle
        os.close(os.open("seen", os.O_CREAT, dir_fd=folder))

    monkeypatch.setattr(Watch, "_look_at_usage", look)
    source = "import os, time\nwhile not os.path.exists('seen'): time.sleep(0.01)"
    assert run_python(source, limits=PATIENT).outcome == "ok"
    nothing = "0" * 16
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert found[name] == nothing
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")


def test_an_interrupt_of_the_parent_stops_the_program(monkeypatch, started):
    def interrupt(_: Watch) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Watch, "_look_at_files", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_python("import time; time.sleep(60)", limits=Limits(wall_seconds=60.0))
    assert living_members(started) == []


def test_no_thread_is_left_in_the_parent():
    before = threading.active_count()
    run_python("print(1)")
    assert threading.active_count() == before

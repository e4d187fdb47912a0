"""Forked programs: as fresh and as locked in as those of their own interpreter."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flowrl_lab.sandbox import (
    ForkServer,
    Limits,
    SandboxUnavailable,
    run_python,
    sandbox_problem,
)

ROOT = Path(__file__).resolve().parents[2]
USUAL = Limits()
pytestmark = pytest.mark.skipif(
    sandbox_problem() is not None, reason=str(sandbox_problem())
)


@pytest.fixture(scope="module")
def server():
    server = ForkServer(["decimal"])
    server.run("", limits=USUAL)  # what is there before a test may stay after it
    yield server
    server.close()


@pytest.mark.parametrize(
    ("source", "outcome"),
    [
        ("print('é', 1 + 1)", "ok"),
        ("import sys; sys.exit(3)", "error"),
        ("1 / 0", "error"),
        ("open('/etc/passwd')", "error"),
        ("import os; os.fork()", "error"),
        ("import socket; socket.socket()", "error"),
        ("import os; os.kill(os.getppid(), 9)", "error"),
        ("import os; os.kill(os.getpid(), 9)", "killed"),
        ("while True: pass", "timeout"),
        ("import time; time.sleep(99)", "timeout"),
        ("x = [bytearray(10**7) for _ in range(100)]", "memory"),
        ("while True: print('x' * 10**4)", "output"),
        ("open('big', 'wb').write(bytes(10**8))", "error"),
    ],
)
def test_a_forked_program_ends_as_one_of_its_own_interpreter(server, source, outcome):
    seconds = 2 if "sleep" in source else 60  # a crowded machine takes its time
    limits = Limits(cpu_seconds=1, wall_seconds=seconds, memory_mb=256)
    forked, started = (run(source, limits=limits) for run in (server.run, run_python))
    assert forked.outcome == started.outcome == outcome
    assert (forked.exit_code, forked.stdout) == (started.exit_code, started.stdout)
    assert forked.stderr == started.stderr


ASKS = """
import os
def ask(text):
    os.write(1, text.encode() + b"\\n")
    said = b""
    while not said.endswith(b"\\n"):
        said += os.read(0, 1 << 16) or b"nobody\\n"
    return said.decode().strip()
"""


def test_a_program_may_be_answered_line_by_line(server):
    """Long answers too; what it says behind the last line is its output."""
    asked = []

    def reply(line: bytes) -> bytes:
        asked.append(line)
        return line * 2 + b"\n"

    limits = Limits(output_bytes=500_000)
    program = "told = [ask('a'), ask('é'), len(ask('b' * 400_000))]\n"
    end = "print(told, end='')"
    result = server.run(ASKS + program + end, limits=limits, reply=reply)
    assert (result.outcome, result.stdout) == ("ok", "['aa', 'éé', 800000]")
    assert asked[:2] == [b"a", "é".encode()]


@pytest.mark.parametrize(
    ("program", "outcome"),
    [
        ("while True: os.write(1, b'a\\n')", "output"),  # reads no answer
        ("while True: ask('a')", "timeout"),
        ("os.write(1, b'a' * 10**6)", "output"),  # a line without an end
        ("os.close(0), os.write(1, b'a\\n')", "ok"),
        ("os.write(1, b'\\n'); os.kill(os.getpid(), 9)", "killed"),
    ],
)
def test_what_a_program_asks_stops_nobody(server, program, outcome):
    limits = Limits(cpu_seconds=1, wall_seconds=10)
    long = b"b" * 3000 + b"\n"
    result = server.run(ASKS + program, limits=limits, reply=lambda _: long)
    assert result.outcome == outcome, result


def test_who_answers_may_fail(server):
    """It reaches whoever runs the program, which is gone then."""
    with pytest.raises(ZeroDivisionError):
        server.run(ASKS + "ask('a')", limits=USUAL, reply=lambda _: 1 / 0)
    assert server.run("print(1)", limits=USUAL).stdout == "1\n"


def test_nothing_but_its_own_is_in_a_forked_program(server):
    probe = """
import os, sys
handles = []
for handle in range(3, 256):
    try:
        os.fstat(handle)
        handles.append(handle)
    except OSError:
        pass
frame, names = sys._getframe(), []
while frame:
    names.append(frame.f_code.co_name)
    frame = frame.f_back
print(handles, names, sorted(os.environ), os.listdir('.'), sys.path[0] == os.getcwd())
print('decimal' in sys.modules, os.environ['HOME'] == os.getcwd(), __name__)
"""
    result = server.run(probe, limits=USUAL, files={"a.txt": b"a"})
    lines = result.stdout.splitlines()
    assert lines[0] == (
        "[] ['<module>', 'run_program', 'main', 'become_program', '<module>'] "
        "['HOME', 'LANG', 'MALLOC_ARENA_MAX', 'MKL_NUM_THREADS', 'OMP_NUM_THREADS', "
        "'OPENBLAS_NUM_THREADS', 'PYTHONHASHSEED', 'TMPDIR'] ['a.txt'] True"
    )
    assert lines[1] == "True True __main__"


def test_one_program_leaves_nothing_to_the_next(server):
    leave = (
        "import builtins, decimal, os, sys\nbuiltins.x = sys.x = decimal.x = 1\n"
        "os.environ['X'] = 'x'\nopen('left', 'w').write('x')\n"
    )
    look = (
        "import builtins, decimal, os, sys\nprint([hasattr(m, 'x') for m in "
        "(builtins, sys, decimal)], 'X' in os.environ, os.listdir('.'))"
    )
    result = server.run(leave, limits=USUAL, collect=["left"])
    assert result.files == {"left": b"x"}
    assert server.run(look, limits=USUAL).stdout == "[False, False, False] False []\n"


def test_many_at_a_time_keep_their_answers_apart(server):
    def ask(number: int) -> str:
        return server.run(f"print({number})", limits=USUAL).stdout

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(24))) == [f"{n}\n" for n in range(24)]


def test_a_new_interpreter_takes_over_from_one_that_died():
    server = ForkServer(["json"])
    server.run("", limits=USUAL)
    os.kill(server._running.pid, signal.SIGKILL)
    before = time.monotonic()
    assert server.run("print(1)", limits=USUAL).stdout == "1\n"
    assert time.monotonic() - before < 30  # it is noticed, not waited for
    server.close()


def test_whoever_hangs_up_takes_nobody_with_them(server):
    """A line that is closed before, or after, the child's number was read."""
    running = server._running
    for reads in (0, 1):
        pipes = [os.pipe() for _ in range(4)]
        line, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        handles = [pipes[0][0], *(write for _, write in pipes[1:]), far.fileno()]
        socket.send_fds(running._orders, [b"fork"], handles)
        far.close()
        if reads:
            line.recv(16)
        line.close()
        for pipe in pipes:
            os.close(pipe[0]), os.close(pipe[1])
    assert server.run("print(1)", limits=USUAL).stdout == "1\n"
    assert server._running is running


def test_an_import_that_fails_says_so():
    with pytest.raises(SandboxUnavailable, match="No module named 'no_such_module'"):
        ForkServer(["no_such_module"]).run("", limits=USUAL)


def test_everything_ends_with_who_asked(tmp_path):
    """By kill -9: the interpreter that forks, and the program that sleeps."""
    program = f"""
import os, sys, threading, time
sys.path.insert(0, {str(ROOT)!r})
from flowrl_lab.sandbox import ForkServer, Limits
server = ForkServer(["json"])
sleep = "import time; time.sleep(99)"
run = lambda: server.run(sleep, limits=Limits(wall_seconds=99))
threading.Thread(target=run, daemon=True).start()
while True:
    time.sleep(0.05)
    if server._running is not None:
        path = f"/proc/{{server._running.pid}}/task"
        children = open(f"{{path}}/{{server._running.pid}}/children").read()
        if children.strip():
            print(server._running.pid, children, flush=True)
            time.sleep(99)
"""
    asking = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    with asking:
        pids = [int(pid) for pid in asking.stdout.readline().split()]
        assert len(pids) == 2
        asking.kill()
    end = time.monotonic() + 20
    while any(map(is_running, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(is_running, pids))


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"

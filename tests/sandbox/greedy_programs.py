"""Programs that try to take more than their limits, by every way we know.

Each is told apart by how it must fail.  A program says how many MB it holds after
every step (``hold``), so that what it had is known however it ended; one that got
more than it may have waits (``rest``) until somebody ends it, so that nothing depends
on how fast the machine is.
"""

from __future__ import annotations

from flowrl_lab.sandbox import Limits

LIMITS = Limits(
    cpu_seconds=20.0, wall_seconds=120.0, memory_mb=64, file_mb=4, output_bytes=20_000
)
FAMILY = Limits(
    cpu_seconds=20.0,
    wall_seconds=120.0,
    memory_mb=64,
    file_mb=4,
    output_bytes=20_000,
    processes=4,
)

PRELUDE = """
import ctypes, errno, mmap, os, signal, sys, threading, time
MB, PAGE = 1 << 20, mmap.PAGESIZE
PRIVATE, SHARED, ANONYMOUS, FIXED = 2, 1, 0x20, 0x10
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = libc.mremap.restype = libc.sbrk.restype = ctypes.c_void_p
libc.malloc.restype = ctypes.c_void_p
long, void, int32 = ctypes.c_long, ctypes.c_void_p, ctypes.c_int
libc.mmap.argtypes = [void, long, int32, int32, int32, long]
libc.munmap.argtypes = [void, long]
libc.mremap.argtypes = [void, long, long, int32]
libc.mprotect.argtypes = libc.madvise.argtypes = [void, long, int32]
libc.sbrk.argtypes = libc.malloc.argtypes = [long]
def check(result):
    if result in (-1, 2**64 - 1, None):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
def get(size, flags=PRIVATE | ANONYMOUS, protection=3, file=-1, at=None):
    return check(libc.mmap(at, size, protection, flags, file, 0))
def fill(place, size=MB):
    ctypes.memset(place, 1, size)
def call(*arguments):
    return check(libc.syscall(*map(long, arguments)))
held = 0
def hold(more=1):
    global held
    held += more
    os.write(1, f"{held:.2f}\\n".encode())
def rest():
    while True:
        time.sleep(60)
def leave():  # the thread, not the process
    libc.syscall(60 if os.uname().machine == "x86_64" else 93, 0)
"""

# The kernel gives out no more than the limit: what is held last is within it.
MEMORY_HELD = {
    "objects": "kept = []\nwhile True: kept.append(bytearray(MB)); hold()",
    "numbers": "kept = []\nwhile True: kept.append(list(range(30_000))); hold()",
    "a string": """
text = "x" * MB
while True: text += text; hold(len(text) // MB - held)
""",
    "a dictionary": """
kept = {}
while True:
    for i in range(1000): kept[len(kept)] = bytes(1024)
    hold()
""",
    "mappings": "while True: fill(get(MB)); hold()",
    "mappings without reserve": "while True: fill(get(MB, 0x4022)); hold()",
    "mappings filled at once": "while True: get(MB, 0x8022); hold()",
    "mappings for stacks": "while True: fill(get(MB, 0x20022)); hold()",
    "mappings that may be run": "while True: fill(get(MB, protection=7)); hold()",
    "a place that was reserved": """
places = [get(40 * MB, protection=0) for _ in range(2)]
for place in places:
    for i in range(40):
        check(libc.mprotect(place + i * MB, MB, 3)); fill(place + i * MB); hold()
""",
    "a mapping that grows": """
place, size = get(MB), MB
while True:
    fill(place + size - MB); hold()
    place = check(libc.mremap(place, size, size + MB, 1)); size += MB
""",
    "the heap": "while True: fill(check(libc.sbrk(MB))); hold()",
    "malloc": "while True: fill(check(libc.malloc(MB))); hold()",
    "small mallocs": """
while True:
    for i in range(1024): fill(check(libc.malloc(1000)), 1000)
    hold()
""",
    "copies of a file": """
file = os.open("f", os.O_CREAT | os.O_RDWR); os.write(file, bytes(MB))
while True: fill(get(MB, PRIVATE, file=file)); hold()
""",
    "copies of a library": """
file = os.open(os.__file__, os.O_RDONLY); size = os.fstat(file).st_size // PAGE * PAGE
while True:
    got = 0
    while got < MB: fill(get(size, PRIVATE, file=file), size); got += size
    hold()
""",
    "lazily freed pages": """
while True:
    place = get(MB); fill(place); libc.madvise(place, MB, 8); fill(place); hold()
""",
    "mappings that are moved and left behind": """
while True:
    place = get(MB); fill(place)
    check(libc.mremap(void(place), long(MB), long(MB), 5, void(0)))
    fill(place); hold(2)
""",
    "mappings filled by advice": """
while True: check(libc.madvise(get(MB), MB, 23)); hold()
""",
    "pages that are put away": """
while True:
    place = get(MB); fill(place); libc.madvise(place, MB, 21); hold()
""",
    "mappings at high addresses": "while True: fill(get(MB, at=1 << 50)); hold()",
    "the first thread's stack": """
at = void.in_dll(libc, "__libc_stack_end").value // PAGE * PAGE - MB // 2
while True: at -= PAGE; fill(at, PAGE); hold(PAGE / MB)
""",
    "pipes beside mappings": """
try:
    while True: fill(get(MB)); hold()
except OSError: pass
while True:
    reader, writer = os.pipe(); os.set_blocking(writer, False)
    try:
        while True: hold(os.write(writer, bytes(PAGE)) / MB)
    except BlockingIOError: pass
""",
    "watchers of watchers": """
import select
kept = []
while True:
    kept.append(select.epoll())
    for other in kept[:-1]:
        try: kept[-1].register(other, 1); hold(0.001)
        except OSError: pass  # nested too deep
""",
    "stacks of threads": """
threading.stack_size(4 * MB)
def deep():
    fill(ctypes.addressof(ctypes.create_string_buffer(MB)), MB); hold(); rest()
def start():
    for i in range(30): threading.Thread(target=rest, daemon=True).start(); hold(4)
start()
""",
    "what a bomb unpacks": """
import zlib
packed = zlib.compress(bytes(100 * MB)); hold(100)
""",
    "a thread, after the first has left": """
def take():
    while True: fill(get(MB)); hold()
threading.Thread(target=take).start(); leave()
""",
    "pipes": """
while True:
    reader, writer = os.pipe(); os.set_blocking(writer, False)
    try:
        while True: hold(os.write(writer, bytes(PAGE)) / MB)
    except BlockingIOError: pass
""",
}

# The kernel refuses the call itself.
MEMORY_REFUSED = {
    "shared memory": "get(MB, SHARED | ANONYMOUS)",
    "shared memory by Python": "mmap.mmap(-1, MB)",
    "shared memory that is validated": "get(MB, 3 | ANONYMOUS)",
    "memory that may be dropped": "get(MB, 8 | ANONYMOUS)",
    "memory without a kind": "get(MB, ANONYMOUS)",
    "the device of zeros, shared": "get(MB, SHARED, file=os.open('/dev/zero', 0))",
    "the folder of shared memory": "open('/dev/shm/x', 'w')",
    "a mapping that grows down": "get(PAGE, 0x122)",
    "huge pages": "get(2 * MB, 0x40022)",
    "a file in memory": "os.memfd_create('x')",
    "a secret file in memory": "call(447, 0)",
    "a segment of System V": "call(29 if x86 else 194, 0, MB, 0o1600)",
    "a queue of messages": "call(68 if x86 else 186, 0, 0o1600)",
    "a queue of POSIX": "call(240 if x86 else 180, 0, 0o102, 0o600, 0)",
    "a ring of requests": "call(425, 8, 0)",
    "a program in the kernel": "call(321 if x86 else 280, 0, 0, 0)",
    "a key": "call(248 if x86 else 217, 0, 0, 0, 0, 0)",
    "a counter with a buffer": "call(298 if x86 else 241, 0, 0, -1, -1, 0)",
    "faults for itself": "call(323 if x86 else 282, 0)",
    "sockets with buffers": "import socket; socket.socketpair()",
    "a larger pipe": "import fcntl; fcntl.fcntl(os.pipe()[1], 1031, 16 * MB)",
    "locks on parts of a file": "import fcntl; fcntl.lockf(os.open('f', 66), 2, 1, 9)",
    "a question about a lock": """
import fcntl
fcntl.fcntl(os.open('f', 66), fcntl.F_GETLK, bytes(32))
""",
    "a lock of the file": "import fcntl; fcntl.flock(os.open('f', 66), 2)",
    "watching files": "call(253 if x86 else 26, 0)",
    "a timer": "call(222 if x86 else 107, 0, 0, 0)",
    "advice for others": "call(440, 0, 0, 0, 0, 0)",
    "a limit that is lifted": """
import resource
try: resource.setrlimit(resource.RLIMIT_DATA, (1 << 40, 1 << 40))
except ValueError as error: raise PermissionError(str(error))
""",
    "a thread with files of its own": "call(56 if x86 else 220, 0x10900, 0, 0, 0, 0)",
    "a child": "os.fork()",
    "locked memory": "check(libc.mlock(void(get(MB)), long(MB)))",
    "the target of a link": "os.readlink('/proc/self/exe')",
    "the target of a link by libc": """
text = ctypes.create_string_buffer(100)
check(libc.readlink(sys.argv[1].encode(), text, long(100)))
""",
    "the target of a link from a folder": "os.readlink(sys.argv[1], dir_fd=0)",
}

# The ways that were found in use; the others wait for the full budget.
FIRST = {
    "objects",
    "mappings",
    "a mapping that grows",
    "pipes",
    "stacks of threads",
    "a thread, after the first has left",
    "pages that are closed again",
    "page tables",
    "three children",
    "many files",
    "deleted files that are open",
    "deleted files that are mapped",
    "deleted files that a child has open",
    "given back pages of a mapped file",
    "deep folders",
    "threads",
    "children whose end is asked to be forgotten",
    "children that are not",
    "a stop",
    "a sleep with all signals blocked",
    "a child with all signals blocked",
    "a borrowed process",
    "both streams",
}

# Looked at: it may hold more for a moment, and is then ended.
MEMORY_ENDED = {
    "pages that are closed again": """
while held < 80:
    place = get(MB); fill(place); check(libc.mprotect(place, MB, 1)); hold()
rest()
""",
    "the same, after the first thread has left": """
def take():
    while held < 80:
        place = get(MB); fill(place); check(libc.mprotect(place, MB, 1)); hold()
    rest()
threading.Thread(target=take).start(); leave()
""",
}
# With a readable folder: libraries may need any address space.
MEMORY_ENDED_WIDE = {
    "closed pages in a wide space": """
while held < 300:
    place = get(MB); fill(place); check(libc.mprotect(place, MB, 1)); hold()
rest()
""",
    "page tables": """
while held < 200:
    place = get(1 << 30, protection=1)
    for i in range(512): ctypes.c_char.from_address(place + i * 2 * MB).value
    hold(2)
rest()
""",
    "page tables of holes": """
for i in range(50_000):
    if held > 100: break
    place = get(4 * MB, protection=1)
    ctypes.c_char.from_address(place).value
    libc.munmap(place + PAGE, 4 * MB - PAGE)
    if i % 256 == 0: hold()
rest()
""",
}
MEMORY_ENDED_FAMILY = {
    "three children": """
for i in range(3):
    if os.fork() == 0:
        for i in range(40): fill(get(MB))
        rest()
rest()
""",
    "a child of a child": """
if os.fork() == 0:
    if os.fork() == 0:
        for i in range(50): fill(get(MB))
        rest()
    os._exit(0)
for i in range(40): fill(get(MB))
rest()
""",
    "a child whose first thread has left": """
def take():
    for i in range(50): fill(get(MB))
    rest()
if os.fork() == 0:
    threading.Thread(target=take).start(); leave()
for i in range(40): fill(get(MB))
rest()
""",
}

# Files: what is held last is within the limit, where they have their own file system.
FILES_HELD = {
    "many files": """
for i in range(200): open(str(i), "wb", 0).write(bytes(MB // 4)); hold(0.25)
rest()
""",
    "one file": """
file = os.open("f", os.O_CREAT | os.O_RDWR)
while os.write(file, bytes(MB)) == MB: hold()
""",
    "deleted files that are open": """
for i in range(40):
    file = os.open("f", os.O_CREAT | os.O_RDWR); os.unlink("f")
    if os.write(file, bytes(MB)) == MB: hold()
rest()
""",
    "deleted files that are mapped": """
for i in range(40):
    file = os.open("f", os.O_CREAT | os.O_RDWR); os.unlink("f")
    if os.write(file, bytes(MB)) == MB: hold()
    get(PAGE, SHARED, 1, file); os.close(file)
rest()
""",
    "deleted files that a child has open": """
if os.fork() == 0:
    for i in range(40):
        file = os.open("f", os.O_CREAT | os.O_RDWR); os.unlink("f")
        if os.write(file, bytes(MB)) == MB: hold()
    rest()
os.wait(); rest()
""",
    "deleted files, after the first thread has left": """
def take():
    try:
        for i in range(40):
            file = os.open("f", os.O_CREAT | os.O_RDWR); os.unlink("f")
            if os.write(file, bytes(MB)) == MB: hold()
    except OSError: os._exit(1)
    rest()
threading.Thread(target=take).start(); leave()
""",
    "files that never had a name": """
for i in range(40):
    file = os.open(".", 0o20200000 | os.O_RDWR)
    if os.write(file, bytes(MB)) == MB: hold()
rest()
""",
    "a file that is written by its mapping": """
for i in range(40):
    file = os.open(str(i), os.O_CREAT | os.O_RDWR); os.ftruncate(file, MB)
    fill(get(MB, SHARED, file=file)); hold()
rest()
""",
    "given back pages of a mapped file": """
for i in range(40):
    file = os.open("f", os.O_CREAT | os.O_RDWR); os.unlink("f"); os.ftruncate(file, MB)
    place = get(MB, SHARED, file=file); fill(place); libc.madvise(place, MB, 4); hold()
rest()
""",
    "files in deleted folders": """
for i in range(40):
    os.mkdir("d"); os.chdir("d")
    file = os.open("f", os.O_CREAT | os.O_RDWR); os.unlink("f"); os.rmdir("../d")
    if os.write(file, bytes(MB)) == MB: hold()
    os.chdir(sys.argv[0] and os.environ["HOME"])
rest()
""",
    "copies in the kernel": """
first = os.open("f", os.O_CREAT | os.O_RDWR); os.write(first, bytes(MB)); hold()
for i in range(40):
    file = os.open(str(i), os.O_CREAT | os.O_RDWR)
    if os.sendfile(file, first, 0, MB) == MB: hold()
rest()
""",
    "files that replace each other": """
for i in range(40):
    file = os.open("new", os.O_CREAT | os.O_RDWR)
    if os.write(file, bytes(MB)) == MB: hold()
    os.rename("new", "old")
rest()
""",
    "the ends of sparse files": """
for i in range(40):
    file = os.open(str(i), os.O_CREAT | os.O_RDWR)
    for j in range(4):
        if os.pwrite(file, bytes(MB // 4), MB * j) == MB // 4: hold(0.25)
rest()
""",
}
FILES_REFUSED = {
    "a file larger than the limit": """
try: os.ftruncate(os.open("f", os.O_CREAT | os.O_RDWR), 5 * MB)
except OSError as error: raise PermissionError(str(error))
""",
    "room for a file": "os.posix_fallocate(os.open('f', 66), 0, MB)",
    "an attribute": "os.setxattr('.', 'user.x', bytes(1000))",
    "a second name": "open('f', 'w'); os.link('f', 'g')",
    "a copy in the kernel": "os.copy_file_range(os.open('f', 66), os.open('g', 66), 9)",
    "another file system": "call(165 if x86 else 40, 0, 0, 0, 0, 0)",
    "a pipe with a name": "os.mkfifo('pipe')",
}
ENTRIES_ENDED = {
    "files with long names": """
for i in range(400): open(f"{i:0250}", "w").close()
rest()
""",
    "deep folders": """
for i in range(400): os.mkdir("d"); os.chdir("d")
rest()
""",
}

# Processor time, of all processes together.
TIME_USED = {
    "a loop": "while True: pass",
    "a loop in C": "10 ** 10 ** 8",
    "a pattern": "import re; re.match('(a*)*b', 'a' * 60)",
    "threads": """
import hashlib
def work():
    while True: hashlib.sha256(bytes(MB))
for i in range(4): threading.Thread(target=work).start()
""",
    "a loop that keeps its signals": """
signal.signal(signal.SIGXCPU, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
while True: pass
""",
    "a thread, after the first has left": """
def work():
    while True: pass
threading.Thread(target=work).start(); leave()
""",
    "system calls": "while True: os.stat('.')",
    "bytes from the kernel": "while True: os.getrandom(33_000_000)",
    "signals that wait": """
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
while True:
    try: os.kill(os.getpid(), signal.SIGRTMIN)
    except OSError: pass
""",
    "new names for a file": """
open("a", "w").close()
while True: os.rename("a", "b"); os.rename("b", "a")
""",
    "alarms": """
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 1e-6, 1e-6)
while True: pass
""",
}
TIME_USED_FAMILY = {
    "children that are waited for": """
while True:
    if os.fork() == 0:
        end = time.process_time() + 0.02
        while time.process_time() < end: pass
        os._exit(0)
    os.wait()
""",
    "children that are not": """
def work():
    end = time.process_time() + 0.02
    while time.process_time() < end: pass
    os._exit(0)
while True:
    try:
        if os.fork() == 0: work()
    except BlockingIOError:
        os.wait()
""",
    "children of children that are gone": """
while True:
    if os.fork() == 0:
        if os.fork() == 0:
            end = time.process_time() + 0.02
            while time.process_time() < end: pass
        os._exit(0)
    os.wait()
    try: os.waitpid(-1, os.WNOHANG)
    except ChildProcessError: pass
""",
    "children without a signal": """
while True:
    pid = call(56 if os.uname().machine == "x86_64" else 220, 0, 0, 0, 0, 0)
    if pid == 0:
        end = time.process_time() + 0.02
        while time.process_time() < end: pass
        os._exit(0)
    os.waitpid(pid, 0x40000000)
""",
    "children that spin": """
for i in range(3):
    if os.fork() == 0:
        while True: pass
rest()
""",
    "children whose end is asked to be forgotten": """
for handler in (signal.SIG_IGN, lambda *_: None):
    try: signal.signal(signal.SIGCHLD, handler)
    except PermissionError: pass
flags = ctypes.create_string_buffer(200); flags[136] = 2  # SA_NOCLDWAIT
if libc.sigaction(17, flags, None) != -1: os._exit(3)
while True:
    if os.fork() == 0:
        end = time.process_time() + 0.02
        while time.process_time() < end: pass
        os._exit(0)
    os.wait()
""",
}

# Time on the clock: whatever is blocked, the end comes.
CLOCK = {
    "a sleep": "rest()",
    "a sleep with all signals blocked": """
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()); rest()
""",
    "a stop": "os.kill(os.getpid(), signal.SIGSTOP); rest()",
    "an empty pipe": "os.read(os.pipe()[0], 1)",
    "a lock": "lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "a thread, after the first has left": """
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
threading.Thread(target=rest).start(); leave()
""",
    "closed streams": "os.close(1); os.close(2); rest()",
    "a signal that never comes": "signal.sigwait([signal.SIGUSR1])",
    "its own end": """
import atexit
atexit.register(rest)
""",
}
CLOCK_FAMILY = {
    "a child with all signals blocked": """
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
if os.fork() == 0: rest()
os.wait()
""",
    "a borrowed process": """
libc.vfork.restype = int32
if call(58, 0) == 0 if os.uname().machine == "x86_64" else os.fork() == 0:
    rest()
rest()
""",
    "stopped children": """
for i in range(3):
    pid = os.fork()
    if pid == 0: rest()
    os.kill(pid, signal.SIGSTOP)
rest()
""",
}

OTHER = {
    "both streams": (
        "while True: os.write(1, b'x' * 100); os.write(2, b'x' * 100)",
        "output",
    ),
    "a stream from a thread, after the first has left": (
        """
def shout():
    while True: os.write(2, b"x" * 1000)
threading.Thread(target=shout).start(); leave()
""",
        "output",
    ),
    "threads": (
        """
threading.stack_size(32768)
for i in range(100):
    try: threading.Thread(target=rest, daemon=True).start()
    except RuntimeError: pass
rest()
""",
        "killed",
    ),
}

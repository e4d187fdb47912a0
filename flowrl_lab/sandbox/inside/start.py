"""Lock this process in, then run the program that came on standard input.

Run as a script by a bare interpreter.  On the control socket it hands over the
scratch folder, then says ``ready``, or the reason why it could not lock itself in.
The socket is closed before the program starts, so the program cannot speak there.

What is slow to import (json, traceback, contextlib) waits until it is needed: most
programs are shorter than that.
"""

from __future__ import annotations

import sys

sys.path.insert(0, __file__.rpartition("/")[0])

import _signal
import _socket
import builtins
import gc
import marshal
import os
import resource
import types

import kernel
import landlock
import seccomp

sys.path.pop(0)
sys.dont_write_bytecode = True

NEW_USER, NEW_NET, NEW_IPC, NEW_PID = 0x10000000, 0x40000000, 0x08000000, 0x20000000
NEW_MOUNTS = 0x00020000
NO_SETUID, NO_DEVICES, RECURSIVE, PRIVATE = 0x2, 0x4, 0x4000, 0x40000  # of a mount
# Beyond the limit, so that the parent sees who went over it.
SPARE_BYTES, SPARE_ENTRIES = 1 << 16, 8
STACK_BYTES = 8 << 20
LIBRARY_BYTES = 32 << 20  # what the standard library may map of shared libraries
SYSTEM_FILES = (
    *("/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo", "/dev/urandom"),
    *("/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system/cpu"),
)


def main() -> None:
    """Read the order, lock in, report, run."""
    order = marshal.load(sys.stdin.buffer)
    control = order["control"]
    try:
        # As an interpreter that was started for this program finds them already.
        os.environ["HOME"] = os.environ["TMPDIR"] = order["scratch"]
        if not (order["serves"] or order["talks"]):
            quiet = os.open("/dev/null", os.O_RDONLY)
            os.dup2(quiet, 0)
            os.close(quiet)
        lock_in(order)
    except Exception as error:
        os.write(control, f"{type(error).__name__}: {error}".encode())
        os._exit(1)
    os.write(control, b"ready")
    os.close(control)
    run_program(order)


def lock_in(order: dict) -> None:
    """Every restriction, in the order in which they leave each other possible."""
    many = order["processes"] > 1
    take_signals()
    new = leave_namespaces(pid_too=many)
    parent = order["parent"]
    if many:
        parent = 0  # seen from inside the new pid namespace
        become_first_process(order)
    furnish_scratch(order, apart=bool(new & NEW_MOUNTS))
    die_first()
    # Without a user of its own, all the processes of the user would count.
    set_limits(order, counted=bool(new & NEW_USER))
    kernel.forbid_new_privileges()
    landlock.restrict_files(
        [*SYSTEM_FILES, *order["libraries"], *order["readable"]],
        [order["scratch"], "/dev/null"],
        order["listed"],
    )
    kernel.drop_capabilities()
    # Changing capabilities forgets the wish to die with the parent: say it here.
    kernel.die_with_parent(parent)
    seccomp.restrict_calls(os.uname().machine, pid=None if many else os.getpid())


def take_signals() -> None:
    """Nothing is blocked, and children are waited for, whatever the parent does."""
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, [])


def leave_namespaces(*, pid_too: bool) -> int:
    """New user, mount, network and IPC namespaces where allowed; which, as flags.

    They add to what Landlock and seccomp do; only the pid namespace, which several
    processes need so that none can outlive the run, must be there when asked for.
    """
    rest = NEW_MOUNTS | NEW_NET | NEW_IPC | (NEW_PID if pid_too else 0)
    user, group = os.getuid(), os.getgid()
    for flags in (NEW_USER | rest, rest):
        try:
            kernel.unshare(flags)
        except OSError as error:
            problem = error
            continue
        if flags & NEW_USER and not map_user(user, group):
            flags &= ~NEW_MOUNTS  # nobody without a name owns files there
        return flags
    if pid_too:
        raise OSError(
            f"no pid namespace ({problem}), so several processes cannot be held; "
            "use Limits(processes=1)"
        )
    return 0


def map_user(user: int, group: int) -> bool:
    """Keep the same numbers inside the new user namespace; False if not allowed.

    AppArmor forbids it on some systems: this is then a user without a name.
    """
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        try:
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
        except OSError:
            return False
    return True


def become_first_process(order: dict) -> None:
    """Fork: the child goes on as number 1 of its pid namespace, this one waits.

    When number 1 ends, the kernel kills every process of the namespace.
    """
    child = os.fork()
    if child == 0:
        return
    os.close(order["control"])
    kernel.die_with_parent(order["parent"])
    for stream in (1, 2):
        os.close(stream)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status < 0:
        os.kill(os.getpid(), -status)
    os._exit(status & 0xFF)


def furnish_scratch(order: dict, *, apart: bool) -> None:
    """Put the files into the scratch folder, and hand the folder to the parent.

    Where it may be, the folder is a file system of its own that holds as much as the
    program may write, so that deleted files count too, and vanishes with the run.

    Args:
        order: what the parent wants.
        apart: whether what is mounted here is mounted nowhere else.
    """
    own = apart and mount_scratch(order)
    if order["strict"] and not own:
        raise OSError("no file system of its own")
    os.chdir(order["scratch"])
    for name, content in order["files"].items():
        folder = os.path.dirname(name)
        if folder:
            os.makedirs(folder, exist_ok=True)
        with open(name, "xb") as file:
            file.write(content)
    handle = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    control = _socket.socket(fileno=order["control"])
    rights = handle.to_bytes(4, sys.byteorder)
    control.sendmsg(
        [b"own" if own else b"shared"],
        [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)],
    )
    control.detach()
    os.close(handle)


def mount_scratch(order: dict) -> bool:
    """A file system over the scratch folder; False where that is not allowed."""
    room = order["file_bytes"] + order["given_bytes"] + SPARE_BYTES
    entries = order["entries"] + 1 + SPARE_ENTRIES  # and the folder itself
    options = f"size={room},nr_inodes={entries},mode=0700"
    try:
        kernel.mount("none", "/", RECURSIVE | PRIVATE, "")
        kernel.mount("tmpfs", order["scratch"], NO_SETUID | NO_DEVICES, options)
    except OSError:
        return False
    return True


def die_first() -> None:
    """If the machine runs out of memory, the kernel is to pick this process."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("1000")
    except OSError:  # where /proc cannot be written, the limits still hold
        return


def set_limits(order: dict, *, counted: bool) -> None:
    """The kernel's own limits; the parent watches what these cannot express."""
    cpu, file = order["cpu_seconds"], order["file_bytes"]
    limits = {
        resource.RLIMIT_CPU: (cpu, cpu + 1),
        resource.RLIMIT_FSIZE: (file, file),
        resource.RLIMIT_DATA: (order["memory_bytes"], order["memory_bytes"]),
        resource.RLIMIT_STACK: (STACK_BYTES, STACK_BYTES),
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_NOFILE: (order["open_files"], order["open_files"]),
        resource.RLIMIT_MEMLOCK: (0, 0),
        resource.RLIMIT_MSGQUEUE: (0, 0),
        resource.RLIMIT_SIGPENDING: (64, 64),
    }
    if not order["readable"]:  # else its libraries may need any space
        with open("/proc/self/statm", encoding="ascii") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        most = now + order["memory_bytes"] + LIBRARY_BYTES
        limits[resource.RLIMIT_AS] = (most, most)
    if counted:
        tasks = order["processes"] + order["threads"]
        limits[resource.RLIMIT_NPROC] = (tasks, tasks)
    for name, (soft, hard) in limits.items():
        ceiling = resource.getrlimit(name)[1]
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(name, (soft, hard))


class PackageFinder:
    """Finds the packages whose own folder may be read, but not the one above."""

    def __init__(self, packages: dict[str, str]) -> None:
        self.packages = packages

    def find_spec(self, name, path=None, target=None):
        """The import system's question: where is ``name``?"""
        del path, target
        folder = self.packages.get(name)
        if folder is None:
            return None
        from importlib.util import spec_from_file_location

        return spec_from_file_location(
            name, f"{folder}/__init__.py", submodule_search_locations=[folder]
        )


def run_program(order: dict) -> None:
    """Run the source as the main program of this process; does not return."""
    source, name = order["source"], "program.py"
    sys.path[:0] = [order["scratch"]]
    sys.path += order["folders"]
    sys.meta_path.append(PackageFinder(order["packages"]))
    sys.argv = [name, *order["arguments"]]
    module = types.ModuleType("__main__")
    module.__file__ = name
    module.__builtins__ = builtins
    builtins.exit = builtins.quit = sys.exit  # what `site` would have added
    sys.modules["__main__"] = module
    gc.freeze()
    status = 0
    try:
        if order["serves"]:
            serve(source, module, order["mark"])
        exec(compile(source, name, "exec"), module.__dict__)
    except SystemExit as error:
        raise error from None
    except BaseException as error:
        show_error(error, source, name)
        status = 1
    sys.exit(status)


def serve(source: str, module: types.ModuleType, mark: str) -> None:
    """Answer each line on standard input with a line; ends with the input.

    A line is a mark, which the answer repeats, a blank, and JSON.  What the program
    prints goes to standard error.
    """
    import json

    replies, sys.stdout = sys.stdout, sys.stderr
    exec(compile(source, "program.py", "exec"), module.__dict__)
    replies.write(f"{mark} {{}}\n")  # its imports are done
    replies.flush()
    for line in sys.stdin:
        mark, _, question = line.partition(" ")
        try:
            reply = json.dumps({"answer": module.answer(json.loads(question))})
        except Exception as error:
            reply = json.dumps({"error": f"{type(error).__name__}: {error}"[:500]})
        replies.write(f"{mark} {reply}\n")
        replies.flush()
    os._exit(0)


def show_error(error: BaseException, source: str, name: str) -> None:
    """The traceback as a plain interpreter would print it, without this file."""
    try:
        import linecache
        import traceback

        lines = source.splitlines(keepends=True)
        linecache.cache[name] = (len(source), None, lines, name)
        own = error.__traceback__
        traceback.print_exception(type(error), error, own and own.tb_next)
    except BaseException:  # no memory or stack left even for that
        os.write(2, f"{type(error).__name__}\n".encode())


if __name__ == "__main__":
    main()

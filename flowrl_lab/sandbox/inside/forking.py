"""An interpreter that has its imports behind it, and forks a process for each program.

Run as a script by a bare interpreter.  It is itself not locked in, so it runs nothing
but the imports that it was told; it never sees an order, a program or an answer.  Each
child reads its own order from its own pipe, and locks itself in before it runs it.
"""

from __future__ import annotations

import sys

sys.path.insert(0, __file__.rpartition("/")[0])

import contextlib
import gc
import importlib
import marshal
import os
import selectors
import signal
import socket

import start

HANDLES = 5  # for a new program: its input, both outputs, its report; and our line


def main() -> list[int]:
    """Import what was asked for, then fork until nobody asks any more.

    Returns:
        The handles of its program, in a child alone.
    """
    start.take_signals()
    orders = socket.socket(fileno=0)
    told = marshal.loads(orders.recv(1 << 20))
    sys.path += told["folders"]
    try:
        for name in told["imports"]:
            importlib.import_module(name)
    except BaseException as error:
        orders.send(f"{type(error).__name__}: {error}"[:500].encode())
        os._exit(1)
    # A child finds modules as every program in the sandbox does: through its order.
    sys.path[:] = [path for path in sys.path if path not in told["folders"]]
    sys.path_importer_cache.clear()
    gc.collect()
    gc.freeze()
    orders.send(b"ready")
    with orders:
        return serve(orders)


def serve(orders: socket.socket) -> list[int]:
    """A child for each message; its end is told when its line asks for it."""
    children: dict[socket.socket, int] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(orders, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not orders:
                    selector.unregister(key.fileobj)
                    bury(key.fileobj, children.pop(key.fileobj))
                    continue
                message, handles, _, _ = socket.recv_fds(orders, 16, HANDLES)
                if not message:  # whoever asked is gone
                    os._exit(0)
                line = socket.socket(fileno=handles[-1])
                child = os.fork()
                if child == 0:
                    return handles
                for handle in handles[:-1]:
                    os.close(handle)
                children[line] = child
                selector.register(line, selectors.EVENT_READ)
                with contextlib.suppress(OSError):  # as in `bury`, which comes next
                    line.send(str(child).encode())


def bury(line: socket.socket, child: int) -> None:
    """Wait for a child's end and say how it was, and what it cost.

    Not before it is asked for: until then its number belongs to nobody else.
    """
    os.kill(child, signal.SIGKILL)  # it may still run, if whoever asked is gone
    _, status, cost = os.wait4(child, 0)
    with line, contextlib.suppress(OSError):  # nobody may listen any more
        line.recv(16)  # closed unread, it would take our answer with it
        line.send(marshal.dumps((status, cost.ru_utime + cost.ru_stime)))


def become_program(handles: list[int]) -> None:
    """Keep the four handles of a program and nothing else; does not return."""
    os.setsid()
    for number, handle in enumerate(handles[:4]):
        os.dup2(handle, number)
    os.closerange(4, max(map(int, os.listdir("/proc/self/fd"))) + 1)
    start.main()


if __name__ == "__main__":
    become_program(main())

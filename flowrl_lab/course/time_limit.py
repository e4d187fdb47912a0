"""Stop a learner's endless loop without a second process, inside Jupyter."""

from __future__ import annotations

import ctypes
import signal
import threading
from collections.abc import Callable
from typing import Any

__all__ = ["TimeUp", "call_with_limit"]


class TimeUp(BaseException):
    """The time is over.  Not an Exception, so ``except Exception`` lets it pass."""


def call_with_limit(function: Callable[[], Any], seconds: float) -> Any:
    """Call ``function``; stop it after ``seconds``.

    On the main thread of Linux and macOS an interval timer interrupts it.  On
    Windows, or on another thread, the call moves to a helper thread that gets the
    exception when the time is over.  Both act between Python instructions: one
    long call inside a C library ends first.

    Args:
        function: takes no arguments.
        seconds: more than 0.

    Returns:
        What ``function`` returned.

    Raises:
        TimeUp: when it took too long; and whatever ``function`` raises.
    """
    on_main = threading.current_thread() is threading.main_thread()
    if on_main and hasattr(signal, "setitimer"):
        return _call_with_timer(function, seconds)
    return _call_in_thread(function, seconds)


def _call_with_timer(function: Callable[[], Any], seconds: float) -> Any:
    def stop(_signal, _frame):
        raise TimeUp

    before = signal.signal(signal.SIGALRM, stop)
    # The interval rings again, in case the first alarm was swallowed.
    signal.setitimer(signal.ITIMER_REAL, seconds, 0.5)
    try:
        return function()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _call_in_thread(function: Callable[[], Any], seconds: float) -> Any:
    outcome: dict[str, Any] = {}

    def work() -> None:
        try:
            outcome["value"] = function()
        except BaseException as error:  # handed to the caller below
            outcome["error"] = error

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    for _ in range(10):
        if not thread.is_alive():
            break
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident or 0), ctypes.py_object(TimeUp)
        )
        thread.join(0.2)
    if thread.is_alive():
        raise TimeUp
    if "error" in outcome:
        raise outcome["error"]
    return outcome["value"]

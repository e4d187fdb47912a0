"""A program in the sandbox that stays and answers questions, one after the other.

For checkers that take seconds to import and milliseconds to use.  The questions may
be hostile: an answer that takes too long or needs too much costs the process, and
the next question gets a fresh one.  So does a question after which the program said
more than its answer: every question has a mark that its answer must bear, so what
was meant for one question is never taken for another's answer.  Between questions the
program stands still.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import signal
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from flowrl_lab.sandbox.limits import Limits
from flowrl_lab.sandbox.running import (
    SandboxUnavailable,
    check_available,
    make_order,
    say_why,
    start_process,
)
from flowrl_lab.sandbox.watching import Watch

__all__ = ["SandboxServer", "ServerStopped"]

_FIRST_SECONDS = 120.0  # for the imports of a program, on a busy machine
_ALL_CPU_SECONDS = 86_400.0
_USUAL = Limits()


class ServerStopped(RuntimeError):
    """The program gave no answer; the message says why."""


class _Lost(ServerStopped):
    """By nothing that the question did, as far as we know: it is asked once more."""


class SandboxServer:
    """Answers from a sandboxed program that defines ``answer(question)``.

    Questions and answers are what JSON can hold.  May be used from several threads;
    the questions then wait for each other.

    Args:
        source: a program that defines ``answer``; its imports happen once.
        limits: as for ``run_python``, but both times are for one answer.
        readable: as for ``run_python``.
    """

    def __init__(
        self,
        source: str,
        *,
        limits: Limits = _USUAL,
        readable: Sequence[Path] = (),
    ) -> None:
        self._seconds = (limits.wall_seconds, limits.cpu_seconds)
        self._limits = _without_clock(limits)
        self._order = make_order(source, self._limits, readable, ())
        self._order["serves"] = True
        self._lock = threading.Lock()
        self._running: _Running | None = None
        self._end = weakref.finalize(self, lambda: None)

    def ask(self, question: Any) -> Any:
        """The program's answer.

        Raises:
            SandboxUnavailable: where the platform has no sandbox.
            ServerStopped: no answer in time, too much memory, a crash, an exception
                in ``answer``, or a question or an answer that JSON cannot hold.
        """
        check_available(self._limits)
        with self._lock:
            try:
                reply = self._ask_once(question)
            except _Lost:
                reply = self._ask_once(question)
        if "error" in reply:
            raise ServerStopped(str(reply["error"]))
        return reply.get("answer")

    def _ask_once(self, question: Any) -> dict[str, Any]:
        if self._running is not None and self._running.owner != os.getpid():
            self._running = None  # a fork: that program answers the parent
        if self._running is None:
            self._running = _start(self._order, self._limits)
            # The end of this object, or of the interpreter, ends the program.
            self._end = weakref.finalize(self, self._running.close)
        try:
            return self._running.ask(question, *self._seconds)
        except BaseException:
            self._stop()
            raise

    def close(self) -> None:
        """End the program; a later question starts it again."""
        with self._lock:
            self._stop()

    def __enter__(self) -> SandboxServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stop(self) -> None:
        if self._running is not None:
            self._end()  # calls close, once
            self._running = None


def _without_clock(limits: Limits) -> Limits:
    return replace(limits, cpu_seconds=_ALL_CPU_SECONDS, wall_seconds=_FIRST_SECONDS)


@functools.cache
def _keeper(process: int) -> ThreadPoolExecutor:
    """A thread that lives as long as this process, to start programs from.

    The kernel ends a program with the thread that started it, and the threads that
    ask come and go.
    """
    return ThreadPoolExecutor(1, f"sandbox-{process}")


def _start(order: dict[str, Any], limits: Limits) -> _Running:
    started = _keeper(os.getpid()).submit(_Running, order, limits)
    try:
        return started.result()
    except BaseException:
        # Interrupted while it starts: nobody will ask it, so it must not stay.
        started.add_done_callback(lambda s: s.exception() or s.result().close())
        raise


class _Running:
    """One process that serves, from its start to its end."""

    def __init__(self, order: dict[str, Any], limits: Limits) -> None:
        with contextlib.ExitStack() as stack:
            order = {**order, "mark": secrets.token_hex(8)}
            started = stack.enter_context(start_process(order, limits, {}))
            self._watch = Watch(started, limits)
            self._watch.open()
            stack.callback(self._watch.finish)
            while not self._watch.ready:
                if self._watch.step():
                    raise SandboxUnavailable(say_why(self._watch))
            self._questions = started.process.stdin
            self.owner, self._stack = os.getpid(), stack.pop_all()
        # It says when its imports are done.
        self._hear(order["mark"], _FIRST_SECONDS, _FIRST_SECONDS)

    def close(self) -> None:
        if self.owner == os.getpid():  # not for a fork of who started it
            self._stack.close()

    def ask(self, question: Any, seconds: float, cpu_seconds: float) -> dict[str, Any]:
        try:
            text = json.dumps(question)
        except (TypeError, ValueError, RecursionError) as error:
            raise ServerStopped(f"JSON cannot hold the question: {error}") from error
        if self._watch.drain()["stdout"]:
            raise _Lost("spoke without being asked")
        self._watch.output["stderr"].clear()
        mark = secrets.token_hex(8)
        self._watch.release()
        line = f"{mark} {text}\n".encode()
        try:
            if self._questions.write(line) != len(line):
                raise ServerStopped(f"a question of {len(text):,} bytes is too long")
        except BrokenPipeError:
            raise self._explain() from None
        return self._hear(mark, seconds, cpu_seconds)

    def _hear(self, mark: str, seconds: float, cpu_seconds: float) -> dict[str, Any]:
        replies = self._watch.output["stdout"]
        self._watch.allow(seconds, cpu_seconds)
        while b"\n" not in replies:
            if self._watch.step():
                raise self._explain()
        line = bytes(replies[: replies.index(b"\n") + 1])
        del replies[: len(line)]  # what is left is noticed before the next question
        said, _, text = line.partition(b" ")
        if said != mark.encode():
            raise _Lost("gave an answer to no question")
        self._watch.hold()
        try:
            return dict(json.loads(text))
        except (TypeError, ValueError, RecursionError) as error:  # tampered with
            raise ServerStopped(f"{type(error).__name__}: {error}") from error

    def _explain(self) -> ServerStopped:
        """What to raise when the program is gone."""
        self.close()
        watch, code = self._watch, self._watch.exit_code
        if watch.outcome:
            return ServerStopped(watch.reason)
        if code == -signal.SIGKILL:
            return _Lost("was ended from outside")
        if code < 0:
            return ServerStopped(f"was ended by {signal.Signals(-code).name}")
        said = bytes(watch.output["stderr"]).decode(errors="replace").strip()
        last = said.rpartition("\n")[2][:200]
        return ServerStopped(last or "ended without an answer")

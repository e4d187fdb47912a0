"""Progress in a terminal: how far, and how long still, without any package."""

from __future__ import annotations

import sys
import time

__all__ = ["ProgressLine", "format_seconds"]

BAR = 24
REDRAW_SECONDS = 0.2
LINES_WITHOUT_TERMINAL = 10


def format_seconds(seconds: int | float) -> str:
    """``"8 s"``, ``"3 min 20 s"`` or ``"2 h 5 min"``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


class ProgressLine:
    """One line that is redrawn in a terminal, ten lines in a log file.

    Args:
        total: steps to do.
        done: steps that were done before (a resumed run): not counted as speed.
        stream: where to write; None is standard error.
        clock: seconds since some moment.
    """

    def __init__(
        self,
        total: int,
        *,
        done: int = 0,
        stream=None,
        clock=time.monotonic,
    ):
        self.total = max(1, total)
        self._first = done
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._clock = clock
        self._start = clock()
        self._drawn = float("-inf")
        self._tenth = -1
        self._width = 0

    def update(self, done: int, note: str = "") -> None:
        """Say that ``done`` of ``total`` steps are done."""
        now, last = self._clock(), done >= self.total
        if self._terminal:
            if not last and now - self._drawn < REDRAW_SECONDS:
                return
        else:
            tenth = LINES_WITHOUT_TERMINAL * done // self.total
            if tenth == self._tenth:
                return
            self._tenth = tenth
        self._drawn = now
        self._write(self._text(done, now - self._start, note), last)

    def _text(self, done: int, spent: float, note: str) -> str:
        share = min(1.0, done / self.total)
        filled = round(share * BAR)
        bar = "#" * filled + "." * (BAR - filled)
        parts = [f"[{bar}] {share:4.0%}  {done}/{self.total}"]
        fresh = done - self._first
        if done >= self.total:
            parts.append(f"{format_seconds(spent)} in all")
        elif fresh > 0:
            left = spent / fresh * (self.total - done)
            parts.append(f"{format_seconds(left)} left")
        return "  ".join([*parts, note] if note else parts)

    def _write(self, text: str, last: bool) -> None:
        if self._terminal:
            blank = " " * max(0, self._width - len(text))
            self._stream.write(f"\r{text}{blank}" + ("\n" if last else ""))
            self._width = len(text)
        else:
            self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Leave the line as it is and go to the next one."""
        if self._terminal and self._width:
            self._stream.write("\n")
            self._stream.flush()
        self._width = 0

"""Progress in a terminal: how far, how fast, and how long still."""

from __future__ import annotations

import math
import sys
import time

from tqdm import tqdm

from flowrl_lab.metrics import GROUP_MEASURES
from flowrl_lab.types import StepRecord

__all__ = ["ProgressLine", "describe_groups", "describe_step"]

LINES_WITHOUT_TERMINAL = 10


class _Bar(tqdm):
    """Without tqdm's watching thread: some commands start processes by forking."""

    monitor_interval = 0


class ProgressLine:
    """tqdm's bar in a terminal, ten of its lines in a log file.

    Args:
        total: steps to do.
        done: steps that were done before (a resumed run): not counted as speed.
        stream: where to write; None is standard error.
    """

    def __init__(self, total: int, *, done: int = 0, stream=None):
        self._stream = sys.stderr if stream is None else stream
        self._facts = {"total": max(1, total), "initial": done, "ascii": True}
        self._start, self._tenth = time.monotonic(), -1
        hidden = not self._stream.isatty()
        look = {"file": self._stream, "dynamic_ncols": True, "mininterval": 0.2}
        self._bar = _Bar(**self._facts, **look, disable=hidden)

    def update(self, done: int, note: str = "") -> None:
        """Say that ``done`` of ``total`` steps are done."""
        if not self._bar.disable:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - self._bar.n)
            return
        tenth = LINES_WITHOUT_TERMINAL * done // self._facts["total"]
        if tenth != self._tenth:
            self._tenth, spent = tenth, time.monotonic() - self._start
            line = tqdm.format_meter(done, elapsed=spent, postfix=note, **self._facts)
            print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Leave the line as it is and go to the next one."""
        self._bar.close()


def describe_step(record: StepRecord) -> str:
    """The note beside the bar; before the first step there is no batch to speak of."""
    return "" if math.isnan(record.reward) else f"reward {record.reward:.3f}"


def describe_groups(record: StepRecord) -> str:
    """What the groups of a step's batch showed, beside what they showed untrained."""
    return ", ".join(
        f"{GROUP_MEASURES[name]} {record.sampled[name]:.2f} (untrained {mean:.2f})"
        for name, (mean, _) in record.floor.items()
        if name in ("right", "distinct", "effective")
    )

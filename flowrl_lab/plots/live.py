"""Live plots: curves and the solution map, drawn while a cell trains.

One output, updated in place: a plotly ``FigureWidget`` while training runs, then
the same figure as plotly JSON, SVG and text, which needs neither kernel nor widget
state.  Without a front end (``FLOWRL_HEADLESS=1``, a script) only the last is made.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from flowrl_lab._validation import bad_input
from flowrl_lab.plots.figures import (
    SCRIPT,
    THEME,
    bundle_from_page,
    plotly_figure,
    whole_figure,
)
from flowrl_lab.plots.panels import (
    ALWAYS_LOG,
    History,
    Page,
    build_page,
    check_metrics,
    format_seconds,
    tabulate_page,
)
from flowrl_lab.plots.placement import place_page
from flowrl_lab.plots.static import draw_svg
from flowrl_lab.types import StepRecord

__all__ = ["LivePlot", "choose_backend", "in_notebook"]

BACKENDS = ("auto", "widget", "svg", "static")
# Drawing takes one part in this many of the time, but never waits longer than two
# seconds; the first few drawings come sooner, so that a plot starts lively, on a slow
# machine too: there a short run would be over before the second.
DRAW_SHARE, EAGER_SHARE, EAGER_DRAWINGS = 100, 20, 10
LONGEST_WAIT, LONGEST_EAGER_WAIT = 2.0, 0.6
CLOSE_SECONDS = 30.0
WIDGET = SCRIPT.with_name("widget.js")
now = time.monotonic


class LivePlot:
    """A plot that follows training, one panel for each metric.

    ::

        with LivePlot(("reward", "kl_policy_target"), solution_map=True) as plot:
            for record in race(*configs):
                plot.update(record)

    ■ Interrupt ends the block: the figure is finished with what was trained, and
    the cells below can use ``plot.records``.  Other errors pass through after the
    figure is finished.

    Args:
        metrics: fields of ``StepRecord`` or ``ExactReport``, or ``"pass@K"``; or what
            a batch's groups show without a list of answers, ``"sampled/distinct"``
            and others of ``metrics.GROUP_MEASURES``, beside the level that as many
            samples of the untrained policy have.
        solution_map: draw each run's distribution over the watched prompt's
            answers beside the target.
        title: headline.
        target_label: what the target distribution is called.
        log_y: metrics on a log axis.
        max_rate_hz: drawings a second, at most; slow drawings also wait longer, so
            that they stay below a fiftieth of a longer run's time.
        backend: ``"widget"`` (live, needs anywidget in the front end), ``"svg"``
            (live anywhere), ``"static"`` (one figure at the end), ``"auto"``.

    Raises:
        ValueError: for an unknown metric or back end, before anything is trained.
    """

    def __init__(
        self,
        metrics: Sequence[str] = ("reward",),
        *,
        solution_map: bool = False,
        title: str = "",
        target_label: str = "target p*",
        log_y: Sequence[str] = ALWAYS_LOG,
        max_rate_hz: int | float = 5.0,
        backend: str = "auto",
    ) -> None:
        self.metrics = check_metrics(metrics, solution_map=solution_map)
        if not max_rate_hz > 0:
            raise bad_input(
                "max_rate_hz", f"is {max_rate_hz!r}", "a number above 0", "try 5"
            )
        self.solution_map = solution_map
        self.title = title
        self.target_label = target_label
        self.log_y = tuple(log_y)
        self.max_rate_hz = max_rate_hz
        self.backend = choose_backend(backend)
        self.records: list[StepRecord] = []
        self.interrupted = False  # by ■: then later cells may miss what they expect
        self._history = History(self.metrics)
        self._status = "waiting for the first step"
        self._canvas: _Canvas = _CANVASES[self.backend]()
        self._next_draw = 0.0
        self._drawings = 0
        self._started = now()

    def __enter__(self) -> LivePlot:
        self._canvas.open(*self._drawing())
        self._started = now()
        return self

    def update(self, record: StepRecord) -> None:
        """Take in one record; redraw if the last drawing is long enough ago.

        Raises:
            ValueError: if this is not a ``StepRecord``.
        """
        if not isinstance(record, StepRecord):
            raise bad_input(
                "record",
                f"is a {type(record).__name__}",
                "a StepRecord",
                "loop `for record in train(config)` and pass each record on",
            )
        self.records.append(record)
        self._history.append(record)
        began = now()
        if self.backend == "static" or began < self._next_draw:
            return
        self._status = progress_text(self._history, began - self._started)
        self._canvas.draw(*self._drawing())
        ended = now()
        self._drawings += 1
        share, longest = DRAW_SHARE, LONGEST_WAIT
        if self._drawings <= EAGER_DRAWINGS:
            share, longest = EAGER_SHARE, LONGEST_EAGER_WAIT
        wait = min(share * (ended - began), longest)
        self._next_draw = ended + max(1.0 / self.max_rate_hz, wait)

    def __exit__(self, kind, error, trace) -> bool:
        seconds = now() - self._started
        self._status = ending_text(self._history, seconds, kind)
        self._canvas.close(*self._drawing())
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self.interrupted = True
            print(f"{self._status}: {len(self.records)} records kept in plot.records")
            return True
        return False

    def page(self) -> Page:
        """What the figure shows now."""
        return build_page(
            self._history,
            title=self.title,
            progress=self._status,
            solution_map=self.solution_map,
            target_label=self.target_label,
            log_y=self.log_y,
        )

    def bundle(self) -> dict:
        """The figure now, as mime type -> content."""
        return bundle_from_page(*self._drawing())

    def _drawing(self):
        page = self.page()
        return page, place_page(page)


def choose_backend(backend: str = "auto") -> str:
    """Pick how to draw: what was asked for, or what this session can show.

    Raises:
        ValueError: for an unknown name.
    """
    if backend not in BACKENDS:
        raise bad_input(
            "backend", f"is {backend!r}", f"one of {', '.join(BACKENDS)}", 'use "auto"'
        )
    if os.environ.get("FLOWRL_HEADLESS") == "1" or not in_notebook():
        return "static"
    if backend != "auto":
        return backend
    if "google.colab" in sys.modules:  # its page loads each widget from elsewhere
        return "svg"
    parts = ("plotly", "anywidget")
    return "widget" if all(map(importlib.util.find_spec, parts)) else "svg"


def in_notebook() -> bool:
    """True inside an IPython kernel, where outputs can be updated."""
    ipython = sys.modules.get("IPython")  # a kernel has imported it
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


def progress_text(history: History, seconds: float) -> str:
    """``step 120/240 · 35 s · about 36 s left``, over all runs seen so far."""
    if not history.progress:
        return "waiting for the first step"
    spans = history.progress.values()
    done = sum(step - first for first, step, _ in spans)
    left = sum(steps - step for _, step, steps in spans)
    step, steps = max((s, n) for _, s, n in spans)
    text = f"step {step}/{steps} · {format_seconds(seconds)}"
    if done and left:
        text += f" · about {format_seconds(seconds * left / done)} left"
    return text


def ending_text(history: History, seconds: float, kind: type | None) -> str:
    """The last progress line: finished, interrupted or broken, and where."""
    if not history.progress:
        return "no step was recorded"
    step, steps = max((s, n) for _, s, n in history.progress.values())
    names = {None: "finished", KeyboardInterrupt: "interrupted"}
    how = names.get(kind, f"stopped by {kind.__name__}" if kind else "")
    return f"{how} at step {step}/{steps} · {format_seconds(seconds)}"


class _Canvas:
    """Draws nothing until the end, then shows the finished figure."""

    def open(self, page: Page, placement) -> None:
        """Before the first record."""

    def draw(self, page: Page, placement) -> None:
        """While training runs."""

    def close(self, page: Page, placement) -> None:
        """Show the finished figure once."""
        if in_notebook():
            from IPython.display import display

            display(bundle_from_page(page, placement), raw=True)
        else:
            print(tabulate_page(page))


class _SvgCanvas(_Canvas):
    """Replaces one SVG by the next; works without scripts in the front end."""

    def open(self, page: Page, placement) -> None:
        from IPython.display import HTML, display

        self._handle = display(HTML(draw_svg(page, placement)), display_id=True)

    def draw(self, page: Page, placement) -> None:
        from IPython.display import HTML

        self._handle.update(HTML(draw_svg(page, placement)))

    def close(self, page: Page, placement) -> None:
        # the mime types change here, which makes JupyterLab repaint
        self._handle.update(bundle_from_page(page, placement), raw=True)


class _WidgetCanvas(_SvgCanvas):
    """Sends changed data to a plotly widget; ends as a plain figure."""

    def open(self, page: Page, placement) -> None:
        from IPython.display import display

        figure = whole_figure(page, placement)
        kind = themed_figure()
        self._widget = kind(figure)
        self._sent = figure
        self._handle = display(self._widget, display_id=True)

    def draw(self, page: Page, placement) -> None:
        figure = plotly_figure(page, placement)
        if shape_of(figure) == shape_of(self._sent):
            # without the batch every assignment is a message of its own, and the
            # browser falls seconds behind
            with self._widget.batch_update():
                move_data(self._widget, self._sent, figure)
        else:
            figure = whole_figure(page, placement)
            self._widget.data = ()
            self._widget.layout = figure["layout"]
            self._widget.add_traces(figure["data"])
        self._sent = figure

    def close(self, page: Page, placement) -> None:
        super().close(page, placement)
        close_later(self._widget)


@functools.cache
def themed_figure() -> type:
    """plotly's FigureWidget in the page's colours, whose script starts at once."""
    import plotly.graph_objects as go
    from traitlets import Unicode

    sent = sorted(n for n in go.FigureWidget.class_traits() if n.startswith("_py2js_"))
    parts = (f"const MESSAGES = {json.dumps(sent)};", _read(WIDGET), _read(SCRIPT))
    members = {
        # style sheet and script stay in the page, for the finished figure too
        "_css": THEME,
        "_esm": "\n".join(parts),
        "_plotly": Unicode(str(go.FigureWidget._esm)).tag(sync=True),
    }
    return type("ThemedFigure", (go.FigureWidget,), members)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def close_later(widget) -> None:
    """Close a widget once the browser has surely finished making it.

    After a run of a second the browser may still be loading the widget's script;
    a model that is gone by then is an error in its console.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:  # no kernel around: nobody is still loading anything
        widget.close()
    else:
        loop.call_later(CLOSE_SECONDS, widget.close)


_CANVASES = {"static": _Canvas, "svg": _SvgCanvas, "widget": _WidgetCanvas}


def shape_of(figure: dict) -> tuple:
    """What must stay the same for the traces to be updated in place."""
    names = tuple((trace["type"], trace["name"]) for trace in figure["data"])
    return names, len(figure["layout"]["annotations"]), figure["layout"]["height"]


def move_data(widget, sent: dict, figure: dict) -> None:
    """Send what changed since ``sent``, a figure of the same shape.

    Compares with our own last figure: asking plotly for every property costs more
    than the drawing itself.
    """
    pairs = zip(sent["data"], figure["data"], strict=True)
    for number, (old, new) in enumerate(pairs):
        for key in ("x", "y", "z", "customdata"):
            if key in new and not same(old[key], new[key]):
                widget.data[number][key] = new[key]
    before, after = sent["layout"], figure["layout"]
    pairs = zip(before["annotations"], after["annotations"], strict=True)
    for number, (old, new) in enumerate(pairs):
        for key in sorted(old.keys() | new.keys()):  # a line to it comes and goes
            if old.get(key) != new.get(key):
                widget.layout.annotations[number][key] = new.get(key)
    for name, axis in after.items():
        for key in ("range", "tickvals", "ticktext"):
            if name[1:5] == "axis" and axis.get(key) != before[name].get(key):
                widget.layout[name][key] = axis[key]


def same(old, new) -> bool:
    """True when an array, or a nested list with None, need not be sent again."""
    if isinstance(new, np.ndarray):
        return np.array_equal(old, new, equal_nan=True)
    return old == new

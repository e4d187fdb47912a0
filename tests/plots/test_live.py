"""The live plot: what is sent, when, and what stays at the end."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from fake_records import make_race, make_record

from flowrl_lab.plots import live
from flowrl_lab.plots.figures import PLOTLY_MIME, figure_from_records
from flowrl_lab.plots.live import LivePlot, choose_backend, clock, progress_text
from flowrl_lab.plots.panels import History


class Handle:
    """Stands in for IPython's display handle and remembers what it was given."""

    def __init__(self, shown) -> None:
        self.shown = [shown]
        self.raw = [False]

    def update(self, content, raw: bool = False) -> None:
        self.shown.append(content)
        self.raw.append(raw)


class Screen:
    """Stands in for a notebook: every display call makes a handle."""

    def __init__(self) -> None:
        self.handles: list[Handle] = []

    def __call__(self, content, raw: bool = False, **_) -> Handle:
        self.handles.append(Handle(content))
        self.handles[-1].raw = [raw]
        return self.handles[-1]


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """A front end that takes everything."""
    made = Screen()
    monkeypatch.setattr("IPython.display.display", made)
    monkeypatch.setattr(live, "in_notebook", lambda: True)
    monkeypatch.delenv("FLOWRL_HEADLESS", raising=False)
    return made


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still unless the test moves it."""
    time = [100.0]
    monkeypatch.setattr(live, "now", lambda: time[0])
    return time


def test_widget_shows_the_records_and_ends_as_a_plain_figure(screen, ticking) -> None:
    records = make_race()
    with LivePlot(("reward", "kl_policy_target"), solution_map=True) as plot:
        widget = screen.handles[0].shown[0]
        for record in records:
            plot.update(record)
            ticking[0] += 1.0
        last = figure_from_records(
            records, ("reward", "kl_policy_target"), solution_map=True
        )
        assert len(widget.data) == len(last["data"])
        for mine, wanted in zip(widget.data, last["data"], strict=True):
            for key in ("x", "y", "z", "customdata"):
                if key in wanted:
                    np.testing.assert_array_equal(
                        np.asarray(mine[key], dtype=float),
                        np.asarray(wanted[key], dtype=float),
                    )
        for axis in ("yaxis", "yaxis2"):
            assert list(widget.layout[axis].range) == last["layout"][axis]["range"]
    (handle,) = screen.handles
    assert handle.raw == [False, True]
    assert handle.shown[-1] == plot.bundle()


def test_the_widget_is_closed_when_the_browser_has_made_it(
    screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = []

    class Loop:
        """The kernel's event loop."""

        def call_later(self, seconds, action) -> None:
            later.append((seconds, action))

    monkeypatch.setattr(live.asyncio, "get_running_loop", Loop)
    with LivePlot() as plot:
        plot.update(make_record(0))
    widget = screen.handles[0].shown[0]
    ((seconds, close),) = later
    assert widget.comm is not None
    assert seconds > 2  # anywidget's own limit for making a widget
    close()
    assert widget.comm is None


def test_without_a_loop_the_widget_is_closed_at_once(
    screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_loop():
        raise RuntimeError("no running event loop")

    monkeypatch.setattr(live.asyncio, "get_running_loop", no_loop)
    with LivePlot() as plot:
        plot.update(make_record(0))
    assert screen.handles[0].shown[0].comm is None


def test_a_late_run_gets_its_traces(screen, ticking) -> None:
    with LivePlot() as plot:
        widget = screen.handles[0].shown[0]
        plot.update(make_record(0))
        ticking[0] += 1
        plot.update(make_record(1, run="late", algorithm="ppo"))
        assert [trace.name for trace in widget.data] == ["flowrl", "late"] * 2


def count_draws(plot: LivePlot, monkeypatch) -> list:
    drawn: list = []
    monkeypatch.setattr(plot._canvas, "draw", lambda *what: drawn.append(what))
    return drawn


@pytest.mark.usefixtures("screen")
def test_drawing_is_throttled_but_nothing_is_lost(ticking, monkeypatch) -> None:
    with LivePlot(max_rate_hz=5, backend="svg") as plot:
        drawn = count_draws(plot, monkeypatch)
        for step in range(100):
            plot.update(make_record(step, steps=100))
            ticking[0] += 0.01
    assert 4 <= len(drawn) <= 6  # one second at 5 Hz
    assert len(plot.records) == 100
    trace = plot.bundle()[PLOTLY_MIME]["data"][1]
    assert trace["x"] == [float(i) for i in range(100)]


@pytest.mark.usefixtures("screen")
def test_slow_drawing_waits_longer(ticking, monkeypatch) -> None:
    with LivePlot(backend="svg") as plot:
        drawn: list = []

        def slow(*what) -> None:
            drawn.append(what)
            ticking[0] += 0.03

        monkeypatch.setattr(plot._canvas, "draw", slow)
        for step in range(100):
            plot.update(make_record(step, steps=100))
            ticking[0] += 0.01
    # 0.03 s a drawing, 0.6 s between two: two in the second, not five
    assert len(drawn) == 2


@pytest.mark.usefixtures("screen")
def test_watching_a_minute_costs_less_than_a_fiftieth(ticking, monkeypatch) -> None:
    start, drawn = ticking[0], []
    with LivePlot(backend="svg") as plot:

        def slow(*_what) -> None:
            drawn.append(ticking[0] - start)
            ticking[0] += 0.03

        monkeypatch.setattr(plot._canvas, "draw", slow)
        for step in range(6000):
            plot.update(make_record(step, steps=6000))
            ticking[0] += 0.01
    assert drawn[4] < 3  # it starts lively
    assert 0.03 * len(drawn) < 0.02 * (ticking[0] - start)
    assert max(b - a for a, b in itertools.pairwise(drawn)) <= 2.1


def test_interrupt_keeps_the_records_and_is_swallowed(screen, capsys) -> None:
    with LivePlot(backend="svg") as plot:
        for record in make_race():
            plot.update(record)
            if record.step == 4:
                raise KeyboardInterrupt
    assert len(plot.records) == 9
    assert "interrupted at step 4/10" in screen.handles[0].shown[-1]["image/svg+xml"]
    assert "9 records kept in plot.records" in capsys.readouterr().out


def test_other_errors_pass_through_after_the_figure(screen) -> None:
    with pytest.raises(ZeroDivisionError), LivePlot() as plot:
        plot.update(make_record(3))
        _ = 1 / 0
    final = screen.handles[0].shown[-1]
    assert final["image/svg+xml"] == plot.bundle()["image/svg+xml"]
    assert "stopped by ZeroDivisionError at step 3/10" in final["image/svg+xml"]


def test_svg_backend_replaces_one_output(screen, ticking) -> None:
    with LivePlot(backend="svg") as plot:
        for record in make_race():
            plot.update(record)
            ticking[0] += 1
    (handle,) = screen.handles
    assert len(handle.shown) == 1 + 22 + 1
    assert "<svg" in handle.shown[5].data
    assert handle.raw == [False] * 23 + [True]


def test_headless_makes_no_widget_and_shows_once(screen, monkeypatch) -> None:
    monkeypatch.setenv("FLOWRL_HEADLESS", "1")
    monkeypatch.setattr(
        "plotly.graph_objects.FigureWidget",
        lambda *_: pytest.fail("a widget was made although nobody can see it"),
    )
    with LivePlot(("reward",), solution_map=True, backend="widget") as plot:
        for record in make_race():
            plot.update(record)
        assert screen.handles == []
    (handle,) = screen.handles
    assert handle.raw == [True]
    assert handle.shown == [plot.bundle()]


def test_a_script_gets_the_table(monkeypatch, capsys) -> None:
    monkeypatch.setattr(live, "in_notebook", lambda: False)
    monkeypatch.delenv("FLOWRL_HEADLESS", raising=False)
    with LivePlot(("reward",)) as plot:
        assert plot.backend == "static"
        for record in make_race():
            plot.update(record)
    assert "flowrl  1" in capsys.readouterr().out


def test_no_records_is_no_error(screen, capsys) -> None:
    with LivePlot(("reward",), solution_map=True, backend="svg"):
        pass
    assert "no step was recorded" in screen.handles[0].shown[-1]["image/svg+xml"]
    with LivePlot(backend="svg") as plot:
        raise KeyboardInterrupt
    assert plot.records == []
    assert "0 records kept" in capsys.readouterr().out


@pytest.mark.usefixtures("screen")
def test_backends(monkeypatch) -> None:
    assert choose_backend("auto") == "widget"
    assert choose_backend("svg") == "svg"
    monkeypatch.setattr(live.importlib.util, "find_spec", lambda _: None)
    assert choose_backend("auto") == "svg"
    with pytest.raises(ValueError, match="one of auto, widget, svg, static"):
        choose_backend("matplotlib")


def test_bad_arguments_stop_before_training(screen) -> None:
    with pytest.raises(ValueError, match="did you mean entropy"):
        LivePlot(("entrpy",))
    with pytest.raises(ValueError, match="max_rate_hz"):
        LivePlot(max_rate_hz=0.0)
    assert screen.handles == []


@pytest.mark.bad_input
def test_update_wants_a_record() -> None:
    with pytest.raises(ValueError, match=r"is a dict.*a StepRecord"):
        LivePlot().update({"reward": 1.0})


def test_progress_estimates_the_time_left() -> None:
    history = History.of([make_record(i, steps=40) for i in range(11)], ())
    assert progress_text(history, 20.0) == "step 10/40 · 20 s · about 60 s left"
    # a second run of the same length that has just begun
    history.append(make_record(0, run="b", steps=40))
    assert progress_text(history, 20.0) == "step 10/40 · 20 s · about 2 min 20 s left"
    # a resumed run: the steps before were not done in this time
    resumed = History.of([make_record(i, steps=40) for i in (30, 35)], ())
    assert progress_text(resumed, 5.0) == "step 35/40 · 5 s · about 5 s left"
    assert clock(3725.0) == "62 min 05 s"

"""Figures show the records' own numbers, in every form."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from itertools import combinations, pairwise, product
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from colours import contrast
from fake_records import make_exact, make_race, make_record, make_snapshot
from hypothesis import given
from hypothesis import strategies as st

from flowrl_lab.plots.figures import (
    INK,
    THEME,
    bundle_from_page,
    figure_from_records,
    page_from_records,
    plotly_figure,
    svg_from_records,
)
from flowrl_lab.plots.panels import (
    STYLES,
    CellsPanel,
    History,
    StatesPanel,
    build_page,
    check_metrics,
    count_alive,
    describe_page,
    merge_cells,
    run_styles,
    tabulate_page,
    thin,
)
from flowrl_lab.plots.pictures import draw_curves, draw_distributions
from flowrl_lab.plots.placement import (
    LABEL_GAP,
    WIDTHS,
    drawn_inside,
    end_labels,
    mark_labels,
    pixels,
    place_page,
    point_labels,
    spread,
)
from flowrl_lab.plots.static import (
    DARK_INK,
    LIGHT_INK,
    VIRIDIS,
    draw_svg,
    linear_ticks,
    log_ticks,
    log_x_ticks,
    viridis,
)

SVG = "{http://www.w3.org/2000/svg}"


def traces_of(figure: dict, run: str) -> list[dict]:
    """A run's curves, without its place in the legend."""
    return [t for t in figure["data"] if t["name"] == run and not t["showlegend"]]


def page_of(records, metrics=("reward",), *, solution_map=False):
    return build_page(History.of(records, metrics), solution_map=solution_map)


def test_traces_are_the_records() -> None:
    records = make_race()
    figure = figure_from_records(records, ("reward", "kl_policy_target", "pass@8"))
    for run in ("flowrl", "grpo"):
        mine = [r for r in records if r.run == run]
        looked = [r for r in mine if r.exact]
        kls = [r.exact.kl_policy_target for r in looked]
        reward, kl, pass_8 = traces_of(figure, run)
        np.testing.assert_array_equal(reward["x"], [r.step for r in mine])
        np.testing.assert_array_equal(reward["y"], [r.reward for r in mine])
        np.testing.assert_array_equal(kl["x"], [r.step for r in looked])
        np.testing.assert_array_equal(kl["y"], kls)
        np.testing.assert_array_equal(pass_8["y"], [1.0] * len(looked))
    assert figure["layout"]["yaxis2"]["type"] == "log"
    assert "type" not in figure["layout"]["yaxis"]


def test_cells_are_the_snapshot() -> None:
    records = make_race(size=6)
    figure = figure_from_records(records, (), solution_map=True)
    target, flowrl, grpo = figure["data"]
    wanted = [r.snapshot for r in records if r.snapshot][-2:]
    for trace, probs in (
        (target, wanted[0].target_probs),
        (flowrl, wanted[0].probs),
        (grpo, wanted[1].probs),
    ):
        shown = [p for row in trace["customdata"] for p in row if p is not None]
        np.testing.assert_array_equal(shown, probs)
        levels = [z for row in trace["z"] for z in row if z is not None]
        floor = figure["layout"]["coloraxis"]["cmin"]
        np.testing.assert_allclose(levels, np.maximum(np.log10(probs), floor))
    # labels are escaped: plotly would read "<9" as markup
    assert "0*5&lt;9 &amp; 0" in flowrl["text"].ravel().tolist()


def test_landscape_is_curves_over_the_target() -> None:
    records = make_race(size=60, landscape=True)
    page = page_of(records, solution_map=True)
    assert all(isinstance(panel, StatesPanel) for panel in page.maps)
    snapshot = records[-1].snapshot
    panel = page.maps[1]
    np.testing.assert_array_equal(panel.probs, snapshot.probs)
    np.testing.assert_array_equal(panel.target, snapshot.target_probs)
    # GRPO's spike leaves the panel, so it is given as a number
    assert panel.note.startswith(f"↑ {snapshot.probs.max():.2f} at 59")
    assert "↑" not in page.maps[0].note
    unnumbered = page_of(make_race(size=60), solution_map=True)
    assert isinstance(unnumbered.maps[0], CellsPanel)


@pytest.mark.parametrize("short", [True, False])
def test_answers_are_written_into_cells_that_have_room(short: bool) -> None:
    records = make_race(size=25, landscape=short)  # "23", or "23*5<9 & 23"
    figure = figure_from_records(records, solution_map=True)
    cells = [trace for trace in figure["data"] if trace["type"] == "heatmap"]
    assert {trace["texttemplate"] for trace in cells} == {"%{text}" if short else ""}
    svg = svg_from_records(records, solution_map=True)
    words = [e.text for e in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert words.count("23") == (len(cells) if short else 0)
    # the page's own colour must not reach them: they are read on their cell's
    assert ":not(.hoverlayer *,.heatmap-label *)" in THEME


def test_seeds_share_a_colour_and_one_legend_entry() -> None:
    records = [make_record(i, seed=s) for s in (0, 1) for i in range(3)]
    figure = figure_from_records(records)
    assert len(traces_of(figure, "flowrl")) == 2
    assert sum(trace["showlegend"] for trace in figure["data"]) == 1
    ends = page_of(records).curves[0].last_values()
    assert ends["flowrl"][1] == pytest.approx(0.2)


@given(st.integers(1, 5000), st.integers(2, 600))
def test_thinning_keeps_the_ends(count: int, most: int) -> None:
    kept = thin(np.zeros(count), most)
    assert kept[0] == 0
    assert kept[-1] == count - 1
    assert len(kept) == min(count, most)
    assert (np.diff(kept) > 0).all()


def test_long_runs_are_thinned_in_the_figure() -> None:
    records = [make_record(i, steps=3000) for i in range(3001)]
    (trace,) = traces_of(figure_from_records(records), "flowrl")
    assert len(trace["x"]) == 500
    assert (trace["x"][0], trace["x"][-1]) == (0, 3000)


@pytest.mark.parametrize("landscape", [False, True])
def test_svg_is_xml_with_numbers_and_alt_text(landscape: bool) -> None:
    records = make_race(size=60, landscape=landscape)
    metrics = ("reward", "kl_policy_target")
    svg = svg_from_records(records, metrics, solution_map=True, title="a < b & c")
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    alive = count_alive(records[-1].snapshot.probs)
    label = root.get("aria-label")
    for words in ("a < b & c", "flowrl 1", "grpo 0.95", f"{alive:.1f} of 60 effective"):
        assert words in label
    texts = "\n".join(node.text or "" for node in root.iter(f"{SVG}text"))
    for words in ("0.0909", "0.95", "flowrl", "grpo", f"{alive:.1f} of 60 effective"):
        assert words in texts
    assert len(svg) < 150_000


def test_svg_curve_ends_where_the_value_is() -> None:
    records = [make_record(i, reward=float(i)) for i in range(11)]
    page = page_of(records)
    placement = place_page(page)
    (panel, box), svg = placement.curves[0], svg_from_records(records)
    low, high = panel.y_range
    y = box.bottom - (10 - low) / (high - low) * box.height
    lines = [n.get("d") for n in ElementTree.fromstring(svg).iter(f"{SVG}path")]
    curve = next(d for d in lines if d.count("L") == 10)
    assert float(curve.rsplit("L", 1)[1].split()[1]) == pytest.approx(y, abs=0.06)


def test_many_cells_keep_the_svg_small_and_lose_no_probability() -> None:
    runs = ("flowrl", "grpo", "ppo", "reinforce_pp")
    records = make_race(runs, size=5000)
    assert len(svg_from_records(records, ("reward",), solution_map=True)) < 150_000
    snapshot = records[-1].snapshot
    names, merged = merge_cells(snapshot.labels, snapshot.probs)
    assert len(names) == len(merged) == 1024
    assert merged.sum() == pytest.approx(1.0)


def test_bundle_has_every_form_and_is_plain_json() -> None:
    records = [*make_race(), make_record(11, reward=math.nan)]
    page = page_of(records, ("reward", "log_z"), solution_map=True)
    bundle = bundle_from_page(page, place_page(page))
    assert set(bundle) == {
        "application/vnd.plotly.v1+json",
        "text/html",
        "image/svg+xml",
        "text/plain",
    }
    json.dumps(bundle, allow_nan=False)
    ElementTree.fromstring(bundle["image/svg+xml"])
    image = ElementTree.fromstring(bundle["text/html"].replace(">", "/>"))
    assert image.get("alt") == describe_page(page)
    assert image.get("src").startswith("data:image/svg+xml;base64,")


@pytest.mark.filterwarnings("default")
def test_plotly_accepts_the_figure() -> None:
    import plotly.graph_objects as go

    for landscape in (False, True):
        records = make_race(size=60, landscape=landscape)
        made = figure_from_records(records, ("reward", "accuracy"), solution_map=True)
        figure = go.Figure(made)
        assert len(figure.data) == len(made["data"])
        # plotly's own template has a light background, glaring in a dark theme
        assert figure.layout.template.layout.plot_bgcolor == "rgba(0,0,0,0)"
        assert not figure.layout.template.layout.colorway


def test_text_table_has_the_end_values() -> None:
    table = tabulate_page(page_of(make_race(), ("reward", "accuracy")))
    rows = [line.split() for line in table.splitlines()]
    assert rows == [
        ["run", "reward", "accuracy"],
        ["flowrl", "1", "0.5"],
        ["grpo", "0.95", "0.5"],
    ]


@pytest.mark.parametrize(
    "records",
    [
        [],
        [make_record(0)],
        [make_record(0, reward=math.nan), make_record(1, reward=math.inf)],
        [make_record(i) for i in range(9)] + [make_record(2, run="b", algorithm="ppo")],
        [make_record(0, exact=make_exact(0.0, 0.0)), make_record(1)],
        [make_record(0, exact=make_exact(0.5, math.inf))],
        [make_record(0, snapshot=make_snapshot(1.0, size=1))],
        [make_record(0, snapshot=make_snapshot(1.0, size=2)), make_record(0, run="x")],
    ],
    ids=["none", "one", "nan", "unequal", "zero kl", "inf kl", "one cell", "half map"],
)
def test_odd_records_still_draw(records: list) -> None:
    metrics = ("reward", "kl_policy_target", "log_z", "pass@3")
    page = page_from_records(
        records,
        metrics,
        solution_map=True,
        title="t",
        target_label="p*",
        log_y=("kl_policy_target",),
    )
    bundle = bundle_from_page(page, place_page(page))
    json.dumps(bundle, allow_nan=False)
    assert "nan" not in bundle["image/svg+xml"]
    assert "inf" not in bundle["image/svg+xml"]


def test_unknown_metric_names_what_is_close() -> None:
    with pytest.raises(ValueError, match=r"rewards.*did you mean reward"):
        check_metrics(("rewards",))
    with pytest.raises(ValueError, match="did you mean kl_policy_target"):
        check_metrics(("kl_policy_targe",))
    with pytest.raises(ValueError, match=r"pass@0"):
        check_metrics(("pass@0",))
    with pytest.raises(ValueError, match=r"metrics=\('reward',\)"):
        check_metrics("reward")
    with pytest.raises(ValueError, match="something to draw"):
        check_metrics(())
    assert check_metrics((), solution_map=True) == ()


def test_styles_are_distinct_with_two_cues() -> None:
    named = [(name, name) for name in STYLES]
    extra = [(f"flowrl β={b}", "flowrl") for b in range(6)]
    styles = run_styles([*named, *extra])
    assert {name: styles[name] for name in STYLES} == STYLES
    for one, other in combinations(styles.values(), 2):
        assert (one.color, one.dash) != (other.color, other.dash)
    for one, other in combinations(STYLES.values(), 2):
        assert one.color != other.color
        assert one.dash != other.dash
        assert one.marker != other.marker


def test_a_named_run_gets_its_colour_even_when_it_comes_late() -> None:
    styles = run_styles([("mine", "grpo"), ("grpo", "grpo"), ("other", "grpo")])
    assert styles["grpo"] == STYLES["grpo"]
    assert len(set(styles.values())) == 3
    assert run_styles([("mine", "grpo")])["mine"] == STYLES["grpo"]


def test_the_truth_is_grey_and_takes_no_run_s_colour() -> None:
    runs = [(name, name) for name in ("grpo", "mine", "other")]
    plain = run_styles(runs)
    for known in ("target p*", "true"):
        styles = run_styles([(known, known), *runs])
        assert styles.pop(known).color == "#7A828C"
        assert styles == plain


def test_effective_number() -> None:
    assert count_alive(np.full(7, 0.1)) == pytest.approx(7.0)
    assert count_alive(np.array([0.0, 0.3, 0.0])) == pytest.approx(1.0)
    assert count_alive(np.zeros(4)) == 0.0


def test_boxes_stay_inside_and_apart() -> None:
    metrics = ("reward", "loss", "entropy", "accuracy")
    for runs in (("flowrl",), ("flowrl", "grpo", "ppo", "vargrad")):
        placement = place_page(page_of(make_race(runs), metrics, solution_map=True))
        boxes = [box for _, box in (*placement.curves, *placement.maps)]
        for box in boxes:
            assert 0 <= box.left < box.right <= placement.width
            assert 0 <= box.top < box.bottom <= placement.height
        for one, other in combinations(boxes, 2):
            beside = one.right <= other.left or other.right <= one.left
            assert beside or one.bottom <= other.top or other.bottom <= one.top


@given(st.lists(st.floats(0, 190), min_size=1, max_size=8))
def test_end_labels_do_not_overlap(wanted: list[float]) -> None:
    placed = spread(sorted(wanted), 0.0, 190.0)
    assert all(b - a >= LABEL_GAP - 1e-6 for a, b in pairwise(placed))
    assert placed[0] >= -1e-6
    assert placed[-1] <= 190 + 1e-6


def test_end_labels_carry_the_values() -> None:
    (panel, box), *_ = place_page(page_of(make_race())).curves
    labels = end_labels(panel, box)
    assert [(label.run, label.value) for label in labels] == [
        ("flowrl", 1.0),
        ("grpo", 0.95),
    ]


def test_viridis_and_ticks() -> None:
    assert viridis(0.0) == VIRIDIS[0]
    assert viridis(1.0) == VIRIDIS[-1]
    assert viridis(-3.0) == VIRIDIS[0]
    assert linear_ticks(0.0, 1.0) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert log_ticks(-2.5, 1.2) == [0.01, 0.1, 1.0, 10.0]
    assert log_ticks(0.1, 1.1) == [2.0, 5.0, 10.0]


def test_nothing_here_imports_plotly() -> None:
    code = (
        "import sys, flowrl_lab.plots.live, flowrl_lab.plots.figures;"
        "import flowrl_lab.plots.static;"
        "bad = {'plotly', 'ipywidgets', 'anywidget', 'IPython'} & set(sys.modules);"
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_zeros_on_a_log_axis_are_gaps_and_the_axis_has_at_most_six_decades() -> None:
    steps, kl = np.arange(60.0), np.append(np.zeros(4), np.exp(-np.arange(56.0)))
    page = draw_curves(
        {"flowrl": (steps.tolist(), kl.tolist())}, y_title="KL", log_y=True
    ).page
    (panel,) = page.curves
    low, high = panel.y_range
    assert high - low < 6.8  # and some air
    assert panel.title == "KL (log axis, zeros left out, cut at 4e-07)"
    figure = plotly_figure(page, place_page(page))
    drawn = figure["data"][1]["y"]
    assert np.isnan(drawn[:4]).all() and (drawn[4:] > 0).all()
    names = figure["layout"]["yaxis"]["ticktext"]
    assert len(set(names)) == len(names) and "0" not in names
    svg = ElementTree.fromstring(draw_svg(page, place_page(page)))
    said = [node.text for node in svg.iter(f"{SVG}text")]
    assert "1e-06" in said and "0" in said  # the first step, not a height
    curve = next(
        p.get("d")
        for p in svg.iter(f"{SVG}path")
        if "#0072B2" in (p.get("stroke") or "") and (p.get("d") or "").count("L") > 5
    )
    bottom = place_page(page).curves[0][1].bottom
    lows = [piece for piece in curve.split("L") if float(piece.split()[-1]) >= bottom]
    assert len(lows) == 1  # it leaves the frame and does not creep along its edge


def test_an_axis_that_does_not_start_at_zero_says_so() -> None:
    def title(*heights: float) -> str:
        return (
            draw_curves({"a": ((0, 1), heights)}, y_title="share").page.curves[0].title
        )

    assert title(0.8, 0.9) == "share (axis from 0.794)"
    assert title(0.2, 0.9) == title(-1, 2) == title(0, 1) == "share"


def test_a_number_of_answers_is_drawn_from_zero() -> None:
    falls = [16.0, 15.0, 14.0]
    exact = [replace(make_exact(0.5, 1.0), effective_answers=x) for x in falls]
    records = [make_record(i, run="a", exact=one) for i, one in enumerate(exact)]
    page = page_of(records, ("effective_answers",))
    (panel,) = page.curves
    assert panel.y_range[0] < 0 and "axis from" not in panel.title


def test_a_label_stands_where_its_curve_ends() -> None:
    page = draw_curves({"a": ((0, 50), (0, 1)), "b": ((0, 100), (1, 0))}).page
    ((panel, box),) = place_page(page).curves
    labels = {label.run: label for label in end_labels(panel, box)}
    low, high = panel.x_range
    for run, end in (("a", 50), ("b", 100)):
        at = box.left + (end - low) / (high - low) * box.width
        assert labels[run].x == pytest.approx(at)
        assert labels[run].down == 0


def test_points_carry_their_words() -> None:
    dial = ["β = 4", "β = 8"]
    page = draw_curves(
        {"a": ((1, 2), (3, 4)), "b": ((1,), (2,))}, labels={"a": dial}
    ).page
    named, plain = plotly_figure(page, place_page(page))["data"][2:]
    assert named["text"] == [f"<b>{one}</b>" for one in dial]
    assert named["mode"].endswith("text")
    assert "text" not in plain
    assert named["cliponaxis"] is False  # a word at the right edge is not cut
    assert all(words in draw_svg(page, place_page(page)) for words in dial)
    assert [label.run for label in end_labels(*place_page(page).curves[0])] == ["b"]


def test_dots_lie_behind_their_curve_and_say_no_end() -> None:
    seeds = {"flowrl": ((9.0, 11.0), (0.5, 0.7))}
    page = draw_curves(
        {"flowrl": ((10.0, 12.0), (0.6, 0.8))}, dots=seeds, x_from_zero=True
    ).page
    ((panel, box),) = place_page(page).curves
    assert panel.x_range[0] == 0
    assert [label.value for label in end_labels(panel, box)] == [0.8]
    assert "at the end flowrl 0.8" in describe_page(page)
    _, dots, line = plotly_figure(page, place_page(page))["data"]
    assert dots["mode"] == "markers" and dots["marker"]["opacity"] < 1
    assert line["mode"] == "lines+markers" and len(dots["x"]) == 2
    assert draw_svg(page, place_page(page)).count("<circle") == 2
    with pytest.raises(ValueError, match="name a curve"):
        draw_curves({"a": ((0, 1), (1, 2))}, dots=seeds)


def test_a_large_marker_stays_with_its_point_in_both_panels() -> None:
    """Also in the closer panel, where the first point is left out."""
    line = {"flowrl": ((9.0, 10.0, 12.0), (0.2, 0.6, 0.8))}
    page = draw_curves(line, large={"flowrl": [False, False, True]}, closer=0.5).page
    _, *drawn = plotly_figure(page, place_page(page))["data"]
    sizes = [trace["marker"]["size"] for trace in drawn]
    assert sizes == [[5, 5, 9], [5, 9]]
    assert draw_svg(page, place_page(page)).count('font-size="14"') == 2
    for wrong in ({"flowrl": [True]}, {"grpo": [True] * 3}):
        with pytest.raises(ValueError, match="large"):
            draw_curves(line, large=wrong)


def test_a_second_panel_looks_closer() -> None:
    paths = {"a": ((1, 2, 3), (0.1, 0.8, 0.9)), "b": ((1,), (0.1,))}
    words = {"a": ("", "", "200"), "b": ("start",)}
    page = draw_curves(paths, labels=words, closer=0.7).page
    whole, near = page.curves
    assert [len(curve.x) for curve in whole.series] == [3, 1]
    assert [curve.labels for curve in whole.series] == [("", "", ""), ("start",)]
    (curve,) = near.series
    assert curve.x.tolist() == [2, 3] and curve.labels == ("", "200")
    assert near.y_range[0] > 0.7 and "axis from" in near.title
    with pytest.raises(ValueError, match="closer"):
        draw_curves(paths, closer=2.0)


def test_words_beside_points_lie_over_no_curve_and_no_other_words() -> None:
    rising = {"a": ((6.7, 8.6, 11.7), (0.54, 0.56, 0.575)), "b": ((3.6,), (0.545,))}
    rising |= {"c": ((6.2,), (0.524,)), "d": ((4.2,), (0.55,))}
    names = {"a": ("a β=15", "β=8", "β=4"), "b": ("maximiser",), "c": ("pass@4",)}
    page = draw_curves(rising, labels=names | {"d": ("d",)}).page
    ((panel, box),) = place_page(page).curves
    labels = point_labels(panel, box)
    assert [label.words for label in labels] == [
        *names["a"],
        "maximiser",
        "pass@4",
        "d",
    ]
    drawn = pixels(panel, box)
    for label in labels:
        assert not drawn_inside(drawn, label.box()), label
    assert len({(label.x, label.y) for label in labels}) == len(labels)
    for label, marker in product(labels, labels):  # a marker is about 10 pixels wide
        room = label.box()
        apart = room.left - 5 >= marker.x or room.right + 5 <= marker.x
        assert apart or room.top - 5 >= marker.y or room.bottom + 5 <= marker.y
    for one, other in combinations([label.box() for label in labels], 2):
        beside = one.right <= other.left or other.right <= one.left
        assert beside or one.bottom <= other.top or other.bottom <= one.top
    assert not page.legend  # every point has said whose it is
    (trace,) = traces_of(plotly_figure(page, place_page(page)), "a")
    assert trace["textposition"] == [label.side for label in labels[:3]]


def test_the_label_of_a_run_that_stops_early_makes_way_for_those_that_go_on() -> None:
    up, on = list(range(0, 101, 10)), list(range(100, 201, 10))
    page = draw_curves(
        {
            "stops": (up, [x * x / 1e4 for x in up]),
            "goes on": (on, [1.0 - 0.0001 * (x - 100) for x in on]),
        }
    ).page
    placement = place_page(page)
    labels = {label.run: label for label in end_labels(*placement.curves[0])}
    assert labels["stops"].leftward and not labels["goes on"].leftward
    anchors = {
        one["name"]: (one["xanchor"], one["text"], one["xshift"] > 0)
        for one in plotly_figure(page, placement)["layout"]["annotations"]
        if "name" in one
    }
    assert anchors["stops"] == ("right", "1", False)
    assert anchors["goes on"] == ("left", "0.99", True)
    still = ElementTree.fromstring(draw_svg(page, placement))
    box = placement.curves[0][1]
    ends = [n for n in still.iter(f"{SVG}text") if n.get("text-anchor") == "end"]
    (said,) = (n for n in ends if float(n.get("x")) > box.left)  # the others: ticks
    assert said.text == "1"


def test_labels_that_stand_far_apart_do_not_push_each_other() -> None:
    page = draw_curves({"a": ((0, 9), (1, 5.0)), "b": ((2,), (5.01,))}).page
    labels = end_labels(*place_page(page).curves[0])
    assert all(label.down == 0 for label in labels)


def test_curves_that_end_together_say_their_value_once() -> None:
    ends = {"a": ((0, 1), (0, 2.421)), "b": ((0, 1), (1, 2.419)), "c": ((0, 1), (1, 2))}
    labels = end_labels(*place_page(draw_curves(ends).page).curves[0])
    assert sorted((one.run, one.value) for one in labels) == [("a", 2.421), ("c", 2)]


def test_no_marks_line_runs_through_the_words_of_an_end() -> None:
    near = {"a": ((0, 1), (0, 14.2)), "b": ((0, 1), (0, 5))}
    page = draw_curves(near, marks={"true log Z": 14.3}).page
    ((panel, box),) = place_page(page).curves
    line = box.bottom - panel.height_of(14.3) * box.height
    high, low = end_labels(panel, box)
    assert high.y - line >= LABEL_GAP / 2 - 1e-9, "below it, as the curve is"
    assert low.down == 0, "where no line is, a label stays"


def test_the_words_of_a_mark_stand_where_fewer_curves_cross_them() -> None:
    x = list(range(101))
    early, late = [min(20, n) for n in x], [max(0, n - 80) for n in x]
    anchors = []
    for curve in (early, late):
        page = draw_curves({"a": (x, curve)}, marks={"untrained": 10}).page
        placement = place_page(page)
        ((panel, box),) = placement.curves
        (mark,) = mark_labels(panel, box)
        notes = plotly_figure(page, placement)["layout"]["annotations"]
        (said,) = (one for one in notes if one["text"] == mark.words)
        still = ElementTree.fromstring(draw_svg(page, placement))
        (drawn,) = (n for n in still.iter(f"{SVG}text") if n.text == mark.words)
        anchors.append((mark.rightward, said["xanchor"], drawn.get("text-anchor")))
    assert anchors == [(True, "right", "end"), (False, "left", None)]


def test_points_without_words_leave_their_room_to_the_others() -> None:
    x = list(range(300))
    words = ["", *["top"], *[""] * 298]
    page = draw_curves({"a": (x, x)}, labels={"a": words}).page
    ((panel, box),) = place_page(page).curves
    assert [one.words for one in point_labels(panel, box)] == words
    assert not page.legend and not end_labels(panel, box)
    (trace,) = traces_of(plotly_figure(page, place_page(page)), "a")
    assert trace["marker"]["size"] == [7 * bool(word) for word in words]
    glyph = panel.series[0].style.glyph
    assert draw_svg(page, place_page(page)).count(glyph) == 1, "one marker, no legend"


def test_a_log_axis_of_doubled_numbers_names_each_of_them() -> None:
    def named(xs):
        (curve,) = place_page(draw_curves({"a": (xs, xs)}, log_x=True).page).curves
        return list(log_x_ticks(curve[0]).values())

    doubled = [2**k for k in range(9)]
    assert named(doubled) == [str(k) for k in doubled]
    assert named([3 * k for k in doubled[:8]] + [900]) == ["10", "100", "1000"]
    assert named([5.1336, 9.51789, 16.5399]) == ["5", "10", "20"], "too long to read"
    assert named([5, 5.4, 40]) == ["5", "10", "20", "50"], "two would overlap"


def test_a_log_axis_to_the_right_names_the_points_where_they_are() -> None:
    tries = (1, 4, 16, 64, 256)
    missing = (0.5, 0.1, 1e-3, 1e-8, 1e-9)
    page = draw_curves({"a": (tries, missing)}, log_x=True, log_y=True).page
    placement = place_page(page)
    axis = plotly_figure(page, placement)["layout"]["xaxis"]
    assert axis["type"] == "log" and axis["ticktext"] == [str(k) for k in tries]
    assert axis["tickvals"] == pytest.approx(tries)
    ((panel, box),) = placement.curves
    places = [float(panel.place_of(k)) for k in tries]
    assert np.diff(places) == pytest.approx([places[1] - places[0]] * 4)
    svg = ElementTree.fromstring(draw_svg(page, placement))
    middles = [n for n in svg.iter(f"{SVG}text") if n.get("text-anchor") == "middle"]
    at = {node.text: float(node.get("x")) for node in middles}
    for k, place in zip(tries, places, strict=True):
        assert at[str(k)] == pytest.approx(box.left + place * box.width, abs=0.1)
    # what lies below the frame has neither a marker nor an end label
    marks = [n for n in svg.iter(f"{SVG}text") if n.text == "●"]
    assert len(marks) == 3 + 1  # one in the legend
    assert end_labels(panel, box) == []


def test_measured_points_stay_points_and_each_of_a_few_wears_its_marker() -> None:
    seen, line = (range(13), [1.0, 2.0] * 6 + [1.0]), ((0, 12), (1, 2))
    curves = {"flowrl": seen, "grpo": line, "ppo": (range(50), range(50))}
    page = draw_curves(curves, points=["flowrl"]).page
    placement = place_page(page)
    data = plotly_figure(page, placement)["data"]
    modes = {name: {t["mode"] for t in data if t["name"] == name} for name in curves}
    assert modes["flowrl"] == {"markers"} and modes["grpo"] == {"lines+markers"}
    most = [traces_of({"data": data}, name)[0]["marker"] for name in curves]
    assert [one["maxdisplayed"] for one in most] == [0, 0, 8]
    svg = draw_svg(page, placement)
    style = page.curves[0].series[0].style
    drawn = [n.text for n in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert drawn.count(style.glyph) == 13 + 1  # one in the legend
    paths = [n.get("stroke") for n in ElementTree.fromstring(svg).iter(f"{SVG}path")]
    assert style.color not in paths


@pytest.mark.bad_input
def test_points_that_are_no_curve_are_refused() -> None:
    with pytest.raises(ValueError, match=r"points.*Fix"):
        draw_curves({"a": ((0, 1), (1, 2))}, points=["b"])


@pytest.mark.bad_input
def test_a_log_axis_to_the_right_refuses_zero() -> None:
    with pytest.raises(ValueError, match=r"x of 0.*drop log_x"):
        draw_curves({"a": ((0, 1), (1, 2))}, log_x=True)


def test_every_distribution_may_have_a_target_of_its_own() -> None:
    goals = torch.tensor([[0.2, 0.8], [0.7, 0.3]]).log()
    page = draw_distributions(goals, {"a": goals[0], "b": goals[1]}).page
    assert [panel.target.tolist() for panel in page.maps] == [
        pytest.approx([0.2, 0.8]),
        pytest.approx([0.7, 0.3]),
    ]
    assert len({panel.y_max for panel in page.maps}) == 1, "side by side: one scale"
    with pytest.raises(ValueError, match="one row for each curve"):
        draw_distributions(goals, {"a": goals[0]})


@pytest.mark.bad_input
def test_names_of_the_wrong_number_are_refused() -> None:
    with pytest.raises(ValueError, match=r"labels\['a'\].*has 1"):
        draw_curves({"a": ((1, 2), (3, 4))}, labels={"a": ["x"]})
    even = torch.full((3,), 1 / 3).log()
    with pytest.raises(ValueError, match=r"labels.*has 2"):
        draw_distributions(even, {"a": even}, labels=("x", "y"))


def test_categories_are_named_bars_and_nothing_joins_them() -> None:
    even, names = torch.full((3,), 1 / 3).log(), ("6*4", "4*6", "8*3")
    page = draw_distributions(
        even, {"flowrl": even}, labels=names, x_title="answer"
    ).page
    figure = plotly_figure(page, place_page(page))
    assert [trace["type"] for trace in figure["data"]] == ["bar", "bar"]
    axis = figure["layout"]["xaxis"]
    assert axis["ticktext"] == list(names) and axis["title"]["text"] == "answer"
    svg = draw_svg(page, place_page(page))
    said = [n.text for n in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert {*names, "answer"} <= set(said) and "state" not in said


def test_curves_over_names_say_them_on_the_axis_and_when_pointed_at() -> None:
    page = draw_curves(
        {"a": ((-0.1, 0.9), (1, 2)), "b": ((0.1, 1.1), (2, 3))},
        x_names=("left", "right"),
        points=("a", "b"),
    ).page
    figure = plotly_figure(page, place_page(page))
    assert figure["layout"]["xaxis"]["ticktext"] == ["left", "right"]
    assert figure["layout"]["xaxis"]["range"] == [-0.5, 1.5]
    drawn = [t for t in figure["data"] if "customdata" in t]
    assert [t["customdata"] for t in drawn] == [["left", "right"]] * 2
    svg = ElementTree.fromstring(draw_svg(page, place_page(page)))
    assert {"left", "right"} <= {n.text for n in svg.iter(f"{SVG}text")}
    with pytest.raises(ValueError, match="drop log_x"):
        draw_curves({"a": ((1, 2), (1, 2))}, x_names=("b", "c"), log_x=True)


def test_of_many_categories_an_axis_names_some_and_pointing_all() -> None:
    flat, names = torch.zeros(64).log_softmax(0), [f"w{i}" for i in range(64)]
    page = draw_distributions(flat, {"flowrl": flat}, labels=names).page
    figure = plotly_figure(page, place_page(page))
    assert figure["data"][1]["text"] == names
    assert [trace["type"] for trace in figure["data"]] == ["scatter", "bar"]
    assert figure["data"][0]["marker"]["symbol"] == "line-ew"  # above all bars
    assert figure["layout"]["xaxis"]["ticktext"] == names[::8]
    svg = ElementTree.fromstring(draw_svg(page, place_page(page)))
    said = [node.text for node in svg.iter(f"{SVG}text")]
    assert [word for word in said if word and word[0] == "w"] == names[::8]
    *_, bars, marks = [p.get("d") for p in svg.iter(f"{SVG}path")]
    assert bars.count("M") == marks.count("M") == 64 and "v" not in marks


def test_a_single_high_state_is_one_filled_bar() -> None:
    spike = torch.full((100,), -20.0)
    spike[50] = 0.0
    flat = torch.zeros(100).log_softmax(0)
    page = draw_distributions(flat, {"grpo": spike.log_softmax(0)}).page
    run = plotly_figure(page, place_page(page))["data"][1]
    assert run["line"]["shape"] == "hvh" and run["fill"] == "tozeroy"
    assert run["fillcolor"].endswith(",0.9)")  # hides the hill between its edges
    svg = ElementTree.fromstring(draw_svg(page, place_page(page)))
    path = next(p for p in svg.iter(f"{SVG}path") if p.get("stroke") == "#D55E00")
    assert path.get("fill") == "#D55E00" and "L" not in path.get("d")
    assert path.get("fill-opacity") == "0.9"


def test_a_spike_is_named_as_its_axis_names_it() -> None:
    even, spike = torch.full((3,), 1 / 3).log(), torch.tensor([0.02, 0.96, 0.02]).log()
    picture = draw_distributions(even, {"grpo": spike}, labels=("aa", "ab", "ba"))
    assert "↑ 0.96 at ab" in repr(picture)


def test_a_page_without_progress_has_no_void_under_its_title() -> None:
    even = torch.full((100,), 0.01).log()
    still = place_page(draw_distributions(even, {"a": even}, title="t").page)
    assert still.map_title == ("probability of each state",)
    assert still.maps[0][1].top - still.title_y < 100
    bare = place_page(draw_curves({"a": ((0, 1), (0, 1))}, title="t").page)
    assert bare.curves[0][1].top - bare.title_y < 80


def test_text_stands_out_on_light_and_dark_pages() -> None:
    assert contrast(LIGHT_INK, "#ffffff") >= 4.5
    assert contrast(DARK_INK, "#111111") >= 4.5
    assert contrast(INK, "#ffffff") >= 4.5  # and THEME where the page is dark
    svg = svg_from_records(make_race(size=60), ("reward",), solution_map=True)
    sizes = {int(n) for n in re.findall(r'font-size="(\d+)"', svg)}
    assert min(sizes) >= 12
    assert "#808080" not in svg


RUNS = ("flowrl", "grpo", "ppo", "reinforce_pp", "kl_reinforce")


def forms_of(figure: dict) -> list[dict]:
    return figure["layout"]["meta"]["flowrl"]


@pytest.mark.parametrize("landscape", [False, True])
def test_a_figure_has_a_form_for_every_width_with_its_panels_apart(
    landscape: bool,
) -> None:
    records = make_race(RUNS, size=60, landscape=landscape)
    metrics = ("reward", "kl_policy_target")
    figure = figure_from_records(records, metrics, solution_map=True)
    forms = forms_of(figure)
    assert [form["width"] for form in forms] == sorted(WIDTHS)
    assert forms[-1]["width"] == figure["layout"]["width"]
    assert all(form.keys() == forms[0].keys() for form in forms)
    page = page_of(records, metrics, solution_map=True)
    for form in forms:
        placement = place_page(page, width=form["width"])
        assert form["height"] == round(placement.height)
        boxes = [box for _, box in (*placement.curves, *placement.maps)]
        assert min(box.left for box in boxes) >= 0
        assert max(box.right for box in boxes) <= form["width"]
        for one, other in combinations(boxes, 2):
            beside = one.right <= other.left or other.right <= one.left
            assert beside or one.bottom <= other.top or other.bottom <= one.top
    # the narrowest has one column, and what a live plot sends fits every form
    lefts = [form["xaxis.domain"] == form["xaxis2.domain"] for form in forms]
    assert lefts[0] and not lefts[-1]
    moving = re.compile(r"annotations\[(\d+)\]\.(text|x|y)|axis\d*\.range")
    header = {"0", "2", str(len(figure["layout"]["annotations"]) - 1)}
    for key in forms[0]:
        found = moving.search(key)
        assert not found or found[1] in header, key


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_written_in_a_still_picture_is_cut(width: int | float) -> None:
    page = replace(
        page_of(make_race(RUNS, size=60), ("reward",), solution_map=True),
        title="A race between five algorithms on the same prompts, with one seed",
    )
    placement = place_page(page, width=width)
    for node in ElementTree.fromstring(draw_svg(page, placement)).iter(f"{SVG}text"):
        if node.get("text-anchor"):
            continue
        size = int(node.get("font-size", 12)) * (1.1 if node.get("font-weight") else 1)
        end = float(node.get("x")) + 0.54 * size * len(node.text)
        assert end <= width + 6, node.text


def test_one_word_stands_for_one_count() -> None:
    page = page_of(make_race(RUNS, size=60), ("reward",), solution_map=True)
    said = draw_svg(page, place_page(page)) + tabulate_page(page) + describe_page(page)
    assert "of 60 effective" in said  # an effective number, and no cell that is lit
    assert "alive" not in said


def test_a_runs_end_label_bears_its_name_to_go_with_it() -> None:
    notes = figure_from_records(make_race())["layout"]["annotations"]
    assert [one["name"] for one in notes if "name" in one] == ["flowrl", "grpo"]


def test_a_label_that_makes_room_is_no_second_point() -> None:
    """A thin line leads to it; one that ends elsewhere need not make room."""
    ends = {"a": ((0, 1), (0, 0.5)), "b": ((0, 1), (1, 0.51)), "c": ((0, 9), (1, 0.5))}
    page = draw_curves(ends).page
    placement = place_page(page)
    ((panel, box),) = placement.curves
    down = {label.run: label.down for label in end_labels(panel, box)}
    assert down["a"] > 3 > down["b"] == down["c"] == 0
    drawn = draw_svg(page, placement)
    for style in (curve.style for curve in panel.series):  # the legend, and two points
        assert drawn.count(style.glyph) == 3
    notes = {
        n.get("name"): n
        for n in plotly_figure(page, placement)["layout"]["annotations"]
    }
    assert notes["a"]["showarrow"] and notes["a"]["ay"] == round(down["a"], 2)
    assert not notes["c"]["showarrow"]

"""The explorers: exact numbers, values that travel both ways, still forms."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest
from fake_records import make_race, make_record, make_snapshot

from flowrl_lab.widgets import BetaExplorer, SolutionMap, solution_map

WIDGET_MIME = "application/vnd.jupyter.widget-view+json"


def bundle_of(widget) -> dict:
    made = widget._repr_mimebundle_()
    return made[0] if isinstance(made, tuple) else made


def test_target_is_the_enumerated_one() -> None:
    rewards = np.array([0.0, 1.0, 0.5, 1.0])
    reference = np.array([0.4, 0.3, 0.2, 0.1])
    explorer = BetaExplorer(rewards, reference, reward_scale=3.0)
    weights = reference * np.exp(3.0 * rewards)
    probs, log_z = explorer.target()
    np.testing.assert_allclose(probs, weights / weights.sum(), rtol=1e-12)
    assert log_z == pytest.approx(np.log(weights.sum()), rel=1e-12)
    uniform, log_z = BetaExplorer(rewards).target(2.0)
    np.testing.assert_allclose(uniform, np.exp(2 * rewards) / np.exp(2 * rewards).sum())
    assert log_z == pytest.approx(np.log(np.exp(2 * rewards).mean()))


def test_extreme_scales_stay_finite() -> None:
    probs, log_z = BetaExplorer([-900.0, 0.0, 900.0]).target(100.0)
    assert probs.tolist() == [0.0, 0.0, 1.0]
    assert log_z == pytest.approx(90000 - np.log(3))


def test_browser_gets_the_same_numbers_and_answers_back() -> None:
    explorer = BetaExplorer([0.0, 1.0], [0.25, 0.75], ["a", "b"], reward_scale=2.0)
    state = explorer.get_state()
    np.testing.assert_array_equal(np.frombuffer(state["_rewards"]), [0.0, 1.0])
    np.testing.assert_array_equal(
        np.frombuffer(state["_log_reference"]), np.log([0.25, 0.75])
    )
    assert state["_labels"] == ["a", "b"]
    assert state["_range"] == [0.1, 100.0]
    assert state["reward_scale"] == 2.0
    explorer.set_state({"reward_scale": 7.5})  # what a moved slider sends
    assert explorer.reward_scale == 7.5
    assert explorer.target()[0] == pytest.approx(explorer.target(7.5)[0])
    with pytest.raises(ValueError, match="reward_scale"):
        explorer.reward_scale = -1.0


def test_the_same_cell_run_again_finds_the_slider_where_it_was_left() -> None:
    BetaExplorer([0.0, 2.0, 5.0], reward_scale=3.0).set_state({"reward_scale": 12.0})
    assert BetaExplorer([0.0, 2.0, 5.0], reward_scale=3.0).reward_scale == 12.0
    assert BetaExplorer([0.0, 2.0, 5.0], reward_scale=4.0).reward_scale == 4.0
    assert BetaExplorer([0.0, 2.0, 6.0], reward_scale=3.0).reward_scale == 3.0


def test_slider_range_holds_an_unusual_start() -> None:
    assert BetaExplorer([0.0, 1.0], reward_scale=500.0)._range == [0.1, 500.0]


def test_explorer_still_form_has_three_scales() -> None:
    explorer = BetaExplorer(np.linspace(0, 1, 30), reward_scale=4.0)
    bundle = bundle_of(explorer)
    assert WIDGET_MIME not in bundle  # headless
    root = ElementTree.fromstring(bundle["image/svg+xml"])
    for scale in ("β = 0.4", "β = 4", "β = 40"):
        assert scale in root.get("aria-label")
    probs, log_z = explorer.target(40.0)
    row = bundle["text/plain"].splitlines()[3].split()
    number = np.exp(-(probs * np.log(probs)).sum())
    assert row[0] == "40"
    assert [float(cell) for cell in row[1:]] == pytest.approx(
        [number, np.log(number), log_z, probs[-1]], rel=6e-3
    )


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rewards": []}, "at least one state"),
        ({"rewards": [[1.0]]}, r"shape \[1, 1\]"),
        ({"rewards": [0.0, np.nan]}, "not finite at state 1"),
        ({"rewards": [0.0, 1.0], "reward_scale": -2.0}, "above 0"),
        ({"rewards": [0.0, 1.0], "reward_scale": 0.0}, "above 0"),
        ({"rewards": [0.0, 1.0], "reward_scale": np.nan}, "above 0"),
        ({"rewards": [0.0, 1.0], "reference": [0.5, 0.6]}, "sum to 1"),
        ({"rewards": [0.0, 1.0], "reference": [0.0, 1.0]}, "positive"),
        ({"rewards": [0.0, 1.0], "reference": [1.0]}, r"shape \[1\]"),
        ({"rewards": [0.0, 1.0], "labels": ["a"]}, "has 1 names"),
    ],
)
def test_explorer_bad_input(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BetaExplorer(**arguments)


def test_map_holds_every_snapshot() -> None:
    records = make_race(size=6)
    widget = solution_map(records)
    looked = [r for r in records if r.snapshot]
    frames = np.frombuffer(widget._frames, dtype=np.float32).reshape(6, 2, 6)
    for record in looked:
        row = ("flowrl", "grpo").index(record.run)
        np.testing.assert_allclose(
            frames[record.step // 2, row], record.snapshot.probs, rtol=1e-6
        )
    assert widget._steps == [0, 2, 4, 6, 8, 10]
    assert widget._shape == "cells"
    assert widget.step == 10
    widget.set_state({"step_index": 1})
    assert widget.step == 2
    with pytest.raises(ValueError, match="step_index"):
        widget.step_index = 6


def test_a_map_run_again_opens_at_the_step_where_it_was_left(monkeypatch) -> None:
    monkeypatch.setattr(SolutionMap, "_left_at", {})
    frames = [(step, make_snapshot(1.0)) for step in (0, 5, 9)]
    first = SolutionMap({"a": frames})
    first.set_state({"step_index": 1})
    assert SolutionMap({"a": frames}).step == 5
    assert SolutionMap({"b": frames}).step == 9  # other runs: another map
    assert SolutionMap({"a": [*frames[:1], *frames[2:]]}).step == 9  # 5 is gone
    first.set_state({"step_index": 2})  # back at the end: nothing to come back to
    assert SolutionMap({"a": [*frames, (12, make_snapshot(0.5))]}).step == 12


def test_map_fills_gaps_with_the_latest_evaluation() -> None:
    early, late = make_snapshot(1.0), make_snapshot(0.2)
    widget = SolutionMap({"a": [(0, early), (4, late)], "b": [(2, early)]})
    assert widget._steps == [0, 2, 4]
    assert widget.at_step(2) == {"a": early, "b": early}
    assert widget.at_step(4) == {"a": late, "b": early}


def test_map_still_form() -> None:
    widget = solution_map(make_race(size=60, landscape=True))
    assert widget._shape == "states"
    bundle = bundle_of(widget)
    assert WIDGET_MIME not in bundle
    label = ElementTree.fromstring(bundle["image/svg+xml"]).get("aria-label")
    assert "grpo" in label
    assert "of 60 effective" in label
    assert "flowrl" in bundle["text/plain"]


def test_map_wears_the_colours_of_the_live_plot() -> None:
    records = [
        make_record(0, run=name, algorithm="grpo", snapshot=make_snapshot(1.0))
        for name in ("grpo small", "grpo large")
    ]
    colors = [run["color"] for run in solution_map(records)._runs]
    assert colors[0] == "#D55E00"
    assert colors[1] != colors[0]


def test_map_bad_input() -> None:
    with pytest.raises(ValueError, match="no snapshot"):
        solution_map([make_record(0)])
    with pytest.raises(ValueError, match="for some run"):
        SolutionMap({"a": []})
    with pytest.raises(ValueError, match="different answers"):
        SolutionMap({"a": make_snapshot(1.0), "b": make_snapshot(1.0, size=7)})


def test_with_a_browser_the_view_and_the_still_form_travel(monkeypatch) -> None:
    monkeypatch.delenv("FLOWRL_HEADLESS")
    bundle = bundle_of(BetaExplorer([0.0, 1.0]))
    assert WIDGET_MIME in bundle
    assert 'alt="Target' in bundle["text/html"]

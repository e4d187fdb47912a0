"""The target designer: exact targets, training on a drawing, what it keeps."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import traitlets

from flowrl_lab.metrics import kl_divergence
from flowrl_lab.tasks.landscape import figure1_log_mixture
from flowrl_lab.widgets import TargetDesigner
from flowrl_lab.widgets.target_designer import DRAWINGS, make_drawing

FEW = [0.0, 1.0, 0.25, 0.0, 0.75, 0.0]  # two modes


def test_target_is_the_enumerated_one() -> None:
    probs, log_z = TargetDesigner(FEW, reward_scale=3.0).target()
    weights = np.exp(3.0 * np.array(FEW)) / 6
    np.testing.assert_allclose(probs, weights / weights.sum(), rtol=1e-12)
    assert log_z == pytest.approx(np.log(weights.sum()), rel=1e-12)


def test_extreme_rewards_stay_finite() -> None:
    probs, log_z = TargetDesigner([-900.0, 0.0, 900.0], reward_scale=100.0).target()
    assert probs.tolist() == [0.0, 0.0, 1.0]
    assert log_z == pytest.approx(90000 - np.log(3))


def test_drawings_say_what_their_names_say() -> None:
    figure = TargetDesigner("figure1", reward_scale=15.0)
    wanted = figure1_log_mixture().exp().numpy()
    assert np.abs(figure.target()[0] - wanted).sum() / 2 < 1e-5
    assert len(np.unique(make_drawing("plateau"))) == 2
    needle = make_drawing("needle")
    assert needle.argmax() == 74
    assert np.sort(needle)[-2] < 0.81
    hills = make_drawing("two_hills")
    assert hills[30] > hills[70] > hills[50] + 0.5
    assert np.ptp(make_drawing("flat")) == 0
    for name in DRAWINGS:
        drawn = make_drawing(name, 37)
        assert drawn.shape == (37,)
        assert 0 <= drawn.min() <= drawn.max() <= 1
        assert drawn.max() == pytest.approx(make_drawing(name).max(), abs=0.05)


def test_what_the_browser_draws_comes_back() -> None:
    designer = TargetDesigner(FEW, reward_scale=2.0)
    state = designer.get_state()
    assert state["_rewards"] == FEW
    assert state["_range"] == [0.0, 1.0]
    assert set(state["_drawings"]) == set(DRAWINGS)
    assert all(len(drawn) == 6 for drawn in state["_drawings"].values())
    drawn = [0.1, 0.2, 0.3, 1, 0, 0.6]  # JSON makes 1.0 a 1
    designer.set_state({"_rewards": drawn, "reward_scale": 7.5})
    np.testing.assert_array_equal(designer.rewards, drawn)
    assert designer.rewards.dtype == np.float64
    assert designer.reward_scale == 7.5
    np.testing.assert_allclose(
        designer.target()[0], TargetDesigner(drawn, reward_scale=7.5).target()[0]
    )


def test_rewards_can_be_set_from_python() -> None:
    designer = TargetDesigner(FEW)
    designer.rewards = torch.tensor([2.0, -1.0, 0.5])
    assert designer.rewards.tolist() == [2.0, -1.0, 0.5]
    assert designer._range == [-1.0, 2.0]
    assert len(designer._drawings["flat"]) == 3
    kept = designer.rewards
    kept[0] = 99.0  # a copy: editing it does not draw
    assert designer.rewards[0] == 2.0


def test_training_reports_exact_distances() -> None:
    designer = TargetDesigner(FEW, reward_scale=4.0, steps=40, seed=3)
    records = designer.train()
    assert list(records) == ["grpo", "flowrl"]
    target = torch.from_numpy(designer.target()[0]).log()
    for record in records.values():
        assert record.step == 40
        log_probs = torch.from_numpy(record.snapshot.probs).log()
        reverse = kl_divergence(log_probs.log_softmax(0), target).item()
        assert record.exact.kl_policy_target == pytest.approx(reverse, abs=1e-5)
        np.testing.assert_allclose(
            record.snapshot.target_probs, target.exp().numpy(), atol=1e-6
        )
    assert not designer.outdated
    again = TargetDesigner(FEW, reward_scale=4.0).train(40, seed=3)
    np.testing.assert_array_equal(
        again["flowrl"].snapshot.probs, records["flowrl"].snapshot.probs
    )


@pytest.mark.full
@pytest.mark.slow
def test_flowrl_finds_the_drawn_target_and_the_maximiser_does_not() -> None:
    for seed in range(5):
        designer = TargetDesigner("two_hills", steps=150, seed=seed)
        records = designer.train()
        flow, greedy = records["flowrl"].exact, records["grpo"].exact
        assert flow.kl_policy_target < 0.03
        assert flow.kl_target_policy < 0.03
        assert flow.modes_covered == 1
        assert greedy.kl_target_policy > 2
        assert greedy.modes_covered == 0.5
        facts = {run["name"]: dict(run["facts"]) for run in designer._result["runs"]}
        assert facts["flowrl"]["modes alive"] == "2 of 2"
        assert facts["grpo"]["modes alive"] == "1 of 2"


def test_the_result_is_marked_when_the_drawing_changes() -> None:
    designer = TargetDesigner(FEW, reward_scale=4.0, steps=4)
    assert designer.outdated
    designer.train()
    result = designer._result
    assert result["rewards"] == FEW
    assert result["reward_scale"] == 4.0
    assert [run["name"] for run in result["runs"]] == ["grpo", "flowrl"]
    assert [len(run["probs"]) for run in result["runs"]] == [6, 6]
    assert designer._status == "trained, 4 steps each"
    designer.reward_scale = 5.0
    assert designer.outdated
    designer.reward_scale = 4.0
    assert not designer.outdated
    designer.rewards = [*FEW[:-1], 0.5]
    assert designer.outdated


def test_the_button_trains_and_says_what_went_wrong(monkeypatch) -> None:
    designer = TargetDesigner("flat", steps=3)
    press = {"kind": "train", "rewards": FEW, "reward_scale": 4.0}
    designer._handle_custom_msg({"kind": "something else"}, [])
    assert not designer.records
    designer._handle_custom_msg(press, [])
    assert designer.records["flowrl"].step == 3
    assert designer.rewards.tolist() == designer.trained_on[0].tolist() == FEW
    assert designer.reward_scale == designer.trained_on[1] == 4.0
    designer._handle_custom_msg(press | {"rewards": [1.0]}, [])
    assert designer._status.startswith("could not train: `rewards` has 1 state(s)")

    def fail(*_):
        raise ValueError("no room")

    monkeypatch.setattr("flowrl_lab.widgets.target_designer.race", fail)
    designer._handle_custom_msg(press, [])
    assert designer._status == "could not train: no room"
    assert designer._busy is False


def test_interrupt_keeps_what_was_trained(monkeypatch) -> None:
    from flowrl_lab.training.run import race

    def stop_early(*configs):
        for record in race(*configs):
            yield record
            if record.step == 10 and record.run == "flowrl":
                raise KeyboardInterrupt

    monkeypatch.setattr("flowrl_lab.widgets.target_designer.race", stop_early)
    records = TargetDesigner(FEW, steps=20).train()
    assert {record.step for record in records.values()} == {10}


def test_a_cell_run_again_shows_what_was_drawn() -> None:
    first = TargetDesigner("plateau", key="test.again")
    first.set_state({"_rewards": make_drawing("needle").tolist(), "reward_scale": 3.0})
    first.train(4)
    again = TargetDesigner("plateau", key="test.again")
    np.testing.assert_array_equal(again.rewards, make_drawing("needle"))
    assert again.reward_scale == 3.0
    assert not again.outdated
    assert again._result == first._result
    # whoever edits the cell means the edit
    edited = TargetDesigner("flat", key="test.again")
    assert np.ptp(edited.rewards) == 0
    assert (
        TargetDesigner("plateau").rewards.tolist() == make_drawing("plateau").tolist()
    )


def test_other_algorithms_can_be_compared() -> None:
    designer = TargetDesigner(FEW, algorithms=("kl_reinforce", "vargrad"), steps=2)
    assert {c.run_name: c.kl_coef for c in designer._configs(2, 0)} == {
        "kl_reinforce": 1 / 15,
        "vargrad": 0.0,
    }
    assert set(designer.train()) == {"kl_reinforce", "vargrad"}


def test_flat_landscape_leaves_the_reference() -> None:
    designer = TargetDesigner("flat", steps=120)
    probs, log_z = designer.target()
    np.testing.assert_allclose(probs, 0.01)
    assert log_z == pytest.approx(7.5)  # β r: all that a constant reward adds
    records = designer.train()
    # equal rewards have no advantage, so GRPO never moves; FlowRL has log Z to learn
    np.testing.assert_allclose(records["grpo"].snapshot.probs, 0.01, rtol=1e-5)
    assert records["flowrl"].exact.kl_policy_target < 0.01
    assert records["flowrl"].exact.log_z_learned == pytest.approx(7.5, abs=0.2)
    assert "flat: every reward is the same" in designer.still()[2]


def test_still_form_before_and_after_training() -> None:
    designer = TargetDesigner("two_hills", steps=4)
    svg, alt, table = designer.still()
    assert ElementTree.fromstring(svg).get("aria-label") == alt
    assert "p*: " in alt
    log_z = designer.target()[1]
    assert f"log Z {log_z:.3g} nats" in table
    designer.train()
    svg, alt, table = designer.still()
    ElementTree.fromstring(svg)
    assert "grpo: " in alt
    assert "KL(π‖p*)" in table
    designer.reward_scale = 3.0
    assert "grpo" not in designer.still()[1]
    assert "reward − (-2)" in TargetDesigner([-2.0, 1.0]).still()[1]
    bundle = designer._repr_mimebundle_()
    assert {"text/html", "image/svg+xml", "text/plain"} == set(bundle)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rewards": []}, "at least one state"),
        ({"rewards": [1.0]}, r"has 1 state\(s\)"),
        ({"rewards": np.zeros(401)}, r"has 401 state\(s\)"),
        ({"rewards": [0.0, np.nan]}, "not finite at state 1"),
        ({"rewards": [0.0, np.inf]}, "not finite at state 1"),
        ({"rewards": [[0.0, 1.0]]}, r"shape \[1, 2\]"),
        ({"rewards": ["high", "low"]}, "a flat list of rewards"),
        ({"rewards": [[0.0], [1.0, 2.0]]}, "a flat list of rewards"),
        ({"rewards": {"a": 1.0}}, "a flat list of rewards"),
        ({"rewards": "two_hils"}, "did you mean 'two_hills'"),
        ({"reward_scale": 0.0}, "above 0"),
        ({"reward_scale": np.nan}, "above 0"),
        ({"algorithms": ()}, "one to four"),
        ({"algorithms": ("grpo", "grpo")}, "one to four"),
        ({"algorithms": ("gpro",)}, "did you mean 'grpo'"),
        ({"steps": 0}, "steps"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_input(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TargetDesigner(**arguments)


@pytest.mark.bad_input
def test_bad_edits_are_refused_and_change_nothing() -> None:
    designer = TargetDesigner(FEW)
    for bad in ([], [1.0], [0.0, float("nan")]):
        with pytest.raises(ValueError, match="rewards"):
            designer.rewards = bad
    with pytest.raises(traitlets.TraitError, match="not finite"):
        designer.set_state({"_rewards": [0.0, float("nan")]})
    with pytest.raises(ValueError, match="above 0"):
        designer.reward_scale = -1.0
    with pytest.raises(ValueError, match="steps"):
        designer.train(0)
    assert designer.rewards.tolist() == FEW
    assert designer.reward_scale == 15.0

"""The stored runs repeat, and the scrubber shows what is stored."""

from __future__ import annotations

import hashlib
import json
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from flowrl_lab.__main__ import main
from flowrl_lab._files import data_path
from flowrl_lab.exact import exact_target
from flowrl_lab.measuring import recorded
from flowrl_lab.measuring.recorded import (
    OBJECTIVES,
    REWARD_SCALES,
    compare_runs,
    grid_config,
    load_landscape_runs,
    trace_run,
    write_grid,
)
from flowrl_lab.tasks import load_task
from flowrl_lab.widgets import RunScrubber
from flowrl_lab.widgets.run_scrubber import describe_comparison


@pytest.fixture(autouse=True)
def _fresh_place(monkeypatch):
    start = {"objective": "flowrl", "reward_scale": 15.0, "step": 400}
    monkeypatch.setattr(RunScrubber, "_left_at", start)


@pytest.fixture(scope="module")
def runs():
    return load_landscape_runs()


def short_grid() -> dict[str, np.ndarray]:
    """Arrays of the right shapes, made without training."""
    shapes = {
        name: runs.shape for name, runs in load_landscape_runs().log_probs.items()
    }
    uniform = np.float16(-np.log(100))
    return {name: np.full(shape, uniform) for name, shape in shapes.items()}


# ------------------------------------------------------------------ the stored runs


@pytest.mark.full
def test_a_run_of_the_grid_is_made_again(runs):
    now = trace_run(grid_config("flowrl", 15.0))
    stored = runs.run("flowrl", 15.0)
    # Two steps of float16.  On the processor that made the file every number agrees;
    # on another one, rounding may turn a single draw in a hundred thousand.
    step = np.abs(np.spacing(stored)).astype(float) * 2
    assert np.mean(np.abs(now - stored) <= step) > 0.5
    comparison = compare_runs(now, stored)
    assert comparison.difference < 5e-3
    other = compare_runs(now, runs.run("flowrl", 30.0))
    assert not other.agrees
    assert other.difference > 0.05


def test_the_file_is_small_and_says_where_it_comes_from(runs):
    folder = data_path("explorer")
    content = (folder / recorded.DATA).read_bytes()
    assert len(content) < 400_000
    facts = runs.provenance
    assert facts["sha256"] == hashlib.sha256(content).hexdigest()
    assert facts["command"] == recorded.COMMAND
    assert facts["environment"]["versions"]["torch"]
    readme = (folder / "README.md").read_text(encoding="utf-8")
    for word in (recorded.COMMAND, recorded.DATA, *OBJECTIVES[:3]):
        assert word in readme


def test_stored_rows_are_distributions_that_start_uniform(runs):
    for name in OBJECTIVES:
        probs = np.exp(runs.log_probs[name].astype(float))
        np.testing.assert_allclose(probs.sum(-1), 1.0, atol=2e-3)
        np.testing.assert_allclose(probs[:, 0], 0.01, rtol=2e-3)
    assert not np.array_equal(runs.run("flowrl", 1.0), runs.run("flowrl", 60.0))
    np.testing.assert_array_equal(runs.run("grpo", 1.0), runs.run("grpo", 60.0))


@pytest.mark.parametrize("scale", REWARD_SCALES)
def test_the_target_is_the_enumerated_one(runs, scale):
    rewards = load_task("landscape").rewards.double()
    uniform = torch.full((100,), 0.01).double().log()
    target = exact_target(uniform, rewards, reward_scale=scale)
    np.testing.assert_allclose(runs.target(scale), target.numpy(), atol=1e-9)


def test_grid_configs_match_the_penalty_to_the_scale():
    assert grid_config("kl_reinforce", 8.0).kl_coef == 1 / 8
    assert grid_config("flowrl", 8.0).reward_scale == 8
    paper = grid_config("flowrl_paper", 8.0)
    assert (paper.reward_form, paper.length_normalize) == ("group_normalized", True)


def test_comparison_forgives_rounding_and_nothing_more():
    exact = np.log(np.array([[0.5, 0.3, 0.2], [0.9, 0.09, 0.01]]))
    stored = exact.astype(np.float16)
    same = compare_runs(exact, stored)
    assert same.agrees
    assert "the same run" in describe_comparison(same)
    moved = exact.copy()
    moved[1, 0] -= 0.002
    far = compare_runs(moved, stored)
    assert not far.agrees
    assert far.difference == pytest.approx(0.9 * 0.002, rel=0.2)
    assert "times what rounding" in describe_comparison(far)


@pytest.mark.bad_input
def test_a_damaged_or_missing_file_names_the_command(tmp_path):
    for name in (recorded.DATA, recorded.FACTS):
        shutil.copy(data_path("explorer") / name, tmp_path / name)
    load_landscape_runs(tmp_path)
    data = tmp_path / recorded.DATA
    content = bytearray(data.read_bytes())
    content[1000] ^= 1
    data.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged(.|\n)*explorer-data --out"):
        RunScrubber(folder=tmp_path)
    data.unlink()
    with pytest.raises(ValueError, match=r"has no landscape_runs.npz.*explorer-data"):
        RunScrubber(folder=tmp_path)
    data.write_bytes(content)
    (tmp_path / recorded.FACTS).write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        load_landscape_runs(tmp_path)


@pytest.mark.bad_input
def test_no_data_folder_at_all_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWRL_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="explorer-data --out data/explorer"):
        RunScrubber()


@pytest.mark.bad_input
def test_another_shape_or_format_is_refused(tmp_path):
    grid = short_grid()
    write_grid(tmp_path / "good", grid, 1.0)
    load_landscape_runs(tmp_path / "good")
    grid["grpo"] = grid["grpo"][:, :-1]
    write_grid(tmp_path / "short", grid, 1.0)
    with pytest.raises(ValueError, match=r"holds grpo as float16 \(1, 40, 100\)"):
        load_landscape_runs(tmp_path / "short")
    facts = tmp_path / "good" / recorded.FACTS
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "format": 9}))
    with pytest.raises(ValueError, match="format is 9"):
        load_landscape_runs(tmp_path / "good")


# ---------------------------------------------------------------------- the command


def test_the_command_trains_every_run_and_overwrites_nothing(
    tmp_path, monkeypatch, capsys
):
    trained = []

    def quickly(config, report=None):
        trained.append((config.algorithm, config.reward_scale))
        report(config.steps)
        return np.full((41, 100), -np.log(100))

    monkeypatch.setattr(recorded, "trace_run", quickly)
    folder = tmp_path / "made"
    assert main(["explorer-data", "--out", str(folder)]) == 0
    assert len(trained) == 2 + 3 * len(REWARD_SCALES)
    assert len(set(trained)) == 2 + 2 * len(REWARD_SCALES)  # flowrl in two forms
    said = capsys.readouterr()
    assert "9200/9200" in said.err
    made = load_landscape_runs(folder)
    assert made.provenance["sha256"] in said.out
    assert main(["explorer-data", "--out", str(folder)]) == 2
    assert "nothing is overwritten" in capsys.readouterr().err


# ----------------------------------------------------------------------- the widget


def test_scrubber_measures_what_is_stored(runs):
    scrubber = RunScrubber()
    assert (scrubber.objective, scrubber.reward_scale, scrubber.step) == (
        *("flowrl", 15.0),
        400,
    )
    row = runs.run("grpo", 4.0)[10].astype(float)
    policy = np.exp(row) / np.exp(row).sum()
    rewards = runs.rewards
    target = np.exp(4 * rewards) / np.exp(4 * rewards).sum()
    said = scrubber.measure("grpo", 4.0, 100)
    expected = {
        "effective": np.exp(-(policy * np.log(policy)).sum()),
        "target_effective": np.exp(-(target * np.log(target)).sum()),
        "kl_policy_target": (policy * np.log(policy / target)).sum(),
        "kl_target_policy": (target * np.log(target / policy)).sum(),
        "reward": policy @ rewards,
        "target_reward": target @ rewards,
    }
    assert said == pytest.approx(expected, rel=1e-9)


def test_what_the_runs_teach_is_in_the_data():
    scrubber = RunScrubber()
    for scale in REWARD_SCALES:
        for name in ("flowrl", "kl_reinforce"):
            assert scrubber.measure(name, scale)["kl_policy_target"] < 0.02
        for name in ("grpo", "reinforce_pp"):
            assert scrubber.measure(name, scale)["effective"] < 1.1
    assert scrubber.measure("flowrl_paper", 15.0)["effective"] < 1.1
    assert 10 < scrubber.measure("flowrl_paper", 1.0)["effective"] < 30


def test_browser_gets_every_run_and_answers_back(runs):
    scrubber = RunScrubber("grpo", 8, 50)
    state = scrubber.get_state()
    sent = np.frombuffer(state["_log_probs"], dtype=np.float32).reshape(-1, 41, 100)
    for entry in state["_objectives"]:
        stored = runs.log_probs[entry["name"]]
        assert entry["scaled"] == (len(stored) == 7)
        np.testing.assert_array_equal(
            sent[entry["first"] : entry["first"] + len(stored)],
            stored.astype(np.float32),
        )
    scrubber.set_state({"objective": "flowrl", "reward_scale": 30.0, "step": 10})
    assert scrubber.measure() == scrubber.measure("flowrl", 30.0, 10)


def test_run_again_the_cell_stands_where_it_was_left():
    first = RunScrubber()
    first.set_state({"objective": "grpo", "step": 20})
    again = RunScrubber()
    assert (again.objective, again.reward_scale, again.step) == ("grpo", 15.0, 20)
    assert RunScrubber(step=400).step == 400


def test_live_run_is_compared_and_sent(runs, monkeypatch):
    module = "flowrl_lab.widgets.run_scrubber.trace_run"
    exact = runs.run("grpo", 15.0).astype(float)

    def train_quickly(config, report):
        assert config.algorithm == "grpo"
        report(400)
        return exact

    monkeypatch.setattr(module, train_quickly)
    scrubber = RunScrubber("grpo")
    told = []
    scrubber.observe(lambda change: told.append(change["new"]), "_status")
    comparison = scrubber.run_live()
    assert comparison.agrees
    assert comparison.difference == 0
    assert told == ["training grpo: step 400 of 400", ""]
    (key,) = scrubber._live
    assert key == "grpo"  # drawn at every β: it is the same run
    sent = np.frombuffer(scrubber._live[key]["log_probs"], dtype=np.float32)
    np.testing.assert_allclose(sent.reshape(41, 100), exact, rtol=1e-6)
    scrubber._on_message(
        scrubber, {"ask": "run", "objective": "grpo", "reward_scale": 7}, []
    )
    assert "could not run: `reward_scale` is 7" in scrubber._status


def test_still_form_shows_three_objectives():
    scrubber = RunScrubber()
    bundle = scrubber._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" not in bundle
    label = ElementTree.fromstring(bundle["image/svg+xml"]).get("aria-label")
    for name in ("grpo", "flowrl_paper", "flowrl"):
        assert f"{name}: " in label
    assert "β = 15, step 400" in label
    row = bundle["text/plain"].splitlines()[3].split()
    said = scrubber.measure()
    keys = ("effective", "kl_policy_target", "kl_target_policy", "reward")
    assert row[0] == "flowrl"
    assert [float(cell) for cell in row[1:]] == pytest.approx(
        [said[key] for key in keys], rel=2e-2
    )


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"objective": "sft"}, "objective"),
        ({"reward_scale": 10}, "try 8"),
        ({"reward_scale": float("nan")}, "reward_scale"),
        ({"step": 5}, "step"),
        ({"step": 410}, "step"),
        ({"step": 10.0}, "step"),
    ],
)
def test_bad_input(arguments, words):
    with pytest.raises(ValueError, match=words):
        RunScrubber(**arguments)


@pytest.mark.bad_input
def test_bad_values_from_the_browser_are_refused():
    scrubber = RunScrubber()
    for name, value in (("objective", "x"), ("reward_scale", 3.0), ("step", 3)):
        with pytest.raises(ValueError, match=name):
            setattr(scrubber, name, value)

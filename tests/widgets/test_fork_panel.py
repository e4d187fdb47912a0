"""A fork is the parent's policy under another algorithm, drawn on one clock."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
import torch

from flowrl_lab.plots.placement import place_page
from flowrl_lab.training.presets import preset
from flowrl_lab.training.run import Run
from flowrl_lab.widgets import ForkPanel, solution_map


def train_run(variant: str, steps: int = 12, **changes) -> Run:
    config = preset("landscape", variant, steps=steps, eval_every=3, **changes)
    run = Run(config)
    for _ in run:
        pass
    return run


@pytest.fixture(scope="module")
def trained() -> tuple[Run, Run]:
    return train_run("grpo"), train_run("kl_reinforce")


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch) -> None:
    monkeypatch.setattr(ForkPanel, "_kept", {})


@pytest.fixture
def panel(trained) -> ForkPanel:
    return ForkPanel(trained, variants=("flowrl", "kl_reinforce", "grpo"), steps=6)


def test_a_fork_equals_forking_by_hand(panel, trained):
    child = panel.fork("grpo", "flowrl", steps=5, seed=3)
    by_hand = trained[0].fork(
        algorithm="flowrl", steps=5, seed=3, eval_every=1, name="by hand"
    )
    start = by_hand.policy.logits.clone()
    assert torch.equal(start, trained[0].policy.logits)
    for _ in by_hand:
        pass
    assert torch.equal(child.policy.logits, by_hand.policy.logits)
    assert not torch.equal(child.policy.logits, start)
    assert child.config.seed == 3
    assert panel.runs["grpo → flowrl"] is child
    assert torch.equal(start, trained[0].policy.logits)  # the parent stays


def test_a_panel_run_again_still_has_its_forks(panel, trained):
    fork = panel.fork("grpo", "flowrl", steps=4)
    again = ForkPanel(trained, steps=6)
    assert again.runs["grpo → flowrl"] is fork
    assert again.records == panel.records
    assert "grpo → flowrl from step 12" in again.page().progress
    further = again.fork("grpo → flowrl", "grpo", steps=3)
    assert list(ForkPanel(trained).runs.values())[-1] is further
    assert list(ForkPanel(trained[0]).runs) == ["grpo"]  # other runs: another panel
    assert list(ForkPanel(trained).runs) == ["grpo", "kl_reinforce"]


def test_records_count_on_from_the_parent(panel):
    panel.fork("grpo", "flowrl")
    again = panel.fork("grpo → flowrl", "grpo", steps=4)
    names = ["grpo", "kl_reinforce", "grpo → flowrl", "grpo → flowrl → grpo"]
    assert list(panel.runs) == names
    steps = {
        name: [record.step for record in panel.records if record.run == name]
        for name in names
    }
    assert steps["grpo"] == list(range(13))
    assert steps["grpo → flowrl"] == list(range(12, 19))
    assert steps["grpo → flowrl → grpo"] == list(range(18, 23))
    assert again.records[0].step == 0  # the run itself keeps its own count
    ends = {record.run: record for record in panel.records if record.exact}
    before = next(r for r in panel.records if r.run == names[2] and r.exact)
    assert before.exact.kl_policy_target == pytest.approx(
        ends["grpo"].exact.kl_policy_target, rel=1e-6
    )
    assert solution_map(panel.records)._steps[-1] == 22


def test_the_same_fork_twice_gets_a_number(panel):
    first, second = (panel.fork("grpo", "flowrl", steps=2) for _ in range(2))
    assert list(panel.runs)[2:] == ["grpo → flowrl", "grpo → flowrl (2)"]
    assert torch.equal(first.policy.logits, second.policy.logits)


def test_nothing_of_the_old_algorithm_is_left_over(panel):
    parent = train_run("flowrl_paper", reward_scale=5.0)
    other = ForkPanel(parent, variants=("flowrl", "kl_reinforce"))
    raw = other.fork("flowrl_paper", "flowrl", steps=1).config
    assert (raw.reward_form, raw.length_normalize) == ("raw", False)
    assert raw.reward_scale == 5
    assert other.fork("flowrl_paper", "kl_reinforce", steps=1).config.kl_coef == 1 / 5
    assert panel.runs["kl_reinforce"].config.kl_coef == 1 / 15
    assert panel.fork("kl_reinforce", "grpo", steps=1).config.kl_coef == 0


def test_variants_may_be_settings_of_your_own(trained):
    variants = {
        "slower": {"learning_rate": 0.01},
        "penalised": {"algorithm": "grpo", "kl_coef": 0.1},
    }
    panel = ForkPanel(trained[1], variants)
    slower = panel.fork("kl_reinforce", "slower", steps=1).config
    assert slower.algorithm == "kl_reinforce"
    assert (slower.kl_coef, slower.learning_rate) == (1 / 15, 0.01)
    penalised = panel.fork("kl_reinforce", "penalised", steps=1).config
    assert (penalised.algorithm, penalised.kl_coef) == ("grpo", 0.1)


def test_still_form_overlays_all_and_marks_the_fork(panel):
    assert 'class="fork"' not in panel.still()[0]
    panel.fork("grpo", "flowrl")
    bundle = panel._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" not in bundle
    root = ElementTree.fromstring(bundle["image/svg+xml"])
    marks = [e for e in root.iter() if e.get("class") == "fork"]
    assert len(marks) == len(panel.metrics)
    label = root.get("aria-label")
    for name in panel.runs:
        assert name in label
        assert name in bundle["text/plain"]
    assert "grpo → flowrl from step 12" in bundle["text/html"]
    assert "of 100 effective" in label


def test_the_mark_stands_where_the_fork_begins(panel):
    panel.fork("grpo", "flowrl")
    root = ElementTree.fromstring(panel.still()[0])
    mark = next(e for e in root.iter() if e.get("class") == "fork")
    place = float(mark.get("d")[1:].split()[0])
    curves, box = place_page(panel.page()).curves[0]
    assert next(c.x[0] for c in curves.series if c.run == "grpo → flowrl") == 12
    low, high = curves.x_range
    share = (place - box.left) / box.width
    assert low + share * (high - low) == pytest.approx(12, abs=0.02)


def press(panel: ForkPanel, **choice) -> None:
    """What the browser's button sends."""
    panel._on_message(panel, {"ask": "fork", **choice}, [])


def test_the_button_does_what_the_method_does(panel):
    told = []
    panel.observe(lambda change: told.append(change["new"]), "_status")
    press(panel, parent="grpo", variant="flowrl", steps=5)
    assert told[0] == "training begins"
    assert told[-1] == "grpo → flowrl: 5 of 5 steps done"
    twin = ForkPanel(panel.runs["grpo"]).fork("grpo", "flowrl", steps=5)
    assert torch.equal(panel.runs["grpo → flowrl"].policy.logits, twin.policy.logits)


def test_an_error_of_the_button_is_said_beside_it(trained):
    panel = ForkPanel(trained, {"odd": {"algorithm": "odd"}})
    press(panel, parent="grpo", variant="odd", steps=5)
    assert "could not run" in panel._status
    assert "'odd'" in panel._status
    assert list(panel.runs) == ["grpo", "kl_reinforce"]


def test_an_interrupted_fork_is_kept(panel, monkeypatch):
    update = Run.__next__

    def interrupt_at_third(run):
        if run.step == 3:
            raise KeyboardInterrupt
        return update(run)

    monkeypatch.setattr(Run, "__next__", interrupt_at_third)
    press(panel, parent="grpo", variant="flowrl", steps=5)
    assert panel._status == "grpo → flowrl: 3 of 5 steps done"
    assert panel.runs["grpo → flowrl"].step == 3
    assert panel.records[-1].step == 15


def test_the_browser_gets_the_picture_and_the_menus(trained, monkeypatch):
    monkeypatch.setenv("FLOWRL_HEADLESS", "0")
    panel = ForkPanel(trained, variants=("flowrl",), steps=2)
    before = panel._picture
    assert "at the end grpo" in before
    panel.fork("grpo", "flowrl")
    state = panel.get_state()
    assert state["_names"] == ["grpo", "kl_reinforce", "grpo → flowrl"]
    assert state["_variant_names"] == ["flowrl"]
    assert state["_picture"] != before
    assert "grpo → flowrl from step 12" in state["_picture"]


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.full) for seed in range(1, 5))]
)
def test_what_can_be_recovered(seed):
    """From 25 GRPO steps FlowRL comes back; GRPO then undoes FlowRL's variety."""
    parent = train_run("grpo", 25, seed=seed)
    panel = ForkPanel(parent, variants=("flowrl", "grpo"))
    back = panel.fork("grpo", "flowrl", steps=100).evaluate()
    assert back.kl_policy_target < 0.02
    assert back.modes_covered == 1
    gone = panel.fork("grpo → flowrl", "grpo", steps=50).evaluate()
    assert gone.modes_covered < 0.5
    assert gone.kl_policy_target > 2


@pytest.mark.bad_input
def test_bad_input(trained):
    grpo = trained[0]
    fresh = Run(preset("landscape", "grpo"))
    for arguments, words in (
        ({"runs": []}, "is empty"),
        ({"runs": [preset("landscape", "grpo")]}, "holds a ExperimentConfig"),
        ({"runs": [grpo, grpo]}, "different names"),
        ({"runs": fresh}, "has not been trained"),
        ({"runs": grpo, "variants": ()}, "`variants` is empty"),
        ({"runs": grpo, "variants": "flowrl"}, "is the string"),
        ({"runs": grpo, "variants": ("flowr",)}, "flowrl"),
        ({"runs": grpo, "steps": 0}, "steps"),
        ({"runs": grpo, "metrics": ("kl",)}, "metrics"),
    ):
        with pytest.raises(ValueError, match=words):
            ForkPanel(**arguments)
    panel = ForkPanel(grpo)
    for arguments, words in (
        (("ppo", "flowrl"), "parent"),
        (("grpo", "ppo"), "variant"),
    ):
        with pytest.raises(ValueError, match=words):
            panel.fork(*arguments)
    with pytest.raises(ValueError, match="steps"):
        panel.fork("grpo", "flowrl", steps=-1)
    assert list(panel.runs) == ["grpo"]

"""Recorded runs: what is written is what is read, named by what distinguishes it."""

import dataclasses
import math

import pytest

from flowrl_lab import preset
from flowrl_lab.measuring.folder import RunResult, save_result
from flowrl_lab.measuring.recorded import (
    collect_runs,
    load_recorded,
    variant_label,
    write_recorded,
)
from flowrl_lab.training.run import Run


@pytest.fixture
def study(tmp_path):
    """Two finished landscape runs in one folder."""
    for seed in (0, 1):
        config = preset("landscape", "flowrl", steps=3, eval_every=1, seed=seed)
        run = Run(config, folder=tmp_path / "study" / f"seed{seed}")
        records = tuple(run)
        save_result(RunResult(dataclasses.asdict(config), records, {}), run.folder)
    return tmp_path / "study"


def test_a_recording_keeps_start_and_end_of_every_run(study, tmp_path, monkeypatch):
    collected = collect_runs([study])
    (tmp_path / "results").mkdir()
    write_recorded(tmp_path / "results" / "mine.jsonl", collected)
    monkeypatch.setenv("FLOWRL_DATA", str(tmp_path))
    loaded = load_recorded("mine")
    assert [result.seed for result in loaded] == [0, 1]
    for before, after in zip(collected, loaded, strict=True):
        assert [record.step for record in after.records] == [0, 3]
        assert after.name == "flowrl β=15"
        assert after.exact.kl_policy_target == before.exact.kl_policy_target
        assert after.exact.pass_at_k == before.exact.pass_at_k
        assert after.config == before.config


def test_nothing_is_overwritten(study, tmp_path):
    path = tmp_path / "one.jsonl"
    write_recorded(path, collect_runs([study]))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="exists already"):
        write_recorded(path, collect_runs([study]))
    assert path.read_bytes() == before


def test_labels_say_what_differs():
    labels = {
        variant_label(preset("make_number", variant, **changes))
        for variant, changes in (
            ("grpo", {}),
            ("grpo", {"kl_coef": 0.1}),
            ("grpo", {"entropy_coef": 0.01}),
            ("grpo", {"learning_rate": 1e-3}),
            ("flowrl", {"reward_scale": 4.0}),
            ("flowrl_paper", {}),
            ("flowrl", {"reward_form": "group_normalized"}),
            ("kl_reinforce", {"kl_coef": 0.125}),
        )
    }
    assert labels == {
        "grpo",
        "grpo kl=0.1",
        "grpo entropy=0.01",
        "grpo lr=0.001",
        "flowrl β=4",
        "flowrl paper form β=15",
        "flowrl z-scored sums β=8",
        "kl_reinforce β=8",
    }


def test_bad_folders_and_names_say_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no finished run"):
        collect_runs([tmp_path])
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "torn.jsonl").write_text('{"format": 1, "con')
    monkeypatch.setenv("FLOWRL_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"no recording 'other'; there are \['torn'\]"):
        load_recorded("other")
    with pytest.raises(ValueError, match="line 1, cannot be read"):
        load_recorded("torn")


def test_the_shipped_study_supports_the_claims_made_of_it():
    """README and notebook 07 say this; five seeds, held-out prompts, exact."""
    runs: dict[str, list[RunResult]] = {}
    for result in load_recorded("make_number"):
        runs.setdefault(result.name, []).append(result)

    def mean(name: str, field: str) -> float:
        assert len(runs[name]) >= 5
        return math.fsum(getattr(result.exact, field) for result in runs[name]) / len(
            runs[name]
        )

    ours, grpo = "flowrl β=8", "grpo"
    assert mean(ours, "accuracy") >= mean(grpo, "accuracy") - 0.02
    assert all(result.exact.pass_at_k[64] >= 0.99 for result in runs[ours])
    assert all(result.exact.lost_prompts == 0 for result in runs[ours])
    assert mean(ours, "effective_answers") >= 3 * mean(grpo, "effective_answers")
    for direction in ("kl_target_policy", "kl_policy_target"):
        assert mean(ours, direction) <= mean(grpo, direction) / 5
    budgets = {
        (r.config["steps"], r.config["prompts_per_step"], r.config["num_generations"])
        for results in runs.values()
        for r in results
    }
    assert len(budgets) == 1  # equal sampling budget

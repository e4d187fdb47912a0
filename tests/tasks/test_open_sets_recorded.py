"""What is said of the runs of a real language model is what was recorded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import fmean, stdev

import pytest

from flowrl_lab._files import data_path
from flowrl_lab.measuring.folder import RunResult
from flowrl_lab.measuring.recorded import load_recorded, load_replay, replay
from flowrl_lab.training.config import ExperimentConfig
from flowrl_lab.training.presets import preset

ROOT = Path(__file__).resolve().parents[2]
NAMES = {
    "GRPO": "grpo",
    "FlowRL": "flowrl",
    "KL-regularised REINFORCE": "kl_reinforce",
}


@pytest.fixture(name="runs", scope="module")
def fixture_runs() -> dict[str, list[RunResult]]:
    found: dict[str, list[RunResult]] = {}
    for run in load_recorded("open_sets"):
        found.setdefault(run.algorithm, []).append(run)
    return found


def ends(runs: list[RunResult], key: str) -> list[float]:
    """A figure of the last report of each run."""
    return [getattr(run.records[-1].exact, key) for run in runs]


def test_both_are_right_and_flowrl_uses_three_times_as_many_answers(runs):
    for name in ("grpo", "flowrl"):
        assert [run.seed for run in runs[name]] == [0, 1, 2]
        assert min(ends(runs[name], "accuracy")) >= 0.95
    ours, theirs = (ends(runs[n], "effective_answers") for n in ("flowrl", "grpo"))
    assert fmean(ours) >= 3 * fmean(theirs)


def test_the_runs_are_those_of_the_preset_and_have_one_budget(runs):
    for name, found in runs.items():
        for run in found:
            chosen = preset("open_sets", name, seed=run.seed)
            fields = json.loads(chosen.to_json())
            recorded = {**fields, **run.config}
            recorded["name"] = fields["name"] = ""
            del recorded["config_version"], fields["config_version"]
            assert ExperimentConfig(**recorded) == ExperimentConfig(**fields)
    shared = ("steps", "prompts_per_step", "num_generations", "learning_rate")
    budgets = {tuple(r.config[k] for k in shared) for f in runs.values() for r in f}
    assert len(budgets) == 1


def test_the_replay_shows_the_first_seed(runs):
    for recording in load_replay("open_sets"):
        name = recording.config["algorithm"]
        assert recording.config["seed"] == 0
        (run,) = (run for run in runs[name] if run.seed == 0)
        last, kept = recording.records[-1].exact, run.records[-1].exact
        assert repr(last) == repr(kept)  # NaN equals NaN
        assert any(record.snapshot is not None for record in recording.records)


def test_the_replay_says_where_log_z_is_from():
    played = {record.run for record in replay(load_replay("open_sets"), last_step=0)}
    assert played == {"grpo (recorded)", "flowrl group log Z (recorded)"}


def table_row(runs: list[RunResult]) -> list[str]:
    """The cells of the table in data/results/README.md."""
    cells = [str(len(runs))]
    for key, factor, digits in (
        ("accuracy", 100, 1),
        ("effective_answers", 1, 2),
        ("kl_policy_target", 1, 2),
    ):
        values = [factor * value for value in ends(runs, key)]
        cells.append(f"{fmean(values):.{digits}f}")
        if len(values) > 1:
            cells[-1] += f" ± {stdev(values):.{digits}f}"
    minutes = [run.environment["wall_seconds"] / 60 for run in runs]
    low, high = f"{min(minutes):.1f}", f"{max(minutes):.1f}"
    return [*cells, low if low == high else f"{low} to {high}"]


def test_the_table_is_what_was_recorded(runs):
    text = (data_path("results") / "README.md").read_text(encoding="utf-8")
    section = text.partition("## open_sets")[2].partition("\n## ")[0]
    for words, name in NAMES.items():
        if name in runs:
            (line,) = re.findall(rf"^\| {re.escape(words)} \|.*$", section, re.M)
            cells = [cell.strip() for cell in line.strip("|").split("|")[1:]]
            assert cells == table_row(runs[name]), words


def test_the_page_on_real_models_says_the_same(runs):
    page = ROOT / "docs" / "real_models.md"
    text = " ".join(page.read_text(encoding="utf-8").split())
    flowrl = "FlowRL, β = 6, log Z from the group"
    for words, name in (("GRPO", "grpo"), (flowrl, "flowrl")):
        right = 100 * fmean(ends(runs[name], "accuracy"))
        answers = fmean(ends(runs[name], "effective_answers"))
        assert f"| {words} | {right:.1f} % | {answers:.1f} |" in text

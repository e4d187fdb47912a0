"""The protocol for long answers: four runs, three lengths, five seeds."""

from __future__ import annotations

import pytest

from flowrl_lab import data_path
from flowrl_lab.measuring.fronts import moments, planned_tests, untrained
from flowrl_lab.measuring.protocol import (
    choose,
    load_curves,
    load_protocol,
    plan_search,
)
from flowrl_lab.tasks import load_task
from flowrl_lab.tasks.sums import LENGTHS


@pytest.fixture(name="protocol", scope="module")
def fixture_protocol():
    return load_protocol("long_answers")


def test_its_page_says_what_is_run(protocol, tmp_path):
    page = " ".join((data_path("study") / "PROTOCOL.md").read_text("utf-8").split())
    search = len(plan_search(protocol, list(protocol.families), tmp_path))
    report = protocol.count_runs() - search
    assert f"{search} runs of search and {report} of the report" in page
    settings, plan = protocol.settings, protocol.comparisons
    steps, asked = settings["steps"], settings["prompts_per_step"]
    group, every = settings["num_generations"], settings["eval_every"]
    assert f"{steps} steps of {asked} prompts × {group} completions" in page
    assert f"judged at {every} and {steps}" in page
    assert f"{settings['eval_prompts']} are judged" in page
    assert "(5e-4, 1e-3) and one seed (100)" in page
    assert protocol.search["learning_rates"] == [0.0005, 0.001]
    assert protocol.search["seeds"] == [100]
    count = len(plan["pairs"]) * len(plan["figures"]) * len(plan["moments"])
    assert f"({count} tests, Holm)" in page
    assert [f"sums_{n}" for n in LENGTHS.values()] == list(protocol.tasks)


def test_only_the_task_differs_between_the_lengths(protocol):
    """And all that is judged was neither trained on nor chosen on."""
    for name in protocol.tasks:
        task = load_task(name)
        assert min(len(task.prompts(s)) for s in ("validation", "test")) == 36
        for family in protocol.families:
            for cell in protocol.cells(family):
                config = protocol.config("report", name, cell, 1e-3, 0)
                first = protocol.config("report", protocol.tasks[0], cell, 1e-3, 0)
                assert config == first.replace(task=name)


def test_every_planned_run_is_recorded_and_nothing_else(protocol):
    starts = []
    for task in protocol.tasks:
        curves = load_curves(task, protocol)
        assert len(curves) == protocol.count_runs() / 3
        assert {choice.learning_rate for choice in choose(protocol, curves).values()}
        cells = moments(protocol, curves, "end")
        assert {len(moment.curves) for moment in cells.values()} == {5}
        assert len(cells) == 4 and len(planned_tests(protocol, curves)) == 20
        starts.append(untrained(curves))
    for key in ("accuracy", "effective_answers", "pass@64"):
        found = [start[key] for start in starts]
        assert max(found) < 1.02 * min(found)  # the lengths start alike

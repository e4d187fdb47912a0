"""The protocol for a real model: seven algorithms, three tasks, five seeds."""

from __future__ import annotations

import pytest

from flowrl_lab import data_path
from flowrl_lab.measuring.fronts import moments, spread_of, untrained
from flowrl_lab.measuring.protocol import load_curves, load_protocol, plan_search
from flowrl_lab.tasks import load_task
from flowrl_lab.training.presets import preset


def test_it_has_what_the_study_needs(tmp_path):
    protocol = load_protocol("real_models")
    assert len(protocol.families) == 7 and len(protocol.report["seeds"]) == 5
    assert protocol.count_runs() == 3 * 7 * (3 + 5)
    jobs = plan_search(protocol, list(protocol.families), tmp_path)
    assert len({job.folder for job in jobs}) == len(jobs) == 3 * 7 * 3
    assert {job.config.eval_split for job in jobs} == {"validation"}


def test_a_task_has_its_own_settings_and_all_else_is_shared():
    protocol = load_protocol("real_models")
    for task in protocol.tasks:
        for family in protocol.families:
            (cell,) = protocol.cells(family)
            config = protocol.config("report", task, cell, 1e-4, 0)
            own = protocol.task_settings.get(task, {})
            for name, value in (protocol.settings | own).items():
                if name not in protocol.families[family].at(cell.value):
                    assert getattr(config, name) == value
            assert config.model == preset(task, "grpo").model


def test_nothing_is_reported_on_what_settings_are_chosen_on_or_trained_on():
    protocol = load_protocol("real_models")
    for name in protocol.tasks:
        own = protocol.task_settings.get(name, {})
        task = load_task(name, **own.get("task_options", {}))
        parts = ("train", protocol.search["split"], protocol.report["split"])
        asked = [question for part in parts for question in task.prompts(part)]
        assert len(asked) == len(set(asked)), name


TITLES = {"grpo": "GRPO", "flowrl=6": "FlowRL"}


@pytest.mark.parametrize(
    "task, name", [("number_facts", "maths"), ("formulas", "code")]
)
def test_the_page_shows_what_is_recorded(task, name):
    page = (data_path("study").parents[1] / "docs" / "real_models.md").read_text(
        "utf-8"
    )
    protocol = load_protocol("real_models")
    curves = load_curves(task, protocol)
    start = untrained(curves)
    right, tries, answers = (
        start[key] for key in ("accuracy", "pass@16", "effective_answers")
    )
    row = f"| {name}, untrained | {right:.0%} | {tries:.0%} | {answers:.1f} |"
    assert row.replace("%", " %") in page
    cells = moments(protocol, curves, "end")
    assert {str(cell) for cell in cells} == set(TITLES)
    for cell, moment in cells.items():
        right, tries, answers = (
            spread_of(moment, key)
            for key in ("accuracy", "pass@16", "effective_answers")
        )
        row = [f"{name}, {TITLES[str(cell)]}"]
        row += [
            f"{100 * s.mean:.0f} ± {100 * s.deviation:.0f} %" for s in (right, tries)
        ]
        row += [f"{answers.mean:.1f} ± {answers.deviation:.1f}"]
        assert f"| {' | '.join(row)} |" in page


@pytest.mark.bad_input
def test_an_unknown_protocol_is_refused():
    with pytest.raises(ValueError, match="one of"):
        load_protocol("real")

"""The protocol: what it plans, how it chooses, what it keeps, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
from scipy.stats import ttest_1samp, ttest_ind

from flowrl_lab import __main__ as cli
from flowrl_lab._files import data_path
from flowrl_lab.measuring.fronts import (
    moments,
    planned_tests,
    protocol_table,
    training_paths,
    training_tests,
    untrained,
)
from flowrl_lab.measuring.protocol import (
    FIGURES,
    CellKey,
    Chosen,
    Curve,
    Protocol,
    add_curves,
    choose,
    load_curves,
    load_protocol,
    plan_report,
    plan_search,
    read_curves,
)
from flowrl_lab.measuring.significance import correct_by_holm, welch_p
from flowrl_lab.tasks import load_task
from flowrl_lab.tasks.programs import intended_meaning

STEPS = (0, 25, 50)


def make_curve(cell, *, part="report", rate=1e-3, seed=0, accuracy=(0.4, 0.5, 0.6)):
    family, _, value = cell.partition("=")
    key = CellKey(family, float(value) if value else None)
    figures = {name: tuple(1.0 + seed + step for step in STEPS) for name in FIGURES}
    figures |= {"accuracy": accuracy, "log_z_learned": (math.nan,) * 3}
    return Curve(
        1, part, "make_number", key, rate, seed, STEPS, figures, {"device": "cpu"}
    )


# ------------------------------------------------------------------- what is planned


@pytest.mark.parametrize("small", [False, True])
def test_every_family_has_the_same_number_of_tries(small, tmp_path):
    protocol = load_protocol(small=small)
    families = list(protocol.families)
    jobs = plan_search(protocol, families, tmp_path)
    tried: dict[tuple, list] = {}
    for job in jobs:
        family = job.config.name.partition("=")[0]
        tries = tried.setdefault((job.config.task, family), [])
        tries.append((job.config.learning_rate, job.config.seed))
        assert job.config.eval_split == "validation"
    assert len(tried) == len(protocol.tasks) * len(families)
    assert len({tuple(tries) for tries in tried.values()}) == 1
    chosen = dict.fromkeys(tried, Chosen(1e-3, 50, 0.5))
    report = plan_report(protocol, families, chosen, tmp_path)
    assert {job.config.eval_split for job in report} == {"test"}
    assert not {j.config.seed for j in report} & {j.config.seed for j in jobs}
    assert len({job.folder for job in jobs + report}) == len(jobs) + len(report)
    assert len(jobs) + len(report) == protocol.count_runs()


def test_the_page_says_what_the_file_says():
    protocol = load_protocol()
    text = " ".join((data_path("study") / "PROTOCOL.md").read_text("utf-8").split())
    search = len(protocol.families) * 9 * len(protocol.tasks)
    assert (
        f"{search} runs of search and {protocol.count_runs() - search} of the" in text
    )
    assert f"(now {protocol.version})" in text
    for family in protocol.families.values():
        if family.dial:
            shown = ", ".join(
                f"**{v:g}**" if v == family.middle else f"{v:g}" for v in family.values
            )
            assert shown in text, family.key
    plan = protocol.comparisons
    count = len(plan["pairs"]) * len(plan["figures"]) * len(plan["moments"])
    assert f"= {count} tests a task" in text
    known = {str(cell) for key in protocol.families for cell in protocol.cells(key)}
    assert {name for pair in plan["pairs"] for name in pair} <= known


@pytest.mark.parametrize("name", ["make_number", "programs"])
def test_the_held_out_prompts_are_cut_in_two(name):
    task = load_task(name)
    train, heldout, validation, test = (
        set(task.prompts(split)) for split in ("train", "heldout", "validation", "test")
    )
    assert validation | test == heldout and not validation & test
    assert not train & heldout and min(len(validation), len(test)) >= 128
    if name == "programs":
        asked = [
            {intended_meaning(p).simplest for p in prompts}
            for prompts in (train, validation, test)
        ]
        assert not asked[0] & asked[1] and not asked[0] & asked[2]
        assert not asked[1] & asked[2]


@pytest.mark.bad_input
def test_a_task_without_these_halves_refuses_them():
    with pytest.raises(ValueError, match="validation"):
        load_task("landscape").prompts("validation")
    with pytest.raises(ValueError, match=r"one of .*'test'"):
        load_task("make_number").prompts("tset")


# ------------------------------------------------------------------ how it chooses


def searched(protocol: Protocol, best_rate: float) -> list[Curve]:
    return [
        make_curve(
            "grpo",
            part="search",
            rate=rate,
            seed=seed,
            accuracy=(0.4, 0.7 if rate == best_rate else 0.5, 0.6),
        )
        for rate in protocol.search["learning_rates"]
        for seed in protocol.search["seeds"]
    ]


def test_the_best_pair_of_rate_and_step_on_validation_is_taken():
    protocol = load_protocol()
    curves = searched(protocol, 0.002)
    (key, found), *others = choose(protocol, curves).items()
    assert key == ("make_number", "grpo") and not others
    assert (found.learning_rate, found.step) == (0.002, 25)
    assert found.accuracy == pytest.approx(0.7)
    level = [dataclasses.replace(c, figures=curves[0].figures) for c in curves]
    assert choose(protocol, level)["make_number", "grpo"].learning_rate == 0.0005
    assert choose(protocol, curves[:-1]) == {}  # a run is missing: nothing is chosen
    report = [make_curve("grpo", seed=s, accuracy=(0.4, 0.1, 0.99)) for s in range(5)]
    assert choose(protocol, curves + report) == choose(protocol, curves)


def test_incomplete_cells_are_named_and_not_shown():
    protocol = load_protocol()
    curves = searched(protocol, 0.001)
    curves += [make_curve("grpo", seed=seed) for seed in range(5)]
    curves += [make_curve("ppo", seed=seed) for seed in range(5)]  # not searched
    curves += [make_curve("pass_at_k=4", seed=seed) for seed in range(4)]
    at = {when: moments(protocol, curves, when) for when in ("chosen", "end")}
    assert [(str(m.cell), m.step) for m in at["chosen"].values()] == [("grpo", 25)]
    assert [m.step for m in at["end"].values()] == [50]
    assert untrained(curves)["accuracy"] == 0.4
    table, _, missing = protocol_table(protocol, curves).rpartition("incomplete")
    assert table.split("\n")[1].startswith("untrained")
    assert "ppo," in missing and "pass_at_k=4" in missing and "grpo," not in missing
    with pytest.raises(ValueError, match="incomplete"):
        planned_tests(protocol, curves)


def test_a_path_over_training_starts_untrained_and_names_its_chosen_step():
    protocol = load_protocol()
    curves = searched(protocol, 0.001)
    assert training_paths(protocol, curves, ["grpo"]) == ({}, {})  # no report yet
    curves += [make_curve("grpo", seed=seed) for seed in range(5)]
    curves += [make_curve("pass_at_k=4", seed=seed) for seed in range(4)]
    paths, labels = training_paths(protocol, curves, ["grpo", "pass_at_k=4"])
    answers, accuracy = paths["grpo"]
    assert answers == [3.0, 28.0, 53.0]  # 1 + seed + step, over the seeds 0 to 4
    assert accuracy == pytest.approx([0.4, 0.5, 0.6])
    assert paths["untrained"] == ([3.0], accuracy[:1]) and len(paths) == 2
    assert labels == {"grpo": ["", "25", ""]}


# --------------------------------------------------------------- more, or chance?


def test_welch_and_holm():
    first, second = [0.5, 0.6, 0.9], [0.1, 0.2, 0.25, 0.3]
    expected = ttest_ind(first, second, equal_var=False).pvalue
    assert welch_p(first, second) == pytest.approx(expected)
    assert welch_p([0.5, 0.5], [0.5, 0.5]) == 1.0
    assert welch_p([0.5, 0.5], [0.6, 0.6]) == 0.0
    known = [0.4, 0.4 + 1e-9, 0.4]  # the untrained model, to rounding
    assert welch_p(first, known) == pytest.approx(ttest_1samp(first, 0.4).pvalue)
    assert welch_p(known, first) == welch_p(first, known)
    # 0.01 x 4, 0.02 x 3, 0.03 x 2, and none below the one before
    assert correct_by_holm([0.03, 0.01, 0.9, 0.02]) == pytest.approx(
        [0.06, 0.04, 0.9, 0.06]
    )
    with pytest.raises(ValueError, match="two or more"):
        welch_p([0.5], first)


def test_the_planned_tests_are_made_together():
    protocol = load_protocol()
    cells = {name for pair in protocol.comparisons["pairs"] for name in pair}
    curves = [
        dataclasses.replace(curve, cell=CellKey(family))
        for family in {cell.partition("=")[0] for cell in cells}
        for curve in searched(protocol, 0.001)
    ]
    for cell in sorted(cells):
        high = 0.9 if cell == "flowrl=8" else 0.5
        curves += [
            make_curve(cell, seed=s, accuracy=(0.4, high + s / 100, high + s / 100))
            for s in range(5)
        ]
    tests = planned_tests(protocol, curves)
    assert len(tests) == 48
    ahead = [t for t in tests if t.figure == "accuracy" and t.first == "flowrl=8"]
    assert all(t.difference > 0 and t.p_holm < 0.05 for t in ahead)
    others = [t for t in tests if t not in ahead]
    assert all(t.p_holm == 1.0 for t in others)
    # without one family: fewer tests, none of them easier
    assert planned_tests(protocol, curves, partly=True) == tests
    some = [curve for curve in curves if curve.cell.family != "grpo"]
    fewer = planned_tests(protocol, some, partly=True)
    assert len(fewer) == 48 - 3 * 4  # grpo is in three pairs
    whole = {(t.first, t.second, t.figure, t.when): t for t in tests}
    for test in fewer:
        same = whole[test.first, test.second, test.figure, test.when]
        assert test.p == same.p and test.p_holm == min(1.0, 48 * test.p) >= same.p_holm
    # against the untrained model: at both moments, accuracy and pass@64, one sample
    middles = {str(CellKey(f.key, f.middle)) for f in protocol.families.values()}
    trained = training_tests(protocol, curves, partly=True)
    assert {t.first for t in trained} == middles & cells
    assert len(trained) == 4 * len(middles & cells)
    best = next(t for t in trained if t.first == "flowrl=8" and t.figure == "accuracy")
    known = ttest_1samp([0.5 + s / 100 for s in range(5)], 0.0).pvalue
    assert best.second == "untrained" and best.difference == pytest.approx(0.52)
    assert best.p == pytest.approx(known)
    assert best.p_holm == pytest.approx(4 * len(middles) * known)
    with pytest.raises(ValueError, match="dapo_kl"):
        training_tests(protocol, curves)


# --------------------------------------------------------------------- what is kept


def test_curves_come_back_from_their_file(tmp_path):
    path = tmp_path / "curves" / "make_number.jsonl"
    assert add_curves(path, []) == 0 and not path.exists()  # stopped before any run
    first = [make_curve("grpo", seed=1), make_curve("flowrl=8", seed=0)]
    assert add_curves(path, first) == 2
    other = make_curve("grpo", seed=1, accuracy=(0.0, 0.0, 0.0))
    assert add_curves(path, [other, make_curve("grpo", seed=2)]) == 1
    found = {(str(c.cell), c.seed): c for c in read_curves(path)}
    assert set(found) == {("grpo", 1), ("grpo", 2), ("flowrl=8", 0)}
    assert found["grpo", 1].at("accuracy", 50) == 0.6  # what is there stays
    assert math.isnan(found["grpo", 1].at("log_z_learned", 50))
    assert len(path.read_text().splitlines()[0]) < 1500


@pytest.mark.bad_input
def test_runs_of_another_version_are_refused_by_name(tmp_path, monkeypatch):
    shutil.copytree(data_path("study"), tmp_path / "study")
    (tmp_path / "results").mkdir()
    monkeypatch.setenv("FLOWRL_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="no recorded runs"):
        load_curves("make_number")
    path = tmp_path / "results" / "curves" / "make_number.jsonl"
    old = dataclasses.replace(make_curve("grpo", seed=3), version=7)
    add_curves(path, [make_curve("grpo"), old])
    with pytest.raises(ValueError, match=r"1 runs .*grpo seed 3 \(version 7\)"):
        load_curves("make_number")
    path.write_text("{}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 1"):
        load_curves("make_number")


def small_protocol(folder) -> None:
    """Two families, two steps a run, in a data folder of their own."""
    for name in ("study", "make_number_tiny_lm"):
        shutil.copytree(data_path(name), folder / name)
    path = folder / "study" / "protocol.json"
    content = json.loads(path.read_text("utf-8"))
    content["tasks"] = ["make_number"]
    few = {"steps": 2, "eval_every": 1, "eval_prompts": 4, "prompts_per_step": 2}
    content["settings"] |= few
    content["search"] |= {"seeds": [100], "learning_rates": [0.001]}
    content["report"]["seeds"] = [0, 1]
    dials = {"grpo": [], "flowrl": [8]}
    families = [row for row in content["families"] if row["key"] in dials]
    content["families"] = [row | {"values": dials[row["key"]]} for row in families]
    content["small"]["families"] = {"grpo": []}
    path.write_text(json.dumps(content), encoding="utf-8")


def test_a_part_of_it_is_named_by_tasks_and_families():
    protocol = load_protocol()
    part = protocol.only(["grpo", "programs", "flowrl"])
    assert part.tasks == ("programs",) and list(part.families) == ["grpo", "flowrl"]
    jobs = plan_search(part, ["grpo"], Path())
    assert jobs == [
        job
        for job in plan_search(protocol, ["grpo"], Path())
        if job.config.task == "programs"
    ]
    assert protocol.only([]) == protocol
    assert protocol.only(["grpo"]).tasks == protocol.tasks


@pytest.mark.bad_input
def test_a_part_that_it_does_not_have_is_refused_before_anything_is_written(
    tmp_path, capsys
):
    out = tmp_path / "out"
    words = ["study", "--protocol", "--only", "grop", "--out", str(out)]
    assert cli.main(words) == 2
    assert "did you mean 'grpo'" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.full
def test_the_command_searches_sweeps_and_goes_on(tmp_path, monkeypatch, capsys):
    data, out = tmp_path / "data", tmp_path / "out"
    (data / "results").mkdir(parents=True)
    small_protocol(data)
    monkeypatch.setenv("FLOWRL_DATA", str(data))
    command = ["study", "--protocol", "--jobs", "1", "--out", str(out)]
    assert cli.main([*command, "--only", "make_number,grpo"]) == 0
    assert "incomplete, not shown: flowrl=8" in capsys.readouterr().out
    assert cli.main([*command, "--resume"]) == 0
    said = capsys.readouterr().out
    assert "untrained" in said and "flowrl=8" in said and "incomplete" not in said
    kept = read_curves(out / "curves" / "make_number.jsonl")
    assert sorted((c.part, str(c.cell), c.seed) for c in kept) == [
        ("report", "flowrl=8", 0),
        ("report", "flowrl=8", 1),
        ("report", "grpo", 0),
        ("report", "grpo", 1),
        ("search", "flowrl=8", 100),
        ("search", "grpo", 100),
    ]
    assert {c.steps for c in kept} == {(0, 1, 2)}
    splits = {c.part: c.at("accuracy", 0) for c in kept}
    assert splits["search"] != splits["report"]  # other prompts
    assert cli.main([*command, "--resume", "--publish"]) == 0  # nothing left to do
    assert "6 runs added" in capsys.readouterr().out
    assert cli.main([*command[:-1], str(tmp_path / "again")]) == 0
    assert "2 runs are kept already" in capsys.readouterr().out
    assert not (tmp_path / "again" / "search").exists()  # published: not run again
    assert cli.main([*command, "--small", "--resume"]) == 2
    assert "not mixed" in capsys.readouterr().err
    assert cli.main([*command, "--small", "--publish", "--resume"]) == 2
    assert "leave out --small or --publish" in capsys.readouterr().err

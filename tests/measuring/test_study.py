"""The study: its files, its runs, what is stored of them, and a power cut half-way."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flowrl_lab import __main__ as cli
from flowrl_lab._files import data_path
from flowrl_lab.measuring.folder import is_finished
from flowrl_lab.measuring.pages import render_study
from flowrl_lab.measuring.recorded import load_recorded, recorded_names
from flowrl_lab.measuring.runner import train_into
from flowrl_lab.measuring.study import (
    TOLERANCE,
    Cell,
    compare_with_stored,
    differing_settings,
    load_cells,
    load_search,
    plan_runs,
    plan_search,
    rank_tries,
    stored_result,
    write_cell,
)
from flowrl_lab.training.config import ExperimentConfig
from flowrl_lab.training.run import Run, train

ROOT = Path(__file__).resolve().parents[2]
TOY = {
    "task": "landscape",
    "steps": 50,
    "prompts_per_step": 1,
    "num_generations": 16,
    "learning_rate": 0.1,
    "eval_every": 50,
}


def make_study(folder: Path, **cells: dict) -> Path:
    """A data folder with one small study, "toy"."""
    for name, settings in cells.items():
        path = folder / "study" / "toy" / f"{name}.json"
        write_cell(path, ExperimentConfig(**TOY | settings))
    (folder / "results").mkdir()
    return folder


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Two cells; ``data_path`` leads to them."""
    data = make_study(
        tmp_path / "data",
        ours={"algorithm": "flowrl", "name": "ours β=15"},
        theirs={"algorithm": "grpo", "name": "theirs"},
    )
    monkeypatch.setenv("FLOWRL_DATA", str(data))
    return data


def _silent(_record) -> None:
    """Takes a record and says nothing."""


def losses_of(folder: Path) -> list[float]:
    lines = (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines][1:]


# ------------------------------------------------------------- the shipped study


def test_every_shipped_cell_is_a_run_and_each_study_is_fair():
    cells = load_cells()
    studies = {cell.study for cell in cells}
    assert {"landscape", "make_number", "make_number_graded"} <= studies
    shared = (
        "task",
        "task_options",
        "steps",
        "prompts_per_step",
        "num_generations",
        "temperature",
        "eval_prompts",
        "lora_rank",
        "lora_alpha",
    )
    for study in studies:
        configs = [cell.config for cell in cells if cell.study == study]
        assert len(configs) >= 5
        for name in shared:  # equal sampling budget, judged alike
            assert len({str(getattr(config, name)) for config in configs}) == 1


def test_what_is_stored_was_made_by_the_cells():
    """Every stored run has the settings of its cell's file; five seeds each."""
    cells = {(cell.study, cell.label): cell for cell in load_cells()}
    stored = [name for name in recorded_names() if (data_path("study") / name).is_dir()]
    assert {"landscape", "make_number"} <= set(stored)
    seeds: dict[tuple[str, str], list[int]] = {}
    for study in stored:
        for run in load_recorded(study):
            cell = cells[study, run.name]
            assert differing_settings(cell, run) == {}, cell.key
            seeds.setdefault((study, run.name), []).append(run.seed)
            assert run.environment["versions"]["torch"] and run.environment["device"]
            assert run.wall_seconds > 0
    for key, found in seeds.items():
        assert sorted(found) == [0, 1, 2, 3, 4], key


def test_cells_take_what_their_search_found():
    """The stored tries, and the try with the highest training reward, by hand."""
    for path in data_path("study").glob("*/_search.json"):
        study = path.parent.name
        stored = data_path("results") / f"{study}_tuning.json"
        if not stored.is_file():
            continue
        tries = json.loads(stored.read_text(encoding="utf-8"))["tries"]
        cells = {cell.name: cell.config for cell in load_cells([study])}
        for name in {row["cell"] for row in tries}:
            mine = [row for row in tries if row["cell"] == name]
            best = max(mine, key=lambda row: row["train_reward"])
            assert [row["taken"] for row in mine] == [row is best for row in mine]
            assert getattr(cells[name], best["setting"]) == best["value"], name
        assert load_search(study).tries


@pytest.mark.full
def test_a_cell_gives_its_stored_result_again(capsys):
    """What CI does for one cheap cell; make_number's take minutes."""
    assert cli.main(["study", "--check", "landscape/flowrl", "--seeds", "3,"]) == 0
    printed = capsys.readouterr().out
    assert "landscape/flowrl, seed 3" in printed
    assert printed.count("agrees") == len(TOLERANCE) and "DIFFERS" not in printed


# ------------------------------------------------------------------- running it


@pytest.mark.full
@pytest.mark.skipif(os.name != "posix", reason="kills a group of processes")
@pytest.mark.usefixtures("toy")
def test_a_study_killed_half_way_goes_on_without_losing_or_repeating(tmp_path):
    out = tmp_path / "out"
    words = ["study", "--only", "toy", "--seeds", "2", "--jobs", "1", "--out", str(out)]
    run = subprocess.Popen(
        [sys.executable, "-m", "flowrl_lab", *words],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    jobs = plan_runs(load_cells(["toy"]), (0, 1), out)
    deadline = time.monotonic() + 300
    while not any(is_finished(job.folder) for job in jobs):
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGKILL)  # the parent and its workers, at once
    run.wait()
    finished = [job.folder for job in jobs if is_finished(job.folder)]
    assert 1 <= len(finished) < 4
    before = {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for folder in finished
        for path in folder.iterdir()
    }
    assert cli.main(words) == 2  # not by accident over the old one
    assert cli.main([*words, "--resume"]) == 0
    for path, (content, changed) in before.items():
        assert (path.read_bytes(), path.stat().st_mtime_ns) == (content, changed)
    lines = (out / "results" / "toy.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert sorted((row["config"]["name"], row["config"]["seed"]) for row in rows) == [
        (name, seed) for name in ("ours β=15", "theirs") for seed in (0, 1)
    ]
    for job in jobs:  # the same steps as if nothing had happened
        assert losses_of(job.folder) == [r.loss for r in train(job.config)][1:]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "ours β=15" in page and "theirs" in page


def test_publishing_adds_and_never_replaces(toy, tmp_path, capsys):
    """Finished runs are taken as they are, so that nothing is trained twice here."""

    def publish(only: str, seeds: range, folder: Path) -> int:
        for job in plan_runs(load_cells([only]), seeds, folder):
            run = Run(job.config, folder=job.folder)
            assert train_into(run, lambda: False, _silent)
        words = ["--only", only, "--seeds", str(len(seeds)), "--out", str(folder)]
        return cli.main(["study", *words, "--resume", "--publish"])

    assert publish("toy/theirs", range(1), tmp_path / "a") == 0
    path = toy / "results" / "toy.jsonl"
    first = path.read_text(encoding="utf-8")
    assert publish("toy", range(2), tmp_path / "b") == 0
    assert path.read_text(encoding="utf-8").startswith(first)
    stored = load_recorded("toy")
    assert sorted((run.name, run.seed) for run in stored) == [
        ("ours β=15", 0),
        ("ours β=15", 1),
        ("theirs", 0),
        ("theirs", 1),
    ]
    assert "3 runs added" in capsys.readouterr().out
    assert cli.main(["study", "--list"]) == 0
    assert re.search(r"toy/ours .* 2 stored", capsys.readouterr().out)
    # a stored figure that no longer comes out is found
    changed = dataclasses.replace(
        stored[0].exact, accuracy=stored[0].exact.accuracy - 0.2
    )
    last = dataclasses.replace(stored[0].records[-1], exact=changed)
    tampered = dataclasses.replace(stored[0], records=(stored[0].records[0], last))
    wrong = [
        row.metric for row in compare_with_stored(tampered, stored[0]) if not row.agrees
    ]
    assert wrong == ["accuracy"]


def test_a_search_takes_the_highest_training_reward(toy, tmp_path):
    search = {
        "settings": {"steps": 12, "seed": 100, "eval_every": 12},
        "last_steps": 4,
        "tries": {"ours": {"learning_rate": [1e-6, 0.3]}},
    }
    (toy / "study" / "toy" / "_search.json").write_text(json.dumps(search))
    tries = plan_search(load_cells(["toy"]), tmp_path)
    assert [(t.cell, t.value, t.job.config.learning_rate) for t in tries] == [
        ("ours", 1e-6, 1e-6),
        ("ours", 0.3, 0.3),
    ]
    assert {t.job.config.steps for t in tries} == {12}
    for attempt in tries:
        run = Run(attempt.job.config, folder=attempt.job.folder)
        assert train_into(run, lambda: False, _silent)
    rows = rank_tries(tries, load_search("toy").last_steps)
    assert [row["taken"] for row in rows] == [False, True]  # the other one stood still
    for row, attempt in zip(rows, tries, strict=True):
        rewards = [r.reward for r in train(attempt.job.config)][-4:]
        assert row["train_reward"] == pytest.approx(sum(rewards) / 4)
    with pytest.raises(ValueError, match="no search covers"):
        plan_search(load_cells(["toy/theirs"]), tmp_path)


# --------------------------------------------------------------------- bad input


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--only", "toi", "--out", "x"], "did you mean toy"),
        (["--only", "toy/our", "--out", "x"], "did you mean toy/ours"),
        (["--check", "toy"], "names 2 cells"),
        (["--check", "toy/ours"], "no stored run of toy/ours with seed 0"),
        (["--only", "toy"], "--out is missing"),
        (["--jobs", "0", "--out", "x"], "--jobs is 0"),
        (["--seeds", "none", "--out", "x"], "--seeds is 'none'"),
        (["--tune", "--out", "x"], "has no _search.json"),
    ],
)
@pytest.mark.usefixtures("toy")
def test_wrong_words_are_refused_before_any_work(
    tmp_path, monkeypatch, capsys, words, expected
):
    if words[0] == "--check" and expected.startswith("no stored"):
        words = [*words, "--seeds", "0,"]
    monkeypatch.chdir(tmp_path)
    assert cli.main(["study", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and expected in error
    assert not (tmp_path / "x").exists()


@pytest.mark.bad_input
def test_files_that_cannot_be_cells_are_named(toy):
    folder = toy / "study" / "toy"
    write_cell(folder / "twin.json", ExperimentConfig(**TOY, name="theirs"))
    with pytest.raises(ValueError, match=r"toy/theirs and toy/twin .*Fix:"):
        load_cells()
    (folder / "twin.json").write_text('{"config_version": 1, "stepps": 3}')
    with pytest.raises(ValueError, match=r"twin\.json.*did you mean 'steps'"):
        load_cells()


@pytest.mark.usefixtures("toy")
def test_a_page_of_several_studies_opens_offline(tmp_path):
    (cell,) = load_cells(["toy/ours"])
    run = Run(cell.config.replace(steps=4), folder=tmp_path / "run")
    train_into(run, lambda: False, _silent)
    from flowrl_lab.measuring.folder import load_result

    runs = [load_result(tmp_path / "run")]
    page = render_study({"one": runs, "two & three": runs}, title="All", command="go")
    assert page.count("<table>") >= 8 and "two &amp; three" in page
    assert not re.search(r"""(src|href)=["'](?!#)""", page)
    for anchor in re.findall(r'href="#([^"]+)"', page):
        assert f'id="{anchor}"' in page
    with pytest.raises(ValueError, match="runs in each"):
        render_study({"one": runs, "empty": []}, title="All")


def test_tolerances_are_the_larger_of_two():
    stored = stored_result(Cell("make_number", "x", _config("grpo")), 0)
    rows = {row.metric: row for row in compare_with_stored(stored, stored)}
    assert all(row.agrees and row.now == row.stored for row in rows.values())
    assert rows["accuracy"].allowed == 0.03
    answers = stored.exact.effective_answers
    assert rows["effective_answers"].allowed == max(0.3, 0.2 * answers)


def _config(name: str) -> ExperimentConfig:
    return ExperimentConfig(task="make_number", algorithm="grpo", name=name)

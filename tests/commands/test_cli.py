"""The command line: what it writes, what it keeps, and how it says no."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from llm_models import model_folder

from flowrl_lab import __main__ as cli
from flowrl_lab._files import hold_folder
from flowrl_lab.commands import COMMANDS, doctor, settings
from flowrl_lab.integrations import TRACKERS, trackers
from flowrl_lab.measuring.folder import is_finished, load_result
from flowrl_lab.measuring.progress import ProgressLine, describe_step
from flowrl_lab.measuring.runner import Job, prepare_run, run_jobs, train_into
from flowrl_lab.plots.panels import format_seconds
from flowrl_lab.tasks import TASKS
from flowrl_lab.tasks.real import TEXT_TASKS
from flowrl_lab.training.records import make_record
from flowrl_lab.training.run import Run

ROOT = Path(__file__).resolve().parents[2]
SHORT = ["--task", "landscape", "--steps", "6", "--set", "eval_every=3"]
FRAIL = """
from flowrl_lab import text_task

calls, limit = [], 6


def reward(completions, **_more):
    calls.append(1)
    if len(calls) > limit:
        raise RuntimeError("too late")
    return [float(len(one)) for one in completions]


task = text_task(["a:", "b:"], reward, max_completion_tokens=3)
"""
SMALL = ["--set", "num_generations=8", "--set", "eval_every=1000"]
posix = pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to a process")


def records_of(folder: Path) -> list[dict]:
    """Saved records without the clock."""
    lines = (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [{k: repr(v) for k, v in row.items() if k != "seconds"} for row in rows]


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    """Every file below a folder: bytes and time of the last change."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def config_for(words: list[str], spec: str = "flowrl", seed: int = 0):
    args = cli.build_parser().parse_args(["train", "--out", "unused", *words])
    return settings.build_config(args, spec, seed)


# -------------------------------------------------------------------------- help


def test_help_imports_nothing_heavy():
    code = (
        "import sys, flowrl_lab.__main__ as m; m.build_parser().format_help();"
        "print(sorted({'torch', 'numpy', 'transformers', 'plotly'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"]])
def test_help_ends_well(words, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 0
    assert "usage: python -m flowrl_lab" in capsys.readouterr().out


def test_help_lists_every_task_and_every_tracker(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    said = capsys.readouterr().out
    assert tuple(trackers.TRACKERS) == TRACKERS
    for name in (*TASKS, *TEXT_TASKS, *TRACKERS, "package.module:name"):
        assert name in said


def test_a_tracker_gets_every_step_and_a_resumed_run_a_place_of_its_own(tmp_path):
    words = ["train", *SHORT, *SMALL, "--out", str(tmp_path / "run")]
    assert cli.main([*words, "--tracker", "jsonl"]) == 0
    rows = (tmp_path / "run" / "jsonl" / "steps.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(7))
    assert json.loads(rows[3])["sampled/distinct"] >= 0
    run = Run(config_for(SHORT), folder=tmp_path / "half")
    next(run), next(run)
    run.save(tmp_path / "half")
    words = ["train", *SHORT, "--out", str(tmp_path / "half"), "--resume"]
    assert cli.main([*words, "--tracker", "csv"]) == 0
    assert (tmp_path / "half" / "csv-from-step-1" / "steps.csv").is_file()


def test_a_reward_that_fails_says_what_is_kept_and_goes_on(
    tmp_path, capsys, monkeypatch
):
    """The task in a file beside, named by its import path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "frail.py").write_text(FRAIL)
    words = ["train", "--task", "frail:task", "--steps", "4", "--out", "run"]
    for one in (f"model={model_folder()}", "lora_rank=2", "prompts_per_step=2"):
        words += ["--set", one]
    words += ["--set", "num_generations=2"]
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert "raised RuntimeError: too late for the prompt" in said
    assert "The run keeps its 2 steps, saved in run" in said
    sys.modules["frail"].limit = 1000
    assert cli.main([*words, "--resume"]) == 0
    assert "(untrained " in capsys.readouterr().out


# --------------------------------------------------------------------- bad input


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--task", "landscap"], "landscape"),
        (["--algorithm", "flowrll"], "flowrl"),
        (["--set", "lerning_rate=1"], "learning_rate"),
        (["--set", "learning_rate"], "KEY=VALUE"),
        (["--set", "learning_rate=fast"], "learning_rate"),
        (["--set", "seed=3"], "--seed"),
        (["--set", "task_options.variety=1"], "variety"),
        (["--steps", "0"], "steps"),
        (["--set", "temperature=-1"], "temperature"),
    ],
)
def test_wrong_input_is_one_clear_line(words, expected, tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main(["train", "--out", str(out), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert expected in error
    assert not out.exists()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--seeds", "0"], "--seeds"),
        (["--seeds", "two"], "--seeds"),
        (["--seeds", "-1,2"], "--seeds"),
        (["--jobs", "0"], "--jobs"),
        (["--algorithms", ","], "--algorithms"),
        (["--algorithms", "grpo,flowrl,grpo"], "twice"),
        (["--algorithms", "grpo,flowrl:reward_scal=5"], "reward_scale"),
    ],
)
def test_a_comparison_is_checked_before_it_starts(words, expected, tmp_path, capsys):
    out = tmp_path / "all"
    words = [f"{words[0]}={words[1]}"]
    assert cli.main(["compare", "--out", str(out), *SHORT, *words]) == 2
    assert expected in capsys.readouterr().err
    assert not out.exists()


def test_unknown_command_offers_the_closest(capsys):
    assert cli.main(["trian"]) == 2
    assert "did you mean train?" in capsys.readouterr().err


@pytest.mark.bad_input
def test_debug_shows_where_it_went_wrong(tmp_path):
    with pytest.raises(ValueError, match="landscape"):
        cli.main(
            ["--debug", "train", "--task", "landscap", "--out", str(tmp_path / "a")]
        )


# ---------------------------------------------------------------------- settings


def test_settings_are_read_as_json_or_text():
    pairs = [
        "learning_rate=1e-3",
        "length_normalize=true",
        "task_options.variant=x",
        "task_options.reward_scale=2",
        "name=my run",
        "eval_every=4",
    ]
    assert settings.parse_settings(pairs) == {
        "learning_rate": 1e-3,
        "length_normalize": True,
        "task_options": {"variant": "x", "reward_scale": 2},
        "name": "my run",
        "eval_every": 4,
    }


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", [0, 1, 2]), ("4,2,4", [4, 2]), ("7,", [7])]
)
def test_seeds_are_a_number_or_a_list(text, seeds):
    assert settings.parse_seeds(text) == seeds


def test_a_run_takes_settings_from_preset_command_and_spec():
    config = config_for(SHORT, "flowrl:reward_scale=3:learning_rate=0.5", seed=4)
    assert (config.steps, config.eval_every, config.seed) == (6, 3, 4)
    assert (config.reward_scale, config.learning_rate) == (3, 0.5)
    assert config.run_name == "flowrl reward_scale=3 learning_rate=0.5"
    name = settings.folder_name(config)
    assert "/" not in name and " " not in name
    assert config_for(SHORT, "flowrl", seed=4).reward_scale != 3


# ------------------------------------------------------------------------- train


def test_train_writes_what_the_same_run_gives_in_memory(tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main(["train", "--seed", "3", "--out", str(out), *SHORT]) == 0
    run = Run(config_for(SHORT, seed=3))
    exact = [record.exact for record in run][-1]
    result = load_result(out)
    assert result.exact == exact
    assert result.seed == 3 and len(result.records) == 7
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["exact"]["accuracy"] == exact.accuracy
    environment = json.loads((out / "environment.json").read_text(encoding="utf-8"))
    assert environment["versions"]["torch"] and environment["device"] == "cpu"
    assert environment["wall_seconds"] >= result.seconds
    shown = capsys.readouterr()
    assert "KL(π‖p*)" in shown.out and "100%" in shown.err


@pytest.mark.bad_input
def test_train_refuses_a_used_folder_and_changes_nothing(tmp_path, capsys):
    out = tmp_path / "run"
    assert cli.main(["train", "--out", str(out), *SHORT]) == 0
    before = contents(out)
    assert cli.main(["train", "--out", str(out), *SHORT]) == 2
    assert "--resume" in capsys.readouterr().err
    assert cli.main(["train", "--out", str(out), *SHORT, "--resume"]) == 0
    assert "finished" in capsys.readouterr().out
    words = [*SHORT, "--resume", "--set", "reward_scale=9"]
    assert cli.main(["train", "--out", str(out), *words]) == 2
    assert "reward_scale" in capsys.readouterr().err
    assert contents(out) == before


def test_a_stopped_run_resumes_to_the_same_end(tmp_path):
    config = config_for(SHORT)
    for name in ("whole", "parts"):
        stop_at = 2 if name == "parts" else 99
        run = prepare_run(config, tmp_path / name, resume=False)
        finished = train_into(run, lambda r=run, s=stop_at: r.step >= s, lambda _: None)
        assert finished == (name == "whole") == is_finished(tmp_path / name)
    out = str(tmp_path / "parts")
    assert cli.main(["train", "--out", out, *SHORT, "--resume"]) == 0
    assert records_of(tmp_path / "parts") == records_of(tmp_path / "whole")
    assert load_result(out).wall_seconds > 0


@pytest.mark.full
@pytest.mark.skipif(os.name == "nt", reason="no locks on folders there")
def test_two_processes_do_not_train_into_one_folder(tmp_path, capsys):
    out, finished = tmp_path / "run", tmp_path / "beside" / "flowrl_seed0"
    run = prepare_run(config_for(SHORT), out, resume=False)
    train_into(run, lambda: True, lambda _: None)
    before = contents(out)
    with hold_folder(out):
        assert cli.main(["train", "--out", str(out), *SHORT, "--resume"]) == 2
    assert "another process is at work" in capsys.readouterr().err
    assert contents(out) == before
    assert cli.main(["train", "--out", str(out), *SHORT, "--resume"]) == 0
    with hold_folder(finished):  # one of a comparison's
        (failed,) = run_jobs(
            [Job(config_for(SHORT), finished)], workers=1, report=lambda *_: None
        ).failed
    assert "another process is at work" in failed[1]


def start(words: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "flowrl_lab", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def wait_for(path: Path, process: subprocess.Popen) -> None:
    """Until a file is there; a process that ends early fails the test."""
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@posix
def test_interrupt_keeps_the_run(tmp_path):
    out = tmp_path / "run"
    words = ["train", "--out", str(out), "--steps", "1000000", *SMALL]
    process = start(words)
    wait_for(out / "checkpoint.pt", process)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    run = Run.load(out)
    assert f"Stopped at step {run.step} of 1000000" in text and "--resume" in text
    assert run.step >= 20 and len(run.records) == run.step + 1
    assert not is_finished(out)


# ----------------------------------------------------------------------- compare


@pytest.fixture(name="compared", scope="module")
def fixture_compared(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("compare") / "all"
    words = ["compare", "--algorithms", "flowrl,grpo", "--seeds", "0,2"]
    assert cli.main([*words, "--jobs", "2", "--out", str(out), *SHORT]) == 0
    return out


def test_compare_runs_every_algorithm_and_seed(compared):
    names = sorted(folder.name for folder in (compared / "runs").iterdir())
    assert names == ["flowrl_seed0", "flowrl_seed2", "grpo_seed0", "grpo_seed2"]
    plan = json.loads((compared / "plan.json").read_text(encoding="utf-8"))
    assert sorted(plan) == names and plan["grpo_seed2"]["seed"] == 2


def test_a_worker_gives_the_same_numbers_as_this_process(compared):
    for seed in (0, 2):
        exact = [record.exact for record in Run(config_for(SHORT, "grpo", seed))][-1]
        there = load_result(compared / "runs" / f"grpo_seed{seed}").exact
        for field in dataclasses.fields(exact):
            expected = getattr(exact, field.name)
            assert getattr(there, field.name) == pytest.approx(expected, nan_ok=True)


def test_compare_writes_one_report_with_both(compared):
    html = (compared / "report.html").read_text(encoding="utf-8")
    assert "landscape: 2 ways compared" in html
    assert "seeds 0, 2" in html and html.count("<svg") == 3
    assert "--resume" in html


def test_resume_keeps_finished_runs_and_adds_new_ones(compared, capsys):
    before = contents(compared / "runs")
    words = ["compare", "--algorithms", "flowrl,grpo,vargrad", "--seeds", "0,2"]
    words += ["--out", str(compared), *SHORT]
    assert cli.main(words) == 2
    assert "--resume" in capsys.readouterr().err
    assert cli.main([*words, "--resume", "--jobs", "1"]) == 0
    after = contents(compared / "runs")
    assert {path: after[path] for path in before} == before
    new = {path.parent.name for path in after.keys() - before.keys()}
    assert new == {"vargrad_seed0", "vargrad_seed2"}
    assert capsys.readouterr().out.splitlines()[1].split() == [
        "untrained",
        "flowrl",
        "grpo",
        "vargrad",
    ]


@pytest.mark.bad_input
def test_resume_with_other_settings_names_the_setting(compared, capsys):
    words = ["compare", "--algorithms", "flowrl", "--seeds", "1", "--resume"]
    words += ["--out", str(compared), "--steps", "7"]
    assert cli.main(words) == 2
    assert "steps (6 there, 7 asked for)" in capsys.readouterr().err


def test_a_comparison_needs_no_shared_memory(tmp_path, monkeypatch):
    """A container may have no writable /dev/shm, and so no semaphores."""

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("_multiprocessing.SemLock", refuse)
    job = Job(config_for(SHORT), tmp_path / "run")
    outcome = run_jobs([job], workers=1, report=lambda *_step: None)
    assert outcome.finished == (job,) and outcome.failed == ()


def test_one_failing_run_does_not_stop_the_others(tmp_path):
    good = Job(config_for(SHORT), tmp_path / "good")
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "checkpoint.pt").write_bytes(b"not a checkpoint")
    bad = Job(config_for(SHORT), folder)
    steps: list[tuple[int, int]] = []
    outcome = run_jobs([bad, good], workers=1, report=lambda *step: steps.append(step))
    assert outcome.finished == (good,)
    ((job, reason),) = outcome.failed
    assert job == bad and "not a flowrl_lab checkpoint" in reason
    assert not outcome.interrupted
    assert steps[-1] == (1, 6) and {index for index, _ in steps} == {1}


@pytest.mark.full
@posix
def test_interrupted_comparison_keeps_what_is_finished(tmp_path):
    out = tmp_path / "all"
    words = ["compare", "--algorithms", "flowrl:steps=3,grpo:steps=1000000"]
    words += ["--seeds", "1", "--jobs", "2", "--out", str(out), *SMALL]
    process = start(words)
    wait_for(out / "runs" / "flowrl-steps=3_seed0" / "summary.json", process)
    wait_for(out / "runs" / "grpo-steps=1000000_seed0" / "checkpoint.pt", process)
    process.send_signal(signal.SIGINT)
    text, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "1 of 2 runs finished" in text and "--resume" in text
    run = Run.load(out / "runs" / "grpo-steps=1000000_seed0")
    assert run.step == len(run.records) - 1 >= 20


# ----------------------------------------------------------- output without Greek


class FullDisk(io.TextIOWrapper):
    """Standard output whose disk is full as soon as a table is printed."""

    def write(self, text: str) -> int:
        if "KL(" in text:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)


@pytest.fixture(name="redirect")
def fixture_redirect(monkeypatch):
    """Puts a stream of an encoding in place of both outputs, and gives it back."""

    def redirect(encoding: str, errors: str = "strict", kind=io.TextIOWrapper):
        stream = kind(io.BytesIO(), encoding=encoding, errors=errors)
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return redirect


def read(stream: io.TextIOWrapper) -> str:
    stream.flush()
    return stream.buffer.getvalue().decode(stream.encoding)


@pytest.mark.parametrize(
    ("encoding", "errors"),
    [("cp1252", "strict"), ("cp437", "strict"), ("ascii", "surrogateescape")],
)
def test_a_code_page_without_greek_costs_no_command(
    encoding, errors, redirect, compared, tmp_path
):
    run, figures = str(tmp_path / "run"), str(tmp_path / "figures.json")
    page = str(tmp_path / "page.html")
    commands = [
        ["train", "--out", run, *SHORT],
        ["evaluate", run, "--repeats", "2", "--json", figures, "--report", page],
        [
            "compare",
            "--algorithms",
            "flowrl,grpo",
            "--seeds",
            "0,2",
            *SHORT,
            "--out",
            str(compared),
            "--resume",
        ],
        ["recorded", "make_number"],
        ["recorded", "programs", "--markdown"],
        ["study", "--list"],
        ["export", "verl", run],
        ["tra\u03c0n"],
        ["train", "--out", run, "--task", "\U0001f600"],
    ]
    for words in commands:
        stream = redirect(encoding, errors)
        code = cli.main(words)
        text = read(stream)
        assert code == (2 if "error:" in text else 0), text
        assert "codec can't encode" not in text
        assert ("\\U0001f600" in text) == ("\U0001f600" in words)
    assert Path(figures).is_file() and "π" in Path(page).read_text(encoding="utf-8")


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_needs_no_greek(command, redirect):
    stream = redirect("ascii")
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0 and f"flowrl_lab {command}" in read(stream)


def test_a_way_to_write_that_was_chosen_is_kept(redirect):
    stream = redirect("ascii", "xmlcharrefreplace")
    assert cli.main(["π"]) == 2
    assert "&#960;" in repr(read(stream)) or "\\u03c0" in read(stream)
    assert stream.errors == "xmlcharrefreplace"


def test_results_are_written_before_they_are_printed(redirect, compared, tmp_path):
    """A full disk, a closed pipe: what was computed is in its file already."""
    report = compared / "report.html"
    report.unlink()
    run = str(compared / "runs" / "flowrl_seed0")
    again = ["--out", str(compared), *SHORT, "--resume"]
    for words, written in (
        (["compare", "--algorithms", "flowrl,grpo", "--seeds", "0,2", *again], report),
        (["evaluate", run, "--repeats", "2", "--json"], tmp_path / "figures.json"),
        (["recorded", "landscape", "--report"], tmp_path / "page.html"),
        (["collect"], tmp_path / "runs.jsonl"),
    ):
        if words[0] in ("evaluate", "recorded"):
            words.append(str(written))
        if words == ["collect"]:
            words += [str(written), str(compared)]
        stream = redirect("utf-8", kind=FullDisk)
        assert cli.main(words) == 1
        assert "No space left" in read(stream) and written.is_file(), words


# ---------------------------------------------------------------- other commands


@pytest.mark.parametrize("code", [0, 1])
def test_doctor_passes_its_verdict_on(monkeypatch, code):
    monkeypatch.setattr("flowrl_lab.course.doctor.main", lambda: code)
    assert cli.main(["doctor"]) == code


def test_pretrain_passes_its_recipe_on(monkeypatch, tmp_path, capsys):
    from flowrl_lab.training import pretraining

    seen = {}

    def record(out_dir, config, *, device):
        seen.update(out=out_dir, config=config, device=device)
        return {"heldout_accuracy": 0.5}

    monkeypatch.setattr(pretraining, "pretrain", record)
    words = ["pretrain", "make_number", "--out", str(tmp_path), "--steps", "3"]
    assert cli.main([*words, "--seed", "2"]) == 0
    expected = dataclasses.replace(pretraining.PretrainConfig(), steps=3, seed=2)
    assert seen == {"out": tmp_path, "config": expected, "device": "cpu"}
    assert json.loads(capsys.readouterr().out) == {"heldout_accuracy": 0.5}


def test_ctrl_c_in_any_command_ends_with_130(monkeypatch, capsys):
    def interrupt(_args: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "run_doctor", interrupt)
    assert cli.main(["doctor"]) == 130
    assert "kept" in capsys.readouterr().err


# ---------------------------------------------------------------------- progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_says_what_is_left():
    stream = io.StringIO()
    line = ProgressLine(40, done=10, stream=stream)
    line._start -= 30  # ten fresh steps in 30 s: the other twenty take 60 s
    line.update(20, "reward 0.5")
    assert " 50%|" in stream.getvalue() and "20/40" in stream.getvalue()
    assert re.search(r"\[00:30<01:00, .*reward 0\.5\]", stream.getvalue())


def test_a_log_file_gets_a_line_for_every_tenth():
    stream = io.StringIO()
    line = ProgressLine(1000, stream=stream)
    for step in range(1001):
        line.update(step)
    line.close()
    assert len(stream.getvalue().splitlines()) == 11
    assert "\r" not in stream.getvalue()


def test_a_terminal_line_is_redrawn_in_place():
    stream = Terminal()
    line = ProgressLine(100, stream=stream)
    for step in range(1, 101):
        line.update(step, "reward 0.5")
    line.close()
    text = stream.getvalue()
    assert text.count("\n") == 1 and text.endswith("\n")
    assert "100/100" in text and "reward 0.5" in text


def test_before_the_first_step_there_is_no_reward_to_show():
    record = make_record("a", 0, 5)
    assert describe_step(record) == ""
    assert describe_step(make_record("a", 1, 5, reward=0.25)) == "reward 0.250"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(7.6, "8 s"), (60, "60 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_times_are_readable(seconds, text):
    assert format_seconds(seconds) == text


def test_compare_reads_records_whose_texts_hold_other_ends_of_lines(tmp_path, capsys):
    from fake_records import make_record as fake_record

    from flowrl_lab.commands import compare
    from flowrl_lab.training.records import record_to_dict

    record = dataclasses.replace(
        fake_record(1),
        samples=(("prompt", "one\u2028two\x85three", 1.0),),
        sampled={"right": 0.75},
        floor={"right": (0.25, 0.0)},
    )
    line = json.dumps(record_to_dict(record), ensure_ascii=False)
    (tmp_path / "records.jsonl").write_text(f"{line}\n", "utf-8")
    compare._tell_sampled([argparse.Namespace(folder=tmp_path)])
    assert "0.75 (untrained 0.25)" in capsys.readouterr().out

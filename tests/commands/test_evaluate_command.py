"""``evaluate``: what it says of a run, what it leaves alone, and how it says no."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from flowrl_lab import __main__ as cli
from flowrl_lab.losses import flowrl_loss
from flowrl_lab.measuring.judged import evaluate_run, load_for_evaluation
from flowrl_lab.measuring.pages import format_evaluation, render_evaluation
from flowrl_lab.metrics import CountingJudge
from flowrl_lab.tasks.text import Scored
from flowrl_lab.training.presets import preset
from flowrl_lab.training.run import Run
from flowrl_lab.types import Completions


def save_run(folder: Path, task: str = "landscape", steps: int = 3, done=None, **more):
    """A run of a few steps, stopped after ``done`` of them."""
    config = preset(
        task,
        more.pop("variant", "flowrl"),
        budget="quick",
        steps=steps,
        eval_every=100,
        **more,
    )
    run = Run(config)
    for record in run:
        if record.step == done:
            break
    run.save(folder)
    return run


@pytest.fixture(scope="module")
def landscape(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "landscape"
    save_run(folder, steps=40)
    return folder


@pytest.fixture(scope="module")
def number(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "number"
    small = {"prompts_per_step": 2, "num_generations": 4, "eval_prompts": 6}
    save_run(folder, "make_number", steps=2, done=1, **small)
    return folder


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def by_key(figures) -> dict:
    return {figure.key: figure for figure in figures}


# --------------------------------------------------------------------- what it says


def test_the_command_prints_and_writes_and_leaves_the_run_alone(
    landscape, tmp_path, capsys
):
    before = contents(landscape)
    out, page = tmp_path / "new" / "out.json", tmp_path / "out.html"
    words = ["evaluate", str(landscape), "--json", str(out), "--report", str(page)]
    assert cli.main([*words, "--samples", "32", "--repeats", "5"]) == 0
    shown = capsys.readouterr().out
    for part in ("perfect (p*)", "perfect sampler", "1 held-out prompt,", "32 samples"):
        assert part in shown
    assert contents(landscape) == before
    content = json.loads(out.read_text(encoding="utf-8"))
    assert content["facts"]["finished"] and content["facts"]["samples"] == 32
    saved = json.loads((landscape / "records.jsonl").read_text().splitlines()[-1])
    exact = {figure["key"]: figure["value"] for figure in content["exact"]}
    assert exact["accuracy"] == pytest.approx(saved["exact"]["accuracy"])
    assert exact["kl_target_policy"] == pytest.approx(
        saved["exact"]["kl_target_policy"]
    )
    assert content["environment"]["versions"]["torch"]
    html = page.read_text(encoding="utf-8")
    assert "--samples 32" in html and "http" not in html and "<script" not in html


def test_same_seed_same_numbers_and_another_seed_others(landscape):
    run = load_for_evaluation(landscape)
    first, again, other = (
        evaluate_run(run, num_samples=16, repeats=3, seed=seed) for seed in (0, 0, 1)
    )
    assert repr(first) == repr(again)
    assert repr(first.sampled) != repr(other.sampled)
    assert repr(first.exact) == repr(other.exact)


def test_what_cannot_be_beaten_is_the_target_itself(landscape):
    exact = by_key(evaluate_run(load_for_evaluation(landscape), repeats=2).exact)
    for key in ("kl_policy_target", "kl_target_policy", "total_variation"):
        assert exact[key].perfect == pytest.approx(0.0, abs=1e-12)
        assert exact[key].value > 1e-4
    assert exact["modes_covered"].perfect == 1.0
    assert 0.9 < exact["accuracy"].perfect < 1.0  # the target's tails are wrong states


def test_samples_scatter_about_the_exact_mean(landscape):
    run = load_for_evaluation(landscape)
    for figure in evaluate_run(run, num_samples=256, repeats=20).sampled:
        if not math.isnan(figure.exact):
            slack = 4 * figure.perfect_spread + 1e-3
            assert abs(figure.value - figure.exact) < slack, figure.key


def test_strings_have_texts_and_a_grpo_run_has_no_log_z(tmp_path, capsys):
    options = {"length": 3, "heldout_prompts": 0}
    save_run(tmp_path, "strings", variant="grpo", task_options=options)
    evaluation = evaluate_run(load_for_evaluation(tmp_path), num_samples=16, repeats=2)
    assert evaluation.log_z is None and evaluation.pass_rates == ()
    assert {"vendi", "self_bleu", "distinct_2"} <= by_key(evaluation.sampled).keys()
    assert (
        cli.main(["evaluate", str(tmp_path), "--samples", "8", "--repeats", "2"]) == 0
    )
    assert "log Z" not in capsys.readouterr().out


def test_a_stopped_run_of_the_language_model(number):
    run = load_for_evaluation(number)
    evaluation = evaluate_run(
        run, num_prompts=4, num_samples=16, repeats=3, judge=CountingJudge()
    )
    facts = evaluation.facts
    assert not facts["finished"] and (facts["step"], facts["prompts"]) == (1, 4)
    exact, sampled = by_key(evaluation.exact), by_key(evaluation.sampled)
    perfect = exact["accuracy"].perfect, sampled["avg"].perfect
    assert perfect == pytest.approx((1.0, 1.0))
    assert sampled["avg"].exact == pytest.approx(exact["accuracy"].value)
    assert 1 < exact["effective_ideas"].value < exact["effective_answers"].value
    assert 0 < exact["coverage"].value < exact["coverage"].perfect < 1
    assert 1 <= sampled["judge"].value <= 5
    assert evaluation.log_z.count == 4
    assert sum(group.count for group in evaluation.pass_rates) == 4
    # one step has not moved the policy far: observed is the reference's accuracy
    observed = sum(g.observed * g.count for g in evaluation.pass_rates) / 4
    assert observed == pytest.approx(exact["accuracy"].value, abs=0.05)
    text = format_evaluation(evaluation)
    assert "stopped half-way" in text and "stated pass rate" in text
    assert "judge's rating" in text


def test_temperature_is_of_policy_and_reference(number):
    run = load_for_evaluation(number)
    cold, warm = (
        by_key(
            evaluate_run(
                run, num_prompts=2, num_samples=4, repeats=2, temperature=t
            ).exact
        )
        for t in (0.3, 1.0)
    )
    assert cold["effective_answers"].value < warm["effective_answers"].value
    assert cold["effective_answers"].perfect < warm["effective_answers"].perfect


def test_a_run_with_a_loss_of_its_own_can_be_judged_but_not_trained(tmp_path):
    def mine(*tensors, **settings):
        return flowrl_loss(*tensors, **settings)

    run = Run(preset("landscape", "flowrl", steps=2), flowrl_loss=mine)
    next(iter(run))
    run.save(tmp_path)
    loaded = load_for_evaluation(tmp_path)
    assert evaluate_run(loaded, num_samples=4, repeats=2).facts["step"] == 0
    with pytest.raises(ValueError, match="loaded to be evaluated"):
        list(loaded)


class Wordy:
    """A task of texts that cannot list its answers, and a policy that cycles."""

    name, device, has_referee = "wordy", torch.device("cpu"), False
    max_completion_tokens = 2
    words = ("yes", "no", "may", "be")

    def __init__(self, known=4):
        self.known = known  # it draws from so many of the words

    def prompts(self, _split):
        return ("one", "two", "three")

    def encode(self, texts):
        return texts

    def sample(self, _prompts, count, *, temperature, generator):  # noqa: ARG002
        ids = torch.randint(self.known, (count, 2), generator=generator)
        mask = torch.ones_like(ids, dtype=torch.bool)
        return Completions(ids, mask, torch.zeros(count, 2))

    def decode(self, ids, _mask):
        return [" ".join(self.words[i] for i in row) for row in ids.tolist()]

    def judge(self, _prompts, ids, mask, _count):
        good = ["no" not in text for text in self.decode(ids, mask)]
        return [Scored(float(one), one, "because") for one in good]


def test_a_task_that_cannot_list_its_answers_is_judged_from_samples_alone():
    run = Run(preset("landscape", "flowrl", steps=5))
    run.task = run.policy = Wordy()
    run.untrained_policy = lambda: Wordy(known=2)
    evaluation = evaluate_run(run, num_samples=400, repeats=2)
    assert evaluation.exact == () and evaluation.log_z is None
    sampled = by_key(evaluation.sampled)
    assert sampled["avg"].value == pytest.approx(9 / 16, abs=0.06)
    assert sampled["distinct_correct"].value == 9.0
    assert sampled["distinct_2"].value == pytest.approx(16 / 400)  # pairs of words
    assert all(math.isnan(f.perfect) for f in evaluation.sampled)
    assert sampled["avg"].untrained == pytest.approx(1 / 4, abs=0.06)
    assert sampled["distinct_correct"].untrained == 1.0
    text = format_evaluation(evaluation)
    assert "cannot list its answers" in text and "perfect (p*)" not in text
    (head,) = (line.split() for line in text.splitlines() if "from samples" in line)
    assert head == ["from", "samples", "policy", "untrained"]
    assert "<h2>Exact</h2>" not in render_evaluation(evaluation)


# ---------------------------------------------------------------------- bad input


def refused(words: list[str], capsys) -> str:
    assert cli.main(["evaluate", *words]) == 2
    error = capsys.readouterr().err
    line = error.strip().splitlines()[-1]
    assert line.startswith("error: ") and "Fix: " in line
    return line


@pytest.mark.bad_input
def test_nothing_is_overwritten(landscape, tmp_path, capsys):
    taken = tmp_path / "taken"
    taken.write_text("mine")
    for option in ("--json", "--report"):
        assert "already exists" in refused([str(landscape), option, str(taken)], capsys)
    new = str(tmp_path / "new")
    words = [str(landscape), "--json", new, "--report", new]
    assert "named twice" in refused(words, capsys)
    assert taken.read_text() == "mine" and not Path(new).exists()


@pytest.mark.bad_input
def test_folders_that_hold_no_run(landscape, tmp_path, capsys):
    assert "does not exist" in refused([str(tmp_path / "nowhere")], capsys)
    (tmp_path / "file").write_text("x")
    assert "is a file" in refused([str(tmp_path / "file")], capsys)
    (tmp_path / "empty").mkdir()
    assert "no checkpoint" in refused([str(tmp_path / "empty")], capsys)
    line = refused([str(landscape.parent)], capsys)
    assert "one of the 1 runs" in line and str(landscape) in line


@pytest.mark.bad_input
def test_damaged_checkpoints(landscape, tmp_path, capsys):
    whole = (landscape / "checkpoint.pt").read_bytes()
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(whole[:-20])
    assert "is damaged" in refused([str(tmp_path)], capsys)
    path.write_bytes(b"something else")
    assert "not a flowrl_lab checkpoint" in refused([str(tmp_path)], capsys)
    torch.save({"model": torch.zeros(2)}, path)
    assert "not a flowrl_lab checkpoint" in refused([str(tmp_path)], capsys)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--prompts", "0"], "num_prompts"),
        (["--prompts", "2"], "holds out 1"),
        (["--samples", "1"], "num_samples"),
        (["--repeats", "1"], "repeats"),
        (["--temperature", "0"], "temperature"),
        (["--temperature", "nan"], "temperature"),
        (["--seed", "-1"], "--seed"),
    ],
)
def test_numbers_out_of_range(landscape, words, expected, capsys):
    assert expected in refused([str(landscape), *words], capsys)

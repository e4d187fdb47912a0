"""A tiny random model with a real tokenizer, through the whole training loop."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from llm_models import model_folder

from flowrl_lab import _files
from flowrl_lab.integrations.adapters import export_adapter, export_merged, push_folder
from flowrl_lab.measuring.recorded import (
    append_step,
    load_replay,
    read_steps,
    replay,
    write_replay,
)
from flowrl_lab.tasks.text import Scored
from flowrl_lab.training.config import ExperimentConfig
from flowrl_lab.training.rollouts import why_nothing_is_learned
from flowrl_lab.training.run import Run

ROOT = Path(__file__).resolve().parents[2]


def config(**changes) -> ExperimentConfig:
    settings = {
        "task": "open_sets",
        "policy": "hf_lm",
        "model": model_folder(),
        "steps": 4,
        "prompts_per_step": 2,
        "num_generations": 4,
        "eval_every": 2,
        "eval_prompts": 2,
        "learning_rate": 1e-2,
        "lora_rank": 2,
        "reward_scale": 4.0,
        "seed": 3,  # its first batch has a right answer in every number format
    }
    return ExperimentConfig(**{**settings, **changes})


def test_a_model_that_is_never_right_is_said_after_the_first_batch(monkeypatch, capsys):
    """Once, in the record and aloud; a batch with both kinds says nothing."""
    run = Run(config(steps=2))
    judge = run.task.judge
    monkeypatch.setattr(
        run.task,
        "judge",
        lambda *given: [Scored(0.0, False, "no") for _ in judge(*given)],
    )
    notes = [record.note for record in run]
    assert "all 8 completions of the first batch earned 0: " in notes[1]
    assert "nothing can be learned. Try worked examples" in capsys.readouterr().out
    assert notes[0] == notes[2] == ""
    rollout = dataclasses.replace(run.sample(), rewards=torch.tensor([0.0, 1.0] * 4))
    assert why_nothing_is_learned(rollout) == ""


@pytest.fixture(name="trained", scope="module")
def fixture_trained() -> Run:
    run = Run(config(algorithm="flowrl"))
    for _ in run:
        pass
    return run


def test_it_trains_with_an_exact_referee(trained):
    last = trained.records[-1]
    assert last.step == 4 and last.exact.num_prompts == 2
    assert 0 < last.exact.accuracy < 1
    assert last.snapshot.labels[:3] == ("2", "3", "5")
    assert set(last.parts) == {"solved", "correct"}
    assert last.parts["solved"] == pytest.approx(last.reward)
    assert not torch.equal(
        torch.cat([p.flatten() for p in trained.policy.trainable_parameters()]),
        torch.cat([p.flatten() for p in Run(config()).policy.trainable_parameters()]),
    )


def test_what_the_referee_says_is_what_sampling_says(trained):
    """Right answers, sampled often enough, come as often as the sum of the list."""
    task, policy = trained.task, trained.policy
    prompts = task.encode(("A prime number",))
    drawn = policy.sample(prompts, 4000, generator=torch.Generator().manual_seed(0))
    share = (
        task.score(prompts, drawn.completion_ids, drawn.completion_mask, 4000)
        .mean()
        .item()
    )
    from flowrl_lab.evaluation import evaluate_policy

    exact = evaluate_policy(policy, task, ("A prime number",)).accuracy
    assert abs(share - exact) < 4 * math.sqrt(exact * (1 - exact) / 4000) + 1e-3


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_trains_like_single(dtype, trained):
    """The base is in half precision; adapter, log Z and log-probs are float32."""
    run = Run(config(algorithm="flowrl", dtype=dtype))
    assert run.policy.dtype == getattr(torch, dtype)
    assert {p.dtype for p in run.policy.trainable_parameters()} == {torch.float32}
    assert {p.dtype for p in run.modules.parameters()} == {torch.float32}
    assert run.survival.parts.scale == (4096 if dtype == "float16" else 1)
    records = list(run)
    first, single = records[1], trained.records[1]
    assert math.isfinite(records[-1].loss)
    assert first.grad_norm == pytest.approx(single.grad_norm, rel=0.2)
    exact = records[0].exact.accuracy
    assert exact == pytest.approx(trained.records[0].exact.accuracy, rel=0.1)


def test_float16_that_overflows_lowers_its_scale(monkeypatch):
    run = Run(config(dtype="float16", steps=1))
    monkeypatch.setattr(run.survival.parts, "scale", 2.0**60)
    records = list(run)
    assert records[-1].skipped == 0
    assert run.survival.parts.scale < 2.0**60


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_out_of_memory_halves_the_pass_and_learns_the_same(dtype, monkeypatch, capsys):
    """A pretended card; the first two passes of the update do not fit into it."""
    calm = list(Run(config(algorithm="flowrl", dtype=dtype, steps=1)))[-1]
    run = Run(config(algorithm="flowrl", dtype=dtype, steps=1))
    whole, sizes = type(run.policy)._run_nodes, []

    def run_nodes(self, packing, first, cache=None):
        if cache is None and torch.is_grad_enabled():
            sizes.append(len(packing))
            if len(sizes) < 3:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate …")
        return whole(self, packing, first, cache)

    monkeypatch.setattr(type(run.policy), "_run_nodes", run_nodes)
    # What sampling grew counts as out of date: the update needs a pass of its own.
    counter = itertools.count()
    monkeypatch.setattr(run.policy._changes, "count", lambda: next(counter))
    record = list(run)[-1]
    assert run.survival.policy.rows == 2 and "the batch stays at 8" in record.note
    assert "out of memory with 8 completions in a pass" in capsys.readouterr().out
    assert max(sizes[2:]) < sizes[0]
    loose = 1e-4 if dtype == "float32" else 0.05
    assert record.grad_norm == pytest.approx(calm.grad_norm, rel=loose)
    assert record.reward == calm.reward and record.skipped == 0


@pytest.mark.parametrize("algorithm", ["grpo", "kl_reinforce", "ppo"])
def test_other_algorithms_and_chat_prompts(algorithm):
    chosen = config(
        algorithm=algorithm,
        prompt_format="chat",
        steps=1,
        kl_coef=0.1,
        micro_batch=3,
    )
    assert math.isfinite(list(Run(chosen))[-1].loss)


def test_a_real_set_trains_without_a_referee_and_shows_the_parts(tmp_path, capsys):
    pytest.importorskip("reasoning_gym")
    from flowrl_lab.__main__ import main
    from flowrl_lab.scaling.watching import describe_progress, describe_samples

    options = {"size": 4, "heldout_size": 2, "max_completion_tokens": 6}
    run = Run(config(task="countdown", task_options=options, steps=2))
    records = list(run)
    assert all(record.exact is None for record in records)
    parts = records[-1].parts
    assert parts == {"solved": 0.0, "correct": 0.0}
    shown = describe_samples(records[-1], run.task)
    assert "correct 0" in shown and len(shown.splitlines()) == 2
    assert "step 2/2" in describe_progress(records[-1])
    words = ["train", "--task", "countdown", "--steps", "1", "--out", str(tmp_path)]
    for key, value in (*options.items(), ("model", model_folder())):
        name = key if key == "model" else f"task_options.{key}"
        words += ["--set", f"{name}={value}"]
    assert main(words) == 0
    assert "right, sampled 0.00" in capsys.readouterr().out


# --------------------------------------------------------------- kill and resume

SCRIPT = """
import sys, time
from flowrl_lab.training.config import ExperimentConfig
from flowrl_lab.training.rollouts import why_nothing_is_learned
from flowrl_lab.training.run import Run
run = Run(ExperimentConfig.from_json(open(sys.argv[1]).read()),
          folder=sys.argv[2], save_every=2)
for record in run:
    print(record.step, flush=True)
    if record.step == 5:
        time.sleep(600)
"""


def comparable(record) -> dict:
    fields = dataclasses.asdict(dataclasses.replace(record, seconds=0.0, snapshot=None))
    return json.loads(json.dumps(fields))


def test_killed_in_the_middle_it_goes_on_as_if_nothing_had_happened(tmp_path):
    chosen = config(steps=7, algorithm="flowrl", eval_every=3)
    (tmp_path / "config.json").write_text(chosen.to_json())
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "config.json")]
    with subprocess.Popen(
        [*command, str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    ) as process:
        for line in process.stdout:
            if line.strip() == "5":  # after the save of step 4
                os.kill(process.pid, signal.SIGKILL)
                break
    resumed = Run.load(tmp_path / "run")
    assert resumed.step == 4
    list(resumed)
    calm = Run(chosen)
    list(calm)
    assert [r.step for r in resumed.records] == list(range(8))
    for mine, other in zip(resumed.records, calm.records, strict=True):
        for key, value in comparable(other).items():
            found = comparable(mine)[key]
            assert json.dumps(found) == json.dumps(value), (mine.step, key)


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    run = Run(config(steps=4), folder=tmp_path / "run", save_every=1)
    steps = iter(run)
    next(steps), next(steps)

    def full(_source, _target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_files.os, "replace", full)
    with pytest.raises(OSError, match="The last saved state is untouched"):
        next(steps)
    monkeypatch.undo()
    assert Run.load(tmp_path / "run").step == 1


def test_an_interrupt_keeps_what_was_trained(monkeypatch):
    run = Run(config(steps=4))
    steps = iter(run)
    next(steps), next(steps)
    monkeypatch.setattr(
        type(run.policy),
        "sample",
        lambda *_a, **_k: (_ for _ in ()).throw(KeyboardInterrupt),
    )
    with pytest.raises(KeyboardInterrupt):
        next(steps)
    monkeypatch.undo()
    assert run.step == 1
    assert [record.step for record in run] == [2, 3, 4]


# --------------------------------------------------------------------- what it leaves


def next_token_log_probs(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits[:, -1].float().log_softmax(-1)


# peft asks transformers by an old name; nothing that we could change
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_the_adapter_loads_in_plain_transformers_and_peft(trained, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = export_adapter(trained, tmp_path / "adapter")
    names = {path.name for path in folder.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md"} <= names
    base = AutoModelForCausalLM.from_pretrained(model_folder())
    ids = torch.tensor([trained.task._prompt_ids("A prime number")])
    before = next_token_log_probs(base, ids)
    plain = PeftModel.from_pretrained(base, folder)
    expected = next_token_log_probs(trained.policy.model, ids)
    torch.testing.assert_close(next_token_log_probs(plain, ids), expected)
    assert (expected - before).abs().max() > 1e-3
    assert AutoTokenizer.from_pretrained(folder).pad_token == "<|endoftext|>"
    stored = plain.state_dict()
    assert not any("log_z" in name for name in stored)


def test_an_export_asks_the_hub_nothing(trained, tmp_path, monkeypatch):
    """The base model's public name is written down, and nothing else done with it."""
    from peft.utils import save_and_load

    loaded = dataclasses.replace(trained.policy.loaded, base_name="me/tiny")
    monkeypatch.setattr(trained.policy, "loaded", loaded)
    monkeypatch.setattr(
        save_and_load,
        "check_file_exists_on_hf_hub",
        lambda *_a, **_k: pytest.fail("asked the hub"),
    )
    folder = export_adapter(trained, tmp_path / "adapter")
    written = json.loads((folder / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == "me/tiny"


def test_the_merged_model_needs_no_peft_and_the_run_keeps_its_own(trained, tmp_path):
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([trained.task._prompt_ids("A prime number")])
    expected = next_token_log_probs(trained.policy.model, ids)
    folder = export_merged(trained, tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(folder)
    found = next_token_log_probs(plain, ids)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(next_token_log_probs(trained.policy.model, ids), expected)
    assert trained.policy.model.peft_config


def test_the_card_states_the_facts_of_the_run(trained, tmp_path):
    card = (export_adapter(trained, tmp_path / "a") / "README.md").read_text()
    exact = trained.records[-1].exact
    for fact in (
        "library_name: peft",
        f"base_model: {json.dumps(model_folder())}",
        "| algorithm | flowrl |",
        "| steps done | 4 of 4 |",
        f"{exact.accuracy:.1%}",
        f"{exact.effective_answers:.2f}",
        f"{trained.tokens:,}",
        "PeftModel.from_pretrained",
    ):
        assert fact in card, fact


@pytest.mark.bad_input
def test_exports_overwrite_nothing_and_refuse_other_policies(trained, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="nothing is overwritten"):
        export_adapter(trained, tmp_path)
    with pytest.raises(ValueError, match="expected 'hf_lm'"):
        export_adapter(Run(ExperimentConfig()), tmp_path / "x")
    with pytest.raises(ValueError, match="expected an exported folder and owner/name"):
        push_folder(tmp_path, "me/model")


def test_a_push_creates_a_private_repository_and_uploads(trained, tmp_path):
    calls = []

    class Api:
        def create_repo(self, name, **settings):
            calls.append((name, settings))

        def upload_folder(self, **settings):
            calls.append(settings)
            return "https://example.invalid/commit/1"

    folder = export_adapter(trained, tmp_path / "adapter")
    assert push_folder(folder, "me/model", api=Api()).endswith("/commit/1")
    assert calls[0] == ("me/model", {"private": True, "exist_ok": True})
    assert calls[1] == {"repo_id": "me/model", "folder_path": str(folder)}


def test_the_command_exports_a_saved_run(tmp_path, capsys):
    from flowrl_lab.__main__ import main

    run = Run(config(steps=1), folder=tmp_path / "run")
    list(run)
    words = ["export-adapter", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert "Written" in capsys.readouterr().out
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert main(words) == 2  # it is there already


# -------------------------------------------------------------------------- replay


def test_recorded_steps_are_played_again_with_their_maps(
    trained, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    for record in (*trained.records[:3], *trained.records[2:]):  # one twice
        append_step(folder, record)
    with (folder / "steps.jsonl").open("a") as file:
        file.write('{"cut off')
    assert [r.step for r in read_steps(folder)] == [0, 1, 2, 3, 4]
    (folder / "config.json").write_text(trained.config.to_json())
    (tmp_path / "results").mkdir()
    write_replay(tmp_path / "results" / "mine.replay.jsonl", [folder])
    monkeypatch.setenv("FLOWRL_DATA", str(tmp_path))
    (recording,) = load_replay("mine")
    played = list(replay([recording], last_step=3))
    assert [r.step for r in played] == [0, 1, 2, 3]
    assert {r.run for r in played} == {"flowrl (recorded)"}
    for mine, other in zip(played, trained.records, strict=False):
        assert json.dumps(comparable(mine)["exact"]) == json.dumps(
            comparable(other)["exact"]
        )
        if other.snapshot is not None:
            probs = torch.from_numpy(mine.snapshot.probs)
            torch.testing.assert_close(
                probs, torch.from_numpy(other.snapshot.probs), rtol=1e-4, atol=0
            )
    with pytest.raises(ValueError, match="already exists"):
        write_replay(tmp_path / "results" / "mine.replay.jsonl", [folder])
    start = time.monotonic()
    assert len(list(replay([recording], seconds=0.05))) == 5
    assert time.monotonic() >= start

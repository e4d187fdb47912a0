"""The step benchmark: its turns, its arithmetic and its words, without timing."""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from llm_models import model_folder

ROOT = Path(__file__).resolve().parents[2]


def load(name: str):
    path = ROOT / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bench, worker = load("step_vs_trl"), load("trl_worker")

# Answers as TRL's worker does: the settings, then one line for each step.
FAKE_WORKER = """
import json, sys
settings = json.loads(sys.stdin.readline())
print(json.dumps({"event": "ready", "rows": settings["prompts"]}), flush=True)
for number, line in enumerate(sys.stdin):
    if json.loads(line)["command"] == "stop":
        break
    if number == settings.get("dies_at"):
        sys.exit("out of paper")
    step = {"seconds": 2.0 + number, "cpu_seconds": 1.0, "tokens": 100, "reward": 0.5}
    print(json.dumps(step), flush=True)
"""


def fake_peer(log, **settings):
    command = [sys.executable, "-c", FAKE_WORKER]
    return bench.Peer(command, {"prompts": 3, **settings}, log)


class Side:
    def __init__(self, name: str, calls: list[str]):
        self.name, self.calls = name, calls

    def step(self) -> dict:
        self.calls.append(self.name)
        return dict.fromkeys(("seconds", "cpu_seconds", "tokens", "reward"), 1.0)


def test_peer_steps_when_asked_and_stops():
    with tempfile.TemporaryFile("w+") as log:
        peer = fake_peer(log)
        assert peer.facts == {"event": "ready", "rows": 3}
        assert [peer.step()["seconds"] for _ in range(3)] == [2.0, 3.0, 4.0]
        peer.close()
        assert peer._process.returncode == 0


def test_a_dying_peer_is_reported_with_its_last_words():
    with tempfile.TemporaryFile("w+") as log:
        peer = fake_peer(log, dies_at=1)
        peer.step()
        with pytest.raises(RuntimeError, match=r"code 1: out of paper.*Fix: make"):
            peer.step()
        peer.close()


def test_sides_take_turns_and_warm_up_is_not_counted():
    calls: list[str] = []
    sides = {name: Side(name, calls) for name in ("trl", "a", "b")}
    taken = bench.take_turns(sides, rounds=2, warmup=1)
    assert calls == ["trl", "a", "b", "b", "a", "trl", "trl", "a", "b"]
    assert {name: len(steps) for name, steps in taken.items()} == {
        "trl": 2,
        "a": 2,
        "b": 2,
    }


def test_ratios_compare_medians():
    def steps(*seconds):
        return [
            {"seconds": s, "cpu_seconds": s / 2, "tokens": 10, "reward": 1.0}
            for s in seconds
        ]

    taken = {"trl": steps(9, 10, 100), "trl, as it comes": steps(3, 3, 3)}
    rows = bench.summarize(taken | {"ours": steps(2, 3, 1)}, row_count=5)
    assert rows["ours"]["times_faster"] == 5.0  # 10 / 2
    assert rows["ours"]["times_faster_by_pair"] == 4.5  # of 4.5, 3.3 and 100
    assert rows["ours"]["times_faster_than_best"] == 1.5  # 3 / 2
    assert rows["ours"]["length"] == 2.0  # 10 tokens, 5 completions
    assert rows["trl"]["times_faster"] == 1.0
    assert "5.00x" in bench.format_rows(rows, floor_seconds=0.5)


def tiny_policy():
    from flowrl_lab.policies.language_model import (
        LanguageModelPolicy,
        add_lora,
        build_tiny_llama,
    )
    from flowrl_lab.tasks.make_number import MakeNumber

    task = MakeNumber()
    model = build_tiny_llama(task.vocab_size, pad_id=task.pad_id, eos_id=task.eos_id)
    policy = LanguageModelPolicy(
        add_lora(model, rank=16, alpha=32.0),
        eos_id=task.eos_id,
        pad_id=task.pad_id,
        max_completion_tokens=task.max_completion_tokens,
    )
    return task, policy


@pytest.mark.parametrize("reference", [True, False])
def test_counted_products_equal_what_torch_executes(reference):
    """Of one full forward pass, the linear layers' products; attention aside."""
    from torch.utils.flop_counter import FlopCounterMode

    _, policy = tiny_policy()
    layers, lora, head = bench.count_weights(policy.model)
    tokens = torch.randint(0, 16, (5, 9))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        if reference:
            with policy.model.disable_adapter():
                policy.model(input_ids=tokens)
        else:
            policy.model(input_ids=tokens)
    products = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
    weights = layers + head if reference else layers + head + lora
    assert products == bench.forward_flops(weights, 0, 0, tokens.numel(), 0)


def test_floor_counts_each_token_once():
    _, policy = tiny_policy()
    base, lora, head = bench.count_weights(policy.model)
    flops = bench.step_flops(policy, prompts=2, prompt_tokens=6, rows=8, length=4)
    tokens = 2 * 6 + 8 * 3
    pairs = sum(context for _ in range(2) for context in range(1, 7)) + 8 * (7 + 8 + 9)
    attention = 4 * 128 * 4 * pairs
    scores = 2 * head * (2 + 8 * 3)  # where a completion's token is predicted
    adapted = 2 * (base + lora) * tokens + attention + scores
    assert flops["sampling"] == flops["forward"] == adapted
    assert flops["reference"] == 2 * base * tokens + attention + scores
    backward = 2 * (base + 2 * lora) * tokens + 2 * attention + scores
    assert flops["backward"] == backward


def test_both_sides_are_given_the_same_work(tmp_path):
    args = bench.parse(["--prompts", "4", "--generations", "8", "--threads", "1"])
    config = bench.make_config(args, "grpo")
    settings = bench.worker_settings(config, tmp_path, threads=1)
    task, _ = tiny_policy()
    for name in ("learning_rate", "max_grad_norm", "temperature", "lora_rank", "seed"):
        assert settings[name] == getattr(config, name)
    assert settings["kl_coef"] == config.kl_coef > 0  # else TRL skips the reference
    assert settings["prompts"] * settings["num_generations"] == 32
    assert settings["max_completion_tokens"] == task.max_completion_tokens
    ids = [settings["characters"].index(c) for c in settings["texts"][0]]
    assert ids == task.encode([settings["texts"][0]]).prompt_ids[0].tolist()
    assert config.updates_per_batch == 1
    json.dumps(settings)


# ------------------------------------------------------- a real model's architecture


@pytest.fixture(name="real")
def fixture_real():
    """Both sides on a small random model that stands for SmolLM2: our run, TRL's."""
    words = ["--model", "smollm2", "--weights", model_folder(), "--prompts", "2"]
    words += ["--generations", "3", "--completion-tokens", "5"]
    args = bench.parse(words)
    with bench.prepared(args) as name:
        config = bench.make_config(args, "grpo")
        settings = json.loads(
            json.dumps(bench.worker_settings(config, name, threads=1))
        )
        yield bench.Ours(config), worker.TextLM(settings), settings


def test_a_real_model_gets_the_same_prompts_on_both_sides(real):
    ours, theirs, settings = real
    task = ours.run.task
    batch = task.encode(task.prompts("train"))
    rows = zip(batch.prompt_ids, batch.prompt_mask, strict=True)
    ids = [row[mask].tolist() for row, mask in rows]
    assert theirs.tokenizer(theirs.texts)["input_ids"] == ids  # as TRL encodes them
    assert settings["max_completion_tokens"] == task.max_completion_tokens == 5
    config = ours.run.config
    assert settings["kl_coef"] == config.kl_coef > 0
    for name in ("learning_rate", "temperature", "lora_alpha", "clip_low", "clip_high"):
        assert settings[name] == getattr(config, name)


# peft asks transformers by an old name
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
def test_a_real_model_gets_the_same_adapter_on_both_sides(real):
    from peft import get_peft_model

    ours, theirs, settings = real
    model = get_peft_model(theirs.model, worker.lora_config(settings))
    mine = {
        n: p.shape
        for n, p in ours.run.policy.model.named_parameters()
        if p.requires_grad
    }
    assert mine == {n: p.shape for n, p in model.named_parameters() if p.requires_grad}
    trained = sum(shape.numel() for shape in mine.values())
    peer = SimpleNamespace(facts={"trainable": trained})
    bench.check_same_adapter(trained, {"trl": peer})
    with pytest.raises(RuntimeError, match=r"'trl' trains .* Fix: give both sides"):
        bench.check_same_adapter(trained + 1, {"trl": peer})


def test_a_real_model_stops_and_is_paid_alike_on_both_sides(real):
    ours, theirs, _ = real
    task, tokenizer = ours.run.task, theirs.tokenizer
    assert set(theirs.model.generation_config.eos_token_id) == {
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    }
    texts = ["13", "13\nA s", "14", "49\n", " 13", "88\n4"]
    ids = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
    prompts = [theirs.texts[number // 3] for number in range(6)]  # prime, square
    paid = theirs.score(prompts, texts, ids)
    assert paid == [1.0, 1.0, 0.0, 1.0, 0.0, 0.0]
    width = max(map(len, ids))
    mask = torch.tensor([[n < len(row) for n in range(width)] for row in ids])
    padded = torch.tensor([row + [task.pad_id] * (width - len(row)) for row in ids])
    batch = task.encode(task.prompts("train")[:2])
    assert task.score(batch, padded, mask, num_generations=3).tolist() == paid


def test_completions_as_in_the_course_end_with_their_line():
    words = ["--model", "smollm2", "--weights", model_folder(), "--stop-at-line"]
    args = bench.parse(words)
    with bench.prepared(args) as name:
        config = bench.make_config(args, "flowrl")
        theirs = worker.TextLM(bench.worker_settings(config, name, threads=1))
    assert config.task == "open_sets"
    ends = theirs.model.generation_config.eos_token_id
    assert theirs.tokenizer("\n")["input_ids"][0] in ends
    line = theirs.tokenizer("13\n")["input_ids"]
    assert theirs.score(theirs.texts[:2], [""] * 2, [line, line[:-1]]) == [1.0, 0.0]


def test_more_prompts_than_questions_are_refused():
    args = bench.parse(["--model", "smollm2", "--prompts", "9"])
    with pytest.raises(ValueError, match=r"--prompts is 9.*Fix: --prompts 4"):
        bench.make_config(args, "grpo")


def test_floor_of_grouped_query_attention_counts_what_torch_executes(real):
    """Fewer key heads: smaller maps, as many products of queries with keys."""
    from torch.utils.flop_counter import FlopCounterMode

    policy = real[0].run.policy
    layers, lora, head = bench.count_weights(policy.model)
    config = policy.model.get_base_model().config
    assert config.num_key_value_heads < config.num_attention_heads
    tokens = torch.randint(3, 50, (1, 7))
    policy.model.set_attn_implementation("eager")  # products that can be counted
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        policy.model(input_ids=tokens)
    counts = counter.get_flop_counts()
    assert counts["Global"][torch.ops.aten.mm] == 2 * 7 * (layers + lora + head)
    shape = bench.attention_shape(config)
    attention = bench.forward_flops(0, *shape, tokens=0, pairs=49)
    # some versions of transformers work the angles of positions out by a product too
    products = [
        count[torch.ops.aten.bmm]
        for module, count in counts.items()
        if module.endswith(".self_attn")
    ]
    assert sum(products) == attention


def test_missing_trl_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ValueError, match=r"trl==\d") as error:
        bench.find_trl(None)
    assert "--trl-python" in str(error.value)
    with pytest.raises(ValueError, match="does not exist"):
        bench.find_trl("/no/such/python")


def test_our_side_really_trains(monkeypatch):
    args = bench.parse(["--prompts", "2", "--generations", "4", "--threads", "1"])
    with bench.model_folder(random_weights=True) as folder:
        assert (folder / "model.safetensors").is_file()
        ours = bench.Ours(bench.make_config(args, "grpo"))
        # random weights solve nothing: every other completion is called right
        monkeypatch.setattr(
            type(ours.run.task),
            "score",
            lambda _self, _prompts, ids, *_rest: (torch.arange(len(ids)) % 2).float(),
        )
        start = {k: v.clone() for k, v in ours.run.policy.state_dict().items()}
        step = ours.step()
    assert 8 <= step["tokens"] <= 8 * 12 and step["seconds"] > 0
    assert ours.run.step == 1
    moved = [
        not torch.equal(start[name], value)
        for name, value in ours.run.policy.state_dict().items()
    ]
    assert any(moved)
    assert not folder.exists()


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("trl") is None, reason="TRL is not in this environment"
)
def test_whole_comparison_with_trl(capsys):
    words = ["--random-weights", "--rounds", "1", "--warmup", "0", "--prompts", "2"]
    assert bench.main([*words, "--generations", "4", "--threads", "1"]) == 0
    assert "arithmetic floor" in capsys.readouterr().out


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("trl") is None, reason="TRL is not in this environment"
)
def test_whole_comparison_of_a_real_models_architecture(capsys):
    """One TRL and one of ours; unequal adapters would have been refused."""
    words = ["--model", "smollm2", "--weights", model_folder(), "--threads", "1"]
    words += ["--rounds", "1", "--warmup", "0", "--prompts", "2", "--generations", "4"]
    words += ["--peers", "trl", "--algorithms", "grpo", "--dtypes", "float32"]
    assert bench.main(words) == 0
    theirs, ours = capsys.readouterr().out.splitlines()[-2:]
    assert theirs.startswith("trl ") and ours.startswith("ours, grpo ")


# ------------------------------------------------------------------ one command


def in_repository(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import run_all

    monkeypatch.setattr(run_all, "choose_threads", lambda: 1)
    return run_all


@pytest.mark.full
def test_a_routes_peak_is_its_own_whatever_the_parent_held(monkeypatch):
    """Other sections of the table come before, in the same process."""
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import log_probs_memory

    held = torch.ones(150_000_000)
    words = ["--tokens", "512", "--vocab", "20000", "--hidden", "64"]
    ours, plain = log_probs_memory.compare(words)
    logits = 512 * 20_000 * 4
    assert plain["peak_bytes"] > 2 * logits > ours["peak_bytes"] > 0
    assert plain["peak_bytes"] < held.nbytes


def test_a_peak_below_the_gradients_is_not_believed(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.log_probs_memory import SMALL, check_peak

    figures = {"route": "ours", "peak_bytes": SMALL}
    check_peak(figures, SMALL)
    check_peak({**figures, "peak_bytes": 0}, SMALL)  # it may fit into what was free
    with pytest.raises(RuntimeError, match=r"ours is said to have needed.*Fix:"):
        check_peak(figures, SMALL + 1)


@pytest.mark.full
@pytest.mark.slow
def test_one_command_prints_one_table_and_keeps_it(monkeypatch, tmp_path, capsys):
    run_all, kept = in_repository(monkeypatch), tmp_path / "kept.json"
    words = ["--quick", "--only", "sweep", "log_probs", "--note", "a busy machine"]
    assert run_all.main([*words, "--json", str(kept)]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["what", "ours", "peer", "which", "ratio", "x", "floor"]
    peers = ["log_softmax + gather"]
    peers += ["selective_log_softmax"] if importlib.util.find_spec("trl") else []
    lines = ["log-probs 512 x 5,000"] * 2 * len(peers)
    assert [row.split(":")[0] for row in table[1:]] == ["step", *lines]
    found = json.loads(kept.read_text())
    assert found["machine"]["cores"] >= 1 and found["machine"]["processor"]
    for line in found["lines"]:
        assert line["ours"] > 0 and line["theirs"] > 0 and line["floor"] > 0
    units = [(line["peer"], line["unit"]) for line in found["lines"][1:]]
    assert units == [(peer, unit) for peer in peers for unit in ("s", "MiB")]
    assert run_all.show(kept) == 0
    shown = capsys.readouterr().out
    assert "a busy machine" in shown and shown.endswith("\n".join(table) + "\n")


def test_ratio_says_how_much_less_ours_needs(monkeypatch):
    run_all = in_repository(monkeypatch)
    line = {"what": "a", "unit": "s", "ours": 0.5, "peer": "b", "theirs": 4, "floor": 2}
    (_, row) = run_all.format_table([line]).splitlines()
    assert row.split() == ["a", "0.500", "s", "4.000", "b", "8.00x", "0.2x"]


def test_step_is_left_out_without_trl(monkeypatch, capsys):
    run_all = in_repository(monkeypatch)
    monkeypatch.setattr(run_all.importlib.util, "find_spec", lambda _name: None)
    for section in ("step", "step_smollm2"):
        assert run_all.SECTIONS[section](run_all.parse(["--quick"])) == []
        assert "give --trl-python" in capsys.readouterr().out


def test_quick_step_of_smollm2_never_downloads(monkeypatch, tmp_path, capsys):
    run_all = in_repository(monkeypatch)
    monkeypatch.setenv("FLOWRL_CACHE", str(tmp_path))
    args = run_all.parse(["--quick", "--trl-python", sys.executable])
    assert run_all.SECTIONS["step_smollm2"](args) == []
    assert "SmolLM2 is not here" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_lines_of_a_step_name_model_side_and_every_trl(monkeypatch):
    run_all = in_repository(monkeypatch)
    row = {"median": 2.0, "cpu": 3.0, "fastest": 1.0, "slowest": 4.0}
    found = {
        "rows": {
            "trl": row | {"median": 8.0},
            "trl, as it comes": row,
            "ours, grpo": row,
            "ours, flowrl, bfloat16": row,
        },
        "flops": {"sampling": 6.0, "forward": 4.0},
    }
    lines = run_all.lines_of_step(found, "SmolLM2-135M", peak=5.0)
    assert [(line["what"], line["peer"]) for line in lines] == [
        ("SmolLM2-135M, grpo", "TRL, float32, tuned"),
        ("SmolLM2-135M, grpo", "TRL, bfloat16"),
        ("SmolLM2-135M, flowrl, bfloat16", "TRL, float32, tuned"),
        ("SmolLM2-135M, flowrl, bfloat16", "TRL, bfloat16"),
    ]
    assert (lines[0]["ours"], lines[0]["theirs"], lines[0]["floor"]) == (2.0, 8.0, 2.0)


def test_cold_start_reports_what_failed(monkeypatch):
    in_repository(monkeypatch)
    from benchmarks import cold_start

    assert cold_start.time_code("pass") < 60
    with pytest.raises(RuntimeError, match="out of paper"):
        cold_start.time_code("raise OSError('out of paper')")


def test_kept_table_is_of_this_command(monkeypatch, capsys):
    run_all = in_repository(monkeypatch)
    assert run_all.main(["--show"]) == 0
    shown = capsys.readouterr().out
    assert "measured 2" in shown and "tiny LM, flowrl" in shown

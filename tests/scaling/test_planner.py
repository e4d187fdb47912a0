"""The planner: weights counted exactly, and held to what was measured."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
import torch

from flowrl_lab.scaling.planner import (
    MACHINES,
    MODELS,
    Machine,
    Measurement,
    ModelShape,
    Workload,
    calibrate,
    count_work,
    decode_seconds,
    estimate_memory,
    format_plan,
    leave_one_out,
    make_plan,
    peak_bytes,
    step_seconds,
    training_gigabytes,
)

ROOT = Path(__file__).resolve().parents[2]
STORED = ROOT / "data/results/planner_check.json"
WORK = Workload(4, 8, 16, 32)
TINY = MODELS["tiny (this course)"]


def check_script():
    path = ROOT / "benchmarks/planner_check.py"
    spec = importlib.util.spec_from_file_location("planner_check", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_those_of_the_real_model(name):
    """Built without memory by transformers, from the same numbers."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config
    from transformers import Qwen2ForCausalLM as Qwen2

    shape = MODELS[name]
    kinds = {True: (Qwen2Config, Qwen2), False: (LlamaConfig, LlamaForCausalLM)}
    config_class, model_class = kinds[shape.attention_bias]
    config = config_class(
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocab,
        tie_word_embeddings=shape.tied,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.device("meta"):
        model = model_class(config)
    assert sum(p.numel() for p in model.parameters()) == shape.parameters
    assert ModelShape.of(config).parameters == shape.parameters


def test_published_sizes():
    billions = {name: shape.parameters / 1e9 for name, shape in MODELS.items()}
    assert billions["Qwen2.5-7B"] == pytest.approx(7.62, abs=0.01)
    assert billions["Qwen2.5-32B"] == pytest.approx(32.8, abs=0.1)
    assert billions["SmolLM2-135M"] == pytest.approx(0.1345, abs=0.0001)


def test_the_adapter_is_counted_exactly():
    from flowrl_lab.policies.language_model import add_lora, build_tiny_llama

    model = add_lora(build_tiny_llama(18, pad_id=16, eos_id=17), rank=16, alpha=32.0)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert TINY.lora_weights(16) == trained


def test_predictions_are_near_what_was_measured():
    """Each stored step, foretold from the others; the README says how near."""
    measured = check_script().load(json.loads(STORED.read_text()))
    foretold = leave_one_out(measured)
    times = [s / m.seconds for (s, _), m in zip(foretold, measured, strict=True)]
    sizes = [b / m.peak_bytes for (_, b), m in zip(foretold, measured, strict=True)]
    assert len(measured) >= 12
    assert min(times) > 0.6 and max(times) < 1.6
    assert min(sizes) > 0.6 and max(sizes) < 1.6


def test_calibration_finds_the_machine_that_made_the_times():
    truth = Machine(5e10, call_seconds=3e-4)
    shapes = [TINY, ModelShape(8, 512, 1024, 8, 8, 512)]
    works = [WORK, dataclasses.replace(WORK, generations=32, lora_rank=0)]
    measured = [
        Measurement(shape, work, sum(step_seconds(shape, work, truth).values()))
        for shape in shapes
        for work in works
    ]
    found = calibrate(measured)
    assert found.fitted
    assert found.flops == pytest.approx(truth.flops, rel=1e-6)
    assert found.call_seconds == pytest.approx(truth.call_seconds, rel=1e-6)


def test_work_grows_as_it_should():
    base = count_work(TINY, WORK)
    twice = count_work(TINY, dataclasses.replace(WORK, updates_per_batch=2))
    assert twice["update"].flops == 2 * base["update"].flops
    assert twice["sample"] == base["sample"]
    apart = count_work(TINY, dataclasses.replace(WORK, share_prefix=False))
    assert apart["reference"].flops > base["reference"].flops
    again = count_work(TINY, dataclasses.replace(WORK, checkpointing=True))
    assert again["update"].flops == 1.5 * base["update"].flops


def test_memory_of_the_known_parts():
    shape = MODELS["Qwen2.5-7B"]
    full = estimate_memory(shape, dataclasses.replace(WORK, lora_rank=0))
    assert full["weights"] == full["reference"] == 2 * shape.parameters
    assert full["optimizer"] == 16 * shape.parameters
    lora = estimate_memory(shape, WORK)
    assert lora["reference"] == 0 and lora["optimizer"] < 0.02 * full["optimizer"]
    pieces = estimate_memory(shape, dataclasses.replace(WORK, rows_at_once=1))
    assert pieces["activations"] == pytest.approx(lora["activations"] / WORK.rows)


def test_decoding_waits_for_memory_and_then_for_arithmetic():
    chip = {"weight_bytes": 2, "flops": 400e12, "bandwidth": 2e12}
    one, some, many = (decode_seconds(7e9, rows, **chip) for rows in (1, 200, 2000))
    assert one == some == 7e9 * 2 / 2e12
    assert many == 2 * 7e9 * 2000 / 400e12 > some


def test_what_one_gpu_holds_is_the_plan_s_peak_and_shards_take_their_part():
    work = Workload(8, 8, 300, 1000, lora_rank=0, checkpointing=True, rows_at_once=2)
    model, chip = MODELS["Qwen2.5-7B"], MACHINES["H100"]
    parts = estimate_memory(model, work)
    rest = sum(parts.values()) - parts["optimizer"] - parts["sampling cache"]
    one, two = (
        training_gigabytes(model.parameters, n, rest=rest / 1e9) for n in (1, 2)
    )
    assert one == pytest.approx(peak_bytes(model, work, chip) / 1e9)
    assert one - two == pytest.approx(1.2 * parts["optimizer"] / 2e9)


def test_a_plan_adds_up_and_says_what_it_is():
    work = dataclasses.replace(WORK, steps=100)
    plan = make_plan(
        MODELS["Qwen2.5-7B"],
        work,
        MACHINES["H100"],
        price_per_hour=3.0,
        devices=4,
        efficiency=1.0,
    )
    step = sum(plan.seconds.values())
    assert plan.hours == pytest.approx(step * 100 / 4 / 3600)
    assert plan.money == pytest.approx(plan.hours * 4 * 3.0)
    text = format_plan(plan)
    assert "it fits" in text and "assumed, not measured" in text
    small = make_plan(MODELS["Qwen2.5-32B"], work, MACHINES["RTX 4090"])
    assert not small.fits and "does NOT fit" in format_plan(small)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Workload(0, 8, 1, 1), "prompts"),
        (lambda: Workload(1, 8, 1, 1, weight_bytes=3), "weight_bytes"),
        (lambda: ModelShape(0, 1, 1, 1, 1, 1), "layers"),
        (lambda: Machine(0.0), "flops"),
        (lambda: calibrate([]), "at least 2"),
        (lambda: calibrate([Measurement(TINY, WORK, 1.0)] * 3), "one kind only"),
        (lambda: make_plan(TINY, WORK, Machine(1.0), price_per_hour=-1.0), "price"),
        (lambda: make_plan(TINY, WORK, Machine(1.0), devices=5), "devices"),
        (lambda: make_plan(TINY, WORK, Machine(1.0), efficiency=2.0), "efficiency"),
        (
            lambda: decode_seconds(1, 0, weight_bytes=2, flops=1.0, bandwidth=1.0),
            "rows",
        ),
        (lambda: training_gigabytes(1, 0, rest=1.0), "shards"),
        (lambda: training_gigabytes(1, 1, rest=-1.0), "rest"),
    ],
)
def test_numbers_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()

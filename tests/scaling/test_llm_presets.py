"""Which model fits where: the arithmetic against transformers and against autograd."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flowrl_lab.policies.language_model import add_lora
from flowrl_lab.policies.packed import MAX_NODES
from flowrl_lab.scaling.llm_presets import (
    LLM_PRESETS,
    Device,
    choose_way,
    format_presets,
    llm_config,
    one_pass,
    pick_preset,
)
from flowrl_lab.scaling.planner import MODELS, estimate_memory

KINDS = {"cpu": "llama", "t4": "qwen2"}


def config_of(name: str, **changes):
    """The model's configuration as transformers has it."""
    from transformers import AutoConfig

    shape = MODELS[LLM_PRESETS[name].shape]
    return AutoConfig.for_model(
        KINDS[name],
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        vocab_size=shape.vocab,
        tie_word_embeddings=True,
        **changes,
    )


# --------------------------------------------------------------------------- choosing


def test_less_memory_gets_a_smaller_model():
    found = [
        pick_preset(Device("cuda", "GPU", free)).name for free in (15.6, 8.0, 5.5, 1.0)
    ]
    assert found == ["t4", "gpu-8gb", "gpu-small", "cpu"]
    assert pick_preset(Device("cpu", "CPU", float("nan"))).name == "cpu"
    assert "-> " in format_presets(Device("cpu", "CPU", 16.0))


def test_a_preset_becomes_a_config():
    chosen = llm_config(LLM_PRESETS["t4"], "flowrl", steps=3)
    assert chosen.model.startswith("Qwen/") and chosen.steps == 3
    assert chosen.device == "cuda" and chosen.micro_batch == 0


@pytest.fixture
def models_here(monkeypatch):
    """Which models were fetched before; none at first."""
    here = set()
    monkeypatch.setattr(
        "flowrl_lab.scaling.llm_presets.find_model",
        lambda name: Path("here") if name in here else None,
    )
    return here


def test_a_model_that_was_fetched_is_trained_live_or_in_full(models_here):
    models_here |= {"smollm2-135m", "Qwen/Qwen2.5-1.5B-Instruct"}
    for device, way, name in (
        (Device("cpu", "CPU", 8.0), "live", "cpu"),
        (Device("cpu", "CPU", float("nan")), "live", "cpu"),
        (Device("cuda", "T4", 15.0), "full", "t4"),
        (Device("cuda", "T4", 8.0), "full", "gpu-small"),  # no 0.5B was fetched
        (Device("cuda", "old", 1.0), "live", "cpu"),
    ):
        plan = choose_way(device)
        assert (plan.way, plan.preset.name) == (way, name)


def test_without_model_or_memory_a_recording_is_played(models_here):
    plan = choose_way(Device("cpu", "CPU", 8.0))
    assert plan.way == "replay" and "fetch-model smollm2-135m" in plan.why
    models_here.add("smollm2-135m")
    plan = choose_way(Device("cpu", "CPU", 1.5))
    assert (
        plan.way == "replay" and "4 GB of memory are needed, 1.5 are free" in plan.why
    )


def test_what_is_chosen_for_an_amount_of_memory_fits_into_it():
    for one in LLM_PRESETS.values():
        assert one.memory_gb < one.min_gb, one.name


# --------------------------------------------------------------------------- counting


def test_the_t4_preset_stays_below_14_gb():
    assert LLM_PRESETS["t4"].memory_gb == pytest.approx(9.5, abs=0.1)
    assert pick_preset(Device("cuda", "Tesla T4", 14.6)).name == "t4"


def test_a_shared_beginning_counts_once_as_long_as_all_fits():
    lengths = {"prompt_tokens": 55, "completion_tokens": 4}
    for rows, tokens in ((128, 732), (16, 119)):
        work = one_pass(rows, num_generations=32, **lengths)
        assert work.share_prefix and work.attended == tokens and work.rows == rows
    lengths["completion_tokens"] = 100
    assert MAX_NODES < 55 + 32 * 100
    apart = one_pass(32, num_generations=32, **lengths)
    assert not apart.share_prefix and apart.attended == 155
    assert apart.prefixes == apart.rows == 32


@pytest.mark.parametrize("name", KINDS)
def test_the_weights_are_counted_as_transformers_does(name):
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(name))
        exact = sum(p.numel() for p in model.parameters())
        model = add_lora(model, rank=16, alpha=32.0)
    shape = MODELS[LLM_PRESETS[name].shape]
    assert shape.parameters == exact
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert shape.lora_weights(16) == trained


def bytes_kept(model, tokens: int) -> int:
    """What autograd keeps of one packed pass, weights apart; every storage once."""
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    dtype = model.get_base_model().dtype
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model.get_base_model().model(
            input_ids=torch.zeros(1, tokens, dtype=torch.long),
            position_ids=torch.zeros(1, tokens, dtype=torch.long),
            attention_mask=torch.zeros(1, 1, tokens, tokens, dtype=dtype),
            use_cache=False,
        )
    assert output.last_hidden_state.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("name", KINDS)
def test_what_a_pass_keeps_is_what_autograd_keeps_at_full_size(name):
    """Tensors without content: no memory is needed for a billion weights."""
    from transformers import AutoModelForCausalLM

    tokens, one = 732, LLM_PRESETS[name]
    dtype = {2: torch.float16, 4: torch.float32}[one.weight_bytes]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(name), dtype=dtype)
        kept = bytes_kept(add_lora(model, rank=16, alpha=32.0), tokens) / 1e9
    work = one_pass(
        128,
        num_generations=32,
        prompt_tokens=55,
        completion_tokens=4,
        weight_bytes=one.weight_bytes,
    )
    assert work.attended == tokens
    parts = estimate_memory(MODELS[one.shape], work)
    counted = (parts["activations"] + parts["attention"]) / 1e9
    print(f"{name}: autograd keeps {kept:.2f} GB, counted {counted:.2f} GB")
    assert 0.85 < kept / counted < 1.0

"""Which model fits where: the arithmetic against transformers and against autograd."""

from __future__ import annotations

import pytest
import torch

from flowrl_lab.policies.language_model import add_lora
from flowrl_lab.policies.packed import MAX_NODES
from flowrl_lab.scaling.llm_presets import (
    LLM_PRESETS,
    Machine,
    estimate_memory,
    format_presets,
    llm_config,
    pick_preset,
    tokens_in_a_pass,
)

KINDS = {"cpu": "llama", "t4": "qwen2"}


def config_of(name: str, **changes):
    """The model's configuration as transformers has it."""
    from transformers import AutoConfig

    sizes = LLM_PRESETS[name].sizes
    return AutoConfig.for_model(
        KINDS[name], hidden_size=sizes.hidden, intermediate_size=sizes.inner,
        num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads, vocab_size=sizes.vocabulary,
        tie_word_embeddings=True, **changes,
    )  # fmt: skip


# --------------------------------------------------------------------------- choosing


def test_less_memory_gets_a_smaller_model():
    found = [
        pick_preset(Machine("cuda", "GPU", free, True)).name
        for free in (15.6, 8.0, 5.5, 1.0)
    ]
    assert found == ["t4", "gpu-8gb", "gpu-small", "cpu"]
    assert pick_preset(Machine("cpu", "CPU", float("nan"), False)).name == "cpu"
    assert "-> " in format_presets(Machine("cpu", "CPU", 16.0, False))


def test_a_preset_becomes_a_config():
    chosen = llm_config(LLM_PRESETS["t4"], "flowrl", steps=3)
    assert chosen.model.startswith("Qwen/") and chosen.steps == 3
    assert chosen.device == "cuda" and chosen.micro_batch == 0


def test_what_is_chosen_for_an_amount_of_memory_fits_into_it():
    for one in LLM_PRESETS.values():
        assert one.memory_gb < one.min_gb, one.name


# --------------------------------------------------------------------------- counting


def test_the_t4_preset_stays_below_14_gb():
    assert LLM_PRESETS["t4"].memory_gb == pytest.approx(9.5, abs=0.1)
    assert pick_preset(Machine("cuda", "Tesla T4", 14.6, False)).name == "t4"


def test_a_shared_beginning_counts_once_as_long_as_all_fits():
    lengths = {"prompt_tokens": 55, "completion_tokens": 4}
    assert tokens_in_a_pass(128, num_generations=32, **lengths) == (732, 732)
    assert tokens_in_a_pass(16, num_generations=32, **lengths) == (119, 119)
    lengths["completion_tokens"] = 100
    assert MAX_NODES < 55 + 32 * 100
    assert tokens_in_a_pass(32, num_generations=32, **lengths) == (32 * 155, 155)


@pytest.mark.parametrize("name", KINDS)
def test_the_weights_are_counted_as_transformers_does(name):
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(name))
        exact = sum(p.numel() for p in model.parameters())
        model = add_lora(model, rank=16, alpha=32.0)
    sizes = LLM_PRESETS[name].sizes
    assert sizes.parameters == pytest.approx(exact, rel=1e-3)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sizes.adapter_parameters(16) == trained


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
    dtype = {2: torch.float16, 4: torch.float32}[one.bytes_per_weight]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(name), dtype=dtype)
        kept = bytes_kept(add_lora(model, rank=16, alpha=32.0), tokens) / 1e9
    settings = {"attended": tokens, "bytes_per_weight": one.bytes_per_weight}
    counted = estimate_memory(one.sizes, tokens=tokens, **settings)
    counted -= estimate_memory(one.sizes, tokens=0, **settings)
    print(f"{name}: autograd keeps {kept:.2f} GB, counted {counted:.2f} GB")
    assert 0.85 < kept / counted < 1.0

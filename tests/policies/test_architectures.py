"""Every architecture is computed as transformers does it, or refused.

Tiny random models; the truth is the plain model, one unpadded row at a time.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import replace

import pytest
import torch
from packaging.version import Version

from flowrl_lab.policies import language_model
from flowrl_lab.policies.hf_lm import HFLanguageModelPolicy
from flowrl_lab.policies.language_model import add_lora
from flowrl_lab.policies.loading import LoadedModel
from flowrl_lab.policies.self_check import find_ways
from flowrl_lab.types import PromptBatch

VOCAB, PAD, EOS = 61, 0, 2
# peft 0.19 spells "all-linear" out letter by letter for these.
OLD_PEFT = Version(importlib.metadata.version("peft")) < Version("0.20")
PEFT_FAILS = ("mixtral", "qwen3_moe", "olmoe", "qwen3_next")
BASE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": EOS,
}
GPT = {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "head_dim": 8,
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
GLOBAL_LOCAL = {"attention_types": [[["global", "local"], 1]]}

ARCHITECTURES = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "mistral window": {"sliding_window": 4},
    "mistral wide window": {"sliding_window": 16},
    "mixtral": LOCAL,
    "qwen2": {},
    "qwen2 window": {
        "use_sliding_window": True,
        "sliding_window": 6,
        "max_window_layers": 1,
    },
    "qwen3": {"head_dim": 8},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {**EXPERTS, "head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 6},
    "gemma2 uncapped": {
        "head_dim": 8,
        "sliding_window": 6,
        "final_logit_softcapping": None,
    },
    "gemma3_text": {"head_dim": 8, "sliding_window": 12, "num_hidden_layers": 6},
    "phi": {},
    "phi3": {"sliding_window": None},
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon alibi": {
        "alibi": True,
        "new_decoder_architecture": False,
        "multi_query": False,
    },
    "bloom": {"n_head": 4, "n_layer": 2},
    "gpt2": GPT,
    "gptj": {**GPT, "rotary_dim": 4},
    "codegen": {**GPT, "rotary_dim": 4},
    "gpt_neox": {},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "window_size": 6, **GLOBAL_LOCAL},
    "gpt_bigcode": GPT,
    "gpt_oss": {**LOCAL, "head_dim": 8, "sliding_window": 12},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "opt projected": {"ffn_dim": 48, "word_embed_proj_dim": 16},
    "stablelm": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": {"sliding_window": 12},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "cohere": {},
    "cohere unscaled": {"logit_scale": 1.0},
    "cohere2": {"logit_scale": 1.0, "sliding_window": 12, "head_dim": 8},
    "granite": {"logits_scaling": 8.0},
    "granite unscaled": {"logits_scaling": 1.0},
    "granitemoe": {**LOCAL, "logits_scaling": 1.0},
    "smollm3": {},
    "starcoder2": {},
    "nemotron": {},
    "xglm": {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4},
    "biogpt": {},
    "glm": {"head_dim": 8},
    "glm4": {"head_dim": 8},
    "persimmon": {},
    "ernie4_5": {"head_dim": 8},
    "helium": {"head_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "seed_oss": {"head_dim": 8},
    "arcee": {},
    "apertus": {},
    "openai-gpt": GPT,
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2},
    "modernbert-decoder": {"local_attention": 8, "sep_token_id": 3, "cls_token_id": 4},
    "lfm2": {
        "layer_types": ["conv", "full_attention"],
        "block_auto_adjust_ff_dim": False,
    },
    "qwen3_5_text": LINEAR,
    "qwen3_next": {**LINEAR, **EXPERTS, "shared_expert_intermediate_size": 16},
    "recurrent_gemma": {
        "lru_width": 32,
        "attention_window_size": 8,
        "num_hidden_layers": 3,
    },
    "bamba": {"attn_layer_indices": [1], **MAMBA},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 64},
    "granitemoehybrid": {
        **LOCAL,
        **MAMBA,
        "layer_types": ["mamba", "attention"],
        "logits_scaling": 1.0,
        "shared_intermediate_size": 48,
    },
    "jamba": {
        **EXPERTS,
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "use_mamba_kernels": False,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
    "olmo_hybrid": {},
    "mamba": {"state_size": 8, "time_step_rank": 4},
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1},
    "rwkv": {"attention_hidden_size": 32},
    "bert": {},
}

REFUSED = {
    "bert": "lets a token see what comes after it",
    "cohere": "changes its scores behind its head",
    "gemma2": "changes its scores behind its head",
    "granite": "changes its scores behind its head",
    "modernbert-decoder": "has more than its head behind its last states",
    "recurrent_gemma": "changes its scores behind its head",
}
# One is longer than the windows are; the other is padded, and shares its beginning.
PROMPTS = ((5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 5, 6), (5, 6, 20))
ROWS = (
    (7, 8, 9, EOS),
    (7, 8, 30, 31, 32),
    (40, 41, EOS),
    (7, 8, 9, 10, 11),
    (21, 22, EOS),
    (21, 23, 24, 25, EOS),
)


def make_policy(name: str) -> HFLanguageModelPolicy:
    """A policy whose weights, the adapter's too, are large enough to tell mistakes."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {**BASE, **ARCHITECTURES[name]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(name.split()[0], **settings)
        base = AutoModelForCausalLM.from_config(config)
    model = add_lora(base, rank=2, alpha=4.0)
    generator = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        if weight.dim() >= 2:
            weight.data.normal_(0, 0.2, generator=generator)
    loaded = LoadedModel(base, None, name, "a test", name, 64)
    return HFLanguageModelPolicy(
        loaded, model, eos_id=EOS, pad_id=PAD, max_completion_tokens=5
    )


def batch(rows, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    fill = [[PAD] * (width - len(row)) for row in rows]
    sides = zip(fill, map(list, rows), strict=True)
    ids = torch.tensor([f + row if left else row + f for f, row in sides])
    places = torch.arange(width)
    lengths = torch.tensor([[len(row)] for row in rows])
    return ids, places >= width - lengths if left else places < lengths


def plain(policy, prompt, row) -> torch.Tensor:
    ids = torch.tensor([[*prompt, *row]])
    scores = policy.model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
    return scores[len(prompt) - 1 : -1].gather(-1, ids[0, len(prompt) :, None])[:, 0]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.filterwarnings("ignore")  # of layers that miss their kernels
def test_as_transformers_does_it_or_refused(name):
    if name in REFUSED:
        message = rf"the model \(a .*{REFUSED[name]}.*Fix: take another"
        with pytest.raises(ValueError, match=message):
            make_policy(name)
        return
    if OLD_PEFT and name in PEFT_FAILS:
        with pytest.raises(ValueError, match=r"finds no layers.*Fix: pip install"):
            make_policy(name)
        return
    policy = make_policy(name)
    ids, mask = batch(ROWS)
    prompts = PromptBatch(("a", "b"), *batch(PROMPTS, left=True), torch.arange(2))
    found = policy.evaluate(prompts, ids, mask).log_probs[mask]
    right = torch.cat([plain(policy, PROMPTS[n // 3], r) for n, r in enumerate(ROWS)])
    torch.testing.assert_close(found, right, rtol=0, atol=1e-4)

    weights = torch.linspace(-1, 1, len(found))
    parameters = policy.trainable_parameters()
    both = [
        torch.autograd.grad(
            (given * weights).sum(),
            parameters,
            allow_unused=True,
            materialize_grads=True,
        )
        for given in (found, right)
    ]
    size = max(part.abs().max().item() for part in both[1])
    for mine, plains in zip(*both, strict=True):
        torch.testing.assert_close(mine, plains, rtol=1e-3, atol=1e-4 * size)

    drawn = policy.sample(prompts, 2, generator=torch.Generator().manual_seed(0))
    for number, keep in enumerate(drawn.completion_mask):
        row = drawn.completion_ids[number, keep].tolist()
        with torch.no_grad():
            right = plain(policy, PROMPTS[number // 2], row)
        torch.testing.assert_close(
            drawn.log_probs[number, keep], right, rtol=0, atol=1e-4
        )


@pytest.mark.parametrize("window", [True, False])
def test_samples_past_a_window_are_compared_with_whole_rows(window, monkeypatch):
    """A cache that keeps a wrong part shows only in rows that are longer than it."""
    policy = make_policy("mistral wide window" if window else "mistral")
    assert policy.ways.packed and policy.ways.cached
    policy.ways = replace(policy.ways, packed=False)
    step = language_model._Decoder.step

    def forgetful(self, token, alive):
        self._cache.layers[0].keys = self._cache.layers[0].keys * 0.5
        step(self, token, alive)

    monkeypatch.setattr(language_model._Decoder, "step", forgetful)
    prompts = PromptBatch(("a", "b"), *batch(PROMPTS, left=True), torch.arange(2))
    drawn = policy.sample(prompts, 2, generator=torch.Generator().manual_seed(0))
    right = policy.evaluate(prompts, drawn.completion_ids, drawn.completion_mask)
    apart = (drawn.log_probs - right.log_probs).abs().max()
    assert policy.ways.cached != window
    assert apart < 1e-4 if window else apart > 1e-2


def mixed(_layer, _given, states):
    """Every row gets a little of the others."""
    return states + states.mean(0, keepdim=True)


def broken(_layer, _given, states):
    return states * torch.inf


@pytest.mark.parametrize(
    ("change", "what"),
    [(mixed, "other things of a row in company"), (broken, "are not finite")],
)
def test_other_models_that_no_policy_could_be_right_for(change, what):
    policy = make_policy("llama")
    policy._backbone.embed_tokens.register_forward_hook(change)
    with pytest.raises(ValueError, match=rf"LlamaForCausalLM\) .*{what}"):
        find_ways(policy)

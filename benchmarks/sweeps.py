"""What a training step costs as groups, completions and models grow.

A step here is sampling, the reference, and one update of a random tiny Llama with
its adapter.  The peer is the same step by plain rows: the Hugging Face model with a
cache, one row a completion (``LanguageModelPolicy``).  Both take turns in one run.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.step_vs_trl import step_flops

VOCAB, PAD, EOS, PROMPT_TOKENS = 20, 18, 19, 6


@dataclass(frozen=True)
class Case:
    """One size of a step.

    Attributes:
        prompts: P.
        generations: G completions of each.
        tokens: the most tokens of a completion.
        hidden: H of the model; its layers are four.
    """

    prompts: int = 8
    generations: int = 16
    tokens: int = 12
    hidden: int = 128

    def __str__(self) -> str:
        return f"G={self.generations}, {self.tokens} tokens, H={self.hidden}"


BASE = Case()
SWEEP = (
    *(replace(BASE, generations=count) for count in (4, 16, 64)),
    *(replace(BASE, tokens=count) for count in (6, 24)),
    *(replace(BASE, hidden=count) for count in (64, 256)),
)
TINY = (Case(prompts=2, generations=4, tokens=4, hidden=32),)


def make_policies(case: Case) -> dict:
    """The tree policy and the plain one, on the same model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from flowrl_lab.policies.fast.policy import TreeLanguageModelPolicy
    from flowrl_lab.policies.language_model import LanguageModelPolicy, add_lora

    config = LlamaConfig(
        vocab_size=VOCAB,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=None,
        hidden_size=case.hidden,
        intermediate_size=2 * case.hidden,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = add_lora(LlamaForCausalLM(config), rank=16, alpha=32.0)
    settings = {"eos_id": EOS, "pad_id": PAD, "max_completion_tokens": case.tokens}
    return {
        "ours": TreeLanguageModelPolicy(model, **settings),
        "plain rows": LanguageModelPolicy(model, **settings),
    }


def run_step(policy, case: Case, seed: int) -> tuple[float, float]:
    """Seconds of one step, and how many tokens a completion had on average."""
    from flowrl_lab.types import PromptBatch

    generator = torch.Generator().manual_seed(seed)
    shape = case.prompts, PROMPT_TOKENS
    ids = torch.randint(VOCAB - 2, shape, generator=generator)
    names = tuple(map(str, range(case.prompts)))
    mask = torch.ones_like(ids, dtype=torch.bool)
    prompts = PromptBatch(names, ids, mask, torch.arange(case.prompts))
    start = time.perf_counter()
    found = policy.sample(prompts, case.generations, generator=generator)
    batch = prompts, found.completion_ids, found.completion_mask
    policy.evaluate(*batch, reference=True)
    output = policy.evaluate(*batch)
    (output.log_probs.sum() / found.completion_mask.sum()).backward()
    seconds = time.perf_counter() - start
    return seconds, float(found.completion_mask.sum(-1).float().mean())


def measure(cases, rounds: int, peak: float) -> list[dict]:
    """A row for each case: both medians, and the floor at ``peak`` FLOP/s."""
    rows = []
    for case in cases:
        policies = make_policies(case)
        times: dict[str, list[float]] = {name: [] for name in policies}
        lengths = []
        for seed in range(rounds + 1):
            for name, policy in policies.items():
                seconds, length = run_step(policy, case, seed)
                if seed:  # the first is a warm-up
                    times[name].append(seconds)
                    lengths.append(length)
        flops = step_flops(
            policies["ours"],
            case.prompts,
            PROMPT_TOKENS,
            case.prompts * case.generations,
            statistics.fmean(lengths),
        )
        rows.append(
            {
                "what": f"step: {case}",
                "unit": "s",
                "ours": statistics.median(times["ours"]),
                "peer": "plain rows",
                "theirs": statistics.median(times["plain rows"]),
                "floor": sum(flops.values()) / peak,
            }
        )
    return rows

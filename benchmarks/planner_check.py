"""Time training steps of many kinds here, and see what the planner makes of them.

Each step samples, scores under the reference and updates, on random weights (the
cost does not depend on what they say) and with completions of one fixed length, on
one thread.  Every step is measured in a process of its own: time on the processor
(the least of three), and the peak of memory above what the process began with.

    python benchmarks/planner_check.py --out data/results/planner_check.json
    python benchmarks/planner_check.py --show data/results/planner_check.json

The table predicts each step from all the *others*: that is the planner's honest
error on a step that it has not seen, on a machine that it has.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.memory import memory_now  # noqa: E402
from flowrl_lab.scaling.planner import (  # noqa: E402
    Measurement,
    ModelShape,
    Workload,
    leave_one_out,
)

MODELS = {
    "4 x 128": ModelShape(4, 128, 256, 4, 4, 64),
    "4 x 256": ModelShape(4, 256, 512, 4, 4, 512),
    "8 x 256": ModelShape(8, 256, 1024, 8, 4, 512),
    "6 x 512": ModelShape(6, 512, 1536, 8, 4, 2048),
}
# prompts, generations, prompt tokens, completion tokens
BATCHES = ((2, 8, 16, 8), (4, 8, 16, 32), (4, 16, 64, 16))
REPEATS = 3


def make_workloads() -> list[tuple[str, Workload]]:
    """Every model with every batch; the last model also without LoRA."""
    grid = []
    for name in MODELS:
        for batch in BATCHES:
            work = Workload(*batch, weight_bytes=4)
            grid.append((name, work))
        if name == "6 x 512":
            grid.append((name, dataclasses.replace(work, lora_rank=0)))
    return grid


def build(shape: ModelShape, work: Workload):
    """A policy with random weights, its optimiser, and its prompts."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from flowrl_lab.policies.language_model import LanguageModelPolicy, add_lora
    from flowrl_lab.types import PromptBatch

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=256,
    )
    model = add_lora(LlamaForCausalLM(config), rank=work.lora_rank or 1, alpha=32.0)
    if not work.lora_rank:
        for parameter in model.parameters():
            parameter.requires_grad_(True)
    policy = LanguageModelPolicy(
        model, eos_id=-1, pad_id=0, max_completion_tokens=work.completion_tokens
    )
    ids = torch.randint(shape.vocab, (work.prompts, work.prompt_tokens))
    texts = tuple(str(number) for number in range(work.prompts))
    kept = torch.ones_like(ids, dtype=torch.bool)
    prompts = PromptBatch(texts, ids, kept, torch.arange(work.prompts))
    optimizer = torch.optim.AdamW(policy.trainable_parameters(), lr=1e-4)
    return policy, optimizer, prompts


def train_step(policy, optimizer, prompts, work: Workload) -> None:
    import torch

    from flowrl_lab.losses import flowrl_loss

    generator = torch.Generator().manual_seed(0)
    sampled = policy.sample(prompts, work.generations, generator=generator)
    answers = sampled.completion_ids, sampled.completion_mask
    reference = policy.evaluate(prompts, *answers, reference=True)
    output = policy.evaluate(prompts, *answers)
    loss = flowrl_loss(
        torch.zeros(work.rows),
        output.log_probs,
        sampled.log_probs,
        reference.log_probs,
        torch.rand(work.rows),
        sampled.completion_mask,
        length_normalize=False,
    )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def measure_here(shape: ModelShape, work: Workload) -> tuple[float, int]:
    """Processor seconds of a step, and its peak memory."""
    before = memory_now("VmRSS")
    parts = build(shape, work)
    seconds = []
    for _ in range(REPEATS + 1):  # the first one warms up
        start = time.process_time()
        train_step(*parts, work)
        seconds.append(time.process_time() - start)
    return min(seconds[1:]), memory_now("VmHWM") - before


def measure_apart(shape: ModelShape, work: Workload) -> tuple[float, int]:
    """The same in a child process, so that one step's peak is not another's."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, json.dumps(measure_here(shape, work)).encode())
        os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        answer = pipe.read()
    os.wait()
    seconds, peak = json.loads(answer)
    return seconds, peak


def measure_all() -> dict:
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401 - once, not per child
    from peft import LoraConfig  # noqa: F401

    from flowrl_lab.measuring.folder import describe_environment

    torch.set_num_threads(1)
    rows = []
    for name, work in make_workloads():
        seconds, peak = measure_apart(MODELS[name], work)
        rows.append(
            {
                "model": name,
                "shape": dataclasses.asdict(MODELS[name]),
                "work": dataclasses.asdict(work),
                "seconds": seconds,
                "peak_bytes": peak,
            }
        )
        print(f"{name} {work.rows} rows: {seconds:.3f} s", file=sys.stderr, flush=True)
    return {"environment": describe_environment(), "steps": rows}


def load(result: dict) -> list[Measurement]:
    """The stored steps as the planner takes them."""
    return [
        Measurement(
            ModelShape(**row["shape"]),
            Workload(**row["work"]),
            row["seconds"],
            row["peak_bytes"],
        )
        for row in result["steps"]
    ]


def format_table(result: dict) -> str:
    measured = load(result)
    lines = [
        f"{'model':8} {'rows':>4} {'S':>3} {'T':>3} {'trained':>7}  {'measured':>9}  "
        f"{'predicted':>9}  {'measured':>9}  {'predicted':>9}"
    ]
    times, sizes = [], []
    foretold = leave_one_out(measured)
    for row, one, (seconds, peak) in zip(
        result["steps"], measured, foretold, strict=True
    ):
        times.append(seconds / one.seconds)
        sizes.append(peak / one.peak_bytes)
        work, trained = one.work, "LoRA" if one.work.lora_rank else "all"
        lines.append(
            f"{row['model']:8} {work.rows:4} {work.prompt_tokens:3} "
            f"{work.completion_tokens:3} {trained:>7}  {one.seconds:7.3f} s  "
            f"{seconds:7.3f} s  {one.peak_bytes / 1e6:6.0f} MB  {peak / 1e6:6.0f} MB"
        )
    lines.append(f"time, predicted / measured:   {describe(times)}")
    lines.append(f"memory, predicted / measured: {describe(sizes)}")
    return "\n".join(lines)


def describe(ratios: list[float]) -> str:
    middle = statistics.median(ratios)
    return f"{min(ratios):.2f} to {max(ratios):.2f}, median {middle:.2f}"


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print a stored one")
    args = parser.parse_args(words)
    if args.out is not None and args.out.exists():
        parser.error(f"{args.out} exists; nothing is overwritten")
    if args.show is not None:
        result = json.loads(args.show.read_text(encoding="utf-8"))
    else:
        result = measure_all()
    print(format_table(result))
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

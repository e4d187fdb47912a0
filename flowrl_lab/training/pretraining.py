"""Make the tiny language models that the lessons start from.

What they read is in ``corpora``; each task with a tiny model has a recipe there, and
``data/TASK_tiny_lm`` holds what the recipe made.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from flowrl_lab.policies.language_model import (
    LanguageModelPolicy,
    add_lora,
    build_tiny_llama,
)
from flowrl_lab.policies.tiny_lm import no_progress_bar
from flowrl_lab.tasks import load_task
from flowrl_lab.training.corpora import RECIPES, PretrainConfig, Recipe, build_corpus
from flowrl_lab.types import ExactReport

__all__ = [
    "RECIPES",
    "PretrainConfig",
    "build_corpus",
    "claim_folder",
    "describe_making",
    "pretrain",
    "pretrain_steps",
    "save_checkpoint",
    "write_provenance",
]


def _loss(model, tokens: Tensor, prompt_tokens: int, pad_id: int) -> Tensor:
    """Cross-entropy of the answers' tokens, nats a token.

    Args:
        tokens: ``[batch, answers, prompt + answer]``; the answers of one row belong
            to the same prompt, which goes through the model once for all of them.
    """
    answers = tokens[:, :, prompt_tokens:]
    if tokens.shape[1] == 1:
        logits = model(input_ids=tokens[:, 0, :-1]).logits[:, prompt_tokens - 1 :]
        labels = answers[:, 0]
    else:
        logits, labels = _shared_prompt_logits(model, tokens, prompt_tokens), answers
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, -2), labels.flatten(), ignore_index=pad_id
    )


def _shared_prompt_logits(model, tokens: Tensor, prompt_tokens: int) -> Tensor:
    """Logits of every answer token, ``[batch, answers, T, V]``.

    A row is the prompt without its last token, then each answer behind a copy of that
    token; every answer sees the prompt and itself, never its neighbours.
    """
    start, (_, count, width) = prompt_tokens - 1, tokens.shape
    size = width - 1 - start
    row = torch.cat([tokens[:, 0, :start], tokens[:, :, start:-1].flatten(1)], dim=1)
    places = torch.arange(row.shape[1], device=row.device)
    block = torch.where(places < start, -1, (places - start) // size)
    positions = torch.where(places < start, places, start + (places - start) % size)
    visible = (places[None] <= places[:, None]) & (
        (block[None] == -1) | (block[None] == block[:, None])
    )
    mask = torch.zeros(visible.shape, device=row.device)
    mask = mask.masked_fill(~visible, torch.finfo(mask.dtype).min)
    logits = model(
        input_ids=row,
        position_ids=positions.expand(len(row), -1),
        attention_mask=mask.expand(len(row), 1, -1, -1),
    ).logits
    return logits[:, start:].unflatten(1, (count, size))


def _learning_rate(step: int, config: Recipe) -> float:
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def _draw_places(config: Recipe, total: Tensor, generator) -> Tensor:
    """Places in the running sum of the weights, ``[batch, answers]``.

    The weights of a prompt sum to 1, so a prompt lies between two whole numbers.
    """

    def draw(*shape: int) -> Tensor:
        return torch.rand(
            shape, device=total.device, dtype=torch.double, generator=generator
        )

    first = draw(config.batch_size)[:, None] * total
    if config.answers_per_prompt == 1:
        return first
    return first.floor() + draw(config.batch_size, config.answers_per_prompt)


def pretrain_steps(task, model, config: Recipe) -> Iterator[tuple[int, float]]:
    """Train ``model`` in place; yield (step, loss) after each update."""
    device = next(model.parameters()).device
    tokens, weights = (part.to(device) for part in build_corpus(task, config))
    generator = torch.Generator(device).manual_seed(config.seed)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        betas=(0.9, 0.98),
    )
    cumulative = weights.double().cumsum(0)
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(step, config)
        places = _draw_places(config, cumulative[-1], generator)
        rows = torch.searchsorted(cumulative, places)
        batch = tokens[rows.clamp(max=len(tokens) - 1)]
        loss = _loss(model, batch, task.max_prompt_tokens, task.pad_id)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        yield step + 1, loss.item()


def save_checkpoint(model, out_dir: Path, facts: dict) -> None:
    """Write config.json, model.safetensors and provenance.json (with sha256)."""
    with no_progress_bar():
        model.save_pretrained(out_dir)
    (out_dir / "generation_config.json").unlink(missing_ok=True)
    write_provenance(out_dir, facts)


def write_provenance(out_dir: Path, facts: dict) -> None:
    """Write provenance.json: the facts, and the sha256 of every file in the folder."""
    files = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out_dir.iterdir())
        if path.name != "provenance.json"
    }
    note = json.dumps({**facts, "files": files}, indent=2, sort_keys=True)
    (out_dir / "provenance.json").write_text(note + "\n", encoding="utf-8")


def pretrain(
    out_dir: str | Path,
    config: Recipe | None = None,
    *,
    device: str = "cpu",
    report=print,
) -> dict:
    """Train the checkpoint from nothing and save it.

    Args:
        out_dir: a folder that must not exist yet, or be empty.
        config: the recipe, of one task; None is that of the maths checkpoint.
        device: where to train.
        report: called with a line of progress now and then.

    Returns:
        The facts written to ``provenance.json``.

    Raises:
        ValueError: ``out_dir`` already holds something.
    """
    config = PretrainConfig() if config is None else config
    out_dir = claim_folder(out_dir)  # fails now, not after the training
    task = load_task(config.task)
    model = build_tiny_llama(
        task.vocab_size,
        pad_id=task.pad_id,
        eos_id=task.eos_id,
        seed=config.seed,
        **config.sizes,
    ).to(device)
    start, every = time.perf_counter(), max(1, config.steps // 20)
    for step, loss in pretrain_steps(task, model, config):
        if step % every == 0:
            spent = time.perf_counter() - start
            left = spent / step * (config.steps - step)
            report(f"step {step}/{config.steps}  loss {loss:.3f}  {left:.0f} s left")
    seconds = time.perf_counter() - start
    facts = _facts(task, model, config, seconds, device)
    save_checkpoint(model.cpu(), out_dir, facts)
    return facts


def claim_folder(out_dir: str | Path) -> Path:
    """A folder that holds nothing yet, made.

    Raises:
        ValueError: it holds something.
    """
    out_dir = Path(out_dir)
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise ValueError(
            f"{out_dir} already holds files; nothing is overwritten. "
            "Fix: name a new folder."
        )
    out_dir.mkdir(parents=True, exist_ok=True)
    return out_dir


def _facts(task, model, config: Recipe, seconds: float, device: str) -> dict:
    """Where the checkpoint comes from and what it can do on held-out prompts."""
    from flowrl_lab.evaluation import evaluate_policy

    policy = LanguageModelPolicy(
        add_lora(model, rank=1, alpha=1.0),
        eos_id=task.eos_id,
        pad_id=task.pad_id,
        max_completion_tokens=task.max_completion_tokens,
    )
    report = evaluate_policy(policy, task, task.prompts("heldout"))
    model = policy.model.unload()
    return {
        "what": f"tiny Llama for {task.name}, trained from random weights",
        "command": f"python -m flowrl_lab pretrain {task.name} --out FOLDER",
        "recipe": dataclasses.asdict(config),
        "parameters": sum(p.numel() for p in model.parameters()),
        "device": device,
        **describe_making(seconds, report),
    }


def describe_making(seconds: float, report: ExactReport) -> dict:
    """What every provenance says: licence, machine, and the referee's figures."""
    return {
        "licence": "Apache-2.0, as the project; the corpus is generated by the recipe",
        "seconds": round(seconds, 1),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "heldout_accuracy": round(report.accuracy, 4),
        "heldout_effective_answers": round(report.effective_answers, 2),
        "heldout_prompts": report.num_prompts,
    }

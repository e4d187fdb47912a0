"""Make the tiny language models that the lessons start from.

What they read is in ``corpora``; each task with a tiny model has a recipe there, and
``data/TASK_tiny_lm`` holds what the recipe made.
"""

from __future__ import annotations

import contextlib
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

from flowrl_lab.corpora import RECIPES, PretrainConfig, Recipe, build_corpus
from flowrl_lab.policies.language_model import (
    LanguageModelPolicy,
    add_lora,
    build_tiny_llama,
)
from flowrl_lab.policies.tree_llama import TreeLlama
from flowrl_lab.policies.tree_policy import TreeLanguageModelPolicy
from flowrl_lab.session import data_path
from flowrl_lab.tasks import load_task

__all__ = [
    "RECIPES",
    "PretrainConfig",
    "build_corpus",
    "checkpoint_name",
    "load_base_model",
    "load_tiny_lm",
    "pretrain",
    "pretrain_steps",
    "save_checkpoint",
]


def checkpoint_name(task_name: str) -> str:
    """The folder in ``data/`` with the tiny model of a task."""
    return f"{task_name}_tiny_lm"


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
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay,
        betas=(0.9, 0.98),
    )  # fmt: skip
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
    with _no_progress_bar():
        model.save_pretrained(out_dir)
    (out_dir / "generation_config.json").unlink(missing_ok=True)
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
    out_dir = Path(out_dir)
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise ValueError(
            f"{out_dir} already holds files; nothing is overwritten. "
            "Fix: name a new folder."
        )
    out_dir.mkdir(parents=True, exist_ok=True)  # fails now, not after the training
    task = load_task(config.task)
    model = build_tiny_llama(
        task.vocab_size, pad_id=task.pad_id, eos_id=task.eos_id, seed=config.seed
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


def _facts(task, model, config: Recipe, seconds: float, device: str) -> dict:
    """Where the checkpoint comes from and what it can do on held-out prompts."""
    from flowrl_lab.evaluation import evaluate_policy

    policy = LanguageModelPolicy(
        add_lora(model, rank=1, alpha=1.0),
        eos_id=task.eos_id, pad_id=task.pad_id,
        max_completion_tokens=task.max_completion_tokens,
    )  # fmt: skip
    report = evaluate_policy(policy, task, task.prompts("heldout"))
    model = policy.model.unload()
    return {
        "what": f"tiny Llama for {task.name}, trained from random weights",
        "command": f"python -m flowrl_lab pretrain {task.name} --out FOLDER",
        "licence": "Apache-2.0, as the project; the corpus is generated by the recipe",
        "recipe": dataclasses.asdict(config),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(seconds, 1),
        "device": device,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "heldout_accuracy": round(report.accuracy, 4),
        "heldout_effective_answers": round(report.effective_answers, 2),
        "heldout_prompts": report.num_prompts,
    }


@contextlib.contextmanager
def _no_progress_bar():
    """Four megabytes need no bar of their own in a notebook."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _read_provenance(folder: Path) -> dict[str, str]:
    """File name -> sha256, as ``save_checkpoint`` wrote them."""
    note = folder / "provenance.json"
    remake = (
        "Fix: restore data/ from the repository, or remake it in a new folder: "
        "python -m flowrl_lab pretrain TASK --out FOLDER"
    )
    if not note.is_file():
        raise ValueError(f"{folder} holds no provenance.json. {remake}")
    try:
        files = dict(json.loads(note.read_bytes())["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{note} is damaged ({type(error).__name__}: {error}); expected JSON with "
            f"the sha256 of every file. {remake}"
        ) from None
    missing = {"config.json", "model.safetensors"} - files.keys()
    if missing:
        raise ValueError(f"{note} does not list {sorted(missing)}. {remake}")
    return files


def load_base_model(folder: str | Path | None = None):
    """The maths lesson's tiny Llama (or the one in ``folder``), checked by sha256.

    Raises:
        ValueError: a file is missing, truncated or altered.
    """
    from transformers import LlamaForCausalLM

    folder = (
        data_path(checkpoint_name(PretrainConfig.task))
        if folder is None
        else Path(folder)
    )
    for name, expected in _read_provenance(folder).items():
        path = folder / name
        found = (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        )
        if found != expected:
            raise ValueError(
                f"{path} is {'missing' if found is None else 'damaged'}: sha256 is "
                f"{found}, expected {expected}. Fix: restore it from the repository."
            )
    with _no_progress_bar():
        return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def load_tiny_lm(
    task,
    *,
    rank: int,
    alpha: float,
    seed: int = 0,
    device: str | torch.device = "cpu",
    folder: str | Path | None = None,
    dtype: str = "auto",
) -> LanguageModelPolicy:
    """The pretrained tiny LM with a fresh LoRA adapter, as a policy.

    On a CPU it computes every shared prefix once, in compiled passes
    (``TreeLanguageModelPolicy``); a GPU is faster with plain rows.  Both give the same
    numbers.

    Args:
        dtype: "auto" and "float32" are the same.

    Raises:
        ValueError: a damaged checkpoint, or one with other tokens than the task's; a
            dtype that the tiny model is not trained in.
    """
    if dtype not in ("auto", "float32"):
        raise ValueError(
            f"dtype is {dtype!r} for the tiny language model; expected 'auto' or "
            "'float32'. Fix: use dtype='auto'."
        )
    if folder is None and task.name in RECIPES:
        folder = data_path(checkpoint_name(task.name))
    base = load_base_model(folder)
    speaks = (base.config.vocab_size, base.config.eos_token_id)
    if speaks != (task.vocab_size, task.eos_id):
        raise ValueError(
            f"policy 'tiny_lm' has {speaks[0]} tokens and ends with {speaks[1]}; task "
            f"{task.name!r} has {task.vocab_size} and {task.eos_id}. Fix: use "
            "policy='auto', or a checkpoint that was trained for this task."
        )
    model = add_lora(base, rank=rank, alpha=alpha, seed=seed)
    model = model.to(device)
    in_trees = TreeLlama.supports(model)
    policy_class = TreeLanguageModelPolicy if in_trees else LanguageModelPolicy
    return policy_class(
        model,
        eos_id=task.eos_id,
        pad_id=task.pad_id,
        max_completion_tokens=task.max_completion_tokens,
    )

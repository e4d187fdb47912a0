"""Make the tiny language model that the maths lesson starts from.

Its corpus is careless, as the text behind real base models is: every working is
true and uses no banned digit, but about half of the examples stop half-way,
before the number is made.  The model so learns to calculate, to write the format
and to give up about as often as its corpus does.  Right answers are not equally
common either: each expression has a fixed random weight, and answers with
working are more frequent than bare ones.  Reinforcement learning then has
something to improve, and a reference that is worth keeping.
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

from flowrl_lab.policies.language_model import (
    LanguageModelPolicy,
    add_lora,
    build_tiny_llama,
)
from flowrl_lab.policies.tree_policy import TreeLanguageModelPolicy
from flowrl_lab.session import data_path
from flowrl_lab.tasks import make_number

__all__ = [
    "PretrainConfig",
    "build_corpus",
    "load_base_model",
    "load_tiny_lm",
    "pretrain",
    "pretrain_steps",
    "save_checkpoint",
]

CHECKPOINT = "make_number_tiny_lm"


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """The recipe of the shipped checkpoint.

    Attributes:
        steps: updates.
        batch_size: examples an update.
        learning_rate: peak, after ``warmup`` steps; it then falls to 0 (cosine).
        warmup: steps of linear rise.
        weight_decay: of AdamW.
        right_share: share of the corpus that is finished; the rest stops half-way
            (1 in 16 of those has made the number by then, as in ``8+9=17-0``).
        working_share: share of the examples that show their working.
        weight_spread: standard deviation of an expression's log-weight.
        seed: of the weights, the corpus and the batches.
    """

    steps: int = 2500
    batch_size: int = 128
    learning_rate: float = 3e-3
    warmup: int = 100
    weight_decay: float = 0.01
    right_share: float = 0.55
    working_share: float = 0.95
    weight_spread: float = 0.7
    seed: int = 0


def _examples(prompt: str) -> tuple[list[str], list[str]]:
    """Right answers, and unfinished ones: workings that stop half-way."""
    target, banned = make_number.parse_prompt(prompt)
    right, unfinished = [], []
    for operands, operators, value in make_number._all_expressions()[target]:
        if banned.isdisjoint(operands):
            texts = make_number._spellings(operands, operators, value, target)
            right += texts
            if len(operands) == 3:
                unfinished.append(texts[1][: texts[1].index("=") + 1] + str(value))
    return right, unfinished or right


def _expression_weight(answer: str, config: PretrainConfig) -> float:
    """A fixed random weight: the same expression is as common on every machine."""
    expression = answer if "=" not in answer else answer[: answer.rfind("=")]
    digest = hashlib.sha256(f"{config.seed}:{expression}".encode()).digest()
    uniform = (int.from_bytes(digest[:4], "big") + 0.5) / 2**32
    normal = math.sqrt(2) * torch.erfinv(torch.tensor(2 * uniform - 1)).item()
    spelling = config.working_share if "=" in answer else 1 - config.working_share
    return spelling * math.exp(config.weight_spread * normal)


def build_corpus(task, config: PretrainConfig) -> tuple[Tensor, Tensor]:
    """Every training example with its sampling weight.

    Returns:
        ``(tokens [M, S + T], weights [M])``: prompt, answer, end token, padding;
        the weights of a prompt's examples sum to 1.
    """
    rows, weights = [], []
    for prompt in task.prompts("train"):
        for answers, share in zip(
            _examples(prompt), (config.right_share, 1 - config.right_share), strict=True
        ):
            raw = [_expression_weight(answer, config) for answer in answers]
            weights += [share * weight / sum(raw) for weight in raw]
            rows += [prompt + answer for answer in answers]
    width = task.max_prompt_tokens + task.max_completion_tokens
    tokens = torch.full((len(rows), width), task.pad_id)
    for row, text in enumerate(rows):
        ids = [*make_number._to_ids(text), task.eos_id]
        tokens[row, : len(ids)] = torch.tensor(ids)
    return tokens, torch.tensor(weights)


def _loss(model, tokens: Tensor, prompt_tokens: int, pad_id: int) -> Tensor:
    """Cross-entropy of the answers' tokens, nats a token."""
    logits = model(input_ids=tokens[:, :-1]).logits[:, prompt_tokens - 1 :]
    labels = tokens[:, prompt_tokens:]
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=pad_id
    )


def _learning_rate(step: int, config: PretrainConfig) -> float:
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    progress = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def pretrain_steps(task, model, config: PretrainConfig) -> Iterator[tuple[int, float]]:
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
        draws = torch.rand(
            config.batch_size, device=device, dtype=torch.double, generator=generator
        )
        rows = torch.searchsorted(cumulative, draws * cumulative[-1])
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
    config: PretrainConfig | None = None,
    *,
    device: str = "cpu",
    report=print,
) -> dict:
    """Train the checkpoint from nothing and save it.

    Args:
        out_dir: a folder that must not exist yet, or be empty.
        config: the recipe; None is the shipped one.
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
    task = make_number.MakeNumber()
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


def _facts(task, model, config: PretrainConfig, seconds: float, device: str) -> dict:
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
        "what": "tiny Llama for make_number, trained from random weights",
        "command": "python -m flowrl_lab pretrain make_number --out FOLDER",
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
        "python -m flowrl_lab pretrain make_number --out FOLDER"
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
    """The shipped tiny Llama (or the one in ``folder``), checked by sha256.

    Raises:
        ValueError: a file is missing, truncated or altered.
    """
    from transformers import LlamaForCausalLM

    folder = data_path(CHECKPOINT) if folder is None else Path(folder)
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
) -> LanguageModelPolicy:
    """The pretrained tiny LM with a fresh LoRA adapter, as a policy.

    On a CPU it computes every shared prefix once (``TreeLanguageModelPolicy``); a
    GPU is faster with plain rows.  Both give the same numbers.

    Raises:
        ValueError: a damaged checkpoint, or one with other tokens than the task's.
    """
    base = load_base_model(folder)
    speaks = (base.config.vocab_size, base.config.eos_token_id)
    if speaks != (task.vocab_size, task.eos_id):
        raise ValueError(
            f"policy 'tiny_lm' has {speaks[0]} tokens and ends with {speaks[1]}; task "
            f"{task.name!r} has {task.vocab_size} and {task.eos_id}. Fix: use "
            "policy='auto', or a checkpoint that was trained for this task."
        )
    model = add_lora(base, rank=rank, alpha=alpha, seed=seed)
    on_cpu = torch.device(device).type == "cpu"
    policy_class = TreeLanguageModelPolicy if on_cpu else LanguageModelPolicy
    return policy_class(
        model.to(device),
        eos_id=task.eos_id,
        pad_id=task.pad_id,
        max_completion_tokens=task.max_completion_tokens,
    )

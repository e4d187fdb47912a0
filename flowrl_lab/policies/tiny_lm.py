"""The pretrained tiny language models in ``data/``, checked and made a policy."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

import torch

from flowrl_lab._files import data_path
from flowrl_lab.policies.fast.llama import TreeLlama
from flowrl_lab.policies.fast.policy import TreeLanguageModelPolicy
from flowrl_lab.policies.language_model import (
    LanguageModelPolicy,
    add_lora,
)

__all__ = [
    "checkpoint_name",
    "load_base_model",
    "load_tiny_lm",
    "no_progress_bar",
]

# The tasks with a checkpoint in data/; ``training.corpora`` holds their recipes.
TRAINED_ON = ("make_number", "programs", "sums")


def checkpoint_name(task_name: str) -> str:
    """The folder in ``data/`` with the tiny model of a task, or of all its lengths."""
    return f"{_trained_name(task_name)}_tiny_lm"


def _trained_name(task_name: str) -> str:
    return task_name.rstrip("_0123456789")  # sums_57 is a length of sums


@contextlib.contextmanager
def no_progress_bar():
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
        data_path(checkpoint_name(TRAINED_ON[0])) if folder is None else Path(folder)
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
    with no_progress_bar():
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
    if folder is None and _trained_name(task.name) in TRAINED_ON:
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

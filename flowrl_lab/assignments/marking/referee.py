"""The referee of recorded results: files are measured, not believed.

A student's file is only ever data: safetensors with the names and shapes that are
asked for, finite numbers, of bounded size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["judge_adapter", "judge_start", "read_json", "read_tensors"]

MAX_BYTES = 8_000_000
MAX_TENSORS = 500


def read_tensors(
    content: bytes, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Args:
        content: the file.
        shapes: the names and shapes that it must have; None takes any.

    Raises:
        ValueError: too large, not safetensors, other names or shapes, NaN or infinity.
            The message is for the student.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    if len(content) > MAX_BYTES:
        raise ValueError(f"the file is larger than {MAX_BYTES / 1e6:g} MB")
    try:
        found = load(content)
    except (SafetensorError, ValueError, KeyError, RuntimeError, TypeError):
        raise ValueError(
            "the file is not safetensors; write it with safetensors.torch.save_file"
        ) from None
    if len(found) > MAX_TENSORS:
        raise ValueError(f"the file holds more than {MAX_TENSORS} tensors")
    if shapes is not None:
        _check_shapes(found, shapes)
    for name, value in sorted(found.items()):
        if not value.dtype.is_floating_point:
            raise ValueError(f"{name} holds {value.dtype}, expected floating point")
        if not bool(torch.isfinite(value.double()).all()):
            raise ValueError("the file holds NaN or infinity")
    return found


def _check_shapes(
    found: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    for name, shape in shapes.items():
        if name not in found:
            raise ValueError(f"the file has no tensor {name!r}")
        if tuple(found[name].shape) != tuple(shape):
            raise ValueError(
                f"{name} has shape {list(found[name].shape)}, expected {list(shape)}"
            )
    extra = sorted(set(found) - set(shapes))
    if extra:
        raise ValueError(f"the file has a tensor that was not asked for: {extra[0]!r}")


def read_json(content: bytes) -> Any:
    """A small JSON file of a student's.

    Raises:
        ValueError: too large, or not JSON.
    """
    if len(content) > 100_000:
        raise ValueError("the file is larger than 100 kB")
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):
        raise ValueError("the file is not JSON in UTF-8") from None


def judge_adapter(
    content: bytes, task, *, rank: int, alpha: int | float, num_prompts: int
) -> dict[str, float]:
    """Exact figures of a LoRA adapter of the tiny language model, on held-out prompts.

    Args:
        content: a safetensors file: the ``state_dict()`` of a run's policy.
        task: whose held-out prompts and answers to judge on.
        rank: of the adapter.
        alpha: its scale.
        num_prompts: the first so many held-out prompts.

    Returns:
        ``accuracy``, ``effective`` answers, ``pass64``, ``kl`` (target to policy).

    Raises:
        ValueError: a file that is no such adapter; the message is for the student.
    """
    policy = _adapter_policy(task, rank, alpha)
    shapes = {name: tuple(v.shape) for name, v in policy.state_dict().items()}
    state = read_tensors(content, shapes)
    policy.load_state_dict({name: value.float() for name, value in state.items()})
    return _measure(policy, task, num_prompts)


def judge_start(
    task, *, rank: int, alpha: int | float, num_prompts: int
) -> dict[str, float]:
    """The same figures of the pretrained model, before any training."""
    return _measure(_adapter_policy(task, rank, alpha), task, num_prompts)


def _adapter_policy(task, rank: int, alpha: int | float):
    from flowrl_lab.policies import make_policy

    return make_policy(
        "tiny_lm", task, seed=0, lora_rank=rank, lora_alpha=alpha, device="cpu"
    )


def _measure(policy, task, num_prompts: int) -> dict[str, float]:
    from flowrl_lab.evaluation import evaluate_policy

    report = evaluate_policy(policy, task, task.prompts("heldout")[:num_prompts])
    return {
        "accuracy": report.accuracy,
        "effective": report.effective_answers,
        "pass64": report.pass_at_k[64],
        "kl": report.kl_target_policy,
    }

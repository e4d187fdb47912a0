"""Checks shared by the tasks whose completions all have the same length."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

__all__ = ["check_completions", "check_prompts", "check_range"]


def check_prompts(texts: Sequence[str], known: Sequence[str]) -> None:
    """Every text is a known prompt, and there is at least one.

    Raises:
        ValueError: otherwise.
    """
    if isinstance(texts, str):
        raise ValueError(f"prompts: got one string {texts!r}, expected a tuple of them")
    if not len(texts):
        raise ValueError("prompts: got none, expected at least one")
    for text in texts:
        if text not in known:
            raise ValueError(
                f"prompt: got {text!r}, expected one of {list(known)[:8]}"
                f"{' …' if len(known) > 8 else ''}"
            )


def check_completions(
    completion_ids: Int[Tensor, "B T"],
    completion_mask: Bool[Tensor, "B T"],
    length: int,
    vocab_size: int,
    *,
    rows: int | None = None,
) -> None:
    """Completions are [B, length] ids in 0 … vocab_size-1, none masked out.

    Raises:
        ValueError: otherwise.
    """
    shape, wanted = tuple(completion_ids.shape), "B" if rows is None else rows
    if len(shape) != 2 or shape[1] != length or (rows is not None and shape[0] != rows):
        raise ValueError(
            f"completion_ids: got shape {shape}, expected [{wanted}, {length}]"
        )
    if completion_ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"completion_ids: got {completion_ids.dtype}, expected torch.int64; "
            "convert with .long()"
        )
    if completion_mask.shape != completion_ids.shape:
        raise ValueError(
            f"completion_mask: got shape {tuple(completion_mask.shape)}, "
            f"expected {shape}"
        )
    if completion_mask.dtype != torch.bool or not bool(completion_mask.all()):
        raise ValueError(
            "completion_mask: got masked-out tokens or a type that is not bool, "
            f"expected True everywhere: all completions have {length} tokens"
        )
    low, high = (int(x) for x in completion_ids.aminmax()) if shape[0] else (0, 0)
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"completion_ids: got ids from {low} to {high}, "
            f"expected 0 to {vocab_size - 1}"
        )


def check_range(key: str, value: int, low: int, high: int) -> None:
    """A whole number from low to high.

    Raises:
        ValueError: otherwise.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{key}: got {value!r}, expected a whole number")
    if not low <= value <= high:
        raise ValueError(f"{key}: got {value}, expected {low} to {high}")

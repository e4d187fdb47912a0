"""The device that a policy computes on, and its threads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from flowrl_lab._validation import check_count

__all__ = [
    "has_native_bfloat16",
    "pick_device",
    "set_threads_for_large",
    "threads_for",
]

_threads_for_large: int | None = None


def set_threads_for_large(count: int | None) -> None:
    """PyTorch's threads while a model of large tensors is at work; None: as they are.

    Raises:
        ValueError: count below 1.
    """
    global _threads_for_large
    if count is not None:
        check_count("count", count)
    _threads_for_large = count


@contextlib.contextmanager
def threads_for(policy) -> Iterator[None]:
    """PyTorch's threads as suit the tensors of ``policy``, for the time of a block.

    A policy with ``large_tensors`` gets those of ``set_threads_for_large``: products
    with a real model's weights are worth sharing, a tiny one's are not.
    """
    before, wanted = torch.get_num_threads(), _threads_for_large
    if wanted in (None, before) or not policy.large_tensors:
        yield
        return
    torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def has_native_bfloat16(device) -> bool:
    """Whether a device multiplies bfloat16 itself: where it does not, it is no faster.

    Args:
        device: "cpu" (AVX-512 BF16 or AMX), "cuda" (Ampere and later; a T4 is compute
            capability 7.5 and emulates it), or "mps"; a name or a ``torch.device``.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return torch.backends.mkldnn.is_available() and (
            torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        )
    return True


def pick_device(name: str) -> torch.device:
    """``"auto"`` takes a GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device is {name!r}, which PyTorch cannot use here "
            f"({str(error).splitlines()[0]}). Fix: use device='cpu', or 'auto' to take "
            "a GPU where there is one."
        ) from None
    return device

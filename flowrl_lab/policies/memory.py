"""Whether a model's weights fit into memory, found out before they are read."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import torch

__all__ = ["check_memory", "count_weights", "free_gigabytes"]

GB = 1e9
# Adapter, activations and scores of the smallest batch, and the interpreter's share.
STEP_GB = 0.5


def count_weights(source: str, gguf: str | None = None) -> int | None:
    """How many numbers a model consists of, by the headers of its files.

    Args:
        source: a folder, or a name on the hub.
        gguf: the folder's GGUF file, if that is what it holds.

    Returns:
        None where the headers do not say; loading will find out why.
    """
    folder = Path(source)
    with contextlib.suppress(Exception):  # damaged, not there, not reachable
        if gguf is not None:
            from gguf import GGUFReader

            return sum(
                int(part.n_elements) for part in GGUFReader(folder / gguf).tensors
            )
        if folder.is_dir():
            return sum(map(_count_in_file, folder.glob("*.safetensors")))
        from huggingface_hub import get_safetensors_metadata

        return sum(get_safetensors_metadata(source).parameter_count.values())
    return None


def _count_in_file(file: Path) -> int:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as weights:
        shapes = [weights.get_slice(key).get_shape() for key in weights.keys()]  # noqa: SIM118
    return sum(map(math.prod, shapes))


def free_gigabytes(device: torch.device) -> float | None:
    """Memory that is free on a device, or None where nothing says."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] / GB
    import psutil  # peft brings it

    return psutil.virtual_memory().available / GB


def check_memory(
    name: str, weights: int | None, dtype: torch.dtype, device: torch.device
) -> None:
    """Refuse a model that cannot be held, on the device and in between on the CPU.

    Args:
        name: of the model.
        weights: how many; None where nothing says, which passes.
        dtype: of the weights once they are loaded.
        device: where they go.

    Raises:
        ValueError: needed, free, and what would fit.
    """
    if weights is None:
        return
    needed = weights * dtype.itemsize / GB + STEP_GB
    for place in {device.type: device, "cpu": torch.device("cpu")}.values():
        free = free_gigabytes(place)
        if free is not None and needed > free:
            most = max(free - STEP_GB, 0) * GB / dtype.itemsize
            half = weights * 2 / GB + STEP_GB
            fits = " (that would fit)" if half <= free else ""
            shorter = f"dtype='bfloat16' needs {half:.1f} GB{fits}; or "
            shorter = shorter if dtype.itemsize > 2 else ""
            raise ValueError(
                f"model {name!r} has {_in_words(weights)} weights and needs at least "
                f"{needed:.1f} GB in {str(dtype).removeprefix('torch.')}; "
                f"{free:.1f} GB are free ({place.type}). Fix: {shorter}close other "
                f"programs, or take a model of at most {_in_words(most)} weights "
                "('smollm2-135m' has 135 million)."
            )


def _in_words(count: float) -> str:
    billions = count >= 0.95e9
    return f"{count / 1e9:.1f} billion" if billions else f"{count / 1e6:.0f} million"

"""Save a run so that a crash never costs more than the last few steps.

A checkpoint is one file: a header line with the sha256 of what follows, then a
torch archive.  It is written beside its final name and moved there in one step,
so the last good checkpoint survives a full disk or a power cut, and a damaged
one is recognised before it is used.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from flowrl_lab._files import write_atomically

__all__ = ["read_checkpoint", "write_checkpoint"]

MAGIC = b"flowrl-lab checkpoint 1 "


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, strings, lists, dicts) to ``path``."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    digest = hashlib.sha256(payload).hexdigest().encode()
    write_atomically(path, MAGIC + digest + b"\n" + payload)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what ``write_checkpoint`` wrote.

    Only tensors and plain values are read; nothing in the file is executed.

    Raises:
        ValueError: the file is missing, is no checkpoint, or is damaged.
    """
    if not path.is_file():
        raise ValueError(
            f"no checkpoint at {path}. Fix: name the folder of a saved run."
        )
    header, _, payload = path.read_bytes().partition(b"\n")
    if not header.startswith(MAGIC):
        raise ValueError(
            f"{path} is not a flowrl_lab checkpoint (or is one of another version). "
            "Fix: name the folder of a run saved by this flowrl_lab."
        )
    expected = header.removeprefix(MAGIC).decode("ascii", "replace")
    found = hashlib.sha256(payload).hexdigest()
    if found != expected:
        raise ValueError(
            f"{path} is damaged: its content has sha256 {found[:12]}…, its header says "
            f"{expected[:12]}… ({len(payload):,} bytes read). Fix: use an older copy, "
            "or train again."
        )
    try:
        state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:  # torch fails in many ways on bytes not its own
        raise ValueError(
            f"{path} holds more than tensors and plain values; nothing in it was run "
            f"({type(error).__name__}). Fix: use only checkpoints that Run.save wrote."
        ) from None
    if not isinstance(state, dict):
        raise ValueError(
            f"{path} holds a {type(state).__name__}; expected a dict. Fix: use only "
            "checkpoints that Run.save wrote."
        )
    return state

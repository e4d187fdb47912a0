"""Save a run so that a crash never costs more than the last few steps.

A checkpoint is one file: a header line with the sha256 of what follows, then a
torch archive.  It is written beside its final name and moved there in one step,
so the last good checkpoint survives a full disk or a power cut, and a damaged
one is recognised before it is used.
"""

from __future__ import annotations

import hashlib
import io
import math
from pathlib import Path
from typing import Any

import torch

from flowrl_lab._files import write_atomically

__all__ = ["check_kinds", "load_optimizer", "read_checkpoint", "write_checkpoint"]

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


def check_kinds(path: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Refuse a checkpoint whose entries are not of the kind that a save would write.

    Args:
        path: where it lies, for the message.
        found: some of its entries.
        expected: entries as a run saves them; only their kinds matter: types, shapes
            of tensors, names and numbers of parts.

    Raises:
        ValueError: an entry is of another kind, or a number is not finite.
    """
    for name, example in expected.items():
        if name in found and not _is_alike(found[name], example):
            raise ValueError(
                f"{path} holds {_describe(found[name])} as {name!r}; expected "
                f"{_describe(example)}. Fix: use a checkpoint that Run.save wrote for "
                "these settings, or train again."
            )


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Put back an optimiser's moments, which PyTorch itself takes in any shape.

    Its settings are the config's, whatever the state says of them.

    Raises:
        ValueError: it is of another model, not finite, or no such state.
    """
    settings = [dict(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
        for parameter in group["params"]:
            for name, value in optimizer.state.get(parameter, {}).items():
                if not _is_moment(name, value, parameter.shape):
                    raise ValueError(
                        f"the optimiser's {name} does not fit its parameter of shape "
                        f"{tuple(parameter.shape)}, is not finite, or is negative"
                    )


def _is_moment(name: str, value: object, shape: torch.Size) -> bool:
    """Whether AdamW can go on from it: counts and squares are not negative."""
    if not isinstance(value, torch.Tensor) or value.shape not in (torch.Size(), shape):
        return False
    least = -math.inf if name == "exp_avg" else 0.0
    return bool((torch.isfinite(value) & (value >= least)).all())


def _is_alike(found: object, example: object) -> bool:
    """Whether two entries are of one kind, all the way down."""
    if isinstance(example, torch.Tensor):
        same = isinstance(found, torch.Tensor) and found.dtype == example.dtype
        return same and found.shape == example.shape
    if isinstance(example, float):
        number = isinstance(found, (int, float)) and not isinstance(found, bool)
        return number and -math.inf < found < math.inf
    if type(found) is not type(example):
        return False
    if isinstance(example, int) and not isinstance(example, bool):
        return 0 <= found < 2**63
    if isinstance(example, dict):
        return found.keys() == example.keys() and all(
            _is_alike(found[key], value) for key, value in example.items()
        )
    if isinstance(example, (list, tuple)):
        return len(found) == len(example) and all(map(_is_alike, found, example))
    return True


def _describe(value: object) -> str:
    """A value's kind in a few words."""
    if isinstance(value, torch.Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    if isinstance(value, (list, tuple, dict)):
        return f"a {type(value).__name__} of {len(value)} entries"
    return f"{repr(value)[:60]} ({type(value).__name__})"

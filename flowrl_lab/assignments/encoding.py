"""Values as JSON: how tensors go into the sandbox, and results come out of it.

Nothing here can run code when it is read: tensors are lists of numbers with a dtype
and a shape.  The worker, which must stand alone, has the same functions in short.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["Leaf", "decode", "encode", "flatten_value", "rounded"]

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "int64": torch.int64,
    "bool": torch.bool,
}
SIGNIFICANT_DIGITS = 9  # of stored results: the same on every machine
MAX_NUMBERS = 200_000
MAX_DEPTH = 6
_WORDS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}

# A result taken apart: the path to a leaf, and its numbers or its text.
Leaf = tuple[str, Tensor | str | None]


def encode(value: Any) -> Any:
    """A value as plain JSON: tensors, numbers, text, None, lists, dicts.

    Raises:
        ValueError: anything else.
    """
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        if kind in DTYPES:
            numbers = [_plain(x) for x in value.detach().cpu().flatten().tolist()]
            return {"tensor": kind, "shape": list(value.shape), "numbers": numbers}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return _plain(value) if math.isfinite(value) else {"number": str(value)}
    if isinstance(value, list | tuple):
        return [encode(part) for part in value]
    if isinstance(value, dict):
        return {"dict": {str(name): encode(part) for name, part in value.items()}}
    kind = getattr(value, "dtype", type(value).__name__)
    raise ValueError(
        f"got a value of kind {kind}; expected tensors {sorted(DTYPES)}, numbers, "
        "text, lists and dicts. Fix: convert it before it is stored."
    )


def decode(stored: Any) -> Any:
    """What ``encode`` was given; lists stay lists.

    Raises:
        ValueError: not something that ``encode`` writes.
    """
    try:
        return _decode(stored)
    except (
        TypeError,
        KeyError,
        RuntimeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise ValueError(
            f"got a stored value that cannot be read ({type(error).__name__}); "
            "expected what encode() writes. Fix: build the file again."
        ) from None


def _decode(stored: Any, depth: int = 0) -> Any:
    if depth > MAX_DEPTH + 3:  # of the value, in a list of results
        raise ValueError(
            "got a stored value that is nested too deeply; expected what encode() "
            "writes. Fix: build the file again."
        )
    if isinstance(stored, list):
        return [_decode(part, depth + 1) for part in stored]
    if not isinstance(stored, dict):
        return stored
    if "number" in stored:
        return _WORDS[stored["number"]]
    if "dict" in stored:
        parts = stored["dict"].items()
        return {name: _decode(part, depth + 1) for name, part in parts}
    numbers = [_WORDS[x] if isinstance(x, str) else x for x in stored["numbers"]]
    flat = torch.tensor(numbers, dtype=DTYPES[stored["tensor"]])
    return flat.reshape(stored["shape"])


def rounded(value: Any) -> Any:
    """A value with its floating numbers cut to nine digits: equal on all machines."""
    if isinstance(value, Tensor) and value.dtype.is_floating_point:
        numbers = [_cut(x) for x in value.detach().flatten().tolist()]
        return torch.tensor(numbers, dtype=torch.float64).reshape(value.shape)
    if isinstance(value, float):
        return _cut(value)
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    return value


def flatten_value(value: Any, path: str = "", depth: int = 0) -> list[Leaf]:
    """A result taken apart into tensors and words, so that two can be compared.

    A list of numbers is a tensor; a list of tensors is several.

    Raises:
        ValueError: nested too deeply, or of a kind that holds no numbers.
    """
    if depth > MAX_DEPTH:
        raise ValueError("nested too deeply. Fix: return tensors or plain lists.")
    if isinstance(value, dict):
        return [
            leaf
            for name in sorted(value, key=str)
            for leaf in flatten_value(value[name], f"{path}[{name!r}]", depth + 1)
        ]
    if isinstance(value, list | tuple) and not _all_numbers(value):
        return [
            leaf
            for place, part in enumerate(value)
            for leaf in flatten_value(part, f"{path}[{place}]", depth + 1)
        ]
    if value is None or isinstance(value, str):
        return [(path, value)]
    return [(path, torch.as_tensor(value).detach().to("cpu", torch.float64))]


def _all_numbers(value: list | tuple) -> bool:
    """Whether a (possibly nested) list is one rectangular block of numbers."""
    if not value:
        return True
    if all(isinstance(part, bool | int | float) for part in value):
        return True
    nested = all(isinstance(part, list | tuple) and part for part in value)
    alike = nested and len({len(part) for part in value}) == 1
    return alike and all(_all_numbers(part) for part in value)


def _plain(number: bool | int | float) -> Any:
    if isinstance(number, float) and not math.isfinite(number):
        return str(number)
    return number


def _cut(number: int | float) -> float:
    return float(f"{number:.{SIGNIFICANT_DIGITS}g}")

"""Values as JSON inside the sandbox: flowrl_lab.assignments.encoding in short.

Part of the worker; the other side reads what is written here, and trusts none of it.
"""

import json
import math

MAX_NUMBERS = 20_000
MAX_TEXT = 2_000
# Of a whole result as JSON; the other side takes no more.
MAX_LETTERS, MAX_LISTS = 900_000, 9_000


def encode(value, torch, depth=0):
    """As flowrl_lab.assignments.encoding, for whatever a student may return.

    Returns:
        Plain JSON; ``{"kind": ...}`` for what holds no numbers, or too many.
    """
    if depth > 6:
        return {"kind": "too deep"}
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        kind = str(value.dtype).removeprefix("torch.")
        if value.numel() > MAX_NUMBERS:
            return {"kind": "too large"}
        if value.dtype.is_floating_point:
            kind, value = "float64", value.double()
        elif kind != "bool":
            if value.dtype.is_complex:
                return {"kind": "complex"}
            kind, value = "int64", value.long()
        numbers = [plain(x) for x in value.flatten().tolist()]
        return {"tensor": kind, "shape": list(value.shape), "numbers": numbers}
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)[:MAX_TEXT]
    if isinstance(value, int):
        return int(value) if abs(value) < 2**53 else {"kind": "a huge number"}
    if isinstance(value, float):
        number = float(value)
        return number if math.isfinite(number) else {"number": str(number)}
    if hasattr(value, "tolist"):  # numpy
        return encode(torch.as_tensor(value.tolist()), torch, depth + 1)
    if isinstance(value, list | tuple):
        if len(value) > MAX_NUMBERS:
            return {"kind": "too large"}
        return [encode(part, torch, depth + 1) for part in value]
    if isinstance(value, dict):
        parts = list(value.items())[:1000]
        return {"dict": {str(k)[:80]: encode(v, torch, depth + 1) for k, v in parts}}
    return {"kind": type(value).__name__[:60]}


def shortened(stored):
    """What ``encode`` gave, or a word that it is too large to be compared."""
    text = json.dumps(stored)
    small = len(text) < MAX_LETTERS and text.count("[") < MAX_LISTS
    return stored if small else {"kind": "too large"}


def plain(number):
    """A number as JSON takes it: "nan", "inf" and "-inf" as texts."""
    if isinstance(number, float) and not math.isfinite(number):
        return str(number)
    return number


def decode(stored, torch):
    """What flowrl_lab.assignments.encoding encoded: tensors, lists, dicts, numbers."""
    if isinstance(stored, list):
        return [decode(part, torch) for part in stored]
    if not isinstance(stored, dict):
        return stored
    if "number" in stored:
        return float(stored["number"])
    if "dict" in stored:
        return {name: decode(part, torch) for name, part in stored["dict"].items()}
    numbers = [float(x) if isinstance(x, str) else x for x in stored["numbers"]]
    flat = torch.tensor(numbers, dtype=getattr(torch, stored["tensor"]))
    return flat.reshape(stored["shape"])


def literal(names, name):
    """The value that a submission gives to a constant; None if it is no plain one."""
    value = names.get(name)
    good = isinstance(value, bool | int | float | str | list | tuple | set | frozenset)
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    return value if good else None

"""Checks that stop a wrong input before it becomes a wrong number.

Every check raises ``ValueError`` with the same three parts: what came in, what
was expected, and how to repair it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

__all__ = [
    "bad_input",
    "check_batch",
    "check_choice",
    "check_count",
    "check_finite",
    "check_groups",
    "check_number",
    "check_tensor",
]

_SHAPE_FIXES = {
    "[B]": "give one number per sequence; drop extra axes with .squeeze(-1) and "
    "copy a scalar with .expand(B)",
    "[B, T]": "give one value per completion token, padding included, with the "
    "prompt tokens cut off",
    "[B, T+1]": "give one value per prefix, from the empty to the complete text",
    "[B, T, V]": "give one score per completion token and vocabulary entry "
    "(tokens.next_token_logits makes the cut)",
}
_ANY_SHAPE_FIX = "make the shapes agree"


def bad_input(name: str, got: str, expected: str, fix: str) -> ValueError:
    """The error for one bad argument: got, expected, fix."""
    return ValueError(f"`{name}` {got}; expected {expected}. Fix: {fix}.")


def _check_kind(name: str, value: object, kind: str) -> None:
    if not isinstance(value, Tensor):
        raise bad_input(
            name,
            f"is a {type(value).__name__}",
            "a torch.Tensor",
            "wrap it with torch.as_tensor(...)",
        )
    is_bool = value.dtype == torch.bool
    is_float = value.dtype.is_floating_point
    kinds = {
        "float": (is_float, "a floating dtype", "convert it with .float()"),
        "int": (
            not (is_float or is_bool or value.dtype.is_complex),
            "an integer dtype",
            "convert it with .long()",
        ),
        "bool": (
            is_bool,
            "dtype bool (True = the token counts)",
            "convert it with .bool()",
        ),
    }
    good, expected, fix = kinds[kind]
    if not good:
        raise bad_input(name, f"has dtype {value.dtype}", expected, fix)


def check_tensor(
    name: str,
    value: object,
    shape: Sequence[int | None],
    meaning: str,
    kind: str = "float",
) -> None:
    """Check the type, dtype and shape of a tensor; None matches any length."""
    _check_kind(name, value, kind)
    got = tuple(value.shape)
    fits = len(got) == len(shape) and all(
        want is None or want == have for want, have in zip(shape, got, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise bad_input(
            name,
            f"has shape {got}",
            f"({wanted}{',' if len(shape) == 1 else ''}) = {meaning}",
            _SHAPE_FIXES.get(meaning.split(":")[0], _ANY_SHAPE_FIX),
        )
    if 0 in got:
        raise bad_input(
            name,
            f"is empty, with shape {got}",
            "at least one element",
            "skip empty batches and empty completions before this call",
        )


def check_finite(values: Mapping[str, Tensor], mask: Tensor | None = None) -> None:
    """Check that no counted value is NaN or infinite, waiting for the device once."""
    flags = [_finite(value, mask) for value in values.values()]
    if not flags or bool(torch.stack(flags).all()):
        return
    for (name, value), flag in zip(values.items(), flags, strict=True):
        if not bool(flag):
            raise _not_finite(name, value, mask)


def _finite(value: Tensor, mask: Tensor | None) -> Tensor:
    # What is written in the padding is nobody's business: it never counts.
    finite = torch.isfinite(value)
    return finite.all() if mask is None else (finite | ~mask).all()


def _not_finite(name: str, value: Tensor, mask: Tensor | None) -> ValueError:
    counted = value if mask is None else value[mask]
    bad = (~torch.isfinite(counted)).sum().item()
    return bad_input(
        name,
        f"has {bad} NaN or infinite values among {counted.numel()}",
        "finite numbers",
        "find the step that made them (a verifier, a division by zero, a token "
        "of probability 0) and repair it there",
    )


def check_batch(
    completion_mask: Tensor,
    tokens: Mapping[str, Tensor],
    rows: Mapping[str, Tensor],
) -> None:
    """Check a batch: mask ``[B, T]``, per-token ``[B, T]``, per-sequence ``[B]``.

    Every sequence must have a token that counts, and what counts must be finite.
    """
    check_tensor("completion_mask", completion_mask, (None, None), "[B, T]", "bool")
    for name, value in tokens.items():
        check_tensor(name, value, completion_mask.shape, "[B, T]: one per token")
    for name, value in rows.items():
        check_tensor(name, value, completion_mask.shape[:1], "[B]: one per sequence")
    flags = [completion_mask.any(dim=1).all()]
    flags += [_finite(value, completion_mask) for value in tokens.values()]
    flags += [_finite(value, None) for value in rows.values()]
    if bool(torch.stack(flags).all()):
        return
    check_nonempty_rows("completion_mask", completion_mask)
    check_finite(tokens, completion_mask)
    check_finite(rows)


def check_nonempty_rows(name: str, mask: Tensor) -> None:
    """Check that every row of a mask keeps at least one token."""
    empty = (~mask.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise bad_input(
            name,
            f"keeps no token in row(s) {empty[:5]}",
            "at least one True in every row",
            "drop empty completions from the batch, or count the end token",
        )


def check_groups(rows: int, num_generations: int, least: int = 1) -> None:
    """Check that ``rows`` sequences split into groups of ``num_generations``."""
    check_count("num_generations", num_generations, least=least)
    if rows % num_generations:
        raise bad_input(
            "num_generations",
            f"is {num_generations}, which does not divide the {rows} sequences",
            "a divisor of the number of sequences",
            "keep the same number of completions for every prompt, in contiguous rows",
        )


def check_count(name: str, value: object, *, least: int = 1) -> None:
    """Check for a whole number of at least ``least``."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or value < least:
        raise bad_input(
            name, f"is {value!r}", f"a whole number >= {least}", "pass such an int"
        )


def check_number(
    name: str,
    value: object,
    *,
    low: float = 0.0,
    high: float = math.inf,
    above: bool = False,
) -> None:
    """Check for a finite number in [low, high]; ``above`` leaves out ``low``."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    finite = is_number and math.isfinite(value)
    if not finite or not low <= value <= high or (above and value == low):
        bounds = f"{'>' if above else '>='} {low:g}"
        bounds += "" if math.isinf(high) else f" and <= {high:g}"
        raise bad_input(
            name, f"is {value!r}", f"a finite number {bounds}", "choose one in range"
        )


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Check for one of the known names, and suggest the closest one."""
    names = list(choices)
    if value in names:
        return
    close = difflib.get_close_matches(str(value), names, n=1)
    fix = f"did you mean {close[0]!r}?" if close else "use one of these names"
    raise bad_input(name, f"is {value!r}", f"one of {names}", fix.rstrip("?"))

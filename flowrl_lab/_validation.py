"""Checks that stop a wrong input before it becomes a wrong number.

Every check raises ``ValueError`` with the same three parts: what came in, what
was expected, and how to repair it.

One rule for all: where a tensor is meant, only a dense ``torch.Tensor`` of the right
dtype will do, and where a list is meant, only a list or another sequence.  Nothing is
converted on the way: a list or an array in a tensor's place is refused, and so is a
tensor in a list's, because a guess would hide a wrong dtype, shape or device.

Checks of values step aside where there are no values to look at: on the meta device
and while torch.compile or a fake tensor mode traces.  Those of dtypes and shapes stay.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Hashable, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.func import debug_unwrap
from torch.masked import MaskedTensor
from torch.nn.parameter import is_lazy

__all__ = [
    "FLOAT_DTYPES",
    "LARGEST",
    "bad_input",
    "check_batch",
    "check_choice",
    "check_count",
    "check_finite",
    "check_flag",
    "check_groups",
    "check_hashable",
    "check_items",
    "check_nonempty_rows",
    "check_number",
    "check_range",
    "check_readable",
    "check_tensor",
    "holds",
    "shown",
]

# Nats, rewards and scales beyond this are no measurements.  The square of a product
# of two such numbers still fits float32, so what passes the checks does not overflow.
LARGEST = 1e9
_MOST = 2**63 - 1  # the largest whole number that a tensor holds

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
FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# kind -> (dtypes that torch can compute with, expected, fix)
_KINDS = {
    "float": (
        FLOAT_DTYPES,
        "a floating dtype, of 16 bits or more",
        "convert it with .float()",
    ),
    "int": (
        {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64},
        "an integer dtype (int64, or a smaller one)",
        "convert it with .long()",
    ),
    "bool": (
        {torch.bool},
        "dtype bool (True = the token counts)",
        "convert it with .bool()",
    ),
}


def bad_input(name: str, got: str, expected: str, fix: str) -> ValueError:
    """The error for one bad argument: got, expected, fix."""
    return ValueError(f"`{name}` {got}; expected {expected}. Fix: {fix}.")


def holds(condition: Tensor) -> bool:
    """Whether a condition on values is true everywhere, or cannot be looked at."""
    if torch.compiler.is_compiling() or condition.is_meta:
        return True
    if isinstance(condition, FakeTensor):
        return True
    # Under vmap: the whole batch at once, instead of an error about .item().
    return bool(debug_unwrap(condition).all())


def shown(value: object) -> str:
    """A value as a message can show it, on one short line."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a whole number of {value.bit_length()} bits"
    try:
        text = " ".join(repr(value).split())
    except Exception:  # another's __repr__ may do anything
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."


def _check_kind(name: str, value: object, kind: str) -> None:
    if not isinstance(value, Tensor):
        raise bad_input(
            name,
            f"is a {type(value).__name__}",
            "a torch.Tensor",
            "wrap it with torch.as_tensor(...)",
        )
    dtypes, expected, fix = _KINDS[kind]
    if value.dtype not in dtypes:
        raise bad_input(name, f"has dtype {value.dtype}", expected, fix)
    if value.layout != torch.strided or value.is_nested:
        raise bad_input(
            name,
            "is a nested tensor" if value.is_nested else f"has layout {value.layout}",
            "a dense tensor",
            "use .to_dense(), or .to_padded_tensor(...) for a nested one",
        )
    if type(value) is not Tensor and not torch.compiler.is_compiling():
        _check_subclass(name, value)


def _check_subclass(name: str, value: Tensor) -> None:
    if isinstance(value, MaskedTensor) or is_lazy(value):
        raise bad_input(
            name,
            f"is a {type(value).__name__}",
            "a plain tensor with values",
            "pass its data, and a mask as an argument of its own",
        )


def check_tensor(
    name: str,
    value: object,
    shape: Sequence[object] | Tensor,
    meaning: str,
    kind: str = "float",
    *,
    beside: Tensor | None = None,
) -> None:
    """Check the type, dtype, shape and place of a tensor.

    In ``shape``, None matches any length and a first ``...`` any number of axes.  A
    tensor in its place stands for its shape and its device; ``beside`` names a tensor
    for the device alone.
    """
    _check_kind(name, value, kind)
    if isinstance(shape, Tensor):
        shape, beside = shape.shape, shape
    got = tuple(value.shape)
    if len(shape) and shape[0] is ...:
        shape = (None,) * (len(got) - len(shape) + 1) + tuple(shape[1:])
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
    if beside is not None and value.device != beside.device:
        raise bad_input(
            name,
            f"is on device {value.device}",
            f"{beside.device}, where the other tensors are",
            f"move it with .to({str(beside.device)!r})",
        )


def check_finite(values: Mapping[str, Tensor], mask: Tensor | None = None) -> None:
    """Check that every counted value is a number within ±LARGEST.

    The device is waited for once.
    """
    padding = None if mask is None else ~mask
    flags = [_within(value, padding).all() for value in values.values()]
    if not flags or holds(torch.stack(flags)):
        return
    for (name, value), flag in zip(values.items(), flags, strict=True):
        if not holds(flag):
            raise _not_finite(name, value, padding)


def _within(value: Tensor, padding: Tensor | None, largest: float = LARGEST) -> Tensor:
    # What is written in the padding is nobody's business: it never counts.
    # False for NaN; half precision cannot even spell the limit.
    limit = min(largest, torch.finfo(value.dtype).max)
    within = value.abs() <= limit
    return within if padding is None else within | padding


def _not_finite(name: str, value: Tensor, padding: Tensor | None) -> ValueError:
    total = value.numel() if padding is None else (~debug_unwrap(padding)).sum().item()
    bad = (~debug_unwrap(_within(value, padding, math.inf))).sum().item()
    if bad:
        got = f"has {bad} NaN or infinite values among {total}"
    else:
        bad = (~debug_unwrap(_within(value, padding))).sum().item()
        got = f"has {bad} values beyond ±{LARGEST:g} among {total}"
    return bad_input(
        name,
        got,
        "finite numbers",
        "find the step that made them (a verifier, a division by zero, a token "
        "of probability 0) and repair it there",
    )


def check_readable(name: str, value: Tensor) -> None:
    """Check for a tensor with values, where a plain number is made of them."""
    if value.is_meta or isinstance(value, FakeTensor):
        raise bad_input(
            name,
            f"has no values: it is a {value.device} tensor without data",
            "a tensor whose values can be read",
            "compute it on a device that holds numbers",
        )


def check_range(
    name: str,
    values: Tensor,
    low: int | float,
    high: int | float,
    meaning: str,
    fix: str,
) -> None:
    """Check that every value lies from ``low`` to ``high``; NaN does not."""
    inside = (values >= low) & (values <= high)
    if holds(inside):
        return
    seen = debug_unwrap(values)
    ends = " to ".join(f"{end.item():.6g}" for end in seen.aminmax())
    raise bad_input(name, f"ranges from {ends}", meaning, fix)


def check_batch(
    completion_mask: Tensor,
    tokens: Mapping[str, Tensor],
    rows: Mapping[str, Tensor],
) -> None:
    """Check a batch: mask ``[B, T]``, per-token ``[B, T]``, per-sequence ``[B]``.

    Every sequence must have a token that counts, and what counts must be finite.
    """
    mask = completion_mask
    check_tensor("completion_mask", mask, (None, None), "[B, T]", "bool")
    for name, value in tokens.items():
        check_tensor(name, value, mask, "[B, T]: one per token")
    for name, value in rows.items():
        check_tensor(name, value, mask.shape[:1], "[B]: one per sequence", beside=mask)
    padding = ~mask
    flags = [mask.any(dim=1).all()]
    flags += [_within(value, padding).all() for value in tokens.values()]
    flags += [_within(value, None).all() for value in rows.values()]
    if holds(torch.stack(flags)):
        return
    check_nonempty_rows("completion_mask", mask)
    check_finite(tokens, mask)
    check_finite(rows)


def check_nonempty_rows(name: str, mask: Tensor) -> None:
    """Check that every row of a mask keeps at least one token."""
    kept = mask.any(dim=1)
    if holds(kept):
        return
    empty = sorted({place[-1] for place in (~debug_unwrap(kept)).nonzero().tolist()})
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


def check_count(name: str, value: object, *, least: int = 1, most: int = _MOST) -> None:
    """Check for a whole number from ``least`` to ``most``."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or not least <= value <= most:
        bounds = f">= {least}" + ("" if is_whole and value < least else _up_to(most))
        raise bad_input(
            name, f"is {shown(value)}", f"a whole number {bounds}", "pass such an int"
        )


def _up_to(most: int) -> str:
    return "" if most == _MOST else f" and <= {most}"


def check_number(
    name: str,
    value: object,
    *,
    low: int | float = 0.0,
    high: int | float = 1e18,
    above: bool = False,
) -> None:
    """Check for a finite number in [low, high]; ``above`` leaves out ``low``."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # Compared as they are: a whole number may be too large to become a float.
    finite = is_number and abs(value) <= sys.float_info.max
    if not finite or not low <= value <= high or (above and value == low):
        bounds = f"{'>' if above else '>='} {low:g} and <= {high:g}"
        got, fix = f"is {shown(value)}", "choose one in range"
        raise bad_input(name, got, f"a finite number {bounds}", fix)


def check_flag(name: str, value: object) -> None:
    """Check for True or False."""
    if not isinstance(value, bool):
        got, fix = f"is {shown(value)}", "pass one of them"
        raise bad_input(name, got, "True or False", fix)


def check_choice(name: str, value: object, choices: Iterable[str]) -> None:
    """Check for one of the known names, and suggest the closest one."""
    names = list(choices)
    if isinstance(value, str) and value in names:
        return
    close = difflib.get_close_matches(value, names, n=1) if _is_text(value) else []
    fix = f"did you mean {close[0]!r}?" if close else "use one of these names"
    raise bad_input(name, f"is {shown(value)}", f"one of {names}", fix.rstrip("?"))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) < 1000


def check_items(
    name: str, value: object, kind: type | tuple[type, ...], what: str, least: int = 1
) -> None:
    """Check for a list (or another sequence) of at least ``least`` items of a kind.

    Args:
        name: of the argument.
        value: what came in; a text, an array or a tensor is no list.
        kind: what each item must be an instance of.
        what: the items' name in the message, such as "texts".
        least: how many there must be.
    """
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise bad_input(
            name,
            f"is {shown(value)}",
            f"a list of {what}",
            "put it into a list, or convert it with .tolist()",
        )
    if len(value) < least:
        raise bad_input(
            name,
            f"has {len(value)} entries" if value else "is empty",
            f"at least {least} {what}",
            "draw more samples",
        )
    for place, item in enumerate(value):
        if not isinstance(item, kind):
            raise bad_input(
                f"{name}[{place}]",
                f"is {shown(item)}",
                f"a list of {what} alone",
                "leave it out, or convert it",
            )


def check_hashable(name: str, value: object, what: str, least: int = 1) -> None:
    """Check for a list of items that can be compared and counted."""
    check_items(name, value, Hashable, what, least)
    for place, item in enumerate(value):
        try:
            hash(item)
        except TypeError:
            comparable = False
        else:  # tensors are hashable, but equal only to themselves
            comparable = not isinstance(item, Tensor)
        if not comparable:
            raise bad_input(
                f"{name}[{place}]",
                f"is {shown(item)}",
                "something that can be counted: a text, a number, a tuple of such",
                "convert tensors with .item() or .tolist(), and lists with tuple(...)",
            )

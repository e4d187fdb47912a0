"""The inputs of a call, written as a learner would type them."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["COLUMNS", "brief", "describe_inputs"]

MOST_NUMBERS = 48  # of one tensor, before only its shape and range are given
COLUMNS = 96  # of a printed line


def describe_inputs(
    names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> str:
    """One assignment for each input, to paste into a cell and try.

    Args:
        names: of the parameters, in order.
        args: the call's positional arguments; those beyond ``names`` get a number.
        kwargs: its other arguments.

    Returns:
        Lines of at most 96 columns.  Numbers are rounded to four digits; a large
        tensor is a comment on its shape and range.
    """
    extra = [f"argument_{i + 1}" for i in range(len(names), len(args))]
    named = {**dict(zip([*names, *extra], args, strict=False)), **kwargs}
    return "\n".join(_assign(name, value) for name, value in named.items())


def brief(values: Tensor, most: int = 8) -> str:
    """The first numbers of a tensor, to four digits."""
    flat = [f"{v:.4g}" for v in values.flatten()[:most].tolist()]
    if values.ndim == 0:
        return flat[0]
    return f"[{', '.join(flat)}{', …' if values.numel() > most else ''}]"


def _assign(name: str, value: Any) -> str:
    if isinstance(value, Tensor):
        if value.numel() > MOST_NUMBERS:
            return f"# {name}: {_outline(value)}"
        text = f"{name} = torch.tensor({_nested(value.detach())})"
    else:
        written = getattr(value, "__name__", None) or repr(value)
        text = f"{name} = {textwrap.shorten(written, 300, placeholder=' …')}"
    return textwrap.fill(text, COLUMNS, subsequent_indent="    ")


def _nested(values: Tensor) -> str:
    if values.ndim:
        return f"[{', '.join(map(_nested, values))}]"
    number = values.item()
    if not isinstance(number, float):
        return repr(number)
    return re.sub("inf|nan", r"torch.\g<0>", f"{number:.4g}")


def _outline(values: Tensor) -> str:
    kind = str(values.dtype).removeprefix("torch.")
    shape = f"{kind} tensor {list(values.shape)}"
    if values.dtype == torch.bool:
        return f"{shape}, {int(values.sum())} of them True"
    return f"{shape}, from {values.min():.4g} to {values.max():.4g}"

"""Whether an adapter has changed since one looked at it last."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["ChangeCounter"]

# Whole numbers of the same size: there a NaN equals itself.
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class ChangeCounter:
    """Counts the changes of some tensors by looking at their numbers.

    PyTorch counts changes in place, too (``Tensor._version``), but a step of
    ``AdamW(fused=True)`` escapes it (torch 2.13), and so does ``.data``.

    Args:
        copy: gives the tensors as they are now, copied.

    Attributes:
        latest: what ``copy`` gave when ``count`` was last asked for.
    """

    def __init__(self, copy: Callable[[], Sequence[Tensor]]):
        self._copy = copy
        self._count = 0
        self.latest: Sequence[Tensor] = ()

    def count(self) -> int:
        """Another number than the last time if any of them has changed since."""
        now = self._copy()
        if len(now) != len(self.latest) or not all(map(_same, now, self.latest)):
            self.latest = now
            self._count += 1
        return self._count


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether all bits are."""
    if (one.shape, one.dtype, one.device) != (other.shape, other.dtype, other.device):
        return False
    bits = _BITS[one.element_size()]
    return torch.equal(one.view(bits), other.view(bits))

"""Run a function without Python's lock, so that threads do not wait for each other.

A level of a prefix tree is some 150 rows, and an operation on them takes
microseconds.  Two threads that issue such operations from Python wait for its lock
more than they compute.  TorchScript runs all operations of a function in one call,
without the lock; where this PyTorch has no TorchScript (it is deprecated in favour
of ``torch.compile``, which needs a C++ compiler), the function runs as it stands.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import torch

__all__ = ["without_lock"]


@functools.cache
def without_lock(function: Callable) -> Callable:
    """The function in TorchScript, or as it is where that cannot be had.

    Args:
        function: of tensors, numbers, lists and named tuples of them, with
            annotations; decorate it, and all it calls, with ``typing.no_type_check``.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.script(function)
    except Exception:  # whatever it is, the plain function works
        return function

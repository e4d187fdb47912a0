"""Several threads, each with work of its own, for models of small tensors.

PyTorch's own threads share every single operation and wait for each other after it.
On small tensors the waiting costs more than the sharing saves.  Here each worker
gets a part of the rows and computes with it alone; compiled passes let go of
Python's lock from beginning to end, so the workers do run side by side.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

from flowrl_lab._validation import check_count

__all__ = ["count_workers", "run_together", "set_workers", "share"]

Result = TypeVar("Result")

_workers = 1
_pool: ThreadPoolExecutor | None = None


def set_workers(count: int) -> None:
    """Share work among ``count`` threads from now on; 1 uses none but the caller's.

    Raises:
        ValueError: count below 1.
    """
    global _workers, _pool
    check_count("count", count)
    if _pool is not None and count > _workers:
        _pool.shutdown()
        _pool = None
    _workers = count


def count_workers() -> int:
    """How many threads ``run_together`` uses."""
    return _workers


def share(count: int) -> list[slice]:
    """``count`` rows, cut into one part for each worker, as even as can be."""
    parts = max(1, min(_workers, count))
    ends = [number * count // parts for number in range(parts + 1)]
    return [slice(*pair) for pair in itertools.pairwise(ends)]


def run_together(tasks: Sequence[Callable[[], Result]]) -> list[Result]:
    """The results of ``tasks``, in their order; each runs without gradients.

    The first error is raised once all of them have ended.
    """
    first, *others = tasks  # the caller has a core, too
    # Compiled passes: a worker's products are its own alone, be there others or not.
    with _blas().limit(limits=1):
        if _workers == 1:
            return [_without_gradients(task) for task in tasks]
        futures = [_start().submit(_without_gradients, task) for task in others]
        try:
            return [_without_gradients(first), *(f.result() for f in futures)]
        finally:
            wait(futures)  # an interrupt must not leave one at work on shared buffers


def _start() -> ThreadPoolExecutor:
    """The workers' threads."""
    global _pool
    if _pool is None:
        # Within a worker every operation of PyTorch is that worker's alone.
        _pool = ThreadPoolExecutor(
            _workers, "flowrl", initializer=torch.set_num_threads, initargs=(1,)
        )
    return _pool


@functools.cache
def _blas():
    """The libraries that compiled passes call for their products."""
    import scipy.linalg  # noqa: F401 - numba calls the one that comes with it
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


def _without_gradients(task: Callable[[], Result]) -> Result:
    # whether gradients are recorded is a setting of each thread
    with torch.no_grad():
        return task()

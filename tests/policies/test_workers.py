"""Work shared among threads: order, errors, gradients, bad input."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from threadpoolctl import threadpool_info

from flowrl_lab.policies.fast.workers import count_workers, run_together, set_workers


@pytest.fixture(autouse=True, params=[1, 3])
def workers(request):
    set_workers(request.param)
    yield request.param
    set_workers(1)


def test_results_come_in_the_order_of_the_tasks(workers):
    def task(number):
        time.sleep(0.01 * (4 - number))  # the last is ready first
        return number

    assert run_together([lambda n=n: task(n) for n in range(4)]) == [0, 1, 2, 3]
    assert count_workers() == workers


def test_tasks_run_side_by_side_only_with_workers(workers):
    """The caller takes the first of them."""
    first, *others = run_together([lambda: threading.current_thread().name] * 3)
    mine = threading.current_thread().name
    assert first == mine
    assert all((name == mine) == (workers == 1) for name in others)


def test_each_task_has_one_core_of_the_products_library():
    """With one worker, too: several runs side by side would fight for the cores."""
    import scipy.linalg  # noqa: F401 - it brings the library

    def count():
        return [x["num_threads"] for x in threadpool_info() if x["user_api"] == "blas"]

    before = count()
    for found in run_together([count, count]):
        assert found == [1] * len(before)
    assert count() == before


def test_no_task_records_gradients():
    weight = torch.ones(2, requires_grad=True)
    results = run_together([lambda: weight * 2, lambda: weight * 3])
    assert [result.requires_grad for result in results] == [False, False]
    assert (weight * 2).requires_grad


def test_an_error_comes_out_when_nobody_is_at_work_any_more(workers):
    ended = []

    def slow():
        time.sleep(0.05)
        ended.append(True)

    def bad():
        raise ZeroDivisionError("no")

    with pytest.raises(ZeroDivisionError):
        run_together([slow, bad, slow])
    # without workers the tasks run in turn, up to the error
    assert len(ended) == (1 if workers == 1 else 2)


def test_the_number_can_change():
    set_workers(2)
    assert run_together([lambda: 1, lambda: 2]) == [1, 2]
    set_workers(4)
    assert run_together([lambda: 1, lambda: 2, lambda: 3]) == [1, 2, 3]


@pytest.mark.bad_input
@pytest.mark.parametrize("count", [0, -1, 1.5, "2"])
def test_there_is_at_least_one(count):
    with pytest.raises(ValueError, match="count"):
        set_workers(count)

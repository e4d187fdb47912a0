"""Measures of a batch's groups, against counting by hand."""

from __future__ import annotations

import math

import pytest

from flowrl_lab.metrics import pass_at_k
from flowrl_lab.metrics.groups import measure_groups, spread_of_mean


def test_two_groups_counted_by_hand():
    """One of three right answers (two alike) and a wrong one; one all wrong."""
    answers = ["a", "a", 7, None, None, None, None, None]
    rewards = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    found = measure_groups(answers, rewards, 4)
    effective = math.exp(-(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)))
    assert found["effective"] == pytest.approx([effective, 0.0])
    assert found == {
        "right": [0.75, 0.0],
        "distinct": [2.0, 0.0],
        "effective": found["effective"],
        "idle": [0.0, 1.0],
        "pass@4": [1.0, 0.0],
    }


def test_pass_at_k_is_the_unbiased_one_up_to_the_group():
    answers = ["x"] + [None] * 15
    found = measure_groups(answers, [1.0] + [0.0] * 15, 16)
    assert found["pass@4"] == [pass_at_k(16, 1, 4)] == [0.25]
    assert found["pass@16"] == [1.0] and "pass@64" not in found
    assert set(measure_groups(["x"], [1.0], 1)) == {
        *("right", "distinct", "effective", "idle")
    }


def test_equally_frequent_answers_are_their_number():
    found = measure_groups(list("abcd") * 4, [1.0] * 16, 16)
    assert found["effective"][0] == pytest.approx(4.0)
    assert found["idle"] == [1.0] and found["distinct"] == [4.0]


def test_the_spread_of_a_mean():
    assert spread_of_mean([1.0, 3.0], 8) == pytest.approx(math.sqrt(2 / 8))
    assert spread_of_mean([1.0], 8) == 0.0


@pytest.mark.parametrize("rows", [([], []), (["a"] * 3, [1.0] * 3), (["a"] * 4, [1.0])])
def test_rows_that_do_not_share_out_are_refused(rows):
    with pytest.raises(ValueError, match="whole groups of 2"):
        measure_groups(*rows, 2)

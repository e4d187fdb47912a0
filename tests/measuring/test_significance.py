"""More, or chance: the interval beside a test, and what tests say of a claim."""

from __future__ import annotations

import dataclasses
import math

import pytest
from scipy.stats import ttest_ind

from flowrl_lab.measuring.significance import (
    COLORS,
    FAILS,
    HOLDS,
    NO_DIFFERENCE,
    NOT_MEASURED,
    Test,
    compare_values,
    interval_table,
    judge_more,
    judge_values,
)


def test_the_interval_belongs_to_the_test():
    first, second = [0.5, 0.6, 0.9], [0.1, 0.2, 0.25, 0.3]
    test = compare_values(("a", first), ("b", second), "accuracy")
    wanted = ttest_ind(first, second, equal_var=False)
    assert test.p == pytest.approx(wanted.pvalue)
    assert (test.low, test.high) == pytest.approx(wanted.confidence_interval(0.95))
    assert test.low < test.difference < test.high
    assert (test.p < 0.05) == (not test.low < 0 < test.high)
    back = compare_values(("b", second), ("a", first), "accuracy")
    assert (-back.high, -back.low) == pytest.approx((test.low, test.high))


def test_the_interval_of_a_known_number_is_that_of_the_other_sample():
    known, sample = [0.5, 0.5, 0.5], [0.6, 0.7, 0.65]
    test = compare_values(("a", sample), ("untrained", known), "accuracy")
    back = compare_values(("untrained", known), ("a", sample), "accuracy")
    assert 0 < test.low < 0.15 < test.high
    assert (-back.high, -back.low) == pytest.approx((test.low, test.high))
    assert back.p == pytest.approx(test.p)


def test_a_factor_is_told_as_a_factor_and_a_share_in_points():
    test = compare_values(("a", [8.0, 8.1]), ("b", [2.0, 2.1]), "effective_answers")
    assert test.effect.startswith("×3.9") and math.exp(test.low) > 3
    test = Test("a", "b", "accuracy", "end", -0.01, 0.3, low=-0.02, high=0.005)
    assert test.effect == "−0.8 points (−2.0 to +0.5)"
    test = dataclasses.replace(test, figure="kl_target_policy")
    assert test.effect == "−0.007 (−0.020 to +0.005)"


def made(difference: float, p: float) -> Test:
    return Test("a", "b", "accuracy", "end", difference, p, p_holm=p)


@pytest.mark.parametrize(
    ("tests", "verdict", "decides"),
    [
        ([], NOT_MEASURED, None),
        ([made(0.1, 0.01), made(0.2, 0.04)], HOLDS, 1),
        ([made(0.1, 0.01), made(0.2, 0.5)], NO_DIFFERENCE, 1),
        ([made(0.1, 0.2), made(-0.1, 0.2), made(0.3, 0.001)], NO_DIFFERENCE, 1),
        ([made(0.1, 0.01), made(-0.2, 0.02), made(-0.1, 0.01)], FAILS, 2),
        ([made(0.1, 0.05)], NO_DIFFERENCE, 0),  # "below 0.05"
    ],
)
def test_a_claim_of_more_holds_if_every_test_says_so(tests, verdict, decides):
    said, test = judge_more(tests)
    assert said == verdict
    assert test is (None if decides is None else tests[decides])


def test_intervals_of_one_figure_share_an_axis_and_wear_their_verdict():
    more, less, neither = (
        dataclasses.replace(made(d, p), low=d - 0.1, high=d + 0.1)
        for d, p in ((0.3, 0.01), (-0.3, 0.01), (0.05, 0.5))
    )
    factor = dataclasses.replace(more, figure="effective_answers")
    table = interval_table(
        "all", ["", "x", "y"], {"a": [more, less]} | {"b": [neither, factor]}
    )
    assert table.caption == "all; accuracy in points"
    a, b = (row[1:] for row in table.cells[1:])
    assert [g.color for g in (*a, *b)] == [
        COLORS[v] for v in (HOLDS, FAILS, NO_DIFFERENCE, HOLDS)
    ]
    assert {g.axis for g in (*a, b[0])} == {(-0.4, 0.4)}
    assert b[1].axis == (0.0, 0.4)  # a logarithm, on its own
    assert [row[1] for row in table.rows[1:]] == [
        "+30.0 (+20.0 to +40.0) *",
        "+5.0 (−5.0 to +15.0)",
    ]


def test_a_judgement_is_welchs_test_and_the_number_of_questions():
    first, second = [0.58, 0.57, 0.59, 0.56, 0.57], [0.52, 0.55, 0.56, 0.53, 0.54]
    test = compare_values(("a", first), ("b", second), "accuracy")
    for planned, verdict in ((1, 1), (48, 0)):
        low, high, p, found = judge_values(first, second, planned)
        assert (low, high) == pytest.approx((test.low, test.high))
        assert p == pytest.approx(planned * test.p)
        assert found == verdict
        assert judge_values(second, first, planned)[3] == -verdict
    assert judge_values(second, second, 9)[2:] == (1.0, 0)

"""The stack language against an interpreter of its own, and hostile programs."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flowrl_lab.tasks.stack_language import (
    MAX_STACK,
    MAX_WORDS,
    WORDS,
    run_program,
    trace_program,
)

quiet = settings(max_examples=400, deadline=None, database=None, derandomize=True)
INPUTS = st.tuples(*[st.integers(0, 4)] * 3)
LETTERS = "rstuwnmdi+-"


def by_hand(program: str, numbers: list[int]):
    """Written from the description alone: a list of lists, changed in place.

    Returns:
        The output, or None where the program is no program.
    """
    if len(program) > 5:
        return None
    stack = [list(numbers)]
    for letter in program:
        if letter == "r":
            stack[-1] = [stack[-1][2], stack[-1][1], stack[-1][0]]
        elif letter == "s":
            stack[-1] = sorted(stack[-1])
        elif letter == "t":
            stack[-1] = [stack[-1][1], stack[-1][2], stack[-1][0]]
        elif letter == "u":
            stack[-1] = [0 if n == 4 else n + 1 for n in stack[-1]]
        elif letter == "w":
            stack[-1] = [[0, 2, 4, 1, 3][n] for n in stack[-1]]
        elif letter == "n":
            stack[-1] = [[0, 4, 3, 2, 1][n] for n in stack[-1]]
        elif letter == "m":
            a, b, c = stack[-1]
            stack[-1] = [a, max(a, b), max(a, b, c)]
        elif letter in "di":
            if len(stack) == 3:
                return None
            stack.append(list(stack[-1]) if letter == "d" else list(numbers))
        elif letter in "+-":
            if len(stack) == 1:
                return None
            top, below = stack.pop(), stack.pop()
            sign = 1 if letter == "+" else -1
            stack.append([(b + sign * t + 5) % 5 for b, t in zip(below, top)])  # noqa: B905
        else:
            return None
    return tuple(stack[0]) if len(stack) == 1 else None


@quiet
@given(st.text(alphabet=LETTERS, max_size=6), INPUTS)
@example("dr+", (3, 1, 2))
@example("ddi", (0, 0, 0))
@example("", (4, 4, 4))
def test_programs_do_what_the_description_says(program, numbers):
    outcome = run_program(program, numbers)
    assert outcome.result == by_hand(program, list(numbers))
    assert (outcome.result is None) == bool(outcome.problem)


def test_every_short_program_does_what_the_description_says():
    right = 0
    for length in range(4):
        for letters in itertools.product(LETTERS, repeat=length):
            program = "".join(letters)
            expected = by_hand(program, [3, 4, 1])
            assert run_program(program, (3, 4, 1)).result == expected, program
            right += expected is not None
    assert 400 < right < 1464  # many are programs, many are not


@quiet
@given(
    st.text(max_size=50) | st.text(alphabet=LETTERS + "zé٣\0\n ", max_size=12), INPUTS
)
@example("d" * 1_000_000, (0, 1, 2))
@example("__import__('os').system('true')", (0, 1, 2))
@example("10**10**10", (0, 1, 2))
def test_any_text_ends_within_bounds(program, numbers):
    """Never raises, never more than five words, three lists, digits 0 to 4."""
    outcome = run_program(program, numbers)
    assert outcome == run_program(program, numbers)
    stacks, problem = trace_program(program, numbers)
    assert 1 <= len(stacks) <= MAX_WORDS + 1 and outcome.problem == problem
    for stack in stacks:
        assert 1 <= len(stack) <= MAX_STACK
        for values in stack:
            assert len(values) == 3
            assert all(type(v) is int and 0 <= v <= 4 for v in values)
    if outcome.result is None:
        assert 10 < len(problem) < 120
    else:
        assert stacks[-1] == (outcome.result,) and len(program) <= MAX_WORDS


def test_the_trace_shows_every_stack():
    stacks, problem = trace_program("dr+u", (3, 1, 2))
    assert problem == ""
    assert stacks == [
        ((3, 1, 2),),
        ((3, 1, 2), (3, 1, 2)),
        ((3, 1, 2), (2, 1, 3)),
        ((0, 2, 0),),
        ((1, 3, 1),),
    ]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("program", "problem"),
    [
        ("+", "'+' needs two lists; the stack holds one"),
        ("r-", "'-' needs two lists"),
        ("d", "2 lists are left at the end; expected one"),
        ("ddd", "'d' finds the stack full: it holds 3 lists"),
        ("ddi", "'i' finds the stack full"),
        ("rz", "'z' is no word of the language"),
        ("r r", "' ' is no word"),
        ("rrrrrr", "6 words; at most 5 are allowed"),
    ],
)
def test_what_is_no_program_gets_a_reason(program, problem):
    outcome = run_program(program, (3, 1, 2))
    assert outcome.result is None
    assert outcome.problem.startswith(problem)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "numbers",
    [
        (1, 2),
        (1, 2, 3, 4),
        (1, 2, 5),
        (-1, 0, 0),
        (1.0, 2, 3),
        (True, 0, 0),
        "312",
        [3, 1, 2],
        None,
        (),
    ],
)
def test_an_input_that_is_none_is_refused(numbers):
    with pytest.raises(ValueError, match=r"the input is .*; expected .*Fix:"):
        run_program("r", numbers)


def test_every_word_is_described():
    assert "".join(WORDS) == LETTERS
    assert all(text[0].islower() for text in WORDS.values())

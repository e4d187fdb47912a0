"""Notebook 8: an interpreter, tests that can be passed, variety of ideas."""

from __future__ import annotations

import torch
from torch import Tensor

from flowrl_lab.course.checking import Case, Exercise, Mistake
from flowrl_lab.course.exercises._cases import draw_log_probs
from flowrl_lab.tasks.stack_language import DIGITS, do_word

__all__ = ["EXERCISES"]

A, B, INPUT = (3, 1, 2), (0, 4, 4), (2, 0, 1)


def _words_and_stacks() -> list[Case]:
    """Each kind of word, on stacks where every slip shows."""
    return [
        (("r", (A, B), INPUT), {}),
        (("u", (A, B), INPUT), {}),
        (("+", (INPUT, A, B), INPUT), {}),
        (("-", (A, B), INPUT), {}),
        (("d", (A, B), INPUT), {}),
        (("i", (A,), INPUT), {}),
    ]


def _changed(word: str, change):
    """The right interpreter, except for one word."""

    def wrong(given, stack, first):
        return change(stack, first) if given == word else do_word(given, stack, first)

    return wrong


def _all_lists(word, stack, first):
    """Does words with one list to every list on the stack."""
    if word in "ru":
        return tuple(do_word(word, (numbers,), first)[0] for numbers in stack)
    return do_word(word, stack, first)


def _top_only(word, stack, first):
    """Gives the new list alone, without what lies below it."""
    result = do_word(word, stack, first)
    return result if word in "di" else result[-1]


def _leaves_operands(word, stack, first):
    """Puts the result of + and - on top of its two lists."""
    result = do_word(word, stack, first)
    return (*stack, result[-1]) if word in "+-" else result


def _without_wrap(word, stack, first):
    """Digits do not count round."""
    if word == "u":
        return (*stack[:-1], tuple(number + 1 for number in stack[-1]))
    if word in "+-":
        sign = 1 if word == "+" else -1
        pairs = zip(stack[-2], stack[-1], strict=True)
        return (*stack[:-2], tuple(below + sign * top for below, top in pairs))
    return do_word(word, stack, first)


DO_WORD = Exercise(
    name="do_word",
    solution="flowrl_lab.tasks.stack_language:do_word",
    cases=_words_and_stacks,
    mistakes=(
        Mistake(
            "top minus below",
            "Your - is the wrong way round: the top list is taken away from the one "
            "below it.",
            _changed(
                "-",
                lambda stack, _first: (
                    *stack[:-2],
                    tuple(
                        (top - below) % DIGITS
                        for below, top in zip(stack[-2], stack[-1], strict=True)
                    ),
                ),
            ),
        ),
        Mistake(
            "top only",
            "You returned the new list alone. Return the whole stack: what lies below "
            "stays, and the new list goes on top.",
            _top_only,
        ),
        Mistake(
            "operands left",
            "After + or - the two lists must be gone from the stack: two come off, "
            "one goes on.",
            _leaves_operands,
        ),
        Mistake(
            "no counting round",
            "There are digits above 4 or below 0. Numbers count round: take the "
            "result % 5.",
            _without_wrap,
        ),
        Mistake(
            "input instead of copy",
            "Your d puts the program's input on the stack. That is i; d puts a "
            "second copy of the list on top.",
            _changed("d", lambda stack, first: (*stack, first)),
        ),
        Mistake(
            "copy instead of input",
            "Your i puts a copy of the top list on the stack. That is d; i puts the "
            "program's input there, whatever has become of it since.",
            _changed("i", lambda stack, _first: (*stack, stack[-1])),
        ),
        Mistake(
            "all lists",
            "A word with one list works on the top one only; what is below stays.",
            _all_lists,
        ),
    ),
    hint="stack[-1] is the top list, stack[:-1] what is below it. UNARY[word] takes a "
    "list; BINARY[word] takes two numbers, the lower list's first. (*stack[:-1], new) "
    "is a stack with another top.",
)


def _filters() -> list[Case]:
    fits = torch.tensor([0.5, 0.9, 0.2], dtype=torch.float64)
    right = torch.tensor([0.4, 0.3, 0.2], dtype=torch.float64)
    return [((fits, right, 1), {}), ((fits, right, 4), {}), ((fits, right, 64), {})]


def _at_least_one(chance: Tensor, num_samples: int) -> Tensor:
    return 1 - (1 - chance) ** num_samples


ACCURACY_AFTER_FILTER = Exercise(
    name="accuracy_after_filter",
    solution="flowrl_lab.metrics:accuracy_after_filter",
    cases=_filters,
    mistakes=(
        Mistake(
            "pass@k",
            "That is the chance that *some* sample is right. But one is submitted, "
            "and nobody knows which of those that pass the visible test is right.",
            lambda fits_prob, right_prob, num_samples: (  # noqa: ARG005
                _at_least_one(right_prob, num_samples)
            ),
        ),
        Mistake(
            "any of the passing",
            "That is the chance that some sample is right if all n pass. Only one of "
            "those that pass is submitted: it is right with a / f, however many pass.",
            lambda fits_prob, right_prob, num_samples: _at_least_one(
                right_prob / fits_prob, num_samples
            ),
        ),
        Mistake(
            "visible test only",
            "That is the chance of having something to submit. It is right only with "
            "the share of right ones among those that pass: a / f.",
            lambda fits_prob, right_prob, num_samples: (  # noqa: ARG005
                _at_least_one(fits_prob, num_samples)
            ),
        ),
        Mistake(
            "always something",
            "You left out that perhaps no sample passes the visible test; then there "
            "is nothing to submit. Multiply by 1 − (1 − f)^n.",
            lambda fits_prob, right_prob, num_samples: (  # noqa: ARG005
                right_prob / fits_prob
            ),
        ),
        Mistake(
            "not among the passing",
            "You multiplied by a. Among *all* samples a share of a is right, among "
            "those that pass the visible test it is a / f.",
            lambda fits_prob, right_prob, num_samples: (
                _at_least_one(fits_prob, num_samples) * right_prob
            ),
        ),
        Mistake(
            "all pass",
            "f^n is the chance that all samples pass. One is enough.",
            lambda fits_prob, right_prob, num_samples: (
                fits_prob**num_samples * right_prob / fits_prob
            ),
        ),
    ),
    hint="Two things must happen: at least one of n samples passes the visible test "
    "(the opposite: all fail, (1 − f)^n); and the one you submit, which is any of "
    "those that pass, is right.",
)


def _answers_in_groups() -> list[Case]:
    """Right answers in groups; the last case has some that belong to none."""
    some = draw_log_probs(6, seed=81) + torch.tensor(0.5, dtype=torch.float64).log()
    return [
        ((draw_log_probs(6, seed=80), torch.tensor([0, 0, 1, 2, 1, 0])), {}),
        ((some, torch.tensor([0, 1, 1, 1, 2, 2])), {}),
        ((draw_log_probs(5, seed=82), torch.tensor([0, -1, 1, 1, -1])), {}),
    ]


def _exp_entropy(probs: Tensor) -> Tensor:
    return torch.exp(torch.special.entr(probs).sum())


def _held(log_probs: Tensor, groups: Tensor) -> Tensor:
    """The probability of each group, as it is."""
    size = int(groups.max()) + 1
    return torch.stack([log_probs.exp()[groups == g].sum() for g in range(size)])


def _mean_logs(log_probs: Tensor, groups: Tensor) -> Tensor:
    size = int(groups.max()) + 1
    means = torch.stack([log_probs[groups == g].mean() for g in range(size)])
    return _exp_entropy(means.softmax(0))


def _with_the_rest(log_probs: Tensor, groups: Tensor) -> Tensor:
    held = _held(log_probs, groups + 1)  # -1 becomes a group of its own
    return _exp_entropy(held / held.sum())


EFFECTIVE_GROUPS = Exercise(
    name="effective_groups",
    solution="flowrl_lab.metrics:effective_groups",
    cases=_answers_in_groups,
    mistakes=(
        Mistake(
            "answers, not groups",
            "That is the effective number of *answers*. Add up the probabilities of "
            "each group first.",
            lambda log_probs, groups: _exp_entropy(
                log_probs.exp()[groups >= 0] / log_probs.exp()[groups >= 0].sum()
            ),
        ),
        Mistake(
            "not normalised",
            "The probabilities of the groups must sum to 1 before you take their "
            "entropy: divide by their sum.",
            lambda log_probs, groups: _exp_entropy(_held(log_probs, groups)),
        ),
        Mistake(
            "averaged log-probs",
            "You averaged log-probabilities within a group. Probabilities add up: "
            "exp first, then sum.",
            _mean_logs,
        ),
        Mistake(
            "entropy, not its exp",
            "That is the entropy in nats; a number of groups is its exp.",
            lambda log_probs, groups: torch.log(
                _exp_entropy(_held(log_probs, groups) / _held(log_probs, groups).sum())
            ),
        ),
        Mistake(
            "counted",
            "You counted the groups. A group with hardly any probability should count "
            "for hardly anything.",
            lambda log_probs, groups: (
                groups[groups >= 0].unique().numel() + 0 * log_probs.sum()
            ),
        ),
        Mistake(
            "group -1",
            "Group -1 is no group: such answers belong to none and are left out.",
            _with_the_rest,
        ),
    ),
    hint="For each g: the sum of π over answers with groups == g. Divide by their sum. "
    "Then exp(−Σ q log q), as effective_number does: it takes log q.",
)

EXERCISES = (DO_WORD, ACCURACY_AFTER_FILTER, EFFECTIVE_GROUPS)

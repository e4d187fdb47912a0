"""The exercises of the course, by topic: cases, hints, and the mistakes we know.

Every exercise's solution is a function of the library, so there is one source.
The known mistakes are written as short wrong functions: a learner whose output
equals one of them on every case is told which one it is.
"""

from __future__ import annotations

from flowrl_lab.course.checking import Exercise
from flowrl_lab.course.exercises import (
    ablations,
    answers,
    balance,
    code,
    distributions,
    diversity,
    flowrl,
    language_models,
    maximisers,
    partition,
    scaling,
    tokens,
)

__all__ = ["EXERCISES"]

_TOPICS = (
    distributions,
    partition,
    balance,
    code,
    tokens,
    maximisers,
    flowrl,
    answers,
    diversity,
    scaling,
    ablations,
    language_models,
)

EXERCISES: dict[str, Exercise] = {
    exercise.name: exercise for topic in _TOPICS for exercise in topic.EXERCISES
}

"""Exercises: stubs to fill in, checks that name the mistake, hints on demand."""

from flowrl_lab.course.checking import Exercise, Mistake, Result, check
from flowrl_lab.course.exercises import EXERCISES
from flowrl_lab.course.hints import Reveal, hint_and_solution

__all__ = [
    "EXERCISES",
    "Exercise",
    "Mistake",
    "Result",
    "Reveal",
    "check",
    "hint_and_solution",
]

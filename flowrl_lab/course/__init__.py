"""Exercises: stubs to fill in, checks that name the mistake, hints on demand."""

from flowrl_lab.course.checking import Exercise, Mistake, Result, check
from flowrl_lab.course.exercises import EXERCISES
from flowrl_lab.course.hints import Reveal, hint_and_solution
from flowrl_lab.course.pictures import Picture, draw_curves, draw_distributions

__all__ = [
    "EXERCISES",
    "Exercise",
    "Mistake",
    "Picture",
    "Result",
    "Reveal",
    "check",
    "draw_curves",
    "draw_distributions",
    "hint_and_solution",
]

"""Exercises with checks that name the mistake, predictions, quizzes, progress."""

from flowrl_lab.course.checking import Exercise, Mistake, Result
from flowrl_lab.course.checks import check
from flowrl_lab.course.doctor import glance
from flowrl_lab.course.exercises import EXERCISES
from flowrl_lab.course.hints import Reveal, hint_and_solution
from flowrl_lab.course.predictions import answer, outcome, predict, predicted
from flowrl_lab.course.quizzing import quiz
from flowrl_lab.course.showing import keep_in_view
from flowrl_lab.course.using import use
from flowrl_lab.plots.pictures import Picture, draw_curves, draw_distributions
from flowrl_lab.plots.tabulate import Gauge, Table
from flowrl_lab.plots.word_pictures import LivePictures, draw_pictures

__all__ = [
    "EXERCISES",
    "Exercise",
    "Gauge",
    "LivePictures",
    "Mistake",
    "Picture",
    "Result",
    "Reveal",
    "Table",
    "answer",
    "check",
    "draw_curves",
    "draw_distributions",
    "draw_pictures",
    "glance",
    "hint_and_solution",
    "keep_in_view",
    "outcome",
    "predict",
    "predicted",
    "quiz",
    "use",
]

"""Notebook 2: the partition function, exact, learned and estimated."""

from __future__ import annotations

from flowrl_lab.course.checking import Exercise

__all__ = ["EXERCISES"]

EXERCISES: tuple[Exercise, ...] = ()

"""Notebook 3: from the reverse KL to trajectory balance and its family."""

from __future__ import annotations

from flowrl_lab.course.checking import Exercise

__all__ = ["EXERCISES"]

EXERCISES: tuple[Exercise, ...] = ()

"""Notebook 4: log-probabilities of tokens, masks, sums and means."""

from __future__ import annotations

from flowrl_lab.course.checking import Exercise

__all__ = ["EXERCISES"]

EXERCISES: tuple[Exercise, ...] = ()

"""Notebook 6: the FlowRL loss, put together."""

from __future__ import annotations

from flowrl_lab.course.checking import Exercise

__all__ = ["EXERCISES"]

EXERCISES: tuple[Exercise, ...] = ()

"""Notebook 5: REINFORCE++, PPO, GRPO and their KL penalties."""

from __future__ import annotations

from flowrl_lab.course.checking import Exercise

__all__ = ["EXERCISES"]

EXERCISES: tuple[Exercise, ...] = ()

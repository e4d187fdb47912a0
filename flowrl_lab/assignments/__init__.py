"""Graded assignments: one source each, checks for students, marks for instructors.

``open_assignment`` is the student's side.  The instructor's is the command line:
``python -m flowrl_lab assign build | submit | grade | export``.
"""

from flowrl_lab.assignments.handout import Assignment, open_assignment

__all__ = ["Assignment", "open_assignment"]

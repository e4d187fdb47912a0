"""``doctor``: what works on this machine, and how to mend the rest."""

from __future__ import annotations

import argparse


def add_parser(commands) -> None:
    """Add ``doctor``; it has no options."""
    doctor = commands.add_parser("doctor", help="check this machine; says what to fix")
    doctor.set_defaults(action=run_doctor)


def run_doctor(_args: argparse.Namespace) -> int:
    """``doctor``: what works here."""
    from flowrl_lab.course.doctor import main as doctor

    return doctor()

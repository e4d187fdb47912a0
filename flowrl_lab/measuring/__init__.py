"""Judging, keeping and comparing runs."""

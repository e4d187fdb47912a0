"""Marking: reads submissions, runs them locked in, writes gradebook and feedback."""

"""Work off many runs with a progress line: what ``compare`` and ``study`` share."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["work_off"]


def work_off(jobs: Sequence, workers: int, *, others: int = 0):
    """Train all jobs, ``workers`` at a time, saying how far and how long still.

    Args:
        jobs: what to train.
        workers: runs at a time.
        others: steps that come after these jobs, for the time left.

    Returns:
        The ``runner.Outcome``.
    """
    from flowrl_lab.measuring.folder import is_finished
    from flowrl_lab.measuring.progress import ProgressLine
    from flowrl_lab.measuring.runner import run_jobs

    done = [job.config.steps if is_finished(job.folder) else 0 for job in jobs]
    total = sum(job.config.steps for job in jobs) + others
    progress = ProgressLine(total, done=sum(done))

    def report(index: int, step: int) -> None:
        done[index] = step
        ready = sum(d == job.config.steps for d, job in zip(done, jobs, strict=True))
        progress.update(sum(done), f"{ready} of {len(jobs)} runs finished")

    print(f"{len(jobs)} runs, {workers} at a time")
    outcome = run_jobs(jobs, workers=workers, report=report)
    progress.close()
    return outcome

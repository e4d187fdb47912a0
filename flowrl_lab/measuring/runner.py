"""Train runs into folders: one here, or many side by side on the cores.

Every run is independent and single-threaded when several run at once, so a run's
numbers do not depend on what runs beside it.  A run that was interrupted keeps a
checkpoint and goes on from there; a finished one is never trained again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import multiprocessing.connection
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowrl_lab._files import hold_folder, write_json
from flowrl_lab.measuring.folder import (
    RunResult,
    describe_environment,
    is_finished,
    load_result,
    read_environment,
    save_result,
    write_environment,
)
from flowrl_lab.training.config import ExperimentConfig

__all__ = [
    "Job",
    "Outcome",
    "prepare_run",
    "run_jobs",
    "stop_on_interrupt",
    "train_into",
    "write_plan",
]

POLL_SECONDS = 0.1
SAVE_EVERY = 20


@dataclass(frozen=True)
class Job:
    """A config and the folder that its run goes to."""

    config: ExperimentConfig
    folder: Path


@dataclass(frozen=True)
class Outcome:
    """How a batch of jobs ended.

    Attributes:
        finished: the jobs whose folder holds a finished run.
        failed: (job, reason) of those that stopped with an error.
        interrupted: whether somebody asked to stop.
    """

    finished: tuple[Job, ...]
    failed: tuple[tuple[Job, str], ...]
    interrupted: bool


def prepare_run(config: ExperimentConfig, folder: Path, *, resume: bool):
    """A ``Run`` on ``folder``: a new one, or the saved one if ``resume``.

    Raises:
        ValueError: the folder holds a run and ``resume`` is False, or the saved
            run has other settings.
    """
    from flowrl_lab.training.run import Run

    if resume and (folder / "checkpoint.pt").is_file():
        run = Run.load(folder, save_every=SAVE_EVERY)
        check_same_config(config, run.config, folder)
        return run
    return Run(config, folder=folder, save_every=SAVE_EVERY)


def check_same_config(
    wanted: ExperimentConfig, found: ExperimentConfig, folder: Path
) -> None:
    """Refuse to go on with a run that was started with other settings."""
    differing = [
        f"{field.name} ({getattr(found, field.name)!r} there, "
        f"{getattr(wanted, field.name)!r} asked for)"
        for field in dataclasses.fields(wanted)
        if getattr(found, field.name) != getattr(wanted, field.name)
    ]
    if differing:
        raise ValueError(
            f"the run in {folder} has other settings: {', '.join(differing)}. Fix: ask "
            "for the same settings, or name a new folder."
        )


def train_into(
    run, should_stop: Callable[[], bool], report: Callable, records=None
) -> bool:
    """Train ``run`` to its end in its folder; ``report(record)`` after every step.

    ``should_stop()`` is asked between steps, so that what is saved is whole: the
    run goes on later as if it had never stopped.  ``records`` are the run's own, as
    somebody passes them on who looks at them; None takes the run itself.

    Returns:
        True if the run is finished, False if it was stopped.

    Raises:
        FloatingPointError: the loss is not finite; the last save stays.
        ValueError: another process trains into the same folder.
    """
    with hold_folder(run.folder):
        return _train(run, should_stop, report, run if records is None else records)


def _train(run, should_stop: Callable[[], bool], report: Callable, records) -> bool:
    start = time.monotonic()
    environment = describe_environment(str(run.policy.device))
    earlier = read_environment(run.folder).get("wall_seconds", 0.0)
    for record in records:
        report(record)
        if should_stop():
            break
    environment["wall_seconds"] = earlier + time.monotonic() - start
    run.save(run.folder)
    write_environment(run.folder, environment)
    if run.step < run.config.steps:
        return False
    if not run.task.has_referee:
        return True  # nothing exact to sum up; `evaluate` judges it by samples
    config = dataclasses.asdict(run.config)
    save_result(RunResult(config, tuple(run.records), environment), run.folder)
    return True


@contextlib.contextmanager
def stop_on_interrupt():
    """Yields ``should_stop()``: has Ctrl-C been pressed?  A second one is not held."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return
    before = signal.getsignal(signal.SIGINT)

    def note(*_event) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)


# ------------------------------------------------------------------ side by side


def run_jobs(
    jobs: Sequence[Job], *, workers: int, report: Callable[[int, int], None]
) -> Outcome:
    """Do all jobs, ``workers`` at a time, each in a process of its own.

    Finished runs are taken as they are, interrupted ones go on.  Ctrl-C lets every
    worker save what it has.

    Args:
        jobs: what to train; their folders differ.
        workers: processes at a time.
        report: called with (index of the job, steps done) as steps are done.

    Raises:
        ValueError: a folder holds a run with other settings.
    """
    for job in jobs:
        if is_finished(job.folder):
            text = (job.folder / "config.json").read_text(encoding="utf-8")
            found = ExperimentConfig.from_json(text)
            check_same_config(job.config, found, job.folder)
            load_result(job.folder)
    waiting = [i for i, job in enumerate(jobs) if not is_finished(job.folder)]
    for index in set(range(len(jobs))).difference(waiting):
        report(index, jobs[index].config.steps)
    pool = _Pool(jobs, waiting, min(workers, len(waiting)), report)
    with stop_on_interrupt() as should_stop:
        pool.work(should_stop)
    return Outcome(
        finished=tuple(job for job in jobs if is_finished(job.folder)),
        failed=tuple((jobs[index], why) for index, why in pool.failed.items()),
        interrupted=should_stop(),
    )


class _Worker:
    """A process that trains one job after another, and the pipe to it."""

    def __init__(self):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs,), daemon=True)
        with _interrupts_ignored():  # the process inherits this
            self.process.start()
        theirs.close()  # so that the end of the process ends the pipe
        self.index: int | None = None

    def send(self, message) -> None:
        """A job, or None for stop; one that has died is noticed when it is heard."""
        with contextlib.suppress(BrokenPipeError, ConnectionError):
            self.pipe.send(message)


class _Pool:
    """Hands jobs to workers and passes on what they say."""

    def __init__(self, jobs, waiting: list[int], workers: int, report):
        self.failed: dict[int, str] = {}
        self._jobs, self._waiting, self._report = jobs, list(waiting), report
        self._wanted = workers
        self._workers: list[_Worker] = []
        self._stopped = False

    def work(self, should_stop: Callable[[], bool]) -> None:
        while self._waiting or self._busy():
            if should_stop() and not self._stopped:
                self._stopped = True
                self._waiting.clear()
                for worker in self._busy():
                    worker.send(None)  # they finish their step and save
            self._hand_out()
            pipes = {worker.pipe: worker for worker in self._busy()}
            for pipe in multiprocessing.connection.wait(list(pipes), POLL_SECONDS):
                self._hear(pipes[pipe])
        for worker in self._workers:
            worker.pipe.close()
        for worker in self._workers:
            worker.process.join()

    def _busy(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.index is not None]

    def _hand_out(self) -> None:
        while self._waiting and len(self._workers) < self._wanted:
            self._workers.append(_Worker())
        for worker in self._workers:
            if worker.index is None and self._waiting:
                worker.index = self._waiting.pop(0)
                job = self._jobs[worker.index]
                worker.send((job.config, job.folder))

    def _hear(self, worker: _Worker) -> None:
        try:
            kind, content = worker.pipe.recv()
        except (EOFError, ConnectionError):
            worker.process.join()
            code = worker.process.exitcode
            self.failed[worker.index] = f"its process ended with code {code}"
            self._workers.remove(worker)
            return
        if kind == "step":
            self._report(worker.index, content)
            return
        if kind == "failed":
            self.failed[worker.index] = content
        worker.index = None


@contextlib.contextmanager
def _interrupts_ignored():
    """Ctrl-C reaches every process of a terminal; only the parent should act."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _work(pipe) -> None:
    """A worker's life: jobs come in, steps and outcomes go out.

    What comes in during a job says stop.  A pipe does for that: an event would need
    shared memory, which not every container has.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()

    def should_stop() -> bool:
        return pipe.poll() or not parent.is_alive()

    with contextlib.suppress(EOFError, ConnectionError):  # the parent has gone
        while (job := pipe.recv()) is not None:
            config, folder = job
            try:
                run = prepare_run(config, folder, resume=True)
                train_into(run, should_stop, _step_reporter(pipe))
            except ConnectionError:
                raise
            except Exception as error:  # told to the parent; other jobs go on
                pipe.send(("failed", f"{type(error).__name__}: {error}"))
            else:
                pipe.send(("ended", None))


def _step_reporter(pipe) -> Callable:
    """Tells steps to the parent, at most ten times a second."""
    last = float("-inf")

    def report(record) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > POLL_SECONDS or record.step == record.steps:
            pipe.send(("step", record.step))
            last = now

    return report


def write_plan(folder: Path, jobs: Sequence[Job]) -> None:
    """Write what a comparison consists of, so that a reader can repeat it."""
    plan = {job.folder.name: json.loads(job.config.to_json()) for job in jobs}
    write_json(folder / "plan.json", plan)

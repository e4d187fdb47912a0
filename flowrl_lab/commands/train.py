"""``train``: one run, into a folder."""

from __future__ import annotations

import argparse
import contextlib

from flowrl_lab.commands import DONE, INTERRUPTED
from flowrl_lab.commands.settings import (
    add_run_options,
    build_config,
    command_to_go_on,
)
from flowrl_lab.integrations import TRACKERS


def add_parser(commands) -> None:
    """Add ``train`` and its options."""
    train = commands.add_parser("train", help="one run, into a folder")
    which = "an algorithm or one of its variants (default: %(default)s)"
    train.add_argument("--algorithm", "--variant", default="flowrl", help=which)
    train.add_argument("--seed", type=int, default=0)
    where = f"also write the numbers of every step: {', '.join(TRACKERS)}"
    train.add_argument("--tracker", metavar="NAME", help=where)
    add_run_options(train)
    train.set_defaults(action=run_train)


def _tracked(run, tracker: str | None):
    """The run's records, noted by the tracker on their way; a resumed run's apart."""
    if tracker is None:
        return run
    from flowrl_lab.integrations.trackers import track

    name = f"{tracker}-from-step-{run.step}" if run.step else tracker
    return track(run, tracker, run.folder / name, project=run.config.run_name)


def run_train(args: argparse.Namespace) -> int:
    """``train``: one run, with a progress line."""
    config = build_config(args, args.algorithm, args.seed)
    from flowrl_lab.course.session import choose_threads
    from flowrl_lab.measuring.folder import is_finished, load_result
    from flowrl_lab.measuring.progress import (
        ProgressLine,
        describe_groups,
        describe_step,
    )
    from flowrl_lab.measuring.runner import prepare_run, stop_on_interrupt, train_into
    from flowrl_lab.measuring.tables import format_table

    choose_threads()
    run = prepare_run(config, args.out, resume=args.resume)
    if is_finished(args.out):
        print(f"{args.out} holds this run, finished.")
        print(format_table([load_result(args.out)]))
        return DONE
    progress = ProgressLine(config.steps, done=run.step)

    def report(record) -> None:
        progress.update(record.step, describe_step(record))

    with stop_on_interrupt() as should_stop, contextlib.closing(progress):
        finished = train_into(run, should_stop, report, _tracked(run, args.tracker))
    if not finished:
        print(f"Stopped at step {run.step} of {config.steps}; saved in {args.out}.")
        print(f"Go on with: {command_to_go_on(args)}")
        return INTERRUPTED
    if not is_finished(args.out):  # a task without a referee
        print(f"The last batch: {describe_groups(run.records[-1])}.")
        print(f"Trained, in {args.out}. Judge it with:")
        print(f"python -m flowrl_lab evaluate {args.out}")
        return DONE
    print(format_table([load_result(args.out)]))
    print(f"Results in {args.out}.")
    return DONE

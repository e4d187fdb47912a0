"""``train``: one run, into a folder."""

from __future__ import annotations

import argparse

from flowrl_lab.commands import DONE, INTERRUPTED
from flowrl_lab.commands.settings import (
    add_run_options,
    build_config,
    command_to_go_on,
)


def add_parser(commands) -> None:
    """Add ``train`` and its options."""
    train = commands.add_parser("train", help="one run, into a folder")
    train.add_argument(
        "--algorithm",
        "--variant",
        default="flowrl",
        help="an algorithm or one of its variants (default: %(default)s)",
    )
    train.add_argument("--seed", type=int, default=0)
    add_run_options(train)
    train.set_defaults(action=run_train)


def run_train(args: argparse.Namespace) -> int:
    """``train``: one run, with a progress line."""
    config = build_config(args, args.algorithm, args.seed)
    from flowrl_lab.course.session import choose_threads
    from flowrl_lab.measuring.folder import is_finished, load_result
    from flowrl_lab.measuring.progress import ProgressLine
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
        progress.update(record.step, f"reward {record.reward:.3f}")

    with stop_on_interrupt() as should_stop:
        finished = train_into(run, should_stop, report)
    progress.close()
    if not finished:
        print(f"Stopped at step {run.step} of {config.steps}; saved in {args.out}.")
        print(f"Go on with: {command_to_go_on(args)}")
        return INTERRUPTED
    if not is_finished(args.out):  # a task without a referee
        solved = run.records[-1].parts.get("solved", float("nan"))
        print(f"Trained; {solved:.0%} of the last batch was solved. In {args.out}.")
        return DONE
    print(format_table([load_result(args.out)]))
    print(f"Results in {args.out}.")
    return DONE

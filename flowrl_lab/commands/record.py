"""``record``: runs with every step and solution map, for a replay."""

from __future__ import annotations

import argparse
from pathlib import Path

from flowrl_lab.commands import DONE, INTERRUPTED
from flowrl_lab.commands.settings import (
    add_run_options,
    build_config,
    command_to_go_on,
    folder_name,
    parse_seeds,
    parse_specs,
)


def add_parser(commands) -> None:
    """Add ``record`` and its options."""
    record = commands.add_parser(
        "record", help="runs with every step and solution map, to be played again"
    )
    same = "as for compare: grpo,flowrl:reward_scale=6"
    record.add_argument("--algorithms", required=True, metavar="LIST", help=same)
    record.add_argument("--seeds", default="1", help="how many, or a list such as 3,4")
    add_run_options(record)
    record.set_defaults(action=run_record)
    gather = commands.add_parser(
        "gather-replay", help="the recordings of run folders as one small file"
    )
    gather.add_argument("file", type=Path, metavar="FILE", help="to write (.jsonl)")
    gather.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    gather.set_defaults(action=run_gather)


def run_record(args: argparse.Namespace) -> int:
    """Train one run after the other; each step is written as it comes."""
    configs = [
        build_config(args, spec, seed)
        for seed in parse_seeds(args.seeds)
        for spec in parse_specs(args.algorithms)
    ]
    from flowrl_lab.course.session import choose_threads
    from flowrl_lab.measuring.folder import is_finished
    from flowrl_lab.measuring.progress import ProgressLine, describe_step
    from flowrl_lab.measuring.recorded import append_step
    from flowrl_lab.measuring.runner import prepare_run, stop_on_interrupt, train_into

    choose_threads()
    with stop_on_interrupt() as should_stop:
        for config in configs:
            folder = args.out / "runs" / folder_name(config)
            if args.resume and is_finished(folder):
                continue
            run = prepare_run(config, folder, resume=args.resume)
            progress = ProgressLine(config.steps, done=run.step)

            def note(record, folder=folder, progress=progress) -> None:
                append_step(folder, record)
                progress.update(record.step, describe_step(record))

            finished = train_into(run, should_stop, note)
            progress.close()
            if not finished:
                print(f"Stopped; saved. Go on with: {command_to_go_on(args)}")
                return INTERRUPTED
    print(f"{len(configs)} runs recorded in {args.out}.")
    return DONE


def run_gather(args: argparse.Namespace) -> int:
    """``gather-replay``: many recordings become one file."""
    from flowrl_lab.measuring.recorded import write_replay

    write_replay(args.file, args.folders)
    print(f"{len(args.folders)} recordings: {args.file}")
    return DONE

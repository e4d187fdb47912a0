"""``compare``: several algorithms and seeds, one table, one report."""

from __future__ import annotations

import argparse
import json
import sys

from flowrl_lab.commands import DONE, FAILED, INTERRUPTED
from flowrl_lab.commands.settings import (
    add_many_runs,
    add_run_options,
    build_config,
    command_to_go_on,
    folder_name,
    parse_seeds,
    parse_specs,
)
from flowrl_lab.commands.working import work_off


def add_parser(commands) -> None:
    """Add ``compare`` and its options."""
    what = "several algorithms and seeds: one table, one HTML report"
    compare = commands.add_parser("compare", help=what)
    names = "flowrl,grpo,ppo,reinforce_pp"
    which = "variants, each with settings of its own if need be: "
    which += "flowrl:reward_scale=5:learning_rate=1e-3 (default: %(default)s)"
    compare.add_argument("--algorithms", default=names, metavar="A,B,...", help=which)
    add_many_runs(compare)
    add_run_options(compare)
    compare.set_defaults(action=run_compare)


def run_compare(args: argparse.Namespace) -> int:
    """``compare``: all runs side by side, then the table and the report."""
    jobs = plan_jobs(args)
    from flowrl_lab.measuring.runner import write_plan

    args.out.mkdir(parents=True, exist_ok=True)
    write_plan(args.out, jobs)
    return _tell(args, jobs, work_off(jobs, args.jobs))


def plan_jobs(args: argparse.Namespace) -> list:
    """Every run of a comparison, checked before the first one starts.

    Raises:
        ValueError: bad names or settings, two runs alike, or a folder in use.
    """
    specs = parse_specs(args.algorithms)
    seeds = parse_seeds(args.seeds)
    if not specs or args.jobs < 1:
        raise ValueError(
            f"got --algorithms {args.algorithms!r} and --jobs {args.jobs}; expected at "
            "least one of each. Fix: --algorithms flowrl,grpo --jobs 2"
        )
    configs = [build_config(args, spec, seed) for spec in specs for seed in seeds]
    from flowrl_lab.measuring.runner import Job

    jobs = [Job(config, args.out / "runs" / folder_name(config)) for config in configs]
    if len({job.folder for job in jobs}) < len(jobs):
        raise ValueError(
            f"--algorithms {args.algorithms!r} names a run twice. Fix: name each once, "
            "or give the copies settings of their own (flowrl:reward_scale=5)."
        )
    if args.out.exists() and any(args.out.iterdir()) and not args.resume:
        raise ValueError(
            f"{args.out} already holds something; nothing is overwritten. Fix: name a "
            "new folder, or go on with that comparison: --resume."
        )
    return jobs


def _tell_sampled(jobs: list) -> None:
    """Of a task without a list of answers: what the last batches showed."""
    from flowrl_lab._files import read_lines
    from flowrl_lab.measuring.progress import describe_groups
    from flowrl_lab.training.records import record_from_dict

    for job in jobs:
        lines = read_lines(job.folder / "records.jsonl")
        last = record_from_dict(json.loads(lines[-1]))
        print(f"{job.folder}: {describe_groups(last)}")
    print("The task lists no answers. Judge runs: python -m flowrl_lab evaluate FOLDER")


def _tell(args: argparse.Namespace, jobs: list, outcome) -> int:
    """Write the report of what is finished, then print the table."""
    from flowrl_lab.measuring.folder import load_result
    from flowrl_lab.measuring.tables import format_table

    results = [load_result(job.folder) for job in outcome.finished]
    again = command_to_go_on(args)
    report = None
    if results and not outcome.interrupted:
        from flowrl_lab.measuring.pages import write_report

        title = f"{args.task}: {len({result.name for result in results})} ways compared"
        report = write_report(
            results,
            args.out / "report.html",
            title=title,
            command=again,
            overwrite=True,
        )
    if results:
        print(format_table(results))
    elif not (outcome.failed or outcome.interrupted):
        _tell_sampled(jobs)
    for job, reason in outcome.failed:
        print(f"failed: {job.folder.name}: {reason}", file=sys.stderr)
    if outcome.interrupted:
        print(f"Stopped: {len(results)} of {len(jobs)} runs finished; all are kept.")
        print(f"Go on with: {again}")
        return INTERRUPTED
    if report is not None:
        print(f"Report: {report}")
    return FAILED if outcome.failed else DONE

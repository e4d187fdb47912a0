"""``evaluate``: a saved run, judged exactly and from samples."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from pathlib import Path

from flowrl_lab.commands import DONE


def add_parser(commands) -> None:
    """Add ``evaluate`` and its options."""
    evaluate = commands.add_parser(
        "evaluate", help="a saved run on held-out prompts: exact, and from samples"
    )
    add = evaluate.add_argument
    add("folder", type=Path, metavar="RUN_FOLDER")
    add("--prompts", type=int, metavar="N", help="held-out prompts; default: the run's")
    samples = "samples of each prompt (default: %(default)s)"
    add("--samples", type=int, default=64, metavar="K", help=samples)
    add("--temperature", type=float, metavar="T", help="default: the run's own")
    repeats = "draws of a perfect sampler, for the noise floors (default: %(default)s)"
    add("--repeats", type=int, default=20, metavar="R", help=repeats)
    add("--seed", type=int, default=0, help="of all draws")
    add("--json", type=Path, metavar="FILE", help="numbers to write")
    add("--report", type=Path, metavar="FILE", help="HTML to write")
    evaluate.set_defaults(action=run_evaluate)


def run_evaluate(args: argparse.Namespace) -> int:
    """``evaluate``: the tables, and on request the files."""
    from flowrl_lab._files import refuse_used, write_json

    refuse_used(args.json, args.report)
    if not 0 <= args.seed < 2**32:
        raise ValueError(
            f"--seed is {args.seed}; expected 0 to 2**32 - 1. Fix: --seed 0"
        )
    from flowrl_lab.course.session import choose_threads
    from flowrl_lab.measuring.folder import describe_environment
    from flowrl_lab.measuring.judged import evaluate_run, load_for_evaluation
    from flowrl_lab.measuring.pages import (
        format_evaluation,
        render_evaluation,
        write_page,
    )

    choose_threads()
    evaluation = evaluate_run(
        load_for_evaluation(args.folder),
        num_prompts=args.prompts,
        num_samples=args.samples,
        temperature=args.temperature,
        repeats=args.repeats,
        seed=args.seed,
        on_stage=lambda stage: print(f"{stage} ...", file=sys.stderr),
    )
    if args.json is not None:
        environment = describe_environment(evaluation.facts["device"])
        content = dataclasses.asdict(evaluation)
        write_json(args.json, {**content, "environment": environment})
    if args.report is not None:
        again = " ".join(["python -m flowrl_lab", *map(shlex.quote, args.words)])
        write_page(args.report, render_evaluation(evaluation, command=again))
    print(format_evaluation(evaluation))
    for path in (args.json, args.report):
        if path is not None:
            print(f"Written: {path}")
    return DONE

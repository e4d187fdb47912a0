"""``evaluate``: a saved run, judged exactly and from samples."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from flowrl_lab.commands import DONE


def add_parser(commands) -> None:
    """Add ``evaluate`` and its options."""
    evaluate = commands.add_parser(
        "evaluate", help="a saved run on held-out prompts: exact, and from samples"
    )
    evaluate.add_argument("folder", type=Path, metavar="RUN_FOLDER")
    evaluate.add_argument(
        "--prompts", type=int, metavar="N", help="held-out prompts; default: the run's"
    )
    evaluate.add_argument(
        "--samples", type=int, default=64, metavar="K",
        help="samples of each prompt (default: %(default)s)",
    )  # fmt: skip
    evaluate.add_argument(
        "--temperature", type=float, metavar="T", help="default: the run's own"
    )
    evaluate.add_argument(
        "--repeats", type=int, default=20, metavar="R",
        help="draws of a perfect sampler, for the noise floors (default: %(default)s)",
    )  # fmt: skip
    evaluate.add_argument("--seed", type=int, default=0, help="of all draws")
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="numbers to write")
    evaluate.add_argument("--report", type=Path, metavar="FILE", help="HTML to write")
    evaluate.set_defaults(action=run_evaluate)


def run_evaluate(args: argparse.Namespace) -> int:
    """``evaluate``: the tables, and on request the files."""
    refuse_files_in_use(args.json, args.report)
    if not 0 <= args.seed < 2**32:
        raise ValueError(
            f"--seed is {args.seed}; expected 0 to 2**32 - 1. Fix: --seed 0"
        )
    from flowrl_lab.course.session import choose_threads
    from flowrl_lab.measuring.evaluation_pages import (
        format_evaluation,
        write_evaluation,
    )
    from flowrl_lab.measuring.judged import evaluate_run, load_for_evaluation

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
    print(format_evaluation(evaluation))
    again = " ".join(["python -m flowrl_lab", *map(shlex.quote, args.words)])
    write_evaluation(
        evaluation, json_path=args.json, report_path=args.report, command=again
    )
    for path in (args.json, args.report):
        if path is not None:
            print(f"Written: {path}")
    return DONE


def refuse_files_in_use(*paths: Path | None) -> None:
    """Before any work: nothing is overwritten, and no name is used twice.

    Raises:
        ValueError: a file exists, or two are the same.
    """
    named = [path for path in paths if path is not None]
    for path in named:
        if path.exists():
            raise ValueError(
                f"{path} already exists; nothing is overwritten. Fix: name a new file."
            )
    if len(set(named)) < len(named):
        raise ValueError(
            f"{named[0]} is named twice. Fix: give --json and --report files of "
            "their own."
        )

"""``pretrain``: what a shipped model has read, read again."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from flowrl_lab.commands import DONE


def add_parser(commands) -> None:
    """Add ``pretrain`` and its options."""
    pretrain = commands.add_parser(
        "pretrain", help="remake a shipped tiny model, or a real model's cold start"
    )
    which = "formulas: a LoRA adapter for SmolLM2-135M; else a tiny model from nothing"
    tasks = ("make_number", "programs", "sums", "formulas")
    pretrain.add_argument("task", choices=tasks, help=which)
    pretrain.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    pretrain.add_argument("--steps", type=int, help="default: the shipped recipe's")
    pretrain.add_argument("--seed", type=int, default=0)
    pretrain.add_argument("--device", default="cpu", help="default: %(default)s")
    pretrain.set_defaults(action=run_pretrain)


def run_pretrain(args: argparse.Namespace) -> int:
    """``pretrain``: a tiny language model from random weights, or a cold start."""
    import dataclasses

    from flowrl_lab.course.session import choose_threads
    from flowrl_lab.training.cold_start import COLD_STARTS, cold_start
    from flowrl_lab.training.pretraining import RECIPES, pretrain

    choose_threads()
    changes = {"seed": args.seed}
    if args.steps is not None:
        if args.steps < 1:
            raise ValueError(f"--steps is {args.steps}; expected at least 1.")
        changes["steps"] = args.steps
    if args.task in COLD_STARTS:
        recipe = dataclasses.replace(COLD_STARTS[args.task], **changes)
        facts = cold_start(args.out, recipe, device=args.device)
    else:
        config = dataclasses.replace(RECIPES[args.task](), **changes)
        facts = pretrain(args.out, config, device=args.device)
    print(json.dumps(facts, indent=2, sort_keys=True))
    return DONE

"""What ``train`` and ``compare`` share: options, and the config they mean."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
from pathlib import Path

from flowrl_lab.training.config import CHOICES

__all__ = [
    "RESUME",
    "add_many_runs",
    "add_run_options",
    "build_config",
    "command_to_go_on",
    "folder_name",
    "parse_seeds",
    "parse_settings",
    "parse_specs",
]


SEEDS = "how many (0 to N-1), or which: 3,4,7 (default: %(default)s)"
JOBS = "runs at a time, one thread each (default: the cores, %(default)s)"
RESUME = "go on with what FOLDER holds; finished runs are kept as they are"
TASK = (
    f"{', '.join(CHOICES['task'])}; or package.module:name of your own "
    "(default: %(default)s)"
)
CHANGE = (
    "change one setting, e.g. --set learning_rate=1e-3; a task's own options as --set "
    "task_options.KEY=VALUE; may be repeated"
)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of everything that trains."""
    add = parser.add_argument
    add("--task", default="landscape", help=TASK)
    add("--steps", type=int, help="rollouts; default: the preset's")
    which = "which preset to start from (default: %(default)s)"
    add("--budget", choices=("quick", "full"), default="full", help=which)
    add("--set", action="append", default=[], metavar="KEY=VALUE", help=CHANGE)
    where = "where results go"
    add("--out", type=Path, required=True, metavar="FOLDER", help=where)
    add("--resume", action="store_true", help=RESUME)


def add_many_runs(parser: argparse.ArgumentParser) -> None:
    """Add the options of what trains many runs side by side."""
    cores = os.cpu_count() or 1
    parser.add_argument("--seeds", default="5", metavar="N", help=SEEDS)
    parser.add_argument("--jobs", type=int, default=cores, help=JOBS)


def parse_specs(text: str) -> list[str]:
    """``"grpo, flowrl:reward_scale=6"`` -> its parts."""
    return [part.strip() for part in text.split(",") if part.strip()]


def parse_settings(pairs: list[str]) -> dict:
    """``["steps=5", "task_options.variant=x"]`` -> settings, nested once.

    A value is read as JSON where it is JSON (numbers, true, null, lists), else as
    the text it is.

    Raises:
        ValueError: a pair without ``=``.
    """
    settings: dict = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ValueError(
                f"setting {pair!r} is not KEY=VALUE. Fix: write for example "
                "--set learning_rate=1e-3"
            )
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = {"True": True, "False": False}.get(text, text)
        outer, dot, inner = key.partition(".")
        if dot:
            settings.setdefault(outer, {})[inner] = value
        else:
            settings[key] = value
    return settings


def parse_seeds(text: str) -> list[int]:
    """``"5"`` -> 0..4; ``"3,4,7"`` -> those three."""
    wrong = ValueError(
        f"--seeds is {text!r}; expected a number of seeds or a list such as 3,4,7. "
        "Fix: --seeds 5"
    )
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise wrong from None
    if "," not in text:
        numbers = list(range(numbers[0])) if numbers else []
    if not numbers or min(numbers) < 0:
        raise wrong
    return list(dict.fromkeys(numbers))


def build_config(args: argparse.Namespace, spec: str, seed: int):
    """The config of one run: a preset with the changes of the command line.

    ``spec`` is ``variant`` or ``variant:key=value:...``; the run is named after it.
    """
    from flowrl_lab.training.config import ExperimentConfig
    from flowrl_lab.training.presets import preset

    variant, *pairs = spec.split(":")
    changes = parse_settings([*args.set, *pairs])
    if args.steps is not None:
        changes["steps"] = args.steps
    reserved = {"task", "algorithm", "seed"} & changes.keys()
    if reserved:
        name = sorted(reserved)[0]
        raise ValueError(
            f"--set {name}=... would be overruled by --{name}. Fix: use --{name}."
        )
    for name, value in changes.items():  # 3 is a fine way to write 3.0
        whole = isinstance(value, int) and not isinstance(value, bool)
        if whole and isinstance(getattr(ExperimentConfig, name, None), float):
            changes[name] = float(value)
    config = preset(args.task, variant, budget=args.budget, seed=seed, **changes)
    if "name" in changes:
        return config
    return config.replace(name=" ".join([variant, *pairs]))


def folder_name(config) -> str:
    """A run's folder in a comparison: its name and seed, in safe characters."""
    return f"{re.sub(r'[^A-Za-z0-9_.=+-]+', '-', config.run_name)}_seed{config.seed}"


def command_to_go_on(args: argparse.Namespace) -> str:
    """The command that goes on with this one, to be pasted into a terminal."""
    words = [word for word in args.words if word != "--resume"]
    words = [shlex.quote(word) for word in [*words, "--resume"]]
    return " ".join(["python -m flowrl_lab", *words])

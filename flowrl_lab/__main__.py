"""The command line: ``python -m flowrl_lab train | compare | doctor | ...``.

Imports wait until a command needs them, so ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import shlex
import sys
from pathlib import Path

COMMANDS = (
    "train", "compare", "doctor", "pretrain", "collect", "recorded", "explorer-data",
    "report",
)  # fmt: skip
DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
EXAMPLES = """examples:
  python -m flowrl_lab train --task landscape --algorithm flowrl --out runs/one
  python -m flowrl_lab compare --algorithms flowrl,grpo --seeds 5 --out runs/two
  python -m flowrl_lab compare --algorithms flowrl,flowrl:reward_scale=5,grpo \\
      --task make_number --out runs/three
  python -m flowrl_lab doctor
"""


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(
        prog="python -m flowrl_lab",
        description="Train, compare and check, without a notebook.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback of an error"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_compare(commands)
    doctor = commands.add_parser("doctor", help="check this machine; says what to fix")
    doctor.set_defaults(action=run_doctor)
    _add_pretrain(commands)
    _add_collect(commands)
    _add_recorded(commands)
    _add_explorer_data(commands)
    _add_report(commands)
    return parser


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    """What ``train`` and ``compare`` share."""
    parser.add_argument(
        "--task",
        default="landscape",
        help="landscape, strings or make_number (default: %(default)s)",
    )
    parser.add_argument("--steps", type=int, help="rollouts; default: the preset's")
    parser.add_argument(
        "--budget",
        choices=("quick", "full"),
        default="full",
        help="which preset to start from (default: %(default)s)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one setting, e.g. --set learning_rate=1e-3; a task's own "
        "options as --set task_options.KEY=VALUE; may be repeated",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="where results go"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with what FOLDER holds; finished runs are kept as they are",
    )


def _add_train(commands) -> None:
    train = commands.add_parser("train", help="one run, into a folder")
    train.add_argument(
        "--algorithm",
        "--variant",
        default="flowrl",
        help="an algorithm or one of its variants (default: %(default)s)",
    )
    train.add_argument("--seed", type=int, default=0)
    _add_run_options(train)
    train.set_defaults(action=run_train)


def _add_compare(commands) -> None:
    compare = commands.add_parser(
        "compare", help="several algorithms and seeds: one table, one HTML report"
    )
    compare.add_argument(
        "--algorithms",
        default="flowrl,grpo,ppo,reinforce_pp",
        metavar="A,B,...",
        help="variants, each with settings of its own if need be: "
        "flowrl:reward_scale=5:learning_rate=1e-3 (default: %(default)s)",
    )
    compare.add_argument(
        "--seeds",
        default="5",
        metavar="N",
        help="how many (0 to N-1), or which: 3,4,7 (default: %(default)s)",
    )
    compare.add_argument(
        "--jobs",
        type=int,
        default=os.cpu_count() or 1,
        help="runs at a time, one thread each (default: the cores, %(default)s)",
    )
    _add_run_options(compare)
    compare.set_defaults(action=run_compare)


def _add_pretrain(commands) -> None:
    pretrain = commands.add_parser(
        "pretrain", help="remake the tiny language model from nothing"
    )
    pretrain.add_argument("task", choices=("make_number",))
    pretrain.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    pretrain.add_argument("--steps", type=int, help="default: the shipped recipe's")
    pretrain.add_argument("--seed", type=int, default=0)
    pretrain.add_argument("--device", default="cpu", help="default: %(default)s")
    pretrain.set_defaults(action=run_pretrain)


def _add_collect(commands) -> None:
    collect = commands.add_parser(
        "collect", help="finished runs of several folders as one small file"
    )
    collect.add_argument("file", type=Path, metavar="FILE", help="to write (.jsonl)")
    collect.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    collect.set_defaults(action=run_collect)


def _add_recorded(commands) -> None:
    recorded = commands.add_parser(
        "recorded", help="the table of runs that ship in data/results"
    )
    recorded.add_argument("name", help="such as make_number")
    recorded.add_argument("--report", type=Path, metavar="FILE", help="HTML to write")
    recorded.set_defaults(action=run_recorded)


def _add_explorer_data(commands) -> None:
    explorer = commands.add_parser(
        "explorer-data", help="remake the runs that the scrubber of notebook 1 shows"
    )
    explorer.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    explorer.set_defaults(action=run_explorer_data)


def _add_report(commands) -> None:
    report = commands.add_parser(
        "report", help="one HTML page of a learner's course: predictions, checks, quiz"
    )
    report.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="progress files, merged; default: your own",
    )
    report.add_argument("--out", default="course.html", help="default: %(default)s")
    report.add_argument("--force", action="store_true", help="replace OUT")
    report.set_defaults(action=run_report)


# ---------------------------------------------------------------------- settings


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
    from flowrl_lab.config import ExperimentConfig
    from flowrl_lab.presets import preset

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


# ---------------------------------------------------------------------- commands


def run_train(args: argparse.Namespace) -> int:
    """``train``: one run, with a progress line."""
    config = build_config(args, args.algorithm, args.seed)
    from flowrl_lab.progress import ProgressLine
    from flowrl_lab.results import is_finished, load_result
    from flowrl_lab.runner import prepare_run, stop_on_interrupt, train_into
    from flowrl_lab.session import choose_threads
    from flowrl_lab.summaries import format_table

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
        again = " ".join(["python -m flowrl_lab", *_again(args)])
        print(f"Stopped at step {run.step} of {config.steps}; saved in {args.out}.")
        print(f"Go on with: {again}")
        return INTERRUPTED
    print(format_table([load_result(args.out)]))
    print(f"Results in {args.out}.")
    return DONE


def run_compare(args: argparse.Namespace) -> int:
    """``compare``: all runs side by side, then the table and the report."""
    jobs = plan_jobs(args)
    from flowrl_lab.progress import ProgressLine
    from flowrl_lab.runner import run_jobs, write_plan

    args.out.mkdir(parents=True, exist_ok=True)
    write_plan(args.out, jobs)
    done = [0] * len(jobs)
    progress = ProgressLine(sum(job.config.steps for job in jobs))

    def report(index: int, step: int) -> None:
        done[index] = step
        ready = sum(d == job.config.steps for d, job in zip(done, jobs, strict=True))
        progress.update(sum(done), f"{ready} of {len(jobs)} runs finished")

    print(f"{len(jobs)} runs, {args.jobs} at a time")
    outcome = run_jobs(jobs, workers=args.jobs, report=report)
    progress.close()
    return _tell(args, jobs, outcome)


def plan_jobs(args: argparse.Namespace) -> list:
    """Every run of a comparison, checked before the first one starts.

    Raises:
        ValueError: bad names or settings, two runs alike, or a folder in use.
    """
    specs = [spec.strip() for spec in args.algorithms.split(",") if spec.strip()]
    seeds = parse_seeds(args.seeds)
    if not specs or args.jobs < 1:
        raise ValueError(
            f"got --algorithms {args.algorithms!r} and --jobs {args.jobs}; expected at "
            "least one of each. Fix: --algorithms flowrl,grpo --jobs 2"
        )
    configs = [build_config(args, spec, seed) for spec in specs for seed in seeds]
    from flowrl_lab.runner import Job

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


def _tell(args: argparse.Namespace, jobs: list, outcome) -> int:
    """Print the table and write the report of what is finished."""
    from flowrl_lab.results import load_result
    from flowrl_lab.summaries import format_table

    results = [load_result(job.folder) for job in outcome.finished]
    again = " ".join(["python -m flowrl_lab", *_again(args)])
    if results:
        print(format_table(results))
    for job, reason in outcome.failed:
        print(f"failed: {job.folder.name}: {reason}", file=sys.stderr)
    if outcome.interrupted:
        print(f"Stopped: {len(results)} of {len(jobs)} runs finished; all are kept.")
        print(f"Go on with: {again}")
        return INTERRUPTED
    if results:
        from flowrl_lab.reports import write_report

        title = f"{args.task}: {len({result.name for result in results})} ways compared"
        path = write_report(
            results, args.out / "report.html", title=title, command=again,
            overwrite=True,
        )  # fmt: skip
        print(f"Report: {path}")
    return FAILED if outcome.failed else DONE


def _again(args: argparse.Namespace) -> list[str]:
    """The words of the command that goes on with this one."""
    words = [word for word in args.words if word != "--resume"]
    return [shlex.quote(word) for word in [*words, "--resume"]]


def run_doctor(_args: argparse.Namespace) -> int:
    """``doctor``: what works here."""
    from flowrl_lab.doctor import main as doctor

    return doctor()


def run_collect(args: argparse.Namespace) -> int:
    """``collect``: many run folders become one file."""
    from flowrl_lab.recorded import collect_runs, write_recorded
    from flowrl_lab.summaries import format_table

    results = collect_runs(args.folders)
    write_recorded(args.file, results)
    print(format_table(results))
    print(f"{len(results)} runs: {args.file}")
    return DONE


def run_recorded(args: argparse.Namespace) -> int:
    """``recorded``: the table, and on request the report, of shipped runs."""
    from flowrl_lab.recorded import load_recorded
    from flowrl_lab.reports import write_report
    from flowrl_lab.summaries import format_table

    results = load_recorded(args.name)
    print(format_table(results))
    if args.report is not None:
        write_report(results, args.report)
        print(f"Report: {args.report}")
    return DONE


def run_explorer_data(args: argparse.Namespace) -> int:
    """``explorer-data``: all runs of the scrubber, in about two minutes."""
    from time import perf_counter

    from flowrl_lab import landscape_runs
    from flowrl_lab.progress import ProgressLine

    landscape_runs.refuse_used_folder(args.out)
    progress, start = ProgressLine(landscape_runs.count_steps()), perf_counter()
    grid = landscape_runs.make_grid(progress.update)
    progress.close()
    facts = landscape_runs.write_grid(args.out, grid, perf_counter() - start)
    print(f"{landscape_runs.DATA} in {args.out}, sha256 {facts['sha256']}")
    return DONE


def run_report(args: argparse.Namespace) -> int:
    """``report``: what a learner predicted, solved and answered."""
    from flowrl_lab.course.report import write_course

    count = write_course(args.files, args.out, overwrite=args.force)
    print(f"{count} events: {args.out}")
    return DONE


def run_pretrain(args: argparse.Namespace) -> int:
    """``pretrain``: the tiny language model from random weights."""
    import dataclasses

    from flowrl_lab.pretraining import PretrainConfig, pretrain
    from flowrl_lab.session import choose_threads

    choose_threads()
    changes = {"seed": args.seed}
    if args.steps is not None:
        if args.steps < 1:
            raise ValueError(f"--steps is {args.steps}; expected at least 1.")
        changes["steps"] = args.steps
    config = dataclasses.replace(PretrainConfig(), **changes)
    facts = pretrain(args.out, config, device=args.device)
    print(json.dumps(facts, indent=2, sort_keys=True))
    return DONE


def main(words: list[str] | None = None) -> int:
    """Run one command; returns the exit code.

    0 done; 1 something failed; 2 wrong input; 130 stopped with Ctrl-C.
    """
    words = sys.argv[1:] if words is None else list(words)
    command = next((word for word in words if not word.startswith("-")), None)
    if command is not None and command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"one of {', '.join(COMMANDS)}"
        print(f"error: {command!r} is no command; {hint}", file=sys.stderr)
        return BAD_INPUT
    args = build_parser().parse_args(words)
    args.words = words
    try:
        return args.action(args)
    except KeyboardInterrupt:
        print("\nStopped; what was saved before is kept.", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError, ImportError, ArithmeticError) as error:
        if args.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT if isinstance(error, ValueError) else FAILED


if __name__ == "__main__":
    sys.exit(main())

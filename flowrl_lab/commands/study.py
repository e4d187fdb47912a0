"""``study``: the grid of config files in data/study, run, tuned or checked."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from flowrl_lab.commands import DONE, FAILED, INTERRUPTED
from flowrl_lab.commands.settings import command_to_go_on, parse_seeds
from flowrl_lab.commands.working import work_off


def add_parser(commands) -> None:
    """Add ``study`` and its options."""
    study = commands.add_parser(
        "study", help="rerun the study of data/study, or check one cell of it"
    )
    study.add_argument(
        "--only",
        default="",
        metavar="A,B,...",
        help="studies and cells, such as programs,make_number/grpo (default: all)",
    )
    study.add_argument(
        "--seeds",
        default="5",
        metavar="N",
        help="how many (0 to N-1), or which: 3,4,7 (default: %(default)s)",
    )
    study.add_argument(
        "--jobs",
        type=int,
        default=os.cpu_count() or 1,
        help="runs at a time, one thread each (default: the cores, %(default)s)",
    )
    study.add_argument("--out", type=Path, metavar="FOLDER", help="where results go")
    study.add_argument(
        "--resume",
        action="store_true",
        help="go on with what FOLDER holds; finished runs are kept as they are",
    )
    study.add_argument(
        "--publish",
        action="store_true",
        help="add the runs to data/results; what is there already stays as it is",
    )
    instead = study.add_mutually_exclusive_group()
    instead.add_argument(
        "--list", action="store_true", help="the cells, and what is stored of them"
    )
    instead.add_argument(
        "--tune", action="store_true", help="the searches by which cells were tuned"
    )
    instead.add_argument(
        "--check",
        metavar="CELL",
        help="rerun one cell, such as landscape/flowrl, with the first of --seeds, "
        "and compare with the stored result",
    )
    study.set_defaults(action=run_study)


def run_study(args: argparse.Namespace) -> int:
    """``study``: list, tune, check, or run."""
    from flowrl_lab.measuring.study import load_cells

    if args.check:
        (cell,) = _one_cell(load_cells([args.check]), args.check)
        return _check(cell, parse_seeds(args.seeds)[0])
    cells = load_cells([name.strip() for name in args.only.split(",") if name.strip()])
    if args.list:
        return _list(cells)
    _check_options(args)
    return _tune(args, cells) if args.tune else _run(args, cells)


def _one_cell(cells: list, wanted: str) -> list:
    if len(cells) != 1:
        keys = ", ".join(cell.key for cell in cells)
        raise ValueError(
            f"--check {wanted} names {len(cells)} cells. Fix: one of {keys}"
        )
    return cells


def _check_options(args: argparse.Namespace) -> None:
    if args.out is None:
        raise ValueError("--out is missing. Fix: --out runs/study")
    if args.jobs < 1:
        raise ValueError(f"--jobs is {args.jobs}; expected at least 1. Fix: --jobs 2")
    used = args.out.exists() and any(args.out.iterdir())
    if used and not args.resume:
        raise ValueError(
            f"{args.out} already holds something; nothing is overwritten. Fix: name a "
            "new folder, or go on with that study: --resume."
        )


def _list(cells: list) -> int:
    """``--list``: a line a cell."""
    from flowrl_lab.measuring.recorded import load_recorded, recorded_names

    stored: dict[tuple[str, str], int] = {}
    for study in {cell.study for cell in cells} & set(recorded_names()):
        for run in load_recorded(study):
            stored[study, run.name] = stored.get((study, run.name), 0) + 1
    for cell in cells:
        count = stored.get((cell.study, cell.label), 0)
        print(
            f"{cell.key:42} {cell.label:28} {cell.config.steps} steps, {count} stored"
        )
    return DONE


def _run(args: argparse.Namespace, cells: list) -> int:
    """The runs, then their tables, files and report."""
    from flowrl_lab.measuring.study import plan_runs

    seeds = parse_seeds(args.seeds)
    args.out.mkdir(parents=True, exist_ok=True)
    outcome = work_off(plan_runs(cells, seeds, args.out), args.jobs)
    for job, reason in outcome.failed:
        print(f"failed: {job.folder.name}: {reason}", file=sys.stderr)
    studies = _gather(cells, args.out, seeds)
    if outcome.interrupted:
        count = sum(map(len, studies.values()))
        total = len(cells) * len(seeds)
        print(f"Stopped: {count} of {total} runs finished; all are kept.")
        print(f"Go on with: {command_to_go_on(args)}")
        return INTERRUPTED
    if studies:
        _write(args, studies)
    return FAILED if outcome.failed else DONE


def _gather(cells: list, out: Path, seeds: list[int]) -> dict[str, list]:
    """study -> its finished runs."""
    from flowrl_lab.measuring.study import cell_results

    studies: dict[str, list] = {}
    for cell in cells:
        runs = cell_results(cell, out, seeds)
        if runs:
            studies.setdefault(cell.study, []).extend(runs)
    return studies


def _write(args: argparse.Namespace, studies: dict[str, list]) -> None:
    """Tables on the screen; recordings and one report in the folder."""
    from flowrl_lab._files import data_path, write_atomically
    from flowrl_lab.measuring.pages import render_study
    from flowrl_lab.measuring.recorded import add_recorded
    from flowrl_lab.measuring.tables import format_table

    for study, runs in studies.items():
        print(f"\n{study}\n{format_table(runs)}")
        (args.out / "results").mkdir(exist_ok=True)
        add_recorded(args.out / "results" / f"{study}.jsonl", runs)
        if args.publish:
            path = data_path("results") / f"{study}.jsonl"
            print(f"{add_recorded(path, runs)} runs added to {path}")
    page = render_study(
        studies, title="The study: FlowRL beside the others",
        command=command_to_go_on(args),
    )  # fmt: skip
    write_atomically(args.out / "report.html", page.encode())
    print(f"Report: {args.out / 'report.html'}")


def _tune(args: argparse.Namespace, cells: list) -> int:
    """``--tune``: every try, and which one each search takes."""
    from flowrl_lab._files import write_json
    from flowrl_lab.measuring.study import load_search, plan_search, rank_tries

    tries = plan_search(cells, args.out)
    args.out.mkdir(parents=True, exist_ok=True)
    outcome = work_off([attempt.job for attempt in tries], args.jobs)
    for job, reason in outcome.failed:
        print(f"failed: {job.folder.name}: {reason}", file=sys.stderr)
    if outcome.interrupted:
        print(f"Go on with: {command_to_go_on(args)}")
        return INTERRUPTED
    for study in dict.fromkeys(cell.study for cell in cells):
        mine = plan_search([cell for cell in cells if cell.study == study], args.out)
        rows = rank_tries(mine, load_search(study).last_steps)
        write_json(args.out / f"{study}_tuning.json", {"tries": rows})
        for row in rows:
            mark = "taken" if row["taken"] else ""
            print(f"{study}/{row['cell']:20} {row['setting']}={row['value']:<8g} "
                  f"training reward {row['train_reward']:.4f}  {mark}")  # fmt: skip
    return FAILED if outcome.failed else DONE


def _check(cell, seed: int) -> int:
    """``--check``: train once more, and see whether the same comes out."""
    from flowrl_lab.measuring.runner import Job
    from flowrl_lab.measuring.study import compare_with_stored, stored_result

    stored = stored_result(cell, seed)
    with tempfile.TemporaryDirectory() as folder:
        job = Job(cell.config.replace(seed=seed), Path(folder) / "run")
        outcome = work_off([job], 1)
        if not outcome.finished:
            print(*(why for _, why in outcome.failed), file=sys.stderr)
            return INTERRUPTED if outcome.interrupted else FAILED
        from flowrl_lab.measuring.folder import load_result

        rows = compare_with_stored(stored, load_result(job.folder))
    print(f"{cell.key}, seed {seed}")
    print(f"{'':18} {'stored':>10} {'now':>10} {'allowed':>10}")
    for row in rows:
        word = "agrees" if row.agrees else "DIFFERS"
        print(f"{row.metric:18} {row.stored:10.5f} {row.now:10.5f} "
              f"± {row.allowed:8.5f}  {word}")  # fmt: skip
    return DONE if all(row.agrees for row in rows) else FAILED

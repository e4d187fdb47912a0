"""``study``: the grid of config files in data/study, run, tuned or checked."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from flowrl_lab.commands import DONE, FAILED, INTERRUPTED
from flowrl_lab.commands.settings import (
    RESUME,
    add_many_runs,
    command_to_go_on,
    parse_seeds,
    parse_specs,
)
from flowrl_lab.commands.working import work_off


def add_parser(commands) -> None:
    """Add ``study`` and its options."""
    study = commands.add_parser(
        "study", help="rerun the study of data/study, or check one cell of it"
    )
    add = study.add_argument
    only = (
        "studies and cells, such as programs,make_number/grpo; with --protocol its "
        "tasks and families, such as programs,grpo (default: all)"
    )
    add("--only", default="", metavar="A,B,...", help=only)
    add_many_runs(study)
    add("--out", type=Path, metavar="FOLDER", help="where results go")
    add("--resume", action="store_true", help=RESUME)
    small = "with --protocol: a part of it, in under 20 minutes"
    add("--small", action="store_true", help=small)
    publish = "add the runs to data/results; what is there already stays as it is"
    add("--publish", action="store_true", help=publish)
    instead = study.add_mutually_exclusive_group().add_argument
    listed = "the cells, and what is stored of them"
    instead("--list", action="store_true", help=listed)
    protocol = (
        "data/study/PROTOCOL.md: search, sweep and tables, stage by stage; "
        "--protocol real_models: the same for SmolLM2; long_answers: for sums"
    )
    instead("--protocol", nargs="?", const="protocol", metavar="NAME", help=protocol)
    tuned = "the searches by which cells were tuned"
    instead("--tune", action="store_true", help=tuned)
    again = (
        "rerun one cell, such as landscape/flowrl, with the first of --seeds, and "
        "compare with the stored result"
    )
    instead("--check", metavar="CELL", help=again)
    study.set_defaults(action=run_study)


def run_study(args: argparse.Namespace) -> int:
    """``study``: list, tune, check, or run."""
    from flowrl_lab.measuring.study import load_cells

    if args.check:
        (cell,) = _one_cell(load_cells([args.check]), args.check)
        return _check(cell, parse_seeds(args.seeds)[0])
    if args.protocol:
        _check_options(args)
        if args.small and args.publish:
            raise ValueError(
                "--publish goes with the whole protocol; what --small runs is a part "
                "at one rate. Fix: leave out --small or --publish."
            )
        return _protocol(args)
    cells = load_cells(parse_specs(args.only))
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
    """Recordings and one report in the folder; then tables on the screen."""
    from flowrl_lab._files import data_path
    from flowrl_lab.measuring.pages import render_study, write_page
    from flowrl_lab.measuring.recorded import add_recorded
    from flowrl_lab.measuring.tables import format_table

    said = []
    for study, runs in studies.items():
        said.append(f"\n{study}\n{format_table(runs)}")
        (args.out / "results").mkdir(exist_ok=True)
        add_recorded(args.out / "results" / f"{study}.jsonl", runs)
        if args.publish:
            path = data_path("results") / f"{study}.jsonl"
            said.append(f"{add_recorded(path, runs)} runs added to {path}")
    title, again = "The study: FlowRL beside the others", command_to_go_on(args)
    page = render_study(studies, title=title, command=again)
    path = write_page(args.out / "report.html", page, overwrite=True)
    print("\n".join([*said, f"Report: {path}"]))


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
    said = []
    for study in dict.fromkeys(cell.study for cell in cells):
        mine = plan_search([cell for cell in cells if cell.study == study], args.out)
        rows = rank_tries(mine, load_search(study).last_steps)
        write_json(args.out / f"{study}_tuning.json", {"tries": rows})
        said += [_describe_try(study, row) for row in rows]
    print("\n".join(said))
    return FAILED if outcome.failed else DONE


def _protocol(args: argparse.Namespace) -> int:
    """``--protocol``: search, choose, sweep, a stage after the other; then tables."""
    from flowrl_lab.measuring.protocol import load_protocol

    protocol = load_protocol(args.protocol, small=args.small)
    planned = protocol.only(parse_specs(args.only))
    _refuse_other_version(protocol, args.out)
    work = _ProtocolWork(protocol, planned, args)
    for families in planned.stages():
        for part in ("search", "report"):
            if not work.do(part, families):
                work.write()
                print(f"Go on with: {command_to_go_on(args)}")
                return INTERRUPTED
    work.write()
    return FAILED if work.failed else DONE


def _refuse_other_version(protocol, out: Path) -> None:
    """A folder belongs to one version of the protocol, whole or small."""
    from flowrl_lab._files import read_json, write_json

    mine = {"protocol": protocol.version, "small": protocol.small}
    if protocol.name != "protocol":
        mine["name"] = protocol.name
    path = out / "protocol.json"
    if path.is_file() and (found := read_json(path)) != mine:
        raise ValueError(
            f"{out} holds runs of {found}; this is {mine}. Runs of two versions are "
            "not mixed. Fix: name a new folder."
        )
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, mine)


class _ProtocolWork:
    """The protocol's runs, as far as they are done, and what they say.

    ``planned`` is the part of it that was asked for.
    """

    def __init__(self, protocol, planned, args: argparse.Namespace):
        self.protocol, self.planned = protocol, planned
        self.out, self.args = args.out, args
        self.curves: list = []
        self.failed = False
        self._left = self.planned.count_runs() * protocol.settings["steps"]
        self._kept = [] if args.small else self._published()

    def _published(self) -> list:
        """What data/results holds already: it is not run again."""
        from flowrl_lab.measuring.protocol import curves_path, load_curves

        tasks = [t for t in self.protocol.tasks if curves_path(t).is_file()]
        return [curve for t in tasks for curve in load_curves(t, self.protocol)]

    def do(self, part: str, families: list[str]) -> bool:
        """Search, or sweep, some families; False if somebody asked to stop."""
        from flowrl_lab.measuring.protocol import (
            already_kept,
            choose,
            gather_curves,
            plan_report,
            plan_search,
        )

        if part == "search":
            jobs = plan_search(self.planned, families, self.out)
        else:
            chosen = choose(self.protocol, self.curves)
            jobs = plan_report(self.planned, families, chosen, self.out)
        self._left -= sum(job.config.steps for job in jobs)
        jobs, kept = already_kept(part, jobs, self._kept)
        self.curves += kept
        print(f"{part}: {', '.join(families)}; {len(kept)} runs are kept already")
        outcome = work_off(jobs, self.args.jobs, others=self._left)
        for job, reason in outcome.failed:
            print(f"failed: {job.folder.name}: {reason}", file=sys.stderr)
        self.failed = self.failed or bool(outcome.failed)
        self.curves += gather_curves(self.protocol, part, jobs)
        return not outcome.interrupted and not outcome.failed

    def write(self) -> None:
        """The runs, a line each, and their tables."""
        from flowrl_lab.measuring.fronts import protocol_table
        from flowrl_lab.measuring.protocol import add_curves, curves_path

        for task in self.protocol.tasks:
            mine = [curve for curve in self.curves if curve.task == task]
            add_curves(self.out / "curves" / f"{task}.jsonl", mine)
            if self.args.publish:
                added = add_curves(curves_path(task), mine)
                print(f"{added} runs added to {curves_path(task)}")
            print(f"\n{task}\n{protocol_table(self.protocol, mine)}")


def _describe_try(study: str, row: dict) -> str:
    """A line of ``--tune``."""
    setting = f"{study}/{row['cell']:20} {row['setting']}={row['value']:<8g}"
    taken = "taken" if row["taken"] else ""
    return f"{setting} training reward {row['train_reward']:.4f}  {taken}"


def _check(cell, seed: int) -> int:
    """``--check``: train once more, and see whether the same comes out."""
    from flowrl_lab._files import scratch_folder
    from flowrl_lab.measuring.runner import Job
    from flowrl_lab.measuring.study import compare_with_stored, stored_result
    from flowrl_lab.plots.tabulate import text_table

    stored = stored_result(cell, seed)
    with scratch_folder("flowrl-check-") as folder:
        job = Job(cell.config.replace(seed=seed), folder / "run")
        outcome = work_off([job], 1)
        if not outcome.finished:
            print(*(why for _, why in outcome.failed), file=sys.stderr)
            return INTERRUPTED if outcome.interrupted else FAILED
        from flowrl_lab.measuring.folder import load_result

        rows = compare_with_stored(stored, load_result(job.folder))
    print(f"{cell.key}, seed {seed}")
    table = [["", "stored", "now", "allowed", ""]]
    for row in rows:
        word = "agrees" if row.agrees else "DIFFERS"
        values = (f"{value:.5f}" for value in (row.stored, row.now))
        table.append([row.metric, *values, f"± {row.allowed:.5f}", word])
    print(text_table(table))
    return DONE if all(row.agrees for row in rows) else FAILED

"""Every benchmark in one table.

    python -m benchmarks                  everything; a quarter of an hour
    python -m benchmarks --quick          tiny sizes: does it run at all?
    python -m benchmarks --keep           also write data/results/benchmarks.json
    python -m benchmarks --show           the kept table, measured by us

Each line has our figure, that of a peer measured in the same run, their ratio, and
the physical floor: the FLOPs that cannot be avoided at the matrix-product rate
measured on the spot, or the work that no program can leave out.  TRL's lines need
TRL: in this environment, or by ``--trl-python`` (see ``step_vs_trl.py``).
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import json
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import (  # noqa: E402 - after the path
    busy_neighbour,
    cold_start,
    floors,
    live_overhead,
    log_probs_memory,
    step_vs_trl,
    sweeps,
    workloads,
)
from flowrl_lab.course.session import choose_threads  # noqa: E402
from flowrl_lab.measuring.folder import describe_environment  # noqa: E402
from flowrl_lab.policies.wheel import cache_folder  # noqa: E402

KEPT = ROOT / "data" / "results" / "benchmarks.json"
TRL_NAMES = {
    "trl": "TRL, float32, tuned",
    "trl, checkpointing": "TRL, float32",
    "trl, as it comes": "TRL, bfloat16",
}


def step_lines(args: argparse.Namespace) -> list[dict]:
    """Our step on the tiny LM against TRL's, at its fastest and as it comes.

    Twice: with the course's batch, and with larger groups, which share more prefixes.
    """
    lines = compare_steps(args, "tiny_lm", "tiny LM", ["--rounds", "15"], [])
    if not args.quick:
        groups = ["--rounds", "9", "--prompts", "8", "--generations", "64"]
        lines += compare_steps(args, "tiny_lm", "tiny LM 8 x 64", groups, [])
    return lines


def smollm2_step_lines(args: argparse.Namespace) -> list[dict]:
    """The same on SmolLM2-135M; a quick run does not download it."""
    if args.quick and has_trl(args) and not smollm2_is_here():
        print(
            "step on SmolLM2-135M: left out (SmolLM2 is not here; without --quick "
            "it is fetched, 93 MB)"
        )
        return []
    tiny = ["--completion-tokens", "3", "--algorithms", "grpo", "--peers", "trl"]
    few = ["--rounds", "3", "--warmup", "1"]  # a step of TRL takes half a minute
    return compare_steps(args, "smollm2", "SmolLM2-135M", few, tiny)


def has_trl(args: argparse.Namespace) -> bool:
    """Whether a Python with TRL was named, or this one has it."""
    return bool(args.trl_python) or importlib.util.find_spec("trl") is not None


def smollm2_is_here() -> bool:
    """Whether the model is in the cache, unpacked."""
    return (cache_folder() / workloads.SMOLLM2 / "ready").is_file()


def compare_steps(
    args: argparse.Namespace, model: str, name: str, full: list[str], quick: list[str]
) -> list[dict]:
    """Run the step benchmark with more words for a full or a quick run."""
    words = ["--model", model]
    if args.trl_python:
        words += ["--trl-python", args.trl_python]
    elif not has_trl(args):
        print(f"step of {name} against TRL: left out (no TRL; give --trl-python)")
        return []
    if args.quick:
        words += ["--rounds", "2", "--warmup", "1", "--prompts", "2"]
        words += ["--generations", "4", *quick]
    else:
        words += full
    found = step_vs_trl.measure(step_vs_trl.parse(words))
    return lines_of_step(found, name, args.peak)


def lines_of_step(found: dict, name: str, peak: float) -> list[dict]:
    """A line of the table for each of our sides and each TRL.

    Args:
        found: what ``step_vs_trl.measure`` gave.
        name: of the model.
        peak: of the machine's matrix products, FLOP/s.
    """
    rows, floor = found["rows"], sum(found["flops"].values()) / peak
    return [
        {
            "what": f"{name}, {side.removeprefix('ours, ')}",
            "unit": "s",
            "ours": rows[side]["median"],
            "peer": peer,
            "theirs": rows[key]["median"],
            "floor": floor,
            "cpu": [rows[side]["cpu"], rows[key]["cpu"]],
            "spread": [rows[side]["fastest"], rows[side]["slowest"]],
        }
        for side in rows
        if side.startswith("ours")
        for key, peer in TRL_NAMES.items()
        if key in rows
    ]


def sweep_lines(args: argparse.Namespace) -> list[dict]:
    """Cost against group size, length and model size."""
    cases, rounds = (sweeps.TINY, 1) if args.quick else (sweeps.SWEEP, 7)
    return sweeps.measure(cases, rounds, args.peak)


def log_prob_lines(args: argparse.Namespace) -> list[dict]:
    """Time and peak memory of token log-probs as T and V grow."""
    sizes = [(512, 5000)] if args.quick else [(1024, 50_000), (2048, 150_000)]
    if args.large:
        sizes.append((8192, 150_000))
    lines, trl_python = [], None
    if has_trl(args):
        trl_python = args.trl_python or sys.executable
    for tokens, vocab in sizes:
        words, large = ["--tokens", str(tokens), "--vocab", str(vocab)], tokens > 4096
        ours, *peers = log_probs_memory.compare(
            words,
            None if large else trl_python,  # TRL's route would need 19 GB
            rounds=1 if args.quick or large else 3,
        )
        flops = 8 * tokens * vocab * log_probs_memory.HIDDEN  # 4 products of 2
        shared = {"floor": flops / args.peak, "unit": "s"}
        for peer in peers:
            what, name = f"log-probs {tokens:,} x {vocab:,}", peer["route"]
            lines.append(
                {
                    "what": f"{what}: time",
                    "ours": ours["total_s"],
                    "peer": name,
                    "theirs": peer["total_s"],
                    **shared,
                }
            )
            lines.append(
                {
                    "what": f"{what}: memory",
                    "unit": "MiB",
                    "peer": name,
                    # tiny sizes may fit into what the process held before
                    "ours": max(ours["peak_bytes"], 4096) / 2**20,
                    "theirs": max(peer["peak_bytes"], 4096) / 2**20,
                    # the gradients of the states and of the weight
                    "floor": 4 * (tokens + vocab) * log_probs_memory.HIDDEN / 2**20,
                }
            )
    return lines


def live_lines(args: argparse.Namespace) -> list[dict]:
    """Processor time of a watched run over that of the same run unwatched."""
    lines, alone = [], None
    task, steps = ("landscape", 20) if args.quick else ("make_number", 150)
    for name, spent, inside, _ in live_overhead.measure(task, steps):
        if name == "no plot":
            alone = spent
        if name in ("static", "svg", "widget"):
            lines.append(
                {
                    "what": f"watched run, {name} plot",
                    "unit": "CPU s",
                    "ours": spent,
                    "peer": "the run alone",
                    "theirs": spent - inside,
                    "floor": alone,
                }
            )
    return lines


def start_lines(args: argparse.Namespace) -> list[dict]:
    """From a fresh kernel to the first plot."""
    return cold_start.measure(1 if args.quick else 3)


def neighbour_lines(args: argparse.Namespace) -> list[dict]:
    """Work on all cores while other programs want them too."""
    return busy_neighbour.measure(*((1, 2) if args.quick else (5, 20)))


SECTIONS: dict[str, Callable[[argparse.Namespace], list[dict]]] = {
    "step": step_lines,
    "step_smollm2": smollm2_step_lines,
    "sweep": sweep_lines,
    "log_probs": log_prob_lines,
    "live": live_lines,
    "start": start_lines,
    "neighbour": neighbour_lines,
}


ORDER = list(SECTIONS)


def format_table(lines: list[dict]) -> str:
    """The table that is printed: ratio above 1 means that ours needs less."""
    rows = [
        f"{'what':<42}{'ours':>9} {'':<6}{'peer':>9}  {'which':<24}"
        f"{'ratio':>7}{'x floor':>9}"
    ]
    rows += [
        f"{line['what']:<42}{line['ours']:>9.3f} {line['unit']:<6}"
        f"{line['theirs']:>9.3f}  {line['peer']:<24}"
        f"{line['theirs'] / line['ours']:>6.2f}x"
        f"{line['ours'] / line['floor']:>8.1f}x"
        for line in lines
    ]
    return "\n".join(rows)


def machine_facts() -> dict:
    """What the figures depend on."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    return describe_environment() | {"processor": name}


def show(kept: Path = KEPT) -> int:
    """Print the kept table with the machine it is of."""
    found = json.loads(kept.read_text(encoding="utf-8"))
    facts = found["machine"]
    print(
        f"measured {found['date']} on {facts['processor']}, {facts['cores']} cores, "
        f"torch {facts['versions']['torch']}; matrix products at "
        f"{found['peak'] / 1e9:.0f} GFLOP/s\n{found['note']}\n"
    )
    print(format_table(found["lines"]))
    return 0


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--quick", action="store_true", help="tiny sizes, for the tests")
    add("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    add("--large", action="store_true", help="8,192 tokens x 150,000, too: 16 GB")
    add("--trl-python", metavar="PATH", help="Python of an environment with TRL")
    add("--json", type=Path, metavar="FILE", help="also write everything there")
    add(
        "--keep",
        action="store_true",
        help=f"write {KEPT.relative_to(ROOT)}; with --only its other sections stay",
    )
    add("--note", default="", help="kept with the figures: how the machine was")
    add("--show", action="store_true", help="print the kept table, measure nothing")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    args = parse(words)
    if args.show:
        return show()
    choose_threads()
    args.peak = floors.matmul_peak_of_all_cores()
    lines = []
    for name in args.only:
        print(f"measuring: {name}", file=sys.stderr, flush=True)
        lines += [line | {"section": name} for line in SECTIONS[name](args)]
    print(format_table(lines))
    found = {
        "date": datetime.date.today().isoformat(),
        "machine": machine_facts(),
        "peak": args.peak,
        "note": args.note,
        "lines": lines,
    }
    if args.json is not None:
        write(args.json, found)
    if args.keep:
        write(KEPT, keep_others(found, args.only))
    return 0


def keep_others(found: dict, measured: Sequence[str], kept: Path = KEPT) -> dict:
    """What was found, with the kept lines of the sections that were not measured."""
    before = json.loads(kept.read_text(encoding="utf-8"))["lines"]
    others = [line for line in before if line["section"] not in measured]
    lines = sorted(found["lines"] + others, key=lambda x: ORDER.index(x["section"]))
    return found | {"lines": lines}


def write(file: Path, found: dict) -> None:
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

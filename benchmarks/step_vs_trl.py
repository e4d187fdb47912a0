"""One training step of a language model: flowrl_lab against TRL.

``--model tiny_lm``: the course's tiny model, 16 x 16 completions of ``make_number``.
``--model smollm2``: SmolLM2-135M, 4 x 8 completions of the questions of
``open_sets`` (``workloads.py`` says how long they are).

A step is: sample, score the completions, score them under the reference, and update
the LoRA adapter once.  Both sides get the same model file, prompts, verifier, batch,
completion length, stop rule, adapter (rank 16, all linear layers) and optimiser
settings.  They take turns, one step each, in one run of this script, and medians are
compared.

Three TRLs take part.  "trl" has gradient checkpointing and bfloat16 off; both are
on by default, and on a CPU the first only costs time.  "trl, checkpointing" keeps the
first of them, "trl, as it comes" both.  Ours runs in float32; SmolLM2 in bfloat16,
too, where the processor has it.  Nobody logs, evaluates or saves, and TRL's KL
coefficient is above 0, because it skips the reference otherwise.  "faster" and "less"
(processor time) in the table are against the first TRL, "of best" against whichever
TRL was fastest: with a real model that can be the one in bfloat16.

TRL lives in an environment of its own, so that its dependencies cannot disturb the
course; README.md beside this file says how to make one.  Close other programs first:
on two busy cores every number is two to five times larger.  Time on the processor is
printed beside time on the clock; with one thread the two agree on a quiet machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.floors import (  # noqa: E402 - after the path
    attention_shape,
    count_weights,
    forward_flops,
    matmul_peak_of_all_cores,
    step_flops,
)
from benchmarks.peers import PEERS, WORKER, Peer, find_trl  # noqa: E402
from benchmarks.workloads import (  # noqa: E402
    MODELS,
    SMOLLM2,
    fill_defaults,
    make_config,
    model_folder,
    prepared,
    worker_settings,
)
from flowrl_lab.course.session import choose_threads  # noqa: E402
from flowrl_lab.policies.device import threads_for  # noqa: E402

__all__ = [
    "Ours",
    "Peer",
    "attention_shape",
    "count_weights",
    "find_trl",
    "format_rows",
    "forward_flops",
    "main",
    "make_config",
    "measure",
    "model_folder",
    "parse",
    "prepared",
    "step_flops",
    "summarize",
    "take_turns",
    "worker_settings",
]

# PyTorch's own choice, from before anybody changes it.
USUAL_THREADS = torch.get_num_threads()


class Ours:
    """One of our runs, one step at a time."""

    def __init__(self, config):
        from flowrl_lab.training.run import Run

        self.run = Run(config)
        self._records = iter(self.run)
        next(self._records)  # the evaluation before training

    def step(self) -> dict:
        before = self.run.tokens
        start, start_cpu = time.perf_counter(), time.process_time()
        record = next(self._records)
        return {
            "seconds": time.perf_counter() - start,
            "cpu_seconds": time.process_time() - start_cpu,
            "tokens": self.run.tokens - before,
            "reward": record.reward,
        }


def take_turns(sides: dict, *, rounds: int, warmup: int) -> dict[str, list[dict]]:
    """Step every side in turn; the order is turned round every time.

    Returns:
        side -> its step messages, without the warm-up.
    """
    taken: dict[str, list[dict]] = {name: [] for name in sides}
    for number in range(warmup + rounds):
        order = list(sides) if number % 2 == 0 else list(sides)[::-1]
        for name in order:
            message = sides[name].step()
            if number >= warmup:
                taken[name].append(message)
        print(f"\rround {number + 1}/{warmup + rounds}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return taken


def summarize(
    taken: dict[str, list[dict]], peer: str = "trl", *, row_count: int = 0
) -> dict[str, dict]:
    """Medians of each side, and how many times longer the peer takes.

    Args:
        taken: side -> its step messages.
        peer: the side that the others are compared with.
        row_count: completions a step, for their mean length; 0: unknown.
    """
    rows = {}
    best = min(
        statistics.median(step["seconds"] for step in taken[name])
        for name in taken
        if name in PEERS
    )
    for name, steps in taken.items():
        seconds = [step["seconds"] for step in steps]
        ratios = [
            theirs["seconds"] / mine["seconds"]
            for theirs, mine in zip(taken[peer], steps, strict=True)
        ]
        rows[name] = {
            "median": statistics.median(seconds),
            "fastest": min(seconds),
            "slowest": max(seconds),
            "tokens": statistics.median(step["tokens"] for step in steps),
            "length": statistics.fmean(step["tokens"] for step in steps)
            / (row_count or 1),
            "reward": statistics.fmean(step["reward"] for step in steps),
            "steps": len(steps),
            "cpu": statistics.median(step["cpu_seconds"] for step in steps),
            "times_faster": statistics.median(step["seconds"] for step in taken[peer])
            / statistics.median(seconds),
            "times_faster_than_best": best / statistics.median(seconds),
            "times_faster_by_pair": statistics.median(ratios),
        }
    return rows


def format_rows(rows: dict[str, dict], floor_seconds: float) -> str:
    """The table that is printed."""
    lines = [
        f"{'side':<22} {'median':>9} {'fastest':>9} {'slowest':>9} {'tokens':>7} "
        f"{'length':>7} {'reward':>7} {'faster':>8} {'of best':>8} {'x floor':>8} "
        f"{'CPU':>9} {'less':>8}"
    ]
    for name, row in rows.items():
        seconds = [row[key] for key in ("median", "fastest", "slowest")]
        times = " ".join(f"{second:>7.3f} s" for second in seconds)
        lines.append(
            f"{name:<22} {times} {row['tokens']:>7.0f} {row['length']:>7.2f} "
            f"{row['reward']:>7.2f} {row['times_faster']:>7.2f}x "
            f"{row['times_faster_than_best']:>7.2f}x "
            f"{row['median'] / floor_seconds:>7.1f}x {row['cpu']:>7.3f} s "
            f"{rows['trl']['cpu'] / row['cpu']:>7.2f}x"
        )
    return "\n".join(lines)


def measure(args: argparse.Namespace) -> dict:
    """Run the comparison; returns everything that was measured.

    Raises:
        ValueError: sizes that do not go together, or no TRL.
        RuntimeError: a worker ended, or the sides do not do the same work.
    """
    theirs = set_threads(args.threads)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(prepared(args))
        configs = our_configs(args)
        first = next(iter(configs.values()))
        peers = stack.enter_context(started_peers(args, first, folder, theirs))
        ours = {name: Ours(config) for name, config in configs.items()}
        run = next(iter(ours.values())).run
        trained = sum(p.numel() for p in run.policy.trainable_parameters())
        check_same_adapter(trained, peers)
        with threads_for(run.policy):
            threads = torch.get_num_threads()
        taken = take_turns(peers | ours, rounds=args.rounds, warmup=args.warmup)
        peak = matmul_peak_of_all_cores()
    row_count = args.prompts * args.generations
    rows = summarize(taken, row_count=row_count)
    length = rows[next(iter(configs))]["length"]
    flops = step_flops(
        run.policy, args.prompts, mean_prompt_tokens(run.task), row_count, length
    )
    return {
        "model": args.model,
        "rows": rows,
        "flops": flops,
        "matmul_flops_per_second": peak,
        "floor_seconds": sum(flops.values()) / peak,
        "threads": threads,
        "trl_threads": theirs,
        "prompts": args.prompts,
        "generations": args.generations,
        "mean_completion_tokens": length,
        "trl": peers["trl"].facts,
        "ours": {"torch": torch.__version__, "adapter_weights": trained},
    }


def set_threads(wanted: str) -> int:
    """Set our side's threads; returns TRL's."""
    if wanted == "own":
        choose_threads()
        return USUAL_THREADS
    torch.set_num_threads(int(wanted))
    return int(wanted)


def our_configs(args: argparse.Namespace) -> dict:
    """Our sides by name: every algorithm in every number format."""
    return {
        f"ours, {name}" + (f", {dtype}" if dtype != "float32" else ""): make_config(
            args, name, dtype
        )
        for dtype in args.dtypes
        for name in args.algorithms
    }


@contextlib.contextmanager
def started_peers(args, config, folder, threads: int) -> Iterator[dict[str, Peer]]:
    """TRL's workers by name, ready to step; they end with the block."""
    command, peers = [find_trl(args.trl_python), str(WORKER)], {}
    with contextlib.ExitStack() as stack:
        for name in args.peers:
            log = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))
            switches = PEERS[name]
            settings = worker_settings(config, folder, threads=threads, **switches)
            peers[name] = Peer(command, settings, log)
            stack.callback(peers[name].close)
        yield peers


def check_same_adapter(trained: int, peers: dict[str, Peer]) -> None:
    """Both sides train as many weights, or their times cannot be compared.

    Raises:
        RuntimeError: they do not.
    """
    for name, peer in peers.items():
        if peer.facts["trainable"] != trained:
            raise RuntimeError(
                f"{name!r} trains {peer.facts['trainable']:,} weights, ours "
                f"{trained:,}; expected as many. Fix: give both sides the same LoRA "
                "(trl_worker.lora_config and policies.language_model.add_lora)."
            )


def mean_prompt_tokens(task) -> float:
    """Tokens of a training prompt on average, padding left out."""
    batch = task.encode(task.prompts("train"))
    return batch.prompt_mask.sum().item() / len(batch)


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="One training step of a language model: flowrl_lab against TRL."
    )
    add = parser.add_argument
    add("--model", choices=MODELS, default="tiny_lm", help="(%(default)s)")
    add("--trl-python", metavar="PATH", help="Python of an environment with TRL")
    add("--algorithms", nargs="+", default=["grpo", "flowrl"], help="our side's")
    add(
        "--dtypes",
        nargs="+",
        help="our side's (float32; for smollm2 bfloat16, too, where it is native)",
    )
    add(
        "--peers",
        nargs="+",
        choices=PEERS,
        default=list(PEERS),
        metavar="NAME",
        help="TRLs to take part, 'trl' among them (all of %(choices)s)",
    )
    defaults = {
        name: ", ".join(f"{model} {row[name]}" for model, row in MODELS.items())
        for name in ("rounds", "warmup", "prompts", "generations")
    }
    add("--rounds", type=int, help=f"timed steps a side ({defaults['rounds']})")
    add("--warmup", type=int, help=f"untimed rounds before ({defaults['warmup']})")
    add(
        "--threads",
        default="own",
        help="of both sides; 'own': ours as flowrl_lab.setup chooses, TRL's as "
        "PyTorch does (%(default)s)",
    )
    add("--prompts", type=int, help=f"a step ({defaults['prompts']})")
    add("--generations", type=int, help=f"of each ({defaults['generations']})")
    add(
        "--completion-tokens",
        type=int,
        default=12,
        metavar="N",
        help="smollm2: the most tokens of a completion (%(default)s)",
    )
    add(
        "--stop-at-line",
        action="store_true",
        help="smollm2: a completion is a number and the end of its line",
    )
    add(
        "--weights",
        default=SMOLLM2,
        metavar="MODEL",
        help="smollm2: another model, folder or name (%(default)s)",
    )
    add("--seed", type=int, default=0)
    add("--random-weights", action="store_true", help="tiny_lm: no checkpoint")
    add("--json", type=Path, metavar="FILE", help="also write everything there")
    add("--at-least", type=float, metavar="X", help="exit 1 if a side is not X faster")
    args = parser.parse_args(words)
    if "trl" not in args.peers:
        parser.error("--peers lacks 'trl', which the others are compared with")
    return fill_defaults(args)


def main(words: list[str] | None = None) -> int:
    args = parse(words)
    try:
        found = measure(args)
    except (ValueError, RuntimeError, ConnectionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    flops = sum(found["flops"].values())
    print(
        f"{args.model}: {args.prompts} prompts x {args.generations} completions of "
        f"{found['mean_completion_tokens']:.1f} tokens on average, {args.rounds} "
        f"rounds; threads: TRL {found['trl_threads']}, ours {found['threads']}\n"
        f"arithmetic floor: {flops / 1e9:.1f} GFLOP at the measured matmul peak of "
        f"{found['matmul_flops_per_second'] / 1e9:.0f} GFLOP/s = "
        f"{found['floor_seconds']:.3f} s\n"
    )
    print(format_rows(found["rows"], found["floor_seconds"]))
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    ours = [row for name, row in found["rows"].items() if name not in PEERS]
    slowest = min(row["times_faster"] for row in ours)
    return int(args.at_least is not None and slowest < args.at_least)


if __name__ == "__main__":
    sys.exit(main())

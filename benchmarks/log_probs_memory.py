"""Time and peak memory of token log-probs, with and without the full logits.

    python benchmarks/log_probs_memory.py            2,048 tokens, 50,000 words
    python benchmarks/log_probs_memory.py --large    8,192 tokens, 150,000 words

Compares ``flowrl_lab.tokens.log_probs_from_hidden`` with log_softmax + gather on the
whole [B, T, V] tensor and, with ``--trl-python``, with TRL's selective_log_softmax on
the same, forward and backward.  Each route runs in a process of its own; its memory
is how far the process's peak rises above what it held with inputs and libraries
loaded.  The gradients of all are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.memory import peak_bytes  # noqa: E402 - after the path
from flowrl_lab.tokens import log_probs_from_hidden  # noqa: E402

PLAIN, OURS, TRL = ROUTES = (
    "log_softmax + gather",
    "log_probs_from_hidden",
    "selective_log_softmax",
)
HIDDEN = 256
SMALL = 2**24  # bytes


def make_inputs(size: argparse.Namespace) -> tuple[torch.Tensor, ...]:
    """The same hidden states, weight, ids and upstream gradient in every process."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, size.tokens, size.hidden, generator=generator)
    weight = torch.randn(size.vocab, size.hidden, generator=generator)
    weight /= size.hidden**0.5
    ids = torch.randint(size.vocab, (1, size.tokens), generator=generator)
    upstream = torch.randn(1, size.tokens, generator=generator) / size.tokens
    weight.requires_grad_(not size.frozen_head)
    return hidden.requires_grad_(), weight, ids, upstream


def compute_log_probs(route: str, hidden, weight, ids, chunk_size: int):
    """Token log-probs by one of the routes."""
    if route == OURS:
        return log_probs_from_hidden(hidden, weight, ids, chunk_size=chunk_size)
    if route == TRL:
        from trl.trainer.utils import selective_log_softmax

        return selective_log_softmax(hidden @ weight.T, ids)
    log_probs = (hidden @ weight.T).log_softmax(dim=-1)
    return log_probs.gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def measure(route: str, size: argparse.Namespace, folder: Path) -> None:
    """Run one route forward and backward; leave its figures in ``folder``."""
    hidden, weight, ids, upstream = make_inputs(size)
    # Load what the first use loads before time and memory are read.
    torch.randn(512, 512) @ torch.randn(512, 512)
    warm = [hidden[:, :2, :8].detach().requires_grad_(), weight[:64, :8].detach()]
    warm.append(ids[:, :2] % 64)
    compute_log_probs(route, *warm, 1).backward(torch.ones(1, 2))  # imports sympy
    before = peak_bytes()
    start = time.perf_counter()
    log_probs = compute_log_probs(route, hidden, weight, ids, size.chunk_size)
    forward = time.perf_counter() - start
    log_probs.backward(upstream)
    total = time.perf_counter() - start
    peak = peak_bytes() - before
    found = [log_probs.detach(), hidden.grad]
    found += [] if size.frozen_head else [weight.grad]
    torch.save(found, folder / "results.pt")
    figures = {"forward_s": forward, "total_s": total, "peak_bytes": peak}
    (folder / "figures.json").write_text(json.dumps(figures), encoding="utf-8")


def run_in_subprocess(
    route: str, arguments: list[str], folder: Path, python: str
) -> dict:
    """One route in a fresh process; returns its figures, leaves its results."""
    folder.mkdir(exist_ok=True)
    command = [python, __file__, *arguments]
    subprocess.run(
        [*command, "--route", route, "--folder", str(folder)],
        check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    return {"route": route, **json.loads((folder / "figures.json").read_text("utf-8"))}


def compare(
    arguments: list[str], trl_python: str | None = None, rounds: int = 1
) -> list[dict]:
    """Figures of our route, then of its peers; their results must agree.

    They take turns ``rounds`` times, and the fastest turn of each counts.

    Raises:
        ValueError: the gradients of two routes differ.
        RuntimeError: a peak is less than the gradients alone.
    """
    pythons = {OURS: sys.executable, PLAIN: sys.executable}
    if trl_python is not None:
        pythons[TRL] = trl_python
    with tempfile.TemporaryDirectory() as name:
        turns = [
            [
                run_in_subprocess(route, arguments, Path(name, f"{number}"), python)
                for number, (route, python) in enumerate(pythons.items())
            ]
            for _ in range(rounds)
        ]
        figures = [
            min(turn, key=lambda row: row["total_s"])
            for turn in zip(*turns, strict=True)
        ]
        expected, *others = (
            torch.load(Path(name, str(number), "results.pt"))
            for number in range(len(pythons))
        )
    for row in figures:
        check_peak(row, sum(gradient.nbytes for gradient in expected[1:]))
    for row, results in zip(figures[1:], others, strict=True):
        names = ("log-probs", "hidden gradient", "weight gradient")[: len(results)]
        row["differences"] = {}
        for name, a, b in zip(names, results, expected, strict=True):
            row["differences"][name] = difference = ((a - b).norm() / b.norm()).item()
            if difference > 1e-5:
                raise ValueError(f"{name} of ours and {row['route']} do not agree")
    return figures


def check_peak(figures: dict, gradients: int) -> None:
    """A route has to hold what it returns; small ones fit into what was free.

    Raises:
        RuntimeError: its peak says that it did not.
    """
    if figures["peak_bytes"] < gradients and gradients > SMALL:
        raise RuntimeError(
            f"{figures['route']} is said to have needed {figures['peak_bytes']:,} "
            f"bytes, and its gradients alone are {gradients:,}. Fix: run it by itself."
        )


def report(size: argparse.Namespace, arguments: list[str]) -> None:
    """Print a table of all routes, their ratios, and how far the results differ."""
    logits = size.tokens * size.vocab * 4 / 2**20
    print(
        f"{size.tokens:,} tokens x {size.vocab:,} words, hidden size {size.hidden}, "
        f"float32, chunks of {size.chunk_size}; the logits alone: {logits:,.0f} MiB"
    )
    ours, *peers = compare(arguments, size.trl_python, size.rounds)
    print(f"{'route':<24}{'forward s':>11}{'fwd+bwd s':>11}{'peak MiB':>11}")
    for figures in (ours, *peers):
        print(
            f"{figures['route']:<24}{figures['forward_s']:>11.2f}"
            f"{figures['total_s']:>11.2f}{figures['peak_bytes'] / 2**20:>11,.0f}"
        )
    for peer in peers:
        print(
            f"against {peer['route']}: memory "
            f"{peer['peak_bytes'] / ours['peak_bytes']:.1f} times less; time "
            f"{ours['total_s'] / peer['total_s']:.2f} times as long"
        )
        for name, difference in peer["differences"].items():
            print(f"    {name}: relative difference {difference:.1e}")


def main(words: list[str] | None = None) -> None:
    """Read the size from the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--large", action="store_true", help="8,192 x 150,000")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--vocab", type=int, default=50_000)
    parser.add_argument("--hidden", type=int, default=HIDDEN)
    parser.add_argument("--chunk-size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--frozen-head", action="store_true", help="as under LoRA")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each route")
    parser.add_argument("--trl-python", metavar="PATH", help="adds TRL's route")
    parser.add_argument("--route", choices=ROUTES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    size = parser.parse_args(words)
    if size.large:
        size.tokens, size.vocab = 8192, 150_000
    torch.set_num_threads(size.threads)
    if size.route:
        measure(size.route, size, size.folder)
    else:
        report(size, sys.argv[1:] if words is None else words)


if __name__ == "__main__":
    main()

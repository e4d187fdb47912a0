"""Time and peak memory of token log-probs, with and without the full logits.

    python benchmarks/log_probs_memory.py            2,048 tokens, 50,000 words
    python benchmarks/log_probs_memory.py --large    8,192 tokens, 150,000 words

Compares log_softmax + gather on the whole [B, T, V] tensor with
``flowrl_lab.tokens.log_probs_from_hidden``, forward and backward.  Each route runs
in a process of its own; its memory is how far the process's peak rises above what
it held with inputs and libraries loaded.  The gradients of both are compared.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from flowrl_lab.tokens import log_probs_from_hidden

ROUTES = ("log_softmax + gather", "log_probs_from_hidden")


def make_inputs(size: argparse.Namespace) -> tuple[torch.Tensor, ...]:
    """The same hidden states, weight, ids and upstream gradient in every process."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, size.tokens, size.hidden, generator=generator)
    weight = torch.randn(size.vocab, size.hidden, generator=generator)
    weight /= size.hidden**0.5
    ids = torch.randint(size.vocab, (1, size.tokens), generator=generator)
    upstream = torch.randn(1, size.tokens, generator=generator) / size.tokens
    return hidden.requires_grad_(), weight.requires_grad_(), ids, upstream


def compute_log_probs(route: str, hidden, weight, ids, chunk_size: int):
    """Token log-probs by one of the two routes."""
    if route == ROUTES[1]:
        return log_probs_from_hidden(hidden, weight, ids, chunk_size=chunk_size)
    log_probs = (hidden @ weight.T).log_softmax(dim=-1)
    return log_probs.gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def peak_bytes() -> int:
    """The most memory this process ever held resident."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure(route: str, size: argparse.Namespace, folder: Path) -> None:
    """Run one route forward and backward; leave its figures in ``folder``."""
    hidden, weight, ids, upstream = make_inputs(size)
    # Load the libraries' own buffers before the memory is read.
    warm = [t[..., :8] for t in (hidden.detach(), weight.detach())]
    compute_log_probs(route, warm[0][:, :2], warm[1][:64], ids[:, :2] % 64, 1)
    before = peak_bytes()
    start = time.perf_counter()
    log_probs = compute_log_probs(route, hidden, weight, ids, size.chunk_size)
    forward = time.perf_counter() - start
    log_probs.backward(upstream)
    total = time.perf_counter() - start
    peak = peak_bytes() - before
    torch.save([log_probs.detach(), hidden.grad, weight.grad], folder / "results.pt")
    figures = {"forward_s": forward, "total_s": total, "peak_bytes": peak}
    (folder / "figures.json").write_text(json.dumps(figures))


def run_in_subprocess(route: str, arguments: list[str], folder: Path) -> dict:
    """One route in a fresh process; returns its figures, leaves its results."""
    folder.mkdir()
    command = [sys.executable, __file__, *arguments]
    subprocess.run([*command, "--route", route, "--folder", str(folder)], check=True)
    return json.loads((folder / "figures.json").read_text())


def report(size: argparse.Namespace, arguments: list[str]) -> None:
    """Print a table of both routes, their ratios, and how far the results differ."""
    logits = size.tokens * size.vocab * 4 / 2**20
    print(
        f"{size.tokens:,} tokens x {size.vocab:,} words, hidden size {size.hidden}, "
        f"float32, chunks of {size.chunk_size}; the logits alone: {logits:,.0f} MiB"
    )
    with tempfile.TemporaryDirectory() as name:
        folders = [Path(name, str(i)) for i in range(len(ROUTES))]
        # On Linux a child's peak starts at its parent's size, so this process
        # stays small (loads no results) until both are done.
        plain, chunked = (
            run_in_subprocess(route, arguments, folder)
            for route, folder in zip(ROUTES, folders, strict=True)
        )
        expected, results = (torch.load(folder / "results.pt") for folder in folders)
    print(f"{'route':<24}{'forward s':>11}{'fwd+bwd s':>11}{'peak MiB':>11}")
    for route, figures in zip(ROUTES, (plain, chunked), strict=True):
        print(
            f"{route:<24}{figures['forward_s']:>11.2f}{figures['total_s']:>11.2f}"
            f"{figures['peak_bytes'] / 2**20:>11,.0f}"
        )
    print(
        f"memory: {plain['peak_bytes'] / chunked['peak_bytes']:.1f} times less; "
        f"time: {chunked['total_s'] / plain['total_s']:.2f} times as long"
    )
    names = ("log-probs", "hidden gradient", "weight gradient")
    for name, a, b in zip(names, results, expected, strict=True):
        difference = ((a - b).norm() / b.norm()).item()
        print(f"{name}: relative difference {difference:.1e}")
        if difference > 1e-5:
            raise SystemExit(f"{name} of the two routes do not agree")


def main() -> None:
    """Read the size from the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--large", action="store_true", help="8,192 x 150,000")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--chunk-size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--route", choices=ROUTES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    size = parser.parse_args()
    size.tokens, size.vocab = (8192, 150_000) if size.large else (2048, 50_000)
    torch.set_num_threads(size.threads)
    if size.route:
        measure(size.route, size, size.folder)
    else:
        report(size, sys.argv[1:])


if __name__ == "__main__":
    main()

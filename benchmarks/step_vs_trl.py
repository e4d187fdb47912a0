"""One training step on the tiny language model: flowrl_lab against TRL.

A step is: sample 16 x 16 completions, score them, score them under the
reference, and update the LoRA adapter once.  Both sides get the same model file,
prompts, verifier, batch, completion length, adapter (rank 16, all linear layers),
optimiser settings and number of threads.  They take turns, one step each, in one
run of this script, and medians are compared.

Three TRLs take part.  "trl" has gradient checkpointing and bfloat16 off; both are
on by default, and on a CPU and a model of this size the first only costs time.
"trl, checkpointing" keeps the first of them, "trl, as it comes" both.  Ours runs in
float32 and, where the processor has it, in bfloat16.  Nobody logs, evaluates or
saves, and TRL's KL coefficient is above 0, because it skips the reference otherwise.
Ratios in the table are against the first TRL.

TRL lives in an environment of its own, so that its dependencies cannot disturb
the course::

    python3 -m venv trl-env
    trl-env/bin/pip install torch==2.13.0 --index-url \\
        https://download.pytorch.org/whl/cpu
    trl-env/bin/pip install trl==1.16.0 transformers==5.23.0 peft==0.21.2 \\
        datasets==5.2.0 jaxtyping==0.3.11
    python benchmarks/step_vs_trl.py --trl-python trl-env/bin/python

(on Windows: ``trl-env\\Scripts\\python``).  Close other programs first: on two
busy cores every number is two to five times larger.  Time on the processor is
printed beside time on the clock; the two agree on a quiet machine.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# after the path
from flowrl_lab.machine import has_native_bfloat16  # noqa: E402
from flowrl_lab.session import choose_threads  # noqa: E402

WORKER = Path(__file__).with_name("trl_worker.py")
ENDLESS = 1_000_000
KL_COEF = 0.01
# TRL in float32 at its fastest, and with what GRPOConfig switches on by default.
PEERS = {
    "trl": {"gradient_checkpointing": False, "bf16": False},
    "trl, checkpointing": {"gradient_checkpointing": True, "bf16": False},
    "trl, as it comes": {"gradient_checkpointing": True, "bf16": True},
}


class Peer:
    """TRL's worker process: ``step()`` asks for one step and returns its message."""

    def __init__(self, command: list[str], settings: dict, log):
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        self._log = log
        self.facts = self._ask(settings)

    def _ask(self, message: dict) -> dict:
        """Send one line, wait for one line."""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            last = self._log.read().strip().splitlines()[-1:] or ["it said nothing"]
            raise RuntimeError(
                f"TRL's worker ended with code {self._process.wait()}: {last[0]}. "
                "Fix: make its environment as the top of this file says."
            )
        return json.loads(line)

    def step(self) -> dict:
        return self._ask({"command": "step"})

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"command": "stop"}) + "\n")
            self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


class Ours:
    """One of our runs, one step at a time."""

    def __init__(self, config):
        from flowrl_lab.experiment import Run

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


def make_config(args: argparse.Namespace, algorithm: str, dtype: str = "float32"):
    """Our side's settings; the same as TRL's wherever TRL has the setting."""
    from flowrl_lab.config import ExperimentConfig

    return ExperimentConfig(
        task="make_number",
        policy="tiny_lm",
        algorithm=algorithm,
        dtype=dtype,
        kl_coef=KL_COEF if algorithm == "grpo" else 0.0,
        steps=ENDLESS,
        eval_every=ENDLESS,
        eval_prompts=1,
        prompts_per_step=args.prompts,
        num_generations=args.generations,
        seed=args.seed,
    )


def worker_settings(
    config,
    model_folder: Path,
    *,
    threads: int,
    gradient_checkpointing: bool = False,
    bf16: bool = False,
) -> dict:
    """What TRL's worker needs to do the same work as ``config``."""
    from flowrl_lab.tasks.make_number import CHARACTERS, MakeNumber

    task = MakeNumber()
    return {
        "model": str(model_folder),
        "texts": list(task.prompts("train")),
        "characters": CHARACTERS,
        "pad_id": task.pad_id,
        "eos_id": task.eos_id,
        "max_completion_tokens": task.max_completion_tokens,
        "prompts": config.prompts_per_step,
        "num_generations": config.num_generations,
        "temperature": config.temperature,
        "kl_coef": KL_COEF,
        "learning_rate": config.learning_rate,
        "max_grad_norm": config.max_grad_norm,
        "lora_rank": config.lora_rank,
        "lora_alpha": config.lora_alpha,
        "seed": config.seed,
        "threads": threads,
        "gradient_checkpointing": gradient_checkpointing,
        "bf16": bf16,
    }


@contextlib.contextmanager
def model_folder(random_weights: bool) -> Iterator[Path]:
    """Folder of the shared model: the shipped checkpoint, or random weights.

    Random weights are put where our side looks for the checkpoint.
    """
    from flowrl_lab.pretraining import checkpoint_name, save_checkpoint
    from flowrl_lab.session import data_path

    name = checkpoint_name("make_number")

    if not random_weights:
        yield data_path(name)
        return
    from flowrl_lab.policies.language_model import build_tiny_llama
    from flowrl_lab.tasks.make_number import MakeNumber

    task, before = MakeNumber(), os.environ.get("FLOWRL_DATA")
    with tempfile.TemporaryDirectory() as data:
        folder = Path(data) / name
        folder.mkdir()
        model = build_tiny_llama(
            task.vocab_size, pad_id=task.pad_id, eos_id=task.eos_id
        )
        save_checkpoint(model, folder, {"what": "random weights, for timing only"})
        os.environ["FLOWRL_DATA"] = data
        try:
            yield folder
        finally:
            if before is None:
                del os.environ["FLOWRL_DATA"]
            else:
                os.environ["FLOWRL_DATA"] = before


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


def matmul_peak(seconds: float = 1.0, size: int = 1024) -> float:
    """The best rate of a float32 matrix product here, FLOP/s."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def count_weights(model) -> tuple[int, int]:
    """Weights of the linear layers, and of their LoRA adapters."""
    base = adapters = 0
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            if "lora_" in name:
                adapters += module.weight.numel()
            else:
                base += module.weight.numel()
    return base, adapters


def forward_flops(
    weights: int, layers: int, hidden: int, tokens: int, pairs: int
) -> int:
    """FLOPs of one pass: two a weight and token, attention 4·H a layer and pair.

    ``pairs`` counts (token, token it attends to), itself included.
    """
    return 2 * weights * tokens + 4 * hidden * layers * pairs


def step_flops(policy, prompts: int, prompt_tokens: int, rows: int, length: float):
    """The least arithmetic of a step: every prompt read once, no padding.

    Sampling and the reference are a forward pass each; the update is a forward
    pass, a backward pass to the activations (the same products transposed, twice
    for attention), and the gradients of the adapters alone.
    """
    base, lora = count_weights(policy.model)
    config = policy.model.get_base_model().config
    shape = (config.num_hidden_layers, config.hidden_size)
    fed = length - 1  # the last token predicts nothing
    tokens = prompts * prompt_tokens + rows * fed
    pairs = prompts * prompt_tokens * (prompt_tokens + 1) / 2
    pairs += rows * fed * (prompt_tokens + (fed + 1) / 2)
    plain = forward_flops(base, *shape, tokens, pairs)
    adapted = forward_flops(base + lora, *shape, tokens, pairs)
    backward = forward_flops(base + 2 * lora, *shape, tokens, 2 * pairs)
    return {
        "sampling": adapted,
        "reference": plain,
        "forward": adapted,
        "backward": backward,
    }


def summarize(taken: dict[str, list[dict]], peer: str = "trl") -> dict[str, dict]:
    """Medians of each side, and how many times longer the peer takes."""
    rows = {}
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
            "reward": statistics.fmean(step["reward"] for step in steps),
            "steps": len(steps),
            "cpu": statistics.median(step["cpu_seconds"] for step in steps),
            "times_faster": statistics.median(step["seconds"] for step in taken[peer])
            / statistics.median(seconds),
            "times_faster_by_pair": statistics.median(ratios),
        }
    return rows


def format_rows(rows: dict[str, dict], floor_seconds: float) -> str:
    """The table that is printed."""
    lines = [
        f"{'side':<22} {'median':>9} {'fastest':>9} {'slowest':>9} {'tokens':>7} "
        f"{'reward':>7} {'faster':>8} {'x floor':>8} {'CPU':>9} {'less':>8}"
    ]
    for name, row in rows.items():
        seconds = [row[key] for key in ("median", "fastest", "slowest")]
        times = " ".join(f"{second:>7.3f} s" for second in seconds)
        lines.append(
            f"{name:<22} {times} {row['tokens']:>7.0f} "
            f"{row['reward']:>7.2f} {row['times_faster']:>7.2f}x "
            f"{row['median'] / floor_seconds:>7.1f}x {row['cpu']:>7.3f} s "
            f"{rows['trl']['cpu'] / row['cpu']:>7.2f}x"
        )
    return "\n".join(lines)


def find_trl(given: str | None) -> str:
    """The Python that has TRL.

    Raises:
        ValueError: none was given and this one has no TRL.
    """
    if given is not None:
        if not Path(given).exists():
            raise ValueError(f"--trl-python {given} does not exist. {_how()}")
        return given
    if importlib.util.find_spec("trl") is None:
        raise ValueError(f"this Python has no TRL. {_how()}")
    return sys.executable


def _how() -> str:
    recipe = __doc__.split("::\n\n", 1)[1].split("\n\n(on Windows", 1)[0]
    return f"Fix: make an environment for it and name its Python:\n{recipe}"


def measure(args: argparse.Namespace) -> dict:
    """Run the comparison; returns everything that was measured."""
    usual = torch.get_num_threads()
    threads = choose_threads() if args.threads == "own" else int(args.threads)
    torch.set_num_threads(threads)
    theirs = usual if args.threads == "own" else threads
    configs = {
        f"ours, {name}" + (f", {dtype}" if dtype != "float32" else ""): make_config(
            args, name, dtype
        )
        for dtype in args.dtypes
        for name in args.algorithms
    }
    command = [find_trl(args.trl_python), str(WORKER)]
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(model_folder(args.random_weights))
        peers = {}
        for name, defaults in PEERS.items():
            log = stack.enter_context(tempfile.TemporaryFile("w+"))
            settings = worker_settings(
                next(iter(configs.values())),
                folder,
                threads=theirs,
                **defaults,
            )
            peers[name] = Peer(command, settings, log)
            stack.callback(peers[name].close)
        ours = {name: Ours(config) for name, config in configs.items()}
        taken = take_turns(peers | ours, rounds=args.rounds, warmup=args.warmup)
        peak = matmul_peak()
    rows = summarize(taken)
    run = next(iter(ours.values())).run
    row_count = args.prompts * args.generations
    length = rows[next(iter(configs))]["tokens"] / row_count
    flops = step_flops(
        run.policy, args.prompts, run.task.max_prompt_tokens, row_count, length
    )
    return {
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
        "ours": {"torch": torch.__version__, "adapter_weights": sum(
            p.numel() for p in run.policy.trainable_parameters())},
    }  # fmt: skip


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="One training step on the tiny LM: flowrl_lab against TRL."
    )
    add = parser.add_argument
    add("--trl-python", metavar="PATH", help="Python of an environment with TRL")
    add("--algorithms", nargs="+", default=["grpo", "flowrl"], help="our side's")
    add(
        "--dtypes",
        nargs="+",
        default=["float32", *(["bfloat16"] if has_native_bfloat16("cpu") else [])],
        help="our side's (%(default)s)",
    )
    add("--rounds", type=int, default=15, help="timed steps a side (%(default)s)")
    add("--warmup", type=int, default=3, help="untimed rounds before (%(default)s)")
    add(
        "--threads",
        default="own",
        help="of both sides; 'own': ours as flowrl_lab.setup chooses, TRL's as "
        "PyTorch does (%(default)s)",
    )
    add("--prompts", type=int, default=16)
    add("--generations", type=int, default=16)
    add("--seed", type=int, default=0)
    add("--random-weights", action="store_true", help="instead of the checkpoint")
    add("--json", type=Path, metavar="FILE", help="also write everything there")
    add("--at-least", type=float, metavar="X", help="exit 1 if a side is not X faster")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    args = parse(words)
    try:
        found = measure(args)
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    flops = sum(found["flops"].values())
    print(
        f"{args.prompts} prompts x {args.generations} completions of "
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

"""The same run on our loop and on TRL's: the same learning curve, within noise?

Each side trains the tiny language model on make_number with FlowRL, from the same
start, with the same settings, on prompts and samples of its own: ten seeds a side.
Compared are the reward of every ten steps and, at the end, the referee's exact
figures on the held-out prompts.  The two sides share the loss (a test holds them to
1e-5 on one batch) but not their random numbers, so they agree in distribution only.

Each line has Welch's t-test for two means.  Ten lines are ten chances of a small p, so
Holm's correction is beside it: below 0.05 there, the curves differ.

    python benchmarks/trl_learning_curve.py --out data/results/trl_learning_curve.json
    python benchmarks/trl_learning_curve.py --show data/results/trl_learning_curve.json

It needs the extra ``trl`` and takes about ten minutes on one quiet core.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

EVERY = 10  # steps of one point of the curve
FIGURES = ("accuracy", "effective_answers", "kl_target_policy", "log_z_learned")


def make_config(seed: int, steps: int):
    from flowrl_lab import preset

    config = preset("make_number", "flowrl", seed=seed, steps=steps)
    return config.replace(
        prompts_per_step=8, eval_every=steps, eval_prompts=128, lr_schedule="constant"
    )


def train_ours(config) -> dict:
    """The library's loop: the reward of every step, and the last exact report."""
    from flowrl_lab import train

    records = list(train(config))
    exact = records[-1].exact
    return {
        "rewards": [record.reward for record in records[1:]],
        "exact": {name: getattr(exact, name) for name in FIGURES},
    }


def train_trl(config) -> dict:
    """The same on TRL's GRPOTrainer with FlowRL's loss."""
    from peft import LoraConfig

    from flowrl_lab.integrations.trl import FlowRLConfig, FlowRLTrainer
    from flowrl_lab.integrations.trl_task import task_for_trl
    from flowrl_lab.policies.tiny_lm import load_base_model
    from flowrl_lab.tasks import load_task

    task = load_task(config.task)
    with tempfile.TemporaryDirectory() as folder:
        args = FlowRLConfig.from_experiment(
            config,
            folder,
            max_completion_length=task.max_completion_tokens,
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            logging_steps=1,
            dataloader_pin_memory=False,
        )
        adapter = LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        trainer = FlowRLTrainer(
            load_base_model(), args=args, peft_config=adapter, **task_for_trl(task)
        )
        trainer.train()
    log = [entry for entry in trainer.state.log_history if "reward" in entry]
    exact = judge(trainer, config)
    return {
        "rewards": [entry["reward"] for entry in log],
        "exact": {name: getattr(exact, name) for name in FIGURES},
    }


def judge(trainer, config):
    """The referee's report of what TRL trained, through this library's policy."""
    from flowrl_lab.training.run import Run

    run = Run(config)
    named = trainer.model.named_parameters()
    run.policy.load_state_dict({n: p.detach() for n, p in named if p.requires_grad})
    run.modules["log_z"].load_state_dict(trainer.log_z.head.state_dict())
    return run.evaluate()


def compare(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Means, spreads, and how likely so large a difference is by chance."""
    from flowrl_lab.measuring.significance import welch_p

    return {
        "ours": statistics.mean(ours),
        "ours_sd": statistics.stdev(ours),
        "trl": statistics.mean(theirs),
        "trl_sd": statistics.stdev(theirs),
        "p": welch_p(ours, theirs),
    }


def correct(table: dict[str, dict[str, float]]) -> None:
    """Add Holm's p to every line: the chance that any of them is as extreme."""
    from flowrl_lab.measuring.significance import correct_by_holm

    corrected = correct_by_holm([row["p"] for row in table.values()])
    for row, p in zip(table.values(), corrected, strict=True):
        row["p_holm"] = p


def summarise(sides: dict[str, list[dict]]) -> dict[str, dict[str, float]]:
    """One line a point of the curve and a figure of the referee."""
    steps = len(sides["ours"][0]["rewards"])
    table = {}
    for end in range(EVERY, steps + 1, EVERY):
        points = {
            side: [statistics.mean(run["rewards"][end - EVERY : end]) for run in runs]
            for side, runs in sides.items()
        }
        name = f"reward, steps {end - EVERY + 1}-{end}"
        table[name] = compare(points["ours"], points["trl"])
    for figure in FIGURES:
        ends = {s: [run["exact"][figure] for run in runs] for s, runs in sides.items()}
        table[figure] = compare(ends["ours"], ends["trl"])
    correct(table)
    return table


def format_table(table: dict[str, dict[str, float]]) -> str:
    lines = [f"{'':22}  {'ours':>15}  {'TRL':>15}  {'p':>6}  Holm's"]
    for name, row in table.items():
        ours, trl = (f"{row[s]:.3f} ± {row[s + '_sd']:.3f}" for s in ("ours", "trl"))
        lines.append(
            f"{name:22}  {ours:>15}  {trl:>15}  {row['p']:6.3f}  {row['p_holm']:6.3f}"
        )
    return "\n".join(lines)


def measure(seeds: int, steps: int) -> dict:
    import torch

    from flowrl_lab.measuring.folder import describe_environment

    torch.set_num_threads(1)
    configs = [make_config(seed, steps) for seed in range(seeds)]
    sides: dict[str, list[dict]] = {"ours": [], "trl": []}
    for config in configs:
        for side, train_side in (("ours", train_ours), ("trl", train_trl)):
            sides[side].append(train_side(config))
            print(f"seed {config.seed}, {side}: done", file=sys.stderr, flush=True)
    environment = describe_environment()
    import importlib.metadata

    environment["versions"]["trl"] = importlib.metadata.version("trl")
    return {
        "config": dataclasses.asdict(configs[0]),
        "seeds": list(range(seeds)),
        "environment": environment,
        "sides": sides,
        "table": summarise(sides),
    }


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path, metavar="FILE")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print a stored one")
    args = parser.parse_args(words)
    if args.seeds < 2 or args.steps < EVERY:
        parser.error(f"expected at least 2 seeds and {EVERY} steps")
    if args.out is not None and args.out.exists():
        parser.error(f"{args.out} exists; nothing is overwritten")
    if args.show is not None:
        result = json.loads(args.show.read_text(encoding="utf-8"))
    else:
        result = measure(args.seeds, args.steps)
    print(format_table(result["table"]))
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

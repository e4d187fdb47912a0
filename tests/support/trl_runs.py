"""Small TRL runs that tests share: same weights, same completions, whoever trains.

Started by ``accelerate launch`` it is one of several processes of such a run::

    accelerate launch --multi_gpu --num_processes 2 \\
        tests/support/trl_runs.py FOLDER [ZERO.json]

The second argument is a configuration of DeepSpeed.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func is experimental

PROMPTS, GENERATIONS, STEPS = 4, 4, 2


def make_config(**changes):
    """A run of this library, small enough for a test."""
    from flowrl_lab import preset

    config = preset("make_number", "flowrl", budget="quick", steps=STEPS)
    return config.replace(
        prompts_per_step=PROMPTS, num_generations=GENERATIONS, **changes
    )


def make_args(folder, config=None, *, processes: int = 1, **changes):
    """The same run for TRL, silent and without a GPU."""
    from flowrl_lab.integrations.trl import FlowRLConfig
    from flowrl_lab.tasks import load_task

    quiet = {
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "dataloader_pin_memory": False,
    }
    return FlowRLConfig.from_experiment(
        make_config() if config is None else config,
        folder,
        max_completion_length=load_task("make_number").max_completion_tokens,
        processes=processes,
        **{**quiet, **changes},
    )


def make_trainer(args, *, lora: bool = True, **trl_arguments):
    """FlowRLTrainer on the shipped model and task."""
    from peft import LoraConfig

    from flowrl_lab.integrations.trl import FlowRLTrainer
    from flowrl_lab.integrations.trl_task import task_for_trl
    from flowrl_lab.policies.tiny_lm import load_base_model
    from flowrl_lab.tasks import load_task

    adapter = LoraConfig(
        r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    parts = {"model": load_base_model(), **task_for_trl(load_task("make_number"))}
    if lora:
        parts["peft_config"] = adapter
    return FlowRLTrainer(args=args, **{**parts, **trl_arguments})


def fixed_rollout(prompts: list[str], trainer) -> dict:
    """Completions that depend on prompt, step and row of the *global* batch only."""
    from flowrl_lab.tasks import load_task

    task = load_task("make_number")
    first = trainer.accelerator.process_index * len(prompts)
    completions = []
    for row, prompt in enumerate(prompts, start=first):
        seed = f"{prompt} {trainer.state.global_step} {row}"
        chance = random.Random(hashlib.sha256(seed.encode()).digest())
        if chance.random() < 0.5:
            answers = task.answers(prompt)
            pick = chance.randrange(len(answers))
            ids = answers.completion_ids[pick][answers.completion_mask[pick]].tolist()
        else:
            length = chance.randrange(1, task.max_completion_tokens)
            ids = [chance.randrange(10) for _ in range(length)] + [task.eos_id]
        completions.append(ids)
    return {
        "prompt_ids": [
            task.encode((prompt,)).prompt_ids[0].tolist() for prompt in prompts
        ],
        "completion_ids": completions,
        "logprobs": [[0.0] * len(ids) for ids in completions],
    }


def trained_weights(trainer) -> dict:
    """Everything that learns, on the CPU."""
    named = trainer.accelerator.unwrap_model(trainer.model).named_parameters()
    weights = {n: p.detach().clone() for n, p in named if p.requires_grad}
    head = trainer.log_z.head.state_dict()
    return {**weights, **{f"log_z.{n}": p.clone() for n, p in head.items()}}


def train_fixed(folder, *, processes: int = 1, **changes):
    """Train on ``fixed_rollout`` with plain gradient descent; the trainer.

    Without Adam, whose step is a gradient's *sign* at first, the weights differ by
    no more than the gradients do.
    """
    settings = {"optim": "sgd", "learning_rate": 1e-3, "shuffle_dataset": False}
    args = make_args(folder, processes=processes, **{**settings, **changes})
    trainer = make_trainer(args, rollout_func=fixed_rollout)
    trainer.train()
    return trainer


def main() -> None:
    import torch
    from accelerate import PartialState

    folder, engine = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None
    processes = PartialState(cpu=True).num_processes
    trainer = train_fixed(folder, processes=processes, deepspeed=engine)
    if trainer.accelerator.is_main_process:
        found = {
            "processes": processes,
            "engine": type(trainer.model_wrapped).__name__,
            "weights": trained_weights(trainer),
        }
        torch.save(found, folder / "weights.pt")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main()

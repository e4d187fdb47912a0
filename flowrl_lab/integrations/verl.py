"""A run of this library, rewritten for verl's FlowRL recipe.

``export_verl`` writes a folder: a start script with every setting, the reward as a
Python file, the prompts as data, and DIFFERENCES.md, which says for every setting
whether it means the same there.  Much does not: the recipe has its own clip, its own
features for Z, and only the length-normalised residual.

The recipe was read in verl's and verl-recipe's public repositories (October 2025);
the names of the settings were checked against the configurations of verl 0.6.1, 0.7.1
and 0.9.1 (tests/integrations/test_verl_export.py), and composed with Hydra.  Nothing
here was run on a GPU.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowrl_lab._files import write_atomically
from flowrl_lab.integrations.task_scores import check_language_task, rendered
from flowrl_lab.tasks import load_task
from flowrl_lab.training.config import ExperimentConfig

__all__ = [
    "RECIPE_KEYS",
    "Difference",
    "compare_meaning",
    "export_verl",
    "verl_settings",
]

RECIPE_SCALE = 15.0
RECIPE_WEIGHTS = "min(ratio, 10), with no floor"
# Settings that the recipe's own config adds to verl's.
RECIPE_KEYS = ("algorithm.tb_coef", "data.gen_batch_size")
FILES = (
    "run.sh", "reward.py", "train.jsonl", "heldout.jsonl", "DIFFERENCES.md",
)  # fmt: skip


def verl_settings(config: ExperimentConfig, folder: Path) -> dict[str, Any]:
    """The run's settings under verl's dotted names.

    Args:
        config: a run with ``algorithm="flowrl"`` on a task with text.
        folder: where reward and data will lie; written into the settings.

    Raises:
        ValueError: another algorithm, or a task without text.
    """
    task = _check(config)
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    model = "actor_rollout_ref.model"
    # verl has no linear schedule; the cosine one also ends at 0.
    schedule = "constant" if config.lr_schedule == "constant" else "cosine"
    return {
        "data.train_files": str(folder / "train.jsonl"),
        "data.val_files": str(folder / "heldout.jsonl"),
        "data.prompt_key": "prompt",
        "data.train_batch_size": config.prompts_per_step,
        "data.gen_batch_size": config.prompts_per_step,
        "data.max_response_length": task.max_completion_tokens,
        "data.seed": config.seed,
        f"{model}.lora_rank": config.lora_rank,
        f"{model}.lora_alpha": config.lora_alpha,
        f"{model}.target_modules": "all-linear",
        # One update of the whole batch, as often as here.
        f"{actor}.ppo_mini_batch_size": config.prompts_per_step,
        f"{actor}.ppo_epochs": config.updates_per_batch,
        f"{actor}.optim.lr": config.learning_rate,
        f"{actor}.optim.lr_scheduler_type": schedule,
        f"{actor}.optim.weight_decay": 0.0,
        f"{actor}.grad_clip": config.max_grad_norm,
        f"{actor}.clip_ratio_low": config.clip_low,
        f"{actor}.clip_ratio_high": config.clip_high,
        # The penalty is 0, but without this verl computes no reference.
        f"{actor}.use_kl_loss": True,
        f"{actor}.kl_loss_coef": 0.0,
        f"{actor}.entropy_coeff": config.entropy_coef,
        f"{rollout}.n": config.num_generations,
        f"{rollout}.temperature": config.temperature,
        f"{rollout}.top_p": 1.0,
        f"{rollout}.top_k": -1,
        "algorithm.adv_estimator": "grpo",
        "algorithm.norm_adv_by_std_in_grpo": config.reward_form == "group_normalized",
        "algorithm.use_kl_in_reward": False,
        "algorithm.tb_coef": config.reward_scale,
        "custom_reward_function.path": str(folder / "reward.py"),
        "custom_reward_function.name": "compute_score",
        "reward_model.reward_manager": "naive",
        "trainer.total_training_steps": config.steps,
        "trainer.experiment_name": config.run_name,
    }


@dataclass(frozen=True)
class Difference:
    """One setting that does not mean there what it means here."""

    setting: str
    here: str
    there: str
    what_to_do: str


def compare_meaning(config: ExperimentConfig) -> list[Difference]:
    """Every difference between the run and what the recipe would do with it."""
    _check(config)
    found = [
        Difference(
            "reward_scale",
            f"β = {config.reward_scale:g}",
            f"the recipe's actor has β = {RECIPE_SCALE:g} as a literal, beside the "
            "setting algorithm.tb_coef",
            "nothing"
            if config.reward_scale == RECIPE_SCALE
            else "search the actor for the literal and put your value there",
        ),
        _importance(config),
        Difference(
            "log_z_features",
            "the last prompt token"
            if config.log_z_features == "last"
            else "the mean of all prompt tokens",
            "the mean of all prompt tokens but the last one",
            "prompts that share a long beginning look alike to Z there",
        ),
        Difference(
            "log_z",
            "Z's gradient stops at the features"
            if config.log_z != "attached"
            else "Z's gradient goes into the model",
            "Z's gradient goes into the model, and Z has dropout 0.1",
            "expect a noisier log Z",
        ),
        Difference(
            "log_z_learning_rate",
            f"{config.log_z_learning_rate:g}, its own",
            f"that of the policy, {config.learning_rate:g}, and its gradient counts in "
            "the clipped norm",
            "give Z a parameter group of its own if log Z lags",
        ),
    ]
    return found + _differences_of_form(config)


def _importance(config: ExperimentConfig) -> Difference:
    here = {
        "none": "no weights",
        "clip": f"ratio cut to [{1 - config.clip_low:g}, {1 + config.clip_high:g}]",
        "raw": "the ratio itself",
        "max10": "min(ratio, 10)",
    }[config.importance]
    advice = {
        "max10": "nothing",
        "none": "one update a batch has ratio 1 everywhere: then it is the same",
    }
    return Difference(
        "importance, clip_low, clip_high",
        here,
        f"{RECIPE_WEIGHTS}; a clipping variant, chosen in the source, uses "
        "[0.8, 1.28] as literals and reads neither clip setting",
        advice.get(config.importance, "choose the variant, and edit its two literals"),
    )


def _differences_of_form(config: ExperimentConfig) -> list[Difference]:
    found = []
    if config.reward_form == "raw":
        found.append(
            Difference(
                "reward_form",
                "the reward itself",
                "the reward minus its group's mean",
                "log Z takes up the mean, but the mean of each group is a draw: more "
                "noise, the same target on average",
            )
        )
    if not config.length_normalize:
        found.append(
            Difference(
                "length_normalize",
                "sums over tokens: the textbook target",
                "means over tokens: π_ref exp(|y| (βr - log Z)), far sharper",
                "not available there; it is another target, so compare with care",
            )
        )
    if config.lr_schedule == "linear":
        found.append(Difference("lr_schedule", "linear to 0", "cosine to 0", "nothing"))
    if config.lora_rank:
        found.append(
            Difference(
                "lora_rank",
                "Z lies outside the adapted model",
                "Z hangs on the model that LoRA freezes",
                "make sure that Z is trained: its log must move",
            )
        )
    return found


def export_verl(
    config: ExperimentConfig, folder: str | Path, *, model: str = ""
) -> list[Path]:
    """Write the run for verl's FlowRL recipe into a new folder.

    Args:
        config: of the run.
        folder: must not hold any of the files yet.
        model: path or name of the model to train; empty leaves it to $MODEL.

    Returns:
        The written files.

    Raises:
        ValueError: as :func:`verl_settings`; a file is already there.
    """
    folder = Path(folder).absolute()
    task, settings = _check(config), verl_settings(config, folder)
    taken = [name for name in FILES if (folder / name).exists()]
    if taken:
        raise ValueError(
            f"{folder / taken[0]} already exists; nothing is overwritten. Fix: name a "
            "new folder with --out."
        )
    settings["data.max_prompt_length"] = _longest_prompt(task)
    contents = {
        "run.sh": _script(settings, model),
        "reward.py": _reward_file(config),
        "train.jsonl": _rows(task, "train"),
        "heldout.jsonl": _rows(task, "heldout"),
        "DIFFERENCES.md": _page(config),
    }
    for name, text in contents.items():
        write_atomically(folder / name, text.encode())
    return [folder / name for name in contents]


def _check(config: ExperimentConfig):
    if config.algorithm != "flowrl":
        raise ValueError(
            f"the run has algorithm {config.algorithm!r}; this is for verl's FlowRL "
            "recipe. Fix: export a FlowRL run, or use verl's own recipe for that one."
        )
    task = load_task(config.task, **config.task_options)
    check_language_task(task)
    return task


def _longest_prompt(task) -> int:
    """Tokens of the longest prompt, at most: no tokenizer has more than bytes."""
    every = (*task.prompts("train"), *task.prompts("heldout"))
    return max(len(rendered(task, prompt).encode()) for prompt in every)


def _script(settings: dict[str, Any], model: str) -> str:
    """A start script in the recipe's own way: every setting an override of Hydra's.

    A config file of ours cannot stand on the recipe's: Hydra takes the search path
    from the primary config only, and the recipe's is one.
    """
    default = f":-{model}" if model else ":?set MODEL to a folder or a name on the hub"
    words = [
        shlex.quote(f"{name}={json.dumps(value, ensure_ascii=False)}")
        for name, value in settings.items()
    ]
    lines = [
        "#!/usr/bin/env bash",
        "# Start it in verl's folder, where recipe/flowrl lies.  More may follow.",
        "set -euo pipefail",
        f'MODEL="${{MODEL{default}}}"',
        "exec python3 -m recipe.flowrl.main_flowrl \\",
        '  "actor_rollout_ref.model.path=$MODEL" \\',
        *(f"  {word} \\" for word in words),
        '  "$@"',
    ]
    return "\n".join(lines) + "\n"


def _reward_file(config: ExperimentConfig) -> str:
    options = json.dumps(config.task_options)
    return (
        f'"""The reward of {config.task}, for verl; needs flowrl_lab on every worker.'
        '"""\n\nimport json\n\n'
        "from flowrl_lab.integrations.task_scores import load_scorer\n\n"
        f"compute_score = load_scorer({config.task!r}, json.loads({options!r}))\n"
    )


def _rows(task, split: str) -> str:
    """One JSON object a prompt, in the columns that verl reads."""
    rows = [
        {
            "data_source": task.name,
            "prompt": [{"role": "user", "content": rendered(task, prompt)}],
            # The verifier judges from the prompt; verl hands this to the reward.
            "reward_model": {"style": "rule", "ground_truth": prompt},
            "extra_info": {"index": index, "split": split},
        }
        for index, prompt in enumerate(task.prompts(split))
    ]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _page(config: ExperimentConfig) -> str:
    lines = [
        f"# {config.run_name}: what verl's FlowRL recipe does otherwise",
        "",
        "Same name, other meaning. Everything that is not listed means the same.",
        "",
        "| setting | here | in the recipe | what to do |",
        "|---|---|---|---|",
    ]
    for one in compare_meaning(config):
        lines.append(f"| {one.setting} | {one.here} | {one.there} | {one.what_to_do} |")
    lines += [
        "",
        "Also: verl puts each prompt through the tokenizer's chat template. This "
        "library hands it over as it is; for the same text, give the tokenizer a "
        "template that only prints the message.",
        "",
        "A group whose rewards are all equal still trains, here and there: its "
        "residual pulls the policy to the reference.",
    ]
    return "\n".join(lines) + "\n"

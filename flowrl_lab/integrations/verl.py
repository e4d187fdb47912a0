"""A run of this library, rewritten for verl's FlowRL recipe.

``export_verl`` writes a folder: a start script with every setting, the reward as a
Python file, the prompts as data, and DIFFERENCES.md, which says for every setting
whether it means the same there.  Much does not: the recipe has its own weights, its
own features for Z, and only the length-normalised residual.

The recipe was read in its public repository, verl-recipe (as of August 2026): what its
actor, worker, main file and config use, and what they leave alone.  The names of the
settings were checked against the configurations of verl 0.6.1, 0.7.1 and 0.9.1
(tests/integrations/test_verl_export.py), and composed with Hydra.  Nothing here was
run on a GPU.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowrl_lab._files import refuse_used, write_atomically
from flowrl_lab.integrations.task_scores import check_language_task
from flowrl_lab.plots.tabulate import markdown_table
from flowrl_lab.tasks import load_task
from flowrl_lab.training.config import ExperimentConfig
from flowrl_lab.training.log_z import needs_network

__all__ = [
    "IDLE",
    "RECIPE_KEYS",
    "Difference",
    "compare_meaning",
    "export_verl",
    "verl_settings",
]

RECIPE_SCALE = 15.0
RECIPE_WEIGHTS = "min(ratio, 10), with no floor"
# Settings that the recipe's code reads and not every version of verl has by itself.
RECIPE_KEYS = ("data.gen_batch_size", "actor_rollout_ref.actor.optim.warmup_style")
# Fields that a FlowRL run does not read, here or there.
IDLE = ("kl_coef", "pass_k", "value_learning_rate")
FILES = ("run.sh", "reward.py", "train.jsonl", "heldout.jsonl", "DIFFERENCES.md")
PAGE = """# {name}: what verl's FlowRL recipe does otherwise

Same name, other meaning. Everything that is not listed means the same.

{table}

A FlowRL run reads none of {idle}, here or there.

A group whose rewards are all equal still trains, here and there: its residual pulls \
the policy to the reference.
"""


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
    micro_batch = config.micro_batch or None
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
        # The recipe's worker reads the older of the two names.
        f"{actor}.optim.warmup_style": schedule,
        f"{actor}.optim.lr_scheduler_type": schedule,
        f"{actor}.optim.weight_decay": 0.0,
        f"{actor}.grad_clip": config.max_grad_norm,
        # The recipe has no penalty, but without this verl computes no reference.
        f"{actor}.use_kl_loss": True,
        f"{actor}.use_dynamic_bsz": micro_batch is None,
        f"{actor}.ppo_micro_batch_size_per_gpu": micro_batch,
        f"{rollout}.log_prob_micro_batch_size_per_gpu": micro_batch,
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": micro_batch,
        f"{rollout}.n": config.num_generations,
        f"{rollout}.temperature": config.temperature,
        f"{rollout}.top_p": 1.0,
        f"{rollout}.top_k": -1,
        "algorithm.adv_estimator": "grpo",
        "algorithm.norm_adv_by_std_in_grpo": config.reward_form == "group_normalized",
        "algorithm.use_kl_in_reward": False,
        "custom_reward_function.path": str(folder / "reward.py"),
        "custom_reward_function.name": "compute_score",
        # The recipe hands over an overlong buffer, which only this manager takes.
        "reward_model.reward_manager": "dapo",
        "trainer.total_training_steps": config.steps,
        # An epoch has at least one step: the steps end the run, not the epochs.
        "trainer.total_epochs": config.steps,
        "trainer.test_freq": config.eval_every,
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
    return [
        *_differences_of_loss(config),
        *_differences_of_log_z(config),
        *_differences_of_form(config),
        *_differences_of_running(config),
    ]


def _differences_of_loss(config: ExperimentConfig) -> list[Difference]:
    beta = Difference(
        "reward_scale",
        f"β = {config.reward_scale:g}",
        f"the recipe's actor has β = {RECIPE_SCALE:g} as a literal "
        "(flowrl_beta_coef); no setting reaches it",
        "nothing"
        if config.reward_scale == RECIPE_SCALE
        else "put your value in the literal's place",
    )
    entropy = Difference(
        "entropy_coef",
        f"an entropy bonus of weight {config.entropy_coef:g}",
        "none: the actor has the term commented out, and reads no entropy_coeff",
        "add the term to the actor's loss",
    )
    return [beta, _importance(config)] + ([entropy] if config.entropy_coef else [])


def _differences_of_log_z(config: ExperimentConfig) -> list[Difference]:
    sources = {
        "learned": "a network on the frozen reference's features, without dropout",
        "attached": "a network on the policy's features, without dropout",
        "vargrad": "no network: the batch's best value for each prompt's group",
        "constant": f"no network: {config.log_z_value:g} for every prompt",
        "frozen": f"no network: a draw of N({config.log_z_value:g}, 1) for each "
        "prompt, once",
        "random": f"no network: a draw of N({config.log_z_value:g}, 1) for each "
        "prompt, anew in every step",
    }
    learned = needs_network(config)
    source = Difference(
        "log_z",
        sources[config.log_z],
        "a network on the policy's features, with dropout 0.1 and its gradient in "
        "the model",
        "expect a noisier log Z"
        if learned
        else "not available there; put it in log_z's place in the actor's loss",
    )
    if not learned:
        return [source]
    starts = {"zero": "0", "batch": "the first batch's estimate log mean exp(βr)"}
    return [
        source,
        Difference(
            "log_z_start",
            starts[config.log_z_start],
            "whatever torch's initial weights give: some value near 0, another for "
            "each prompt and seed",
            "set the last layer of proj_z in the worker, right after it is made",
        ),
        Difference(
            "log_z_features",
            "the last prompt token"
            if config.log_z_features == "last"
            else "the mean of all prompt tokens",
            "the mean of all prompt tokens but the last one",
            "prompts that share a long beginning look alike to Z there",
        ),
        Difference(
            "log_z_learning_rate",
            f"{config.log_z_learning_rate:g}, its own, and outside max_grad_norm",
            f"that of the policy, {config.learning_rate:g}, and its gradient counts in "
            "the clipped norm",
            "give Z a parameter group of its own if log Z lags",
        ),
    ]


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
        f"{RECIPE_WEIGHTS}, as a literal; no clip setting of verl's is read",
        advice.get(config.importance, "change the line that makes imp_w"),
    )


def _differences_of_form(config: ExperimentConfig) -> list[Difference]:
    found = []
    if config.reward_form == "raw":
        group = config.num_generations
        found.append(
            Difference(
                "reward_form",
                "the reward itself",
                "the reward minus the mean of its group, in which it counts itself: on "
                "average two rewards lie (G-1)/G as far apart, as with a smaller β",
                f"another target: that of β(G-1)/G, {(group - 1) / group:.4g} β with "
                f"G = {group}, and more noise"
                + ("; β G/(G-1) in the literal repairs it" if group > 1 else ""),
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
                "Z lies outside the adapted model, and all of it is trained",
                "Z is made before LoRA: its own weights are frozen, and all-linear "
                "gives its layers adapters",
                "keep proj_z out of target_modules, make it trainable, and out of what "
                "goes to the sampler (LoRA puts a prefix before its name)",
            )
        )
    return found


def _differences_of_running(config: ExperimentConfig) -> list[Difference]:
    """What is around the loss: model, prompts, numbers, evaluation, bad updates."""
    limit = f"above {config.max_residual:g} nats" if config.max_residual else "never"
    found = [
        Difference(
            "policy, model",
            f"{config.policy} ({config.model})",
            "the folder or hub name in $MODEL",
            "set MODEL",
        ),
        Difference(
            "dtype, device",
            f"{config.dtype} on {config.device}",
            "weights in float32, passes in bfloat16, on GPUs",
            "expect log-probs that differ in the third digit",
        ),
        Difference(
            "seed",
            f"{config.seed}, of prompts, samples and initial weights",
            "of the order of the prompts only",
            "run it several times",
        ),
        Difference(
            "eval_every, eval_prompts, eval_split, watch_prompt",
            f"exact, on {config.eval_prompts} "
            f"{config.eval_split.replace('heldout', 'held-out')} prompts, one watched "
            f"({config.watch_prompt or 'the first'})",
            f"every {config.eval_every} steps too, on samples of all of heldout.jsonl",
            "evaluate its checkpoints with this library to compare",
        ),
        Difference(
            "on_bad_update, max_residual, max_skips",
            f"{config.on_bad_update}, at most {config.max_skips} in a row; a residual "
            f"is too large {limit}",
            "a gradient norm that is not finite skips the update, as often as it comes",
            "watch actor/grad_norm",
        ),
    ]
    if config.prompt_format == "plain":
        found.append(
            Difference(
                "prompt_format",
                "the prompt as it is",
                "the prompt in the tokenizer's chat template",
                "give the tokenizer a template that only prints the message",
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
    refuse_used(*(folder / name for name in FILES))
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
    if config.task.startswith("__main__:"):
        raise ValueError(
            f"the task {config.task!r} was made in a notebook or a function, where "
            "verl's workers do not find it. Fix: put it into a file, such as "
            "my_task.py, and train with task='my_task:name'."
        )
    task = load_task(config.task, **config.task_options)
    check_language_task(task)
    return task


def _longest_prompt(task) -> int:
    """Tokens of the longest prompt, at most: no tokenizer has more than bytes."""
    every = (*task.prompts("train"), *task.prompts("heldout"))
    return max(len(task.render(prompt).encode()) for prompt in every)


def _script(settings: dict[str, Any], model: str) -> str:
    """A start script in the recipe's own way: every setting an override of Hydra's.

    A config file of ours cannot stand on the recipe's: Hydra takes the search path
    from the primary config only, and the recipe's is one.
    """
    default = f":-{model}" if model else ":?set MODEL to a folder or a name on the hub"
    words = [
        shlex.quote(f"{_added(name)}={json.dumps(value, ensure_ascii=False)}")
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


def _added(name: str) -> str:
    """``++`` sets what is there and adds what is not."""
    return f"++{name}" if name in RECIPE_KEYS else name


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
            "prompt": _messages(task, prompt),
            # The verifier judges from the prompt; verl hands this to the reward.
            "reward_model": {"style": "rule", "ground_truth": prompt},
            "extra_info": {"index": index, "split": split},
        }
        for index, prompt in enumerate(task.prompts(split))
    ]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _messages(task, prompt: str) -> list[dict[str, str]]:
    if task.in_text:
        return task.messages(prompt)
    return [{"role": "user", "content": task.render(prompt)}]


def _page(config: ExperimentConfig) -> str:
    head = ("setting", "here", "in the recipe", "what to do")
    table = markdown_table(head, map(dataclasses.astuple, compare_meaning(config)))
    return PAGE.format(name=config.run_name, table=table, idle=", ".join(IDLE))

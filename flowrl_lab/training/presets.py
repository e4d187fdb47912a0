"""Settings that work, for every task and variant: where runs should start from.

On ``make_number`` every variant had the same search: learning rates 1e-3, 2e-3 and
4e-3, 100 steps each, the highest training reward taken; ``data/results/README.md``
has what it found.  The toys use one setting for all variants.
"""

from __future__ import annotations

import difflib
from typing import Any

from flowrl_lab.tasks.own import place_of
from flowrl_lab.tasks.real import TEXT_TASKS
from flowrl_lab.tasks.text import TextTask
from flowrl_lab.training.config import ExperimentConfig

__all__ = ["PRESETS", "VARIANTS", "preset"]

# What distinguishes the variants, whatever the task.  "flowrl" is the textbook
# form (raw reward, token sums); "flowrl_paper" the paper's (z-scored, token means).
# "dapo" gets two updates a batch: in the first one its wider clip is idle.
VARIANTS: dict[str, dict[str, Any]] = {
    "reinforce_pp": {"algorithm": "reinforce_pp"},
    "ppo": {"algorithm": "ppo"},
    "grpo": {"algorithm": "grpo"},
    "grpo_entropy": {
        "algorithm": "grpo",
        "name": "grpo_entropy",
        "entropy_coef": 0.03,
    },
    "dapo": {"algorithm": "dapo", "clip_high": 0.28, "updates_per_batch": 2},
    "pass_at_k": {"algorithm": "pass_at_k"},
    "flowrl": {"algorithm": "flowrl"},
    "flowrl_paper": {
        "algorithm": "flowrl",
        "name": "flowrl_paper",
        "reward_form": "group_normalized",
        "length_normalize": True,
    },
    "vargrad": {"algorithm": "vargrad"},
    "kl_reinforce": {"algorithm": "kl_reinforce"},
}

# The tables learn a landscape in seconds: one prompt, so one large group.
_TABLE = {
    "prompts_per_step": 1,
    "num_generations": 256,
    "learning_rate": 0.15,
    "log_z_learning_rate": 0.5,
    "value_learning_rate": 0.15,
    "reward_scale": 15.0,
}

# The tiny language models: many prompts, and enough samples of each to compare.
_TINY_LM = {
    "all": {
        "prompts_per_step": 16,
        "num_generations": 16,
        "learning_rate": 2e-3,
        "log_z_learning_rate": 3e-3,
        "value_learning_rate": 3e-3,
        "reward_scale": 8.0,
    },
    "full": {"steps": 200, "eval_every": 20},
    "quick": {"steps": 60, "eval_every": 10, "eval_prompts": 16},
    "reinforce_pp": {"learning_rate": 1e-3},
    "dapo": {"learning_rate": 1e-3},  # GRPO's rate, over two updates
    "pass_at_k": {"learning_rate": 1e-3},
    "flowrl_paper": {"reward_scale": 15.0},
    "kl_reinforce": {"kl_coef": 1 / 8},
}

# A smaller model, and a faster one to lose its answers.
_SUMS = {**_TINY_LM, "all": _TINY_LM["all"] | {"learning_rate": 1e-3}}

# SmolLM2-135M on one CPU core; data/results/README.md says how these were found.
_SMOLLM2 = {
    "all": {
        "policy": "hf_lm",
        "model": "smollm2-135m",
        "prompts_per_step": 4,
        "num_generations": 32,
        "learning_rate": 2e-4,
        "lr_schedule": "linear",
        "log_z_learning_rate": 3e-3,
        "reward_scale": 6.0,
        "eval_prompts": 4,
        "watch_prompt": "A prime number",
        "on_bad_update": "skip",
        "max_residual": 200.0,
    },
    "full": {"steps": 60, "eval_every": 5},
    "quick": {"steps": 20, "eval_every": 5},
    "kl_reinforce": {"kl_coef": 1 / 6},
}
# Rules for new parameters need many questions; twelve held-out ones judge.
_NUMBER_FACTS = {
    "prompts_per_step": 8,
    "num_generations": 16,
    "eval_prompts": 12,
    "watch_prompt": "",
}
_FORMULAS = {
    **_NUMBER_FACTS,
    "model": "smollm2-135m-formulas",  # after its cold start
    "prompts_per_step": 6,
    "num_generations": 12,
}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "landscape": {
        "all": _TABLE,
        "full": {"steps": 400, "eval_every": 10},
        "quick": {"steps": 150, "eval_every": 10},
        "kl_reinforce": {"kl_coef": 1 / 15},
    },
    "strings": {
        "all": {
            **_TABLE,
            "reward_scale": 10.0,
            "prompts_per_step": 4,
            "task_options": {"length": 4, "heldout_prompts": 0},
        },
        "full": {"steps": 400, "eval_every": 20},
        "quick": {"steps": 100, "eval_every": 20},
        "kl_reinforce": {"kl_coef": 1 / 10},
    },
    "make_number": _TINY_LM,
    "programs": _TINY_LM,
    **dict.fromkeys(("sums", "sums_6", "sums_21", "sums_57"), _SUMS),
    "open_sets": {
        **_SMOLLM2,
        # Log Z from the group instead of a network; it stayed nearer to the target.
        "flowrl": {"log_z": "vargrad"},
    },
    "number_facts": {
        **_SMOLLM2,
        "all": _SMOLLM2["all"] | _NUMBER_FACTS,
        "flowrl_paper": {"reward_scale": 15.0},
    },
    "formulas": {
        **_SMOLLM2,
        "all": _SMOLLM2["all"] | _FORMULAS,
        "flowrl_paper": {"reward_scale": 15.0},
    },
}

# Real sets for a real language model: a start, not searched for.
_TEXT = {
    "all": {
        "policy": "hf_lm",
        "prompt_format": "chat",
        "prompts_per_step": 8,
        "num_generations": 8,
        "learning_rate": 5e-5,
        "log_z_learning_rate": 5e-3,
        "reward_scale": 8.0,
        "on_bad_update": "skip",
        "max_residual": 500.0,
    },
    "full": {"steps": 100, "eval_every": 10},
    "quick": {"steps": 20, "eval_every": 5},
    "kl_reinforce": {"kl_coef": 1 / 8},
}
# (gsm8k needs the path of its file, so it has no setting that works everywhere)
PRESETS |= {name: _TEXT for name in TEXT_TASKS if name != "gsm8k"}

# A task of your own, named by its import path: a start, for a small model on a CPU.
_OWN = {
    "all": {
        "prompts_per_step": 4,
        "num_generations": 16,
        "learning_rate": 2e-4,
        "lr_schedule": "linear",
        "log_z_learning_rate": 3e-3,
        "log_z_start": "batch",
        "reward_scale": 6.0,
        "on_bad_update": "skip",
        "max_residual": 500.0,
    },
    "full": {"steps": 60, "eval_every": 5},
    "quick": {"steps": 15, "eval_every": 5},
    "kl_reinforce": {"kl_coef": 1 / 6},
}


def preset(
    task: str | TextTask, variant: str, *, budget: str = "full", **overrides: Any
) -> ExperimentConfig:
    """The recommended config of ``variant`` on ``task``.

    Args:
        task: key of ``PRESETS``, or a task of your own, or its import path.
        variant: key of ``VARIANTS``: an algorithm, or "flowrl_paper".
        budget: "full", or "quick" (fewer steps; the effect still shows).
        overrides: settings to change on top.

    Raises:
        ValueError: an unknown task, variant, budget or setting.
    """
    task = task if isinstance(task, str) else place_of(task)
    if ":" not in task:
        _check("task", task, PRESETS)
    _check("variant", variant, VARIANTS)
    _check("budget", budget, ("full", "quick"))
    table = PRESETS.get(task, _OWN)
    settings = {
        "task": task,
        **table["all"],
        **table[budget],
        **VARIANTS[variant],
        **table.get(variant, {}),
    }
    return ExperimentConfig(**settings).replace(**overrides)


def _check(kind: str, name: str, known) -> None:
    if name not in known:
        close = difflib.get_close_matches(str(name), list(known), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose from {list(known)}."
        raise ValueError(f"{kind} is {name!r}, which is not known. Fix: {hint}")

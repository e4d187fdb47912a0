"""What both sides of the step benchmark work on: models, prompts, settings.

Two models: the course's tiny language model on ``make_number``, and SmolLM2-135M on
the questions of ``open_sets``.  The second's completions are longer here than in
the course: a completion goes on after its first line, up to a limit, and the first
line is judged.  ``--stop-at-line`` takes the course's own completions instead, a
number and the end of the line.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from flowrl_lab.policies.device import has_native_bfloat16
from flowrl_lab.tasks.open_sets import OpenSets
from flowrl_lab.tasks.text import Scored, TextTask
from flowrl_lab.training.config import ExperimentConfig

__all__ = [
    "MODELS",
    "OpenLines",
    "fill_defaults",
    "make_config",
    "make_text_task",
    "prepared",
    "worker_settings",
]

ENDLESS = 1_000_000
KL_COEF = 0.01
SMOLLM2 = "smollm2-135m"
NARROW = ["bfloat16"] if has_native_bfloat16("cpu") else []
# model -> defaults of the command line
MODELS = {
    "tiny_lm": {
        "prompts": 16,
        "generations": 16,
        "rounds": 15,
        "warmup": 3,
        "dtypes": ["float32"],
    },
    "smollm2": {
        "prompts": 4,
        "generations": 8,
        "rounds": 5,
        "warmup": 2,
        "dtypes": ["float32", *NARROW],
    },
}


class OpenLines(TextTask):
    """The questions of ``open_sets``; an answer may be followed by anything.

    Args:
        tokens: the most tokens of a completion.
    """

    name = "open_lines"
    stop = ()
    reward_scale = None

    def __init__(self, tokens: int = 12):
        self.max_completion_tokens = tokens
        self._sets = OpenSets()
        self.prompts, self.render = self._sets.prompts, self._sets.render

    def score(self, prompt: str, completion: str) -> Scored:
        """1 if the first line is a right answer, 0 otherwise."""
        return self._sets.score(prompt, completion.split("\n", 1)[0])


OPEN_LINES = f"{__name__}:OpenLines"
TEXT_TASKS = {"open_sets": OpenSets, OPEN_LINES: OpenLines}


def fill_defaults(args: argparse.Namespace) -> argparse.Namespace:
    """Put the model's own numbers where the command line gave none."""
    for name, value in MODELS[args.model].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def make_config(
    args: argparse.Namespace, algorithm: str, dtype: str = "float32"
) -> ExperimentConfig:
    """Our side's settings; the same as TRL's wherever TRL has the setting.

    Raises:
        ValueError: more prompts a step than there are questions.
    """
    shared = {
        "algorithm": algorithm,
        "dtype": dtype,
        "kl_coef": KL_COEF if algorithm == "grpo" else 0.0,
        "steps": ENDLESS,
        "eval_every": ENDLESS,
        "eval_prompts": 1,
        "prompts_per_step": args.prompts,
        "num_generations": args.generations,
        "seed": args.seed,
    }
    if args.model == "tiny_lm":
        return ExperimentConfig(task="make_number", policy="tiny_lm", **shared)
    questions = len(OpenSets().questions)
    if args.prompts > questions:
        raise ValueError(
            f"--prompts is {args.prompts}, and there are {questions} questions, each "
            f"asked once a step. Fix: --prompts {questions}, and more --generations."
        )
    from flowrl_lab.training.presets import preset

    task = {"task": "open_sets"}
    if not args.stop_at_line:
        options = {"tokens": args.completion_tokens}
        task = {"task": OPEN_LINES, "task_options": options, "watch_prompt": ""}
    return preset("open_sets", algorithm).replace(
        **task, **shared, model=args.weights, lr_schedule="constant"
    )


def worker_settings(
    config: ExperimentConfig,
    model_folder: Path | str,
    *,
    threads: int,
    gradient_checkpointing: bool = False,
    bf16: bool = False,
) -> dict:
    """What TRL's worker needs to do the same work as ``config``."""
    find = _tiny_lm_settings if config.policy == "tiny_lm" else _text_settings
    return {
        **find(config),
        "model": str(model_folder),
        "prompts": config.prompts_per_step,
        "num_generations": config.num_generations,
        "temperature": config.temperature,
        "kl_coef": KL_COEF,
        "learning_rate": config.learning_rate,
        "max_grad_norm": config.max_grad_norm,
        "clip_low": config.clip_low,
        "clip_high": config.clip_high,
        "lora_rank": config.lora_rank,
        "lora_alpha": config.lora_alpha,
        "seed": config.seed,
        "threads": threads,
        "gradient_checkpointing": gradient_checkpointing,
        "bf16": bf16,
    }


def _tiny_lm_settings(config: ExperimentConfig) -> dict:  # noqa: ARG001 - as below
    from flowrl_lab.tasks.make_number import CHARACTERS, MakeNumber

    task = MakeNumber()
    return {
        "kind": "tiny_lm",
        "texts": list(task.prompts("train")),
        "characters": CHARACTERS,
        "pad_id": task.pad_id,
        "eos_id": task.eos_id,
        "max_completion_tokens": task.max_completion_tokens,
    }


def _text_settings(config: ExperimentConfig) -> dict:
    """The worker renders the prompts itself, with its own copy of the tokenizer."""
    task = TEXT_TASKS[config.task](**config.task_options)
    return {
        "kind": "smollm2",
        "task": config.task,
        "task_options": config.task_options,
        "chat": config.prompt_format == "chat",
        "max_completion_tokens": task.max_completion_tokens,
    }


def make_text_task(settings: dict, loaded):
    """The settings' task in a loaded model's tokens, as our side builds it."""
    from flowrl_lab.tasks.tokenized import TokenizedTask

    return TokenizedTask(
        TEXT_TASKS[settings["task"]](**settings["task_options"]),
        loaded.tokenizer,
        vocab_size=len(loaded.model.get_output_embeddings().weight),
        context=loaded.context,
        chat=settings["chat"],
    )


@contextlib.contextmanager
def prepared(args: argparse.Namespace) -> Iterator[Path | str]:
    """The shared model's folder or name; both sides can load it inside.

    Raises:
        ValueError, ConnectionError: SmolLM2 cannot be had (``unpack_model``).
    """
    if args.model == "tiny_lm":
        with model_folder(args.random_weights) as folder:
            yield folder
        return
    from flowrl_lab.policies.loading import load_language_model

    load_language_model(args.weights)  # fetched here once, not by every worker
    yield args.weights


@contextlib.contextmanager
def model_folder(random_weights: bool) -> Iterator[Path]:
    """Folder of the shared model: the shipped checkpoint, or random weights.

    Random weights are put where our side looks for the checkpoint.
    """
    from flowrl_lab._files import data_path
    from flowrl_lab.policies.tiny_lm import checkpoint_name
    from flowrl_lab.training.pretraining import save_checkpoint

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

"""From a config: its task, and the policy that speaks its tokens."""

from __future__ import annotations

import torch

from flowrl_lab.policies import make_policy
from flowrl_lab.policies.hf_lm import HFLanguageModelPolicy
from flowrl_lab.policies.language_model import add_lora
from flowrl_lab.policies.loading import load_language_model
from flowrl_lab.tasks.text import TextTask
from flowrl_lab.tasks.tokenized import TokenizedTask
from flowrl_lab.training.config import ExperimentConfig

__all__ = ["load_hf_lm", "make_task_and_policy"]


def make_task_and_policy(config, device, task=None):
    """The task of a config and the policy that speaks its tokens.

    A task in plain text speaks the tokens of whatever model is asked for, so there
    the model comes first.  ``task`` is that task where it is at hand already.

    Raises:
        ValueError: a task and a policy that do not go together, or a bad model.
    """
    from flowrl_lab.tasks import load_task

    if task is None:
        task = load_task(config.task, **config.task_options)
    in_text = task.in_text
    if in_text != (config.policy == "hf_lm") and not (
        in_text and config.policy == "auto"
    ):
        kind = "plain text" if in_text else "a vocabulary of its own"
        fix = "'hf_lm'" if in_text else "'auto'"
        raise ValueError(
            f"policy is {config.policy!r} for task {config.task!r}, which is in {kind}."
            f" Fix: set policy={fix}."
        )
    if in_text:
        return load_hf_lm(task, config, device)
    policy = make_policy(
        config.policy,
        task,
        seed=config.seed,
        lora_rank=config.lora_rank,
        lora_alpha=config.lora_alpha,
        device=device,
        dtype=config.dtype,
    )
    return task, policy


def load_hf_lm(
    task: TextTask, config: ExperimentConfig, device: torch.device
) -> tuple[TokenizedTask, HFLanguageModelPolicy]:
    """The model that ``config`` names with a fresh adapter, and the task in its tokens.

    Raises:
        ValueError, ConnectionError: as ``load_language_model``; a prompt that does not
            fit into the model's context.
    """
    loaded = load_language_model(config.model, dtype=config.dtype, device=device)
    chat = config.prompt_format == "chat" or getattr(task, "chat", False)
    if chat and not loaded.tokenizer.chat_template:
        print(
            f"{config.model} has no chat template (it is a base model): prompts are "
            "given to it as plain text. If it is a chat model, its template was lost: "
            "put its chat_template.jinja beside the tokenizer.",
            flush=True,
        )
        chat = False
    tokenized = TokenizedTask(
        task,
        loaded.tokenizer,
        vocab_size=len(loaded.model.get_output_embeddings().weight),
        context=loaded.context,
        chat=chat,
    )
    model = add_lora(
        loaded.model, rank=config.lora_rank, alpha=config.lora_alpha, seed=config.seed
    )
    policy = HFLanguageModelPolicy(
        loaded,
        model.to(device),
        eos_id=tokenized.eos_id,
        pad_id=tokenized.pad_id,
        max_completion_tokens=tokenized.max_completion_tokens,
        ended=tokenized.ended,
    )
    if not policy.ways.packed:
        print(
            f"{config.model} cannot read rows in one packed sequence; it computes "
            f"{policy.ways}, which is slower.",
            flush=True,
        )
    return tokenized, policy

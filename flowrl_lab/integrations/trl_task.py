"""A task of this library as TRL takes it: data set, tokenizer, reward function.

    trainer = FlowRLTrainer(model=..., args=..., **task_for_trl(task))

The reward is the task's own verifier, so a reward in TRL and one in this library's
loop are the same number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from flowrl_lab.integrations.task_scores import check_language_task, score_texts

__all__ = ["character_tokenizer", "make_reward", "task_for_trl"]


def task_for_trl(task, *, split: str = "train", tokenizer=None) -> dict[str, Any]:
    """``train_dataset``, ``processing_class`` and ``reward_funcs`` of ``task``.

    Args:
        task: a task with text.
        split: whose prompts to train on.
        tokenizer: the model's; only tasks with characters of their own do without.

    Raises:
        ValueError: the task has no text, or needs a tokenizer.
    """
    from datasets import Dataset

    check_language_task(task)
    prompts = task.prompts(split)
    columns = {
        "prompt": [
            task.messages(prompt) if task.in_text and task.chat else task.render(prompt)
            for prompt in prompts
        ],
        "task_prompt": list(prompts),  # what the verifier asks for
    }
    return {
        "train_dataset": Dataset.from_dict(columns),
        "processing_class": tokenizer or character_tokenizer(task),
        "reward_funcs": make_reward(task),
    }


def character_tokenizer(task):
    """A Hugging Face tokenizer with one token a character, ids as the task's."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if not task.characters:
        raise ValueError(
            f"task {task.name!r} does not spell with characters of its own. Fix: pass "
            "your model's tokenizer: task_for_trl(task, tokenizer=...)."
        )
    vocab = {character: index for index, character in enumerate(task.characters)}
    vocab |= {"<pad>": task.pad_id, "<eos>": task.eos_id}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        padding_side="left",
    )


def make_reward(task) -> Callable[..., list[float]]:
    """The task's verifier as a TRL reward function."""

    def reward(prompts, completions, completion_ids, task_prompt=None, **_columns):
        asked = prompts if task_prompt is None else task_prompt
        if task.in_text:
            return score_texts(task, asked, completions, completion_ids)
        width = max(map(len, completion_ids))
        ids = torch.full((len(completion_ids), width), task.pad_id)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for row, tokens in enumerate(completion_ids):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = True
        return task.score(task.encode(tuple(asked)), ids, mask, 1).tolist()

    reward.__name__ = task.name
    return reward

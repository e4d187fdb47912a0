"""Real sets for real language models: word problems, countdown, arithmetic, code.

They need ``pip install 'flowrl-lab[sets]'``, those of reasoning-gym
``'flowrl-lab[gym]'``, and load only when somebody asks.
What a model writes is never evaluated in this process: numbers and expressions go
through a small parser of our own, everything else into the sandbox.
"""

from __future__ import annotations

from typing import Any

from flowrl_lab.tasks._registry import build_named, did_you_mean
from flowrl_lab.tasks.text import TextTask

__all__ = ["TEXT_TASKS", "load_text_task"]

# name -> "module:class"
TEXT_TASKS: dict[str, str] = {
    "countdown": "flowrl_lab.tasks.real.gym:Countdown",
    "arithmetic": "flowrl_lab.tasks.real.gym:Arithmetic",
    "gsm_symbolic": "flowrl_lab.tasks.real.gym:GsmSymbolic",
    "gsm8k": "flowrl_lab.tasks.real.word_problems:Gsm8k",
    "human_eval": "flowrl_lab.tasks.real.human_eval:HumanEval",
}


def load_text_task(name: str, **options: Any) -> TextTask:
    """Build the text task called ``name``.

    Args:
        name: a key of ``TEXT_TASKS``.
        options: the keyword arguments of that task's class.

    Returns:
        A ready task.

    Raises:
        ValueError: for an unknown name or option, or one that the task refuses.
        ImportError: where its package is missing; the message names the extra.
    """
    if name not in TEXT_TASKS:
        raise ValueError(
            f"text task: got {name!r}, expected one of {sorted(TEXT_TASKS)}"
            f"{did_you_mean(name, TEXT_TASKS)}"
        )
    return build_named("text task", name, TEXT_TASKS, options)

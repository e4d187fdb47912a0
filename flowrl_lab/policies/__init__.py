"""Policies: a softmax table for enumerable toys, a LoRA language model for text."""

from __future__ import annotations

import difflib

from flowrl_lab.policies.base import Policy

__all__ = ["POLICIES", "Policy", "make_policy"]

POLICIES = ("tabular", "tiny_lm")


def make_policy(
    name: str,
    task,
    *,
    seed: int,
    lora_rank: int,
    lora_alpha: float,
    device,
    dtype: str = "auto",
):
    """Build the policy that ``name`` names for ``task``.

    Args:
        name: ``"tabular"``, ``"tiny_lm"``, or ``"auto"`` (the tiny LM where the
            task ships a pretrained checkpoint, a table elsewhere).
        task: a ``flowrl_lab.tasks.Task``.
        seed: of the adapter's initial weights.
        lora_rank: r of the adapter.
        lora_alpha: its scale; the update is ``lora_alpha / lora_rank * B A``.
        device: where to put it.
        dtype: as ``ExperimentConfig.dtype``.

    Raises:
        ValueError: unknown name, a table for a task that is not exhaustive, or a
            dtype that the policy is not trained in.
    """
    if name == "auto":
        name = "tiny_lm" if task.eos_id is not None else "tabular"
    if name == "tabular":
        from flowrl_lab.policies.tabular import TabularPolicy

        if dtype not in ("auto", "float32"):
            raise ValueError(
                f"dtype is {dtype!r} for a table; expected 'auto' or 'float32'. Fix: "
                "use dtype='auto'."
            )
        return TabularPolicy(task, seed=seed).to(device)
    if name == "tiny_lm":
        from flowrl_lab.policies.tiny_lm import load_tiny_lm

        return load_tiny_lm(
            task,
            rank=lora_rank,
            alpha=lora_alpha,
            seed=seed,
            device=device,
            dtype=dtype,
        )
    close = difflib.get_close_matches(name, POLICIES, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"choose from {POLICIES}."
    raise ValueError(f"policy is {name!r}, which is not known. Fix: {hint}")

"""A batch in parts that fit into memory, with the very gradient of the whole.

A loss may mix all rows (GRPO's group, VarGrad's mean, REINFORCE++'s token mean), so it
cannot simply be summed over parts.  Three passes do it exactly, for any loss:

1. score all parts without a graph, which needs little memory;
2. compute the loss on the whole batch, and its gradient with respect to the scores;
3. score one part after the other again, this time with a graph, and send that part's
   gradient down.

Source: gradient caching (arXiv 2101.06983), applied to policy losses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from flowrl_lab.types import Completions, PolicyOutput, PromptBatch

__all__ = [
    "Part",
    "as_leaves",
    "backward_in_parts",
    "evaluate_in_parts",
    "sample_in_parts",
    "split_batch",
]


@dataclass(frozen=True)
class Part:
    """Some prompts with some of their completions each.

    Attributes:
        prompts: which prompts.
        copies: completions of each of them in this part.
        rows: which rows of the batch these are.
    """

    prompts: slice
    copies: int
    rows: slice


def split_batch(num_prompts: int, num_generations: int, rows: int) -> Iterator[Part]:
    """Cut P x G rows into parts of at most ``rows``, in order; 0 is one part.

    Whole groups stay together as long as one fits.
    """
    if rows <= 0 or rows >= num_prompts * num_generations:
        rows = num_prompts * num_generations
    whole = rows // num_generations
    if whole:
        for first in range(0, num_prompts, whole):
            last = min(first + whole, num_prompts)
            place = slice(first * num_generations, last * num_generations)
            yield Part(slice(first, last), num_generations, place)
        return
    for prompt in range(num_prompts):
        for first in range(0, num_generations, rows):
            copies = min(rows, num_generations - first)
            start = prompt * num_generations + first
            yield Part(slice(prompt, prompt + 1), copies, slice(start, start + copies))


def sample_in_parts(
    policy,
    prompts: PromptBatch,
    num_generations: int,
    *,
    rows: int,
    temperature: float,
    generator: torch.Generator,
) -> Completions:
    """``policy.sample``, at most ``rows`` completions at a time.

    Every completion is drawn from the same distribution as in one go, but other
    random numbers fall to it.
    """
    parts = list(split_batch(len(prompts), num_generations, rows))
    if len(parts) == 1:
        return policy.sample(
            prompts, num_generations, temperature=temperature, generator=generator
        )
    drawn = [
        policy.sample(
            prompts.part(part.prompts), part.copies, temperature=temperature,
            generator=generator,
        )
        for part in parts
    ]  # fmt: skip
    width = max(one.completion_ids.shape[1] for one in drawn)
    pads = (getattr(policy, "pad_id", 0), False, 0.0)
    columns = zip(
        *((d.completion_ids, d.completion_mask, d.log_probs) for d in drawn),
        strict=True,
    )
    return Completions(
        *(
            torch.cat([_widen(one, width, pad) for one in column])
            for column, pad in zip(columns, pads, strict=True)
        )
    )


def _widen(values: Tensor, width: int, pad) -> Tensor:
    return functional.pad(values, (0, width - values.shape[1]), value=pad)


def evaluate_in_parts(
    policy,
    prompts: PromptBatch,
    completion_ids: Tensor,
    completion_mask: Tensor,
    *,
    rows: int,
    temperature: float,
    reference: bool = False,
) -> PolicyOutput:
    """``policy.evaluate``, at most ``rows`` at a time; then without a graph."""
    settings = {"temperature": temperature, "reference": reference}
    num_generations = len(completion_ids) // len(prompts)
    parts = list(split_batch(len(prompts), num_generations, rows))
    if len(parts) == 1:
        return policy.evaluate(prompts, completion_ids, completion_mask, **settings)
    with torch.no_grad():
        outputs = [
            policy.evaluate(
                prompts.part(part.prompts), completion_ids[part.rows],
                completion_mask[part.rows], **settings,
            )
            for part in parts
        ]  # fmt: skip
    columns = zip(*((o.log_probs, o.entropies, o.states) for o in outputs), strict=True)
    return PolicyOutput(*map(torch.cat, columns))


def as_leaves(output: PolicyOutput) -> PolicyOutput:
    """The scores as the beginning of a graph of their own, for step 2."""
    floating = output.states.is_floating_point()
    return PolicyOutput(
        output.log_probs.detach().requires_grad_(),
        output.entropies.detach().requires_grad_(),
        output.states.detach().requires_grad_(floating),
    )


def backward_in_parts(
    policy,
    prompts: PromptBatch,
    completion_ids: Tensor,
    completion_mask: Tensor,
    leaves: PolicyOutput,
    *,
    rows: int,
    temperature: float,
) -> None:
    """Step 3: what ``leaves`` hold in ``.grad`` goes on to the policy's parameters."""
    pieces = (leaves.log_probs, leaves.entropies, leaves.states)
    num_generations = len(completion_ids) // len(prompts)
    for part in split_batch(len(prompts), num_generations, rows):
        output = policy.evaluate(
            prompts.part(part.prompts), completion_ids[part.rows],
            completion_mask[part.rows], temperature=temperature,
        )  # fmt: skip
        fresh = (output.log_probs, output.entropies, output.states)
        wanted = [
            (new, old.grad[part.rows])
            for new, old in zip(fresh, pieces, strict=True)
            if old.grad is not None and new.requires_grad
        ]
        torch.autograd.backward(*map(list, zip(*wanted, strict=True)))

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
from torch.autograd.function import once_differentiable
from torch.nn import functional

from flowrl_lab.types import Completions, PolicyOutput, PromptBatch

__all__ = [
    "InParts",
    "Part",
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
            prompts.part(part.prompts),
            part.copies,
            temperature=temperature,
            generator=generator,
        )
        for part in parts
    ]
    width = max(one.completion_ids.shape[1] for one in drawn)
    pads = (policy.pad_id, False, 0.0)
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
                prompts.part(part.prompts),
                completion_ids[part.rows],
                completion_mask[part.rows],
                **settings,
            )
            for part in parts
        ]
    columns = zip(*((o.log_probs, o.entropies, o.states) for o in outputs), strict=True)
    return PolicyOutput(*map(torch.cat, columns))


class InParts:
    """A policy that is asked for at most ``rows`` completions at a time.

    Whoever trains it writes ``loss.backward()`` as ever: the gradient is exact,
    whatever the loss.  With a ``scale`` the gradient passes through the policy's
    half-precision layers that many times as large, and is divided again below them.

    Args:
        policy: what does the work; everything else is asked of it.
        rows: completions in one pass at most; 0 is all of them.
        scale: 1 leaves gradients as they are.
    """

    def __init__(self, policy, rows: int = 0, scale: float = 1.0):
        self._policy, self.rows, self.scale = policy, rows, scale

    def __getattr__(self, name: str):
        return getattr(self._policy, name)

    def sample(self, prompts: PromptBatch, num_generations: int, **settings):
        """``Policy.sample``, in parts; see ``sample_in_parts``."""
        return sample_in_parts(
            self._policy, prompts, num_generations, rows=self.rows, **settings
        )

    def evaluate(
        self,
        prompts: PromptBatch,
        completion_ids: Tensor,
        completion_mask: Tensor,
        *,
        temperature: float = 1.0,
        reference: bool = False,
    ) -> PolicyOutput:
        """``Policy.evaluate``, in parts."""
        given = (prompts, completion_ids, completion_mask)
        parted = 0 < self.rows < len(completion_ids)
        learns = torch.is_grad_enabled() and not reference
        if not learns or not (parted or self.scale != 1):
            return evaluate_in_parts(
                self._policy,
                *given,
                rows=self.rows,
                temperature=temperature,
                reference=reference,
            )
        weights = self._policy.trainable_parameters()
        scores = _ScoresInParts.apply(self, given, temperature, *weights)
        return PolicyOutput(*scores)

    def _scored_again(
        self, prompts: PromptBatch, ids: Tensor, mask: Tensor, temperature: float
    ) -> Iterator[tuple[slice, PolicyOutput]]:
        """One part after the other, this time with a graph."""
        num_generations = len(ids) // len(prompts)
        for part in split_batch(len(prompts), num_generations, self.rows):
            with torch.enable_grad():
                output = self._policy.evaluate(
                    prompts.part(part.prompts),
                    ids[part.rows],
                    mask[part.rows],
                    temperature=temperature,
                )
            yield part.rows, output


class _ScoresInParts(torch.autograd.Function):
    """``evaluate`` as a function of the weights; its backward pass goes in parts."""

    @staticmethod
    def forward(ctx, owner: InParts, given: tuple, temperature: float, *weights):
        ctx.owner, ctx.given, ctx.temperature = owner, given, temperature
        ctx.whole = None
        settings = {"temperature": temperature}
        if 0 < owner.rows < len(given[1]):
            output = evaluate_in_parts(
                owner._policy, *given, rows=owner.rows, **settings
            )
        else:  # nothing to save by a second pass: keep the graph of this one
            with torch.enable_grad():
                ctx.whole = output = owner._policy.evaluate(*given, **settings)
        ctx.weights = weights
        ctx.set_materialize_grads(False)  # None: nobody asked
        scores = tuple(part.detach() for part in _scores(output))
        if not scores[2].is_floating_point():
            ctx.mark_non_differentiable(scores[2])
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx, *wanted):
        owner, (prompts, ids, mask) = ctx.owner, ctx.given
        if ctx.whole is not None:
            outputs = [(slice(None), ctx.whole)]
        else:
            outputs = owner._scored_again(prompts, ids, mask, ctx.temperature)
        total: list = [None] * len(ctx.weights)
        for rows, output in outputs:
            found = _gradients(output, wanted, rows, ctx.weights, owner.scale)
            total = [_plus(one, other) for one, other in zip(total, found, strict=True)]
        return None, None, None, *(g if g is None else g / owner.scale for g in total)


def _scores(output: PolicyOutput) -> tuple[Tensor, Tensor, Tensor]:
    return output.log_probs, output.entropies, output.states


def _gradients(output: PolicyOutput, wanted, rows: slice, weights, scale: float):
    """Of the weights, from those of some rows' scores."""
    pairs = [
        (new, scale * asked[rows])
        for new, asked in zip(_scores(output), wanted, strict=True)
        if asked is not None and new.requires_grad
    ]
    if not pairs:
        return [None] * len(weights)
    scores, gradients = zip(*pairs, strict=True)
    return torch.autograd.grad(scores, weights, gradients, allow_unused=True)


def _plus(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other

"""States of trees that autograd can go back through, to the adapter."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flowrl_lab.policies.fast.llama import Tape, TreeLlama, in_order
from flowrl_lab.policies.fast.passes import Weights
from flowrl_lab.policies.fast.prefix_tree import PrefixTree
from flowrl_lab.policies.fast.workers import run_together

__all__ = ["Grove", "differentiable_states"]


@dataclass
class Grove:
    """Some of a batch's prompts: their tree, and its activations.

    Attributes:
        tree: all nodes.
        tape: of a pass over them.
        states: what the pass returned.
    """

    tree: PrefixTree
    tape: Tape | None = None
    states: Tensor | None = None


def differentiable_states(
    model: TreeLlama, groves: list[Grove], weights: Weights
) -> Tensor:
    """The groves' states ``[N, H]``, with gradients to the model's adapter.

    Args:
        model: whose parameters get the gradients.
        groves: all prompts of the batch; each is one worker's job.
        weights: the adapted weights that the tapes were computed with.
    """
    return _TreeStates.apply(model, groves, weights, *model.parameters())


class _TreeStates(torch.autograd.Function):
    """Forward: what the tapes hold.  Backward: layer by layer, by hand."""

    @staticmethod
    def forward(ctx, model, groves, weights, *_parameters):
        ctx.model, ctx.groves, ctx.weights = model, groves, weights
        ctx.uses = [grove.tape.uses for grove in groves]
        return torch.cat([grove.states for grove in groves])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_states):
        model, groves = ctx.model, ctx.groves
        now = model.version()
        if any(grove.tape.version != now for grove in groves):
            raise RuntimeError(
                "the adapter was changed after these log-probs were computed, so "
                "their gradient is no longer defined. Fix: call backward() before "
                "the optimiser's step, or evaluate again."
            )
        if [grove.tape.uses for grove in groves] != ctx.uses:
            raise RuntimeError(
                "the activations of these log-probs are gone: the policy has sampled "
                "again since. Fix: call backward() before the next sample(), or "
                "evaluate again."
            )
        parts = grad_states.split([len(grove.tree) for grove in groves])
        adapters = model.adapter_tables()
        walks = [
            partial(
                model.gradients,
                part,
                grove.tree.nodes,
                ctx.weights,
                grove.tape,
                adapters,
            )
            for grove, part in zip(groves, parts, strict=True)
        ]
        first, *others = run_together(walks)
        for other in others:  # in a fixed order
            for table, more in zip(first, other, strict=True):
                table += more
        return None, None, None, *in_order(first)

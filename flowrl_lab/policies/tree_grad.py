"""The backward pass of ``TreeLlama``, written out: only the adapter learns.

Autograd would need a forward pass of its own, and would form the gradient of every
full weight only to multiply it down to the adapter's rank.  Here the activations on
a ``Tape`` serve (those of sampling, for the first update), and a linear layer
``y = x (W + s·B·A)ᵀ`` gets the gradients of its adapter directly:

    dB = s · dyᵀ (x Aᵀ),   dA = s · (dy B)ᵀ x,   dx = dy (W + s·B·A)

The tests compare every gradient with the Hugging Face model's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flowrl_lab.policies.prefix_tree import PrefixTree
from flowrl_lab.policies.torchscript import without_lock
from flowrl_lab.policies.tree_attention import TreeGrid
from flowrl_lab.policies.tree_layers import (
    LayerWeights,
    mlp_gradient,
    rotate_,
    rotation,
    times,
)
from flowrl_lab.policies.tree_llama import Adapter, Tape, TreeLlama
from flowrl_lab.policies.workers import run_together

__all__ = ["Grove", "differentiable_states"]

Gradients = dict[str, tuple[Tensor, Tensor]]  # adapter name -> (dA, dB)


@dataclass
class Grove:
    """Some of a batch's prompts: their tree, and its activations.

    Attributes:
        tree: all nodes.
        grid: of the same nodes.
        tape: of a pass over them, in the order of the tree.
    """

    tree: PrefixTree
    grid: TreeGrid
    tape: Tape | None = None


def differentiable_states(
    model: TreeLlama, groves: list[Grove], weights: list[LayerWeights]
) -> Tensor:
    """The tapes' states ``[N, H]``, with gradients to the model's adapter.

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
        states = [grove.tape.states for grove in groves]
        # autograd then refuses if the next rollout has written over the tapes
        ctx.save_for_backward(*states)
        return torch.cat(states)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_states):
        model, groves, states = ctx.model, ctx.groves, ctx.saved_tensors
        if any(model.versions() != grove.tape.versions for grove in groves):
            raise RuntimeError(
                "the adapter was changed after these log-probs were computed, so "
                "their gradient is no longer defined. Fix: call backward() before "
                "the optimiser's step, or evaluate again."
            )
        walks = [
            partial(_Backward(model, grove, ctx.weights).run, upstream)
            for grove, upstream in zip(
                groves, grad_states.split([len(s) for s in states]), strict=True
            )
        ]
        gradients = [_add_up(parts) for parts in zip(*run_together(walks), strict=True)]
        flat = [
            matrix
            for layer, adapters in zip(gradients, model.adapters, strict=True)
            for name in adapters
            for matrix in layer[name]
        ]
        return None, None, None, *flat


class _Backward:
    """One walk from the last layer down to the first."""

    def __init__(self, model: TreeLlama, grove: Grove, weights: list[LayerWeights]):
        self.model, self.weights = model, weights
        self.tape, self.grid = grove.tape, grove.grid
        gate_up, mixed = self.tape.layers[0].gate_up, self.tape.layers[0].mixed
        self.active = gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
        self.grad_both, self.inner = map(torch.empty_like, (gate_up, mixed))
        self.turn_back = rotation(grove.tree.level.positions, model.frame).conj()

    def run(self, grad_states: Tensor) -> list[Gradients]:
        """Gradients of each layer's adapter."""
        weight = self.model.frame.norm
        # states = normed * weight; the norm's weight is frozen
        normed = self.tape.states / weight
        grad = _norm_gradient(grad_states * weight, normed, self.tape.final_scale)
        found: list[Gradients] = [{} for _ in self.weights]
        for number in reversed(range(len(self.weights))):
            self._through_mlp(number, grad, found[number])
            self._through_attention(number, grad, found[number])
        return found

    def _through_mlp(self, number: int, grad: Tensor, found: Gradients) -> None:
        """``h + down(silu(gate) * up)``; ``grad`` is of h, changed in place."""
        tape, weight = self.tape.layers[number], self.weights[number]
        adapters = self.model.adapters[number]
        into = self.active, self.grad_both, self.inner
        without_lock(mlp_gradient)(tape.gate_up, grad, weight, list(into))
        if "down" in adapters:
            found["down"] = _adapter_gradient(adapters["down"], self.active, grad)
        _, norm_weight = self.model.norm_weights(number)
        parts = zip(("gate", "up"), self.grad_both.chunk(2, -1), strict=True)
        self._shared_input(number, parts, tape.normed_2, norm_weight, found)
        grad.add_(_norm_gradient(self.inner, tape.normed_2, tape.scale_2))

    def _through_attention(self, number: int, grad: Tensor, found: Gradients) -> None:
        """``h + out(attend(qkv))``; the embedding below layer 0 needs nothing."""
        tape, weight = self.tape.layers[number], self.weights[number]
        adapters = self.model.adapters[number]
        if "o" in adapters:
            found["o"] = _adapter_gradient(adapters["o"], tape.mixed, grad)
        upstream = times(grad, weight.out, True).to(grad.dtype)
        total = (upstream * tape.mixed).view(len(grad), self.model.heads, -1).sum(-1)
        put = self.grid.put
        grad_qkv = self.grid.gradient(put(tape.qkv), put(upstream), put(total))
        grad_qkv = rotate_(self.grid.take(grad_qkv), self.turn_back, self.model.heads)
        norm_weight, _ = self.model.norm_weights(number)
        parts = zip(("q", "k", "v"), grad_qkv.chunk(3, -1), strict=True)
        self._shared_input(number, parts, tape.normed_1, norm_weight, found)
        if number > 0:
            inner = times(grad_qkv, weight.qkv, True).to(grad.dtype)
            grad.add_(_norm_gradient(inner, tape.normed_1, tape.scale_1))

    def _shared_input(self, number, parts, normed, norm_weight, found) -> None:
        """Adapters that read the same normalised rows; the norm's weight is theirs.

        Their narrow products with the rows are done as one.
        """
        adapters = self.model.adapters[number]
        mine = [(name, grad) for name, grad in parts if name in adapters]
        if not mine:
            return
        sizes = [len(adapters[name].low) for name, _ in mine]
        low = torch.cat([adapters[name].low for name, _ in mine]) * norm_weight
        narrow, back, highs = (normed @ low.T).split(sizes, dim=1), [], []
        for (name, grad), rows in zip(mine, narrow, strict=True):
            adapter, turned = adapters[name], name in ("q", "k")
            high = self.model.interleave(adapter.high) if turned else adapter.high
            back.append((grad @ high).mul_(adapter.scaling))
            grad_high = (grad.T @ rows).mul_(adapter.scaling)
            highs.append(self.model.deinterleave(grad_high) if turned else grad_high)
        lows = ((torch.cat(back, dim=1).T @ normed) * norm_weight).split(sizes)
        for (name, _), grad_low, grad_high in zip(mine, lows, highs, strict=True):
            found[name] = grad_low, grad_high


def _add_up(parts: tuple[Gradients, ...]) -> Gradients:
    """The groves' gradients of one layer's adapter, in a fixed order."""
    first, *others = parts
    for other in others:
        for name, (low, high) in other.items():
            first[name][0].add_(low)
            first[name][1].add_(high)
    return first


def _adapter_gradient(
    adapter: Adapter, rows: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """(dA, dB) of ``y = x (W + s·B·A)ᵀ`` from x ``[N, in]`` and dy ``[N, out]``."""
    grad_low = (grad @ adapter.high).T @ rows
    grad_high = grad.T @ (rows @ adapter.low.T)
    return grad_low * adapter.scaling, grad_high * adapter.scaling


def _norm_gradient(grad: Tensor, normed: Tensor, scale: Tensor) -> Tensor:
    """Gradient of h where ``normed = h / rms(h)`` and ``scale = 1 / rms(h)``."""
    along = (grad * normed).mean(-1, keepdim=True)
    return torch.addcmul(grad, normed, along, value=-1) * scale.to(grad.dtype)

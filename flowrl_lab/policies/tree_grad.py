"""The backward pass of ``TreeLlama``, written out: only the adapter learns.

Autograd would need a forward pass of its own, and would form the gradient of every
full weight only to multiply it down to the adapter's rank.  Here the activations on
a ``Tape`` serve (those of sampling, for the first update), and a linear layer
``y = x (W + s·B·A)ᵀ`` gets the gradients of its adapter directly:

    dB = s · dyᵀ (x Aᵀ),   dA = s · (dy B)ᵀ x,   dx = dy (W + s·B·A)

The tests compare every gradient with the Hugging Face model's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flowrl_lab.policies.prefix_tree import Level
from flowrl_lab.policies.tree_llama import Adapter, Grid, LayerWeights, Tape, TreeLlama

__all__ = ["differentiable_states"]

Gradients = dict[str, tuple[Tensor, Tensor]]  # adapter name -> (dA, dB)


def differentiable_states(
    model: TreeLlama, level: Level, weights: list[LayerWeights], tape: Tape
) -> Tensor:
    """The tape's states ``[N, H]``, with gradients to the model's adapter.

    Args:
        model: whose parameters get the gradients.
        level: all nodes of a tree.
        weights: the adapted weights that the tape was computed with.
        tape: of a pass over ``level``.
    """
    return _TreeStates.apply(model, level, weights, tape, *model.parameters())


class _TreeStates(torch.autograd.Function):
    """Forward: what the tape holds.  Backward: layer by layer, by hand."""

    @staticmethod
    def forward(ctx, model, level, weights, tape, *_parameters):
        ctx.model, ctx.level, ctx.weights, ctx.tape = model, level, weights, tape
        return tape.states.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_states):
        model, tape = ctx.model, ctx.tape
        if model.versions() != tape.versions:
            raise RuntimeError(
                "the adapter was changed after these log-probs were computed, so "
                "their gradient is no longer defined. Fix: call backward() before "
                "the optimiser's step, or evaluate again."
            )
        walk = _Backward(model, ctx.level, ctx.weights, tape)
        gradients = walk.run(grad_states)
        flat = [
            matrix
            for layer, adapters in zip(gradients, model.adapters, strict=True)
            for name in adapters
            for matrix in layer[name]
        ]
        return None, None, None, None, *flat


class _Backward:
    """One walk from the last layer down to the first."""

    def __init__(
        self, model: TreeLlama, level: Level, weights: list[LayerWeights], tape: Tape
    ):
        self.model, self.weights, self.tape = model, weights, tape
        self.grid = Grid(level, model.heads, tape.states.dtype)
        self.turn_back = model.rotation(level.positions).conj()

    def run(self, grad_states: Tensor) -> list[Gradients]:
        """Gradients of each layer's adapter."""
        weight = self.model.final_norm_weight
        # states = normed * weight; the norm's weight is frozen
        normed = self.tape.states / weight
        grad = _norm_gradient(grad_states * weight, normed, self.tape.final_scale)
        gradients = []
        for number in reversed(range(len(self.weights))):
            found: Gradients = {}
            grad = self._through_mlp(number, grad, found)
            grad = self._through_attention(number, grad, found)
            gradients.append(found)
        return gradients[::-1]

    def _through_mlp(self, number: int, grad: Tensor, found: Gradients) -> Tensor:
        """``h + down(silu(gate) * up)``: the gradient of its input ``[N, H]``."""
        tape, weight = self.tape.layers[number], self.weights[number]
        adapters = self.model.adapters[number]
        gate, up = tape.gate_up.chunk(2, -1)
        slope = torch.sigmoid(gate)
        silu = gate * slope
        if "down" in adapters:
            found["down"] = _adapter_gradient(adapters["down"], silu * up, grad)
        grad_active = grad @ weight.down
        # d silu / d gate = sigmoid + silu (1 - sigmoid)
        slope = slope.addcmul_(silu, 1 - slope).mul_(up).mul_(grad_active)
        grad_both = torch.cat([slope, grad_active.mul_(silu)], dim=-1)
        _, norm_weight = self.model.norm_weights(number)
        parts = zip(("gate", "up"), grad_both.chunk(2, -1), strict=True)
        self._shared_input(number, parts, tape.normed_2, norm_weight, found)
        inner = _norm_gradient(grad_both @ weight.gate_up, tape.normed_2, tape.scale_2)
        return grad + inner

    def _through_attention(self, number: int, grad: Tensor, found: Gradients):
        """``h + out(attention(h))``; the embedding below layer 0 needs nothing."""
        tape, weight = self.tape.layers[number], self.weights[number]
        adapters = self.model.adapters[number]
        if "o" in adapters:
            found["o"] = _adapter_gradient(adapters["o"], tape.mixed, grad)
        grad_qkv = self._attention_gradient(tape.qkv, tape.mixed, grad @ weight.out)
        norm_weight, _ = self.model.norm_weights(number)
        parts = zip(("q", "k", "v"), grad_qkv.chunk(3, -1), strict=True)
        self._shared_input(number, parts, tape.normed_1, norm_weight, found)
        if number == 0:
            return grad
        inner = _norm_gradient(grad_qkv @ weight.qkv, tape.normed_1, tape.scale_1)
        return grad + inner

    def _shared_input(self, number, parts, normed, norm_weight, found) -> None:
        """Adapters that read the same normalised rows; the norm's weight is theirs."""
        for name, grad in parts:
            adapter = self.model.adapters[number].get(name)
            if adapter is None:
                continue
            inside = Adapter(adapter.low * norm_weight, adapter.high, adapter.scaling)
            if name in ("q", "k"):
                inside = Adapter(
                    inside.low, self.model.interleave(adapter.high), adapter.scaling
                )
            grad_low, grad_high = _adapter_gradient(inside, normed, grad)
            if name in ("q", "k"):
                grad_high = self.model.deinterleave(grad_high)
            found[name] = grad_low * norm_weight, grad_high

    def _attention_gradient(self, qkv: Tensor, mixed: Tensor, grad: Tensor) -> Tensor:
        """Gradient of the unturned q, k, v ``[N, 3H]``; attention is done again."""
        grid, factor = self.grid, 1 / math.sqrt(self.model.head_size)
        query, key, value = (part.flatten(0, 1) for part in grid.spread(qkv, 3))
        (upstream,) = (part.flatten(0, 1) for part in grid.spread(grad, 1))
        (result,) = (part.flatten(0, 1) for part in grid.spread(mixed, 1))
        bias = grid.bias.expand(-1, grid.heads, -1, -1).flatten(0, 1)
        scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=factor)
        probs = scores.softmax(-1)
        grad_value = torch.bmm(probs.transpose(1, 2), upstream)
        total = (upstream * result).sum(-1, keepdim=True)
        grad_scores = torch.bmm(upstream, value.transpose(1, 2))
        grad_scores = grad_scores.sub_(total).mul_(probs).mul_(factor)
        grad_query = torch.bmm(grad_scores, key)
        grad_key = torch.bmm(grad_scores.transpose(1, 2), query)
        shape = (grid.prompts, grid.heads, grid.used, -1)
        grads = [g.view(shape) for g in (grad_query, grad_key, grad_value)]
        return self.model.rotate_(grid.collect(grads), self.turn_back)


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

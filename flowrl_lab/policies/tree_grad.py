"""The backward pass of ``TreeLlama``, written out: only the adapter learns.

Autograd would need a forward pass of its own, and would form the gradient of every
full weight only to multiply it down to the adapter's rank.  Here the activations on
a ``Tape`` serve (those of sampling, for the first update), and a linear layer
``y = x (W + s·B·A)ᵀ`` gets the gradients of its adapter directly:

    dB = s · dyᵀ (x Aᵀ),   dA = s · (dy B)ᵀ x,   dx = dy (W + s·B·A)

The tests compare every gradient with the Hugging Face model's.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flowrl_lab.policies.prefix_tree import Level
from flowrl_lab.policies.tree_llama import Adapter, LayerWeights, Tape, TreeLlama
from flowrl_lab.policies.workers import run_together, share

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
        # autograd then refuses if the next rollout has written over the tape
        ctx.save_for_backward(tape.states)
        return tape.states.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_states):
        model, tape, _ = ctx.model, ctx.tape, ctx.saved_tensors
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
    """One walk from the last layer down to the first.

    As in the forward pass the workers share the rows, and in attention the prompts.
    Each adds up the gradients of its rows; at the end they are added together.
    """

    def __init__(
        self, model: TreeLlama, level: Level, weights: list[LayerWeights], tape: Tape
    ):
        self.model, self.weights, self.tape = model, weights, tape
        self.turn_back = model.rotation(level.positions).conj()
        self.grid = grid = model.tree_grid(level)
        hidden = model.heads * model.head_size
        self.qkv, self.grad_qkv = grid.new_table(3 * hidden), grid.new_table(3 * hidden)
        self.upstream, self.total = grid.new_table(hidden), grid.new_table(model.heads)
        self.grad: Tensor | None = None  # of the hidden states, [N, H]

    def run(self, grad_states: Tensor) -> list[Gradients]:
        """Gradients of each layer's adapter."""
        weight = self.model.final_norm_weight
        # states = normed * weight; the norm's weight is frozen
        normed = self.tape.states / weight
        self.grad = _norm_gradient(grad_states * weight, normed, self.tape.final_scale)
        spans, layers = share(len(normed)), len(self.weights)
        found: list[list[Gradients]] = [[{} for _ in self.weights] for _ in spans]

        def go_down(number: int, worker: int) -> None:
            rows, mine = spans[worker], found[worker]
            if number + 1 < layers:
                self._out_of_attention(number + 1, rows, mine[number + 1])
            if number >= 0:
                self._through_mlp(number, rows, mine[number])
                self._into_attention(number, rows, mine[number])

        for number in range(layers - 1, -2, -1):
            run_together([partial(go_down, number, w) for w in range(len(spans))])
            if number >= 0:
                self.grid.gradient(self.qkv, self.upstream, self.total, self.grad_qkv)
        return [_add_up(parts) for parts in zip(*found, strict=True)]

    def _through_mlp(self, number: int, rows: slice, found: Gradients) -> None:
        """``h + down(silu(gate) * up)``."""
        tape, weight = self.tape.layers[number].part(rows), self.weights[number]
        grad, adapters = self.grad[rows], self.model.adapters[number]
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
        inner = grad_both @ weight.gate_up
        grad.add_(_norm_gradient(inner, tape.normed_2, tape.scale_2))

    def _into_attention(self, number: int, rows: slice, found: Gradients) -> None:
        """``h + out(mixed)``: what ``grid.gradient`` reads is put on its tables."""
        tape, weight = self.tape.layers[number].part(rows), self.weights[number]
        grad, adapters = self.grad[rows], self.model.adapters[number]
        if "o" in adapters:
            found["o"] = _adapter_gradient(adapters["o"], tape.mixed, grad)
        upstream = grad @ weight.out
        heads = (upstream * tape.mixed).view(len(grad), self.model.heads, -1)
        self.grid.put(self.qkv, rows, tape.qkv)
        self.grid.put(self.upstream, rows, upstream)
        self.grid.put(self.total, rows, heads.sum(-1))

    def _out_of_attention(self, number: int, rows: slice, found: Gradients) -> None:
        """``q, k, v`` of the normed states; the embedding below needs nothing."""
        tape, weight = self.tape.layers[number].part(rows), self.weights[number]
        grad_qkv = self.grid.take(self.grad_qkv, rows)
        self.model.rotate_(grad_qkv, self.turn_back[rows])
        norm_weight, _ = self.model.norm_weights(number)
        parts = zip(("q", "k", "v"), grad_qkv.chunk(3, -1), strict=True)
        self._shared_input(number, parts, tape.normed_1, norm_weight, found)
        if number > 0:
            inner = grad_qkv @ weight.qkv
            self.grad[rows].add_(_norm_gradient(inner, tape.normed_1, tape.scale_1))

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
    """The workers' gradients of one layer's adapter, in a fixed order."""
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

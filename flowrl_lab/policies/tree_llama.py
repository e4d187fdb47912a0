"""A Llama forward pass over a tree of prefixes, with its LoRA adapter merged.

The same numbers as the Hugging Face model (the tests compare values and
gradients), for small models on a CPU, where its many small operations and the
repeated tokens cost more than the arithmetic:

* every distinct prefix goes through the layers once (``prefix_tree``);
* ``W + s·B·A`` is formed once a pass, with the norm's weight inside, and q, k, v
  (and gate, up) are one product each;
* nothing here is differentiated by autograd: ``Tape`` keeps what ``tree_grad``
  needs for the backward pass, so that the activations of sampling serve the first
  update, too;
* where the processor multiplies bfloat16 natively, the layers' products may be in it
  (``narrow``); sums, norms, attention and the adapter's own gradients stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from flowrl_lab.policies.prefix_tree import Level
from flowrl_lab.policies.torchscript import without_lock
from flowrl_lab.policies.tree_attention import TreeGrid
from flowrl_lab.policies.tree_layers import (
    Frame,
    LayerTape,
    LayerWeights,
    run_level,
    run_tree,
)

__all__ = ["Adapter", "Tape", "TreeLlama"]


@dataclass(frozen=True)
class Adapter:
    """LoRA on one linear layer: ``scaling · B · A`` is added to its weight."""

    low: Tensor  # A [r, in]
    high: Tensor  # B [out, r]
    scaling: float


@dataclass
class Tape:
    """Activations of the nodes of a tree, in their order, level after level.

    Attributes:
        layers: one entry for each layer.
        states: final normalised states, ``[N, H]``.
        final_scale: what the last norm multiplied with, ``[N, 1]``.
        length: nodes so far; the tensors may have room for more.
        versions: of the adapter's parameters, when this was computed.
    """

    layers: list[LayerTape]
    states: Tensor
    final_scale: Tensor
    length: int = 0
    versions: tuple[tuple[int, int], ...] = ()

    @property
    def room(self) -> int:
        """How many nodes it can hold."""
        return len(self.states)

    def rows(self, start: int, stop: int) -> Tape:
        """A part of it, as views."""
        layers = [LayerTape(*(t[start:stop] for t in layer)) for layer in self.layers]
        states, scale = self.states[start:stop], self.final_scale[start:stop]
        return Tape(layers, states, scale, stop - start, self.versions)


class TreeLlama:
    """Runs the layers of a ``LlamaForCausalLM`` (bare or peft-wrapped) on levels.

    It holds no weights of its own: it reads the model's, so training the model's
    adapter changes what it computes.

    Attributes:
        narrow: dtype of the layers' products; None is that of the model.
    """

    def __init__(self, model):
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._model, self._body, config = base, base.model, base.config
        self.heads = config.num_attention_heads
        self.head_size = config.hidden_size // self.heads
        self.adapters = [_find_adapters(layer) for layer in self._body.layers]
        self.narrow: torch.dtype | None = None
        self._references: dict[torch.dtype | None, list[LayerWeights]] = {}

    @staticmethod
    def supports(model) -> bool:
        """Whether the model is of the plain shape that this pass is written for."""
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        config = base.config
        if config.model_type != "llama" or config.attention_bias or config.mlp_bias:
            return False
        rope = getattr(config, "rope_parameters", None) or {}
        return (
            config.num_key_value_heads == config.num_attention_heads
            and rope.get("rope_type", "default") == "default"
            and config.hidden_act == "silu"
        )

    def parameters(self) -> list[Tensor]:
        """The adapter's A and B of every layer, in a fixed order."""
        return [
            matrix
            for layer in self.adapters
            for adapter in layer.values()
            for matrix in (adapter.low, adapter.high)
        ]

    def versions(self) -> tuple[tuple[int, int], ...]:
        """Changes whenever the adapter does: in place (torch counts), or replaced;
        and with the products' dtype."""
        own = ((m._version, m.data_ptr()) for m in self.parameters())
        return (*own, (int(self.narrow is not None), 0))

    @torch.no_grad()
    def weights(self, *, reference: bool = False) -> list[LayerWeights]:
        """Fused weights of every layer; the reference's are made once and kept."""
        if not reference:
            return self._fuse(adapted=True)
        if self.narrow not in self._references:
            self._references[self.narrow] = self._fuse(adapted=False)
        return self._references[self.narrow]

    def _fuse(self, adapted: bool) -> list[LayerWeights]:
        fused = []
        for layer, adapters in zip(self._body.layers, self.adapters, strict=True):
            attention, mlp = layer.self_attn, layer.mlp

            def merged(linear, name, adapters=adapters):
                base = getattr(linear, "base_layer", linear).weight
                if not adapted or name not in adapters:
                    return base
                a = adapters[name]
                return torch.addmm(base, a.high, a.low, alpha=a.scaling)

            query, key = (
                self.interleave(merged(getattr(attention, f"{n}_proj"), n))
                for n in ("q", "k")
            )
            value = merged(attention.v_proj, "v")
            gate_up = [merged(getattr(mlp, f"{n}_proj"), n) for n in ("gate", "up")]
            wide = LayerWeights(
                torch.cat([query, key, value]) * layer.input_layernorm.weight,
                merged(attention.o_proj, "o").contiguous(),
                torch.cat(gate_up) * layer.post_attention_layernorm.weight,
                merged(mlp.down_proj, "down").contiguous(),
            )
            dtype = self.narrow or wide.qkv.dtype
            fused.append(LayerWeights(*(weight.to(dtype) for weight in wide)))
        return fused

    def norm_weights(self, layer: int) -> tuple[Tensor, Tensor]:
        """The weights of a layer's two norms."""
        block = self._body.layers[layer]
        return block.input_layernorm.weight, block.post_attention_layernorm.weight

    @property
    def frame(self) -> Frame:
        """What surrounds the layers; the weights are the model's own."""
        return Frame(
            self._body.embed_tokens.weight,
            self._body.rotary_emb.inv_freq,
            self._body.norm.weight,
            self.heads,
            self._model.config.rms_norm_eps,
        )

    def count_cache_rows(self, prompts: int, slots: int, width: int) -> int:
        """Rows ``[head size]`` of a cache: keys, values, and the queries of a level.

        Args:
            prompts: P.
            slots: L, places for the nodes of each prompt.
            width: the most nodes of one prompt in one level.
        """
        return prompts * self.heads * (2 * slots + width)

    def new_cache(self, rows: int) -> list[Tensor]:
        """Room for each layer's keys and values."""
        weight = self._body.embed_tokens.weight
        return [weight.new_zeros(rows, self.head_size) for _ in self._body.layers]

    def new_tape(self, room: int, layers: int | None = None) -> Tape:
        """An empty tape for up to ``room`` nodes, computed with today's adapter."""
        like = self._body.embed_tokens.weight
        hidden, inner = like.shape[1], self._model.config.intermediate_size
        wide = (hidden, 1, 3 * hidden, hidden, hidden, 1, 2 * inner)

        def empty(columns: int) -> Tensor:
            dtype = torch.float32 if columns == 1 else like.dtype
            return torch.empty(room, columns, dtype=dtype, device=like.device)

        count = len(self._body.layers) if layers is None else layers
        tapes = [LayerTape(*map(empty, wide)) for _ in range(count)]
        return Tape(tapes, empty(hidden), empty(1), versions=self.versions())

    @torch.no_grad()
    def level_states(
        self, level: Level, weights: list[LayerWeights], cache: list[Tensor], tape: Tape
    ) -> Tensor:
        """Final (normalised) hidden states of the next level's nodes, ``[N, H]``.

        Args:
            level: the nodes; their ancestors have been here before.
            weights: as ``weights()`` gives them.
            cache: of ``new_cache``; gets this level's keys and values.
            tape: gets what the backward pass needs, after what it holds already.
        """
        first, ends = tape.length, (tape.states, tape.final_scale)
        tape.length += len(level.tokens)
        run = without_lock(run_level)
        return run(level, self.frame, weights, cache, tape.layers, ends, first)

    @torch.no_grad()
    def tree_states(
        self, grid: TreeGrid, weights: list[LayerWeights], tape: Tape | None = None
    ) -> Tensor:
        """Final hidden states of all nodes of a tree, ``[N, H]``, prompt after prompt.

        Args:
            grid: of the tree.
            weights: as ``weights()`` gives them.
            tape: an empty one, for a sorted tree; gets what the backward pass needs.
        """
        level, layers = grid.level, len(weights)
        if tape is None:  # all layers write to the same few tensors
            tape = self.new_tape(len(level.tokens), layers=1)
            tape.layers *= layers
        tape.length, ends = len(level.tokens), (tape.states, tape.final_scale)
        run = without_lock(run_tree)
        return run(level, grid.biases, self.frame, weights, tape.layers, ends)

    def tree_grid(self, level: Level) -> TreeGrid:
        """Where the nodes of a whole tree stand; policy and reference share it."""
        return TreeGrid(level, self.heads, self._body.embed_tokens.weight.dtype)

    def logits(self, states: Tensor) -> Tensor:
        """Next-token logits of states."""
        return functional.linear(states, self._model.lm_head.weight)

    def interleave(self, weight: Tensor) -> Tensor:
        """Reorder a query or key weight: pair (i, i + size/2) becomes (2i, 2i + 1).

        Scores do not change when queries and keys are reordered alike.
        """
        halves = weight.view(self.heads, 2, self.head_size // 2, -1)
        return halves.transpose(1, 2).reshape(weight.shape)

    def deinterleave(self, weight: Tensor) -> Tensor:
        """Undo ``interleave``."""
        pairs = weight.view(self.heads, self.head_size // 2, 2, -1)
        return pairs.transpose(1, 2).reshape(weight.shape)


def _find_adapters(layer) -> dict[str, Adapter]:
    """The LoRA parts of one layer, by the short names of its linear layers."""
    linears = {n: getattr(layer.self_attn, f"{n}_proj") for n in ("q", "k", "v", "o")}
    linears |= {n: getattr(layer.mlp, f"{n}_proj") for n in ("gate", "up", "down")}
    found = {}
    for name, linear in linears.items():
        if hasattr(linear, "lora_A"):
            (key,) = linear.active_adapters
            low, high = linear.lora_A[key].weight, linear.lora_B[key].weight
            found[name] = Adapter(low, high, linear.scaling[key])
    return found

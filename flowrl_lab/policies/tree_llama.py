"""A Llama forward pass over a tree of prefixes, with its LoRA adapter merged.

The same numbers as the Hugging Face model (the tests compare values and
gradients), for small models on a CPU, where its many small operations and the
repeated tokens cost more than the arithmetic:

* every distinct prefix goes through the layers once (``prefix_tree``);
* ``W + s·B·A`` is formed once a pass, with the norm's weight inside, and q, k, v
  (and gate, up) are one product each;
* nothing here is differentiated by autograd: ``Tape`` keeps what ``tree_grad``
  needs for the backward pass, so that the activations of sampling serve the first
  update, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from flowrl_lab.policies.prefix_tree import Level

__all__ = ["Adapter", "LayerWeights", "Tape", "TreeLlama"]


@dataclass(frozen=True)
class Adapter:
    """LoRA on one linear layer: ``scaling · B · A`` is added to its weight."""

    low: Tensor  # A [r, in]
    high: Tensor  # B [out, r]
    scaling: float


@dataclass(frozen=True)
class LayerWeights:
    """The products of one layer, ``[out, in]``; norms are inside qkv and gate_up."""

    qkv: Tensor
    out: Tensor
    gate_up: Tensor
    down: Tensor


@dataclass
class LayerTape:
    """What the backward pass of one layer reads, a row for each node."""

    normed_1: Tensor  # [N, H] input of qkv, before the norm's weight
    scale_1: Tensor  # [N, 1] what it was multiplied with
    qkv: Tensor  # [N, 3H] turned by the rotary embedding
    mixed: Tensor  # [N, H] attention's result
    normed_2: Tensor
    scale_2: Tensor
    gate_up: Tensor  # [N, 2I]


@dataclass
class Tape:
    """Activations of all nodes of a tree, in their order, level after level.

    Attributes:
        layers: one entry for each layer.
        states: final normalised states, ``[N, H]``.
        final_scale: what the last norm multiplied with, ``[N, 1]``.
        versions: of the adapter's parameters, when this was computed.
    """

    layers: list[LayerTape] = field(default_factory=list)
    states: Tensor | None = None
    final_scale: Tensor | None = None
    versions: tuple[tuple[int, int], ...] = ()

    @staticmethod
    def join(parts: list[Tape]) -> Tape:
        """One tape of several levels."""
        if len(parts) == 1:
            return parts[0]
        layers = [
            LayerTape(*(torch.cat(pieces) for pieces in zip(*rows, strict=True)))
            for rows in zip(
                *([tuple(vars(layer).values()) for layer in p.layers] for p in parts),
                strict=True,
            )
        ]
        states = torch.cat([part.states for part in parts])
        scale = torch.cat([part.final_scale for part in parts])
        return Tape(layers, states, scale, parts[0].versions)


class TreeLlama:
    """Runs the layers of a ``LlamaForCausalLM`` (bare or peft-wrapped) on levels.

    It holds no weights of its own: it reads the model's, so training the model's
    adapter changes what it computes.
    """

    def __init__(self, model):
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._model, self._body, config = base, base.model, base.config
        self.heads = config.num_attention_heads
        self.head_size = config.hidden_size // self.heads
        self.adapters = [_find_adapters(layer) for layer in self._body.layers]
        self._reference: list[LayerWeights] | None = None

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
        """Changes whenever the adapter does: in place (torch counts), or replaced."""
        return tuple((m._version, m.data_ptr()) for m in self.parameters())

    @torch.no_grad()
    def weights(self, *, reference: bool = False) -> list[LayerWeights]:
        """Fused weights of every layer; the reference's are made once and kept."""
        if not reference:
            return self._fuse(adapted=True)
        if self._reference is None:
            self._reference = self._fuse(adapted=False)
        return self._reference

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
            fused.append(
                LayerWeights(
                    torch.cat([query, key, value]) * layer.input_layernorm.weight,
                    merged(attention.o_proj, "o").contiguous(),
                    torch.cat(gate_up) * layer.post_attention_layernorm.weight,
                    merged(mlp.down_proj, "down").contiguous(),
                )
            )
        return fused

    def norm_weights(self, layer: int) -> tuple[Tensor, Tensor]:
        """The weights of a layer's two norms."""
        block = self._body.layers[layer]
        return block.input_layernorm.weight, block.post_attention_layernorm.weight

    @property
    def final_norm_weight(self) -> Tensor:
        """The weight of the norm after the last layer."""
        return self._body.norm.weight

    def new_cache(self, prompts: int, slots: int) -> list[Tensor]:
        """Room for the keys and values of every slot, for each layer."""
        weight = self._body.embed_tokens.weight
        shape = (prompts * slots, 2 * self.heads * self.head_size)
        return [weight.new_zeros(shape) for _ in self._body.layers]

    @torch.no_grad()
    def states(
        self,
        level: Level,
        weights: list[LayerWeights],
        cache: list[Tensor] | None = None,
        tape: Tape | None = None,
    ) -> Tensor:
        """Final (normalised) hidden states of a level's nodes, ``[N, H]``.

        Args:
            level: the nodes; without a cache, all of their ancestors are in it.
            weights: as ``weights()`` gives them.
            cache: keys and values of earlier levels; gets this level's added.
            tape: gets what the backward pass needs.
        """
        hidden = functional.embedding(level.tokens, self._body.embed_tokens.weight)
        grid = Grid(level, self.heads, hidden.dtype)
        turn = self.rotation(level.positions)
        for number, weight in enumerate(weights):
            normed_1, scale_1 = self._norm(hidden)
            qkv = self.rotate_(functional.linear(normed_1, weight.qkv), turn)
            mixed = grid.attend(qkv, None if cache is None else cache[number])
            hidden = torch.addmm(hidden, mixed, weight.out.T)
            normed_2, scale_2 = self._norm(hidden)
            gate_up = functional.linear(normed_2, weight.gate_up)
            gate, up = gate_up.chunk(2, -1)
            active = functional.silu(gate).mul_(up)
            hidden = hidden.addmm_(active, weight.down.T)
            if tape is not None:
                tape.layers.append(
                    LayerTape(normed_1, scale_1, qkv, mixed, normed_2, scale_2, gate_up)
                )
        normed, scale = self._norm(hidden)
        states = normed * self.final_norm_weight
        if tape is not None:
            tape.states, tape.final_scale = states, scale
            tape.versions = self.versions()
        return states

    def logits(self, states: Tensor) -> Tensor:
        """Next-token logits of states."""
        return functional.linear(states, self._model.lm_head.weight)

    def _norm(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Rows at root mean square 1, and what they were multiplied with."""
        epsilon = self._model.config.rms_norm_eps
        # transformers normalises in float32 whatever the model's dtype
        wide = hidden.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = length.square_().div_(hidden.shape[-1]).add_(epsilon).rsqrt_()
        return (wide * scale).to(hidden.dtype), scale

    def rotation(self, positions: Tensor) -> Tensor:
        """The rotary embedding's turns as complex numbers, ``[N, 1, size / 2]``."""
        angles = positions[:, None].float() * self._body.rotary_emb.inv_freq.float()
        turns = torch.polar(torch.ones_like(angles), angles)[:, None]
        double = self._body.embed_tokens.weight.dtype == torch.float64
        return turns.to(torch.complex128) if double else turns

    def rotate_(self, qkv: Tensor, turn: Tensor) -> Tensor:
        """Turn the queries and keys in ``[N, 3 * heads * size]``, in place.

        The halves of a head lie side by side here (``interleave``), so each pair
        is one complex number.
        """
        pairs = qkv.view(len(qkv), 3 * self.heads, -1, 2)[:, : 2 * self.heads]
        torch.view_as_complex(pairs).mul_(turn)
        return qkv

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


class Grid:
    """Puts flat nodes on a [prompts, places] grid for attention, and back."""

    def __init__(self, level: Level, heads: int, dtype: torch.dtype):
        self.prompts, self._slots = len(level.filled), level.sees.shape[1]
        self.heads = heads
        self.used = int(level.filled.max())
        self._home = level.prompts * self._slots + level.slots
        # queries of this level stand beside each other, whatever slots they have
        place = level.slots - (
            level.filled - torch.bincount(level.prompts, minlength=self.prompts)
        )[level.prompts]  # fmt: skip
        self._width = int(place.max()) + 1
        self._place = level.prompts * self._width + place
        seen = level.sees[:, : self.used]
        # places without a node see everything: any softmax will do there
        # (and of the queries' dtype: PyTorch misreads a bias of another one)
        rows = self.prompts * self._width
        bias = torch.zeros(rows, self.used, dtype=dtype, device=seen.device)
        bias[self._place] = bias[self._place].masked_fill(~seen, float("-inf"))
        self.bias = bias.view(self.prompts, 1, self._width, self.used)

    def attend(self, qkv: Tensor, store: Tensor | None) -> Tensor:
        """Attention of each node over the slots it sees, ``[N, heads * size]``.

        Args:
            qkv: of this level's nodes, ``[N, 3 * heads * size]``.
            store: keys and values of all slots, ``[P * L, 2 * heads * size]``; gets
                this level's.  None: this level is all there is.
        """
        third = qkv.shape[1] // 3
        if store is None:
            query, key, value = self.spread(qkv, 3)
        else:
            store.index_copy_(0, self._home, qkv[:, third:])
            key, value = self._open(store, self._slots, self.used, 2)
            queries = qkv.new_zeros(self.prompts * self._width, third)
            queries.index_copy_(0, self._place, qkv[:, :third])
            (query,) = self._open(queries, self._width, self._width, 1)
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=self.bias
        )
        return mixed.transpose(1, 2).reshape(-1, third).index_select(0, self._place)

    def spread(self, rows: Tensor, parts: int) -> tuple[Tensor, ...]:
        """``[N, parts * H]`` of a whole tree -> parts of ``[P, heads, L, size]``."""
        table = rows.new_zeros(self.prompts * self._slots, rows.shape[1])
        table.index_copy_(0, self._home, rows)
        return self._open(table, self._slots, self.used, parts)

    def collect(self, parts: Sequence[Tensor]) -> Tensor:
        """Undo ``spread``: parts of ``[P, heads, L, size]`` -> ``[N, parts * H]``."""
        table = torch.stack(list(parts), dim=2).permute(0, 3, 2, 1, 4)
        return table.reshape(self.prompts * self.used, -1).index_select(0, self._home)

    def _open(self, table: Tensor, rows: int, used: int, parts: int):
        """``[P * rows, parts * heads * size]`` -> each ``[P, heads, used, size]``."""
        split = table.view(self.prompts, rows, parts, self.heads, -1)[:, :used]
        return split.permute(2, 0, 3, 1, 4).unbind(0)

"""A Llama forward pass over a tree of prefixes, with its LoRA adapter merged.

The same numbers as the Hugging Face model (the tests compare values and
gradients), for small models on a CPU, where its many small operations and the
repeated tokens cost more than the arithmetic:

* every distinct prefix goes through the layers once (``prefix_tree``);
* ``W + s·B·A`` is formed once a pass, differentiably, and q, k, v (and gate, up)
  are one product each.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from flowrl_lab.policies.prefix_tree import Level

__all__ = ["TreeLlama"]

Weights = list[dict[str, Tensor]]


def _merged(layer, adapted: bool) -> Tensor:
    """The weight that a (LoRA) linear layer multiplies with."""
    base = getattr(layer, "base_layer", layer).weight
    if not adapted or not hasattr(layer, "lora_A"):
        return base
    (name,) = layer.active_adapters
    low, high = layer.lora_A[name].weight, layer.lora_B[name].weight
    return torch.addmm(base, high, low, alpha=layer.scaling[name])


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
        self._reference: Weights | None = None

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

    def weights(self, *, reference: bool = False) -> Weights:
        """Fused weights of every layer; the reference's are made once and kept."""
        if not reference:
            return self._fuse(adapted=True)
        if self._reference is None:
            with torch.no_grad():
                self._reference = self._fuse(adapted=False)
        return self._reference

    def _fuse(self, adapted: bool) -> Weights:
        fused = []
        for layer in self._body.layers:
            attention, mlp = layer.self_attn, layer.mlp
            query, key, value = (
                _merged(part, adapted)
                for part in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            fused.append(
                {
                    "qkv": torch.cat(
                        [self._interleave(query), self._interleave(key), value]
                    ),
                    "out": _merged(attention.o_proj, adapted),
                    "gate_up": torch.cat(
                        [_merged(p, adapted) for p in (mlp.gate_proj, mlp.up_proj)]
                    ),
                    "down": _merged(mlp.down_proj, adapted),
                    "norm_1": layer.input_layernorm.weight,
                    "norm_2": layer.post_attention_layernorm.weight,
                }
            )
        return fused

    def new_cache(self, prompts: int, slots: int) -> list[Tensor]:
        """Room for the keys and values of every slot, for each layer."""
        weight = self._body.embed_tokens.weight
        shape = (prompts * slots, 2 * self.heads * self.head_size)
        return [weight.new_zeros(shape) for _ in self._body.layers]

    def states(
        self,
        level: Level,
        weights: Weights,
        cache: list[Tensor] | None = None,
    ) -> Tensor:
        """Final (normalised) hidden states of a level's nodes, ``[N, H]``.

        Args:
            level: the nodes; without a cache, all of their ancestors are in it.
            weights: as ``weights()`` gives them.
            cache: keys and values of earlier levels; gets this level's added.
        """
        hidden = functional.embedding(level.tokens, self._body.embed_tokens.weight)
        grid = _Grid(level, self.heads, hidden.dtype)
        turn = self._rotation(level.positions)
        for number, weight in enumerate(weights):
            normed = self._norm(hidden, weight["norm_1"])
            qkv = functional.linear(normed, weight["qkv"])
            store = None if cache is None else cache[number]
            mixed = grid.attend(self._rotate(qkv, turn), store)
            hidden = hidden + functional.linear(mixed, weight["out"])
            normed = self._norm(hidden, weight["norm_2"])
            gate, up = functional.linear(normed, weight["gate_up"]).chunk(2, -1)
            hidden = hidden + functional.linear(
                functional.silu(gate) * up, weight["down"]
            )
        return self._norm(hidden, self._body.norm.weight)

    def logits(self, states: Tensor) -> Tensor:
        """Next-token logits of states."""
        return functional.linear(states, self._model.lm_head.weight)

    def _norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        epsilon = self._model.config.rms_norm_eps
        if hidden.dtype == torch.float32:
            return functional.rms_norm(hidden, weight.shape, weight, epsilon)
        # transformers normalises in float32 whatever the model's dtype
        normed = functional.rms_norm(hidden.float(), weight.shape, eps=epsilon)
        return normed.to(hidden.dtype) * weight

    def _rotation(self, positions: Tensor) -> Tensor:
        """The rotary embedding's turns as complex numbers, ``[N, 1, size / 2]``."""
        angles = positions[:, None].float() * self._body.rotary_emb.inv_freq.float()
        turns = torch.polar(torch.ones_like(angles), angles)[:, None]
        double = self._body.embed_tokens.weight.dtype == torch.float64
        return turns.to(torch.complex128) if double else turns

    def _rotate(self, qkv: Tensor, turn: Tensor) -> Tensor:
        """Turn the queries and keys in ``[N, 3 * heads * size]``.

        The halves of a head lie side by side here (``_interleave``), so each pair
        is one complex number.
        """
        width = 2 * self.heads * self.head_size
        turned = qkv[:, :width].reshape(len(qkv), 2 * self.heads, -1, 2)
        turned = torch.view_as_real(torch.view_as_complex(turned) * turn)
        return torch.cat([turned.flatten(1), qkv[:, width:]], dim=-1)

    def _interleave(self, weight: Tensor) -> Tensor:
        """Reorder a query or key weight: pair (i, i + size/2) becomes (2i, 2i + 1).

        Scores do not change when queries and keys are reordered alike.
        """
        halves = weight.view(self.heads, 2, self.head_size // 2, -1)
        return halves.transpose(1, 2).reshape(weight.shape)


class _Grid:
    """Puts flat nodes on a [prompts, places] grid for attention, and back."""

    def __init__(self, level: Level, heads: int, dtype: torch.dtype):
        self._prompts, self._slots = len(level.filled), level.sees.shape[1]
        self._heads = heads
        self._home = level.prompts * self._slots + level.slots
        self._used = int(level.filled.max())
        # queries of this level stand beside each other, whatever slots they have
        place = level.slots - (
            level.filled - torch.bincount(level.prompts, minlength=self._prompts)
        )[level.prompts]  # fmt: skip
        self._width = int(place.max()) + 1
        self._place = level.prompts * self._width + place
        seen = level.sees[:, : self._used]
        # places without a node see everything: any softmax will do there
        # (and of the queries' dtype: PyTorch misreads a bias of another one)
        rows = self._prompts * self._width
        bias = torch.zeros(rows, self._used, dtype=dtype, device=seen.device)
        bias[self._place] = bias[self._place].masked_fill(~seen, float("-inf"))
        self._bias = bias.view(self._prompts, 1, self._width, self._used)

    def attend(self, qkv: Tensor, store: Tensor | None) -> Tensor:
        """Attention of each node over the slots it sees, ``[N, heads * size]``.

        Args:
            qkv: of this level's nodes, ``[N, 3 * heads * size]``.
            store: keys and values of all slots, ``[P * L, 2 * heads * size]``; gets
                this level's.  None: this level is all there is.
        """
        third = qkv.shape[1] // 3
        if store is None:
            table = qkv.new_zeros(self._prompts * self._slots, 3 * third)
            table = table.index_copy(0, self._home, qkv)
            query, key, value = self._open(table, self._slots, self._used, 3)
        else:
            store.index_copy_(0, self._home, qkv[:, third:])
            key, value = self._open(store, self._slots, self._used, 2)
            queries = qkv.new_zeros(self._prompts * self._width, third)
            queries.index_copy_(0, self._place, qkv[:, :third])
            (query,) = self._open(queries, self._width, self._width, 1)
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=self._bias
        )
        return mixed.transpose(1, 2).reshape(-1, third).index_select(0, self._place)

    def _open(self, table: Tensor, rows: int, used: int, parts: int):
        """``[P * rows, parts * heads * size]`` -> each ``[P, heads, used, size]``."""
        split = table.view(self._prompts, rows, parts, self._heads, -1)[:, :used]
        return split.permute(2, 0, 3, 1, 4).unbind(0)

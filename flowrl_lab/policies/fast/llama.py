"""A Llama with its LoRA adapter as tables that ``tree_passes`` can compute with.

The same numbers as the Hugging Face model (the tests compare values and
gradients), for small models on a CPU, where its many small operations and the
repeated tokens cost more than the arithmetic:

* every distinct prefix goes through the layers once (``prefix_tree``);
* ``W + s·B·A`` is formed once a pass, with the norm's weight inside;
* all layers are one compiled call (``tree_passes``);
* nothing here is differentiated by autograd: ``Tape`` keeps what the backward pass
  needs, so that the activations of sampling serve the first update, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from flowrl_lab.policies.changes import ChangeCounter
from flowrl_lab.policies.fast import passes as tree_passes
from flowrl_lab.policies.fast.kernels import Nodes
from flowrl_lab.policies.fast.passes import (
    Adapters,
    Frame,
    Scratch,
    TapeTables,
    Weights,
)

__all__ = ["Tape", "TreeLlama", "count_depth", "in_order"]

# The linear layers of a block: what they read and are written to together.
_ATTENTION, _MLP = ("q", "k", "v", "o"), ("gate", "up", "down")
_ALL = (*_ATTENTION, *_MLP)


@dataclass(frozen=True)
class _Adapter:
    """LoRA on one linear layer: ``scaling · B · A`` is added to its weight."""

    low: Tensor  # A [r, in]
    high: Tensor  # B [out, r]
    scaling: float


@dataclass
class Tape:
    """The nodes of a tree and their activations, parents first.

    Attributes:
        tables: the activations; there may be room for more nodes.
        scratch: for the way back.
        version: of the adapter, when this was computed.
        uses: how often it was begun anew; what was read before is gone then.
    """

    tables: TapeTables
    scratch: Scratch
    version: int = 0
    uses: int = 0

    @property
    def room(self) -> int:
        """How many nodes it can hold."""
        return len(self.tables.turns)

    def holds(self, nodes: int, depth: int) -> bool:
        """Whether there is room for so many, with so many on a way down.

        Compiled code does not look where it writes, so ask before.
        """
        return nodes <= self.room and depth <= self.tables.attention.shape[3]

    def begin(self, version: int) -> None:
        """What it holds is of no use any more; from now on it is of this adapter."""
        self.version = version
        self.uses += 1


class TreeLlama:
    """Runs the layers of a peft-wrapped ``LlamaForCausalLM`` on levels of trees.

    It reads the adapter anew whenever that has changed, so training the model's changes
    what it computes; the frozen weights are read once.

    Raises:
        ValueError: a model that is not of the plain shape that this pass is for.
    """

    def __init__(self, model):
        reason = _find_obstacle(model)
        if reason:
            raise ValueError(
                f"the model {reason}, and passes over trees are not written for that. "
                "Fix: use LanguageModelPolicy."
            )
        base = model.get_base_model()
        self._model, self._body = base, base.model
        self._adapters = [_find_adapters(layer) for layer in self._body.layers]
        self.frame = self._make_frame()
        self._scaling = np.float32(self._adapters[0]["q"].scaling)
        self._reference: Weights | None = None
        self._changes = ChangeCounter(self._copy_adapter)
        self.version()

    @staticmethod
    def supports(model) -> bool:
        """Whether the model is of the plain shape that this pass is written for."""
        return not _find_obstacle(model)

    def _make_frame(self) -> Frame:
        body, config = self._body, self._model.config
        embedding = body.embed_tokens.weight.detach()
        size, epsilon = embedding.shape[1:], config.rms_norm_eps
        norms = [
            torch.stack([x.input_layernorm.weight, x.post_attention_layernorm.weight])
            for x in body.layers
        ]
        return Frame(
            _table(self._model.lm_head.weight),
            _table(embedding),
            _table(functional.rms_norm(embedding, size, eps=epsilon)),
            _table(body.rotary_emb.inv_freq),
            _table(body.norm.weight),
            _table(torch.stack(norms)),
            config.num_attention_heads,
            epsilon,
        )

    def parameters(self) -> list[Tensor]:
        """The adapter's A and B of every layer, in a fixed order."""
        return [
            matrix
            for layer in self._adapters
            for name in _ALL
            for matrix in (layer[name].low, layer[name].high)
        ]

    @torch.no_grad()
    def version(self) -> int:
        """Look at the adapter; another number than last time if it has changed."""
        return self._changes.count()

    def adapter_tables(self) -> Adapters:
        """A and B of every layer, as ``version`` last saw them."""
        return Adapters(*map(_table, self._changes.latest))

    def _copy_adapter(self) -> list[Tensor]:
        """In the order of ``Adapters``."""
        found = []
        for names in (("q", "k", "v"), ("o",), ("gate", "up"), ("down",)):
            for kind in ("low", "high"):
                every = [getattr(x[n], kind) for x in self._adapters for n in names]
                stacked = torch.stack(every)
                if len(names) > 1:
                    stacked = stacked.unflatten(0, (-1, len(names)))
                found.append(stacked)
        return found

    @torch.no_grad()
    def weights(self, *, reference: bool = False) -> Weights:
        """The weights of all layers, with the adapter as ``version`` last saw it.

        Args:
            reference: those without it, made once and kept.
        """
        if self._reference is None:
            self._reference = self._read_frozen()
        return self._reference if reference else self._adapt(self._reference)

    def _read_frozen(self) -> Weights:
        def read(*names: str) -> Tensor:
            found = []
            for layer in self._body.layers:
                block = layer.self_attn if names[0] in _ATTENTION else layer.mlp
                parts = [getattr(block, f"{x}_proj").base_layer.weight for x in names]
                found.append(torch.stack(parts) if len(parts) > 1 else parts[0])
            return torch.stack(found)

        before_attention, before_mlp = torch.from_numpy(self.frame.norms).unbind(1)
        qkv = read("q", "k", "v") * before_attention[:, None, None]
        gate_up = read("gate", "up") * before_mlp[:, None, None]
        return self._complete(qkv, read("o"), gate_up, read("down"))

    def _adapt(self, frozen: Weights) -> Weights:
        """``W + s·B·A`` everywhere; the norms' weights are inside, as in W."""
        tables = self.adapter_tables()
        norms = torch.from_numpy(self.frame.norms)[:, :, None]

        def add(weight, low, high, norm=1.0) -> Tensor:
            base, inside = torch.from_numpy(weight), torch.from_numpy(low) * norm
            sums = torch.baddbmm(
                base.flatten(0, -3),
                torch.from_numpy(high).flatten(0, -3),
                inside.flatten(0, -3),
                alpha=float(self._scaling),
            )
            return sums.view_as(base)

        return self._complete(
            add(frozen.qkv, tables.low_qkv, tables.high_qkv, norms[:, :1]),
            add(frozen.out, tables.low_out, tables.high_out),
            add(frozen.gate_up, tables.low_gate_up, tables.high_gate_up, norms[:, 1:]),
            add(frozen.down, tables.low_down, tables.high_down),
        )

    def _complete(self, qkv: Tensor, *others: Tensor) -> Weights:
        """Weights with every word's first queries, keys and values."""
        first = torch.from_numpy(self.frame.words) @ qkv[0].mT
        return Weights(*map(_table, (first, qkv, *others)))

    def new_tape(self, room: int, depth: int, *, layers: int | None = None) -> Tape:
        """An empty tape; ``begin`` says of which adapter it will be.

        Args:
            room: the most nodes.
            depth: the most nodes on a way from a first token down.
            layers: 1: all layers write to the same rows, where only the result counts.
        """
        config = self._model.config
        hidden, inner = config.hidden_size, config.intermediate_size
        count = layers or config.num_hidden_layers
        half = hidden // config.num_attention_heads // 2

        def empty(*shape: int):
            return np.empty(shape, np.float32)

        tables = TapeTables(
            empty(room, 2, half),
            empty(count, room, hidden),
            empty(count, room, 1),
            empty(count, 3, room, hidden),
            empty(count, room, config.num_attention_heads, -(-depth // 32) * 32),
            empty(count, room, hidden),
            empty(count, room, hidden),
            empty(count, room, 1),
            empty(count, 2, room, inner),
            empty(room, hidden),
            empty(room, 1),
        )
        rows = room if layers is None else 0  # with one layer there is no way back
        block = tree_passes.block_rows(rows)
        scratch = Scratch(
            empty(rows, hidden),
            empty(3, rows, hidden),
            empty(block, hidden),
            empty(3, block, hidden),
            empty(block, inner),
            empty(block, inner),
            empty(2, block, inner),
        )
        return Tape(tables, scratch)

    def states(self, nodes: Nodes, weights: Weights, tape: Tape) -> Tensor:
        """Final (normalised) hidden states of all nodes of a tree, ``[N, H]``.

        Args:
            nodes: of the tree.
            weights: as ``weights()`` gives them.
            tape: gets the activations.
        """
        if not tape.holds(len(nodes.tokens), count_depth(nodes)):
            raise ValueError("the tape is too small. Fix: new_tape for these nodes.")
        found = tree_passes.forward(
            nodes, 0, len(nodes.tokens), self.frame, weights, tape.tables
        )
        return torch.from_numpy(found)

    def gradients(
        self,
        grad_states: Tensor,
        nodes: Nodes,
        weights: Weights,
        tape: Tape,
        adapters: Adapters,
    ) -> Adapters:
        """Those of every layer's A and B, given that of ``states``.

        Args:
            grad_states: of all nodes of the tree, ``[N, H]``.
            nodes, weights, tape: as they were for the states; a tape of all layers.
            adapters: as ``adapter_tables`` gives them.
        """
        found = Adapters(*(np.zeros_like(table) for table in adapters))
        tree_passes.backward(
            grad_states.contiguous().numpy(),
            nodes,
            self.frame,
            weights,
            tape.tables,
            adapters,
            self._scaling,
            tape.scratch,
            found,
        )
        return found

    def logits(self, states: Tensor) -> Tensor:
        """Next-token logits of states."""
        return functional.linear(states, self._model.lm_head.weight)


def count_depth(nodes: Nodes) -> int:
    """The most nodes on a way from a first token down."""
    return int(nodes.positions.max()) + 1


def in_order(gradients: Adapters) -> list[Tensor]:
    """Gradients in the order of ``TreeLlama.parameters``."""
    found = []
    for layer in range(len(gradients.low_out)):
        at = [torch.from_numpy(table[layer]) for table in gradients]
        low_qkv, high_qkv, low_out, high_out, low_gate_up, high_gate_up, *down = at
        found += [m for pair in zip(low_qkv, high_qkv, strict=True) for m in pair]
        found += [low_out, high_out]
        found += [
            m for pair in zip(low_gate_up, high_gate_up, strict=True) for m in pair
        ]
        found += down
    return found


def _table(tensor: Tensor):
    """A tensor's memory as numba reads it."""
    return tensor.detach().contiguous().numpy()


def _find_obstacle(model) -> str:
    """Why a model is not of the plain shape; empty if it is."""
    if not hasattr(model, "get_base_model"):
        return "has no LoRA adapter"
    base = model.get_base_model()
    config = base.config
    if config.model_type != "llama":
        return f"is a {config.model_type}, not a Llama"
    if config.attention_bias or config.mlp_bias:
        return "has biases"
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        return f"turns its positions by {rope['rope_type']!r}"
    if config.num_key_value_heads != config.num_attention_heads:
        return "shares keys among heads"
    if config.hidden_act != "silu":
        return f"has {config.hidden_act!r} in its MLP"
    weight = base.model.embed_tokens.weight
    if weight.dtype != torch.float32 or weight.device.type != "cpu":
        return f"is in {weight.dtype} on {weight.device.type}, not in float32 on a CPU"
    adapters = [_find_adapters(layer) for layer in base.model.layers]
    if any(set(layer) != set(_ALL) for layer in adapters):
        return "adapts only some of its linear layers"
    kinds = {(len(x.low), x.scaling) for layer in adapters for x in layer.values()}
    if len(kinds) > 1:
        return "has adapters of several ranks or scales"
    return ""


def _find_adapters(layer) -> dict[str, _Adapter]:
    """The LoRA parts of one layer, by the short names of its linear layers."""
    linears = {name: getattr(layer.self_attn, f"{name}_proj") for name in _ATTENTION}
    linears |= {name: getattr(layer.mlp, f"{name}_proj") for name in _MLP}
    found = {}
    for name, linear in linears.items():
        if hasattr(linear, "lora_A"):
            (key,) = linear.active_adapters
            low, high = linear.lora_A[key].weight, linear.lora_B[key].weight
            found[name] = _Adapter(low, high, linear.scaling[key])
    return found

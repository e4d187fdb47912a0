"""The layers of a Llama on rows of a tree: plain functions of tensors.

``TreeLlama`` calls them through ``without_lock``, so TorchScript must be able to read
them: it knows neither annotations that are strings nor ``X | None``, and a checker's
wrapper around a function stops it.
"""

import math
from typing import NamedTuple, no_type_check

import torch
from torch import Tensor
from torch.nn import functional

from flowrl_lab.policies.prefix_tree import Level

__all__ = [
    "Frame",
    "LayerTape",
    "LayerWeights",
    "cut_heads",
    "rotate_",
    "rotation",
    "run_level",
    "run_tree",
    "times",
    "weigh",
]


# Rows that go through an MLP together: what they need stays in the processor's cache.
BLOCK = 448  # TorchScript knows it as the default of `block` only


class Frame(NamedTuple):
    """What surrounds the layers."""

    embedding: Tensor  # [V, H]
    frequencies: Tensor  # of the rotary embedding, [size / 2]
    norm: Tensor  # weight of the last norm, [H]
    heads: int  # of the attention
    epsilon: float  # of the norms


class LayerWeights(NamedTuple):
    """The products of one layer, ``[out, in]``; norms are inside qkv and gate_up.

    They may be in narrower numbers than everything else: then only the products are.
    """

    qkv: Tensor
    out: Tensor
    gate_up: Tensor
    down: Tensor


class LayerTape(NamedTuple):
    """What the backward pass of one layer reads, a row for each node."""

    normed_1: Tensor  # [N, H] input of qkv, before the norm's weight
    scale_1: Tensor  # [N, 1] what it was multiplied with
    qkv: Tensor  # [N, 3H] turned by the rotary embedding
    mixed: Tensor  # [N, H] attention's result
    normed_2: Tensor
    scale_2: Tensor
    gate_up: Tensor  # [N, 2I]


class _Places(NamedTuple):
    """Where the nodes of a level stand in attention."""

    home: Tensor  # rows of the cache for the parts of qkv, [N * 3 * heads]
    place: Tensor  # rows of attention's result for the nodes, [N * heads]
    bias: Tensor  # [P * heads, width, used]


@no_type_check
def _normalize(hidden: Tensor, normed: Tensor, scale: Tensor, epsilon: float) -> Tensor:
    """Rows at root mean square 1; ``scale`` gets what they were multiplied with."""
    if hidden.dtype == torch.float32:
        torch.mean(hidden * hidden, [-1], True, dtype=None, out=scale)
        scale.add_(epsilon).rsqrt_()
        return torch.mul(hidden, scale, out=normed)
    # transformers normalises in float32 whatever the model's dtype
    wide = hidden.float()
    torch.mean(wide * wide, [-1], True, dtype=None, out=scale)
    scale.add_(epsilon).rsqrt_()
    return normed.copy_(wide * scale)


@no_type_check
def rotate_(qkv: Tensor, turn: Tensor, heads: int) -> Tensor:
    """Turn the queries and keys in ``[N, 3 * heads * size]``, in place.

    The halves of a head lie side by side here (``TreeLlama.interleave``), so each
    pair is one complex number.
    """
    pairs = qkv.view(qkv.shape[0], 3 * heads, -1, 2)[:, : 2 * heads]
    torch.view_as_complex(pairs).mul_(turn)
    return qkv


@no_type_check
def weigh(query: Tensor, key: Tensor, bias: Tensor) -> Tensor:
    """Attention weights ``softmax(Q Kᵀ / √size + bias)``."""
    factor = 1 / math.sqrt(query.shape[-1])
    return torch.baddbmm(
        bias, query, key.transpose(-1, -2), beta=1, alpha=factor
    ).softmax(-1)


@no_type_check
def times(rows: Tensor, weight: Tensor, turned: bool) -> Tensor:
    """``rows @ weightᵀ``, or ``rows @ weight`` where ``turned``, in the weight's dtype.

    Where that is narrower than the rows', they are filled up to a multiple of 32:
    each new shape costs such a product a preparation, so there should be few shapes.
    What stands in the rows that fill up is never read.
    """
    count, narrow = rows.shape[0], rows
    if weight.dtype != rows.dtype:
        shape = [(count + 31) // 32 * 32, rows.shape[1]]
        narrow = torch.empty(shape, dtype=weight.dtype, device=rows.device)
        narrow[:count].copy_(rows)
    return torch.mm(narrow, weight if turned else weight.t())[:count]


@no_type_check
def _put_times(rows: Tensor, weight: Tensor, turned: bool, into: Tensor) -> None:
    """``times``, written to ``into``; directly where the numbers are the same."""
    if weight.dtype == rows.dtype:
        torch.mm(rows, weight if turned else weight.t(), out=into)
    else:
        into.copy_(times(rows, weight, turned))


@no_type_check
def _add_times(rows: Tensor, weight: Tensor, into: Tensor) -> None:
    """``rows @ weightᵀ``, added to ``into``."""
    if weight.dtype == rows.dtype:
        into.addmm_(rows, weight.t())
    else:
        into.add_(times(rows, weight, False))


@no_type_check
def _before(
    hidden: Tensor, turn: Tensor, weight: LayerWeights, keep: LayerTape, frame: Frame
) -> Tensor:
    """What attention reads, ``[N, 3H]``."""
    normed = _normalize(hidden, keep.normed_1, keep.scale_1, frame.epsilon)
    _put_times(normed, weight.qkv, False, keep.qkv)
    return rotate_(keep.qkv, turn, frame.heads)


@no_type_check
def _after(
    hidden: Tensor,
    weight: LayerWeights,
    keep: LayerTape,
    frame: Frame,
    block: int = BLOCK,
) -> None:
    """Add what attention and the MLP say to ``hidden``, in place."""
    _add_times(keep.mixed, weight.out, hidden)
    normed = _normalize(hidden, keep.normed_2, keep.scale_2, frame.epsilon)
    for first in range(0, hidden.shape[0], block):
        rows = keep.gate_up[first : first + block]
        _put_times(normed[first : first + block], weight.gate_up, False, rows)
        gate, up = rows.chunk(2, -1)
        active = functional.silu(gate).mul_(up)
        _add_times(active, weight.down, hidden[first : first + block])


@no_type_check
def mlp_gradient(
    gate_up: Tensor,
    grad: Tensor,
    weight: LayerWeights,
    into: list[Tensor],
    block: int = BLOCK,
) -> None:
    """The gradient of ``down(silu(gate) * up)``, given that of its result.

    ``into`` gets ``silu(gate) * up``, the gradient of gate and up, and that of what
    they were computed from.
    """
    for first in range(0, grad.shape[0], block):
        last = first + block
        gate, up = gate_up[first:last].chunk(2, -1)
        slope = torch.sigmoid(gate)
        silu = gate * slope
        torch.mul(silu, up, out=into[0][first:last])
        grad_active = times(grad[first:last], weight.down, True)
        both = into[1][first:last]
        grad_gate, grad_up = both.chunk(2, -1)
        torch.mul(grad_active, silu, out=grad_up)
        # d silu / d gate = sigmoid + silu (1 - sigmoid)
        slope.addcmul_(silu, 1 - slope).mul_(up)
        torch.mul(slope, grad_active, out=grad_gate)
        _put_times(both, weight.gate_up, True, into[2][first:last])


@no_type_check
def _place_level(level: Level, heads: int, dtype: torch.dtype) -> _Places:
    """Attention's grid ``[prompts * heads, places, size]`` for one level.

    The queries of a level stand beside each other, whatever slots they have.
    """
    prompts, slots = level.filled.shape[0], level.sees.shape[1]
    used = int(level.filled.max())
    new = torch.bincount(level.prompts, minlength=prompts)
    width = int(new.max())
    place = level.slots - (level.filled - new)[level.prompts]
    row = level.prompts * width + place
    seen = level.sees[:, :used]
    # places without a node see everything: any softmax will do there
    bias = torch.zeros([prompts * width, used], dtype=dtype, device=seen.device)
    hidden = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    bias.index_copy_(0, row, hidden.masked_fill_(~seen, -math.inf))
    bias = bias.view(prompts, width, used).repeat_interleave(heads, 0)
    head = torch.arange(heads, device=seen.device)
    group = level.prompts.unsqueeze(1) * heads + head
    query = group * width + place.unsqueeze(1)
    key = group * slots + level.slots.unsqueeze(1)
    count = prompts * heads * slots
    home = torch.cat([query + 2 * count, key, key + count], dim=1)
    return _Places(home.flatten(), query.flatten(), bias)


@no_type_check
def _attend_level(
    qkv: Tensor, cache: Tensor, places: _Places, slots: int, result: Tensor
) -> None:
    """Attention of each node of a level over the slots it sees.

    The cache is a table of rows ``[head size]``: the keys of every prompt, head and
    slot, then their values, then this level's queries.
    """
    size = cache.shape[1]
    cache.index_copy_(0, places.home, qkv.view(-1, size))
    groups, width, used = places.bias.shape
    count = groups * slots
    key = cache[:count].view(groups, slots, size)[:, :used]
    value = cache[count : 2 * count].view(groups, slots, size)[:, :used]
    query = cache[2 * count : 2 * count + groups * width].view(groups, width, size)
    mixed = torch.bmm(weigh(query, key, places.bias), value).view(-1, size)
    torch.index_select(mixed, 0, places.place, out=result.view(-1, size))


@no_type_check
def rotation(positions: Tensor, frame: Frame) -> Tensor:
    """The rotary embedding's turns as complex numbers, ``[N, 1, size / 2]``."""
    angles = positions.unsqueeze(1).float() * frame.frequencies.float()
    turns = torch.polar(torch.ones_like(angles), angles).unsqueeze(1)
    if frame.embedding.dtype == torch.float64:
        return turns.to(torch.complex128)
    return turns


@no_type_check
def _cut_rows(tape: LayerTape, first: int, last: int) -> LayerTape:
    """Some rows of it, as views."""
    return LayerTape(
        tape.normed_1[first:last],
        tape.scale_1[first:last],
        tape.qkv[first:last],
        tape.mixed[first:last],
        tape.normed_2[first:last],
        tape.scale_2[first:last],
        tape.gate_up[first:last],
    )


@no_type_check
def run_level(
    level: Level,
    frame: Frame,
    weights: list[LayerWeights],
    caches: list[Tensor],
    tape: list[LayerTape],
    ends: tuple[Tensor, Tensor],
    first: int,
) -> Tensor:
    """Final (normalised) states of the next level of a tree, ``[N, H]``.

    Args:
        level: the nodes; their ancestors have been here before.
        frame: of the model.
        weights: of each layer.
        caches: of each layer; get this level's keys and values.
        tape: of each layer; gets what the backward pass needs.
        ends: the tape's final states and scales; likewise.
        first: row of the tape where this level begins.
    """
    hidden = functional.embedding(level.tokens, frame.embedding)
    turn = rotation(level.positions, frame)
    places = _place_level(level, frame.heads, hidden.dtype)
    slots, last = level.sees.shape[1], first + hidden.shape[0]
    for number in range(len(weights)):
        keep = _cut_rows(tape[number], first, last)
        qkv = _before(hidden, turn, weights[number], keep, frame)
        _attend_level(qkv, caches[number], places, slots, keep.mixed)
        _after(hidden, weights[number], keep, frame)
    states = _normalize(hidden, ends[0][first:last], ends[1][first:last], frame.epsilon)
    return states.mul_(frame.norm)


@no_type_check
def cut_heads(table: Tensor, first: int, last: int, parts: int, heads: int) -> Tensor:
    """Some rows of ``[N, parts * heads * size]`` as ``[parts, heads, rows, size]``."""
    rows = table[first:last]
    return rows.view(last - first, parts, heads, -1).permute(1, 2, 0, 3)


@no_type_check
def run_tree(
    level: Level,
    biases: list[Tensor],
    frame: Frame,
    weights: list[LayerWeights],
    tape: list[LayerTape],
    ends: tuple[Tensor, Tensor],
) -> Tensor:
    """Final states of whole trees, ``[N, H]``.

    Args:
        level: all nodes, prompt after prompt.
        biases: of each prompt, ``[nodes, nodes]``: -inf where a node does not see.
        frame, weights, tape, ends: as in ``run_level``, from their first row on.
            One entry of ``tape`` may serve all layers if nobody reads it afterwards.
    """
    hidden = functional.embedding(level.tokens, frame.embedding)
    turn = rotation(level.positions, frame)
    for number in range(len(weights)):
        keep = tape[number]
        qkv = _before(hidden, turn, weights[number], keep, frame)
        first = 0
        for bias in biases:
            last = first + bias.shape[0]
            query, key, value = cut_heads(qkv, first, last, 3, frame.heads).unbind(0)
            mixed = cut_heads(keep.mixed, first, last, 1, frame.heads)[0]
            torch.bmm(weigh(query, key, bias), value, out=mixed)
            first = last
        _after(hidden, weights[number], keep, frame)
    return _normalize(hidden, ends[0], ends[1], frame.epsilon).mul_(frame.norm)

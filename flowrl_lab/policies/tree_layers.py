"""The layers of a Llama on rows of a tree: plain functions of tensors.

A level of a tree is some 150 rows, and an operation on it takes microseconds.  Two
threads that issue such operations from Python wait for its lock more than they
compute.  ``layer_runners`` therefore has TorchScript run all layers of a level in
one call, without the lock; where this PyTorch has no TorchScript, the same functions
run as they stand.
"""

# TorchScript reads the annotations, and knows neither strings nor `X | None`.

import functools
import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "LayerTape",
    "LayerWeights",
    "LevelPlaces",
    "cut_heads",
    "layer_runners",
    "normalize",
    "rotate_",
    "weigh",
]


class LayerWeights(NamedTuple):
    """The products of one layer, ``[out, in]``; norms are inside qkv and gate_up."""

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


class LevelPlaces(NamedTuple):
    """Where the nodes of a level stand in attention; see ``LevelGrid``."""

    home: Tensor  # rows of the cache for the parts of qkv, [N * 3 * heads]
    place: Tensor  # rows of attention's result for the nodes, [N * heads]
    bias: Tensor  # [P * heads, width, used]
    slots: int  # of each prompt in the cache


def normalize(hidden: Tensor, normed: Tensor, scale: Tensor, epsilon: float) -> Tensor:
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


def rotate_(qkv: Tensor, turn: Tensor, heads: int) -> Tensor:
    """Turn the queries and keys in ``[N, 3 * heads * size]``, in place.

    The halves of a head lie side by side here (``TreeLlama.interleave``), so each
    pair is one complex number.
    """
    pairs = qkv.view(qkv.shape[0], 3 * heads, -1, 2)[:, : 2 * heads]
    torch.view_as_complex(pairs).mul_(turn)
    return qkv


def weigh(query: Tensor, key: Tensor, bias: Tensor) -> Tensor:
    """Attention weights ``softmax(Q Kᵀ / √size + bias)``."""
    factor = 1 / math.sqrt(query.shape[-1])
    return torch.baddbmm(
        bias, query, key.transpose(-1, -2), beta=1, alpha=factor
    ).softmax(-1)


def _before(
    hidden: Tensor,
    turn: Tensor,
    weight: LayerWeights,
    keep: LayerTape,
    heads: int,
    epsilon: float,
) -> Tensor:
    """What attention reads, ``[N, 3H]``."""
    normed = normalize(hidden, keep.normed_1, keep.scale_1, epsilon)
    return rotate_(torch.mm(normed, weight.qkv.t(), out=keep.qkv), turn, heads)


def _after(
    hidden: Tensor, weight: LayerWeights, keep: LayerTape, epsilon: float
) -> None:
    """Add what attention and the MLP say to ``hidden``, in place."""
    hidden.addmm_(keep.mixed, weight.out.t())
    normed = normalize(hidden, keep.normed_2, keep.scale_2, epsilon)
    torch.mm(normed, weight.gate_up.t(), out=keep.gate_up)
    gate, up = keep.gate_up.chunk(2, -1)
    hidden.addmm_(functional.silu(gate).mul_(up), weight.down.t())


def _attend_level(
    qkv: Tensor, cache: Tensor, places: LevelPlaces, result: Tensor
) -> None:
    """Attention of each node of a level over the slots it sees.

    The cache is a table of rows ``[head size]``: the keys of every prompt, head and
    slot, then their values, then this level's queries.
    """
    size = cache.shape[1]
    cache.index_copy_(0, places.home, qkv.view(-1, size))
    groups, width, used = places.bias.shape
    count = groups * places.slots
    key = cache[:count].view(groups, places.slots, size)[:, :used]
    value = cache[count : 2 * count].view(groups, places.slots, size)[:, :used]
    query = cache[2 * count : 2 * count + groups * width].view(groups, width, size)
    mixed = torch.bmm(weigh(query, key, places.bias), value).view(-1, size)
    torch.index_select(mixed, 0, places.place, out=result.view(-1, size))


def _run_level(
    hidden: Tensor,
    turn: Tensor,
    weights: list[LayerWeights],
    caches: list[Tensor],
    tape: list[LayerTape],
    places: LevelPlaces,
    heads: int,
    epsilon: float,
) -> None:
    """All layers on the next level of a tree, ``hidden`` in place.

    Args:
        hidden: embeddings of the nodes, ``[N, H]``.
        turn: of their positions.
        weights: of each layer.
        caches: of each layer; get this level's keys and values.
        tape: of each layer; gets what the backward pass needs.
        places: where the nodes stand.
        heads: of the attention.
        epsilon: of the norms.
    """
    for number in range(len(weights)):
        keep = tape[number]
        qkv = _before(hidden, turn, weights[number], keep, heads, epsilon)
        _attend_level(qkv, caches[number], places, keep.mixed)
        _after(hidden, weights[number], keep, epsilon)


def cut_heads(table: Tensor, first: int, last: int, parts: int, heads: int) -> Tensor:
    """Some rows of ``[N, parts * heads * size]`` as ``[parts, heads, rows, size]``."""
    rows = table[first:last]
    return rows.view(last - first, parts, heads, -1).permute(1, 2, 0, 3)


def _run_tree(
    hidden: Tensor,
    turn: Tensor,
    weights: list[LayerWeights],
    tape: list[LayerTape],
    biases: list[Tensor],
    heads: int,
    epsilon: float,
) -> None:
    """All layers on whole trees, prompt after prompt, ``hidden`` in place.

    Args:
        hidden, turn, weights, tape, heads, epsilon: as in ``_run_level``; one entry
            of ``tape`` may serve several layers if nobody reads it afterwards.
        biases: of each prompt, ``[nodes, nodes]``: -inf where a node does not see.
    """
    for number in range(len(weights)):
        keep = tape[number]
        qkv = _before(hidden, turn, weights[number], keep, heads, epsilon)
        first = 0
        for bias in biases:
            last = first + bias.shape[0]
            query, key, value = cut_heads(qkv, first, last, 3, heads).unbind(0)
            mixed = cut_heads(keep.mixed, first, last, 1, heads)[0]
            torch.bmm(weigh(query, key, bias), value, out=mixed)
            first = last
        _after(hidden, weights[number], keep, epsilon)


@functools.cache
def layer_runners() -> tuple[Callable, Callable]:
    """``_run_level`` and ``_run_tree``, in TorchScript where that can be had."""
    return _compile(_run_level), _compile(_run_tree)


def _compile(function: Callable) -> Callable:
    """The function in TorchScript, or as it is."""
    try:
        with warnings.catch_warnings():
            # deprecated in favour of torch.compile, which needs a C++ compiler
            warnings.simplefilter("ignore", DeprecationWarning)
            return torch.jit.script(function)
    except Exception:  # whatever it is, the plain function works
        return function

"""A pass of a Llama over rows of a tree, forward or back, as one compiled call.

Sampling sees a tree a level at a time: some hundred rows, on which an operation of
PyTorch takes a few microseconds, most of them its own bookkeeping, and a layer has
forty such operations.  Here numba compiles all layers into one function.  The products
are the BLAS library's (numba calls the one that comes with scipy), what stands between
them is in ``tree_kernels``, and Python's lock is free from beginning to end.

The backward pass is written out: only the adapter learns.  Autograd would need a
forward pass of its own, and would form the gradient of every full weight only to
multiply it down to the adapter's rank.  Here the activations on a ``Tape`` serve (those
of sampling, for the first update), and a linear layer ``y = x (W + s·B·A)ᵀ`` gets the
gradients of its adapter directly:

    dB = s · dyᵀ (x Aᵀ),   dA = s · (dy B)ᵀ x,   dx = dy (W + s·B·A)

The tests compare every number with the Hugging Face model's.

The first call on a machine compiles for some 20 s; what comes of it is kept beside
this file.  ``warm_up`` does it at a time of one's own choosing.
"""

# no strings as annotations, and no checker's wrapper: numba reads these functions
import functools
import threading
from typing import Any, NamedTuple, no_type_check

import numpy as np

from flowrl_lab.policies.fast.kernels import (
    Nodes,
    activate,
    activate_gradient,
    add,
    attend,
    attend_gradient,
    clear,
    compiled,
    draw,
    grow,
    look_up,
    normalize,
    normalize_gradient,
    scale_columns,
    sum_by_word,
    to_log_probs,
    turn,
)

__all__ = [
    "Adapters",
    "Draws",
    "Frame",
    "Scratch",
    "TapeTables",
    "Weights",
    "backward",
    "block_rows",
    "forward",
    "sample",
    "warm_up",
]

# sha256 of tree_kernels.py, in short.  numba looks at the file of a function alone to
# tell whether its compiled form is still good, and these call that file's functions: so
# whoever changes those has to change this line (a test says what to).
KERNELS = "1d51513a3700"

# Rows that go through a layer together: what they need stays in the processor's cache,
# and BLAS multiplies as few as these with an adapter (240 · 256 · 16 < 100³) where they
# are, without copying them first.
_BLOCK = 240

Table = Any  # numpy array, float32; a NamedTuple's fields need a type that can be read


class Frame(NamedTuple):
    """What surrounds the layers."""

    head: Table  # from states to logits, [V, H]
    embedding: Table  # [V, H]
    words: Table  # the embedding normalised, before a norm's weight, [V, H]
    frequencies: Table  # of the rotary embedding, [size / 2]
    norm: Table  # weight of the last norm, [H]
    norms: Table  # weights of each layer's norms, [layers, 2, H]
    heads: int  # of the attention
    epsilon: float  # of the norms


class Weights(NamedTuple):
    """The products of all layers, ``[layers, …, out, in]``.

    The norms' weights are inside qkv and gate_up, and the adapter is in all.
    """

    # In the first layer they depend on a node's token alone, so each word's are made
    # once: [3, V, H], before the rotary embedding.
    first_qkv: Table
    qkv: Table  # [layers, 3, H, H]
    out: Table  # [layers, H, H]
    gate_up: Table  # [layers, 2, I, H]
    down: Table  # [layers, H, I]


class Adapters(NamedTuple):
    """A ``[…, r, in]`` and B ``[…, out, r]`` of every product, or their gradients."""

    low_qkv: Table  # [layers, 3, r, H]
    high_qkv: Table  # [layers, 3, H, r]
    low_out: Table  # [layers, r, H]
    high_out: Table
    low_gate_up: Table  # [layers, 2, r, H]
    high_gate_up: Table  # [layers, 2, I, r]
    low_down: Table  # [layers, r, I]
    high_down: Table


class Scratch(NamedTuple):
    """Room for the gradients on their way back: of N nodes, or a block's K at most."""

    grad: Table  # [N, H] of h
    grad_qkv: Table  # [3, N, H]
    inputs: Table  # [K, H] what was normalised, with the norm's weight
    parts: Table  # [3, K, H] of what was normalised, one for each that read it
    grad_active: Table  # [K, I]
    active: Table  # [K, I]
    grad_both: Table  # [2, K, I] of gate and up


class TapeTables(NamedTuple):
    """What was computed of the nodes of a tree, with room for N.

    One layer's room may serve all layers if only the result counts.
    """

    turns: Table  # [N, 2, size / 2] of the rotary embedding
    normed_1: Table  # [layers, N, H] input of qkv, before the norm's weight
    scale_1: Table  # [layers, N, 1] what it was multiplied with
    qkv: Table  # [layers, 3, N, H] turned by the rotary embedding
    attention: Table  # [layers, N, heads, places] weights, the nearest ancestor first
    mixed: Table  # [layers, N, H] attention's result
    normed_2: Table
    scale_2: Table
    gate_up: Table  # [layers, 2, N, I]
    normed: Table  # [N, H] after the last norm, before its weight
    scale: Table  # [N, 1]


class Draws(NamedTuple):
    """What was drawn, level by level; ``[T, B]``."""

    tokens: Any
    mask: Any  # whether the token was drawn
    log_probs: Table
    predictor: Any  # row of the node whose state each was drawn from


class _WayOn(NamedTuple):
    """What a forward pass reads and writes at every layer."""

    nodes: Nodes
    frame: Frame
    weights: Weights
    tape: TapeTables
    hidden: Table  # h of the pass's rows, [count, H]
    path: Any  # room for a node's ancestors
    product: Table  # room for a block's result, [K, H]
    active: Table  # [K, I]


class _WayBack(NamedTuple):
    """What the backward pass reads and writes at every layer."""

    parents: Any  # of the nodes
    frame: Frame
    weights: Weights
    tape: TapeTables
    adapters: Adapters
    scaling: Any  # s
    room: Scratch
    found: Adapters  # dA and dB
    path: Any  # room for a node's ancestors
    slopes: Table  # and for a number of each


@compiled
@no_type_check
def forward(nodes, first, end, frame, weights, tape):
    """Some nodes of a tree through all layers.

    Args:
        nodes: of the tree.
        first, end: the rows to compute; the ancestors of these are on the tape already,
            or among them.
        frame: of the model.
        weights: to compute with.
        tape: gets the activations.

    Returns:
        Their final, normalised states, ``[end - first, H]``.
    """
    count, width = end - first, frame.embedding.shape[1]
    hidden = np.empty((count, width), np.float32)
    look_up(frame.embedding, nodes.tokens, first, hidden)
    turn(nodes.positions, frame.frequencies, tape.turns, first, end)
    path, rows = np.empty(tape.attention.shape[3], np.int64), min(count, _BLOCK)
    product = np.empty((rows, width), np.float32)
    active = np.empty((rows, weights.down.shape[2]), np.float32)
    way = _WayOn(nodes, frame, weights, tape, hidden, path, product, active)
    for layer in range(len(weights.out)):
        for here in range(0, count, _BLOCK):
            rows = min(_BLOCK, count - here)
            _attention(way, layer, here, first + here, rows)
            _mlp(way, layer, here, first + here, rows)
    normalize(hidden, 0, tape.normed, tape.scale, first, count, frame.epsilon)
    scale_columns(tape.normed[first:end], frame.norm, hidden)
    return hidden


@compiled
@no_type_check
def sample(nodes, end, at, noise, temperature, eos_id, frame, weights, tape, draws):
    """Draw completions to their ends, level by level.

    Args:
        nodes: the prompts' tokens, with room for those that are drawn.
        end: row after the last of them.
        at: row of the last token of each completion's prompt, ``[B]``.
        noise: exponential, for every token that could be drawn, ``[T, B, V]``.
        temperature: of the draws.
        eos_id: the token that ends a completion.
        frame, weights, tape: as ``forward`` takes them.
        draws: gets what is drawn; the rest stays as it is.

    Returns:
        Row after the last node, and how many levels were drawn.
    """
    width, rows, vocab_size = noise.shape
    tokens = draws.tokens
    first, at, grown = np.int64(0), at.copy(), np.empty_like(at)
    alive = np.ones(rows, np.bool_)
    for place in range(width):
        states = forward(nodes, first, end, frame, weights, tape)
        scores = np.dot(states, frame.head.T)
        to_log_probs(scores, temperature)
        draw(
            scores,
            at,
            first,
            noise[place],
            alive,
            tokens[place],
            draws.log_probs[place],
        )
        left = 0
        for row in range(rows):
            if alive[row]:
                draws.mask[place, row], draws.predictor[place, row] = True, at[row]
                alive[row] = tokens[place, row] != eos_id
                left += alive[row]
        if left == 0 or place + 1 == width:
            break
        last = grow(nodes, first, end, at, tokens[place], alive, vocab_size, grown)
        first, end = end, last
        at, grown = grown, at
    return end, place + 1


@compiled
@no_type_check
def _by_head(table, heads):
    """``[…, N, H]`` as ``[…, N, heads, size]``."""
    return table.reshape((*table.shape[:-1], heads, table.shape[-1] // heads))


@compiled
@no_type_check
def _attention(way, layer, here, first, count):
    """``h + out(attend(qkv))`` of rows ``first`` on, in place: ``hidden[here]`` on."""
    frame, weights, tape, nodes = way.frame, way.weights, way.tape, way.nodes
    last, mine = first + count, layer % len(tape.mixed)
    normed, mixed, product = tape.normed_1[mine], tape.mixed[mine], way.product
    if layer > 0:
        normalize(
            way.hidden, here, normed, tape.scale_1[mine], first, count, frame.epsilon
        )
    for part in range(3):
        into = tape.qkv[mine, part, first:last]
        if layer == 0:
            look_up(weights.first_qkv[part], nodes.tokens, first, into)
        else:
            np.dot(normed[first:last], weights.qkv[layer, part].T, into)
    attend(
        _by_head(tape.qkv[mine], frame.heads),
        tape.turns,
        nodes.parents,
        _by_head(mixed, frame.heads),
        way.path,
        tape.attention[mine],
        first,
        count,
    )
    np.dot(mixed[first:last], weights.out[layer].T, product[:count])
    add(way.hidden, product, here, count)


@compiled
@no_type_check
def _mlp(way, layer, here, first, count):
    """``h + down(silu(gate) · up)`` in place, as ``_attention``."""
    weights, tape, product, active = way.weights, way.tape, way.product, way.active
    last, mine = first + count, layer % len(tape.mixed)
    normed, epsilon = tape.normed_2[mine], way.frame.epsilon
    normalize(way.hidden, here, normed, tape.scale_2[mine], first, count, epsilon)
    for part in range(2):
        into = tape.gate_up[mine, part, first:last]
        np.dot(normed[first:last], weights.gate_up[layer, part].T, into)
    activate(tape.gate_up[mine], active, first, count)
    np.dot(active[:count], weights.down[layer].T, product[:count])
    add(way.hidden, product, here, count)


@compiled
@no_type_check
def backward(grad_states, nodes, frame, weights, tape, adapters, scaling, room, found):
    """Gradients of every layer's adapter.

    Args:
        grad_states: of ``forward``'s result for all nodes of a tree, ``[N, H]``.
        nodes, frame, weights, tape: as they were then; a tape of all layers.
        adapters: A and B.
        scaling: s, what the adapter's product is multiplied by.
        room: for at least N nodes, and blocks of ``block_rows(N)``.
        found: gets dA and dB added.
    """
    count, places = len(grad_states), tape.attention.shape[3]
    path, slopes = np.empty(places, np.int64), np.empty(places, np.float32)
    way = _WayBack(
        nodes.parents,
        frame,
        weights,
        tape,
        adapters,
        scaling,
        room,
        found,
        path,
        slopes,
    )
    clear(room.grad[:count])
    for first in range(0, count, _BLOCK):
        # states = normed · weight; the norm's weight is frozen
        rows = min(_BLOCK, count - first)
        scale_columns(grad_states[first : first + rows], frame.norm, room.parts[0])
        normalize_gradient(
            room.parts[:1], tape.normed, tape.scale, room.grad, first, rows
        )
    for layer in range(len(weights.out) - 1, -1, -1):
        for part in range(3):
            clear(room.grad_qkv[part, :count])
        # the last rows first: a node's children are after it
        for first in range((count - 1) // _BLOCK * _BLOCK, -1, -_BLOCK):
            rows = min(_BLOCK, count - first)
            _mlp_gradient(way, layer, first, rows)
            _attention_gradient(way, layer, first, rows)
            if layer > 0:
                _qkv_gradient(way, layer, first, rows)
    _first_qkv_gradient(way, nodes.tokens, count)


def block_rows(count: int) -> int:
    """How many of ``count`` rows go through a layer together."""
    return min(count, _BLOCK)


@compiled
@no_type_check
def _mlp_gradient(way, layer, first, count):
    """Back through ``h + down(silu(gate) · up)`` for some rows, in place."""
    tape, weights, adapters, found, room = (
        way.tape,
        way.weights,
        way.adapters,
        way.found,
        way.room,
    )
    normed, norm = tape.normed_2[layer], way.frame.norms[layer, 1]
    grad, inputs = room.grad[first : first + count], room.inputs[:count]
    active, above = room.active[:count], room.grad_active[:count]
    np.dot(grad, weights.down[layer], above)
    activate_gradient(tape.gate_up[layer], above, active, room.grad_both, first, count)
    _adapter(
        active,
        grad,
        adapters.low_down[layer],
        adapters.high_down[layer],
        way.scaling,
        found.low_down[layer],
        found.high_down[layer],
    )
    scale_columns(normed[first : first + count], norm, inputs)
    for part in range(2):
        mine = room.grad_both[part, :count]
        np.dot(mine, weights.gate_up[layer, part], room.parts[part, :count])
        _adapter(
            inputs,
            mine,
            adapters.low_gate_up[layer, part],
            adapters.high_gate_up[layer, part],
            way.scaling,
            found.low_gate_up[layer, part],
            found.high_gate_up[layer, part],
        )
    normalize_gradient(
        room.parts[:2], normed, tape.scale_2[layer], room.grad, first, count
    )


@compiled
@no_type_check
def _attention_gradient(way, layer, first, count):
    """Back through ``h + out(attend(qkv))`` for some rows, in place."""
    tape, weights, adapters, found, room = (
        way.tape,
        way.weights,
        way.adapters,
        way.found,
        way.room,
    )
    last, heads = first + count, way.frame.heads
    grad, above = room.grad[first:last], room.parts[0, :count]
    _adapter(
        tape.mixed[layer, first:last],
        grad,
        adapters.low_out[layer],
        adapters.high_out[layer],
        way.scaling,
        found.low_out[layer],
        found.high_out[layer],
    )
    np.dot(grad, weights.out[layer], above)
    attend_gradient(
        _by_head(tape.qkv[layer], heads),
        tape.turns,
        way.parents,
        _by_head(above, heads),
        _by_head(room.grad_qkv, heads),
        way.path,
        way.slopes,
        tape.attention[layer],
        first,
        count,
    )


@compiled
@no_type_check
def _qkv_gradient(way, layer, first, count):
    """Back through the queries, keys and values of some rows, in place."""
    tape, adapters, found, room = way.tape, way.adapters, way.found, way.room
    normed, inputs = tape.normed_1[layer], room.inputs[:count]
    scale_columns(normed[first : first + count], way.frame.norms[layer, 0], inputs)
    for part in range(3):
        mine = room.grad_qkv[part, first : first + count]
        np.dot(mine, way.weights.qkv[layer, part], room.parts[part, :count])
        _adapter(
            inputs,
            mine,
            adapters.low_qkv[layer, part],
            adapters.high_qkv[layer, part],
            way.scaling,
            found.low_qkv[layer, part],
            found.high_qkv[layer, part],
        )
    normalize_gradient(room.parts, normed, tape.scale_1[layer], room.grad, first, count)


@compiled
@no_type_check
def _first_qkv_gradient(way, tokens, count):
    """The same in the first layer, for all rows: a line for each word is enough.

    The embedding below is frozen.
    """
    adapters, found, words = way.adapters, way.found, way.frame.words
    inputs, grad = np.empty_like(words), np.empty_like(words)
    scale_columns(words, way.frame.norms[0, 0], inputs)
    for part in range(3):
        clear(grad)
        sum_by_word(way.room.grad_qkv[part, :count], tokens, grad)
        _adapter(
            inputs,
            grad,
            adapters.low_qkv[0, part],
            adapters.high_qkv[0, part],
            way.scaling,
            found.low_qkv[0, part],
            found.high_qkv[0, part],
        )


@compiled
@no_type_check
def _adapter(rows, grad, low, high, scaling, grad_low, grad_high):
    """Add (dA, dB) of ``y = x (W + s·B·A)ᵀ`` from x ``[N, in]`` and dy ``[N, out]``."""
    # (dy B)ᵀ x itself is slower where the result is low and wide
    turned = np.dot(rows.T, np.dot(grad, high))
    wide = np.dot(grad.T, np.dot(rows, low.T))
    for i in range(grad_low.shape[0]):
        for j in range(grad_low.shape[1]):
            grad_low[i, j] += turned[j, i] * scaling
    for i in range(grad_high.shape[0]):
        for j in range(grad_high.shape[1]):
            grad_high[i, j] += wide[i, j] * scaling


@functools.cache
def warm_up(patience: float = 2.0) -> None:
    """Compile all passes, or load what an earlier process has compiled.

    Args:
        patience: seconds until somebody who waits is told why.
    """
    text = "compiling the tiny language model for this processor (once; some 20 s)"
    word = threading.Timer(patience, print, args=[text], kwargs={"flush": True})
    word.daemon = True
    word.start()
    try:
        _run_small()
    finally:
        word.cancel()


def _run_small() -> None:
    """Every pass once, on the smallest model there is."""
    sizes = {"layers": 1, "V": 2, "H": 4, "I": 2, "r": 1, "N": 2}

    def empty(shape: str) -> np.ndarray:
        words = shape.split()
        return np.zeros([int(sizes.get(word, word)) for word in words], np.float32)

    def tables(*shapes: str) -> list[np.ndarray]:
        return [empty(shape) for shape in shapes]

    frame = Frame(*tables("V H", "V H", "V H", "1", "H", "layers 2 H"), 2, 1e-6)
    big = ("3 V H", "layers 3 H H", "layers H H", "layers 2 I H", "layers H I")
    weights = Weights(*tables(*big))
    mixing = ("layers 3 r H", "layers 3 H r", "layers r H", "layers H r")
    inner = ("layers 2 r H", "layers 2 I r", "layers r I", "layers H r")
    adapters = Adapters(*tables(*mixing, *inner))
    row, one = "layers N H", "layers N 1"
    before = ("N 2 1", row, one, "layers 3 N H", "layers N 2 32")
    after = (row, row, one, "layers 2 N I", "N H", "N 1")
    tape = TapeTables(*tables(*before, *after))
    short = ("N H", "3 N H", "N H", "3 N H", "N I", "N I", "2 N I")
    room = Scratch(*tables(*short))
    nodes = Nodes(*np.array([[0, 0], [0, 1], [-1, 0]]))
    forward(nodes, 0, 1, frame, weights, tape)
    column = np.zeros((2, 1), int)
    draws = Draws(column, column.astype(bool), empty("2 1"), column.copy())
    likely, cold = empty("2 1 V") + np.float32(1), np.float32(1)
    start = np.zeros(1, int)
    sample(nodes, 1, start, likely, cold, 9, frame, weights, tape, draws)
    slopes, scale = empty("N H"), np.float32(1)
    backward(slopes, nodes, frame, weights, tape, adapters, scale, room, adapters)

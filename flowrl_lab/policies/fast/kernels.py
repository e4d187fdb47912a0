"""The loops over the rows of a tree that stand between a layer's products.

Compiled by numba for this processor.  Everything is float32.  A table comes in the
shape that its innermost loop runs over: numba makes such a loop vector instructions
if its index is an index of the table itself, and not a sum.

Rows of a tree: ``parents[n]`` is the row of n's parent, -1 above a first token, and
always smaller than n.  A node attends to its ancestors and itself.
"""

# no strings as annotations, and no checker's wrapper: numba reads these functions
import math
from typing import Any, NamedTuple, no_type_check

import numpy as np
from numba import njit

__all__ = [
    "Nodes",
    "activate",
    "activate_gradient",
    "add",
    "attend",
    "attend_gradient",
    "clear",
    "compiled",
    "draw",
    "grow",
    "look_up",
    "normalize",
    "normalize_gradient",
    "scale_columns",
    "sum_by_word",
    "to_log_probs",
    "turn",
]


class Nodes(NamedTuple):
    """The nodes of a tree, parents first; whole numbers, with room for N."""

    tokens: Any  # [N] token of each node
    positions: Any  # [N] how many tokens come before it
    parents: Any  # [N] row of its parent; -1 above a first token


# Sums may be reordered, but a NaN stays a NaN: a run that diverges must be noticed.
_FAST = {"reassoc", "contract", "arcp", "nsz"}


@no_type_check
def compiled(function):
    """Compile at the first call, and keep the result for the next process.

    It runs without Python's lock, so that the workers' threads do not wait for each
    other.
    """
    settings = {"nogil": True, "fastmath": _FAST, "error_model": "numpy"}
    try:
        return njit(function, cache=True, **settings)
    except RuntimeError:  # neither this folder nor the user's may be written
        return njit(function, **settings)


@compiled
@no_type_check
def _exp(number):
    """e to the power of a number; a loop over it becomes vector instructions.

    2^n · e^r with |r| ≤ ln 2 / 2; the polynomial is e^r's Taylor series, whose rest is
    below float32's rounding.
    """
    # no min or max: they would lose a NaN
    number = np.float32(-87.0) if number < np.float32(-87.0) else number
    number = np.float32(88.0) if number > np.float32(88.0) else number
    whole = np.rint(number * np.float32(1.44269504088896341))
    rest = number - whole * np.float32(0.693359375)
    rest = rest + whole * np.float32(2.12194440e-4)
    series = np.float32(1.0 / 5040.0)
    series = series * rest + np.float32(1.0 / 720.0)
    series = series * rest + np.float32(1.0 / 120.0)
    series = series * rest + np.float32(1.0 / 24.0)
    series = series * rest + np.float32(1.0 / 6.0)
    series = series * rest + np.float32(0.5)
    series = series * rest + np.float32(1.0)
    series = series * rest + np.float32(1.0)
    power = (np.int32(whole) + np.int32(127)) << np.int32(23)
    return series * np.int32(power).view(np.float32)


@compiled
@no_type_check
def clear(table):
    """All numbers 0."""
    for row in range(table.shape[0]):
        for column in range(table.shape[1]):
            table[row, column] = 0


@compiled
@no_type_check
def look_up(words, tokens, first, rows):
    """Each token's line of ``words``, for the tokens from ``first`` on.

    Args:
        words: ``[V, H]``.
        tokens: of the nodes.
        first: the first of them.
        rows: ``[count, H]``; gets the lines.
    """
    for row in range(rows.shape[0]):
        for column in range(rows.shape[1]):
            rows[row, column] = words[tokens[first + row], column]


@compiled
@no_type_check
def sum_by_word(rows, tokens, words):
    """The opposite: add each row to its token's line.

    Args:
        rows: ``[count, H]``.
        tokens: of the nodes, from the first on.
        words: ``[V, H]``.
    """
    for row in range(rows.shape[0]):
        for column in range(rows.shape[1]):
            words[tokens[row], column] += rows[row, column]


@compiled
@no_type_check
def scale_columns(table, weight, result):
    """``table · weight``, one weight a column."""
    for row in range(table.shape[0]):
        for column in range(table.shape[1]):
            result[row, column] = table[row, column] * weight[column]


@compiled
@no_type_check
def add(hidden, product, first, count):
    """Add a product, from its row 0 on, to rows of ``hidden``."""
    for i in range(count):
        for column in range(hidden.shape[1]):
            hidden[first + i, column] += product[i, column]


@compiled
@no_type_check
def normalize(hidden, here, normed, scale, first, count, epsilon):
    """Rows at root mean square 1; ``scale`` gets what they were multiplied with.

    Args:
        hidden: ``[·, H]``, from row ``here`` on.
        normed, scale: ``[N, H]``, ``[N, 1]``, from row ``first`` on.
    """
    width = hidden.shape[1]
    for i in range(count):
        total = hidden[here + i, 0] * hidden[here + i, 0]
        for column in range(1, width):
            total += hidden[here + i, column] * hidden[here + i, column]
        factor = np.float32(1 / math.sqrt(total / width + epsilon))
        scale[first + i, 0] = factor
        for column in range(width):
            normed[first + i, column] = hidden[here + i, column] * factor


@compiled
@no_type_check
def turn(positions, frequencies, turns, first, end):
    """Cosines and sines of the rotary embedding, ``[N, 2, size / 2]``."""
    for row in range(first, end):
        for j in range(len(frequencies)):
            angle = np.float32(positions[row]) * frequencies[j]
            turns[row, 0, j] = math.cos(angle)
            turns[row, 1, j] = math.sin(angle)


@compiled
@no_type_check
def attend(qkv, turns, parents, mixed, path, weights, first, count):
    """Turn queries and keys, then mix the values of each node's ancestors.

    The keys and values are read where they stand: the tape is the cache.

    Args:
        qkv: ``[3, N, heads, size]``; queries and keys are turned in place.
        turns: as ``turn`` gives them.
        parents: ``[N]``.
        mixed: ``[N, heads, size]``; gets attention's result.
        path: room for a node's ancestors.
        weights: ``[N, heads, places]``; gets each node's attention to its ancestors,
            the nearest first; see ``_weigh``.
        first: the first of the rows; their ancestors are done, or among them.
        count: how many rows.
    """
    heads, size = qkv.shape[2:]
    halves = qkv.reshape(3, -1, heads, 2, size // 2)
    for node in range(first, first + count):
        _turn_node(halves, node, turns, np.float32(1))
        seen = _climb(parents, node, path)
        _weigh(qkv, node, path, seen, weights[node])
        for h in range(heads):
            for j in range(size):
                mixed[node, h, j] = 0
            for k in range(seen):
                other, weight = path[k], weights[node, h, k]
                for j in range(size):
                    mixed[node, h, j] += weight * qkv[2, other, h, j]


@compiled
@no_type_check
def _turn_node(halves, node, turns, way):
    """Turn a node's queries and keys in place; ``way`` 1, or -1 to turn back.

    Args:
        halves: ``[3, N, heads, 2, size / 2]``.
        node: row.
        turns: as ``turn`` gives them.
        way: of the turn.
    """
    for part in range(2):
        for h in range(halves.shape[2]):
            for j in range(halves.shape[4]):
                left, right = halves[part, node, h, 0, j], halves[part, node, h, 1, j]
                cosine, sine = turns[node, 0, j], way * turns[node, 1, j]
                halves[part, node, h, 0, j] = left * cosine - right * sine
                halves[part, node, h, 1, j] = right * cosine + left * sine


@compiled
@no_type_check
def _climb(parents, node, path):
    """Write a node and its ancestors to ``path``; how many they are."""
    seen = 0
    while node >= 0:
        path[seen] = node
        seen += 1
        node = parents[node]
    return seen


@compiled
@no_type_check
def _weigh(qkv, node, path, seen, weights):
    """Attention weights of each head, softmax(q · k / √size) over the path.

    ``weights`` has room up to a multiple of 32: most paths are short, and a loop of
    32 is two vector instructions where one of 9 would be nine.
    """
    heads, size = qkv.shape[2:]
    factor = np.float32(1 / math.sqrt(size))
    for h in range(heads):
        largest = np.float32(-np.inf)
        for k in range(seen):
            other, score = path[k], np.float32(0)
            for j in range(size):
                score += qkv[0, node, h, j] * qkv[1, other, h, j]
            score *= factor
            weights[h, k] = score
            largest = max(score, largest)
        total = np.float32(0)
        for start in range(0, seen, 32):
            some = weights[h, start : start + 32]
            for k in range(32):
                some[k] = _exp(some[k] - largest)
        for k in range(seen):
            total += weights[h, k]
        for start in range(0, seen, 32):
            some = weights[h, start : start + 32]
            for k in range(32):
                some[k] /= total


@compiled
@no_type_check
def attend_gradient(
    qkv, turns, parents, above, grad_qkv, path, slopes, weights, first, count
):
    """The gradient of ``attend``: of queries, keys and values before they were turned.

    With the weights P: dV = Pᵀ dO, dP = dO Vᵀ, dS = P (dP - Σ P dP), dQ = dS K,
    dK = dSᵀ Q.

    Args:
        qkv, weights: as ``attend`` left them.
        above: dO, ``[·, heads, size]``, from row 0 on.
        grad_qkv: ``[3, N, heads, size]``; gets the gradient.  It holds what the rows
            after these have added, and 0 where they have not.
        path, slopes: room for a node's ancestors.
        first: the first of the rows; those after them are done.
        count: how many rows.
    """
    heads, size = qkv.shape[2:]
    factor = np.float32(1 / math.sqrt(size))
    halves = grad_qkv.reshape(3, -1, heads, 2, size // 2)
    # children first: then a node's keys and values have heard from everybody
    for row in range(count - 1, -1, -1):
        node = first + row
        seen = _climb(parents, node, path)
        for h in range(heads):
            mean = np.float32(0)
            for k in range(seen):
                other, slope = path[k], np.float32(0)
                for j in range(size):
                    slope += above[row, h, j] * qkv[2, other, h, j]
                slopes[k] = slope
                mean += weights[node, h, k] * slope
            for k in range(seen):
                other, weight = path[k], weights[node, h, k]
                slope = weight * (slopes[k] - mean) * factor
                for j in range(size):
                    grad_qkv[0, node, h, j] += slope * qkv[1, other, h, j]
                for j in range(size):
                    grad_qkv[1, other, h, j] += slope * qkv[0, node, h, j]
                for j in range(size):
                    grad_qkv[2, other, h, j] += weight * above[row, h, j]
        _turn_node(halves, node, turns, np.float32(-1))


@compiled
@no_type_check
def activate(gate_up, active, first, count):
    """``silu(gate) · up``.

    Args:
        gate_up: ``[2, N, I]``, from row ``first`` on.
        active: ``[·, I]``; gets the result, from row 0 on.
    """
    one = np.float32(1)
    for i in range(count):
        for j in range(gate_up.shape[2]):
            gate = gate_up[0, first + i, j]
            active[i, j] = gate / (one + _exp(-gate)) * gate_up[1, first + i, j]


@compiled
@no_type_check
def activate_gradient(gate_up, grad, active, grad_both, first, count):
    """The gradient of ``activate``, given that of its result.

    Args:
        gate_up: ``[2, N, I]``, from row ``first`` on; the others from row 0 on.
        grad: ``[·, I]``.
        active: ``[·, I]``; gets silu(gate) · up again.
        grad_both: ``[2, ·, I]``; gets the gradient of gate and up.
    """
    one = np.float32(1)
    for n in range(count):
        for j in range(gate_up.shape[2]):
            gate, up = gate_up[0, first + n, j], gate_up[1, first + n, j]
            above = grad[n, j]
            sigmoid = one / (one + _exp(-gate))
            silu = gate * sigmoid
            active[n, j] = silu * up
            # d silu / d gate = sigmoid + silu (1 - sigmoid)
            slope = sigmoid + silu * (one - sigmoid)
            grad_both[0, n, j] = above * up * slope
            grad_both[1, n, j] = above * silu


@compiled
@no_type_check
def normalize_gradient(parts, normed, scale, grad, first, count):
    """Add the gradient of h to ``grad``, where ``normed = h · scale = h / rms(h)``.

    Args:
        parts: ``[K, ·, H]``, from row 0 on; their sum is the gradient of ``normed``;
            changed.
        normed, scale, grad: ``[N, H]``, ``[N, 1]``, ``[N, H]``, from row ``first`` on.
    """
    width = grad.shape[1]
    for n in range(count):
        for k in range(1, len(parts)):
            for j in range(width):
                parts[0, n, j] += parts[k, n, j]
        along = np.float32(0)
        for j in range(width):
            along += parts[0, n, j] * normed[first + n, j]
        along /= np.float32(width)
        factor = scale[first + n, 0]
        for j in range(width):
            grad[first + n, j] += (
                parts[0, n, j] - normed[first + n, j] * along
            ) * factor


@compiled
@no_type_check
def to_log_probs(scores, temperature):
    """Scores ``[M, V]`` to log softmax(scores / temperature), in place."""
    for row in range(scores.shape[0]):
        largest = np.float32(-np.inf)
        for word in range(scores.shape[1]):
            scores[row, word] /= temperature
            largest = max(scores[row, word], largest)
        total = np.float32(0)
        for word in range(scores.shape[1]):
            total += _exp(scores[row, word] - largest)
        rest = largest + np.float32(math.log(total))
        for word in range(scores.shape[1]):
            scores[row, word] -= rest


@compiled
@no_type_check
def draw(log_probs, at, first, noise, alive, tokens, chosen):
    """A token for each live row: the one whose probability / noise is largest.

    Args:
        log_probs: of the words after the nodes of a level, ``[M, V]``.
        at: row of the tree that each completion is at, ``[B]``.
        first: row of the tree where the level begins.
        noise: ``[B, V]``.
        alive: which rows draw, ``[B]``.
        tokens: gets what they draw, ``[B]``.
        chosen: gets its log-prob, ``[B]``.
    """
    for row in range(len(at)):
        if not alive[row]:
            continue
        node, best, lead = at[row] - first, 0, np.float32(-1)
        for word in range(log_probs.shape[1]):
            found = _exp(log_probs[node, word]) / noise[row, word]
            if found > lead:
                best, lead = word, found
        tokens[row], chosen[row] = best, log_probs[node, best]


@compiled
@no_type_check
def grow(nodes, first, end, at, tokens, alive, vocab_size, grown):
    """The next level of a tree: a node for each different (parent, token).

    The nodes are in the order of their parents, then of their tokens.

    Args:
        nodes: of the tree, with room for more.
        first, end: rows of the level above.
        at: row that each completion is at, ``[B]``.
        tokens: what it continues with, ``[B]``.
        alive: whether it does, ``[B]``.
        vocab_size: V, how many words there are.
        grown: gets the row of each live completion's new node, 0 for others, ``[B]``.

    Returns:
        The row after the new level's last.
    """
    number = np.full((end - first) * vocab_size, -1, np.int64)
    for row in range(len(at)):
        if alive[row]:
            number[(at[row] - first) * vocab_size + tokens[row]] = 0
    last = end
    for key in range(len(number)):
        if number[key] == 0:
            parent = first + key // vocab_size
            number[key] = last
            nodes.tokens[last] = key % vocab_size
            nodes.positions[last] = nodes.positions[parent] + 1
            nodes.parents[last] = parent
            last += 1
    for row in range(len(at)):
        grown[row] = 0
        if alive[row]:
            grown[row] = number[(at[row] - first) * vocab_size + tokens[row]]
    return last

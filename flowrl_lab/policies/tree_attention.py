"""Attention over the nodes of a tree, each of which sees its own prefix only.

``LevelGrid`` serves one level of a tree that is being grown, with a cache of the
levels before; ``TreeGrid`` serves a whole tree at once, forward and backward.
Products, softmax and products again are written out: on matrices of this size
that is faster than PyTorch's fused attention, and needs no copies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from flowrl_lab.policies.prefix_tree import Level, sort_by_prompt

__all__ = ["LevelGrid", "TreeGrid", "count_cache_rows"]


def count_cache_rows(prompts: int, slots: int, width: int, heads: int) -> int:
    """Rows ``[head size]`` that ``LevelGrid`` needs: keys, values, a level's queries.

    Args:
        prompts: P.
        slots: L, places for the nodes of each prompt.
        width: the most nodes of one prompt in one level.
        heads: of the attention.
    """
    return prompts * heads * (2 * slots + width)


class LevelGrid:
    """Queries of one level; keys and values of all slots so far.

    The cache is a table of rows ``[head size]``: the keys of every prompt, head and
    slot, then their values, then this level's queries, beside each other.
    """

    def __init__(self, level: Level, heads: int, dtype: torch.dtype):
        prompts, slots = len(level.filled), level.sees.shape[1]
        self._groups, self._slots = prompts * heads, slots
        self._used = int(level.filled.max())
        # queries of this level stand beside each other, whatever slots they have
        new = torch.bincount(level.prompts, minlength=prompts)
        place = level.slots - (level.filled - new)[level.prompts]
        self._width = int(new.max())
        group = level.prompts[:, None] * heads + torch.arange(
            heads, device=level.prompts.device
        )
        home = group * slots + level.slots[:, None]
        self._place = group * self._width + place[:, None]
        size = self._groups * slots
        self._home = torch.cat([self._place + 2 * size, home, home + size], 1).flatten()
        self._bias = self._make_bias(level, place, heads, dtype)

    def _make_bias(self, level: Level, place: Tensor, heads: int, dtype) -> Tensor:
        """0 where a query sees a slot, -inf elsewhere, ``[P * heads, width, used]``."""
        seen = level.sees[:, : self._used]
        # places without a node see everything: any softmax will do there
        shape = len(level.filled), self._width, self._used
        bias = torch.zeros(shape, dtype=dtype, device=seen.device)
        bias[level.prompts, place] = bias.new_zeros(seen.shape).masked_fill_(
            ~seen, float("-inf")
        )
        return bias.repeat_interleave(heads, 0)

    def attend(self, qkv: Tensor, cache: Tensor, out: Tensor | None = None) -> Tensor:
        """Attention of each node over the slots it sees, ``[N, heads * size]``.

        Args:
            qkv: of this level's nodes, ``[N, 3 * heads * size]``.
            cache: ``count_cache_rows`` rows; gets this level's.
            out: where to write the result.
        """
        size = cache.shape[1]
        cache.index_copy_(0, self._home, qkv.view(-1, size))
        count = self._groups * self._slots
        key, value = (
            table.view(self._groups, self._slots, size)[:, : self._used]
            for table in (cache[:count], cache[count : 2 * count])
        )
        query = cache[2 * count :][: self._groups * self._width]
        query = query.view(self._groups, self._width, size)
        mixed = _weigh(query, key, self._bias) @ value
        mixed = mixed.view(-1, size)
        place = self._place.flatten()
        if out is None:
            return mixed[place].view(len(qkv), -1)
        torch.index_select(mixed, 0, place, out=out.view(-1, size))
        return out


class TreeGrid:
    """All nodes of a tree, those of each prompt side by side, one prompt at a time.

    Args:
        level: all nodes of a tree, in any order that keeps parents first.
        heads: of the attention.
        dtype: of the model.

    Attributes:
        level: the nodes, prompt after prompt.
    """

    def __init__(self, level: Level, heads: int, dtype: torch.dtype):
        self.level, self._order, self._back = sort_by_prompt(level)
        self._heads = heads
        seen = self.level.sees
        bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        bias.masked_fill_(~seen, float("-inf"))
        counts = level.filled.tolist()
        spans = zip(bias.split(counts), counts, strict=True)
        self._biases = [part[:, :count] for part, count in spans]

    def put(self, values: Tensor) -> Tensor:
        """Rows in the order of the tree -> prompt after prompt."""
        return values if self._order is None else values.index_select(0, self._order)

    def take(self, values: Tensor) -> Tensor:
        """Rows prompt after prompt -> in the order of the tree."""
        return values if self._back is None else values.index_select(0, self._back)

    def attend(self, qkv: Tensor, out: Tensor) -> Tensor:
        """Attention of each node over its prefix.

        Args:
            qkv: ``[N, 3 * heads * size]``, prompt after prompt.
            out: is written to, ``[N, heads * size]``.
        """
        for bias, (query, key, value), (mixed,) in self._cut((qkv, 3), (out, 1)):
            torch.bmm(_weigh(query, key, bias), value, out=mixed)
        return out

    def gradient(self, qkv: Tensor, upstream: Tensor, total: Tensor) -> Tensor:
        """Gradient of ``qkv``, given that of ``mixed = attend(qkv)``.

        The attention weights are computed again, which is cheaper than to keep
        them:  dV = Pᵀ dO,  dP = dO Vᵀ,  dS = P (dP - Σ dO·O),  dQ = dS K,  dK = dSᵀ Q.

        Args:
            qkv: as in ``attend``.
            upstream: dO, ``[N, heads * size]``.
            total: Σ dO·O of each head, ``[N, heads]``.
        """
        result = torch.empty_like(qkv)
        factor = 1 / math.sqrt(upstream.shape[1] // self._heads)
        tables = (qkv, 3), (upstream, 1), (total, 1), (result, 3)
        for bias, (query, key, value), (above,), (mean,), places in self._cut(*tables):
            grad_query, grad_key, grad_value = places
            probs = _weigh(query, key, bias)
            torch.bmm(probs.mT, above, out=grad_value)
            slope = torch.baddbmm(mean, above, value.mT, beta=-1)
            slope.mul_(probs).mul_(factor)
            torch.bmm(slope, key, out=grad_query)
            torch.bmm(slope.mT, query, out=grad_key)
        return result

    def _cut(self, *tables: tuple[Tensor, int]) -> Iterator[tuple]:
        """For each prompt its bias, and its part of each table.

        A table ``[N, parts * heads * size]`` gives ``parts`` views
        ``[heads, nodes, size]``.
        """
        start = 0
        opened = [
            table.view(len(table), parts, self._heads, -1).permute(1, 2, 0, 3)
            for table, parts in tables
        ]
        for bias in self._biases:
            rows = slice(start, start + len(bias))
            yield bias, *(table[:, :, rows].unbind(0) for table in opened)
            start = rows.stop


def _weigh(query: Tensor, key: Tensor, bias: Tensor) -> Tensor:
    """Attention weights ``softmax(Q Kᵀ / √size + bias)``."""
    factor = 1 / math.sqrt(query.shape[-1])
    return torch.baddbmm(bias, query, key.mT, alpha=factor).softmax(-1)

"""Attention over the nodes of a tree, each of which sees its own prefix only.

Nodes are a flat list; attention wants a grid ``[prompts, heads, places, size]``.
``LevelGrid`` serves one level of a tree that is being grown, with a cache of the
levels before; ``TreeGrid`` serves a whole tree at once, forward and backward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from flowrl_lab.policies.prefix_tree import Level

__all__ = ["LevelGrid", "TreeGrid"]

# Prompts are padded to the largest of their bucket, and a bucket's scores should
# stay in the processor's cache.
BUCKET = 4


class LevelGrid:
    """Queries of one level; keys and values of all slots so far."""

    def __init__(self, level: Level, heads: int, dtype: torch.dtype):
        self._prompts, self._slots = len(level.filled), level.sees.shape[1]
        self._heads = heads
        self._used = int(level.filled.max())
        self._home = level.prompts * self._slots + level.slots
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

    def attend(self, qkv: Tensor, store: Tensor, out: Tensor | None = None) -> Tensor:
        """Attention of each node over the slots it sees, ``[N, heads * size]``.

        Args:
            qkv: of this level's nodes, ``[N, 3 * heads * size]``.
            store: keys and values of all slots, ``[P * L, 2 * heads * size]``; gets
                this level's.
            out: where to write the result.
        """
        third = qkv.shape[1] // 3
        store.index_copy_(0, self._home, qkv[:, third:])
        key, value = self._open(store, self._slots, self._used, 2)
        queries = qkv.new_zeros(self._prompts * self._width, third)
        queries.index_copy_(0, self._place, qkv[:, :third])
        (query,) = self._open(queries, self._width, self._width, 1)
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=self._bias
        )
        mixed = mixed.transpose(1, 2).reshape(-1, third)
        return torch.index_select(mixed, 0, self._place, out=out)

    def _open(self, table: Tensor, rows: int, used: int, parts: int):
        """``[P * rows, parts * heads * size]`` -> each ``[P, heads, used, size]``."""
        split = table.view(self._prompts, rows, parts, self._heads, -1)[:, :used]
        return split.permute(2, 0, 3, 1, 4).unbind(0)


@dataclass(frozen=True)
class _Bucket:
    """Prompts ``first`` to ``last`` of the table, whose trees fill ``used`` slots."""

    first: int
    last: int
    used: int
    bias: Tensor  # [prompts, 1, used, used]


class TreeGrid:
    """All nodes of a tree: prompts sorted by size, a few of them at a time."""

    def __init__(self, level: Level, heads: int, dtype: torch.dtype):
        filled = level.filled
        self.level = level
        self._prompts, self._slots = len(filled), int(filled.max())
        self._heads = heads
        order = filled.argsort()
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order), device=order.device)
        self._home = rank[level.prompts] * self._slots + level.slots
        seen = level.sees[:, : self._slots]
        shape = (self._prompts * self._slots, self._slots)
        bias = torch.zeros(shape, dtype=dtype, device=seen.device)
        bias[self._home] = bias[self._home].masked_fill(~seen, float("-inf"))
        bias = bias.view(self._prompts, 1, self._slots, self._slots)
        self._buckets = []
        for first in range(0, self._prompts, BUCKET):
            last = min(first + BUCKET, self._prompts)
            used = int(filled[order[last - 1]])
            part = bias[first:last, :, :used, :used].contiguous()
            self._buckets.append(_Bucket(first, last, used, part))

    def attend(self, qkv: Tensor, out: Tensor | None = None) -> Tensor:
        """Attention of each node over its prefix, ``[N, heads * size]``.

        Args:
            qkv: ``[N, 3 * heads * size]``.
            out: where to write the result.
        """
        table = self._spread(qkv, 3)
        width = qkv.shape[1] // 3
        result = qkv.new_zeros(self._prompts * self._slots, width)
        places = self._open(result, 1)
        for bucket in self._buckets:
            query, key, value = self._cut(table, bucket).unbind(0)
            mixed = functional.scaled_dot_product_attention(
                query, key, value, attn_mask=bucket.bias
            )
            self._cut(places, bucket)[0].copy_(mixed)
        return torch.index_select(result, 0, self._home, out=out)

    def gradient(self, qkv: Tensor, mixed: Tensor, grad: Tensor) -> Tensor:
        """Gradient of ``qkv``, given that of ``mixed = attend(qkv)``.

        The attention weights are computed again, which is cheaper than to keep
        them:  dV = Pᵀ dO,  dP = dO Vᵀ,  dS = P (dP - Σ dO·O),  dQ = dS K,  dK = dSᵀ Q.
        """
        head = qkv.shape[1] // (3 * self._heads)
        factor = 1 / math.sqrt(head)
        table, upstream = self._spread(qkv, 3), self._spread(grad, 1)
        total = (grad * mixed).view(len(grad), self._heads, head).sum(-1)
        total = self._spread(total, 1)
        result = qkv.new_zeros(self._prompts * self._slots, qkv.shape[1])
        places = self._open(result, 3)
        for bucket in self._buckets:
            parts = self._cut(table, bucket).flatten(1, 2)
            query, key, value = (part.contiguous() for part in parts.unbind(0))
            (above,) = self._cut(upstream, bucket).flatten(1, 2).unbind(0)
            (mean,) = self._cut(total, bucket).flatten(1, 2).unbind(0)
            bias = bucket.bias.expand(-1, self._heads, -1, -1).flatten(0, 1)
            query = query * factor
            probs = torch.baddbmm(bias, query, key.transpose(1, 2)).softmax(-1)
            grad_value = torch.bmm(probs.transpose(1, 2), above)
            slope = torch.bmm(above, value.transpose(1, 2)).sub_(mean).mul_(probs)
            grad_query = torch.bmm(slope, key).mul_(factor)
            grad_key = torch.bmm(slope.transpose(1, 2), query)
            target = self._cut(places, bucket)
            for place, part in enumerate((grad_query, grad_key, grad_value)):
                target[place].copy_(part.view(target[place].shape))
        return result.index_select(0, self._home)

    def _spread(self, rows: Tensor, parts: int) -> Tensor:
        """``[N, parts * heads * size]`` -> ``[parts, P, heads, L, size]``."""
        table = rows.new_zeros(self._prompts * self._slots, rows.shape[1])
        return self._open(table.index_copy_(0, self._home, rows), parts)

    def _open(self, table: Tensor, parts: int) -> Tensor:
        split = table.view(self._prompts, self._slots, parts, self._heads, -1)
        return split.permute(2, 0, 3, 1, 4)

    @staticmethod
    def _cut(table: Tensor, bucket: _Bucket) -> Tensor:
        return table[:, bucket.first : bucket.last, :, : bucket.used]

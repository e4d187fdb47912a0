"""Attention over the nodes of a tree, each of which sees its own prefix only.

Nodes are a flat list; attention wants a grid ``[prompts, heads, places, size]``.
``LevelGrid`` serves one level of a tree that is being grown, with a cache of the
levels before; ``TreeGrid`` serves a whole tree at once, forward and backward.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from flowrl_lab.policies.prefix_tree import Level
from flowrl_lab.policies.workers import count_workers, run_together

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
    """All nodes of a tree: prompts sorted by size, a few of them at a time.

    Rows of nodes are put into tables ``[P * L, parts * heads * size]``, one row for
    each slot; the slots that nobody uses stay 0.
    """

    def __init__(self, level: Level, heads: int, dtype: torch.dtype):
        filled, self.level = level.filled, level
        self._prompts, self._slots = len(filled), int(filled.max())
        self._heads, self._dtype = heads, dtype
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

    def new_table(self, columns: int) -> Tensor:
        """A table of zeros."""
        shape = (self._prompts * self._slots, columns)
        return torch.zeros(shape, dtype=self._dtype, device=self._home.device)

    def put(self, table: Tensor, rows: slice, values: Tensor) -> None:
        """Write the values of some nodes to their slots."""
        table.index_copy_(0, self._home[rows], values)

    def take(self, table: Tensor, rows: slice, out: Tensor | None = None) -> Tensor:
        """The values of some nodes."""
        return torch.index_select(table, 0, self._home[rows], out=out)

    def attend(self, qkv: Tensor, result: Tensor) -> None:
        """Attention of each node over its prefix.

        Args:
            qkv: table of ``3 * heads * size`` columns.
            result: table of ``heads * size`` columns; is written to.
        """
        sources, places = self._open(qkv, 3), self._open(result, 1)

        def attend(bucket: _Bucket) -> None:
            query, key, value = self._cut(sources, bucket).unbind(0)
            mixed = functional.scaled_dot_product_attention(
                query, key, value, attn_mask=bucket.bias
            )
            self._cut(places, bucket)[0].copy_(mixed)

        self._for_each_bucket(attend)

    def gradient(
        self, qkv: Tensor, upstream: Tensor, total: Tensor, result: Tensor
    ) -> None:
        """Gradient of ``qkv``, given that of ``mixed = attend(qkv)``.

        The attention weights are computed again, which is cheaper than to keep
        them:  dV = Pᵀ dO,  dP = dO Vᵀ,  dS = P (dP - Σ dO·O),  dQ = dS K,  dK = dSᵀ Q.

        Args:
            qkv: as in ``attend``.
            upstream: dO, table of ``heads * size`` columns.
            total: Σ dO·O of each head, table of ``heads`` columns.
            result: table like ``qkv``; is written to.
        """
        factor = 1 / math.sqrt(qkv.shape[1] // (3 * self._heads))
        tables = self._open(qkv, 3), self._open(upstream, 1), self._open(total, 1)
        places = self._open(result, 3)

        def go_back(bucket: _Bucket) -> None:
            source, above, mean = (
                self._cut(table, bucket).flatten(1, 2).contiguous() for table in tables
            )
            query, key, value = source.unbind(0)
            bias = bucket.bias.expand(-1, self._heads, -1, -1).flatten(0, 1)
            query = query * factor
            probs = torch.baddbmm(bias, query, key.transpose(1, 2)).softmax(-1)
            grad_value = torch.bmm(probs.transpose(1, 2), above[0])
            slope = torch.bmm(above[0], value.transpose(1, 2)).sub_(mean[0])
            slope.mul_(probs)
            grad_query = torch.bmm(slope, key).mul_(factor)
            grad_key = torch.bmm(slope.transpose(1, 2), query)
            target = self._cut(places, bucket)
            for place, part in enumerate((grad_query, grad_key, grad_value)):
                target[place].copy_(part.view(target[place].shape))

        self._for_each_bucket(go_back)

    def _for_each_bucket(self, action: Callable[[_Bucket], None]) -> None:
        """Buckets grow in size: every worker gets small and large ones."""
        parts = max(1, min(count_workers(), len(self._buckets)))

        def act(number: int) -> None:
            for bucket in self._buckets[number::parts]:
                action(bucket)

        run_together([functools.partial(act, number) for number in range(parts)])

    def _open(self, table: Tensor, parts: int) -> Tensor:
        """``[P * L, parts * heads * size]`` -> ``[parts, P, heads, L, size]``."""
        split = table.view(self._prompts, self._slots, parts, self._heads, -1)
        return split.permute(2, 0, 3, 1, 4)

    @staticmethod
    def _cut(table: Tensor, bucket: _Bucket) -> Tensor:
        return table[:, bucket.first : bucket.last, :, : bucket.used]

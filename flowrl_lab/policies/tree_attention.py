"""Attention over the nodes of a whole tree, each of which sees its own prefix only.

Products, softmax and products again are written out, here and in ``tree_layers``: on
matrices of this size that is faster than PyTorch's fused attention, and needs no
copies.
"""

import math
from typing import no_type_check

import torch
from torch import Tensor

from flowrl_lab.policies.prefix_tree import Level, sort_by_prompt
from flowrl_lab.policies.torchscript import without_lock
from flowrl_lab.policies.tree_layers import cut_heads, weigh

__all__ = ["TreeGrid"]


class TreeGrid:
    """All nodes of a tree, those of each prompt side by side, one prompt at a time.

    Args:
        level: all nodes of a tree, in any order that keeps parents first.
        heads: of the attention.
        dtype: of the model.

    Attributes:
        level: the nodes, prompt after prompt.
        biases: of each prompt, ``[nodes, nodes]``: -inf where a node does not see.
    """

    def __init__(self, level: Level, heads: int, dtype: torch.dtype):
        self.level, self._order, self._back = sort_by_prompt(level)
        self._heads = heads
        seen = self.level.sees
        bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        bias.masked_fill_(~seen, float("-inf"))
        counts = level.filled.tolist()
        spans = zip(bias.split(counts), counts, strict=True)
        self.biases = [part[:, :count] for part, count in spans]

    def put(self, values: Tensor) -> Tensor:
        """Rows in the order of the tree -> prompt after prompt."""
        return values if self._order is None else values.index_select(0, self._order)

    def take(self, values: Tensor) -> Tensor:
        """Rows prompt after prompt -> in the order of the tree."""
        return values if self._back is None else values.index_select(0, self._back)

    def gradient(self, qkv: Tensor, upstream: Tensor, total: Tensor) -> Tensor:
        """Gradient of ``qkv``, given that of attention's result O.

        The attention weights P are computed again, which is cheaper than to keep
        them:  dV = Pᵀ dO,  dP = dO Vᵀ,  dS = P (dP - Σ dO·O),  dQ = dS K,  dK = dSᵀ Q.

        Args:
            qkv: ``[N, 3 * heads * size]``, prompt after prompt.
            upstream: dO, ``[N, heads * size]``.
            total: Σ dO·O of each head, ``[N, heads]``.
        """
        run = without_lock(_gradient)
        return run(qkv, upstream, total, self.biases, self._heads)


@no_type_check
def _gradient(
    qkv: Tensor, upstream: Tensor, total: Tensor, biases: list[Tensor], heads: int
) -> Tensor:
    """``TreeGrid.gradient``."""
    result = torch.empty_like(qkv)
    factor = 1 / math.sqrt(upstream.shape[1] // heads)
    first = 0
    for bias in biases:
        last = first + bias.shape[0]
        query, key, value = cut_heads(qkv, first, last, 3, heads).unbind(0)
        above = cut_heads(upstream, first, last, 1, heads)[0]
        mean = cut_heads(total, first, last, 1, heads)[0]
        place = cut_heads(result, first, last, 3, heads)
        probs = weigh(query, key, bias)
        torch.bmm(probs.transpose(1, 2), above, out=place[2])
        slope = torch.baddbmm(mean, above, value.transpose(1, 2), beta=-1, alpha=1)
        slope.mul_(probs).mul_(factor)
        torch.bmm(slope, key, out=place[0])
        torch.bmm(slope.transpose(1, 2), query, out=place[1])
        first = last
    return result

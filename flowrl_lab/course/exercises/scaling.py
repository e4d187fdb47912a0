"""Notebook 12: several processes, groups that are cut, the roofline, memory."""

from __future__ import annotations

import torch
from torch import Tensor

from flowrl_lab.advantages import group_normalized
from flowrl_lab.course.checking import Case, Exercise, Mistake
from flowrl_lab.course.exercises._cases import draw_rewards

__all__ = ["EXERCISES"]


def _gradients() -> list[Case]:
    """Two and three processes with different numbers of rows."""
    return [
        ((draw_rewards(10, seed=70).view(2, 5), [6, 2]), {}),
        ((draw_rewards(12, seed=71).view(3, 4), [1, 5, 2]), {}),
        ((draw_rewards(12, seed=72).view(2, 2, 3), [4, 4]), {}),
    ]


def _weighted(gradients: Tensor, weights: Tensor) -> Tensor:
    return torch.tensordot(weights, gradients, dims=1)


def _counts(gradients: Tensor, rows: list[int]) -> Tensor:
    return torch.tensor(rows, dtype=gradients.dtype)


def _shares_of(weights: Tensor) -> Tensor:
    return weights / weights.sum()


COMBINE_GRADIENTS = Exercise(
    name="combine_gradients",
    solution="flowrl_lab.scaling.data_parallel:combine_gradients",
    cases=_gradients,
    mistakes=(
        Mistake(
            "mean of the means",
            "You averaged the processes, not the rows: a process with two rows counts "
            "as much as one with six. Weigh each gradient by its rows.",
            lambda gradients, rows: gradients.mean(0),  # noqa: ARG005
        ),
        Mistake(
            "sum of the gradients",
            "You added the gradients up. Each is that of a mean already, so the sum is "
            "too long by about the number of processes.",
            lambda gradients, rows: gradients.sum(0),  # noqa: ARG005
        ),
        Mistake(
            "not divided by all rows",
            "You weighed by the rows but did not divide by their sum: that is the "
            "gradient of the summed loss, not of the mean.",
            lambda gradients, rows: _weighted(gradients, _counts(gradients, rows)),
        ),
        Mistake(
            "weights the wrong way round",
            "The weights are upside down: the process with the fewest rows counts "
            "most.",
            lambda gradients, rows: _weighted(
                gradients, _shares_of(1 / _counts(gradients, rows))
            ),
        ),
    ),
    hint="The mean over all rows is Σ n_w (mean of process w) / Σ n_w, and a gradient "
    "is linear.",
)


def _shares() -> list[Case]:
    """Groups of 4 and 6, cut in the middle."""
    rewards = torch.tensor([0.0, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 0])
    return [
        ((rewards.view(2, 6), 4, 0), {}),
        ((rewards.view(2, 6), 4, 1), {}),
        ((draw_rewards(18, seed=73).view(3, 6), 9, 1), {}),
    ]


def _alone(shares: Tensor, rank: int) -> Tensor:
    """Each process treats its own rows as one group."""
    return group_normalized(shares[rank], shares.shape[1])


def _whole_batch(shares: Tensor, rank: int) -> Tensor:
    every = group_normalized(shares.flatten(), shares.numel())
    return every.view(shares.shape)[rank]


def _interleaved(shares: Tensor, num_generations: int, rank: int) -> Tensor:
    every = group_normalized(shares.T.flatten(), num_generations)
    return every.view(shares.T.shape).T[rank]


GATHERED_NORMALIZED = Exercise(
    name="gathered_normalized",
    solution="flowrl_lab.scaling.data_parallel:gathered_normalized",
    cases=_shares,
    mistakes=(
        Mistake(
            "normalised alone",
            "You normalised the process's own rows. A group that was cut has its other "
            "half elsewhere: gather all rewards first.",
            lambda shares, num_generations, rank: _alone(shares, rank),  # noqa: ARG005
        ),
        Mistake(
            "the whole batch as one group",
            "You normalised over the whole batch. Each group of num_generations has "
            "its own mean and spread.",
            lambda shares, num_generations, rank: _whole_batch(shares, rank),  # noqa: ARG005
        ),
        Mistake(
            "processes interleaved",
            "You laid the shares side by side, row by row. They follow each other: "
            "first all rows of process 0, then all of process 1.",
            _interleaved,
        ),
        Mistake(
            "not cut up again",
            "You return the z-scores of all processes. This one needs its own rows "
            "only.",
            lambda shares, num_generations, rank: group_normalized(  # noqa: ARG005
                shares.flatten(), num_generations
            ),
        ),
    ),
    hint="shares.flatten() is the batch in order; group_normalized knows the groups; "
    "view(shares.shape)[rank] is a process's part.",
)


def _decoding() -> list[Case]:
    """Reading is the limit, then arithmetic, then nearly both."""
    chip = {"weight_bytes": 2, "flops": 400e12, "bandwidth": 2e12}
    return [
        ((7.6e9, 8), chip),
        ((7.6e9, 4096), chip),
        ((135e6, 64), {"weight_bytes": 4, "flops": 5e10, "bandwidth": 1e10}),
        ((1e9, 1), {"weight_bytes": 1, "flops": 1e12, "bandwidth": 1e12}),
    ]


DECODE_SECONDS = Exercise(
    name="decode_seconds",
    solution="flowrl_lab.scaling.planner:decode_seconds",
    cases=_decoding,
    mistakes=(
        Mistake(
            "sum of the two",
            "You added reading and arithmetic. They happen at the same time; the "
            "slower one is what you wait for.",
            lambda weights, rows, *, weight_bytes, flops, bandwidth: (
                2 * weights * rows / flops + weights * weight_bytes / bandwidth
            ),
        ),
        Mistake(
            "the faster one",
            "You took the smaller of the two. The machine waits for the slower one.",
            lambda weights, rows, *, weight_bytes, flops, bandwidth: min(
                2 * weights * rows / flops, weights * weight_bytes / bandwidth
            ),
        ),
        Mistake(
            "weights read once a row",
            "You read the weights anew for every row. One reading serves all rows: "
            "that is why sampling many completions at once is cheap.",
            lambda weights, rows, *, weight_bytes, flops, bandwidth: max(
                2 * weights * rows / flops, weights * rows * weight_bytes / bandwidth
            ),
        ),
        Mistake(
            "one operation a weight",
            "A weight costs two operations, a product and a sum.",
            lambda weights, rows, *, weight_bytes, flops, bandwidth: max(
                weights * rows / flops, weights * weight_bytes / bandwidth
            ),
        ),
    ),
    hint="Seconds of arithmetic: 2 · weights · rows / flops. Seconds of reading: bytes "
    "of all weights / bandwidth. Both go on at once.",
)


def _shared_memory() -> list[Case]:
    """One GPU, several, and a model whose rest is the larger part."""
    return [
        ((7.6e9, 1), {"rest": 38.0}),
        ((7.6e9, 4), {"rest": 38.0}),
        ((1.5e9, 8), {"rest": 12.5}),
    ]


TRAINING_GIGABYTES = Exercise(
    name="training_gigabytes",
    solution="flowrl_lab.scaling.planner:training_gigabytes",
    cases=_shared_memory,
    mistakes=(
        Mistake(
            "everything is shared",
            "You divided the rest as well. Weights in use, reference and activations "
            "lie whole on every GPU; only the 16 bytes a weight are shared.",
            lambda weights, shards, *, rest: (
                1.2 * (16 * weights / 1e9 + rest) / shards + 1.5
            ),
        ),
        Mistake(
            "nothing is shared",
            "The number of GPUs has no effect on your result. Each holds one part of "
            "the 16 bytes a weight: divide them by shards.",
            lambda weights, shards, *, rest: 1.2 * (16 * weights / 1e9 + rest) + 1.5,  # noqa: ARG005
        ),
        Mistake(
            "nothing wasted",
            "You left the allocator's waste out: a fifth more than is counted.",
            lambda weights, shards, *, rest: 16 * weights / shards / 1e9 + rest + 1.5,
        ),
        Mistake(
            "waste on the process",
            "You added the process's 1.5 GB before the fifth. They come on top.",
            lambda weights, shards, *, rest: (
                1.2 * (16 * weights / shards / 1e9 + rest + 1.5)
            ),
        ),
        Mistake(
            "neither waste nor process",
            "You left out what comes on top: a fifth more, and the process's 1.5 GB.",
            lambda weights, shards, *, rest: 16 * weights / shards / 1e9 + rest,
        ),
        Mistake(
            "waste on the 16 bytes only",
            "You added the fifth to the 16 bytes a weight, but not to the rest. The "
            "allocator wastes a fifth of all that lies there.",
            lambda weights, shards, *, rest: (
                1.2 * 16 * weights / shards / 1e9 + rest + 1.5
            ),
        ),
        Mistake(
            "GiB",
            "You divided by 2³⁰: that gives GiB. Here a GB is 10⁹ bytes.",
            lambda weights, shards, *, rest: (
                1.2 * (16 * weights / shards / 2**30 + rest) + 1.5
            ),
        ),
        Mistake(
            "only the moments",
            "You counted 8 bytes a weight, AdamW's two moments. The float32 copy and "
            "its gradient are 8 more.",
            lambda weights, shards, *, rest: (
                1.2 * (8 * weights / shards / 1e9 + rest) + 1.5
            ),
        ),
        Mistake(
            "bytes beside gigabytes",
            "16 · weights are bytes, and rest is in GB: divide by 1e9.",
            lambda weights, shards, *, rest: 1.2 * (16 * weights / shards + rest) + 1.5,
        ),
    ),
    hint="On each GPU lie 16 · weights / shards / 1e9 GB and the rest. A fifth of that "
    "is wasted, and the process takes 1.5 GB.",
)

EXERCISES = (
    COMBINE_GRADIENTS,
    GATHERED_NORMALIZED,
    DECODE_SECONDS,
    TRAINING_GIGABYTES,
)

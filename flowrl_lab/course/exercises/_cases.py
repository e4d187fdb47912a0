"""Inputs that several exercises are checked on: small, random, float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowrl_lab.course.checking import Case

__all__ = [
    "draw_log_probs",
    "draw_rewards",
    "one_distribution",
    "policy_reference_and_rewards",
    "policy_reference_rewards_and_log_z",
    "reference_and_rewards",
    "sampled_sequences",
    "two_distributions",
]


def draw_log_probs(*shape: int, seed: int, spread: float = 1.5) -> Tensor:
    """Random normalised log-probabilities, float64."""
    generator = torch.Generator().manual_seed(seed)
    scores = spread * torch.randn(shape, generator=generator, dtype=torch.float64)
    return torch.log_softmax(scores, dim=-1)


def draw_rewards(number: int, seed: int) -> Tensor:
    """Rewards between 0 and 1, float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(number, generator=generator, dtype=torch.float64)


def one_distribution() -> list[Case]:
    """Log-probabilities: even ones, a row, a batch of rows, and one with a 0."""
    even = torch.full((8,), -math.log(8), dtype=torch.float64)
    return [
        ((even,), {}),
        ((draw_log_probs(6, seed=1),), {}),
        ((draw_log_probs(3, 5, seed=2),), {}),
        ((torch.tensor([0.5, 0.25, 0.25, 0.0], dtype=torch.float64).log(),), {}),
    ]


def two_distributions() -> list[Case]:
    """Two log-probabilities of one shape: a row, and a batch of rows."""
    return [
        ((draw_log_probs(6, seed=3), draw_log_probs(6, seed=4)), {}),
        ((draw_log_probs(3, 5, seed=5), draw_log_probs(3, 5, seed=6)), {}),
    ]


def reference_and_rewards() -> list[Case]:
    """log π_ref (even, and not) and rewards of all answers, with a reward scale.

    In the last case exp(β r) of the best answer is no longer a float64.
    """
    uniform = torch.full((5,), -math.log(5), dtype=torch.float64)
    return [
        ((uniform, draw_rewards(5, 7)), {"reward_scale": 4.0}),
        ((draw_log_probs(7, seed=8), draw_rewards(7, 9)), {"reward_scale": 2.0}),
        ((uniform, torch.linspace(0, 1, 5).double()), {"reward_scale": 1000.0}),
    ]


def policy_reference_and_rewards() -> list[Case]:
    """log π, log π_ref and rewards of all answers, with a reward scale."""
    return [
        (
            (
                draw_log_probs(6, seed=10),
                draw_log_probs(6, seed=11),
                draw_rewards(6, 12),
            ),
            {"reward_scale": 3.0},
        ),
        (
            (
                draw_log_probs(4, seed=13),
                draw_log_probs(4, seed=14),
                draw_rewards(4, 15),
            ),
            {"reward_scale": 0.5},
        ),
    ]


def policy_reference_rewards_and_log_z() -> list[Case]:
    """Over all answers, with a log Z that is too low, and one too high."""
    cases = []
    for (tensors, settings), log_z in zip(
        policy_reference_and_rewards(), (-1.5, 2.0), strict=True
    ):
        log_z_tensor = torch.tensor(log_z, dtype=torch.float64)
        cases.append(((*tensors, log_z_tensor), settings))
    return cases


def sampled_sequences(*group_sizes: int) -> list[Case]:
    """Sums of log-probs and rewards of 6 samples; with sizes, one case for each."""
    cases: list[Case] = []
    for seed, size in enumerate(group_sizes or (0, 0)):
        generator = torch.Generator().manual_seed(40 + seed)
        noise = torch.randn((2, 6), generator=generator, dtype=torch.float64)
        policy, reference = (noise - 6).unbind()
        tensors = (policy, reference, draw_rewards(6, 50 + seed))
        positional = (*tensors, size) if group_sizes else tensors
        cases.append((positional, {"reward_scale": (3.0, 0.5)[seed % 2]}))
    return cases

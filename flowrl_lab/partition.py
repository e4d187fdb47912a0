"""The partition function Z(x): learned, tabulated, or estimated from a batch.

    p*(y|x) = π_ref(y|x) exp(β r(x,y)) / Z(x),   Z(x) = E_{y~π_ref}[exp(β r)]

Two quantities answer to the name "log Z".  The true one makes p* sum to 1.  The
one that minimises the trajectory-balance loss under samples of π is lower by
exactly KL(π ‖ p*): an evidence lower bound, tight only once π matches p*.
"""

from __future__ import annotations

import math
import zlib

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flowrl_lab._validation import (
    LARGEST,
    bad_input,
    check_choice,
    check_count,
    check_finite,
    check_groups,
    check_number,
    check_range,
    check_readable,
    check_tensor,
)
from flowrl_lab.tokens import at_least_float32, without_autocast

__all__ = [
    "LogPartitionHead",
    "LogZTable",
    "importance_log_z",
    "log_target_ratios",
    "start_log_z",
    "unlearned_log_z",
    "vargrad_log_z",
]


# What is larger was a slip, and would fill the memory: refused before it does.
MOST_HIDDEN, MOST_LAYERS, MOST_PROMPTS = 2**15, 100, 10**8


class LogPartitionHead(nn.Module):
    """Z_φ: a small network from a prompt's features to its log Z.

        [Linear, GELU, LayerNorm, Dropout] x (num_layers - 1), Linear -> 1

    Source: FlowRL (arXiv 2509.15207) §4 and its code: 3 layers as wide as the
    hidden size.  Departures, on purpose: the output layer starts at zero, so that
    log Z starts at 0; dropout is off unless asked for, because it shows samples
    of one prompt different log Zs; and the sums are always float32, since
    bfloat16 near 10 can only step by 0.06.

    Args:
        hidden_size: H, width of the features and of the hidden layers.
        num_layers: linear layers in all; 1 is a linear map.
        dropout: share of the hidden units dropped in training.

    Raises:
        ValueError: sizes below 1, or beyond any model's; dropout outside [0, 1).
    """

    def __init__(
        self, hidden_size: int, *, num_layers: int = 3, dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_count("hidden_size", hidden_size, most=MOST_HIDDEN)
        check_count("num_layers", num_layers, most=MOST_LAYERS)
        check_number("dropout", dropout, high=0.999)
        self.hidden_size = hidden_size
        layers: list[nn.Module] = []
        for _ in range(num_layers - 1):
            layers += [
                nn.Linear(hidden_size, hidden_size),
                nn.GELU(),
                nn.LayerNorm(hidden_size),
                nn.Dropout(dropout),
            ]
        output = nn.Linear(hidden_size, 1)
        nn.init.zeros_(output.weight)
        nn.init.zeros_(output.bias)
        self.layers = nn.Sequential(*layers, output)

    def forward(self, features: Float[Tensor, "B H"]) -> Float[Tensor, " B"]:
        """log Z of each prompt, nats; gradients flow to φ and to ``features``.

        Detach the features to keep log Z's gradient out of the language model.
        """
        shape = (None, self.hidden_size)
        meaning, weight = "[B, H]: one row per prompt", self.layers[-1].weight
        check_tensor("features", features, shape, meaning, beside=weight)
        check_finite({"features": features})
        # Even if the module was cast to half precision along with a model.
        wide = {k: at_least_float32(p) for k, p in self.layers.named_parameters()}
        dtype = next(iter(wide.values())).dtype
        with without_autocast(features):
            output = torch.func.functional_call(self.layers, wide, features.to(dtype))
        return output.squeeze(-1)


def start_log_z(module: LogPartitionHead | LogZTable, value: float) -> None:
    """Make a new module say ``value`` for every prompt.

    Before training π is π_ref, so the mean of exp(βr) over the first batch is an
    unbiased estimate of Z.  A head that learns fast does not stay there: what it is
    trained to say is log Z - KL(π ‖ p*), which is much lower at first.

    Raises:
        ValueError: another module, a value that is not finite.
    """
    if not isinstance(module, LogPartitionHead | LogZTable):
        raise bad_input(
            "module",
            f"is a {type(module).__name__}",
            "a LogPartitionHead or a LogZTable",
            "make one, and start it before the first step",
        )
    check_number("value", value, low=-LARGEST, high=LARGEST)
    with torch.no_grad():
        if isinstance(module, LogZTable):
            module.log_z.fill_(value)
        else:
            module.layers[-1].weight.zero_()
            module.layers[-1].bias.fill_(value)


class LogZTable(nn.Module):
    """One free log Z for each prompt of a fixed list, all starting at 0.

    Args:
        num_prompts: P, length of the list.

    Raises:
        ValueError: num_prompts below 1 or above 10^8.
    """

    def __init__(self, num_prompts: int) -> None:
        super().__init__()
        check_count("num_prompts", num_prompts, most=MOST_PROMPTS)
        self.log_z = nn.Parameter(torch.zeros(num_prompts))

    def forward(self, indices: Int[Tensor, " P"]) -> Float[Tensor, " P"]:
        """log Z of the prompts at ``indices``, nats; gradients flow to the table."""
        meaning, table = "[P]: one index per prompt", self.log_z
        check_tensor("indices", indices, (None,), meaning, "int", beside=table)
        check_range(
            "indices",
            indices,
            0,
            len(table) - 1,
            f"0 to {len(table) - 1}",
            "make the table as long as the task's list of prompts",
        )
        return self.log_z[indices.long()]


def unlearned_log_z(
    kind: str, indices: Int[Tensor, " P"], *, value: float, seed: int, step: int
) -> Float[Tensor, " P"]:
    """A log Z that nothing learns, to see what learning it is worth.

        "constant": c    "frozen": c + ε_x, drawn once    "random": c + ε_{x,t}

    with ε ~ N(0, 1).  Under samples of π any of them leaves the expected gradient of
    trajectory balance as it is: it is a baseline, and a bad one is only noisy.

    Args:
        kind: "constant", "frozen" or "random".
        indices: the prompts' positions in the task's full list.
        value: c, nats.
        seed: of the run; equal seeds draw equal values.
        step: of the run, for "random".

    Returns:
        One value per prompt, nats; no gradient.

    Raises:
        ValueError: an unknown kind, an empty or wrong index, c not finite.
    """
    check_choice("kind", kind, ("constant", "frozen", "random"))
    check_tensor("indices", indices, (None,), "[P]: one index per prompt", "int")
    check_readable("indices", indices)
    check_number("value", value, low=-LARGEST, high=LARGEST)
    check_count("seed", seed, least=0)
    check_count("step", step, least=0)
    constant = torch.full((len(indices),), float(value))
    if kind == "constant":
        return constant
    # A generator of its own for each draw: what a run samples does not change, and a
    # resumed run draws what it would have drawn.
    draws = []
    for index in indices.tolist():
        key = f"{seed} {index} {step if kind == 'random' else ''}".encode()
        generator = torch.Generator().manual_seed(zlib.crc32(key))
        draws.append(torch.randn((), generator=generator))
    return constant + torch.stack(draws)


def log_target_ratios(
    sequence_log_probs: Float[Tensor, " B"],
    ref_sequence_log_probs: Float[Tensor, " B"],
    rewards: Float[Tensor, " B"],
    *,
    reward_scale: float,
) -> Float[Tensor, " B"]:
    """How far each sequence lies below its unnormalised target, in nats.

        βr + log π_ref - log π

    For a policy that matches p* it is log Z for every sequence: it is the one
    quantity that all estimates of log Z average.

    Args:
        sequence_log_probs: log π of whole sequences (sums over tokens).
        ref_sequence_log_probs: log π_ref of the same.
        rewards: one per sequence.
        reward_scale: β, at least 0.

    Returns:
        One value per sequence; gradients flow to ``sequence_log_probs`` only.

    Raises:
        ValueError: wrong shapes or dtypes, NaN, reward_scale < 0.
    """
    named = {
        "sequence_log_probs": sequence_log_probs,
        "ref_sequence_log_probs": ref_sequence_log_probs,
        "rewards": rewards,
    }
    check_tensor("rewards", rewards, (None,), "[B]: one per sequence")
    for name, value in named.items():
        check_tensor(name, value, rewards, "[B]: one per sequence")
    check_finite(named)
    check_number("reward_scale", reward_scale, high=LARGEST)
    log_ratio = at_least_float32(ref_sequence_log_probs.detach()) - at_least_float32(
        sequence_log_probs
    )
    return reward_scale * at_least_float32(rewards.detach()) + log_ratio


def vargrad_log_z(
    sequence_log_probs: Float[Tensor, " B"],
    ref_sequence_log_probs: Float[Tensor, " B"],
    rewards: Float[Tensor, " B"],
    num_generations: int,
    *,
    reward_scale: float,
) -> Float[Tensor, " P"]:
    """The log Z that minimises the batch's trajectory-balance loss, per prompt.

        log Ẑ = (1/G) Σ_i (β r_i + log π_ref(y_i) - log π(y_i))

    Source: log-partition variance loss (arXiv 2302.05446); GFlowRL
    (arXiv 2607.13394) uses the same estimate.  Under samples of π its expectation
    is log Z - KL(π ‖ p*), a lower bound.

    Args:
        sequence_log_probs, ref_sequence_log_probs, rewards, reward_scale: as in
            :func:`log_target_ratios`.
        num_generations: G; the samples of a prompt are contiguous.

    Returns:
        One estimate per prompt, nats; gradients flow to ``sequence_log_probs``.

    Raises:
        ValueError: as :func:`log_target_ratios`; groups that do not divide B.
    """
    ratios = log_target_ratios(
        sequence_log_probs, ref_sequence_log_probs, rewards, reward_scale=reward_scale
    )
    check_groups(len(ratios), num_generations)
    return ratios.view(-1, num_generations).mean(dim=1)


def importance_log_z(
    sequence_log_probs: Float[Tensor, " B"],
    ref_sequence_log_probs: Float[Tensor, " B"],
    rewards: Float[Tensor, " B"],
    num_generations: int,
    *,
    reward_scale: float,
) -> Float[Tensor, " P"]:
    """Importance-sampled estimate of the true log Z, per prompt.

        log Ẑ = log (1/G) Σ_i exp(β r_i + log π_ref(y_i) - log π(y_i)),   y_i ~ π

    Ẑ is unbiased for Z (log Ẑ errs low), but its spread explodes as π moves away
    from p*; :func:`vargrad_log_z` is biased and calm.

    Args:
        sequence_log_probs, ref_sequence_log_probs, rewards, num_generations,
            reward_scale: as in :func:`vargrad_log_z`.

    Returns:
        One estimate per prompt, nats; gradients flow to ``sequence_log_probs``.

    Raises:
        ValueError: as :func:`vargrad_log_z`.
    """
    ratios = log_target_ratios(
        sequence_log_probs, ref_sequence_log_probs, rewards, reward_scale=reward_scale
    )
    check_groups(len(ratios), num_generations)
    groups = ratios.view(-1, num_generations)
    return groups.logsumexp(dim=1) - math.log(num_generations)

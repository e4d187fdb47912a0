"""Landscapes: one prompt, one token, and a reward for every state.

The smallest place where FlowRL can be seen whole.  The policy picks one of
``num_states`` states; the verifier looks its reward up; the exact target
``p*(state) ∝ exp(reward_scale · reward)`` is a curve that can be drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowrl_lab.tasks._fixed_length import (
    check_completions,
    check_prompts,
    check_range,
)
from flowrl_lab.tasks.base import Task
from flowrl_lab.types import AnswerSet, PromptBatch

__all__ = ["VARIANTS", "Landscape", "figure1_log_mixture"]

VARIANTS = ("figure1", "six_modes", "two_modes")

# (weight, peak) of the three normals that Figure 1's target curve is made of;
# they all have variance 5.  Read from the figure's vector curves.
FIGURE1_PARTS = ((0.25, 20), (0.50, 50), (0.25, 80))
FIGURE1_VARIANCE = 5.0

# (peak, width) of bounded bumps, all of height 1: a reward maximiser has no
# reason to prefer one of them, so what it drops, it drops by accident.
SIX_BUMPS = ((8, 3.0), (25, 5.0), (41, 3.0), (58, 4.0), (75, 5.0), (92, 4.0))
TWO_BUMPS = ((30, 6.0), (70, 6.0))


def figure1_log_mixture(num_states: int = 100) -> Float[Tensor, " N"]:
    """Log-probabilities of the target curve in the paper's Figure 1.

    ``p(s) ∝ ¼ N(s; 20, 5) + ½ N(s; 50, 5) + ¼ N(s; 80, 5)``, s = 0 … N-1,
    normalised over the states (5 is the variance).

    Source: FlowRL (arXiv 2509.15207), Figure 1, read off its vector curves.

    Args:
        num_states: N, how many.

    Returns:
        Normalised log-probabilities in nats, float64.
    """
    states = torch.arange(num_states, dtype=torch.float64)
    parts = [
        math.log(weight) - (states - peak) ** 2 / (2 * FIGURE1_VARIANCE)
        for weight, peak in FIGURE1_PARTS
    ]
    return torch.log_softmax(torch.logsumexp(torch.stack(parts), dim=0), dim=0)


class Landscape(Task):
    """A reward for each of N states; completions are one token, the state.

    Variants:

    - ``"figure1"`` (default): 100 states whose target is the mixture of the
      paper's Figure 1.  A mixture is given, rewards are wanted, so the target's
      formula is solved for the reward: ``r = 1 + (log p − max log p) /
      reward_scale``.  Then ``exp(reward_scale · r)/Z`` *is* the mixture,
      whatever ``reward_scale`` is.  The constant changes only Z; it is chosen so
      that the best reward is 1, as a verifier's would be.  Far from every peak
      the reward is a log-density tail: finite and negative.
    - ``"six_modes"``: 100 states, six bumps of equal height 1 and unequal width,
      reward 0 far away.
    - ``"two_modes"``: 100 states, two equal bumps.
    - custom: pass ``rewards``.

    A state belongs to a *mode* (``AnswerSet.groups``) and counts as *correct*
    when it lies within two standard deviations of a peak of the target; for a
    bump of width w the target's standard deviation at the peak is
    ``w/√reward_scale``.  With custom rewards, a mode is an unbroken run of states
    whose reward is at least half-way between the lowest and the highest.

    There is one prompt and nothing to generalise to, so both splits hold it.  With
    ``copies`` there are that many prompts with the same rewards: a table learns each
    by itself, so that one run is as many repetitions, at the cost of little more.

    Args:
        variant: one of ``VARIANTS``; None means "figure1", or custom when
            ``rewards`` are given.
        rewards: a finite reward for each of at least two states.
        reward_scale: the scale at which the target is defined; default 15 (the
            paper's β) for "figure1", 10 otherwise.
        copies: prompts with these rewards, 1 to 1000.

    Raises:
        ValueError: for an unknown variant, a variant together with rewards,
            rewards that are not a finite list of at least two numbers, a
            reward_scale that is not positive, or copies out of range.
    """

    name = "landscape"
    pad_id = 0
    eos_id = None
    max_completion_tokens = 1

    def __init__(
        self,
        *,
        variant: str | None = None,
        rewards: Sequence[int | float] | Tensor | None = None,
        reward_scale: float | None = None,
        copies: int = 1,
    ):
        check_range("copies", copies, 1, 1000)
        if variant is not None and rewards is not None:
            raise ValueError(
                f"landscape: got variant={variant!r} and rewards, expected one of "
                "them; leave variant out to use your own rewards"
            )
        self.variant = "custom" if rewards is not None else (variant or "figure1")
        if reward_scale is None:
            reward_scale = 15.0 if self.variant == "figure1" else 10.0
        if not (math.isfinite(reward_scale) and reward_scale > 0):
            raise ValueError(
                f"reward_scale: got {reward_scale}, expected a positive number"
            )
        self.reward_scale: float | None = float(reward_scale)
        if rewards is not None:
            table = _check_rewards(rewards)
            groups = _runs(table >= (table.min() + table.max()) / 2)
        elif self.variant in VARIANTS:
            table, groups = _build(self.variant, self.reward_scale)
        else:
            raise ValueError(
                f"variant: got {variant!r}, expected one of {list(VARIANTS)}"
            )
        self.rewards: Float[Tensor, " N"] = table.to(torch.float32)
        self.groups: Int[Tensor, " N"] = groups
        self.num_states = self.vocab_size = len(table)
        name = f"landscape {self.variant}"
        self._prompts = (name,)
        if copies > 1:
            self._prompts = tuple(f"{name} {copy}" for copy in range(copies))

    def prompts(self, split: str) -> tuple[str, ...]:
        """The one prompt, or its copies, whichever split is asked for."""
        if split not in ("train", "heldout"):
            raise ValueError(f"split: got {split!r}, expected 'train' or 'heldout'")
        return self._prompts

    def encode(self, texts: tuple[str, ...]) -> PromptBatch:
        """The prompt as one token, 0; copies differ in their number."""
        check_prompts(texts, self._prompts)
        rows = len(texts)
        return PromptBatch(
            tuple(texts),
            torch.zeros(rows, 1, dtype=torch.long),
            torch.ones(rows, 1, dtype=torch.bool),
            torch.tensor([self._prompts.index(text) for text in texts]),
        )

    def decode(
        self, completion_ids: Int[Tensor, "B T"], completion_mask: Bool[Tensor, "B T"]
    ) -> list[str]:
        """The states' numbers."""
        check_completions(completion_ids, completion_mask, 1, self.vocab_size)
        return [str(state) for state in completion_ids[:, 0].tolist()]

    def score(
        self,
        prompts: PromptBatch,
        completion_ids: Int[Tensor, "B T"],
        completion_mask: Bool[Tensor, "B T"],
        num_generations: int,
    ) -> Float[Tensor, " B"]:
        """The reward of each sampled state."""
        check_completions(
            completion_ids,
            completion_mask,
            1,
            self.vocab_size,
            rows=len(prompts) * num_generations,
        )
        return self.rewards.to(completion_ids.device)[completion_ids[:, 0]]

    def are_right(
        self,
        completion_ids: Int[Tensor, "B T"],
        rewards: Float[Tensor, " B"],  # noqa: ARG002 - a mode's border is no reward
    ) -> Bool[Tensor, " B"]:
        """Whether each state belongs to a mode."""
        return self.groups.to(completion_ids.device)[completion_ids[:, 0]] >= 0

    def answers(self, prompt: str) -> AnswerSet:
        """All N states, with their rewards and modes."""
        check_prompts((prompt,), self._prompts)
        states = torch.arange(self.num_states)
        return AnswerSet(
            prompt=prompt,
            labels=tuple(str(state) for state in range(self.num_states)),
            completion_ids=states[:, None],
            completion_mask=torch.ones(self.num_states, 1, dtype=torch.bool),
            rewards=self.rewards,
            correct=self.groups >= 0,
            groups=self.groups,
            exhaustive=True,
        )


def _build(variant: str, reward_scale: float) -> tuple[Tensor, Tensor]:
    """Rewards (float64) and mode numbers of a built-in variant."""
    states = torch.arange(100, dtype=torch.float64)
    if variant == "figure1":
        log_mixture = figure1_log_mixture(len(states))
        rewards = 1 + (log_mixture - log_mixture.max()) / reward_scale
        peaks = [peak for _, peak in FIGURE1_PARTS]
        deviations = [math.sqrt(FIGURE1_VARIANCE)] * len(peaks)
    else:
        bumps = SIX_BUMPS if variant == "six_modes" else TWO_BUMPS
        heights = [torch.exp(-((states - c) ** 2) / (2 * w**2)) for c, w in bumps]
        rewards = torch.stack(heights).amax(dim=0)
        peaks = [peak for peak, _ in bumps]
        # Near a peak exp(reward_scale·r) is a normal curve of this deviation.
        deviations = [width / math.sqrt(reward_scale) for _, width in bumps]
    groups = torch.full((len(states),), -1, dtype=torch.long)
    for mode, (peak, deviation) in enumerate(zip(peaks, deviations, strict=True)):
        groups[(states - peak).abs() <= 2 * deviation] = mode
    return rewards, groups


def _check_rewards(rewards: Sequence[int | float] | Tensor) -> Float[Tensor, " N"]:
    try:
        table = torch.as_tensor(rewards, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"rewards: got {type(rewards).__name__} ({error}), "
            "expected a flat list of numbers"
        ) from error
    if table.ndim != 1 or len(table) < 2:
        raise ValueError(
            f"rewards: got shape {tuple(table.shape)}, expected [N] with N ≥ 2, "
            "one reward for each state"
        )
    if not torch.isfinite(table).all():
        bad = (~torch.isfinite(table)).nonzero().flatten().tolist()
        raise ValueError(
            f"rewards: got NaN or infinity at states {bad[:5]}, expected finite "
            "numbers; give forbidden states a large negative reward instead"
        )
    return table


def _runs(inside: Bool[Tensor, " N"]) -> Int[Tensor, " N"]:
    """Number the unbroken runs of True 0, 1, …; False becomes -1."""
    before = torch.cat([torch.zeros(1, dtype=torch.bool), inside[:-1]])
    run = (inside & ~before).cumsum(0) - 1
    return torch.where(inside, run, torch.full_like(run, -1))

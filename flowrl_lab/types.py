"""The data that flows through flowrl_lab, every field with its shape.

Notation, used in every module:

=========  ==================================================================
letter     meaning
=========  ==================================================================
``P``      prompts in a batch
``G``      completions sampled for each prompt (``num_generations``)
``B``      sequences in a batch, ``B = P * G``; the G rows of a prompt are
           contiguous, so row ``b`` belongs to prompt ``b // G``
``S``      prompt tokens (left-padded)
``T``      completion tokens (right-padded)
``V``      vocabulary size
``H``      hidden size
``N``      enumerated answers of one prompt
=========  ==================================================================

Masks are named for what they keep: ``True`` means "this token counts".
Log-probabilities are natural (nats).  Sums over tokens are called
``sequence_log_probs``; a mean (``masked_mean``) never goes by that name.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = [
    "AnswerSet",
    "Completions",
    "ExactReport",
    "PolicyOutput",
    "PromptBatch",
    "Rollout",
    "Snapshot",
    "StepRecord",
]


@dataclass(frozen=True)
class PromptBatch:
    """P prompts, left-padded to the same number of tokens.

    Attributes:
        texts: the P prompts as a person reads them; a task's verifier uses these.
        prompt_ids: token ids, left-padded.
        prompt_mask: True where a token is part of the prompt.
        indices: position of each prompt in the task's full list (train, then
            held-out); what a table of log Z is indexed by.
    """

    texts: tuple[str, ...]
    prompt_ids: Int[Tensor, "P S"]
    prompt_mask: Bool[Tensor, "P S"]
    indices: Int[Tensor, " P"]

    def __len__(self) -> int:
        return len(self.texts)

    def part(self, rows: slice) -> PromptBatch:
        """Some of the prompts, their padding as it is."""
        return PromptBatch(
            self.texts[rows],
            self.prompt_ids[rows],
            self.prompt_mask[rows],
            self.indices[rows],
        )

    def to(self, device) -> PromptBatch:
        """The same prompts with their tensors on ``device``."""
        return PromptBatch(
            self.texts,
            self.prompt_ids.to(device),
            self.prompt_mask.to(device),
            self.indices.to(device),
        )


@dataclass(frozen=True)
class Completions:
    """What a policy sampled: tokens, which of them count, and their log-probs.

    ``log_probs`` are of the distribution that was sampled from (temperature
    included), detached.  The token that ends a completion counts.
    """

    completion_ids: Int[Tensor, "B T"]
    completion_mask: Bool[Tensor, "B T"]
    log_probs: Float[Tensor, "B T"]


@dataclass(frozen=True)
class PolicyOutput:
    """One differentiable pass of a policy over given completions.

    Attributes:
        log_probs: log-probability of each completion token, 0 where masked out.
        entropies: entropy of the next-token distribution at each completion
            token, nats, 0 where masked out.
        states: what the policy knew before each completion token: hidden states
            ``[B, T, H]`` for a language model, prefix numbers ``[B, T]`` for a
            table.  The policy's own ``make_value_head`` reads them.
    """

    log_probs: Float[Tensor, "B T"]
    entropies: Float[Tensor, "B T"]
    states: Tensor


@dataclass(frozen=True)
class Rollout:
    """A scored batch: everything a loss needs, nothing it must not change.

    ``parts`` are means over the batch: the share that was solved, and what each part
    of the reward contributed, where the task tells.  ``sampled``: measures of the
    groups, mean over the prompts (``metrics.groups``).
    """

    prompts: PromptBatch
    num_generations: int
    completion_ids: Int[Tensor, "B T"]
    completion_mask: Bool[Tensor, "B T"]
    old_log_probs: Float[Tensor, "B T"]
    ref_log_probs: Float[Tensor, "B T"]
    rewards: Float[Tensor, " B"]
    parts: dict[str, float] = field(default_factory=dict)
    sampled: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class AnswerSet:
    """The enumerated answers of one prompt, with their rewards.

    Attributes:
        prompt: the prompt's text.
        labels: N readable answers.
        completion_ids: the answers' tokens, right-padded.
        completion_mask: True where a token counts.
        rewards: the verifier's reward of each.
        correct: True for answers that solve the prompt.
        groups: for a landscape, the mode an answer belongs to (-1: none); for an
            expression, its class up to commuting.  Used to count modes.
        exhaustive: True when these are *all* completions the policy can write,
            so that their probabilities sum to 1.  When False, they are all the
            correct ones (and all others with a reward), and everything not listed
            has reward 0.
    """

    prompt: str
    labels: tuple[str, ...]
    completion_ids: Int[Tensor, "N T"]
    completion_mask: Bool[Tensor, "N T"]
    rewards: Float[Tensor, " N"]
    correct: Bool[Tensor, " N"]
    groups: Int[Tensor, " N"]
    exhaustive: bool

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ExactReport:
    """What the referee found: exact, from enumerated answers, mean over prompts.

    The exact target is ``p*(y) ∝ π_ref(y) exp(reward_scale · r(y))``, over all
    answers where they are exhaustive and over the correct ones where they are not;
    for a binary reward the latter is π_ref restricted to the correct answers.

    Attributes:
        accuracy: probability that one sample is correct.
        pass_at_k: k -> probability that at least one of k samples is correct.
        distinct_64: expected number of different correct answers in 64 samples.
        effective_answers: exp(entropy of the policy over the correct answers).
        kl_policy_target: KL(π ‖ p*), nats; π conditioned on the correct answers
            where the answers are not exhaustive (it is infinite otherwise).
        kl_target_policy: KL(p* ‖ π), nats; π as it is, so lost accuracy counts.
        total_variation: ½ Σ |π − p*|, with the same conditioning as
            ``kl_policy_target``.
        modes_covered: mean share of the answer groups that hold at least half
            of their target probability.
        lost_prompts: share of prompts with pass@64 below 0.5.
        log_z_exact: mean exact log Z at the run's reward scale and the raw
            reward, nats.
        log_z_learned: mean of what Z_φ says on the same prompts; NaN without Z_φ.
        log_z_rmse: root mean squared difference of the two; NaN without Z_φ.
        num_prompts: prompts that the means are over.
    """

    accuracy: float
    pass_at_k: dict[int, float]
    distinct_64: float
    effective_answers: float
    kl_policy_target: float
    kl_target_policy: float
    total_variation: float
    modes_covered: float
    lost_prompts: float
    log_z_exact: float
    log_z_learned: float
    log_z_rmse: float
    num_prompts: int


@dataclass(frozen=True)
class Snapshot:
    """The policy's distribution over the enumerated answers of one prompt.

    What the solution map draws.  ``probs`` and ``target_probs`` are float64
    arrays of length N; ``probs`` sums to 1 only if the answers are exhaustive.
    """

    prompt: str
    labels: tuple[str, ...]
    probs: np.ndarray
    target_probs: np.ndarray
    rewards: np.ndarray


@dataclass(frozen=True)
class StepRecord:
    """One training step, as ``train`` yields it.  NaN marks "does not apply".

    Attributes:
        run: the run's name, for legends (by default the algorithm's).
        algorithm: key in ``flowrl_lab.training.algorithms.ALGORITHMS``.
        seed: the run's seed.
        step: updates done so far, 1-based; 0 is the policy before training.
        steps: updates the run will do.
        reward: mean reward of the sampled batch.
        loss: value of the loss that was minimised.
        entropy: mean over tokens of the next-token entropy, nats.
        kl_to_reference: mean sampled log π/π_ref of whole sequences (k1), nats.
        log_z: mean learned log Z over the batch's prompts, nats.
        residual_mean: mean of log Z + log π − βr − log π_ref, nats.
        residual_rms: its root mean square.
        clip_fraction: share of the importance ratios outside the clip range.
        grad_norm: norm of the gradient before clipping.
        zero_variance_groups: share of groups whose rewards are all equal.
        all_wrong_groups: share of groups whose rewards are all zero or less.
        tokens: completion tokens sampled so far.
        seconds: training time so far, without evaluation.
        exact: the referee's report, on evaluation steps.
        snapshot: the watched prompt's distribution, on evaluation steps.
        samples: a few sampled (prompt, completion, reward), on evaluation steps.
        parts: of the batch, where the task tells: the share that was ``"solved"``,
            and the mean of each part of the reward.
        sampled: measures of the batch's groups (``metrics.groups``), mean over its
            prompts; of step 0, the floor's.  Empty in records of earlier versions.
        floor: the same measures of as many samples of the policy before its first
            step: measure -> (mean, its standard deviation from batch to batch).
        note: what happened in this step that a reader should know (an update that
            was skipped, memory that ran out); empty if nothing did.
        skipped: updates skipped so far.
    """

    run: str
    algorithm: str
    seed: int
    step: int
    steps: int
    reward: float
    loss: float
    entropy: float
    kl_to_reference: float
    log_z: float
    residual_mean: float
    residual_rms: float
    clip_fraction: float
    grad_norm: float
    zero_variance_groups: float
    all_wrong_groups: float
    tokens: int
    seconds: float
    exact: ExactReport | None = None
    snapshot: Snapshot | None = None
    samples: tuple[tuple[str, str, float], ...] = field(default=())
    parts: dict[str, float] = field(default_factory=dict)
    note: str = ""
    skipped: int = 0
    sampled: dict[str, float] = field(default_factory=dict)
    floor: dict[str, tuple[float, float]] = field(default_factory=dict)

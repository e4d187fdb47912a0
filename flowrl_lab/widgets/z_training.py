"""Trajectory balance on a few states, in numpy: what the Z-lab's browser side does.

The same arithmetic in the same order, and the same random numbers: an integer hash
of a counter, which Python and JavaScript compute alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["MODES", "SAMPLERS", "STEPS", "Settings", "Trace", "draw_uniforms", "train"]

STEPS = 300
MODES = ("learned", "attached", "batch", "frozen", "dropped")
SAMPLERS = ("policy", "reference")
# Counters of one seed; more than STEPS times the largest batch.
COUNTERS = 2**20
ADAM_1, ADAM_2, ADAM_EPS = 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class Settings:
    """What can be set in the Z-lab.

    Attributes:
        mode: where log Z comes from: "learned" (a number of its own), "attached"
            (learned, and it also reads the policy's weights without a detach),
            "batch" (the batch's best one, VarGrad), "frozen", or "dropped" (0).
        bias: of "frozen": log Z is the true one plus this, nats.
        learning_rate: Adam's, of the policy's logits.
        log_z_learning_rate: Adam's, of log Z.
        batch_size: samples a step; 0 takes the exact mean over all states.
        sampler: who draws them, "policy" or "reference".
        seed: of the draws, 0 to 4095.
    """

    mode: str = "learned"
    bias: float = 0.0
    learning_rate: float = 0.05
    log_z_learning_rate: float = 0.2
    batch_size: int = 16
    sampler: str = "policy"
    seed: int = 0


@dataclass(frozen=True)
class Trace:
    """A training, seen before each of its steps and after the last.

    Attributes:
        log_probs: [STEPS + 1, N] of the policy.
        log_z: [STEPS + 1] in the residual.
        best_log_z: [STEPS + 1] log Z − KL(π ‖ p*).
        kl: [STEPS + 1] KL(π ‖ p*), exact.
        mean_residual: [STEPS + 1] of the batch.
        rms_residual: [STEPS + 1] root of the batch's loss.
        exact_log_z: the true one.
    """

    log_probs: np.ndarray
    log_z: np.ndarray
    best_log_z: np.ndarray
    kl: np.ndarray
    mean_residual: np.ndarray
    rms_residual: np.ndarray
    exact_log_z: float


def hash_counters(counters: np.ndarray) -> np.ndarray:
    """Scrambled 32-bit integers: two multiply-and-shift rounds."""
    x = counters.astype(np.uint32)
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def draw_uniforms(seed: int, step: int, count: int) -> np.ndarray:
    """``count`` numbers in (0, 1) that belong to this step of this seed."""
    start = seed * COUNTERS + step * count
    counters = np.arange(start, start + count, dtype=np.int64) % 2**32
    return (hash_counters(counters) + 0.5) / 2**32


def reading_weights(count: int) -> np.ndarray:
    """With which weights the attached log Z reads the logits: ±1/√N, mixed."""
    signs = hash_counters(np.arange(count)) >> np.uint32(31)
    return np.where(signs == 1, -1.0, 1.0) / np.sqrt(count)


def batch_shares(probs: np.ndarray, settings: Settings, step: int) -> np.ndarray:
    """Which share of the batch each state has."""
    if not settings.batch_size:
        return probs
    uniforms = draw_uniforms(settings.seed, step, settings.batch_size)
    states = np.searchsorted(np.cumsum(probs), uniforms, side="right")
    states = np.minimum(states, len(probs) - 1)
    return np.bincount(states, minlength=len(probs)) / settings.batch_size


class Adam:
    """Adam without weight decay, one call a step."""

    def __init__(self, rate: float, size: int):
        self.rate, self.step = rate, 0
        self.first, self.second = np.zeros(size), np.zeros(size)

    def move(self, gradient: np.ndarray) -> np.ndarray:
        """What to add to the parameters."""
        self.step += 1
        self.first = ADAM_1 * self.first + (1 - ADAM_1) * gradient
        self.second = ADAM_2 * self.second + (1 - ADAM_2) * gradient**2
        first = self.first / (1 - ADAM_1**self.step)
        second = self.second / (1 - ADAM_2**self.step)
        return -self.rate * first / (np.sqrt(second) + ADAM_EPS)


def train(scores: np.ndarray, log_reference: np.ndarray, settings: Settings) -> Trace:
    """Train a softmax policy by trajectory balance, from the reference on.

    Args:
        scores: β r + log π_ref of each state.
        log_reference: log π_ref.
        settings: see :class:`Settings`.

    Returns:
        All that can be plotted.
    """
    top = scores.max()
    exact = float(top + np.log(np.exp(scores - top).sum()))
    logits, own = log_reference.copy(), np.zeros(1)
    reads = reading_weights(len(scores)) * (settings.mode == "attached")
    policy = Adam(settings.learning_rate, len(scores))
    rider = Adam(settings.log_z_learning_rate, 1)
    rows = []
    for step in range(STEPS + 1):
        log_probs = logits - logits.max()
        log_probs = log_probs - np.log(np.exp(log_probs).sum())
        probs, ratios = np.exp(log_probs), scores - log_probs
        sampler = probs if settings.sampler == "policy" else np.exp(log_reference)
        shares = batch_shares(sampler, settings, step)
        read = float(reads @ (logits - log_reference))
        log_z = _log_z(settings, exact, float(own[0]) + read, shares, ratios)
        residuals = log_z - ratios
        mean = float(shares @ residuals)
        best = float(probs @ ratios)
        rms = float(np.sqrt(shares @ residuals**2))
        rows.append((log_probs, log_z, best, exact - best, mean, rms))
        gradient = 2 * (shares * residuals - probs * mean) + 2 * mean * reads
        logits = logits + policy.move(gradient)
        if settings.mode in ("learned", "attached"):
            own = own + rider.move(np.array([2 * mean]))
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    return Trace(*columns, exact_log_z=exact)


def _log_z(
    settings: Settings,
    exact: float,
    learned: float,
    shares: np.ndarray,
    ratios: np.ndarray,
) -> float:
    """The log Z of this step's residuals."""
    if settings.mode == "batch":
        return float(shares @ ratios)
    if settings.mode == "frozen":
        return exact + settings.bias
    return 0.0 if settings.mode == "dropped" else learned

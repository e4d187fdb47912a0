"""Notebook 4: log-probabilities of tokens, masks, sums and means."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowrl_lab.course.checking import Case, Exercise, Mistake

__all__ = ["EXERCISES"]


def _draw(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(shape, generator=generator, dtype=torch.float64)


def _draw_ids(*shape: int, vocab: int, seed: int) -> Tensor:
    return torch.randint(vocab, shape, generator=torch.Generator().manual_seed(seed))


def _model_outputs() -> list[Case]:
    return [((_draw(2, 7, 4, seed=20), 3), {}), ((_draw(1, 5, 3, seed=21), 1), {})]


def _logits_and_ids() -> list[Case]:
    far = torch.tensor([[[0.0, 1200.0, -800.0], [3.0, -900.0, 2.0]]]).double()
    return [
        ((_draw(2, 3, 5, seed=22), _draw_ids(2, 3, vocab=5, seed=23)), {}),
        (
            (_draw(2, 4, 6, seed=24), _draw_ids(2, 4, vocab=6, seed=25)),
            {"temperature": 0.6},
        ),
        ((far, torch.tensor([[0, 1]])), {"temperature": 2.0}),
    ]


def _values_and_mask() -> list[Case]:
    keep = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]).bool()
    # Scores of padding may be anything, minus infinity too.
    dirty = _draw(3, 5, seed=27).masked_fill(~keep, -math.inf)
    holes = torch.tensor([[0, 1, 1, 0], [1, 0, 1, 1]]).bool()
    return [
        ((_draw(3, 5, seed=26), keep), {}),
        ((_draw(2, 4, seed=28), holes), {}),
        ((dirty, keep), {}),
    ]


def _logits_alone() -> list[Case]:
    banned = _draw(1, 2, 5, seed=31)
    banned[0, 0, 1:3] = -math.inf
    return [
        ((_draw(2, 3, 4, seed=29),), {}),
        ((_draw(1, 4, 6, seed=30),), {"temperature": 0.5}),
        ((banned,), {}),
    ]


def _pick(scores: Tensor, token_ids: Tensor) -> Tensor:
    return scores.gather(-1, token_ids[..., None])[..., 0]


def _entropy(logits: Tensor) -> Tensor:
    log_probs = logits.log_softmax(-1)
    kept = log_probs.masked_fill(log_probs.isneginf(), 0.0)
    return -(log_probs.exp() * kept).sum(-1)


NEXT_TOKEN_LOGITS = Exercise(
    name="next_token_logits",
    solution="flowrl_lab.tokens:next_token_logits",
    cases=_model_outputs,
    gradients=("logits",),
    mistakes=(
        Mistake(
            "not shifted",
            "No shift: you took the outputs *at* the T completion tokens. Output i "
            "speaks about token i + 1, so start one row earlier and leave out the "
            "last one.",
            lambda logits, num_completion_tokens: logits[:, -num_completion_tokens:],
        ),
        Mistake(
            "one too many",
            "You started at the right row, but kept the last output as well. It "
            "predicts a token after the text, which nobody asked about.",
            lambda logits, num_completion_tokens: logits[
                :, -num_completion_tokens - 1 :
            ],
        ),
        Mistake(
            "first token lost",
            "The first completion token is missing. It is predicted too: by the "
            "output at the last *prompt* token.",
            lambda logits, num_completion_tokens: logits[:, -num_completion_tokens:-1],
        ),
        Mistake(
            "shifted the other way",
            "You moved the rows the wrong way: the prediction of a token stands one "
            "row *before* it, not after.",
            lambda logits, num_completion_tokens: torch.roll(logits, -1, dims=1)[
                :, -num_completion_tokens:
            ],
        ),
        Mistake(
            "whole text",
            "You made the shift, but for the prompt's tokens too. Keep the last T "
            "rows of what you have.",
            lambda logits, num_completion_tokens: logits[:, :-1],  # noqa: ARG005
        ),
        Mistake(
            "from the front",
            "Those are the first T rows, which speak about the prompt. The "
            "completion stands at the end.",
            lambda logits, num_completion_tokens: logits[:, :num_completion_tokens],
        ),
    ),
    hint="The last T tokens stand at L−T … L−1; their predictions one row earlier, at "
    "L−T−1 … L−2. The upper end of a slice is not included.",
)

GATHER_LOG_PROBS = Exercise(
    name="gather_log_probs",
    solution="flowrl_lab.tokens:gather_log_probs",
    cases=_logits_and_ids,
    gradients=("logits",),
    mistakes=(
        Mistake(
            "no normaliser",
            "You forgot the normaliser: these are the chosen logits themselves. "
            "Subtract the logsumexp over the vocabulary.",
            lambda logits, token_ids, *, temperature=1.0: _pick(
                logits / temperature, token_ids
            ),
        ),
        Mistake(
            "probabilities",
            "Those are probabilities; their logarithms were asked for. Use "
            "log_softmax rather than softmax.",
            lambda logits, token_ids, *, temperature=1.0: _pick(
                (logits / temperature).softmax(-1), token_ids
            ),
        ),
        Mistake(
            "softmax, then log",
            "Right as long as no probability is tiny: softmax rounds e^-600 to 0, and "
            "its log is −∞. log_softmax (or logits minus logsumexp) does both in "
            "one step and loses nothing.",
            lambda logits, token_ids, *, temperature=1.0: _pick(
                (logits / temperature).softmax(-1).log(), token_ids
            ),
        ),
        Mistake(
            "temperature ignored",
            "temperature has no effect in your function. The logits are divided by "
            "it *before* the softmax.",
            lambda logits, token_ids, *, temperature=1.0: _pick(  # noqa: ARG005
                logits.log_softmax(-1), token_ids
            ),
        ),
        Mistake(
            "temperature multiplied",
            "You multiplied by the temperature. Divide: a low temperature makes the "
            "differences larger.",
            lambda logits, token_ids, *, temperature=1.0: _pick(
                (logits * temperature).log_softmax(-1), token_ids
            ),
        ),
        Mistake(
            "temperature too late",
            "You divided the finished log-probs by the temperature; they no longer "
            "belong to probabilities that sum to 1. Divide the logits first.",
            lambda logits, token_ids, *, temperature=1.0: (
                _pick(logits.log_softmax(-1), token_ids) / temperature
            ),
        ),
        Mistake(
            "wrong axis",
            "You normalised over the T positions. The probabilities that sum to 1 "
            "are those over the vocabulary, the last dimension.",
            lambda logits, token_ids, *, temperature=1.0: _pick(
                (logits / temperature).log_softmax(1), token_ids
            ),
        ),
        Mistake(
            "shifted",
            "You shifted once more. These logits are aligned already: row t holds "
            "the scores of token t. There is one shift, and it has been made.",
            lambda logits, token_ids, *, temperature=1.0: _pick(
                (logits / temperature).log_softmax(-1)[:, :-1], token_ids[:, 1:]
            ),
        ),
        Mistake(
            "sign",
            "That is the negative log-probability, which supervised training calls "
            "its loss. Log-probs are never above 0.",
            lambda logits, token_ids, *, temperature=1.0: (
                -_pick((logits / temperature).log_softmax(-1), token_ids)
            ),
        ),
        Mistake(
            "one dimension too many",
            "gather keeps the last dimension, with length 1: squeeze it away. A "
            "[B, T, 1] against a [B, T] would silently broadcast to [B, T, T].",
            lambda logits, token_ids, *, temperature=1.0: (
                (logits / temperature).log_softmax(-1).gather(-1, token_ids[..., None])
            ),
        ),
        Mistake(
            "no gradient",
            "The values are right, but no gradient reaches the logits: something "
            "detached them (detach, .data, no_grad, item). Nothing could be trained.",
            lambda logits, token_ids, *, temperature=1.0: _pick(
                (logits / temperature).log_softmax(-1), token_ids
            ).detach(),
        ),
    ),
    hint="(logits / temperature).log_softmax(-1) holds all V log-probs of each "
    "position. .gather(-1, token_ids[..., None]) takes one of them, .squeeze(-1) "
    "drops the dimension of length 1.",
)

_TIMES_THE_MASK = (
    "You multiplied by the mask. 0 · (−∞) is NaN, and what a model says about padding "
    "may be −∞ or NaN. Replace the padding: values.masked_fill(~mask, 0.0)."
)

MASKED_SUM = Exercise(
    name="masked_sum",
    solution="flowrl_lab.tokens:masked_sum",
    cases=_values_and_mask,
    mistakes=(
        Mistake(
            "padding counted",
            "You summed over padding. Only positions where the mask is True count.",
            lambda values, mask: values.sum(1),  # noqa: ARG005
        ),
        Mistake(
            "times the mask",
            _TIMES_THE_MASK,
            lambda values, mask: (values * mask).sum(1),
        ),
        Mistake(
            "mask upside down",
            "You kept the padding and dropped the rest. Here True means: counts.",
            lambda values, mask: values.masked_fill(mask, 0.0).sum(1),
        ),
        Mistake(
            "mean",
            "That is the mean over the counted tokens; the sum was asked for.",
            lambda values, mask: values.masked_fill(~mask, 0.0).sum(1) / mask.sum(1),
        ),
        Mistake(
            "over the batch",
            "You summed over the sequences. Sum over dim=1, the tokens: one number "
            "for each sequence.",
            lambda values, mask: values.masked_fill(~mask, 0.0).sum(0),
        ),
        Mistake(
            "one number",
            "You summed over everything (values[mask] forgets the rows). One number "
            "for each sequence was asked for.",
            lambda values, mask: values[mask].sum(),
        ),
    ),
    hint="Replace what does not count by 0 (values.masked_fill(~mask, 0.0)), then sum "
    "over dim=1.",
)

MASKED_MEAN = Exercise(
    name="masked_mean",
    solution="flowrl_lab.tokens:masked_mean",
    cases=_values_and_mask,
    mistakes=(
        Mistake(
            "averaged over padding",
            "You averaged over padding: the sum leaves it out, but you divided by T. "
            "Divide by the number of tokens that count, mask.sum(1).",
            lambda values, mask: values.masked_fill(~mask, 0.0).mean(1),
        ),
        Mistake(
            "padding counted",
            "The mask has no effect: padding is in the sum and in the count.",
            lambda values, mask: values.mean(1),  # noqa: ARG005
        ),
        Mistake(
            "times the mask",
            _TIMES_THE_MASK,
            lambda values, mask: (values * mask).sum(1) / mask.sum(1),
        ),
        Mistake(
            "sum",
            "That is the sum; divide it by the number of tokens that count.",
            lambda values, mask: values.masked_fill(~mask, 0.0).sum(1),
        ),
        Mistake(
            "divided by all tokens",
            "You divided by the number of tokens in the whole batch. Each row has "
            "its own length: mask.sum(1).",
            lambda values, mask: values.masked_fill(~mask, 0.0).sum(1) / mask.sum(),
        ),
        Mistake(
            "token mean of the batch",
            "That is one mean over all tokens of the batch, in which a long sequence "
            "weighs more than a short one. One mean for each row was asked for.",
            lambda values, mask: values[mask].mean(),
        ),
        Mistake(
            "mask upside down",
            "You averaged the padding. Here True means: counts.",
            lambda values, mask: values.masked_fill(mask, 0.0).sum(1) / (~mask).sum(1),
        ),
    ),
    hint="masked_sum of the values, divided by how many tokens count: mask.sum(1).",
)

ENTROPY_FROM_LOGITS = Exercise(
    name="entropy_from_logits",
    solution="flowrl_lab.tokens:entropy_from_logits",
    cases=_logits_alone,
    mistakes=(
        Mistake(
            "sign",
            "The sign is turned round: entropy is −Σ p log p, never below 0.",
            lambda logits, *, temperature=1.0: -_entropy(logits / temperature),
        ),
        Mistake(
            "0 · log 0",
            "A banned token has p = 0 and log p = −∞, and 0 · (−∞) is NaN. Its share "
            "of the entropy is 0: replace it before you sum.",
            lambda logits, *, temperature=1.0: (
                -(
                    (logits / temperature).softmax(-1)
                    * (logits / temperature).log_softmax(-1)
                ).sum(-1)
            ),
        ),
        Mistake(
            "temperature ignored",
            "temperature has no effect in your function. Divide the logits by it "
            "before the softmax.",
            lambda logits, *, temperature=1.0: _entropy(logits),  # noqa: ARG005
        ),
        Mistake(
            "temperature multiplied",
            "You multiplied by the temperature. Divide: a low temperature sharpens "
            "the distribution, and lowers its entropy.",
            lambda logits, *, temperature=1.0: _entropy(logits * temperature),
        ),
        Mistake(
            "mean over the vocabulary",
            "You averaged over the vocabulary. Weighing by p is the averaging "
            "already: sum.",
            lambda logits, *, temperature=1.0: (
                _entropy(logits / temperature) / logits.shape[-1]
            ),
        ),
        Mistake(
            "bits",
            "Right in bits; we count in nats. Use natural logarithms.",
            lambda logits, *, temperature=1.0: (
                _entropy(logits / temperature) / math.log(2)
            ),
        ),
        Mistake(
            "wrong axis",
            "You summed over the positions. Each position has an entropy of its own: "
            "sum over the vocabulary, the last dimension.",
            lambda logits, *, temperature=1.0: (
                -(
                    (logits / temperature).softmax(-1)
                    * (logits / temperature).log_softmax(-1).clamp(min=-1e30)
                ).sum(1)
            ),
        ),
    ),
    hint="log_probs = (logits / temperature).log_softmax(-1), probs = log_probs.exp(), "
    "then −Σ probs · log_probs over the last dimension, where log_probs of a banned "
    "token is first replaced by 0 (masked_fill where probs == 0).",
)

EXERCISES: tuple[Exercise, ...] = (
    NEXT_TOKEN_LOGITS,
    GATHER_LOG_PROBS,
    MASKED_SUM,
    MASKED_MEAN,
    ENTROPY_FROM_LOGITS,
)

"""Notebook 9: a real language model's padding, adapter, mask and target."""

from __future__ import annotations

import math

import torch

from flowrl_lab.course.checking import Case, Exercise, Mistake

__all__ = ["EXERCISES"]


def _padded_masks() -> list[Case]:
    """Left-padded rows, rows without padding, and one that is padded in both."""
    left = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]]).bool()
    whole = torch.ones(2, 4, dtype=torch.bool)
    both = torch.tensor([[0, 1, 1, 1, 0]]).bool()
    return [((left,), {}), ((whole,), {}), ((both,), {})]


TOKEN_POSITIONS = Exercise(
    name="token_positions",
    solution="flowrl_lab.policies.language_model:token_positions",
    cases=_padded_masks,
    mistakes=(
        Mistake(
            "counts columns",
            "That is the column, 0, 1, 2, …, whatever is padding. A padded prompt "
            "would be read as if it began in the middle of a text.",
            lambda mask: torch.arange(mask.shape[1]).expand(mask.shape),
        ),
        Mistake(
            "starts at one",
            "Your first token has place 1. Positions start at 0: subtract 1.",
            lambda mask: mask.long().cumsum(-1),
        ),
        Mistake(
            "negative padding",
            "Padding got the place -1, which no table of positions has. Raise it to 0; "
            "the mask hides it anyway.",
            lambda mask: mask.long().cumsum(-1) - 1,
        ),
        Mistake(
            "down the rows",
            "You counted down the batch. Count along the tokens, the last dimension.",
            lambda mask: (mask.long().cumsum(0) - 1).clamp(min=0),
        ),
        Mistake(
            "padding loses its count",
            "You multiplied by the mask, so padding *behind* a text falls back to 0. "
            "It should go on with the last place; only what is below 0 is raised.",
            lambda mask: (mask.long().cumsum(-1) - 1).clamp(min=0) * mask,
        ),
    ),
    hint="Count how many tokens of the row count so far (cumsum of the mask), and "
    "subtract one; clamp what falls below 0.",
)


def _layer_shapes() -> list[Case]:
    square = [(8, 8)]
    attention = [(576, 576), (192, 576), (192, 576), (576, 576)]
    mlp = [(1536, 576), (1536, 576), (576, 1536)]
    return [((square, 2), {}), ((attention + mlp, 16), {}), ((mlp, 1), {})]


LORA_PARAMETERS = Exercise(
    name="lora_parameters",
    solution="flowrl_lab.policies.language_model:lora_parameters",
    cases=_layer_shapes,
    mistakes=(
        Mistake(
            "the whole matrix",
            "That is the size of the weights themselves, out · in. The adapter has "
            "two narrow matrices instead.",
            lambda shapes, rank: sum(rows * columns for rows, columns in shapes),  # noqa: ARG005
        ),
        Mistake(
            "one of two",
            "You counted A only (r · in). B has out · r more.",
            lambda shapes, rank: sum(rank * columns for _, columns in shapes),
        ),
        Mistake(
            "the other of two",
            "You counted B only (out · r). A has r · in more.",
            lambda shapes, rank: sum(rank * rows for rows, _ in shapes),
        ),
        Mistake(
            "multiplied",
            "r · out · in is larger than the matrix itself. A and B lie side by side: "
            "their sizes add up.",
            lambda shapes, rank: sum(rank * rows * columns for rows, columns in shapes),
        ),
        Mistake(
            "rank forgotten",
            "in + out is the size for r = 1.",
            lambda shapes, rank: sum(rows + columns for rows, columns in shapes),  # noqa: ARG005
        ),
    ),
    hint="For a weight [out, in], A is [r, in] and B is [out, r].",
)


def _written_rows() -> list[Case]:
    """Rows with one end, two, none, and one at once; two kinds of end."""
    one, two = torch.tensor([0]), torch.tensor([0, 9])
    rows = torch.tensor([[5, 3, 0, 0, 0], [5, 0, 7, 0, 7], [5, 3, 7, 4, 6]])
    both = torch.tensor([[5, 9, 0, 0], [0, 0, 0, 0], [4, 0, 9, 6], [4, 6, 9, 6]])
    return [((rows, one), {}), ((both, two), {}), ((both, one), {})]


def _ends(token_ids, end_ids, dim: int = -1):
    """Where an end stands, and how many do up to there."""
    ended = torch.isin(token_ids, end_ids).long()
    return ended, ended.cumsum(dim)


def _before(token_ids, end_ids, dim: int = -1):
    ended, many = _ends(token_ids, end_ids, dim)
    return many - ended


MASK_THROUGH_END = Exercise(
    name="mask_through_end",
    solution="flowrl_lab.policies.language_model:mask_through_end",
    cases=_written_rows,
    mistakes=(
        Mistake(
            "the end is cut off",
            "You cut off the end itself. The model has chosen it, so it counts: "
            "without it nothing is learned about when to stop.",
            lambda token_ids, end_ids: _ends(token_ids, end_ids)[1] == 0,
        ),
        Mistake(
            "only ends are cut off",
            "You dropped the ends alone. What stands behind the first end was never "
            "part of the answer, whatever token it is.",
            lambda token_ids, end_ids: ~torch.isin(token_ids, end_ids),
        ),
        Mistake(
            "up to the second end",
            "You kept what has one end up to its place, and so everything between the "
            "first end and the second. Leave a token's own end out of its count.",
            lambda token_ids, end_ids: _ends(token_ids, end_ids)[1] <= 1,
        ),
        Mistake(
            "one kind of end",
            "You looked for the first of end_ids only. An answer may end with any of "
            "them: torch.isin.",
            lambda token_ids, end_ids: _before(token_ids, end_ids[:1]) == 0,
        ),
        Mistake(
            "turned round",
            "Your mask is True behind the end. It names what is *kept*.",
            lambda token_ids, end_ids: _before(token_ids, end_ids) > 0,
        ),
        Mistake(
            "down the rows",
            "You counted down the batch. Count along the tokens, the last dimension.",
            lambda token_ids, end_ids: _before(token_ids, end_ids, 0) == 0,
        ),
    ),
    hint="torch.isin(token_ids, end_ids) says where an end stands; its cumsum along "
    "the tokens counts the ends up to each place, its own included. What is 0 where "
    "no end came *before*?",
)


def _accuracies() -> list[Case]:
    base = torch.tensor([0.14, 0.25, 0.39, 0.9], dtype=torch.float64)
    return [
        ((base,), {"reward_scale": 4.0}),
        ((base,), {"reward_scale": 0.5}),
        ((torch.tensor([0.02, 0.5], dtype=torch.float64),), {"reward_scale": 8.0}),
    ]


TARGET_ACCURACY = Exercise(
    name="target_accuracy",
    solution="flowrl_lab.exact:target_accuracy",
    cases=_accuracies,
    mistakes=(
        Mistake(
            "not normalised",
            "a e^β is the weight of the right answers. Divide by the weight of all of "
            "them: 1 − a + a e^β.",
            lambda accuracy, *, reward_scale: accuracy * math.exp(reward_scale),
        ),
        Mistake(
            "the wrong ones forgotten",
            "You divided by a e^β + 1. The wrong answers weigh 1 − a, not 1.",
            lambda accuracy, *, reward_scale: (
                accuracy
                * math.exp(reward_scale)
                / (accuracy * math.exp(reward_scale) + 1)
            ),
        ),
        Mistake(
            "starts from one half",
            "That is e^β / (1 + e^β), which takes the reference to be right half of "
            "the time. Use its own accuracy a.",
            lambda accuracy, *, reward_scale: torch.full_like(
                accuracy, 1 / (1 + math.exp(-reward_scale))
            ),
        ),
        Mistake(
            "β for e^β",
            "The factor of a right answer is e^β, not β.",
            lambda accuracy, *, reward_scale: (
                accuracy * reward_scale / (1 - accuracy + accuracy * reward_scale)
            ),
        ),
        Mistake(
            "the share of the wrong ones",
            "That is how often the target is *wrong*.",
            lambda accuracy, *, reward_scale: (
                (1 - accuracy) / (1 - accuracy + accuracy * math.exp(reward_scale))
            ),
        ),
        Mistake(
            "averaged first",
            "You averaged the prompts before the formula. It is not linear: compute it "
            "for each prompt.",
            lambda accuracy, *, reward_scale: torch.full_like(
                accuracy,
                accuracy.mean().item()
                / (
                    accuracy.mean().item()
                    + (1 - accuracy.mean().item()) * math.exp(-reward_scale)
                ),
            ),
        ),
    ),
    hint="Right answers weigh a · e^β in all, wrong ones (1 − a) · e^0. What share of "
    "the sum are the right ones?",
)

EXERCISES = (TOKEN_POSITIONS, LORA_PARAMETERS, MASK_THROUGH_END, TARGET_ACCURACY)

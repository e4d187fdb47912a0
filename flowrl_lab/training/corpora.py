"""What the tiny language models have read: one careless corpus for each task.

Careless as the text behind real base models is: everything is in the right language,
but much of it stops half-way, or does what was shown and not what was meant.  A model
that has read it knows the format, gets it right about as often as its corpus does,
and has its habits: every answer has a fixed random weight, so that right answers are
not equally common.  Reinforcement learning then has something to improve, and a
reference that is worth keeping.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
from torch import Tensor

from flowrl_lab.tasks import make_number, programs, sums

__all__ = [
    "RECIPES",
    "PretrainConfig",
    "ProgramsPretrainConfig",
    "Recipe",
    "SumsPretrainConfig",
    "answer_weight",
    "build_corpus",
]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a shipped checkpoint is made: the part that all tasks share.

    Attributes:
        steps: updates.
        batch_size: prompts an update, each with ``answers_per_prompt`` answers (1).
        learning_rate: peak, after ``warmup`` steps; it then falls to 0 (cosine).
        warmup: steps of linear rise.
        weight_decay: of AdamW.
        right_share: share of the corpus that is right; the rest is careless.
        weight_spread: standard deviation of an answer's log-weight.
        sizes: of the model, where it is not ``TINY_LLAMA``'s.
        seed: of the weights, the corpus and the batches.
    """

    task: ClassVar[str]
    answers_per_prompt: ClassVar[int] = 1
    sizes: ClassVar[dict[str, int]] = {}
    steps: int = 2500
    batch_size: int = 128
    learning_rate: float = 3e-3
    warmup: int = 100
    weight_decay: float = 0.01
    right_share: float = 0.55
    weight_spread: float = 0.7
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class PretrainConfig(Recipe):
    """The recipe of the maths checkpoint, ``data/make_number_tiny_lm``.

    The careless part are workings that stop half-way (1 in 16 of those has made the
    number by then, as in ``8+9=17-0``).

    Attributes:
        working_share: share of the examples that show their working.
    """

    task: ClassVar[str] = "make_number"
    working_share: float = 0.95


@dataclasses.dataclass(frozen=True)
class ProgramsPretrainConfig(Recipe):
    """The recipe of the code checkpoint, ``data/programs_tiny_lm``.

    The careless part are right programs with their last word left out, and plausible
    programs: those fit the two examples and do something else elsewhere.  As a base
    model has, it has read about everything: held-out functions too, though no held-out
    prompt.  What is held out is held out of reinforcement learning.

    Attributes:
        answers_per_prompt: answers in a row of a batch, all of the same prompt.
        length_discount: by how much each word lowers a program's log-weight.
        prompts_per_function: different pairs of examples for each function.
    """

    task: ClassVar[str] = "programs"
    steps: int = 12000
    batch_size: int = 16
    right_share: float = 0.9
    answers_per_prompt: int = 4
    length_discount: float = 1.5
    prompts_per_function: int = 16


@dataclasses.dataclass(frozen=True)
class SumsPretrainConfig(Recipe):
    """The recipe of the model for sums in all lengths, ``data/sums_tiny_lm``.

    The careless part makes a number next to the one asked for, with a true working, so
    that every length goes wrong in its digits and equally often.  A smaller model than
    the others: long answers are dear, and three lengths times five seeds are many.
    """

    task: ClassVar[str] = "sums"
    sizes: ClassVar[dict[str, int]] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
    }
    steps: int = 2400
    right_share: float = 0.5


RECIPES: dict[str, type[Recipe]] = {
    recipe.task: recipe
    for recipe in (PretrainConfig, ProgramsPretrainConfig, SumsPretrainConfig)
}

Weighted = list[tuple[str, float]]


def answer_weight(text: str, config) -> float:
    """A fixed random weight: the same answer is as common on every machine.

    Args:
        text: the answer.
        config: a recipe; its ``seed`` and ``weight_spread`` are read.
    """
    digest = hashlib.sha256(f"{config.seed}:{text}".encode()).digest()
    uniform = (int.from_bytes(digest[:4], "big") + 0.5) / 2**32
    normal = math.sqrt(2) * torch.erfinv(torch.tensor(2 * uniform - 1)).item()
    return math.exp(config.weight_spread * normal)


def _expression_weight(answer: str, config: PretrainConfig) -> float:
    """Both spellings of an expression have the same weight, times their share."""
    expression = answer if "=" not in answer else answer[: answer.rfind("=")]
    spelling = config.working_share if "=" in answer else 1 - config.working_share
    return spelling * answer_weight(expression, config)


def _unfinished_workings(prompt: str) -> list[str]:
    """Workings that stop half-way, before the number is made."""
    target, banned = make_number.parse_prompt(prompt)
    unfinished = []
    for operands, operators, value in make_number._all_expressions()[target]:
        if len(operands) == 3 and banned.isdisjoint(operands):
            working = make_number._spellings(operands, operators, value, target)[1]
            unfinished.append(working[: working.index("=") + 1] + str(value))
    return unfinished


def _maths_examples(
    task, config: PretrainConfig
) -> Iterator[tuple[str, Weighted, Weighted]]:
    for prompt in task.prompts("train"):
        right = list(task.answers(prompt).labels)
        careless = _unfinished_workings(prompt) or right
        yield (
            prompt,
            [(text, _expression_weight(text, config)) for text in right],
            [(text, _expression_weight(text, config)) for text in careless],
        )


def _program_examples(
    _task, config: ProgramsPretrainConfig
) -> Iterator[tuple[str, Weighted, Weighted]]:
    @functools.cache
    def weight(program: str) -> float:
        discount = math.exp(-config.length_discount * len(program))
        return discount * answer_weight(program, config)

    for prompt in _program_prompts(config.prompts_per_function):
        right, plausible = programs.list_programs(prompt)
        cut = [
            (program[:-1], weight(program))
            for program in right
            if program[:-1] not in right
        ]
        careless = cut + [(program, weight(program)) for program in plausible]
        yield prompt, [(text, weight(text)) for text in right], careless


def _program_prompts(count: int) -> Iterator[str]:
    """Prompts for every function of the task, none of them a held-out prompt."""
    for heldout in (False, True):
        skip = programs.PROMPTS_PER_FUNCTION if heldout else 0
        for meaning in programs.task_meanings(heldout):
            yield from programs.draw_prompts(meaning, skip + count)[skip:]


def _sum_examples(
    task, config: SumsPretrainConfig
) -> Iterator[tuple[str, Weighted, Weighted]]:
    for prompt in task.prompts("train"):
        total, banned, length = sums.parse_prompt(prompt)
        right, careless = (
            [
                (
                    sums.spell_answer(digits, length),
                    answer_weight(sums.spell_answer(digits, "s"), config),
                )
                for made in totals
                for digits in sums.list_digits(made, banned)
            ]
            for totals in ((total,), (total - 1, total + 1))
        )
        yield prompt, right, careless


EXAMPLES: dict[str, Callable] = {
    "make_number": _maths_examples,
    "programs": _program_examples,
    "sums": _sum_examples,
}


def build_corpus(task, config: Recipe) -> tuple[Tensor, Tensor]:
    """Every training example with its sampling weight.

    Args:
        task: the task that the recipe is for.
        config: the recipe.

    Returns:
        ``(tokens [M, S + T], weights [M])``, of prompt, answer, end token, padding;
        the weights of a prompt's examples sum to 1.
    """
    rows, weights = [], []
    for prompt, right, careless in EXAMPLES[config.task](task, config):
        for examples, share in (
            (right, config.right_share),
            (careless, 1 - config.right_share),
        ):
            total = sum(weight for _, weight in examples)
            weights += [share * weight / total for _, weight in examples]
            rows += [prompt + answer for answer, _ in examples]
    width = task.max_prompt_tokens + task.max_completion_tokens
    tokens = []
    for text in rows:
        ids = [*task.to_ids(text), task.eos_id]
        tokens.append(ids + [task.pad_id] * (width - len(ids)))
    return torch.tensor(tokens), torch.tensor(weights)

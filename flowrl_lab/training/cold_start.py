"""A cold start: what a real model reads before reinforcement learning can begin.

Where a model is never right, every reward is 0 and nothing can be learned.  So it is
first shown solutions, by a short supervised run of a LoRA adapter, as the field does.
The text is careless on purpose, like what base models have read: two thirds of the
lines are right, the others stop half-way or have one digit wrong, and some spellings
are far more common than others.  Nothing of what is held out stands in it.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from flowrl_lab.evaluation import evaluate_policy
from flowrl_lab.tokens import masked_sum
from flowrl_lab.training.config import ExperimentConfig
from flowrl_lab.training.corpora import answer_weight
from flowrl_lab.training.making import make_task_and_policy
from flowrl_lab.training.pretraining import (
    claim_folder,
    describe_making,
    write_provenance,
)

__all__ = ["COLD_STARTS", "ColdStart", "cold_start", "save_adapter", "solutions"]

DIGITS = "123456789"


@dataclasses.dataclass(frozen=True)
class ColdStart:
    """How the adapter of a cold start is made.

    Attributes:
        task: in plain text, with its right answers listed.
        model: the base.
        steps: updates.
        batch_size: questions an update.
        answers_per_prompt: lines of each.
        learning_rate: of AdamW; it falls linearly to 0.
        lora_rank: of the adapter; alpha is twice as large.
        right_share: share of the lines that are right.
        weight_spread: standard deviation of an answer's log-weight.
        seed: of adapter, lines and weights.
    """

    task: str = "formulas"
    model: str = "smollm2-135m"
    steps: int = 200
    batch_size: int = 8
    answers_per_prompt: int = 3
    learning_rate: float = 2e-3
    lora_rank: int = 4
    right_share: float = 2 / 3
    weight_spread: float = 1.0
    seed: int = 0


COLD_STARTS = {"formulas": ColdStart()}

Weighted = dict[str, float]


def solutions(right: tuple[str, ...], recipe: ColdStart) -> Weighted:
    """Lines about one question with their shares, which sum to 1.

    Args:
        right: its right answers.
        recipe: says how many are right, and how uneven they are.
    """
    known, careless = set(right), set()
    for answer in right:
        careless.add(answer[:-1])  # stops half-way
        for place, character in enumerate(answer):
            if character in DIGITS:
                other = DIGITS[DIGITS.index(character) - 1]
                careless.add(answer[:place] + other + answer[place + 1 :])
    found = {}
    for answers, share in (
        (known, recipe.right_share),
        (careless - known, 1 - recipe.right_share),
    ):
        weights = {answer: answer_weight(answer, recipe) for answer in sorted(answers)}
        total = sum(weights.values())
        found |= {answer: share * weight / total for answer, weight in weights.items()}
    return found


def cold_start_steps(task, policy, recipe: ColdStart) -> Iterator[tuple[int, float]]:
    """Train the policy's adapter in place; yield (step, nats a token)."""
    generator = torch.Generator().manual_seed(recipe.seed)
    optimizer = torch.optim.AdamW(policy.trainable_parameters(), weight_decay=0.0)
    questions = task.prompts("train")
    for step in range(recipe.steps):
        chosen = torch.randperm(len(questions), generator=generator)[
            : recipe.batch_size
        ]
        texts = tuple(questions[number] for number in chosen.tolist())
        lines = [_draw_lines(task, text, recipe, generator) for text in texts]
        pairs = zip(texts, lines, strict=True)
        rows = [task.completion_rows(text, drawn) for text, drawn in pairs]
        ids, mask = (torch.cat(part) for part in zip(*rows, strict=True))
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * (1 - step / recipe.steps)
        scores = policy.evaluate(task.encode(texts), ids, mask)
        loss = -masked_sum(scores.log_probs, mask).sum() / mask.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.trainable_parameters(), 1.0)
        optimizer.step()
        yield step + 1, loss.item()


def _draw_lines(task, question: str, recipe: ColdStart, generator) -> list[str]:
    shares = solutions(task.task.answer_texts(question), recipe)
    drawn = torch.multinomial(
        torch.tensor(list(shares.values())),
        recipe.answers_per_prompt,
        replacement=True,
        generator=generator,
    )
    return [list(shares)[number] for number in drawn.tolist()]


def cold_start(
    out_dir: str | Path, recipe: ColdStart, *, device: str = "cpu", report=print
) -> dict:
    """Train the adapter of a cold start and save it, in half precision.

    Args:
        out_dir: a folder that must not exist yet, or be empty.
        recipe: what to do.
        device: where to train.
        report: called with a line of progress now and then.

    Returns:
        The facts written to ``provenance.json``.

    Raises:
        ValueError: ``out_dir`` already holds something.
    """
    out_dir = claim_folder(out_dir)
    config = ExperimentConfig(
        task=recipe.task,
        policy="hf_lm",
        model=recipe.model,
        lora_rank=recipe.lora_rank,
        lora_alpha=2.0 * recipe.lora_rank,
        seed=recipe.seed,
    )
    task, policy = make_task_and_policy(config, torch.device(device))
    start, every = time.perf_counter(), max(1, recipe.steps // 20)
    for step, loss in cold_start_steps(task, policy, recipe):
        if step % every == 0:
            left = (time.perf_counter() - start) / step * (recipe.steps - step)
            report(f"step {step}/{recipe.steps}  loss {loss:.3f}  {left:.0f} s left")
    seconds = time.perf_counter() - start
    save_adapter(policy, out_dir)
    judged = evaluate_policy(policy, task, task.prompts("validation"))
    facts = {
        "what": f"LoRA adapter for {recipe.model}: a cold start for {task.name}",
        "command": f"python -m flowrl_lab pretrain {task.name} --out FOLDER",
        "recipe": dataclasses.asdict(recipe),
        **describe_making(seconds, judged),
    }
    write_provenance(out_dir, facts)
    return facts


def save_adapter(policy, folder: Path) -> None:
    """Write the policy's adapter in peft's format, rounded to float16 in place."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    for weight in policy.trainable_parameters():
        weight.data = weight.data.half().float()
    config = policy.model.peft_config["default"]
    config.base_model_name_or_path = policy.loaded.base_name
    config.save_pretrained(folder)
    # False: nothing but the adapter was trained, and peft need not ask the hub for that
    weights = get_peft_model_state_dict(policy.model, save_embedding_layers=False)
    halves = {name: weight.half().contiguous() for name, weight in weights.items()}
    save_file(halves, folder / "adapter_model.safetensors")

"""A batch in parts gives the gradient of the whole, for every algorithm."""

from __future__ import annotations

import math

import pytest
import torch

from flowrl_lab.training.algorithms import ALGORITHMS
from flowrl_lab.training.config import ExperimentConfig
from flowrl_lab.training.microbatches import sample_in_parts, split_batch
from flowrl_lab.training.records import measure
from flowrl_lab.training.run import Run
from flowrl_lab.training.step import BadUpdateError, training_step
from flowrl_lab.training.survival import is_out_of_memory

TINY = {
    "task": "make_number",
    "prompts_per_step": 3,
    "num_generations": 4,
    "steps": 3,
    "eval_every": 100,
    "eval_prompts": 1,
    "lora_rank": 2,
    "learning_rate": 1e-3,
}


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 5, 8, 11, 12, 99])
def test_parts_are_in_order_complete_and_small(rows):
    parts = list(split_batch(3, 4, rows))
    covered = [row for part in parts for row in range(12)[part.rows]]
    assert covered == list(range(12))
    for part in parts:
        prompts = range(3)[part.prompts]
        assert len(range(12)[part.rows]) == len(prompts) * part.copies
        assert {row // 4 for row in range(12)[part.rows]} == set(prompts)
        assert len(range(12)[part.rows]) <= (rows or 12)


def gradients(config: ExperimentConfig) -> tuple[list, dict]:
    """The gradients of a run's first update, and what was measured."""
    run = Run(config)
    with torch.no_grad():  # an adapter that does something
        generator = torch.Generator().manual_seed(7)
        for parameter in run.policy.trainable_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.05 * noise)
    # one rollout for all: drawn in one go
    parted = run.survival.parts
    rows, parted.rows = parted.rows, 0
    batch = run.prepare(run.sample())
    parted.rows = rows
    update = training_step(parted, run.optimizer, batch, run.algorithm)
    measured = measure(batch.rollout, update, config)
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    return [p.grad.clone() for p in parameters if p.grad is not None], measured


def assert_same_gradient(found: list, expected: list) -> None:
    """Equal up to float32's rounding: of the squared residuals, in another order."""
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 2e-4 * other.norm() + 1e-9


@pytest.mark.parametrize(
    ("algorithm", "rows"), [*((name, 3) for name in ALGORITHMS), ("flowrl", 8)]
)
def test_the_gradient_in_parts_is_that_of_the_whole(algorithm, rows):
    extra = {"kl_coef": 0.1} if algorithm in ("grpo", "kl_reinforce") else {}
    config = ExperimentConfig(
        **TINY, algorithm=algorithm, entropy_coef=0.01, max_grad_norm=1e9, **extra
    )
    whole, expected = gradients(config)
    parts, measured = gradients(config.replace(micro_batch=rows))
    assert len(whole) == len(parts) > 50
    assert sum(g.abs().sum() for g in whole) > 0
    assert_same_gradient(parts, whole)
    for key in ("loss", "entropy", "grad_norm"):
        assert math.isclose(measured[key], expected[key], rel_tol=1e-4, abs_tol=1e-6)


def test_an_attached_log_z_reaches_the_backbone_in_parts_too():
    config = ExperimentConfig(**TINY, log_z="attached", max_grad_norm=1e9)
    whole, _ = gradients(config)
    parts, _ = gradients(config.replace(micro_batch=4))
    assert_same_gradient(parts, whole)


def test_samples_in_parts_are_whole_rows_with_their_log_probs():
    run = Run(ExperimentConfig(**TINY))
    prompts = run.task.encode(run.task.prompts("train")[:3])
    drawn = sample_in_parts(
        run.policy,
        prompts,
        4,
        rows=3,
        temperature=1.0,
        generator=torch.Generator().manual_seed(0),
    )
    assert len(drawn.completion_ids) == 12
    again = run.policy.evaluate(prompts, drawn.completion_ids, drawn.completion_mask)
    torch.testing.assert_close(again.log_probs.detach(), drawn.log_probs)


# ------------------------------------------------------------------ out of memory


def run_that_fits(rows: int, monkeypatch, **changes) -> tuple[Run, list]:
    """A run on a machine that holds ``rows`` completions with their graph."""
    run = Run(ExperimentConfig(**{**TINY, **changes}))
    whole = type(run.policy).evaluate
    sizes = []

    def evaluate(self, prompts, ids, *given, **settings):
        if torch.is_grad_enabled() and not settings.get("reference"):
            sizes.append(len(ids))
            if len(ids) > rows:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate …")
        return whole(self, prompts, ids, *given, **settings)

    monkeypatch.setattr(type(run.policy), "evaluate", evaluate)
    return run, sizes


def test_when_memory_runs_out_smaller_parts_go_on_with_the_same_batch(
    monkeypatch, capsys
):
    run, sizes = run_that_fits(3, monkeypatch)
    records = list(run)
    assert [r.step for r in records] == [0, 1, 2, 3]
    # 6 rows hold one group of 4, and 3 do
    assert sizes[:2] == [12, 4] and max(sizes[2:]) == 3
    assert run.survival.policy.rows == 3
    said = capsys.readouterr().out
    assert "out of memory with 12 completions in a pass; going on with 6" in said
    assert "the batch stays at 12" in records[1].note and not records[2].note
    monkeypatch.undo()
    # The first batch was drawn in one go: what is learned from it stays the same.
    calm = list(Run(ExperimentConfig(**{**TINY, "steps": 1})))[-1]
    assert records[1].tokens == calm.tokens
    for key in ("reward", "loss", "grad_norm"):
        mine, other = (getattr(record, key) for record in (records[1], calm))
        assert math.isclose(mine, other, rel_tol=1e-4)


def test_no_room_for_a_single_row_is_said(monkeypatch):
    run, _ = run_that_fits(0, monkeypatch)
    with pytest.raises(MemoryError, match=r"not even one completion.*Fix: shorter"):
        list(run)


def test_other_errors_are_not_taken_for_memory(monkeypatch):
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated"))
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert not is_out_of_memory(ValueError("out of memory"))
    run = Run(ExperimentConfig(**TINY))

    def broken(*_given, **_settings):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(type(run.policy), "evaluate", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        list(run)


# ------------------------------------------------------------------- bad updates


def poison(run: Run, monkeypatch, steps: set[int], kind: str) -> None:
    """Make the loss of some steps NaN or its gradient infinite."""
    plain = run.algorithm.loss

    def loss(batch, output, log_z):
        parts = plain(batch, output, log_z)
        if run.step + 1 in steps:
            bad = math.nan if kind == "loss" else 1e38
            changed = parts.loss * bad * (1 if kind == "loss" else 1e38)
            if kind == "gradient":  # finite, with a gradient that is not
                changed = parts.loss + (parts.loss - parts.loss.detach()) * bad * 1e38
            object.__setattr__(parts, "loss", changed)
        return parts

    monkeypatch.setattr(run.algorithm, "loss", loss)


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_bad_update_is_skipped_counted_and_explained(kind, monkeypatch, capsys):
    config = ExperimentConfig(**TINY, on_bad_update="skip")
    run = Run(config)
    poison(run, monkeypatch, {2}, kind)
    weights = []
    records = []
    for record in run:
        records.append(record)
        state = run.policy.state_dict().values()
        weights.append(torch.cat([w.flatten() for w in state]))
    assert [r.skipped for r in records] == [0, 0, 1, 1]
    assert "update skipped (1 so far)" in records[2].note
    assert "Fix: lower learning_rate" in records[2].note
    assert "update skipped" in capsys.readouterr().out
    assert math.isnan(records[2].loss) and records[2].reward >= 0
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[2], weights[3])


def test_too_many_in_a_row_end_the_run(monkeypatch):
    config = ExperimentConfig(**TINY, on_bad_update="skip", max_skips=1)
    run = Run(config)
    poison(run, monkeypatch, {1, 2, 3}, "loss")
    with pytest.raises(FloatingPointError, match="2 updates in a row were skipped"):
        list(run)


def test_the_toys_still_stop(monkeypatch):
    run = Run(ExperimentConfig(**TINY))
    poison(run, monkeypatch, {1}, "loss")
    with pytest.raises(BadUpdateError, match="the loss of run 'flowrl' is nan"):
        list(run)
    assert run.step == 0


def test_an_exploding_residual_is_a_bad_update():
    config = ExperimentConfig(**TINY, reward_scale=50.0, max_residual=20.0)
    with pytest.raises(FloatingPointError, match="above max_residual"):
        list(Run(config))
    skipping = config.replace(on_bad_update="skip", max_skips=9)
    assert [r.skipped for r in Run(skipping)] == [0, 1, 2, 3]


# ----------------------------------------------------------------- where log Z starts


def test_log_z_starts_at_the_estimate_of_the_first_batch():
    """It is drawn from π_ref, so the mean of exp(βr) is an unbiased Z."""
    for settings in (TINY, {"task": "landscape", "steps": 1, "num_generations": 64}):
        config = ExperimentConfig(
            **{**settings, "steps": 1}, log_z_start="batch", reward_scale=5.0
        )
        run = Run(config)
        rewards = run.sample().rewards
        expected = (5.0 * rewards).exp().mean().log()
        records = list(Run(config))
        torch.testing.assert_close(torch.tensor(records[1].log_z), expected)
        assert records[1].log_z > 0
    assert list(Run(ExperimentConfig(**{**TINY, "steps": 1})))[1].log_z == 0

"""Several processes: the arithmetic against one process, and a step that does it."""

from __future__ import annotations

import pytest
import torch

from flowrl_lab import group_normalized, preset
from flowrl_lab.scaling.data_parallel import (
    batch_gradient,
    combine_gradients,
    gathered_normalized,
    sample_batch,
    share_of,
    step_apart,
)
from flowrl_lab.training.run import Run

# Three prompts for two processes: one has four rows, the other eight.
CONFIG = preset("make_number", "flowrl", budget="quick").replace(
    prompts_per_step=3, num_generations=4
)


@pytest.fixture(scope="module")
def run():
    run = Run(CONFIG)
    return run, sample_batch(run)


def test_shares_make_up_the_batch_and_keep_groups_whole(run):
    _, rollout = run
    shares = [share_of(rollout, rank, 2) for rank in range(2)]
    assert [len(share.rewards) for share in shares] == [4, 8]
    for name in ("completion_ids", "completion_mask", "ref_log_probs", "rewards"):
        together = torch.cat([getattr(share, name) for share in shares])
        assert torch.equal(together, getattr(rollout, name))
    assert sum((s.prompts.texts for s in shares), ()) == rollout.prompts.texts


def test_weighted_by_rows_it_is_the_gradient_of_the_whole(run):
    run, rollout = run
    parts = [share_of(rollout, rank, 2) for rank in range(2)]
    gradients = torch.stack([batch_gradient(run, part) for part in parts])
    whole = batch_gradient(run, rollout)
    combined = combine_gradients(gradients, [4, 8])
    assert (combined - whole).norm() <= 1e-5 * whole.norm()
    assert (gradients.mean(0) - whole).norm() > 0.05 * whole.norm()


@pytest.mark.full
@pytest.mark.slow
def test_two_processes_find_the_gradient_of_one(run):
    run, rollout = run
    apart = step_apart(CONFIG, rollout, processes=2)
    whole = batch_gradient(run, rollout)
    assert apart.rows == (4, 8)
    assert (apart.gradient - whole).norm() <= 1e-5 * whole.norm()
    assert apart.seconds > 0


def test_groups_that_are_cut_are_normalised_whole():
    rewards = torch.arange(12.0).square()
    expected = group_normalized(rewards, 4)
    for rank in range(2):
        share = gathered_normalized(rewards.view(2, 6), 4, rank)
        torch.testing.assert_close(share, expected.view(2, 6)[rank])


@pytest.mark.bad_input
def test_what_cannot_be_shared(run):
    _, rollout = run
    with pytest.raises(ValueError, match=r"`processes` is 4.*at most 3"):
        step_apart(CONFIG, rollout, processes=4)
    with pytest.raises(ValueError, match="2 counts for 3 gradients"):
        combine_gradients(torch.zeros(3, 2), [1, 2])
    with pytest.raises(ValueError, match=r"`rank` is 2.*0 to 1"):
        gathered_normalized(torch.zeros(2, 4), 4, 2)

"""The bug zoo: each animal has its own bug, and the probes tell it from Eq. 6."""

import pytest
import torch

from flowrl_lab import group_normalized
from flowrl_lab.course.bug_zoo import ZOO, in_a_run, make_probe_batch, passes_probes
from flowrl_lab.losses import flowrl_loss
from flowrl_lab.training.presets import preset
from flowrl_lab.training.run import Run

RIGHT = {"adder", "fox"}


def slopes(loss, batch):
    """Value and gradients with respect to log Z and the policy; None is zero."""
    named = {k: v.clone() for k, v in batch._asdict().items()}
    leaves = [named[name].requires_grad_() for name in ("log_z", "log_probs")]
    value = loss(*named.values())
    found = torch.autograd.grad(value, leaves, allow_unused=True)
    return value.detach(), *(
        torch.zeros_like(leaf) if slope is None else slope
        for leaf, slope in zip(leaves, found, strict=True)
    )


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_animal_gives_the_published_number(name):
    """... which is what makes the bugs hard to see."""
    generator = torch.Generator().manual_seed(0)
    rewards = group_normalized(torch.rand(8, generator=generator).double(), 8)
    mask = torch.arange(6) < torch.tensor([1, 2, 3, 4, 5, 6, 3, 2]).unsqueeze(1)
    log_probs = -torch.rand(8, 6, generator=generator).double()
    zeros = torch.zeros(8, dtype=torch.float64)
    value = ZOO[name](zeros, log_probs, log_probs, log_probs, rewards, mask)
    assert value.item() == pytest.approx(196.875, abs=1e-2)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_the_probes_tell_right_from_wrong(name):
    assert passes_probes(ZOO[name]) == (name in RIGHT)


@pytest.mark.parametrize("name", sorted(RIGHT))
def test_the_right_ones_equal_the_library(name):
    for seed in range(5):
        batch = make_probe_batch(seed)
        for ours, theirs in zip(
            slopes(flowrl_loss, batch), slopes(ZOO[name], batch), strict=True
        ):
            torch.testing.assert_close(theirs, ours)


def test_each_bug_shows_where_it_should():
    """Which of value, gradient of log Z and gradient of the policy differ."""
    batch = make_probe_batch()
    right = slopes(flowrl_loss, batch)
    differ = {
        name: "".join(
            "vzp"[i]
            for i, theirs in enumerate(slopes(ZOO[name], batch))
            if not torch.allclose(theirs, right[i])
        )
        for name in ZOO
    }
    assert differ == {
        "adder": "", "bat": "vzp", "crow": "p", "dingo": "vzp", "eel": "vzp",
        "fox": "", "gnu": "vzp", "hare": "z",
    }  # fmt: skip


def test_a_loss_that_is_right_but_for_a_constant_is_caught():
    assert not passes_probes(lambda *tensors: flowrl_loss(*tensors) + 1)
    assert not passes_probes(lambda *tensors: flowrl_loss(*tensors) * 1.001)
    assert passes_probes(flowrl_loss)


def test_probe_batches_differ_and_nothing_in_them_is_trivial():
    batch, other = make_probe_batch(), make_probe_batch(1)
    assert not torch.equal(batch.log_probs, other.log_probs)
    assert batch.completion_mask.sum(1).tolist() == [1, 3, 2, 4]
    assert len(batch.log_z.unique()) == 2
    moved = (batch.log_probs - batch.old_log_probs).abs()
    assert moved.min() > 1e-3 and (batch.log_probs < 0).all()


def _run(loss):
    config = preset("landscape", "flowrl", steps=3, eval_every=3,
                    updates_per_batch=2, length_normalize=True)  # fmt: skip
    return Run(config, flowrl_loss=loss)


def test_an_animal_trains_in_a_run():
    """A right one gives the library's run; the name says whose loss it is."""
    run = _run(in_a_run(ZOO["adder"]))
    found, expected = ([r.loss for r in one][1:] for one in (run, _run(None)))
    assert found == pytest.approx(expected, rel=1e-5)
    assert run._state()["flowrl_loss"] == "in_a_run(adder)"


@pytest.mark.bad_input
def test_an_animal_refuses_the_forms_it_does_not_have():
    config = preset("landscape", "flowrl", steps=1)
    with pytest.raises(ValueError, match=r"length_normalize=False.*Fix:"):
        list(Run(config, flowrl_loss=in_a_run(ZOO["adder"])))

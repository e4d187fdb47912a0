"""The Z-lab: its arithmetic against torch's own, its settings, its still form."""

from __future__ import annotations

import dataclasses
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from flowrl_lab.losses import trajectory_balance_loss, vargrad_loss
from flowrl_lab.widgets import ZLab
from flowrl_lab.widgets.z_training import (
    STEPS,
    Settings,
    draw_uniforms,
    reading_weights,
    train,
)

WIDGET_MIME = "application/vnd.jupyter.widget-view+json"
REWARDS = np.array([0.0, 0.9, 0.3, 1.0, 0.1, 0.5, 0.2])
REFERENCE = np.array([0.3, 0.1, 0.1, 0.05, 0.15, 0.1, 0.2])
SCALE = 4.0


@pytest.fixture(autouse=True)
def forget_settings():
    ZLab._left.clear()


def scrambled(counter: int) -> int:
    """The documented hash, in Python's own unbounded integers."""
    x = counter
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> shift)) * factor) % 2**32
    return x ^ (x >> 16)


def test_the_draws_are_the_documented_hash_and_even() -> None:
    for seed, step, count in ((0, 0, 3), (3, 17, 8), (4000, 299, 256)):
        start = seed * 2**20 + step * count
        expected = [(scrambled(start + i) + 0.5) / 2**32 for i in range(count)]
        assert draw_uniforms(seed, step, count).tolist() == expected
    many = np.concatenate([draw_uniforms(1, step, 64) for step in range(300)])
    counts = np.bincount((many * 20).astype(int), minlength=20)
    chi_square = ((counts - 960) ** 2 / 960).sum()
    assert chi_square < 44  # 0.1 % of fair dice would exceed it (19 degrees)


def torch_run(settings: Settings, steps: int) -> tuple[list, list, torch.Tensor]:
    """The same training with autograd, torch's Adam and the library's losses."""
    rewards, ref = torch.tensor(REWARDS), torch.tensor(REFERENCE).log()
    logits = ref.clone().requires_grad_()
    own = torch.zeros((), dtype=torch.double, requires_grad=True)
    reads = torch.tensor(reading_weights(len(ref)))
    rates = {"lr": settings.learning_rate}, {"lr": settings.log_z_learning_rate}
    optimiser = torch.optim.Adam(
        [{"params": [logits], **rates[0]}, {"params": [own], **rates[1]}]
    )
    exact = (ref + SCALE * rewards).logsumexp(0)
    log_zs, kls = [], []
    for step in range(steps):
        log_p = logits.log_softmax(0)
        target = ref + SCALE * rewards - exact
        kls.append((log_p.exp() * (log_p - target)).sum().item())
        drawn_from = log_p if settings.sampler == "policy" else ref
        edges = drawn_from.detach().exp().cumsum(0)
        uniforms = draw_uniforms(settings.seed, step, settings.batch_size)
        states = torch.tensor([int((edges <= u).sum()) for u in uniforms])
        log_z = {
            "learned": own,
            "attached": own + reads @ (logits - ref),
            "frozen": exact + settings.bias,
            "dropped": torch.zeros((), dtype=torch.double),
            "batch": (SCALE * rewards + ref - log_p)[states].mean(),
        }[settings.mode]
        log_zs.append(log_z.item())
        given = log_p[states], ref[states], rewards[states]
        if settings.mode == "batch":
            loss = vargrad_loss(*given, len(states), reward_scale=SCALE)
        else:
            repeated = log_z.expand(len(states))
            loss = trajectory_balance_loss(repeated, *given, reward_scale=SCALE)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return log_zs, kls, logits.detach().log_softmax(0)


@pytest.mark.parametrize("sampler", ["policy", "reference"])
@pytest.mark.parametrize("mode", ["learned", "attached", "batch", "frozen", "dropped"])
def test_training_is_torchs_own(mode: str, sampler: str) -> None:
    settings = Settings(
        mode=mode, sampler=sampler, bias=-2.5, batch_size=8, seed=3, learning_rate=0.07
    )
    steps = 60
    log_zs, kls, log_probs = torch_run(settings, steps)
    lab = ZLab(REWARDS, REFERENCE, reward_scale=SCALE, **dataclasses.asdict(settings))
    trace = lab.trace()
    np.testing.assert_allclose(trace.log_z[:steps], log_zs, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(trace.kl[:steps], kls, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(trace.log_probs[steps], log_probs, rtol=1e-7)


def test_exact_means_on_policy_do_not_care_what_log_z_is() -> None:
    scores, ref = SCALE * REWARDS + np.log(REFERENCE), np.log(REFERENCE)
    shown = [
        train(scores, ref, Settings(batch_size=0, **changes)).kl
        for changes in (
            {"mode": "learned"},
            {"mode": "frozen", "bias": 7.0},
            {"mode": "dropped"},
            {"mode": "batch"},
        )
    ]
    for kl in shown[1:]:
        np.testing.assert_allclose(kl, shown[0], atol=1e-7)
    # A gradient of log Z inside the policy is another matter.
    attached = train(scores, ref, Settings(batch_size=0, mode="attached")).kl
    assert np.abs(attached - shown[0]).max() > 0.1


def test_the_mean_residual_says_how_far_log_z_is_from_its_best() -> None:
    """Exactly: E[δ] = log Z − (true log Z − KL)."""
    lab = ZLab(REWARDS, REFERENCE, reward_scale=SCALE, batch_size=0)
    trace = lab.trace()
    np.testing.assert_allclose(
        trace.mean_residual, trace.log_z - trace.best_log_z, atol=1e-12
    )
    weights = REFERENCE * np.exp(SCALE * REWARDS)
    assert trace.exact_log_z == pytest.approx(np.log(weights.sum()))
    assert trace.kl[-1] < 1e-4


def test_five_draws_give_the_spread() -> None:
    lab = ZLab(REWARDS, REFERENCE, reward_scale=SCALE, mode="frozen", bias=3.0, seed=7)
    alone = []
    for seed in range(7, 12):
        other = ZLab(
            REWARDS, REFERENCE, reward_scale=SCALE, mode="frozen", bias=3.0, seed=seed
        )
        alone.append(other.trace().kl[-30:].mean())
    np.testing.assert_allclose(lab.final_kl(), alone)
    assert lab.numbers()["±"] == pytest.approx(np.std(alone, ddof=1))
    assert np.std(alone) > 0


def test_browser_gets_the_world_and_answers_back() -> None:
    lab = ZLab(REWARDS, REFERENCE, reward_scale=SCALE)
    state = lab.get_state()
    scores = SCALE * REWARDS + np.log(REFERENCE)
    np.testing.assert_array_equal(np.frombuffer(state["_scores"]), scores)
    np.testing.assert_array_equal(
        np.frombuffer(state["_log_reference"]), np.log(REFERENCE)
    )
    reads = np.frombuffer(state["_reads"])
    assert np.abs(reads).tolist() == pytest.approx([7**-0.5] * 7)
    assert len(set(np.sign(reads))) == 2
    lab.set_state({"mode": "frozen", "bias": 4.0, "batch_size": 0, "step": 12})
    assert lab.settings() == Settings(mode="frozen", bias=4.0, batch_size=0)
    assert lab.trace().log_z[0] == pytest.approx(lab.trace().exact_log_z + 4)


def test_a_cell_that_runs_again_finds_its_settings() -> None:
    left = ZLab(REWARDS, REFERENCE, reward_scale=SCALE)
    left.set_state({"mode": "dropped", "step": 40})
    again = ZLab(REWARDS, REFERENCE, reward_scale=SCALE)
    assert (again.mode, again.step) == ("dropped", 40)
    assert ZLab(REWARDS, reward_scale=SCALE).mode == "learned"  # another landscape
    told = ZLab(REWARDS, REFERENCE, reward_scale=SCALE, batch_size=8)
    assert (told.mode, told.step, told.batch_size) == ("learned", STEPS, 8)
    # nobody moved that one
    assert ZLab(REWARDS, REFERENCE, reward_scale=SCALE).mode == "dropped"


def test_still_form_says_the_numbers() -> None:
    lab = ZLab(REWARDS, REFERENCE, reward_scale=SCALE, mode="frozen", bias=-3.0)
    made = lab._repr_mimebundle_()
    bundle = made[0] if isinstance(made, tuple) else made
    assert WIDGET_MIME not in bundle  # headless
    label = ElementTree.fromstring(bundle["image/svg+xml"]).get("aria-label")
    assert "log Z frozen" in label
    lines = bundle["text/plain"].splitlines()
    trace = lab.trace()
    assert f"true log Z {trace.exact_log_z:.3g}" in lines
    assert f"log Z {trace.exact_log_z - 3:.3g}" in lines
    assert f"KL(π‖p*) {trace.kl[-1]:.3g}" in lines


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rewards": [1.0]}, "2 to 300"),
        ({"rewards": np.zeros(301)}, "2 to 300"),
        ({"rewards": [0.0, np.inf]}, "not finite"),
        ({"reference": [0.5, 0.4]}, "sum to 1"),
        ({"reward_scale": 0.0}, "above 0"),
        ({"mode": "detached"}, "mode"),
        ({"sampler": "uniform"}, "sampler"),
        ({"batch_size": 3}, "batch_size"),
        ({"bias": 11.0}, "bias"),
        ({"bias": float("nan")}, "bias"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"log_z_learning_rate": 3.0}, "log_z_learning_rate"),
        ({"seed": -1}, "seed"),
        ({"step": 301}, "step"),
        ({"steps": 10}, "setting"),
    ],
)
def test_bad_input(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ZLab(**{"rewards": [0.0, 1.0], "reward_scale": 1.0, **changes})

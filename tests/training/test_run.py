"""The training loop: repeatable, resumable, and honest about what it measured."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os

import numpy as np
import pytest
import torch

from flowrl_lab import _files, losses
from flowrl_lab.policies.fast.llama import TreeLlama
from flowrl_lab.policies.fast.policy import TreeLanguageModelPolicy
from flowrl_lab.tasks import load_task
from flowrl_lab.tasks.landscape import Landscape
from flowrl_lab.training.algorithms import ALGORITHMS, Objective
from flowrl_lab.training.batch import LossParts
from flowrl_lab.training.checkpoints import read_checkpoint, write_checkpoint
from flowrl_lab.training.config import ExperimentConfig
from flowrl_lab.training.presets import preset
from flowrl_lab.training.records import (
    MEASURED,
    nothing_measured,
    record_from_dict,
    record_to_dict,
)
from flowrl_lab.training.run import Run, race, train
from flowrl_lab.types import StepRecord

NAMES = sorted(ALGORITHMS)


def small(algorithm: str = "flowrl", **changes) -> ExperimentConfig:
    """Six steps on a landscape of eight states: a few milliseconds each."""
    settings = {
        "task_options": {"rewards": [0.0, 1.0, 0.2, 0.9, 0.0, 0.5, 1.0, 0.1]},
        "steps": 6,
        "prompts_per_step": 1,
        "num_generations": 16,
        "eval_every": 2,
        "learning_rate": 0.1,
        "log_z_learning_rate": 0.2,
        "value_learning_rate": 0.1,
        "reward_scale": 3.0,
        "kl_coef": 0.1,
        "lr_schedule": "cosine",
        **changes,
    }
    return ExperimentConfig(task="landscape", algorithm=algorithm, **settings)


def tiny_maths(algorithm="flowrl", **changes) -> ExperimentConfig:
    """Two steps of the tiny language model."""
    settings = {
        "steps": 2,
        "prompts_per_step": 2,
        "num_generations": 4,
        "eval_every": 2,
        "eval_prompts": 2,
        "lora_rank": 2,
        "lora_alpha": 4.0,
        **changes,
    }
    return preset("make_number", algorithm, **settings)


def plain(value):
    """A record as plain values: exact, but without its seconds; NaN equals NaN."""
    if isinstance(value, StepRecord):
        value = dataclasses.replace(value, seconds=0.0)
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return {f.name: plain(getattr(value, f.name)) for f in fields}
    if isinstance(value, np.ndarray):
        return value.tolist()
    return "nan" if isinstance(value, float) and math.isnan(value) else value


def assert_same_weights(first: Run, second: Run):
    for mine, other in (
        (first.policy.state_dict(), second.policy.state_dict()),
        (first.modules.state_dict(), second.modules.state_dict()),
    ):
        assert list(mine) == list(other)
        for name in mine:
            assert torch.equal(mine[name], other[name]), name
    mine, other = (run.optimizer.state_dict() for run in (first, second))
    assert mine["param_groups"] == other["param_groups"]
    assert list(mine["state"]) == list(other["state"])
    for key, values in mine["state"].items():
        for name, value in values.items():
            assert torch.equal(value, other["state"][key][name]), (key, name)


# ----------------------------------------------------------------------- repeatable


@pytest.mark.parametrize("algorithm", NAMES)
def test_the_same_seed_gives_the_same_records(algorithm):
    state = torch.get_rng_state()
    first, second, other = (
        [plain(record) for record in train(small(algorithm, seed=seed))]
        for seed in (3, 3, 4)
    )
    assert len(first) == 7
    assert first == second
    assert first[1]["reward"] != other[1]["reward"]
    assert torch.equal(torch.get_rng_state(), state)  # nor does it touch the global one


def test_the_same_seed_gives_the_same_language_model_run():
    first, second, other = (Run(tiny_maths(seed=seed)) for seed in (0, 0, 1))
    runs = [[plain(record) for record in run] for run in (first, second, other)]
    assert runs[0] == runs[1]
    assert runs[0][1]["tokens"] > 8 and runs[0][2]["samples"]
    assert_same_weights(first, second)
    assert runs[0] != [{**record, "seed": 0} for record in runs[2]]


def test_new_weights_depend_on_the_seed_alone():
    """Z_φ and the adapter start the same, whatever was drawn before."""
    state, starts = torch.get_rng_state(), []
    try:
        for seed, noise in ((0, 1), (0, 2), (1, 1)):
            torch.manual_seed(noise)
            run = Run(tiny_maths(seed=seed))
            starts.append({**run.modules.state_dict(), **run.policy.state_dict()})
    finally:
        torch.set_rng_state(state)
    for name in starts[0]:
        assert torch.equal(starts[0][name], starts[1][name]), name
    first = "log_z.layers.0.weight"
    assert not torch.equal(starts[0][first], starts[2][first])


def test_a_run_does_not_depend_on_what_was_drawn_elsewhere():
    expected = [plain(record) for record in train(small("ppo"))]
    found = []
    for record in train(small("ppo")):
        torch.rand(7)
        found.append(plain(record))
    assert found == expected


def test_a_race_is_every_run_alone():
    configs = [small(name) for name in NAMES]
    together = {name: [] for name in NAMES}
    order = []
    for record in race(*configs):
        together[record.run].append(plain(record))
        order.append(record.step)
    assert order == sorted(order)  # one step each, in turns
    for config in configs:
        alone = [plain(record) for record in train(config)]
        assert together[config.run_name] == alone


def test_a_race_goes_on_when_a_run_ends():
    runs = Run(small("grpo", steps=2)), small("flowrl", steps=4)
    steps = [(record.run, record.step) for record in race(*runs)]
    assert steps[-2:] == [("flowrl", 3), ("flowrl", 4)]
    assert ("grpo", 2) in steps and ("grpo", 3) not in steps
    assert len(runs[0].records) == 3  # a Run handed in keeps its records


def test_a_race_that_goes_on_begins_with_what_is_trained():
    names = ("grpo", "flowrl")
    runs = [Run(small(name, steps=4)) for name in names]
    for record in race(*runs):
        if record.step == 2:
            break  # as ■ does
    again = [(record.run, record.step) for record in race(*runs)]
    whole = [(name, step) for step in range(5) for name in names]
    assert sorted(again) == sorted(whole)
    assert [(r.run, r.step) for r in race(*runs)] == [
        (name, step) for name in names for step in range(5)
    ]  # nothing is left to train, and there is still something to see


# -------------------------------------------------------------------------- records


@pytest.mark.parametrize("algorithm", NAMES)
def test_every_number_is_finite_or_does_not_apply(algorithm):
    records = list(train(small(algorithm, steps=3)))
    flows = algorithm in ("flowrl", "vargrad")
    absent = set() if flows else {"log_z", "residual_mean", "residual_rms"}
    for record in records:
        for name in MEASURED:
            missing = math.isnan(getattr(record, name))
            assert missing == (record.step == 0 or name in absent), name
        assert (record.exact is None) == (record.step == 1)  # eval_every=2, and last
        assert (record.snapshot is None) == (record.exact is None)
        if record.exact is not None:
            values = dataclasses.asdict(record.exact)
            nan = {name for name, v in values.items() if v != v}
            learned = {"log_z_learned", "log_z_rmse"}
            assert nan == (set() if algorithm == "flowrl" else learned)
            assert record.snapshot.probs.sum() == pytest.approx(1.0, abs=1e-6)
            assert record.snapshot.target_probs.sum() == pytest.approx(1.0)
    assert [record.step for record in records] == [0, 1, 2, 3]
    assert [record.tokens for record in records] == [0, 16, 32, 48]
    assert 0 == records[0].seconds < records[1].seconds < records[3].seconds
    last = records[-1]
    assert (last.run, last.algorithm, last.steps, last.seed) == (
        algorithm,
        algorithm,
        3,
        0,
    )


def test_the_first_record_is_the_untrained_policy():
    (first, *_) = train(small())
    np.testing.assert_allclose(first.snapshot.probs, np.full(8, 1 / 8), rtol=1e-6)
    rewards = torch.tensor(small().task_options["rewards"]).double()
    log_z = (3.0 * rewards).exp().mean().log().item()
    assert first.exact.log_z_exact == pytest.approx(log_z, rel=1e-6)
    assert first.exact.log_z_learned == 0.0
    target = (3.0 * rewards).softmax(0)
    # the task's own scale (10) defines the target, the run's (3) log Z
    assert first.snapshot.target_probs == pytest.approx(
        (10.0 * rewards).softmax(0).numpy(), rel=1e-5
    )
    assert not np.allclose(first.snapshot.target_probs, target.numpy())


def test_measured_numbers_by_hand():
    """One FlowRL step, everything recomputed from the same draws."""
    config = small(steps=1, prompts_per_step=1, num_generations=8)
    task = load_task("landscape", **config.task_options)
    generator = torch.Generator().manual_seed(config.seed)
    probs = torch.full((8, 8), 1 / 8)
    states = torch.multinomial(probs, 1, generator=generator)[:, 0]
    rewards = task.rewards[states].double()
    *_, record = train(config)
    # log Z and log π/π_ref are 0 before the first update
    residuals = -3.0 * rewards
    assert record.reward == pytest.approx(rewards.mean().item(), rel=1e-6)
    assert record.loss == pytest.approx(residuals.square().mean().item(), rel=1e-6)
    assert record.residual_mean == pytest.approx(residuals.mean().item(), rel=1e-6)
    assert record.residual_rms == pytest.approx(math.sqrt(record.loss), rel=1e-6)
    assert record.entropy == pytest.approx(math.log(8), rel=1e-6)
    assert record.kl_to_reference == pytest.approx(0.0, abs=1e-6)
    assert record.log_z == 0.0 and record.clip_fraction == 0.0
    gradient = torch.zeros(8, dtype=torch.float64)
    for state, residual in zip(states.tolist(), residuals.tolist(), strict=True):
        gradient += 2 * residual / 8 * (torch.eye(8)[state].double() - 1 / 8)
    assert record.grad_norm == pytest.approx(gradient.norm().item(), rel=1e-5)


def test_samples_are_shown_as_text():
    *_, record = train(small(steps=2))
    ((prompt, text, reward),) = record.samples
    rewards = small().task_options["rewards"]
    assert prompt == "landscape custom"
    assert reward == pytest.approx(rewards[int(text)])


def test_clip_fraction_appears_off_policy():
    """After the first of several updates on one batch, ratios leave the range."""
    for algorithm in ("grpo", "flowrl", "ppo"):
        on, off = (
            list(train(small(algorithm, updates_per_batch=n, learning_rate=0.5)))
            for n in (1, 4)
        )
        assert all(record.clip_fraction == 0.0 for record in on[1:])
        assert any(record.clip_fraction > 0.1 for record in off[1:])


@pytest.mark.parametrize("algorithm", ["grpo", "flowrl", "dapo"])
def test_several_updates_a_batch_are_those_of_the_plain_policy(algorithm, monkeypatch):
    """The tiny model keeps activations of sampling; only the first may use them."""
    config = tiny_maths(
        algorithm=algorithm, updates_per_batch=3, learning_rate=1e-2, num_generations=8
    )
    ends = []
    for tree in (True, False):
        if not tree:
            monkeypatch.setattr(TreeLlama, "supports", staticmethod(lambda _: False))
        run = Run(config)
        records = list(run)
        assert isinstance(run.policy, TreeLanguageModelPolicy) == tree
        assert all(record.clip_fraction > 0 for record in records[1:])
        ends.append([records[-1].loss, records[-1].clip_fraction, records[-1].reward])
    assert ends[0] == pytest.approx(ends[1], rel=1e-3)


def test_an_entropy_bonus_keeps_the_policy_broad():
    ends = []
    for coefficient in (0.0, 1.0):
        config = small("grpo", steps=40, entropy_coef=coefficient, learning_rate=0.3)
        *_, last = train(config)
        ends.append(last.entropy)
    assert ends[0] < 1.0 < ends[1]


def test_an_entropy_bonus_reaches_the_language_model():
    settings = {"algorithm": "vargrad", "name": "", "steps": 1}
    plain_run, bonus_run = (
        Run(tiny_maths(**settings, entropy_coef=coefficient))
        for coefficient in (0.0, 1000.0)
    )
    (_, first), (_, second) = plain_run, bonus_run
    assert second.loss == pytest.approx(first.loss - 1000 * first.entropy, rel=1e-4)
    assert second.grad_norm > 5 * first.grad_norm


def test_learning_rate_schedules():
    rates = {}
    for schedule in ("constant", "linear", "cosine"):
        run = Run(small(steps=4, lr_schedule=schedule))
        rates[schedule] = []
        for record in run:
            if record.step:
                groups = run.optimizer.param_groups
                rates[schedule].append([group["lr"] for group in groups])
    for schedule, factors in (
        ("constant", [1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]),
    ):
        expected = [[0.1 * factor, 0.2 * factor] for factor in factors]
        torch.testing.assert_close(
            torch.tensor(rates[schedule]), torch.tensor(expected)
        )


def test_records_survive_json():
    for record in train(small(steps=2)):
        text = json.dumps(record_to_dict(record))
        loaded = record_from_dict(json.loads(text))
        assert plain(loaded) == plain(dataclasses.replace(record, snapshot=None))


def test_nothing_measured_covers_all_numbers_of_a_record():
    fields = {field.name: field.type for field in dataclasses.fields(StepRecord)}
    numbers = {name for name, kind in fields.items() if kind == "float"}
    assert set(nothing_measured()) == set(MEASURED) == numbers - {"seconds"}


# ------------------------------------------------------------------ resume, interrupt


@pytest.mark.parametrize("algorithm", ["flowrl", "ppo", "grpo"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, algorithm):
    config = small(algorithm, updates_per_batch=2)
    whole = Run(config)
    expected = [plain(record) for record in whole]
    for record in Run(config, folder=tmp_path / "run", save_every=3):
        if record.step == 4:  # one step after the last save
            break
    resumed = Run.load(tmp_path / "run")
    assert resumed.step == 3 and resumed.config == config
    for record, wanted in zip(resumed.records, expected[:4], strict=True):
        assert plain(record) == {**wanted, "snapshot": None}
    seconds = resumed.seconds
    assert [plain(record) for record in resumed] == expected[4:]
    assert resumed.seconds > seconds == resumed.records[3].seconds
    assert_same_weights(whole, resumed)
    # the end was saved too: nothing is left to do
    again = Run.load(tmp_path / "run")
    assert list(again) == [] and len(again.records) == 7
    assert_same_weights(whole, again)


def test_a_resumed_language_model_run_is_the_uninterrupted_one(tmp_path):
    config = tiny_maths()
    whole = Run(config)
    expected = [plain(record) for record in whole]
    for record in Run(config, folder=tmp_path / "run", save_every=1):
        if record.step == 1:
            break
    resumed = Run.load(tmp_path / "run")
    assert [plain(record) for record in resumed] == expected[2:]
    assert_same_weights(whole, resumed)


@pytest.mark.parametrize("way", ["break", "interrupt"])
def test_leaving_the_loop_keeps_everything(way):
    expected = [plain(record) for record in train(small())]
    run = Run(small())

    def watch(record):
        if record.step == 3 and way == "interrupt":
            raise KeyboardInterrupt

    try:
        for record in run:
            watch(record)
            if record.step == 3:
                break
    except KeyboardInterrupt:
        assert way == "interrupt"
    assert [record.step for record in run.records] == [0, 1, 2, 3]
    assert run.step == 3
    list(run)
    assert [plain(record) for record in run.records] == expected


def test_what_is_saved_is_complete(tmp_path):
    run = Run(small(), folder=tmp_path / "run", save_every=2)
    list(run)
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["checkpoint.pt", "config.json", "records.jsonl"]
    text = (tmp_path / "run/config.json").read_text(encoding="utf-8")
    assert ExperimentConfig.from_json(text) == run.config
    lines = (tmp_path / "run/records.jsonl").read_text(encoding="utf-8").splitlines()
    found = [plain(record_from_dict(json.loads(line))) for line in lines]
    assert found == [
        plain(dataclasses.replace(record, snapshot=None)) for record in run.records
    ]


def test_saving_by_hand(tmp_path):
    run = Run(small())
    for record in run:
        if record.step == 2:
            run.save(tmp_path / "run")
    # from then on the folder is the run's own: its end is there as well
    assert Run.load(tmp_path / "run").step == 6


def test_a_full_disk_stops_the_run_but_loses_nothing(tmp_path, monkeypatch):
    run = Run(small(), folder=tmp_path / "run", save_every=2)
    replace = os.replace

    def full(source, target):
        if run.step >= 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(_files.os, "replace", full)
    with pytest.raises(OSError, match=r"could not save.*Fix:"):
        list(run)
    assert run.step == 4 and len(run.records) == 5
    assert Run.load(tmp_path / "run").step == 2
    monkeypatch.undo()
    assert [record.step for record in run] == [5, 6]
    assert [plain(r) for r in run.records] == [plain(r) for r in train(small())]


# ------------------------------------------------------------- a loss from outside


@pytest.mark.parametrize("config", [small(updates_per_batch=2), tiny_maths()])
def test_the_library_loss_from_outside_gives_the_same_run(config):
    def again(*tensors, **settings):
        return losses.flowrl_loss(*tensors, **settings)

    plainly, injected = Run(config), Run(config, flowrl_loss=again)
    expected = [plain(record) for record in plainly]
    assert [plain(record) for record in injected] == expected
    assert_same_weights(plainly, injected)
    assert [plain(r) for r in train(config, flowrl_loss=again)] == expected


def test_a_loss_from_outside_is_the_one_that_is_minimised():
    seen = []

    def doubled(
        log_z,
        log_probs,
        old_log_probs,
        ref_log_probs,
        rewards,
        completion_mask,
        *,
        reward_scale,
        importance,
        clip_low,
        clip_high,
        length_normalize,
    ):
        seen.append((importance, clip_low, clip_high, length_normalize))
        return 2 * losses.flowrl_loss(
            log_z,
            log_probs,
            old_log_probs,
            ref_log_probs,
            rewards,
            completion_mask,
            reward_scale=reward_scale,
            importance=importance,
            clip_low=clip_low,
            clip_high=clip_high,
            length_normalize=length_normalize,
        )

    config = small(steps=1, importance="raw", clip_low=0.1, length_normalize=True)
    (_, once), (_, twice) = train(config), train(config, flowrl_loss=doubled)
    assert twice.loss == pytest.approx(2 * once.loss)
    assert twice.grad_norm == pytest.approx(2 * once.grad_norm, rel=1e-5)
    # what is measured beside it is measured as ever
    assert twice.residual_rms == once.residual_rms
    assert seen == [("raw", 0.1, 0.2, True)]


def _doubled_loss(*tensors, **settings):
    return 2 * losses.flowrl_loss(*tensors, **settings)


def test_a_run_with_a_loss_from_outside_resumes_with_it(tmp_path):
    whole = Run(small(), flowrl_loss=_doubled_loss)
    expected = [plain(record) for record in whole]
    run = Run(small(), folder=tmp_path / "run", save_every=3, flowrl_loss=_doubled_loss)
    for record in run:
        if record.step == 3:
            break
    resumed = Run.load(tmp_path / "run", flowrl_loss=_doubled_loss)
    assert [plain(record) for record in resumed] == expected[4:]
    assert_same_weights(whole, resumed)


def test_a_checkpoint_of_older_days_has_the_library_loss(tmp_path):
    list(Run(small(steps=1), folder=tmp_path / "run"))
    state = read_checkpoint(tmp_path / "run/checkpoint.pt")
    assert state.pop("flowrl_loss") == ""
    write_checkpoint(tmp_path / "run/checkpoint.pt", state)
    assert Run.load(tmp_path / "run").flowrl_loss is None


def test_a_fork_takes_its_loss_along_to_flowrl_only():
    parent = Run(small(steps=1), flowrl_loss=_doubled_loss)
    assert parent.fork(seed=1).flowrl_loss is _doubled_loss
    assert parent.fork(algorithm="grpo").flowrl_loss is None


@pytest.mark.bad_input
def test_a_checkpoint_says_that_its_loss_came_from_outside(tmp_path):
    list(Run(small(steps=1), folder=tmp_path / "mine", flowrl_loss=_doubled_loss))
    words = r"loss of its own, '_doubled_loss'.*Fix: .*flowrl_loss=_doubled_loss"
    with pytest.raises(ValueError, match=words):
        Run.load(tmp_path / "mine")
    list(Run(small(steps=1), folder=tmp_path / "theirs"))
    with pytest.raises(ValueError, match=r"library's loss; got '_doubled_loss'.*Fix:"):
        Run.load(tmp_path / "theirs", flowrl_loss=_doubled_loss)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (3.0, "is a float; expected a function of log_z, log_probs, .* Fix:"),
        (lambda log_z: log_z.mean(), "cannot be called .*too many positional"),
        (lambda *given: given[0].mean(), "unexpected keyword .* unused ones too"),
        (lambda *_, **__: 1.0, "returned a float; expected one number"),
        (lambda _, p, *__, **___: p.sum(1), r"returned a Tensor \[16\]; .*\.mean"),
        (lambda z, *_, **__: z.mean(), "without a gradient for log_probs.*Fix:"),
        (lambda _, p, *__, **___: p.detach().sum(), "without a gradient for log_p"),
    ],
)
def test_a_loss_that_cannot_train_is_refused_before_it_does_harm(loss, words):
    made: list[Run] = []

    def attempt():
        made.append(Run(small(), flowrl_loss=loss))
        list(made[0])

    with pytest.raises(ValueError, match=words):
        attempt()
    # where it came to a first step, the weights are as they were: zero
    assert not any(run.policy.logits.any() for run in made)


@pytest.mark.bad_input
def test_a_loss_for_an_algorithm_that_has_its_own_is_refused():
    with pytest.raises(ValueError, match=r"algorithm 'grpo', which does not.*Fix:"):
        Run(small("grpo"), flowrl_loss=_doubled_loss)


# ----------------------------------------------------------------------------- fork


def test_fork_continues_the_policy_under_another_algorithm(tmp_path):
    parent = Run(small("grpo", name="first"))
    for record in parent:
        if record.step == 3:
            break
    weights = {k: v.clone() for k, v in parent.policy.state_dict().items()}
    child = parent.fork(algorithm="flowrl", steps=2, folder=tmp_path / "child")
    assert child.config == parent.config.replace(algorithm="flowrl", steps=2, name="")
    assert child.config.run_name == "flowrl" and "log_z" in child.modules
    assert (child.step, child.tokens, child.records) == (0, 0, [])
    assert not child.optimizer.state_dict()["state"]
    start = child.policy.state_dict()
    assert all(torch.equal(start[name], weights[name]) for name in weights)
    records = list(child)
    assert [record.step for record in records] == [0, 1, 2]
    np.testing.assert_allclose(
        records[0].snapshot.probs,
        weights["logits"][0, 0].double().softmax(0),
        rtol=1e-6,
    )
    # the parent has not moved, and goes on as if nothing had happened
    after = parent.policy.state_dict()
    assert all(torch.equal(after[name], weights[name]) for name in weights)
    list(parent)
    alone = [plain(record) for record in train(small("grpo", name="first"))]
    assert [plain(record) for record in parent.records] == alone
    assert Run.load(tmp_path / "child").step == 2


def test_fork_keeps_the_reference():
    """What is forked is the policy: its reference stays the starting model."""
    parent = Run(tiny_maths(steps=1))
    list(parent)
    child = parent.fork(algorithm="grpo", num_generations=2)
    prompts = parent.task.encode(parent.task.prompts("train")[:2])
    answers = parent.task.answers(prompts.texts[0])
    ids, mask = answers.completion_ids[:4], answers.completion_mask[:4]
    for reference in (False, True):
        mine, other = (
            run.policy.evaluate(prompts, ids, mask, reference=reference).log_probs
            for run in (parent, child)
        )
        assert torch.equal(mine, other)


# --------------------------------------------------------------------------- effects


@pytest.fixture(name="ends", scope="module")
def fixture_ends():
    """The landscape of Figure 1 at its short budget: last records of two runs."""
    runs = {}
    configs = [preset("landscape", v, budget="quick") for v in ("flowrl", "grpo")]
    for record in race(*configs):
        runs[record.run] = record
    return runs


def test_flowrl_matches_the_landscape(ends):
    exact = ends["flowrl"].exact
    assert exact.kl_policy_target < 0.03 and exact.kl_target_policy < 0.03
    assert exact.modes_covered == 1.0


def test_grpo_collapses_on_the_landscape(ends):
    exact = ends["grpo"].exact
    assert exact.kl_policy_target > 1 and exact.kl_target_policy > 5
    assert exact.modes_covered < 0.5 and exact.effective_answers < 1.5


def test_learned_log_z_is_low_by_the_kl(ends):
    """Under samples of π, log Z's optimum is log Z − KL(π ‖ p*)."""
    exact = ends["flowrl"].exact
    optimum = exact.log_z_exact - exact.kl_policy_target
    assert exact.log_z_learned == pytest.approx(optimum, abs=0.05)
    assert exact.log_z_rmse == pytest.approx(
        abs(exact.log_z_learned - exact.log_z_exact), rel=1e-6
    )
    assert ends["flowrl"].log_z == pytest.approx(optimum, abs=0.1)


@pytest.mark.parametrize("reward", [0.0, -1.0, 1.0])
@pytest.mark.parametrize("algorithm", NAMES)
def test_groups_without_a_difference_are_survived_and_shown(algorithm, reward):
    config = small(algorithm, task_options={"rewards": [reward] * 5})
    records = list(train(config))
    for record in records[1:]:
        assert record.zero_variance_groups == 1.0
        assert record.all_wrong_groups == float(reward <= 0)
        assert math.isfinite(record.loss) and math.isfinite(record.grad_norm)
    # Nothing to learn: the policy stays uniform.  Only FlowRL's jitters while Z_φ,
    # its baseline, is still on the way to log Z.
    jitter = 0.02 if algorithm == "flowrl" else 1e-9
    assert abs(records[-1].exact.kl_policy_target) < jitter


def test_groups_without_a_difference_are_counted(monkeypatch):
    rewards = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0, -1.0, -1.0])
    monkeypatch.setattr("flowrl_lab.tasks.strings.Strings.score", lambda *_: rewards)
    options = {"length": 2, "alphabet": 3, "train_prompts": 4, "heldout_prompts": 0}
    config = small(
        steps=1, prompts_per_step=4, num_generations=2, task_options=options
    ).replace(task="strings")
    *_, record = train(config)
    assert record.reward == pytest.approx(rewards.mean().item())
    assert record.zero_variance_groups == 0.75  # all but the second
    assert record.all_wrong_groups == 0.5  # the first and the last


def test_all_wrong_maths_groups_are_survived_and_shown(monkeypatch):
    def all_wrong(_task, _prompts, completion_ids, _mask, _count):
        return torch.zeros(len(completion_ids))

    monkeypatch.setattr("flowrl_lab.tasks.make_number.MakeNumber.score", all_wrong)
    for algorithm in ("grpo", "flowrl"):
        records = list(train(tiny_maths(algorithm=algorithm, name="", steps=1)))
        assert records[1].all_wrong_groups == records[1].zero_variance_groups == 1.0
        assert records[1].reward == 0.0 and math.isfinite(records[1].loss)
        assert 0.3 < records[1].exact.accuracy < 0.7


# ------------------------------------------------------------- evaluation in a run


def test_the_watched_prompt_is_shown_but_not_judged():
    """A training prompt must not slip into the mean over held-out prompts."""
    task = load_task("make_number")
    watched = task.prompts("train")[0]
    usual, watching = (
        next(iter(train(tiny_maths(watch_prompt=prompt)))) for prompt in ("", watched)
    )
    assert watching.snapshot.prompt == watched
    assert watching.snapshot.labels == task.answers(watched).labels
    assert usual.snapshot.prompt == task.prompts("heldout")[0]
    assert plain(watching.exact) == plain(usual.exact)
    assert watching.exact.num_prompts == 2


@pytest.mark.parametrize(
    "changes", [{"reward_form": "group_normalized"}, {"length_normalize": True}]
)
def test_only_the_textbook_log_z_is_compared(changes):
    """Under z-scores or token means, Z_φ learns another number."""
    *_, last = train(small(steps=2, **changes))
    assert math.isfinite(last.log_z)
    assert math.isnan(last.exact.log_z_learned) and math.isnan(last.exact.log_z_rmse)
    assert math.isfinite(last.exact.log_z_exact)


# ----------------------------------------------------------------------- bad input


@pytest.mark.bad_input
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_rewards_that_are_not_finite_stop_the_run(monkeypatch, value):
    def broken(self, _prompts, completion_ids, _mask, _count):
        rewards = self.rewards[completion_ids[:, 0]].clone()
        rewards[5] = value
        return rewards

    monkeypatch.setattr(Landscape, "score", broken)
    run = Run(small())
    with pytest.raises(ValueError, match=rf"gave reward {value} for.*custom.*Fix:"):
        list(run)
    assert run.step == 0 and run.records == []


@pytest.mark.bad_input
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite_changes_no_weight(monkeypatch, where):
    def broken(_batch, output, _log_z, _algorithm):
        total = output.log_probs.sum()
        if where == "loss":
            return LossParts(total * math.nan)
        return LossParts((total - total.detach()).sqrt())  # √0: slope infinite

    monkeypatch.setitem(ALGORITHMS, "vargrad", Objective(broken))
    run = Run(small("vargrad"))
    with pytest.raises(FloatingPointError, match=rf"the {where}.*at step 1.*Fix:"):
        list(run)
    assert bool((run.policy.logits == 0).all()) and run.step == 0


@pytest.mark.bad_input
@pytest.mark.parametrize("device", ["cuda", "cuda:7", "tpu", "gpu"])
def test_a_device_that_is_not_here_is_refused(device):
    if device.startswith("cuda") and torch.cuda.is_available():
        device = "cuda:99"
    with pytest.raises(ValueError, match=rf"device is '{device}'.*cpu.*Fix:|Fix:.*cpu"):
        Run(small(device=device))


@pytest.mark.bad_input
def test_a_used_folder_is_refused_before_any_work(tmp_path):
    folder = tmp_path / "run"
    list(Run(small(steps=1), folder=folder))
    before = (folder / "checkpoint.pt").read_bytes()
    other = Run(small(steps=1))
    for attempt in (
        lambda: Run(small(), folder=folder),
        lambda: other.save(folder),
        lambda: other.fork(folder=folder),
    ):
        with pytest.raises(ValueError, match=r"already holds a run.*Run\.load"):
            attempt()
    assert (folder / "checkpoint.pt").read_bytes() == before
    file = tmp_path / "file"
    file.write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match=r"is a file.*Fix:"):
        Run(small(), folder=file)


@pytest.mark.bad_input
def test_a_checkpoint_that_cannot_be_resumed_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no checkpoint at.*Fix:"):
        Run.load(tmp_path)
    folder = tmp_path / "run"
    list(Run(small(steps=1), folder=folder))
    path = folder / "checkpoint.pt"
    state = read_checkpoint(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"damaged.*Fix:"):
        Run.load(folder)
    config = json.loads(state["config"])
    write_checkpoint(
        path, {**state, "config": json.dumps({**config, "config_version": 99})}
    )
    with pytest.raises(ValueError, match=r"version 99.*Fix:"):
        Run.load(folder)
    del state["optimizer"]
    write_checkpoint(path, state)
    with pytest.raises(ValueError, match=r"lacks \['optimizer'\].*Fix:"):
        Run.load(folder)


@pytest.mark.bad_input
def test_a_race_needs_names_that_differ():
    with pytest.raises(ValueError, match=r"different names.*Fix:"):
        next(race(small(), small(seed=1)))
    with pytest.raises(ValueError, match=r"one or more.*Fix:"):
        next(race())
    records = list(race(small(steps=1), small(steps=1, seed=1, name="other")))
    assert {record.run for record in records} == {"flowrl", "other"}


@pytest.mark.bad_input
def test_an_unknown_watched_prompt_fails_before_training():
    run = Run(small(watch_prompt="landscape six_modes"))
    with pytest.raises(ValueError, match="landscape six_modes"):
        next(iter(run))
    assert run.step == 0

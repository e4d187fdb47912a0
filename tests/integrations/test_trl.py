"""FlowRLTrainer: the library's loss and gradient, whatever engine runs it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from trl_runs import (
    GENERATIONS,
    PROMPTS,
    STEPS,
    fixed_rollout,
    make_args,
    make_config,
    make_trainer,
    train_fixed,
    trained_weights,
)

from flowrl_lab.integrations import TRL_VERSIONS, require
from flowrl_lab.integrations.trl_log_z import LOG_Z_FILE
from flowrl_lab.integrations.trl_task import character_tokenizer
from flowrl_lab.losses import IMPORTANCE_MODES, flowrl_loss
from flowrl_lab.tasks import load_task
from flowrl_lab.training.rollouts import collect_rollout, sample_prompts
from flowrl_lab.training.run import Run

ROOT = Path(__file__).resolve().parents[2]
# What transformers, peft, TRL and torch say to each other is not ours to mend.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*"),
]


@pytest.fixture(scope="module")
def bridge():
    """The module under test, imported late: every worker reads this file, one runs it,
    and TRL takes many seconds to import."""
    from flowrl_lab.integrations import trl

    return trl


# ------------------------------------------------------------- loss and gradient


def make_batch(run: Run, seed: int = 3):
    """Our rollout, off-policy: sampled before the adapter was moved."""
    generator = torch.Generator().manual_seed(seed)
    prompts = sample_prompts(run.task, PROMPTS, generator)
    rollout = collect_rollout(
        run.policy, run.task, prompts, GENERATIONS, temperature=1.0, generator=generator
    )
    with torch.no_grad():
        for number, weight in enumerate(run.policy.trainable_parameters()):
            noise = torch.Generator().manual_seed(number)
            weight += 0.02 * torch.randn(weight.shape, generator=noise)
        for weight in run.modules.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=generator)
    # Rows so unlikely when sampled that their weight is cut: above 10, and below 0.8.
    old = rollout.old_log_probs.clone()
    old[0] -= 0.5
    old[1] += 0.2
    return dataclasses.replace(rollout, old_log_probs=old)


def as_trl_batch(rollout, trainer, reward_form: str) -> dict:
    """The same rollout as the dict that TRL would hand to ``compute_loss``."""

    def rows(values):
        return values.repeat_interleave(GENERATIONS, 0)

    ids, mask = rows(rollout.prompts.prompt_ids), rows(rollout.prompts.prompt_mask)
    trainer._scores = rollout.rewards[:, None]
    trainer.args.reward_form = reward_form
    return {
        "prompt_ids": ids,
        "prompt_mask": mask.long(),
        "completion_ids": rollout.completion_ids,
        "completion_mask": rollout.completion_mask.long(),
        "old_per_token_logps": rollout.old_log_probs,
        "ref_per_token_logps": rollout.ref_log_probs,
        "flowrl_rewards": trainer._local_rewards(len(ids)),
        "log_z_features": trainer._prompt_features(ids, mask.long()),
    }


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """Our run and TRL's trainer, with the same weights; and one rollout."""
    run = Run(make_config())
    rollout = make_batch(run)
    trainer = make_trainer(make_args(tmp_path_factory.mktemp("trl")))
    theirs = dict(trainer.model.named_parameters())
    with torch.no_grad():
        for name, weight in run.policy.model.named_parameters():
            if weight.requires_grad:
                theirs[name].copy_(weight)
    trainer.log_z.head.load_state_dict(run.modules["log_z"].state_dict())
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return run, trainer, rollout


def gradients(named) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def our_loss(run: Run, rollout, config):
    algorithm = run.algorithm
    run.config = algorithm.config = algorithm.log_z._config = config
    run.optimizer.zero_grad()
    batch = run.prepare(rollout)
    output = run.policy.evaluate(
        rollout.prompts, rollout.completion_ids, rollout.completion_mask
    )
    loss = algorithm.loss(batch, output, algorithm.log_z(batch, output)).loss
    loss.backward()
    return loss.detach(), {
        **gradients(run.policy.model.named_parameters()),
        **gradients(run.modules["log_z"].named_parameters("log_z")),
    }


def trl_loss(trainer, batch):
    trainer.model.zero_grad()
    trainer.log_z.optimizer.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.detach(), {
        **gradients(trainer.model.named_parameters()),
        **gradients(trainer.log_z.head.named_parameters("log_z")),
    }


@pytest.mark.parametrize("form", ["raw", "group_normalized"])
@pytest.mark.parametrize("importance", IMPORTANCE_MODES)
def test_same_batch_same_loss_and_gradient(sides, importance, form):
    run, trainer, rollout = sides
    config = make_config(
        importance=importance, reward_form=form, length_normalize=form != "raw"
    )
    ours, our_grads = our_loss(run, rollout, config)
    trainer.args.importance = importance
    trainer.args.length_normalize = config.length_normalize
    theirs, their_grads = trl_loss(trainer, as_trl_batch(rollout, trainer, form))
    assert abs(theirs - ours) <= 1e-5 * abs(ours)
    assert our_grads.keys() == their_grads.keys()
    for name, grad in our_grads.items():
        assert (their_grads[name] - grad).abs().max() <= 1e-5 * grad.norm(), name
    assert min(grad.norm() for grad in our_grads.values()) > 0


def test_the_four_modes_differ_on_this_batch(sides):
    """Else the test above would say nothing about them."""
    _, trainer, rollout = sides
    losses = set()
    for importance in IMPORTANCE_MODES:
        trainer.args.importance, trainer.args.length_normalize = importance, False
        batch = as_trl_batch(rollout, trainer, "raw")
        losses.add(round(trainer.compute_loss(trainer.model, batch).item(), 3))
    assert len(losses) == len(IMPORTANCE_MODES)


def test_tokens_of_tools_and_vllms_correction_are_heeded(sides):
    run, trainer, rollout = sides
    trainer.args.importance, trainer.args.length_normalize = "clip", False
    batch = as_trl_batch(rollout, trainer, "raw")
    with torch.no_grad():
        log_probs, _ = trainer._log_probs(trainer.model, batch)
        log_z = trainer.log_z(batch["log_z_features"])
    keep = rollout.completion_mask.clone()
    keep[:, 1] = False
    correction = torch.linspace(0, 2, len(keep))
    rows = flowrl_loss(
        log_z,
        log_probs,
        rollout.old_log_probs,
        rollout.ref_log_probs,
        rollout.rewards,
        keep,
        reward_scale=run.config.reward_scale,
        length_normalize=False,
        reduction="none",
    )
    tool_mask = torch.ones_like(batch["completion_mask"])
    tool_mask[:, 1] = 0
    batch |= {"tool_mask": tool_mask, "importance_sampling_ratio": correction[:, None]}
    loss = trainer.compute_loss(trainer.model, batch)
    torch.testing.assert_close(loss, (rows * correction).mean())


def test_adapter_and_z_start_as_in_our_loop(tmp_path):
    run, trainer = (
        Run(make_config(seed=5)),
        make_trainer(make_args(tmp_path, make_config(seed=5))),
    )
    ours = run.policy.state_dict()
    theirs = trained_weights(trainer)
    for name, weight in ours.items():
        torch.testing.assert_close(theirs[name], weight, rtol=0, atol=0)
    for name, weight in run.modules["log_z"].state_dict().items():
        torch.testing.assert_close(theirs[f"log_z.{name}"], weight, rtol=0, atol=0)


# ------------------------------------------------------- the same on other engines


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process, the whole batch at once: what the others must equal."""
    return trained_weights(train_fixed(tmp_path_factory.mktemp("alone")))


def assert_same_training(found: dict, expected: dict) -> None:
    start = trained_weights(make_trainer(make_args("unused")))
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        moved = (weight - start[name]).abs().max()
        difference = (found[name] - weight).abs().max()
        assert difference <= 1e-4 * moved + 1e-7, name
    moved = sum((expected[name] - start[name]).norm() > 0 for name in expected)
    assert moved > len(expected) // 2


def test_accumulated_gradients_are_those_of_the_whole_batch(alone, tmp_path):
    trainer = train_fixed(
        tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=4
    )
    assert trainer.state.global_step == STEPS
    assert_same_training(trained_weights(trainer), alone)


def train_on_two_processes(folder, *arguments: str, **environment: str) -> dict:
    """What ``trl_runs.py`` leaves when ``accelerate launch`` starts it, over gloo."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        **environment,
    }
    command = [
        # With --cpu accelerate 1.15 starts one process, whatever --num_processes says;
        # --multi_gpu starts as many as asked, and use_cpu keeps them on the CPU.
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"),
        *("--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"),
        *("--dynamo_backend", "no", "--main_process_port", "0"),
        *(str(ROOT / "tests" / "support" / "trl_runs.py"), str(folder), *arguments),
    ]
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(folder / "weights.pt", weights_only=True)
    assert found["processes"] == 2
    return found


@pytest.mark.full
@pytest.mark.slow
def test_two_processes_train_as_one(alone, tmp_path):
    """On the same global batch."""
    assert_same_training(train_on_two_processes(tmp_path)["weights"], alone)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="no DeepSpeed (pip install deepspeed; it needs a C++ compiler)",
)
def test_two_processes_of_deepspeed_train_as_one(alone, tmp_path):
    """ZeRO 2: each process keeps half of the gradients and of the optimiser."""
    settings = {
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "gradient_accumulation_steps": "auto",
        "zero_optimization": {"stage": 2},
        # plain gradient descent is none of DeepSpeed's own optimisers
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    file = tmp_path / "zero2.json"
    file.write_text(json.dumps(settings))
    found = train_on_two_processes(tmp_path, str(file), DS_ACCELERATOR="cpu")
    assert found["engine"] == "DeepSpeedEngine"
    assert_same_training(found["weights"], alone)


def test_full_fine_tuning_keeps_its_reference(tmp_path):
    trainer = make_trainer(
        make_args(tmp_path, learning_rate=1e-3, num_iterations=2), lora=False
    )
    ids = load_task("make_number").encode(("24!37:", "30!12:")).prompt_ids
    mask = torch.ones_like(ids)
    before = trainer._prompt_features(ids, mask)
    start = trained_weights(trainer)
    trainer.train()
    assert trainer.ref_model is not trainer.model
    torch.testing.assert_close(trainer._prompt_features(ids, mask), before)
    end = trained_weights(trainer)
    moved = [name for name in end if (end[name] - start[name]).norm() > 0]
    assert len(moved) > 0.9 * len(end)
    assert any(name.startswith("log_z") for name in moved)


def test_features_are_those_of_our_policy(tmp_path):
    """Of the reference, whatever the adapter does; left padding changes nothing."""
    trainer = make_trainer(make_args(tmp_path))
    run = Run(make_config())
    with torch.no_grad():
        for weight in trainer.model.parameters():
            if weight.requires_grad:
                weight += 0.1
    prompts = run.task.encode(("24!37:", "30!12:"))
    padded = torch.nn.functional.pad(prompts.prompt_ids, (3, 0), value=run.task.pad_id)
    mask = torch.nn.functional.pad(torch.ones_like(prompts.prompt_ids), (3, 0))
    for pooling in ("last", "mean"):
        trainer.args.log_z_features = pooling
        torch.testing.assert_close(
            trainer._prompt_features(padded, mask),
            run.policy.prompt_features(prompts, pooling),
            rtol=1e-4,
            atol=1e-5,
        )


# ------------------------------------------------------------ saving and resuming


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Four steps with a checkpoint after two."""
    folder = tmp_path_factory.mktemp("saved")
    trainer = make_trainer(make_saving_args(folder))
    trainer.train()
    return folder, trainer


def make_saving_args(folder, **changes):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2.0}
    return make_args(
        folder, logging_strategy="steps", logging_steps=1.0, **{**settings, **changes}
    )


def test_a_resumed_run_ends_as_if_it_had_not_stopped(saved, tmp_path):
    folder, whole = saved
    resumed = make_trainer(make_saving_args(tmp_path, seed=0))
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    assert resumed.state.global_step == 4
    expected = trained_weights(whole)
    for name, weight in trained_weights(resumed).items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=0)


def test_z_lies_beside_the_adapter_and_not_in_it(saved, bridge):
    folder, trainer = saved
    adapter = load_file(folder / "checkpoint-4" / "adapter_model.safetensors")
    assert not any("log_z" in name for name in adapter)
    head, features = bridge.load_log_z(folder / "checkpoint-4")
    assert features == "last"
    for name, weight in trainer.log_z.head.state_dict().items():
        torch.testing.assert_close(head.state_dict()[name], weight)


def test_the_log_has_this_librarys_measures(saved):
    _, trainer = saved
    first = trainer.state.log_history[0]
    assert first["log_z"] == 0  # it starts there
    assert first["kl_to_reference"] == pytest.approx(0, abs=1e-6)
    beta_r = 8.0 * first["reward"]
    assert first["residual_mean"] == pytest.approx(-beta_r, rel=1e-4)
    assert first["loss"] == pytest.approx(first["residual_rms"] ** 2, rel=1e-4)


def test_z_follows_the_schedule(tmp_path):
    args = make_args(tmp_path, make_config(lr_schedule="linear"))
    trainer = make_trainer(args, rollout_func=fixed_rollout)
    trainer.train()
    (group,) = trainer.log_z.optimizer.param_groups
    # The last of two steps is taken at half the peak.
    assert group["lr"] == pytest.approx(args.log_z_learning_rate / 2)


@pytest.mark.bad_input
def test_a_checkpoint_whose_z_does_not_fit(saved, bridge, tmp_path):
    folder, _ = saved
    checkpoint = str(folder / "checkpoint-2")
    other = make_trainer(make_saving_args(tmp_path, log_z_features="mean"))
    with pytest.raises(ValueError, match=r"'features': 'last'.*log_z_features"):
        other.train(resume_from_checkpoint=checkpoint)
    assert (
        other.state.global_step in (0, 2) and not (tmp_path / "checkpoint-4").exists()
    )
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    with pytest.raises(ValueError, match=rf"has no {LOG_Z_FILE}.*GRPOTrainer's"):
        bridge.load_log_z(damaged)
    (damaged / LOG_Z_FILE).write_bytes(b"not safetensors at all")
    with pytest.raises(ValueError, match=r"cannot be read.*Fix: use an older"):
        bridge.load_log_z(damaged)


# --------------------------------------------------------------------- bad input

OTHER = {
    "beta": 0.1,
    "loss_type": "dr_grpo",
    "delta": 2.0,
    "scale_rewards": "none",
    "importance_sampling_level": "sequence",
    "top_entropy_quantile": 0.5,
    "multi_objective_aggregation": "normalize_then_sum",
    "mask_truncated_completions": True,
    "off_policy_mask_threshold": 0.5,
    "entropy_coef": 0.01,
    "use_adaptive_entropy": True,
    "sync_ref_model": True,
    "use_bias_correction_kl": False,
    "fp16": True,
}


@pytest.mark.bad_input
def test_what_only_grpo_has_is_refused_by_name(bridge):
    from flowrl_lab.integrations.trl_config import GRPO_ONLY

    known = set(bridge.FlowRLConfig.__dataclass_fields__)
    tried = [name for name in GRPO_ONLY if name in known]  # an older TRL has fewer
    assert len(tried) > len(GRPO_ONLY) / 2
    for name in tried:
        value = OTHER.get(name, 5.0)
        said = rf"^`{name}` is {value!r}.*Fix: leave {name}"
        with pytest.raises(ValueError, match=said):
            bridge.FlowRLConfig(output_dir="unused", **{name: value})


def test_every_setting_that_grpos_loss_reads_is_ours_or_refused(bridge):
    """A new setting of GRPO's loss must not be ignored in silence."""
    import inspect

    from trl import GRPOTrainer

    from flowrl_lab.integrations.trl_config import GRPO_ONLY

    source = inspect.getsource(GRPOTrainer._compute_loss)
    read = set(re.findall(r"self\.args\.(\w+)|self\.(\w+)", source))
    names = {a or b for a, b in read} & set(bridge.FlowRLConfig.__dataclass_fields__)
    # The engine's own, which hold for any loss; and the entropy bonus's, which is
    # refused as a whole.
    engine = {
        "steps_per_generation",
        "use_vllm",
        "vllm_importance_sampling_correction",
        "max_completion_length",
        "use_liger_kernel",
        "router_aux_loss_coef",
    }
    bonus = {name for name in names if name.startswith("entropy_")}
    assert names - engine - bonus - {"epsilon_high"} <= set(GRPO_ONLY)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"importance": "cilp"}, "did you mean 'clip'"),
        ({"reward_form": "z"}, "reward_form"),
        ({"log_z_features": "first"}, "log_z_features"),
        ({"reward_scale": -1.0}, "reward_scale"),
        ({"log_z_learning_rate": float("nan")}, "log_z_learning_rate"),
        (
            {"per_device_train_batch_size": 6, "num_generations": 4},
            r"`num_generations` is 4, which does not divide the 6 rows.*Fix: change",
        ),
        (
            {"use_vllm": True, "vllm_importance_sampling_mode": "token_mask"},
            "`vllm_importance_sampling_mode` is 'token_mask'.*whole sequences",
        ),
    ],
)
def test_settings_that_cannot_be(bridge, changes, message):
    settings = {"output_dir": "unused", "use_cpu": True, "bf16": False, **changes}
    with pytest.raises(ValueError, match=message):
        bridge.FlowRLConfig(**settings)


def test_vllms_own_settings_are_passed_on(bridge):
    args = bridge.FlowRLConfig(
        output_dir="unused",
        use_cpu=True,
        bf16=False,
        use_vllm=True,
        vllm_mode="colocate",
        vllm_gpu_memory_utilization=0.4,
        vllm_importance_sampling_mode="sequence_truncate",
    )
    assert (args.use_vllm, args.vllm_mode) == (True, "colocate")
    assert args.vllm_gpu_memory_utilization == 0.4


def test_truncated_sampling_is_warned_of(bridge):
    with pytest.warns(UserWarning, match=r"top_p is 0.9.*not samples of π"):
        bridge.FlowRLConfig(output_dir="unused", use_cpu=True, bf16=False, top_p=0.9)


@pytest.mark.bad_input
def test_runs_that_trl_cannot_take(bridge, tmp_path):
    for changes, message in (
        ({"algorithm": "grpo"}, "algorithm 'grpo'"),
        ({"entropy_coef": 0.1}, "entropy_coef"),
        ({"log_z": "vargrad"}, "log_z='learned'"),
    ):
        with pytest.raises(ValueError, match=message):
            make_args(tmp_path, make_config(**changes))
    with pytest.raises(ValueError, match=r"`processes` is 3.*16 rows"):
        make_args(tmp_path, processes=3)
    with pytest.raises(ValueError, match="does not spell"):
        character_tokenizer(load_task("landscape"))
    with pytest.raises(ValueError, match=r"`args` is a NoneType.*FlowRLConfig\("):
        bridge.FlowRLTrainer(model="nothing", reward_funcs=[])


@pytest.mark.bad_input
def test_a_reward_for_every_completion(sides):
    _, trainer, rollout = sides
    trainer._scores = rollout.rewards[:, None].clone()
    trainer._scores[3] = float("nan")
    with pytest.raises(ValueError, match=r"1 of 16 .*make_number return 0"):
        trainer._local_rewards(16)


@pytest.mark.bad_input
def test_trl_missing_or_of_another_version(monkeypatch):
    with pytest.raises(ImportError, match=r"not installed.*flowrl-lab\[trl\]"):
        require("no-such-package", "trl", TRL_VERSIONS)
    monkeypatch.setattr("importlib.metadata.version", lambda _name: "0.9.0")
    with pytest.raises(ImportError, match=r"trl 0.9.0 .*expected trl>=1"):
        require("trl", "trl", TRL_VERSIONS)

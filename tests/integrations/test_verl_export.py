"""verl's export: settings that exist there, a reward that is ours, differences said.

The names were read in verl's own configuration files.  To check them against more
versions, unpack their wheels side by side (``python -m zipfile -e verl-0.7.1-*.whl
verl-versions/0.7.1``) and set FLOWRL_VERL_VERSIONS to that folder.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
import yaml

from flowrl_lab import __main__ as cli
from flowrl_lab import preset
from flowrl_lab.integrations.task_scores import score_text
from flowrl_lab.integrations.verl import (
    IDLE,
    RECIPE_KEYS,
    _reward_file,
    compare_meaning,
    export_verl,
    verl_settings,
)
from flowrl_lab.tasks import load_task
from flowrl_lab.tasks.open_sets import OpenSets

CONFIG = preset("make_number", "flowrl", seed=7)
PAPER = preset("make_number", "flowrl_paper").replace(
    importance="max10", log_z="attached", log_z_features="mean"
)
# What verl's ppo_trainer.yaml has, of all that is set: the same in 0.6.1 to 0.9.1.
VERL_KEYS = {
    "data": {
        "train_files",
        "val_files",
        "prompt_key",
        "train_batch_size",
        "max_response_length",
        "max_prompt_length",
        "seed",
    },
    "actor_rollout_ref.model": {"path", "lora_rank", "lora_alpha", "target_modules"},
    "actor_rollout_ref.actor": {
        "ppo_mini_batch_size",
        "ppo_epochs",
        "grad_clip",
        "use_kl_loss",
        "use_dynamic_bsz",
        "ppo_micro_batch_size_per_gpu",
    },
    "actor_rollout_ref.actor.optim": {"lr", "lr_scheduler_type", "weight_decay"},
    "actor_rollout_ref.rollout": {
        "n",
        "temperature",
        "top_p",
        "top_k",
        "log_prob_micro_batch_size_per_gpu",
    },
    "actor_rollout_ref.ref": {"log_prob_micro_batch_size_per_gpu"},
    "algorithm": {"adv_estimator", "norm_adv_by_std_in_grpo", "use_kl_in_reward"},
    "custom_reward_function": {"path", "name"},
    "reward_model": {"reward_manager"},
    "trainer": {
        "total_training_steps",
        "total_epochs",
        "test_freq",
        "experiment_name",
    },
}
# A value for every field, another than the textbook run's.
OTHER = {
    "task": "open_sets",
    "task_options": {"limit": 3},
    "policy": "hf_lm",
    "algorithm": None,
    "name": "mine",
    "seed": 8,
    "steps": 7,
    "prompts_per_step": 3,
    "num_generations": 5,
    "updates_per_batch": 2,
    "temperature": 0.7,
    "learning_rate": 0.5,
    "lr_schedule": "cosine",
    "log_z_learning_rate": 0.25,
    "value_learning_rate": 0.5,
    "max_grad_norm": 0.5,
    "reward_scale": 3.0,
    "reward_form": "group_normalized",
    "length_normalize": True,
    "importance": "max10",
    "log_z": "attached",
    "log_z_value": 2.5,
    "log_z_start": "batch",
    "log_z_features": "mean",
    "clip_low": 0.1,
    "clip_high": 0.3,
    "kl_coef": 0.5,
    "entropy_coef": 0.5,
    "pass_k": 3,
    "lora_rank": 3,
    "lora_alpha": 3.0,
    "eval_every": 3,
    "eval_prompts": 3,
    "eval_split": "test",
    "watch_prompt": "24!37:",
    "device": "cuda",
    "model": "mine",
    "dtype": "float16",
    "prompt_format": "chat",
    "micro_batch": 3,
    "on_bad_update": "skip",
    "max_residual": 3.0,
    "max_skips": 3,
}


def overrides(folder: Path, *more: str, **environment: str) -> dict:
    """What run.sh hands to the recipe: started for real, with a python3 that tells."""
    fake = folder.parent / "bin" / "python3"
    fake.parent.mkdir(exist_ok=True)
    fake.write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done\n')
    fake.chmod(0o755)
    path = f"{fake.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", folder / "run.sh", *more],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PATH": path, **environment},
    )
    words = done.stdout.splitlines()
    assert words[:2] == ["-m", "recipe.flowrl.main_flowrl"]
    pairs = (word.removeprefix("++").partition("=") for word in words[2:])
    return {name: yaml.safe_load(value) for name, _, value in pairs}


@pytest.fixture
def exported(tmp_path):
    export_verl(CONFIG, tmp_path / "verl")
    return tmp_path / "verl"


def test_every_setting_is_one_that_verl_or_the_recipe_has(exported):
    found = overrides(exported, MODEL="m")
    known = {f"{g}.{name}" for g, names in VERL_KEYS.items() for name in names}
    assert set(found) == known | set(RECIPE_KEYS)


def test_the_known_names_are_verls():
    """In every unpacked version of verl that the environment names."""
    folder = os.environ.get("FLOWRL_VERL_VERSIONS")
    for version in sorted(Path(folder).iterdir()) if folder else ():
        path = version / "verl/trainer/config/_generated_ppo_trainer.yaml"
        tree = yaml.safe_load(path.read_text())
        for group, names in VERL_KEYS.items():
            branch = tree
            for part in group.split("."):
                branch = branch[part]
            assert names <= set(branch), (version.name, group)


def test_the_values_are_the_runs(exported):
    found = overrides(exported, "data.seed=8", MODEL="a model")
    assert found["actor_rollout_ref.rollout.n"] == CONFIG.num_generations
    assert found["data.train_batch_size"] == CONFIG.prompts_per_step
    assert found["actor_rollout_ref.actor.optim.lr"] == CONFIG.learning_rate
    assert found["actor_rollout_ref.actor.optim.warmup_style"] == "constant"
    assert found["reward_model.reward_manager"] == "dapo"
    assert found["trainer.total_training_steps"] == CONFIG.steps
    assert found["algorithm.norm_adv_by_std_in_grpo"] is False
    assert found["actor_rollout_ref.model.path"] == "a model"
    assert found["data.max_prompt_length"] == len("24!37:")
    assert found["data.seed"] == 8  # what follows wins
    paper = verl_settings(PAPER, exported)
    assert paper["algorithm.norm_adv_by_std_in_grpo"] is True


def test_the_reward_file_judges_as_the_task_does(exported):
    """Loaded from its path and called by keyword, as verl's reward manager does."""
    spec = importlib.util.spec_from_file_location("reward", exported / "reward.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    lines = (exported / "train.jsonl").read_text().splitlines()
    row = json.loads(lines[0])
    assert len(lines) == len(load_task("make_number").prompts("train"))
    prompt = row["reward_model"]["ground_truth"]
    assert row["prompt"] == [{"role": "user", "content": prompt}]
    answers = load_task("make_number").answers(prompt)
    cases = {
        answers.labels[0]: 1.0,
        answers.labels[-1]: 1.0,
        "1+1": 0.0,
        "": 0.0,
        "eval": 0.0,
        answers.labels[0] + "+": 0.0,
        "9" * 40: 0.0,
    }
    for answer, expected in cases.items():
        score = module.compute_score(
            data_source=row["data_source"],
            solution_str=answer,
            ground_truth=prompt,
            extra_info=row["extra_info"],
        )
        assert score == expected, answer


def test_text_tasks_are_judged_up_to_their_stop():
    task = OpenSets()
    prompt = task.prompts("train")[0]
    assert score_text(task, prompt, "13\nand more") == 1.0
    assert score_text(task, prompt, "14") == 0.0


def test_every_difference_of_the_textbook_form_is_named(exported):
    named = {one.setting: one for one in compare_meaning(CONFIG)}
    assert set(named) == {
        "reward_scale",
        "importance, clip_low, clip_high",
        "log_z_features",
        "log_z",
        "log_z_start",
        "log_z_learning_rate",
        "reward_form",
        "length_normalize",
        "lora_rank",
        "policy, model",
        "dtype, device",
        "seed",
        "prompt_format",
        "eval_every, eval_prompts, eval_split, watch_prompt",
        "on_bad_update, max_residual, max_skips",
    }
    assert "0.8, 1.2" in named["importance, clip_low, clip_high"].here
    assert "literal" in named["reward_scale"].there
    page = (exported / "DIFFERENCES.md").read_text(encoding="utf-8")
    for one in named.values():
        assert f"| {one.setting} | {one.here} | {one.there} |" in page
    assert all(field in page for field in IDLE)


def _meaning(config):
    """What the start script sets, and what the page says of the rest."""
    return verl_settings(config, Path("/")), compare_meaning(config)


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(CONFIG)])
def test_every_field_is_carried_over_or_named(field):
    """Change it, and a setting changes, or a line of the page; or nothing reads it."""
    if field == "algorithm":  # only this one has a recipe
        with pytest.raises(ValueError, match="recipe"):
            _meaning(CONFIG.replace(algorithm="grpo"))
        return
    if field in ("task", "task_options"):  # they are in the data and in the reward
        written = _reward_file(CONFIG.replace(**{field: OTHER[field]}))
        assert written != _reward_file(CONFIG)
        return
    base = CONFIG.replace(log_z="constant") if field == "log_z_value" else CONFIG
    changed = base.replace(**{field: OTHER[field]})
    assert changed != base
    assert (_meaning(changed) == _meaning(base)) == (field in IDLE)


def test_the_bonus_is_named_and_not_handed_over():
    """The recipe's actor has its entropy term commented out, and reads no clip."""
    config = CONFIG.replace(entropy_coef=0.01)
    assert "entropy_coef" in {one.setting for one in compare_meaning(config)}
    for name in verl_settings(config, Path("/")):
        assert not any(word in name for word in ("entropy", "clip_ratio", "tb_coef"))


@pytest.mark.parametrize("source", ["vargrad", "constant", "frozen", "random"])
def test_a_log_z_that_nothing_learns_is_not_called_a_network(source):
    named = {c.setting: c for c in compare_meaning(CONFIG.replace(log_z=source))}
    assert "no network" in named["log_z"].here
    assert "not available" in named["log_z"].what_to_do
    assert "log_z_learning_rate" not in named and "log_z_start" not in named


def test_the_target_of_a_mean_centred_reward_is_that_of_a_smaller_scale():
    """By enumeration: r - mean of the group rests at β (G-1)/G, not at β."""
    scale, group = 2.0, 3
    reward = torch.tensor([1.0, 0.25, 0.0], dtype=torch.float64)
    policy = torch.softmax(scale * (group - 1) / group * reward, 0)  # π_ref is flat
    # E[r_i - mean | y_i]: the other samples are drawn from π, one is y_i itself
    centred = reward - (reward + (group - 1) * (policy @ reward)) / group
    residual = policy.log() - scale * centred
    torch.testing.assert_close(residual, residual.mean().expand(3))
    named = {one.setting: one for one in compare_meaning(CONFIG)}
    share = (CONFIG.num_generations - 1) / CONFIG.num_generations
    assert f"{share:.4g} β" in named["reward_form"].what_to_do


def test_the_closest_run_has_the_fewest_differences():
    named = {one.setting: one for one in compare_meaning(PAPER)}
    assert "reward_form" not in named and "length_normalize" not in named
    assert named["importance, clip_low, clip_high"].what_to_do == "nothing"
    assert named["reward_scale"].what_to_do == "nothing"
    linear = compare_meaning(PAPER.replace(lr_schedule="linear"))
    assert "lr_schedule" in {one.setting for one in linear}


def test_the_command_writes_it_and_says_what_differs(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(CONFIG.to_json())
    assert cli.main(["export", "verl", str(run), "--model", "some/model"]) == 0
    printed = capsys.readouterr().out
    assert "length_normalize: here sums" in printed
    found = overrides(run / "verl")
    assert found["actor_rollout_ref.model.path"] == "some/model"
    assert Path(found["custom_reward_function.path"]).is_file()


@pytest.mark.bad_input
def test_what_cannot_be_exported(tmp_path, capsys):
    assert cli.main(["export", "verl", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"algorithm 'grpo'.*recipe"):
        export_verl(preset("make_number", "grpo"), tmp_path / "a")
    with pytest.raises(ValueError, match=r"'landscape' has no text"):
        export_verl(preset("landscape", "flowrl"), tmp_path / "a")
    assert not (tmp_path / "a").exists()
    (tmp_path / "reward.py").write_text("mine")
    with pytest.raises(ValueError, match="nothing is overwritten"):
        export_verl(CONFIG, tmp_path)
    assert (tmp_path / "reward.py").read_text() == "mine"

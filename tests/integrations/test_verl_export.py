"""verl's export: settings that exist there, a reward that is ours, differences said.

The names were read in verl's own configuration files.  To check them against more
versions, unpack their wheels side by side (``python -m zipfile -e verl-0.7.1-*.whl
verl-versions/0.7.1``) and set FLOWRL_VERL_VERSIONS to that folder.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from flowrl_lab import __main__ as cli
from flowrl_lab import preset
from flowrl_lab.integrations.task_scores import score_text
from flowrl_lab.integrations.verl import (
    RECIPE_KEYS,
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
        "train_files", "val_files", "prompt_key", "train_batch_size",
        "max_response_length", "max_prompt_length", "seed",
    },
    "actor_rollout_ref.model": {"path", "lora_rank", "lora_alpha", "target_modules"},
    "actor_rollout_ref.actor": {
        "ppo_mini_batch_size", "ppo_epochs", "grad_clip", "clip_ratio_low",
        "clip_ratio_high", "use_kl_loss", "kl_loss_coef", "entropy_coeff",
    },
    "actor_rollout_ref.actor.optim": {"lr", "lr_scheduler_type", "weight_decay"},
    "actor_rollout_ref.rollout": {"n", "temperature", "top_p", "top_k"},
    "algorithm": {"adv_estimator", "norm_adv_by_std_in_grpo", "use_kl_in_reward"},
    "custom_reward_function": {"path", "name"},
    "reward_model": {"reward_manager"},
    "trainer": {"total_training_steps", "experiment_name"},
}  # fmt: skip


def overrides(folder: Path, *more: str, **environment: str) -> dict:
    """What run.sh hands to the recipe: started for real, with a python3 that tells."""
    fake = folder.parent / "bin" / "python3"
    fake.parent.mkdir(exist_ok=True)
    fake.write_text('#!/bin/sh\nfor word in "$@"; do printf "%s\\n" "$word"; done\n')
    fake.chmod(0o755)
    path = f"{fake.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", folder / "run.sh", *more], capture_output=True, text=True, check=True,
        env={**os.environ, "PATH": path, **environment},
    )  # fmt: skip
    words = done.stdout.splitlines()
    assert words[:2] == ["-m", "recipe.flowrl.main_flowrl"]
    pairs = (word.partition("=") for word in words[2:])
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
    assert found["algorithm.tb_coef"] == CONFIG.reward_scale
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
    cases = {answers.labels[0]: 1.0, answers.labels[-1]: 1.0, "1+1": 0.0, "": 0.0,
             "eval": 0.0, answers.labels[0] + "+": 0.0, "9" * 40: 0.0}  # fmt: skip
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
        "reward_scale", "importance, clip_low, clip_high", "log_z_features", "log_z",
        "log_z_learning_rate", "reward_form", "length_normalize", "lora_rank",
    }  # fmt: skip
    assert "0.8, 1.2" in named["importance, clip_low, clip_high"].here
    assert "literal" in named["reward_scale"].there
    page = (exported / "DIFFERENCES.md").read_text()
    for one in named.values():
        assert f"| {one.setting} | {one.here} | {one.there} |" in page


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

"""ExperimentConfig: every setting is checked before any work, and survives JSON."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math

import numpy as np
import pytest
import torch

from flowrl_lab.tasks import TASKS
from flowrl_lab.tasks.real import TEXT_TASKS
from flowrl_lab.training.algorithms import ALGORITHMS
from flowrl_lab.training.config import (
    CHOICES,
    CONFIG_VERSION,
    GROUP_ALGORITHMS,
    ExperimentConfig,
)

UNUSUAL = {
    "task": "strings",
    "task_options": {"length": 4, "blob_width": 0.1, "heldout_prompts": 0},
    "algorithm": "vargrad",
    "name": "β = ½",
    "seed": 7,
    "learning_rate": 1e-3 / 3,
    "length_normalize": True,
    "kl_coef": 0.1 + 0.2,
    "watch_prompt": "picture 1",
}


def test_json_round_trip():
    for config in (ExperimentConfig(), ExperimentConfig(**UNUSUAL)):
        text = config.to_json()
        assert ExperimentConfig.from_json(text) == config
        fields = json.loads(text)
        assert fields.pop("config_version") == CONFIG_VERSION
        assert set(fields) == {field.name for field in dataclasses.fields(config)}


def test_options_are_kept_as_json_keeps_them():
    """Tuples become lists at once, so that a loaded config equals the first one."""
    options = {"rewards": (0.0, 1.0, 0.5)}
    config = ExperimentConfig(task_options=options)
    assert config.task_options == {"rewards": [0.0, 1.0, 0.5]}
    assert ExperimentConfig.from_json(config.to_json()) == config
    options["rewards"] = (9.0, 9.0)  # the caller's dict is the caller's
    assert config.task_options == {"rewards": [0.0, 1.0, 0.5]}


def test_missing_fields_take_their_defaults():
    text = json.dumps({"config_version": CONFIG_VERSION, "steps": 5})
    assert ExperimentConfig.from_json(text) == ExperimentConfig(steps=5)


def test_replace_makes_a_changed_copy():
    config = ExperimentConfig()
    changed = config.replace(steps=3, algorithm="grpo")
    assert (changed.steps, changed.algorithm) == (3, "grpo")
    assert config == ExperimentConfig()
    assert changed == ExperimentConfig(steps=3, algorithm="grpo")


def test_run_name_is_the_algorithm_unless_given():
    assert ExperimentConfig(algorithm="ppo").run_name == "ppo"
    assert ExperimentConfig(algorithm="ppo", name="mine").run_name == "mine"


def test_every_field_is_described():
    text = inspect.getdoc(ExperimentConfig)  # dedented, as Python 3.13 stores it
    for field in dataclasses.fields(ExperimentConfig):
        assert f"    {field.name}: " in text


@pytest.mark.bad_input
def test_every_number_is_checked():
    """A field that nobody validates would fail in the middle of a run."""
    numbers = {
        field.name
        for field in dataclasses.fields(ExperimentConfig)
        if isinstance(field.default, (int, float))
        and not isinstance(field.default, bool)
    }
    assert len(numbers) == 24
    for name in numbers - {"log_z_value"}:  # which may be negative
        for value in (-1, math.nan, math.inf, "3", None, True):
            with pytest.raises(ValueError, match=name):
                ExperimentConfig(**{name: value})


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("task", "landscpe", "did you mean 'landscape'"),
        ("task", "zzz", "choose from landscape, strings, make_number, programs"),
        ("algorithm", "flow_rl", "did you mean 'flowrl'"),
        ("algorithm", "Grpo", "did you mean 'grpo'"),
        ("policy", "tabula", "did you mean 'tabular'"),
        ("importance", "clipp", "did you mean 'clip'"),
        ("lr_schedule", "cosin", "did you mean 'cosine'"),
        ("reward_form", "normalized", "did you mean 'group_normalized'"),
        ("log_z_features", "first", "choose from last, mean"),
        ("log_z", "learnd", "did you mean 'learned'"),
        ("task", ["landscape"], "expected text"),
        ("importance", None, "expected text"),
        ("name", 3, "expected text"),
        ("device", 0, "expected text"),
        ("watch_prompt", None, "expected text"),
        ("length_normalize", "no", "expected True or False"),
        ("length_normalize", 1, "expected True or False"),
        ("steps", 10.0, "whole number"),
        ("steps", 0, "above 0"),
        ("temperature", 0.0, "above 0"),
        ("seed", -1, "at least 0"),
        ("clip_low", -0.1, "at least 0"),
        ("task_options", [], "expected a dict"),
        ("task_options", {"rewards": torch.ones(2)}, r"\.tolist\(\)"),
        ("task_options", {"rewards": np.ones(2)}, r"\.tolist\(\)"),
    ],
)
def test_a_wrong_value_is_named_with_a_fix(name, value, message):
    with pytest.raises(ValueError, match=rf"(?s){name} is .*{message}") as caught:
        ExperimentConfig(**{name: value})
    assert "Fix: " in str(caught.value)


def test_the_names_are_those_of_the_registries():
    assert CHOICES["task"] == (*TASKS, *TEXT_TASKS)
    assert CHOICES["algorithm"] == tuple(ALGORITHMS)


@pytest.mark.bad_input
def test_a_misspelt_setting_is_named():
    with pytest.raises(ValueError, match="did you mean 'learning_rate'"):
        ExperimentConfig().replace(learning_rte=0.1)
    text = json.dumps({"config_version": CONFIG_VERSION, "stps": 5})
    with pytest.raises(ValueError, match="did you mean 'steps'"):
        ExperimentConfig.from_json(text)


@pytest.mark.bad_input
@pytest.mark.parametrize("algorithm", GROUP_ALGORITHMS)
def test_group_algorithms_need_a_group(algorithm):
    with pytest.raises(ValueError, match=rf"num_generations is 1.*{algorithm}.*Fix:"):
        ExperimentConfig(algorithm=algorithm, num_generations=1)


@pytest.mark.bad_input
def test_the_batchs_log_z_needs_a_group():
    with pytest.raises(ValueError, match=r"num_generations is 1.*Fix:"):
        ExperimentConfig(log_z="vargrad", num_generations=1)


@pytest.mark.bad_input
def test_the_best_of_k_is_taken_inside_a_group():
    with pytest.raises(ValueError, match=r"pass_k is 9 with num_generations 8.*Fix:"):
        ExperimentConfig(algorithm="pass_at_k", pass_k=9, num_generations=8)


@pytest.mark.bad_input
def test_an_unlearned_log_z_is_any_finite_number():
    assert ExperimentConfig(log_z="constant", log_z_value=-2.5).log_z_value == -2.5
    for value in (math.nan, math.inf, "3", None, True):
        with pytest.raises(ValueError, match="log_z_value is"):
            ExperimentConfig(log_z_value=value)


@pytest.mark.bad_input
def test_kl_reinforce_refuses_stale_batches():
    with pytest.raises(ValueError, match=r"updates_per_batch is 2.*Fix:"):
        ExperimentConfig(algorithm="kl_reinforce", updates_per_batch=2)
    for algorithm in set(ALGORITHMS) - {"kl_reinforce"}:
        assert ExperimentConfig(algorithm=algorithm, updates_per_batch=2)


@pytest.mark.bad_input
@pytest.mark.parametrize("text", ["", "{", "nonsense", '{"steps": }'])
def test_what_is_not_json_is_refused(text):
    with pytest.raises(ValueError, match=r"not JSON.*Fix:"):
        ExperimentConfig.from_json(text)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "text", ["[]", "3", "null", "{}", '{"config_version": 0}', '{"config_version": 2}']
)
def test_another_version_is_refused(text):
    with pytest.raises(ValueError, match=rf"reads version {CONFIG_VERSION}.*Fix:"):
        ExperimentConfig.from_json(text)


@pytest.mark.bad_input
def test_what_a_newer_version_wrote_is_named_as_that():
    newer = json.dumps({**json.loads(ExperimentConfig().to_json()), "warmth": 2})
    with pytest.raises(ValueError, match=r"\['warmth'\].*newer.*Fix: pip install"):
        ExperimentConfig.from_json(newer)


@pytest.mark.bad_input
def test_wrong_types_in_json_are_refused():
    for name, value in (
        ("steps", "ten"),
        ("task", {}),
        ("task_options", "x"),
        ("length_normalize", "true"),
        ("seed", 1.5),
    ):
        text = json.dumps({"config_version": CONFIG_VERSION, name: value})
        with pytest.raises(ValueError, match=rf"{name} is .*expected.*Fix:"):
            ExperimentConfig.from_json(text)


def test_every_choice_is_accepted():
    for name, choices in CHOICES.items():
        for choice in choices:
            assert getattr(ExperimentConfig(**{name: choice}), name) == choice

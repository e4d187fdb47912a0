"""Presets: every variant of a task starts fair, and differs only where it says."""

from __future__ import annotations

import dataclasses
import functools
import json

import pytest

from flowrl_lab.tasks import TASKS, load_task
from flowrl_lab.tasks.real import TEXT_TASKS
from flowrl_lab.training.algorithms import ALGORITHMS
from flowrl_lab.training.config import ExperimentConfig
from flowrl_lab.training.presets import PRESETS, VARIANTS, preset

BUDGETS = ("quick", "full")


def differences(first: ExperimentConfig, second: ExperimentConfig) -> set[str]:
    return {
        field.name
        for field in dataclasses.fields(first)
        if getattr(first, field.name) != getattr(second, field.name)
    }


def build_task(config: ExperimentConfig):
    """A preset's task; the same one for settings that ask for the same."""
    try:
        return _build_task(config.task, json.dumps(config.task_options, sort_keys=True))
    except ImportError as error:  # reasoning-gym cannot be had everywhere
        pytest.skip(str(error))


@functools.cache
def _build_task(name: str, options: str):
    return load_task(name, **json.loads(options))


def test_every_task_and_algorithm_has_presets():
    # an assignment brings its own settings; nobody ships GSM8K's files
    without = {"required_operator", "gsm8k"}
    assert set(PRESETS) == {*TASKS, *TEXT_TASKS} - without
    assert set(VARIANTS) == {*ALGORITHMS, "flowrl_paper", "grpo_entropy"}


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("variant", sorted(VARIANTS))
@pytest.mark.parametrize("task", sorted(PRESETS))
def test_every_preset_is_a_valid_run(task, variant, budget):
    config = preset(task, variant, budget=budget)
    assert config.task == task
    assert config.run_name == variant  # races need different names
    assert config.algorithm == VARIANTS[variant]["algorithm"]
    built = build_task(config)
    assert len(built.prompts("train")) >= 1


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("task", sorted(PRESETS))
def test_all_variants_get_the_same_budget(task, budget):
    """The race is fair: the same samples, evaluation and size of adapter."""
    shared = (
        "steps",
        "prompts_per_step",
        "num_generations",
        "temperature",
        "task_options",
        "eval_prompts",
        "eval_every",
        "lora_rank",
        "seed",
    )
    configs = [preset(task, variant, budget=budget) for variant in VARIANTS]
    for config in configs[1:]:
        assert not differences(configs[0], config) & set(shared)


@pytest.mark.parametrize("task", sorted(PRESETS))
def test_quick_only_cuts_steps_and_evaluations(task):
    for variant in VARIANTS:
        quick, full = (preset(task, variant, budget=budget) for budget in BUDGETS)
        assert differences(quick, full) <= {"steps", "eval_every", "eval_prompts"}
        assert quick.steps < full.steps


@pytest.mark.parametrize("task", sorted(PRESETS))
def test_the_control_penalises_as_much_as_flowrl_rewards(task):
    """kl_reinforce has FlowRL's optimum when kl_coef = 1 / reward_scale."""
    control = preset(task, "kl_reinforce")
    assert control.kl_coef == pytest.approx(1 / preset(task, "flowrl").reward_scale)


@pytest.mark.parametrize("task", ["landscape", "strings"])
def test_flowrl_aims_at_the_target_it_is_judged_by(task):
    config = preset(task, "flowrl")
    built = build_task(config)
    assert config.reward_scale == built.reward_scale
    assert (config.reward_form, config.length_normalize) == ("raw", False)


def test_the_papers_form_is_the_papers():
    config = preset("make_number", "flowrl_paper")
    assert config.reward_form == "group_normalized" and config.length_normalize
    assert config.reward_scale == 15.0 and config.importance == "clip"
    assert (config.clip_low, config.clip_high) == (0.2, 0.2)


def test_overrides_come_last():
    config = preset("landscape", "flowrl", steps=3, kl_coef=0.5, name="mine")
    assert (config.steps, config.kl_coef, config.run_name) == (3, 0.5, "mine")
    assert preset("landscape", "flowrl").steps != 3  # the table is untouched


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "overrides", "message"),
    [
        (("landscap", "flowrl"), {}, "task is 'landscap'.*did you mean 'landscape'"),
        (("landscape", "gpro"), {}, "variant is 'gpro'.*did you mean 'grpo'"),
        (("landscape", "zzz"), {}, "variant is 'zzz'.*choose from"),
        (("landscape", "flowrl"), {"budget": "quik"}, "budget.*did you mean 'quick'"),
        (("landscape", "flowrl"), {"step": 3}, "setting is 'step'.*mean 'steps'"),
        (("landscape", "flowrl"), {"steps": 0}, "steps is 0"),
    ],
)
def test_unknown_names_are_refused(arguments, overrides, message):
    with pytest.raises(ValueError, match=rf"(?s){message}") as caught:
        preset(*arguments, **overrides)
    assert "Fix: " in str(caught.value)

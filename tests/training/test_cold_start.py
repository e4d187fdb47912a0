"""A cold start: careless lines, an adapter that is merged into its base."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import torch
from llm_models import model_folder

from flowrl_lab._files import data_path
from flowrl_lab.evaluation import evaluate_policy
from flowrl_lab.policies.loading import fetch_model, find_model, load_language_model
from flowrl_lab.policies.merging import SHIPPED_ADAPTERS, adapter_base, find_adapter
from flowrl_lab.policies.wheel import SMOLLM2
from flowrl_lab.tasks import load_task
from flowrl_lab.training.cold_start import (
    COLD_STARTS,
    ColdStart,
    cold_start,
    cold_start_steps,
    solutions,
)
from flowrl_lab.training.config import ExperimentConfig
from flowrl_lab.training.making import make_task_and_policy
from flowrl_lab.training.presets import preset

CPU = torch.device("cpu")


def short(**changes) -> ColdStart:
    few = {"steps": 12, "batch_size": 4, "learning_rate": 1e-2} | changes
    return dataclasses.replace(ColdStart(model=model_folder()), **few)


def test_the_lines_are_careless_as_the_recipe_says():
    recipe, task = ColdStart(), load_task("formulas")
    for question in task.prompts("train")[:20]:
        right = task.answer_texts(question)
        shares = solutions(right, recipe)
        assert sum(shares.values()) == pytest.approx(1)
        assert sum(shares[text] for text in right) == pytest.approx(recipe.right_share)
        wrong = set(shares) - set(right)
        assert {len(text) for text in wrong if text[-1] in "+-*"}  # unfinished ones
        assert all(task.score(question, text).reward == 0 for text in wrong)
        most, least = (f(shares[text] for text in right) for f in (max, min))
        assert most > 5 * least  # skewed
        assert shares == solutions(right, recipe)


def test_a_cold_start_teaches_and_is_remade_byte_by_byte(tmp_path):
    recipe, said = short(), []
    facts = cold_start(tmp_path / "one", recipe, report=said.append)
    cold_start(tmp_path / "two", recipe, report=said.append)
    losses = [float(line.split()[3]) for line in said[: len(said) // 2]]
    assert losses[-1] < losses[0] - 0.5
    names = ("adapter_config.json", "adapter_model.safetensors")
    for name in names:
        one, two = ((tmp_path / run / name).read_bytes() for run in ("one", "two"))
        assert one == two
        assert facts_of(tmp_path / "one")["files"][name] == digest(one)
    assert facts["recipe"] == dataclasses.asdict(recipe)


def facts_of(folder) -> dict:
    return json.loads((folder / "provenance.json").read_text(encoding="utf-8"))


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_the_reference_of_a_later_run_is_the_cold_started_model(tmp_path):
    """What was judged when the adapter was saved is what a run finds at its start."""
    facts = cold_start(tmp_path / "one", short(), report=lambda _: None)
    config = ExperimentConfig(task="formulas", model=str(tmp_path / "one"))
    task, policy = make_task_and_policy(config, CPU)
    found = evaluate_policy(policy, task, task.prompts("validation"))
    assert found.kl_policy_target == pytest.approx(0, abs=1e-5)
    assert round(found.accuracy, 4) == facts["heldout_accuracy"]
    assert "merged into it" in policy.loaded.source
    assert policy.loaded.base_name == config.model


def test_no_held_out_function_is_shown():
    config = ExperimentConfig(task="formulas", model=model_folder())
    task, policy = make_task_and_policy(config, CPU)
    seen: set[str] = set()
    encode = task.encode
    task.encode = lambda texts: seen.update(texts) or encode(texts)
    for _ in cold_start_steps(task, policy, short(steps=40, answers_per_prompt=1)):
        pass
    assert len(seen) > 60 and seen <= set(task.prompts("train"))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base_model_name_or_path": None}, "whose base is None"),
        ({"base_model_name_or_path": "gpt"}, "could not be added to its base"),
        ({"r": 3}, "could not be added to its base"),
    ],
)
def test_an_adapter_of_another_base_is_refused(tmp_path, change, said):
    cold_start(tmp_path / "one", short(steps=1), report=lambda _: None)
    file = tmp_path / "one" / "adapter_config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    if change.get("base_model_name_or_path") == "gpt":
        change = {"base_model_name_or_path": model_folder("gpt2")}
    file.write_text(json.dumps(content | change), encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        load_language_model(str(tmp_path / "one"))


def test_the_adapter_that_comes_along_is_the_recipes():
    folder = data_path(SHIPPED_ADAPTERS["smollm2-135m-formulas"])
    facts = facts_of(folder)
    for name, sha256 in facts["files"].items():
        assert digest((folder / name).read_bytes()) == sha256
    assert facts["recipe"] == dataclasses.asdict(COLD_STARTS["formulas"])
    assert 0.15 <= facts["heldout_accuracy"] <= 0.60  # something to learn, and to lose
    assert sum(file.stat().st_size for file in folder.iterdir()) < 4e6
    assert adapter_base(folder) == SMOLLM2.hub_name
    for budget in ("quick", "full"):
        config = preset("formulas", "grpo", budget=budget)
        assert find_adapter(config.model) == folder


def test_a_model_with_an_adapter_is_here_if_its_base_is(tmp_path, monkeypatch):
    cold_start(tmp_path / "one", short(steps=1), report=lambda _: None)
    assert find_model(str(tmp_path / "one")) == Path(model_folder())
    assert fetch_model(str(tmp_path / "one")) == Path(model_folder())
    for name in ("smollm2-135m-formulas", "smollm2-135m"):
        with monkeypatch.context() as here:
            here.setenv("FLOWRL_CACHE", str(tmp_path / "empty"))
            assert find_model(name) is None


@pytest.mark.full
@pytest.mark.slow
def test_the_adapter_that_comes_along_is_as_good_as_it_says():
    facts = facts_of(data_path(SHIPPED_ADAPTERS["smollm2-135m-formulas"]))
    task, policy = make_task_and_policy(preset("formulas", "grpo", budget="quick"), CPU)
    found = evaluate_policy(policy, task, task.prompts("validation"))
    assert found.accuracy == pytest.approx(facts["heldout_accuracy"], abs=0.01)
    assert found.effective_answers == pytest.approx(
        facts["heldout_effective_answers"], rel=0.02
    )

"""What FlowRLTrainer leans on in TRL, pinned: a new TRL that moves it fails here.

The sources are read, not run, so versions that are not installed can be checked too.
Unpack their wheels side by side and name the folder::

    for v in 1.13.0 1.14.2 1.15.0 1.16.0; do
      pip download --no-deps -d wheels "trl==$v"
      python -m zipfile -e "wheels/trl-$v-py3-none-any.whl" "trl-versions/$v"
    done
    export FLOWRL_TRL_VERSIONS=trl-versions
    python3 lab.py test tests/integrations/test_trl_drift.py
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from flowrl_lab.integrations import TRL_VERSIONS

ROOT = Path(__file__).resolve().parents[2]


def find_sources() -> dict[str, Path]:
    """Version -> folder of that TRL's package; the installed one comes first."""
    spec = importlib.util.find_spec("trl")
    found = {importlib.metadata.version("trl"): Path(spec.origin).parent}
    more = os.environ.get("FLOWRL_TRL_VERSIONS")
    for folder in sorted(Path(more).iterdir()) if more else ():
        if (folder / "trl").is_dir():
            found.setdefault(folder.name, folder / "trl")
    return found


SOURCES = find_sources()


@pytest.fixture(scope="module", params=SOURCES, ids=str)
def trainer(request) -> ast.ClassDef:
    """The class GRPOTrainer of one version."""
    return find_class(SOURCES[request.param] / "trainer/grpo_trainer.py", "GRPOTrainer")


def find_class(path: Path, name: str) -> ast.ClassDef:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)


def find_method(owner: ast.ClassDef, name: str) -> ast.FunctionDef:
    return next(
        n for n in owner.body if isinstance(n, ast.FunctionDef) and n.name == name
    )


def arguments(method: ast.FunctionDef) -> list[str]:
    return [a.arg for a in (*method.args.posonlyargs, *method.args.args)][1:]


def test_the_pinned_range_is_the_projects():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extra = map(Requirement, project["project"]["optional-dependencies"]["trl"])
    (trl,) = (r for r in extra if r.name == "trl")
    assert trl.specifier == SpecifierSet(TRL_VERSIONS)
    assert all(trl.specifier.contains(version) for version in SOURCES)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("compute_loss", ["model", "inputs", "return_outputs", "num_items_in_batch"]),
        ("_generate_and_score_completions", ["inputs"]),
        (
            "_calculate_rewards",
            ["inputs", "prompts", "completions", "completion_ids_list"],
        ),
    ],
)
def test_methods_that_are_replaced_take_what_they_took(trainer, method, expected):
    assert arguments(find_method(trainer, method)) == expected


def test_the_method_that_is_called_takes_what_it_is_given(trainer):
    method = find_method(trainer, "_get_per_token_logps_and_entropies")
    taken = arguments(method) + [a.arg for a in method.args.kwonlyargs]
    passes_on = method.args.vararg is not None and method.args.kwarg is not None
    wanted = ["model", "input_ids", "attention_mask", "logits_to_keep"]
    assert taken[:4] == wanted or (taken[0] == "model" and passes_on)
    assert "compute_entropy" in taken or passes_on
    # log-probs, entropies, auxiliary loss
    calls = [
        node
        for node in ast.walk(trainer)
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and getattr(node.value.func, "attr", "") == method.name
    ]
    assert calls
    assert {len(node.targets[0].elts) for node in calls} == {3}


def test_the_batch_has_the_keys_that_are_read(trainer):
    method = find_method(trainer, "_generate_and_score_completions")
    keys = {
        node.value
        for node in ast.walk(method)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert keys >= {
        "prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask",
        "old_per_token_logps", "ref_per_token_logps", "importance_sampling_ratio",
    }  # fmt: skip


def test_attributes_that_are_read_are_still_set(trainer):
    """And the reference runs when ``beta`` is above 0, which is all it is used for."""
    init = find_method(trainer, "__init__")
    stored = {
        node.attr
        for node in ast.walk(init)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    assert stored >= {
        "_is_vlm", "_metrics", "aux_loss_enabled", "beta", "epsilon_high",
        "epsilon_low", "num_generations", "num_generations_eval", "ref_model",
        "reward_func_names", "reward_weights", "router_aux_loss_coef",
    }  # fmt: skip
    assert "self.beta != 0.0" in ast.unparse(
        find_method(trainer, "_generate_and_score_completions")
    )


def test_no_method_of_ours_hides_a_new_one_of_trls(trainer):
    """Names that FlowRLTrainer adds must not be TRL's; those it replaces must be."""
    ours = find_class(ROOT / "flowrl_lab/integrations/trl.py", "FlowRLTrainer")
    mine = {n.name for n in ours.body if isinstance(n, ast.FunctionDef)}
    theirs = {n.name for n in trainer.body if isinstance(n, ast.FunctionDef)}
    replaced = {
        "__init__", "compute_loss", "_calculate_rewards",
        "_generate_and_score_completions", "_load_optimizer_and_scheduler",
    }  # fmt: skip
    # The last is replaced in transformers' Trainer, and by some versions of TRL.
    assert mine & theirs <= replaced
    assert replaced - {"_load_optimizer_and_scheduler"} <= theirs


@pytest.mark.parametrize("version", SOURCES)
def test_refused_settings_exist_or_are_younger(version):
    """A setting that was renamed would no longer be refused."""
    config = find_class(SOURCES[version] / "trainer/grpo_config.py", "GRPOConfig")
    fields = {
        n.target.id
        for n in config.body
        if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
    }
    bridge = (ROOT / "flowrl_lab/integrations/trl_config.py").read_text()
    table = next(
        node
        for node in ast.parse(bridge).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "GRPO_ONLY"
    )
    refused = {key.value for key in table.value.keys}
    inherited = {"fp16"}
    assert refused - fields - inherited == set()

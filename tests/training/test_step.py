"""The step in view: short, made of the taught pieces, the same for every policy."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch
from llm_models import model_folder

import flowrl_lab
from flowrl_lab.losses import flowrl_loss
from flowrl_lab.training.config import ExperimentConfig
from flowrl_lab.training.rollouts import sample_prompts
from flowrl_lab.training.run import Run
from flowrl_lab.training.step import training_step

PACKAGE = Path(flowrl_lab.__file__).parent
SETTINGS = {
    "algorithm": "flowrl",
    "prompts_per_step": 2,
    "num_generations": 4,
    "reward_scale": 4.0,
    "eval_prompts": 2,
}
POLICIES = {
    "table": {"task": "landscape"},
    "plain": {"task": "make_number"},
    "compiled": {"task": "make_number"},
    "hugging face": {"task": "open_sets", "dtype": "float32"},
}


def make_run(kind: str) -> Run:
    config = ExperimentConfig(**SETTINGS, **POLICIES[kind])
    if kind == "hugging face":
        config = config.replace(model=str(model_folder()))
    return Run(config)


def assembled_step(policy, task, log_z, optimizer, config):
    """Notebook 7's lines, whatever the policy."""
    generators = [torch.Generator().manual_seed(config.seed) for _ in range(2)]
    group = config.num_generations
    prompts = sample_prompts(task, config.prompts_per_step, generators[0])
    drawn = policy.sample(prompts, group, generator=generators[1])
    rows = drawn.completion_ids, drawn.completion_mask
    rewards = task.score(prompts, *rows, group)
    reference = policy.evaluate(prompts, *rows, reference=True)
    now = policy.evaluate(prompts, *rows)
    z = log_z(policy.prompt_features(prompts)).repeat_interleave(group)
    loss = flowrl_loss(
        z,
        now.log_probs,
        drawn.log_probs,
        reference.log_probs,
        rewards,
        rows[1],
        reward_scale=config.reward_scale,
        length_normalize=config.length_normalize,
    )
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.trainable_parameters(), config.max_grad_norm)
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("kind", POLICIES)
def test_the_assembled_step_is_the_librarys(kind, monkeypatch):
    if kind == "plain":
        from flowrl_lab.policies.fast.llama import TreeLlama

        monkeypatch.setattr(TreeLlama, "supports", lambda _model: False)
    mine, run = make_run(kind), make_run(kind)
    loss = assembled_step(
        mine.policy, mine.task, mine.modules["log_z"], mine.optimizer, mine.config
    )
    batch = run.prepare(run.sample())
    update = training_step(run.policy, run.optimizer, batch, run.algorithm)
    assert loss == pytest.approx(update.loss.item(), rel=1e-5)
    pairs = zip(
        (*mine.policy.trainable_parameters(), *mine.modules.parameters()),
        (*run.policy.trainable_parameters(), *run.modules.parameters()),
        strict=True,
    )
    moved = 0.0
    for one, other in pairs:
        if other.grad is None:
            assert one.grad is None
            continue
        moved += other.grad.norm()
        assert (one.grad - other.grad).norm() <= 1e-5 * other.grad.norm() + 1e-9
        torch.testing.assert_close(one, other)
    assert moved > 0


def test_the_step_is_one_short_function():
    lines = inspect.getsource(training_step).splitlines()
    assert len(lines) <= 40
    assert list(inspect.signature(training_step).parameters) == [
        "policy",
        "optimizer",
        "batch",
        "algorithm",
    ]


def test_two_calls_from_train_to_the_gradient(monkeypatch):
    depths = []
    backward = torch.Tensor.backward

    def note(self, *given, **named):
        stack = [f for f in inspect.stack() if f.filename.startswith(str(PACKAGE))]
        names = [frame.function for frame in stack]
        depths.append(names[: names.index("train") + 1])
        return backward(self, *given, **named)

    monkeypatch.setattr(torch.Tensor, "backward", note)
    config = ExperimentConfig(**SETTINGS, task="landscape", steps=1)
    list(flowrl_lab.train(config))
    assert depths == [["training_step", "__next__", "train"]]


# ------------------------------------------------------- one implementation of a piece

CORE = ["tokens", "losses", "advantages", "partition", "exact", "evaluation"]
TAUGHT = {
    r"log_softmax\(": "flowrl_lab.tokens.log_probs_from_logits",
    r"logsumexp\(": "flowrl_lab.tokens or .partition",
    r"\[:, :-1\]": "flowrl_lab.tokens.next_token_logits",
    r"masked_fill\(~\w+, 0\.0\)": "flowrl_lab.tokens.masked_sum",
}


def test_the_pieces_that_train_have_one_implementation():
    """Policies and training call the core; the compiled fast path stands apart."""
    found = []
    for path in [*PACKAGE.glob("policies/*.py"), *PACKAGE.glob("training/*.py")]:
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
            code = line.split("#")[0]
            for pattern, home in TAUGHT.items():
                allowed = "log_mean =" in code  # where log Z starts
                if re.search(pattern, code) and not allowed:
                    found.append(f"{path.name}:{number}: {code.strip()} -> {home}")
    assert not found, "\n".join(found)


def test_one_module_looks_at_where_log_z_comes_from():
    asks = re.compile(r"(config|self)\.log_z\s*(==|!=|in\b|not in\b)")
    for path in PACKAGE.rglob("*.py"):
        if path.name != "log_z.py":
            assert not asks.search(path.read_text("utf-8")), path

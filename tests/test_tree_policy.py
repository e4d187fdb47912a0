"""The tree of prefixes, and the policy that computes each prefix once.

The oracle is ``LanguageModelPolicy``: the Hugging Face model, one row a completion.
"""

from __future__ import annotations

import sys

import pytest
import torch

from flowrl_lab.policies import (
    prefix_tree,
    tree_attention,
    tree_grad,
    tree_llama,
    tree_policy,
)
from flowrl_lab.policies.language_model import (
    LanguageModelPolicy,
    add_lora,
    build_tiny_llama,
)
from flowrl_lab.policies.prefix_tree import _grow_level, build_tree, plant_prompts
from flowrl_lab.policies.torchscript import without_lock
from flowrl_lab.policies.tree_attention import _gradient
from flowrl_lab.policies.tree_layers import mlp_gradient, run_level, run_tree, times
from flowrl_lab.policies.tree_llama import TreeLlama
from flowrl_lab.policies.tree_policy import TreeLanguageModelPolicy
from flowrl_lab.policies.workers import set_workers
from flowrl_lab.types import PromptBatch

VOCAB, PAD, EOS, WIDTH = 7, 5, 6, 6


@pytest.fixture(autouse=True, params=[1, 3], ids=["one worker", "three workers"])
def workers(request):
    """Everything holds with the rows shared among threads, too."""
    set_workers(request.param)
    yield
    set_workers(1)


@pytest.fixture(name="policies")
def fixture_policies():
    """Both policies on one model, its adapter not zero."""
    model = build_tiny_llama(VOCAB, pad_id=PAD, eos_id=EOS, seed=3)
    model = add_lora(model, rank=4, alpha=8.0, seed=1)
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data = 0.2 * torch.randn(weight.shape, generator=generator)
    settings = {"eos_id": EOS, "pad_id": PAD, "max_completion_tokens": WIDTH}
    return (
        LanguageModelPolicy(model, **settings),
        TreeLanguageModelPolicy(model, **settings),
    )


def make_prompts(padded: bool) -> PromptBatch:
    """Three prompts of 4, 2 and 3 tokens (left-padded), or of 4 each."""
    ids = torch.tensor([[0, 1, 2, 3], [4, 3, 1, 1], [1, 0, 2, 2]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    if padded:
        mask[1, :2] = mask[2, :1] = False
        ids = torch.where(mask, ids, PAD)
    return PromptBatch(("a", "b", "c"), ids, mask, torch.arange(3))


def make_completions(copies: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Random completions of 1 to WIDTH tokens with many shared beginnings."""
    generator = torch.Generator().manual_seed(5)
    rows = 3 * copies
    ids = torch.randint(0, 2, (rows, WIDTH), generator=generator)
    lengths = torch.randint(1, WIDTH + 1, (rows, 1), generator=generator)
    lengths[0] = WIDTH
    mask = torch.arange(WIDTH) < lengths
    ids = torch.where(torch.arange(WIDTH) == lengths - 1, EOS, ids)
    return torch.where(mask, ids, PAD), mask


# -------------------------------------------------------------------------- tree


@pytest.mark.parametrize("padded", [False, True])
def test_tree_has_one_node_for_each_prefix(padded):
    prompts, (ids, mask) = make_prompts(padded), make_completions()
    tree = build_tree(prompts, ids, mask, VOCAB)
    wanted = set()
    for row, (tokens, length) in enumerate(zip(ids.tolist(), mask.sum(-1).tolist(),
                                               strict=True)):  # fmt: skip
        wanted |= {(row // 4, *tokens[:end]) for end in range(1, length)}
    assert len(tree) == int(prompts.prompt_mask.sum()) + len(wanted)
    assert len(tree) < int(prompts.prompt_mask.sum()) + int(mask.sum()) - 12


@pytest.mark.parametrize("padded", [False, True])
def test_a_node_sees_its_own_prefix_and_nothing_else(padded):
    prompts, (ids, mask) = make_prompts(padded), make_completions()
    tree = build_tree(prompts, ids, mask, VOCAB)
    level = tree.level
    home = {
        (prompt, slot): node
        for node, (prompt, slot) in enumerate(
            zip(level.prompts.tolist(), level.slots.tolist(), strict=True)
        )
    }
    assert len(home) == len(tree)
    for row, place in mask.nonzero().tolist():
        node = int(tree.predictor[row, place])
        owner = row // 4
        assert int(level.prompts[node]) == owner
        seen = level.sees[node].nonzero().squeeze(-1).tolist()
        nodes = sorted((home[owner, slot] for slot in seen),
                       key=lambda n: int(level.positions[n]))  # fmt: skip
        context = prompts.prompt_ids[owner][prompts.prompt_mask[owner]].tolist()
        context += ids[row, :place].tolist()
        assert level.tokens[nodes].tolist() == context
        assert level.positions[nodes].tolist() == list(range(len(context)))


def test_prompts_end_at_their_last_token():
    prompts = make_prompts(padded=True)
    level, ends = plant_prompts(prompts, 9)
    assert level.tokens[ends].tolist() == prompts.prompt_ids[:, -1].tolist()
    assert level.filled.tolist() == [4, 2, 3]


def test_a_sorted_tree_is_the_same_tree():
    prompts, (ids, mask) = make_prompts(padded=True), make_completions()
    tree = build_tree(prompts, ids, mask, VOCAB)
    other = tree.sorted()
    assert other.level.prompts.tolist() == sorted(tree.level.prompts.tolist())
    assert other.sorted() is other
    old, new = tree.predictor[mask], other.predictor[mask]
    for name in ("tokens", "positions", "prompts", "slots", "sees"):
        assert torch.equal(
            getattr(tree.level, name)[old], getattr(other.level, name)[new]
        )


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="no TorchScript there")
@pytest.mark.parametrize(
    "function", [_grow_level, run_level, run_tree, mlp_gradient, _gradient]
)
def test_the_busy_functions_run_without_pythons_lock(function):
    assert isinstance(without_lock(function), torch.jit.ScriptFunction)


def test_without_torchscript_the_functions_run_as_they_stand(policies, monkeypatch):
    """As they will where this PyTorch has no TorchScript any more."""
    plain, tree = policies
    for module in (prefix_tree, tree_attention, tree_grad, tree_llama):
        monkeypatch.setattr(module, "without_lock", lambda function: function)
    prompts = make_prompts(padded=True)
    expected, found = (
        policy.sample(prompts, 5, generator=torch.Generator().manual_seed(3))
        for policy in (plain, tree)
    )
    assert torch.equal(found.completion_ids, expected.completion_ids)
    torch.testing.assert_close(found.log_probs, expected.log_probs)
    batch = (prompts, expected.completion_ids, expected.completion_mask)
    torch.testing.assert_close(
        tree.evaluate(*batch, reference=True).log_probs,
        plain.evaluate(*batch, reference=True).log_probs,
    )
    gradients = [
        torch.autograd.grad(
            policy.evaluate(*batch).log_probs.mean(),
            policy.trainable_parameters(),
        )
        for policy in (plain, tree)
    ]
    torch.testing.assert_close(gradients[1], gradients[0])


def test_what_torchscript_cannot_read_runs_as_it_stands():
    def strange(value):
        return {**value}

    assert without_lock(strange) is strange


# ------------------------------------------------------------------------ policy


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_entropies_and_states_are_the_models(
    policies, padded, reference, temperature
):
    prompts, (ids, mask) = make_prompts(padded), make_completions()
    plain, tree = (
        policy.evaluate(
            prompts, ids, mask, temperature=temperature, reference=reference
        )
        for policy in policies
    )
    torch.testing.assert_close(tree.log_probs, plain.log_probs)
    torch.testing.assert_close(tree.entropies, plain.entropies)
    torch.testing.assert_close(tree.states[mask], plain.states[mask])
    assert tree.log_probs.requires_grad != reference
    assert tree.entropies.requires_grad != reference
    assert bool((tree.log_probs[~mask] == 0).all())


def test_gradients_are_the_models(policies):
    prompts, (ids, mask) = make_prompts(padded=True), make_completions()
    weights = torch.linspace(-1, 1, ids.numel()).view(ids.shape)
    gradients = []
    for policy in policies:
        log_probs = policy.evaluate(prompts, ids, mask).log_probs
        loss = (log_probs * weights).sum()
        gradients.append(torch.autograd.grad(loss, policy.trainable_parameters()))
    for plain, tree in zip(*gradients, strict=True):
        assert plain.abs().max() > 0.01
        torch.testing.assert_close(tree, plain)


def sample_and_weigh(policies):
    """Samples of the tree policy, and a weight for each of their tokens."""
    _, tree = policies
    prompts = make_prompts(padded=True)
    sampled = tree.sample(prompts, 5, generator=torch.Generator().manual_seed(4))
    ids, mask = sampled.completion_ids, sampled.completion_mask
    weights = torch.linspace(-1, 1, ids.numel()).view(ids.shape)
    return prompts, ids, mask, weights


def test_activations_of_sampling_serve_the_first_update(policies, monkeypatch):
    plain, tree = policies
    prompts, ids, mask, weights = sample_and_weigh(policies)
    expected = plain.evaluate(prompts, ids, mask)
    wanted = torch.autograd.grad(
        (expected.log_probs * weights + expected.entropies).sum(),
        plain.trainable_parameters(),
    )
    monkeypatch.setattr(TreeLlama, "tree_states", None)  # would fail if it were used
    found = tree.evaluate(prompts, ids, mask)
    torch.testing.assert_close(found.log_probs, expected.log_probs)
    gradients = torch.autograd.grad(
        (found.log_probs * weights + found.entropies).sum(),
        tree.trainable_parameters(),
    )
    for one, other in zip(gradients, wanted, strict=True):
        assert other.abs().max() > 0.01
        torch.testing.assert_close(one, other)


def test_a_second_update_computes_its_own_activations(policies):
    plain, tree = policies
    prompts, ids, mask, weights = sample_and_weigh(policies)
    with torch.no_grad():
        for weight in tree.trainable_parameters():
            weight.mul_(1.1)
    gradients = []
    for policy in policies:
        log_probs = policy.evaluate(prompts, ids, mask).log_probs
        loss = (log_probs * weights).sum()
        gradients.append(torch.autograd.grad(loss, policy.trainable_parameters()))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, one)
    assert plain.trainable_parameters()[0] is tree.trainable_parameters()[0]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_features_of_log_z_come_with_the_reference_pass(
    policies, monkeypatch, padded, pooling
):
    plain, tree = policies
    prompts = make_prompts(padded)
    expected = plain.prompt_features(prompts, pooling)
    torch.testing.assert_close(tree.prompt_features(prompts, pooling), expected)
    sampled = tree.sample(prompts, 5, generator=torch.Generator().manual_seed(4))
    tree.evaluate(
        prompts, sampled.completion_ids, sampled.completion_mask, reference=True
    )
    monkeypatch.setattr(LanguageModelPolicy, "prompt_features", None)
    found = tree.prompt_features(prompts, pooling)
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad


def test_features_are_those_of_the_prompts_asked_for(policies):
    plain, tree = policies
    ids, mask = make_completions()
    tree.evaluate(make_prompts(padded=True), ids, mask, reference=True)
    other = make_prompts(padded=False)
    torch.testing.assert_close(
        tree.prompt_features(other), plain.prompt_features(other)
    )


def test_nothing_of_an_earlier_rollout_is_left(policies):
    """The memory is used again, be it full of NaN, by batches of other shapes."""
    plain, tree = policies
    for padded, copies in ((False, 5), (True, 3), (False, 2)):
        for room in tree._rooms:
            for tensor in (*room.cache, room.tape.states, *room.tape.layers[0]):
                tensor.fill_(float("nan"))
        prompts = make_prompts(padded)
        expected, found = (
            policy.sample(prompts, copies, generator=torch.Generator().manual_seed(3))
            for policy in (plain, tree)
        )
        assert torch.equal(found.completion_ids, expected.completion_ids)
        torch.testing.assert_close(found.log_probs, expected.log_probs)


@pytest.mark.parametrize("spoil", ["update", "sample"])
def test_no_gradient_from_activations_that_are_gone(policies, spoil):
    _, tree = policies
    prompts, ids, mask, weights = sample_and_weigh(policies)
    loss = (tree.evaluate(prompts, ids, mask).log_probs * weights).sum()
    if spoil == "sample":
        tree.sample(prompts, 5, generator=torch.Generator().manual_seed(5))
    else:
        with torch.no_grad():
            tree.trainable_parameters()[0].add_(0.1)
    with pytest.raises(RuntimeError, match=r"modified by an inplace|evaluate again"):
        loss.backward()


@pytest.mark.parametrize("padded", [False, True])
def test_samples_are_the_same_draws(policies, padded):
    prompts = make_prompts(padded)
    plain, tree = (
        policy.sample(
            prompts, 8, temperature=0.9, generator=torch.Generator().manual_seed(2)
        )
        for policy in policies
    )
    assert torch.equal(tree.completion_ids, plain.completion_ids)
    assert torch.equal(tree.completion_mask, plain.completion_mask)
    torch.testing.assert_close(tree.log_probs, plain.log_probs)
    assert len({tuple(row) for row in tree.completion_ids.tolist()}) > 3


def test_sampling_notices_a_trained_adapter(policies):
    _, tree = policies
    prompts, (ids, mask) = make_prompts(padded=False), make_completions()
    before = tree.evaluate(prompts, ids, mask)
    kept = tree.evaluate(prompts, ids, mask, reference=True)
    with torch.no_grad():
        for weight in tree.trainable_parameters():
            weight += 0.05
    after = tree.evaluate(prompts, ids, mask)
    assert (after.log_probs - before.log_probs).abs().max() > 1e-3
    again = tree.evaluate(prompts, ids, mask, reference=True)
    assert torch.equal(again.log_probs, kept.log_probs)


def test_wide_trees_take_the_plain_way(policies, monkeypatch):
    plain, tree = policies
    prompts, (ids, mask) = make_prompts(padded=False), make_completions()
    monkeypatch.setattr(tree_policy, "MAX_SLOTS", 3)
    monkeypatch.setattr(TreeLlama, "tree_states", None)  # would fail if it were used
    expected = plain.evaluate(prompts, ids, mask)
    found = tree.evaluate(prompts, ids, mask)
    torch.testing.assert_close(found.log_probs, expected.log_probs)


@pytest.mark.bad_input
def test_the_kept_tree_belongs_to_its_prompts_and_completions(policies):
    """The same completions under other prompts, and after a change in place."""
    plain, tree = policies
    ids, mask = make_completions()
    first, second = make_prompts(False), make_prompts(True)
    for prompts in (first, second, first):
        expected = plain.evaluate(prompts, ids, mask).log_probs
        torch.testing.assert_close(
            tree.evaluate(prompts, ids, mask).log_probs, expected
        )
    ids[0, 0] = 1 - ids[0, 0]
    changed = plain.evaluate(first, ids, mask).log_probs
    assert not torch.allclose(changed, expected)
    torch.testing.assert_close(tree.evaluate(first, ids, mask).log_probs, changed)


# ----------------------------------------------------------- products in bfloat16


@pytest.fixture(name="narrow")
def fixture_narrow(policies):
    """The same model as ``policies``, its products in bfloat16."""
    model, settings = policies[1].model, {"eos_id": EOS, "pad_id": PAD}
    return TreeLanguageModelPolicy(
        model, products=torch.bfloat16, max_completion_tokens=WIDTH, **settings
    )


def gradient_of(policy, ids, mask) -> torch.Tensor:
    policy.model.zero_grad()
    policy.evaluate(make_prompts(True), ids, mask).log_probs.sum().backward()
    return torch.cat([p.grad.flatten() for p in policy.trainable_parameters()])


def test_narrow_products_change_little(policies, narrow):
    """bfloat16 keeps 8 bits: 0.4 % a number, here 0.05 nats a token at the most."""
    ids, mask = make_completions()
    for reference in (False, True):
        wide, near = (
            policy.evaluate(make_prompts(True), ids, mask, reference=reference)
            for policy in (policies[1], narrow)
        )
        gap = (wide.log_probs - near.log_probs).abs().max()
        assert 0 < gap < 0.05
    exact, near = (gradient_of(p, ids, mask) for p in (policies[1], narrow))
    assert torch.nn.functional.cosine_similarity(exact, near, dim=0) > 0.999
    assert 0.98 < near.norm() / exact.norm() < 1.02


def test_narrow_sampling_serves_the_first_update(narrow):
    """The draws' own log-probs come back, so the first ratio is 1 to rounding."""
    prompts, generator = make_prompts(True), torch.Generator().manual_seed(2)
    drawn = narrow.sample(prompts, 4, generator=generator)
    ids, mask = drawn.completion_ids, drawn.completion_mask
    now = narrow.evaluate(prompts, ids, mask).log_probs
    torch.testing.assert_close(now, drawn.log_probs, atol=1e-5, rtol=0)
    again = narrow.sample(prompts, 4, generator=torch.Generator().manual_seed(2))
    assert torch.equal(again.completion_ids, ids)


def test_a_narrow_policy_is_judged_in_full(policies, narrow):
    prompts, (ids, mask) = make_prompts(True), make_completions()
    wide = policies[1].evaluate(prompts, ids, mask).log_probs
    for _ in range(2):  # also after a pass in bfloat16 of the same completions
        with narrow.in_full(), torch.no_grad():
            assert torch.equal(narrow.evaluate(prompts, ids, mask).log_probs, wide)
        with torch.no_grad():
            assert not torch.equal(narrow.evaluate(prompts, ids, mask).log_probs, wide)


def test_what_stands_in_the_rows_that_fill_up_is_never_read(monkeypatch):
    """Also where it is no number."""
    rows, weight = torch.randn(33, 8), torch.randn(6, 8)
    monkeypatch.setattr(torch, "empty", lambda shape, **kind: torch.full(
        shape, torch.nan, **kind))  # fmt: skip
    for turned, matrix in ((False, weight), (True, weight.T.contiguous())):
        found = times(rows, matrix.bfloat16(), turned)
        assert found.shape == (33, 6) and found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), rows @ weight.T, rtol=0.05, atol=0.1)
        torch.testing.assert_close(times(rows, matrix, turned), rows @ weight.T)


def test_temperature_must_be_above_zero(policies):
    with pytest.raises(ValueError, match="temperature"):
        policies[1].sample(make_prompts(False), 2, temperature=0.0,
                           generator=torch.Generator())  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value", "supported"),
    [
        ("hidden_act", "silu", True),
        ("hidden_act", "gelu", False),
        ("attention_bias", True, False),
        ("num_key_value_heads", 2, False),
        ("model_type", "qwen2", False),
    ],
)
def test_supports_only_what_it_computes(policies, name, value, supported):
    model = policies[1].model
    setattr(model.get_base_model().config, name, value)
    assert TreeLlama.supports(model) == supported

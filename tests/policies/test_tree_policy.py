"""The tree of prefixes, and the policy that computes each prefix once.

The oracle is ``LanguageModelPolicy``: the Hugging Face model, one row a completion.
"""

from __future__ import annotations

import copy
import hashlib
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from flowrl_lab.policies.fast import kernels as tree_kernels
from flowrl_lab.policies.fast import passes as tree_passes
from flowrl_lab.policies.fast.llama import TreeLlama
from flowrl_lab.policies.fast.policy import TreeLanguageModelPolicy
from flowrl_lab.policies.fast.prefix_tree import build_tree, new_nodes, plant_prompts
from flowrl_lab.policies.fast.workers import set_workers
from flowrl_lab.policies.language_model import (
    LanguageModelPolicy,
    add_lora,
    build_tiny_llama,
)
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


def assert_same_gradients(found, expected) -> None:
    """Each weight's to 1e-5 of its tensor's largest: the order of sums differs."""
    for one, other in zip(found, expected, strict=True):
        largest = other.abs().max().item()
        assert largest > 0.01
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * largest)


# -------------------------------------------------------------------------- tree


@pytest.mark.parametrize("padded", [False, True])
def test_tree_has_one_node_for_each_prefix(padded):
    prompts, (ids, mask) = make_prompts(padded), make_completions()
    tree = build_tree(prompts, ids, mask, VOCAB)
    wanted = set()
    for row, (tokens, length) in enumerate(
        zip(ids.tolist(), mask.sum(-1).tolist(), strict=True)
    ):
        wanted |= {(row // 4, *tokens[:end]) for end in range(1, length)}
    assert len(tree) == int(prompts.prompt_mask.sum()) + len(wanted)
    assert len(tree) < int(prompts.prompt_mask.sum()) + int(mask.sum()) - 12


def path_of(tree, node: int) -> list[int]:
    """A node and its ancestors, from the first token on."""
    path = []
    while node >= 0:
        path.append(node)
        node = int(tree.nodes.parents[node])
    return path[::-1]


@pytest.mark.parametrize("padded", [False, True])
def test_the_way_to_a_node_is_its_own_prefix_and_nothing_else(padded):
    prompts, (ids, mask) = make_prompts(padded), make_completions()
    tree = build_tree(prompts, ids, mask, VOCAB)
    for row, place in mask.nonzero().tolist():
        path, owner = path_of(tree, int(tree.predictor[row, place])), row // 4
        context = prompts.prompt_ids[owner][prompts.prompt_mask[owner]].tolist()
        context += ids[row, :place].tolist()
        assert tree.nodes.tokens[path].tolist() == context
        assert tree.nodes.positions[path].tolist() == list(range(len(context)))
        assert path == sorted(path)  # parents come first


def test_prompts_end_at_their_last_token():
    prompts, nodes = make_prompts(padded=True), new_nodes(20)
    count, ends = plant_prompts(prompts, nodes)
    assert count == 9 and ends.tolist() == [3, 5, 8]
    assert nodes.tokens[ends].tolist() == prompts.prompt_ids[:, -1].tolist()
    assert nodes.parents[:count].tolist() == [-1, 0, 1, 2, -1, 4, -1, 6, 7]


# ----------------------------------------------------------------------- kernels


def test_passes_are_compiled_anew_when_the_kernels_change():
    source = Path(tree_kernels.__file__).read_text("utf-8")  # whatever ends its lines
    now = hashlib.sha256(source.encode()).hexdigest()[:12]
    assert now == tree_passes.KERNELS, f"set KERNELS in tree_passes.py to {now!r}"


def test_who_waits_for_the_compiler_is_told_why(monkeypatch, capsys):
    monkeypatch.setattr(tree_passes, "_run_small", lambda: time.sleep(0.2))
    tree_passes.warm_up.__wrapped__(patience=0.01)
    assert "once" in capsys.readouterr().out
    monkeypatch.setattr(tree_passes, "_run_small", lambda: None)
    tree_passes.warm_up.__wrapped__(patience=0.01)
    time.sleep(0.05)
    assert not capsys.readouterr().out


def test_passes_are_compiled_once(policies):
    """What ``warm_up`` compiles is what a training step calls."""
    tree_passes.warm_up()
    passes = tree_passes.forward, tree_passes.sample, tree_passes.backward
    before = [len(one.signatures) for one in passes]
    assert before == [1, 1, 1]
    prompts, ids, mask, weights = sample_and_weigh(policies)
    (policies[1].evaluate(prompts, ids, mask).log_probs * weights).sum().backward()
    policies[1].evaluate(prompts, ids, mask, reference=True)
    assert [len(one.signatures) for one in passes] == before


def test_without_a_place_to_keep_it_the_compiler_works_too(monkeypatch):
    def njit(function, **settings):
        if settings.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return function, settings

    monkeypatch.setattr(tree_kernels, "njit", njit)
    function, settings = tree_kernels.compiled(abs)
    assert function is abs and settings["nogil"]


def test_exponentials_are_right_to_rounding():
    numbers = np.linspace(-87, 88, 100_001, dtype=np.float32)
    found = np.array([tree_kernels._exp(number) for number in numbers])
    assert np.abs(found / np.exp(numbers.astype(np.float64)) - 1).max() < 4e-7
    assert tree_kernels._exp(np.float32(-1e9)) < 1e-37
    assert np.isnan(tree_kernels._exp(np.float32("nan")))


@pytest.mark.parametrize("where", ["gate", "query"])
def test_a_number_that_is_none_stays_none(policies, where):
    """A diverged adapter must be noticed, whatever the compiler may reorder."""
    _, tree = policies
    layer = tree.model.get_base_model().model.layers[1]
    module = layer.mlp.gate_proj if where == "gate" else layer.self_attn.q_proj
    with torch.no_grad():
        module.lora_B["default"].weight[3, 1] = torch.nan
    ids, mask = make_completions()
    with pytest.raises(ValueError, match=r"`logits` has (\d+) NaN .* among \1;"):
        tree.evaluate(make_prompts(True), ids, mask)


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
    assert_same_gradients(gradients[1], gradients[0])


@pytest.mark.parametrize("copies", [5, pytest.param(400, marks=pytest.mark.full)])
def test_gradients_are_as_exact_as_the_models(policies, copies):
    """Against float64; 400 samples a prompt go back in several blocks of rows."""
    plain, tree = policies
    prompts = make_prompts(padded=True)
    drawn = tree.sample(prompts, copies, generator=torch.Generator().manual_seed(3))
    double = LanguageModelPolicy(
        copy.deepcopy(plain.model).double(),
        eos_id=EOS,
        pad_id=PAD,
        max_completion_tokens=WIDTH,
    )
    nodes = [len(grove.tree) for grove in tree._grown.groves]
    assert (max(nodes) > 2 * tree_passes.block_rows(10**6)) == (copies == 400)
    exact, *others = (
        torch.autograd.grad(
            policy.evaluate(
                prompts, drawn.completion_ids, drawn.completion_mask
            ).log_probs.sum(),
            policy.trainable_parameters(),
        )
        for policy in (double, plain, tree)
    )
    for gradients in others:
        assert_same_gradients(gradients, [one.float() for one in exact])


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
    monkeypatch.setattr(TreeLlama, "states", None)  # would fail if it were used
    found = tree.evaluate(prompts, ids, mask)
    torch.testing.assert_close(found.log_probs, expected.log_probs)
    gradients = torch.autograd.grad(
        (found.log_probs * weights + found.entropies).sum(),
        tree.trainable_parameters(),
    )
    assert_same_gradients(gradients, wanted)


def change_in_place(parameters) -> None:
    with torch.no_grad():
        for weight in parameters:
            weight.mul_(1.1)


def change_data(parameters) -> None:
    for weight in parameters:
        weight.data.mul_(1.1)


def step_fused(parameters) -> None:
    for weight in parameters:
        weight.grad = torch.ones_like(weight)
    torch.optim.AdamW(parameters, lr=0.01, fused=True).step()


@pytest.mark.parametrize("change", [change_in_place, change_data, step_fused])
def test_a_second_update_computes_its_own_activations(policies, change):
    """However the adapter is changed; PyTorch's own count of changes misses two."""
    plain, tree = policies
    prompts, ids, mask, weights = sample_and_weigh(policies)
    before = plain.evaluate(prompts, ids, mask).log_probs.detach()
    change(tree.trainable_parameters())
    assert not torch.allclose(plain.evaluate(prompts, ids, mask).log_probs, before)
    torch.testing.assert_close(
        tree.evaluate(prompts, ids, mask).log_probs,
        plain.evaluate(prompts, ids, mask).log_probs,
    )
    gradients = []
    for policy in policies:
        log_probs = policy.evaluate(prompts, ids, mask).log_probs
        loss = (log_probs * weights).sum()
        gradients.append(torch.autograd.grad(loss, policy.trainable_parameters()))
    assert_same_gradients(gradients[1], gradients[0])
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
        for tape in (*tree._tapes, *tree._scratch):
            for table in (*tape.tables, *tape.scratch):
                table.fill(np.nan)
        prompts = make_prompts(padded)
        expected, found = (
            policy.sample(prompts, copies, generator=torch.Generator().manual_seed(3))
            for policy in (plain, tree)
        )
        assert torch.equal(found.completion_ids, expected.completion_ids)
        torch.testing.assert_close(found.log_probs, expected.log_probs)
        batch = prompts, found.completion_ids, found.completion_mask
        reference = tree.evaluate(*batch, reference=True).log_probs
        torch.testing.assert_close(
            reference, plain.evaluate(*batch, reference=True).log_probs
        )
        gradients = [
            torch.autograd.grad(
                policy.evaluate(*batch).log_probs.sum(), policy.trainable_parameters()
            )
            for policy in policies
        ]
        assert_same_gradients(gradients[1], gradients[0])


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
    with pytest.raises(RuntimeError, match="evaluate again"):
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


@pytest.mark.bad_input
@pytest.mark.parametrize("way", ["sample", "evaluate"])
@pytest.mark.parametrize("wrong", ["a large token", "no token"])
def test_prompts_that_compiled_code_could_not_read(policies, way, wrong):
    prompts, (ids, mask) = make_prompts(True), make_completions()
    if wrong == "no token":
        prompts.prompt_mask[1] = False
    else:
        prompts.prompt_ids[2, 3] = VOCAB
    with pytest.raises(ValueError, match=r"(prompt_ids.*0 to 6|without a token).*Fix:"):
        if way == "sample":
            policies[1].sample(prompts, 2, generator=torch.Generator())
        else:
            policies[1].evaluate(prompts, ids, mask)


@pytest.mark.bad_input
def test_a_tape_that_is_too_small_is_not_written_to(policies):
    prompts, (ids, mask) = make_prompts(True), make_completions()
    tree, model = build_tree(prompts, ids, mask, VOCAB), policies[1]._tree_model
    for size in ((len(tree) - 1, 16), (len(tree), 3)):
        tape = model.new_tape(*size)
        tape.tables = tape.tables._replace(
            attention=tape.tables.attention[..., : size[1]]
        )
        with pytest.raises(ValueError, match="too small"):
            model.states(tree.nodes, model.weights(), tape)


def test_random_numbers_are_used_up_as_by_the_plain_policy(policies):
    """Also where all completions end before the last level."""
    prompts, widths = make_prompts(True), []
    for seed in range(20):
        generators = [torch.Generator().manual_seed(seed) for _ in policies]
        pairs = zip(policies, generators, strict=True)
        plain, tree = (p.sample(prompts, 1, generator=g) for p, g in pairs)
        assert torch.equal(plain.completion_ids, tree.completion_ids)
        assert torch.equal(*(generator.get_state() for generator in generators))
        widths.append(tree.completion_ids.shape[1])
    assert min(widths) < WIDTH == max(widths)


def test_temperature_must_be_above_zero(policies):
    with pytest.raises(ValueError, match="temperature"):
        policies[1].sample(
            make_prompts(False), 2, temperature=0.0, generator=torch.Generator()
        )


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("hidden_act", "silu", ""),
        ("hidden_act", "gelu", "'gelu' in its MLP"),
        ("attention_bias", True, "biases"),
        ("num_key_value_heads", 2, "shares keys"),
        ("model_type", "qwen2", "a qwen2"),
        ("rope_parameters", {"rope_type": "linear"}, "'linear'"),
    ],
)
def test_supports_only_what_it_computes(policies, name, value, reason):
    model = policies[1].model
    setattr(model.get_base_model().config, name, value)
    assert TreeLlama.supports(model) == (not reason)
    if reason:
        with pytest.raises(ValueError, match=f"{reason}.*Fix: use LanguageModelPolicy"):
            TreeLlama(model)


@pytest.mark.bad_input
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*:UserWarning")
@pytest.mark.parametrize(
    ("targets", "patterns", "reason"),
    [
        (["q_proj", "v_proj"], {}, "only some"),
        ("all-linear", {"q_proj": 2}, "several ranks"),
    ],
)
def test_supports_only_adapters_of_one_kind(targets, patterns, reason):
    from peft import LoraConfig, get_peft_model

    model = build_tiny_llama(VOCAB, pad_id=PAD, eos_id=EOS)
    assert not TreeLlama.supports(model)
    lora = LoraConfig(
        target_modules=targets, rank_pattern=patterns, task_type="CAUSAL_LM"
    )
    with pytest.raises(ValueError, match=reason):
        TreeLlama(get_peft_model(model, lora))
    half = add_lora(build_tiny_llama(VOCAB, pad_id=PAD, eos_id=EOS), rank=2, alpha=4.0)
    with pytest.raises(ValueError, match="not in float32"):
        TreeLlama(half.bfloat16())

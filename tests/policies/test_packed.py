"""The packed policy against one plain pass for each row."""

from __future__ import annotations

import pytest
import torch
from llm_models import build_model

from flowrl_lab.policies import hf_lm, packed
from flowrl_lab.policies.hf_lm import HFLanguageModelPolicy
from flowrl_lab.policies.language_model import LanguageModelPolicy, add_lora
from flowrl_lab.policies.loading import LoadedModel
from flowrl_lab.policies.packed import PackedLanguageModelPolicy, pack_rows
from flowrl_lab.policies.self_check import Ways
from flowrl_lab.types import PromptBatch

VOCAB, PAD, EOS, WIDTH = 9, 7, 8, 5


def make_policy(kind=PackedLanguageModelPolicy, architecture="llama", seed=0):
    model = add_lora(build_model(VOCAB, architecture), rank=4, alpha=8.0, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
    return kind(model, eos_id=EOS, pad_id=PAD, max_completion_tokens=WIDTH)


def batch_of(*rows: list[int]) -> PromptBatch:
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    texts = tuple(" ".join(map(str, row)) for row in rows)
    return PromptBatch(texts, ids, mask.bool(), torch.arange(len(rows)))


# They share a beginning; the last is the beginning of the first.
PROMPTS = ([0, 1, 2, 3], [0, 1, 5], [0, 1])
ROWS = ([4, 1, EOS], [4, 2, 2, 1, 0], [EOS], [3, 3, EOS], [2, 3, EOS], [2, 4, 1, EOS])


def make_room(monkeypatch, nodes: int) -> None:
    """No tree of more nodes, however much it would save."""
    monkeypatch.setattr(packed, "MAX_NODES", nodes)
    monkeypatch.setattr(packed, "EQUAL_COST_NODES", 1)


def completions(rows=ROWS):
    width = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    return ids, torch.arange(width) < torch.tensor([[len(row)] for row in rows])


def plain_log_probs(model, prompt, row):
    logits = model(input_ids=torch.tensor([prompt + row]), use_cache=False).logits[0]
    scores = logits.log_softmax(-1)
    start = len(prompt) - 1
    return torch.stack([scores[start + t, token] for t, token in enumerate(row)])


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "mistral"])
def test_log_probs_and_gradients_are_those_of_plain_passes(architecture):
    policy = make_policy(architecture=architecture)
    ids, mask = completions()
    output = policy.evaluate(batch_of(*PROMPTS), ids, mask)
    expected = torch.cat(
        [plain_log_probs(policy.model, PROMPTS[n // 2], r) for n, r in enumerate(ROWS)]
    )
    found = output.log_probs[mask]
    torch.testing.assert_close(found, expected)
    weights = torch.linspace(-1, 1, len(found))
    parameters = policy.trainable_parameters()
    for mine, plain in zip(
        torch.autograd.grad((found * weights).sum(), parameters),
        torch.autograd.grad((expected * weights).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-5)
        assert plain.abs().max() > 1e-4


def test_states_and_entropies_are_those_of_the_plain_policy():
    ids, mask = completions()
    mine = make_policy().evaluate(batch_of(*PROMPTS), ids, mask)
    plain = make_policy(LanguageModelPolicy).evaluate(batch_of(*PROMPTS), ids, mask)
    torch.testing.assert_close(mine.entropies, plain.entropies)
    torch.testing.assert_close(mine.states[mask], plain.states[mask])


def test_the_same_samples_as_the_plain_policy_with_their_log_probs():
    mine, plain = make_policy(), make_policy(LanguageModelPolicy)
    prompts = batch_of(*PROMPTS)
    for temperature in (1.0, 0.7):
        drawn = [
            policy.sample(
                prompts,
                6,
                temperature=temperature,
                generator=torch.Generator().manual_seed(3),
            )
            for policy in (mine, plain)
        ]
        assert torch.equal(drawn[0].completion_ids, drawn[1].completion_ids)
        assert torch.equal(drawn[0].completion_mask, drawn[1].completion_mask)
        torch.testing.assert_close(drawn[0].log_probs, drawn[1].log_probs)
        scored = mine.evaluate(
            prompts,
            drawn[0].completion_ids,
            drawn[0].completion_mask,
            temperature=temperature,
        )
        torch.testing.assert_close(scored.log_probs.detach(), drawn[0].log_probs)


def test_what_is_shared_is_computed_once():
    packing, predictor = pack_rows(batch_of(*PROMPTS), *completions())
    # 0 1 | 2 3 | 5 below the prompts; then 4 1, 4 2 2 1, 3 3, and 2 3, 2 4 1 of the
    # third prompt, which is the beginning of the first: its "2 3" is there already.
    distinct = {
        tuple(PROMPTS[n // 2] + row[:t])
        for n, row in enumerate(ROWS)
        for t in range(1, len(row))
    } | {tuple(p[:t]) for p in PROMPTS for t in range(1, len(p) + 1)}
    assert len(packing) == len(distinct)
    assert predictor.shape == (6, 5)


def test_activations_of_sampling_serve_one_update_of_the_same_weights(monkeypatch):
    policy, prompts = make_policy(), batch_of(*PROMPTS)
    drawn = policy.sample(prompts, 4, generator=torch.Generator().manual_seed(0))
    rows = drawn.completion_ids, drawn.completion_mask
    passes = []
    run = PackedLanguageModelPolicy._run_nodes
    monkeypatch.setattr(
        PackedLanguageModelPolicy,
        "_run_nodes",
        lambda self, *given: (passes.append(1), run(self, *given))[1],
    )
    first = policy.evaluate(prompts, *rows)
    assert not passes
    gradient = torch.autograd.grad(
        first.log_probs.square().sum(), policy.trainable_parameters()
    )
    second = policy.evaluate(prompts, *rows)
    assert passes
    again = torch.autograd.grad(
        second.log_probs.square().sum(), policy.trainable_parameters()
    )
    torch.testing.assert_close(gradient, again, rtol=1e-4, atol=1e-5)


def test_activations_of_sampling_do_not_serve_other_weights():
    """A fused step, which PyTorch's own count of changes misses."""
    policy, prompts = make_policy(), batch_of(*PROMPTS)
    drawn = policy.sample(prompts, 4, generator=torch.Generator().manual_seed(0))
    rows = drawn.completion_ids, drawn.completion_mask
    for parameter in policy.trainable_parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(policy.trainable_parameters(), lr=0.05, fused=True).step()
    moved = policy.evaluate(prompts, *rows).log_probs
    assert (moved - drawn.log_probs).abs().max() > 1e-3
    torch.testing.assert_close(
        moved[0, : rows[1][0].sum()],
        plain_log_probs(policy.model, PROMPTS[0], rows[0][0][rows[1][0]].tolist()),
    )


def test_the_reference_is_remembered_and_right(monkeypatch):
    policy, prompts = make_policy(), batch_of(*PROMPTS)
    ids, mask = completions()
    first = policy.evaluate(prompts, ids, mask, reference=True)
    plain = make_policy(LanguageModelPolicy)
    expected = plain.evaluate(prompts, ids, mask, reference=True)
    torch.testing.assert_close(first.log_probs, expected.log_probs)
    torch.testing.assert_close(first.entropies, expected.entropies)
    monkeypatch.setattr(PackedLanguageModelPolicy, "_run_nodes", None)
    again = policy.evaluate(prompts, ids, mask, reference=True)
    assert torch.equal(first.log_probs, again.log_probs)
    with pytest.raises(TypeError):  # another temperature is another row
        policy.evaluate(prompts, ids, mask, reference=True, temperature=0.5)


@pytest.mark.parametrize("room", [packed.MAX_NODES, 1])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_prompts_state_is_that_of_the_prompt_alone(monkeypatch, pooling, room):
    make_room(monkeypatch, room)
    policy = make_policy()
    found = policy.prompt_features(batch_of(*PROMPTS), pooling)
    with torch.no_grad(), policy.model.disable_adapter():
        for prompt, features in zip(PROMPTS, found, strict=True):
            states = policy._backbone(torch.tensor([prompt])).last_hidden_state[0]
            expected = states[-1] if pooling == "last" else states.mean(0)
            torch.testing.assert_close(features, expected)
    resumed = make_policy()  # a checkpoint brings what was found in company
    resumed.reference_memo.update(policy.reference_memo)
    again = resumed.prompt_features(batch_of(PROMPTS[1]), pooling)
    assert torch.equal(again[0], found[1])


def test_a_long_batch_goes_through_plain_rows(monkeypatch):
    ids, mask = completions()
    short = make_policy().evaluate(batch_of(*PROMPTS), ids, mask)
    make_room(monkeypatch, 5)
    policy = make_policy()
    long = policy.evaluate(batch_of(*PROMPTS), ids, mask)
    torch.testing.assert_close(long.log_probs, short.log_probs)
    drawn = policy.sample(batch_of([0, 1]), 2, generator=torch.Generator())
    assert drawn.completion_ids.shape[0] == 2


@pytest.mark.parametrize("room, packs", [(29, True), (28, False)])
def test_what_prompts_share_takes_room_once_when_sampling(monkeypatch, room, packs):
    """9 tokens of prompts are 5 nodes; 6 rows may need 4 more each."""
    make_room(monkeypatch, room)
    policy, prompts = make_policy(), batch_of(*PROMPTS)
    drawn = policy.sample(prompts, 2, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(PackedLanguageModelPolicy, "_run_nodes", None)
    if packs:  # what sampling computed serves the first update
        policy.evaluate(prompts, drawn.completion_ids, drawn.completion_mask)
    else:
        with pytest.raises(TypeError):
            policy.evaluate(prompts, drawn.completion_ids, drawn.completion_mask)


@pytest.mark.parametrize(
    "nodes, in_rows, packs",
    [
        (1024, 1024, True),  # few: always
        (1536, 3072, True),  # attention doubles the cost, rows are twice as many
        (1536, 3071, False),
        (3000, 100_000, True),
        (4000, 100_000, False),  # beyond a layer's window
    ],
)
def test_many_nodes_are_packed_where_that_is_cheaper(nodes, in_rows, packs):
    policy = make_policy()
    policy.ways = Ways(packed=True, window=3500)
    assert policy._packs(nodes, in_rows) == packs
    policy.ways = Ways(packed=False)
    assert not policy._packs(nodes, in_rows)


def test_a_token_after_one_beginning_is_scored_once(monkeypatch):
    """[4, 1, E] twice and [4, 2, E]: 9 tokens, of which 5 are distinct."""
    whole, scored = hf_lm.token_scores_from_hidden, []

    def count(states, *rest, **more):
        scored.append(len(states))
        return whole(states, *rest, **more)

    monkeypatch.setattr(hf_lm, "token_scores_from_hidden", count)

    def make_hf(model, **settings):
        return HFLanguageModelPolicy(
            LoadedModel(model, None, "a", "a test", "a", 64), model, **settings
        )

    prompts = batch_of(PROMPTS[0])
    ids, mask = completions(([4, 1, EOS], [4, 1, EOS], [4, 2, EOS]))
    weights = torch.randn(3, 3, generator=torch.Generator().manual_seed(2))
    found = []
    for kind in (PackedLanguageModelPolicy, make_hf):
        policy = make_policy(kind)
        scored.clear()
        output = policy.evaluate(prompts, ids, mask)
        loss = (weights * (output.log_probs + 0.5 * output.entropies)).sum()
        gradient = torch.autograd.grad(loss, policy.trainable_parameters())
        found.append((output.log_probs, output.entropies, *gradient))
    assert scored == [5]
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)

"""The language-model policy against the Hugging Face model it wraps.

The oracle runs the model once over prompt and completion together, without cache,
padding or shared prefix, and takes the log-softmax by hand.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from flowrl_lab.policies import make_policy
from flowrl_lab.policies.base import Policy
from flowrl_lab.policies.language_model import (
    LanguageModelPolicy,
    ValueHead,
    add_lora,
    build_tiny_llama,
    mask_through_end,
)
from flowrl_lab.tasks import load_task
from flowrl_lab.types import PromptBatch

VOCAB, PAD, EOS, WIDTH = 6, 4, 5, 5


def make_model(seed: int = 0, rank: int = 4):
    """A tiny Llama whose adapter is not zero, so that it differs from its base."""
    model = build_tiny_llama(VOCAB, pad_id=PAD, eos_id=EOS, seed=seed)
    model = add_lora(model, rank=rank, alpha=8.0, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
    return model


def make_lm(seed: int = 0, rank: int = 4, width: int = WIDTH) -> LanguageModelPolicy:
    return LanguageModelPolicy(
        make_model(seed, rank), eos_id=EOS, pad_id=PAD, max_completion_tokens=width
    )


@pytest.fixture(name="policy")
def fixture_policy() -> LanguageModelPolicy:
    return make_lm()


def batch_of(*rows: list[int]) -> PromptBatch:
    """Left-pad prompts of unequal length, as a tokenizer would."""
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    texts = tuple(" ".join(map(str, row)) for row in rows)
    return PromptBatch(texts, ids, mask.bool(), torch.arange(len(rows)))


def completions_of(*rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    return ids, torch.arange(width) < torch.tensor([[len(row)] for row in rows])


PROMPTS = ([0, 1, 2, 3], [3, 1], [2])
ROWS = ([0, 1, EOS], [2, 2, 2, 1, 0], [EOS], [3, 3, EOS], [1, EOS], [0, 1, 2, EOS])


def plain_log_probs(model, prompt: list[int], row: list[int], temperature=1.0):
    """Token log-probs of one completion from one plain forward pass."""
    ids = torch.tensor([prompt + row])
    logits = model(input_ids=ids, use_cache=False).logits[0] / temperature
    scores = logits.log_softmax(-1)
    start = len(prompt) - 1
    return torch.stack([scores[start + t, token] for t, token in enumerate(row)])


# ------------------------------------------------------------------------ evaluate


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_are_those_of_a_plain_pass(policy, temperature):
    """Unequal prompts are left-padded, completions right-padded: no difference."""
    ids, mask = completions_of(*ROWS)
    output = policy.evaluate(batch_of(*PROMPTS), ids, mask, temperature=temperature)
    for number, row in enumerate(ROWS):
        prompt = PROMPTS[number // 2]
        expected = plain_log_probs(policy.model, prompt, row, temperature)
        torch.testing.assert_close(output.log_probs[number, : len(row)], expected)
    assert bool((output.log_probs[~mask] == 0).all())
    assert bool((output.entropies[~mask] == 0).all())


def test_gradients_are_those_of_a_plain_pass(policy):
    ids, mask = completions_of(*ROWS)
    weights = torch.linspace(-1, 1, mask.sum())
    found = policy.evaluate(batch_of(*PROMPTS), ids, mask).log_probs[mask]
    expected = torch.cat(
        [plain_log_probs(policy.model, PROMPTS[n // 2], r) for n, r in enumerate(ROWS)]
    )
    parameters = policy.trainable_parameters()
    assert len(parameters) == 2 * 7 * 4  # A and B of seven linear layers, four times
    for mine, plain in zip(
        torch.autograd.grad((found * weights).sum(), parameters),
        torch.autograd.grad((expected * weights).sum(), parameters),
        strict=True,
    ):
        assert plain.abs().max() > 1e-3
        torch.testing.assert_close(mine, plain)


def test_entropies_and_their_gradients_are_those_of_a_plain_pass(policy):
    """An entropy bonus must reach the adapter."""
    prompt, row = [0, 1, 2], [3, 1, EOS]
    entropies = policy.evaluate(batch_of(prompt), *completions_of(row)).entropies[0]
    logits = policy.model(input_ids=torch.tensor([prompt + row])).logits[0, 2:5]
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(entropies, expected)
    parameters = policy.trainable_parameters()
    for mine, plain in zip(
        torch.autograd.grad(entropies.sum(), parameters),
        torch.autograd.grad(expected.sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(mine, plain)


def test_states_predict_the_tokens(policy):
    """The head on the states gives the log-probs: PPO's critic reads them."""
    prompts, (ids, mask) = batch_of(*PROMPTS), completions_of(*ROWS)
    output = policy.evaluate(prompts, ids, mask)
    scores = policy.model.get_base_model().lm_head(output.states).log_softmax(-1)
    found = scores.gather(-1, ids[..., None]).squeeze(-1)
    torch.testing.assert_close(found[mask], output.log_probs[mask])


def test_padding_columns_change_nothing(policy):
    prompts, (ids, mask) = batch_of(*PROMPTS), completions_of(*ROWS)
    narrow = policy.evaluate(prompts, ids, mask)
    wider = torch.nn.functional.pad(ids, (0, 3), value=PAD)
    longer = PromptBatch(
        prompts.texts,
        torch.nn.functional.pad(prompts.prompt_ids, (2, 0), value=PAD),
        torch.nn.functional.pad(prompts.prompt_mask, (2, 0)),
        prompts.indices,
    )
    wide = policy.evaluate(longer, wider, torch.nn.functional.pad(mask, (0, 3)))
    torch.testing.assert_close(wide.log_probs[:, :WIDTH], narrow.log_probs)
    torch.testing.assert_close(wide.entropies[:, :WIDTH], narrow.entropies)
    assert bool((wide.log_probs[:, WIDTH:] == 0).all())


def test_what_is_written_in_the_padding_does_not_matter(policy):
    prompts, (ids, mask) = batch_of(*PROMPTS), completions_of(*ROWS)
    scribbled = torch.where(mask, ids, 2)
    torch.testing.assert_close(
        policy.evaluate(prompts, scribbled, mask).log_probs,
        policy.evaluate(prompts, ids, mask).log_probs,
    )
    hidden = torch.where(prompts.prompt_mask, prompts.prompt_ids, 1)
    other = PromptBatch(prompts.texts, hidden, prompts.prompt_mask, prompts.indices)
    torch.testing.assert_close(
        policy.evaluate(other, ids, mask).log_probs,
        policy.evaluate(prompts, ids, mask).log_probs,
    )


def test_reference_is_the_base_model_without_gradient(policy):
    """The base is rebuilt from its seed: a model that never had an adapter."""
    base = build_tiny_llama(VOCAB, pad_id=PAD, eos_id=EOS, seed=0)
    ids, mask = completions_of(*ROWS)
    output = policy.evaluate(batch_of(*PROMPTS), ids, mask, reference=True)
    assert not output.log_probs.requires_grad and not output.entropies.requires_grad
    for number, row in enumerate(ROWS):
        expected = plain_log_probs(base, PROMPTS[number // 2], row).detach()
        torch.testing.assert_close(output.log_probs[number, : len(row)], expected)
    trained = policy.evaluate(batch_of(*PROMPTS), ids, mask).log_probs
    assert (trained - output.log_probs).abs().max() > 0.01
    # and the adapter is on again afterwards
    again = policy.evaluate(batch_of(*PROMPTS), ids, mask).log_probs
    assert torch.equal(again, trained)


def test_a_fresh_adapter_is_the_reference():
    model = build_tiny_llama(VOCAB, pad_id=PAD, eos_id=EOS, seed=0)
    fresh = LanguageModelPolicy(
        add_lora(model, rank=2, alpha=4.0),
        eos_id=EOS,
        pad_id=PAD,
        max_completion_tokens=WIDTH,
    )
    prompts, (ids, mask) = batch_of(*PROMPTS), completions_of(*ROWS)
    now = fresh.evaluate(prompts, ids, mask).log_probs
    reference = fresh.evaluate(prompts, ids, mask, reference=True).log_probs
    assert torch.equal(now, reference)


def _all_completions(width: int):
    """Every way to end: at the end token, or cut off after ``width`` tokens."""
    for length in range(1, width + 1):
        for head in itertools.product(range(VOCAB), repeat=length - 1):
            if EOS not in head:
                yield [*head, EOS]
                if length == width:
                    yield from ([*head, t] for t in range(VOCAB) if t != EOS)


def test_all_completions_together_have_probability_one(policy):
    """The referee's premise: listed answers can never add up to more than 1."""
    rows = list(_all_completions(3))
    assert len(rows) == 1 + 5 + 25 + 125
    output = policy.evaluate(batch_of([0, 1]), *completions_of(*rows))
    finished = torch.tensor([row[-1] == EOS for row in rows])
    probs = output.log_probs.double().sum(-1).exp()
    torch.testing.assert_close(
        probs.sum(), torch.tensor(1.0).double(), atol=1e-6, rtol=0
    )
    assert 0 < probs[finished].sum() < 1


# -------------------------------------------------------------------------- sample


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_sampled_log_probs_are_the_evaluated_ones(policy, temperature):
    prompts = batch_of(*PROMPTS)
    generator = torch.Generator().manual_seed(1)
    drawn = policy.sample(prompts, 8, temperature=temperature, generator=generator)
    output = policy.evaluate(
        prompts, drawn.completion_ids, drawn.completion_mask, temperature=temperature
    )
    torch.testing.assert_close(drawn.log_probs, output.log_probs.detach())
    assert not drawn.log_probs.requires_grad


def test_samples_end_at_the_end_token(policy):
    generator = torch.Generator().manual_seed(2)
    drawn = policy.sample(batch_of(*PROMPTS), 32, generator=generator)
    known = mask_through_end(drawn.completion_ids, torch.tensor([EOS]))
    assert torch.equal(known, drawn.completion_mask)
    lengths = set()
    for row, keep in zip(
        drawn.completion_ids.tolist(), drawn.completion_mask.tolist(), strict=True
    ):
        length = row.index(EOS) + 1 if EOS in row else len(row)
        assert keep == [position < length for position in range(len(row))]
        assert set(row[length:]) <= {PAD}
        lengths.add(length)
    assert lengths == set(range(1, WIDTH + 1))


def test_sampled_completions_have_their_probabilities():
    """Frequencies of whole completions, within five standard errors."""
    policy, draws = make_lm(width=2), 4_000
    prompts = batch_of([0, 1], [3])
    generator = torch.Generator().manual_seed(3)
    drawn = policy.sample(prompts, draws, temperature=0.8, generator=generator)
    rows = list(_all_completions(2))
    ids, mask = completions_of(*rows)
    both = (ids.repeat(2, 1), mask.repeat(2, 1))
    output = policy.evaluate(prompts, *both, temperature=0.8)
    probs = output.log_probs.detach().double().sum(-1).exp().view(2, -1)
    for number in range(2):
        sampled = drawn.completion_ids[number * draws : (number + 1) * draws]
        counts = (sampled[:, None] == ids).all(-1).sum(0).double()
        assert counts.sum() == draws
        errors = (probs[number] * (1 - probs[number]) * draws).sqrt()
        assert bool(((counts - probs[number] * draws).abs() < 5 * errors + 1).all())


def test_the_generator_is_the_only_chance(policy):
    prompts, state = batch_of(*PROMPTS), torch.get_rng_state()
    first, second, other = (
        policy.sample(prompts, 8, generator=torch.Generator().manual_seed(seed))
        for seed in (4, 4, 5)
    )
    assert torch.equal(first.completion_ids, second.completion_ids)
    assert torch.equal(first.log_probs, second.log_probs)
    assert first.completion_ids.tolist() != other.completion_ids.tolist()
    assert torch.equal(torch.get_rng_state(), state)


def test_building_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    first, second, other = (make_lm(seed).state_dict() for seed in (6, 6, 7))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


# ------------------------------------------------------- features, heads, parameters


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_prompt_features_are_the_references_states(policy, pooling):
    base = build_tiny_llama(VOCAB, pad_id=PAD, eos_id=EOS, seed=0)
    features = policy.prompt_features(batch_of(*PROMPTS), pooling)
    assert not features.requires_grad
    for prompt, found in zip(PROMPTS, features, strict=True):
        states = base.model(torch.tensor([prompt])).last_hidden_state[0].detach()
        expected = states[-1] if pooling == "last" else states.mean(0)
        torch.testing.assert_close(found, expected)


def test_prompt_features_are_computed_once(policy, monkeypatch):
    prompts = batch_of(*PROMPTS)
    first = policy.prompt_features(prompts)
    monkeypatch.setattr(policy, "_prefill", None)  # would fail if it were called
    again = policy.prompt_features(prompts)
    assert torch.equal(first, again)
    one = batch_of(PROMPTS[2])
    torch.testing.assert_close(policy.prompt_features(one)[0], first[2])


def test_prompt_features_do_not_follow_the_adapter(policy):
    before = policy.prompt_features(batch_of([0, 1]))
    with torch.no_grad():
        for weight in policy.trainable_parameters():
            weight += 0.1
    fresh = make_lm()
    fresh.load_state_dict(policy.state_dict())
    assert torch.equal(fresh.prompt_features(batch_of([0, 1])), before)


def test_log_z_head_reads_the_features(policy):
    log_z = policy.make_log_z()
    values = log_z(policy.prompt_features(batch_of(*PROMPTS)))
    assert torch.equal(values, torch.zeros(3))
    values.sum().backward()
    assert all(weight.grad is None for weight in policy.trainable_parameters())


def test_value_head_does_not_move_the_policy(policy):
    head = policy.make_value_head()
    with torch.no_grad():
        head.layers[-1].weight.normal_(generator=torch.Generator().manual_seed(0))
    output = policy.evaluate(batch_of(*PROMPTS), *completions_of(*ROWS))
    values = head(output.states)
    assert values.shape == output.log_probs.shape
    values.square().sum().backward()
    assert all(weight.grad is None for weight in policy.trainable_parameters())
    assert all(weight.grad.abs().sum() > 0 for weight in head.parameters())


def test_value_head_starts_at_zero():
    states = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ValueHead(8)(states), torch.zeros(2, 3))


def test_only_the_adapter_is_trained(policy):
    names = set(policy.state_dict())
    assert all("lora_" in name for name in names)
    trained = {id(weight) for weight in policy.trainable_parameters()}
    for name, weight in policy.model.named_parameters():
        assert (id(weight) in trained) == weight.requires_grad == ("lora_" in name)


def test_state_dict_round_trip(policy):
    prompts, (ids, mask) = batch_of(*PROMPTS), completions_of(*ROWS)
    other = make_lm(seed=0)
    with torch.no_grad():
        for weight in policy.trainable_parameters():
            weight += 0.05
    saved = policy.state_dict()
    other.load_state_dict(saved)
    assert torch.equal(
        policy.evaluate(prompts, ids, mask).log_probs,
        other.evaluate(prompts, ids, mask).log_probs,
    )
    # a copy, not a view: training on does not change what was saved
    before = {name: value.clone() for name, value in saved.items()}
    with torch.no_grad():
        for weight in policy.trainable_parameters():
            weight += 1.0
    assert all(torch.equal(saved[name], before[name]) for name in saved)


def test_the_policy_keeps_the_protocol(policy):
    assert isinstance(policy, Policy)
    assert policy.name == "tiny_lm" and policy.device == torch.device("cpu")


# ----------------------------------------------------------------------- bad input


@pytest.mark.bad_input
@pytest.mark.parametrize("case", ["rank", "missing", "extra"])
def test_a_checkpoint_that_does_not_fit_is_refused(policy, case):
    state = make_lm(rank=2).state_dict() if case == "rank" else policy.state_dict()
    if case == "missing":
        state.popitem()
    if case == "extra":
        state["lora_C"] = torch.zeros(1)
    before = policy.state_dict()
    with pytest.raises(ValueError, match=r"adapter does not fit.*lora_rank"):
        policy.load_state_dict(state)
    after = policy.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        (
            {
                "completion_ids": torch.zeros(5, 3, dtype=torch.long),
                "completion_mask": torch.ones(5, 3, dtype=torch.bool),
            },
            "5 rows for 3",
        ),
        ({"completion_ids": torch.zeros(6, 3)}, "completion_ids"),
        ({"completion_ids": torch.full((6, 3), VOCAB)}, "range from 6 to 6"),
        ({"completion_mask": torch.ones(6, 1, dtype=torch.bool)}, "completion_mask"),
        ({"completion_mask": torch.ones(6, 3)}, "completion_mask"),
    ],
)
def test_bad_completions_are_refused(policy, change, message):
    arguments = {
        "completion_ids": torch.zeros(6, 3, dtype=torch.long),
        "completion_mask": torch.ones(6, 3, dtype=torch.bool),
        **change,
    }
    with pytest.raises(ValueError, match=rf"{message}.*expected.*Fix:"):
        policy.evaluate(batch_of(*PROMPTS), **arguments)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.inf}, "temperature"),
        ({"num_generations": 0}, "num_generations"),
    ],
)
def test_bad_sampling_is_refused(policy, change, message):
    arguments = {"num_generations": 2, "generator": torch.Generator(), **change}
    with pytest.raises(ValueError, match=rf"{message}.*expected.*Fix:"):
        policy.sample(batch_of(*PROMPTS), **arguments)


@pytest.mark.bad_input
def test_unknown_pooling_is_refused(policy):
    with pytest.raises(ValueError, match=r"pooling is 'first'.*Fix:"):
        policy.prompt_features(batch_of([0]), "first")


@pytest.mark.bad_input
def test_make_policy_refuses_what_it_cannot_make():
    settings = {"seed": 0, "lora_rank": 2, "lora_alpha": 2.0, "device": "cpu"}
    task = load_task("make_number")
    with pytest.raises(ValueError, match="did you mean 'tabular'"):
        make_policy("tabluar", task, **settings)
    with pytest.raises(ValueError, match="vary in length"):
        make_policy("tabular", task, **settings)
    with pytest.raises(ValueError, match=r"tiny_lm.*landscape.*Fix:"):
        make_policy("tiny_lm", load_task("landscape"), **settings)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "task", "dtype", "device"),
    [
        ("tabular", "landscape", "bfloat16", "cpu"),
        ("tiny_lm", "make_number", "float16", "cpu"),
        ("tiny_lm", "make_number", "bfloat16", "cpu"),
    ],
)
def test_make_policy_refuses_numbers_it_cannot_train_in(name, task, dtype, device):
    settings = {"seed": 0, "lora_rank": 2, "lora_alpha": 2.0, "device": device}
    with pytest.raises(ValueError, match=rf"dtype is '{dtype}'.*Fix: use dtype='auto'"):
        make_policy(name, load_task(task), dtype=dtype, **settings)


def test_make_policy_suits_the_task():
    settings = {"seed": 0, "lora_rank": 2, "lora_alpha": 2.0, "device": "cpu"}
    assert make_policy("auto", load_task("landscape"), **settings).name == "tabular"
    assert make_policy("auto", load_task("make_number"), **settings).name == "tiny_lm"

"""The token inspector: what it counts, what it refuses, its still form."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from flowrl_lab import load_task
from flowrl_lab.policies import make_policy
from flowrl_lab.types import Completions
from flowrl_lab.widgets import TokenInspector
from flowrl_lab.widgets.token_inspector import END, PAD, show, signed, spell_tokens

NAN = float("nan")
TOKENS = [["6", "*", "4", END], ["8", END, PAD, PAD]]
LOG_PROBS = torch.tensor([[-1.0, -0.5, -0.25, -2.0], [-3.0, -0.1, NAN, -7.0]])
REFERENCE = torch.tensor([[-2.0, -0.5, -1.25, -0.5], [-2.5, -0.2, -1.0, NAN]])
MASK = torch.tensor([[True, True, True, True], [True, True, False, False]])


def inspect(**changes) -> TokenInspector:
    given = {
        "prompt": "24!37:",
        "tokens": TOKENS,
        "log_probs": LOG_PROBS,
        "ref_log_probs": REFERENCE,
        "completion_mask": MASK,
        "rewards": [1.0, 0.0],
    }
    return TokenInspector(**(given | changes))


def make_tabular(word_length: int = 3):
    task = load_task("strings", length=word_length, alphabet=4, blobs=2)
    policy = make_policy(
        "tabular", task, seed=0, lora_rank=1, lora_alpha=1.0, device="cpu"
    )
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        policy.logits.normal_(generator=generator)
    return policy, task


def test_sums_and_means_are_over_counted_tokens() -> None:
    seen = inspect()
    np.testing.assert_allclose(
        seen.log_ratios, [[1.0, 0.0, 1.0, -1.5], [-0.5, 0.1, 0.0, 0.0]], atol=1e-6
    )
    np.testing.assert_allclose(seen.sums, [0.5, -0.4], atol=1e-6)
    np.testing.assert_allclose(seen.means, [0.125, -0.2], atol=1e-6)
    assert seen.counts.tolist() == [4, 2]


def test_the_browser_gets_every_number() -> None:
    state = inspect().get_state()
    numbers = np.frombuffer(state["_numbers"]).reshape(4, 2, 4)
    np.testing.assert_array_equal(numbers[0], LOG_PROBS.double())
    np.testing.assert_array_equal(numbers[1], REFERENCE.double())
    np.testing.assert_array_equal(numbers[2], numbers[0] - numbers[1])
    np.testing.assert_allclose(numbers[3][0], [1.0, 1.0, 2.0, 0.5])
    np.testing.assert_allclose(numbers[3][1], [-0.5, -0.4, -0.4, -0.4], atol=1e-6)
    assert state["_counted"] == MASK.tolist()
    assert state["_scale"] == 1.5
    assert "sum −0.400 nats · mean −0.200 over 2 counted of 4" in state["_totals"][1]
    assert state["_heads"] == ["completion 1 · reward 1", "completion 2 · reward 0"]


def test_padding_never_changes_a_total() -> None:
    wider = [torch.cat([x, torch.full((2, 2), NAN)], 1) for x in (LOG_PROBS, REFERENCE)]
    mask = torch.cat([MASK, torch.zeros(2, 2, dtype=torch.bool)], 1)
    padded = inspect(log_probs=wider[0], ref_log_probs=wider[1], completion_mask=mask)
    plain = inspect()
    np.testing.assert_array_equal(padded.sums, plain.sums)
    np.testing.assert_array_equal(padded.means, plain.means)
    assert padded.tokens[0][4:] == [PAD, PAD]


def test_left_padding_is_left_out_too() -> None:
    mask = torch.tensor([[False, True, True, True], [False, False, True, True]])
    values = torch.tensor([[NAN, -1.0, -1.0, -1.0], [NAN, 0.3, -2.0, -1.0]])
    seen = inspect(
        log_probs=values, ref_log_probs=values * 2, completion_mask=mask, rewards=None
    )
    np.testing.assert_allclose(seen.sums, [3.0, 3.0])
    assert seen._heads == ["completion 1", "completion 2"]


def test_a_gradient_or_half_precision_is_no_obstacle() -> None:
    log_probs = torch.where(MASK, LOG_PROBS, 0.0).bfloat16().requires_grad_()
    seen = inspect(log_probs=log_probs)
    np.testing.assert_allclose(seen.sums, [0.5, -0.4], atol=0.02)


def test_an_untrained_policy_has_no_colour() -> None:
    seen = inspect(log_probs=REFERENCE)
    assert not seen.log_ratios.any()
    assert seen._scale == 0.05  # not 0, by which the page would divide


def test_still_form() -> None:
    svg, alt, table = inspect().still()
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == alt
    assert "sum +0.500 nats" in alt
    boxes = [r for r in root.findall(".//{*}rect") if r.get("height") == "28"]
    assert sum("stroke-dasharray" in box.attrib for box in boxes) == 2
    assert len(boxes) == 8
    assert sum("fill-opacity" in box.attrib for box in boxes) == 6  # of what counts
    assert [r.get("fill") for r in boxes[:4:3]] == ["#0072B2", "#D55E00"]
    assert [r.get("fill-opacity") for r in boxes[:4]] == [
        "0.43",
        "0.00",
        "0.43",
        "0.65",
    ]
    assert "6 +1.00 | * 0 | 4 +1.00 | ⟨end⟩ −1.50" in table
    assert "(⟨pad⟩ –)" in table
    bundle = inspect()._repr_mimebundle_()
    assert {"text/html", "image/svg+xml", "text/plain"} == set(bundle)


def test_long_rows_are_broken_inside_the_picture() -> None:
    mask = torch.ones(1, 60, dtype=torch.bool)
    values = -torch.rand(1, 60)
    seen = TokenInspector("p", [["wörd <&>"] * 60], values, values - 0.1, mask)
    rects = ElementTree.fromstring(seen.still()[0]).findall(".//{*}rect")
    assert len(rects) == 60
    assert max(float(r.get("x")) + float(r.get("width")) for r in rects) <= 830
    assert len({r.get("y") for r in rects}) > 3


def test_what_cannot_be_seen_is_shown() -> None:
    assert show(" the\n") == "␣the⏎"
    assert show("") == "∅"
    assert (signed(0.004), signed(-1.5), signed(NAN)) == ("0", "−1.50", "–")


def test_from_policy_agrees_with_the_policy() -> None:
    policy, task = make_tabular()
    prompt = task.prompts("train")[0]
    listed = task.answers(prompt)
    wanted = [listed.labels[5], listed.labels[40]]
    seen = TokenInspector.from_policy(policy, task, prompt, wanted)
    assert seen.tokens == [list(word) for word in wanted]
    batch = task.encode((prompt,))
    rows = listed.completion_ids[[5, 40]], listed.completion_mask[[5, 40]]
    with torch.no_grad():
        log_probs = policy.evaluate(batch, *rows).log_probs.double()
    np.testing.assert_array_equal(seen.log_probs, log_probs)
    np.testing.assert_allclose(seen.sums, log_probs.sum(1) + 3 * np.log(4), rtol=1e-5)
    assert seen.rewards == listed.rewards[[5, 40]].tolist()
    cold = TokenInspector.from_policy(policy, task, prompt, wanted, temperature=0.5)
    with torch.no_grad():
        log_probs = policy.evaluate(batch, *rows, temperature=0.5).log_probs
    np.testing.assert_array_equal(cold.log_probs, log_probs.double())


def test_from_policy_samples_repeatably_and_takes_completions() -> None:
    policy, task = make_tabular()
    prompt = task.prompts("train")[0]
    seen = TokenInspector.from_policy(policy, task, prompt, num_generations=3, seed=4)
    same = TokenInspector.from_policy(policy, task, prompt, num_generations=3, seed=4)
    assert seen.tokens == same.tokens
    assert len(seen.tokens) == 3
    generator = torch.Generator().manual_seed(4)
    drawn = policy.sample(task.encode((prompt,)), 3, generator=generator)
    given = TokenInspector.from_policy(policy, task, prompt, drawn)
    np.testing.assert_array_equal(given.sums, seen.sums)


def test_tokens_of_the_tiny_language_model_are_spelled() -> None:
    task = load_task("make_number")
    answers = task.answers("24!37:")
    row = answers.labels.index("6*4")
    ids, mask = answers.completion_ids[[row]], answers.completion_mask[[row]]
    spelled = spell_tokens(task, ids, mask)[0]
    assert spelled[:5] == ["6", "*", "4", END, PAD]
    assert len(spelled) == ids.shape[1]
    strange = torch.tensor([[6, task.pad_id, 4]])  # a special token in the middle
    every = torch.ones(1, 3, dtype=torch.bool)
    assert spell_tokens(task, strange, every)[0] == ["6", "?", "4"]
    landscape = load_task("landscape")
    one = torch.tensor([[57]]), torch.tensor([[True]])
    assert spell_tokens(landscape, *one)[0] == ["57"]


@pytest.mark.slow
def test_from_policy_with_the_tiny_language_model() -> None:
    task = load_task("make_number")
    policy = make_policy(
        "tiny_lm", task, seed=0, lora_rank=4, lora_alpha=8.0, device="cpu"
    )
    seen = TokenInspector.from_policy(policy, task, "24!37:", ["6*4", "6*4=24"])
    assert seen.tokens[0][:4] == ["6", "*", "4", END]
    assert seen.counts.tolist() == [4, 7]
    assert seen.rewards == [1.0, 1.0]
    assert not seen.log_ratios.any()  # a new adapter changes nothing
    with torch.no_grad():  # now move the adapter by hand: the ratio must follow
        for parameter in policy.trainable_parameters():
            parameter.add_(0.01)
    moved = TokenInspector.from_policy(policy, task, "24!37:", ["6*4", "6*4=24"])
    np.testing.assert_array_equal(moved.ref_log_probs, seen.ref_log_probs)
    np.testing.assert_allclose(
        moved.sums,
        np.where(moved.mask, moved.log_probs - seen.log_probs, 0).sum(1),
        rtol=1e-9,
    )
    assert np.abs(moved.sums).min() > 1e-3


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokens": ["6*4", "8"]}, "not split into tokens"),
        ({"tokens": TOKENS[:1]}, "has 1 rows"),
        ({"tokens": [TOKENS[0], ["8"]]}, "has 1 tokens in row 1"),
        ({"tokens": [[*TOKENS[0], "x"], TOKENS[1]]}, "has 5 tokens in row 0"),
        ({"log_probs": LOG_PROBS.tolist()}, "is a list"),
        ({"log_probs": LOG_PROBS[:, :3]}, r"shape \(2, 3\)"),
        ({"log_probs": torch.where(MASK, NAN, 0.0)}, "NaN or infinite"),
        ({"log_probs": LOG_PROBS.exp()}, "at most 0"),
        ({"ref_log_probs": -REFERENCE}, "at most 0"),
        ({"completion_mask": MASK.float()}, "dtype bool"),
        ({"completion_mask": MASK & ~MASK}, "keeps no token"),
        ({"rewards": [1.0]}, r"shape \(1,\)"),
        ({"rewards": ["right", "wrong"]}, "one number for each completion"),
        ({"rewards": [1.0, NAN]}, "NaN or infinite"),
    ],
)
def test_bad_input(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        inspect(**changes)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("answers", "words"),
    [([], "at least one"), ("aab", "write answers="), (["zzz"], "not listed")],
)
def test_bad_answers(answers, words: str) -> None:
    policy, task = make_tabular()
    with pytest.raises(ValueError, match=words):
        TokenInspector.from_policy(policy, task, task.prompts("train")[0], answers)


def test_empty_completions_are_refused() -> None:
    policy, task = make_tabular()
    empty = Completions(
        torch.zeros(1, 0, dtype=torch.long),
        torch.zeros(1, 0, dtype=torch.bool),
        torch.zeros(1, 0),
    )
    with pytest.raises((ValueError, TypeCheckError), match="shape"):
        TokenInspector.from_policy(policy, task, task.prompts("train")[0], empty)


def test_beyond_two_nats_there_is_no_more_colour() -> None:
    mask = torch.ones(1, 3, dtype=torch.bool)
    now, before = torch.tensor([[-1.0, -1.0, -9.0]]), torch.tensor([[-1.5, -4.0, -2.0]])
    seen = TokenInspector("p", [list("abc")], now, before, mask)
    assert seen._scale == 2.0
    picture = seen.still()[0]
    boxes = ElementTree.fromstring(picture).findall(".//{*}rect")
    assert [box.get("fill-opacity") for box in boxes] == ["0.16", "0.65", "0.65"]
    assert "full colour: 2 nats or more" in picture

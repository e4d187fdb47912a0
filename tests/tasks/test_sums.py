"""Sums in three lengths, against an evaluator of its own that splits and adds."""

from __future__ import annotations

import itertools
import random

import pytest
import torch

from flowrl_lab.evaluation import Referee
from flowrl_lab.policies.fast.policy import TreeLanguageModelPolicy
from flowrl_lab.policies.language_model import LanguageModelPolicy
from flowrl_lab.policies.tiny_lm import load_tiny_lm
from flowrl_lab.tasks import load_task
from flowrl_lab.tasks.sums import (
    CHARACTERS,
    LENGTHS,
    explain_answer,
    list_digits,
    parse_prompt,
    spell_answer,
)

NAMES = {"s": "sums_6", "m": "sums_21", "l": "sums_57"}


def adds_up(chain: str, first: list[int], second: int) -> bool:
    """``04+08=12+02=14``: from ``first[0]`` by the others to ``second``."""
    parts = chain.split("=")
    if len(parts) != len(first):
        return False
    value = first[0]
    for part, number in zip(parts, first[1:], strict=False):
        sign = "-" if "-" in part else "+"
        if part != f"{value:02}{sign}{number:02}":
            return False
        value += -number if sign == "-" else number
    return parts[-1] == f"{value:02}" and value == second


def brute_verdict(prompt: str, answer: str) -> bool:
    """Every equation by itself, without spelling the right answer."""
    total, banned, length = int(prompt[:2]), prompt[3:5], prompt[5]
    chains = answer.split(";")
    bare, equals, up = chains[0].partition("=")
    digits = bare.split("+")
    if len(digits) != 3 or not all(d in list("123456789") for d in digits):
        return False
    a, b, c = map(int, digits)
    if set(digits) & set(banned) or a + b + c != total:
        return False
    if length == "s":
        return answer == bare
    if not equals or not adds_up(up, [a, b, c], total) or up.count("-"):
        return False
    if length == "m":
        return len(chains) == 1
    return (
        len(chains) == 3
        and chains[1].count("-") == 3
        and adds_up(chains[1], [total, c, b, a], 0)
        and chains[2].count("-") == 0
        and adds_up(chains[2], [c, b, a], total)
    )


def mutated(answer: str, rng: random.Random) -> str:
    """One edit: another character, one more, one less, or the rest left out."""
    place, letter = rng.randrange(len(answer)), rng.choice(CHARACTERS)
    return rng.choice(
        [
            answer[:place] + letter + answer[place + 1 :],
            answer[:place] + letter + answer[place:],
            answer[:place] + answer[place + 1 :],
            answer[:place],
        ]
    )


@pytest.mark.parametrize("length", LENGTHS)
def test_the_list_is_what_brute_force_finds(length):
    """All 729 sums of three digits; of the short form every text of five characters."""
    for question in ("14!37", "20!19", "10!89"):
        prompt = f"{question}{length}:"
        tried = {
            spell_answer(d, length) for d in itertools.product(range(1, 10), repeat=3)
        }
        if length == "s" and question == "14!37":
            letters = "123456789+="
            tried |= {"".join(t) for t in itertools.product(letters, repeat=5)}
        right = {text for text in tried if brute_verdict(prompt, text)}
        listed = load_task(NAMES[length]).answers(prompt).labels
        assert len(listed) == len(set(listed)) and set(listed) == right
        assert right == {text for text in tried if not explain_answer(prompt, text)}


@pytest.mark.parametrize("length", LENGTHS)
def test_the_verifier_agrees_on_answers_that_are_nearly_right(length):
    rng, verdicts = random.Random(0), {True: 0, False: 0}
    task = load_task(NAMES[length])
    for _ in range(2000):
        prompt = rng.choice(task.prompts("train")[:40])
        total, banned, _ = parse_prompt(prompt)
        made = total + rng.choice((0, 0, 0, 1))
        text = spell_answer(rng.choice(list_digits(made, banned)), length)
        text = mutated(text, rng) if rng.random() < 0.7 else text
        expected = brute_verdict(prompt, text)
        assert task.reward_of(prompt, text) == expected, (prompt, text)
        verdicts[expected] += 1
    assert min(verdicts.values()) > 200


def test_only_the_length_differs():
    """The same questions, splits, digits and groups; 6, 21 and 57 tokens each."""
    tasks = {length: load_task(name) for length, name in NAMES.items()}
    for split in ("train", "heldout", "validation", "test"):
        first, *others = (
            [prompt[:5] for prompt in task.prompts(split)] for task in tasks.values()
        )
        assert others == [first, first] and len(set(first)) == len(first)
    for prompt in tasks["s"].prompts("heldout"):
        sets = {n: t.answers(f"{prompt[:5]}{n}:") for n, t in tasks.items()}
        for length, found in sets.items():
            assert set(found.completion_mask.sum(1).tolist()) == {LENGTHS[length]}
            assert [text[:5] for text in found.labels] == list(sets["s"].labels)
            assert torch.equal(found.groups, sets["s"].groups)
        assert 12 <= len(sets["s"]) <= 37
    every = load_task("sums").prompts("train")
    assert set(every) == {p for task in tasks.values() for p in task.prompts("train")}


def test_nothing_trained_on_is_judged():
    task = load_task("sums_57")
    parts = [task.prompts(split) for split in ("train", "validation", "test")]
    asked = [prompt for part in parts for prompt in part]
    assert len(asked) == len(set(asked)) == 378
    assert set(parts[1] + parts[2]) == set(task.prompts("heldout"))


@pytest.mark.parametrize("name", NAMES.values())
def test_the_referee_is_exact_with_shared_prefixes(name):
    """The tree's figures are those of plain rows, one answer a row."""
    task = load_task(name)
    tree = load_tiny_lm(task, rank=2, alpha=4.0)
    assert isinstance(tree, TreeLanguageModelPolicy)
    plain = LanguageModelPolicy(
        tree.model,
        eos_id=task.eos_id,
        pad_id=task.pad_id,
        max_completion_tokens=task.max_completion_tokens,
    )
    with torch.no_grad():  # an adapter that says something
        for name, weight in tree.model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.02, generator=torch.Generator().manual_seed(0))
    prompts = task.prompts("test")[:3]
    found, expected = (Referee(p, task, prompts) for p in (tree, plain))
    for reference in (False, True):
        shared = found.log_probs(reference=reference)
        alone = expected.log_probs(reference=reference)
        for prompt in prompts:
            torch.testing.assert_close(
                shared[prompt], alone[prompt], atol=2e-4, rtol=1e-5
            )
    total = sum(found.log_probs()[p].exp().sum().item() for p in prompts) / 3
    assert found.report().accuracy == pytest.approx(total)


def test_a_sampled_answer_is_scored_as_the_verifier_says():
    task = load_task("sums_21")
    policy = load_tiny_lm(task, rank=2, alpha=4.0)
    prompts = task.encode(task.prompts("train")[:6])
    drawn = policy.sample(
        prompts, 8, generator=torch.Generator().manual_seed(0), temperature=1.0
    )
    texts = task.decode(drawn.completion_ids, drawn.completion_mask)
    scores = task.score(
        prompts, drawn.completion_ids, drawn.completion_mask, 8
    ).tolist()
    expected = [brute_verdict(prompts.texts[i // 8], t) for i, t in enumerate(texts)]
    assert scores == expected and 0 < sum(scores) < len(scores)


@pytest.mark.parametrize(
    "answer, why",
    [
        ("4+7+3", "the digit 3 is banned"),
        ("4+8+1", "it makes 13, not 14"),
        ("four", "does not begin like 4+8+2"),
        ("4+8+2=04+08=12+02=15", "after '4+8+2=04+08=12+02=1' comes '4'"),
        ("4+8+2=04+08=12", "after '4+8+2=04+08=12' comes '+02=14'"),
        ("4+8+2=04+08=12+02=14;", "comes 'the end'"),
    ],
)
def test_why_an_answer_is_wrong(answer, why):
    assert why in explain_answer("14!37m:", answer)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "prompt", ["", "14!37:", "9!37s:", "21!37s:", "14!73s:", "14!33s:", "14!07s:", "x"]
)
def test_a_malformed_prompt_is_refused(prompt):
    with pytest.raises(ValueError, match="like '14!37s:'"):
        explain_answer(prompt, "4+8+2")

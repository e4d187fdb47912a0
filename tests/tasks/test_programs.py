"""The programs task: enumeration, verifier and hidden test against brute force."""

from __future__ import annotations

import hashlib
import itertools
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowrl_lab.tasks import load_task, programs
from flowrl_lab.tasks.program_search import from_number, meanings, to_number
from flowrl_lab.tasks.programs import (
    CHARACTERS,
    check_program,
    intended_meaning,
    list_programs,
    parse_prompt,
)
from flowrl_lab.tasks.stack_language import WORDS, run_program

LETTERS = "".join(WORDS)
EVERY_INPUT = list(itertools.product(range(5), repeat=3))
quiet = settings(max_examples=300, deadline=None, database=None, derandomize=True)


def table_of(program: str) -> tuple | None:
    """The outputs on all 125 inputs, by the interpreter; None for no program."""
    outcomes = [run_program(program, numbers).result for numbers in EVERY_INPUT]
    return None if outcomes[0] is None else tuple(outcomes)


@pytest.fixture(name="task", scope="module")
def fixture_task():
    return load_task("programs")


@pytest.fixture(name="graded", scope="module")
def fixture_graded():
    return load_task("programs", reward="graded")


@pytest.fixture(name="ambiguous", scope="module")
def fixture_ambiguous(task):
    """Held-out prompts that plausible programs fit too."""
    found = [p for p in task.prompts("heldout")[:80] if list_programs(p)[1]]
    assert len(found) > 10
    return found


# --------------------------------------------------------------------- enumeration


def test_all_programs_are_sorted_by_what_they_compute():
    """Every string of up to two words, and 250 longer ones, by the interpreter."""
    home = {p: m for m in meanings() for p in m.programs}
    assert len(home) == sum(len(m.programs) for m in meanings()) == 35743
    rng = random.Random(0)
    strings = [
        "".join(w) for n in range(1, 3) for w in itertools.product(LETTERS, repeat=n)
    ]
    strings += [
        "".join(rng.choices(LETTERS, k=rng.choice((3, 4, 5)))) for _ in range(250)
    ]
    programs_found = 0
    for text in strings:
        table = table_of(text)
        known = text in home
        assert known == (table is not None), text
        if table is not None:
            programs_found += 1
            outputs = home[text].outputs.tolist()
            assert tuple(from_number(place) for place in outputs) == table
    assert programs_found > 100
    tables = {m.outputs.tobytes() for m in meanings()}
    assert len(tables) == len(meanings())  # no two meanings are the same


def test_shortest_programs_come_first():
    order = [(len(m.simplest), m.simplest) for m in meanings()]
    assert order == sorted(order)
    for meaning in meanings():
        pairs = [(len(p), p) for p in meaning.programs]
        assert pairs == sorted(pairs)


def test_fewer_words_are_a_part_of_the_language():
    longer = {p for m in meanings() for p in m.programs}
    shorter = {p for m in meanings(3) for p in m.programs}
    assert shorter == {p for p in longer if len(p) <= 3}


def test_places_and_lists_are_two_ways_to_say_the_same():
    assert [to_number(numbers) for numbers in EVERY_INPUT] == list(range(125))
    assert [from_number(place) for place in range(125)] == EVERY_INPUT


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("dr+", "ir+", True),  # at the start, the input again is a second copy
        ("dr+", "rrdr+", True),  # a detour
        ("dr+", "dd-+r", None),  # does something else
        ("st", "rst", False),  # sorting hides the reverse, which is no detour
        ("ru", "ur", True),  # another order
        ("dsr-", "dssr-", True),  # sorted already: that changes nothing
        ("uu", "tuurr", None),
        ("uuuuu", "ttt", True),  # five ups are none, three turns are none
    ],
)
def test_classes_are_up_to_detours_synonyms_and_order(one, other, same):
    home = {
        p: (m, c)
        for m in meanings()
        for p, c in zip(m.programs, m.classes, strict=True)
    }
    if same is None:
        assert home.get(one, (1,))[0] is not home.get(other, (2,))[0]
    else:
        assert home[one][0] is home[other][0]
        assert (home[one][1] == home[other][1]) == same


# ------------------------------------------------------------------------ verifier


def brute_right_and_plausible(prompt: str, longest: int) -> tuple[set, set]:
    """By running every program on the examples, and then on all inputs."""
    shown, fitting = parse_prompt(prompt), {}
    for length in range(1, longest + 1):
        for words in itertools.product(LETTERS, repeat=length):
            program = "".join(words)
            if all(run_program(program, x).result == y for x, y in shown):
                fitting[program] = table_of(program)
    shortest = min(fitting, key=lambda p: (len(p), p))
    right = {p for p, table in fitting.items() if table == fitting[shortest]}
    return right, set(fitting) - right


def test_right_and_plausible_programs_are_brute_force(ambiguous, task):
    for prompt in (*ambiguous[:2], task.prompts("train")[0]):
        right, plausible = brute_right_and_plausible(prompt, 3)
        found = list_programs(prompt)
        assert right == {p for p in found[0] if len(p) <= 3} and right
        assert plausible == {p for p in found[1] if len(p) <= 3}


def test_the_verifier_agrees_with_the_list(ambiguous, graded):
    """Right, plausible and wrong, on mutated programs; each with its reason."""
    rng, seen = random.Random(1), {1.0: 0, 0.5: 0, 0.0: 0}
    for prompt in ambiguous[:8]:
        right, plausible = list_programs(prompt)
        for text in [*right[:20], *plausible[:20]]:
            place = rng.randrange(len(text))
            mutant = (
                text[:place]
                + rng.choice(CHARACTERS)
                + text[place + rng.randint(0, 1) :]
            )
            for program in (text, mutant):
                verdict = check_program(prompt, program)
                assert verdict.right == (program in right)
                assert verdict.fits == (program in right or program in plausible)
                reward = graded.reward_of(prompt, program)
                assert reward == {2: 1.0, 1: 0.5, 0: 0.0}[verdict.fits + verdict.right]
                seen[reward] += 1
    assert min(seen.values()) > 20


def test_what_is_meant_is_the_shortest_programs_function(task):
    for prompt in task.prompts("train")[:40] + task.prompts("heldout")[:40]:
        right, plausible = list_programs(prompt)
        assert len(right[0]) <= programs.LONGEST_SIMPLEST
        assert all(len(p) > len(right[0]) for p in plausible)  # no second shortest
        hint = prompt[prompt.index(";") + 1 : -1]
        assert hint.rstrip(".") == "".join(sorted(right[0]))


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("r", "right: fits the examples and passes the hidden test"),
        ("rrr", "right"),
        ("s", "312 gives 123; the example says 213"),
        ("", "312 gives 312; the example says 213"),
        ("d+", "312 gives 124; the example says 213"),
        ("rd", "no program: 2 lists are left"),
        ("q", "no program: 'q' is no word"),
        ("rrrrrrrrr", "no program: 9 words"),
        ("r?", "no program: '?' is no word"),
        ("312", "no program: '3' is no word"),
        ("ｒ", "no program: 'ｒ' is no word"),
    ],
)
def test_verdicts_say_why(program, reason):
    verdict = check_program("312>213,401>104;r..:", program)
    assert verdict.reason.startswith(reason)
    assert verdict.right == reason.startswith("right")


def test_a_plausible_program_is_told_where_it_fails(ambiguous):
    prompt = ambiguous[0]
    program = list_programs(prompt)[1][0]
    verdict = check_program(prompt, program)
    assert verdict.fits and not verdict.right
    before, _, after = verdict.reason.partition("hidden test: ")
    assert before == "fits the examples; "
    shown, _, got, _, _, wanted = after.split()
    outputs = intended_meaning(prompt).outputs
    numbers = tuple(int(c) for c in shown)
    assert "".join(map(str, run_program(program, numbers).result)) == got
    assert (
        "".join(map(str, from_number(int(outputs[to_number(numbers)]))))
        == wanted
        != got
    )


@quiet
@given(st.text(max_size=12) | st.text(CHARACTERS, max_size=8))
def test_any_text_gets_a_verdict(program):
    verdict = check_program("312>213,401>104;r..:", program)
    expected = table_of(program) == tuple(numbers[::-1] for numbers in EVERY_INPUT)
    assert verdict.right is expected and verdict.reason


@quiet
@given(st.lists(st.integers(0, len(CHARACTERS) + 1), min_size=1, max_size=6))
def test_any_tokens_get_a_reward(ids):
    task = load_task("programs")
    tokens = torch.tensor([ids])
    reward = task.score(task.encode(("312>213,401>104;r..:",)), tokens, tokens >= 0, 1)
    assert reward.item() in (0.0, 1.0)
    if reward.item() == 1.0:
        assert ids[-1] == task.eos_id and set(ids[:-1]) < set(
            range(10, len(CHARACTERS))
        )


# ------------------------------------------------------------------------- answers


def test_answers_are_all_right_programs(task):
    for prompt in task.prompts("heldout")[:8]:
        answers = task.answers(prompt)
        assert answers.labels == intended_meaning(prompt).programs
        assert 8 <= len(answers) <= 300 and not answers.exhaustive
        assert bool(answers.correct.all()) and bool((answers.rewards == 1).all())
        assert answers.groups.min() == 0
        texts = task.decode(answers.completion_ids, answers.completion_mask)
        assert tuple(texts) == answers.labels
        paid = task.score(
            task.encode((prompt,)),
            answers.completion_ids,
            answers.completion_mask,
            len(answers),
        )
        assert torch.equal(paid, answers.rewards)


@pytest.mark.parametrize(("reward", "plausible"), [("graded", 0.5), ("examples", 1.0)])
def test_everything_with_a_reward_is_listed(ambiguous, task, reward, plausible):
    paying = load_task("programs", reward=reward)
    assert paying.reward_scale is None
    for prompt in ambiguous[:3]:
        answers, right = paying.answers(prompt), task.answers(prompt)
        count = len(right)
        assert answers.labels[:count] == right.labels
        assert answers.labels[count:] == list_programs(prompt)[1]
        assert answers.correct.tolist() == [True] * count + [False] * (
            len(answers) - count
        )
        assert bool((answers.rewards[:count] == 1).all())
        assert bool((answers.rewards[count:] == plausible).all())
        assert torch.equal(answers.groups[:count], right.groups)
        assert bool((answers.groups[count:] == -1).all())
        paid = paying.score(
            paying.encode((prompt,)),
            answers.completion_ids,
            answers.completion_mask,
            len(answers),
        )
        assert torch.equal(paid, answers.rewards)


def test_a_reward_needs_the_end_token(task):
    prompts = task.encode(("312>213,401>104;r..:",))
    word = CHARACTERS.index("r")
    tokens = torch.tensor(
        [
            [word, task.eos_id, task.pad_id],
            [word, task.pad_id, task.pad_id],
            [word, word, word],
            [word, task.pad_id, task.eos_id],
        ]
    )
    lengths = torch.tensor([[2], [1], [3], [3]])
    mask = torch.arange(3) < lengths
    assert task.score(prompts, tokens, mask, 4).tolist() == [1.0, 0.0, 0.0, 0.0]


# --------------------------------------------------------------------------- split


def test_held_out_functions_occur_in_no_training_prompt(task):
    train = {intended_meaning(p).simplest for p in task.prompts("train")}
    heldout = {intended_meaning(p).simplest for p in task.prompts("heldout")}
    assert not train & heldout
    assert 0.15 < len(heldout) / len(train | heldout) < 0.27
    wanted = [
        m.simplest
        for m in meanings()
        if 8 <= len(m.programs) <= 300 and len(m.simplest) <= 3
    ]
    assert train | heldout == set(wanted)


@pytest.mark.parametrize(
    ("split", "count", "digest"),
    [
        ("train", 2288, "e3713ba94bc4a1b533282f002fea29396b2835d4"),
        ("heldout", 656, "3131b70986ed69d0578efd486bd365cf51b97939"),
    ],
)
def test_splits_are_the_same_on_every_machine(task, split, count, digest):
    prompts = task.prompts(split)
    assert len(prompts) == len(set(prompts)) == count
    assert hashlib.sha256("\n".join(prompts).encode()).hexdigest()[:40] == digest


def test_prompts_show_two_telling_inputs(task):
    for prompt in task.prompts("train")[:200]:
        (first, first_out), (second, second_out) = parse_prompt(prompt)
        assert first != second and len(set(first)) == len(set(second)) == 3
        program = intended_meaning(prompt).simplest
        assert run_program(program, first).result == first_out
        assert run_program(program, second).result == second_out


def test_encode_and_decode_round_trip(task):
    texts = task.prompts("train")[:30] + task.prompts("heldout")[:30]
    prompts = task.encode(texts)
    assert task.decode(prompts.prompt_ids, prompts.prompt_mask) == list(texts)
    assert bool(prompts.prompt_mask.all())
    assert prompts.prompt_ids.shape[1] == task.max_prompt_tokens
    every = task.prompts("train") + task.prompts("heldout")
    assert [every[i] for i in prompts.indices.tolist()] == list(texts)


# ----------------------------------------------------------------------- bad input


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "312>213",
        "312>213,312>213;r..:",
        "312>213,501>105;r..:",
        "312>213,401>104:",
        "312>213,401>104;r...",
        "312>213,401>104;q...:",
        "312>213,401>104;r..:r",
        "312>213,401>104;r..:\n",
        "٣12>213,401>104;r..:",
    ],
)
def test_bad_prompts_are_refused_with_a_fix(task, prompt):
    for refuse in (
        lambda: parse_prompt(prompt),
        lambda: check_program(prompt, "r"),
        lambda: task.encode((prompt,)),
        lambda: task.answers(prompt),
    ):
        with pytest.raises(ValueError, match=r"(?s)prompt is .*expected .*Fix:"):
            refuse()


@pytest.mark.bad_input
def test_other_bad_input_is_refused_with_a_fix(task):
    with pytest.raises(ValueError, match=r"reward is 'test'.*graded.*Fix:"):
        load_task("programs", reward="test")
    with pytest.raises(ValueError, match=r"split` is 'tset'.*Fix:"):
        task.prompts("tset")
    with pytest.raises(ValueError, match=r"no right answer.*5 words.*Fix:"):
        task.answers("012>000,321>123;...:")

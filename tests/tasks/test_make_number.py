"""make_number against an evaluator of its own: characters in a loop, no regex."""

from __future__ import annotations

import ast
import hashlib
import itertools
import random
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flowrl_lab import tasks
from flowrl_lab.tasks import load_task
from flowrl_lab.tasks.make_number import (
    CHARACTERS,
    enumerate_expressions,
    grade_answer,
    parse_prompt,
    verify_answer,
)

DIGITS = "0123456789"
PROMPTS = ("24!37:", "72!01:", "10!89:", "36!45:")
quiet = settings(max_examples=300, deadline=None, database=None, derandomize=True)


def brute_verdict(prompt: str, answer: str) -> bool:
    """Work ``answer`` out as a person with a pencil would, left to right."""
    target, banned = int(prompt[:2]), prompt[3:5]
    value, count, shown, position = 0, 0, [], 0
    while position < len(answer):
        if count:
            if answer[position] not in "+-*":
                return False
            operator, position = answer[position], position + 1
        else:
            operator = "+"  # 0 + first operand
        digit = answer[position : position + 1]
        if not digit or digit not in DIGITS or digit in banned:
            return False
        number, position = int(digit), position + 1
        value = {"+": value + number, "-": value - number, "*": value * number}[
            operator
        ]
        count += 1
        if count == 1:
            continue
        if value < 0:
            return False
        shown.append(position < len(answer) and answer[position] == "=")
        if shown[-1]:
            end = position + 1
            while end < len(answer) and answer[end] in DIGITS:
                end += 1
            if answer[position + 1 : end] != str(value):
                return False
            position = end
    return 2 <= count <= 3 and len(set(shown)) == 1 and value == target


def mutated(answer: str, rng: random.Random) -> str:
    """One to three random edits: replace, insert, delete, swap, cut, repeat."""
    letters = list(answer)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(letters) + 1)
        edit = rng.randrange(6)
        if edit == 0 and place < len(letters):
            letters[place] = rng.choice(CHARACTERS)
        elif edit == 1:
            letters.insert(place, rng.choice(CHARACTERS))
        elif edit == 2 and place < len(letters):
            del letters[place]
        elif edit == 3 and place + 1 < len(letters):
            letters[place], letters[place + 1] = letters[place + 1], letters[place]
        elif edit == 4:
            letters = letters[:place]
        else:
            letters += letters[place:]
    return "".join(letters)


@pytest.fixture(name="task", scope="module")
def fixture_task():
    return load_task("make_number")


# ------------------------------------------------------------------------ verifier


def test_verifier_agrees_on_mutated_right_answers(task):
    rng = random.Random(0)
    prompts = task.prompts("train")[:100]
    verdicts = {True: 0, False: 0}
    for _ in range(3000):
        prompt = rng.choice(prompts)
        right = rng.choice(enumerate_expressions(prompt))[0]
        answer = mutated(right, rng)
        expected = brute_verdict(prompt, answer)
        assert verify_answer(prompt, answer) == expected, (prompt, answer)
        verdicts[expected] += 1
    assert verdicts[True] > 100 and verdicts[False] > 1500


def test_verifier_agrees_on_random_workings():
    """Two- and three-operand workings with random, often true, results."""
    rng = random.Random(1)
    right = 0
    for _ in range(6000):
        a, b, c = (rng.choice(DIGITS) for _ in range(3))
        op1, op2 = rng.choice("+-*"), rng.choice("+-*")
        first = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[op1]
        total = {"+": first + int(c), "-": first - int(c), "*": first * int(c)}[op2]
        target = total if 10 <= total < 100 and rng.random() < 0.8 else 24
        prompt = f"{target}!{rng.choice(('01', '37', '89'))}:"
        shown = [
            rng.choice(["", f"={value}", f"={value}", f"=0{value}", f"={value + 1}"])
            for value in (first, total)
        ]
        answer = f"{a}{op1}{b}{shown[0]}{op2}{c}{shown[1]}"
        expected = brute_verdict(prompt, answer)
        assert verify_answer(prompt, answer) == expected, (prompt, answer)
        right += expected
    assert right > 200


def test_verifier_agrees_on_every_two_operand_working():
    prompt = "24!37:"
    right = []
    for a, operator, b in itertools.product(DIGITS, "+-*", DIGITS):
        results = [str(n) for n in range(20, 30)] + ["", "2", "024", "24 ", "-24"]
        for answer in (f"{a}{operator}{b}={result}" for result in results):
            assert verify_answer(prompt, answer) == brute_verdict(prompt, answer)
            right += [answer] if verify_answer(prompt, answer) else []
    assert right == ["4*6=24", "6*4=24"]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("", "nothing"),
        ("24", "no operation"),
        ("4", "one operand"),
        ("6*", "unfinished"),
        ("6*4=", "no result"),
        ("6*4=2", "half a result"),
        ("6*4=25", "false ="),
        ("6*4=024", "leading zero"),
        ("06*4", "leading zero in an operand"),
        ("8*3=24", "banned operand"),
        ("4+8=12*2", "half a working"),
        ("4+8*2=24", "the other half"),
        ("4+8=13*2=24", "false ="),
        ("4+8=12*2=24.", "a character that is none"),
        ("6*4=24=24", "two results"),
        ("6*4=24+0", "half a working"),
        ("6*4=24+0=24+0=24", "four operands"),
        ("5-9=-4+28=24", "two-digit operand"),
        ("6*4 ", "trailing space"),
        ("6*4\n", "trailing newline"),
        ("٦*4", "a digit of another script"),
        ("6×4", "another multiplication sign"),
        ("6**4", "two operators"),
        ("24!37:6*4", "the prompt again"),
    ],
)
def test_malformed_answers_are_wrong(answer, why):
    assert not verify_answer("24!37:", answer), why


@pytest.mark.parametrize(
    "answer", ["6*4", "6*4=24", "4+8*2", "4+8=12*2=24", "6*5-6", "6*5=30-6=24"]
)
def test_right_answers_are_right(answer):
    assert verify_answer("24!37:", answer)


def test_the_intermediate_result_must_not_be_negative():
    # (1 - 2) * 1 = -1 could never end at a two-digit number; -1 * ... neither:
    # only "negative, then plus" could, and single digits do not reach 10.
    for a, b, op, c in itertools.product(DIGITS, DIGITS, "+-*", DIGITS):
        if int(a) < int(b):
            value = {"+": int(c), "-": -int(c), "*": 0}[op] + int(a) - int(b)
            assert value < 10
            assert not verify_answer("10!37:", f"{a}-{b}{op}{c}")


@quiet
@given(st.text(max_size=20))
def test_any_text_gets_a_verdict(answer):
    verdict = verify_answer("24!37:", answer)
    assert verdict is brute_verdict("24!37:", answer)


@quiet
@given(st.sampled_from(PROMPTS), st.text(alphabet=CHARACTERS, max_size=12))
def test_any_string_of_the_alphabet_gets_the_brute_verdict(prompt, answer):
    assert verify_answer(prompt, answer) is brute_verdict(prompt, answer)


@st.composite
def token_rows(draw):
    """A right answer's tokens with up to two edits, and how many of them count."""
    text = draw(st.sampled_from(enumerate_expressions("24!37:")))[0]
    any_token = st.integers(0, len(CHARACTERS) + 1)
    ids = [*(CHARACTERS.index(c) for c in text), len(CHARACTERS) + 1]
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(ids)))
        ids[place : place + draw(st.integers(0, 1))] = [draw(any_token)]
    return ids, draw(st.integers(len(ids) - 2, len(ids)))


@quiet
@given(token_rows())
@example(([6, 12, 17, 4, 17], 5))  # 6 * END 4 END
def test_any_tokens_get_a_reward(row):
    """Whatever a policy writes: right only if it is an answer, then the end token."""
    ids, length = row
    task = load_task("make_number")
    tokens = torch.tensor([ids])
    mask = torch.arange(len(ids))[None] < length
    counted = ids[:length]
    reward = task.score(task.encode(("24!37:",)), tokens, mask, 1)
    text = "".join(CHARACTERS[i] if i < len(CHARACTERS) else "?" for i in counted[:-1])
    finished = bool(counted) and counted[-1] == task.eos_id
    assert reward.tolist() == [float(finished and brute_verdict("24!37:", text))]


def test_no_task_evaluates_text():
    """No eval, exec or compile anywhere a verifier could reach it."""
    folder = Path(tasks.__file__).parent
    files = sorted(folder.glob("*.py"))
    assert folder / "make_number.py" in files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "compile", "__import__")


# --------------------------------------------------------------------- enumeration


@pytest.mark.parametrize("prompt", PROMPTS)
def test_enumeration_is_brute_force(prompt):
    """Every string of the grammar, with the only workings that can be true."""
    expected = set()
    for a, op1, b in itertools.product(DIGITS, "+-*", DIGITS):
        head = f"{a}{op1}{b}"
        first = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[op1]
        candidates = [head, f"{head}={first}"]
        for op2, c in itertools.product("+-*", DIGITS):
            total = {"+": first + int(c), "-": first - int(c), "*": first * int(c)}[op2]
            tail = f"{op2}{c}"
            candidates += [
                head + tail,
                f"{head}={first}{tail}={total}",
                f"{head}={first}{tail}",
                f"{head}{tail}={total}",
            ]
        expected |= {text for text in candidates if brute_verdict(prompt, text)}
    answers = [text for text, _ in enumerate_expressions(prompt)]
    assert len(answers) == len(set(answers))
    assert set(answers) == expected


def test_every_enumerated_answer_verifies_and_fits(task):
    for prompt in task.prompts("heldout")[:150]:
        answers = task.answers(prompt)
        assert 16 <= len(answers) <= 120
        assert all(verify_answer(prompt, text) for text in answers.labels)
        assert answers.completion_ids.shape[1] == task.max_completion_tokens
        finished = (answers.completion_ids == task.eos_id) & answers.completion_mask
        assert bool((finished.sum(-1) == 1).all())


def test_the_longest_answer_just_fits(task):
    lengths = {
        len(text)
        for target in range(10, 100)
        for text, _ in enumerate_expressions(f"{target}!01:")
    }
    assert max(lengths) + 1 == task.max_completion_tokens


def test_listed_answers_score_one(task):
    prompt = task.prompts("train")[0]
    answers = task.answers(prompt)
    rewards = task.score(
        task.encode((prompt,)),
        answers.completion_ids,
        answers.completion_mask,
        len(answers),
    )
    assert torch.equal(rewards, answers.rewards)
    assert bool(answers.correct.all()) and not answers.exhaustive


def _swapped(operands: str, operators: str):
    """Spellings one swap away: a+b = b+a, a*b = b*a, and in sums of three."""
    if operators[0] in "+*":
        yield operands[1] + operands[0] + operands[2:]
    if len(operators) == 2 and operators in ("++", "**"):
        yield operands[0] + operands[2] + operands[1]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_groups_are_the_classes_up_to_commuting(task, prompt):
    """Same group if and only if swaps lead from one to the other."""
    answers = task.answers(prompt)
    home = {}
    for text, group in zip(answers.labels, answers.groups.tolist(), strict=True):
        if "=" in text:  # the bare spelling, then: results left out
            parts = text.split("=")
            text = parts[0] + parts[1].lstrip(DIGITS) if len(parts) > 2 else parts[0]
        key = ("".join(text[::2]), "".join(text[1::2]))
        assert home.setdefault(key, group) == group  # both spellings, one group
    reached = set()
    for start in home:
        if start in reached:
            continue
        component, frontier = {start}, [start]
        while frontier:
            operands, operators = frontier.pop()
            for other in _swapped(operands, operators):
                if (other, operators) not in component:
                    component.add((other, operators))
                    frontier.append((other, operators))
        assert component <= set(home)
        assert len({home[key] for key in component}) == 1
        assert not {home[key] for key in component} & {home[key] for key in reached}
        reached |= component
    assert sorted(set(home.values())) == list(range(max(home.values()) + 1))


# -------------------------------------------------------------------------- grades


@pytest.mark.parametrize(
    ("answer", "grade"),
    [
        ("6*4", 1.0),
        ("4+8*2", 0.9),
        ("6*4=24", 0.8),
        ("4+8=12*2=24", 0.7),
        ("6*5-6", 0.9),
        ("8*3", 0.0),
        ("6*4=2", 0.0),
        ("4+8=12", 0.0),
        ("", 0.0),
    ],
)
def test_a_briefer_right_answer_is_worth_more(answer, grade):
    task = load_task("make_number", reward="graded")
    assert grade_answer("24!37:", answer) == grade
    ids = torch.tensor([[*(CHARACTERS.index(c) for c in answer), task.eos_id]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    prompts = task.encode(("24!37:",))
    assert task.score(prompts, ids, mask, 1).tolist() == pytest.approx([grade])
    assert task.score(prompts, ids, ids != task.eos_id, 1).tolist() == [0.0]  # no end


def test_grades_change_nothing_but_the_rewards(task):
    graded = load_task("make_number", reward="graded")
    assert (task.reward_scale, graded.reward_scale) == (None, 8.0)
    for split in ("train", "heldout"):
        assert graded.prompts(split) == task.prompts(split)
    for prompt in graded.prompts("heldout")[:40]:
        mine, theirs = graded.answers(prompt), task.answers(prompt)
        assert mine.labels == theirs.labels and not mine.exhaustive
        assert torch.equal(mine.completion_ids, theirs.completion_ids)
        assert torch.equal(mine.groups, theirs.groups)
        assert bool(mine.correct.all()) and bool((theirs.rewards == 1).all())
        paid = graded.score(
            graded.encode((prompt,)),
            mine.completion_ids,
            mine.completion_mask,
            len(mine),
        )
        assert torch.equal(paid, mine.rewards)
        assert set(paid.tolist()) <= set(torch.tensor([1.0, 0.9, 0.8, 0.7]).tolist())


@pytest.mark.bad_input
@pytest.mark.parametrize("reward", ["grade", "", None, 1])
def test_an_unknown_reward_is_refused(reward):
    with pytest.raises(ValueError, match=r"reward is .*binary.*graded.*Fix:"):
        load_task("make_number", reward=reward)


# --------------------------------------------------------------------------- split


def test_splits_are_disjoint_and_a_fifth_is_held_out(task):
    train, heldout = task.prompts("train"), task.prompts("heldout")
    assert not set(train) & set(heldout)
    assert len(set(train)) == len(train) and len(set(heldout)) == len(heldout)
    assert 0.17 < len(heldout) / (len(train) + len(heldout)) < 0.23
    every = {
        f"{target}!{low}{high}:"
        for target in range(10, 100)
        for low, high in itertools.combinations(range(10), 2)
        if 16 <= len(enumerate_expressions(f"{target}!{low}{high}:")) <= 120
    }
    assert set(train) | set(heldout) == every


@pytest.mark.parametrize(
    ("split", "count", "digest"),
    [
        ("train", 1437, "ff0be6a6dfb44b4afe2bd96d6ee31ed7fc1e4fc8"),
        ("heldout", 370, "4cbf807d6b4259468eacd64bd714d464d2c3ba50"),
    ],
)
def test_splits_are_the_same_on_every_machine(task, split, count, digest):
    prompts = task.prompts(split)
    assert len(prompts) == count
    found = hashlib.sha256("\n".join(prompts).encode()).hexdigest()
    assert found[:40] == digest


def test_the_first_prompts_are_a_fair_sample(task):
    """Not sorted by number: a run that evaluates on k prompts sees all sizes."""
    numbers = [int(prompt[:2]) for prompt in task.prompts("heldout")]
    first = sum(numbers[:64]) / 64
    assert abs(first - sum(numbers) / len(numbers)) < 6
    assert numbers != sorted(numbers)


# -------------------------------------------------------------------------- tokens


def test_encode_and_decode_round_trip(task):
    texts = task.prompts("train")[:50] + task.prompts("heldout")[:50]
    prompts = task.encode(texts)
    assert task.decode(prompts.prompt_ids, prompts.prompt_mask) == list(texts)
    assert prompts.texts == texts and bool(prompts.prompt_mask.all())
    every = task.prompts("train") + task.prompts("heldout")
    assert [every[i] for i in prompts.indices.tolist()] == list(texts)
    answers = task.answers(texts[0])
    found = task.decode(answers.completion_ids, answers.completion_mask)
    assert found == list(answers.labels)


def test_a_reward_needs_the_end_token(task):
    prompts = task.encode(("24!37:",))
    ids = [CHARACTERS.index(c) for c in "6*4=24"]
    rows = [
        [*ids, task.eos_id, task.pad_id],  # finished
        [*ids, task.pad_id, task.pad_id],  # padded without an end
        [*ids, task.pad_id, task.eos_id],  # a padding token was written
        [*ids, task.eos_id, 0],  # something after the end
    ]
    tokens = torch.tensor(rows)
    lengths = torch.tensor([[7], [6], [8], [8]])
    mask = torch.arange(8) < lengths
    assert task.score(prompts, tokens, mask, 4).tolist() == [1.0, 0.0, 0.0, 0.0]


def test_rewards_belong_to_their_own_prompt(task):
    prompts = task.encode(("24!37:", "12!37:"))
    ids = [[CHARACTERS.index(c) for c in text] for text in ("6*4", "6*2")]
    tokens = torch.tensor([[*row, task.eos_id] for row in ids * 2])
    mask = torch.ones_like(tokens, dtype=torch.bool)
    assert task.score(prompts, tokens, mask, 2).tolist() == [1.0, 0.0, 0.0, 1.0]


# ----------------------------------------------------------------------- bad input


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "24",
        "24!37",
        "24!73:",
        "24!33:",
        "04!37:",
        "124!37:",
        "24!3:",
        "24!37: ",
        "24!37:6*4",
        "24!37:\n",
        "a4!37:",
        "٢٤!37:",
    ],
)
def test_bad_prompts_are_refused_with_a_fix(task, prompt):
    for refuse in (
        lambda: parse_prompt(prompt),
        lambda: verify_answer(prompt, "6*4"),
        lambda: task.encode((prompt,)),
        lambda: task.answers(prompt),
    ):
        with pytest.raises(ValueError, match=r"(?s)prompt is .*expected .*Fix:"):
            refuse()


@pytest.mark.bad_input
def test_other_bad_input_is_refused_with_a_fix(task):
    with pytest.raises(ValueError, match=r"no prompt was given.*Fix:"):
        task.encode(())
    with pytest.raises(ValueError, match=r"split` is 'tset'.*Fix:"):
        task.prompts("tset")
    with pytest.raises(ValueError, match=r"no right answer.*Fix:"):
        task.answers("97!89:")
    ids = torch.zeros(3, 2, dtype=torch.long)
    with pytest.raises(ValueError, match=r"3 completions for 1 prompts x 2.*Fix:"):
        task.score(task.encode(("24!37:",)), ids, ids == 0, 2)


def test_a_prompt_is_parsed():
    assert parse_prompt("24!37:") == (24, frozenset({3, 7}))

"""Number facts and formulas: answers worked out a second way, splits, judging."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from llm_models import build_tokenizer

from flowrl_lab.evaluation import evaluate_policy
from flowrl_lab.tasks import load_task
from flowrl_lab.tasks.formulas import FEWEST, MOST, Formulas, evaluate_formula
from flowrl_lab.tasks.number_facts import FACTS, NumberFacts
from flowrl_lab.tasks.tokenized import TokenizedTask
from flowrl_lab.training.making import make_task_and_policy
from flowrl_lab.training.presets import preset

TASKS = ("number_facts", "formulas")

# What the words of a question ask of n, read a second time.
WORDS = {
    r"multiple of (\d+)": lambda n, k: n in range(0, 100, k),
    r"ends in (\d)$": lambda n, d: str(n).endswith(str(d)),
    r"larger than (\d+)": lambda n, a: n > a,
    r"between (\d+) and (\d+)": lambda n, a, b: n in range(a + 1, b),
    r"divisor of (\d+)": lambda n, m: m in range(n, 100, n),
    r"digits add up to (\d+)": lambda n, s: sum(map(int, str(n))) == s,
}


def asks(question: str, number: int) -> bool:
    found = [
        holds(number, *map(int, match.groups()))
        for words, holds in WORDS.items()
        if (match := re.search(words, question))
    ]
    assert found, question
    return all(found)


def every_question(task) -> tuple[str, ...]:
    return task.prompts("train") + task.prompts("heldout")


def test_number_facts_lists_what_the_words_ask_for():
    task = NumberFacts()
    for question in every_question(task):
        right = tuple(str(n) for n in range(1, 100) if asks(question, n))
        assert task.answer_texts(question) == right
        assert len(right) >= 3, question
    for question, answer in task.examples:
        assert asks(question, int(answer))


def test_formulas_lists_every_right_expression():
    """All texts of up to seven characters' worth of the grammar, by Python itself."""
    task = Formulas()
    question = "f(0)=1, f(1)=4, f(10)=31: f(x)"  # 3*x+1
    digits = "x12345"  # 4*x-x+1 needs no larger digit; 5*x-x-x would be five operands
    mine = set()
    for count in (2, 3, 4):
        for operands in itertools.product(digits, repeat=count):
            for operators in itertools.product("+-*", repeat=count - 1):
                pairs = zip(operators, operands[1:], strict=True)
                text = operands[0] + "".join(map("".join, pairs))
                if (count == 4 and text.count("x") < 2) or re.search(r"1\*|\*1", text):
                    continue
                if [eval(text, {"x": x}) for x in (0, 1, 10)] == [1, 4, 31]:
                    mine.add(text)
    listed = task.answer_texts(question)
    assert {text for text in listed if not set("6789") & set(text)} == mine
    assert {"3*x+1", "x+x+x+1", "1+4*x-x"} <= mine
    for other in every_question(task):
        assert FEWEST <= len(task.answer_texts(other)) <= MOST


def test_formulas_are_worked_out_as_python_does():
    for question in Formulas().prompts("heldout"):
        for text in Formulas().answer_texts(question):
            values = evaluate_formula(text, 0, 1, 10, 7)
            assert values == tuple(eval(text, {"x": x}) for x in (0, 1, 10, 7))
            shown = tuple(int(v) for v in re.findall(r"=(\d+)", question))
            assert values[:3] == shown


@pytest.mark.bad_input
@pytest.mark.parametrize("text", ["", "2x", "x**2", "(x)", "x+", "-x", "f(1)", "0*x"])
def test_what_is_no_formula_is_refused(text):
    with pytest.raises(ValueError, match="is no expression in x"):
        evaluate_formula(text, 1)


@pytest.mark.parametrize("name", TASKS)
def test_held_out_questions_are_apart_and_their_halves_are_all_of_them(name):
    task = load_task(name)
    train, heldout, validation, test = (
        task.prompts(split) for split in ("train", "heldout", "validation", "test")
    )
    assert len(train) >= 40 and min(len(validation), len(test)) >= 12
    assert len(set(train + heldout)) == len(train + heldout)
    assert set(validation) | set(test) == set(heldout)
    assert not set(validation) & set(test)
    shown = {question for question, _ in task.examples}
    assert not shown & set(train + heldout)
    again = load_task(name)
    assert again.prompts("train") == train


def test_a_kind_of_question_can_be_chosen():
    task = NumberFacts(facts=["A divisor of {}"])
    assert all(q.startswith("A divisor of ") for q in every_question(task))


@pytest.mark.bad_input
def test_bad_kinds_splits_and_questions_are_refused():
    with pytest.raises(ValueError, match="`facts`"):
        NumberFacts(facts=[])
    with pytest.raises(ValueError, match="did you mean"):
        NumberFacts(facts=["A divisr of {}"])
    for name in TASKS:
        task = load_task(name)
        with pytest.raises(ValueError, match="`split` is 'dev'"):
            task.prompts("dev")
        with pytest.raises(ValueError, match=f"a question of task '{name}'"):
            task.render("A nice number")


@pytest.mark.parametrize("name", TASKS)
def test_listed_answers_earn_1_in_tokens_and_nothing_else_does(name):
    tokenizer = build_tokenizer(pad="<|endoftext|>")
    task = TokenizedTask(load_task(name), tokenizer, vocab_size=300, context=512)
    for question in task.prompts("heldout")[:6]:
        answers, prompts = task.answers(question), task.encode((question,))
        rows = answers.completion_ids, answers.completion_mask
        assert task.score(prompts, *rows, len(answers)).tolist() == [1.0] * len(answers)
        wrong = ["", "?", answers.labels[0][:-1] + "?", " " + answers.labels[0]]
        wrong = [text for text in wrong if len(text) < task.max_completion_tokens]
        rows = task.completion_rows(question, wrong)
        earned = task.score(prompts, *rows, len(wrong)).tolist()
        assert earned == [0.0] * len(wrong)


@pytest.mark.bad_input
@pytest.mark.parametrize("name", TASKS)
def test_a_context_that_is_too_short_is_named(name):
    tokenizer = build_tokenizer(pad="<|endoftext|>")
    with pytest.raises(ValueError, match="Fix: leave out long prompts"):
        TokenizedTask(load_task(name), tokenizer, vocab_size=300, context=16)


def test_every_kind_of_fact_is_asked_in_each_split():
    task = NumberFacts()
    for split in ("train", "heldout"):
        for fact in FACTS:
            asked = re.compile(fact.replace("{}", r"\d+"))
            assert any(asked.fullmatch(q) for q in task.prompts(split)), fact


@pytest.mark.full
def test_untrained_smollm2_is_sometimes_right_about_number_facts():
    """The real one, exact, on thirty training questions."""
    config = preset("number_facts", "grpo")
    task, policy = make_task_and_policy(config, torch.device("cpu"))
    found = evaluate_policy(policy, task, task.prompts("train")[:30])
    assert 0.15 < found.accuracy < 0.6
    assert found.effective_answers > 4

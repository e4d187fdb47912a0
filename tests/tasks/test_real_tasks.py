"""Real sets with a stub policy: right is right, and nothing hostile gets through.

How HumanEval judges is tested in a file of its own.
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
import json
import sys
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowrl_lab.tasks.real import TEXT_TASKS, answers, load_text_task
from flowrl_lab.tasks.real.answers import (
    NotAnAnswer,
    evaluate_arithmetic,
    extract_answer,
)
from flowrl_lab.tasks.real.gym import FAMILIES
from flowrl_lab.tasks.real.math_checking import read_number
from flowrl_lab.tasks.real.word_problems import AnswerTask, Problem, load_gsm8k
from flowrl_lab.tasks.text import RewardWeights, TextTask, score_batch

ROOT = Path(__file__).resolve().parents[2]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")
GYM = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None,
    reason="reasoning-gym is not installed (it needs a C compiler)",
)
WEIGHTS = RewardWeights(correct=1.0, format=0.1, length=0.2)

# What a policy may write; every task must answer each of them with a plain score.
HOSTILE = [
    "",
    "<answer>",
    "<answer></answer>",
    "</answer><answer>",
    "no answer at all",
    "<answer>1</answer><answer>2</answer>",
    "<answer>1</answer> and more",
    "<answer>10**10**10</answer>",
    "<answer>10^{10^{10}}</answer>",
    "<answer>9**9**9**9</answer>",
    "<answer>((((((((((((((((((((((((((1",
    "<answer>" + "(" * 10_000,
    "<answer>" + "9" * 10_000,
    "<answer>" + "-" * 150 + "1",
    "<answer>1/0</answer>",
    "<answer>٤٢</answer>",
    "<answer>４２</answer>",
    "<answer>4\u200b2</answer>",
    "<answer>1e999</answer>",
    "<answer>nan</answer>",
    "<answer>__import__('os').system('touch HACKED')</answer>",
    "<answer>().__class__.__base__</answer>",
    "<answer>\\input{/etc/passwd}</answer>",
    "<answer>\\frac{1}{</answer>",
    "<answer>1000!!!!</answer>",
    "\0\ud800\uffff",
    "    while True: pass\n",
    "    import os; os._exit(0)\n",
    "    raise SystemExit(0)\n",
    "    return " + "(" * 5_000,
    "```python\n```",
    "x" * 100_000,
]


# ------------------------------------------------------------------- finding the answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So <answer> 42 </answer>\n", "42"),
        ("<answer>3*4", "3*4"),  # ended by the stop string
        ("thinking\n<answer>\n1 + 1\n</answer>", "1 + 1"),
    ],
)
def test_an_answer_is_found(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("42", "no <answer>"),
        ("<answer>1<answer>2", "more than one <answer>"),
        ("<answer>1</answer>2", "text after </answer>"),
        ("<answer> </answer>", "the answer is empty"),
        ("<answer>" + "1" * 201, "longer than 200 characters"),
        ("<answer>１２", "other than plain ASCII"),
    ],
)
def test_what_is_no_answer_has_a_reason(text, reason):
    with pytest.raises(NotAnAnswer, match=reason):
        extract_answer(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42),
        ("-1,250", -1250),
        ("+0.50", Fraction(1, 2)),
        (".5", Fraction(1, 2)),
        ("$18", 18),
        ("-$3.25", Fraction(-13, 4)),
        ("3/4", Fraction(3, 4)),
        ("18 red apples.", 18),
        ("999999999999", 999_999_999_999),
        ("12,34", None),
        ("1 2", None),
        ("18 or 19", None),
        ("50 percent", 50),
        ("1e3", None),
        ("0x10", None),
        ("1_000", None),
        ("1/0", None),
        ("1.5/2", None),
        ("٤", None),
        ("1" * 40, None),
        ("", None),
        (".", None),
        ("inf", None),
    ],
)
def test_numbers_are_read_exactly_or_not_at_all(text, value):
    assert read_number(text) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("2**3", r"'\*' where a number"),
        ("2 3", "'3' after the end"),
        ("(1+2", "a bracket is not closed"),
        ("1+", "'' where a number"),
        ("1/(2-2)", "division by zero"),
        ("f(1)", "'f' is not part"),
        ("1.5", "'.' is not part"),
        ("٤", "'٤' is not part"),
        ("-" * 30 + "1", "nested more than 20 deep"),
        ("(" * 30, "nested more than 20 deep"),
        ("1234567890123", "more than 12 digits"),
        ("", "'' where a number"),
        ("1+" * 101, "longer than 200"),
    ],
)
def test_what_is_no_expression_has_a_reason(text, reason):
    with pytest.raises(NotAnAnswer, match=reason):
        evaluate_arithmetic(text)


EXPRESSIONS = st.recursive(
    st.integers(0, 30).map(str),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map("".join),
        inner.map(lambda text: f"({text})"),
        inner.map(lambda text: f"-{text}"),
    ),
    max_leaves=8,
)


def fractions_by_python(text: str) -> Fraction:
    """The same expression as Python reads it; only for text made by this file."""
    tree = ast.parse(text, mode="eval")

    class ToFractions(ast.NodeTransformer):
        def visit_Constant(self, node):
            call = ast.Call(ast.Name("Fraction", ast.Load()), [node], [])
            return ast.copy_location(call, node)

    tree = ast.fix_missing_locations(ToFractions().visit(tree))
    return eval(compile(tree, "test", "eval"), {"Fraction": Fraction})


@given(EXPRESSIONS)
@settings(max_examples=100, deadline=None)
def test_the_parser_agrees_with_python(text):
    try:
        wanted = fractions_by_python(text)
    except ZeroDivisionError:
        wanted = None
    if wanted is None or len(text) > answers.MAX_ANSWER:
        with pytest.raises(NotAnAnswer):
            evaluate_arithmetic(text)
        return
    value, used = evaluate_arithmetic(text)
    assert value == wanted
    digits = "".join(c if c.isdigit() else " " for c in text).split()
    assert used == Counter(map(int, digits))


@given(st.text(max_size=250))
@settings(max_examples=100, deadline=None)
def test_any_text_is_read_or_refused(text):
    read_number(text)
    for reader in (evaluate_arithmetic, extract_answer):
        try:
            reader(text)
        except NotAnAnswer as refused:
            assert str(refused)


# --------------------------------------------------------------------- word problems


def write_gsm8k(path: Path, *rows: tuple[str, str]) -> Path:
    lines = [json.dumps({"question": q, "answer": a}) for q, a in rows]
    path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return path


@pytest.fixture
def gsm8k(tmp_path):
    rows = [("What is 2+2?", "It is <<2+2=4>>4.\n#### 4"), ("A £?", "#### 1,250")]
    return load_text_task(
        "gsm8k",
        train=write_gsm8k(tmp_path / "train.jsonl", *rows),
        heldout=write_gsm8k(tmp_path / "test.jsonl", rows[0], ("3?", "#### 3")),
        weights=WEIGHTS,
        max_completion_tokens=100,
    )


def test_gsm8k_is_read_from_its_own_format(gsm8k):
    assert isinstance(gsm8k, TextTask)
    assert [gsm8k.problem(p).answer for p in gsm8k.prompts("train")] == ["4", "1,250"]
    # What stands in both splits is not held out.
    assert [gsm8k.problem(p).answer for p in gsm8k.prompts("heldout")] == ["3"]


def test_the_parts_of_a_reward(gsm8k):
    prompt = gsm8k.prompts("train")[0]
    right = gsm8k.score(prompt, "2+2=4 <answer>4</answer>")
    assert right.correct
    assert right.parts == {
        "correct": 1.0,
        "format": 0.1,
        "length": pytest.approx(0.2 * (1 - 24 / 400)),
    }
    wrong = gsm8k.score(prompt, "<answer>5</answer>")
    assert wrong.parts == {"correct": 0.0, "format": 0.1, "length": 0.0}
    assert wrong.reason == "another number"
    assert gsm8k.score(prompt, "4").parts == dict.fromkeys(right.parts, 0.0)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2: JSONDecodeError"),
        ("[1]", "line 2: TypeError"),
        ('{"question": "x"}', "line 2: KeyError"),
        ('{"question": "x", "answer": 3}', "line 2: AttributeError"),
        ('{"question": "x", "answer": "3"}', "line 2: the answer ends in '3'"),
        ('{"question": "x", "answer": "####"}', "line 2: the answer ends in '####'"),
    ],
)
def test_a_bad_line_of_a_file_is_named(tmp_path, line, words):
    path = write_gsm8k(tmp_path / "bad.jsonl", ("q", "#### 1"))
    path.write_text(path.read_text().strip() + "\n" + line)
    with pytest.raises(ValueError, match=rf"bad.jsonl, {words}.*Fix: mend the line"):
        load_gsm8k(path)


@pytest.mark.bad_input
def test_missing_files_foreign_prompts_and_wrong_splits(gsm8k, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected GSM8K's train.jsonl.*Fix"):
        load_gsm8k(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match=r"one of the 3 of task 'gsm8k'.*Fix"):
        gsm8k.score("another prompt", "")
    with pytest.raises(ValueError, match=r"split is 'test'.*Fix"):
        gsm8k.prompts("test")


def test_a_judge_that_breaks_costs_the_reward_only():
    def judge(problem: Problem, answer: str) -> tuple[bool, str]:
        raise RecursionError(problem.question + answer)

    task = AnswerTask("x", [Problem("q", "1")], [], judge=judge, weights=WEIGHTS)
    scored = task.score(task.prompts("train")[0], "<answer>1")
    assert scored.reason == "could not be judged: RecursionError: q1"
    assert scored.parts == {"correct": 0.0, "format": 0.0, "length": 0.0}


# --------------------------------------------------------------------- reasoning-gym


@GYM
def test_countdown_knows_right_from_wrong():
    task = load_text_task("countdown", size=40, heldout_size=10, seed=3)
    for split, count in (("train", 40), ("heldout", 10)):
        assert len(task.prompts(split)) <= count
        for prompt in task.prompts(split):
            facts = task.problem(prompt).facts
            answer = task.problem(prompt).answer
            assert task.score(prompt, f"<answer>{answer}</answer>").correct, answer
            assert str(facts["target"]) in prompt
            cheat = task.score(prompt, f"<answer>{facts['target']}</answer>")
            assert not cheat.correct
            numbers = "+".join(map(str, facts["numbers"]))
            other = task.score(prompt, f"<answer>{numbers}</answer>")
            assert other.correct == (sum(facts["numbers"]) == facts["target"])


@pytest.mark.parametrize(
    ("answer", "correct", "reason"),
    [
        ("4*(5+1)", True, "right"),
        ("(1+5)*4", True, "right"),
        ("4/(1/5)", False, "makes 20"),
        ("4*5+1", False, "makes 21"),
        ("4*6", False, "6 not given"),
        ("4*5", False, "1 not used"),
        ("4*5+1+1", False, "1 not given"),
        ("4*(5+1)=24", False, "'=' is not part of an expression"),
        ("24", False, "24 not given"),
        ("4^5", False, "'^' is not part of an expression"),
    ],
)
def test_reasons_of_countdown(answer, correct, reason):
    from flowrl_lab.tasks.real.gym import judge_countdown

    problem = Problem("q", "", {"numbers": [1, 4, 5], "target": 24})
    task = AnswerTask("countdown", [problem], [], judge=judge_countdown)
    scored = task.score(task.prompts("train")[0], f"<answer>{answer}")
    assert (scored.correct, scored.reason) == (correct, reason)
    assert scored.answer == (answer if correct else None)


def test_right_answers_are_told_apart_by_what_they_say_not_by_the_reasoning():
    from flowrl_lab.tasks.real.gym import judge_countdown, judge_number

    numbers = Problem("q", "", {"numbers": [1, 4, 5], "target": 24})
    many = AnswerTask("countdown", [numbers], [], judge=judge_countdown)
    one = AnswerTask("x", [Problem("q", "24")], [])
    same = AnswerTask("x", [Problem("q", "24")], [], judge=judge_number)

    def keys(task, *answers):
        (prompt,) = task.prompts("train")
        scored = [
            task.score(prompt, f"So: <answer>{text}</answer>") for text in answers
        ]
        assert all(one.correct for one in scored)
        return [one.answer for one in scored]

    assert len(set(keys(many, "4*(5+1)", " 4 * (5 + 1)", "(1+5)*4"))) == 2
    assert keys(one, "24", "24.0", " 24 ") == ["24"] * 3
    assert len(set(keys(same, "24", " 24 "))) == 1


@GYM
@pytest.mark.parametrize("family", FAMILIES)
def test_arithmetic_families(family):
    task = load_text_task("arithmetic", family=family, size=20, heldout_size=5)
    prompts = task.prompts("train") + task.prompts("heldout")
    assert len(prompts) > 20
    for prompt in prompts:
        answer = task.problem(prompt).answer
        assert task.score(prompt, f"<answer>{answer}").correct
        assert not task.score(prompt, f"<answer>{answer}1").correct
        assert task.score(prompt, f"<answer>{answer}+0").reason == (
            "the answer is not a number"
        )


@GYM
def test_word_problems_by_reasoning_gym():
    task = load_text_task("gsm_symbolic", size=30, heldout_size=10)
    for prompt in task.prompts("train") + task.prompts("heldout"):
        answer = task.problem(prompt).answer
        assert task.score(prompt, f"<answer>{answer}").correct
        assert task.score(prompt, f"<answer>${answer} in all</answer>").correct
        assert not task.score(prompt, f"<answer>{answer}1").correct
        assert "<answer>" in prompt
        assert "Give the result" not in prompt


@GYM
def test_the_same_seed_gives_the_same_problems_and_splits_never_meet():
    def make(seed: int):
        task = load_text_task("countdown", size=30, heldout_size=30, seed=seed)
        return task.prompts("train"), task.prompts("heldout")

    assert make(1) == make(1)
    assert set(make(1)[0]).isdisjoint(make(1)[1])
    assert make(1)[0] != make(2)[0]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("count_down", {}, "did you mean 'countdown'"),
        ("countdown", {"sise": 3}, "did you mean 'size'"),
        ("countdown", {"size": 0}, "size is 0; expected at least 1"),
        ("countdown", {"seed": -1}, "seed is -1"),
        pytest.param(
            "countdown", {"numbers": 1}, "min_numbers must be greater than 1", marks=GYM
        ),
        ("arithmetic", {"family": "poetry"}, "family is 'poetry'"),
        pytest.param(
            "arithmetic", {"settings": {"depth": 3}}, "reasoning-gym says", marks=GYM
        ),
    ],
)
def test_bad_options_of_the_tasks(name, options, words):
    with pytest.raises(ValueError, match=words):
        load_text_task(name, **options)


# ------------------------------------------------------------------------ HumanEval


@pytest.fixture(scope="module")
def human_eval():
    if sys.platform != "linux":
        pytest.skip("the sandbox needs Linux")
    return load_text_task("human_eval", weights=WEIGHTS)


def test_human_eval_is_split_once_and_for_all(human_eval):
    train, heldout = human_eval.prompts("train"), human_eval.prompts("heldout")
    assert (len(train), len(heldout)) == (123, 41)
    assert set(train).isdisjoint(heldout)
    assert all(
        prompt.lstrip().startswith(("def", "from", "import")) for prompt in heldout
    )


def test_solutions_of_the_authors_pass(human_eval):
    prompts = human_eval.prompts("heldout")[:6]
    solutions = [human_eval.canonical_solution(prompt) for prompt in prompts]
    for scored in score_batch(human_eval, prompts, solutions, workers=3):
        assert (scored.correct, scored.reason) == (True, "passes all tests")
        assert scored.parts["correct"] == 1.0
        assert scored.parts["format"] == 0.1


@pytest.mark.parametrize(
    ("completion", "defined", "reason"),
    [
        ("    return None\n", True, "a test failed: AssertionError"),
        ("    return 1 / 0\n", True, "a test failed: ZeroDivisionError"),
        ("    return (\n", False, "the function could not be defined: SyntaxError"),
        (
            "```python\nraise ValueError('x')\ndef has_close_elements(*a): pass\n```",
            False,
            "could not be defined: ValueError: x",
        ),
        # What stands behind the function does not matter, once there is one.
        ("    pass\nraise ValueError('x')", True, "a test failed: AssertionError"),
        ("    pass\nimport os\nos._exit(0)", False, "ended before its tests had run"),
        ("    raise SystemExit(0)\n", True, "ended before its tests had run"),
        ("    import os; os._exit(0)\n", True, "ended before its tests had run"),
        (
            "    open('passed', 'w').write('x'); exit()\n",
            True,
            "ended before its tests",
        ),
        ("    return open('/etc/passwd').read()\n", True, "PermissionError"),
        ("    __import__('os').fork()\n", True, "PermissionError"),
        ("x" * 20_001, False, "longer than 20,000 characters"),
    ],
)
def test_wrong_and_hostile_solutions(human_eval, completion, defined, reason):
    scored = human_eval.score(human_eval.prompts("train")[0], completion)
    assert not scored.correct
    assert reason in scored.reason
    assert scored.parts == {"correct": 0.0, "format": 0.1 * defined, "length": 0.0}


def test_a_solution_that_never_ends(human_eval, monkeypatch):
    from flowrl_lab.sandbox import Limits

    monkeypatch.setattr(human_eval, "_limits", Limits(0.5, 60.0))
    scored = human_eval.score(human_eval.prompts("train")[0], "    while True: pass\n")
    assert scored.reward == 0.1  # it compiles
    assert scored.reason == "a test failed: used more than 0.5 s of processor time"


def test_human_eval_is_refused_without_a_sandbox(monkeypatch):
    from flowrl_lab.sandbox import SandboxUnavailable
    from flowrl_lab.tasks.real import human_eval as module

    monkeypatch.setattr(module, "sandbox_problem", lambda: "not on this machine")
    with pytest.raises(SandboxUnavailable, match="not on this machine"):
        load_text_task("human_eval")


# ------------------------------------------------------------------------- every task


@LINUX
@GYM
def test_a_training_loop_never_sees_an_exception(human_eval, gsm8k, monkeypatch):
    """A stub policy writes every hostile text for every task."""
    tasks = [
        gsm8k,
        load_text_task("countdown", size=1, heldout_size=1, weights=WEIGHTS),
        load_text_task("arithmetic", size=1, heldout_size=1, weights=WEIGHTS),
        load_text_task("gsm_symbolic", size=1, heldout_size=1, weights=WEIGHTS),
    ]
    from flowrl_lab.sandbox import Limits

    monkeypatch.setattr(human_eval, "_limits", Limits(0.3, 60.0))
    for task in (*tasks, human_eval):
        prompt = task.prompts("train")[0]
        for scored in score_batch(task, [prompt] * len(HOSTILE), HOSTILE, workers=2):
            assert not scored.correct
            assert scored.reward <= WEIGHTS.format
            assert scored.reason
            assert list(scored.parts) == ["correct", "format", "length"]
            assert len(scored.reason) < 400
    assert not list(ROOT.glob("HACKED")) + list(Path.cwd().glob("HACKED"))


@pytest.mark.bad_input
def test_a_batch_needs_as_many_prompts_as_completions(gsm8k):
    with pytest.raises(ValueError, match=r"got 1 prompts and 2 completions.*Fix"):
        score_batch(gsm8k, ["x"], ["a", "b"])


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("countdown", "reasoning_gym"),
        ("human_eval", "human_eval.data"),
    ],
)
def test_a_missing_package_names_the_extra(monkeypatch, name, package):
    def refuse(wanted, *arguments, **options):
        if wanted == package:
            raise ImportError(f"No module named {wanted!r}")
        return importer(wanted, *arguments, **options)

    importer = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install 'flowrl-lab\[(sets|gym)\]'"):
        load_text_task(name)


def test_the_sets_do_not_slow_the_import():
    """Their packages load inside functions only, when somebody asks."""
    heavy = {"sympy", "reasoning_gym", "human_eval"}
    for path in (ROOT / "flowrl_lab").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = {alias.name for alias in getattr(node, "names", ())}
            names.add(getattr(node, "module", None) or "")
            assert heavy.isdisjoint(name.split(".")[0] for name in names), path


def test_every_name_leads_to_a_class():
    import importlib

    for home in TEXT_TASKS.values():
        module, _, name = home.partition(":")
        assert isinstance(getattr(importlib.import_module(module), name), type)


def test_scores_come_back_in_order_from_threads():
    def judge(problem: Problem, answer: str) -> tuple[bool, str]:
        time.sleep(0.02 * (3 - int(answer)))
        return True, problem.question + answer

    task = AnswerTask("x", [Problem("q", "1")], [], judge=judge)
    prompt = task.prompts("train")[0]
    texts = [f"<answer>{i}" for i in range(4)]
    reasons = [s.reason for s in score_batch(task, [prompt] * 4, texts, workers=4)]
    assert reasons == ["q0", "q1", "q2", "q3"]

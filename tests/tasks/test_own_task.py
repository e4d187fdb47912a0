"""A task of your own: every shape of prompts and rewards, and what is refused."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch

from flowrl_lab.tasks import load_task, place_of, text_task
from flowrl_lab.tasks.text import RewardError, TextTask

PROMPTS = ["A colour:", "A fruit:"]
CHAT = [
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Sum?"}],
    [{"role": "user", "content": "And?"}],
]


def length(_prompt, completion):
    return len(completion) / 10


def values(task, completions, ids=None, prompts=None):
    prompts = prompts or task.prompts("train")[:1] * len(completions)
    ids = ids or [[]] * len(completions)
    return task.score_all(prompts, completions, ids)


# ------------------------------------------------------------------------- prompts


def test_texts_and_a_reward_are_a_task():
    task = text_task(PROMPTS, length, stop="\n")
    assert isinstance(task, TextTask) and not task.chat and not task.has_referee
    assert task.prompts("train") == task.prompts("heldout") == tuple(PROMPTS)
    assert (task.name, task.stop) == ("length", ("\n",))
    one, two = values(task, ["red", ""])
    assert (one.reward, one.correct, one.answer) == (0.3, True, "red")
    assert (two.reward, two.correct, two.answer) == (0.0, False, None)
    assert task.score("A fruit:", " fig ").answer == "fig"


def test_messages_reach_the_reward_and_the_template_as_they_were_given():
    seen = []
    task = text_task(CHAT, lambda prompt, text: seen.append((prompt, text)) or 1.0)
    assert task.chat
    assert task.prompts("train") == ("Be brief.\nSum?", "And?")
    assert task.messages("Be brief.\nSum?") == CHAT[0]
    task.score("And?", "three")
    assert seen == [(CHAT[1], "three")]


def test_a_table_brings_columns_for_rewards_like_trls():
    from datasets import Dataset

    rows = [{"prompt": p, "solution": s} for p, s in zip(PROMPTS, "ab", strict=True)]

    def right(completions, solution, **_more):
        return [float(c == s) for c, s in zip(completions, solution, strict=True)]

    for table in (rows, Dataset.from_list(rows)):
        task = text_task(table, right, heldout=["A tree:"] and rows[:1])
        found = values(task, ["a", "a"], prompts=PROMPTS)
        assert [one.reward for one in found] == [1.0, 0.0]
        assert task.prompts("heldout") == ("A colour:",)
    column = text_task(Dataset.from_list(rows)["prompt"], length)
    assert column.prompts("train") == tuple(PROMPTS)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "prompts. is empty"),
        ("A colour:", "prompts. is 'A colour:'"),
        (["ok", ""], r"prompts\[1\]. is ''"),
        (["ok", 3], r"prompts\[1\]. is 3"),
        ([[{"role": "user"}]], r"prompts\[0\]. is .*role and content"),
        ([{"question": "?"}], "a column 'prompt'"),
        (
            [{"prompt": "a", "n": 1}, {"prompt": "a", "n": 2}],
            r"prompts\[1\]. repeats the prompt 'a' with other columns",
        ),
    ],
)
def test_bad_prompts_are_named(prompts, message):
    with pytest.raises(ValueError, match=message):
        text_task(prompts, length)


def test_the_same_prompt_twice_counts_once():
    assert text_task(["a", "b", "a"], length).prompts("train") == ("a", "b")


# ------------------------------------------------------------------------- rewards


def test_trls_own_rewards_are_taken_as_they_are():
    """One reads messages, the other the tokens."""
    from trl.rewards import get_soft_overlong_punishment, think_format_reward

    task = text_task(CHAT[1:], think_format_reward)
    found = values(task, ["<think>why</think>so", "so"])
    assert [one.reward for one in found] == [1.0, 0.0]
    soft = get_soft_overlong_punishment(max_completion_len=4, soft_punish_cache=2)
    task = text_task(PROMPTS, soft)
    found = values(task, ["x", "x", "x"], ids=[[1], [1] * 3, [1] * 9])
    assert [one.reward for one in found] == [0.0, -0.5, -1.0]
    assert not any(one.correct for one in found)


def test_several_rewards_are_weighted_and_shown_apart():
    def some(completions, **_more):  # says nothing of what is no word
        return [1.0 if c.isalpha() else None for c in completions]

    task = text_task(PROMPTS, [length, some], weights=[2.0, 0.5], right_above=1.0)
    one, two = values(task, ["red", "12"])
    assert one.parts == {"length": 0.6, "some": 0.5}
    assert one.reward == pytest.approx(1.1) and one.correct
    assert two.parts == {"length": 0.4, "some": 0.0} and not two.correct
    with pytest.raises(RewardError, match="'some' returned None for the prompt"):
        values(text_task(PROMPTS, some), ["12"])
    twice = text_task(PROMPTS, [length, length])
    assert set(values(twice, ["red"])[0].parts) == {"length", "length2"}


def test_a_reward_may_return_what_counts_as_a_number():
    for value in (True, 1, 1.0, np.float32(1), torch.tensor(1.0)):
        task = text_task(PROMPTS, lambda _p, _c, v=value: v)
        assert values(task, ["x"])[0].reward == 1.0
    task = text_task(PROMPTS, lambda completions: torch.ones(len(completions)))
    assert [one.reward for one in values(task, ["x", "y"])] == [1.0, 1.0]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "returned None for the prompt 'A colour:' and the completion 'red'"),
        ("1", "returned '1'"),
        (float("nan"), "returned nan"),
        (float("inf"), "returned inf"),
        ([1.0], r"returned \[1.0\].*name its parameters prompts and completions"),
    ],
)
def test_wrong_returns_are_named_with_their_completion(value, message):
    task = text_task(PROMPTS, lambda _prompt, _completion: value)
    with pytest.raises(RewardError, match=message):
        values(task, ["red"])


@pytest.mark.bad_input
def test_a_batch_reward_of_the_wrong_length_or_kind_is_named():
    for returned, message in (
        ([1.0], "returned 1 numbers for a batch of 2 completions"),
        (1.0, "returned 1 numbers"),
        ("ab", "returned 1 numbers"),
        ([1.0, float("nan")], "returned nan .*'blue'"),
        ([1.0, "x"], "returned 'x'"),
    ):
        task = text_task(PROMPTS, lambda prompts, r=returned: r if prompts else [])
        with pytest.raises(RewardError, match=message):
            values(task, ["red", "blue"])


def test_a_reward_that_raises_names_the_completion():
    task = text_task(PROMPTS, lambda _prompt, text: int(text))
    with pytest.raises(RewardError, match=r"raised ValueError.*completion 'red'"):
        values(task, ["3", "red"])
    task = text_task(PROMPTS, lambda completions: [int(c) for c in completions])
    with pytest.raises(RewardError, match=r"completion '3' \(the first of 2\)"):
        values(task, ["3", "red"])


async def later(_prompt, _completion):
    return 0.0


def alone(_text):
    return 0.0


def with_column(completions, solution):
    return [float(c == s) for c, s in zip(completions, solution, strict=True)]


def with_state(completions, trainer_state):
    return [trainer_state.global_step] * len(completions)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("gpt", "expected a function"),
        ([], "reward. is empty"),
        (later, "is async"),
        (alone, "does not take a prompt and a completion"),
        (with_column, "asks for 'solution'.*a column 'solution'"),
        (with_state, "train it with FlowRLTrainer"),
    ],
)
def test_rewards_that_cannot_be_called_are_refused_at_once(reward, message):
    with pytest.raises(ValueError, match=message):
        text_task(PROMPTS, reward)


@pytest.mark.bad_input
def test_other_arguments_are_checked():
    for changes, message in (
        ({"weights": [1.0, 2.0]}, "has 2 numbers for 1 rewards"),
        ({"weights": ["x"]}, r"weights\[0\]"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"right_above": float("nan")}, "right_above"),
        ({"answer": 3}, "answer. is 3"),
    ):
        with pytest.raises(ValueError, match=message):
            text_task(PROMPTS, length, **changes)


# ------------------------------------------------------------------ equal answers


def test_the_task_says_which_answers_are_the_same():
    task = text_task(PROMPTS, lambda _prompt, text: float(text.strip().isdigit()))
    assert task.score("A fruit:", "07 ").answer == "07"
    by_value = text_task(
        PROMPTS, lambda _prompt, text: float(text.strip().isdigit()), answer=int
    )
    assert by_value.score("A fruit:", "07 ").answer == 7
    assert by_value.score("A fruit:", "seven").answer is None  # wrong: never asked
    for answer, message in ((int, "answer raised ValueError"), (list, "TypeError")):
        task = text_task(PROMPTS, length, answer=answer)
        with pytest.raises(RewardError, match=message):
            task.score("A fruit:", "fig")


# ---------------------------------------------------------- where it is found again


def test_a_task_of_a_module_is_found_by_its_import_path(monkeypatch):
    module = types.ModuleType("somebodys_task")
    module.colours = text_task(PROMPTS, length)
    monkeypatch.setitem(sys.modules, "somebodys_task", module)
    assert place_of(module.colours) == "somebodys_task:colours"
    assert load_task("somebodys_task:colours") is module.colours
    with pytest.raises(ValueError, match=r"has no 'colour'; did you mean 'colours'"):
        load_task("somebodys_task:colour")
    module.other = 3
    with pytest.raises(ValueError, match="is a int, which has no prompts and score"):
        load_task("somebodys_task:other")
    with pytest.raises(ValueError, match="expected some of"):
        load_task("somebodys_task:colours", speed=3)


def test_a_task_that_no_module_holds_says_so_when_it_is_looked_for():
    task = text_task(PROMPTS, length, name="my colours")
    assert place_of(task) == "__main__:my_colours"
    with pytest.raises(ValueError, match=r"made in a notebook.*Run\.load\(folder"):
        load_task(place_of(task))


def test_a_file_in_the_folder_where_python_was_started_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"No module named 'mine_1'.*start in the"):
        load_task("mine_1:task")
    text = (
        "from flowrl_lab import text_task\ntask = text_task(['a:'], lambda p, c: 1)\n"
    )
    (tmp_path / "mine_1.py").write_text(text)
    assert load_task("mine_1:task").prompts("train") == ("a:",)
    (tmp_path / "mine_2.py").write_text("import nothing_of_the_kind\n")
    with pytest.raises(ValueError, match="No module named 'nothing_of_the_kind'"):
        load_task("mine_2:task")


def test_a_script_that_trains_when_it_is_asked_for_its_task_is_stopped(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "mine_3.py").write_text(
        "from flowrl_lab import ExperimentConfig, Run\n"
        "Run(ExperimentConfig(task='landscape', steps=2))\n"
    )
    with pytest.raises(ValueError, match=r"mine_3 trains while it is imported"):
        load_task("mine_3:task")

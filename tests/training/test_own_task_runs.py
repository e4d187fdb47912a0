"""A task of your own through the loop: found again, kept where it fails, measured."""

from __future__ import annotations

import json
import math
import re
import sys
import types
from pathlib import Path

import pytest
from llm_models import model_folder

import flowrl_lab
from flowrl_lab import LivePlot, data_path, preset, race, text_task, train
from flowrl_lab.integrations.adapters import export_adapter
from flowrl_lab.integrations.task_scores import load_scorer
from flowrl_lab.integrations.trackers import numbers_of
from flowrl_lab.integrations.trl_task import task_for_trl
from flowrl_lab.integrations.verl import export_verl
from flowrl_lab.measuring.judged import evaluate_run, load_for_evaluation
from flowrl_lab.metrics import GROUP_MEASURES
from flowrl_lab.tasks.text import RewardError
from flowrl_lab.training.config import ExperimentConfig
from flowrl_lab.training.records import record_from_dict, record_to_dict
from flowrl_lab.training.run import Run

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ["A number:", "Another one:", "And one more:"]


def digits(_prompt, completion):
    return float(completion.strip().isdigit())


TASK = text_task(PROMPTS, digits, stop="\n", max_completion_tokens=4, answer=int)


def config(task=TASK, variant="flowrl", **changes) -> ExperimentConfig:
    settings = {
        "model": model_folder(),
        "steps": 3,
        "prompts_per_step": 2,
        "num_generations": 4,
        "learning_rate": 1e-2,
        "lora_rank": 2,
        "eval_every": 2,
    }
    return preset(task, variant, **{**settings, **changes})


def counted(fails_at: int):
    """A reward that raises in its n-th batch, as long as ``mended`` is empty."""
    batches, mended = [], []

    def reward(completions, **_more):
        batches.append(completions)
        if len(batches) == fails_at and not mended:
            raise KeyError("no such word")
        return [float(len(one)) for one in completions]

    return text_task(PROMPTS, reward, stop="\n", max_completion_tokens=4), mended


# ------------------------------------------------------------------------ the call


def test_the_call_of_the_page_trains_both_live():
    """At most 15 lines of a user's code; here with a folder instead of SmolLM2."""
    runs = [Run(config(variant=name), task=TASK) for name in ("flowrl", "grpo")]
    with LivePlot(("reward", "sampled/distinct", "sampled/idle")) as plot:
        for record in race(*runs):
            plot.update(record)
    assert {record.run for record in plot.records} == {"flowrl", "grpo"}
    assert plot.records[-1].step == 3
    panels = {panel.metric: panel for panel in plot.page().curves}
    (name, level), *others = panels["sampled/distinct"].marks
    assert (name, others) == ("untrained", [])
    assert level == plot.records[0].floor["distinct"][0]
    assert panels["reward"].marks == ()
    low, high = panels["sampled/idle"].y_range
    assert low <= panels["sampled/idle"].marks[0][1] <= high


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*")
def test_the_page_says_what_runs(monkeypatch, tmp_path, capsys):
    """Each block of the page, on a tiny model; the first is the whole call."""
    text = (ROOT / "docs" / "your_own_task.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len([line for line in blocks[0].splitlines() if line.strip()]) <= 15
    small = {"model": model_folder(), "lora_rank": 2, "steps": 1}
    small |= {"num_generations": 4, "prompts_per_step": 1}

    def tiny(task, name, **changes):
        return preset(task, name, **{**changes, **small})

    monkeypatch.setattr(flowrl_lab, "preset", tiny)
    monkeypatch.chdir(tmp_path)
    names = [{"__name__": "page"} for _ in blocks]
    for block, own in zip(blocks, names, strict=True):
        exec(compile(block, "your_own_task.md", "exec"), own)
    records = names[0]["plot"].records
    assert [(r.run, r.step) for r in records[-2:]] == [("flowrl", 1), ("grpo", 1)]
    assert names[1]["task"].score("2 + 3 =", " 5").correct
    assert not names[1]["task"].score("2 + 3 =", "6").correct
    state = names[2]["trainer"].state
    assert state.global_step == 1 and "residual_rms" in state.log_history[0]
    capsys.readouterr()


def test_train_and_race_take_the_task_beside_the_config():
    alone = [r.reward for r in train(config(), task=TASK)][1:]
    raced = [r.reward for r in race(config(), task=TASK)][1:]
    by_name = [r.reward for r in train(config())][1:]
    assert alone == raced == by_name and len(alone) == 3
    plain = ExperimentConfig(steps=1, model=model_folder(), lora_rank=2)
    run = Run(plain, task=TASK)
    assert run.config.task == "test_own_task_runs:TASK"
    assert next(run).step == 0
    assert run.fork(steps=2).config.task == run.config.task


# ------------------------------------------------------------------- measured groups


def test_records_carry_the_groups_and_their_floor():
    run = Run(config(num_generations=8, prompts_per_step=3), task=TASK)
    start, first, *_, last = list(run)
    assert set(first.sampled) == set(GROUP_MEASURES) - {"pass@16", "pass@64"}
    assert start.sampled == {name: mean for name, (mean, _) in start.floor.items()}
    assert start.floor == last.floor and start.floor["right"][1] > 0
    assert first.sampled["right"] == pytest.approx(first.parts["solved"])
    # The first batch is of the untrained model too: no further off than 4 spreads.
    for name in ("right", "distinct", "effective"):
        mean, spread = start.floor[name]
        assert abs(first.sampled[name] - mean) <= 4 * spread + 1e-9
    numbers = numbers_of(first)
    assert numbers["sampled/pass_at_4"] == first.sampled["pass@4"]
    assert numbers["floor/distinct"] == start.floor["distinct"][0]


def test_the_task_says_when_answers_are_equal():
    """ "7", "07" and " 7" are one number, and three texts."""
    run = Run(config(), task=TASK)
    rollout = run.sample()
    texts = ["7", "07", " 7", "8", "x", "x", "7", "9"]
    run.task.decode = lambda *_given: texts
    scored = run.task.judge(
        rollout.prompts, rollout.completion_ids, rollout.completion_mask, 4
    )
    assert [one.answer for one in scored] == [7, 7, 7, 8, None, None, 7, 9]


def test_measuring_draws_from_its_own_dice():
    """A run's batches are those of a run that measures nothing at its start."""
    measured, plain = (Run(config(steps=1), task=TASK) for _ in range(2))
    assert next(measured).step == 0
    first = next(measured)
    assert plain.sample().rewards.mean().item() == first.reward


def test_records_of_earlier_versions_still_load():
    run = Run(config(steps=1), task=TASK)
    fields = json.loads(json.dumps(record_to_dict(list(run)[-1])))
    assert record_from_dict(fields) == run.records[-1]
    del fields["sampled"], fields["floor"]
    old = record_from_dict(fields)
    assert (old.sampled, old.floor) == ({}, {})
    with LivePlot(("reward", "sampled/distinct")) as plot:
        plot.update(old)
    assert plot.page().curves[1].marks == ()
    kept = next(data_path("results").rglob("records.jsonl"), None)
    if kept is not None:
        line = kept.read_text(encoding="utf-8").splitlines()[-1]
        assert record_from_dict(json.loads(line)).step > 0


@pytest.mark.parametrize(
    "task",
    [
        *("landscape", "strings", "make_number"),
        pytest.param("programs", marks=pytest.mark.full),
    ],
)
def test_tasks_with_a_referee_are_measured_too(task):
    """Sampled and exact figures of the untrained policy agree within the noise."""
    run = Run(preset(task, "grpo", budget="quick", steps=1, eval_prompts=8))
    start = next(run)
    mean, spread = start.floor["right"]
    assert 0 < mean < 1
    slack = 0.35 if spread == 0 else 6 * spread + 0.15  # other prompts than held out
    assert abs(mean - start.exact.accuracy) < slack
    assert 1 <= start.floor["effective"][0] <= start.floor["distinct"][0]


# --------------------------------------------------------------------- found again


def test_a_saved_run_finds_its_task_again(tmp_path, monkeypatch):
    run = Run(config(), task=TASK, folder=tmp_path / "run")
    for _ in range(3):
        next(run)
    run.save(tmp_path / "run")
    again = load_for_evaluation(tmp_path / "run")
    rest = [record.reward for record in run]
    assert again.config.task == "test_own_task_runs:TASK"
    assert again._floor == run.records[0].floor
    assert [record.reward for record in again] == rest
    sampled = {f.key: f for f in evaluate_run(again, num_samples=8).sampled}
    start = evaluate_run(Run(again.config), num_samples=8).sampled
    for figure in start:  # beside it stands what the model showed before
        known = (figure.value, figure.error)
        beside = sampled[figure.key]
        assert repr((beside.untrained, beside.untrained_error)) == repr(known)
        assert repr((figure.untrained, figure.untrained_error)) == repr(known)
    assert any(f.value != f.untrained for f in sampled.values())
    assert sampled["distinct_correct"].prompts == 3
    export_adapter(again, tmp_path / "adapter")
    card = (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "test_own_task_runs:TASK" in card
    monkeypatch.delitem(sys.modules, "test_own_task_runs")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if "tests" not in p])
    with pytest.raises(
        ValueError, match=r"No module named 'test_own_task_runs'.*Run\."
    ):
        load_for_evaluation(tmp_path / "run")
    given = Run.load(tmp_path / "run", task=TASK)
    assert given.records[-1].step == 3


def test_a_notebooks_task_is_asked_for_again(tmp_path):
    task = text_task(PROMPTS, digits, stop="\n", max_completion_tokens=4)
    run = Run(config(task, steps=1), task=task, folder=tmp_path / "run")
    list(run)
    with pytest.raises(ValueError, match=r"'__main__:digits' cannot be found"):
        Run.load(tmp_path / "run")
    assert Run.load(tmp_path / "run", task=task).step == 1


# ------------------------------------------------------------------- what goes wrong


@pytest.mark.bad_input
@pytest.mark.parametrize("wrong", [None, "1", math.nan])
def test_a_wrong_return_is_named_before_the_first_update(wrong):
    task = text_task(PROMPTS, lambda _prompt, _text: wrong, max_completion_tokens=4)
    run = Run(config(task), task=task)
    with pytest.raises(RewardError, match=r"for the prompt '.*' and the completion"):
        next(run)
    assert run.records == [] and run.step == 0


def test_a_reward_that_fails_later_leaves_the_run_whole(tmp_path):
    """Mended, it goes on as if it had never failed."""
    task, _ = counted(fails_at=10**9)
    calm = [record.reward for record in train(config(task, steps=6), task=task)]
    floor_batches = 4  # 8 groups in batches of 2
    task, mended = counted(fails_at=floor_batches + 5)
    run = Run(config(task, steps=6), task=task, folder=tmp_path / "run")
    seen = []
    with pytest.raises(
        RewardError, match=r"raised KeyError.*the completion '"
    ) as caught:
        for record in run:
            seen.append(record.reward)
    assert run.step == 4 and "keeps its 4 steps, saved in" in caught.value.__notes__[0]
    mended.append(True)
    kept = Run.load(tmp_path / "run", task=task)
    seen += [record.reward for record in kept]
    assert seen[1:] == calm[1:]


def test_a_module_may_hold_several_tasks(monkeypatch):
    module = types.ModuleType("two_tasks")
    module.first = text_task(PROMPTS[:1], digits, max_completion_tokens=4)
    module.second = text_task(PROMPTS[1:], digits, max_completion_tokens=4)
    monkeypatch.setitem(sys.modules, "two_tasks", module)
    chosen = config("two_tasks:second", steps=1)
    assert chosen.task == config(module.second).task == "two_tasks:second"
    assert Run(chosen).task.prompts("train") == tuple(PROMPTS[1:])


# --------------------------------------------------------------------- other engines


def test_verl_gets_the_task_by_its_import_path(tmp_path):
    export_verl(config(), tmp_path / "verl")
    reward = (tmp_path / "verl" / "reward.py").read_text(encoding="utf-8")
    assert "load_scorer('test_own_task_runs:TASK'" in reward
    rows = (tmp_path / "verl" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(row)["prompt"][0]["content"] for row in rows] == PROMPTS
    compute_score = load_scorer("test_own_task_runs:TASK")
    assert compute_score("digits", "7\nand more", PROMPTS[0]) == 1.0
    assert compute_score("digits", "x7", PROMPTS[0]) == 0.0
    nowhere = text_task(PROMPTS, digits, max_completion_tokens=4)
    with pytest.raises(ValueError, match=r"'__main__:digits' was made in a notebook"):
        export_verl(config(nowhere), tmp_path / "other")


def test_trl_gets_messages_columns_and_the_same_reward():
    messages = [{"role": "user", "content": "A number:"}]

    def right(completions, completion_ids, wanted, **_more):
        texts = [one[0]["content"] for one in completions]
        assert len(completion_ids) == len(texts)
        return [float(t == w) for t, w in zip(texts, wanted, strict=True)]

    rows = [{"prompt": messages, "wanted": "7"}]
    task = text_task(rows, right, stop="\n", max_completion_tokens=4)
    parts = task_for_trl(task, tokenizer=object())
    (row,) = parts["train_dataset"]
    assert row["prompt"] == messages
    given = [[{"role": "assistant", "content": "7\nmore"}], [{"content": "8"}]]
    found = parts["reward_funcs"](
        prompts=[messages] * 2,
        completions=given,
        completion_ids=[[1, 2], [3]],
        task_prompt=[row["task_prompt"]] * 2,
    )
    assert found == [1.0, 0.0]

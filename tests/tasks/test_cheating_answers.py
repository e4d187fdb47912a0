"""Answers that cheat: reward 0, a reason that can be read, never an exception."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flowrl_lab.tasks import load_task
from flowrl_lab.tasks.make_number import (
    CHARACTERS,
    explain_answer,
    grade_answer,
    verify_answer,
)
from flowrl_lab.training.presets import preset
from flowrl_lab.training.run import Run

PROMPT = "24!37:"
CHEATS = [
    ("", "not written like"),
    ("24", "not written like"),
    ("8*3", "digit 3 is banned"),
    ("8* 3", "not written like"),  # a banned digit hidden in spacing
    ("8*\t3", "not written like"),
    ("8*\u200b3", "not written like"),
    ("6*4 ", "not written like"),
    ("6*4\n", "not written like"),
    ("6*4=24 is right", "not written like"),
    ("6*4=24#6*4=24", "not written like"),
    ("print(24)", "not written like"),
    ("６*４", "not written like"),  # digits, but not ASCII's
    ("٦*٤=٢٤", "not written like"),
    ("6×4", "not written like"),
    ("10**10**10", "not written like"),
    ("9" * 100_000, "not written like"),
    ("6*4*1*1*1", "not written like"),
    ("24+0", "not written like"),
    ("6*4=25", "=25 is not true, it is 24"),
    ("6*5=24", "=24 is not true, it is 30"),
    ("5*5", "makes 25, not 24"),
    ("4+8*2=24", "half of the working"),
    ("4+8=12*2", "half of the working"),
    ("4+8=11*2=24", "=11 is not true, it is 12"),
    ("1-5+8", "intermediate result -4 is negative"),
    ("-6*4", "not written like"),
    ("24!37:", "not written like"),
]


@pytest.mark.parametrize(("answer", "reason"), CHEATS)
def test_a_cheat_gets_nothing_and_is_told_why(answer, reason):
    assert not verify_answer(PROMPT, answer)
    assert grade_answer(PROMPT, answer) == 0.0
    told = explain_answer(PROMPT, answer)
    assert reason in told
    assert len(told) < 120 and "\n" not in told


def test_a_right_answer_has_nothing_to_explain():
    task = load_task("make_number")
    for prompt in task.prompts("heldout")[:20]:
        for answer in task.answers(prompt).labels:
            assert explain_answer(prompt, answer) == ""


@given(st.text(max_size=20) | st.text(CHARACTERS, max_size=13))
@settings(max_examples=300, deadline=None)
def test_a_verdict_and_its_reason_never_part(answer):
    told = explain_answer(PROMPT, answer)
    assert (told == "") == verify_answer(PROMPT, answer)
    assert (told == "") == (grade_answer(PROMPT, answer) > 0)


def test_nonsense_does_not_stop_training():
    """A policy that writes anything at all: rewards of 0, and the run goes on."""
    config = preset(
        "make_number",
        "flowrl",
        steps=2,
        eval_every=2,
        eval_prompts=1,
        prompts_per_step=2,
        num_generations=4,
        temperature=50.0,
        task_options={"reward": "graded"},
    )
    records = list(Run(config))
    assert [record.step for record in records] == [0, 1, 2]
    assert all(record.reward == 0 for record in records[1:])
    assert all(torch.isfinite(torch.tensor(r.grad_norm)) for r in records[1:])

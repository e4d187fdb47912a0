"""Predictions and quizzes in a real browser, answered by keyboard and read back."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from pages import (
    Visit,
    error_outputs,
    open_notebook,
    run_all_cells,
    wait_until_done,
    write_notebook,
)
from playwright.sync_api import Locator, expect

from flowrl_lab.course.quiz_questions import load_quiz

pytestmark = [pytest.mark.browser, pytest.mark.slow]

NAME = "course_widgets"
QUIZ = "01_reward_to_distribution"
CELLS = [
    "from flowrl_lab.course import outcome, predict, predicted, quiz",
    'predict("98.kept", "What is kept?", choices=("one", "two", "three"))',
    'predict("98.size", "How large is it?", low=0, high=10, unit="nats")',
    'print("read:", predicted("98.kept"), predicted("98.size"))',
    'outcome("98.kept", "three")',
    'outcome("98.size", 7.5)',
    f'quiz("{QUIZ}")',
]


@pytest.fixture(scope="module")
def answers(shared_visit: Visit, lab_folder: Path, lab_address: str) -> Visit:
    """The notebook, run once: nothing is answered yet."""
    write_notebook(lab_folder, NAME, CELLS)
    open_notebook(shared_visit, lab_address, NAME)
    run_and_wait(shared_visit)
    return shared_visit


def output(visit: Visit, index: int) -> Locator:
    """What a code cell shows."""
    cell = visit.page.locator(".jp-Notebook .jp-CodeCell").nth(index)
    return cell.locator(".jp-Cell-outputArea")


def run_and_wait(visit: Visit) -> None:
    run_all_cells(visit)
    wait_until_done(visit, NAME)
    output(visit, 6).locator("fieldset").first.wait_for()


def saved_events(kind: str) -> list[dict]:
    """What the progress file holds of this kind."""
    text = Path(os.environ["FLOWRL_PROGRESS"]).read_text(encoding="utf-8")
    return [event for event in json.loads(text)["events"] if event["kind"] == kind]


def test_predictions_by_keyboard_are_kept_when_the_cell_runs_again(
    answers: Visit,
) -> None:
    visit = answers
    assert "read: None None" in output(visit, 3).inner_text()
    assert "You made no prediction" in output(visit, 4).inner_text()
    first = output(visit, 1).get_by_role("radio", name="one")
    first.focus()
    first.press("Space")
    first.press("ArrowDown")  # the group's own key: on to "two"
    expect(output(visit, 1).get_by_role("radio", name="two")).to_be_checked()
    expect(output(visit, 1)).to_contain_text("Your prediction: two")
    field = output(visit, 2).get_by_role("spinbutton")
    field.focus()
    visit.page.keyboard.type("4.25")
    visit.page.keyboard.press("Tab")
    expect(output(visit, 2)).to_contain_text("Your prediction: 4.25 nats")
    slider = output(visit, 2).get_by_role("slider")
    expect(slider).to_be_focused()
    slider.press("ArrowRight")  # the slider keeps to tenths: 4.25 is 4.3 to it
    expect(output(visit, 2)).to_contain_text("Your prediction: 4.4 nats")
    visit.screenshot(f"{NAME}-answered")

    run_and_wait(visit)
    assert "read: two 4.4" in output(visit, 3).inner_text()
    expect(output(visit, 1).get_by_role("radio", name="two")).to_be_checked()
    assert float(output(visit, 2).get_by_role("spinbutton").input_value()) == 4.4
    assert "You predicted: two. It came out as: three" in output(visit, 4).inner_text()
    assert "That is 3.1 nats more" in output(visit, 5).inner_text()
    picture = output(visit, 5).locator("svg[role=img]")
    assert "you: 4.4 nats" in picture.text_content()
    assert error_outputs(visit) == []
    # a choice as a cell's last value would stand below its own picture once more
    assert "'two'" not in output(visit, 4).inner_text()
    visit.screenshot(f"{NAME}-again")
    answers = {event["key"]: event["answer"] for event in saved_events("prediction")}
    assert answers["98.kept"] == "two" and answers["98.size"] == 4.4


def test_a_number_out_of_range_is_no_prediction(answers: Visit) -> None:
    visit = answers
    before = saved_events("prediction")
    field = output(visit, 2).get_by_role("spinbutton")
    field.fill("11")
    field.press("Tab")
    expect(output(visit, 2)).to_contain_text("Choose a number between 0 and 10")
    visit.page.wait_for_timeout(600)  # longer than an answer waits before it is kept
    assert saved_events("prediction") == before


def test_a_quiz_explains_each_choice_and_keeps_the_score(answers: Visit) -> None:
    visit, questions = answers, load_quiz(QUIZ)
    forms = output(visit, 6).locator("fieldset")
    expect(forms).to_have_count(len(questions))
    expect(output(visit, 6).locator(".why")).to_have_count(0)
    wrong = next(c for c in questions[0].choices if not c.right)
    right = next(c for c in questions[0].choices if c.right)
    radio = forms.nth(0).get_by_role("radio", name=wrong.text, exact=True)
    radio.focus()
    radio.press("Space")
    expect(forms.nth(0)).to_contain_text(f"✗ Not quite. {wrong.why}")
    forms.nth(0).get_by_role("radio", name=right.text, exact=True).check()
    expect(forms.nth(0)).to_contain_text(f"✓ Right. {right.why}")
    expect(forms.nth(0)).not_to_contain_text(wrong.why)
    second = next(c for c in questions[1].choices if c.right)
    forms.nth(1).get_by_text(second.text, exact=True).click()
    score = output(visit, 6).locator(".score")
    said = f"2 of {len(questions)} answered, 1 right at the first try."
    expect(score).to_have_text(said)
    visit.screenshot(f"{NAME}-quiz")
    run_and_wait(visit)
    expect(output(visit, 6).locator(".score")).to_have_text(said)
    assert error_outputs(visit) == []
    tried = [event["choice"] for event in saved_events("quiz") if event["key"] == QUIZ]
    assert tried == [wrong.text, right.text, second.text]

"""Predict, then run: questions, their answers, and what is shown beside the result."""

from __future__ import annotations

import importlib.util
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from flowrl_lab.course import answer, outcome, predict, predicted
from flowrl_lab.course.ledger import open_ledger, read_events
from flowrl_lab.course.prediction_field import PredictionField, slider_step
from flowrl_lab.course.predictions import _asked
from flowrl_lab.course.questions import StillQuestion
from flowrl_lab.course.verdicts import CAME_OUT, PREDICTED, number_line, outcome_html

WIDGET_MIME = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """A progress file and a memory of questions of this test's own."""
    path = tmp_path / "progress.json"
    monkeypatch.setenv("FLOWRL_PROGRESS", str(path))
    monkeypatch.setattr("flowrl_lab.course.predictions._asked", {})
    return path


def forget(monkeypatch) -> None:
    """As in a new kernel: nothing has been asked yet, the file is what it is."""
    monkeypatch.setattr("flowrl_lab.course.predictions._asked", {})
    monkeypatch.setattr("flowrl_lab.course.ledger._open", {})


def ask_choice():
    return predict("98.kept", "What is <kept>?", choices=("one", "two & three"))


def ask_number():
    return predict("98.size", "How large?", low=-2, high=10, unit="nats")


def test_a_choice_is_kept_and_read_back(own, capsys):
    field = ask_choice()
    assert predicted("98.kept") is None and field.answer is None
    field.set_state({"answer": "two & three"})  # what the browser sends
    assert predicted("98.kept") == "two & three"
    (event,) = read_events(own)
    assert (event["kind"], event["answer"]) == ("prediction", "two & three")
    assert ask_choice().answer == "two & three"  # the cell runs again
    assert "Your prediction: two & three" in capsys.readouterr().out
    field.set_state({"answer": "one"})  # one may think again
    assert predicted("98.kept") == "one"


def test_a_number_is_kept_and_read_back_in_another_kernel(own, monkeypatch):
    ask_number().set_state({"answer": 3.5})
    forget(monkeypatch)
    assert predicted("98.size") == 3.5  # even before its cell has run
    assert ask_number().answer == 3.5
    assert len(read_events(own)) == 1


def test_an_answer_that_no_longer_fits_the_question_is_forgotten():
    ask_choice().set_state({"answer": "one"})
    field = predict("98.kept", "Asked anew?", choices=("yes", "no"))
    assert field.answer is None and predicted("98.kept") is None
    ask_number().set_state({"answer": 9.0})
    assert predict("98.size", "Smaller?", low=0, high=5).answer is None


def test_outcome_of_a_number_shows_both_and_the_difference(own, capsys):
    ask_number()
    answer("98.size", 3.25)
    capsys.readouterr()
    guess = outcome("98.size", torch.tensor(7.91, dtype=torch.float64))
    assert guess == 3.25 and isinstance(guess, float)
    said = capsys.readouterr().out
    assert said == (
        "You predicted: 3.25 nats. It came out as: 7.91 nats. That is 4.66 nats more.\n"
    )
    event = read_events(own)[-1]
    assert (event["kind"], event["result"], event["predicted"]) == (
        "outcome",
        7.91,
        3.25,
    )
    outcome("98.size", 1.0)
    assert "That is 2.25 nats less." in capsys.readouterr().out
    outcome("98.size", np.float32(3.25))
    assert "Spot on." in capsys.readouterr().out
    assert outcome("98.size", 12) == 3.25  # a result may leave the range


def test_outcome_of_a_choice_says_same_or_different_and_does_not_scold(capsys):
    ask_choice()
    answer("98.kept", "one")
    assert outcome("98.kept", "one") == "one"
    assert "Just as you thought." in capsys.readouterr().out
    assert outcome("98.kept", "two & three") == "one"
    said = capsys.readouterr().out
    assert "You predicted: one. It came out as: two & three. Different" in said
    assert not re.search(r"wrong|false|mistake|fail", said, re.IGNORECASE)


def test_outcome_works_where_nothing_was_predicted_or_even_asked(own, capsys):
    ask_number()
    assert outcome("98.size", 2) is None
    assert outcome("97.never", 2.5) is None
    assert outcome("97.word", "anything") is None
    assert capsys.readouterr().out.count("You made no prediction") == 3
    assert all("predicted" not in event for event in read_events(own))


def test_outcome_remembers_the_question_of_an_earlier_kernel(monkeypatch, capsys):
    ask_choice()
    answer("98.kept", "one")
    ask_number()
    answer("98.size", 1)
    forget(monkeypatch)
    assert outcome("98.kept", "two & three") == "one"
    assert outcome("98.size", 2) == 1
    # the cell now asks for a number where a choice had been saved
    assert outcome("98.kept", 2.0) is None
    assert "You made no prediction" in capsys.readouterr().out


def test_what_outcome_returns_does_not_show_itself_again():
    from IPython.core.formatters import DisplayFormatter

    ask_choice()
    answer("98.kept", "one")
    ask_number()
    answer("98.size", 1)
    for guess in (outcome("98.kept", "one"), outcome("98.size", 2)):
        assert DisplayFormatter().format(guess) == ({}, {})


# --------------------------------------------------------------------- how it looks


def marks_of(svg: str) -> dict[str, float]:
    """colour -> x of its pointer."""
    texts = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    return {t.get("fill"): float(t.get("x")) for t in texts if t.get("fill")}


def test_the_number_line_has_both_marks_in_proportion():
    facts = {"result": 7.5, "predicted": 2.5, "range": [0.0, 10.0], "unit": "nats"}
    svg = number_line(facts)
    marks = marks_of(svg)
    assert marks[CAME_OUT] - marks[PREDICTED] == pytest.approx(240)  # half of 480
    assert marks[PREDICTED] == pytest.approx(40 + 0.25 * 480)
    label = ElementTree.fromstring(svg).get("aria-label")
    assert "2.5 nats" in label and "5 nats more" in label
    alone = number_line({"result": 7.5, "unit": ""})
    assert set(marks_of(alone)) == {CAME_OUT}
    # a result far outside the range widens the line
    far = marks_of(number_line({**facts, "result": 100.0}))
    assert far[CAME_OUT] == pytest.approx(520)


def test_everything_a_learner_or_author_writes_is_escaped():
    facts = {"question": "<b>?", "result": "<script>", "predicted": "&"}
    page = outcome_html(facts)
    assert "<script>" not in page and "&lt;script&gt;" in page and "&lt;b&gt;?" in page
    bundle = ask_choice()._repr_mimebundle_()
    assert "&lt;kept&gt;" in bundle["text/html"]


def test_headless_and_without_anywidget_the_question_is_text(monkeypatch, capsys):
    bundle = ask_choice()._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain"}
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n: None if n == "anywidget" else found(n)
    )
    capsys.readouterr()
    view = ask_number()
    assert not isinstance(view, PredictionField)
    said = capsys.readouterr().out
    assert "How large?" in said and "a number between -2 and 10 nats" in said
    assert "answer('98.size', -2.0)" in said
    answer("98.size", 4)
    assert "Your prediction: 4 nats" in str(ask_number())


def test_with_a_browser_the_view_travels_with_the_text(monkeypatch):
    monkeypatch.delenv("FLOWRL_HEADLESS")
    data, _ = ask_number()._repr_mimebundle_()
    assert WIDGET_MIME in data and "How large?" in data["text/html"]


def test_as_a_cells_last_value_it_is_shown_once(capsys):
    field = ask_choice()
    assert capsys.readouterr().out.count("Predict:") == 1
    field._ipython_display_()
    assert capsys.readouterr().out == ""
    field._ipython_display_()
    assert capsys.readouterr().out.count("Predict:") == 1


@pytest.mark.parametrize(
    ("low", "high", "step"),
    [(0.0, 1.0, 0.01), (0.0, 10.0, 0.1), (-3.0, 3.0, 0.01), (1.0, 112.0, 1.0)],
)
def test_slider_steps_are_round(low, high, step):
    assert slider_step(low, high) == pytest.approx(step)
    assert (high - low) / step >= 100


# ------------------------------------------------------------------------ bad input


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("key", "question", "settings", "words"),
    [
        ("kept", "?", {"choices": ("a", "b")}, "two digits, a dot"),
        (2, "?", {"choices": ("a", "b")}, "two digits, a dot"),
        ("98.a", " ", {"choices": ("a", "b")}, "a sentence"),
        ("98.a", "?", {}, "both missing"),
        ("98.a", "?", {"choices": ("a", "b"), "low": 1}, "came together"),
        ("98.a", "?", {"choices": ("a",)}, "two different texts"),
        ("98.a", "?", {"choices": ("a", "a")}, "two different texts"),
        ("98.a", "?", {"choices": "ab"}, "two different texts"),
        ("98.a", "?", {"choices": ("a", 2)}, "two different texts"),
        ("98.a", "?", {"low": 1, "high": 1}, "low < high"),
        ("98.a", "?", {"low": 2, "high": 1}, "low < high"),
        ("98.a", "?", {"low": float("nan"), "high": 1}, "one finite number"),
        ("98.a", "?", {"low": 0, "high": float("inf")}, "one finite number"),
        ("98.a", "?", {"low": 0}, "`high` is None"),
    ],
)
def test_questions_that_make_no_sense(key, question, settings, words):
    with pytest.raises(ValueError, match=words):
        predict(key, question, **settings)
    assert _asked == {}


@pytest.mark.bad_input
def test_answers_and_results_that_cannot_be():
    ask_choice()
    ask_number()
    for value in ("four", 1, None):
        with pytest.raises(ValueError, match="one of"):
            answer("98.kept", value)
        with pytest.raises(ValueError, match="one of"):
            outcome("98.kept", value)
    for value in (11, -3, float("nan"), "1", True, torch.ones(2)):
        with pytest.raises(ValueError, match=r"answer to 98\.size"):
            answer("98.size", value)
    for value in (float("nan"), float("inf"), None, torch.ones(2), "much"):
        with pytest.raises(ValueError, match="one finite number"):
            outcome("98.size", value)
    with pytest.raises(ValueError, match="nothing has asked yet"):
        answer("98.sise", 3)
    for ask in (predicted, lambda key: outcome(key, 3)):
        with pytest.raises(ValueError, match=r"did you mean '98\.size'"):
            ask("98.sise")
        with pytest.raises(ValueError, match="two digits"):
            ask("size")
    with pytest.raises(ValueError, match=r"answer to 98\.size"):
        ask_number().answer = 11
    assert open_ledger().events() == []


def test_a_damaged_event_is_no_prediction(own):
    ask_number()
    answer("98.size", 4)
    text = own.read_text(encoding="utf-8").replace('"answer": 4.0', '"answer": "x"')
    own.write_text(text, encoding="utf-8")
    assert json.loads(text) and predicted("98.size") is None
    assert outcome("98.size", 3) is None


def test_the_advice_without_buttons_works_as_it_is_printed():
    for ask, expected in ((ask_choice, "one"), (ask_number, -2)):
        field = ask()
        call = StillQuestion(field.question).status().split(" ", 2)[2]
        exec(f"import flowrl_lab\n{call.removesuffix(' does the same.')}", {})
        assert predicted(field.question.key) == expected

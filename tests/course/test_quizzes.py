"""Quizzes: every file is as it should be, and the widget scores and records."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path

import nbformat
import pytest

from flowrl_lab.course import quiz
from flowrl_lab.course.ledger import read_events
from flowrl_lab.course.quiz_field import QuizField
from flowrl_lab.course.quiz_questions import FOLDER, load_quiz, parse_quiz
from flowrl_lab.course.showing import markup_to_text

FILES = sorted(FOLDER.glob("*.json"))
NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
QUIZ = "01_reward_to_distribution"


@pytest.fixture
def own(tmp_path, monkeypatch):
    path = tmp_path / "progress.json"
    monkeypatch.setenv("FLOWRL_PROGRESS", str(path))
    return path


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_is_a_quiz_that_explains_itself(path):
    questions = load_quiz(path.stem)
    whys = [choice.why for question in questions for choice in question.choices]
    assert len(set(whys)) == len(whys), "each choice has an explanation of its own"
    assert all(len(why.split()) >= 5 for why in whys)
    texts = [question.text for question in questions] + whys
    assert [t for t in texts if markup_to_text(t) != t] == [], "shown as plain text"
    places = {
        [choice.right for choice in question.choices].index(True)
        for question in questions
    }
    assert len(places) > 1, "the right choice is always in the same place"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_ends_with_its_quiz(path):
    cells = nbformat.read(path, as_version=nbformat.NO_CONVERT).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    shown = [source for source in code if source.startswith("quiz(")]
    assert shown == [f'quiz("{path.stem}")'] and code[-1] == shown[0]
    assert path.stem in {file.stem for file in FILES}


def find(question, right: bool) -> int:
    return [choice.right for choice in question.choices].index(right)


def test_choices_are_scored_recorded_and_kept(own):
    questions = load_quiz(QUIZ)
    field = quiz(QUIZ)
    assert (field.score(), field.tried) == (0, {})
    wrong, right = find(questions[0], False), find(questions[0], True)
    second = find(questions[1], True)
    # what the browser sends: the whole list, each time one longer
    field.set_state({"tried": {"0": [wrong]}})
    field.set_state({"tried": {"0": [wrong, right]}})
    field.set_state({"tried": {"0": [wrong, right], "1": [second]}})
    assert field.score() == 1  # the first try counts
    events = read_events(own)
    assert [(e["choice"], e["right"]) for e in events] == [
        (questions[0].choices[wrong].text, False),
        (questions[0].choices[right].text, True),
        (questions[1].choices[second].text, True),
    ]
    assert {(e["kind"], e["key"]) for e in events} == {("quiz", QUIZ)}
    again = quiz(QUIZ)  # the cell runs again
    assert again.tried == field.tried and again.score() == 1


def test_what_was_chosen_of_a_question_that_has_changed_is_passed_over(own):
    questions = load_quiz(QUIZ)
    field = quiz(QUIZ)
    field.set_state({"tried": {"0": [0], "1": [0]}})
    text = own.read_text(encoding="utf-8")
    own.write_text(text.replace(questions[0].text, "Another?"), encoding="utf-8")
    assert quiz(QUIZ).tried == {"1": [0]}


def test_the_browser_gets_all_it_needs_to_explain():
    state = QuizField(load_quiz(QUIZ)).get_state()
    content = json.loads((FOLDER / f"{QUIZ}.json").read_text(encoding="utf-8"))
    wanted = [(q["question"], q["choices"]) for q in content["questions"]]
    assert [(q["text"], q["choices"]) for q in state["_questions"]] == wanted


def test_still_form_unfolds_and_is_escaped(capsys, monkeypatch):
    found = importlib.util.find_spec
    page = quiz(QUIZ)._repr_mimebundle_()["text/html"]
    questions = load_quiz(QUIZ)
    assert page.count("<details>") == sum(len(q.choices) for q in questions)
    assert page.count("✓ Right.") == len(questions)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n: None if n == "anywidget" else found(n)
    )
    capsys.readouterr()
    view = quiz(QUIZ)
    assert not isinstance(view, QuizField)
    said = capsys.readouterr().out
    assert questions[-1].text in said and questions[0].choices[0].why not in said
    content = minimal()
    content["questions"][0]["choices"][0]["why"] = "<script>"
    from flowrl_lab.course.quiz_questions import StillQuiz

    assert "<script>" not in StillQuiz(parse_quiz(content, "x"))._repr_html_()


# ------------------------------------------------------------------------ bad input


def minimal() -> dict:
    """Three questions of three choices."""
    choices = [
        {"text": f"choice {i}", "right": i == 1, "why": f"because {i}"}
        for i in range(3)
    ]
    return {
        "questions": [
            {"question": f"question {i}?", "choices": copy.deepcopy(choices)}
            for i in range(3)
        ]
    }


def change(path: tuple, value: object) -> dict:
    """The minimal quiz with one part replaced."""
    content = minimal()
    inside = content
    for step in path[:-1]:
        inside = inside[step]
    inside[path[-1]] = value
    return content


FIRST = ("questions", 0)
BROKEN = {
    "no mapping": ([], "keys"),
    "wrong key": ({"quiz": []}, "keys"),
    "extra key": ({**minimal(), "title": "x"}, "keys"),
    "no list": (change(("questions",), "x"), "3 to 5"),
    "two questions": ({"questions": minimal()["questions"][:2]}, "3 to 5"),
    "six questions": ({"questions": minimal()["questions"] * 2}, "3 to 5"),
    "same question": (change((*FIRST, "question"), "question 1?"), "twice"),
    "empty question": (change((*FIRST, "question"), " "), "a text"),
    "two choices": (
        change((*FIRST, "choices"), minimal()["questions"][0]["choices"][:2]),
        "3 to 4",
    ),
    "none right": (change((*FIRST, "choices", 1, "right"), False), "0 right ones"),
    "two right": (change((*FIRST, "choices", 0, "right"), True), "2 right ones"),
    "right as text": (change((*FIRST, "choices", 0, "right"), "no"), "true or false"),
    "no why": (change((*FIRST, "choices", 0, "why"), ""), "a text"),
    "same choice": (change((*FIRST, "choices", 0, "text"), "choice 1"), "twice"),
    "choice without why": (
        change((*FIRST, "choices", 0), {"text": "a", "right": False}),
        "keys",
    ),
}


@pytest.mark.bad_input
@pytest.mark.parametrize("name", BROKEN)
def test_broken_quizzes_are_refused(name):
    assert len(parse_quiz(minimal(), "x")) == 3
    content, words = BROKEN[name]
    with pytest.raises(ValueError, match=words):
        parse_quiz(content, "x")


@pytest.mark.bad_input
def test_unknown_quiz_and_choices_that_do_not_exist(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=f"did you mean '{QUIZ}'"):
        quiz("01_reward_to_distributions")
    field = QuizField(load_quiz(QUIZ))
    for tried in ({"0": [9]}, {"17": [0]}, {"x": [0]}, {"0": [-1]}, {"0": ["a"]}):
        with pytest.raises(ValueError, match="numbers of its choices"):
            field.tried = tried
    (tmp_path / "torn.json").write_text("{")
    monkeypatch.setattr("flowrl_lab.course.quiz_questions.FOLDER", tmp_path)
    with pytest.raises(ValueError, match="no JSON"):
        load_quiz("torn")

"""A learner's course as one page: complete, merged, offline."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest

from flowrl_lab.__main__ import main
from flowrl_lab.course.ledger import Ledger, merge_events, read_events
from flowrl_lab.course.report import render_course, write_course

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


def fill(ledger: Ledger) -> None:
    """What a learner does in notebook 01, on one machine."""
    versions = {"torch": "2.13.0", "python": "3.11.7"}
    facts = {"seed": 7, "budget": "quick", "device": "cpu", "versions": versions}
    ledger.record("session", "setup", facts)
    middle = {"question": "How many <times>?", "unit": "", "range": [1.0, 5.0]}
    ledger.record("prediction", "01.middle", {**middle, "answer": 1.25})
    ledger.record("outcome", "01.middle", {**middle, "predicted": 1.25, "result": 2.0})
    ledger.record("outcome", "01.middle", {**middle, "predicted": 2.0, "result": 2.0})
    bell = {"question": "Where?", "unit": "", "choices": ["left", "right"]}
    ledger.record("outcome", "01.bell", {**bell, "result": "left"})
    ledger.record("prediction", "01.bell", {**bell, "answer": "left"})
    ledger.record("outcome", "01.bell", {**bell, "predicted": "left", "result": "left"})
    ledger.record("prediction", "01.open", {**bell, "answer": "right"})
    for status, mistake in (
        ("failed", "direction"),
        ("failed", ""),
        ("failed", "sign"),
        ("passed", ""),
        ("failed", "bits"),
    ):
        ledger.record("check", "kl_divergence", {"status": status, "mistake": mistake})


def fill_elsewhere(ledger: Ledger) -> None:
    """The same learner on another machine."""
    quiz = {"question": "Which KL?", "choice": "both", "right": False}
    ledger.record("quiz", "01_reward_to_distribution", quiz)
    quiz = {**quiz, "choice": "the forward one", "right": True}
    ledger.record("quiz", "01_reward_to_distribution", quiz)
    facts = {"status": "failed", "mistake": "unknown here"}
    ledger.record("check", "an_old_exercise", facts)


@pytest.fixture
def files(tmp_path) -> list[Path]:
    paths = [tmp_path / "laptop.json", tmp_path / "desktop.json"]
    fill(Ledger(paths[0]))
    fill_elsewhere(Ledger(paths[1]))
    return paths


class Reader(HTMLParser):
    """Tags with their attributes, and the text of the page as a person reads it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words = ""
        self.feed(page)
        self.words = re.sub(r"\s+", " ", self.words)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.words += " "

    def handle_data(self, data):
        self.words += data


def test_the_page_tells_the_course(files, tmp_path):
    count = write_course(files, tmp_path / "course.html")
    assert count == len(read_events(files[0])) + len(read_events(files[1]))
    page = (tmp_path / "course.html").read_text(encoding="utf-8")
    words = Reader(page).words
    first = nbformat.read(NOTEBOOKS / "01_reward_to_distribution.ipynb", 4).cells[0]
    assert first.source.partition("\n")[0].removeprefix("# ") in words
    # the first prediction that met an outcome counts, not the one made after it
    assert "You predicted: 1.25. It came out as: 2. That is 0.75 more." in words
    assert "came out: 2" in words and "How many <times>?" in words
    assert "Just as you thought. (The outcome had been on the page before.)" in words
    assert "You predicted: right. Nothing came out yet." in words
    assert "kl_divergence ✓ passed direction, then another, then sign " in words
    assert "an_old_exercise ○ not yet unknown here" in words
    assert "Which KL? ✗ both → ✓ the forward one" in words
    assert "Predictions that met their outcome: 2 (1 exactly)" in words
    assert "Quiz questions answered: 1 (0 right at the first try)" in words
    assert re.search(r"7 quick cpu .*torch 2\.13\.0", words)


def test_the_page_opens_offline_and_is_escaped(files):
    page = render_course(merge_events(*map(read_events, files)))
    reader = Reader(page)
    assert {"script", "link", "img", "iframe"}.isdisjoint(t for t, _ in reader.tags)
    outside = [v for _, a in reader.tags for k, v in a.items() if k in ("src", "href")]
    assert outside == [] and "<times>" not in page
    pictures = [attrs for tag, attrs in reader.tags if tag == "svg"]
    assert len(pictures) == 1 and "0.75 more" in pictures[0]["aria-label"]


def test_the_order_of_files_and_copies_of_them_do_not_matter(files, tmp_path):
    copy = shutil.copy(files[0], tmp_path / "copy.json")
    pages = []
    for many in (files, files[::-1], [*files, copy]):
        write_course(many, tmp_path / "page.html", overwrite=True)
        pages.append((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert pages[0] == pages[1] == pages[2]


def test_without_the_notebooks_the_page_still_names_them(files, tmp_path):
    events = merge_events(*map(read_events, files))
    page = Reader(render_course(events, tmp_path)).words
    assert "notebook 01" in page and "kl_divergence" in page
    (tmp_path / "01_torn.ipynb").write_text("{")
    assert "notebook 01" in Reader(render_course(events, tmp_path)).words


def test_the_command_takes_the_learners_own_file(files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOWRL_PROGRESS", str(files[0]))
    assert main(["report"]) == 0
    assert "course.html" in capsys.readouterr().out
    before = (tmp_path / "course.html").read_bytes()
    assert main(["report", str(files[1])]) == 2
    assert "already exists" in capsys.readouterr().err
    assert (tmp_path / "course.html").read_bytes() == before
    assert main(["report", str(files[1]), "--force"]) == 0
    assert b"Which KL?" in (tmp_path / "course.html").read_bytes()
    assert main(["report", "--out", "two.html", *map(str, files)]) == 0
    assert (tmp_path / "two.html").is_file()


@pytest.mark.bad_input
def test_what_cannot_be_reported_is_said_and_nothing_is_touched(
    files, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOWRL_PROGRESS", str(tmp_path / "none.json"))
    before = files[0].read_bytes()
    (tmp_path / "hurt.json").write_text("{")
    (tmp_path / "empty.json").touch()
    for words, said in (
        (["report"], "is not there"),
        (["report", "missing.json"], "is not there"),
        (["report", "hurt.json"], "no progress file"),
        (["report", "empty.json"], "is empty"),
        (["report", str(files[0]), "--out", str(files[0]), "--force"], "progress file"),
    ):
        assert main(words) == 2
        assert said in capsys.readouterr().err
    assert files[0].read_bytes() == before
    assert (tmp_path / "hurt.json").read_text() == "{"
    assert not (tmp_path / "course.html").exists()

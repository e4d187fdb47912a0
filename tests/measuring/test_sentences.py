"""Sentences that compare: each stands on a test of the recorded runs.

A sentence that is changed, or runs that no longer bear it out, fail here; so does a
sentence with a comparison in those sections that nobody has tied to anything.
``tests/support/tied_sentences.py`` holds the sentences and what they rest on.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from tied_pages import N07, N08, N11, PAGES, README, RESULTS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tied() -> ModuleType:
    """Here, not above: every worker reads this file, one runs it."""
    import tied_sentences

    return tied_sentences


def prose(page: str) -> str:
    text = (ROOT / page).read_text(encoding="utf-8")
    if page.endswith(".ipynb"):
        cells = nbformat.reads(text, as_version=nbformat.NO_CONVERT).cells
        text = "\n\n".join(c.source for c in cells if c.cell_type == "markdown")
    return text


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("page", PAGES)
def test_the_sentences_of_comparison_are_borne_out_by_the_runs(page, tied):
    text = flat(prose(page))
    mine = [(said, checks) for where, said, checks in tied.SENTENCES if where == page]
    assert mine
    assert all(checks for _, checks in mine)
    gone = [said for said, _ in mine if said not in text]
    assert not gone, f"{page} no longer says: {gone}"
    failed = {
        said: [check for check in checks if not tied.holds(check)]
        for said, checks in mine
    }
    wrong = {said: checks for said, checks in failed.items() if checks}
    assert not wrong, f"{page}: not borne out by the runs: {wrong}"


def test_every_sentence_is_of_a_page_that_is_read(tied):
    assert {page for page, _, _ in tied.SENTENCES} == set(PAGES)


# ------------------------------------------------------------- none left out

COMPARES = re.compile(
    r"\b(more|fewer|less|most|higher|lower|best|better|ahead|beats?|as many|"
    r"as accurate|equals?|equally|level|times|within the spread|no difference|keeps?|"
    r"collapses|ends? (?:below|above|where))\b",
    re.IGNORECASE,
)
# Where the recorded study is talked about: from a heading to the next of its rank.
SECTIONS = (
    (README, "## What it shows"),
    (RESULTS, "## The protocol's runs"),
    (RESULTS, "## The study before it"),
    (N07, "## 7.8"),
    (N07, "## 7.9"),
    (N08, "## 8.7"),
    *((N11, f"## 11.{number} ") for number in range(3, 12)),
)
# Sentences there that compare, but not runs: what a word means, what was done, theory.
NO_COMPARISON_OF_RUNS = (
    "is that of the policy among right answers",
    "so many equally likely ones would be as varied",
    "means that Welch's test",
    '"more" and "fewer", that p is below 0.05',
    "part of the gap is how far one has trained",
    "one control rather than two",
    "their gradients are equal up to a factor",
    "So the target is not the only way to keep answers",
    'What "more accurate" says above',
    "Part of the gap is how far a maximiser has trained",
    "It is not the only way",
    "It buys variety, not accuracy",
    "After 200 steps this table says as much about *overtraining*",
    "with its smaller β untried",
    "With **graded rewards** (brief answers earn more",
    "[the protocol](../study/PROTOCOL.md) chooses learning rate",
    "the same sampling budget for everyone",
    # questions, and what words mean
    "which of these keep as many answers as FlowRL?",
    "*As many* means here",
    "at most one effective answer fewer.",
    "Which of these are more than chance?",
    "Welch's test asks whether two means of five seeds",
    "More, or chance?",
    "how often would two rows of seeds differ this much",
    "whoever asks twenty times finds one p",
    "the smallest is multiplied by their number",
    '"more" holds if every such test says so',
    # how to read a plot, what the untrained model is, theory, what was done
    "Up is more often right, to the right is more varied",
    "model has all of its answers, and is right less than half of the time",
    "It is the *target* that keeps the variety",
    "There β r̂ counts *per token*",
    "ask there for more than a small policy can follow",
    "The dial trades one against the other",
    "five seeds of each of these algorithms and of several more",
    "the best *training* reward wins",
    "Some rivals keep up.",
    "Two more things have to be said beside that table",
    "more accurate than the reward maximisers.",
    "If the *loss* matters, FlowRL keeps more than these two",
    '"β = 15 is best"',
    "five other seeds are judged on *test* prompts",
    "a large mark is the best step",
    "p times `num_planned`, at most 1",
    'and the verdict on "the first has more"',
    "1, −1 for *less*",
    # what stands under the README's figure, and heads of items whose sentences are tied
    "where training was stopped best, and after 200 steps](notebooks",
    "**On maths it keeps answers, and pays.",
    "**On code, stopped where each is best, little is left:",
    "**Nobody keeps it all:",
    "**At equal accuracy** (a pair that was looked for *after* the runs)",
    '"More" and "less" mean that this corrected p is below',
)


def section(page: str, heading: str) -> str:
    text = prose(page)
    start = text.index(heading)
    rest = text[start + len(heading) :]
    end = re.search(r"^## ", rest, flags=re.MULTILINE)
    rest = rest[: end.start()] if end else rest
    table = r"<!-- (?:recorded|protocol).*?end of the table -->"
    return re.sub(table, " ", rest, flags=re.DOTALL)


def sentences_of(text: str) -> list[str]:
    """Also at list items, which need not end with a stop."""
    parts = re.split(r"(?<=[.!?:;])\**\s+|\n\s*[-*] |\n\n", text)
    return [flat(part).removeprefix("- ") for part in parts if part.strip()]


@pytest.mark.parametrize(("page", "heading"), SECTIONS)
def test_every_comparison_there_is_tied_to_the_runs(page, heading, tied):
    held = [sentence for where, sentence, _ in tied.SENTENCES if where == page]
    known = [*held, *NO_COMPARISON_OF_RUNS]
    loose = [
        said
        for said in sentences_of(section(page, heading))
        if COMPARES.search(said)
        and not said.endswith("?")  # a question claims nothing
        and not any(one in said or said.rstrip(".:;*") in one for one in known)
    ]
    assert not loose, "\n".join(loose)


def test_a_comparison_that_nobody_has_tied_is_found():
    text = "It is fast. FlowRL beats GRPO here.\n\n- and keeps more answers"
    found = [s for s in sentences_of(text) if COMPARES.search(s)]
    assert found == ["FlowRL beats GRPO here.", "and keeps more answers"]


def test_what_the_runs_do_not_bear_out_fails(tied):
    """The sentences that stood here before, each by the test that it lacked."""
    maths, code, p64, accuracy = tied.MATHS, tied.CODE, tied.P64, tied.ACC
    ours, mean = tied.OURS, tied.mean
    solved = mean(code, ours, p64), mean(code, "untrained", p64)
    assert not tied.holds(tied.Fact(solved[0] >= solved[1]))
    # "a little more accurate"
    assert tied.Alike(code, accuracy, ours, "reinforce_pp").holds()
    dial = tied.SOFT, ours, tied.SHARP, tied.SHARPER
    sharpest = max(dial, key=lambda name: mean(maths, name, accuracy))
    assert sharpest == tied.SHARPER  # "β = 15, its most accurate setting"
    assert not tied.Alike(maths, tied.MANY, ours, "grpo").holds()

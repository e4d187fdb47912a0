"""A learner's course as one HTML page that opens offline."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from flowrl_lab._files import course_root
from flowrl_lab._validation import bad_input
from flowrl_lab.course.exercises import EXERCISES
from flowrl_lab.course.ledger import Event, merge_events, progress_path, read_events
from flowrl_lab.course.questions import say
from flowrl_lab.course.verdicts import number_line, outcome_text
from flowrl_lab.measuring.pages import html_page, write_page
from flowrl_lab.plots.tabulate import html_table

__all__ = ["read_progress", "render_course", "write_course"]

NOTEBOOKS = course_root() / "notebooks"
ELSEWHERE = "elsewhere"


def read_progress(files: Sequence[str | Path]) -> list[Event]:
    """The events of several progress files, merged; of this learner's for none.

    Raises:
        ValueError: a file is not there, or is no progress file.
    """
    paths = [Path(file) for file in files] or [progress_path()]
    for path in paths:
        if not path.is_file():
            raise bad_input(
                "files",
                f"names {path}, which is not there",
                "a progress file (flowrl_progress.json)",
                "run a notebook first, or name the file",
            )
    return merge_events(*map(read_events, paths))


def write_course(
    files: Sequence[str | Path], out: str | Path, *, overwrite: bool = False
) -> int:
    """Write the page.

    Args:
        files: progress files; none means this learner's own.
        out: the HTML file.
        overwrite: replace it if it is there.

    Returns:
        How many events it shows.

    Raises:
        ValueError: nothing to show, a file that cannot be read, or ``out`` is there
            already.
    """
    out, events = Path(out), read_progress(files)
    sources = {Path(file).resolve() for file in files} or {progress_path().resolve()}
    if out.resolve() in sources:
        raise bad_input(
            "out", f"is {out}, a progress file", "a page's name", "--out course.html"
        )
    write_page(out, render_course(events), overwrite=overwrite)
    return len(events)


@dataclass(frozen=True)
class Home:
    """A notebook: its file's stem, its title, and the exercises in it."""

    stem: str
    title: str
    exercises: tuple[str, ...]


def render_course(events: Iterable[Event], notebooks: Path = NOTEBOOKS) -> str:
    """The page that ``write_course`` writes.

    Args:
        events: of progress files, in any order.
        notebooks: the folder they belong to, for titles.

    Raises:
        ValueError: there are no events.
    """
    events = merge_events(events)
    if not events:
        raise bad_input(
            "events", "is empty", "at least one event", "run a notebook first"
        )
    found = filter(None, map(_read_home, notebooks.glob("*.ipynb")))
    homes = {home.stem: home for home in found}
    rooms: dict[str, list[Event]] = {}
    for event in events:
        rooms.setdefault(_home_of(event, homes), []).append(event)
    parts = [_overview(events)]
    for stem in sorted(rooms, key=lambda stem: (stem == ELSEWHERE, stem)):
        title = homes[stem].title if stem in homes else stem.replace("_", " ")
        body = _room(rooms[stem])
        parts += [f"<h2>{escape(title)}</h2>", body] if body else []
    parts += ["<h2>Sessions</h2>", _sessions(events)]
    return html_page("My FlowRL course", *parts)


def _read_home(path: Path) -> Home | None:
    """A notebook's title and exercises; None for one that cannot be read."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        first = "".join(cells[0]["source"]).partition("\n")[0]
        marks = [cell["metadata"].get("flowrl", {}) for cell in cells]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    names = tuple(mark["exercise"] for mark in marks if "exercise" in mark)
    return Home(path.stem, first.lstrip("# ") or path.stem, names)


def _home_of(event: Event, homes: dict[str, Home]) -> str:
    """The notebook an event belongs to, as the stem of its file."""
    key = str(event["key"])
    if event["kind"] == "quiz":
        return key
    if event["kind"] in ("prediction", "outcome"):
        found = (stem for stem in homes if stem[:2] == key[:2])
        return next(found, f"notebook {key[:2]}")
    if event["kind"] == "check":
        found = (home.stem for home in homes.values() if key in home.exercises)
        return next(found, str(event.get("notebook") or ELSEWHERE))
    return ELSEWHERE  # sessions have a table of their own


def _of_kind(
    events: Iterable[Event], *kinds: str, by: str = "key"
) -> dict[str, list[Event]]:
    """key -> its events of these kinds, in order of time."""
    found: dict[str, list[Event]] = {}
    for event in events:
        if event["kind"] in kinds:
            found.setdefault(str(event.get(by, "")), []).append(event)
    return found


def _overview(events: list[Event]) -> str:
    told = [_told(rows) for rows in _of_kind(events, "prediction", "outcome").values()]
    settled = [row for row in told if "result" in row and "predicted" in row]
    same = sum(row["predicted"] == row["result"] for row in settled)
    checks = _of_kind(events, "check").values()
    passed = sum(any(e.get("status") == "passed" for e in rows) for rows in checks)
    first = [rows[0] for rows in _of_kind(events, "quiz", by="question").values()]
    right = sum(bool(row.get("right")) for row in first)
    days = [str(event["time"])[:10] for event in events]
    return (
        f"<p>{days[0]} to {days[-1]}. Predictions that met their outcome: "
        f"{len(settled)} ({same} exactly). Exercises passed: {passed} of "
        f"{len(EXERCISES)}. Quiz questions answered: {len(first)} ({right} right at "
        "the first try).</p>"
        "<p class='soft'>A prediction that was wrong is not a fault: it marks the "
        "place where something could be learned.</p>"
    )


def _room(events: list[Event]) -> str:
    """One notebook: predictions, checks, quiz."""
    told = [_told(rows) for rows in _of_kind(events, "prediction", "outcome").values()]
    parts = [_figure_or_note(row) for row in told]
    checks = _of_kind(events, "check")
    if checks:
        head = ("exercise", "verdict", "mistakes on the way", "passed on")
        rows = [_check_row(name, verdicts) for name, verdicts in checks.items()]
        parts.append(html_table("Exercises.", head, rows))
    quiz = _of_kind(events, "quiz", by="question")
    if quiz:
        rows = "".join(_quiz_row(text, tries) for text, tries in quiz.items())
        parts.append(f"<h3>Quiz</h3>\n<ul>{rows}</ul>")
    return "\n".join(parts)


def _told(events: list[Event]) -> dict:
    """What one key's events come to.

    The first outcome that met a prediction counts: what is answered later, one knows
    already.  ``late`` says that an outcome had been shown before the prediction.
    """
    outcomes = [event for event in events if event["kind"] == "outcome"]
    met = [event for event in outcomes if "predicted" in event]
    if met:
        before = outcomes[: outcomes.index(met[0])]
        return {**met[0], "late": bool(before)}
    if outcomes:
        return {**outcomes[-1], "late": False}
    last = events[-1]
    return {**last, "predicted": last.get("answer"), "late": False}


def _figure_or_note(row: dict) -> str:
    """``_figure``; a note for events that no version of the course writes.

    The file is a learner's: merged, edited by hand, or from another version.  One odd
    event must not cost the page.
    """
    try:
        return _figure(row)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
        key = escape(str(row["key"]))
        return f"<p class='soft'>The events about {key} cannot be shown.</p>"


def _figure(row: dict) -> str:
    """A prediction and its outcome, with the number line where there are numbers."""
    question = f"<p><b>{escape(str(row.get('question', row['key'])))}</b></p>"
    if "result" not in row:
        guess = say(row["predicted"], str(row.get("unit", "")))
        words, picture = f"You predicted: {guess}. Nothing came out yet.", ""
    else:
        words = outcome_text(row)
        picture = "" if isinstance(row["result"], str) else number_line(row)
    if row["late"]:
        words += " (The outcome had been on the page before.)"
    caption = f"<figcaption>{escape(words)}</figcaption>"
    return f"<figure>{question}{picture}{caption}</figure>"


def _check_row(name: str, verdicts: list[Event]) -> list[str]:
    passed = [event for event in verdicts if event.get("status") == "passed"]
    until = verdicts[: verdicts.index(passed[0])] if passed else verdicts
    names = [str(event.get("mistake") or "another") for event in until]
    return [
        name,
        "✓ passed" if passed else "○ not yet",
        ", then ".join(names) or "–",
        str(passed[0]["time"])[:10] if passed else "–",
    ]


def _quiz_row(question: str, tries: list[Event]) -> str:
    """A question with every choice that was tried, in order."""
    said = " → ".join(
        f"{'✓' if one.get('right') else '✗'} {one.get('choice')}" for one in tries
    )
    return f"<li>{escape(question)}<br>{escape(said)}</li>\n"


def _sessions(events: Iterable[Event]) -> str:
    """Seeds, devices and versions; sessions that agree share a line."""
    counts: dict[tuple, list[Event]] = {}
    for event in events:
        if event["kind"] != "session":
            continue
        versions = event.get("versions")
        versions = versions if isinstance(versions, dict) else {}
        words = ", ".join(f"{name} {number}" for name, number in versions.items())
        facts = (event.get("notebook") or "–", event.get("seed"), event.get("budget"))
        facts += (event.get("device"), event.get("machine"), words)
        counts.setdefault(tuple(map(str, facts)), []).append(event)
    head = ("last", "times", "notebook", "seed", "budget", "device", "machine")
    rows = [
        [str(same[-1]["time"])[:16].replace("T", " "), str(len(same)), *facts]
        for facts, same in counts.items()
    ]
    if not rows:
        return "<p>None noted.</p>"
    return html_table("Times in UTC.", (*head, "versions"), rows)

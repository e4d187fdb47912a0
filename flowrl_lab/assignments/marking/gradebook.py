"""What grades become: CSV files for the gradebook, one feedback page a student."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from flowrl_lab._files import write_atomically
from flowrl_lab.assignments.bundles import Bundle, Loaded, is_by_hand
from flowrl_lab.assignments.marking.grading import Grade
from flowrl_lab.measuring.pages import html_page

__all__ = ["render_feedback", "write_gradebook"]

GRADEBOOK = "gradebook.csv"
FIRST = ("student", "submission", "assignment", "variant", "status")
# What begins a formula, at the start of a cell or behind what may separate cells.
FORMULA = re.compile(
    r"(^|[;,|:\t])([\s\"'`\u00ab\u201c\u201d\u201e\u2018\u2019\u200b\ufeff]*"
    r"[=+\-@|%\u2212\uff1d\uff0b\uff0d\uff20\uff5c\uff05\ufe66\ufe62\ufe63\ufe6b\ufe6a])"
)
LAST = ("points", "of", "by hand", "problems")


def write_gradebook(
    out: Path, grades: Sequence[Grade], bundles: Mapping[str, Bundle]
) -> list[Path]:
    """Write ``gradebook.csv``, a CSV for each assignment, and the feedback pages.

    The same grades give the same bytes: there is no time and no order of arrival.
    """
    written = [out / GRADEBOOK]
    rows = [_row(grade, bundles) for grade in grades]
    write_atomically(written[0], _to_csv([*FIRST, *LAST], rows))
    for key in sorted({grade.assignment for grade in grades} & set(bundles)):
        mine = [grade for grade in grades if grade.assignment == key]
        loaded = bundles[key].load(0)
        names = [q.name for q in loaded.questions if not is_by_hand(q)]
        rows = [
            _row(grade, bundles) | {name: _number(grade.earned(name)) for name in names}
            for grade in mine
        ]
        path = out / f"{key}.csv"
        write_atomically(path, _to_csv([*FIRST, *names, *LAST], rows))
        written.append(path)
    for grade in grades:
        bundle = bundles.get(grade.assignment)
        loaded = bundle.load(grade.variant) if bundle else None
        page = render_feedback(grade, bundle, loaded)
        path = out / "feedback" / f"{grade.key}.html"
        write_atomically(path, page.encode("utf-8", "replace"))
    return written


def _row(grade: Grade, bundles: Mapping[str, Bundle]) -> dict[str, str]:
    bundle = bundles.get(grade.assignment)
    questions = bundle.load(0).questions if bundle else ()
    automatic = sum(q.points for q in questions if not is_by_hand(q))
    by_hand = sum(q.points for q in questions if is_by_hand(q))
    return {
        "student": grade.student,
        "submission": grade.path,
        "assignment": grade.assignment,
        "variant": str(grade.variant),
        "status": grade.status,
        "points": _number(grade.points),
        "of": _number(automatic),
        "by hand": _number(by_hand),
        "problems": "; ".join(f"{what} -> {fix}" for what, fix in grade.problems),
    }


def _number(value: int | float) -> str:
    return f"{round(value, 4):g}"


def _to_csv(head: Sequence[str], rows: Iterable[Mapping[str, str]]) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, head, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _harmless(value) for name, value in row.items()})
    return stream.getvalue().encode("utf-8", "replace")


def _harmless(text: str) -> str:
    """A name such as ``=cmd()`` must not be a formula in somebody's spreadsheet.

    Nor ``x;=cmd()`` where the spreadsheet takes ``;`` for the separator, nor a formula
    behind quotes or spaces, nor with the wide signs of East Asia.
    """
    text = "".join(c if c.isprintable() else " " for c in text)
    return FORMULA.sub(r"\1'\2", text)


# ---------------------------------------------------------------------------- feedback


def render_feedback(grade: Grade, bundle: Bundle | None, loaded: Loaded | None) -> str:
    """One student's page: what was found, and what to do. No hidden test is shown."""
    title = bundle.title if bundle else "Submission"
    parts = [f"<p>{escape(grade.path)} · variant {grade.variant}</p>"]
    if grade.status != "graded":
        parts.append("<p><b>This submission could not be marked.</b></p>")
    if grade.problems:
        rows = "".join(
            f"<li>{escape(what)}. <b>What to do:</b> {escape(fix)}.</li>"
            for what, fix in grade.problems
        )
        parts.append(f"<h2>To mend</h2><ul>{rows}</ul>")
    if grade.left_out:
        rows = "".join(
            f"<li><code>{escape(line)}</code></li>" for line in grade.left_out
        )
        parts.append(
            "<h2>Left out</h2><p>Only a notebook understands these lines. They were "
            "not run, and cost nothing unless a function needs them.</p>"
            f"<ul>{rows}</ul>"
        )
    if loaded is not None:
        parts += _points(grade, loaded)
    return html_page(f"{title}: {grade.student}", *parts)


def _points(grade: Grade, loaded: Loaded) -> list[str]:
    automatic = [q for q in loaded.questions if not is_by_hand(q)]
    total = sum(q.points for q in automatic)
    parts = [f"<h2>{_number(grade.points)} of {_number(total)} points</h2>"]
    for question in automatic:
        earned = grade.earned(question.name)
        rows = "".join(
            f"<tr><td>{'✓' if part.earned == part.points else '✗'} "
            f"{escape(part.title)}</td><td>{_number(part.earned)} of "
            f"{_number(part.points)}</td><td class='text'>{escape(part.note)}</td></tr>"
            for part in grade.parts.get(question.name, ())
        )
        head = f"{question.title}: {_number(earned)} of {_number(question.points)}"
        parts.append(
            f"<h3>{escape(head)} <code>{escape(question.name)}</code></h3>"
            f"<div class='wide'><table><tbody>{rows}</tbody></table></div>"
        )
    for question in loaded.questions:
        if is_by_hand(question):
            answer = grade.argued.get(question.name, "").strip() or "(no answer)"
            parts.append(
                f"<h3>{escape(question.title)}: up to {_number(question.points)} "
                f"points, read by a person</h3><pre style='white-space:pre-wrap'>"
                f"{escape(answer)}</pre>"
            )
    return parts

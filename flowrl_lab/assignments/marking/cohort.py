"""The instructor's report: where a cohort fails, how it scored, what looks alike."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from itertools import combinations

from flowrl_lab.assignments.bundles import Bundle, Loaded, is_by_hand
from flowrl_lab.assignments.marking.grading import Grade
from flowrl_lab.measuring.pages import html_page
from flowrl_lab.plots.tabulate import html_table

__all__ = ["likeness", "near_identical", "render_cohort"]

TOKENS = re.compile(r"#[^\n]*|[A-Za-z_]\w*|\d[\w.]*|[^\s\w]")
SHINGLE = 8
LEAST_SHINGLES = 40
ALIKE = 0.85
MAX_PAIRS = 30
MAX_SHOWN = 6_000
BINS = 10


def render_cohort(grades: Sequence[Grade], bundles: Mapping[str, Bundle]) -> str:
    """One page over all assignments that were marked."""
    parts = [_overview(grades)]
    for key in sorted({grade.assignment for grade in grades} & set(bundles)):
        mine = [grade for grade in grades if grade.assignment == key]
        parts += _assignment(bundles[key], mine)
    return html_page("Cohort report", *parts)


def _overview(grades: Sequence[Grade]) -> str:
    failed = [grade for grade in grades if grade.status != "graded"]
    rows = Counter(what for grade in grades for what, _ in grade.problems)
    problems = html_table(
        "Problems, by how often.",
        ("problem", "submissions"),
        [(what[:120], str(count)) for what, count in rows.most_common(40)],
    )
    listed = ", ".join(escape(grade.path) for grade in failed) or "none"
    return (
        f"<p>{len(grades)} submissions, {len(failed)} of them could not be marked: "
        f"{listed}.</p>{problems if rows else ''}"
    )


def _assignment(bundle: Bundle, grades: Sequence[Grade]) -> list[str]:
    loaded = bundle.load(0)
    total = sum(q.points for q in loaded.questions if not is_by_hand(q))
    graded = [grade for grade in grades if grade.status == "graded"]
    parts = [f"<h2>{escape(bundle.title)}</h2>"]
    if not graded:
        return [*parts, "<p>Nothing was marked.</p>"]
    points = sorted(grade.points for grade in graded)
    middle = points[len(points) // 2]
    parts.append(
        f"<p>{len(graded)} marked; mean {sum(points) / len(points):.1f}, median "
        f"{middle:g} of {total:g} points.</p>"
    )
    parts.append(_histogram([p / total for p in points]))
    parts.append(_question_table(loaded, graded))
    parts += _rubric(loaded, graded)
    parts += _pairs(bundle, graded)
    return parts


def _histogram(shares: Sequence[float]) -> str:
    """How many scored what, as bars that are also read as text."""
    counts = [0] * BINS
    for share in shares:
        counts[min(BINS - 1, int(share * BINS))] += 1
    most = max(counts)
    bars, words = [], []
    for place, count in enumerate(counts):
        height = round(120 * count / most)
        x, label = 20 + 56 * place, f"{10 * place}-{10 * place + 10} %"
        words.append(f"{label}: {count}")
        said = 'fill="currentColor" text-anchor="middle" font-size="12"'
        bars.append(
            f'<rect x="{x}" y="{140 - height}" width="46" height="{height}" '
            f'fill="#0072B2"/><text x="{x + 23}" y="{132 - height}" {said}>{count}'
            f'</text><text x="{x + 23}" y="156" {said}>{label}</text>'
        )
    return (
        f'<figure><svg viewBox="0 0 600 165" role="img" aria-label="Score histogram. '
        f'{"; ".join(words)}">{"".join(bars)}</svg><figcaption>Submissions by share of '
        "the points.</figcaption></figure>"
    )


def _question_table(loaded: Loaded, grades: Sequence[Grade]) -> str:
    rows = []
    for question in loaded.questions:
        if is_by_hand(question):
            continue
        parts = [part for g in grades for part in g.parts.get(question.name, ())]
        share = sum(part.earned for part in parts) / (question.points * len(grades))
        none = sum(grade.earned(question.name) == 0 for grade in grades)
        lost = Counter(
            f"{part.title}: {part.note}" for part in parts if part.earned < part.points
        )
        usual = "; ".join(f"{n}× {what[:90]}" for what, n in lost.most_common(3))
        rows.append((question.name, f"{share:.0%}", str(none), usual))
    rows.sort(key=lambda row: int(row[1].rstrip("%")))
    head = ("question", "mean", "without a point", "what was lost most often")
    return html_table("Where people fail, the hardest first.", head, rows)


def _rubric(loaded: Loaded, grades: Sequence[Grade]) -> list[str]:
    """The argued answers one below the other, with what to look for."""
    parts = []
    for question in filter(is_by_hand, loaded.questions):
        rubric = "".join(f"<li>{escape(line)}</li>" for line in question.rubric)
        answers = "".join(
            f"<h4>{escape(grade.student)}</h4><pre style='white-space:pre-wrap'>"
            f"{escape(grade.argued.get(question.name, '').strip() or '(no answer)')}"
            "</pre>"
            for grade in grades
        )
        parts.append(
            f"<h3>To read: {escape(question.title)} ({question.points:g} points)</h3>"
            f"<ul>{rubric}</ul><details><summary>{len(grades)} answers</summary>"
            f"{answers}</details>"
        )
    return parts


# ------------------------------------------------------------------------ looking alike


def _pairs(bundle: Bundle, grades: Sequence[Grade]) -> list[str]:
    pairs = near_identical(grades, bundle.template)
    parts = [
        "<h3>Near-identical submissions</h3><p class='soft'>A hint, never a "
        "verdict: short right answers look alike, and friends may work together where "
        "the course allows it. Compared is what a student wrote, without what was "
        "handed out.</p>"
    ]
    if not pairs:
        return [*parts, "<p>None.</p>"]
    for share, first, second in pairs[:MAX_PAIRS]:
        columns = "".join(
            "<td style='text-align:left;width:50%'><pre style='white-space:pre-wrap'>"
            f"{escape(own_text(grade.text, bundle.template)[:MAX_SHOWN])}</pre></td>"
            for grade in (first, second)
        )
        parts.append(
            f"<details><summary>{share:.0%}: {escape(first.path)} and "
            f"{escape(second.path)}</summary><table style='table-layout:fixed;"
            f"width:100%'><tr>{columns}</tr></table></details>"
        )
    return parts


def own_text(text: str, template: Sequence[str]) -> str:
    """The lines that were not handed out."""
    given = {line.strip() for cell in template for line in cell.splitlines()}
    rows = [row for row in text.splitlines() if row.strip() not in given]
    return "\n".join(rows)


def near_identical(
    grades: Sequence[Grade], template: Sequence[str]
) -> list[tuple[float, Grade, Grade]]:
    """Pairs of different students whose own code is nearly the same, likest first."""
    shingles = {}
    for grade in grades:
        found = _shingles(own_text(grade.text, template))
        if len(found) >= LEAST_SHINGLES:
            shingles[grade.key] = (grade, found)
    pairs = []
    for (first, a), (second, b) in combinations(shingles.values(), 2):
        if first.student.lower() != second.student.lower():
            share = likeness(a, b)
            if share >= ALIKE:
                pairs.append((share, first, second))
    return sorted(pairs, key=lambda pair: (-pair[0], pair[1].key, pair[2].key))


def likeness(first: set, second: set) -> float:
    """Shared shingles over all of both."""
    if not first or not second:
        return 0.0
    small, large = sorted((len(first), len(second)))
    if small < ALIKE * large:  # they cannot be alike: no need to compare
        return 0.0
    return len(first & second) / len(first | second)


def _shingles(text: str) -> set[int]:
    tokens = TOKENS.findall(text)
    return {
        hash(tuple(tokens[i : i + SHINGLE])) for i in range(len(tokens) - SHINGLE + 1)
    }

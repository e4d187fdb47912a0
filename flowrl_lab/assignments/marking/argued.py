"""Find the argued answers of a submission again, wherever the student left them.

Each was handed out as a blank cell below its question.  Students split that cell,
copy it, delete it and write a new one, turn it into code, print it, write it into
comments, below it or into the question itself; some editors drop the metadata by which
it is known.  So an answer is looked for by its mark, by its place below the question's
heading, and if neither finds one, in everything that the student wrote in words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from flowrl_lab.assignments.marking.submissions import Cell

__all__ = ["Argument", "find_argument"]

LEAST_WORDS = 8  # of a text that could be an answer
MAX_LETTERS = 60_000
FILLED_IN = re.compile(r"\{\{\w+\}\}")
SEPARATOR = "\n\n"
# Comments and texts of a code cell; one that is never closed ends with its line.
SAID = re.compile(
    r"#[^\n]*|\"{3}(?s:.*?)(?:\"{3}|\Z)|'{3}(?s:.*?)(?:'{3}|\Z)"
    r"|\"(?:[^\"\\\n]|\\.)*\"?|'(?:[^'\\\n]|\\.)*'?"
)


@dataclass(frozen=True)
class Argument:
    """An argued answer as it was found.

    Attributes:
        text: for the person who marks it, "" if there is none.
        note: what the student must know about how it was found, or "".
    """

    text: str
    note: str = ""


def find_argument(
    name: str,
    cells: Sequence[Cell],
    handed_out: Sequence[tuple[str, str, str, str]],
) -> Argument:
    """The argued answer to one question.

    Args:
        name: of the question.
        cells: of the submission, in order.
        handed_out: cells of the notebook that was handed out: (kind, text, argued
            answer, names that are asked for in it).
    """
    given = _Given(name, handed_out)
    marked = [n for n, cell in enumerate(cells) if cell.argued == name]
    placed = _places(cells, given)
    texts = {n: given.own_text(cells[n].text) for n in {*marked, *placed}}
    texts |= {n: text for n, text in placed.items() if n not in marked}
    texts = {n: text for n, text in sorted(texts.items()) if text}
    if sum(len(text.split()) for text in texts.values()) >= LEAST_WORDS:
        return _joined(texts, "stood in cells", sure=len(texts) == 1)
    wide = {n: given.own_text(c.text) for n, c in enumerate(cells) if _is_words(c)}
    wide = {n: t for n, t in wide.items() if len(t.split()) >= LEAST_WORDS}
    return _joined(dict(sorted({**wide, **texts}.items())), "may be", sure=not wide)


def _joined(texts: dict[int, str], how: str, *, sure: bool) -> Argument:
    """The parts one below the other, the same text once."""
    parts = list(dict.fromkeys(texts.values()))
    text = SEPARATOR.join(parts)
    if len(text) > MAX_LETTERS:
        return Argument(text[:MAX_LETTERS], "is too long: the rest was cut off")
    if sure:
        return Argument(text)
    numbers = ", ".join(str(n + 1) for n in texts)
    return Argument(text, f"{how} {numbers[:80]} of the notebook: all were taken")


def _is_words(cell: Cell) -> bool:
    return cell.kind != "code" and not cell.given


class _Given:
    """What was handed out, and where the answer to one question was to stand."""

    def __init__(self, name: str, handed_out: Sequence[tuple[str, str, str, str]]):
        texts = [row[1] for row in handed_out if row[0] != "code"]
        self.lines = {_plain(line) for text in texts for line in text.splitlines()}
        self.headings = {line for line in self.lines if line.startswith("#")}
        self.filled_in = [
            re.compile(".*".join(map(re.escape, FILLED_IN.split(line))))
            for line in self.lines
            if FILLED_IN.search(line)
        ]
        self.code = {_plain(row[1]) for row in handed_out if row[0] == "code"}
        asked = [re.escape(name) for row in handed_out for name in row[3].split()]
        names = "|".join(asked) or r"(?!)"
        self.defines = re.compile(  # a call is a sketch, and so is a comparison
            rf"^(def ({names})\b|({names})\b[ \t]*(:[^=\n]*)?=(?!=))", re.MULTILINE
        )
        self.heading = self._heading_above(name, handed_out)

    def _heading_above(
        self, name: str, handed_out: Sequence[tuple[str, str, str, str]]
    ) -> str:
        """The last heading above the blank of a question."""
        heading = ""
        for _, text, argued, _ in handed_out:
            if argued == name:
                return heading
            found = [p for p in map(_plain, text.splitlines()) if p in self.headings]
            heading = found[-1] if found else heading
        return ""

    def is_given(self, line: str) -> bool:
        """Whether a line was handed out, and nobody wrote it.

        A line of one word that is no heading, such as a code fence, tells nothing.
        """
        plain = _plain(line)
        if " " not in plain:
            return False
        return plain in self.lines or any(p.fullmatch(plain) for p in self.filled_in)

    def own_text(self, text: str) -> str:
        """A cell's text without the lines that were handed out."""
        rows = [row for row in text.splitlines() if not self.is_given(row)]
        return "\n".join(rows).strip()

    def ends_the_place(self, cell: Cell) -> bool:
        """Whether a cell of code belongs to another task."""
        code = cell.kind in ("code", "prose")
        known = _plain(cell.text) in self.code or self.defines.search(cell.text)
        return cell.given or (code and bool(known))


def _says_much(cell: Cell) -> bool:
    """Whether a cell could be an answer: words, or code that holds enough of them."""
    if cell.kind != "code":
        return True
    return len(" ".join(SAID.findall(cell.text)).split()) >= LEAST_WORDS


def _plain(text: str) -> str:
    return " ".join(text.split())


def _places(cells: Sequence[Cell], given: _Given) -> dict[int, str]:
    """What the student wrote between the question's heading and the next one.

    Returns:
        Number of a cell -> the own text in it.
    """
    found: dict[int, list[str]] = {}
    inside = False
    for number, cell in enumerate(cells):
        if given.ends_the_place(cell):
            inside = False
            continue
        says = _says_much(cell)
        for row in cell.text.splitlines():
            if _plain(row) in given.headings:
                inside = _plain(row) == given.heading
            elif inside and says:
                found.setdefault(number, []).append(row)
    texts = {n: given.own_text("\n".join(rows)) for n, rows in found.items()}
    return {n: text for n, text in texts.items() if text}

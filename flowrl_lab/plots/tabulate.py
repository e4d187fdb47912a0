"""Rows of text as a table: for the terminal, for Markdown and for HTML."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import SupportsFloat

__all__ = ["Gauge", "Table", "html_table", "markdown_table", "text_table"]


@dataclass(frozen=True)
class Gauge:
    """A cell of a table: its words, and below them their place on an axis.

    Attributes:
        words: what stands there, also where nothing is drawn.
        axis: both ends, for all cells that are to be compared.
        at: where a dot is drawn.
        span: both ends of a thick line: an interval, or a bar from 0.
        level: where a dashed line crosses: no difference, or what there is room for.
        band: both ends of a grey region, such as a noise floor.
        color: of dot and line.
        log: a log axis; all numbers above 0.

    A number may be a tensor of one.
    """

    words: str
    axis: tuple[float, float]
    at: float | None = None
    span: tuple[float, float] | None = None
    level: float | None = None
    band: tuple[float, float] | None = None
    color: str = "#0072B2"
    log: bool = False

    def __str__(self) -> str:
        return self.words

    def place(self, value: SupportsFloat) -> float:
        """Pixels from the left; what lies beyond an end is drawn there."""
        axis = (*self.axis, value)
        low, high, value = (math.log(x) if self.log else float(x) for x in axis)
        inside = min(max((value - low) / (high - low), 0.0), 1.0)
        return round(AIR + (GAUGE_WIDTH - 2 * AIR) * inside, 1)

    def _repr_html_(self) -> str:
        words = f'<span style="white-space:nowrap">{escape(self.words)}</span>'
        size = f'width="{GAUGE_WIDTH}" height="14" style="{GAUGE_STYLE}"'
        return f'{words}<svg aria-hidden="true" {size}>{"".join(self._drawn())}</svg>'

    def _drawn(self) -> Iterable[str]:
        """What lies on the axis, from the back to the front."""
        own, grey = f'stroke="{self.color}" stroke-width="5"', 'stroke="#808080"'
        yield _level("axis", self.axis, self.place, grey)
        if self.band is not None:
            wide = f'{grey} stroke-opacity="0.45" stroke-width="14"'
            yield _level("band", self.band, self.place, wide)
        if self.span is not None:
            yield _level("span", self.span, self.place, own)
        if self.at is not None:
            x = self.place(self.at)
            yield f'<circle class="at" cx="{x}" cy="7" r="4" fill="{self.color}"/>'
        if self.level is not None:
            ends = 'x1="{0}" x2="{0}" y1="0" y2="14"'.format(self.place(self.level))
            dash = 'stroke="currentColor" stroke-dasharray="3 2"'
            yield f'<line class="level" {ends} {dash}/>'


def _level(
    name: str,
    ends: tuple[float, float],
    place: Callable[[float], float],
    look: str,
) -> str:
    low, high = map(place, ends)
    return f'<line class="{name}" x1="{low}" x2="{high}" y1="7" y2="7" {look}/>'


GAUGE_WIDTH, AIR = 100, 5
GAUGE_STYLE = "display:block;margin:1px 0 1px auto"


class Table:
    """A table that a notebook shows: numbers to the right, text to the left.

    Wide ones scroll.

    Attributes:
        caption: what it shows, in words.
        cells: what stands there (text, numbers, ``Gauge``); the head is the first row.
        rows: the cells as text.
    """

    def __init__(
        self, caption: str, head: Sequence[str], rows: Iterable[Sequence[object]]
    ):
        self.caption = caption
        self.cells = [list(row) for row in (head, *rows)]
        self.rows = [[str(cell) for cell in row] for row in self.cells]

    def __repr__(self) -> str:
        return f"{self.caption}\n{text_table(self.rows)}"

    def _repr_html_(self) -> str:
        # JupyterLab, Colab and a code host each style tables; alignment is ours.
        head, *rows = self.cells
        table = html_table(self.caption, head, rows, words=_columns_of_words(rows))
        table = table.replace("<caption>", f"<caption style='{LEFT};padding:.3em 0'>")
        wide = max((len(str(row[0])) for row in rows), default=0) > LONGEST_HEADING
        side = LEFT.partition(";")[0] if wide else LEFT
        table = table.replace('<th scope="row">', f"<th scope='row' style='{side}'>")
        return f"<div style='{SCROLLED}'>{table}</div>"


def _columns_of_words(rows: Iterable[Sequence[object]]) -> set[int]:
    """The row headings, and where a cell is longer than any number with its spread."""
    columns = enumerate(zip(*rows, strict=True))
    return {0} | {
        place
        for place, column in columns
        if any(isinstance(cell, str) and len(cell) > LONGEST_NUMBER for cell in column)
    }


LONGEST_NUMBER = 20  # characters
LONGEST_HEADING = 48  # of a row; where one is longer they wrap
LEFT = "text-align:left;white-space:nowrap"
SCROLLED = "overflow-x:auto;font-variant-numeric:tabular-nums"


def text_table(rows: Iterable[Sequence[str]], *, numbers: bool = True) -> str:
    """Aligned plain text, two spaces between the columns.

    Args:
        rows: the head is the first; all of one length.
        numbers: every column but the first stands to the right.
    """
    rows = [list(map(str, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        first, *others = zip(row, widths, strict=True)
        cells = [t.rjust(n) if numbers else t.ljust(n) for t, n in others]
        lines.append("  ".join([first[0].ljust(first[1]), *cells]).rstrip())
    return "\n".join(lines)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table as Markdown writes it."""
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def html_table(
    caption: str,
    head: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    words: Collection[int] = (),
) -> str:
    """A table for a page; the first cell of a row is its heading, all is escaped.

    ``words``: the columns, from 0, that stand to the left whatever the page's style.
    """
    side = [" style='text-align:left'" * (i in words) for i in range(len(head))]
    top = "".join(
        f'<th scope="col"{where}>{_html(cell)}</th>'
        for cell, where in zip(head, side, strict=True)
    )
    body = "".join(
        f'<tr><th scope="row">{_html(first)}</th>'
        + "".join(
            f"<td{where}>{_html(cell)}</td>"
            for cell, where in zip(others, side[1:], strict=True)
        )
        + "</tr>\n"
        for first, *others in rows
    )
    return (
        f'<div class="wide"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def _html(cell: object) -> str:
    return cell._repr_html_() if isinstance(cell, Gauge) else escape(str(cell))

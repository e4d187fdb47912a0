"""Rows of text as a table: for the terminal, for Markdown and for HTML."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["Table", "html_table", "markdown_table", "text_table"]


class Table:
    """A table that a notebook shows: numbers to the right, wide ones scroll.

    Attributes:
        caption: what it shows, in words.
        rows: cells as text; the head is the first row.
    """

    def __init__(
        self, caption: str, head: Sequence[str], rows: Iterable[Sequence[object]]
    ):
        self.caption = caption
        self.rows = [[str(cell) for cell in row] for row in (head, *rows)]

    def __repr__(self) -> str:
        return f"{self.caption}\n{text_table(self.rows)}"

    def _repr_html_(self) -> str:
        # JupyterLab, Colab and a code host each style tables; alignment is ours.
        table = html_table(self.caption, self.rows[0], self.rows[1:])
        table = table.replace("<caption>", f"<caption style='{LEFT};padding:.3em 0'>")
        table = table.replace('<th scope="row">', f"<th scope='row' style='{LEFT}'>")
        return f"<div style='{SCROLLED}'>{table}</div>"


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


def html_table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for a page; the first cell of a row is its heading, all is escaped."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in others)
        + "</tr>\n"
        for first, *others in rows
    )
    return (
        f'<div class="wide"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )

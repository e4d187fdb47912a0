"""Read an assignment's one source: a py:percent file with marked blocks.

Cells begin with ``# %%`` (code) or ``# %% [markdown]``, followed by ``key="value"``
marks, as jupytext writes them.  Inside cells::

    ### BEGIN SOLUTION        what only the solved notebook shows
    ### END SOLUTION
    ### BEGIN HIDDEN TESTS    what no notebook shows: a cell of its own
    ### END HIDDEN TESTS

From it come the student's cells, the solved ones and the hidden blocks.
"""

from __future__ import annotations

import ast
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Cell", "Source", "read_source", "strip_solution"]

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
HIDDEN_BEGIN, HIDDEN_END = "### BEGIN HIDDEN TESTS", "### END HIDDEN TESTS"
STUB = "raise NotImplementedError  # your code here"
OPEN_STUB = "# your code here"  # outside a function, where nothing may be raised
MARK = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class Cell:
    """One cell of the source.

    Attributes:
        kind: "code" or "markdown".
        text: without the comment signs of markdown.
        marks: ``question``, ``argued``, ``check``, ``test``: which question it is of.
        line: where it begins in the file.
    """

    kind: str
    text: str
    marks: dict[str, str]
    line: int

    @property
    def hidden(self) -> bool:
        return HIDDEN_BEGIN in self.text


@dataclass(frozen=True)
class Source:
    """An assignment's source file.

    Attributes:
        key: the file's stem: ``"1_partition_functions"``.
        cells: in order, hidden ones included.
        digest: sha256 of the file, for the bundle.
    """

    key: str
    cells: tuple[Cell, ...]
    digest: str

    @property
    def title(self) -> str:
        return self.cells[0].text.splitlines()[0].lstrip("# ")

    @property
    def hidden_blocks(self) -> list[str]:
        return [_inside(cell) for cell in self.cells if cell.hidden]

    @property
    def solutions(self) -> list[str]:
        """Solved cells that define something a question asks for."""
        return [
            without_markers(cell.text)
            for cell in self.cells
            if cell.kind == "code" and not cell.hidden and "question" in cell.marks
        ]


def read_source(path: Path) -> Source:
    """Read and check a source file.

    Raises:
        ValueError: no cell, unbalanced markers, a hidden block that shares its cell,
            code that is not Python.
    """
    text = Path(path).read_text(encoding="utf-8")
    cells = tuple(_split(text, path))
    if not cells or cells[0].kind != "markdown":
        raise ValueError(
            f"{path} does not begin with a markdown cell. Fix: begin it with "
            '"# %% [markdown]" and the title.'
        )
    for cell in cells:
        _check_cell(cell, path)
    return Source(Path(path).stem, cells, hashlib.sha256(text.encode()).hexdigest())


def _split(text: str, path: Path):
    header, rows, begun = "", [], 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("# %%"):
            if header:
                yield _make_cell(header, rows, begun)
            header, rows, begun = line, [], number
        elif header:
            rows.append(line)
        elif line.strip() and not line.startswith("#"):
            raise ValueError(
                f'{path}, line {number}: code before the first "# %%". Fix: begin '
                "a cell."
            )
    if header:
        yield _make_cell(header, rows, begun)


def _make_cell(header: str, rows: list[str], line: int) -> Cell:
    marks = dict(MARK.findall(header))
    if "[markdown]" in header:
        rows = [re.sub(r"^# ?", "", row) for row in rows]
        return Cell("markdown", "\n".join(rows).strip(), marks, line)
    return Cell("code", "\n".join(rows).strip("\n").rstrip(), marks, line)


def _check_cell(cell: Cell, path: Path) -> None:
    where = f"{path}, line {cell.line}"
    for begin, end in ((BEGIN, END), (HIDDEN_BEGIN, HIDDEN_END)):
        found = [row.strip() for row in cell.text.splitlines()]
        found = [row for row in found if row in (begin, end)]
        if found != [begin, end] * (len(found) // 2):
            raise ValueError(
                f"{where}: {begin!r} and {end!r} do not take turns. Fix: close every "
                "block in the cell that it began in."
            )
    if cell.hidden:
        rows = [row for row in cell.text.splitlines() if row.strip()]
        if rows[0].strip() != HIDDEN_BEGIN or rows[-1].strip() != HIDDEN_END:
            raise ValueError(
                f"{where}: a hidden block shares its cell with something else. Fix: "
                "give it a cell of its own; students see the rest."
            )
    if cell.kind == "code":
        try:
            ast.parse(cell.text)
        except SyntaxError as error:
            raise ValueError(
                f"{where}: {error}. Fix: the cell must be Python."
            ) from None


def _inside(cell: Cell) -> str:
    rows = cell.text.splitlines()
    return "\n".join(r for r in rows if r.strip() not in (HIDDEN_BEGIN, HIDDEN_END))


def without_markers(text: str) -> str:
    """The solved cell: the solution stays, its markers go."""
    rows = [row for row in text.splitlines() if row.strip() not in (BEGIN, END)]
    return "\n".join(rows)


def strip_solution(text: str, stub: str = STUB) -> str:
    """The student's cell: each solution becomes a stub, indented as it was."""
    rows, inside = [], False
    for row in text.splitlines():
        if row.strip() == BEGIN:
            indent = row[: len(row) - len(row.lstrip())]
            rows.append(indent + (stub if indent or stub != STUB else OPEN_STUB))
            inside = True
        elif row.strip() == END:
            inside = False
        elif not inside:
            rows.append(row)
    return "\n".join(rows)

"""How long a notebook may be, what every one ends with, and what its asserts say."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
STEMS = [path.stem for path in NOTEBOOKS]

# Up to 06 the toys, then the language models.
MOST_CELLS, MOST_WORDS = (90, 100), (2500, 3000)

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=STEMS)


def cells_of(path: Path, kind: str) -> list[str]:
    """The sources of a notebook's cells of one kind."""
    cells = nbformat.read(path, as_version=nbformat.NO_CONVERT).cells
    return [cell.source for cell in cells if cell.cell_type == kind]


@each_notebook
def test_it_is_short_enough(path):
    later = int(path.stem[:2]) > 6
    prose, code = cells_of(path, "markdown"), cells_of(path, "code")
    cells, words = len(prose) + len(code), len("\n".join(prose).split())
    fits = cells <= MOST_CELLS[later] and words <= MOST_WORDS[later]
    assert fits, f"{cells} cells, {words} words"


@each_notebook
def test_it_ends_with_where_to_go_next(path):
    """A link to the notebook that follows; from the last one, to any page."""
    last = "\n".join(cells_of(path, "markdown")[-3:])
    following = dict(zip(STEMS, STEMS[1:], strict=False)).get(path.stem, "")
    link = rf"\*\*Next:?\*\*[^(]*\({re.escape(following)}"
    assert re.search(link, last), last


@each_notebook
def test_every_assert_says_what_it_means_for_the_reader(path):
    bare = [
        ast.unparse(node)
        for source in cells_of(path, "code")
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assert) and node.msg is None
    ]
    assert not bare


def test_the_step_that_notebook_7_assembles_is_as_short_as_it_says():
    path = NOTEBOOKS[STEMS.index("07_tiny_lm_maths")]
    lines = {
        node.name: node.end_lineno - node.lineno + 1
        for source in cells_of(path, "code")
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef)
    }
    assert lines["roll_out"] + lines["training_step"] == 17  # 20 at most
    assert "\n".join(cells_of(path, "markdown")).count("seventeen lines") == 2


def table_of(text: str) -> dict[str, list[str]]:
    """Notebook's number -> minutes to read and to run, from a table of the course."""
    rows = re.findall(
        r"^\| \[?(\d\d) .*\|([^|]+)\|([^|]+)\|$", text, flags=re.MULTILINE
    )
    return {
        number: [reading.strip(), running.strip()]
        for number, *_, reading, running in rows
    }


def test_the_first_notebook_lists_the_whole_course_as_the_readme_does():
    course = table_of("\n".join(cells_of(NOTEBOOKS[0], "markdown")))
    assert list(course) == [stem[:2] for stem in STEMS]
    readme = NOTEBOOKS[0].parents[1] / "README.md"
    assert course == table_of(readme.read_text(encoding="utf-8"))

"""Argued answers: whatever was done to the cell, the marker sees what was written."""

from __future__ import annotations

import copy

import pytest
from synthetic_submissions import code, instructor, solved, untouched
from wrong_answers import ONE

from flowrl_lab.assignments.bundles import read_bundle
from flowrl_lab.assignments.marking.argued import Argument, find_argument
from flowrl_lab.assignments.marking.reading import cells, packing, pages
from flowrl_lab.assignments.marking.submissions import Cell

TEXT = "The learned log Z follows the bound. It grows with the reward, and near π_ref."
FIRST, SECOND = TEXT[:36], TEXT[37:]
BLANK = "*Your answer here.*"


def markdown(text: str) -> dict:
    return {"cell_type": "markdown", "id": "m", "metadata": {}, "source": text}


def place_of(notebook: dict) -> int:
    marks = [cell["metadata"].get("flowrl", {}) for cell in notebook["cells"]]
    return next(n for n, mark in enumerate(marks) if "argued" in mark)


def change(kind: str, notebook: dict) -> None:
    """What a student, or an editor, does to the cell of the answer."""
    rows, place = notebook["cells"], place_of(notebook)
    cell = rows[place]
    cell["source"] = TEXT
    if kind == "split":
        rows.insert(place + 1, {**copy.deepcopy(cell), "source": SECOND})
        cell["source"] = FIRST
    elif kind == "split, and one mark lost":
        rows.insert(place + 1, markdown(SECOND))
        cell["source"] = FIRST
    elif kind == "a blank copy below":
        rows.insert(place + 1, {**copy.deepcopy(cell), "source": BLANK})
    elif kind == "no marks anywhere":
        for row in rows:
            row["metadata"] = {}
    elif kind == "deleted, written anew":
        rows[place] = markdown(TEXT)
    elif kind == "in a new cell below":
        cell["source"] = BLANK
        rows.insert(place + 1, markdown(TEXT))
    elif kind == "below a sketch in code":
        cell["source"] = BLANK
        rows[place + 1 : place + 1] = [code("x = 1\nprint(x)"), markdown(TEXT)]
    elif kind == "raw":
        cell["cell_type"] = "raw"
    elif kind == "code":
        cell["cell_type"] = "code"
    elif kind == "code without its mark":
        rows[place] = code(TEXT)
    elif kind == "comments":
        rows[place] = code(f"# {TEXT}")
    elif kind == "behind the blank":
        cell["source"] = f"{BLANK}\n\n{TEXT}"
    elif kind == "in the question":
        rows[place - 1]["source"] = [*rows[place - 1]["source"], "\n\n", TEXT]
        cell["source"] = BLANK
    elif kind == "merged with what follows":
        rows[place + 1]["source"] = [TEXT, "\n\n", *rows[place + 1]["source"]]
        del rows[place]
    elif kind == "with its own heading":
        cell["source"] = BLANK
        rows.insert(place + 1, markdown(f"## My answer\n{TEXT}"))
    elif kind == "no heading left":
        del rows[place - 1 : place + 1]
        rows.insert(2, markdown(TEXT))
    elif kind == "at the end of everything":
        cell["source"] = BLANK
        rows.append(markdown(TEXT))
    elif kind == "printed":
        rows[place] = code(f'print("{TEXT}")')
    elif kind == "a text in code":
        rows[place] = code(f'answer = """{TEXT}"""\nanswer')
    elif kind == "comments above a number":
        rows[place] = code(f"# {TEXT}\nprint(3.2)")
    elif kind == "beside a picture":
        picture = f"![a.png](data:image/png;base64,{'iVBORw0KGgo' * 30_000})"
        cell["source"] = f"{picture}\n{TEXT}"
    elif kind in ("around a call", "around a comparison"):
        sketch = "log_partition(1, 2)" if kind == "around a call" else "LOG_Z == 3"
        cell["source"] = FIRST
        rows[place + 1 : place + 1] = [code(sketch), markdown(SECOND)]


CERTAIN = (
    *("as it was", "a blank copy below", "no marks anywhere", "deleted, written anew"),
    *("in a new cell below", "below a sketch in code", "raw", "code", "comments"),
    *("code without its mark", "behind the blank", "in the question"),
    *("merged with what follows", "with its own heading", "printed", "a text in code"),
    *("comments above a number", "beside a picture"),
)
UNSURE = (
    *("split", "split, and one mark lost", "no heading left"),
    *("at the end of everything", "around a call", "around a comparison"),
)


def find(notebook: dict) -> Argument:
    entry = packing.Entry(("a.ipynb",), (0,), None)
    content = pages.json.dumps(notebook).encode()
    page = pages.read_page(entry, content, cells.to_python)
    read = [Cell(*row) for row in page.cells]
    bundle = read_bundle(instructor() / f"{ONE}.bundle.json")
    return find_argument("argument", read, bundle.handed_out)


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("kind", [*CERTAIN, *UNSURE])
def test_the_marker_sees_the_whole_answer(kind, copies):
    """And the student is told where it was not certain; copies change nothing."""
    notebook = untouched(ONE)
    change(kind, notebook)
    if copies:
        notebook["cells"] += untouched(ONE)["cells"]
    found = find(notebook)
    words = " ".join(found.text.split())
    assert FIRST in words and SECOND in words
    assert "Your answer here" not in words and "colleague" not in words
    assert bool(found.note) == (kind in UNSURE), found.note


def test_who_wrote_nothing_has_no_answer():
    assert find(untouched(ONE)) == Argument("")


def test_the_solution_is_the_answer_wherever_its_cells_stand():
    notebook = solved(ONE)
    answer = "".join(notebook["cells"][place_of(notebook)]["source"])
    notebook["cells"].reverse()
    assert find(notebook) == Argument(answer)


def test_notes_elsewhere_are_no_answer_beside_a_whole_one():
    notebook = solved(ONE)
    notebook["cells"].insert(3, markdown("My notes: " + "many words " * 20))
    assert "many words" not in find(notebook).text


def test_an_endless_answer_is_cut_and_told():
    notebook = untouched(ONE)
    place = place_of(notebook)
    parts = [markdown(f"{n} " * 9_000) for n in range(9)]
    notebook["cells"][place + 1 : place + 1] = parts
    found = find(notebook)
    assert len(found.text) == 60_000
    assert "cut off" in found.note

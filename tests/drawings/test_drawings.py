"""The drawings are what their code makes, and can be read in both themes."""

from __future__ import annotations

import math
import re
from itertools import pairwise, product
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pytest
from colours import contrast

from drawings import explorers, targets
from drawings.__main__ import DRAWINGS, FOLDER
from drawings.machine import CHAPTERS
from drawings.race import looks
from drawings.sheet import COLORS, PAPER, WIDTH, Sheet
from flowrl_lab.plots.panels import colour_floor
from flowrl_lab.plots.static import viridis

EMBEDDED = re.compile(r"!\[([^\]]*)\]\(drawings/(\w+)\.svg\)")
ROOT = FOLDER.parents[1]
NOTEBOOKS = sorted(FOLDER.parent.glob("*.ipynb"))


def embedded(path: Path) -> list[tuple[str, str]]:
    """(alt text, name) of the drawings in a notebook's text."""
    cells = nbformat.read(path, as_version=4).cells
    texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
    return EMBEDDED.findall("\n".join(texts))


def test_what_notebook_1_says_of_b_and_c_is_what_is_drawn():
    notebook = FOLDER.parent / "01_reward_to_distribution.ipynb"
    said = "B ends above C, though C pays more: the reference had 25 % on B and 10 %"
    assert f"{said} on C." in notebook.read_text(encoding="utf-8")
    b, c = map(targets.NAMES.index, "BC")
    ends = targets.tilted(targets.SCALE)
    assert ends[b] > ends[c] and targets.REWARDS[c] > targets.REWARDS[b]
    assert [round(100 * float(targets.REFERENCE[i])) for i in (b, c)] == [25, 10]


@pytest.mark.parametrize("name", DRAWINGS)
def test_the_file_is_what_the_code_makes(name):
    kept = (FOLDER / f"{name}.svg").read_text(encoding="utf-8")
    assert kept == DRAWINGS[name]().svg(), "run: python -m drawings"


def test_no_file_is_left_over():
    assert {path.stem for path in FOLDER.iterdir()} == set(DRAWINGS)


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_says_itself_in_words_and_large_enough(name):
    root = ElementTree.fromstring((FOLDER / f"{name}.svg").read_text("utf-8"))
    assert root.get("viewBox").split()[2] == str(WIDTH)
    assert len(root.get("aria-label")) > 60
    sizes = [int(node.get("font-size", "15")) for node in root.iter()]
    assert min(sizes) >= 14  # 12 pixels where a page leaves it 600


def test_words_stand_out_on_paper_and_on_every_tint_of_their_own():
    for theme, (words, other) in product((0, 1), product(COLORS, COLORS)):
        text = COLORS[words][theme][0]
        assert contrast(text, PAPER[theme][0]) >= 4.5, (words, theme)
        if words in (other, "ink"):
            tint = COLORS[other][theme][1]
            assert contrast(text, tint) >= 4.5, (words, other, theme)


def test_a_sheet_escapes_what_is_written_on_it():
    sheet = Sheet(50, "t", 'a "b" <c> & d')
    sheet.text(10, 20, [("x < 1", "blue"), " & y"])
    root = ElementTree.fromstring(sheet.svg())
    assert root.get("aria-label") == 'a "b" <c> & d'
    assert "".join(root.itertext()).endswith("x < 1 & y\n")


def test_the_course_shows_its_drawings_with_words_for_who_cannot_see_them():
    shown = [found for path in NOTEBOOKS for found in embedded(path)]
    for alt, name in shown:
        assert len(alt) > 20, name
        assert name in DRAWINGS
    assert len({name for _, name in shown}) >= 20
    for path in NOTEBOOKS:
        names = [name for _, name in embedded(path)]
        assert len(names) == len(set(names)), path.name


def test_the_map_shows_the_notebooks_in_their_order():
    words = {n: word for _, books in CHAPTERS.values() for n, word in books.items()}
    stems = {
        int(path.name[:2]): path.stem for path in NOTEBOOKS if path.name[:2] != "00"
    }
    assert words.keys() == stems.keys()
    topics = {"target": "reward", "log Z": "partition", "the loss": "loss"}
    for number, word in words.items():
        topic = topics.get(word, word.split()[-1].rstrip("s").lower())
        assert topic in stems[number], (number, word)


def test_the_moving_picture_plays_the_recorded_maps():
    """Each frame of each cell has the colour of its recorded probability."""
    text = (FOLDER / "race.svg").read_text(encoding="utf-8")
    assert len(text) < 1_500_000
    fills = re.findall(
        r'<rect[^>]*><animate attributeName="fill"[^>]*s="(#[^"]*)"', text
    )
    steps = looks("grpo"), looks("flowrl")
    assert {len(records) for records in steps} == {13}
    floor = colour_floor(steps[0][0].snapshot.target_probs)
    assert len(fills) == 50
    for place, row in enumerate(fills):
        records, cell = steps[place // 25], place % 25
        for shown, record in zip(row.split(";"), records, strict=True):
            level = math.log10(max(float(record.snapshot.probs[cell]), floor))
            assert shown == viridis(1 - level / math.log10(floor))


def test_all_of_the_moving_picture_moves_at_once_and_its_digits_can_be_read():
    """At every moment: it only jumps, so what its looks show is all that it shows."""
    root = ElementTree.fromstring((FOLDER / "race.svg").read_text("utf-8"))
    moves = [node for node in root.iter() if node.tag.endswith("animate")]
    assert {node.get("calcMode") for node in moves} == {"discrete"}
    assert len({(node.get("keyTimes"), node.get("dur")) for node in moves}) == 1
    nodes = list(root)
    digits = 0
    for cell, digit in pairwise(nodes):
        if not (cell.tag.endswith("rect") and digit.get("text-anchor") == "middle"):
            continue
        digits += 1
        assert contrast(cell.get("fill"), digit.get("fill")) >= 4.5, digit.text
        looks_of = [
            one[0].get("values").split(";") for one in (cell, digit) if len(one)
        ]
        for ground, ink in zip(*looks_of, strict=True) if looks_of else ():
            assert contrast(ground, ink) >= 4.5, (digit.text, ground, ink)
    assert digits == 75


def test_the_readme_shows_explorers_that_draw_without_a_kernel():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = explorers.explorers()
    assert {path.stem for path in explorers.FOLDER.iterdir()} == set(shown)
    for name, explorer in shown.items():
        path = explorers.FOLDER / f"{name}.png"
        assert f"({path.relative_to(ROOT).as_posix()})" in text
        assert path.stat().st_size < 60_000
        page = explorers.as_page(explorer)
        for trait in explorer.keys:  # what its script asks the kernel's state for
            if f'get("{trait}")' in page:
                assert f'"{trait}":' in page, trait

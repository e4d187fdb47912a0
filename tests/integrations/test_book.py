"""The book: what is run again, what is refused, where its links lead."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from flowrl_lab.integrations.book import pages

# Sphinx 9 warns of what its own napoleon, and MyST, still do.
pytestmark = pytest.mark.filterwarnings("ignore:.*Sphinx")
REPOSITORY = pages.ROOT
PLOT = """from IPython.display import display
svg = '<svg xmlns="http://www.w3.org/2000/svg" width="400" height="300"></svg>'
figure = {"data": [{"y": [1, 2], "name": "</script>"}], "layout": {"height": 300}}
bundle = {"application/vnd.plotly.v1+json": figure, "image/svg+xml": svg}
display(bundle | {"text/plain": 'a "plot" & more'}, raw=True)"""


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.targets, self.anchors = [], set()

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.anchors |= {found["id"]} if found.get("id") else set()
        key = {"a": "href", "img": "src", "script": "src", "link": "href"}.get(tag)
        self.targets += [found[key]] if key and found.get(key) else []


def broken_links(site: Path) -> list[str]:
    """Every local link, picture and script of every page that leads nowhere."""
    read = {}
    for path in site.rglob("*.html"):
        if ".build" not in path.parts:
            read[path.resolve()] = links = _Links()
            links.feed(path.read_text(encoding="utf-8"))
    broken = []
    for path, links in read.items():
        for target in links.targets:
            url = urlsplit(target)
            if url.scheme or url.netloc:
                continue
            place = (path.parent / unquote(url.path)).resolve() if url.path else path
            lost = (
                url.fragment
                and place in read
                and (unquote(url.fragment) not in read[place].anchors)
            )
            if not place.exists() or lost:
                broken.append(f"{path.relative_to(site.resolve())}: {target}")
    return broken


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    """A repository with one short notebook."""
    root = tmp_path / "clone"
    for name in (
        *pages.FRONT,
        "LICENSE",
        "CITATION.cff",
        "flowrl_lab/training/step.py",
        "data/results/README.md",
        "data/study/PROTOCOL.md",
        "benchmarks/README.md",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("# A page\n", encoding="utf-8")
    text = "# The course\n\n[first](notebooks/00_start_here.ipynb)\n"
    (root / "README.md").write_text(text, encoding="utf-8")
    (root / "notebooks" / "assignments").mkdir(parents=True)
    glossary = "# Glossary\n\n## Words\n\n### log z\nIts logarithm.\n"
    (root / "notebooks" / "glossary.md").write_text(glossary, encoding="utf-8")
    guide = root / "notebooks" / "assignments" / "INSTRUCTORS.md"
    guide.write_text("# For instructors\n", encoding="utf-8")
    write_notebook(root, "The words are in [the glossary](glossary.md#log-z).")
    monkeypatch.setattr(pages, "ROOT", root)
    monkeypatch.setattr(pages, "API", {"The core": ("tokens", "metrics")})
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY), prepend=":")
    return root


def write_notebook(root: Path, prose: str, code: str = PLOT) -> None:
    cells = [
        new_markdown_cell(f"# 0. Start\n\n{prose}\n\n$$e^x$$"),
        new_code_cell(code),
    ]
    path = root / "notebooks" / "00_start_here.ipynb"
    nbformat.write(new_notebook(cells=cells), path)


def build(out: Path) -> tuple[list[str], str]:
    """(lines of progress, the notebook's page)."""
    said: list[str] = []
    pages.build_book(out, say=said.append)
    return said, (out / "notebooks" / "00_start_here.html").read_text("utf-8")


def test_every_page_that_the_course_links_to_is_in_the_book(tmp_path):
    """Sphinx only warns where a page is missing, and leaves a link to nowhere."""
    pages._copy_guides(tmp_path)
    notebooks = sorted((pages.ROOT / "notebooks").glob("*.ipynb"))
    for path in notebooks:
        pages._copy(path, tmp_path)
    pages.write_index(tmp_path, [path.stem for path in notebooks])
    lost = []
    for path in sorted({*tmp_path.rglob("*.md"), *tmp_path.rglob("*.ipynb")}):
        for target in re.findall(r"\]\(([^)\s#:]+)[)#]", prose_of(path)):
            if not (path.parent / unquote(target)).exists():
                lost.append(f"{path.relative_to(tmp_path)}: {target}")
    assert lost == []


def prose_of(path: Path) -> str:
    """The text of a page, without its code."""
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(c.source for c in cells if c.cell_type == "markdown")


def test_nothing_of_the_api_is_described_twice():
    """Left out is what a module hands on, and only that."""
    pages_of = {}
    for name in (name for names in pages.API.values() for name in names):
        if name == "integrations.trl" and find_spec("trl") is None:
            continue
        module = import_module(f"flowrl_lab.{name}")
        left_out = pages.ELSEWHERE.get(name)
        for public in set(module.__all__) - {left_out}:
            found = getattr(module, public)
            if isinstance(found, type) or inspect.isfunction(found):
                pages_of.setdefault(found, []).append(name)
    assert {found: names for found, names in pages_of.items() if len(names) > 1} == {}
    for name, left_out in pages.ELSEWHERE.items():
        assert getattr(import_module(f"flowrl_lab.{name}"), left_out) in pages_of


def test_a_docstrings_example_stays_as_it_is_written():
    written = """What it does.

        f(x) = "x"

    Args:
        one, two,
            three: numbers, as in
            a list.

    Like this::

        already code
    """
    lines = inspect.cleandoc(written).splitlines()
    pages._make_plain(None, "function", "f", None, None, lines)
    example = ["", "::", "", '    f(x) = "x"', ""]
    names = ["Args:", "    one, two, three: numbers, as in", "        a list.", ""]
    code = ["Like this::", "", "    already code"]
    assert lines == ["What it does.", *example, *names, *code]


def test_a_config_on_top_of_another_librarys_shows_its_own_settings():
    @dataclass
    class Theirs:
        many: int = 1

    @dataclass
    class Ours(Theirs):
        scale: float = 15.0
        form: str = "raw"

    def shown(found):
        return pages._leave_out_foreign_settings(None, "class", "", found, None, "", "")

    words = "(*, scale: float = 15.0, form: str = 'raw', **Theirs)"
    assert shown(Ours) == (words, None)
    assert shown(Theirs) is None and shown(len) is None


@pytest.mark.full
def test_a_change_of_prose_runs_nothing_and_a_change_of_code_does(clone, tmp_path):
    out = tmp_path / "book"
    said, page = build(out)
    assert said == ["  00_start_here: run"]
    assert 'class="flowrl-plot"' in page and "data:image/svg+xml;base64," in page
    assert "These pictures come from short runs" in page
    assert broken_links(out) == []
    assert "gather_log_probs" in (out / "api" / "the_core.html").read_text("utf-8")
    pages = [page.read_text("utf-8") for page in (out / "api").glob("*.html")]
    assert not re.search(
        r"~\w+\.|&lt;function", "".join(pages)
    )  # signatures as written
    assert "https://cdn" not in page

    other = out / ".build" / "doctrees" / "notebooks" / "glossary.doctree"
    read_at = other.stat().st_mtime_ns
    write_notebook(clone, "Other words.")
    said, changed = build(out)
    assert said == ["  00_start_here: as it was run before"]
    assert other.stat().st_mtime_ns == read_at, "a page that stayed was read again"
    assert "Other words." in changed and 'class="flowrl-plot"' in changed

    write_notebook(clone, "Other words.", "print(6 * 7)")
    said, changed = build(out)
    assert said == ["  00_start_here: run"]
    assert "42" in changed and "flowrl-plot" not in changed


def test_a_cell_that_fails_is_named(clone, tmp_path):
    write_notebook(clone, "", "raise RuntimeError('the reason')")
    with pytest.raises(
        ValueError, match=r"00_start_here.ipynb does not run.*"
    ) as error:
        build(tmp_path / "book")
    assert "the reason" in str(error.value)


@pytest.mark.bad_input
@pytest.mark.usefixtures("clone")
def test_what_somebody_keeps_in_the_folder_stays(tmp_path):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"`out` is .*holds other files.*Fix: name"):
        pages.build_book(out)
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


@pytest.mark.bad_input
def test_a_notebook_that_is_not_there_is_named(clone, tmp_path):
    with pytest.raises(ValueError, match="got '77', expected the beginning of one of"):
        pages.build_book(tmp_path / "book", notebooks=["77"])
    (clone / "notebooks" / "00_start_here.ipynb").unlink()
    with pytest.raises(ValueError, match="expected a clone"):
        pages.build_book(tmp_path / "book")

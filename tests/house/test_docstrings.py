"""Docstrings mean to the book's reader (Sphinx, napoleon) what they say in the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest

from flowrl_lab.integrations.book.pages import ROOT

SECTION = re.compile(
    r"^(Args|Attributes|Returns|Yields|Raises):\n((?: .*\n|\n)+)", re.M
)
ITEM = re.compile(r"^ {4}(\S[^:\n]*): *(.*(?:\n {5,}.*)*)", re.M)
NUMBERED = re.compile(r"\(?(?:[A-Za-z]|[ivxlcdm]+|\d+|#)[.)](?:\s|$)")
CODE = re.compile(r"``.*?``|:[a-z]+:`.*?`")


@cache
def docstrings() -> dict[str, str]:
    """Place -> the docstring of each module, class and function of the library."""
    found = {}
    for path in sorted((ROOT / "flowrl_lab").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"
                found[place] = f"{ast.get_docstring(node) or ''}\n"
    return found


def sections(*names: str) -> Iterator[tuple[str, str]]:
    """(place, text) of every section of these names."""
    for place, text in docstrings().items():
        for name, body in SECTION.findall(text):
            if name in names:
                yield place, body


def items(*names: str) -> Iterator[tuple[str, str, str]]:
    """(place, name, words) of what a section lists."""
    for place, body in sections(*names):
        for name, words in ITEM.findall(body):
            yield place, name, words


def test_the_docstrings_are_read():
    assert len(list(items("Args"))) > 800
    assert len(list(items("Attributes"))) > 150


def test_no_description_becomes_a_numbered_list():
    """``n.`` alone, at the start, is item n of a list: say "n, how many ..."."""
    for place, name, words in items("Args", "Attributes", "Raises"):
        assert not NUMBERED.match(words), f"{place}: {name}: {words}"


def test_each_attribute_has_a_line_of_its_own():
    """Of ``low, high:`` Sphinx keeps the last name only."""
    for place, name, _ in items("Attributes"):
        assert name.isidentifier(), f"{place}: {name}"


@pytest.mark.parametrize("name", ["Returns", "Yields"])
def test_what_is_returned_is_not_taken_for_a_type(name):
    """The words before a colon in the first line would be set as a type."""
    for place, body in sections(name):
        first = CODE.sub("", body.splitlines()[0])
        assert ":" not in first, f"{place}: {first.strip()}"


def test_code_stands_between_double_backticks():
    for place, text in docstrings().items():
        single = set(re.findall(r"`[^`\n]+`", CODE.sub("", text)))
        assert not single, f"{place}: {single}"

"""The one formatter of tables, in its three forms."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from flowrl_lab.plots.tabulate import (
    Table,
    html_table,
    markdown_table,
    text_table,
)

ROWS = [["run", "β", "accuracy"], ["flowrl", "8", "0.93"], ["grpo <&>", "–", "0.9"]]


def test_numbers_stand_to_the_right_and_words_to_the_left():
    assert text_table(ROWS) == (
        "run       β  accuracy\nflowrl    8      0.93\ngrpo <&>  –       0.9"
    )
    assert text_table(ROWS, numbers=False) == (
        "run       β  accuracy\nflowrl    8  0.93\ngrpo <&>  –  0.9"
    )


def test_markdown_has_a_rule_below_its_head():
    assert markdown_table(ROWS[0], ROWS[1:]).splitlines() == [
        "| run | β | accuracy |",
        "|---|---|---|",
        "| flowrl | 8 | 0.93 |",
        "| grpo <&> | – | 0.9 |",
    ]


def test_html_is_escaped_and_names_its_rows_and_columns():
    table = ElementTree.fromstring(html_table("Two & two.", ROWS[0], ROWS[1:]))
    assert table.findtext(".//caption") == "Two & two."
    assert [cell.get("scope") for cell in table.iter("th")] == ["col"] * 3 + ["row"] * 2
    cells = [[cell.text for cell in row] for row in table.findall(".//tbody/tr")]
    assert cells == ROWS[1:]


def test_a_notebooks_table_scrolls_and_escapes_and_reads_as_text():
    table = Table("KL <nats>", ["", "π‖p*"], [["a & b", 0.25], ["c", "1.5 ± 0.1"]])
    page = table._repr_html_()
    assert "overflow-x:auto" in page and "KL &lt;nats&gt;" in page
    assert page.count("<th scope='row' style='text-align:left") == 2
    assert "a &amp; b</th><td>0.25</td>" in page
    assert repr(table).splitlines() == [
        "KL <nats>",
        "            π‖p*",
        "a & b       0.25",
        "c      1.5 ± 0.1",
    ]

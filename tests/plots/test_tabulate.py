"""The one formatter of tables, in its three forms."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
import torch

from flowrl_lab.plots.tabulate import (
    GAUGE_WIDTH,
    Gauge,
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


def test_a_notebooks_table_puts_text_to_the_left_under_its_heading():
    rows = [["a", "the group's mean is taken off", "+0.5"], ["b", "no", "1.25 ± 0.01"]]
    table = Table("", ["setting", "there", "x"], rows)._repr_html_()
    left = " style='text-align:left'"
    assert f'<th scope="col"{left}>setting</th><th scope="col"{left}>there<' in table
    assert f"<td{left}>no</td><td>1.25 ± 0.01</td>" in table
    assert '<th scope="col">x</th>' in table


def test_a_gauge_puts_its_number_on_an_axis_and_reads_as_words():
    gauge = Gauge("4 & 2", (0.0, 8.0), at=4.0, span=(2.0, 6.0), level=8.0)
    table = Table("one", ["", "x"], [["a", gauge]])
    assert repr(table).splitlines()[-1] == "a  4 & 2"
    cell = ElementTree.fromstring(f"<td>{gauge._repr_html_()}</td>")
    drawn = {part.get("class"): part for part in cell.find("svg")}
    assert cell.findtext("span") == "4 & 2"
    assert float(drawn["at"].get("cx")) == GAUGE_WIDTH / 2
    low, high = (float(drawn["span"].get(end)) for end in ("x1", "x2"))
    assert low + high == pytest.approx(GAUGE_WIDTH) and low < high
    assert float(drawn["level"].get("x1")) == float(drawn["axis"].get("x2"))
    assert "band" not in drawn
    assert gauge._repr_html_() in table._repr_html_()


def test_a_gauge_cuts_off_beyond_its_axis_and_may_be_logarithmic():
    assert Gauge("", (1.0, 100.0), log=True).place(10.0) == GAUGE_WIDTH / 2
    assert Gauge("", (1.0, 100.0), log=True).place(torch.tensor(10.0)) == 50.0
    assert Gauge("", (0.0, 1.0)).place(torch.tensor(0.5)) == GAUGE_WIDTH / 2
    gauge = Gauge("", (0.0, 1.0))
    assert gauge.place(7.0) == gauge.place(1.0) > gauge.place(-1.0) == gauge.place(0.0)

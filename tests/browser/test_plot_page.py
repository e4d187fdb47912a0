"""A figure in a real browser: hover tells values, the legend switches runs off."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_records import make_race
from playwright.sync_api import Browser, Page, expect
from plotly.offline import get_plotlyjs

from flowrl_lab.plots.figures import (
    PLOTLY_MIME,
    THEME,
    bundle_from_page,
    page_from_records,
)
from flowrl_lab.plots.placement import place_page

pytestmark = pytest.mark.browser

DARK = "body{background:#111111;--jp-content-font-color1:#ffffff}"
CURVES = "() => document.querySelectorAll('.scatterlayer .trace path.js-line').length"


@pytest.fixture(scope="module")
def bundle() -> dict:
    records = make_race(size=60)
    page = page_from_records(records, ("reward", "accuracy"), solution_map=True)
    return bundle_from_page(page, place_page(page))


@pytest.fixture(scope="module")
def page(browser: Browser, bundle: dict) -> Iterator[Page]:
    """The finished figure on an empty dark page."""
    page = browser.new_page(viewport={"width": 900, "height": 900})
    page.set_content(f"<style>{DARK}{THEME}</style><div id='plot'></div>")
    page.add_script_tag(content=get_plotlyjs())
    figure = bundle[PLOTLY_MIME]
    page.evaluate("f => Plotly.newPlot('plot', f.data, f.layout)", figure)
    yield page
    page.close()


def test_pointing_at_a_curve_shows_its_value(page: Page) -> None:
    marks = page.locator(".scatterlayer .trace .points path")
    box = marks.nth(1).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    expect(page.locator(".hoverlayer .hovertext").first).to_contain_text(", step ")
    cells = page.locator(".heatmaplayer image").first.bounding_box()
    page.mouse.move(cells["x"] + 8, cells["y"] + 8)
    expect(page.locator(".hoverlayer .hovertext").first).to_contain_text("probability")


def test_words_take_the_colour_of_the_page(page: Page) -> None:
    colour = "e => getComputedStyle(e).fill"
    for words in (".xtick text", ".annotation-text", ".legendtext"):
        found = page.locator(words).first.evaluate(colour)
        assert found == "rgb(255, 255, 255)", words


def test_a_run_is_switched_off_by_its_legend_entry(page: Page) -> None:
    before = page.evaluate(CURVES)
    page.locator(".legend .traces", has_text="grpo").locator(".legendtoggle").click()
    page.wait_for_function(f"({CURVES})() < {before}")
    assert page.evaluate(CURVES) == before // 2

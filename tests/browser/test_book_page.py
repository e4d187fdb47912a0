"""The book in a real browser: no blank figure, no page that scrolls sideways."""

from __future__ import annotations

import pytest
from colours import contrast
from playwright.sync_api import Browser

from flowrl_lab.integrations.book.pages import build_book

pytestmark = [
    pytest.mark.browser,
    pytest.mark.full,
    # Sphinx 9 warns of what its own napoleon, and MyST, still do.
    pytest.mark.filterwarnings("ignore:.*Sphinx"),
]
WIDTHS = (1600, 1360, 1100, 900, 700, 420)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The whole book, with the first notebook alone."""
    return build_book(tmp_path_factory.mktemp("book"), notebooks=["00"]).parent


def test_no_page_scrolls_sideways(browser: Browser, site) -> None:
    page = browser.new_page()
    page.set_default_navigation_timeout(120_000)
    wider = []
    for path in sorted(site.rglob("*.html")):
        page.goto(path.as_uri())
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 800})
            found = page.evaluate("document.documentElement.scrollWidth")
            if found > width:
                wider.append((path.relative_to(site).as_posix(), width, found))
    page.close()
    assert wider == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_plot_comes_to_life_and_no_picture_is_blank(
    browser: Browser, site, theme
) -> None:
    page = browser.new_page(color_scheme=theme)
    page.set_default_timeout(120_000)
    page.goto((site / "notebooks" / "00_start_here.html").as_uri())
    plots = page.locator(".flowrl-plot")
    assert plots.count() >= 1
    for plot in plots.all():
        plot.scroll_into_view_if_needed()
        plot.locator(".main-svg .trace path").first.wait_for()
    ground = {"light": "#ffffff", "dark": "#131416"}[theme]
    inks = page.locator(".flowrl-plot .infolayer text").evaluate_all(
        "nodes => nodes.map(n => getComputedStyle(n).fill.match(/\\d+/g).map(Number))"
    )
    assert inks
    for ink in inks:
        assert contrast("#" + bytes(ink[:3]).hex(), ground) >= 4.5
    pictures = page.locator("img").all()
    assert all(picture.evaluate("node => node.naturalWidth") for picture in pictures)
    page.close()

"""Explorers on a plain page, without JupyterLab or a kernel: how they lie, what moves.

Each one's own script and style run in the browser, on the state that Python gave it.
"""

from __future__ import annotations

import base64
import functools

import numpy as np
import pytest
import torch
from colours import contrast_of_words
from fake_records import make_race
from playwright.sync_api import Browser, Page

from flowrl_lab.widgets import (
    BetaExplorer,
    RunScrubber,
    SolutionMap,
    TargetDesigner,
    TokenInspector,
    ZLab,
)

pytestmark = pytest.mark.browser

DARK = "--jp-content-font-color1:#fff;--jp-layout-color0:#111;background:#111"
LIGHT = "--jp-content-font-color1:#000;--jp-layout-color0:#fff;background:#fff"

# Every piece of text that is seen, with its box; and every plot's box.
BOXES = """() => {
  const box = e => { const b = e.getBoundingClientRect();
    return [b.left, b.top, b.right, b.bottom]; };
  const words = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode, parent = node.parentElement;
    if (!node.data.trim() || parent.closest('style, script, .tip, .marker, .key'))
      continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const b of range.getClientRects())
      words.push([node.data.trim(), b.left, b.top, b.right, b.bottom]);
  }
  return {
    words, plots: [...document.querySelectorAll('.plot')].map(box),
    wide: document.documentElement.scrollWidth, window: innerWidth,
    small: [...document.querySelectorAll('.flowrl-figure *')].filter(e =>
      parseFloat(getComputedStyle(e).fontSize) < 12).length,
  };
}"""

REWARDS = np.concatenate([np.linspace(0, 1, 30), np.linspace(0.6, 0, 30)])
RACE = [r for r in make_race(("flowrl", "grpo", "ppo"), size=34) if r.snapshot]
FRAMES = {
    run: [(r.step, r.snapshot) for r in RACE if r.run == run]
    for run in ("flowrl", "grpo", "ppo")
}
MAKERS = {
    "beta": lambda: BetaExplorer(REWARDS, reward_scale=8.0),
    "z-lab": lambda: ZLab(REWARDS, reward_scale=8.0),
    "scrubber": RunScrubber,
    "designer": TargetDesigner,
    "map": lambda: SolutionMap(FRAMES),
    "tokens": lambda: TokenInspector(
        "p",
        [["one", "word", "more"] * 8] * 3,
        -torch.rand(3, 24),
        -torch.rand(3, 24),
        torch.ones(3, 24, dtype=torch.bool),
    ),
}
START = """async ([script, style, state]) => {
  const sheet = document.createElement('style');
  sheet.textContent = style;
  document.head.append(sheet);
  const bytes = text => new DataView(
    Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer);
  const values = Object.fromEntries(Object.entries(state).map(([key, value]) =>
    [key, value?.base64 === undefined ? value : bytes(value.base64)]));
  const heard = {};
  window.model = {
    get: name => values[name],
    set: (name, value) => {
      values[name] = value;
      for (const act of heard[`change:${name}`] ?? []) act();
    },
    save_changes: () => {}, send: () => {}, off: () => {},
    on: (name, act) => (heard[name] ??= []).push(act),
  };
  const url = URL.createObjectURL(new Blob([script], { type: 'text/javascript' }));
  (await import(url)).default.render({ model, el: document.querySelector('#place') });
}"""
# The numbers at the left of the grid lines, which say what the heights mean.
AXIS = "() => [...document.querySelectorAll('svg text')]"
AXIS += ".filter(e => e.getAttribute('text-anchor') === 'end').map(e => e.textContent)"


def start(browser: Browser, name: str, width: int, style: str = LIGHT) -> Page:
    """A page that shows one explorer."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_content(f"<style>:root{{{style}}}</style><div id='place'></div>")
    script, look, state = make(name)
    page.evaluate(START, [script, look, state])
    return page


@functools.cache
def make(name: str) -> tuple[str, str, dict]:
    """Script, style and state of an explorer, as JupyterLab would send them."""
    widget = MAKERS[name]()
    own = {"_esm", "_css", "layout", "tabbable", "tooltip"}
    state = {
        key: {"base64": base64.b64encode(value).decode()}
        if isinstance(value, bytes | memoryview)
        else value
        for key, value in widget.get_state().items()
        if key not in own and not key.startswith(("_model_", "_view_", "_anywidget"))
    }
    return str(widget._esm), str(widget._css), state


@pytest.mark.parametrize("width", [1360, 700, 420])
@pytest.mark.parametrize("name", MAKERS)
def test_an_explorer_reflows(browser: Browser, name: str, width: int) -> None:
    page = start(browser, name, width)
    seen = page.evaluate(BOXES)
    assert seen["wide"] <= seen["window"], "the page scrolls sideways"
    for svg in page.locator("svg[viewBox]:visible").all():
        drawn = float(svg.get_attribute("viewBox").split()[2])
        if drawn > 260:  # of lines and words; smaller ones hold cells only
            shown = svg.bounding_box()["width"]
            assert shown >= 0.97 * drawn, "words are drawn smaller than 12 pixels"
    for i, (word, left, top, right, bottom) in enumerate(seen["words"]):
        assert right <= width + 1, f"{word!r} leaves the window"
        for other, x0, y0, x1, y1 in seen["words"][i + 1 :]:
            over = min(right, x1) - max(left, x0), min(bottom, y1) - max(top, y0)
            assert min(over) <= 3.5, f"{word!r} over {other!r} at {left:.0f}, {top:.0f}"
    page.close()


def test_it_is_drawn_anew_when_its_window_changes(browser: Browser) -> None:
    page = start(browser, "beta", 1000)
    for width in (500, 900):
        page.set_viewport_size({"width": width, "height": 900})
        wanted = min(800, page.locator("#place").evaluate("e => e.clientWidth"))
        svg = page.locator(f'svg[viewBox^="0 0 {wanted} "]')
        svg.wait_for(timeout=5000)
    page.close()


@pytest.mark.parametrize(
    ("name", "dial", "key"),
    [
        ("beta", 'input[type="range"]', "ArrowLeft"),
        ("designer", 'input[type="range"]', "ArrowLeft"),
        ("scrubber", "input.scale", "ArrowLeft"),
        ("scrubber", "input.step", "ArrowLeft"),
        ("z-lab", 'input[id$="-step"]', "ArrowLeft"),
    ],
)
def test_the_axis_stands_still_while_a_dial_moves(browser, name, dial, key) -> None:
    page = start(browser, name, 1000)
    picture = "() => [...document.querySelectorAll('svg')].map(e => e.innerHTML).join()"
    before, drawn = page.evaluate(AXIS), page.evaluate(picture)
    assert len(before) >= 2
    slider = page.locator(dial)
    for _ in range(6):
        slider.press(key)
        assert page.evaluate(AXIS) == before
    assert page.evaluate(picture) != drawn  # something did move
    page.close()


def test_at_rest_the_axis_fits_again(browser: Browser) -> None:
    page = start(browser, "beta", 1000)
    before = page.evaluate(AXIS)
    for _ in range(60):
        page.locator('input[type="range"]').press("ArrowLeft")
    assert page.evaluate(AXIS) == before
    page.wait_for_function(f"before => String(({AXIS})()) !== before", arg=str(before))
    page.close()


@pytest.mark.parametrize("style", [LIGHT, DARK])
@pytest.mark.parametrize("name", MAKERS)
def test_an_explorers_words_can_be_read(browser, name, style) -> None:
    page = start(browser, name, 900, style)
    ground = "#111111" if style == DARK else "#ffffff"
    assert contrast_of_words(page, "#place", ground) >= 4.5
    page.close()

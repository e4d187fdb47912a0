"""The drawings in a real browser: nothing is cut off, no words lie on others."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser

from drawings.__main__ import FOLDER

pytestmark = pytest.mark.browser

# Of each drawing: words that leave the card, and pairs of words that overlap.
FAULTS = """() => {
  const card = document.querySelector('svg').viewBox.baseVal;
  const words = [...document.querySelectorAll('text')]
    .filter(node => node.getAttribute('opacity') !== '0')  // shown at another time
    .map(node => ({box: node.getBBox(), said: node.textContent}));
  const faults = words.filter(({box}) => box.x < 6 || box.y < 4
    || box.x + box.width > card.width - 6 || box.y + box.height > card.height)
    .map(({said}) => `cut off: ${said}`);
  words.forEach(({box: a, said}, i) => words.slice(i + 1).forEach(other => {
    const b = other.box;
    const wide = Math.min(a.x + a.width, b.x + b.width) - Math.max(a.x, b.x);
    const high = Math.min(a.y + a.height, b.y + b.height) - Math.max(a.y, b.y);
    if (wide > 1 && high > 5) faults.push(`overlap: ${said} | ${other.said}`);
  }));
  return faults;
}"""


def test_no_words_overlap_or_leave_the_card(browser: Browser) -> None:
    page = browser.new_page()
    faults = {}
    for path in sorted(FOLDER.glob("*.svg")):
        page.set_content(path.read_text(encoding="utf-8"))
        faults[path.stem] = page.evaluate(FAULTS)
    page.close()
    assert {name: found for name, found in faults.items() if found} == {}

"""How well one colour can be read on another."""

from __future__ import annotations

import re


def luminance(color: str) -> float:
    """Relative luminance of ``#rrggbb`` (WCAG 2.2)."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """Contrast ratio, 1 … 21 (WCAG 2.2)."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


COLOURS_OF_WORDS = """selector => [...document.querySelectorAll(selector + ' *')]
  .filter(e => !e.closest('style, script, svg, b, .marker, .key, .cell, .tip'))
  .filter(e => [...e.childNodes].some(
    n => n.nodeType === 3 && /[\\p{L}\\p{N}]/u.test(n.data)))
  .map(e => getComputedStyle(e).color + ' ' + getComputedStyle(e).opacity)"""


def contrast_of_words(page, selector: str, ground: str) -> float:
    """The lowest contrast of any text below an element of a page in a browser.

    Args:
        page: of Playwright.
        selector: the element.
        ground: ``#rrggbb`` behind it.
    """
    found = []
    for colour in set(page.evaluate(COLOURS_OF_WORDS, selector)):
        *parts, opacity = map(float, re.findall(r"[\d.]+", colour))
        behind = [int(ground[at : at + 2], 16) for at in (1, 3, 5)]
        share = opacity * (parts[3] if len(parts) > 3 else 1)
        mixed = [
            round(share * front + (1 - share) * back)
            for front, back in zip(parts[:3], behind, strict=True)
        ]
        found.append(contrast("#" + "".join(f"{part:02x}" for part in mixed), ground))
    return min(found)

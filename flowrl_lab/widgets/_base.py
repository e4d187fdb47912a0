"""What the explorers share: an anywidget that is a still picture when headless."""

from __future__ import annotations

import os
from pathlib import Path

import anywidget

from flowrl_lab.plots.figures import svg_image

__all__ = ["Explorer", "read_script", "read_styles"]

FOLDER = Path(__file__).parent


def read_styles(*names: str) -> str:
    """The explorers' common style sheet, and a widget's own after it."""
    files = (FOLDER / name for name in ("explorer.css", *names))
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def read_script(name: str) -> str:
    """A widget's own script after the one that the explorers share."""
    files = (FOLDER / part for part in ("explorer.js", name))
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


class Explorer(anywidget.AnyWidget):
    """A widget with a still form for exported pages and headless runs.

    A subclass gives ``still() -> (svg, alt text, plain text)``, or, where its still
    form is no picture, a ``still_bundle`` of its own.
    """

    _css = FOLDER / "explorer.css"

    def open(self) -> None:
        """Connect to the browser, unless there is none (``FLOWRL_HEADLESS=1``)."""
        if os.environ.get("FLOWRL_HEADLESS") != "1":
            super().open()

    def still(self) -> tuple[str, str, str]:
        """SVG, alt text and table of the present state."""
        raise NotImplementedError(f"{type(self).__name__} has no still form")

    def still_bundle(self) -> dict[str, str]:
        """The still form by mime type."""
        svg, alt, table = self.still()
        return {
            "text/html": svg_image(svg, alt),
            "image/svg+xml": svg,
            "text/plain": f"{table}\n{alt}",
        }

    def _repr_mimebundle_(self, **options):
        bundle = self.still_bundle()
        if self.comm is None:
            return bundle
        live = super()._repr_mimebundle_(**options)
        if live is None:
            return bundle
        data, metadata = live if isinstance(live, tuple) else (live, {})
        return {**data, **bundle}, metadata

"""Show something at once: as HTML in a notebook, as text elsewhere."""

from __future__ import annotations

import html
import re
import time

from flowrl_lab.plots.live import in_notebook

__all__ = ["ShownOnce", "keep_in_view", "markup_to_html", "markup_to_text", "show"]

# What the course's messages hold of Markdown: `code`, and *stress* on whole words.
CODE = re.compile(r"`([^`\n]+)`")
STRESS = re.compile(r"(?<![\w*])\*(?=\S)([^*\n]+?)(?<=\S)\*(?![\w*])")


# Run All jumps to the last cell; this goes back, until the learner moves the page.
STAY = """
let free = Date.now() - MADE > 60000;
for (const act of ["wheel", "pointerdown", "keydown", "touchstart"])
  window.addEventListener(act, () => { free = true; }, {once: true, passive: true});
const last = Date.now() + 180000;
const timer = setInterval(() => {
  if (free || Date.now() > last) return clearInterval(timer);
  const cell = element.closest(".jp-Cell");  // none before the output is attached
  if (!cell || !cell.isConnected) return;
  const top = cell.getBoundingClientRect().top;
  if (top < 0 || top > window.innerHeight / 3) cell.scrollIntoView({block: "start"});
}, 250);
"""


def keep_in_view() -> None:
    """Keep this cell in JupyterLab's window while it runs, also under Run All.

    The page is the learner's again with the first click, key or turn of the wheel,
    and a notebook that is opened later stays where it is.
    """
    if in_notebook():
        from IPython.display import Javascript, display

        display(Javascript(STAY.replace("MADE", str(int(1000 * time.time())))))


def markup_to_html(text: str) -> str:
    """A message with its code and its stress as HTML, and the rest escaped."""
    parts = CODE.split(html.escape(text, quote=False))
    parts[1::2] = [f"<code>{code}</code>" for code in parts[1::2]]
    parts[::2] = [STRESS.sub(r"<em>\1</em>", part) for part in parts[::2]]
    return "".join(parts).replace("\n", "<br>")


def markup_to_text(text: str) -> str:
    """A message as plain text, without the marks."""
    parts = CODE.split(text)
    parts[::2] = [STRESS.sub(r"\1", part) for part in parts[::2]]
    return "".join(parts)


def show(bundle: dict[str, object], metadata: dict | None = None) -> None:
    """Display a bundle of mime types now; without a notebook print its text."""
    if in_notebook():
        from IPython.display import display

        display(bundle, raw=True, metadata=metadata or {})
    else:
        print(bundle["text/plain"])


class ShownOnce:
    """Something that shows itself when it is made, and not again as a cell's value.

    A subclass has ``_repr_mimebundle_``.
    """

    _shown = False

    def show_now(self) -> None:
        """Show it; if it is the cell's last value too, it does not come twice."""
        made = self._repr_mimebundle_()
        show(*(made if isinstance(made, tuple) else (made,)))
        self._shown = True

    def _ipython_display_(self) -> None:
        if not self._shown:
            self.show_now()
        self._shown = False

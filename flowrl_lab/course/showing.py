"""Show something at once: as HTML in a notebook, as text elsewhere."""

from __future__ import annotations

import sys

__all__ = ["ShownOnce", "in_notebook", "show"]


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


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

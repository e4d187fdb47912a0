"""Show something at once: as HTML in a notebook, as text elsewhere."""

from __future__ import annotations

from flowrl_lab.plots.live import in_notebook

__all__ = ["ShownOnce", "show"]


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

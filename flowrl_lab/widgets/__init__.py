"""Explorers that run in the browser: move a slider, the picture follows at once.

They need the ``notebooks`` extra; the rest of the library does not import them.
"""

from __future__ import annotations

from flowrl_lab.widgets.beta_explorer import BetaExplorer
from flowrl_lab.widgets.solution_map import SolutionMap, solution_map
from flowrl_lab.widgets.token_inspector import TokenInspector

__all__ = ["BetaExplorer", "SolutionMap", "TokenInspector", "solution_map"]

"""Explorers that run in the browser: move a slider, the picture follows at once.

They need the ``notebooks`` extra; the rest of the library does not import them.
"""

from __future__ import annotations

from flowrl_lab.widgets.beta_explorer import BetaExplorer
from flowrl_lab.widgets.fork_panel import ForkPanel
from flowrl_lab.widgets.run_scrubber import RunScrubber
from flowrl_lab.widgets.solution_map import SolutionMap, solution_map
from flowrl_lab.widgets.target_designer import TargetDesigner
from flowrl_lab.widgets.token_inspector import TokenInspector
from flowrl_lab.widgets.z_lab import ZLab

__all__ = [
    "BetaExplorer",
    "ForkPanel",
    "RunScrubber",
    "SolutionMap",
    "TargetDesigner",
    "TokenInspector",
    "ZLab",
    "solution_map",
]

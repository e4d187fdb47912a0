"""A small library and a hands-on course on FlowRL (arXiv 2509.15207).

Reward maximisation piles a policy onto one answer; FlowRL matches it to the
distribution the reward describes.  The names below load on first use, so
``import flowrl_lab`` is fast and works without the optional parts.
"""

from __future__ import annotations

import importlib
import os
import sys

# OpenMP's threads spin while they wait for each other, which makes a language model's
# step many times slower as soon as another program wants a core.  They read how to
# wait once, when torch is loaded; what the user has set stays.
if "torch" not in sys.modules:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_HOMES = {
    # the session
    "setup": "course.session",
    "data_path": "_files",
    # runs
    "ExperimentConfig": "training.run",
    "Run": "training.run",
    "race": "training.run",
    "train": "training.run",
    "preset": "training.presets",
    "load_task": "tasks",
    "text_task": "tasks",
    "LivePlot": "plots.live",
    # the pieces
    "gather_log_probs": "tokens",
    "log_probs_from_hidden": "tokens",
    "group_normalized": "advantages",
    "flowrl_loss": "losses",
    "flowrl_residuals": "losses",
    "grpo_loss": "losses",
    "ppo_loss": "losses",
    "reinforce_pp_loss": "losses",
    "trajectory_balance_loss": "losses",
    "vargrad_loss": "losses",
    "LogPartitionHead": "partition",
    "exact_report": "exact",
    "kl_divergence": "metrics",
    "pass_at_k": "metrics",
}

# Which extra brings a package that the core does without.
_EXTRAS = {
    "peft": "lm",
    "transformers": "lm",
    "anywidget": "notebooks",
    "IPython": "notebooks",
    "ipywidgets": "notebooks",
    "plotly": "notebooks",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    """Load a public name from the module it lives in, the first time it is used.

    Raises:
        AttributeError: there is no such name.
        ImportError: it needs an optional package; the message names the extra.
    """
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        raise ImportError(
            f"flowrl_lab.{name} needs the package {error.name!r}, which is not "
            f'installed. Fix: pip install "flowrl-lab[{extra}]"'
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, for tab completion."""
    return __all__

"""The first line of every notebook: seed everything, say what this machine is."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import random
from dataclasses import dataclass

import numpy as np
import torch

from flowrl_lab.course.reminders import remind_after_errors
from flowrl_lab.course.showing import show
from flowrl_lab.plots.figures import page_script
from flowrl_lab.plots.live import choose_backend, in_notebook
from flowrl_lab.policies.device import set_threads_for_large
from flowrl_lab.policies.fast.workers import set_workers

__all__ = ["BUDGETS", "Session", "choose_threads", "setup"]

BUDGETS = ("quick", "full")
_LARGEST_SEED = 2**32 - 1  # what numpy's generator takes


@dataclass(frozen=True)
class Session:
    """What ``setup`` decided for this notebook.

    Attributes:
        seed: what Python's, numpy's and torch's generators were seeded with.
        device: where models of this session belong: cuda, mps or cpu.
        budget: ``"full"`` (the course as described) or ``"quick"`` (shorter runs
            that still show the effect).
        plot_backend: how live plots are drawn here: ``"widget"``, ``"svg"``, or
            ``"static"`` (only the finished figure; see ``flowrl_lab.plots.live``).
    """

    seed: int
    device: torch.device
    budget: str
    plot_backend: str

    @property
    def quick(self) -> bool:
        """Whether runs should be cut short."""
        return self.budget == "quick"

    def _ipython_display_(self) -> None:
        """Nothing: ``setup`` has printed it, and notebooks end a cell with it."""


def setup(seed: int = 0, budget: str | None = None) -> Session:
    """Seed every generator, choose device, budget and plots, and print the choice.

    In a notebook the choice is also noted in the learner's progress file.

    Args:
        seed: 0 to 2**32 - 1; the same seed on the same machine gives the same run.
        budget: ``"quick"`` or ``"full"``; None reads the environment variable
            FLOWRL_BUDGET and otherwise means ``"full"``.

    Returns:
        The session, with ``.seed``, ``.device``, ``.budget``, ``.quick`` and
        ``.plot_backend``.

    Raises:
        ValueError: the seed is not a whole number in range, or the budget is
            neither quick nor full.
    """
    session = Session(
        seed=_check_seed(seed),
        device=_pick_device(),
        budget=_pick_budget(budget),
        plot_backend=choose_backend(),
    )
    choose_threads()
    if in_notebook():
        remind_after_errors()
        show({"text/html": page_script(), "text/plain": ""})
    _record(session)  # first, since an import may draw random numbers
    random.seed(seed)
    np.random.seed(seed)  # libraries that still draw from the global generator
    torch.manual_seed(seed)
    print(_describe(session))
    return session


def choose_threads() -> int:
    """Set how the CPU's cores are used, and return PyTorch's number of threads.

    The course's tensors are small.  Sharing each of a thousand operations a step
    among threads costs more than it saves, so on one or two cores PyTorch gets one
    thread; instead, up to four workers share a step's prompts, each with its own
    part of the tiny language model's passes (``policies.workers``).  A real language
    model's tensors are large: while one is at work, PyTorch has a thread for each
    core (``policies.workers.threads_for``).  Where OMP_NUM_THREADS is set, nothing is
    changed.  ``benchmarks/step_vs_trl.py`` measures what this brings.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        cores = os.cpu_count() or 1
        if cores <= 2:
            torch.set_num_threads(1)
            set_threads_for_large(cores)
        set_workers(min(cores, 4))
    return torch.get_num_threads()


def _check_seed(seed: int) -> int:
    """The seed, if every generator can take it."""
    whole = isinstance(seed, int) and not isinstance(seed, bool)
    if not whole or not 0 <= seed <= _LARGEST_SEED:
        raise ValueError(
            f"got seed={seed!r}; expected a whole number from 0 to {_LARGEST_SEED}. "
            "Fix: setup(seed=0)"
        )
    return seed


def _pick_budget(budget: str | None) -> str:
    """The argument, else FLOWRL_BUDGET, else full."""
    source = "budget"
    if budget is None:
        source = "FLOWRL_BUDGET"
        budget = os.environ.get("FLOWRL_BUDGET") or "full"
    if budget not in BUDGETS:
        raise ValueError(
            f"got {source}={budget!r}; expected one of {BUDGETS}. "
            "Fix: setup(budget='full'), or budget='quick' for short runs"
        )
    return budget


def _pick_device() -> torch.device:
    """The accelerator if torch can use one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def _describe(session: Session) -> str:
    """The session as four short lines."""
    device = str(session.device)
    if session.device.type == "cuda":
        device = f"cuda ({torch.cuda.get_device_name()})"
    else:
        threads = torch.get_num_threads()
        device = f"{device} ({threads} thread{'s' if threads > 1 else ''})"
    note = " (short runs that still show the effect)" if session.quick else ""
    own = f"flowrl_lab {_own_version()}, Python {platform.python_version()}"
    rows = (
        ("versions", f"{own}, torch {torch.__version__}"),
        ("device", device),
        ("seed", str(session.seed)),
        ("budget", session.budget + note),
        ("plots", session.plot_backend),
    )
    return "\n".join(f"{label:<9} {text}" for label, text in rows)


def _record(session: Session) -> None:
    """Note the session in the learner's progress file.

    Only in a notebook, or where a file was asked for: a script that sets a seed
    should leave nothing behind in the folder it was started in.
    """
    from flowrl_lab.course.ledger import open_ledger
    from flowrl_lab.measuring.folder import describe_environment

    if in_notebook() or os.environ.get("FLOWRL_PROGRESS"):
        facts = {"seed": session.seed, "budget": session.budget}
        facts |= describe_environment(str(session.device))
        open_ledger().record("session", "setup", facts)


def _own_version() -> str:
    """The installed version, or a word that says it runs from its source folder."""
    try:
        return importlib.metadata.version("flowrl-lab")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"

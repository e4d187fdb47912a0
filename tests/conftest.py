"""What every test shares: shape checks on, no widgets, honest skips.

Shape checks: every annotation in flowrl_lab is enforced (jaxtyping + beartype) while
the tests of CHECKED run, and with the full budget while all do: they make training
take half as long again.  FLOWRL_SHAPE_CHECKS=0 turns that off.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import jaxtyping
import pytest

# Before flowrl_lab is imported for the first time.
os.environ["FLOWRL_HEADLESS"] = "1"
os.environ.setdefault("FLOWRL_BUDGET", "quick")
if os.environ.get("FLOWRL_SHAPE_CHECKS", "1") != "0":
    jaxtyping.install_import_hook("flowrl_lab", "beartype.beartype")


CHECKED = ("core", "metrics", "policies", "tasks")  # folders of tests


def in_ci() -> bool:
    """Whether continuous integration runs this: then nothing may be skipped."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine or budget cannot run, with the reason."""
    if item.get_closest_marker("full") and os.environ["FLOWRL_BUDGET"] != "full":
        pytest.skip("full budget only: python3 lab.py test --full")
    if item.get_closest_marker("gpu"):
        import torch

        if not (torch.cuda.is_available() or torch.backends.mps.is_available()):
            pytest.skip("no accelerator that torch can use")


@pytest.fixture(autouse=True)
def _shape_checks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests marked ``bad_input`` meet flowrl_lab's own messages, as a user does."""
    checked = (
        os.environ["FLOWRL_BUDGET"] == "full" or request.path.parent.name in CHECKED
    )
    if checked and request.node.get_closest_marker("bad_input") is None:
        yield
        return
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)

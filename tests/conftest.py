"""What every test shares: shape checks on, no widgets, honest skips.

Shape checks: with the full budget every annotation in flowrl_lab is enforced (jaxtyping
+ beartype) in all tests.  In the quick one those are which stand in a module that names
shapes, in the tests of CHECKED: a call to a checked function takes ten times as long,
and the enumerations of the tasks are millions of short ones.  FLOWRL_SHAPE_CHECKS=0
turns that off.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest


def modules_with_shapes() -> list[str]:
    """The modules of flowrl_lab that name a tensor's shape somewhere."""
    root = Path(__file__).parents[1]
    return [
        ".".join(path.relative_to(root).with_suffix("").parts)
        for path in sorted(root.glob("flowrl_lab/**/*.py"))
        if "from jaxtyping import" in path.read_text(encoding="utf-8")
    ]


# Before flowrl_lab is imported for the first time.
os.environ["FLOWRL_HEADLESS"] = "1"
os.environ.setdefault("FLOWRL_BUDGET", "quick")
FULL = os.environ["FLOWRL_BUDGET"] == "full"
if os.environ.get("FLOWRL_SHAPE_CHECKS", "1") != "0":
    jaxtyping.install_import_hook(
        "flowrl_lab" if FULL else modules_with_shapes(), "beartype.beartype"
    )

GIVEN = pytest.StashKey[list[str]]()  # what to test, in the command line's order
BROWSER = "tests/browser/"
CHECKED = ("core", "metrics", "policies", "tasks")  # folders of tests


def in_ci() -> bool:
    """Whether continuous integration runs this: then nothing may be skipped."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def pytest_configure(config: pytest.Config) -> None:
    """Each worker of xdist reads the tests from another place on.

    In a new clone what one of them has compiled, the next one finds; all of them would
    compile all of it if they went side by side.
    """
    given = [str(argument) for argument in config.args]
    config.stash[GIVEN] = given
    worker = getattr(config, "workerinput", None)
    if worker is not None:
        number = int(worker["workerid"].removeprefix("gw"))
        start = number * len(given) // worker["workercount"]
        config.args = given[start:] + given[:start]


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """In whatever order they were read, tests run in that of the command line."""
    if getattr(config, "workerinput", None) is None:
        return
    places = [
        (config.invocation_params.dir / given.partition("::")[0]).resolve()
        for given in config.stash[GIVEN]
    ]

    @functools.cache
    def place(path: Path) -> int:
        return next(
            (n for n, given in enumerate(places) if path.is_relative_to(given)),
            len(places),
        )

    items.sort(key=lambda item: place(item.path))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Each file on one worker; all files with a browser on the same, which starts it
    and JupyterLab once and fetches JupyterLab's page once."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if nodeid.startswith(BROWSER):
                return BROWSER
            return super()._split_scope(nodeid)

    if config.getoption("dist") != "loadscope":
        return None
    return Scheduling(config, log)


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
    checked = FULL or request.path.parent.name in CHECKED
    if checked and request.node.get_closest_marker("bad_input") is None:
        yield
        return
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)

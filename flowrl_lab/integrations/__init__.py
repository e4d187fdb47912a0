"""Bridges to the engines people scale with: TRL and verl.

Nothing else in flowrl_lab imports this package, and importing it loads neither
engine; each bridge is a module of its own and says which extra it needs.
"""

from __future__ import annotations

import importlib.metadata

from packaging.specifiers import SpecifierSet

__all__ = ["TRACKERS", "TRL_VERSIONS", "require"]

# What ``trackers.track`` and ``train --tracker`` know, for where nothing may load.
TRACKERS = ("csv", "jsonl", "tensorboard", "wandb", "trackio")

# From the lowest that the drift test has been run on (1.13 to 1.16 have) up to the next
# major release; pyproject.toml agrees.
TRL_VERSIONS = ">=1.13,<2"


def require(package: str, extra: str, versions: str = "") -> str:
    """Check that an optional package is there, in the versions that were tested.

    Args:
        package: its name on the package index.
        extra: the extra of flowrl-lab that brings it.
        versions: the tested range; empty allows any.

    Returns:
        The installed version.

    Raises:
        ImportError: it is missing or out of range; the text says what to install.
    """
    fix = f"Fix: pip install 'flowrl-lab[{extra}]'"
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise ImportError(
            f"{package} is not installed; expected {package}{versions}. {fix}"
        ) from None
    if not SpecifierSet(versions).contains(found, prereleases=True):
        raise ImportError(
            f"{package} {found} is installed; expected {package}{versions}, the "
            f"versions this bridge was tested with. {fix}"
        )
    return found

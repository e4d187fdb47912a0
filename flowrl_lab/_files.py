"""Where the data lies, and files written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

__all__ = ["data_path", "read_json", "read_lines", "write_atomically", "write_json"]


def data_path(name: str = "") -> Path:
    """Path of something in the data folder.

    The folder is FLOWRL_DATA if that is set, else ``data/`` beside the package,
    as in a clone of the repository.

    Args:
        name: relative path inside it, such as ``"make_number_tiny_lm"``; empty for
            the folder itself.

    Raises:
        ValueError: the name leads out of the data folder.
        FileNotFoundError: there is no such file, or no data folder at all.
    """
    chosen = os.environ.get("FLOWRL_DATA")
    folder = Path(chosen) if chosen else Path(__file__).resolve().parents[1] / "data"
    if not folder.is_dir():
        raise FileNotFoundError(
            f"got no data folder at {folder}; expected the repository's data/. Fix: "
            "install from a clone (pip install -e .), or set FLOWRL_DATA to its data/"
        )
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"got {name!r}, which leads out of {folder}; expected a path inside it. "
            "Fix: give the relative name of a file in data/"
        )
    if not path.exists():
        known = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
        raise FileNotFoundError(
            f"got {name!r}, which is not in {folder}; expected one of {known}. "
            "Fix: update the clone (git pull), or check FLOWRL_DATA"
        )
    return path


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, all of it or nothing.

    Raises:
        OSError: the disk is full or not writable; what was at ``path`` stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(
            error.errno,
            f"could not save {path}: {error.strerror}. The last saved state is "
            "untouched. Fix: free some disk space, or choose another folder",
        ) from error
    finally:
        with contextlib.suppress(OSError):  # an interrupt leaves nothing behind either
            temporary.unlink(missing_ok=True)


def write_json(path: Path, content: dict) -> None:
    """Write readable JSON, all of it or nothing; NaN as null, infinity as text."""
    text = json.dumps(_plain(content), indent=2, allow_nan=False, ensure_ascii=False)
    write_atomically(path, (text + "\n").encode())


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def read_lines(path: Path) -> list[str]:
    """The lines of a file of JSON lines, which end at a line feed and nowhere else.

    A string of JSON may hold the other characters at which ``splitlines`` cuts, such
    as U+2028 and U+0085.
    """
    text = path.read_text(encoding="utf-8")  # makes CR LF a line feed as well
    return text.removesuffix("\n").split("\n") if text else []


def _plain(value):
    """Arrays as lists, NaN as None, all the way down."""
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value

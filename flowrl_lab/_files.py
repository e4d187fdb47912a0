"""Where the data lies, and files written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None
    import msvcrt

__all__ = [
    *(
        "course_root",
        "data_path",
        "hold_folder",
        "how_to_mend",
        "plain_values",
        "read_json",
        "read_lines",
        "refuse_odd",
        "refuse_used",
    ),
    *("scratch_folder", "try_lock", "write_atomically", "write_json"),
]

# What a kill left behind is removed at once if its process is gone and nobody holds
# its lock; after this long also if another process has got that number since.
ABANDONED_SECONDS = 3600.0
WHOLE_WHEEL = "pip install --force-reinstall --no-deps flowrl-lab"
NEWER_WHEEL = "pip install --upgrade flowrl-lab"


def course_root() -> Path:
    """Where ``data``, ``notebooks`` and ``docs`` lie: a clone, or inside the wheel."""
    package = Path(__file__).resolve().parent
    return package.parent if _in_clone() else package / "_course"


def _in_clone() -> bool:
    return (Path(__file__).resolve().parents[1] / "pyproject.toml").is_file()


def how_to_mend(in_clone: str, in_wheel: str) -> str:
    """The fix for who works in a clone, or the one for who has installed the wheel."""
    return in_clone if _in_clone() else in_wheel


def data_path(name: str = "") -> Path:
    """Path of something in the data folder.

    The folder is FLOWRL_DATA if that is set, else the course's ``data/``: beside the
    package in a clone, inside it in a wheel.

    Args:
        name: relative path inside it, such as ``"make_number_tiny_lm"``; empty for
            the folder itself.

    Raises:
        ValueError: the name leads out of the data folder.
        FileNotFoundError: there is no such file, or no data folder at all.
    """
    chosen = os.environ.get("FLOWRL_DATA")
    folder = Path(chosen) if chosen else course_root() / "data"
    if not folder.is_dir():
        mend = how_to_mend("git checkout data", WHOLE_WHEEL)
        raise FileNotFoundError(
            f"got no data folder at {folder}; expected the course's data/. Fix: "
            f"{mend}, or set FLOWRL_DATA"
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
            f"got {name!r}, which is not in {folder}; expected one of {known}. Fix: "
            f"{how_to_mend('git pull', NEWER_WHEEL)}, or check FLOWRL_DATA"
        )
    return path


def refuse_used(*paths: str | Path | None) -> None:
    """Before any work: nothing is overwritten, and no file is named twice.

    Args:
        paths: files to be written; None is passed over.

    Raises:
        ValueError: one exists already, two are the same, or a folder is a file.
    """
    named = [Path(path) for path in paths if path is not None]
    for path in named:
        if path.parent.is_file():
            raise ValueError(f"{path.parent} is a file. Fix: name a folder.")
        if path.exists():
            raise ValueError(
                f"{path} already exists; nothing is overwritten. Fix: name a new file, "
                "or remove it."
            )
    if len(set(named)) < len(named):
        raise ValueError(f"{named[0]} is named twice. Fix: give each its own file.")


def refuse_odd(path: Path) -> None:
    """Check that nothing but a plain file, or a folder, is at ``path``.

    A device such as /dev/null would be replaced by a file, or read without end.

    Raises:
        OSError: it is something else.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(f"{path} is no plain file. Fix: name a file")


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, all of it or nothing.

    It is written beside its name first, to a file that nobody can have put there
    before; what earlier writes of ``path`` that were killed left there is removed.

    Raises:
        OSError: the disk is full or not writable, or ``path`` is a device or a pipe;
            what was there stays.
    """
    refuse_odd(path)
    name = f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part"
    temporary = path.with_name(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:  # x: never through a link that waits there
            try_lock(file.fileno())
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _remove_abandoned(path.parent, f".{path.name}.", ".part")
    except OSError as error:
        raise OSError(
            error.errno,
            f"could not save {path}: {error.strerror}. The last saved state is "
            "untouched. Fix: free some disk space, or choose another folder",
        ) from error
    finally:
        with contextlib.suppress(OSError):  # an interrupt leaves nothing behind either
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def scratch_folder(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """A new folder of this process's own until the block ends.

    Folders of that prefix that killed processes left behind are removed.

    Args:
        prefix: what its name starts with; says whose it is.
        parent: where it lies; None for the system's folder for temporary files.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    _remove_abandoned(parent, prefix)
    made = tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=parent)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, made, ignore_errors=True)
        if fcntl is not None:
            handle = os.open(made, os.O_RDONLY)
            stack.callback(os.close, handle)
            try_lock(handle)
        yield Path(made)


@contextlib.contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Keep other processes from working in a folder until the block ends.

    Where there are no such locks (Windows, some network disks), nothing is held.

    Raises:
        ValueError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if fcntl is not None:
            handle = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, handle)
            if try_lock(handle) is False:
                raise ValueError(
                    f"another process is at work in {folder}. Fix: wait until it ends, "
                    "or name another folder."
                )
        yield


def try_lock(handle: int) -> bool | None:
    """Lock an open file (a folder, too, but not on Windows) until it is closed.

    Returns:
        True if it is ours, False if another process has it, None on a disk without
        locks.
    """
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return None
    return True


def _remove_abandoned(parent: Path, prefix: str, suffix: str = "") -> None:
    """Remove ``<prefix><process>-<any><suffix>`` of processes that were killed."""
    with contextlib.suppress(OSError), os.scandir(parent) as found:
        for entry in found:
            middle = entry.name.removeprefix(prefix).removesuffix(suffix)
            if f"{prefix}{middle}{suffix}" != entry.name or entry.is_symlink():
                continue
            number = middle.partition("-")[0]
            if number.isascii() and number.isdigit() and _is_abandoned(entry, number):
                remove = shutil.rmtree if entry.is_dir() else os.unlink
                with contextlib.suppress(OSError):
                    remove(entry.path)


def _is_abandoned(entry: os.DirEntry, number: str) -> bool:
    """Whether ``entry`` is this user's, and its maker ``number`` is gone."""
    facts = entry.stat(follow_symlinks=False)
    if time.time() - facts.st_mtime < ABANDONED_SECONDS and _is_running(int(number)):
        return False
    if fcntl is None:
        return True  # an open file cannot be removed there
    if facts.st_uid != os.geteuid():
        return False
    handle = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return try_lock(handle) is True
    finally:
        os.close(handle)


def _is_running(number: int) -> bool:
    """Whether there is such a process, as far as this system tells."""
    if os.name != "posix":  # there, asking with a signal would end it
        return True
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def write_json(path: Path, content: dict) -> None:
    """Write readable JSON, all of it or nothing; NaN as null, infinity as text."""
    text = json.dumps(
        plain_values(content), indent=2, allow_nan=False, ensure_ascii=False
    )
    write_atomically(path, (text + "\n").encode())


def read_json(path: Path) -> dict:
    """What ``write_json`` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def read_lines(path: Path) -> list[str]:
    """The lines of a file of JSON lines, which end at a line feed and nowhere else.

    A string of JSON may hold the other characters at which ``splitlines`` cuts, such
    as U+2028 and U+0085.
    """
    text = path.read_text(encoding="utf-8")  # makes CR LF a line feed as well
    return text.removesuffix("\n").split("\n") if text else []


def plain_values(value, *, infinite=str):
    """Arrays as lists, NaN as None, all the way down, as JSON wants them.

    Args:
        value: nested dicts, lists, arrays and plain values.
        infinite: what becomes of infinity; by default its text.
    """
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, dict):
        pairs = value.items()
        return {str(key): plain_values(one, infinite=infinite) for key, one in pairs}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain_values(item, infinite=infinite) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else infinite(value)
    return value

"""The learner's progress: one local JSON file of events that is only ever added to.

Events are predictions, outcomes, verdicts of checks, quiz answers and sessions.
Each has an id of its own, so files from several machines merge to one by union, in
any order and any number of times.  Nothing here may cost a learner the lesson: a
damaged file is moved aside, and where nothing can be written the events live in
memory and one line says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from flowrl_lab._files import refuse_odd, try_lock, write_atomically
from flowrl_lab._validation import bad_input

__all__ = [
    "FILE_NAME",
    "KINDS",
    "Ledger",
    "merge_events",
    "open_ledger",
    "progress_path",
    "read_events",
]

FILE_NAME = "flowrl_progress.json"
FORMAT = 1
KINDS = ("session", "prediction", "outcome", "check", "quiz")
LOCK_SECONDS = 5.0

Event = dict[str, object]


def progress_path() -> Path:
    """Where this learner's progress file lies (it need not exist yet).

    The environment variable FLOWRL_PROGRESS if it is set; else the folder above
    ``notebooks/`` in a checkout; else the current folder.
    """
    chosen = os.environ.get("FLOWRL_PROGRESS")
    if chosen:
        path = Path(chosen)
        with contextlib.suppress(RuntimeError):  # nobody's home: taken as it is
            path = path.expanduser()
        return path.absolute()
    here = Path.cwd()
    for folder in (here, *here.parents):
        checkout = folder.parent
        if folder.name == "notebooks" and (checkout / "flowrl_lab").is_dir():
            return checkout / FILE_NAME
    return here / FILE_NAME


def merge_events(*many: Iterable[Event]) -> list[Event]:
    """The union of several lists of events, by id, oldest first.

    The order of the lists does not matter, and merging a list twice changes nothing.
    """
    union = {str(event["id"]): event for events in many for event in events}
    return sorted(union.values(), key=lambda event: (event["time"], event["id"]))


def read_events(path: str | Path) -> list[Event]:
    """The events of one progress file; none where there is no file yet.

    Raises:
        ValueError: the file is no progress file, is damaged, or is newer than this
            version of flowrl_lab can read.
        OSError: the file cannot be read.
    """
    path = Path(path)
    refuse_odd(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    try:
        return _parse(content)
    except (*_UNREADABLE, _TooNew) as error:
        raise bad_input(
            "path",
            f"is {path}, which is no progress file that can be read ({error})",
            f"a file that flowrl_lab wrote ({FILE_NAME})",
            "name another file; this one is left as it is",
        ) from None


class Ledger:
    """One progress file, and what of it could not be written.

    Args:
        path: the file; its folder need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._unsaved: list[Event] = []
        self._complained = False

    def events(self) -> list[Event]:
        """All events, oldest first: the file's, and those that wait in memory."""
        try:
            saved = read_events(self.path)
        except (ValueError, OSError):  # `record` says so and sets it aside
            saved = []
        return merge_events(saved, self._unsaved)

    def latest(self, kind: str, key: str) -> Event | None:
        """The last event of this kind about this key."""
        found = (e for e in reversed(self.events()) if e["kind"] == kind)
        return next((event for event in found if event["key"] == key), None)

    def record(self, kind: str, key: str, facts: Mapping[str, object]) -> Event:
        """Add one event and save; where that fails, keep it and say so once.

        Args:
            kind: one of ``KINDS``.
            key: what it is about: a prediction's key, an exercise, a quiz.
            facts: what happened, as JSON can hold it.

        Returns:
            The event.  One that repeats the last event about its key is not added
            again: then that event.

        Raises:
            ValueError: an unknown kind, or facts that JSON cannot hold.
        """
        if kind not in KINDS:
            raise bad_input(
                "kind", f"is {kind!r}", f"one of {KINDS}", "use one of them"
            )
        plain = _as_json(facts)
        last = self.latest(kind, key)
        if last is not None and kind != "session" and plain.items() <= last.items():
            return last
        event = {
            "id": uuid.uuid4().hex,
            "time": datetime.now(UTC).isoformat(timespec="microseconds"),
            "kind": kind,
            "key": key,
            "notebook": _notebook(),
            **plain,
        }
        self._unsaved.append(event)
        self._save()
        return event

    def _save(self) -> None:
        """Move what waits in memory into the file, under the lock."""
        try:
            refuse_odd(self.path)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.path):
                saved = self._read_or_set_aside()
                merged = merge_events(saved, self._unsaved)
                write_atomically(self.path, _format(merged))
        except (OSError, _TooNew) as error:
            if not self._complained:
                number = getattr(error, "errno", None)
                print(
                    f"Your progress is not saved to {self.path}: "
                    f"{os.strerror(number) if number else error}. The course goes on, "
                    "and remembers until this kernel ends."
                )
            self._complained = True
        else:
            self._unsaved.clear()
            self._complained = False

    def _read_or_set_aside(self) -> list[Event]:
        """The file's events; a damaged file is renamed and what is whole kept."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return []
        try:
            return _parse(content)
        except _UNREADABLE:
            kept = _salvage(content)
            aside = _free_name(self.path)
            os.rename(self.path, aside)
            print(
                f"The progress file {self.path} was damaged. It is kept as "
                f"{aside.name}; a new one starts with the {len(kept)} events that "
                "could still be read."
            )
            return kept


_open: dict[Path, Ledger] = {}


def open_ledger() -> Ledger:
    """The ledger of this learner, the same object at every call in a kernel."""
    path = progress_path()
    if path not in _open:
        _open[path] = Ledger(path)
    return _open[path]


# ------------------------------------------------------------------------- the file


class _Damaged(ValueError):
    """JSON, but not ours."""


class _TooNew(Exception):
    """Ours, but from a later version."""


# What a file can raise: not UTF-8, no JSON, a number of more digits than Python turns
# into one (ValueError), or lists in lists without end.
_UNREADABLE = (ValueError, RecursionError)


def _format(events: list[Event]) -> bytes:
    """JSON with one event a line, so that a damaged file still gives up most.

    Half a surrogate pair (a cut emoji) is no UTF-8; as ``\\ud83d`` it is JSON.
    """
    lines = (json.dumps(e, ensure_ascii=False, sort_keys=True) for e in events)
    body = ",\n".join(lines)
    text = f'{{"flowrl_lab_progress": {FORMAT}, "events": [\n{body}\n]}}\n'
    return text.encode("utf-8", "backslashreplace")


def _parse(content: bytes) -> list[Event]:
    if not content.strip():  # `touch`, or a file made for us to fill
        return []
    document = json.loads(content.decode("utf-8"))
    version = document.get("flowrl_lab_progress") if isinstance(document, dict) else 0
    if not isinstance(version, int) or version < 1:
        raise _Damaged("it does not say that flowrl_lab wrote it")
    if version > FORMAT:
        raise _TooNew("the file comes from a newer flowrl_lab; update this one")
    events = document.get("events")
    if not isinstance(events, list) or not all(map(_is_event, events)):
        raise _Damaged("some of its events are not whole")
    return events


def _is_event(value: object) -> bool:
    named = ("id", "time", "kind", "key")
    return isinstance(value, dict) and all(
        isinstance(value.get(name), str) for name in named
    )


def _salvage(content: bytes) -> list[Event]:
    """Every line that is a whole event by itself."""
    kept = []
    for line in content.decode("utf-8", errors="replace").split("\n"):
        with contextlib.suppress(*_UNREADABLE):
            value = json.loads(line.strip().rstrip(","))
            if _is_event(value):
                kept.append(value)
    return kept


def _free_name(path: Path) -> Path:
    """A name beside ``path`` that nothing has yet."""
    number = 1
    while True:
        name = path.with_name(f"{path.stem}.damaged-{number}{path.suffix}")
        if not os.path.lexists(name):
            return name
        number += 1


def _as_json(facts: Mapping[str, object]) -> dict[str, object]:
    """The facts as they will come back from the file."""
    try:
        return json.loads(json.dumps(dict(facts), allow_nan=False))
    except (TypeError, *_UNREADABLE) as error:
        raise bad_input(
            "facts",
            f"cannot be saved ({error})",
            "text, finite numbers, true or false",
            "convert tensors with .item()",
        ) from None


def _notebook() -> str:
    """The notebook this kernel serves, where JupyterLab tells; else ""."""
    return Path(os.environ.get("JPY_SESSION_NAME", "")).stem


# ------------------------------------------------------------------------- the lock


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold ``path`` against other kernels.

    Raises:
        OSError: another kernel held it all the while, or the folder is read-only.
    """
    with open(path.with_name(f".{path.name}.lock"), "a+b") as file:
        deadline = time.monotonic() + LOCK_SECONDS
        while try_lock(file.fileno()) is False:  # without locks, unguarded
            if time.monotonic() > deadline:
                raise TimeoutError(f"another kernel holds {path}")
            time.sleep(0.02)
        yield

"""Find submissions and have them read, whatever they are; none is ever changed.

A submission is a notebook, a folder with one, the zip file that a student's ``submit``
writes, or a student's share of what a learning platform lets an instructor download.
A process of its own reads it, within a bounded memory and time; no code of it is run.
What is wrong is named, with what the student must do.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flowrl_lab._validation import bad_input
from flowrl_lab.assignments.handing_in import plain_name
from flowrl_lab.assignments.marking.downloads import (
    is_download,
    share_out,
    who_handed_in,
)

__all__ = [
    "Cell",
    "Found",
    "Problem",
    "Submission",
    "check_reader",
    "find_submissions",
    "read_submission",
    "read_submissions",
    "reader_text",
]

MAX_KEY = 150  # bytes of the names that we give to files
APART = "+"  # in such a name, before what we add: no `plain_name` holds it
MAX_NAME = 150  # letters of a student's name, or a file's, that are shown
MAX_TOLD = 300  # letters of anything that is said about a submission
# Of the process that reads one submission.
MEMORY, CPU_SECONDS, WALL_SECONDS = 1_000_000_000, 60, 300
# Signs that show nothing, and can turn round what stands beside them.
UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
READER = Path(__file__).with_name("reading") / "worker.py"
WITHOUT_IPYTHON = 3  # how the reader ends when it cannot read cells
IGNORED = (
    *(".ipynb_checkpoints", "__macosx", "__pycache__", ".venv", "venv", ".git"),
    *(".trash", ".ds_store", "thumbs.db", "desktop.ini"),
)
DOUBT = "looks like a platform's download, and lies beside other submissions"
_DOUBT = "nothing, if it is your own; a whole class's download is marked on its own"
_SMALLER = "clear all outputs (Edit, Clear Outputs of All Cells), save, hand in again"


@dataclass(frozen=True)
class Problem:
    """Something that is wrong with a submission.

    Attributes:
        what: named in the gradebook.
        fix: what the student must do.
        fatal: nothing can be marked.
    """

    what: str
    fix: str
    fatal: bool = False


@dataclass(frozen=True)
class Found:
    """A submission before it is read: whose, and where.

    Attributes:
        key: unique, from the path; names the result and the feedback page.
        student: from the path.
        path: of the notebook, the folder or the zip file.
        members: if it is a share of that folder or zip file, what belongs to it: (name
            in it, the file's own name), "" for a whole folder.
        doubt: what the instructor must look at before it counts, or "".
    """

    key: str
    student: str
    path: Path
    members: tuple[tuple[str, str], ...] = ()
    doubt: str = ""

    @property
    def shown(self) -> str:
        """The name of what was handed in, as text that can be written down."""
        return readable_name(self.members[0][0] if self.members else self.path.name)


@dataclass(frozen=True)
class Cell:
    """A cell of a submission, for what a person reads.

    Attributes:
        kind: "markdown", "code", "raw", or "prose" for code that only says something.
        text: as it was written, the first 20,000 letters.
        argued: the argued answer that its metadata name, or "".
        given: whether it was handed out with a task for code.
    """

    kind: str
    text: str
    argued: str
    given: bool


@dataclass
class Submission:
    """What was read.

    Attributes:
        found: where it came from.
        digest: sha256 over everything that counts, for resuming.
        assignment: the key that the notebook carries, or "".
        variant: that it carries, or None.
        code: code cells in order, as Python; "" for a cell without any.
        cells: all cells, in order.
        left_out: (code cell, line, text, inside a definition) of what only a notebook
            understands.
        files: contents of the files beside the notebook, by name.
        problems: what is wrong.
    """

    found: Found
    digest: str = ""
    assignment: str = ""
    variant: int | None = None
    code: list[str] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    left_out: list[tuple[int, int, str, bool]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def readable(self) -> bool:
        return not any(problem.fatal for problem in self.problems)

    def note(self, what: str, fix: str, *, fatal: bool = False) -> None:
        """Name a problem, once."""
        problem = Problem(what[:MAX_TOLD], fix[:MAX_TOLD], fatal)
        if problem not in self.problems:
            self.problems.append(problem)


def readable_name(name: str) -> str:
    """A name from a disk as text: old zip programs left other bytes than UTF-8."""
    content = os.fsencode(name)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        # letters beyond ASCII: Western Windows from 0xC0 on, DOS from 0x80 on
        windows = any(byte >= 0xC0 for byte in content)
        text = content.decode("latin-1" if windows else "cp437")
    text = unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode())
    return UNSEEN.sub("", text)[:MAX_NAME]


# ---------------------------------------------------------------------------- finding


def find_submissions(path: Path) -> list[Found]:
    """Every submission in a folder, or in a platform's zip file, by name.

    Raises:
        ValueError: no such folder, or nothing in it.
    """
    path = Path(path)
    if path.is_file() and path.suffix.lower() == ".zip":
        found = _found_in_zip(path, _names_in_zips([path])[path])
        return _with_unique_keys(found, path.parent)
    if not path.is_dir():
        raise bad_input(
            "SUBMISSIONS",
            f"{path} is no folder",
            "a folder, or the zip file that a platform lets download",
            "name another one",
        )
    found = _found_in_folder(path)
    if not found:
        raise bad_input(
            "SUBMISSIONS",
            f"{path} is empty",
            "notebooks, zip files, or a folder for each student",
            "put them there; nothing else is needed",
        )
    return _with_unique_keys(found, path)


def _found_in_folder(folder: Path) -> list[Found]:
    children = [child for child in sorted(folder.iterdir()) if _counts(child)]
    names = [child.name + "/" * child.is_dir() for child in children]
    known = [child for child in children if who_handed_in(child.name)]
    download = bool(known) and 2 * len(known) >= len(children)  # not by one odd name
    found = _shares(folder, names) if download else []
    if download:  # an index.html beside it is nobody's
        wanted = (".ipynb", ".zip")
        children = [c for c in children if c.is_dir() or c.suffix.lower() in wanted]
        children = [c for c in children if not who_handed_in(c.name)]
    found += _found_in_children(children, beside=download)
    return sorted(found, key=lambda one: (os.fsencode(one.path), one.members))


def _found_in_children(children: Sequence[Path], *, beside: bool) -> list[Found]:
    """What a folder's children are: downloads all of them, or a student's each.

    One that looks like a download beside others that do not is one student's, who
    may not hand in for others, nor as thousands.
    """
    inner = _names_in_zips([c for c in children if c.suffix.lower() == ".zip"])
    if len(children) == 1 and not beside and children[0] in inner:
        return _found_in_zip(children[0], inner[children[0]])
    looks = {child: _is_download(child, inner.get(child)) for child in children}
    found: list[Found] = []
    for child in children:
        if not looks[child]:
            found.append(_found_alone(child))
        elif beside or not all(looks.values()):
            found.append(replace(_found_alone(child), doubt=DOUBT))
        elif child in inner:
            found += _found_in_zip(child, inner[child])
        else:
            found += _found_in_folder(child)
    return found


def _counts(path: Path) -> bool:
    """Whether somebody may have handed it in; what tools leave behind nobody did."""
    name = path.name.lower()
    if name in IGNORED or name.startswith("._"):
        return False
    if not name.startswith("."):
        return True
    return name.endswith((".ipynb", ".zip")) or (
        path.is_dir() and not path.is_symlink() and _holds_a_notebook(path)
    )


def _holds_a_notebook(folder: Path) -> bool:
    """Whether there is one anywhere below; however deep, and whatever is closed."""
    waiting = [str(folder)]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif entry.name.lower().endswith(".ipynb"):
                    return True
    return False


def _is_download(child: Path, names: Sequence[str] | None) -> bool:
    """Whether a folder, or a zip file with these names, looks like a platform's."""
    if names is not None:
        return is_download(names)
    if not child.is_dir() or child.is_symlink():
        return False
    try:
        return any(who_handed_in(name) for name in os.listdir(child))
    except OSError:  # not for us to read; it is named when it is its turn
        return False


def _found_alone(path: Path) -> Found:
    whole = path.is_dir() and not path.is_symlink()
    student = path.name if whole else _student_of(path.name)
    return Found(plain_name(readable_name(path.name)), readable_name(student), path)


def _found_in_zip(path: Path, names: Sequence[str]) -> list[Found]:
    """A class's submissions, if it is a download; otherwise one student's."""
    return _shares(path, names) or [_found_alone(path)]


def _shares(path: Path, names: Sequence[str]) -> list[Found]:
    found = []
    for share in share_out(names):
        first = share.members[0][0]
        known = who_handed_in(first.rpartition("/")[2]) is not None
        student = share.student if known else _student_of(share.student)
        student = readable_name(student)
        key = plain_name(f"{student}--{readable_name(first)}")
        found.append(Found(key, student, path, share.members))
    return found


def _student_of(name: str) -> str:
    """``"ada-1_partition_functions.zip"``, ``"ada (2).ipynb"`` -> ``"ada"``."""
    stem = re.sub(r"(\.ipynb|\.zip)+(\.txt|\.json)?$", "", name.strip(), flags=re.I)
    stem = stem if stem != name.strip() else os.path.splitext(stem)[0]
    name = re.sub(r"[-_ ]+[0-9]_[a-z_]+$", "", stem)
    name = re.sub(r"\s*(\([0-9]+\)|[-_ ]copy[0-9]*)$", "", name, flags=re.IGNORECASE)
    return name or stem or "nameless"


def _names_in_zips(paths: Sequence[Path]) -> dict[Path, list[str]]:
    """The names in zip files; [] for one that cannot be listed."""
    names: dict[Path, list[str]] = {}
    while len(names) < len(paths):
        left = paths[len(names) :]
        ended, output = _start_reader({"list": [str(path) for path in left]})
        lines = output.split(b"\n")[:-1]  # the reader may have ended within one
        names |= {p: json.loads(line) for p, line in zip(left, lines, strict=False)}
        if ended != 0 and len(names) < len(paths):  # it ended at this one
            names[paths[len(names)]] = []
    return names


def _with_unique_keys(found: Sequence[Found], folder: Path) -> list[Found]:
    keys = Counter(one.key.lower() for one in found)  # some disks see no difference
    return [_with_unique_key(one, keys, folder) for one in found]


def _with_unique_key(found: Found, keys: Mapping[str, int], folder: Path) -> Found:
    short = 0 < len(found.key.encode()) <= MAX_KEY
    if short and keys[found.key.lower()] == 1:
        return found
    # names that come to the same in safe letters, or that no file could have
    name = os.fsencode(found.path.relative_to(folder))
    name += repr(found.members).encode() if found.members else b""
    digest = hashlib.sha256(name).hexdigest()
    start = found.key.encode()[:MAX_KEY].decode("utf-8", "ignore")
    return replace(found, key=f"{start}{APART}{digest[:6]}")


# ---------------------------------------------------------------------------- reading


def check_reader() -> None:
    """Check that cells can be turned into Python.

    Raises:
        ValueError: IPython is missing.
    """
    if importlib.util.find_spec("IPython") is None:
        raise bad_input(
            "the grader's Python",
            "has no IPython",
            "IPython, which turns a notebook's cells into Python",
            "install it: pip install 'flowrl-lab[notebooks]'",
        )


def read_submission(
    found: Found, known: Mapping[str, Sequence[str]] | None = None
) -> Submission:
    """Read one submission of one assignment; never raises for what is in it."""
    return read_submissions(found, known)[0]


def read_submissions(
    found: Found, known: Mapping[str, Sequence[str]] | None = None, wanted: str = ""
) -> list[Submission]:
    """Read what was handed in: a submission for each assignment that is in it.

    Args:
        found: where it lies.
        known: assignment -> names that it asks for; without it, a notebook counts by
            its marks alone.
        wanted: the only assignment that is expected, or "".

    Returns:
        At least one; what cannot be read has a fatal problem.

    Raises:
        ValueError: IPython is missing, which turns cells into Python.
    """
    problem = _problem_of(found)
    if problem is not None:
        return [Submission(found, problems=[problem])]
    request = {
        "path": str(found.path),
        "members": found.members,
        "wanted": wanted,
        "known": {key: list(names) for key, names in (known or {}).items()},
    }
    ended, output = _start_reader(request)
    if ended == WITHOUT_IPYTHON:
        check_reader()
    head, _, blob = output.partition(b"\n")
    if ended != 0 or not head:
        what = "takes too long to read" if ended in _TOO_LONG else "too large to read"
        return [Submission(found, problems=[Problem(what, _SMALLER, fatal=True)])]
    submissions = list(_to_submissions(found, json.loads(head), blob))
    for submission in submissions if found.doubt else ():
        submission.note(found.doubt, _DOUBT)
    return submissions


@functools.cache
def reader_text() -> str:
    """The program that reads, whose results change when it does."""
    return "".join(p.read_text("utf-8") for p in sorted(READER.parent.glob("*.py")))


def _problem_of(found: Found) -> Problem | None:
    """What is wrong before anything is read."""
    path = found.path
    try:
        if path.is_symlink():
            return Problem("a link instead of a file", "hand in the file", fatal=True)
        if not (path.is_dir() or path.is_file()):
            return Problem("not a plain file", "hand in the file", fatal=True)
        if path.is_file():
            path.open("rb").close()
    except OSError as error:
        return Problem(
            f"cannot be read: {error.strerror or type(error).__name__}",
            "ask the instructor whether the upload was cut off, and hand in again",
            fatal=True,
        )
    return None


_TOO_LONG = (-signal.SIGXCPU, -signal.SIGKILL, None)


def _start_reader(request: dict[str, Any]) -> tuple[int | None, bytes]:
    """Have a process of its own answer a request.

    Returns:
        How it ended (None if it was stopped), and what it wrote.
    """
    request = {**request, "memory": MEMORY, "seconds": CPU_SECONDS}
    reader = subprocess.Popen(
        [sys.executable, "-B", str(READER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with reader:
        try:
            output, _ = reader.communicate(json.dumps(request).encode(), WALL_SECONDS)
        except subprocess.TimeoutExpired:
            reader.kill()
            output, _ = reader.communicate()
            return None, output
    return reader.returncode, output


def _to_submissions(
    found: Found, rows: list[dict], blob: bytes
) -> Iterator[Submission]:
    start = 0
    for place, row in enumerate(rows):
        files = {}
        for name, size in row["files"]:
            files[name] = blob[start : start + size]
            start += size
        own = found
        if place:  # never by what the notebook carries, which could lead anywhere
            key = plain_name(row["marked_as"])
            own = replace(found, key=f"{found.key}{APART}{key}")
        yield Submission(
            found=own,
            digest=row["digest"],
            assignment=row["assignment"],
            variant=row["variant"],
            code=row["code"],
            cells=[Cell(*cell) for cell in row["cells"]],
            left_out=[tuple(line) for line in row["left_out"]],
            files=files,
            problems=[Problem(*problem) for problem in row["problems"]],
        )

"""Find submissions and read them, whatever they are; none is ever changed.

A submission is a notebook, a folder with one, or the zip file that a student's
``submit`` writes.  Reading is all that happens here: no cell is parsed, no code is run.
What is wrong is named, with what the student must do.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowrl_lab._validation import bad_input
from flowrl_lab.assignments.handing_in import MANIFEST, plain_name

__all__ = ["Found", "Problem", "Submission", "find_submissions", "read_submission"]

MAX_NOTEBOOK = 120_000_000
MAX_FILE = 20_000_000
MAX_ALL_FILES = 60_000_000
MAX_CELLS, MAX_CELL_TEXT, MAX_TEXT = 2_000, 200_000, 2_000_000
MAX_KEY = 150  # bytes of the names that we give to files
IGNORED = (".ipynb_checkpoints", "__MACOSX", "__pycache__")
PYTHON = ("python", "python3", "ipython", "xpython", "")


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
        shared: other submissions under the same name and for the same assignment are
            there; filled in once they are read.
    """

    key: str
    student: str
    path: Path


@dataclass
class Submission:
    """What was read.

    Attributes:
        found: where it came from.
        digest: sha256 over everything that counts, for resuming.
        assignment: the key that the notebook carries, or "".
        variant: that it carries, or None.
        code: sources of code cells, in order.
        argued: texts of the argued answers, by question.
        files: contents of the files beside the notebook, by name.
        problems: what is wrong.
    """

    found: Found
    digest: str = ""
    assignment: str = ""
    variant: int | None = None
    code: list[str] = field(default_factory=list)
    argued: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def readable(self) -> bool:
        return not any(problem.fatal for problem in self.problems)

    def note(self, what: str, fix: str, *, fatal: bool = False) -> None:
        """Name a problem, once."""
        problem = Problem(what, fix, fatal)
        if problem not in self.problems:
            self.problems.append(problem)


# ---------------------------------------------------------------------------- finding


def find_submissions(folder: Path) -> list[Found]:
    """Every submission in a folder, by name.

    Raises:
        ValueError: no such folder, or nothing in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise bad_input(
            "SUBMISSIONS", f"{folder} is no folder", "a folder", "name another one"
        )
    paths = [p for p in sorted(folder.iterdir()) if _counts(p)]
    if not paths:
        raise bad_input(
            "SUBMISSIONS",
            f"{folder} is empty",
            "notebooks, zip files, or a folder for each student",
            "put them there; nothing else is needed",
        )
    found = []
    for path in paths:
        found += list(_found_at(path))
    keys = Counter(one.key.lower() for one in found)  # some disks see no difference
    return [_with_unique_key(one, keys, folder) for one in found]


def _counts(path: Path) -> bool:
    return not path.name.startswith(".") and path.name not in IGNORED


def _found_at(path: Path) -> Iterator[Found]:
    """One submission for a file; one for each notebook or zip of a folder."""
    if not path.is_dir() or path.is_symlink():
        yield Found(plain_name(path.name), _student_of(path.stem), path)
        return
    inside = [
        other
        for other in sorted(path.rglob("*"))
        if other.suffix.lower() in (".ipynb", ".zip")
        and other.is_file()
        and not any(part in IGNORED for part in other.parts)
    ]
    if len(inside) == 1 and inside[0].suffix.lower() == ".ipynb":
        yield Found(plain_name(path.name), path.name, inside[0])
    elif inside:
        for other in inside:
            name = plain_name(f"{path.name}--{other.relative_to(path)}")
            yield Found(name, path.name, other)
    else:
        yield Found(plain_name(path.name), path.name, path)


def _student_of(stem: str) -> str:
    """``"ada-1_partition_functions"``, ``"ada (2)"`` -> ``"ada"``."""
    name = re.sub(r"[-_ ]+[0-9]_[a-z_]+$", "", stem.strip())
    name = re.sub(r"\s*(\([0-9]+\)|[-_ ]copy[0-9]*)$", "", name, flags=re.IGNORECASE)
    return name or stem


def _with_unique_key(found: Found, keys: Mapping[str, int], folder: Path) -> Found:
    short = 0 < len(found.key.encode()) <= MAX_KEY
    if short and keys[found.key.lower()] == 1:
        return found
    # names that come to the same in safe letters, or that no file could have
    name = str(found.path.relative_to(folder)).encode("utf-8", "surrogateescape")
    digest = hashlib.sha256(name).hexdigest()
    start = found.key.encode()[:MAX_KEY].decode("utf-8", "ignore")
    return Found(f"{start}-{digest[:6]}", found.student, found.path)


# ---------------------------------------------------------------------------- reading


def read_submission(found: Found) -> Submission:
    """Read one submission; never raises for what is in it."""
    submission = Submission(found)
    try:
        notebook = _read_parts(submission)
    except OSError as error:
        submission.note(
            f"cannot be read: {error.strerror or type(error).__name__}",
            "ask the instructor whether the upload was cut off, and hand in again",
            fatal=True,
        )
        notebook = None
    except MemoryError:
        submission.note("too large to read", _SMALLER, fatal=True)
        notebook = None
    if notebook is not None:
        _read_notebook(submission, notebook)
    submission.digest = _digest(submission, notebook)
    return submission


_SMALLER = "clear all outputs (Edit, Clear Outputs of All Cells), save, hand in again"
_AGAIN = "open it in JupyterLab, save it (Ctrl+S), check that it opens, hand in again"


def _digest(submission: Submission, notebook: bytes | None) -> str:
    total = hashlib.sha256(notebook or b"")
    for name in sorted(submission.files):
        total.update(name.encode("utf-8", "replace") + b"\0")
        total.update(hashlib.sha256(submission.files[name]).digest())
    return total.hexdigest()


def _read_parts(submission: Submission) -> bytes | None:
    """The notebook's bytes; the files beside it go into the submission."""
    path = submission.found.path
    if path.is_symlink():
        submission.note("a link instead of a file", "hand in the file", fatal=True)
        return None
    if path.is_dir():
        submission.note(
            "no notebook in the folder",
            "hand in the .ipynb file, or the zip file that assignment.submit() writes",
            fatal=True,
        )
        return None
    if not path.is_file():
        submission.note("not a plain file", "hand in the file", fatal=True)
        return None
    if path.suffix.lower() == ".zip" or _is_zip(path):
        return _read_zip(submission, path)
    if path.suffix.lower() != ".ipynb":
        submission.note(
            f"{path.suffix or 'a file without ending'} instead of a notebook",
            "hand in the .ipynb file, or the zip file that assignment.submit() writes",
            fatal=True,
        )
        return None
    if path.parent.name == submission.found.student:  # a folder of this student's own
        _read_beside(submission, path)
    if path.stat().st_size > MAX_NOTEBOOK:
        submission.note("the notebook is too large", _SMALLER, fatal=True)
        return None
    return path.read_bytes()


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _read_beside(submission: Submission, notebook: Path) -> None:
    total = 0
    for path in sorted(notebook.parent.rglob("*")):
        if path == notebook or path.is_symlink() or not path.is_file():
            continue
        size = path.stat().st_size
        total += size
        if size <= MAX_FILE and total <= MAX_ALL_FILES:
            submission.files.setdefault(path.name, path.read_bytes())
        else:
            submission.note(
                f"{path.name[:80]} is too large and was left out",
                "hand in only the files that are asked for",
            )


def _read_zip(submission: Submission, path: Path) -> bytes | None:
    notebook, name = None, ""
    try:
        with zipfile.ZipFile(path) as archive:
            for entry, content in _entries(submission, archive):
                if entry.lower().endswith(".ipynb"):
                    if notebook is None:
                        notebook, name = content, entry
                    else:
                        submission.note(
                            f"two notebooks in the zip file; {name[:80]} was marked",
                            "hand in one notebook",
                        )
                elif entry != MANIFEST:
                    submission.files.setdefault(entry, content)
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        struct.error,
        NotImplementedError,
        RuntimeError,
        EOFError,
        ValueError,
    ):
        submission.note("the zip file is damaged", _AGAIN, fatal=True)
        return None
    if notebook is None:
        submission.note(
            "no notebook in the zip file",
            "hand in the zip file that assignment.submit() writes",
            fatal=True,
        )
    return notebook


def _entries(
    submission: Submission, archive: zipfile.ZipFile
) -> Iterator[tuple[str, bytes]]:
    """Plain names and contents of a zip file's files; nothing is unpacked to disk."""
    total = 0
    for info in sorted(archive.infolist(), key=lambda i: i.filename)[:200]:
        name = info.filename.replace("\\", "/").rpartition("/")[2]
        inside = info.filename.split("/")
        if not name or info.is_dir() or any(part in IGNORED for part in inside):
            continue
        most = MAX_NOTEBOOK if name.lower().endswith(".ipynb") else MAX_FILE
        with archive.open(info) as file:
            content = file.read(min(most, MAX_NOTEBOOK + MAX_ALL_FILES - total) + 1)
        total += len(content)
        if len(content) > most or total > MAX_NOTEBOOK + MAX_ALL_FILES:
            submission.note(f"{name[:80]} is too large and was left out", _SMALLER)
            continue
        yield name, content


# ---------------------------------------------------------------------- the notebook


def _read_notebook(submission: Submission, content: bytes) -> None:
    if not content.strip():
        submission.note("the file is empty", _AGAIN, fatal=True)
        return
    text = _decode(submission, content)
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        submission.note("the notebook is damaged (not JSON)", _AGAIN, fatal=True)
        return
    cells = _find_cells(submission, fields)
    if cells is None:
        submission.note("not a notebook", _AGAIN, fatal=True)
        return
    metadata = fields.get("metadata")
    _read_metadata(submission, metadata if isinstance(metadata, dict) else {})
    _read_cells(submission, cells)
    if not any(source.strip() for source in submission.code):
        submission.note(
            "no code in the notebook",
            "save the notebook with your work in it, and hand in again",
            fatal=True,
        )


def _decode(submission: Submission, content: bytes) -> str:
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encoding = "utf-16"
    else:
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError:
            encoding = "latin-1"
    submission.note(
        "not UTF-8; letters beyond ASCII may be wrong",
        "save the notebook in JupyterLab instead of another editor",
    )
    return content.decode(encoding, "replace")


def _find_cells(submission: Submission, fields: Any) -> list | None:
    """The cells of any version of the format, or None."""
    if not isinstance(fields, dict):
        return None
    version = fields.get("nbformat")
    cells = fields.get("cells")
    if not isinstance(cells, list) and isinstance(fields.get("worksheets"), list):
        cells = []
        for sheet in fields["worksheets"]:
            part = sheet.get("cells") if isinstance(sheet, dict) else None
            cells += part if isinstance(part, list) else []
    if not isinstance(cells, list):
        return None
    if version != 4:
        submission.note(
            f"an old notebook format ({str(version)[:20]})",
            "nothing, it was marked all the same; newer JupyterLabs save version 4",
        )
    return cells


def _read_metadata(submission: Submission, metadata: dict) -> None:
    facts = metadata.get("flowrl")
    if isinstance(facts, dict):
        submission.assignment = str(facts.get("assignment", ""))[:100]
        variant = facts.get("variant")
        whole = isinstance(variant, int) and not isinstance(variant, bool)
        submission.variant = variant if whole and 0 <= variant < 2**32 else None
    kernel = metadata.get("kernelspec")
    info = metadata.get("language_info")
    language = ""
    if isinstance(kernel, dict):
        language = str(kernel.get("language") or "")
    if not language and isinstance(info, dict):
        language = str(info.get("name") or "")
    if language.lower() not in PYTHON:
        submission.note(
            f"the wrong kernel: {language[:40]}",
            "choose the Python kernel (Kernel, Change Kernel), run all, save, hand in "
            "again",
        )


def _read_cells(submission: Submission, cells: Sequence[Any]) -> None:
    if len(cells) > MAX_CELLS:
        submission.note(f"more than {MAX_CELLS} cells; the rest was left out", _SMALLER)
    total = 0
    for cell in cells[:MAX_CELLS]:
        if not isinstance(cell, dict):
            continue
        source = _source_of(cell)
        total += len(source)
        if len(source) > MAX_CELL_TEXT or total > MAX_TEXT:
            submission.note("a cell is too long and was left out", _SMALLER)
            continue
        if cell.get("cell_type") == "code":
            submission.code.append(source)
        elif cell.get("cell_type") == "markdown":
            _read_argued(submission, cell, source)


def _source_of(cell: dict) -> str:
    """A cell's text: "source", or "input" in the third version of the format."""
    source = cell.get("source", cell.get("input", ""))
    if isinstance(source, list):
        source = "".join(part for part in source if isinstance(part, str))
    return source if isinstance(source, str) else ""


def _read_argued(submission: Submission, cell: dict, source: str) -> None:
    metadata = cell.get("metadata")
    facts = metadata.get("flowrl") if isinstance(metadata, dict) else None
    name = facts.get("argued") if isinstance(facts, dict) else None
    if isinstance(name, str):
        submission.argued[name[:100]] = source[:20_000]

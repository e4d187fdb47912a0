"""What a submission is packed in: a folder, a zip file, zip files in a zip file.

Part of the reader: stands alone, imports nothing of flowrl_lab.  Nothing is unpacked to
disk and no link is followed, so no name in an archive can lead anywhere.
"""

import io
import lzma
import os
import struct
import zipfile
import zlib
from dataclasses import dataclass

# Folders that tools leave behind; what lies in them nobody handed in.
DEBRIS = (
    *(".ipynb_checkpoints", "__macosx", "__pycache__", ".venv", "venv"),
    *("site-packages", "node_modules", ".git", ".trash", ".trashes"),
    *(".spotlight-v100", ".fseventsd"),
)
DEBRIS_FILES = (".ds_store", "thumbs.db", "desktop.ini")
APPLE_DOUBLE = b"\x00\x05\x16\x07"  # the half of a file that macOS keeps beside it
MAX_DEPTH = 3  # zip files in zip files
MAX_ENTRIES = 100_000
MAX_INNER_ZIP = 200_000_000

DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    NotImplementedError,
    RuntimeError,
    EOFError,
    ValueError,
    OSError,
)


class LockedError(Exception):
    """A file in a zip file is encrypted."""


class TooMuchError(Exception):
    """A submission holds more than is read of any."""


@dataclass
class Entry:
    """A file of a submission.

    Attributes:
        parts: folders and name, below the submission.
        when: for comparing: the later one is greater.
        read: how many bytes at most -> the content, one byte more if there is more.
    """

    parts: tuple
    when: tuple
    read: object

    @property
    def name(self):
        return self.parts[-1]


def is_debris(parts):
    """Whether a tool left a file behind, and nobody handed it in."""
    lower = [part.lower() for part in parts]
    if any(part in DEBRIS for part in lower) or lower[-1] in DEBRIS_FILES:
        return True
    return lower[-1].startswith("._")


def split_name(info):
    """The parts of a zip entry's name, whichever system wrote it."""
    name = info.filename
    if not info.flag_bits & 0x800:  # no word that it is UTF-8, though it often is
        try:
            name = name.encode("cp437").decode("utf-8")
        except (UnicodeEncodeError, UnicodeDecodeError):
            name = info.filename
    parts = name.replace("\\", "/").split("/")
    return tuple(part for part in parts if part not in ("", ".", ".."))


def list_zip(file):
    """The files of a zip file, zip files in it unopened; debris is left out.

    Raises:
        one of ``DAMAGED``: it is no zip file.
        TooMuchError: it holds too many.
    """
    archive = zipfile.ZipFile(file)
    infos = archive.infolist()
    if len(infos) > MAX_ENTRIES:
        raise TooMuchError
    for info in infos:
        parts = split_name(info)
        if parts and not info.filename.endswith(("/", "\\")) and not is_debris(parts):
            yield Entry(parts, tuple(info.date_time), _reader(archive, info))


def walk_zip(file, problems, depth=1):
    """The files of a zip file, those of zip files in it too.

    Args:
        file: its path, or the content as a file.
        problems: takes what is wrong, in words.
        depth: 1 for the outermost.

    Raises:
        as ``list_zip``.
    """
    for entry in list_zip(file):
        if entry.name.lower().endswith(".zip") and depth < MAX_DEPTH:
            yield from _walk_inner(entry, problems, depth)
        else:
            yield entry


def _reader(archive, info):
    def read(most):
        if info.flag_bits & 0x1:
            raise LockedError
        with archive.open(info) as file:
            return file.read(most + 1)

    return read


def _walk_inner(outer, problems, depth):
    try:
        content = outer.read(MAX_INNER_ZIP)
        if len(content) > MAX_INNER_ZIP:
            raise TooMuchError
        for entry in walk_zip(io.BytesIO(content), problems, depth + 1):
            entry.parts = (*outer.parts, *entry.parts)
            yield entry
    except LockedError:
        problems.append("a zip file has a password")
    except DAMAGED:
        problems.append(f"{outer.name[:80]}, in the zip file, is damaged")


def walk_folder(folder, problems):
    """The files of a folder, those of zip files in it too; links are left out."""
    count = 0
    for here, folders, names in os.walk(folder):
        folders.sort()
        inner = os.path.relpath(here, folder).split(os.sep)
        inner = () if inner == ["."] else tuple(inner)
        folders[:] = [name for name in folders if not is_debris((*inner, name, "x"))]
        for name in sorted(names):
            count += 1
            if count > MAX_ENTRIES:
                raise TooMuchError
            yield from walk_file(os.path.join(here, name), (*inner, name), problems)


def walk_file(path, parts, problems):
    """One file on disk; the files in it, if it is a zip file."""
    if is_debris(parts) or os.path.islink(path) or not os.path.isfile(path):
        return

    def read(most):
        with open(path, "rb") as file:
            return file.read(most + 1)

    if not is_zip(path):
        yield Entry(parts, (os.stat(path).st_mtime_ns,), read)
        return
    try:
        for entry in walk_zip(path, problems):
            entry.parts = (*parts, *entry.parts)
            yield entry
    except DAMAGED:
        problems.append("the zip file is damaged")


def is_zip(path):
    """Whether a file says in its name, or in its first bytes, that it is a zip file."""
    with open(path, "rb") as file:
        start = file.read(4)
    return start == b"PK\x03\x04" or (
        path.lower().endswith(".zip") and start.lstrip()[:1] != b"{"
    )

"""What learning platforms call the submissions that they let an instructor download.

Three layouts are known, as the platforms write them:

- Moodle: ``Ada Lovelace_1234_assignsubmission_file/hw.ipynb`` (a folder for each
  student, in older versions with ``_`` at its end), or without folders
  ``Ada Lovelace_1234_assignsubmission_file_hw.ipynb``;
- Canvas: ``lovelaceada_LATE_1234_56789_hw-1.ipynb``: the sortable name without spaces,
  the student's and the file's number, and ``-1`` from the second attempt on;
- Brightspace: ``100001-2000001 - Ada Lovelace - Jul 30, 2026 1053 PM/hw.ipynb``: a
  folder for each attempt, with the date as the site writes it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Share", "is_download", "name_keys", "share_out", "who_handed_in"]

MOODLE = re.compile(
    r"(?P<student>.+)_(?P<id>\d+)_assignsubmission_[a-z]+(_(?P<file>.*))?", re.DOTALL
)
CANVAS = re.compile(
    r"(?P<student>(LATE_)?anon|\w+?)(_LATE)?_(?P<id>\d{2,}|(?<=anon_)\w+?)_"
    r"(\d{3,}_(?P<file>.+\..+)|(text|link)\.html)",
    re.DOTALL,
)
BRIGHTSPACE = re.compile(
    r"(?P<id>\d+-\d+) ?- (?P<student>.+?) ?- (?P<when>[^-]*\b\d{4}\b[^-]*?)"
    r"( - (?P<file>.+))?",
    re.DOTALL,
)
SECOND_ATTEMPT = re.compile(r"-\d+(?=\.\w+$)")
# The words of Moodle for somebody whose name is hidden.
NAMELESS = {"participant", "teilnehmer", "anon", "late_anon"}


@dataclass(frozen=True)
class Share:
    """What one student handed in, of a download.

    Attributes:
        student: as the platform calls them.
        members: (name in the download, the file's own name); "" for a whole folder.
    """

    student: str
    members: tuple[tuple[str, str], ...]


def who_handed_in(name: str) -> tuple[str, str, str, str] | None:
    """Whose a file or folder of a download is, by its name.

    Returns:
        The student, the platform's number for them, the date of this attempt if there
        is one, and the file's own name ("" for a folder); None for a name of no
        platform.
    """
    for layout in (MOODLE, BRIGHTSPACE, CANVAS):
        found = layout.fullmatch(name)
        if found is None:
            continue
        parts = found.groupdict()
        student, number = parts["student"].strip(), parts["id"]
        file = parts["file"] or ""
        if layout is CANVAS:
            file = SECOND_ATTEMPT.sub("", file)
        if student.lower() in NAMELESS:
            student = f"{student.removeprefix('LATE_')} {number}"
        return student, number, parts.get("when") or "", file
    return None


def is_download(names: Sequence[str]) -> bool:
    """Whether files with these names, ``/`` between their folders, are a platform's."""
    start = _common_folder([name for name in names if not _is_debris(name)])
    tops = (name[len(start) :].partition("/")[0] for name in names)
    return any(who_handed_in(top) is not None for top in tops)


def _is_debris(name: str) -> bool:
    return name.startswith("__MACOSX/")


def share_out(names: Iterable[str]) -> list[Share]:
    """Share out a download among the students; [] if it is none.

    Args:
        names: of its files, with their folders, ``/`` between them.
    """
    names = [name for name in names if not _is_debris(name)]
    start = _common_folder(names)
    shares: dict[tuple[str, str, str], dict[str, str]] = defaultdict(dict)
    for name in names:
        top, slash, _ = name[len(start) :].partition("/")
        owner = who_handed_in(top)
        if owner is not None:
            shares[owner[:3]][start + top] = "" if slash else owner[3]
    if not shares:
        shares = _without_platform(names, start)
    alike = Counter(student for student, _ in {key[:2] for key in shares})
    return [
        Share(
            f"{student} ({number})" if alike[student] > 1 else student,
            tuple(members.items()),
        )
        for (student, number, _), members in shares.items()
    ]


def _common_folder(names: list[str]) -> str:
    """The folder that everything lies in, with its ``/``; "" if it is somebody's."""
    start = ""
    while names:
        top, slash, _ = names[0][len(start) :].partition("/")
        inside = f"{start}{top}/"
        if not slash or who_handed_in(top) is not None:
            break
        if not all(name.startswith(inside) for name in names):
            break
        start = inside
    return start


def _without_platform(
    names: list[str], start: str
) -> dict[tuple[str, str, str], dict[str, str]]:
    """A class packed by hand: a zip file each, or at least three folders."""
    files, folders = [], {}
    for name in names:
        top, slash, _ = name[len(start) :].partition("/")
        ending = name.lower().rpartition(".")[2]
        if slash and ending in ("ipynb", "zip"):
            folders[top, "", ""] = {start + top: ""}
        elif ending == "zip":
            files.append(top)
    if len(files) >= 2:
        return {(f[:-4], "", ""): {start + f: f} for f in files} | folders
    return folders if len(folders) >= 3 else {}


def name_keys(name: str) -> list[str]:
    """A name run together in every order that a platform may write its words in.

    "Ada Lovelace" gives "adalovelace" and "lovelaceada".
    """
    text = unicodedata.normalize("NFKC", name).casefold()
    words = re.findall(r"[^\W_]+", text)
    return ["".join(words[n:] + words[:n]) for n in range(len(words))]

"""The process that reads one submission: files, notebook, cells turned into Python.

A process of its own, so that what a student hands in can cost its reader a bounded
memory and a bounded time, and nobody else anything.  It runs no code of a submission
and imports nothing of flowrl_lab.

Takes a request as JSON from stdin.  Either ``list``, paths of zip files: it writes then
a line of JSON for each, the names in it.  Or ``path``, ``members`` (a name below the
path and the file's own name, "" for a folder, each; none takes everything),
``known`` (assignment -> names that it asks for) and ``wanted``; then it writes
one line of JSON, a row for each assignment, and the bytes of the files that it names.
"""

import hashlib
import itertools
import json
import os
import re
import resource
import sys

from cells import to_python
from packing import (
    APPLE_DOUBLE,
    DAMAGED,
    LockedError,
    TooMuchError,
    is_zip,
    list_zip,
    walk_file,
    walk_folder,
    walk_zip,
)
from pages import AGAIN, SMALLER, Page, choose, clean, count_solved, read_page

MAX_NOTEBOOK = 120_000_000
MAX_NOTEBOOKS = 30
MAX_FILE = 20_000_000
MAX_ALL_FILES = 60_000_000
MAX_FILES = 200
MANIFEST = "manifest.json"
COPIED = re.compile(r"( ?\([0-9]+\)| - copy.*|[-_ ]copy ?[0-9]*|-[0-9]+)$", re.I)
WITHOUT_IPYTHON = 3
HAND_IN = "hand in the .ipynb file, or the zip file that assignment.submit() writes"
ONE = "hand in one notebook"


def list_entries(path, members, problems):
    """The files of a submission, wherever they lie."""
    if not members:
        if os.path.isdir(path):
            yield from walk_folder(path, problems)
        else:
            yield from walk_file(path, (os.path.basename(path),), problems)
        return
    for entry in _list_outer(path, members, problems):
        plain = next((n for m, n in members if _is_in("/".join(entry.parts), m)), None)
        if plain is not None:
            if plain and "/".join(entry.parts) in dict(members):
                entry.parts = (*entry.parts[:-1], plain)
            yield entry


def _list_outer(path, members, problems):
    if os.path.isdir(path):
        for member, _ in members:
            name = os.path.join(path, member)
            if os.path.isdir(name):
                for entry in walk_folder(name, problems):
                    entry.parts = (member.rstrip("/"), *entry.parts)
                    yield entry
            else:
                yield from walk_file(name, tuple(member.split("/")), problems)
    else:
        yield from walk_zip(path, problems)


def _is_in(name, member):
    return name == member or name.startswith(member.rstrip("/") + "/")


# ---------------------------------------------------------------------------- notebooks


def read_pages(entries, known, problems):
    """Every notebook among the files, read."""
    found = [e for e in entries if ".ipynb" in e.name.lower()]
    if not found:  # under another name: saved by a browser, or by hand
        found = [e for e in entries if _is_notebook(e)]
    found.sort(key=lambda e: not _is_named(e, known))
    if len(found) > MAX_NOTEBOOKS:  # an environment of no usual name, a whole disk
        found.sort(key=lambda e: _mentioned(e, known), reverse=True)
        problems.append(f"{len(found)} notebooks, of which {MAX_NOTEBOOKS} were read")
    pages = []
    for entry in found[:MAX_NOTEBOOKS]:
        page = _read_one(entry, problems)
        if page is not None:
            count_solved(page, known)
            pages.append(page)
    return pages


def _read_one(entry, problems):
    try:
        content = entry.read(MAX_NOTEBOOK)
        if len(content) > MAX_NOTEBOOK:
            problems.append(f"{entry.name[:80]} is too large and was left out")
            return None
        if content[:4] == APPLE_DOUBLE:
            return None
        return read_page(entry, content, to_python)
    except LockedError:
        page = Page(clean(entry.name), entry.parts, entry.when)
        page.note("the zip file has a password", "pack it without one", True)
    except MemoryError:
        page = Page(clean(entry.name), entry.parts, entry.when)
        page.note("too large to read", SMALLER, True)
    except DAMAGED:
        page = Page(clean(entry.name), entry.parts, entry.when)
        page.note("the zip file is damaged", AGAIN, True)
    return page


def _is_named(entry, known):
    return any(key in "/".join(entry.parts) for key in known)


def _mentioned(entry, known):
    """Whether a notebook's name has a key; how many keys and names are in its text."""
    try:
        text = entry.read(MAX_FILE)
    except (*DAMAGED, LockedError, MemoryError):
        text = b""
    words = [word.encode() for key, names in known.items() for word in (key, *names)]
    return _is_named(entry, known), sum(word in text for word in words)


def _is_notebook(entry):
    name = entry.name.lower()
    if not (name.endswith((".json", ".txt", ".zip")) or "." not in name):
        return False
    try:
        content = entry.read(MAX_FILE)
    except (*DAMAGED, LockedError, MemoryError):
        return False
    return content.lstrip()[:1] == b"{" and b'"nbformat"' in content


# -------------------------------------------------------------------------------- files


def read_files(page, entries, problems):
    """The files beside the notebook: name -> bytes.

    Args:
        page: the notebook; what lies in its folder comes first.
        entries: all files.
        problems: takes what is wrong, in words.
    """
    files, total = {}, 0
    for entry in sorted(entries, key=lambda e: _nearness(e, page)):
        name = _plain_copy(clean(entry.name))
        beside = name != MANIFEST and ".ipynb" not in name
        if not beside or name in files or len(files) >= MAX_FILES:
            continue
        try:
            content = entry.read(MAX_FILE)
        except (*DAMAGED, LockedError, MemoryError):
            problems.append(f"{name[:80]} is damaged and was left out")
            continue
        total += len(content)
        if len(content) > MAX_FILE or total > MAX_ALL_FILES:
            problems.append(f"{name[:80]} is too large and was left out")
            total -= len(content)
            continue
        files[name] = content
    return files


def _nearness(entry, page):
    """Recorded files first, in the notebook's folder, then below it, the newest first.

    A browser's copy, ``a (1).txt``, counts only where there is no ``a.txt``.
    """
    folder, home = entry.parts[:-1], page.parts[:-1]
    pairs = zip(folder, home, strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda two: two[0] == two[1], pairs))
    copied = _plain_copy(entry.name) != entry.name
    age = [-number for number in entry.when]
    other = not entry.name.endswith((".safetensors", ".json"))
    return other, -shared, copied, len(entry.parts), age, entry.parts


def _plain_copy(name):
    """``"a (1).txt"``, ``"a-1.txt"``, ``"a - Copy.txt"`` -> ``"a.txt"``."""
    stem, dot, ending = name.rpartition(".")
    return COPIED.sub("", stem) + dot + ending if dot else name


# --------------------------------------------------------------------------------- main


def list_zips(paths):
    """Write the names in each zip file; [] for one that cannot be listed."""
    for path in paths:
        try:
            names = ["/".join(e.parts) for e in list_zip(path)]
        except (*DAMAGED, TooMuchError):
            names = []
        print(json.dumps(names), flush=True)


def read(request):
    """Read a submission.

    Returns:
        A row for each assignment that is in it, with its files as bytes.
    """
    known, problems = request["known"], []
    try:
        entries = [*list_entries(request["path"], request["members"], problems)]
        pages = read_pages(entries, known, problems)
    except TooMuchError:
        return [_nothing("more files than are read of any submission", ONE)]
    except DAMAGED:
        return [_nothing("the zip file is damaged", AGAIN)]
    chosen = choose(pages, known, request["wanted"])
    if not chosen:
        return [_no_notebook(request, problems)]
    return [_to_row(page, others, entries, list(problems)) for page, others in chosen]


def _nothing(what, fix):
    page = Page("", (), ())
    page.note(what, fix, True)
    return {**vars(page), "files": {}}


def _no_notebook(request, problems):
    path = request["path"]
    if os.path.isdir(path):
        what = "no notebook in the folder"
    elif is_zip(path):
        what = "no notebook in the zip file"
    else:
        ending = os.path.splitext(path)[1]
        what = f"{clean(ending)[:40] or 'a file without ending'} instead of a notebook"
    if "the zip file is damaged" in problems:
        what = "the zip file is damaged"
    row = _nothing(what, AGAIN if "damaged" in what else HAND_IN)
    row["problems"] += [(clean(p), SMALLER, False) for p in problems if p != what]
    return row


def _to_row(page, others, entries, problems):
    files = read_files(page, entries, problems)
    for problem in dict.fromkeys(problems):
        page.note(problem, SMALLER)
    if others:
        names = ", ".join("/".join(other.parts)[-80:] for other in others[:3])
        page.note(
            f"{len(others) + 1} notebooks: {page.name[:80]} was marked, not {names}",
            ONE,
        )
    total = hashlib.sha256(page.digest.encode())
    for name in sorted(files):
        total.update(name.encode() + b"\0" + hashlib.sha256(files[name]).digest())
    page.digest = total.hexdigest()
    return {**vars(page), "files": files}


def main():
    """Answer one request."""
    request = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_AS, (request["memory"],) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (request["seconds"],) * 2)
    if "list" in request:
        return list_zips(request["list"])
    try:
        rows = read(request)
    except ImportError:
        raise SystemExit(WITHOUT_IPYTHON) from None
    contents = [content for row in rows for content in row["files"].values()]
    for row in rows:
        row["files"] = [(name, len(data)) for name, data in row["files"].items()]
    out = sys.stdout.buffer
    out.write(json.dumps(rows).encode() + b"\n")
    for content in contents:
        out.write(content)
    out.flush()
    return None


if __name__ == "__main__":
    main()

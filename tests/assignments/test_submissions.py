"""Reading: the right notebook of whatever is handed in; nothing stops the others."""

from __future__ import annotations

import copy
import io
import json
import os
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
from synthetic_submissions import (
    code,
    instructor,
    right_files,
    solved,
    source,
    to_bytes,
    unsolve,
    untouched,
    zipped,
)
from wrong_answers import ONE, TWO

from flowrl_lab.assignments.marking import submissions
from flowrl_lab.assignments.marking.downloads import share_out
from flowrl_lab.assignments.marking.folder import (
    mark_all,
    plan_marking,
    read_bundles,
    read_variants,
)
from flowrl_lab.assignments.marking.reading import cells
from flowrl_lab.assignments.marking.submissions import (
    Found,
    Submission,
    find_submissions,
    read_submissions,
)

NB = f"{ONE}.ipynb"
POLICY = "landscape_policy.safetensors"
APPLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + b"\x00" * 90


def old_notebook() -> bytes:
    """An earlier state, by which it is seen that it was marked: no `elbo` yet."""
    return to_bytes(unsolve(solved(ONE), "elbo"))


OLD, NEW = old_notebook(), to_bytes(solved(ONE))
SCRATCH = to_bytes({**solved(ONE), "metadata": {}, "cells": [code("x = 1")]})
UNTOUCHED = to_bytes(untouched(ONE))
STRIPPED = to_bytes({**solved(ONE), "metadata": {}})


def known():
    return {key: bundle.asked for key, bundle in read_bundles(instructor()).items()}


def is_new(submission: Submission) -> bool:
    """Whether the whole solution was read, in which every stub is filled in."""
    text = "\n".join(submission.code)
    whole = "def elbo" in text and "raise NotImplementedError" not in text
    return submission.readable and whole


def packed(entries: list[tuple[str, bytes]]) -> bytes:
    """A zip file with these names as they stand, whatever is in them."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive,
        warnings.catch_warnings(action="ignore"),  # a name may come twice
    ):
        for name, content in entries:
            info = zipfile.ZipInfo("x")
            info.filename, info.compress_type = name, zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return buffer.getvalue()


def read(tmp_path: Path, name: str, content: bytes | dict) -> list[Submission]:
    """What is read of a file, or of a folder with these files."""
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        for inner, data in content.items():
            (path / inner).parent.mkdir(parents=True, exist_ok=True)
            (path / inner).write_bytes(data)
    return read_submissions(Found("ada", "ada", path), known())


VENV = [(f".venv/lib/site-packages/p{n}/demo.ipynb", SCRATCH) for n in range(220)]
MINE = [(f"mine/share/p{n}/demo.ipynb", SCRATCH) for n in range(60)]
COPY = f"{ONE}-Copy1.ipynb"
LAYOUTS = {
    "checkpoint": [
        (f"hw/.ipynb_checkpoints/{ONE}-checkpoint.ipynb", OLD),
        (f"hw/{NB}", NEW),
    ],
    "checkpoint by PowerShell": [
        (f"hw\\.ipynb_checkpoints\\{ONE}-checkpoint.ipynb", OLD),
        (f"hw\\{NB}", NEW),
    ],
    "macOS": [(f"__MACOSX/hw/._{NB}", APPLE), (f"hw/{NB}", NEW)],
    "a stick": [(f"hw/._{NB}", APPLE), (f"hw/{NB}", NEW)],
    "a half file under another name": [("a.ipynb", APPLE), (f"hw/{NB}", NEW)],
    "an environment first": [*VENV, (NB, NEW)],
    "an environment of another name": [*MINE, ("z.ipynb", NEW)],
    "such a one, and no marks": [*MINE, ("z.ipynb", STRIPPED)],
    "another notebook first": [("a_scratch.ipynb", SCRATCH), (NB, NEW)],
    "a scratch file of its name": [(NB, SCRATCH), ("z.ipynb", NEW)],
    "the blank beside it": [(NB, UNTOUCHED), ("Copy of it.ipynb", STRIPPED)],
    "an older state": [(COPY, OLD), (NB, NEW)],
    "an older state of its name": [(NB, OLD), (COPY, NEW)],
    "zip in a zip": [("ada.zip", zipped({NB: NEW}))],
    "zip in a zip in a zip": [("a.zip", zipped({"b.zip": zipped({NB: NEW})}))],
    "a damaged zip beside it": [("a.zip", b"PK\x03\x04 no"), (NB, NEW)],
    "outside of it": [(f"../../{NB}", NEW)],
    "from the root": [(f"/home/ada/{NB}", NEW)],
    "under a text's name": [(f"{NB}.txt", NEW)],
    "under another name": [("hw.json", NEW), ("notes.json", b"{}")],
    "a hidden folder": [(f".old/{NB}", OLD), (f"hw/{NB}", NEW)],
    "one name twice": [(NB, OLD), (NB, NEW)],
    "names that differ in case": [(NB.upper(), OLD), (NB, NEW)],
    "a drive and a stream": [(f"C:\\hw\\{NB}:stream", NEW)],
    "a name of 60,000 letters": [(f"{'a' * 60_000}/{NB}", NEW)],
    "an end inside the name": [(f"{NB}\0.png", NEW)],
    "many files first": [*((f"a{n}.txt", b"a") for n in range(400)), (NB, NEW)],
}


def full(*values: object):
    """For the full budget."""
    return pytest.param(*values, marks=pytest.mark.full)


RARE = {
    "one name twice",
    "names that differ in case",
    "a drive and a stream",
    "a name of 60,000 letters",
}


@pytest.mark.parametrize("kind", [full(k) if k in RARE else k for k in LAYOUTS])
def test_the_right_notebook_of_a_zip_file_is_read(tmp_path, kind):
    (submission,) = read(tmp_path, "ada.zip", packed(LAYOUTS[kind]))
    assert is_new(submission), submission.problems


@pytest.mark.parametrize("kind", ["an environment first", "an older state of its name"])
def test_and_of_a_folder(tmp_path, kind):
    files = {name.replace("\\", "/"): data for name, data in LAYOUTS[kind]}
    (submission,) = read(tmp_path, "ada", files)
    assert is_new(submission), submission.problems
    told = any("was marked" in problem.what for problem in submission.problems)
    assert told == ("state" in kind)


def test_two_assignments_in_one_file_are_two_submissions(tmp_path):
    entries = [(f"a/{NB}", NEW), (f"b/{TWO}.ipynb", to_bytes(solved(TWO)))]
    first, second = read(tmp_path, "ada.zip", packed(entries))
    assert (first.assignment, second.assignment) == (ONE, TWO)
    assert first.found.key != second.found.key


@pytest.mark.parametrize(
    "name",
    [
        POLICY,
        f"old/../{POLICY}",
        "landscape_policy (1).safetensors",
        "landscape_policy-1.safetensors",
        f"hw\\{POLICY}",
    ],
)
def test_the_files_are_found_below_and_under_a_browser_s_names(tmp_path, name):
    content = right_files(ONE)[POLICY]
    entries = [("elsewhere/" + POLICY, b"old"), ("hw/" + NB, NEW)]
    entries.append((name if "\\" in name else f"hw/{name}", content))
    (submission,) = read(tmp_path, "ada.zip", packed(entries))
    assert submission.files == {POLICY: content}


# -------------------------------------------------------------------- nothing stops


def half_pair(notebook: dict) -> bytes:
    """Half a surrogate pair in every text, as a broken editor leaves it."""
    notebook = copy.deepcopy(notebook)
    notebook["metadata"]["flowrl"]["note"] = "\ud83d"
    for cell in notebook["cells"]:
        mark = "# \ud83d\n" if cell["cell_type"] == "code" else "\udc00\n"
        cell["source"] = source(cell) + "\n" + mark
    return json.dumps(notebook).encode()


def locked() -> bytes:
    """A zip file that says it is encrypted."""
    content = bytearray(zipped({NB: NEW}))
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + place] |= 1
    return bytes(content)


def odd_cells() -> bytes:
    """Cells of no kind that there is, and one that IPython never ends with."""
    odd = [3, None, [], {}, {"cell_type": ["code"], "source": {"a": 1}}]
    odd += [{"cell_type": "code", "source": ["x = 1", 3, None], "metadata": [1]}]
    odd += [{"cell_type": "markdown", "metadata": {"flowrl": {"argued": {}}}}]
    slow = code("\n".join(["%time x = 1"] * 700))
    return to_bytes({**solved(ONE), "cells": [*odd, slow, *solved(ONE)["cells"]]})


def odd_facts() -> bytes:
    """No number in the metadata, ids twice and of other kinds, cells without end."""
    notebook = copy.deepcopy(solved(ONE))
    notebook["nbformat"] = float("nan")
    notebook["metadata"]["flowrl"]["variant"] = float("inf")
    notebook["metadata"]["kernelspec"] = [float("-inf")]
    for cell in notebook["cells"]:
        cell["id"], cell["execution_count"] = ["same"], float("nan")
    notebook["cells"] += [{"cell_type": "code", "source": "x = 1"}] * 100_000
    return json.dumps(notebook).encode()


def deep_facts() -> bytes:
    """Metadata as deep as a reader of JSON goes."""
    deep = b"[" * 900 + b"]" * 900
    return NEW[:-1] + b', "nbformat": %s, "nbformat_minor": %s}' % (deep, deep)


def bomb() -> bytes:
    """36 megabytes of text, and 800 as Python's lists."""
    return zipped({NB: b"[" + b"[]," * 12_000_000 + b"[]]"})


def many_files() -> bytes:
    return packed([(str(number), b"") for number in range(100_001)])


HARDLY = {
    "half a surrogate pair": (lambda: half_pair(solved(ONE)), ""),
    "odd cells": (odd_cells, "takes too long to read"),
    "odd facts": (odd_facts, "more than 2000 cells"),
    "deep facts": (lambda: zipped({NB: deep_facts()}), "an old notebook"),
    "UTF-32": (lambda: zipped({NB: NEW.decode().encode("utf-32")}), "damaged"),
    "JSON bomb": (bomb, "too large to read"),
    "a password": (locked, "has a password"),
    "too many files": (many_files, "more files"),
    "deep JSON": (lambda: zipped({NB: b"[" * 200_000}), "damaged (not JSON)"),
    "nothing but debris": (lambda: zipped({f"._{NB}": APPLE}), "no notebook"),
    "a link in a zip": (lambda: zipped({NB: b"/etc/passwd"}), "damaged (not JSON)"),
}


@pytest.mark.parametrize("kind", HARDLY)
def test_what_is_hardly_a_submission_is_named(tmp_path, monkeypatch, kind):
    """Within the reader's memory, and as text that can be written down."""
    make, words = HARDLY[kind]
    monkeypatch.setattr(submissions, "MEMORY", 400_000_000)
    (submission,) = read(tmp_path, "a.zip", make())
    told = "; ".join(problem.what for problem in submission.problems)
    assert words in told
    json.dumps(vars(submission), default=str, ensure_ascii=False).encode()
    if kind in ("half a surrogate pair", "odd cells", "odd facts", "deep facts"):
        assert is_new(submission)


def test_a_reader_that_does_not_end_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(submissions, "WALL_SECONDS", 0.5)
    slow = tmp_path / "slow.py"
    slow.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(submissions, "READER", slow)
    (submission,) = read(tmp_path, NB, NEW)
    assert [p.what for p in submission.problems] == ["takes too long to read"]


def test_links_and_pipes_are_no_files(tmp_path):
    (tmp_path / "ada").mkdir()
    (tmp_path / "ada" / NB).symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "ada" / "pipe.ipynb")
    (submission,) = read_submissions(Found("a", "a", tmp_path / "ada"), known())
    assert "no notebook in the folder" in submission.problems[0].what


def test_what_fails_in_the_reader_stops_nobody(tmp_path, monkeypatch):
    """Whatever it is; the student is told, and everybody else has a grade."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("ada", "bob"):
        (folder / f"{name}.ipynb").write_bytes(b"")
    whole = submissions._start_reader

    def fails(request):
        if "ada" in str(request.get("path")):
            raise OSError(12, "no memory left")
        return whole(request)

    monkeypatch.setattr(submissions, "_start_reader", fails)
    plan = plan_marking(folder, tmp_path / "out", read_bundles(instructor()))
    ada, bob = mark_all(plan, jobs=1)
    assert "could not be marked (OSError)" in ada.problems[0][0]
    assert "the file is empty" in bob.problems[0][0]


def test_a_list_that_was_cut_off_within_a_line_stops_nobody(tmp_path, monkeypatch):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("ada", "bob"):
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            archive.writestr("a.ipynb", b"{}")
    whole = submissions._start_reader

    def ends_early(request):
        ended, output = whole(request)
        first = "ada" in str(request.get("list"))
        return (-24, output[:5]) if first else (ended, output)

    monkeypatch.setattr(submissions, "_start_reader", ends_early)
    found = submissions.find_submissions(folder)
    assert [one.student for one in found] == ["ada", "bob"]


# ------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "student"),
    [
        (b"J\xfcrgen.ipynb", "Jürgen"),  # Windows
        (b"J\x81rgen.ipynb", "Jürgen"),  # DOS, and zip programs until today
        ("Ju\u0308rgen.ipynb".encode(), "Jürgen"),  # macOS
        (b".ada.ipynb", ".ada"),
        (b".ipynb", "nameless"),
        (b"ada-1_partition_functions.zip", "ada"),
        (b"ada.ipynb.txt", "ada"),
        ("a\u202eda\u2066.ipynb".encode(), "ada"),  # turns round what follows
        (b"\x1b[31mada.ipynb", "[31mada"),  # of a terminal
        (b"\xff\xfe.ipynb", "ÿþ"),
    ],
)
def test_every_name_on_a_disk_is_somebody(tmp_path, name, student):
    with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:
        file.write(b"{}")
    (found,) = find_submissions(tmp_path)
    assert found.student == student
    found.key.encode(), found.shown.encode()


def test_what_tools_leave_behind_is_nobody(tmp_path):
    for name in (
        f"._{NB}",
        ".DS_Store",
        "Thumbs.db",
        ".ipynb_checkpoints/a.ipynb",
        ".venv/a.ipynb",
        "ada/x.ipynb",
        ".bob/x.ipynb",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(NEW)
    assert [f.student for f in find_submissions(tmp_path)] == [".bob", "ada"]


# --------------------------------------------------------------------------- platforms

MOODLE = [
    "Ada Lovelace_101_assignsubmission_file",
    "Ann Lee_102_assignsubmission_file",
    "Ann Lee_103_assignsubmission_file_",
]
BRIGHTSPACE = [
    "10001-20001 - Ada Lovelace - Jul 30, 2026 1053 PM",
    "10001-20001 - Ada Lovelace - Jul 31, 2026 803 AM",
    "10002-20001 - 23304308 Ann-Lee Wu - 05 March 2026 612 PM",
]
ZOO = {
    "Moodle, folders": (
        {
            f"{MOODLE[0]}/hw/{NB}": NEW,
            f"{MOODLE[0]}/hw/{POLICY}": b"p",
            "Ada Lovelace_101_assignsubmission_onlinetext/onlinetext.html": b"<p>",
            f"{MOODLE[1]}/{NB}": NEW,
            f"{MOODLE[2]}/x.zip": zipped({NB: NEW}),
        },
        ["Ada Lovelace", "Ann Lee (102)", "Ann Lee (103)"],
    ),
    "Moodle, flat and nameless": (
        {
            f"Ada Lovelace_101_assignsubmission_file_{NB}": NEW,
            f"Ada Lovelace_101_assignsubmission_file_{POLICY}": b"p",
            f"Participant_55_assignsubmission_file_{NB}": NEW,
        },
        ["Ada Lovelace", "Participant 55"],
    ),
    "Canvas": (
        {
            f"lovelaceada_1234_56789_{NB}": NEW,
            f"lovelaceada_1234_56790_{POLICY}": b"p",
            f"leeann_LATE_1235_56791_{ONE}-2.ipynb": NEW,
            f"anon_x1Y2z_56792_{NB}": NEW,
            f"LATE_anon_q9_56793_{NB}": NEW,
            "noupload_77_text.html": b"<p>",
        },
        ["lovelaceada", "leeann", "anon x1Y2z", "anon q9", "noupload"],
    ),
    "Brightspace": (
        {
            f"{BRIGHTSPACE[0]}/{NB}": NEW,
            f"{BRIGHTSPACE[0]}/{POLICY}": b"p",
            f"{BRIGHTSPACE[1]}/{NB}": NEW,
            f"{BRIGHTSPACE[2]}/{NB}": NEW,
            "index.html": b"<html>",
        },
        ["Ada Lovelace", "Ada Lovelace", "23304308 Ann-Lee Wu"],
    ),
    "by hand": (
        {
            f"ada-{ONE}.zip": zipped({NB: NEW, POLICY: b"p"}),
            f"bob-{ONE}.zip": zipped({NB: NEW}),
        },
        ["ada", "bob"],
    ),
}


@pytest.mark.parametrize("how", ["zip in the folder", "zip", "in a folder", "unpacked"])
@pytest.mark.parametrize("platform", ZOO)
def test_a_platform_s_download_is_shared_out(tmp_path, platform, how):
    files, students = ZOO[platform]
    folder = tmp_path / "all"
    folder.mkdir()
    if how == "unpacked":
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    else:
        start = "CS101-HW 1-4711/" if how == "in a folder" else ""
        content = zipped({start + name: data for name, data in files.items()})
        (folder / "CS101-HW 1-4711.zip").write_bytes(content)
    found = find_submissions(folder / "CS101-HW 1-4711.zip" if how == "zip" else folder)
    assert sorted(one.student for one in found) == sorted(students)
    assert len({one.key for one in found}) == len(found)
    first = next(o for o in found if o.student.casefold() in "ada lovelaceada")
    (submission,) = read_submissions(first, known())
    assert is_new(submission)
    assert submission.files[POLICY] == b"p"


def test_one_student_s_zip_is_no_class():
    assert share_out([f"hw/{NB}", f"hw/{POLICY}", "hw/data/a.csv"]) == []
    assert share_out([f"ada/{NB}", "notes/notes.ipynb"]) == []
    assert share_out(["group_12_1_partition_functions.ipynb", POLICY]) == []


def test_a_platform_s_name_is_found_on_the_list_of_variants(tmp_path):
    """Turned round, run together, and with an accent that is written in two ways."""
    rows = (
        "student,variant\nAda Lovelace,5\nJu\u0308rgen Groß,6\nAnn Lee,7\nLee Ann,8\n"
    )
    (tmp_path / "variants.csv").write_text(rows, encoding="utf-8")
    folder = tmp_path / "in"
    folder.mkdir()
    names = (
        "lovelaceada_12_345_a.ipynb",
        "Groß, Jürgen.ipynb",
        "Ann Lee.ipynb",
        "leeann_13_346_a.ipynb",
    )
    for name in names:
        (folder / name).write_bytes(b"")
    variants = read_variants(tmp_path / "variants.csv")
    bundles = read_bundles(instructor())
    plan = plan_marking(folder, tmp_path / "out", bundles, variants=variants)
    got = {grade.student: grade.variant for grade in mark_all(plan, jobs=1)}
    # two could be "leeann": neither is taken
    assert got == {"lovelaceada": 5, "Groß, Jürgen": 6, "Ann Lee": 7, "leeann": 0}


def write_all(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def carrying(key: str, assignment: str) -> bytes:
    """A solved notebook that says that it is of another assignment."""
    notebook = solved(key)
    notebook["metadata"]["flowrl"]["assignment"] = assignment
    return to_bytes(notebook)


@pytest.mark.parametrize(
    "carried",
    [
        "/../../../out",
        *map(full, ["x/../bob.ipynb", "\U0001f600" * 100, ".", "a\0b", ""]),
    ],
)
def test_nothing_is_written_where_a_notebook_says(tmp_path, carried):
    """A file's second assignment is named by what it is, not by what it carries."""
    files = {"a.ipynb": carrying(ONE, "zzz"), "b.ipynb": carrying(TWO, carried)}
    write_all(tmp_path / "in", {"ada.zip": zipped(files)})
    plan = plan_marking(tmp_path / "in", tmp_path / "out", read_bundles(instructor()))
    rows = read_submissions(plan.found[0], known())
    paths = [plan.mark_path(row.found) for row in rows]
    assert len({*paths}) == 2
    for path in paths:
        assert path.parent == tmp_path / "out" / "marks" and ".." not in path.parts
        assert len(path.name.encode()) < 200


def test_no_name_is_that_of_another_s_second_assignment(tmp_path):
    both = {"a/" + NB: NEW, f"b/{TWO}.ipynb": to_bytes(solved(TWO))}
    names = [f"ada.zip{sign}{TWO}" for sign in ("--", "+", "-")]
    files = {f"{name}/{NB}": NEW for name in names}
    write_all(tmp_path, {"ada.zip": zipped(both), **files})
    found = find_submissions(tmp_path)
    keys = [s.found.key for one in found for s in read_submissions(one, known())]
    assert len({*keys}) == len(keys) == 5


FOR_BOB = "Bob_2_assignsubmission_file"
BESIDE = {
    "for another": {f"{FOR_BOB}/{NB}": NEW, f"Zoe_3_assignsubmission_file/{NB}": NEW},
    "as thousands": {f"s{n}/{NB}": b"{}" for n in range(3000)},
    "three assignments": {
        f"hw{n}/{key}.ipynb": to_bytes(solved(key)) for n, key in enumerate((ONE, TWO))
    }
    | {f"old/{NB}": OLD},
    "two files of submit()": {
        f"your_name-{key}.zip": zipped({f"{key}.ipynb": to_bytes(solved(key))})
        for key in (ONE, TWO)
    },
}


@pytest.mark.parametrize("packed_as", ["zip", full("folder")])
@pytest.mark.parametrize("kind", [k if k == "for another" else full(k) for k in BESIDE])
def test_who_hands_in_beside_others_hands_in_for_nobody_else(tmp_path, kind, packed_as):
    """Whatever lies in it: no row for others, nor thousands, nor folders' names."""
    files = BESIDE[kind]
    if packed_as == "zip":
        write_all(tmp_path, {"ada.zip": zipped(files)})
    else:
        write_all(tmp_path, {f"ada/{name}": data for name, data in files.items()})
    write_all(tmp_path, {"bob.ipynb": NEW})
    ada, bob = find_submissions(tmp_path)
    assert (ada.student, bob.student) == ("ada", "bob")
    if kind != "as thousands":
        rows = read_submissions(ada, known())
        assert is_new(rows[0])
        assert len(rows) == (1 if kind == "for another" else 2)
        told = any("platform's download" in p.what for p in rows[0].problems)
        assert told == (kind == "for another")


def test_one_odd_name_costs_nobody_a_row(tmp_path):
    """One file that a platform could have named makes no download of a folder."""
    names = {f"ada_1_assignsubmission_file_{NB}": NEW, "bob.docx": b"", "eve.docx": b""}
    write_all(tmp_path, names)
    assert {"bob", "eve"} < {one.student for one in find_submissions(tmp_path)}


def test_a_folder_of_any_depth_stops_nobody(tmp_path):
    """Deeper than Python's own recursion goes."""
    write_all(tmp_path, {"bob.ipynb": NEW})
    deep = str(tmp_path / ".ada")
    os.mkdir(deep)
    for _ in range(1_200):
        deep += "/a"
        os.mkdir(deep)
    with open(f"{deep}/{NB}", "wb") as file:
        file.write(NEW)
    try:
        students = [one.student for one in find_submissions(tmp_path)]
    finally:
        subprocess.run(["rm", "-rf", str(tmp_path / ".ada")], check=True)
    assert students == [".ada", "bob"]


def test_a_folder_that_is_closed_stops_nobody(tmp_path, monkeypatch):
    write_all(tmp_path, {f"ada/{NB}": NEW, "bob.ipynb": NEW})

    whole = os.listdir

    def closed(path):
        if os.path.basename(path) == "ada":
            raise PermissionError(13, "closed", path)
        return whole(path)

    monkeypatch.setattr(os, "listdir", closed)
    assert [one.student for one in find_submissions(tmp_path)] == ["ada", "bob"]


# ------------------------------------------------------------------------------- cells

BODY = "def f(x):\n    return x  # why?\n"
KEPT = {
    "a comment that asks": BODY,
    "a comment of its own": "# really?\n" + BODY,
    "a docstring": 'def f(x):\n    """What?\n\n    %no !ls ?\n    """\n    return x\n',
    "a remainder": "y = (7\n% 3)\n" + BODY,
    "continued": "y = 7 \\\n% 3\nz = 'a' \\\n  '?'\n" + BODY,
    "a shell's lines": "files = !ls\n" + BODY,
    "a shell's lines inside": "def f(x):\n    a = !ls {x}\n    !rm x\n    return x\n",
    "a timed line inside": "def f(x):\n    %time y = x\n    return y\n",
    "timed with a comment": "def f(x):\n    y = %time x  # slow\n    return y\n",
    "timed with a semicolon": "def f(x):\n    y = %time x;\n    return y\n",
    "two timed": "def f(x):\n    %time y = x; z = 0  # slow\n    return y + z\n",
    "timed and more": "def f(x):\n    %time async def g(): pass\n    return x\n",
    "another system's lines": BODY.replace("\n", "\r\n") + "print?\r\n",
    "timed": "%%time\n" + BODY,
    "timed twice": "%%capture out\n%%time\n" + BODY,
    "an unknown cell magic": "%%memit -r 1\n" + BODY,
    "a comment before a cell magic": "# note\n%%time\n" + BODY,
    "blank lines before a cell magic": "\n\n%%time\n" + BODY,
    "help": "?print\nprint?\nprint??\n" + BODY,
    "magics": "%matplotlib inline\n%load_ext autoreload\n" + BODY,
    "the magic of a script": "get_ipython().run_line_magic('x', 'y')\n" + BODY,
    "indented": "  a = 1\n  def f(x):\n      return x\n",
    "prompts": ">>> def f(x):\n...     return x\n",
    "awaits": "await something()\n" + BODY,
    "letters beyond ASCII": "π = 'ß?'\ny = %time 'ü'\n" + BODY,
}
LOST = {
    "a shell's cell": ("%%bash\ndef f(x)", "", "%%bash"),
    "a page": ("%%html\n<b>f</b>", "", "%%html"),
    "without a sign": ("pip install torch", "", "pip install torch"),
    "no Python": ("def f(:", "is not Python, line 1", ""),
    "never ends": ("\n".join(["%time x"] * 900), "takes too long to read", ""),
}


@pytest.mark.parametrize("kind", KEPT)
def test_a_cell_says_what_it_said_in_the_notebook(kind):
    text, _, problem = cells.to_python(KEPT[kind], 20.0)
    names: dict = {}
    definitions = [r for r in cells.ast.parse(text).body if hasattr(r, "name")]
    exec(compile(cells.ast.Module(definitions, []), "cell", "exec"), names)
    assert (names["f"](3), problem) == (3, "")
    if "get_ipython" not in KEPT[kind] and "!" not in KEPT[kind]:
        same = [row for row in KEPT[kind].splitlines() if "?" in row and "#" in row]
        assert all(row.strip() in text for row in same)


@pytest.mark.parametrize("kind", LOST)
def test_what_is_no_python_costs_its_cell(kind):
    source, words, gone = LOST[kind]
    text, left_out, problem = cells.to_python(source, 0.3)
    assert (text, problem) == ("", words)
    assert [row[1] for row in left_out] == ([gone] if gone else [])


def test_lines_that_were_left_out_are_named():
    source = (
        "%matplotlib inline\nfiles = !ls\ndef f():\n    !rm x\n    return 1  # eh?\n"
    )
    _, left_out, _ = cells.to_python(source, 20.0)
    assert left_out == [
        (1, "%matplotlib inline", False),
        (2, "!ls", False),
        (4, "!rm x", True),
    ]


def test_python_as_it_stands_needs_no_ipython(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython.core.inputtransformer2", None)
    assert cells.to_python(BODY, 1.0) == (BODY, [], "")
    with pytest.raises(ImportError):
        cells.to_python("%time x", 1.0)

"""Two hundred submissions whose marks are known, because we know what is in them.

Right ones, partly right ones, wrong ones in each known way, hostile ones, and files
that are hardly submissions at all.  What each earns is
written down beside it, by hand, from what it gets wrong; nothing here asks the grader.

``python tests/support/synthetic_submissions.py FOLDER`` writes them, with
expected.json.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from filelock import FileLock
from hostile_cells import (
    AT_THE_TOP,
    ATTACKS,
    BROKEN_CELLS,
    CHEATING_TESTS,
    TAKEN_OVER,
)
from safetensors.torch import load, save
from wrong_answers import LEANS_ON, ONE, POINTS, THREE, TWO, WRONG

from flowrl_lab.assignments.build import build_all, find_sources, write_built

ROOT = Path(__file__).resolve().parents[2]
ASSIGNMENTS = ROOT / "notebooks" / "assignments"
STUDENT = ASSIGNMENTS / "student"
BUILT = ROOT / "test-artifacts" / "assignments"  # kept changes
FULL = {ONE: 44, TWO: 54, THREE: 39}
# Of which for files beside the notebook.
FILES = {ONE: 9, TWO: 0, THREE: 20}
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Expected:
    """What a submission must get.

    Attributes:
        path: of the file or folder, below the folder of submissions.
        kind: what sort it is.
        points: that it earns.
        status: "graded" or "not graded".
        problem: words that its problems must hold; "" for no problem at all, None
            for whatever there is.
    """

    path: str
    kind: str
    points: float
    status: str = "graded"
    problem: str | None = ""


# --------------------------------------------------------------------------- building


@functools.cache
def instructor() -> Path:
    """The instructor's folder, as ``assign build`` writes it."""

    def build(folder: Path) -> None:
        for built in build_all(find_sources(ASSIGNMENTS)):
            write_built(built, folder / "student", folder)

    made_of = [
        *ASSIGNMENTS.glob("*.py"),
        *(ROOT / "flowrl_lab/assignments").glob("*.py"),
    ]
    return _made("instructor", made_of, build)


@functools.cache
def adapters() -> Path:
    """The folder of six adapters and their claims, which earn all their points.

    The solved notebook trains them: some minutes on one core, once.
    """

    def train(folder: Path) -> None:
        shutil.copy(instructor() / f"{THREE}.json", folder)
        cells = [c for c in solved(THREE)["cells"] if c["cell_type"] == "code"]
        program = "\n".join(map(source, cells)).encode()
        subprocess.run(
            [sys.executable, "-W", "ignore", "-"],
            input=program,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "FLOWRL_HEADLESS": "1"},
            check=True,
            stdout=subprocess.DEVNULL,
        )

    return _made("adapters", [ASSIGNMENTS / f"{THREE}.py"], train)


def _made(what: str, made_of: list[Path], make: Callable[[Path], None]) -> Path:
    """A folder that is made once for all test processes, whole or not at all."""
    texts = b"".join(path.read_bytes() for path in sorted(made_of))
    folder = BUILT / f"{what}-{hashlib.sha256(texts).hexdigest()[:12]}"
    BUILT.mkdir(parents=True, exist_ok=True)
    with FileLock(BUILT / f"{what}.lock"):
        if not folder.is_dir():
            fresh = Path(tempfile.mkdtemp(dir=BUILT))
            make(fresh)
            fresh.rename(folder)
    return folder


# -------------------------------------------------------------------------- notebooks


def solved(key: str) -> dict:
    """The solved notebook, as JSON."""
    path = instructor() / f"{key}_solved.ipynb"
    return json.loads(path.read_text(encoding="utf-8"))


def untouched(key: str) -> dict:
    """The notebook as it was handed out."""
    return json.loads((STUDENT / f"{key}.ipynb").read_text(encoding="utf-8"))


def source(cell: dict) -> str:
    return "".join(cell["source"])


def code(text: str) -> dict:
    """A code cell that a student added."""
    return {
        "cell_type": "code",
        "id": f"x{abs(hash(text)) % 10**7}",
        "metadata": {},
        "source": text,
        "outputs": [],
        "execution_count": None,
    }


def find(notebook: dict, question: str) -> dict:
    """The cell that answers a question."""
    for cell in notebook["cells"]:
        asked = cell["metadata"].get("flowrl", {}).get("question", "")
        if question in asked.split():
            return cell
    raise KeyError(question)


def answer(notebook: dict, question: str, text: str) -> dict:
    """The notebook with another answer to one question."""
    notebook = copy.deepcopy(notebook)
    cell = find(notebook, question)
    if question.isupper():
        rows = [r for r in source(cell).splitlines() if not r.startswith(question)]
        text = "\n".join([*rows, text])
    cell["source"] = text
    return notebook


def unsolve(notebook: dict, question: str) -> dict:
    """The notebook with one question left as it was handed out."""
    key = notebook["metadata"]["flowrl"]["assignment"]
    rows = source(find(untouched(key), question)).splitlines()
    if question.isupper():
        rows = [row for row in rows if row.startswith(question)]
    return answer(notebook, question, "\n".join(rows))


def to_bytes(notebook: dict) -> bytes:
    return json.dumps(notebook, ensure_ascii=False).encode()


# ------------------------------------------------------------------------------ files


def right_files(key: str) -> dict[str, bytes]:
    """The recorded files that earn all their points."""
    if key == ONE:
        return {"landscape_policy.safetensors": landscape_policy(0.0, 0.0)}
    if key == THREE:
        names = [f"{e}_{s}.safetensors" for e in ("accurate", "diverse") for s in "012"]
        return {n: (adapters() / n).read_bytes() for n in (*names, "runs.json")}
    return {}


def landscape_policy(
    bend: float, shift: float, handout: Path = STUDENT / f"{ONE}.json"
) -> bytes:
    """The target's own logits, bent (a KL) and with log Z shifted."""
    problem = json.loads(handout.read_text(encoding="utf-8"))["problem"]
    rewards, reference = (
        torch.tensor(problem[name]["numbers"], dtype=torch.float64)
        for name in ("rewards", "ref_log_probs")
    )
    mass = reference + problem["reward_scale"] * rewards
    logits = mass.log_softmax(-1) * (1 + bend)
    log_z = mass.logsumexp(-1) + shift
    return save({"logits": logits.float(), "log_z": log_z.float().reshape(1)})


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def handed_in(key: str, notebook: dict, files: dict[str, bytes] | None = None) -> bytes:
    """The zip file that a student's ``submit`` writes."""
    files = right_files(key) if files is None else files
    return zipped({f"{key}.ipynb": to_bytes(notebook), **files})


# ----------------------------------------------------------------------- honest people


def honest(key: str, number: int, chance: random.Random) -> tuple[bytes, float, str]:
    """A student who got some questions wrong and left some out: file, points, kind."""
    notebook, points = solved(key), float(FULL[key])
    kinds, done = [], set()
    for kind, question, text, left in chance.sample(WRONG[key], chance.randrange(4)):
        if question not in done:
            notebook = answer(notebook, question, text)
            points -= POINTS[question] - left
            kinds.append(kind)
            done.add(question)
    names = [n for n in POINTS if n not in done and asked_in(key, n)]
    names = [n for n in names if n not in LEANS_ON]
    for question in chance.sample(names, chance.randrange(3)):
        notebook = unsolve(notebook, question)
        points -= POINTS[question]
        kinds.append(f"without {question}")
    if number % 3 == 0:
        chance.shuffle(notebook["cells"])
    if number % 4 == 0:  # the handed-out cells once more, at the end
        notebook["cells"] += untouched(key)["cells"]
    return handed_in(key, notebook), points, ", ".join(kinds) or "right"


def asked_in(key: str, question: str) -> bool:
    return any(
        question in cell["metadata"].get("flowrl", {}).get("question", "").split()
        for cell in untouched(key)["cells"]
    )


# ---------------------------------------------------------------------- hostile people


def attack(kind: str) -> dict:
    """Assignment 1 with a hostile `elbo` (5 points), the rest right."""
    head = "def elbo(log_probs, ref_log_probs, rewards, reward_scale):\n"
    return answer(solved(ONE), "elbo", head + ATTACKS[kind])


def with_cell(notebook: dict, text: str, *, first: bool = False) -> dict:
    notebook = copy.deepcopy(notebook)
    notebook["cells"].insert(0 if first else len(notebook["cells"]), code(text))
    return notebook


# ------------------------------------------------------------------- hardly submissions


def to_version_3(notebook: dict) -> bytes:
    """The notebook in the format of 2013."""
    cells = []
    for cell in notebook["cells"]:
        old = {"cell_type": cell["cell_type"], "metadata": cell["metadata"]}
        if cell["cell_type"] == "code":
            old |= {"input": source(cell), "language": "python", "outputs": []}
        else:
            old["source"] = source(cell)
        cells.append(old)
    metadata = {**notebook["metadata"], "name": ""}
    sheets = [{"cells": cells, "metadata": {}}]
    old = {"metadata": metadata, "nbformat": 3, "nbformat_minor": 0}
    return json.dumps({**old, "worksheets": sheets}).encode()


def odd_notebooks() -> Iterator[tuple[str, str, bytes, float, str, str | None]]:
    """(kind, name, content, points, status, problem) of single files."""
    full, alone = solved(ONE), FULL[ONE] - FILES[ONE]
    no_file = "missing file"
    yield "empty file", "empty.ipynb", b"", 0, "not graded", "the file is empty"
    yield "blank", "blank.ipynb", b" \n\n", 0, "not graded", "the file is empty"
    nothing = {**full, "cells": []}
    yield "no cells", "cells.ipynb", to_bytes(nothing), 0, "not graded", "no code"
    cut = to_bytes(full)[:9000]
    yield "corrupt", "cut.ipynb", cut, 0, "not graded", "damaged (not JSON)"
    yield "bytes", "bytes.ipynb", bytes(range(256)) * 9, 0, "not graded", "damaged"
    yield "a list", "list.ipynb", b"[1, 2]", 0, "not graded", "not a notebook"
    deep = b"[" * 200_000
    yield "deep JSON", "deep.ipynb", deep, 0, "not graded", "damaged"
    word = b"PK\x03\x04 not really"
    yield "damaged zip", "word.zip", word, 0, "not graded", "zip file is damaged"
    yield (
        "no notebook",
        "no.zip",
        zipped({"a.txt": b"a"}),
        0,
        "not graded",
        "no notebook",
    )
    yield "a text", "essay.docx", b"words", 0, "not graded", "instead of a notebook"
    bomb = zipped({"bomb.ipynb": b"0" * (130 * MEGABYTE)})
    yield "zip bomb", "bomb.zip", bomb, 0, "not graded", "no notebook"
    latin = json.dumps(with_cell(full, "# für Zoë"), ensure_ascii=False)
    latin = latin.replace("π", "p").replace("β", "b").encode("latin-1", "replace")
    yield "not UTF-8", "latin.ipynb", latin, alone, "graded", "not UTF-8"
    wide = to_bytes(full).decode().encode("utf-16")
    yield "UTF-16", "wide.ipynb", wide, alone, "graded", "not UTF-8"
    signed = b"\xef\xbb\xbf" + to_bytes(full)
    yield "a byte order mark", "signed.ipynb", signed, alone, "graded", no_file
    old = to_version_3(full)
    yield "format 3", "old.ipynb", old, alone, "graded", "old notebook format"
    yield "missing file", "lost.ipynb", to_bytes(full), alone, "graded", no_file
    kernel = copy.deepcopy(full)
    kernel["metadata"]["kernelspec"] = {"name": "ir", "language": "R"}
    words = "wrong kernel"
    yield "another kernel", "ir.ipynb", to_bytes(kernel), alone, "graded", words
    for cell in kernel["cells"]:
        if cell["cell_type"] == "code":
            cell["source"] = "x <- c(1, 2)\nprint(x)"
    yield "R code", "r.ipynb", to_bytes(kernel), 0, "graded", words
    loud = copy.deepcopy(full)
    text = "spam " * (10 * MEGABYTE)
    loud["cells"][2]["outputs"] = [
        {"output_type": "stream", "name": "stdout", "text": text}
    ]
    yield "50 MB of output", "loud.ipynb", to_bytes(loud), alone, "graded", no_file
    bare = {**copy.deepcopy(full), "metadata": {}}
    for cell in bare["cells"]:
        cell["metadata"] = {}
    yield "no marks", "bare.ipynb", to_bytes(bare), alone, "graded", "taken for"
    other = {**untouched(ONE), "metadata": {}, "cells": [code("x = 1")]}
    words = "belongs to no assignment"
    yield "another course", "other.ipynb", to_bytes(other), 0, "not graded", words


def recorded_policies() -> Iterator[tuple[str, str, dict, dict[str, bytes], float]]:
    """(kind, assignment, notebook, files, points) that differ in their files only."""
    name = "landscape_policy.safetensors"
    alone = FULL[ONE] - FILES[ONE]
    policy = {
        "a bent policy": (landscape_policy(0.4, 0.0), 6),  # KL = 0.085, above 0.03
        "log Z off": (landscape_policy(0.0, 0.5), 6),
        "far off": (landscape_policy(-0.9, 3.0), 0),
        "not safetensors": (b"logits", 0),
        "another shape": (save({"logits": torch.zeros(7), "log_z": torch.zeros(1)}), 0),
        "NaN": (
            save({"logits": torch.full((48,), float("nan")), "log_z": torch.zeros(1)}),
            0,
        ),
    }
    for kind, (content, left) in policy.items():
        yield kind, ONE, solved(ONE), {name: content}, alone + left


def recorded_adapters() -> Iterator[tuple[str, str, dict, dict[str, bytes], float]]:
    """The same of assignment 3, whose files are trained for it: some minutes, once."""
    files = right_files(THREE)
    alone = FULL[THREE] - FILES[THREE]
    swapped = dict(files)
    for seed in "012":
        a, d = (f"{e}_{seed}.safetensors" for e in ("accurate", "diverse"))
        swapped[a], swapped[d] = files[d], files[a]
    # fits 2; accuracy below 0.75; 2 answers 2; answers below 5.5; 0.6: 2; lost none: 2
    yield "swapped entries", THREE, solved(THREE), swapped, alone + 8
    claims = json.loads(files["runs.json"])
    claims["accurate"]["accuracy"] = [0.99, 0.99, 0.99]
    lying = files | {"runs.json": json.dumps(claims).encode()}
    yield "claims more", THREE, solved(THREE), lying, alone + 16
    claims["accurate"]["accuracy"] = [float("nan")] * 3
    hollow = files | {"runs.json": json.dumps(claims).encode()}
    yield "claims NaN", THREE, solved(THREE), hollow, alone + 16
    claims = json.loads(files["runs.json"])
    claims["diverse"]["steps"] = -80
    owing = files | {"runs.json": json.dumps(claims).encode()}
    yield "a negative budget", THREE, solved(THREE), owing, alone + 18
    state = load(files["accurate_0.safetensors"])
    whole = {n: t.long() for n, t in state.items()}
    integers = files | {"diverse_0.safetensors": save(whole)}
    yield "whole numbers", THREE, solved(THREE), integers, alone
    claims = json.loads(files["runs.json"])
    claims["diverse"]["steps"] = 800
    rich = files | {"runs.json": json.dumps(claims).encode()}
    yield "above the budget", THREE, solved(THREE), rich, alone + 18
    fresh = save({k: torch.zeros_like(v) for k, v in state.items()})
    start = {n: fresh for n in files if n.endswith(".safetensors")}
    # it fits, and that is all: its many answers are rarely right
    yield "untrained", THREE, solved(THREE), files | start, alone + 2
    wrong = files | {"diverse_1.safetensors": save({"a": torch.zeros(3)})}
    yield "another adapter", THREE, solved(THREE), wrong, alone
    less = {n: c for n, c in files.items() if n != "diverse_2.safetensors"}
    yield "a missing adapter", THREE, solved(THREE), less, alone


# ------------------------------------------------------------------------------ writing


class Writer:
    """Writes submissions and keeps what each must get."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.expected: list[Expected] = []
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, content: bytes, *facts, **more) -> None:
        """A file, with the facts of :class:`Expected` after its path."""
        (self.folder / name).write_bytes(content)
        self.expected.append(Expected(name, *facts, **more))

    def add_folder(self, name: str, files: dict[str, bytes], *facts, **more) -> None:
        for file, content in files.items():
            path = self.folder / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        self.expected.append(Expected(name, *facts, **more))


def write_odd(writer: Writer, keep: Callable[[str], bool]) -> None:
    """Hostile ones, spoilt ones, and those that are hardly submissions."""
    full = FULL[ONE]
    for kind in filter(keep, ATTACKS):
        content = handed_in(ONE, attack(kind))
        left = full - 5
        writer.add(f"{slug(kind)}-{ONE}.zip", content, kind, left, problem=None)
    for kind in filter(keep, CHEATING_TESTS):
        notebook = answer(solved(TWO), "test_matching_loss", CHEATING_TESTS[kind])
        content = handed_in(TWO, notebook)
        left = FULL[TWO] - POINTS["test_matching_loss"]
        writer.add(f"{slug(kind)}-{TWO}.zip", content, kind, left, problem=None)
    for kind in filter(keep, TAKEN_OVER):
        content = handed_in(ONE, with_cell(solved(ONE), TAKEN_OVER[kind], first=True))
        name = f"{slug(kind)}-{ONE}.zip"
        writer.add(name, content, kind, FILES[ONE], problem=None)
    for kind in filter(keep, AT_THE_TOP):
        content = handed_in(ONE, with_cell(solved(ONE), AT_THE_TOP[kind], first=True))
        writer.add(f"{slug(kind)}-{ONE}.zip", content, kind, full)
    for kind in filter(keep, BROKEN_CELLS):
        text, problem = BROKEN_CELLS[kind]
        content = handed_in(ONE, with_cell(solved(ONE), text, first=True))
        writer.add(f"{slug(kind)}-{ONE}.zip", content, kind, full, problem=problem)
    for kind, name, content, points, status, problem in odd_notebooks():
        if keep(kind):
            writer.add(name, content, kind, points, status, problem)
    recorded = [row for row in recorded_policies() if keep(row[0])]
    if keep("adapters"):  # all or none of them
        recorded += recorded_adapters()
    for kind, key, notebook, files, points in recorded:
        content = handed_in(key, notebook, files)
        problem = "missing file" if "missing" in kind else ""
        writer.add(f"{slug(kind)}-{key}.zip", content, kind, points, problem=problem)
    if keep("duplicates"):
        words = "2 submissions under this name"
        content = handed_in(TWO, solved(TWO))
        writer.add(f"twice-{TWO}.zip", content, "duplicates", FULL[TWO], problem=words)
        content = handed_in(TWO, unsolve(solved(TWO), "BROKEN"))
        name = f"Twice (2)-{TWO}.zip"
        writer.add(name, content, "duplicates", FULL[TWO] - 4, problem=words)
    if keep("odd names"):
        content = handed_in(ONE, solved(ONE))
        for name in ("=HYPERLINK(0)", "Ünï çödé 学生", "a" * 200, "<script>x", "???"):
            writer.add(f"{name}.zip", content, "odd names", full)
        writer.add("ADA.zip", content, "odd names", full, problem="under this name")
        writer.add("ada.zip", content, "odd names", full, problem="under this name")
    if keep("folders"):
        files = {f"{ONE}.ipynb": to_bytes(solved(ONE)), **right_files(ONE)}
        writer.add_folder("in a folder", files, "folders", full)
        note = {"readme.txt": b"see my mail"}
        words = "no notebook in the folder"
        writer.add_folder("a note", note, "folders", 0, "not graded", words)
    if keep("untouched"):
        for key in FULL:
            content = to_bytes(untouched(key))
            words = "missing file" if FILES[key] else ""
            writer.add(f"nothing-{key}.ipynb", content, "untouched", 0, problem=words)


def slug(kind: str) -> str:
    return kind.replace(" ", "_").replace("/", "_")


def write_submissions(
    folder: Path, *, total: int = 200, kinds: set[str] | None = None, seed: int = 0
) -> list[Expected]:
    """Write submissions into a folder.

    Args:
        folder: a new one.
        total: how many; honest ones fill up what the odd ones leave.
        kinds: of the odd ones to write; None takes all.
        seed: of the honest ones.
    """
    writer = Writer(folder)
    write_odd(writer, lambda kind: kinds is None or kind in kinds)
    chance = random.Random(seed)
    number = 0
    while len(writer.expected) < total:
        # the language model's submissions cost the referee more
        key = (ONE, TWO, ONE, TWO, ONE, TWO, ONE, TWO, THREE)[number % 9]
        content, points, kind = honest(key, number, chance)
        problem = None if "renamed" in kind else ""
        name = f"student_{number:03d}-{key}.zip"
        writer.add(name, content, f"honest: {kind}", points, problem=problem)
        number += 1
    return writer.expected


if __name__ == "__main__":
    where = Path(sys.argv[1])
    rows = write_submissions(where, total=int(sys.argv[2]) if sys.argv[2:] else 200)
    facts = json.dumps([asdict(row) for row in rows], indent=1)
    where.with_name(f"{where.name}-expected.json").write_text(facts)
    print(f"{len(rows)} submissions in {where}")

"""Two hundred submissions whose marks are known, because we know what is in them.

Right ones, partly right ones, wrong ones in each known way, hostile ones, and files
that are hardly submissions at all.  What each earns is
written down beside it, by hand, from what it gets wrong; nothing here asks the grader.

``python tests/synthetic_submissions.py FOLDER`` writes them, with expected.json.
"""

from __future__ import annotations

import copy
import io
import json
import random
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load, save

ROOT = Path(__file__).resolve().parents[1]
INSTRUCTOR = ROOT / "notebooks" / "assignments" / "instructor"
STUDENT = ROOT / "notebooks" / "assignments" / "student"
ONE, TWO, THREE = (
    "1_partition_functions",
    "2_token_log_probs_and_losses",
    "3_tiny_lm",
)
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


# ------------------------------------------------------------------------- wrong ways

# assignment -> (kind, question, its text, points that are left of it)
WRONG: dict[str, list[tuple[str, str, str, float]]] = {
    ONE: [
        (
            "no reference",
            "log_partition",
            "def log_partition(ref_log_probs, rewards, reward_scale):\n"
            "    return (reward_scale * rewards).logsumexp(-1)\n",
            0,
        ),
        (
            "overflows",
            "log_partition",
            "def log_partition(ref_log_probs, rewards, reward_scale):\n"
            "    mass = ref_log_probs.exp() * (reward_scale * rewards).exp()\n"
            "    return mass.sum(-1).log()\n",
            4,
        ),
        (
            "all axes",
            "log_partition",
            "def log_partition(ref_log_probs, rewards, reward_scale):\n"
            "    mass = ref_log_probs + reward_scale * rewards\n"
            "    return mass.flatten().logsumexp(0)\n",
            3,
        ),
        (
            "first axis",
            "target_log_probs",
            "def target_log_probs(ref_log_probs, rewards, reward_scale):\n"
            "    return (ref_log_probs + reward_scale * rewards).log_softmax(0)\n",
            3,
        ),
        (
            "probabilities",
            "target_log_probs",
            "def target_log_probs(ref_log_probs, rewards, reward_scale):\n"
            "    return (ref_log_probs + reward_scale * rewards).softmax(-1)\n",
            0,
        ),
        (
            "0 times infinity",
            "elbo",
            "def elbo(log_probs, ref_log_probs, rewards, reward_scale):\n"
            "    ratio = reward_scale * rewards + ref_log_probs - log_probs\n"
            "    return (log_probs.exp() * ratio).sum(-1)\n",
            3,
        ),
        (
            "under the reference",
            "log_z_slope",
            "def log_z_slope(ref_log_probs, rewards, reward_scale):\n"
            "    return (ref_log_probs.exp() * rewards).sum(-1)\n",
            0,
        ),
        (
            "mean of logs",
            "estimate_log_z",
            "def estimate_log_z(log_probs, ref_log_probs, rewards, n, scale):\n"
            "    ratios = scale * rewards + ref_log_probs - log_probs\n"
            "    return ratios.view(-1, n).mean(1)\n",
            0,
        ),
        (
            "the optimum",
            "learn_log_z",
            "def learn_log_z(ratios, steps, learning_rate):\n"
            "    return ratios.mean()\n",
            2,
        ),
        (
            "endless",
            "learn_log_z",
            "def learn_log_z(ratios, steps, learning_rate):\n"
            "    while True:\n"
            "        steps = steps + 1\n",
            0,
        ),
        (
            "one case works",
            "learn_log_z",
            "def learn_log_z(ratios, steps, learning_rate):\n"
            "    if steps == 0:\n"
            "        return 0.0\n"
            "    return [[ratios]]\n",
            1,
        ),
        (
            "uses the library",
            "log_partition",
            "from flowrl_lab.exact import reference_log_partition\n"
            "def log_partition(ref_log_probs, rewards, reward_scale):\n"
            "    return reference_log_partition(ref_log_probs, rewards,\n"
            "        reward_scale=reward_scale, exhaustive=True)\n",
            0,
        ),
    ],
    TWO: [
        (
            "temperature after",
            "token_log_probs",
            "def token_log_probs(logits, token_ids, temperature):\n"
            "    log_probs = logits.log_softmax(-1) / temperature\n"
            "    return log_probs.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)\n",
            2,
        ),
        (
            "large logits",
            "token_log_probs",
            "def token_log_probs(logits, token_ids, temperature):\n"
            "    log_probs = (logits / temperature).softmax(-1).log()\n"
            "    return log_probs.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)\n",
            3,
        ),
        (
            "a product",
            "masked_mean",
            "def masked_mean(values, mask):\n"
            "    return (values * mask).sum(1) / mask.sum(1)\n",
            2,
        ),
        (
            "0 / 0",
            "group_advantages",
            "def group_advantages(rewards, num_generations):\n"
            "    groups = rewards.view(-1, num_generations)\n"
            "    centred = groups - groups.mean(1, keepdim=True)\n"
            "    equal = groups.amax(1) == groups.amin(1)\n"
            "    centred[equal] = float('nan')\n"
            "    return (centred / groups.std(1, keepdim=True)).flatten()\n",
            2,
        ),
        (
            "whole batch",
            "group_advantages",
            "def group_advantages(rewards, num_generations):\n"
            "    return (rewards - rewards.mean()) / rewards.std()\n",
            0,
        ),
        (
            "renamed",
            "masked_mean",
            "def my_masked_mean(values, mask):\n"
            "    return values.masked_fill(~mask, 0.0).sum(1) / mask.sum(1)\n",
            0,
        ),
        (
            "accepts everything",
            "test_clipped_loss",
            "def test_clipped_loss(loss):\n    assert loss is not None\n",
            0,
        ),
        (
            "rejects everything",
            "test_matching_loss",
            "def test_matching_loss(loss):\n    assert loss is None\n",
            0,
        ),
        (
            "values only",
            "test_matching_loss",
            "def test_matching_loss(loss):\n"
            "    g = torch.Generator().manual_seed(3)\n"
            "    draw = lambda *s: torch.rand(s, generator=g, dtype=torch.float64)\n"
            "    mask = torch.arange(5) < torch.tensor([1, 5, 3, 2, 4, 5])[:, None]\n"
            "    p = -0.5 - draw(6, 5)\n"
            "    given = [draw(6), p, p + 1.6 * draw(6, 5) - 0.8, -0.5 - draw(6, 5),\n"
            "             draw(6) - 0.5, mask, 3.0, 0.1, 0.4]\n"
            "    assert torch.allclose(loss(*given), matching_loss(*given))\n",
            7,  # three of the ten have the right value and a wrong gradient
        ),
        (
            "on-policy values",
            "test_matching_loss",
            "def test_matching_loss(loss):\n"
            "    g = torch.Generator().manual_seed(3)\n"
            "    draw = lambda *s: torch.rand(s, generator=g, dtype=torch.float64)\n"
            "    mask = torch.arange(5) < torch.tensor([1, 5, 3, 2, 4, 5])[:, None]\n"
            "    p = -0.5 - draw(6, 5)\n"
            "    given = [draw(6), p, p.clone(), -0.5 - draw(6, 5), draw(6) - 0.5,\n"
            "             mask, 3.0, 0.1, 0.4]\n"
            "    assert torch.allclose(loss(*given), matching_loss(*given))\n",
            3,  # padding, the divided reward, and the broadcast log Z
        ),
        (
            "a guess",
            "BROKEN",
            'BROKEN = {"ant"}\n',
            0,
        ),
    ],
    THREE: [
        (
            "not normalised",
            "effective_answers",
            "def effective_answers(log_probs):\n"
            "    return (-(log_probs.exp() * log_probs).sum(-1)).exp()\n",
            0,
        ),
        (
            "0 times infinity",
            "effective_answers",
            "def effective_answers(log_probs):\n"
            "    inside = log_probs.log_softmax(-1)\n"
            "    return (-(inside.exp() * inside).sum(-1)).exp()\n",
            3,
        ),
        (
            "k p",
            "expected_distinct",
            "def expected_distinct(log_probs, num_samples):\n"
            "    return (num_samples * log_probs.exp()).sum(-1)\n",
            0,
        ),
        (
            "ties",
            "on_front",
            "def on_front(accuracy, diversity):\n"
            "    better = (accuracy > accuracy[:, None]) & (diversity > "
            "diversity[:, None])\n"
            "    return ~better.any(1)\n",
            3,
        ),
        (
            "one group size",
            "welch_t",
            "def welch_t(first, second):\n"
            "    error = (first.var() + second.var()) / len(first)\n"
            "    return (first.mean() - second.mean()) / error.sqrt()\n",
            2,
        ),
        ("wrong number", "START_ACCURACY", "START_ACCURACY = 0.9\n", 0),
    ],
}
POINTS = {
    **dict(log_partition=5, target_log_probs=4, elbo=5, log_z_slope=4),
    **dict(estimate_log_z=5, learn_log_z=5, LOG_Z=2, REFERENCE_GAP=2, SCALE_FOR_80=3),
    **dict(token_log_probs=4, masked_mean=4, group_advantages=4, matching_loss=10),
    **dict(clipped_loss=10, test_matching_loss=10, test_clipped_loss=8, BROKEN=4),
    **dict(effective_answers=4, expected_distinct=4, on_front=5, welch_t=4),
    **dict(START_ACCURACY=2),
}
# Questions whose own tests would fail too if these were wrong.
LEANS_ON = {"matching_loss": "test_matching_loss", "clipped_loss": "test_clipped_loss"}


# -------------------------------------------------------------------------- notebooks


def solved(key: str) -> dict:
    """The solved notebook, as JSON."""
    path = INSTRUCTOR / f"{key}_solved.ipynb"
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
        return {n: (INSTRUCTOR / n).read_bytes() for n in (*names, "runs.json")}
    return {}


def landscape_policy(bend: float, shift: float) -> bytes:
    """The target's own logits, bent (a KL) and with log Z shifted."""
    handout = json.loads((STUDENT / f"{ONE}.json").read_text(encoding="utf-8"))
    problem = handout["problem"]
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

# Text of `elbo` that attacks, or None where it stands in a cell of its own.
ATTACKS: dict[str, tuple[str, str]] = {
    "ends the process": ("function", "    import os\n    os._exit(0)\n"),
    "kills the process": (
        "function",
        "    import os, signal\n    os.kill(os.getpid(), signal.SIGKILL)\n",
    ),
    "fork bomb": ("function", "    import os\n    while True:\n        os.fork()\n"),
    "memory bomb": (
        "function",
        "    return [bytearray(10**8) for _ in range(10**4)]\n",
    ),
    "prints 50 MB": (
        "function",
        "    for _ in range(50):\n        print('x' * 10**6)\n    raise ValueError\n",
    ),
    "writes 50 MB": (
        "function",
        "    open('big', 'wb').write(b'x' * 50_000_000)\n    return 0\n",
    ),
    "reads files": (
        "function",
        "    return open('/etc/passwd').read() + open('/etc/hostname').read()\n",
    ),
    "the network": (
        "function",
        "    import urllib.request\n"
        "    return urllib.request.urlopen('http://127.0.0.1:80').read()\n",
    ),
    "deletes files": (
        "function",
        "    import shutil\n    shutil.rmtree('/', ignore_errors=True)\n    return 0\n",
    ),
    "deep recursion": (
        "function",
        "    return elbo(log_probs, ref_log_probs, rewards, reward_scale)\n",
    ),
    "catches everything": (
        "function",
        "    while True:\n        try:\n            while True: pass\n"
        "        except BaseException:\n            pass\n",
    ),
    "tells the inputs": (
        "function",
        "    raise type(f'E{int(1e4 * rewards[0])}', (Exception,), {})(str(rewards))\n",
    ),
    "patches torch": (
        "function",
        "    torch.allclose = torch.equal = lambda *a, **k: True\n    return rewards\n",
    ),
    "imports the grader": (
        "function",
        "    import sys\n    sys.modules.pop('flowrl_lab', None)\n"
        "    from flowrl_lab.exact import optimal_log_z\n"
        "    return optimal_log_z(log_probs, ref_log_probs, rewards,\n"
        "                         reward_scale=reward_scale)\n",
    ),
    "forges outcomes": (
        "function",
        "    import json, os\n"
        "    plan = json.load(open('plan.json'))\n"
        "    with open('outcomes.jsonl', 'a') as file:\n"
        "        for job in plan['jobs']:\n"
        "            row = {'id': job['id'], 'verdict': 'rejected', 'result': [1e9],\n"
        "                   'points': 44, 'passed': True}\n"
        "            file.write(json.dumps(row) + '\\n')\n"
        "    return 0\n",
    ),
    "a huge result": ("function", "    return torch.zeros(10**7)\n"),
    "an object that lies": (
        "function",
        "    class Liar:\n        def __eq__(self, other): return True\n"
        "        def tolist(self): raise SystemExit(0)\n    return Liar()\n",
    ),
}
# What stands at the top of a cell: none of it is run, and nothing is lost.
AT_THE_TOP = {
    "redefined check": "def check(*args, **kwargs):\n    return 'passed'\n\n"
    "class Fake:\n    def check(self, *a): return 'passed'\n\nassignment = Fake()",
    "printed grade": "print('POINTS: 44/44')\nprint({'status': 'passed'})",
    "endless at the top": "while True:\n    pass",
    "exits at the top": "import os\nos._exit(0)",
    "magics": "%matplotlib inline\n!rm -rf ~\nx = 1",
    "trains at the top": "for _ in range(10**9):\n    torch.randn(1000, 1000)",
}
# Cells that spoil themselves, and nothing else; with the words of the problem.
BROKEN_CELLS = {
    "not Python": ("def broken(:\n    pass", "is not Python"),
    "deep nesting": ("x = " + "(" * 5000 + ")" * 5000, "is not Python"),
    "a class that never ends": (
        "class A:\n    while True:\n        pass",
        "never ended",
    ),
    "a class that exits": ("class A:\n    raise SystemExit", "fails (SystemExit)"),
}


def attack(kind: str) -> dict:
    """Assignment 1 with a hostile `elbo` (5 points), the rest right."""
    head = "def elbo(log_probs, ref_log_probs, rewards, reward_scale):\n"
    return answer(solved(ONE), "elbo", head + ATTACKS[kind][1])


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


def recorded_files() -> Iterator[tuple[str, str, dict, dict[str, bytes], float]]:
    """(kind, assignment, notebook, files, points) that differ in their files only."""
    name = "landscape_policy.safetensors"
    alone = FULL[ONE] - FILES[ONE]
    policy = {
        "a bent policy": (landscape_policy(0.12, 0.0), 6),  # KL between 0.03 and 0.3
        "log Z off": (landscape_policy(0.0, 0.5), 6),
        "far off": (landscape_policy(-0.9, 3.0), 0),
        "not safetensors": (b"logits", 0),
        "another shape": (save({"logits": torch.zeros(7), "log_z": torch.zeros(1)}), 0),
        "NaN": (save({"logits": torch.full((48,), float("nan")),
                      "log_z": torch.zeros(1)}), 0),
    }  # fmt: skip
    for kind, (content, left) in policy.items():
        yield kind, ONE, solved(ONE), {name: content}, alone + left
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
    claims = json.loads(files["runs.json"])
    claims["diverse"]["steps"] = 800
    rich = files | {"runs.json": json.dumps(claims).encode()}
    yield "above the budget", THREE, solved(THREE), rich, alone + 18
    state = load(files["accurate_0.safetensors"])
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
        writer.add(f"{slug(kind)}-{ONE}.zip", content, kind, full - 5, problem=None)
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
    for kind, key, notebook, files, points in recorded_files():
        if keep(kind):
            content = handed_in(key, notebook, files)
            problem = "missing file" if "missing" in kind else ""
            writer.add(
                f"{slug(kind)}-{key}.zip", content, kind, points, problem=problem
            )
    if keep("duplicates"):
        words = "2 submissions under this name"
        content = handed_in(TWO, solved(TWO))
        writer.add(f"twice-{TWO}.zip", content, "duplicates", FULL[TWO], problem=words)
        content = handed_in(TWO, unsolve(solved(TWO), "BROKEN"))
        name = f"Twice (2)-{TWO}.zip"
        writer.add(name, content, "duplicates", FULL[TWO] - 4, problem=words)
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

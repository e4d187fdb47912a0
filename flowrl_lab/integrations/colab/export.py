"""Write a notebook that runs by upload alone: library and data in its first cell."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell

from flowrl_lab._files import data_path, scratch_folder
from flowrl_lab._validation import bad_input
from flowrl_lab.tasks import TASKS

__all__ = ["export_notebook", "git_badge", "select_data"]

ROOT = Path(__file__).resolve().parents[3]
EXTRAS = ("lm", "metrics", "notebooks")
LINK = re.compile(r"!?\[([^\]]+)\]\(([^)\s]+)\)")
DRAWING = re.compile(r"(?<=\]\()[\w./-]+\.svg(?=\))")
TITLE = "#@title Set up flowrl_lab: run this cell first"
# Words in a notebook that stand for data which it does not name.
WORDS_FOR = {"explorer": ("RunScrubber", "run_scrubber", "landscape_runs")}
BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{repository}/blob/{branch}/{path})"
)


def export_notebook(
    path: str | Path, out: str | Path, *, repository: str = "", branch: str = "main"
) -> Path:
    """Write a self-contained copy of a notebook for Colab.

    Its new first cell carries the library as a wheel and the data that the notebook
    needs, installs what the library needs without moving the host's own packages
    (torch, numpy, pillow and more: ``first_cell.KEPT``), and asks for a restart,
    before any download, if it must replace what the session has in memory.

    Args:
        path: a notebook of the course.
        out: the file to write; its folder is made.
        repository: a Git address; the first cell then clones it instead.
        branch: of that repository.

    Returns:
        ``out``.

    Raises:
        ValueError: ``path`` is no notebook, or ``out`` is there already.
    """
    path, out = Path(path), Path(out)
    check_exports([path], [out])
    notebook = _read(path)
    source = "\n".join(cell.source for cell in notebook.cells)
    if repository:
        ending = f"bring = lambda: clone({repository!r}, {branch!r})"
    else:
        payload = _pack(build_wheel(), select_data(source))
        digest = hashlib.sha256(payload).hexdigest()
        text = base64.b85encode(payload).decode()
        ending = f"PAYLOAD = {text!r}\nbring = lambda: unpack(PAYLOAD, {digest!r})"
    _inline_drawings(notebook, path.parent)
    _inline_links(notebook)
    notebook.cells.insert(0, _first_cell(ending))
    notebook.metadata["accelerator"] = "GPU"  # Colab then offers one
    notebook.metadata["colab"] = {"provenance": []}
    out.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, out)
    return out


def check_exports(paths: Sequence[Path], targets: Sequence[Path]) -> None:
    """Refuse what cannot be exported, before anything is written.

    Raises:
        ValueError: a path is no notebook, a target exists, or two are the same.
    """
    for path in paths:
        _read(path)
    for target in targets:
        if target.exists() or list(targets).count(target) > 1:
            raise bad_input(
                "out",
                f"would write {target}, which exists or is named twice",
                "new files",
                "move it away, or name another folder",
            )


def _read(path: Path) -> nbformat.NotebookNode:
    if path.suffix != ".ipynb" or not path.is_file():
        raise bad_input(
            "notebook",
            f"is {path}, which is no notebook",
            "a file such as notebooks/07_tiny_lm_maths.ipynb",
            "check the path",
        )
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises many kinds
        got, wanted = f"{path} cannot be read ({error})", "a notebook of format 4"
        fix = "open and save it in JupyterLab"
        raise bad_input("notebook", got, wanted, fix) from error


def _first_cell(ending: str) -> nbformat.NotebookNode:
    code = (Path(__file__).parent / "first_cell.py").read_text(encoding="utf-8")
    call = f"set_up({read_requirements()!r}, bring)"
    cell = new_code_cell(f"{TITLE}\n{code}\n\n{ending}\n{call}", id="flowrl-set-up")
    cell.metadata["cellView"] = "form"  # Colab folds the code away
    cell.metadata["jupyter"] = {"source_hidden": True}
    return cell


def read_requirements() -> list[str]:
    """What the library needs in a notebook, as in pyproject.toml."""
    project = _read_project()["project"]
    groups = [project["dependencies"]]
    groups += [project["optional-dependencies"][extra] for extra in EXTRAS]
    return [r for group in groups for r in group if not r.startswith("flowrl-lab")]


def _read_project() -> dict:
    path = ROOT / "pyproject.toml"
    if not path.is_file():
        raise ValueError(
            f"there is no {path.name} beside this flowrl_lab, so that its wheel cannot "
            "be built. Fix: work in a clone of the repository (pip install -e .)."
        )
    return tomllib.loads(path.read_text(encoding="utf-8"))


def build_wheel() -> tuple[str, bytes]:
    """The library's wheel, (file name, bytes), built from a copy of its sources."""
    _read_project()
    with scratch_folder("flowrl-wheel-") as folder:
        copy = folder / "source"
        ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
        shutil.copytree(ROOT / "flowrl_lab", copy / "flowrl_lab", ignore=ignore)
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, copy / name)
        build = "import sys, setuptools.build_meta as b; b.build_wheel(sys.argv[1])"
        command = [sys.executable, "-c", build, folder]
        # one time for all files: the same sources give the same wheel
        how = {"cwd": copy, "env": {**os.environ, "SOURCE_DATE_EPOCH": "1577836800"}}
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", **how
        )
        wheels = list(folder.glob("*.whl"))
        if done.returncode or not wheels:
            raise ValueError(
                f"the wheel could not be built: {done.stderr.strip()[-500:]}. Fix: "
                "pip install 'setuptools>=77'"
            )
        return wheels[0].name, wheels[0].read_bytes()


def select_data(source: str) -> list[Path]:
    """Files of the data folder that a notebook with this text needs.

    A folder or result is needed if the notebook names it, or its task (the
    ``make_number`` of ``make_number_tiny_lm``), or a word of ``WORDS_FOR``.
    """
    words = set(re.findall(r"\w+", source))
    named = tuple(words & TASKS.keys())
    chosen = []
    for path in sorted(p for p in data_path().rglob("*") if p.is_file()):
        first, *rest = path.relative_to(data_path()).parts
        name = Path(rest[0]).stem if first == "results" else first
        keys = {name, name.removesuffix("_tiny_lm"), *WORDS_FOR.get(name, ())}
        # make_number_graded goes with make_number: results are small
        if keys & words or (first == "results" and name.startswith(named)):
            chosen.append(path)
    return chosen


def _pack(wheel: tuple[str, bytes], files: list[Path]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as outer:
        for name, content in [
            wheel,
            *((f"data/{p.relative_to(data_path())}", p.read_bytes()) for p in files),
        ]:
            entry = zipfile.ZipInfo(name, date_time=(2020, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            outer.writestr(entry, content)
        if not files:
            outer.writestr(zipfile.ZipInfo("data/", (2020, 1, 1, 0, 0, 0)), b"")
    return packed.getvalue()


# ------------------------------------------------------------------------- links


def _inline_drawings(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Drawings beside the notebook travel inside its text."""

    def inline(match: re.Match) -> str:
        path = folder / match[0]
        if not path.is_file():
            return match[0]  # a link to nothing becomes words below
        data = base64.b64encode(path.read_bytes()).decode()
        return f"data:image/svg+xml;base64,{data}"

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = DRAWING.sub(inline, cell.source)


def _inline_links(notebook: nbformat.NotebookNode) -> None:
    """Links to files beside the notebook become words; glossary entries come along."""
    asked: list[str] = []

    def inline(match: re.Match) -> str:
        text, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        if target.startswith("glossary.md#"):
            asked.append(target.partition("#")[2])
        return text

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = LINK.sub(inline, cell.source)
    entries = _read_glossary()
    found = [entries[key] for key in dict.fromkeys(asked) if key in entries]
    if found:
        text = "\n\n".join(["## Words of this notebook", *found])
        text = LINK.sub(lambda m: m[0] if ":" in m[2] else m[1], text)
        notebook.cells.append(new_markdown_cell(text, id="flowrl-glossary"))


def _read_glossary() -> dict[str, str]:
    """Anchor -> entry of notebooks/glossary.md."""
    path = ROOT / "notebooks" / "glossary.md"
    if not path.is_file():
        return {}
    parts = re.split(r"^(#{2,} .+)$", path.read_text(encoding="utf-8"), flags=re.M)
    headings, bodies = parts[1::2], parts[2::2]
    return {
        _anchor(heading): f"### {heading.lstrip('# ')}\n{body.strip()}"
        for heading, body in zip(headings, bodies, strict=True)
    }


def _anchor(heading: str) -> str:
    """The anchor that Jupyter and Git hosts give a heading."""
    text = heading.lstrip("# ").lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


# ------------------------------------------------------------------------- badges


def git_badge(path: str, *, repository: str = "", branch: str = "main") -> str:
    """The "Open in Colab" badge of a file in a Git repository, as Markdown.

    Args:
        path: of the notebook in the repository.
        repository: ``OWNER/NAME`` on GitHub; empty takes the project's one setting,
            ``[tool.flowrl_lab] repository`` in pyproject.toml.
        branch: of the repository.

    Raises:
        ValueError: no repository is set, or it is not ``OWNER/NAME``.
    """
    repository = find_repository(repository)
    return BADGE.format(repository=repository, branch=branch, path=path)


def find_repository(name: str = "") -> str:
    """``OWNER/NAME``: as given, else the setting in pyproject.toml.

    Raises:
        ValueError: neither is there, or it is not ``OWNER/NAME``.
    """
    settings = _read_project().get("tool", {}).get("flowrl_lab", {})
    name = name or str(settings.get("repository", ""))
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise bad_input(
            "repository",
            f"is {name!r}",
            "OWNER/NAME of a fork on GitHub",
            'set repository = "OWNER/NAME" under [tool.flowrl_lab] in pyproject.toml',
        )
    return name

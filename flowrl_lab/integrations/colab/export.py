"""Write a notebook that runs by upload alone: library and data in its second cell."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import io
import re
import tarfile
import textwrap
import tomllib
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell

from flowrl_lab._files import course_root, data_path
from flowrl_lab._validation import bad_input
from flowrl_lab.course.doctor import read_requirements
from flowrl_lab.policies.tiny_lm import checkpoint_name
from flowrl_lab.tasks import TASKS

__all__ = ["export_notebook", "git_badge", "select_data"]

PROJECT = "flowrl-lab"
EXTRAS = ("", "lm", "metrics", "notebooks")
NOT_ASKED_FOR = ("jupyterlab",)  # the page is there already
CARRIED = (".py", ".js", ".css", ".json")
LINK = re.compile(r"!?\[([^\]]+)\]\(([^)\s]+)\)")
DRAWING = re.compile(r"(?<=\]\()[\w./-]+\.svg(?=\))")
TITLE = "#@title 1. Set up flowrl_lab: run this cell first"
SECOND_TITLE = "#@title 2. Unpack flowrl_lab: run this cell next"
# Words in a notebook that stand for data which it does not name.
WORDS_FOR = {
    "explorer": {"RunScrubber", "run_scrubber", "landscape_runs"},
    "study": {"load_protocol", "load_curves"},
}
LOADERS = {"load_tiny_lm", "load_base_model"}  # of the model of a task that is named
BADGE = (
    "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{repository}/blob/{branch}/{path})"
)


def export_notebook(path: str | Path, out: str | Path, *, package: str = "") -> Path:
    """Write a self-contained copy of a notebook for Colab.

    Its first cell installs what the library needs without moving the host's own
    packages (torch, numpy, pillow and more: ``first_cell.KEPT``), and asks for a
    restart, before any download, if it must replace what the session has in memory.
    The second carries the library and the data that the notebook needs.

    Args:
        path: a notebook of the course.
        out: the file to write; its folder is made.
        package: what pip installs instead of carrying the library, such as
            ``"flowrl-lab==0.1.0"``, a wheel's address, or
            ``"flowrl-lab @ git+https://github.com/OWNER/NAME@main"``.

    Returns:
        ``out``.

    Raises:
        ValueError: ``path`` is no notebook, or ``out`` is there already.
    """
    path, out = Path(path), Path(out)
    check_exports([path], [out])
    notebook = _read(path)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    cells = [_first_cell(package)]
    cells += [] if package else [_second_cell(pack(select_data("\n".join(code))))]
    _inline_drawings(notebook, path.parent)
    _inline_links(notebook)
    notebook.cells[:0] = cells
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


def _first_cell(package: str) -> nbformat.NotebookNode:
    code = _code_of("first_cell")
    wanted = " ".join(find_requirements())
    lines = "\n".join(textwrap.wrap(wanted, 84, break_on_hyphens=False))
    itself = f', "--no-deps", {package!r}' if package else ""
    call = f'NEEDED = """\n{lines}\n"""\nset_up(NEEDED{itself})'
    source = f"{TITLE}\n{code}\n\n{call}"
    return new_code_cell(source, id="flowrl-set-up")


def _second_cell(packed: bytes) -> nbformat.NotebookNode:
    digest = hashlib.sha256(packed).hexdigest()
    text = base64.b85encode(packed).decode()
    call = f"CARRIED = {text!r}\nunpack(CARRIED, {digest!r})"
    source = f"{SECOND_TITLE}\n{_code_of('second_cell')}\n\n{call}"
    cell = new_code_cell(source, id="flowrl-unpack")
    cell.metadata["cellView"] = "form"  # Colab folds the code away
    cell.metadata["jupyter"] = {"source_hidden": True}
    return cell


def _code_of(name: str) -> str:
    """The text of a module beside this one, which is pasted into a cell as it is."""
    text = (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    return text.rstrip().replace("\n\n\n", "\n\n")


def find_requirements() -> list[str]:
    """What the library needs in a notebook that has its page already."""
    return [
        f"{requirement.name}{requirement.specifier}"
        for requirement, extra in read_requirements()
        if extra in EXTRAS and requirement.name not in NOT_ASKED_FOR
    ]


def pack(files: list[Path]) -> bytes:
    """The library, its metadata and these files of the data folder, as a tar.xz.

    The same sources give the same bytes.
    """
    package = Path(__file__).resolve().parents[2]
    members = {
        path.relative_to(package.parent).as_posix(): path.read_bytes()
        for path in sorted(package.rglob("*"))
        if path.suffix in CARRIED
        and not {"_course", "__pycache__"} & set(path.relative_to(package).parts)
    }
    data = f"{package.name}/_course/data"  # where `course_root` looks in a wheel
    for path in files:
        name = path.relative_to(data_path()).as_posix()
        members[f"{data}/{name}"] = path.read_bytes()
    about = importlib.metadata.distribution(PROJECT)
    folder = f"{PROJECT.replace('-', '_')}-{about.version}.dist-info"
    members[f"{folder}/METADATA"] = (about.read_text("METADATA") or "").encode()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz", preset=6) as archive:
        archive.addfile(_member(data, tarfile.DIRTYPE))
        for name, content in members.items():
            archive.addfile(_member(name, size=len(content)), io.BytesIO(content))
    return packed.getvalue()


def _member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.size = kind, size
    entry.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    return entry


def select_data(code: str) -> list[Path]:
    """Files of the data folder that a notebook with this code needs.

    Results are needed if their task is named, curves where they are loaded as well.  A
    folder is if it is named itself, or a word of ``WORDS_FOR``; a tiny model also if
    its task is trained, or its task and one of ``LOADERS`` are named.
    """
    words = set(re.findall(r"\w+", code))
    tasks = words & TASKS.keys()
    models = {checkpoint_name(task) for task in tasks if words & LOADERS}
    for task in re.findall(r'preset\(\s*"(\w+)"', code):
        models |= {checkpoint_name(task), f"{task}_smollm2"}
    chosen = []
    for path in sorted(p for p in data_path().rglob("*") if p.is_file()):
        first, *rest = path.relative_to(data_path()).parts
        if rest[:1] == ["curves"]:
            wanted = {"load_curves", path.stem} <= words
        elif first == "results":  # those of make_number_graded too: they are small
            wanted = Path(rest[0]).stem in words or rest[0].startswith(tuple(tasks))
        else:
            wanted = first in words | models or bool(
                WORDS_FOR.get(first, set()) & words
            )
        chosen += [path] if wanted else []
    return chosen


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
    path = course_root() / "notebooks" / "glossary.md"
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8")
    parts = re.split(r'^(?:<a id="(.+)"></a>\n)?(#{2,} .+)$', text, flags=re.M)
    return {
        anchor or _anchor(heading): f"### {heading.lstrip('# ')}\n{body.strip()}"
        for anchor, heading, body in zip(
            parts[1::3], parts[2::3], parts[3::3], strict=True
        )
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
    name = name or _set_repository()
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise bad_input(
            "repository",
            f"is {name!r}",
            "OWNER/NAME of a fork on GitHub",
            'set repository = "OWNER/NAME" under [tool.flowrl_lab] in pyproject.toml',
        )
    return name


def _set_repository() -> str:
    """The setting in a clone, or what a wheel was made with; empty without one."""
    path = course_root() / "pyproject.toml"
    if path.is_file():
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
        return settings["tool"]["flowrl_lab"]["repository"]
    addresses = importlib.metadata.metadata(PROJECT).get_all("Project-URL") or ()
    found = [text.partition(", https://github.com/")[2] for text in addresses]
    return min(filter(None, found), key=len, default="")

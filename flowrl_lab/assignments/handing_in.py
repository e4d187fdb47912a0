"""The file that a student hands in: the saved notebook with its recorded files."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import re
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path

from flowrl_lab._validation import bad_input

__all__ = ["MANIFEST", "is_name", "plain_name", "saved_stubs", "write_submission"]

MANIFEST = "manifest.json"
OLD_SECONDS = 300


def plain_name(text: str) -> str:
    """A name in letters that every file system takes."""
    return re.sub(r"[^\w.-]+", "_", text.strip(), flags=re.UNICODE).strip("._")


def is_name(text: str) -> bool:
    """Whether a text could be a student's name: not empty, not the placeholder."""
    return plain_name(text) not in ("", "your_name")


def write_submission(
    notebook: Path, student: str, files: Iterable[str]
) -> tuple[Path, list[str]]:
    """Put the notebook and the recorded files beside it into one zip file.

    Args:
        notebook: the saved notebook.
        student: whose it is.
        files: names of the recorded files; those that are missing are named.

    Returns:
        The file, and notes for the student.

    Raises:
        ValueError: no name, no notebook, or one that is no notebook.
    """
    name = plain_name(student)
    if not is_name(student):
        raise bad_input(
            "student",
            f"is {student!r}",
            "your name as the course knows it",
            'assignment.submit(student="ada")',
        )
    if not notebook.is_file():
        raise bad_input(
            "notebook",
            f"is {notebook}, which does not exist",
            "the notebook that you worked in",
            'name it: assignment.submit(notebook="my_notebook.ipynb")',
        )
    content = notebook.read_bytes()
    facts = _check_notebook(content, notebook)
    notes = []
    age = time.time() - notebook.stat().st_mtime
    if age > OLD_SECONDS:
        notes.append(f"the notebook was saved {age / 60:.0f} minutes ago: saved all?")
    stubs = saved_stubs(notebook)
    if stubs:
        notes.append(f"not written yet, as saved: {', '.join(stubs)}")
    parts = {notebook.name: content}
    for file in sorted(files):
        path = notebook.parent / file
        if path.is_file():
            parts[file] = path.read_bytes()
        else:
            notes.append(f"{file} is not here, so it is not handed in")
    parts[MANIFEST] = _manifest(student, facts, parts)
    out = notebook.parent / f"{name}-{facts['assignment']}.zip"
    _write_zip(out, parts)
    notes.insert(0, f"it holds {', '.join(parts)}")
    return out, notes


def _check_notebook(content: bytes, notebook: Path) -> dict:
    try:
        facts = json.loads(content)["metadata"]["flowrl"]
        return {"assignment": facts["assignment"], "variant": facts["variant"]}
    except (ValueError, KeyError, TypeError):
        raise bad_input(
            "notebook",
            f"is {notebook.name}, which is not an assignment's notebook",
            "the one that was handed out, with your work in it",
            "save it in JupyterLab (Ctrl+S), and name the right file",
        ) from None


def _manifest(student: str, facts: dict, parts: dict[str, bytes]) -> bytes:
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}
    return json.dumps({"student": student, **facts, "sha256": sums}, indent=1).encode()


def _write_zip(out: Path, parts: dict[str, bytes]) -> None:
    """The zip file, written beside its name and moved there when it is whole."""
    part = out.with_name(f".{out.name}.part")
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    part.replace(out)


def saved_stubs(notebook: Path) -> list[str]:
    """Functions that a saved notebook still leaves unwritten."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        texts = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    found = []
    for text in texts:
        with contextlib.suppress(SyntaxError, ValueError):
            for node in ast.parse(text).body:
                stub = isinstance(node, ast.FunctionDef) and "NotImplementedError" in (
                    ast.unparse(node.body[-1])
                )
                found += [node.name] if stub else []
    return found

"""A hosted notebook as this machine can play it: an own kernel in an empty folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat

# What a notebook in Colab can tell by that it is there.
STUBS = {
    "google/__init__.py": "",
    "google/colab/__init__.py": "",
    "google/colab/output/__init__.py": "def enable_custom_widget_manager(): pass\n",
}
OURS = ("FLOWRL_", "PYTHONPATH", "JUPYTER")


def write_stub(folder: Path) -> Path:
    """A package ``google.colab`` under ``folder``, which is to go on the path."""
    for name, text in STUBS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def run_hosted(
    notebook: Path, folder: Path, *, python: str, path: Path
) -> nbformat.NotebookNode:
    """Run a notebook to its end at its quick budget, as after an upload.

    Args:
        notebook: what was exported; it is given back with outputs, not changed.
        folder: empty; where its kernel starts.
        python: the interpreter of the kernel.
        path: for PYTHONPATH, with the stub of Colab's package; the kernel imports
            that before the notebook's first cell.

    Raises:
        AssertionError: a cell failed; with what it said.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(OURS)}
    environment |= {"OMP_NUM_THREADS": "1", "FLOWRL_BUDGET": "quick"}
    environment["PYTHONPATH"] = str(path)
    done = path / "done.ipynb"
    # A process of its own: nbclient leaves sockets open until it ends.
    ran = subprocess.run(
        [sys.executable, __file__, notebook, folder, python, done],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return nbformat.read(done, as_version=4)


def printed(notebook: nbformat.NotebookNode, cell: int) -> str:
    """What a code cell printed."""
    code = [c for c in notebook.cells if c.cell_type == "code"]
    return "".join(o.text for o in code[cell].outputs if o.output_type == "stream")


def execute(notebook: str, folder: str, python: str, done: str) -> None:
    """Run the cells with ``python`` in ``folder``; write what came out to ``done``."""
    from jupyter_client.manager import KernelManager
    from nbclient import NotebookClient

    content = nbformat.read(notebook, as_version=4)
    content.cells.insert(0, nbformat.v4.new_code_cell("import google.colab"))
    manager = KernelManager()
    launch = ("-m", "ipykernel_launcher", "-f", "{connection_file}")
    manager.kernel_spec.argv = [python, *launch]
    manager.kernel_spec.env = {}
    client = NotebookClient(
        content,
        km=manager,
        timeout=600,
        store_widget_state=False,
        resources={"metadata": {"path": folder}},
    )
    client.execute(cwd=folder)
    Path(done).write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    execute(*sys.argv[1:])

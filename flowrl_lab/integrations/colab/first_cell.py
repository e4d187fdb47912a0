"""What the first cell of an exported notebook does: bring flowrl_lab along.

``export`` pastes this file as it stands into that cell, below what it brings.  It
therefore uses the standard library only (and ``packaging``, which every kernel has),
and knows nothing of flowrl_lab.
"""

import base64
import hashlib
import importlib.metadata
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

# A hosted notebook's own: its torch fits its GPU driver, its widgets fit its page.
# They stay as they are, whatever flowrl_lab was tested with.
KEPT = (
    *("torch", "torchvision", "torchaudio", "numpy", "pillow", "scipy", "pandas"),
    *("ipykernel", "ipython", "ipywidgets", "traitlets", "jupyterlab", "notebook"),
    *("jupyter-client", "jupyter-core", "tornado", "pyzmq", "protobuf", "requests"),
)


class Restart(Exception):
    """The session holds an old package in memory; nothing was downloaded."""

    def _render_traceback_(self):
        return [f"Not set up yet: {self}"]


class SetupFailed(Exception):
    """Something that the person at the notebook can mend."""

    def _render_traceback_(self):
        return [f"Not set up: {self}"]


def set_up(requirements, bring, drive="/content/drive/MyDrive"):
    """Bring the library and its data, and install what it needs and is not there.

    Args:
        requirements: what the library asks for, such as ``"plotly>=7.1,<8"``.
        bring: puts the library's folder in place and gives its path; called last.
        drive: where a mounted Google Drive lies.

    Raises:
        Restart: a package must be replaced that this session has imported already.
        SetupFailed: an installation failed, or what was brought is damaged.
    """
    wanted, notes = choose_packages(requirements)
    stale = [text for text in wanted if is_loaded(text)]
    if stale:
        raise Restart(
            f"this session has already imported what must be replaced: "
            f"{', '.join(stale)}.\nFix: Runtime > Restart session, then run this cell "
            "before any other.  Nothing was downloaded."
        )
    if wanted:
        install(wanted)
    folder = bring()
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join(  # for processes that a run starts
        filter(None, [str(folder), os.environ.get("PYTHONPATH")])
    )
    os.environ["FLOWRL_DATA"] = str(folder / "data")
    keep = Path(drive) if Path(drive).is_dir() else Path.cwd()
    os.environ.setdefault("FLOWRL_PROGRESS", str(keep / "flowrl_progress.json"))
    for note in notes:
        print(note)
    print(f"flowrl_lab is ready. Your progress is kept in {keep}.")


def choose_packages(requirements):
    """What must be installed, and remarks on what stays although it is another version.

    A package that is there in a version outside the range is replaced, unless it is
    one of ``KEPT``.
    """
    wanted, notes = [], []
    for text in requirements:
        requirement = parse_requirement(text)
        try:
            found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            if requirement.name != "jupyterlab":  # the page is there already
                wanted.append(text)
            continue
        if requirement.specifier.contains(found, prereleases=True):
            continue
        if requirement.name in KEPT:
            notes.append(
                f"{requirement.name} {found} stays; flowrl_lab was tested with "
                f"{requirement.specifier}."
            )
        else:
            wanted.append(text)
    return wanted, notes


def parse_requirement(text):
    """``"plotly>=7.1,<8"`` -> name and specifier."""
    from packaging.requirements import Requirement  # ipykernel needs it: it is there

    return Requirement(text)


def is_loaded(text):
    """Whether this session has imported the package that ``text`` asks for."""
    name = parse_requirement(text).name
    return name.replace("-", "_") in sys.modules


def install(wanted):
    """Install with pip under the constraint that what is ``KEPT`` does not move."""
    constraints = Path.cwd() / "flowrl_lab_constraints.txt"
    constraints.write_text("\n".join(find_kept()) + "\n")
    print(f"Installing {', '.join(wanted)} …")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint"]
    done = subprocess.run(
        [*command, str(constraints), *wanted], capture_output=True, text=True
    )
    constraints.unlink()
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-6:])
        raise SetupFailed(
            "the packages could not be installed.\nFix: check that the notebook has "
            "internet access, then run this cell again.  The last lines were:\n" + last
        )
    importlib.invalidate_caches()


def find_kept():
    """``name==version`` of every package that must stay as it is."""
    found = []
    for name in KEPT:
        try:
            found.append(f"{name}=={importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def unpack(payload, sha256, folder="flowrl_lab_course"):
    """Unpack the library's wheel and its data into ``folder``; gives its path.

    Files that are there already are kept where they are the same and replaced where
    they come from another version of the notebook; others are not touched.
    """
    packed = base64.b85decode(payload)
    if hashlib.sha256(packed).hexdigest() != sha256:
        raise SetupFailed(
            "what this cell carries is damaged.\nFix: upload the notebook again."
        )
    folder = Path(folder).resolve()
    with zipfile.ZipFile(io.BytesIO(packed)) as outer:
        for name in outer.namelist():
            if name.endswith(".whl"):
                with zipfile.ZipFile(io.BytesIO(outer.read(name))) as wheel:
                    wheel.extractall(folder)
            else:
                outer.extract(name, folder)
    return folder


def clone(address, branch, folder="flowrl_lab_course"):
    """Clone the repository, or take the clone that is there; gives its path."""
    folder = Path(folder).resolve()
    if (folder / ".git").is_dir():
        return folder
    command = ["git", "clone", "--quiet", "--depth", "1", "--branch", branch]
    done = subprocess.run(
        [*command, address, str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        raise SetupFailed(
            f"{address} could not be cloned: {done.stderr.strip()}\nFix: check the "
            "address and the branch, and that the repository is public."
        )
    return folder

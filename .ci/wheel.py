#!/usr/bin/env python3
"""The package as a stranger meets it: built, installed apart from this clone, used.

    python3 .ci/wheel.py                     packages from the index, and twine's look
    python3 .ci/wheel.py .venv/bin/python    packages lent by that environment, offline

The wheel is built from the tracked files and again from the source distribution; both
must hold the same.  Then, from an empty folder: the course is copied, its first
notebook runs, and a model trains.
"""

import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OURS = ("FLOWRL_", "PYTHON", "JUPYTER", "PIP_TARGET")
CLEAN = {k: v for k, v in os.environ.items() if not k.startswith(OURS)}
WHERE = "import sysconfig; print(sysconfig.get_path('purelib'))"
BUILD = "import sys, setuptools.build_meta as b; b.build_{}(sys.argv[1])"


def run(*words, cwd, **changes):
    """Run a command that must succeed; it says what it is."""
    print("$", *(Path(w).name if isinstance(w, Path) else w for w in words), flush=True)
    subprocess.run(words, cwd=cwd, env=CLEAN | changes, check=True)


def new_environment(folder, lender=None):
    """A virtual environment's python; it has pip, or all that the lender has."""
    venv.create(folder, with_pip=lender is None)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if lender is not None:
        ours, theirs = (
            subprocess.check_output([p, "-c", WHERE], env=CLEAN, text=True).strip()
            for p in (python, lender)
        )
        Path(ours, "lent.pth").write_text(theirs + "\n", encoding="utf-8")
    return python


def build(python, work):
    """The wheel, after it was compared with the one from the source distribution."""
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)
    for name in listed.rstrip("\0").split("\0"):
        copy = work / "source" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((ROOT / name).read_bytes())
    make(python, "sdist", work / "source", work)
    make(python, "wheel", work / "source", work)
    (packed,) = work.glob("*.tar.gz")
    with tarfile.open(packed) as archive:
        archive.extractall(work / "unpacked", filter="data")
    (unpacked,) = (work / "unpacked").iterdir()
    make(python, "wheel", unpacked, work / "again")
    (wheel,), (other,) = work.glob("*.whl"), (work / "again").glob("*.whl")
    ours, theirs = map(content, (wheel, other))
    differ = sorted(n for n in {*ours, *theirs} if ours.get(n) != theirs.get(n))
    assert not differ, f"the source distribution lacks or changes {differ}"
    return packed, wheel


def make(python, what, source, out):
    """An sdist or a wheel of ``source``; what setuptools says is shown if it fails."""
    print(f"Building the {what} of {source.name}", flush=True)
    words = [python, "-c", BUILD.format(what), out]
    done = subprocess.run(words, cwd=source, env=CLEAN, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def content(wheel):
    """name -> bytes of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def install(wheel, folder, lender):
    """A new environment with the wheel in it; gives its python."""
    python = new_environment(folder, lender)
    pip = [python, "-m", "pip", "install", "--quiet"]
    if lender is None:
        run(*pip, wheel, cwd=folder)
    else:  # what the lender has of this project is not what is asked about
        run(*pip, "--no-deps", "--force-reinstall", wheel, cwd=folder)
        run(*pip, "--no-index", "flowrl-lab", cwd=folder)  # what it asks for is there
    return python


def use(python, empty):
    """What a stranger does first."""
    where = "import flowrl_lab; print(flowrl_lab.__file__)"
    found = subprocess.check_output([python, "-c", where], cwd=empty, env=CLEAN)
    assert Path(found.decode().strip()).is_relative_to(python.parents[1]), found
    command = python.with_name("flowrl-lab" + python.suffix)
    run(command, "notebooks", "course", "--copy-only", cwd=empty)
    notebook = ("nbconvert", "--to", "notebook", "--execute", "00_start_here.ipynb")
    run(
        *(python, "-m", *notebook, "--output", "done.ipynb"),
        cwd=empty / "course" / "notebooks",
        FLOWRL_BUDGET="quick",
        FLOWRL_HEADLESS="1",
    )
    train = ("train", "--task", "landscape", "--budget", "quick", "--out", "one")
    run(command, *train, cwd=empty)
    run(command, "recorded", "landscape", cwd=empty)
    run(command, "doctor", cwd=empty)


def main(lender=None):
    """Everything, in folders that are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="flowrl-wheel-") as folder:
        work, empty = Path(folder).resolve(), Path(folder).resolve() / "empty"
        empty.mkdir()
        builder = lender or new_environment(work / "tools")
        if lender is None:
            tools = ("setuptools>=77", "twine")
            run(builder, "-m", "pip", "install", "--quiet", *tools, cwd=work)
        packed, wheel = build(builder, work)
        if lender is None:
            run(builder, "-m", "twine", "check", "--strict", packed, wheel, cwd=work)
        use(install(wheel, work / "site", lender), empty)
    print(f"{wheel.name} works from an empty folder.")


if __name__ == "__main__":
    main(*(Path(os.path.abspath(word)) for word in sys.argv[1:]))

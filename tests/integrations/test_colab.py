"""Notebooks for upload: what travels, what is installed, what stays as it is."""

from __future__ import annotations

import ast
import base64
import hashlib
import importlib.metadata
import io
import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import nbformat
import pytest
from hosted import printed, run_hosted, write_stub

from flowrl_lab.__main__ import main
from flowrl_lab.integrations.colab import export_notebook, first_cell, git_badge
from flowrl_lab.integrations.colab.export import (
    TITLE,
    build_wheel,
    read_requirements,
    select_data,
)

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FIRST = ROOT / "notebooks" / "00_start_here.ipynb"
PINNED = ROOT / "tests" / "integrations" / "colab" / "pip-freeze.txt"
TORCH = "torch==2.13.0"


@pytest.fixture(scope="session")
def wheel() -> tuple[str, bytes]:
    return build_wheel()


@pytest.fixture
def exported(tmp_path, wheel, monkeypatch) -> Path:
    """Notebook 00 for upload."""
    monkeypatch.setattr(
        "flowrl_lab.integrations.colab.export.build_wheel", lambda: wheel
    )
    return export_notebook(FIRST, tmp_path / "colab" / FIRST.name)


def first_source(path: Path) -> str:
    return nbformat.read(path, as_version=4).cells[0].source


def carried(path: Path) -> zipfile.ZipFile:
    """What the first cell carries, as an archive."""
    for node in ast.parse(first_source(path)).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "PAYLOAD":
            return zipfile.ZipFile(io.BytesIO(base64.b85decode(node.value.value)))
    raise AssertionError("nothing is carried")


# ------------------------------------------------------------------------- export


def test_the_first_cell_sets_up_and_the_rest_is_the_notebook(exported):
    before, after = (nbformat.read(path, as_version=4) for path in (FIRST, exported))
    nbformat.validate(after)
    assert after.cells[0].source.startswith(TITLE)
    theirs, ours = (
        [cell.source for cell in notebook.cells if cell.cell_type == "code"]
        for notebook in (before, after)
    )
    assert ours[1:] == theirs
    with pytest.raises(ValueError, match="exists"):
        export_notebook(FIRST, exported)


def test_the_wheel_holds_every_file_of_the_package(wheel):
    name, content = wheel
    assert name.startswith("flowrl_lab-") and name.endswith("none-any.whl")
    inside = set(zipfile.ZipFile(io.BytesIO(content)).namelist())
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "flowrl_lab").rglob("*")
        if path.suffix in (".py", ".js", ".css", ".json")
    }
    assert wanted <= inside
    assert build_wheel() == wheel  # the same sources give the same notebook


@pytest.mark.parametrize(
    ("source", "there", "not_there"),
    [
        ("preset('landscape', name)", (), ("make_number_tiny_lm",)),
        ("RunScrubber()", ("explorer",), ("make_number_tiny_lm",)),
        (
            'Run(preset("make_number", "grpo")); load_recorded("make_number")',
            ("make_number_tiny_lm", "results"),
            ("explorer",),
        ),
    ],
)
def test_a_notebook_carries_the_data_that_it_needs(source, there, not_there):
    folders = {p.relative_to(ROOT / "data").parts[0] for p in select_data(source)}
    assert folders >= set(there)
    assert not folders & set(not_there)


def test_links_become_words_and_the_glossary_comes_along(exported):
    cells = nbformat.read(exported, as_version=4).cells
    text = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    assert "glossary.md" not in text and ".ipynb" not in text
    assert "arxiv.org" in text  # what the web has stays a link
    original = FIRST.read_text("utf-8")
    if "glossary.md#" in original:
        assert cells[-1].source.startswith("## Words of this notebook")
        assert "### effective number" in cells[-1].source


def test_drawings_travel_inside_the_text(tmp_path, wheel, monkeypatch):
    monkeypatch.setattr(
        "flowrl_lab.integrations.colab.export.build_wheel", lambda: wheel
    )
    (tmp_path / "drawings").mkdir()
    (tmp_path / "drawings" / "a.svg").write_bytes(b"<svg/>")
    text = "![one](drawings/a.svg) and ![two](drawings/gone.svg)"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
    nbformat.write(notebook, tmp_path / "a.ipynb")
    out = export_notebook(tmp_path / "a.ipynb", tmp_path / "out" / "a.ipynb")
    data = base64.b64encode(b"<svg/>").decode()
    wanted = f"![one](data:image/svg+xml;base64,{data}) and two"
    assert nbformat.read(out, as_version=4).cells[1].source == wanted


@pytest.mark.bad_input
def test_what_cannot_be_exported_is_refused_before_anything_is_written(
    tmp_path, capsys
):
    broken = tmp_path / "broken.ipynb"
    broken.write_text("{}")
    for path, words in [
        (tmp_path / "no.ipynb", "is no notebook"),
        (ROOT / "README.md", "is no notebook"),
        (broken, "cannot be read"),
    ]:
        out = tmp_path / "out"
        assert main(["colab", str(FIRST), str(path), "--out", str(out)]) == 2
        assert words in capsys.readouterr().err
        assert not out.exists()
    assert main(["colab", str(FIRST), str(FIRST), "--out", str(out)]) == 2
    assert "named twice" in capsys.readouterr().err


def test_a_fork_clones_itself_and_has_a_badge(tmp_path, capsys):
    out = tmp_path / "forked"
    words = ["colab", str(FIRST), "--out", str(out), "--git", "someone/a-fork"]
    assert main(words) == 0
    assert git_badge((out / FIRST.name).as_posix(), repository="someone/a-fork") in (
        capsys.readouterr().out
    )
    source = first_source(out / FIRST.name)
    assert "clone('https://github.com/someone/a-fork', 'main')" in source
    assert len(source) < 10_000
    with pytest.raises(ValueError, match="OWNER/NAME"):
        git_badge("x.ipynb", repository="not a repository")


# ------------------------------------------------------------------------- set-up


@pytest.fixture
def installed(monkeypatch) -> dict[str, str]:
    """The versions that this session seems to have."""
    found: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in found:
            raise importlib.metadata.PackageNotFoundError(name)
        return found[name]

    monkeypatch.setattr(first_cell.importlib.metadata, "version", version)
    return found


def test_only_what_is_missing_or_too_old_is_installed(installed):
    installed |= {"torch": "2.11.0+cu128", "plotly": "5.24.1", "peft": "0.21.2"}
    wanted, notes = first_cell.choose_packages(
        [
            "torch>=2.13,<2.14",
            "plotly>=7.1,<8",
            "peft>=0.21,<0.22",
            "jaxtyping>=0.3",
            "jupyterlab>=4.6,<5",
        ]
    )
    assert wanted == ["plotly>=7.1,<8", "jaxtyping>=0.3"]
    assert len(notes) == 1 and "torch 2.11.0+cu128 stays" in notes[0]


def test_torch_numpy_and_pillow_are_held_while_pip_works(
    installed, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    installed |= {"torch": "2.11.0+cu128", "numpy": "2.0.2", "pillow": "11.3.0"}
    calls = []

    def run(command, **_options):
        calls.append((command, Path(command[-2]).read_text().split()))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(first_cell.subprocess, "run", run)
    first_cell.install(["plotly>=7.1,<8"])
    [(command, held)] = calls
    assert command[-3:] == ["--constraint", command[-2], "plotly>=7.1,<8"]
    assert held == ["torch==2.11.0+cu128", "numpy==2.0.2", "pillow==11.3.0"]
    assert list(tmp_path.iterdir()) == []

    def fail(command, **_options):
        return subprocess.CompletedProcess(command, 1, "", "no network\n")

    monkeypatch.setattr(first_cell.subprocess, "run", fail)
    with pytest.raises(first_cell.SetupFailed, match=r"(?s)Fix: .*no network"):
        first_cell.install(["plotly>=7.1,<8"])


def test_a_restart_is_asked_for_before_any_download(installed, monkeypatch):
    installed["plotly"] = "5.24.1"
    monkeypatch.setitem(sys.modules, "plotly", sys)
    monkeypatch.setattr(first_cell, "install", pytest.fail)

    def bring():
        pytest.fail("nothing may be unpacked either")

    with pytest.raises(first_cell.Restart, match="Restart session"):
        first_cell.set_up(["plotly>=7.1,<8"], bring)


def test_progress_goes_to_a_mounted_drive(tmp_path, monkeypatch, capsys):
    for name in ("FLOWRL_DATA", "FLOWRL_PROGRESS", "PYTHONPATH"):
        monkeypatch.setenv(name, "")
    monkeypatch.delenv("FLOWRL_PROGRESS")
    monkeypatch.setattr(sys, "path", list(sys.path))
    drive = tmp_path / "drive"
    drive.mkdir()
    first_cell.set_up([], lambda: tmp_path / "course", drive=str(drive))
    assert os.environ["FLOWRL_PROGRESS"] == str(drive / "flowrl_progress.json")
    assert os.environ["FLOWRL_DATA"] == str(tmp_path / "course" / "data")
    assert sys.path[0] == os.environ["PYTHONPATH"] == str(tmp_path / "course")
    assert str(drive) in capsys.readouterr().out


def test_what_arrives_damaged_is_refused_and_the_rest_is_left_alone(tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("data/new.txt", "new")
    payload = base64.b85encode(packed.getvalue()).decode()
    digest = hashlib.sha256(packed.getvalue()).hexdigest()
    folder = tmp_path / "course"
    (folder / "runs").mkdir(parents=True)
    (folder / "runs" / "mine.txt").write_text("mine")
    with pytest.raises(first_cell.SetupFailed, match="upload"):
        first_cell.unpack(payload, "0" * 64, folder)
    assert not (folder / "data").exists()
    assert first_cell.unpack(payload, digest, folder) == folder
    assert (folder / "data" / "new.txt").read_text() == "new"
    assert (folder / "runs" / "mine.txt").read_text() == "mine"


def test_a_clone_is_made_once(tmp_path):
    source, target = tmp_path / "source", tmp_path / "clone"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-C", str(source)]
    source.mkdir()
    (source / "a.txt").write_text("a")
    for words in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-qm", "a"]):
        subprocess.run([*git, *words], check=True)
    address = source.as_uri()
    with pytest.raises(first_cell.SetupFailed, match=r"(?s)could not be cloned.*Fix"):
        first_cell.clone(address, "no-such-branch", target)
    assert first_cell.clone(address, "main", target) == target
    (target / "mine.txt").write_text("mine")
    assert first_cell.clone(address, "main", target) == target
    assert (target / "mine.txt").exists()


# --------------------------------------------------------------------- the real thing


def test_it_runs_to_the_end_from_an_empty_folder(exported, tmp_path):
    """In this environment, which lacks nothing; the library is the carried one."""
    folder, stub = tmp_path / "content", write_stub(tmp_path / "stub")
    folder.mkdir()
    ask = "\nimport json, flowrl_lab\nprint(json.dumps(flowrl_lab.__file__))"
    notebook = nbformat.read(exported, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(ask))
    nbformat.write(notebook, exported)
    done = run_hosted(exported, folder, python=sys.executable, path=stub)
    assert "flowrl_lab is ready" in printed(done, 1)
    assert "Installing" not in printed(done, 1)
    assert "plots     svg" in printed(done, 2)  # Colab's page need not load a widget
    assert Path(json.loads(printed(done, -1))).is_relative_to(folder)
    assert (folder / "flowrl_progress.json").is_file()


@pytest.fixture(scope="session")
def colab_python(tmp_path_factory) -> str:
    """An environment with what Colab ships and nothing else."""
    folder = tmp_path_factory.mktemp("colab") / "environment"
    venv.create(folder, with_pip=True)
    windows = sys.platform == "win32"
    python = folder / ("Scripts/python.exe" if windows else "bin/python")
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", TORCH, "-r", PINNED], check=True
    )
    return str(python)


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_notebook_runs_where_only_colabs_packages_are(
    path, colab_python, wheel, tmp_path, monkeypatch
):
    monkeypatch.setattr(
        "flowrl_lab.integrations.colab.export.build_wheel", lambda: wheel
    )
    exported = export_notebook(path, tmp_path / "colab" / path.name)
    folder, stub = tmp_path / "content", write_stub(tmp_path / "stub")
    folder.mkdir()
    held = read_versions(colab_python)
    done = run_hosted(exported, folder, python=colab_python, path=stub)
    assert "flowrl_lab is ready" in printed(done, 1)
    after = read_versions(colab_python)
    kept = set(first_cell.KEPT) & held.keys()
    assert {"torch", "numpy", "pillow", "ipywidgets"} <= kept
    assert {name: after[name] for name in kept} == {name: held[name] for name in kept}


def read_versions(python: str) -> dict[str, str]:
    done = subprocess.run(
        [python, "-m", "pip", "list", "--format", "json"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {row["name"].lower(): row["version"] for row in json.loads(done.stdout)}


def test_the_requirements_are_those_of_the_project():
    wanted = read_requirements()
    assert any(text.startswith("torch") for text in wanted)
    assert any(text.startswith("anywidget") for text in wanted)
    assert any(text.startswith("sacrebleu") for text in wanted)  # notebook 10
    assert not any(text.startswith("flowrl") for text in wanted)

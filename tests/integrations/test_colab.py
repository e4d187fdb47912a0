"""Notebooks for upload: what travels, what is installed, what stays as it is."""

from __future__ import annotations

import ast
import base64
import hashlib
import importlib.metadata
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import nbformat
import pytest
from hosted import printed, run_hosted, write_stub

from flowrl_lab.__main__ import main
from flowrl_lab.integrations.colab import (
    export,
    export_notebook,
    first_cell,
    git_badge,
    second_cell,
)
from flowrl_lab.integrations.colab.export import (
    SECOND_TITLE,
    TITLE,
    _read_glossary,
    find_requirements,
    pack,
    select_data,
)

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FIRST = ROOT / "notebooks" / "00_start_here.ipynb"
PINNED = ROOT / "tests" / "integrations" / "colab" / "pip-freeze.txt"
TORCH = "torch==2.13.0"
PYTHON = "python3.13"
SMALL = ("00", "01", "03", "05")  # those that need no trained model


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Path:
    """Notebook 00 for upload."""
    return export_notebook(FIRST, tmp_path_factory.mktemp("colab") / FIRST.name)


def sources(path: Path) -> list[str]:
    """The text of the cells before the notebook's own."""
    return [cell.source for cell in nbformat.read(path, as_version=4).cells[:2]]


def carried(path: Path) -> tuple[bytes, str]:
    """What the second cell carries, and the sum that it gives for it."""
    *_, assigned, call = ast.parse(sources(path)[1]).body
    return base64.b85decode(assigned.value.value), call.value.args[1].value


# ------------------------------------------------------------------------- export


def test_the_first_cells_set_up_and_the_rest_is_the_notebook(exported):
    before, after = (nbformat.read(path, as_version=4) for path in (FIRST, exported))
    nbformat.validate(after)
    first, second = sources(exported)
    assert first.startswith(TITLE) and second.startswith(SECOND_TITLE)
    theirs, ours = (
        [cell.source for cell in notebook.cells if cell.cell_type == "code"]
        for notebook in (before, after)
    )
    assert ours[2:] == theirs
    with pytest.raises(ValueError, match="exists"):
        export_notebook(FIRST, exported)


@pytest.mark.parametrize("package", ["", "flowrl-lab @ git+https://a.org/b/c@main"])
def test_the_first_cell_can_be_read(package):
    lines = export._first_cell(package).source.splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 88


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_uploaded_is_small(path, tmp_path):
    by_name = export_notebook(path, tmp_path / "a.ipynb", package="flowrl-lab==0.1.0")
    assert by_name.stat().st_size < 1e6 / 2
    code = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    weight = sum(p.stat().st_size for p in select_data("\n".join(code)))
    assert (weight < 1e6) == path.name.startswith(SMALL)  # what a model weighs
    curves = [p for p in select_data("\n".join(code)) if p.parent.name == "curves"]
    assert bool(curves) == ("load_curves(" in "".join(code))


def test_the_library_travels_whole(exported):
    packed, sha256 = carried(exported)
    assert exported.stat().st_size < 1e6
    assert hashlib.sha256(packed).hexdigest() == sha256
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        inside = set(archive.getnames())
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "flowrl_lab").rglob("*")
        if path.suffix in (".py", ".js", ".css", ".json")
    }
    assert wanted <= inside
    assert pack([]) == pack([])  # the same sources give the same notebook


@pytest.mark.parametrize(
    ("source", "there", "not_there"),
    [
        ("preset('landscape', name)", (), ("make_number_tiny_lm",)),
        ("RunScrubber()", ("explorer",), ("make_number_tiny_lm",)),
        ('load_protocol("real_models")', ("study",), ("explorer",)),
        (
            'Run(preset("make_number", "grpo")); load_recorded("make_number")',
            ("make_number_tiny_lm", "results"),
            ("explorer",),
        ),
        ('load_recorded("make_number")', ("results",), ("make_number_tiny_lm",)),
        ('load_tiny_lm(load_task("programs"))', ("programs_tiny_lm",), ("explorer",)),
        ('Run(preset("sums_57", "grpo"))', ("sums_tiny_lm",), ("explorer",)),
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
    entries = _read_glossary()
    assert entries["kl-penalty"].startswith("### KL penalty\n")
    assert "reinforce-pp" in entries and "<a id" not in "".join(entries.values())


def test_drawings_travel_inside_the_text(tmp_path):
    (tmp_path / "drawings").mkdir()
    (tmp_path / "drawings" / "a.svg").write_bytes(b"<svg/>")
    text = "![one](drawings/a.svg) and ![two](drawings/gone.svg)"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
    nbformat.write(notebook, tmp_path / "a.ipynb")
    out = tmp_path / "out" / "a.ipynb"
    export_notebook(tmp_path / "a.ipynb", out, package="flowrl-lab")
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
    first, second = sources(out / FIRST.name)
    wanted = "flowrl-lab @ git+https://github.com/someone/a-fork@main"
    assert f"set_up(NEEDED, '--no-deps', {wanted!r})".replace("'", '"') in (
        first.replace("'", '"')
    )
    assert SECOND_TITLE not in second
    with pytest.raises(ValueError, match="OWNER/NAME"):
        git_badge("x.ipynb", repository="not a repository")


def test_this_version_is_installed_by_its_pinned_name(tmp_path, capsys):
    assert main(["colab", str(FIRST), "--out", str(tmp_path / "out"), "--pip"]) == 0
    version = importlib.metadata.version("flowrl-lab")
    assert f'"flowrl-lab=={version}")' in sources(tmp_path / "out" / FIRST.name)[
        0
    ].replace("'", '"')
    assert "Upload one" in capsys.readouterr().out


# ------------------------------------------------------------------------- set-up


@pytest.fixture
def installed(monkeypatch) -> dict[str, str]:
    """The versions that this session seems to have."""
    versions: dict[str, str] = {}
    monkeypatch.setattr(first_cell, "find", versions.get)
    return versions


@pytest.fixture
def pip(monkeypatch) -> list[list[str]]:
    """The commands that the first cell runs; each succeeds."""
    calls: list[list[str]] = []

    def run(command, **_options):
        calls.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(first_cell.subprocess, "run", run)
    return calls


HOST = {"torch": "2.11.0+cu128", "numpy": "2.0.2", "ipywidgets": "7.7.1"}


def test_only_what_is_missing_or_too_old_is_installed_and_the_host_is_held(
    installed, pip, monkeypatch
):
    monkeypatch.setenv("FLOWRL_PROGRESS", "x")
    installed |= {**HOST, "plotly": "5.24.1", "peft": "0.21.2"}
    for name in ("plotly", "jaxtyping"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    needed = "torch>=2.13,<2.14 plotly>=7.1,<8 peft>=0.21,<0.22 jaxtyping>=0.3 "
    first_cell.set_up(needed + "ipywidgets>=8.1.9,<9", "--no-deps", "flowrl-lab==0.1.0")
    held = [f"{name}=={version}" for name, version in HOST.items()]
    packages, itself = (command[5:] for command in pip)
    assert packages == ["plotly<8,>=7.1", "jaxtyping>=0.3", *held]
    assert itself == ["--no-deps", "flowrl-lab==0.1.0", *held]


def test_what_pip_says_is_passed_on(monkeypatch):
    def fail(command, **_options):
        return subprocess.CompletedProcess(command, 1, "", "no network\n")

    monkeypatch.setattr(first_cell.subprocess, "run", fail)
    with pytest.raises(first_cell.NotSetUp, match=r"(?s)Fix: .*no network"):
        first_cell.pip_install("plotly>=7.1,<8")


def test_a_restart_is_asked_for_before_any_download(installed, pip, monkeypatch):
    installed["plotly"] = "5.24.1"
    monkeypatch.setitem(sys.modules, "plotly", sys)
    with pytest.raises(first_cell.NotSetUp, match=r"old plotly.*\n.*Restart"):
        first_cell.set_up("plotly>=7.1,<8")
    assert pip == []


def test_what_is_asked_for_can_be_found_here():
    assert first_cell.find("no-such-package") is None
    assert first_cell.find("torch") == importlib.metadata.version("torch")


def test_progress_goes_to_a_mounted_drive(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FLOWRL_PROGRESS", "")
    monkeypatch.delenv("FLOWRL_PROGRESS")
    first_cell.set_up("", drive=str(tmp_path))
    assert os.environ["FLOWRL_PROGRESS"] == str(tmp_path / "flowrl_progress.json")
    assert str(tmp_path) in capsys.readouterr().out


def test_what_arrives_damaged_is_refused_and_the_rest_is_left_alone(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", "theirs")
    monkeypatch.setattr(sys, "path", list(sys.path))
    data = sorted((ROOT / "data" / "explorer").iterdir())
    packed, folder = pack(data), tmp_path / "course"
    text, digest = base64.b85encode(packed).decode(), hashlib.sha256(packed).hexdigest()
    (folder / "runs").mkdir(parents=True)
    (folder / "runs" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="upload"):
        second_cell.unpack(text, "0" * 64, folder)
    assert not (folder / "flowrl_lab").exists()
    second_cell.unpack(text, digest, folder)
    second_cell.unpack(text, digest, folder)  # run twice, it is the same
    there = folder / "flowrl_lab" / "_course" / "data" / "explorer"
    assert {p.name: p.read_bytes() for p in there.iterdir()} == {
        p.name: p.read_bytes() for p in data
    }
    assert (folder / "runs" / "mine.txt").read_text() == "mine"
    assert sys.path[0] == str(folder)
    assert os.environ["PYTHONPATH"].split(os.pathsep)[-1] == "theirs"


# --------------------------------------------------------------------- the real thing


@pytest.mark.slow
def test_it_runs_to_the_end_from_an_empty_folder(exported, tmp_path):
    """In this environment, which lacks nothing; the library is the carried one."""
    folder, stub = tmp_path / "content", write_stub(tmp_path / "stub")
    folder.mkdir()
    ask = "\nimport json, flowrl_lab\nprint(json.dumps(flowrl_lab.__file__))"
    notebook = nbformat.read(exported, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(ask))
    nbformat.write(notebook, asking := tmp_path / "asking.ipynb")
    done = run_hosted(asking, folder, python=sys.executable, path=stub)
    assert "Everything needed is here" in printed(done, 1)
    assert "Installing" not in printed(done, 1)
    assert "flowrl_lab is ready" in printed(done, 2)
    (plots,) = (x for x in printed(done, 3).splitlines() if x.startswith("plots "))
    assert "widget" not in plots  # Colab's page need not load one
    assert Path(json.loads(printed(done, -1))).is_relative_to(folder)
    assert (folder / "flowrl_progress.json").is_file()


@pytest.fixture(scope="session")
def colab_python(tmp_path_factory) -> str:
    """An environment with what Colab ships and nothing else, on its Python if here."""
    folder = tmp_path_factory.mktemp("colab") / "environment"
    # A version manager's stand-in is found, too, where that version is not switched on.
    found = shutil.which(PYTHON) or sys.executable
    runs = subprocess.run([found, "--version"], capture_output=True).returncode == 0
    base = found if runs else sys.executable
    subprocess.run([base, "-m", "venv", folder], check=True)
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
    path, colab_python, tmp_path
):
    exported = export_notebook(path, tmp_path / "colab" / path.name)
    folder, stub = tmp_path / "content", write_stub(tmp_path / "stub")
    folder.mkdir()
    held = read_versions(colab_python)
    done = run_hosted(exported, folder, python=colab_python, path=stub)
    assert "flowrl_lab is ready" in printed(done, 2)
    after = read_versions(colab_python)
    kept = set(first_cell.KEPT.split()) & held.keys()
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
    wanted = find_requirements()
    assert any(text.startswith("torch") for text in wanted)
    assert any(text.startswith("anywidget") for text in wanted)
    assert any(text.startswith("sacrebleu") for text in wanted)  # notebook 10
    assert not any(text.startswith(("flowrl", "jupyterlab")) for text in wanted)

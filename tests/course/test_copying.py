"""The course in a folder of one's own: nothing of the learner's is overwritten."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from flowrl_lab import __main__ as cli
from flowrl_lab.commands.notebooks import FIRST, jupyter_command
from flowrl_lab.course import copying, doctor
from flowrl_lab.course.copying import copy_course

ROOT = Path(__file__).resolve().parents[2]


def test_work_in_a_notebook_stays_and_what_is_untouched_is_renewed(
    tmp_path, monkeypatch, capsys
):
    folder = tmp_path / "mine"
    first = copy_course(folder)
    assert FIRST in first.new and "docs/your_own_task.md" in first.new
    assert first.kept == ()
    assert (folder / FIRST).read_bytes() == (ROOT / FIRST).read_bytes()
    (folder / FIRST).write_text("my work")
    (folder / "notebooks" / "glossary.md").unlink()
    # An earlier version's file that nobody has touched: as if it had been other then.
    page = "docs/runs.md"
    (folder / page).write_text("of an earlier version")
    listed = json.loads((folder / copying.LIST).read_text())
    listed["files"][page] = copying._sha(b"of an earlier version")
    (folder / copying.LIST).write_text(json.dumps(listed))
    assert cli.main(["notebooks", str(folder), "--copy-only"]) == 0
    said = capsys.readouterr().out
    assert "2 files of the course copied" in said and f"as you have it: {FIRST}" in said
    assert (folder / FIRST).read_text() == "my work"
    assert (folder / page).read_bytes() == (ROOT / page).read_bytes()
    monkeypatch.setattr(copying, "_version", lambda: "0.0.1")
    with pytest.raises(ValueError, match=r"was filled by version .* at most 0\.0\.1"):
        copy_course(folder)


def test_a_file_and_the_course_itself_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="a file; expected a folder"):
        copy_course(tmp_path / "file")
    with pytest.raises(ValueError, match="where the course itself lies"):
        copy_course(ROOT)


def test_jupyterlab_opens_on_the_copy_with_settings_of_its_own(tmp_path):
    words = ["notebooks", str(tmp_path), "--no-browser", "--port", "9001"]
    command = jupyter_command(cli.build_parser().parse_args(words))
    assert f"--ServerApp.root_dir={tmp_path}" in command
    assert f"--LabApp.default_url=/lab/tree/{FIRST}" in command
    assert command[-2:] == ["--no-browser", "--port=9001"]
    copy_course(tmp_path)
    places = dict(p.split("=") for p in command if "_dir=" in p)
    look = Path(places["--LabApp.workspaces_dir"]) / Path(copying.WORKSPACE).name
    left = json.loads(look.read_text())["data"]["layout-restorer:data"]["left"]
    assert left["current"] == "@jupyterlab/toc:plugin"
    overrides = Path(places["--LabApp.app_settings_dir"]) / "overrides.json"
    assert overrides.read_bytes() == (ROOT / ".jupyter/overrides.json").read_bytes()


@pytest.mark.parametrize(("user", "allowed"), [(0, True), (1000, False)])
def test_jupyterlab_opens_for_the_root_of_a_container(monkeypatch, user, allowed):
    monkeypatch.setattr(os, "geteuid", lambda: user, raising=False)
    command = jupyter_command(cli.build_parser().parse_args(["notebooks"]))
    assert ("--allow-root" in command) is allowed


def test_an_installed_package_tells_its_extras_apart(monkeypatch):
    """Packages of extras that doctor does not show are not the core's."""

    class Metadata:
        def get_all(self, _name):
            return ["lm", "otter"]

    required = [
        "torch<3,>=2.11",
        'peft<1; extra == "lm"',
        'otter-grader; extra == "otter"',
    ]
    required += ['colorama>=1; sys_platform == "no such system"']
    monkeypatch.setattr(doctor.importlib.metadata, "metadata", lambda _name: Metadata())
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda _name: required)
    groups = doctor._read_installed_requirements()
    assert groups == {
        "": ["torch<3,>=2.11"],
        "lm": ["peft<1"],
        "otter": ["otter-grader"],
    }

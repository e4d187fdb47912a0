"""The doctor: it must see what is broken, and say what mends it."""

from __future__ import annotations

import builtins
import hashlib
import importlib
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from flowrl_lab.course import doctor
from flowrl_lab.course.doctor import Check

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def shipped(tmp_path) -> Path:
    """A data folder with one set of two files, listed in both accepted forms."""
    folder = tmp_path / "data" / "numbers"
    folder.mkdir(parents=True)
    hashes = {}
    for name in ("model.bin", "notes.txt"):
        (folder / name).write_bytes(name.encode() * 1000)
        hashes[name] = hashlib.sha256(name.encode() * 1000).hexdigest()
    files = {
        "model.bin": hashes["model.bin"],
        "notes.txt": {"sha256": hashes["notes.txt"].upper(), "bytes": 9000},
    }
    (folder / "provenance.json").write_text(json.dumps({"files": files}))
    return tmp_path / "data"


# ------------------------------------------------------------------------ the whole


def test_nothing_is_broken_where_the_tests_run():
    checks = doctor.run_doctor()
    assert [check for check in checks if check.status == "broken"] == []
    names = " ".join(check.name for check in checks)
    for part in ("Python", "torch", "device", "memory", "disk", "live plots", "data/"):
        assert part in names
    assert "sandbox" in names


def test_the_exit_code_is_one_when_something_is_broken(monkeypatch, capsys):
    good = Check("disk", "ok", "80 GB free")
    bad = Check("plotly [notebooks]", "broken", "not installed", "python3 lab.py setup")
    monkeypatch.setattr(doctor, "run_doctor", lambda: [good])
    assert doctor.main() == 0
    assert "Everything needed is here" in capsys.readouterr().out
    monkeypatch.setattr(doctor, "run_doctor", lambda: [good, bad])
    assert doctor.main() == 1
    printed = capsys.readouterr().out
    assert "1 to mend: plotly [notebooks]" in printed
    assert "fix: python3 lab.py setup" in printed


def test_notes_alone_are_not_a_failure(monkeypatch):
    monkeypatch.setattr(doctor, "run_doctor", lambda: [Check("memory", "note", "?")])
    assert doctor.main() == 0


def test_the_table_is_aligned_and_hides_nothing():
    checks = [Check("a", "ok", "here"), Check("long name", "broken", "gone", "do so")]
    lines = doctor.format_checks(checks).splitlines()
    assert lines[0].index("here") == lines[1].index("gone")
    assert lines[2].strip() == "fix: do so"
    assert doctor.format_checks([]) == ""


def test_it_runs_as_a_program():
    result = subprocess.run(
        [sys.executable, "-m", "flowrl_lab.course.doctor"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Everything needed is here" in result.stdout


# ------------------------------------------------------------------------- versions


@pytest.mark.parametrize(
    ("version", "status"),
    [((3, 10, 9), "broken"), ((3, 11, 0), "ok"), ((4, 0, 0), "ok")],
)
def test_python_has_a_floor(version, status):
    assert doctor.check_python(version).status == status


@pytest.mark.parametrize(
    ("requirement", "extra", "status", "words"),
    [
        ("numpy>=1", "", "ok", ""),
        ("numpy>=1,<1.5", "", "note", "tested with <1.5,>=1"),
        ("no-such-package-here>=1", "lm", "broken", "not installed"),
        ("no-such-package-here>=1", "test", "note", "not installed"),
    ],
)
def test_packages_are_held_to_their_range(requirement, extra, status, words):
    check = doctor.check_package(Requirement(requirement), extra)
    assert check.status == status
    assert words in check.found
    assert bool(check.fix) == (status != "ok")
    assert check.name.endswith(f"[{extra}]") == bool(extra)


def test_ranges_of_a_clone_and_of_an_install_are_the_same(monkeypatch):
    """The installed metadata says what pyproject.toml says, extra by extra."""
    from_clone = doctor.read_requirements()
    groups = ("", "lm", "notebooks", "metrics", "sets", "gym", "trl", "trackers")
    assert {extra for _, extra in from_clone} == {*groups, "test"}
    lines = []
    for requirement, extra in from_clone:
        marker = f'; extra == "{extra}"' if extra else ""
        lines.append(f"{requirement}{marker}")
    monkeypatch.setattr(importlib.metadata, "requires", lambda _name: lines)
    monkeypatch.setattr(doctor, "__file__", "/nowhere/flowrl_lab/course/doctor.py")
    assert doctor.read_requirements() == from_clone


# ---------------------------------------------------------------------- live plots


def test_live_plots_need_their_packages(monkeypatch):
    assert doctor.check_widgets().status == "ok"
    real_import = importlib.import_module

    def without_anywidget(name, *rest):
        if name == "anywidget":
            raise ModuleNotFoundError("No module named 'anywidget'", name=name)
        return real_import(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without_anywidget)
    check = doctor.check_widgets()
    assert (check.status, check.found) == ("broken", "No module named 'anywidget'")


def test_no_front_end_in_the_environment_is_a_note(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    assert doctor.check_widgets().status == "note"


# ----------------------------------------------------------------------------- data


def test_shipped_files_are_recognised(shipped):
    (check,) = doctor.check_data(shipped)
    assert (check.name, check.status) == ("data/numbers", "ok")
    assert "2 files" in check.found


def test_a_changed_byte_is_seen(shipped):
    path = shipped / "numbers" / "model.bin"
    content = bytearray(path.read_bytes())
    content[4000] ^= 1
    path.write_bytes(content)
    (check,) = doctor.check_data(shipped)
    assert check.status == "broken"
    assert "model.bin is not the file that shipped" in check.found
    assert check.fix == "git checkout -- data/numbers"


def test_who_installed_the_wheel_is_told_to_mend_it_with_pip(shipped, monkeypatch):
    monkeypatch.setattr("flowrl_lab._files._in_clone", lambda: False)
    (shipped / "numbers" / "notes.txt").unlink()
    missing = doctor.check_package(Requirement("no-such-package>=1"), "lm")
    checks = [*doctor.check_data(shipped), *doctor.check_data(None), missing]
    assert [check.status for check in checks] == ["broken"] * 3
    for check in checks:
        assert check.fix.startswith("pip install"), check
        assert "lab.py" not in check.fix and "git" not in check.fix, check


def test_a_missing_file_is_seen(shipped):
    (shipped / "numbers" / "notes.txt").unlink()
    (check,) = doctor.check_data(shipped)
    assert (check.status, check.found) == ("broken", "notes.txt is missing")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"files": {"a": {}}}', "{}", '{"files": {}}', '{"files": 3}']
)
def test_a_damaged_list_is_broken_not_a_crash(shipped, text):
    (shipped / "numbers" / "provenance.json").write_text(text)
    (check,) = doctor.check_data(shipped)
    assert check.status == "broken"
    assert "provenance.json" in check.found


def test_no_data_at_all_is_broken(tmp_path, monkeypatch):
    assert doctor.check_data(tmp_path)[0].status == "broken"
    monkeypatch.setenv("FLOWRL_DATA", str(tmp_path / "nowhere"))
    assert doctor.check_data(doctor._find_data_folder())[0].status == "broken"


def test_a_machine_without_a_sandbox_is_told_so_and_why(monkeypatch):
    import flowrl_lab.sandbox

    problem = "the sandbox needs Linux, this is Darwin. Fix: use Colab."
    monkeypatch.setattr(flowrl_lab.sandbox, "sandbox_problem", lambda: problem)
    check = doctor.check_sandbox()
    assert (check.status, check.fix) == ("note", "use Colab.")
    assert check.found == "the sandbox needs Linux, this is Darwin."


@pytest.mark.parametrize("weak", [(), ("memory is looked at", "files are looked at")])
def test_what_the_kernel_does_not_hold_in_the_sandbox_is_named(monkeypatch, weak):
    import flowrl_lab.sandbox

    monkeypatch.setattr(flowrl_lab.sandbox, "sandbox_problem", lambda: None)
    monkeypatch.setattr(flowrl_lab.sandbox, "sandbox_weaknesses", lambda: weak)
    check = doctor.check_sandbox()
    assert check.status == "ok"
    assert check.found.endswith(
        "but memory is looked at, files are looked at" if weak else "holds its limits"
    )


def test_looking_prints_nothing(monkeypatch):
    monkeypatch.setattr(builtins, "print", lambda *_a, **_k: pytest.fail("printed"))
    doctor.run_doctor()


def test_at_a_glance_it_is_one_line_that_opens_where_something_is_broken(monkeypatch):
    shown: list[dict] = []
    monkeypatch.setattr(doctor, "show", shown.append)
    good = Check("Python", "ok", "3.11")
    bad = Check("torch", "broken", "not <installed>", "pip install torch")
    for checks in ([good], [good, bad]):
        monkeypatch.setattr(doctor, "run_doctor", lambda found=checks: found)
        doctor.glance()
    well, ill = shown
    assert well["text/plain"] == "1 checks: everything needed is here"
    assert "<details><summary>1 checks" in well["text/html"]
    assert "Python" in well["text/html"]
    assert "1 of 2 checks found something to mend" in ill["text/plain"]
    assert "fix: pip install torch" in ill["text/plain"]
    assert (
        "<details open>" in ill["text/html"]
        and "&lt;installed&gt;" in (ill["text/html"])
    )

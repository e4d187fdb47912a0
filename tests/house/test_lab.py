"""The launcher: what it installs, what it leaves alone, and what it says."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from collections import namedtuple
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from flowrl_lab.policies.wheel import cache_folder

ROOT = Path(__file__).resolve().parents[2]
SOURCE = (ROOT / "lab.py").read_text(encoding="utf-8")
NOWHERE = "http://127.0.0.1:9/simple"  # nothing listens on the discard port


@pytest.fixture
def lab() -> ModuleType:
    """lab.py, freshly loaded."""
    spec = importlib.util.spec_from_file_location("lab", ROOT / "lab.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ended(status: int) -> SimpleNamespace:
    """A process that is over."""
    over = {"wait": lambda **_given: status, "poll": lambda: status}
    return SimpleNamespace(returncode=status, **over)


@pytest.fixture
def steps(lab, monkeypatch) -> list[tuple[str, list[str]]]:
    """Every installation step that would run, recorded and reported as done."""
    taken = []

    def run_step(name, command, log, must=True):
        del log, must
        taken.append((name, [str(part) for part in command]))
        return True

    def start_step(command, log):
        run_step("in the background", command, log)
        return ended(0)

    monkeypatch.setattr(lab, "run_step", run_step)
    monkeypatch.setattr(lab, "start_step", start_step)
    monkeypatch.setattr(lab, "has_gpu", lambda: False)
    monkeypatch.setattr(lab, "check_installed", lambda _folder: None)
    monkeypatch.setattr(lab.shutil, "which", lambda _name: None)
    monkeypatch.setattr(lab.sys, "platform", "linux")
    return taken


# ----------------------------------------------------------- old and bare Pythons


def test_an_old_python_can_read_the_file_and_gets_a_message():
    ast.parse(SOURCE, feature_version=(3, 6))
    assert SOURCE.isascii()  # an old console may not print anything else
    code = (
        "import sys; sys.version_info = (3, 8, 2);"
        "exec(compile(open('lab.py').read(), 'lab.py', 'exec'))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 1
    assert "needs Python 3.11 or newer; this is Python 3.8" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_version_is_checked_before_anything_else_is_imported():
    body = ast.parse(SOURCE).body
    kinds = [type(node).__name__ for node in body[:3]]
    assert kinds == ["Expr", "Import", "If"]  # docstring, import sys, the check


def test_the_launcher_uses_the_standard_library_only():
    names = set()
    for node in ast.walk(ast.parse(SOURCE)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    assert names <= set(sys.stdlib_module_names)


# ------------------------------------------------------------------ command line


@pytest.mark.parametrize("argv", [[], ["lab"], ["--no-browser"], ["--port", "9000"]])
def test_without_a_command_it_opens_the_lab(lab, argv):
    options, rest = lab.parse_arguments(argv)
    assert (options.command, rest) == ("lab", [])
    assert options.venv == ROOT / ".venv"


def test_options_stand_before_or_after_the_command(lab, tmp_path):
    before, _ = lab.parse_arguments(["--venv", str(tmp_path), "test", "--full"])
    after, _ = lab.parse_arguments(["test", "--full", "--venv", str(tmp_path)])
    assert before == after
    assert (after.command, after.full, after.venv) == ("test", True, tmp_path)


def test_test_hands_everything_else_to_pytest(lab):
    _, rest = lab.parse_arguments(
        ["test", "tests/house/test_lab.py", "-k", "disk", "-x"]
    )
    assert rest == ["tests/house/test_lab.py", "-k", "disk", "-x"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["lab", "--prot", "9000"], "unknown arguments for 'lab'"),
        (["--full"], "--full belongs to 'test'"),
        (["tests"], "invalid choice: 'tests'"),
    ],
)
def test_a_mistyped_command_line_is_refused(lab, argv, message, capsys):
    with pytest.raises(SystemExit):
        lab.parse_arguments(argv)
    assert message in capsys.readouterr().err


def test_the_whole_suite_takes_the_notebooks_along(lab):
    options, rest = lab.parse_arguments(["test", "-x"])
    command = [str(part) for part in lab.build_pytest_command("py", options, rest)]
    assert "-x" in command
    folders = {path.parent for path in (ROOT / "tests").glob("*/test_*.py")}
    assert {str(folder) for folder in folders} < set(command)
    assert "--nbval-cell-timeout=300" in command
    notebooks = {path.name for path in (ROOT / "notebooks").glob("*.ipynb")}
    copies = {str(lab.COPIES / name) for name in notebooks}
    assert {part for part in command if part.endswith(".ipynb")} == copies
    assert lab.build_test_environment(options)["FLOWRL_BUDGET"] == "quick"


def test_notebooks_are_copied_before_they_are_tested(lab, monkeypatch, tmp_path):
    monkeypatch.setattr(lab, "COPIES", tmp_path / "copies")  # others are in use
    lab.COPIES.mkdir()
    commands = []

    def run(command, _environment=None):
        commands.append([str(part) for part in command])
        return 0

    monkeypatch.setattr(lab, "run_command", run)
    assert lab.run_tests("py", *lab.parse_arguments(["test", "--full"])) == 0
    copy = [str(ROOT / "tests" / "support" / "notebook_copies.py"), str(lab.COPIES)]
    assert [command[1] for command in commands] == [copy[0], "-m"]
    assert commands[0][1:] == copy and not lab.COPIES.exists()
    commands.clear()
    lab.run_tests("py", *lab.parse_arguments(["test", "tests/house/test_lab.py"]))
    assert [command[1] for command in commands] == ["-m"]
    monkeypatch.setattr(lab, "run_command", lambda *_: 1)
    assert lab.run_tests("py", *lab.parse_arguments(["test"])) == 1


def test_given_paths_replace_the_suite_and_full_means_full(lab):
    options, rest = lab.parse_arguments(
        ["test", "--full", "tests/house/test_lab.py::test_a"]
    )
    command = [str(part) for part in lab.build_pytest_command("py", options, rest)]
    assert command[-1] == "tests/house/test_lab.py::test_a"
    assert "tests" not in command
    assert "--nbval-cell-timeout=1200" in command
    environment = lab.build_test_environment(options)
    assert (environment["FLOWRL_BUDGET"], environment["FLOWRL_HEADLESS"]) == (
        "full",
        "1",
    )


@pytest.mark.parametrize(
    ("rest", "paths"),
    [
        (
            ["-x", "tests/house/test_lab.py::test_a[1]"],
            ["tests/house/test_lab.py::test_a[1]"],
        ),
        (["--ignore", "tests/browser", "-k", "tests"], []),
        (["--ignore=tests/browser"], []),
        (["-k", "lab", "tests", "notebooks"], ["tests", "notebooks"]),
    ],
)
def test_values_of_options_are_not_taken_for_paths(lab, rest, paths):
    assert lab.find_paths(rest) == paths


def test_jupyterlab_opens_the_first_notebook_without_its_news(
    lab, monkeypatch, tmp_path
):
    words = ["--no-browser", "--port", "9001", "--venv", str(tmp_path / "venv")]
    options, _ = lab.parse_arguments(words)
    monkeypatch.setattr(lab.os, "geteuid", lambda: 1000, raising=False)
    command = lab.build_jupyter_command("py", options)
    assert "--port=9001" in command
    assert "--no-browser" in command
    assert "--allow-root" not in command
    settings = next(p for p in command if "app_settings_dir" in p).split("=")[1]
    overrides = json.loads((Path(settings) / "overrides.json").read_text())
    news = overrides["@jupyterlab/apputils-extension:notification"]
    assert news["fetchNews"] == "false"
    if (ROOT / lab.FIRST_NOTEBOOK).exists():
        assert f"--LabApp.default_url=/lab/tree/{lab.FIRST_NOTEBOOK}" in command
    place = next(p for p in command if "workspaces_dir" in p).split("=")[1]
    assert Path(place).parent == tmp_path / "venv"  # not the user's own


def test_the_first_look_is_written_once_and_then_left_as_it_is(lab, tmp_path):
    from jupyterlab_server.workspaces_handler import WorkspacesManager

    place = lab.write_workspace(tmp_path)
    look = WorkspacesManager(str(place)).load("default")  # JupyterLab's own reading
    layout = look["data"]["layout-restorer:data"]
    assert layout["left"]["current"] == "@jupyterlab/toc:plugin"
    assert layout["relativeSizes"][0] > 0.25
    moved = place / lab.WORKSPACE_FILE
    moved.write_text('{"data": {}, "metadata": {"id": "default"}}')
    assert lab.write_workspace(tmp_path) == place
    assert json.loads(moved.read_text())["data"] == {}


def test_the_learners_file_browser_shows_nothing_of_the_instructors(lab):
    from jupyter_server.services.contents.largefilemanager import LargeFileManager
    from traitlets.config import Application

    options, _ = lab.parse_arguments([])
    command = lab.build_jupyter_command("py", options)
    given = Application()
    given.classes = [LargeFileManager]
    given.parse_command_line([part for part in command if "hide_globs" in part])
    contents = LargeFileManager(config=given.config, root_dir=str(ROOT))
    seen = contents.get("notebooks/assignments")["content"]
    assert [entry["name"] for entry in seen] == ["student"]
    assert contents.should_list("glossary.md") and not contents.should_list("x~")
    assert not contents.should_list("instructor")  # what `assign build` makes


# -------------------------------------------------------------- what is installed


def test_cpu_torch_first_then_the_rest(lab, steps, tmp_path):
    folder = tmp_path / "venv"
    lab.prepare_environment(folder, ("notebooks",))
    names = [name for name, _ in steps]
    assert names == [
        "making the environment",
        "installing torch (CPU build)",
        "installing flowrl_lab[notebooks]",
        "in the background",
    ]
    assert "warm_up()" in steps[3][1][-1] and "peft" in steps[3][1][-1]
    torch = steps[1][1]
    assert torch[-1] == lab.TORCH
    assert torch[torch.index("--index-url") + 1] == lab.TORCH_CPU_INDEX
    assert torch[torch.index("--retries") + 1] == "0"
    assert "--no-deps" in torch
    for _, command in steps[1:3]:
        assert command[command.index("--constraint") + 1] == str(lab.LOCK)
    assert steps[2][1][-2:] == ["-e", f"{ROOT}[notebooks]"]
    state = lab.read_state(folder)
    assert state == {
        "fingerprint": lab.compute_fingerprint(),
        "extras": ["notebooks"],
    }


def test_an_unreachable_cpu_index_leads_to_the_usual_one(lab, steps, monkeypatch):
    taken = lab.run_step

    def fail_on_cpu_index(name, command, log, must=True):
        taken(name, command, log, must)
        return "CPU" not in name

    monkeypatch.setattr(lab, "run_step", fail_on_cpu_index)
    lab.install_torch(Path("venv"), gpu=False)
    assert [name for name, _ in steps] == [
        "installing torch (CPU build)",
        f"installing {lab.TORCH}",
    ]
    assert "--index-url" not in steps[1][1]
    assert "--no-deps" not in steps[1][1]


@pytest.mark.parametrize(
    ("system", "gpu"), [("linux", True), ("darwin", False), ("win32", False)]
)
def test_elsewhere_the_usual_index_has_the_right_build(
    lab, steps, system, gpu, monkeypatch
):
    monkeypatch.setattr(lab.sys, "platform", system)
    lab.install_torch(Path("venv"), gpu=gpu)
    assert [name for name, _ in steps] == [f"installing {lab.TORCH}"]


def test_the_tests_packages_come_by_several_pips_at_once(lab, steps, tmp_path):
    folder = tmp_path / "venv"
    lab.prepare_environment(folder, ("notebooks", "test"))
    pips = [command for _, command in steps[2:6]]
    parts = [Path(command[-1]).read_text("utf-8").splitlines() for command in pips]
    for command in pips:
        assert command[command.index("--constraint") + 1] == str(lab.LOCK)
        assert "--no-deps" in command
    assert ["--only-binary" in command for command in pips] == [True] * 3 + [False]
    each = sorted(line for part in parts for line in part)
    locked = lab.LOCK.read_text("utf-8").splitlines()
    rest = {line for line in locked if line and not line.startswith("#")} - {*each}
    assert len(each) == len(set(each)) and not {*each} - {*locked}
    built = [line.partition("==")[0] for line in parts[3]]
    assert built == ["cellpylib", "pycosat", "zss"]
    # torch has a step of its own, and what needs those must not look whole
    left = sorted(line.partition("==")[0] for line in rest)
    own = ["reasoning-gym", "torch", "triton"]
    assert [n for n in left if not n.startswith(("nvidia-", "cuda-"))] == own
    assert [name for name, _ in steps[6:]] == [
        "in the background",
        "installing flowrl_lab[gym,notebooks,test]",
    ]


def test_pips_that_fail_or_are_stopped_leave_the_rest_to_the_next_step(
    lab, tmp_path, monkeypatch, capsys
):
    started = []

    def start_step(_command, _log):
        code = "import sys, time; time.sleep(60 * int(sys.argv[1])); sys.exit(1)"
        argv = [sys.executable, "-c", code, str(len(started))]
        started.append(subprocess.Popen(argv))
        return started[-1]

    def stop(process, _name, _started):
        if process is not started[0]:
            raise KeyboardInterrupt
        process.wait()

    monkeypatch.setattr(lab, "start_step", start_step)
    monkeypatch.setattr(lab, "wait_for", stop)
    with pytest.raises(KeyboardInterrupt):
        lab.install_locked(tmp_path)
    assert [process.poll() is None for process in started] == [False] * 4
    monkeypatch.setattr(lab, "start_step", lambda _command, _log: ended(1))
    monkeypatch.setattr(lab, "wait_for", lambda *_given: None)
    lab.install_locked(tmp_path)
    assert "not all done" in capsys.readouterr().out


def test_what_cannot_be_built_is_said_and_stops_nothing(
    lab, tmp_path, monkeypatch, capsys
):
    def run_step(name, _command, _log, must=True):
        fails = "[gym" in name
        assert not (fails and must)
        return not fails

    monkeypatch.setattr(lab, "run_step", run_step)
    monkeypatch.setattr(lab, "start_step", lambda _command, _log: ended(1))
    monkeypatch.setattr(lab, "check_installed", lambda _folder: None)
    lab.prepare_environment(tmp_path / "venv", ("notebooks", "test"))
    said = capsys.readouterr().out
    assert "not possible without a C compiler" in said
    assert "tried again when a notebook needs it" in said
    assert lab.read_state(tmp_path / "venv")["fingerprint"]


# ------------------------------------------------------- the model of notebook 9


def test_the_model_is_fetched_once_and_its_size_is_said(
    lab, steps, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("FLOWRL_CACHE", str(tmp_path))
    lab.fetch_model(Path("venv"))
    ((name, command),) = steps
    assert "93 MB" in name and command[1:] == ["-m", "flowrl_lab", "fetch-model"]
    assert "SmolLM2-135M" in capsys.readouterr().out
    (tmp_path / "smollm2-135m").mkdir()
    (tmp_path / "smollm2-135m" / "ready").touch()
    lab.fetch_model(Path("venv"))
    assert len(steps) == 1


def test_set_up_goes_on_without_the_model(lab, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FLOWRL_CACHE", str(tmp_path))
    monkeypatch.setattr(lab, "run_step", lambda *_step, must=True: must)
    lab.fetch_model(Path("venv"))
    assert "plays a recording" in capsys.readouterr().out


def test_who_uses_a_notebook_gets_the_model(lab, monkeypatch):
    fetched = []
    monkeypatch.setattr(lab, "fetch_model", lambda _folder: fetched.append(1))
    monkeypatch.setattr(lab, "prepare_environment", lambda *_given: Path("python"))
    monkeypatch.setattr(lab, "run_command", lambda *_given: 0)
    monkeypatch.setattr(lab, "run_tests", lambda *_given: 0)
    for words, count in (
        (["setup"], 1),
        ([], 1),
        (["test", "--full"], 1),
        (["test"], 0),
        (["doctor"], 0),
    ):
        fetched.clear()
        assert lab.main(words) == 0
        assert len(fetched) == count, words


@pytest.mark.parametrize("chosen", ["FLOWRL_CACHE", "XDG_CACHE_HOME", ""])
def test_the_launcher_looks_where_the_library_unpacks(
    lab, chosen, tmp_path, monkeypatch
):
    for name in ("FLOWRL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    if chosen:
        monkeypatch.setenv(chosen, str(tmp_path))
    assert lab.find_model() == cache_folder() / "smollm2-135m" / "ready"


# ------------------------------------------------------ pip's settings of the user's


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """A real environment with pip and nothing else."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    return folder


def make_wheel(folder: Path, name: str) -> None:
    """The smallest package that pip installs, without an index."""
    info = f"{name}-1.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n"
        )
        wheel.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\n"
            "Root-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{info}/RECORD", "")


NONE = ("dry-run", "no-dependencies")
INDEX = "[global]\nindex-url = https://mirror.example/simple\n"


@pytest.mark.parametrize(
    ("variables", "user_file", "named_file", "said"),
    [
        ({"PIP_USER": "1"}, "", "", ["PIP_USER"]),
        ({"PIP_TARGET": "{}"}, INDEX, None, ["PIP_TARGET"]),
        ({"PIP_PREFIX": "{}", "PIP_ROOT": "{}"}, "", INDEX, ["PIP_PREFIX", "PIP_ROOT"]),
        ({}, INDEX + "target = {}\n", None, ["global.target in pip's configuration"]),
        (
            {},
            "[install]\nuser = yes\n",
            INDEX + "[install]\nprefix = {}\n",
            ["install.prefix in pip's configuration"],
        ),  # instead of the user's file
        ({"PYTHONPATH": "{}"}, INDEX, None, ["PYTHONPATH"]),
        ({"PIP_DRY_RUN": "1"}, INDEX, None, ["PIP_DRY_RUN"]),
        (
            {"PIP_NO_DEPS": "1"},
            "[install]\nno-dependencies = yes\ndry_run = yes\n",
            None,
            ["PIP_NO_DEPS", *(f"install.{n} in pip's configuration" for n in NONE)],
        ),
        ({}, INDEX, None, []),
    ],
)
def test_pip_installs_into_the_environment_whatever_the_user_has_set(
    lab, bare, tmp_path, variables, user_file, named_file, said, monkeypatch, capsys
):
    elsewhere, name = tmp_path / "elsewhere", f"one{tmp_path.name.replace('-', '_')}"
    make_wheel(tmp_path, name)
    (bare / ("pip.ini" if os.name == "nt" else "pip.conf")).unlink(missing_ok=True)
    for variable in [
        key for key in os.environ if key.startswith(("PIP_", "PYTHONPATH"))
    ]:
        monkeypatch.delenv(variable)
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value.format(elsewhere))
    home = tmp_path / "home"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))  # Linux
    monkeypatch.setenv("APPDATA", str(home))  # Windows
    file = home / "pip" / ("pip.ini" if os.name == "nt" else "pip.conf")
    file.parent.mkdir(parents=True)
    file.write_text(user_file.format(elsewhere), encoding="utf-8")
    if named_file is not None:
        named = tmp_path / "named.conf"
        named.write_text(named_file.format(elsewhere), encoding="utf-8")
        monkeypatch.setenv("PIP_CONFIG_FILE", str(named))
    before = dict(os.environ)
    with lab.pip_kept_inside(bare):
        local = ("--no-index", "--find-links", tmp_path)
        subprocess.run(
            [str(part) for part in lab.pip_command(bare, *local, name)], check=True
        )
        command = [lab.find_python(bare), "-m", "pip", "config", "list"]
        listed = subprocess.run(command, capture_output=True, text=True).stdout
    assert list(bare.rglob(f"{name}.py")) and not elsewhere.exists()
    assert ("mirror.example" in listed) == (INDEX in f"{user_file}{named_file}")
    shown = capsys.readouterr().out
    assert ("not followed here: " + ", ".join(said) in shown) if said else not shown
    assert dict(os.environ) == before


def test_packages_that_went_elsewhere_are_noticed(lab, bare):
    with pytest.raises(lab.SetupError, match="does not find them"):
        lab.check_installed(bare)


# ------------------------------------------------------------------ starting again


def test_a_second_start_installs_nothing(lab, steps, tmp_path, monkeypatch):
    folder = tmp_path / "venv"
    monkeypatch.setattr(lab, "python_runs", lambda _folder: True)
    lab.prepare_environment(folder, ("notebooks", "test"))
    steps.clear()
    python = lab.prepare_environment(folder, ("notebooks",))
    assert steps == []
    assert python == lab.find_python(folder)


def test_more_extras_or_new_pins_update_in_place(lab, steps, tmp_path, monkeypatch):
    folder = tmp_path / "venv"
    monkeypatch.setattr(lab, "python_runs", lambda _folder: True)
    lab.prepare_environment(folder, ("notebooks",))
    (folder / "kept").touch()
    steps.clear()
    lab.prepare_environment(folder, ("test",))
    assert [name for name, _ in steps][-2:] == [
        "in the background",
        "installing flowrl_lab[gym,notebooks,test]",
    ]
    steps.clear()
    monkeypatch.setattr(lab, "TORCH", "torch==0.0")
    lab.prepare_environment(folder, ("notebooks",))
    assert steps[0][0] == "installing torch (CPU build)"
    assert (folder / "kept").exists()


def test_an_interrupted_install_is_made_anew(lab, steps, tmp_path, monkeypatch):
    folder = tmp_path / "venv"
    monkeypatch.setattr(lab, "python_runs", lambda _folder: True)

    def interrupt(*_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lab, "install_project", interrupt)
        with pytest.raises(KeyboardInterrupt):
            lab.prepare_environment(folder, ("notebooks",))
    (folder / "half a package").touch()
    assert not lab.is_ready(folder, ("notebooks",))
    steps.clear()
    lab.prepare_environment(folder, ("notebooks",))
    assert steps[0][0] == "making the environment"
    assert not (folder / "half a package").exists()
    assert lab.is_ready(folder, ("notebooks",))


def test_an_environment_whose_python_is_gone_is_made_anew(lab, steps, tmp_path):
    folder = tmp_path / "venv"
    lab.prepare_environment(folder, ("notebooks",))  # no interpreter: steps are fake
    steps.clear()
    lab.prepare_environment(folder, ("notebooks",))
    assert steps[0][0] == "making the environment"


# --------------------------------------------------------------- what is left alone


@pytest.mark.parametrize("content", ["pyvenv.cfg", "thesis.tex"])
def test_a_folder_that_is_not_ours_is_never_touched(lab, steps, tmp_path, content):
    (tmp_path / content).write_text("mine")
    with pytest.raises(
        lab.SetupError, match=r"was not made by lab.py.*\nFix: .*--venv"
    ):
        lab.prepare_environment(tmp_path, ("notebooks",))
    assert steps == []
    assert [path.name for path in tmp_path.iterdir()] == [content]


def test_a_file_in_the_way_is_refused(lab, steps, tmp_path):
    (tmp_path / "venv").write_text("mine")
    with pytest.raises(lab.SetupError, match=r"not made by lab\.py"):
        lab.prepare_environment(tmp_path / "venv", ("notebooks",))
    assert steps == []


def test_the_environment_that_runs_the_launcher_is_not_deleted(
    lab, tmp_path, monkeypatch
):
    lab.write_state(tmp_path, fingerprint="", extras=[])
    monkeypatch.setattr(lab.sys, "prefix", str(tmp_path))
    with pytest.raises(lab.SetupError, match=r"is the Python that runs lab\.py"):
        lab.remove_environment(tmp_path)
    assert tmp_path.exists()


def test_a_damaged_mark_is_still_our_mark(lab, tmp_path):
    (tmp_path / lab.STATE_FILE).write_text("{")
    assert lab.read_state(tmp_path) == {}
    assert not lab.is_ready(tmp_path, ())
    lab.remove_environment(tmp_path)
    assert not tmp_path.exists()


# ------------------------------------------------------------------- clear errors


def test_a_python_without_venv_is_told_the_package(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(
        lab.importlib.util, "find_spec", lambda name: None if name == "venv" else name
    )
    with pytest.raises(lab.SetupError, match="sudo apt install python3-venv"):
        lab.check_machine(tmp_path, gpu=False)


@pytest.mark.parametrize(("gpu", "needed"), [(False, "3 GB"), (True, "9 GB")])
def test_a_full_disk_is_seen_before_the_download(
    lab, tmp_path, monkeypatch, gpu, needed
):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(lab.shutil, "disk_usage", lambda _path: usage(9, 8, 1.2e9))
    folder = tmp_path / "not" / "yet"
    with pytest.raises(lab.SetupError, match=rf"1\.2 GB free; .* needs {needed}"):
        lab.check_machine(folder, gpu=gpu)
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize(
    ("output", "explanation"),
    [
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("[WinError 112] There is not enough space on the disk", "disk is full"),
        (
            "NewConnectionError: [Errno 111] Connection refused\n"
            "ERROR: No matching distribution found for torch==2.13.0",
            "cannot be reached",
        ),
        ("socket.gaierror: [Errno 11001] getaddrinfo failed", "cannot be reached"),
        ("SSLError(1, '[SSL: CERTIFICATE_VERIFY_FAILED]')", "PIP_CERT"),
        ("ERROR: No matching distribution found for torch==2.13.0", "Intel Macs"),
        ("ERROR: No matching distribution found for numpy==2.4.6", "lock.txt"),
        ("PermissionError: [Errno 13] Permission denied", "--venv"),
    ],
)
def test_pips_words_are_explained(lab, output, explanation):
    text = lab.explain_failure(output)
    assert explanation in text
    assert output.splitlines()[-1] in text


def test_an_unknown_failure_shows_the_last_lines_only(lab):
    output = "\n".join(f"line {n}" for n in range(100))
    text = lab.explain_failure(output)
    assert "line 99" in text
    assert "line 91\n" not in text


def test_a_step_keeps_its_output_and_tells_failure_from_success(lab, tmp_path, capsys):
    log = tmp_path / "install.log"
    good = [sys.executable, "-c", "print('all well')"]
    bad = [sys.executable, "-c", "import sys; sys.exit('Errno 28')"]
    assert lab.run_step("good", good, log)
    assert not lab.run_step("optional", bad, log, must=False)
    with pytest.raises(lab.SetupError, match=r"bad failed\.\nThe disk is full"):
        lab.run_step("bad", bad, log)
    assert "all well" in log.read_text()
    assert "good: done in" in capsys.readouterr().out


@pytest.mark.full
@pytest.mark.slow
def test_without_a_network_the_first_start_says_so_and_can_be_repeated(tmp_path):
    """A real environment, a real pip, and an index where nobody answers."""
    code = (
        "import sys, lab;"
        f"lab.TORCH_CPU_INDEX = {NOWHERE!r};"
        "sys.exit(lab.main(['setup', '--venv', sys.argv[1]]))"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PIP_")}
    environment |= {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": NOWHERE,
        "PIP_RETRIES": "1",
        "PATH": os.defpath,  # no uv, no nvidia-smi
    }
    for _ in range(2):
        result = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "venv")],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        assert result.returncode == 1, result.stdout
        assert "making the environment: done" in result.stdout
        assert "The first start needs the network" in result.stderr
        assert "Traceback" not in result.stderr


def test_main_turns_trouble_into_exit_codes(lab, monkeypatch, capsys):
    for error, code, words in [
        (lab.SetupError("no luck"), 1, "lab.py: no luck"),
        (OSError(28, "No space left on device"), 1, "disk is full"),
        (KeyboardInterrupt(), 130, "Start again to go on"),
    ]:

        def fail(*_arguments, error=error):
            raise error

        monkeypatch.setattr(lab, "prepare_environment", fail)
        assert lab.main(["setup"]) == code
        assert words in capsys.readouterr().err

"""The project's files agree with each other and with what the code imports."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
GROUPS = {"": PROJECT["dependencies"], **EXTRAS}

# What a distribution is called when it is imported, where the two differ.
IMPORT_NAMES = {"otter-grader": "otter", "pytest-xdist": "xdist"}
# Installed with a listed package that cannot do without it, so not listed again.
COMES_WITH = {
    "IPython": "ipykernel",
    "accelerate": "peft",
    "datasets": "trl",
    "huggingface_hub": "transformers",
    "jupyter_client": "jupyterlab",
    "jupyter_server": "jupyterlab",
    "jupyterlab_server": "jupyterlab",
    "nbclient": "jupyterlab",
    "nbformat": "jupyterlab",
    "psutil": "ipykernel",
    "safetensors": "transformers",
    "tokenizers": "transformers",
    "traitlets": "ipywidgets",
    "yaml": "transformers",
}
CORE_MODULES = (
    *("types", "tokens", "advantages", "losses", "partition", "exact", "metrics"),
    "_validation",
)


def import_name(requirement: str) -> str:
    """The name under which a requirement is imported."""
    name = Requirement(requirement).name
    return IMPORT_NAMES.get(name, name.replace("-", "_"))


def find_imports(path: Path) -> set[str]:
    """Every third-party package that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    beside = {other.stem for other in path.parent.glob("*.py")}
    if path.is_relative_to(ROOT / "tests"):
        beside |= {other.stem for other in (ROOT / "tests").glob("*.py")}
    benchmarks = {other.stem for other in (ROOT / "benchmarks").glob("*.py")}
    own = {"flowrl_lab", "benchmarks", "drawings", "lab", *beside, *benchmarks}
    return names - set(sys.stdlib_module_names) - own


def listed(*extras: str) -> set[str]:
    """Import names of the core's and these extras' packages."""
    names = {import_name(r) for extra in ("", *extras) for r in GROUPS[extra]}
    names.discard(import_name(PROJECT["name"]))  # an extra that includes another
    return names | {name for name, with_ in COMES_WITH.items() if with_ in names}


# ------------------------------------------------------------------- dependencies


def test_every_range_has_a_tested_floor_and_a_ceiling():
    for requirement in map(Requirement, chain(*GROUPS.values())):
        if requirement.name == PROJECT["name"]:
            assert requirement.extras <= set(EXTRAS)
            continue
        operators = {specifier.operator for specifier in requirement.specifier}
        wanted = {">="} if requirement.name == "packaging" else {">=", "<"}
        assert operators == wanted, requirement


def test_the_plain_package_brings_what_the_notebooks_need():
    """``pip install flowrl-lab`` and ``flowrl-lab notebooks`` are all that it takes."""
    brought = [""]
    for group in brought:  # grows: a group may ask for others of this package
        asked = map(Requirement, GROUPS[group])
        others = (r.extras for r in asked if r.name == PROJECT["name"])
        brought += set().union(*others) - set(brought)
    assert set(brought) == {"", "lm", "notebooks"}


GRADERS = ("otter", "nbgrader")


def test_ranges_end_at_the_next_major_release_only():
    """A tighter cap makes pip take newer packages away from people."""
    tested = locked_versions()
    for requirement in map(Requirement, chain(*GROUPS.values())):
        caps = [s.version for s in requirement.specifier if s.operator == "<"]
        if requirement.name in tested and requirement.name != "ruff":  # its format
            major = Version(tested[requirement.name]).major
            assert caps in ([str(major + 1)], []), requirement


def locked_versions() -> dict[str, str]:
    """name -> the version in lock.txt that this Python and system get."""
    lines = (ROOT / "lock.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    here = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    return {canonicalize_name(pin.name): str(pin.specifier)[2:] for pin in here}


def test_the_lock_holds_a_tested_set_inside_the_ranges():
    lab, tested = load_launcher(), locked_versions()
    assert lab.LOCK == ROOT / "lock.txt"
    assert tested["torch"] == lab.TORCH.removeprefix("torch==")
    groups = {name: group for name, group in GROUPS.items() if name not in GRADERS}
    for requirement in map(Requirement, chain(*groups.values())):
        if requirement.name != PROJECT["name"]:
            version = tested[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), requirement
    for line in lab.LOCK.read_text(encoding="utf-8").splitlines():
        assert line.startswith("#") or "==" in line.partition(";")[0], line


def test_what_runs_here_is_inside_the_ranges():
    from flowrl_lab.course.doctor import check_packages, read_requirements

    checks = check_packages(read_requirements())
    # other graders and the book are for lecturers; doctor does not speak of them
    unspoken = (*GRADERS, "book")
    shown = {name: g for name, g in GROUPS.items() if name not in unspoken}
    assert len(checks) == sum(
        Requirement(r).name != PROJECT["name"]
        for group in shown.values()
        for r in group
    )
    wrong = [check for check in checks if check.status != "ok"]
    # reasoning-gym needs a compiler; where it could not be built, that is said.
    optional = {"reasoning-gym [gym]"}
    assert {check.name for check in wrong} <= optional, wrong


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("flowrl_lab", ("lm", "notebooks", "gym", "sets", "trackers", "trl", "book")),
        ("tests", tuple(EXTRAS)),
    ],
)
def test_every_import_is_declared(folder, extras):
    support = {path.stem for path in (ROOT / "tests/support").glob("*.py")}
    allowed = listed(*extras) | (support if folder == "tests" else set())
    for path in (ROOT / folder).rglob("*.py"):
        assert find_imports(path) <= allowed, path


def test_every_declared_package_of_the_library_is_used():
    """A dependency that nothing imports is a download for nothing."""
    used = set().union(*(find_imports(p) for p in (ROOT / "flowrl_lab").rglob("*.py")))
    # Programs, what plotly's FigureWidget and anywidget stand on, and what
    # transformers reads GGUF files with.
    not_imported = {"jupyterlab", "ipykernel", "ipywidgets", "gguf"}
    assert listed("lm", "notebooks") - set(COMES_WITH) <= used | not_imported


@pytest.mark.parametrize("name", CORE_MODULES)
def test_the_core_needs_torch_numpy_and_jaxtyping_only(name):
    home = ROOT / "flowrl_lab" / name
    files = sorted(home.glob("*.py")) if home.is_dir() else [home.with_suffix(".py")]
    imports = set().union(*map(find_imports, files))
    assert imports <= {"torch", "numpy", "jaxtyping"}


# ------------------------------------------------------------ files that must agree


def test_conda_users_get_the_same():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == PROJECT["name"]
    python, pip, from_pip = environment["dependencies"]
    assert python == f"python{PROJECT['requires-python']}"
    assert pip == "pip"
    torch, line = from_pip["pip"]
    assert torch == f"--extra-index-url {load_launcher().TORCH_CPU_INDEX}"
    match = re.fullmatch(r"-e \.\[(.+)\]", line)
    assert match, line
    assert set(match[1].split(",")) == set(load_launcher().EXTRAS["test"])


def load_launcher():
    """lab.py as a module."""
    sys.path.insert(0, str(ROOT))
    try:
        import lab
    finally:
        sys.path.remove(str(ROOT))
    return lab


def test_the_launcher_and_the_project_want_the_same():
    lab = load_launcher()
    for extras in lab.EXTRAS.values():
        assert set(extras) <= set(EXTRAS)
    torch = next(
        r for r in map(Requirement, PROJECT["dependencies"]) if r.name == "torch"
    )
    pinned = Requirement(lab.TORCH)
    (specifier,) = pinned.specifier
    assert specifier.operator == "=="
    assert torch.specifier.contains(specifier.version)
    floor = next(iter(SpecifierSet(PROJECT["requires-python"])))
    assert floor.version == "3.11"  # what lab.py checks; test_lab holds it to that


SET_UP, SUITE = "lab.py test tests --version", "lab.py test"
WHEEL = ".ci/wheel.py .venv/bin/python"
CHROMIUM = "apt-get install -y -q --no-install-recommends chromium"


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
@pytest.mark.parametrize(
    ("failing", "status"),
    [(None, 0), (SET_UP, 3), (SUITE, 3), (WHEEL, 3), (CHROMIUM, 3)],
)
def test_ci_runs_the_command_that_people_run(tmp_path, failing, status):
    """The script itself, where the programs that it starts only note that they were."""
    script = tmp_path / ".ci" / "run"
    script.parent.mkdir()
    shutil.copy(ROOT / ".ci" / "run", script)
    assert os.access(script, os.X_OK)
    note = (
        f"#!{shutil.which('bash')}\n"
        'words="$(basename "$0") $*"; words="${words#python3 }"\n'
        f'echo "$words" >> "{tmp_path}/started"; echo "said by $words"\n'
        f'[ "$words" != "{failing}" ] || exit 3\n'
    )
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("python3", "apt-get", "chromium"):
        (programs / name).write_text(note)
        (programs / name).chmod(0o755)
    for name in ("bash", "basename", "dirname", "id", "mktemp", "cat", "rm", "env"):
        (programs / name).symlink_to(shutil.which(name))
    if failing == CHROMIUM:
        if os.getuid() != 0:
            pytest.skip("only root installs Chromium")
        (programs / "chromium").unlink()
    environment = {"PATH": str(programs), "TMPDIR": str(tmp_path)}
    done = subprocess.run([script], env=environment, capture_output=True, text=True)
    started = (tmp_path / "started").read_text().splitlines()
    assert done.returncode == status, done
    ours = [line for line in started if not line.startswith("apt-get")]
    if failing in (SET_UP, CHROMIUM):
        assert ours == [SET_UP]
    else:  # a failure of one does not hide the other
        assert ours[0] == SET_UP and sorted(ours[1:]) == [WHEEL, SUITE]
        assert f"said by {WHEEL}" in done.stdout


def test_everything_that_may_be_left_behind_is_ignored():
    for name in (".venv/x", ".venv-2/x", "runs/x", "test-artifacts/x.png", "a.pyc"):
        result = subprocess.run(["git", "check-ignore", "-q", name], cwd=ROOT)
        assert result.returncode == 0, name


def test_the_public_workflow_runs_what_ci_runs():
    """It cannot run here, so it is held to `.ci/run` and to the launcher's command."""
    text = (ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    wheel = jobs["wheel"]["steps"][-1]
    assert wheel["run"] == "python3 .ci/wheel.py"
    assert set(wheel["env"].values()) == {load_launcher().TORCH_CPU_INDEX}
    job = jobs["test"]
    matrix = job["strategy"]["matrix"]
    assert {name.split("-")[0] for name in matrix["system"]} == {
        *("ubuntu", "macos", "windows")
    }
    lowest = SpecifierSet(PROJECT["requires-python"])
    assert all(Version(python) in lowest for python in matrix["python"])
    assert min(matrix["python"], key=Version) == "3.11"
    commands = {step["if"]: step["run"] for step in job["steps"] if "run" in step}
    assert commands["runner.os == 'Linux'"] == "bash .ci/run"
    assert commands["runner.os != 'Linux'"] == f"python {SUITE}"


def test_containers_set_up_with_the_launcher():
    docker = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    steps = [line.split(maxsplit=1) for line in docker.splitlines() if line.strip()]
    assert ["RUN", "python3 lab.py setup"] in steps
    assert docker.index("USER student") < docker.index("lab.py setup\n")
    (first,) = re.findall(r"/lab/tree/(\S+\.ipynb)", docker)
    assert (ROOT / "notebooks" / first).exists(), first
    (image,) = [step[1] for step in steps if step[0] == "FROM"]
    assert Version(image.split(":")[1].split("-")[0]) in SpecifierSet(
        PROJECT["requires-python"]
    )
    dev = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    assert dev["postCreateCommand"] == "python3 lab.py setup"


def test_the_citation_names_this_version():
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cff["version"] == PROJECT["version"]
    assert cff["license"] == PROJECT["license"]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {PROJECT['version']}" in changes


def test_the_classifiers_name_pythons_that_are_tried():
    text = (ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8")
    tried = yaml.safe_load(text)["jobs"]["test"]["strategy"]["matrix"]["python"]
    named = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if "3." in c]
    assert named and set(named) <= set(tried)
    assert all(
        Version(name) in SpecifierSet(PROJECT["requires-python"]) for name in named
    )


def test_the_addresses_of_the_project_come_from_one_setting():
    sys.path.insert(0, str(ROOT))
    try:
        made = importlib.import_module("setup")
    finally:
        sys.path.remove(str(ROOT))
    assert {"readme", "urls"} <= set(PROJECT["dynamic"])
    assert PYPROJECT["tool"]["flowrl_lab"]["repository"] == made.REPOSITORY
    text = "[a](docs/a.md) ![b](b.svg) [c](https://c.org) [d](#d)"
    assert made.describe(text, "") == "a  [c](https://c.org) [d](#d)"
    at = "https://github.com/o/n"
    assert made.describe(text, "o/n") == (
        f"[a]({at}/blob/main/docs/a.md) ![b]({at}/raw/main/b.svg) "
        "[c](https://c.org) [d](#d)"
    )
    assert made.addresses("") == {}
    assert made.addresses("o/n")["Source"] == at
    for page in made.addresses("o/n").values():
        if "/blob/main/" in page:
            assert (ROOT / page.partition("/blob/main/")[2]).exists()
    others = ["CITATION.cff", "README.md", "CONTRIBUTING.md", "Dockerfile"]
    for name in others:  # none of them names a place of its own
        assert "github.com/" not in (ROOT / name).read_text(encoding="utf-8")


def test_the_command_of_the_package_exists():
    module, _, function = PROJECT["scripts"]["flowrl-lab"].partition(":")
    source = (ROOT / (module.replace(".", "/") + ".py")).read_text()
    names = {n.name for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)}
    assert function in names


PAGES = ("*.md", "docs/*.md", "benchmarks/*.md", "data/*/*.md", ".github/*.md")


@pytest.mark.parametrize(
    "page",
    sorted(page for pattern in PAGES for page in ROOT.glob(pattern)),
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_the_links_of_a_page_lead_to_files(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_the_readme_is_short_enough_to_be_read():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150


def test_the_readme_names_files_that_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = []
    tree = text.partition("## Where things are")[2].split("```")[1]
    for line in tree.strip().splitlines():
        indent = len(line) - len(line.lstrip())
        if indent > 2:  # a description goes on
            continue
        names = re.split(r"\s{2,}", line.strip())[0].split()
        files = [n if "/" in n or "." in n else f"{n}.py" for n in names]
        links += [f"flowrl_lab/{name}" if indent else name for name in files]
    for link in links:
        assert (ROOT / link).exists(), link


def test_the_readme_code_runs(tmp_path):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stderr
    last = result.stdout.strip().splitlines()[-2:]
    coverage = {line.split()[0]: float(line.split()[2]) for line in last}
    assert coverage["flowrl"] == 1.0 > coverage["grpo"]


def test_the_code_is_ruff_clean():
    code = ["lab.py", "flowrl_lab", "tests", "benchmarks"]
    for arguments in (["check", "--output-format=concise"], ["format", "--check"]):
        result = subprocess.run(
            [sys.executable, "-m", "ruff", *arguments, *code],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert result.returncode == 0, result.stdout + result.stderr


def test_every_text_file_is_opened_with_its_encoding():
    """The default is the machine's: a code page on Windows, ASCII in a C locale."""
    folders = [ROOT / "flowrl_lab", ROOT / "benchmarks"]
    files = [ROOT / "lab.py", *chain(*(folder.rglob("*.py") for folder in folders))]
    silent = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in files
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and leaves_encoding_open(node)
    ]
    assert silent == []


TEXT_CALLS = {"read_text": 0, "write_text": 1}  # name -> which argument is encoding
OPENING = ("open", "fdopen", "TemporaryFile", "NamedTemporaryFile")


def is_text(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def leaves_encoding_open(call: ast.Call) -> bool:
    """Whether a call reads or writes text in an encoding that nobody named."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if given.keys() & {"encoding", "errors"}:
        return False
    if name in TEXT_CALLS:
        return len(call.args) <= TEXT_CALLS[name]
    if isinstance(call.func, ast.Name) and name == "open" and len(call.args) < 2:
        return "mode" not in given  # what it opens without a mode is text
    modes = [m.value for m in (*call.args[:2], given.get("mode")) if is_text(m)]
    if name in OPENING and any(set(mode) <= set("rwax+t") for mode in modes):
        return True
    return "text" in given or "universal_newlines" in given


def test_functions_are_short():
    """No body over 60 lines, and nine in ten within 35 (docstrings not counted)."""
    lengths = {}
    for path in (ROOT / "flowrl_lab").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lengths[f"{path.name}:{node.name}"] = count_body_lines(node)
    assert max(lengths.values()) <= 60, max(lengths, key=lengths.get)
    short = sum(length <= 35 for length in lengths.values())
    assert short >= 0.9 * len(lengths)


def count_body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function after its signature and its docstring."""
    body = node.body[1:] if ast.get_docstring(node) else node.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0

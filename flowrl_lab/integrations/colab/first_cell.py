# Installs what flowrl_lab needs and this session lacks.  What the host brings for its
# GPU and its page (torch, numpy, widgets and so on) stays as it is.
import importlib.metadata
import os
import subprocess
import sys

from packaging.requirements import Requirement  # every notebook has it

KEPT = """
torch torchvision torchaudio numpy pillow scipy pandas ipykernel ipython ipywidgets
traitlets notebook jupyter-client jupyter-core tornado pyzmq protobuf requests
"""


class NotSetUp(Exception):
    def _render_traceback_(self):  # only the message, which says what to do
        return [f"Not set up yet: {self}"]


def find(name):
    here = importlib.metadata.distributions(name=name)
    return next((one.version for one in here), None)


def is_missing(need):
    here, kept = find(need.name), need.name in KEPT.split()
    return here is None or not (kept or need.specifier.contains(here, prereleases=True))


def pip_install(*words):
    print("Installing", *words)
    held = [f"{name}=={find(name)}" for name in KEPT.split() if find(name)]
    command = [sys.executable, "-m", "pip", "install", "--quiet", *words, *held]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        last = done.stderr.strip()[-500:]
        raise NotSetUp(f"pip failed.\nFix: go online, run this cell again.\n{last}")
    importlib.invalidate_caches()


def set_up(needed, *itself, drive="/content/drive/MyDrive"):
    needs = list(filter(is_missing, map(Requirement, needed.split())))
    old = [need.name for need in needs if need.name.replace("-", "_") in sys.modules]
    if old:
        raise NotSetUp(
            f"this session holds an old {', '.join(old)} in memory.\n"
            "Fix: Runtime > Restart session, then run this cell before any other."
        )
    if needs:
        pip_install(*map(str, needs))
    if itself:
        pip_install(*itself)
    keep = drive if os.path.isdir(drive) else os.getcwd()
    os.environ.setdefault("FLOWRL_PROGRESS", os.path.join(keep, "flowrl_progress.json"))
    print(f"Everything needed is here. Your progress is kept in {keep}.")

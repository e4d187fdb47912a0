"""What this machine is: Colab or not, device, number formats, memory, disk.

Each is looked at by itself and comes back as a ``Check``; nothing is changed.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from flowrl_lab._files import how_to_mend

__all__ = [
    "Check",
    "check_colab",
    "check_device",
    "check_disk",
    "check_dtypes",
    "check_machine",
    "check_memory",
    "first_line",
    "in_colab",
    "measure_memory",
]

_MEMORY_NEEDED_GB = 4.0
_DISK_NEEDED_GB = 1.0
_DTYPES = ("float32", "bfloat16", "float16")
_DRIVE = "/content/drive/MyDrive"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what it is.
        status: ``"ok"``, ``"note"`` (works, but worth knowing) or ``"broken"``.
        found: what was found.
        fix: what to do; empty when there is nothing to mend.
    """

    name: str
    status: str
    found: str
    fix: str = ""


def check_machine(folder: Path) -> list[Check]:
    """All of them; ``folder`` is where runs would be saved."""
    here = [check_colab(), check_device(), check_dtypes(), *check_device_memory()]
    return [*here, check_memory(), check_disk(folder)]


def first_line(error: BaseException) -> str:
    """An error's message, cut to its first line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def in_colab() -> bool:
    """Whether this is a session of Google Colab."""
    return "COLAB_RELEASE_TAG" in os.environ


def check_colab(drive: str = _DRIVE) -> Check:
    """Whether this is Colab, and whether what is saved outlives the session."""
    if not in_colab():
        return Check("Colab", "ok", "no")
    release = os.environ["COLAB_RELEASE_TAG"]
    if Path(drive).is_dir():
        return Check("Colab", "ok", f"yes ({release}), Drive is mounted")
    fix = "from google.colab import drive; drive.mount('/content/drive')"
    found = f"yes ({release}); files are gone when the session ends"
    return Check("Colab", "note", found, fix)


def check_device() -> Check:
    """Whether torch computes here, and on what."""
    try:
        torch = importlib.import_module("torch")
        total = float(torch.ones(8).sum())
    except (ImportError, OSError, RuntimeError) as error:
        again = how_to_mend("python3 lab.py setup", "pip install --upgrade torch")
        fix = f"{again} (torch is missing or does not load)"
        return Check("device", "broken", first_line(error), fix)
    if total != 8.0:
        return Check("device", "broken", f"torch adds 8 ones to {total}", "reinstall")
    if torch.cuda.is_available():
        version = ".".join(map(str, torch.cuda.get_device_capability()))
        name = torch.cuda.get_device_name()
        return Check("device", "ok", f"cuda: {name}, compute capability {version}")
    if torch.backends.mps.is_available():
        return Check("device", "ok", "mps (Apple GPU)")
    found = f"cpu, {torch.get_num_threads()} threads"
    if shutil.which("nvidia-smi"):
        fix = "this torch is a CPU build; see pytorch.org for the CUDA build"
        return Check("device", "note", f"{found}; an NVIDIA driver is here", fix)
    return Check("device", "ok", found)


def check_dtypes() -> Check:
    """In which number formats a gradient can be computed on the device."""
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError):
        return Check("number formats", "note", "unknown without torch")
    device = "cpu"
    if torch.cuda.is_available():
        device = "cuda"
    elif torch.backends.mps.is_available():
        device = "mps"
    # here: it imports torch, which a doctor must be able to miss
    from flowrl_lab.policies.device import has_native_bfloat16

    emulated = () if has_native_bfloat16(device) else ("bfloat16",)
    works = [name for name in _DTYPES if computes_gradient(torch, name, device)]
    words = [f"{name} (emulated)" if name in emulated else name for name in works]
    found = f"{', '.join(words) or 'none'} on {device}"
    if "float32" not in works:
        fix = "reinstall torch for this device, or hide the device from it"
        return Check("number formats", "broken", found, fix)
    return Check("number formats", "ok", found)


def computes_gradient(torch, dtype: str, device: str) -> bool:
    """Whether a matrix product and its gradient come out right in that format."""
    try:
        weight = torch.ones(
            4, 4, dtype=getattr(torch, dtype), device=device, requires_grad=True
        )
        (weight @ weight).sum().backward()
        return bool((weight.grad == 8).all())
    except (RuntimeError, TypeError, NotImplementedError):
        return False


def check_device_memory() -> list[Check]:
    """Free memory of the GPU; nothing where it has none of its own."""
    try:
        torch = importlib.import_module("torch")
        if not torch.cuda.is_available():
            return []
        free, total = torch.cuda.mem_get_info()
    except (ImportError, OSError, RuntimeError) as error:
        found = f"cannot be measured ({first_line(error)})"
        return [Check("GPU memory", "note", found)]
    found = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    if free < total / 2:
        fix = "end other programs and kernels that hold it (nvidia-smi lists them)"
        return [Check("GPU memory", "note", found, fix)]
    return [Check("GPU memory", "ok", found)]


def check_memory(available_gb: float | None = None) -> Check:
    """Free memory; None measures it."""
    if available_gb is None:
        available_gb = measure_memory()
    if available_gb is None:
        return Check("memory", "note", "cannot be measured here")
    found = f"{available_gb:.1f} GB free"
    if available_gb < _MEMORY_NEEDED_GB:
        fix = f"close other programs: the course wants {_MEMORY_NEEDED_GB:.0f} GB"
        return Check("memory", "note", found, fix)
    return Check("memory", "ok", found)


def measure_memory() -> float | None:
    """Free memory in GB, or None where nothing says."""
    if importlib.util.find_spec("psutil") is not None:
        return importlib.import_module("psutil").virtual_memory().available / 1e9
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    except (AttributeError, ValueError, OSError):
        return None


def check_disk(folder: Path, free_gb: float | None = None) -> Check:
    """Free space for runs and reports; None measures it."""
    if free_gb is None:
        free_gb = shutil.disk_usage(folder).free / 1e9
    found = f"{free_gb:.1f} GB free in {folder}"
    if free_gb < _DISK_NEEDED_GB:
        fix = f"free {_DISK_NEEDED_GB:.0f} GB, or save runs on another disk"
        return Check("disk", "broken", found, fix)
    return Check("disk", "ok", found)

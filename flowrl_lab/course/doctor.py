"""Say what works on this machine, and how to mend what does not.

``run_doctor`` returns plain data; ``main`` prints it as a table and ends with exit code
1 if something is broken.  Nothing here changes anything.
"""

from __future__ import annotations

import hashlib
import html
import importlib
import importlib.metadata
import importlib.util
import json
import platform
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

from packaging.requirements import Requirement

from flowrl_lab._files import WHOLE_WHEEL, how_to_mend
from flowrl_lab.course.showing import show
from flowrl_lab.scaling.machine import Check, check_machine, first_line, in_colab

__all__ = ["Check", "format_checks", "glance", "main", "run_doctor"]

_PROJECT = "flowrl-lab"
SET_UP = "python3 lab.py setup"
_OPTIONAL_EXTRAS = ("metrics", "sets", "gym", "trl", "trackers", "test")
_SHOWN_EXTRAS = ("lm", "notebooks", *_OPTIONAL_EXTRAS)


def run_doctor() -> list[Check]:
    """Look at Python, packages, the machine, widgets, sandbox and data."""
    checks = [check_python()]
    checks += check_packages(read_requirements())
    checks += check_machine(Path.cwd())
    checks += [check_widgets(), check_sandbox()]
    checks += check_data(_find_data_folder())
    return checks


def glance() -> None:
    """Show in one line whether all is well; where it is not, what to mend.

    In a notebook every check is folded under that line, which opens by itself where
    something is broken.
    """
    checks = run_doctor()
    broken = [check for check in checks if check.status == "broken"]
    line = f"{len(checks)} checks: everything needed is here"
    if broken:
        line = f"{len(broken)} of {len(checks)} checks found something to mend"
    shown = html.escape(format_checks(broken + [c for c in checks if c not in broken]))
    page = (
        f"<details{' open' if broken else ''}><summary>{line}</summary>"
        f'<pre style="white-space:pre-wrap">{shown}</pre></details>'
    )
    text = "\n".join([line, format_checks(broken)]).rstrip()
    show({"text/html": page, "text/plain": text})


def main() -> int:
    """Print the tables; returns 1 if something is broken, else 0."""
    checks = run_doctor()
    print(format_checks(checks))
    if all(check.status != "broken" for check in checks if check.name == "device"):
        from flowrl_lab.scaling.llm_presets import format_presets

        print(f"\nA real language model (notebook 9) on\n{format_presets()}")
    broken = [check.name for check in checks if check.status == "broken"]
    if broken:
        print(f"\n{len(broken)} to mend: {', '.join(broken)}")
        return 1
    print("\nEverything needed is here.")
    return 0


def format_checks(checks: Iterable[Check]) -> str:
    """The checks as an aligned text table, each fix on a line of its own."""
    checks = list(checks)
    width = max((len(check.name) for check in checks), default=0)
    lines = []
    for check in checks:
        lines.append(f"{check.status:<6}  {check.name:<{width}}  {check.found}")
        if check.fix:
            lines.append(f"{'':<6}  {'':<{width}}  fix: {check.fix}")
    return "\n".join(lines)


# --------------------------------------------------------------------- versions


def check_python(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> Check:
    """The interpreter against the floor of the project."""
    found = ".".join(map(str, version)) + f" on {platform.system()}"
    if version < (3, 11):
        fix = "install Python 3.11 or newer and start again with it"
        return Check("Python", "broken", found, fix)
    return Check("Python", "ok", found)


def read_requirements() -> list[tuple[Requirement, str]]:
    """The tested range of each package and the extra it belongs to ("" = core).

    They are read from the pyproject.toml of a clone, or else from the metadata of
    the installed package: the ranges stand in one place only.
    """
    source = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if source.is_file():
        project = tomllib.loads(source.read_text(encoding="utf-8"))["project"]
        groups = {"": project["dependencies"], **project["optional-dependencies"]}
    else:
        groups = _read_installed_requirements()
    return [
        (requirement, extra)
        for extra in ("", *_SHOWN_EXTRAS)
        for requirement in map(Requirement, sorted(groups.get(extra, ())))
        if requirement.name != _PROJECT  # an extra that includes another extra
    ]


def _read_installed_requirements() -> dict[str, list[str]]:
    """Requirements by extra ("" = core), from the installed package's metadata."""
    groups: dict[str, list[str]] = {}
    every = importlib.metadata.metadata(_PROJECT).get_all("Provides-Extra") or ()
    for text in importlib.metadata.requires(_PROJECT) or ():
        marker = Requirement(text).marker
        needed = marker is None or marker.evaluate({"extra": ""})
        asked = [e for e in every if marker and marker.evaluate({"extra": e})]
        for group in [""] if needed else asked:
            groups.setdefault(group, []).append(text.partition(";")[0].strip())
    return groups


def check_packages(requirements: Iterable[tuple[Requirement, str]]) -> list[Check]:
    """Each package's installed version against its tested range."""
    return [check_package(requirement, extra) for requirement, extra in requirements]


def check_package(requirement: Requirement, extra: str) -> Check:
    """One package: missing, outside the tested range, or fine.

    A missing package of an extra that learners do without is only a note.
    """
    wanted = f"{requirement.name}{requirement.specifier}"
    name = f"{requirement.name} [{extra}]" if extra else requirement.name
    fix = how_to_mend(f"{SET_UP}, or: ", "") + f'pip install "{wanted}"'
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        if extra in _OPTIONAL_EXTRAS:
            brings = how_to_mend("python3 lab.py test brings it", fix)
            return Check(name, "note", "not installed", brings)
        return Check(name, "broken", "not installed", fix)
    if not requirement.specifier.contains(version, prereleases=True):
        found = f"{version}; tested with {requirement.specifier}"
        return Check(name, "note", found, fix)  # it may well work
    return Check(name, "ok", version)


# ------------------------------------------------------------- widgets and sandbox


def check_widgets() -> Check:
    """Whether live plots can be drawn, and what speaks for it."""
    fix = how_to_mend(SET_UP, "pip install 'flowrl-lab[notebooks]'")
    for name in ("ipywidgets", "anywidget", "plotly"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            return Check("live plots", "broken", first_line(error), fix)
    from flowrl_lab.plots.live import choose_backend

    here = f"drawn as {choose_backend()} here"
    if in_colab():
        return Check("live plots", "ok", f"Colab's page; {here}, as svg in a notebook")
    front_ends = [
        f"{name} {importlib.metadata.version(name)}"
        for name in ("jupyterlab", "notebook")
        if importlib.util.find_spec(name) is not None
    ]
    if not front_ends:
        found = "no JupyterLab in this environment (another front end may do)"
        return Check("live plots", "note", found, fix)
    found = f"{', '.join(front_ends)}; {here}, as widget in a notebook"
    return Check("live plots", "ok", found)


def check_sandbox() -> Check:
    """Whether programs that a model wrote can be run safely here."""
    from flowrl_lab.sandbox import sandbox_problem, sandbox_weaknesses

    found, _, fix = (sandbox_problem() or "").partition(" Fix: ")
    if found:
        return Check("sandbox", "note", found, fix)
    found = "Landlock and seccomp hold a trial program in; the kernel holds its limits"
    if sandbox_weaknesses():
        found += f", but {', '.join(sandbox_weaknesses())}"
    return Check("sandbox", "ok", found)


# ------------------------------------------------------------------------- data


def check_data(folder: Path | None) -> list[Check]:
    """Every shipped file against the sha256 in the provenance.json beside it.

    A provenance file is JSON with ``"files": {name: sha256}`` (or
    ``{name: {"sha256": ...}}``), names relative to its own folder.
    """
    if folder is None:
        again = how_to_mend("git checkout data", WHOLE_WHEEL)
        fix = f"{again}, or set FLOWRL_DATA"
        return [Check("data", "broken", "no data folder", fix)]
    provenances = sorted(folder.rglob("provenance.json"))
    if not provenances:
        again = how_to_mend("git checkout data", WHOLE_WHEEL)
        fix = f"{again} (the shipped files are gone)"
        return [Check("data", "broken", f"nothing listed under {folder}", fix)]
    return [check_data_set(provenance, folder) for provenance in provenances]


def check_data_set(provenance: Path, folder: Path) -> Check:
    """One data set: all files there, and all as they were shipped."""
    name = f"data/{provenance.parent.relative_to(folder).as_posix()}"
    fix = how_to_mend(f"git checkout -- {name}", WHOLE_WHEEL)
    try:
        wanted = dict(_read_hashes(provenance))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return Check(name, "broken", f"unreadable provenance.json ({error})", fix)
    for file, sha256 in wanted.items():
        path = provenance.parent / file
        if not path.is_file():
            return Check(name, "broken", f"{file} is missing", fix)
        if _hash_file(path) != sha256.lower():
            return Check(name, "broken", f"{file} is not the file that shipped", fix)
    if not wanted:
        return Check(name, "broken", "provenance.json lists no file", fix)
    return Check(name, "ok", f"{len(wanted)} files, sha256 as shipped")


def _read_hashes(provenance: Path) -> Iterator[tuple[str, str]]:
    """(file name, sha256) pairs of a provenance file."""
    content = json.loads(provenance.read_text(encoding="utf-8"))
    for name, entry in content["files"].items():
        yield name, str(entry["sha256"] if isinstance(entry, dict) else entry)


def _hash_file(path: Path) -> str:
    """sha256 of a file, as hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _find_data_folder() -> Path | None:
    """The data folder, or None where there is none."""
    from flowrl_lab._files import data_path

    try:
        return data_path()
    except FileNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())

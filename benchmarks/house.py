"""How the house stands: its rooms, which way they import, and how long things are.

    python -m benchmarks.house

reads the sources (nothing of them is run), then trains one step of the maths lesson
and notes which files it passes on the way from ``train`` to ``.backward()``.
``tests/house/test_house.py`` holds the limits.
"""

from __future__ import annotations

import argparse
import ast
import io
import statistics
import sys
import threading
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "flowrl_lab"
# From the ground up; what stands in one line may import its neighbours.
FLOORS = (
    ("_validation", "_files", "types", "tokens"),
    ("advantages", "losses", "partition", "metrics", "exact", "evaluation"),
    ("tasks", "sandbox"),
    ("policies",),
    ("training",),
    ("measuring", "plots"),
    ("scaling",),
    ("widgets", "course"),
    ("assignments", "integrations"),
    ("commands", "__main__"),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


@dataclass(frozen=True)
class Import:
    """One module that another imports; ``late`` if only inside a function."""

    importer: str
    imported: str
    line: int
    late: bool

    def __str__(self) -> str:
        late = " (inside a function)" if self.late else ""
        return f"{self.importer}:{self.line} -> {self.imported}{late}"


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the library."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def rooms() -> list[str]:
    """Modules and packages right below the library, and packages one floor down."""
    top = ROOT / PACKAGE
    files = [path.stem for path in top.glob("*.py") if path.stem != "__init__"]
    packages = {path.parent for path in top.rglob("__init__.py")}
    names = [path.relative_to(top).parts for path in packages]
    return sorted(files + ["/".join(name) for name in names if 1 <= len(name) <= 2])


# ------------------------------------------------------------------------- imports


@cache
def imports() -> tuple[Import, ...]:
    """Every import of one of the library's modules by another."""
    return tuple(one for name in modules() for one in _imports_of(name))


def _imports_of(name: str) -> Iterator[Import]:
    for node, late in _import_nodes(tree_of(modules()[name]), late=False):
        for target in _targets(node):
            if target != name:
                yield Import(name, target, node.lineno, late)


def _import_nodes(node: ast.AST, *, late: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, late
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from _import_nodes(child, late=late or inside)


def _targets(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """The library's modules that an import statement names, submodules resolved."""
    if isinstance(node, ast.Import):
        wanted = [alias.name for alias in node.names]
    else:
        pairs = [(node.module or "", alias.name) for alias in node.names]
        inner = [f"{home}.{name}" for home, name in pairs]
        wanted = [n if n in modules() else n.rpartition(".")[0] for n in inner]
    for name in dict.fromkeys(wanted):
        if name in modules() and name != PACKAGE:
            yield name


def circles(*, late: bool = False) -> list[list[str]]:
    """Groups of modules that import each other, directly or in a round.

    Args:
        late: count imports inside functions too.
    """
    return _rounds(
        (one.importer, one.imported) for one in imports() if late or not one.late
    )


def room_circles() -> list[list[str]]:
    """The same of whole rooms, imports inside functions included."""
    pairs = [(room_of(one.importer), room_of(one.imported)) for one in imports()]
    return _rounds((a, b) for a, b in pairs if a != b and PACKAGE not in (a, b))


def _rounds(arrows: Iterable[tuple[str, str]]) -> list[list[str]]:
    edges: dict[str, set[str]] = {}
    for start, end in arrows:
        edges.setdefault(start, set()).add(end)
    reach = {name: _reachable(name, edges) for name in edges}
    groups = {
        frozenset(other for other in reach[name] if name in reach.get(other, ()))
        for name in edges
        if name in reach[name]
    }
    return sorted(sorted(group) for group in groups)


def _reachable(start: str, edges: dict[str, set[str]]) -> set[str]:
    seen, waiting = set(), [start]
    while waiting:
        fresh = edges.get(waiting.pop(), set()) - seen
        seen |= fresh
        waiting += fresh
    return seen


def upward() -> list[Import]:
    """Imports by a lower room from a higher one, also those inside functions."""
    return [
        one
        for one in imports()
        if one.importer != PACKAGE and floor_of(one.importer) < floor_of(one.imported)
    ]


def floor_of(module: str) -> int:
    """The floor of a module's room; KeyError for a room that has none yet."""
    return FLOOR_OF[room_of(module)]


def room_of(module: str) -> str:
    """``"flowrl_lab.training.step"`` -> ``"training"``; the library for itself."""
    return module.split(".")[1] if "." in module else module


# ------------------------------------------------------------------------- lengths


def code_lines(path: Path) -> set[int]:
    """Numbers of the lines that hold code: no blank, comment or docstring."""
    text = path.read_text(encoding="utf-8")
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT}
    skipped |= {tokenize.DEDENT, tokenize.ENDMARKER}
    kept: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped:
            kept.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree_of(path)):
        note = _docstring(node)
        if note is not None:
            kept.difference_update(range(note.lineno, (note.end_lineno or 0) + 1))
    return kept


def _docstring(node: ast.AST) -> ast.Expr | None:
    body = getattr(node, "body", None)
    first = body[0] if isinstance(body, list) and body else None
    if not isinstance(first, ast.Expr) or not isinstance(first.value, ast.Constant):
        return None
    return first if isinstance(first.value.value, str) else None


def body_lengths() -> dict[str, int]:
    """``module:function`` -> lines of its body, without docstring and blank lines."""
    found = {}
    for name, path in modules().items():
        text = path.read_text(encoding="utf-8").splitlines()
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if _docstring(node) else node.body
                if body:
                    lines = text[body[0].lineno - 1 : body[-1].end_lineno]
                    filled = sum(bool(line.strip()) for line in lines)
                    found[f"{name}:{node.name}:{node.lineno}"] = filled
    return found


def percentile(values: Iterable[int], share: float) -> int:
    """The smallest value that ``share`` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


# ---------------------------------------------------------------------- one step


@dataclass(frozen=True)
class StepPath:
    """What a reader passes to follow one training step to its gradient.

    Attributes:
        files: file of the library -> its lines, its lines of code, and those of the
            functions in it that were entered.
        calls: functions of the library above ``.backward()``, from ``train`` down.
    """

    files: dict[str, tuple[int, int, int]]
    calls: tuple[str, ...]

    @property
    def depth(self) -> int:
        """Calls between ``train`` and the line of ``.backward()``."""
        return len(self.calls) - 1


class _Watcher:
    """A profiler that notes the library's functions until ``backward`` is called."""

    def __init__(self) -> None:
        self.entered: dict[Path, set[int]] = {}
        self.calls: tuple[str, ...] = ()

    def __call__(self, frame, event: str, _argument) -> None:
        if event != "call" or self.calls:
            return
        code = frame.f_code
        if _is_ours(code):
            lines = self.entered.setdefault(Path(code.co_filename), set())
            lines.update(line for _, _, line in code.co_lines() if line)
        elif code.co_name == "backward" and "torch" in Path(code.co_filename).parts:
            self.calls = tuple(reversed(list(_callers(frame))))


def _is_ours(code) -> bool:
    own = str(ROOT / PACKAGE)
    return code.co_filename.startswith(own) and code.co_name != "<module>"


def _callers(frame) -> Iterator[str]:
    while frame is not None:
        if _is_ours(frame.f_code):
            yield frame.f_code.co_qualname
        frame = frame.f_back


def trace_step() -> StepPath:
    """Train one step of ``preset("make_number", "flowrl")`` with the plain policy.

    Raises:
        RuntimeError: the policy in use was another one, or no gradient was computed.
    """
    from flowrl_lab.policies.fast.llama import TreeLlama
    from flowrl_lab.training.presets import preset
    from flowrl_lab.training.run import train

    watcher = _Watcher()
    with patch.object(TreeLlama, "supports", return_value=False):
        # Few rows: which files are passed does not depend on how many there are.
        small = {"prompts_per_step": 2, "num_generations": 4, "eval_prompts": 1}
        loop = train(preset("make_number", "flowrl", steps=1, device="cpu", **small))
        next(loop)  # builds the run and judges the start
    threading.setprofile(watcher)
    sys.setprofile(watcher)
    try:
        next(loop)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    if not watcher.calls:
        raise RuntimeError("the step computed no gradient")
    sizes = {}
    for path, passed in sorted(watcher.entered.items()):
        code = code_lines(path)
        size = len(path.read_text(encoding="utf-8").splitlines())
        name = path.relative_to(ROOT / PACKAGE).as_posix()
        sizes[name] = (size, len(code), len(code & passed))
    if any(name.startswith("policies/fast/") for name in sizes):
        raise RuntimeError(f"the step went through the compiled passes: {list(sizes)}")
    return StepPath(sizes, watcher.calls)


# ---------------------------------------------------------------------- the report


def describe_sources() -> str:
    """Rooms, circles, arrows, lines and lengths, a line each."""
    lines = sum(path.read_bytes().count(b"\n") for path in modules().values())
    code = sum(len(code_lines(path)) for path in modules().values())
    bodies = body_lengths()
    longest = max(bodies, key=bodies.__getitem__)
    late = [one for one in imports() if one.late]
    parts = [
        f"rooms at the top two levels: {len(rooms())}",
        *_listed("import circles", [" <-> ".join(group) for group in circles()]),
        *_listed("circles of rooms", [" <-> ".join(g) for g in room_circles()]),
        *_listed("arrows to a higher room", list(map(str, upward()))),
        f"imports: {len(imports()) - len(late)} at the top, {len(late)} in functions",
        f"lines: {lines:,} in {len(modules())} files, {code:,} of them code",
        f"function bodies: median {statistics.median(bodies.values()):g}, 90 % within "
        f"{percentile(bodies.values(), 0.9)}, longest {bodies[longest]} ({longest})",
    ]
    return "\n".join(parts)


def _listed(title: str, found: list[str]) -> list[str]:
    return [f"{title}: {len(found)}", *(f"  {one}" for one in found)]


def describe_step(path: StepPath) -> str:
    """The files and calls of one training step."""
    columns = zip(*path.files.values(), strict=True)
    lines, code, passed = (sum(column) for column in columns)
    rows = [
        f"  {name:34} {size:5} {code:5} {passed:5}"
        for name, (size, code, passed) in path.files.items()
    ]
    return "\n".join(
        [
            f"files entered in the trace of one training step: {len(path.files)}, with "
            f"{lines:,} lines, {code:,} of them code, {passed:,} in what is called",
            *rows,
            f"calls from train to .backward(): {path.depth} ({' > '.join(path.calls)})",
        ]
    )


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.house", description="How the house stands."
    )
    parser.add_argument("--sources", action="store_true", help="train no step")
    args = parser.parse_args(words)
    print(describe_sources())
    if not args.sources:
        print(describe_step(trace_step()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

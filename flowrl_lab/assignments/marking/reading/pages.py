"""From a notebook's bytes to cells, and which notebook of several is the one.

Part of the reader: stands alone, imports nothing of flowrl_lab.
"""

import ast
import hashlib
import json
import re
import time
from dataclasses import dataclass, field

MAX_CELLS, MAX_CELL_TEXT, MAX_TEXT = 2_000, 200_000, 2_000_000
MAX_ARGUED = 20_000
MAX_TOLD = 20  # cells that are named, of those that are no Python
SECONDS_A_CELL, SECONDS_A_NOTEBOOK = 3.0, 20.0
# A picture that an editor wrote into the text of a cell.
PICTURE = re.compile(r"data:[\w/+.-]{1,80};base64,[A-Za-z0-9+/=]{200,}")
PYTHON = ("python", "python3", "ipython", "xpython", "")
SMALLER = "clear all outputs (Edit, Clear Outputs of All Cells), save, hand in again"
AGAIN = "open it in JupyterLab, save it (Ctrl+S), check that it opens, hand in again"
MEND = "restart the kernel, run all cells, and mend the first error"


@dataclass
class Page:
    """A notebook that was read.

    Attributes:
        name: of the file; ``parts`` with its folders, ``when`` of its last change.
        assignment: the key that it carries, or "".
        variant: that it carries, or None.
        code: Python text of each code cell, "" where there is none.
        cells: (kind, text, argued mark, whether it was handed out with a task).
        left_out: (code cell, line, text, inside a definition) that only a notebook
            understands.
        problems: (what, what to do, whether nothing can be marked).
        digest: sha256 of the bytes.
        solved: how many of the asked names it defines, by assignment.
        marked_as: the known assignment that it counts for, whatever it carries.
    """

    name: str
    parts: tuple
    when: tuple
    assignment: str = ""
    variant: int | None = None
    code: list = field(default_factory=list)
    cells: list = field(default_factory=list)
    left_out: list = field(default_factory=list)
    problems: list = field(default_factory=list)
    digest: str = ""
    solved: dict = field(default_factory=dict)
    marked_as: str = ""

    @property
    def readable(self):
        return not any(fatal for _, _, fatal in self.problems)

    def note(self, what, fix, fatal=False):
        """Name a problem, once."""
        problem = (clean(what)[:300], clean(fix)[:300], fatal)
        if problem not in self.problems:
            self.problems.append(problem)


def clean(text):
    """Text that can be written down: half a surrogate pair becomes "?"."""
    return text.encode("utf-8", "replace").decode("utf-8")


def read_page(entry, content, to_python):
    """Read a notebook; never raises for what is in it.

    Args:
        entry: of the packing.
        content: the bytes.
        to_python: turns a cell into Python; see ``cells.py``.
    """
    page = Page(clean(entry.name), entry.parts, entry.when)
    page.digest = hashlib.sha256(content).hexdigest()
    if not content.strip():
        page.note("the file is empty", AGAIN, True)
        return page
    try:
        fields = json.loads(_decode(page, content))
    except (ValueError, RecursionError):
        page.note("the notebook is damaged (not JSON)", AGAIN, True)
        return page
    found = _find_cells(page, fields)
    if found is None:
        page.note("not a notebook", AGAIN, True)
        return page
    metadata = fields.get("metadata")
    _read_metadata(page, metadata if isinstance(metadata, dict) else {})
    _read_cells(page, found, to_python)
    if not any(row[1].strip() for row in page.cells if row[0] in ("code", "prose")):
        fix = "save the notebook with your work in it, and hand in again"
        page.note("no code in the notebook", fix, True)
    return page


def _decode(page, content):
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encoding = "utf-16"
    else:
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError:
            encoding = "latin-1"
    fix = "save the notebook in JupyterLab instead of another editor"
    page.note("not UTF-8; letters beyond ASCII may be wrong", fix)
    return content.decode(encoding, "replace")


def _find_cells(page, fields):
    """The cells of any version of the format, or None."""
    if not isinstance(fields, dict):
        return None
    version, found = fields.get("nbformat"), fields.get("cells")
    if not isinstance(found, list) and isinstance(fields.get("worksheets"), list):
        found = []
        for sheet in fields["worksheets"]:
            part = sheet.get("cells") if isinstance(sheet, dict) else None
            found += part if isinstance(part, list) else []
    if not isinstance(found, list):
        return None
    if version != 4:
        page.note(
            f"an old notebook format ({str(version)[:20]})",
            "nothing, it was marked all the same; newer JupyterLabs save version 4",
        )
    return found


def _read_metadata(page, metadata):
    facts = metadata.get("flowrl")
    if isinstance(facts, dict):
        page.assignment = clean(str(facts.get("assignment", ""))[:100])
        variant = facts.get("variant")
        whole = isinstance(variant, int) and not isinstance(variant, bool)
        page.variant = variant if whole and 0 <= variant < 2**32 else None
    kernel, info = metadata.get("kernelspec"), metadata.get("language_info")
    language = ""
    if isinstance(kernel, dict):
        language = str(kernel.get("language") or "")
    if not language and isinstance(info, dict):
        language = str(info.get("name") or "")
    if language.lower() not in PYTHON:
        fix = "choose the Python kernel (Kernel, Change Kernel), run all, save, hand in"
        page.note(f"the wrong kernel: {language[:40]}", f"{fix} again")


# ------------------------------------------------------------------------------- cells


def _read_cells(page, found, to_python):
    if len(found) > MAX_CELLS:
        page.note(f"more than {MAX_CELLS} cells; the rest was left out", SMALLER)
    total, begun = 0, time.process_time()
    for cell in found[:MAX_CELLS]:
        if not isinstance(cell, dict):
            continue
        text = clean(_source_of(cell))
        if cell.get("cell_type") != "code":
            text = PICTURE.sub("picture", text)
        total += len(text)
        if len(text) > MAX_CELL_TEXT or total > MAX_TEXT:
            page.note("a cell is too long and was left out", SMALLER)
            continue
        kind, python = str(cell.get("cell_type"))[:20], ""
        if kind == "code":
            left = SECONDS_A_NOTEBOOK - (time.process_time() - begun)
            seconds = max(0.01, min(SECONDS_A_CELL, left))
            python = _read_code(page, text, seconds, to_python)
        mark, given = _marks(cell)
        if kind == "code" and _is_prose(python):
            kind = "prose"
        elif kind == "heading":  # of the third version of the format
            kind, text = "markdown", f"# {text}"
        page.cells.append((kind, text[:MAX_ARGUED], mark, given))


def _source_of(cell):
    """A cell's text: "source", or "input" in the third version of the format."""
    source = cell.get("source", cell.get("input", ""))
    if isinstance(source, list):
        source = "".join(part for part in source if isinstance(part, str))
    return source if isinstance(source, str) else ""


def _read_code(page, text, seconds, to_python):
    """The Python of a code cell; what is left out of it is written down."""
    python, left_out, problem = to_python(text, seconds)
    page.code.append(python)
    number = len(page.code)
    page.left_out += [(number, *row) for row in left_out]
    told = sum("code cell" in what for what, _, _ in page.problems)
    if problem and told < MAX_TOLD:
        page.note(f"code cell {number} {problem}", MEND)
    return python


def _is_prose(python):
    """Whether a code cell holds comments and bare texts only, or no Python at all."""
    try:
        body = ast.parse(python).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return True
    return all(
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for node in body
    )


def _marks(cell):
    """The argued answer that a cell is of, or ""; whether it belongs to a task."""
    metadata = cell.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    facts, grader = metadata.get("flowrl"), metadata.get("nbgrader")
    facts = facts if isinstance(facts, dict) else {}
    grader = grader if isinstance(grader, dict) else {}
    name = facts.get("argued")
    if not name and grader.get("grade") and grader.get("solution"):
        name = grader.get("grade_id")
    given = "question" in facts or "check" in facts
    return clean(name)[:100] if isinstance(name, str) else "", given


# ---------------------------------------------------------------------------- choosing


def count_solved(page, known):
    """Write down how many of each assignment's names a notebook defines for good."""
    text = "\n".join(page.code)
    for key, names in known.items():
        page.solved[key] = sum(_is_solved(text, name) for name in names)


def _is_solved(text, name):
    """Whether a name is defined, and not as the stub or blank that was handed out."""
    name = re.escape(name)
    blank = r"[ \t]*None[ \t]*(#.*)?$"
    if re.search(rf"^{name}[ \t]*(:[^=\n]*)?=(?!=)(?!{blank})", text, re.MULTILINE):
        return True
    heads = [*re.finditer(rf"^def {name}\(", text, re.MULTILINE)]
    bodies = [re.split(r"\n(?=\S)", text[h.end() :], maxsplit=1)[0] for h in heads]
    return any("raise NotImplementedError" not in body for body in bodies)


def choose(pages, known, wanted):
    """Which notebooks are marked: one for each assignment that is there.

    A notebook counts by the key that it carries, or by the names that it defines;
    never by its own name alone.

    Args:
        pages: that were read.
        known: assignment -> the names that it asks for.
        wanted: the only assignment that is expected, or "".

    Returns:
        (chosen page, pages of the same assignment that were not) for each.
    """
    readable = [page for page in pages if page.readable]
    carried = {p.assignment for p in readable if _carries(p, known)}
    groups = {}
    for page in readable:
        carries = _carries(page, known)
        key = page.assignment if carries else _guess(page, carried or known)
        groups.setdefault(key, []).append(page)
    keyless = groups.pop("", [])
    if wanted in groups:
        groups = {wanted: groups[wanted]}
    chosen = []
    for key in sorted(groups):
        ranked = sorted(groups[key], key=lambda page: _rank(page, key), reverse=True)
        ranked[0].marked_as = key
        chosen.append((ranked[0], _others(ranked)))
    if not chosen:
        ranked = sorted(keyless, key=lambda page: _rank(page, ""), reverse=True)
        spoilt = [page for page in pages if not page.readable]
        ranked = spoilt + ranked if _named(spoilt, known) else ranked + spoilt
        chosen = [(ranked[0], _others(ranked))] if ranked else []
    return chosen


def _carries(page, known):
    return bool(page.assignment) and (not known or page.assignment in known)


def _guess(page, keys):
    """The assignment whose names a notebook defines, or ""."""
    best = max(sorted(keys), key=lambda key: page.solved.get(key, 0), default="")
    return best if page.solved.get(best, 0) else ""


def _rank(page, key):
    hidden = any(part.startswith(".") for part in page.parts[:-1])
    named = page.name == f"{key}.ipynb"
    solved, shallow = page.solved.get(key, 0), -len(page.parts)
    return solved, not hidden, named, page.when, shallow, page.parts


def _others(ranked):
    return [page for page in ranked[1:] if page.digest != ranked[0].digest]


def _named(spoilt, known):
    return any(key in page.name for page in spoilt for key in known)

"""The pages of the book: run notebooks, the guides, the API from the docstrings.

Notebooks are run once for each state of their code cells and of the library
(jupyter-cache), so a change of prose costs nothing.  A plot becomes its picture with
the figure's data beside it; ``book.js`` makes it live where there is a browser.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import html
import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat

from flowrl_lab._files import write_atomically
from flowrl_lab._validation import bad_input

__all__ = ["build_book"]

ROOT = Path(__file__).resolve().parents[3]
STATIC = Path(__file__).parent / "static"
GUIDES = (
    *("docs", "data/results", "data/study", "benchmarks"),
    "notebooks/assignments",
)
FRONT = ("CONTRIBUTING.md", "CHANGELOG.md", "CODE_OF_CONDUCT.md")
# What the guide "API" lists, in the order in which the course meets it.
API = {
    "The core": ("tokens", "partition", "losses", "advantages", "exact", "evaluation"),
    "Measures": ("metrics",),
    "Tasks": ("tasks", "tasks.base", "tasks.text", "tasks.tokenized"),
    "Policies": ("policies.base", "policies.language_model", "policies.loading"),
    "Training": (
        *("training.step", "training.log_z", "training.algorithms", "training.run"),
        *("training.config", "training.presets", "training.records"),
    ),
    "Measuring": ("measuring.recorded", "measuring.study", "measuring.noise_floors"),
    "Plots": ("plots.live", "plots.figures"),
    "Sandbox": ("sandbox",),
    "Integrations": ("integrations.trl", "integrations.trackers"),
}
# What a module hands on, and another page of these describes.
ELSEWHERE = {"tasks": "Task", "training.run": "ExperimentConfig"}
PLOTLY = "application/vnd.plotly.v1+json"
SVG = "image/svg+xml"
MARK = ".flowrl_book"  # in a folder that this command made
KERNEL = {"name": "python3", "display_name": "Python 3"}
CELL_SECONDS = 1200

# What stands on top of a notebook's page if it was run for minutes.
SHORT_RUNS = """```{note}
These pictures come from short runs (`quick`). Where the text speaks of the full budget,
your own run shows it, or `python -m flowrl_lab book OUT --budget full`.
```"""


def build_book(
    out: Path,
    *,
    notebooks: Sequence[str] = (),
    budget: str = "quick",
    say: Callable[[str], None] = print,
) -> Path:
    """Run the notebooks where that is needed, and write the site.

    Args:
        out: a folder that is new, empty, or an earlier book.
        notebooks: beginnings of names, such as ``"00"``; empty means all.
        budget: ``"quick"`` or ``"full"``, as in ``setup``.
        say: takes lines of progress.

    Returns:
        The path of ``index.html``.

    Raises:
        ValueError: no clone, another folder's content in ``out``, no such notebook,
            or a cell that fails (its notebook and error are named).
        ImportError: the extra ``book`` is not installed.
    """
    _check_can_build(out)
    chosen = _choose(notebooks)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()
    pages, before = out / ".build" / "pages", out / ".build" / "pages_before"
    shutil.rmtree(before, ignore_errors=True)
    if pages.exists():
        pages.rename(before)
    _copy_guides(pages)
    cache = out / ".build" / f"runs-{budget}-{_fingerprint()}"
    for stale in (out / ".build").glob(f"runs-{budget}-*"):
        if stale != cache:
            shutil.rmtree(stale)
    workers = max(1, min(len(chosen), os.cpu_count() or 1))
    with ThreadPoolExecutor(workers) as pool:
        for name in pool.map(lambda path: _page(path, pages, cache, budget), chosen):
            say(f"  {name}")
    write_index(pages, [path.stem for path in chosen])
    _keep_times(pages, before)
    return _run_sphinx(pages, out)


def _check_can_build(out: Path) -> None:
    if not (ROOT / "notebooks" / "00_start_here.ipynb").is_file():
        raise ValueError(
            f"got no notebooks at {ROOT / 'notebooks'}; expected a clone of the "
            "repository. Fix: clone it, and run this command there"
        )
    try:
        import furo  # noqa: F401
        import jupyter_cache  # noqa: F401
        import myst_nb  # noqa: F401
        import sphinx  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"the book needs {error.name}. Fix: pip install -e '.[book]'"
        ) from None
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).exists():
        raise bad_input(
            "out",
            f"is {out}, which holds other files",
            "a new folder, an empty one or an earlier book",
            "name another folder",
        )


def _choose(beginnings: Sequence[str]) -> list[Path]:
    found = sorted((ROOT / "notebooks").glob("*.ipynb"))
    for beginning in beginnings:
        if not any(path.name.startswith(beginning) for path in found):
            raise ValueError(
                f"got {beginning!r}, expected the beginning of one of "
                f"{[path.stem for path in found]}. Fix: for example 00"
            )
    return [p for p in found if not beginnings or p.name.startswith(tuple(beginnings))]


def _fingerprint() -> str:
    """Of all that a notebook's output depends on besides its own code."""
    digest = hashlib.sha256(sys.version.encode())
    for folder in ("flowrl_lab", "data"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and not {"__pycache__", "book"} & set(path.parts):
                digest.update(path.relative_to(ROOT).as_posix().encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


# ----------------------------------------------------------------------- the pages


def _copy_guides(pages: Path) -> None:
    """Markdown pages and the pictures beside them, where they lie in the clone."""
    for name in (*FRONT, "notebooks/glossary.md"):
        _copy(ROOT / name, pages)
    for folder in GUIDES:
        for path in sorted((ROOT / folder).glob("*.md")):
            _copy(path, pages)
    for pattern in (
        "notebooks/drawings/*.svg",
        "notebooks/assignments/student/*.ipynb",  # to read, not run
        "docs/pictures/*",
    ):
        for path in sorted(ROOT.glob(pattern)):
            _copy(path, pages)


def _copy(path: Path, pages: Path) -> None:
    target = pages / path.relative_to(ROOT)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)


def _page(path: Path, pages: Path, cache: Path, budget: str) -> str:
    """One notebook with its outputs, as a page; returns what was done."""
    notebook = nbformat.read(path, as_version=4)
    was_run, notebook = _with_outputs(notebook, path, cache, budget)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if PLOTLY in output.get("data", {}):
                output["data"] = {"text/html": live_picture(output["data"])}
    if budget == "quick":
        place = min(1, len(notebook.cells))  # below the title
        notebook.cells.insert(place, nbformat.v4.new_markdown_cell(SHORT_RUNS))
    target = pages / path.relative_to(ROOT)
    write_atomically(target, nbformat.writes(notebook).encode())
    return f"{path.stem}: {'run' if was_run else 'as it was run before'}"


def _with_outputs(notebook, path: Path, cache_folder: Path, budget: str):
    """(whether it was run now, the notebook with outputs)."""
    from jupyter_cache import get_cache
    from jupyter_cache.base import CacheBundleIn

    notebook.metadata["kernelspec"] = KERNEL  # a part of what it is found by
    # One folder a notebook: they are run at the same time.
    cache = get_cache(cache_folder / path.stem)
    try:
        with contextlib.suppress(KeyError):
            return False, cache.merge_match_into_notebook(notebook)[1]
        ran = _run(notebook, path, budget)
        ran.metadata["kernelspec"] = KERNEL
        cache.cache_notebook_bundle(
            CacheBundleIn(ran, path.name), check_validity=False, overwrite=True
        )
        return True, ran
    finally:
        cache.db.dispose()  # it leaves its connections open


def _run(notebook, path: Path, budget: str):
    """The notebook after a run in an empty folder, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / path.name
        work.write_text(nbformat.writes(notebook), encoding="utf-8")
        command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute"]
        command += ["--inplace", "--ExecutePreprocessor.kernel_name=python3"]
        command += ["--ExecutePreprocessor.record_timing=False"]
        command += [f"--ExecutePreprocessor.timeout={CELL_SECONDS}", str(work)]
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ,
            "FLOWRL_BUDGET": budget,
            "FLOWRL_HEADLESS": "1",
            "FLOWRL_PROGRESS": str(work.with_name("progress.json")),
            "FLOWRL_DATA": str(ROOT / "data"),
            "PYTHONPATH": os.pathsep.join(paths),
        }
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, errors="replace"
        )
        if done.returncode != 0:
            last = "\n".join(done.stderr.strip().splitlines()[-12:])
            raise ValueError(f"{path.name} does not run: {last}")
        return nbformat.read(work, as_version=4)


def live_picture(data: dict) -> str:
    """A plot's picture, with the figure's data for ``book.js`` to make it live."""
    label = html.escape(str(data.get("text/plain", "a plot")), quote=True)
    encoded = base64.b64encode("".join(data[SVG]).encode()).decode()
    figure = json.dumps(data[PLOTLY]).replace("</", "<\\/")
    return (
        f'<div class="flowrl-plot"><img alt="{label}" '
        f'src="data:{SVG};base64,{encoded}">'
        f'<script type="application/json">{figure}</script></div>'
    )


def write_index(pages: Path, notebooks: Iterable[str]) -> None:
    """The first page (README, with its links), the API, and the table of contents."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("LICENSE", "CITATION.cff", "flowrl_lab/training/step.py"):
        _copy(ROOT / name, pages)
    (pages / "api").mkdir(parents=True, exist_ok=True)
    for title, names in API.items():
        (pages / "api" / f"{_slug(title)}.md").write_text(
            f"# {title}\n\n" + "".join(map(_api_entry, names)), encoding="utf-8"
        )
    handed_out = sorted((ROOT / "notebooks/assignments/student").glob("*.ipynb"))
    assignments = [
        "notebooks/assignments/INSTRUCTORS",
        *(f"notebooks/assignments/student/{path.stem}" for path in handed_out),
    ]
    contents = [
        ("The course", [f"notebooks/{name}" for name in notebooks]),
        ("Beside it", ["notebooks/glossary", *assignments]),
        ("Guides", sorted(f"docs/{p.stem}" for p in (ROOT / "docs").glob("*.md"))),
        (
            "Measured",
            ["data/results/README", "data/study/PROTOCOL", "benchmarks/README"],
        ),
        ("API", [f"api/{_slug(title)}" for title in API]),
        ("The project", [name.removesuffix(".md") for name in FRONT]),
    ]
    trees = "".join(
        f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n"
        + "\n".join(entries)
        + "\n```\n"
        for title, entries in contents
    )
    (pages / "index.md").write_text(text + trees, encoding="utf-8")


def _keep_times(pages: Path, before: Path) -> None:
    """Pages that are as they were keep their time: Sphinx reads only newer ones."""
    for path in pages.rglob("*"):
        twin = before / path.relative_to(pages)
        if twin.is_file() and twin.read_bytes() == path.read_bytes():
            shutil.copystat(twin, path)


def _slug(title: str) -> str:
    return title.lower().replace(" ", "_")


def _api_entry(name: str) -> str:
    left_out = f"   :exclude-members: {ELSEWHERE[name]}\n" if name in ELSEWHERE else ""
    return (
        f"## flowrl_lab.{name}\n\n```{{eval-rst}}\n"
        f".. automodule:: flowrl_lab.{name}\n   :members:\n   :member-order: bysource\n"
        f"{left_out}```\n\n"
    )


# ---------------------------------------------------------------------- the site


def _run_sphinx(pages: Path, out: Path) -> Path:
    from plotly.offline import get_plotlyjs
    from sphinx.application import Sphinx
    from sphinx.util.docutils import docutils_namespace

    with docutils_namespace():
        app = Sphinx(
            srcdir=pages,
            confdir=None,
            outdir=out,
            doctreedir=out / ".build" / "doctrees",
            buildername="html",
            confoverrides=settings(),
            status=None,
            warningiserror=False,
        )
        app.connect("doctree-read", _take_bars_as_they_are)
        app.connect("autodoc-process-signature", _leave_out_foreign_settings)
        before_napoleon = 400
        app.connect("autodoc-process-docstring", _make_plain, before_napoleon)
        app.build()
    if app.statuscode:
        raise ValueError("the site could not be written; the messages above say why")
    script = out / "_static" / "plotly.min.js"
    script.write_text(get_plotlyjs(), encoding="utf-8")
    return out / "index.html"


def _take_bars_as_they_are(_app, page) -> None:
    """|n-grams| in a docstring is no name to look up: no link to an error message."""
    from docutils import nodes

    for link in list(page.findall(nodes.problematic)):
        link.parent.replace(link, nodes.Text(link.astext()))


def _leave_out_foreign_settings(_app, _what, _name, found, _options, *_signature):
    """A config that adds to another library's shows its own settings only."""
    if not dataclasses.is_dataclass(found) or not isinstance(found, type):
        return None
    own = inspect.get_annotations(found)
    shown = [
        parameter
        for name, parameter in inspect.signature(found).parameters.items()
        if name in own
    ]
    if len(shown) == len(dataclasses.fields(found)):
        return None
    words = [f"{one.name}: {one.annotation} = {one.default!r}" for one in shown]
    return f"(*, {', '.join(words)}, **{found.__base__.__name__})", None


def _make_plain(_app, _what, _name, _found, _options, lines: list[str]) -> None:
    """What a docstring means, in the words that napoleon and Sphinx know.

    What is set in below prose is an example or a formula, as it stands; names of
    arguments that take two lines are one list.
    """
    marked, section = [], False
    for before, line in zip(["", *lines], lines, strict=False):
        if line and not line.startswith(" "):
            section = line.endswith(":") and line[:-1].isidentifier()
            code = line.endswith("::")
        elif section and before.endswith(",") and ":" not in before:
            line = f"{marked.pop()} {line.strip()}"
        elif line.strip() and not before.strip() and not section and not code:
            marked += ["::", ""]
            code = True
        marked.append(line)
    lines[:] = marked


def settings() -> dict:
    """What a ``conf.py`` would say."""
    return {
        "project": "flowrl_lab",
        "author": "the flowrl_lab developers",
        "extensions": [
            *("myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"),
            "sphinx-mathjax-offline",
        ],
        "html_theme": "furo",
        "html_title": "flowrl_lab",
        "html_static_path": [str(STATIC)],
        "html_css_files": ["book.css"],
        "html_js_files": ["book.js"],
        "html_copy_source": False,
        "html_show_copyright": False,
        "html_show_search_summary": False,  # it would read pages, which file:// forbids
        "html_show_sphinx": False,
        "highlight_language": "none",
        "modindex_common_prefix": ["flowrl_lab."],
        "python_maximum_signature_line_length": 80,
        "nb_execution_mode": "off",
        "nb_merge_streams": True,
        "myst_enable_extensions": ["dollarmath", "amsmath"],
        "myst_heading_anchors": 4,
        "autodoc_typehints": "signature",
        "autodoc_preserve_defaults": True,  # as written, which can be parsed
        "napoleon_use_ivar": True,
        # Docstrings are plain text with ``code``; their stars and bars mean themselves.
        "suppress_warnings": ["docutils", "myst.header", "mystnb.unknown_mime_type"],
    }

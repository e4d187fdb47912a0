"""Numbers in text: what the pages and the notebooks say is what the data says.

Tables are made again from ``data/results`` and compared; sentences on speed are
computed again; and the prose of the notebooks on evidence carries no decimal number
that no cell of that notebook holds as well, or ``tests/support/tied_sentences.py``,
which ties sentences that compare runs to the runs.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path

import nbformat
import pytest

import flowrl_lab
from benchmarks import planner_check
from flowrl_lab.__main__ import build_parser
from flowrl_lab._files import data_path
from flowrl_lab.measuring.fronts import protocol_markdown
from flowrl_lab.measuring.protocol import load_curves, load_protocol
from flowrl_lab.measuring.recorded import load_recorded, recorded_names
from flowrl_lab.measuring.tables import format_markdown, group_runs

ROOT = Path(__file__).resolve().parents[2]


def page(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


RESULTS = page("data/results/README.md")
SPEED = page("benchmarks/README.md")
TABLE = re.compile(
    r"<!-- recorded (\w+) -->\n(.*?)\n<!-- end of the table -->", re.DOTALL
)
PROTOCOL_TABLE = re.compile(TABLE.pattern.replace("recorded", "protocol"), re.DOTALL)
# A decimal number or a percentage; no version, section, arXiv number or range of code.
NUMBER = re.compile(r"(?<![\w.\[/])(\d+\.\d+|\d+ ?%)(?![\w.]*\d)")
PAGES = [
    *("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "CHANGELOG.md"),
    *("data/results/README.md", "data/study/PROTOCOL.md"),
    *("notebooks/glossary.md", "notebooks/assignments/INSTRUCTORS.md"),
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]
EVIDENCE = ("08_tiny_lm_code", "10_measuring_diversity", "11_ablations_and_limits")


def stored(name: str) -> dict:
    return json.loads((data_path("results") / f"{name}.json").read_text("utf-8"))


def commands_of(text: str) -> list[str]:
    """What follows ``python -m flowrl_lab`` or ``flowrl-lab``, in blocks and inline."""
    text = text.replace("\\\n", " ")
    blocks = re.findall(r"```\w*\n(.*?)```", text, flags=re.DOTALL)
    inline = re.findall(r"`([^`]+)`", re.sub(r"```.*?```", " ", text, flags=re.DOTALL))
    lines = [line for block in blocks for line in block.splitlines()]
    lines += [" ".join(code.split()) for code in inline]
    starts = r"^(?:\S*python3? -m flowrl_lab|\S*flowrl-lab) (?!\.\.\.)(.+)$"
    return [found[1] for line in lines if (found := re.search(starts, line))]


def test_commands_are_found_in_blocks_and_in_sentences():
    text = (
        "```\npython -m flowrl_lab train --out a  # one\nls\n```\n`flowrl-lab\nbook b`"
    )
    assert commands_of(text) == ["train --out a  # one", "book b"]


@pytest.mark.parametrize("name", PAGES)
def test_the_commands_of_a_page_are_those_of_the_program(name, capsys):
    parser = build_parser()
    for command in commands_of(page(name)):
        try:
            parser.parse_args(shlex.split(command, comments=True))
        except SystemExit:
            pytest.fail(f"{name}: {command!r}: {capsys.readouterr().err}")


def names_of_the_code() -> tuple[set[str], dict[str, str]]:
    """Every name and word in the code and its tests; and each file's docstrings."""
    known, said = {path.stem for path in (ROOT / "data").rglob("*")}, {}
    files = [
        p
        for f in ("flowrl_lab", "benchmarks", "tests")
        for p in (ROOT / f).rglob("*.py")
    ]
    for path in files:
        docstrings = []
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                docstrings.append(ast.get_docstring(node, clean=False))
            names = (
                getattr(node, field, "") for field in ("id", "attr", "arg", "name")
            )
            known |= {name for name in names if isinstance(name, str)}
            if isinstance(value := getattr(node, "value", ""), str):
                known |= (
                    set() if value in docstrings else set(re.findall(r"\w+", value))
                )
        known |= {path.stem, path.parent.name}
        said[str(path.relative_to(ROOT))] = "\n".join(filter(None, docstrings))
    return known, said


def test_a_name_in_a_page_or_docstring_is_one_of_the_code():
    known, texts = names_of_the_code()
    texts |= {name: page(name).partition("## other libraries")[0] for name in PAGES}
    theirs = {"masked_whiten"}  # TRL's
    lost = [
        f"{where}: {name}"
        for where, text in texts.items()
        for name in re.findall(r"(?<!`)``?([a-z]+(?:_[a-z0-9]+)+)(?:\(\))?`", text)
        if name not in known | theirs
    ]
    assert not lost, "\n".join(lost)


def names_in(module: str) -> set[str]:
    """What a module of ours defines or hands on, read without importing it."""
    path = ROOT / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    names = set(flowrl_lab.__all__) if module == "flowrl_lab" else set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        names.add(getattr(node, "name", ""))
    return names


@pytest.mark.parametrize("name", [name for name in PAGES if name != "README.md"])
def test_the_code_of_a_page_fits_a_narrow_window(name):
    """The book shows 81 characters where the window is 700 pixels wide."""
    for block in re.findall(r"```\w*\n(.*?)```", page(name), flags=re.DOTALL):
        for line in block.splitlines():
            assert len(line) <= 81, f"{name}: {line}"


@pytest.mark.parametrize("name", PAGES)
def test_the_code_of_a_page_imports_what_exists(name):
    for block in re.findall(r"```python\n(.*?)```", page(name), flags=re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                asked = {alias.name for alias in node.names}
                assert asked <= names_in(node.module), f"{name}: {node.module}"


def test_the_recorded_tables_are_shown():
    shown = dict(TABLE.findall(RESULTS))
    assert "make_number" in shown
    for name, table in shown.items():
        assert table.replace("**", "") == format_markdown(load_recorded(name)), (
            f"python -m flowrl_lab recorded {name} --markdown gives another table"
        )


def test_the_protocols_tables_are_those_of_its_runs():
    shown = dict(PROTOCOL_TABLE.findall(RESULTS))
    protocol = load_protocol()
    assert list(shown) == list(protocol.tasks)
    for task, table in shown.items():
        assert table == protocol_markdown(protocol, load_curves(task))
    stage = [c for task in protocol.tasks for c in load_curves(task)]
    assert "25 hours of a core" in RESULTS
    hours = sum(curve.environment["wall_seconds"] for curve in stage) / 3600
    assert round(hours) == 25, hours


def test_the_page_says_how_many_variants_each_study_has():
    words = {10: "ten", 12: "twelve", 15: "fifteen"}
    text = " ".join(RESULTS.split())
    for study, shown in {
        "landscape": "the landscape ({} variants)",
        "make_number": "`make_number` ({})",
        "make_number_graded": "graded ({})",
        "programs": "programs ({})",
    }.items():
        groups = group_runs(load_recorded(study))
        assert {len(runs) for runs in groups.values()} == {5}, study
        assert shown.format(words[len(groups)]) in text, study


def test_the_page_says_of_speed_what_was_measured():
    kept = stored("benchmarks")["lines"]
    lines = {(line["what"], line["peer"]): line for line in kept}

    def ours(what: str, digits: int = 3) -> str:
        return f"{lines[what, 'TRL, bfloat16']['ours']:.{digits}f} s"

    def times(what: str, peer: str) -> str:
        line = lines[what, peer]
        return f"{line['theirs'] / line['ours']:.1f}"

    def memory(tokens: int, whose: str, digits: int) -> str:
        what = f"log-probs {tokens:,} x 150,000: memory"
        mib = lines[what, "log_softmax + gather"][whose]
        return f"{mib / 1024:.{digits}f} GiB"

    def longer(tokens: int) -> str:
        line = lines[f"log-probs {tokens:,} x 150,000: time", "log_softmax + gather"]
        return f"{line['ours'] / line['theirs']:.1f}"

    comes, plain, tuned = "TRL, bfloat16", "TRL, float32", "TRL, float32, tuned"
    real = "SmolLM2-135M, flowrl"
    rows = [
        [words, ours(what), *(times(what, peer) for peer in (comes, plain, tuned))]
        for words, what in (
            ("tiny model, GRPO, 16 × 16", "tiny LM, grpo"),
            ("tiny model, FlowRL, 16 × 16", "tiny LM, flowrl"),
            ("tiny model, FlowRL, 8 × 64", "tiny LM 8 x 64, flowrl"),
        )
    ]
    like = times(real, plain), times(real, tuned)  # like with like: the same numbers
    narrow = f"{real}, bfloat16"
    rows += [
        ["SmolLM2-135M, FlowRL, 4 × 8", ours(real, 1), "", *like],
        ["the same, ours in bfloat16", ours(narrow, 1), times(narrow, comes), "", ""],
    ]
    rows += [
        [f"{n:,}", memory(n, "ours", 2), memory(n, "theirs", 1), longer(n)]
        for n in (8192, 2048)
    ]
    shown = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in SPEED.splitlines()
        if line.startswith("|")
    ]
    start = shown.index(rows[0])
    assert shown[start : start + 5] == rows[:5]
    assert [row for row in rows[5:] if row not in shown] == []


def test_the_page_says_of_the_planner_what_its_check_prints():
    printed = planner_check.format_table(stored("planner_check")).splitlines()[-2:]
    found = [re.search(r"([\d.]+ to [\d.]+), median ([\d.]+)", s) for s in printed]
    (time, middle), (memory, half) = (one.groups() for one in found)
    sentence = (
        f"time {time} of the measured (median {middle}), memory {memory} "
        f"(median {half})."
    )
    assert sentence in " ".join(RESULTS.split())


def test_the_page_says_of_trls_loop_what_was_measured():
    table = stored("trl_learning_curve")["table"]
    far, smallest = table["kl_target_policy"], min(row["p"] for row in table.values())
    text = " ".join(RESULTS.split())
    assert all(row["p_holm"] == 1 for row in table.values()) and len(table) == 10
    assert f"the smallest of the ten p (Welch's t-test) is {smallest:.2f}," in text
    for side, whose in (("ours", "on our side"), ("trl", "on TRL's")):
        assert f"{far[side]:.3f} ± {far[side + '_sd']:.3f} {whose}" in text


def numbers_in_prose(text: str) -> list[str]:
    """Decimal numbers and percentages outside links, code, formulas and headings."""
    text = re.sub(r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$", " ", text, flags=re.S)
    text = re.sub(r"^#.*$|\]\([^)]*\)", " ", text, flags=re.M)
    text = re.sub(r"arXiv \d{4}\.\d{5}|\d{4}\.\d{5}", " ", text)
    return [found.replace(" ", "") for found in NUMBER.findall(text)]


def section_numbers(cells) -> set[str]:
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return set(re.findall(r"^#+ (\d+\.\d+)", text, flags=re.M))


def all_sections() -> set[str]:
    """Section numbers of the whole course: prose may refer to 5.8."""
    found: set[str] = set()
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = nbformat.read(path, as_version=nbformat.NO_CONVERT).cells
        found |= section_numbers(cells)
    return found


def is_held(number: str, source: str) -> bool:
    """Whether a source holds a number, "40%" as 40 or as 0.4, or asserts its range."""
    plain = number.rstrip("%")
    between = re.findall(r"assert (\d*\.\d+) < [^<\n]+ < (\d*\.\d+)", source)
    if any(float(low) < float(plain) < float(high) for low, high in between):
        return True
    forms = {plain, f"{float(plain) / 100:g}"} if number.endswith("%") else {plain}
    return any(re.search(rf"(?<![\d.]){re.escape(f)}(?!\d)", source) for f in forms)


def tied_sentences() -> list[str]:
    """What ``test_sentences`` ties to the runs, word for word."""
    tree = ast.parse(page("tests/support/tied_sentences.py"))
    texts = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)]
    return [text for text in texts if isinstance(text, str) and text.count(" ") > 4]


def untied(prose: str, tied: list[str]) -> str:
    """Prose with a line a paragraph, without the sentences that are tied."""
    prose = "\n".join(" ".join(part.split()) for part in prose.split("\n\n"))
    for sentence in tied:
        prose = prose.replace(sentence, " ")
    return prose


def test_a_number_is_loose_unless_its_very_sentence_is_tied():
    tied = ["GRPO stands at 0.556 and FlowRL at 0.560"]
    prose = "In the search GRPO stands at 0.556\nand FlowRL at 0.560, or 0.4."
    assert numbers_in_prose(untied(prose, tied)) == ["0.4"]
    assert numbers_in_prose(untied("FlowRL at 0.560.", tied)) == ["0.560"]


@pytest.mark.parametrize("stem", EVIDENCE)
def test_notebook_prose_carries_no_number_that_no_cell_holds(stem):
    """A number in prose must stand in a code cell (an assertion, a setting) too."""
    path = ROOT / "notebooks" / f"{stem}.ipynb"
    if not path.is_file():
        pytest.skip(f"{stem} is not part of the course yet")
    cells = nbformat.read(path, as_version=nbformat.NO_CONVERT).cells
    held_by = [cell.source for cell in cells if cell.cell_type == "code"]
    held_by.append((data_path("results") / "paper.json").read_text(encoding="utf-8"))
    sections, tied = all_sections(), tied_sentences()
    loose = [
        f"{number} in {' '.join(cell.source.split())[:90]!r}"
        for cell in cells
        if cell.cell_type == "markdown"
        for number in numbers_in_prose(untied(cell.source, tied))
        if number not in sections
        and not any(is_held(number, source) for source in held_by)
    ]
    assert not loose, "\n".join(loose)


def test_the_papers_figures_add_up():
    """Each row's last figure is the mean of the others, to the paper's rounding."""
    paper = stored("paper")
    for size in ("32B", "7B"):
        for name, row in paper["maths"][size].items():
            assert len(row) == len(paper["maths"]["columns"])
            assert abs(sum(row[:-1]) / 6 - row[-1]) < 0.02, (size, name)
    for row in paper["code"]["7B"].values():
        assert len(row) == len(paper["code"]["columns"])


def test_recordings_are_small():
    """Everything that ships as results stays well below what a clone minds."""
    assert recorded_names()
    files = [p for p in data_path("results").iterdir() if p.is_file()]
    assert sum(path.stat().st_size for path in files) < 10e6

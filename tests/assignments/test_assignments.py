"""Assignments: one source each, its builds, and what a student's notebook says."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
import torch
from safetensors.torch import save_file
from synthetic_submissions import adapters, instructor

from flowrl_lab.__main__ import main
from flowrl_lab.assignments import open_assignment
from flowrl_lab.assignments.build import (
    build_assignment,
    find_sources,
    make_bundle,
    variant_of,
)
from flowrl_lab.assignments.bundles import call_with_gradients, read_bundle
from flowrl_lab.assignments.compare import difference
from flowrl_lab.assignments.handing_in import write_submission
from flowrl_lab.assignments.marking.grading import grade_submission
from flowrl_lab.assignments.marking.submissions import Found, read_submission
from flowrl_lab.assignments.source import read_source, strip_solution
from flowrl_lab.assignments.spec import FunctionQuestion, Number, OwnTest
from flowrl_lab.commands.assign import FOLDER
from flowrl_lab.sandbox import sandbox_problem

ROOT = Path(__file__).resolve().parents[2]
SOURCES = find_sources(ROOT / FOLDER)
KEYS = [path.stem for path in SOURCES]
FULL_MARKS = dict(zip(KEYS, (44, 54, 39), strict=True))
HIDDEN_LINE = 12  # shorter lines of code say nothing

each_source = pytest.mark.parametrize("path", SOURCES, ids=KEYS)
each_key = pytest.mark.parametrize("key", KEYS)
needs_sandbox = pytest.mark.skipif(
    sandbox_problem() is not None, reason=str(sandbox_problem())
)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Notebooks write beside themselves: let them."""
    monkeypatch.chdir(tmp_path)
    # transformers calls one of its functions by an old name
    monkeypatch.setenv("PYTHONWARNINGS", "ignore::FutureWarning")


def load(path: Path, variant: int = 0):
    """An assignment's questions, for one variant."""
    return make_bundle(read_source(path)).load(variant)


def questions(path: Path, kind: type) -> list:
    return [q for q in load(path).questions if isinstance(q, kind)]


# ------------------------------------------------------------------------------ builds


def test_there_are_three():
    assert KEYS == [
        "1_partition_functions",
        "2_token_log_probs_and_losses",
        "3_tiny_lm",
    ]


@each_source
def test_what_is_built_is_what_is_stored(path):
    """Rebuilding gives the same bytes as the files in the repository."""
    built = build_assignment(path)
    folder, key = ROOT / FOLDER, path.stem
    stored = {
        folder / "student" / f"{key}.ipynb": built.student,
        folder / "student" / f"{key}.json": built.handout,
    }
    for file, text in stored.items():
        assert file.read_bytes() == text.encode(), f"{file}: run `assign build` again"
    assert build_assignment(path) == built


def secrets(path: Path) -> list[str]:
    """Lines of solutions and hidden blocks that the open cells do not hold too."""
    source = read_source(path)
    openly = "\n".join(strip_solution(c.text) for c in source.cells if not c.hidden)
    found = []
    for cell in source.cells:
        rows = cell.text.splitlines()
        kept = strip_solution(cell.text).splitlines() if not cell.hidden else []
        found += [row.strip() for row in rows if row not in kept]
    # Titles and messages of slips are written for students.
    told = json.dumps(build_assignment(path).handout, ensure_ascii=False)
    return [
        row
        for row in found
        if len(row) >= HIDDEN_LINE
        and row not in openly
        and row.strip("\"',)") not in told
    ]


@each_source
def test_no_solution_and_no_hidden_test_is_in_the_student_build(path):
    built, rows = build_assignment(path), secrets(path)
    assert len(rows) > 100  # the test looks at something
    cells = json.loads(built.student)["cells"]
    student = "\n".join("".join(cell["source"]) for cell in cells)
    handout = "\n".join(strings(json.loads(built.handout)))
    for row in rows:
        assert row not in student, row
        assert row not in handout, row
    for marker in ("BEGIN SOLUTION", "HIDDEN TESTS", "own_test(", "mutants="):
        assert marker not in student + handout


def strings(value) -> list[str]:
    """All texts of a JSON value, keys included."""
    if isinstance(value, dict):
        return [*value, *(s for part in value.values() for s in strings(part))]
    if isinstance(value, list):
        return [s for part in value for s in strings(part)]
    return [value] if isinstance(value, str) else []


@each_source
def test_the_notebooks_are_valid_and_of_one_form(path):
    built = build_assignment(path)
    for text in (built.student, built.solved):
        notebook = nbformat.reads(text, as_version=nbformat.NO_CONVERT)
        nbformat.validate(notebook)
        ids = [cell.id for cell in notebook.cells]
        assert len(set(ids)) == len(ids)
        assert notebook.metadata.flowrl.assignment == path.stem
        for cell in notebook.cells:
            if cell.cell_type == "code":
                assert cell.outputs == [] and cell.execution_count is None
                assert max(map(len, cell.source.splitlines())) <= 88, cell.source
    student = nbformat.reads(built.student, as_version=nbformat.NO_CONVERT)
    first = student.cells[0].source
    assert first.startswith("# Assignment") and "hours" in first and "CPU" in first
    for cell in student.cells:
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= 25, cell.source
        for link in re.findall(r"\]\((\.\./[^)#]+)\)", cell.source):
            assert (ROOT / FOLDER / "student" / link).exists(), link


@each_source
def test_the_first_page_says_how_many_points(path):
    loaded = load(path)
    by_hand = sum(q.points for q in loaded.questions if type(q).__name__ == "Argued")
    total = sum(q.points for q in loaded.questions)
    assert total - by_hand == FULL_MARKS[path.stem]
    first = read_source(path).cells[0].text
    assert str(by_hand) in first
    for question in loaded.questions:
        headings = [c.text for c in read_source(path).cells if c.kind == "markdown"]
        assert any("points)" in text for text in headings), question.name


# ---------------------------------------------------------------------------- variants


@each_source
def test_variants_have_other_numbers(path):
    def facts(variant: int) -> str:
        loaded = load(path, variant)
        numbers = [str(q.value) for q in loaded.questions if isinstance(q, Number)]
        return f"{sorted(loaded.problem)} {numbers}"

    seen = {facts(variant) for variant in (0, 1, 2, 4)}
    assert len(seen) >= 3, seen


def test_a_student_s_variant_depends_on_name_and_seed_only():
    assert variant_of("ada", 7) == variant_of("ada", 7)
    assert len({variant_of(n, s) for n in ("ada", "bob") for s in (1, 2)}) == 4


def test_a_secret_changes_hidden_numbers_and_nothing_that_students_see():
    path = SOURCES[0]
    plain, secret = build_assignment(path), build_assignment(path, secret="lake")
    assert (plain.student, plain.handout) == (secret.student, secret.handout)
    first = [
        make_bundle(read_source(path), word).load(0).questions[0].tests[0].calls[0]
        for word in ("", "lake")
    ]
    assert not torch.equal(first[0].args[0], first[1].args[0])


# ------------------------------------------------------------- visible checks, by name


@each_source
def test_each_known_mistake_is_named_and_costs_points(path):
    """By the open cases the student reads what it is; the hidden ones see it too."""
    loaded = load(path)
    Path("handout.json").write_text(build_assignment(path).handout)
    assignment = open_assignment("handout.json")
    for question in questions(path, FunctionQuestion):
        assert len(question.slips) >= 4
        solution = loaded.solutions[question.name]
        result = assignment.check(question.name, solution)
        assert result.status == "passed", result
        for slip in question.slips:
            result = assignment.check(question.name, slip.wrong)
            assert (result.status, result.mistake) == ("failed", slip.name), result
            assert result.message == slip.message
            assert lost(question, solution, slip.wrong) > 0, slip.name


def lost(question: FunctionQuestion, solution, wrong) -> float:
    """Points that a function loses in the hidden tests."""
    total = 0.0
    for test in question.tests:
        results = [
            [call_with_gradients(f, call, question.gradients) for call in test.calls]
            for f in (wrong, solution)
        ]
        pairs = zip(*results, strict=True)
        if any(difference(a, b, question.tolerance) for a, b in pairs):
            total += test.points
    return total


@each_source
def test_hidden_tests_use_other_numbers_than_the_open_check(path):
    for question in questions(path, FunctionQuestion):
        openly = {str(call) for call in question.visible}
        hidden = {str(call) for test in question.tests for call in test.calls}
        assert not openly & hidden


def test_own_tests_of_the_solution_find_every_fault():
    loaded = load(SOURCES[1])
    for question in questions(SOURCES[1], OwnTest):
        test = loaded.solutions[question.name]
        for text in question.right:
            test(make(text))
        for title, _, text in question.mutants:
            with pytest.raises((AssertionError, RuntimeError)):
                test(make(text))
                pytest.fail(f"not found: {title}", pytrace=False)


def make(text: str):
    names: dict = {}
    exec(text, names)
    return names["implementation"]


def test_the_check_of_an_own_test_says_what_is_missing(capsys):
    path = SOURCES[1]
    Path("handout.json").write_text(build_assignment(path).handout)
    assignment = open_assignment("handout.json")
    good = load(path).solutions["test_matching_loss"]

    def stub(loss):
        raise NotImplementedError

    def never(loss):
        assert loss is None

    def always(loss):
        assert loss is not None

    def verdict(test) -> str:
        return assignment.check("test_matching_loss", test).status

    assert verdict(good) == "passed"
    assert verdict(stub) == "not attempted"
    assert verdict(never) == verdict(always) == "failed"
    assert "rejects a right implementation" in capsys.readouterr().out


# ------------------------------------------------------------------- running notebooks


def run_notebook(key: str, notebook: Path) -> dict:
    """All code cells in order, in one namespace, beside the handout."""
    names: dict = {"__name__": "__main__"}
    for cell in nbformat.read(notebook, as_version=nbformat.NO_CONVERT).cells:
        if cell.cell_type == "code":
            text = cell.source.replace('or "your name"', 'or "Ada Lovelace"')
            exec(compile(text, f"<{key}>", "exec"), names)
    return names


def handed_in(tmp_path: Path, key: str, kind: str, steps: int = 80) -> Path:
    """Run a notebook as it is built; the file that its last cell writes."""
    solved = kind == "solved"
    home = instructor() if solved else ROOT / FOLDER / "student"
    name = f"{key}_solved.ipynb" if solved else f"{key}.ipynb"
    shutil.copy(home / name, tmp_path / f"{key}.ipynb")
    shutil.copy(home / f"{key}.json", tmp_path)
    if steps < 80:
        text = (tmp_path / f"{key}.ipynb").read_text(encoding="utf-8")
        assert "steps=80" in text
        text = text.replace("steps=80", f"steps={steps}")
        (tmp_path / f"{key}.ipynb").write_text(text, encoding="utf-8")
    elif solved and key.startswith("3"):  # trained before; the notebook takes them
        for file in adapters().glob("*.safetensors"):
            shutil.copy(file, tmp_path)
    run_notebook(key, tmp_path / f"{key}.ipynb")
    (found,) = tmp_path.glob("*.zip")
    assert found.name == f"Ada_Lovelace-{key}.zip"
    return found


@needs_sandbox
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("key", "kind"),
    [
        *((key, "student") for key in KEYS),
        *((key, "solved") for key in KEYS[:2]),
        pytest.param(KEYS[2], "solved", marks=pytest.mark.full),  # trains adapters
    ],
)
def test_the_solved_notebook_gets_full_marks_and_the_student_s_none(
    tmp_path, key, kind
):
    path = handed_in(tmp_path, key, kind)
    submission = read_submission(Found("ada", "ada", path))
    bundle = read_bundle(instructor() / f"{key}.bundle.json")
    grade = grade_submission(submission, bundle, 0, "")
    notes = {n: [p.note for p in parts if p.note] for n, parts in grade.parts.items()}
    assert grade.points == (FULL_MARKS[key] if kind == "solved" else 0), notes
    if kind == "solved":
        assert grade.problems == []
        assert all(len(text) > 200 for text in grade.argued.values())
    else:
        assert {p.note for p in grade.parts[next(iter(grade.parts))]} == {
            "not attempted"
        }


@pytest.mark.full
@needs_sandbox
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_assignment_3_loses_nothing_but_the_training_that_was_left_out(tmp_path):
    """One step instead of 80: its adapters fit, and its claims are true."""
    path = handed_in(tmp_path, KEYS[2], "solved", steps=1)
    submission = read_submission(Found("ada", "ada", path))
    bundle = read_bundle(instructor() / f"{KEYS[2]}.bundle.json")
    grade = grade_submission(submission, bundle, 0, "")
    assert grade.problems == []
    parts = grade.parts.pop("adapters")
    assert grade.points == FULL_MARKS[KEYS[2]] - 20
    earned = {part.title for part in parts if part.earned == part.points}
    assert {parts[0].title, parts[-1].title} <= earned, parts


@needs_sandbox
@pytest.mark.full
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("digit", [1, 3, 9])
def test_every_variant_of_assignment_3_can_get_full_marks(tmp_path, digit):
    """The solved notebook trains its six adapters for another banned digit."""
    variant = next(
        v
        for v in range(1, 99)
        if load(SOURCES[2], v).problem["task_options"]["digit"] == digit
    )
    built = build_assignment(SOURCES[2], variant=variant)
    key = built.key
    (tmp_path / f"{key}.ipynb").write_text(built.solved, encoding="utf-8")
    (tmp_path / f"{key}.json").write_text(built.handout, encoding="utf-8")
    run_notebook(key, tmp_path / f"{key}.ipynb")
    (found,) = tmp_path.glob("*.zip")
    submission = read_submission(Found("ada", "ada", found))
    bundle = read_bundle(instructor() / f"{key}.bundle.json")
    grade = grade_submission(submission, bundle, variant, "")
    notes = {n: [p.note for p in parts if p.note] for n, parts in grade.parts.items()}
    assert (grade.variant, grade.points) == (variant, FULL_MARKS[key]), notes


# ---------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\n", 'code before the first "# %%"'),
        ("# %%\nx = 1\n", "does not begin with a markdown cell"),
        ("# %% [markdown]\n# # A\n\n# %%\n### BEGIN SOLUTION\nx = 1\n", "take turns"),
        (
            "# %% [markdown]\n# # A\n\n# %%\nx = 1\n### BEGIN HIDDEN TESTS\ny = 1\n"
            "### END HIDDEN TESTS\n",
            "shares its cell",
        ),
        ("# %% [markdown]\n# # A\n\n# %%\nx = = 1\n", "must be Python"),
    ],
)
def test_a_source_that_cannot_be_built_says_where(text, words):
    Path("4_wrong.py").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_source(Path("4_wrong.py"))


def test_a_question_without_its_cell_is_named():
    text = (
        "# %% [markdown]\n# # A\n\n# %%\n### BEGIN HIDDEN TESTS\n"
        'number("X", "a number", points=1, value=2)\n### END HIDDEN TESTS\n'
    )
    Path("4_wrong.py").write_text(text)
    with pytest.raises(ValueError, match=r"\['X'\] as a marked cell"):
        build_assignment(Path("4_wrong.py"))


def test_a_handout_that_is_not_there_or_damaged_says_what_to_do():
    with pytest.raises(ValueError, match="same folder as the notebook"):
        open_assignment("1_partition_functions.json")
    Path("damaged.json").write_text('{"format": 1')
    with pytest.raises(ValueError, match="copy it again"):
        open_assignment("damaged.json")


def student_folder(tmp_path: Path) -> Path:
    for path in (ROOT / FOLDER / "student").glob("1_*"):
        shutil.copy(path, tmp_path)
    return tmp_path / "1_partition_functions.ipynb"


def test_handing_in_names_what_is_missing_and_changes_nothing(tmp_path):
    notebook = student_folder(tmp_path)
    before = notebook.read_bytes()
    path, notes = write_submission(notebook, "Zoë  M.", {"a.safetensors"})
    assert path.name == "Zoë_M-1_partition_functions.zip"
    assert any("a.safetensors is not here" in note for note in notes)
    assert any("not written yet" in note and "elbo" in note for note in notes)
    assert notebook.read_bytes() == before
    for name in ("", "your name", "..."):
        with pytest.raises(ValueError, match="your name as the course knows it"):
            write_submission(notebook, name, ())
    with pytest.raises(ValueError, match="does not exist"):
        write_submission(tmp_path / "other.ipynb", "ada", ())
    (tmp_path / "mine.ipynb").write_text('{"cells": []}')
    with pytest.raises(ValueError, match="not an assignment's notebook"):
        write_submission(tmp_path / "mine.ipynb", "ada", ())


def test_checks_never_stop_a_notebook(tmp_path, capsys):
    student_folder(tmp_path)
    assignment = open_assignment("1_partition_functions.json")

    def crash(*_given):
        raise KeyError("x")

    verdicts = [
        assignment.check("log_partition", crash),
        assignment.check("log_partition", lambda *_: None),
        assignment.check("log_partition", lambda *_: "text"),
        assignment.check("log_partition", 3.0),
        assignment.check("no such", crash),
        assignment.check("LOG_Z", torch.ones(())),
    ]
    assert {result.status for result in verdicts} == {"failed"}
    assert assignment.check("LOG_Z", None).status == "not attempted"
    assert assignment.check("LOG_Z", 7.1).status == "passed"
    assert assignment.check_files("landscape_policy").status == "not attempted"
    Path("landscape_policy.safetensors").write_bytes(b"nonsense")
    assert assignment.check_files("landscape_policy").status == "failed"
    save_file({"logits": torch.zeros(3)}, "landscape_policy.safetensors")
    assert assignment.check_files("landscape_policy").status == "passed"
    with assignment.attempt():
        raise NotImplementedError
    with pytest.raises(ZeroDivisionError), assignment.attempt():
        raise ZeroDivisionError
    assert "not written yet" in capsys.readouterr().out


def test_the_sources_that_came_with_the_package_are_found_from_any_folder(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    words = ["assign", "export", "4_none", "--format", "otter", "--out", "x"]
    assert main(words) == 2
    assert f"choose one of {KEYS}" in capsys.readouterr().err
    (tmp_path / FOLDER).mkdir(parents=True)
    (tmp_path / FOLDER / "9_mine.py").touch()
    assert main(words) == 2  # one's own come first
    assert "choose one of ['9_mine']" in capsys.readouterr().err


def test_a_list_of_students_that_is_not_utf_8_is_named(tmp_path, capsys):
    names = tmp_path / "names.txt"
    for encoding in ("cp1252", "utf-16"):
        names.write_bytes("Jürgen\n".encode(encoding))
        words = ["assign", "build", "--students", str(names), "--out", str(tmp_path)]
        assert main(words) == 2
        said = capsys.readouterr().err
        assert str(names) in said and "Fix: " in said and "UTF-8" in said
    assert [path.name for path in tmp_path.iterdir()] == ["names.txt"]

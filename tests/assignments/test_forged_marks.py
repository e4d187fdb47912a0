"""Nothing that a student's code can reach is worth a point.

Each submission of ``forging_cells.py`` is marked on the one question that it attacks;
an honest answer to the same question, on the same way, gets all its points.
"""

from __future__ import annotations

import builtins
import dataclasses
import functools
import json
import re
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from forging_cells import ANSWER, FUNCTIONS, LIES, OWN_TESTS, SPEAKS, text_of
from honest_cells import AS_WRITTEN, STYLES
from honest_cells import OWN_TESTS as HONEST_TESTS
from synthetic_submissions import ASSIGNMENTS
from wrong_answers import TWO

from flowrl_lab.assignments.build import make_bundle
from flowrl_lab.assignments.bundles import Loaded
from flowrl_lab.assignments.marking import running
from flowrl_lab.assignments.marking.grading import judge_question
from flowrl_lab.assignments.marking.inside import apart
from flowrl_lab.assignments.marking.reading.cells import to_python
from flowrl_lab.assignments.source import read_source
from flowrl_lab.assignments.spec import Question
from flowrl_lab.sandbox import Limits, sandbox_problem

ROOT = Path(__file__).resolve().parents[2]
SITE = Path(torch.__file__).resolve().parents[1]
# Where the reference lies: the clone, installed beside torch, or beside the library.
PLACES = [ROOT, SITE, *map(Path, sys.path)]
pytestmark = pytest.mark.skipif(
    sandbox_problem() is not None, reason=str(sandbox_problem())
)


@functools.cache
def loaded() -> Loaded:
    return make_bundle(read_source(ASSIGNMENTS / f"{TWO}.py")).load(0)


def question(name: str) -> Question:
    return next(q for q in loaded().questions if q.name == name)


def marked(name: str, *cells: str, limits: Limits = running.LIMITS) -> list:
    """The parts of one question, for a submission of these cells."""
    asked = question(name)
    alone = dataclasses.replace(loaded(), questions=(asked,))
    outcomes = running.run_submission(cells, alone, limits)
    return judge_question(asked, alone, outcomes, {})


def earned(name: str, *cells: str) -> float:
    parts = marked(name, *cells)
    notes = {part.note for part in parts}
    # it was there, and it was called
    assert not notes & {"there is no function of this name", "not attempted"}
    return sum(part.earned for part in parts)


def some(kinds: dict[str, str], *quick: str) -> list:
    """All of them in the full budget, some always."""
    return [
        kind if kind in quick else pytest.param(kind, marks=pytest.mark.full)
        for kind in kinds
    ]


def solution(name: str) -> str:
    """The cell of the solved notebook that answers a question."""
    source = read_source(ASSIGNMENTS / f"{TWO}.py")
    return next(text for text in source.solutions if f"def {name}(" in text)


def test_an_honest_answer_gets_all_points_on_the_same_way():
    cells = ["import torch", solution("matching_loss"), solution("test_matching_loss")]
    for name in ("matching_loss", "test_matching_loss"):
        assert earned(name, *cells) == question(name).points


@pytest.mark.parametrize(
    "kind", some(STYLES, "partial", "decorators that want what is not there")
)
def test_a_right_answer_in_any_style_gets_all_points(kind):
    assert earned("masked_mean", *STYLES[kind]) == question("masked_mean").points


@pytest.mark.parametrize("kind", some(AS_WRITTEN))
def test_so_does_one_as_a_notebook_holds_it(kind):
    text, _, problem = to_python(AS_WRITTEN[kind], 20.0)
    assert not problem
    assert earned("masked_mean", text) == question("masked_mean").points


@pytest.mark.parametrize("kind", some(HONEST_TESTS, "a global batch"))
def test_so_does_a_test_that_leans_on_what_stands_outside(kind):
    right = solution("matching_loss")
    cells = [c.replace("{matching_loss}", right) for c in HONEST_TESTS[kind]]
    name = "test_matching_loss"
    assert earned(name, *cells) == question(name).points


@pytest.mark.parametrize(
    "kind", some(FUNCTIONS, "frames", "gc", "an installed copy", "handles of others")
)
def test_no_right_answer_is_in_reach(kind):
    loot = text_of(FUNCTIONS[kind])
    places = f"PLACES = {[str(place) for place in dict.fromkeys(PLACES)]!r}"
    text = places + ANSWER.replace("{loot}", loot)
    assert earned("matching_loss", text) == 0


@pytest.mark.parametrize(
    "kind",
    some(
        LIES,
        *("equals everything", "patches the worker", "a thread"),
        "as nested as JSON reads",
    ),
)
def test_no_lie_is_believed(kind):
    assert earned("matching_loss", text_of(LIES[kind])) == 0


def test_nothing_that_an_answer_was_given_is_told():
    notes = {part.note for part in marked("matching_loss", text_of(SPEAKS))}
    assert notes
    assert all(re.fullmatch(NOTE, note) for note in notes), notes


NOTE = r"stops with (KeyError|ExceptionGroup|an error)( in line \d+ of code cell 1)?"


@pytest.mark.full
def test_a_result_of_many_parts_costs_the_grader_nothing():
    """Sixteen megabytes of lists would be gigabytes of tensors."""
    before, begun = grader_memory(), time.process_time()
    assert earned("matching_loss", text_of(LIES["sixteen megabytes of lists"])) == 0
    assert time.process_time() - begun < 5
    assert grader_memory() - before < 200_000


def grader_memory() -> int:
    """The most that this process ever held, in kB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize(
    "kind", some(OWN_TESTS, "known code", "known graph", "looks for the others")
)
def test_a_test_finds_faults_by_what_is_computed_alone(kind):
    text = text_of(OWN_TESTS[kind], right=list(question("test_matching_loss").right))
    assert earned("test_matching_loss", text) == 0


TEXTS = [
    (name, place)
    for name in ("test_matching_loss", "test_clipped_loss")
    for place in range(len(question(name).right) + len(question(name).mutants))
]


@pytest.fixture
def elsewhere() -> Callable[[str], Callable]:
    """A loss as a test sees it; its other side is here too."""

    class Here(apart.Line):
        def __init__(self, text: str):
            self.text = text

        def ask(self, question):
            asked = {"text": self.text, "asked": json.dumps(question)}
            with ThreadPoolExecutor() as pool:  # what is set here holds here only
                told = json.loads(pool.submit(apart.answer, asked).result())
            if "error" in told:
                raise getattr(builtins, told["error"][0])(told["error"][1])
            return told

    return lambda text: apart.loss_of(Here(text))


@pytest.mark.parametrize(("name", "place"), TEXTS)
def test_a_loss_in_another_process_is_the_same_loss(name, place, elsewhere):
    """Its value, its gradients, and which arguments it is attached to."""
    asked = question(name)
    text = [*asked.right, *(text for _, _, text in asked.mutants)][place]
    for kind in (torch.float64, torch.float32):
        values = []
        for function in (elsewhere(text), apart.load(text)):
            given = losses_given(name, kind)
            value = function(*given)
            leaves = [g for g in given if getattr(g, "requires_grad", False)]
            slopes = torch.autograd.grad(value, leaves, allow_unused=True)
            values.append([value, *slopes])
        assert [v is None for v in values[0]] == [v is None for v in values[1]]
        for ours, theirs in zip(*values, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_loss_elsewhere_is_called_as_any_other(elsewhere):
    """By name, from `torch.func`, checked numerically, wrongly, without gradients."""
    text = "def loss(x, y=2.0, *, mask=None):\n    return (x * x.detach() * y).sum()"
    loss = elsewhere(text)
    x = torch.tensor([1.0, 3.0], dtype=torch.float64, requires_grad=True)
    assert loss(x, y=torch.tensor(3.0)).item() == 30
    assert torch.func.grad(loss)(x.detach()).tolist() == [2.0, 6.0]
    assert not torch.autograd.gradcheck(loss, (x,), raise_exception=False)
    assert not loss(x.detach()).requires_grad
    with torch.no_grad():
        assert not loss(x).requires_grad
    with pytest.raises(TypeError, match="unexpected keyword"):
        loss(x, z=1)
    with pytest.raises(TypeError, match="takes tensors and numbers, not object"):
        loss(object())
    flat = elsewhere("def loss(x):\n    return x.detach().sum()")
    assert not flat(x).requires_grad


def losses_given(name: str, kind: torch.dtype) -> list:
    """Arguments of the loss that a test of this name gets."""
    draw = torch.Generator().manual_seed(0)
    tokens, rows = (
        [
            torch.rand(shape, generator=draw, dtype=kind).requires_grad_()
            for _ in range(3)
        ]
        for shape in ((3, 4), (3,))
    )
    mask = torch.arange(4) < torch.tensor([[4], [2], [1]])
    if name == "test_matching_loss":
        return [rows[0], *tokens, rows[1], mask, 3.0, 0.1, 0.4]
    return [*tokens, rows[0], mask, 0.1, 0.4, 0.5]


def test_what_one_question_spoils_costs_no_other():
    """Its own process, its own copy of the worker and of torch."""
    spoils = text_of(LIES["patches torch"]).replace("matching_loss", "masked_mean")
    honest = solution("matching_loss")
    asked = [question("masked_mean"), question("matching_loss")]
    both = dataclasses.replace(loaded(), questions=tuple(asked))
    outcomes = running.run_submission([spoils, honest], both)
    points = [
        sum(p.earned for p in judge_question(q, both, outcomes, {})) for q in asked
    ]
    assert points == [0, asked[1].points]


PROBE = """
import os, sys
def read(path):
    try:
        with open(path, 'rb') as file:
            return len(file.read())
    except OSError:
        return None
print([path for path in sys.argv_ if read(path) is not None])
print([name for name in sys.modules if 'flowrl' in name])
"""


def test_only_what_an_assignment_allows_can_be_read():
    """Neither the clone, nor any installed package that is not on the shelf."""
    installed = [
        next(folder.glob("*/__init__.py"))
        for folder in map(Path, {SITE, *Path(sys.base_prefix).glob("lib/*/*-packages")})
        if any(folder.glob("*/__init__.py"))
    ]
    off = [SITE / "plotly" / "__init__.py", SITE / "pytest" / "__init__.py"]
    off += [p for p in installed if p.parent not in running._find_shelf()]
    off += [*(ROOT / "flowrl_lab").glob("*.py"), *ASSIGNMENTS.glob("*.py")]
    off += [*running.INSIDE.glob("*.py")]
    on = SITE / "torch" / "__init__.py"
    assert all(path.is_file() for path in [on, *off])
    probe = PROBE.replace("sys.argv_", repr(list(map(str, [on, *off]))))
    result = running._fork_server().run(probe, limits=running.LIMITS)
    assert result.stdout.splitlines() == [str([str(on)]), "[]"], result


@pytest.mark.parametrize("name", ["numpy", "scipy.special", "jaxtyping", "tqdm"])
def test_what_is_on_the_shelf_can_be_imported(name):
    pytest.importorskip(name)
    probe = f"import {name}\nfrom collections import abc\nprint({name}.__name__)"
    result = running._fork_server().run(probe, limits=running.LIMITS)
    assert result.stdout == f"{name}\n", result


def test_all_processes_of_a_submission_share_its_time():
    """Asleep with its signals blocked, a question takes its share, and no other's."""
    sleeps = (
        "def masked_mean(*given):\n    import signal, time\n"
        "    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64))\n"
        "    time.sleep(10**6)\n"
    )
    names = ("masked_mean", "group_advantages")
    asked = tuple(question(name) for name in names)
    both = dataclasses.replace(loaded(), questions=asked)
    limits = dataclasses.replace(running.LIMITS, wall_seconds=12)
    running._fork_server().run("", limits=running.LIMITS)  # its imports are not timed
    before = time.monotonic()
    outcomes = running.run_submission(
        [sleeps, solution("group_advantages")], both, limits
    )
    assert time.monotonic() - before < 12 + 2
    parts = {q.name: judge_question(q, both, outcomes, {}) for q in asked}
    assert {p.note for p in parts["masked_mean"]} == {
        "took too long (an endless loop?)"
    }
    assert sum(p.earned for p in parts["group_advantages"]) == asked[1].points


def test_a_definition_that_never_ends_is_waited_for_once(monkeypatch):
    monkeypatch.setattr(running, "SECONDS_A_DEFINITION", 1.0)
    endless = "class A:\n    while True:\n        pass"
    before = time.monotonic()
    asked = tuple(question(n) for n in ("masked_mean", "group_advantages"))
    both = dataclasses.replace(loaded(), questions=asked)
    cells = [endless, *(solution(q.name) for q in asked)]
    outcomes = running.run_submission(cells, both)
    assert outcomes.problems == ["a definition in code cell 1 never ended"]
    assert outcomes.endless == [0]
    for q in asked:
        assert sum(p.earned for p in judge_question(q, both, outcomes, {})) == q.points
    assert time.monotonic() - before < 60

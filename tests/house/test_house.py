"""The house: which way its rooms import, how many they are, how long things get."""

from __future__ import annotations

import ast

import pytest

from benchmarks import house
from flowrl_lab.tasks import TASKS, Task, TextTask, load_task


def test_no_module_imports_itself_in_a_round():
    assert house.circles() == []
    assert house.room_circles() == []


def test_no_room_imports_from_a_higher_one():
    assert [str(one) for one in house.upward()] == []


def test_every_room_has_a_floor():
    assert {house.room_of(name) for name in house.modules()} == {
        house.PACKAGE,
        *house.FLOOR_OF,
    }


def test_there_are_at_most_thirty_rooms():
    assert len(house.rooms()) <= 30


def test_function_bodies_stay_short():
    lengths = house.body_lengths()
    assert {name: size for name, size in lengths.items() if size > 52} == {}
    assert house.percentile(lengths.values(), 0.5) <= 7
    assert house.percentile(lengths.values(), 0.9) <= 19


def test_the_formatter_s_style_is_kept_everywhere():
    files = [path for path in house.ROOT.rglob("*.py") if ".venv" not in path.parts]
    mark = "# fmt: " + "skip"
    assert len(files) > 300
    assert [str(p) for p in files if mark in p.read_text(encoding="utf-8")] == []


ASKED = ("evaluation", "measuring", "plots", "scaling", "widgets", "course")
ASKED += ("integrations", "commands")


def probes_of(source: str) -> list[str]:
    """``hasattr`` and ``getattr`` with a default, asked of a task or a policy."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            asks = node.func.id == "hasattr" or len(node.args) == 3
            if node.func.id in ("hasattr", "getattr") and asks:
                what = ast.unparse(node.args[0]).rpartition(".")[2].strip("_")
                found += [ast.unparse(node)] if what in ("task", "policy") else []
    return found


def test_what_a_task_can_is_declared_and_not_probed():
    assert probes_of("hasattr(run.task, 'a'), getattr(policy, 'b', 1)") != []
    assert probes_of("getattr(task, name), hasattr(model, 'module')") == []
    for name, path in house.modules().items():
        if house.room_of(name) in ASKED:
            assert probes_of(path.read_text(encoding="utf-8")) == [], name


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_task_declares_what_it_can(name):
    task = load_task(name)
    wanted = TextTask if task.in_text else Task
    assert isinstance(task, wanted)
    assert task.has_referee == hasattr(
        task, "answers" if wanted is Task else "answer_texts"
    )
    assert task.render(task.prompts("heldout")[0])
    assert all(len(character) == 1 for character in task.characters)


def test_imports_are_found_at_the_top_and_inside_functions():
    source = """
from flowrl_lab.tasks import load_task, text
import flowrl_lab.types
class A:
    def b(self):
        from flowrl_lab.training.run import train
"""
    nodes = house._import_nodes(ast.parse(source), late=False)
    found = [(target, late) for node, late in nodes for target in house._targets(node)]
    assert found == [
        ("flowrl_lab.tasks", False),
        ("flowrl_lab.tasks.text", False),
        ("flowrl_lab.types", False),
        ("flowrl_lab.training.run", True),
    ]


def test_rounds_are_found_however_long():
    arrows = [("a", "b"), ("b", "c"), ("c", "a"), ("c", "d"), ("e", "a")]
    assert house._rounds(arrows) == [["a", "b", "c"]]


@pytest.mark.parametrize(
    "text, lines",
    [
        ('"""Doc."""\n\n# why\nx = 1\n', {4}),
        (
            'def f():\n    """Doc\n    more."""\n    return [\n        1,\n    ]\n',
            {1, 4, 5, 6},
        ),
        ('x = """kept\n\nkept"""\n', {1, 2, 3}),
    ],
)
def test_lines_of_code_leave_out_docstrings_comments_and_blanks(tmp_path, text, lines):
    path = tmp_path / "some.py"
    path.write_text(text)
    assert house.code_lines(path) == lines


def test_the_step_is_traced_from_train_to_its_gradient():
    """With the plain policy: two calls above the line of ``.backward()``."""
    path = house.trace_step()
    assert path.calls[0] == "train" and path.depth <= 2
    named = {"policies/language_model.py", "losses.py", "training/step.py"}
    assert named <= set(path.files)
    assert not any(name.startswith("policies/fast/") for name in path.files)
    for lines, code, passed in path.files.values():
        assert lines > code >= passed > 0

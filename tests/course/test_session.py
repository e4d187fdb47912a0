"""`setup`: seeds, budget, device, data; and what importing the package costs."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import flowrl_lab
from flowrl_lab._files import data_path
from flowrl_lab.course.session import choose_threads, setup
from flowrl_lab.policies.device import set_threads_for_large, threads_for
from flowrl_lab.policies.fast.workers import count_workers, set_workers

ROOT = Path(__file__).resolve().parents[2]


def draw() -> tuple[float, float, float]:
    """One number from each generator that `setup` seeds."""
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_setup_seeds_every_generator():
    setup(seed=3)
    first = draw()
    setup(seed=3)
    assert draw() == first
    setup(seed=4)
    assert all(a != b for a, b in zip(draw(), first, strict=True))


def test_setup_prints_what_it_chose(capsys, monkeypatch):
    monkeypatch.setenv("FLOWRL_BUDGET", "quick")
    session = setup(seed=12)
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 5
    for word in (torch.__version__, str(session.device), "12", "quick", "static"):
        assert word in printed


@pytest.mark.parametrize(
    ("argument", "variable", "expected"),
    [
        (None, None, "full"),
        (None, "", "full"),
        (None, "quick", "quick"),
        ("full", "quick", "full"),
        ("quick", None, "quick"),
    ],
)
def test_budget_is_argument_then_variable_then_full(
    argument, variable, expected, monkeypatch
):
    monkeypatch.delenv("FLOWRL_BUDGET")
    if variable is not None:
        monkeypatch.setenv("FLOWRL_BUDGET", variable)
    session = setup(budget=argument)
    assert session.budget == expected
    assert session.quick == (expected == "quick")


@pytest.mark.bad_input
@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "0", True, None])
def test_bad_seed_is_refused_before_anything_is_seeded(seed):
    random.seed(0)
    expected = random.random()
    random.seed(0)
    with pytest.raises(ValueError, match=r"got seed=.*expected.*Fix"):
        setup(seed=seed)
    assert random.random() == expected


@pytest.mark.bad_input
def test_bad_budget_names_where_it_came_from(monkeypatch):
    with pytest.raises(ValueError, match=r"got budget='fast'.*quick.*Fix"):
        setup(budget="fast")
    monkeypatch.setenv("FLOWRL_BUDGET", "tiny")
    with pytest.raises(ValueError, match=r"got FLOWRL_BUDGET='tiny'.*Fix"):
        setup()


def test_data_path_finds_the_repository_and_obeys_the_variable(tmp_path, monkeypatch):
    monkeypatch.delenv("FLOWRL_DATA", raising=False)
    assert data_path() == ROOT / "data"
    (tmp_path / "set").mkdir()
    monkeypatch.setenv("FLOWRL_DATA", str(tmp_path))
    assert data_path("set") == tmp_path / "set"


@pytest.mark.bad_input
def test_data_path_says_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWRL_DATA", str(tmp_path))
    (tmp_path / "set").mkdir()
    with pytest.raises(FileNotFoundError, match=r"got 'sets'.*\['set'\].*Fix"):
        data_path("sets")
    with pytest.raises(ValueError, match=r"leads out of.*Fix"):
        data_path("../elsewhere")
    monkeypatch.setenv("FLOWRL_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"no data folder.*FLOWRL_DATA"):
        data_path()


# ---------------------------------------------------------------- the front door


def test_public_names_are_few_and_all_there():
    assert len(flowrl_lab.__all__) <= 25
    assert dir(flowrl_lab) == flowrl_lab.__all__
    for name in flowrl_lab.__all__:
        assert getattr(flowrl_lab, name).__module__.startswith("flowrl_lab."), name


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'grpo'"):
        _ = flowrl_lab.grpo


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter, in the project folder."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )


def test_importing_the_package_brings_nothing_heavy():
    result = run_python(
        "import sys, flowrl_lab; print(*(n for n in "
        "('torch', 'transformers', 'plotly', 'ipywidgets') if n in sys.modules))"
    )
    assert (result.returncode, result.stdout.strip()) == (0, ""), result.stderr


def test_the_core_and_setup_work_without_the_optional_parts():
    result = run_python(
        "import sys\n"
        "names = 'transformers peft plotly ipywidgets anywidget IPython'\n"
        "for name in names.split():\n"
        "    sys.modules[name] = None\n"
        "import flowrl_lab\n"
        "flowrl_lab.setup(); flowrl_lab.load_task('landscape')\n"
        "flowrl_lab.flowrl_loss, flowrl_lab.exact_report, flowrl_lab.train\n"
    )
    assert result.returncode == 0, result.stderr


def test_a_missing_optional_package_names_its_extra(monkeypatch):
    def fail(_name):
        raise ModuleNotFoundError("No module named 'plotly.x'", name="plotly.x")

    monkeypatch.delitem(vars(flowrl_lab), "LivePlot", raising=False)
    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(ImportError, match=r"LivePlot needs.*flowrl-lab\[notebooks\]"):
        _ = flowrl_lab.LivePlot


def test_a_missing_module_of_our_own_is_not_called_optional(monkeypatch):
    def fail(_name):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.delitem(vars(flowrl_lab), "LivePlot", raising=False)
    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(ModuleNotFoundError, match="No module named 'torch'"):
        _ = flowrl_lab.LivePlot


@pytest.mark.parametrize(
    ("cores", "wanted", "expected", "for_large"),
    [
        (1, None, (1, 1), 1),
        (2, None, (1, 2), 2),
        (8, None, (3, 4), 3),
        (2, "3", (3, 1), 3),
        (None, None, (1, 1), 1),
    ],
)
def test_threads_and_workers_follow_the_cores(
    monkeypatch, cores, wanted, expected, for_large
):
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if wanted is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    torch.set_num_threads(3)  # PyTorch's own choice
    try:
        assert (choose_threads(), count_workers()) == expected
        assert torch.get_num_threads() == expected[0]
        with threads_for(SimpleNamespace(large_tensors=True)):
            assert torch.get_num_threads() == for_large
        with threads_for(SimpleNamespace()):
            assert torch.get_num_threads() == expected[0]
        assert torch.get_num_threads() == expected[0]
    finally:
        torch.set_num_threads(before)
        set_workers(1)
        set_threads_for_large(None)

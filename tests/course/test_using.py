"""``use``: the learner's function where it passes, the library's elsewhere."""

from __future__ import annotations

import pytest
import torch

from flowrl_lab import losses
from flowrl_lab.course import check, use, using
from flowrl_lab.course.ledger import open_ledger
from flowrl_lab.course.using import LearnersError, unguarded

SOURCE = """
def flowrl_residuals(log_z, log_probs, ref_log_probs, rewards,
                     completion_mask, *, reward_scale=15.0,
                     length_normalize=True):
    ratio = masked_sum(log_probs - ref_log_probs.detach(), completion_mask)
    if length_normalize:
        ratio = ratio / completion_mask.sum(1)
    return log_z + ratio - reward_scale * rewards.detach()
"""
ONES = torch.ones(2, 3)
GIVEN = (ONES[:, 0], -ONES, -2 * ONES, ONES[:, 0], ONES.bool())


@pytest.fixture(autouse=True)
def _own_progress(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWRL_PROGRESS", str(tmp_path / "progress.json"))


def written(source: str):
    """A function as a notebook defines it: its text can be found."""
    import linecache

    names = {"masked_sum": losses.sum_counted, "sum_counted": losses.sum_counted}
    file = f"<cell {abs(hash(source))}>"
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    exec(compile(source, file, "exec"), names)
    return names["flowrl_residuals"]


def test_a_function_that_passes_is_used(capsys):
    mine = written(SOURCE)
    assert check("flowrl_residuals", mine).status == "passed"
    used = use("flowrl_residuals")
    assert unguarded(used) is mine and used.__name__ == "flowrl_residuals"
    assert capsys.readouterr().out.endswith("flowrl_residuals: yours\n")
    torch.testing.assert_close(used(*GIVEN), losses.flowrl_residuals(*GIVEN))
    # the same cell once more: it is the learner's function that is checked again
    assert check("flowrl_residuals", used).status == "passed"
    assert unguarded(use("flowrl_residuals")) is mine


@pytest.mark.parametrize(
    "wrong",
    [
        SOURCE.replace("- reward_scale", "+ reward_scale"),
        SOURCE.replace(".detach()", ""),
        SOURCE.replace("    return", "    raise NotImplementedError\n    return"),
        SOURCE.replace("    return", "    while True: pass\n    return"),
    ],
)
def test_a_function_that_does_not_is_replaced(wrong, capsys):
    check("flowrl_residuals", written(wrong), seconds=0.3)
    assert use("flowrl_residuals") is losses.flowrl_residuals
    assert "the library's (yours " in capsys.readouterr().out
    # the cell once more: the library's own is not the learner's answer
    again = check("flowrl_residuals", losses.flowrl_residuals)
    assert again.status == "not attempted" and "library's own" in again.message


def test_the_last_verdict_counts(capsys):
    check("flowrl_residuals", written(SOURCE))
    check("flowrl_residuals", lambda *_, **__: GIVEN[0])
    assert use("flowrl_residuals") is losses.flowrl_residuals
    assert "yours failed its last check" in capsys.readouterr().out
    check("flowrl_residuals", written(SOURCE))
    assert use("flowrl_residuals", library=True) is losses.flowrl_residuals
    assert "the library's (as you asked)" in capsys.readouterr().out


@pytest.fixture
def _another_kernel(monkeypatch):
    """Nothing has been checked in this kernel."""
    monkeypatch.setattr(using, "_checked", {})
    monkeypatch.setattr(using, "note_verdict", lambda *_: None)
    monkeypatch.setattr("flowrl_lab.course.checks.note_verdict", lambda *_: None)


@pytest.mark.usefixtures("_another_kernel")
def test_what_passed_in_another_notebook_is_found_and_checked_again(
    capsys, monkeypatch
):
    monkeypatch.setenv("JPY_SESSION_NAME", "06_flowrl_loss.ipynb")
    assert use("flowrl_residuals") is losses.flowrl_residuals
    assert "has not passed its check yet" in capsys.readouterr().out
    assert check("flowrl_residuals", written(SOURCE)).status == "passed"
    # the kept text leans on a name of its notebook: the library's takes over
    assert use("flowrl_residuals") is losses.flowrl_residuals
    said = capsys.readouterr().out.splitlines()[-2:]
    assert "passed in 06_flowrl_loss, but not here" in said[0]
    assert "NameError" in said[1] and max(map(len, said)) <= 100
    source = SOURCE.replace("masked_sum", "sum_counted")  # a name of losses itself
    assert check("flowrl_residuals", written(source)).status == "passed"
    found = use("flowrl_residuals")
    assert found is not losses.flowrl_residuals
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == "flowrl_residuals: yours, from 06_flowrl_loss"
    torch.testing.assert_close(found(*GIVEN), losses.flowrl_residuals(*GIVEN))


def test_where_it_raises_in_a_later_run_the_run_stops_with_its_name_and_inputs():
    """It passes, since no case has three rows; a later run does have them."""
    crash = SOURCE.replace(
        "    return", "    if len(log_z) == 3:\n        1 / 0\n    return"
    )
    assert check("flowrl_residuals", written(crash)).status == "passed"
    ones = torch.ones(3, 2)
    with pytest.raises(LearnersError) as caught:
        use("flowrl_residuals")(ones[:, 0], -ones, ones, ones[:, 0], ones.bool())
    said = str(caught.value)
    assert "your flowrl_residuals passed its check, but stopped this run" in said
    assert "ZeroDivisionError" in said and "log_z = torch.tensor([1, 1, 1])" in said
    assert 'flowrl_residuals = use("flowrl_residuals", library=True)' in said
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.usefixtures("_another_kernel")
@pytest.mark.parametrize(
    "source", ["def flowrl_residuals(:", "1 / 0", 7, None, "x = 1"]
)
def test_a_spoilt_progress_file_costs_nothing(source):
    facts = {"status": "passed", "mistake": "", "source": source}
    open_ledger().record("check", "flowrl_residuals", facts)
    assert use("flowrl_residuals") is losses.flowrl_residuals


def test_an_unknown_exercise_is_named():
    with pytest.raises(ValueError, match="did you mean 'flowrl_loss'"):
        use("flowrl_los")

"""``use``: the learner's function where it passes, the library's elsewhere."""

from __future__ import annotations

import pytest
import torch

from flowrl_lab import losses
from flowrl_lab.course import check, use
from flowrl_lab.course.ledger import open_ledger

SOURCE = """
def flowrl_residuals(log_z, log_probs, ref_log_probs, rewards,
                     completion_mask, *, reward_scale=15.0,
                     length_normalize=True):
    ratio = masked_sum(log_probs - ref_log_probs.detach(), completion_mask)
    if length_normalize:
        ratio = ratio / completion_mask.sum(1)
    return log_z + ratio - reward_scale * rewards.detach()
"""


@pytest.fixture(autouse=True)
def _own_progress(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWRL_PROGRESS", str(tmp_path / "progress.json"))


def written(source: str):
    """A function as a notebook defines it: its text can be found."""
    import linecache

    names = {"masked_sum": losses.sum_counted}
    file = f"<cell {abs(hash(source))}>"
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    exec(compile(source, file, "exec"), names)
    return names["flowrl_residuals"]


def test_a_function_that_passes_is_used(capsys):
    mine = written(SOURCE)
    assert use("flowrl_residuals", mine) is mine
    assert "flowrl_residuals: yours" in capsys.readouterr().out


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
    assert use("flowrl_residuals", written(wrong)) is losses.flowrl_residuals
    assert "the library's" in capsys.readouterr().out


def test_what_passed_in_another_notebook_is_found_and_checked_again(capsys):
    assert use("flowrl_residuals") is losses.flowrl_residuals
    source = SOURCE.replace("masked_sum", "sum_counted")  # a name of losses itself
    mine = written(SOURCE)
    assert check("flowrl_residuals", mine).status == "passed"
    # the kept text leans on a name of its notebook: the library's takes over
    assert use("flowrl_residuals") is losses.flowrl_residuals
    namespace = {"sum_counted": losses.sum_counted}
    import linecache

    linecache.cache["<two>"] = (len(source), None, source.splitlines(True), "<two>")
    exec(compile(source, "<two>", "exec"), namespace)
    assert check("flowrl_residuals", namespace["flowrl_residuals"]).status == "passed"
    capsys.readouterr()
    found = use("flowrl_residuals")
    assert found is not losses.flowrl_residuals
    assert "yours" in capsys.readouterr().out
    ones = torch.ones(2, 3)
    given = (ones[:, 0], -ones, -2 * ones, ones[:, 0], ones.bool())
    torch.testing.assert_close(found(*given), losses.flowrl_residuals(*given))


@pytest.mark.parametrize(
    "source", ["def flowrl_residuals(:", "1 / 0", 7, None, "x = 1"]
)
def test_a_spoilt_progress_file_costs_nothing(source):
    facts = {"status": "passed", "mistake": "", "source": source}
    open_ledger().record("check", "flowrl_residuals", facts)
    assert use("flowrl_residuals") is losses.flowrl_residuals


def test_an_unknown_exercise_is_named():
    with pytest.raises(ValueError, match="no exercise 'flowrl_los'"):
        use("flowrl_los")

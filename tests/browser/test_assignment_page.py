"""A student in JupyterLab: from the notebook that was handed out to a file with marks.

Run All on the untouched notebook, a wrong answer and a right one into a stub, the check
each time, the name, save, hand in; then the instructor grades that file.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pages import (
    ROOT,
    Visit,
    error_outputs,
    open_notebook,
    run_all_cells,
    wait_until_done,
)
from playwright.sync_api import Locator, expect
from synthetic_submissions import instructor

from flowrl_lab.assignments.marking.folder import mark_all, plan_marking, read_bundles
from flowrl_lab.sandbox import sandbox_problem

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.full]

KEY = "1_partition_functions"
ASSIGNMENTS = ROOT / "notebooks" / "assignments"
WRONG = (
    "def log_partition(ref_log_probs, rewards, reward_scale):\n"
    "    return (reward_scale * rewards).logsumexp(-1)"
)
RIGHT = (
    "def log_partition(ref_log_probs, rewards, reward_scale):\n"
    "    return (ref_log_probs + reward_scale * rewards).logsumexp(-1)"
)


def find_cell(visit: Visit, text: str) -> Locator:
    """The code cell whose source holds a text."""
    cells = visit.page.locator(".jp-Notebook .jp-CodeCell")
    editor = visit.page.locator(".jp-InputArea-editor", has_text=text)
    return cells.filter(has=editor).first


def write_cell(visit: Visit, cell: Locator, text: str) -> None:
    """Replace a cell's source by keyboard, and run it."""
    cell.locator(".cm-content").click()
    visit.page.keyboard.press("Control+A")
    visit.page.keyboard.insert_text(text)
    visit.page.keyboard.press("Control+Enter")


def run_cell(visit: Visit, cell: Locator) -> None:
    cell.locator(".cm-content").click()
    visit.page.keyboard.press("Control+Enter")


def look(visit: Visit, cell: Locator, words: str, name: str) -> None:
    """Wait until a cell's output says something, and keep the picture."""
    expect(cell.locator(".jp-OutputArea-output", has_text=words).first).to_be_visible()
    cell.scroll_into_view_if_needed()
    visit.screenshot(f"assignment-{name}")


@pytest.mark.skipif(sandbox_problem() is not None, reason=str(sandbox_problem()))
def test_a_student_hands_in_and_is_graded(visit, lab_address, lab_folder, tmp_path):
    home = lab_folder / "notebooks"
    for end in (".ipynb", ".json"):
        shutil.copy(ASSIGNMENTS / "student" / f"{KEY}{end}", home)
    open_notebook(visit, lab_address, KEY)
    run_all_cells(visit)
    wait_until_done(visit, "assignment")
    assert error_outputs(visit) == []
    stub = find_cell(visit, "def log_partition")
    check = find_cell(visit, 'check("log_partition"')
    look(visit, check, "not attempted", "untouched")
    write_cell(visit, stub, WRONG)
    run_cell(visit, check)
    look(visit, check, "The reference is missing", "a-mistake-is-named")
    write_cell(visit, stub, RIGHT)
    run_cell(visit, check)
    look(visit, check, "All 3 open cases are right", "the-check-passes")
    last = find_cell(visit, "assignment.submit(")
    write_cell(visit, last, 'assignment.submit(student="Ada Lovelace")')
    look(visit, last, "Hand in this file", "not-saved-yet")
    written = home / f"Ada_Lovelace-{KEY}.zip"
    written.unlink()
    visit.page.keyboard.press("Control+S")
    text = "(ref_log_probs + reward_scale * rewards).logs"
    wait_for(visit, lambda: text in (home / f"{KEY}.ipynb").read_text())
    run_cell(visit, last)
    wait_for(visit, written.is_file)
    look(visit, last, "not written yet, as saved: target_log_probs", "handed-in")
    assert points_of(written, tmp_path) == {"log_partition": 5}
    assert error_outputs(visit) == []


def wait_for(visit: Visit, holds: Callable[[], bool]) -> None:
    """Until something on the disk is as it should be."""
    for _ in range(600):
        if holds():
            return
        visit.page.wait_for_timeout(100)
    pytest.fail("nothing was written")


def points_of(written: Path, folder: Path) -> dict[str, float]:
    """The instructor's side: questions with points, as graded."""
    (folder / "submissions").mkdir()
    shutil.copy(written, folder / "submissions")
    bundles = read_bundles(instructor())
    plan = plan_marking(folder / "submissions", folder / "grades", bundles)
    (grade,) = mark_all(plan, jobs=1)
    assert (grade.student, grade.status) == ("Ada_Lovelace", "graded")
    earned = {name: grade.earned(name) for name in grade.parts}
    return {name: points for name, points in earned.items() if points}

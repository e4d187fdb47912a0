"""The first notebook in a real browser: where the page stays, and what comes back."""

from __future__ import annotations

import json

import pytest
from pages import (
    Visit,
    call_api,
    end_kernels,
    error_outputs,
    open_notebook,
    run_all_cells,
    wait_until_done,
    write_notebook,
)
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.slow]

RACE = "keep_in_view()"
BACK_SECONDS = 3.0


def race_box(visit: Visit) -> dict:
    """Where the race's cell stands, in pixels of the window."""
    cell = visit.page.locator(".jp-Notebook .jp-CodeCell", has_text=RACE).first
    return cell.bounding_box()


@pytest.mark.full
def test_run_all_stays_where_the_race_is(visit, lab_address) -> None:
    open_notebook(visit, lab_address, "00_start_here")
    race = visit.page.locator(".jp-Notebook .jp-CodeCell", has_text=RACE).first
    expect(race).to_be_in_viewport()  # in the first screen, before anything runs
    visit.screenshot("start-opened")
    run_all_cells(visit)
    wait_until_done(visit, "start")
    visit.page.wait_for_timeout(500)
    box, height = race_box(visit), visit.page.viewport_size["height"]
    visit.screenshot("start-stayed")
    assert -20 <= box["y"] <= height / 2, box
    assert error_outputs(visit) == []
    # the page is the learner's again
    visit.page.mouse.move(700, 500)
    visit.page.mouse.wheel(0, 3000)
    visit.page.wait_for_timeout(1000)
    assert race_box(visit)["y"] < -500


@pytest.mark.parametrize(
    "gone",
    [
        pytest.param(False, id="kernel-runs", marks=pytest.mark.full),
        pytest.param(True, id="kernel-gone"),
    ],
)
def test_a_prediction_is_there_again_after_a_reload(
    visit, lab_address, lab_folder, gone
) -> None:
    """In words from what was saved; the field itself when a kernel runs again."""
    name = f"reload_{gone}"
    ask = 'predict("97.kept", "What is kept?", choices=("one", "two", "three"))'
    write_notebook(lab_folder, name, ["from flowrl_lab.course import predict", ask])
    open_notebook(visit, lab_address, name)
    run_all_cells(visit)
    wait_until_done(visit, name)
    visit.page.get_by_role("radio", name="two").check()
    said = visit.page.get_by_text("Your prediction: two").locator("visible=true")
    expect(said).to_have_count(1)  # by the field; the words for later are hidden
    visit.page.locator(".jp-CodeCell .cm-content").first.click()
    visit.page.keyboard.press("Control+s")
    visit.page.wait_for_timeout(4000)
    saved = json.loads(call_api(lab_address, f"contents/notebooks/{name}.ipynb"))
    assert "widgets" in saved["content"]["metadata"]
    if gone:
        end_kernels(lab_address)
    visit.page.reload()
    cell = visit.page.locator(".jp-Notebook .jp-CodeCell").nth(1)
    cell.locator(".jp-OutputArea-output").first.wait_for()
    there = cell.get_by_text("Your prediction: two").locator("visible=true")
    expect(there).to_have_count(1, timeout=1000 * BACK_SECONDS)
    visit.screenshot(name)
    expect(cell.get_by_role("radio", name="two")).to_be_checked()
    expect(there).to_have_count(1)  # said once, by the field
    assert "not found" not in cell.inner_text()

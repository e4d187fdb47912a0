"""The fork panel in JupyterLab: choose, press the button, read the result."""

from __future__ import annotations

import pytest
from pages import (
    error_outputs,
    open_notebook,
    run_all_cells,
    wait_until_done,
    write_notebook,
)
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.slow]

TRAIN = """from flowrl_lab import preset
from flowrl_lab.training.run import Run
from flowrl_lab.widgets import ForkPanel
parent = Run(preset("landscape", "grpo", steps=25))
trained = list(parent)
panel = ForkPanel(parent, variants=("kl_reinforce", "flowrl"), steps=40)
panel"""
REPORT = """report = panel.runs["grpo → flowrl"].evaluate()
print(list(panel.runs), f"KL {report.kl_policy_target:.3f}")"""


@pytest.mark.full
def test_a_fork_is_trained_from_its_button(visit, lab_folder, lab_address):
    write_notebook(lab_folder, "fork", [TRAIN, "'placeholder'"])
    open_notebook(visit, lab_address, "fork")
    run_all_cells(visit)
    wait_until_done(visit, "fork")
    panel = visit.page.locator(".flowrl-fork").first
    picture = panel.locator("img")
    expect(picture).to_be_visible()
    before = picture.get_attribute("alt")
    assert "grpo → flowrl" not in before

    parent = panel.get_by_label("parent run")
    expect(parent).to_have_value("grpo")
    variant = panel.get_by_label("continue as")
    variant.focus()
    variant.press("ArrowDown")  # by keyboard, and no other cell takes the key
    expect(variant).to_have_value("flowrl")
    steps = panel.get_by_label("steps")
    steps.fill("100")
    steps.press("Tab")
    button = panel.get_by_role("button", name="Run the fork")
    button.focus()
    button.press("Enter")
    expect(panel).to_contain_text(
        "grpo → flowrl: 100 of 100 steps done", timeout=120_000
    )
    after = picture.get_attribute("alt")
    assert "grpo → flowrl from step 25" in after
    visit.screenshot("fork-panel")
    assert parent.locator("option").all_text_contents() == ["grpo", "grpo → flowrl"]

    # the kernel has what the page shows
    cell = visit.page.locator(".jp-Notebook .jp-CodeCell").nth(1)
    cell.locator(".cm-content").click()
    visit.page.keyboard.press("Control+a")
    visit.page.keyboard.insert_text(REPORT)
    visit.page.keyboard.press("Control+Enter")
    output = cell.locator(".jp-OutputArea-output")
    expect(output).to_contain_text("['grpo', 'grpo → flowrl'] KL 0.0", timeout=30_000)
    assert error_outputs(visit) == []

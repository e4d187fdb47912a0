"""The run scrubber in JupyterLab: its controls, and a run trained from its button."""

from __future__ import annotations

import re

import pytest
from pages import (
    Visit,
    error_outputs,
    open_notebook,
    run_all_cells,
    wait_until_done,
    write_notebook,
)
from playwright.sync_api import Locator, expect

from flowrl_lab.measuring.recorded import REWARD_SCALES
from flowrl_lab.widgets import RunScrubber

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CELLS = [
    "from flowrl_lab.widgets import RunScrubber\nscrubber = RunScrubber()\nscrubber",
    "print('left at', scrubber.objective, scrubber.reward_scale, scrubber.step)",
]


@pytest.fixture(scope="module")
def visit(shared_visit: Visit) -> Visit:
    return shared_visit


@pytest.fixture(scope="module")
def scrubber(visit: Visit, lab_folder, lab_address) -> Locator:
    """The widget, shown and ready."""
    write_notebook(lab_folder, "scrubber", CELLS)
    open_notebook(visit, lab_address, "scrubber")
    run_all_cells(visit)
    wait_until_done(visit, "scrubber")
    widget = visit.page.locator(".flowrl-scrubber").first
    expect(widget.locator(".picture svg")).to_be_visible()
    return widget


def choose_flowrl(widget: Locator) -> None:
    widget.get_by_role("radio", name="flowrl", exact=True).check()


def read_numbers(widget: Locator) -> dict[str, float]:
    """What the page says of the point it shows."""
    text = " ".join(widget.locator(".numbers span").all_text_contents())
    number = r"([\d.]+(?:e-?\d+)?)"
    patterns = {
        "effective": rf"effective states {number} ",
        "target_effective": rf"effective states {number} \(target {number}\)",
        "kl_policy_target": rf"KL\(π‖p\*\) {number} nats",
        "kl_target_policy": rf"KL\(p\*‖π\) {number} nats",
        "reward": rf"expected reward {number} ",
        "target_reward": rf"expected reward {number} \(target {number}\)",
    }
    return {
        name: float(re.search(pattern, text).groups()[-1])
        for name, pattern in patterns.items()
    }


def test_the_picture_has_words_and_the_kernel_learns_where_it_was_left(scrubber, visit):
    scrubber.get_by_label("kl_reinforce").check()
    label = scrubber.locator(".picture svg").get_attribute("aria-label")
    assert label.startswith("kl_reinforce at β = 15, step 400: effective states 26.1")
    spoken = scrubber.locator(".spoken")
    expect(spoken).to_contain_text("kl_reinforce at β = 15")
    second = visit.page.locator(".jp-Notebook .jp-CodeCell").nth(1)
    second.locator(".cm-content").click()
    visit.page.keyboard.press("Control+Enter")
    output = second.locator(".jp-OutputArea-output")
    expect(output).to_contain_text("left at kl_reinforce 15.0 400", timeout=30_000)


def test_every_control_moves_the_picture_and_the_numbers(scrubber, visit):
    choose_flowrl(scrubber)
    stored = RunScrubber("flowrl", 15, 400)
    shape = scrubber.locator(".picture .policy")
    grey = scrubber.locator(".picture .area")
    assert read_numbers(scrubber) == pytest.approx(stored.measure(), rel=0.02)

    before = shape.get_attribute("d"), grey.get_attribute("d")
    scale = scrubber.get_by_label("reward scale β")
    scale.focus()
    scale.press("ArrowRight")
    expect(scrubber.locator("output").first).to_have_text("β = 30")
    assert shape.get_attribute("d") != before[0]
    assert grey.get_attribute("d") != before[1]
    said = read_numbers(scrubber)
    assert said == pytest.approx(stored.measure("flowrl", 30.0), rel=0.02)

    step = scrubber.get_by_label("training step")
    step.focus()
    step.press("Home")
    for _ in range(3):
        step.press("ArrowRight")
    expect(scrubber.locator("output").nth(1)).to_have_text("step 30")
    said = read_numbers(scrubber)
    assert said == pytest.approx(stored.measure("flowrl", 30.0, 30), rel=0.02)

    scrubber.get_by_label("grpo").check()
    step.focus()
    step.press("End")
    said = read_numbers(scrubber)
    assert said == pytest.approx(stored.measure("grpo", 30.0), rel=0.02)
    policy, target = shape.get_attribute("d"), grey.get_attribute("d")
    scale.focus()
    scale.press("Home")
    expect(scrubber.locator("output").first).to_have_text(f"β = {REWARD_SCALES[0]:g}")
    # β is not in GRPO's objective: only the target and the scale of the axis move
    assert grey.get_attribute("d") != target
    assert "1 on state 50" in scrubber.locator(".picture").inner_text()
    assert "moves only the grey target" in scrubber.locator(".about").inner_text()
    assert policy
    visit.screenshot("scrubber-grpo")
    assert error_outputs(visit) == []


def test_a_point_trained_live_is_drawn_over_the_stored_one(scrubber, visit):
    choose_flowrl(scrubber)
    button = scrubber.get_by_role("button", name="Run this point live")
    button.focus()
    button.press("Enter")
    said = scrubber.locator(".said")
    expect(said).to_contain_text("Live run drawn over the stored one", timeout=120_000)
    words = said.inner_text()
    difference = float(re.search(r"of a probability ([\d.e-]+)", words)[1])
    assert difference < 5e-3, words
    expect(button).to_be_enabled()
    live = scrubber.locator(".picture .live")
    expect(live).to_have_count(1)
    visit.screenshot("scrubber-live")
    scrubber.get_by_label("grpo").check()  # not trained here
    expect(live).to_have_count(0)
    expect(said).to_have_text("")
    choose_flowrl(scrubber)
    expect(live).to_have_count(1)

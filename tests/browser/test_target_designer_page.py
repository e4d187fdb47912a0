"""The target designer in a real browser: draw, turn the dial, train, draw again."""

from __future__ import annotations

import json
import math
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
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.full]

CELLS = [
    """
from flowrl_lab.widgets import TargetDesigner
designer = TargetDesigner("flat", steps=60, key="browser.draw")
designer
""",
    """
import json
print("KERNEL", json.dumps([designer.reward_scale, designer.rewards.tolist()]))
""",
]
TRAIN_SECONDS = 180


def read_numbers(page: Page) -> dict[str, float]:
    """Effective states, log Z and mean reward, as the page shows them."""
    shown = page.locator(".numbers").inner_text()
    names = ("effective states", "log Z", "mean reward under p*")
    return {
        name: float(re.search(re.escape(name) + r" ([-\d.e]+)", shown)[1])
        for name in names
    }


def drag(page: Page, places: list[tuple[float, float]]) -> None:
    """Draw through places given as shares of the canvas: (from left, from top)."""
    box = page.locator(".canvas").bounding_box()
    points = [
        (box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in places
    ]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=5)
    page.mouse.up()


def read_kernel(page: Page) -> tuple[float, list[float]]:
    """β and the rewards, as the kernel has them: runs the second cell again."""
    cell = page.locator(".jp-Notebook .jp-CodeCell").nth(1)
    page.wait_for_timeout(500)  # what was drawn last is on its way to the kernel
    before = cell.locator(".jp-InputPrompt").inner_text()
    cell.locator(".jp-InputArea-editor").click()
    page.keyboard.press("Control+Enter")
    number = re.compile(r"\[\d+\]:")
    expect(cell.locator(".jp-InputPrompt")).not_to_have_text(before, timeout=60_000)
    expect(cell.locator(".jp-InputPrompt")).to_have_text(number, timeout=60_000)
    text = cell.locator(".jp-OutputArea-output").inner_text()
    scale, rewards = json.loads(text.split("KERNEL ")[1])
    return scale, rewards


def target_of(scale: float, rewards: list[float]) -> dict[str, float]:
    weights = [math.exp(scale * reward) for reward in rewards]
    probs = [weight / sum(weights) for weight in weights]
    entropy = -sum(p * math.log(p) for p in probs)
    return {
        "effective states": math.exp(entropy),
        "log Z": math.log(sum(weights) / len(rewards)),
        "mean reward under p*": sum(p * r for p, r in zip(probs, rewards, strict=True)),
    }


@pytest.fixture(scope="module")
def visit(shared_visit: Visit) -> Visit:
    return shared_visit


@pytest.fixture(scope="module")
def page(visit, lab_address, lab_folder) -> Page:
    write_notebook(lab_folder, "target_designer", CELLS)
    open_notebook(visit, lab_address, "target_designer")
    run_all_cells(visit)
    wait_until_done(visit, "target_designer")
    visit.page.locator(".canvas svg").wait_for()
    yield visit.page
    visit.screenshot("target_designer")
    assert error_outputs(visit) == []


def test_draw_turn_the_dial_train_and_run_again(page) -> None:
    start = read_numbers(page)
    assert start["effective states"] == 100
    assert start["log Z"] == 7.5  # β = 15 times the flat reward of 0.5
    expect(page.locator(".flat")).to_contain_text("A flat landscape")

    # two hills with the mouse: the page's numbers follow at once
    drag(
        page,
        [
            (0.08, 0.8),
            (0.25, 0.8),
            (0.3, 0.2),
            (0.35, 0.8),
            (0.62, 0.8),
            (0.72, 0.25),
            (0.8, 0.8),
            (0.98, 0.8),
        ],
    )
    drawn = read_numbers(page)
    assert drawn["effective states"] < 25
    expect(page.locator(".flat")).to_have_text("")
    expect(page.get_by_label("start from")).to_have_value("")

    # the drawing reached the kernel, and both say the same
    scale, rewards = read_kernel(page)
    assert scale == 15
    assert max(rewards) > 0.8 > 0.2 > min(rewards)
    for name, value in target_of(scale, rewards).items():
        assert drawn[name] == pytest.approx(value, rel=6e-3), name

    # the dial by keyboard: a larger β, a sharper target
    slider = page.locator('.flowrl-explorer input[type="range"]')
    slider.focus()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    turned = read_numbers(page)
    assert turned["effective states"] < drawn["effective states"]

    # training, in the kernel
    page.get_by_role("button", name="Train both").click()
    status = page.locator(".status")
    expect(status).to_have_text("trained, 60 steps each", timeout=TRAIN_SECONDS * 1000)
    kl = {
        name: float(
            page.locator(f'tr[data-run="{name}"] td[data-fact="KL(p*‖π)"]')
            .inner_text()
            .split()[0]
        )
        for name in ("grpo", "flowrl")
    }
    assert kl["flowrl"] < kl["grpo"] / 4
    alive = '[data-fact="modes alive"]'
    expect(page.locator(f'tr[data-run="flowrl"] {alive}')).to_have_text("2 of 2")
    expect(page.locator(".trained")).to_contain_text("trained on this drawing")
    expect(page.locator(".picture path[stroke-width]")).to_have_count(2)

    # another stroke: the result is still there, marked as belonging to the old one
    drag(page, [(0.5, 0.5), (0.52, 0.5)])
    expect(page.locator(".trained")).to_contain_text("before the drawing changed")

    # the cell is run again: the drawing is still there
    edited = page.locator(".canvas path.bars").get_attribute("d")
    cell = page.locator(".jp-Notebook .jp-CodeCell").first
    cell.locator(".jp-InputArea-editor").click()
    page.keyboard.press("Control+Enter")
    expect(cell.locator(".jp-InputPrompt")).to_have_text(
        re.compile(r"\[(?!1\])\d+\]:"), timeout=60_000
    )
    expect(page.locator(".canvas path.bars")).to_have_attribute("d", edited)
    expect(page.locator(".trained")).to_contain_text("before the drawing changed")


def test_draw_by_keyboard(page) -> None:
    page.get_by_label("start from").select_option("needle")
    needle = read_numbers(page)
    assert needle["effective states"] < 100
    canvas = page.locator(".canvas")
    canvas.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert canvas.get_attribute("aria-valuetext").startswith("state 1: reward")
    before = float(canvas.get_attribute("aria-valuenow"))
    for _ in range(3):
        page.keyboard.press("ArrowUp")
    page.keyboard.press("PageUp")
    after = float(canvas.get_attribute("aria-valuenow"))
    assert after == pytest.approx(before + 0.35, abs=2e-3)
    page.keyboard.press("ArrowDown")
    assert float(canvas.get_attribute("aria-valuenow")) < after
    _, rewards = read_kernel(page)
    assert rewards[1] == pytest.approx(before + 0.3, abs=2e-3)
    # a broad brush raises the neighbours too
    page.locator('input[type="number"]').fill("5")
    canvas.focus()
    page.keyboard.press("End")
    page.keyboard.press("PageUp")
    _, rewards = read_kernel(page)
    assert rewards[-3:] == [rewards[-1]] * 3
    assert rewards[-1] > rewards[-4]

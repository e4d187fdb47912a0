"""The token inspector in a real browser: point at a token, walk by keyboard, read."""

from __future__ import annotations

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

# The numbers are chosen by hand, so that what the page shows can be told beforehand.
CELL = """
import torch
from flowrl_lab.widgets import TokenInspector
nan = float("nan")
tokens = [["6", "*", "4", "⟨end⟩"], ["8", "⟨end⟩"]]
log_probs = torch.tensor([[-1.0, -0.5, -0.25, -2.0], [-3.0, -0.1, nan, -7.0]])
reference = torch.tensor([[-2.0, -0.5, -1.25, -0.5], [-2.5, -0.2, -1.0, nan]])
mask = torch.tensor([[True] * 4, [True, True, False, False]])
TokenInspector("24!37:", tokens, log_probs, reference, mask, [1.0, 0.0])
"""


def read_facts(page: Page) -> dict[str, str]:
    """The table of numbers below the tokens."""
    cells = page.locator(".token-facts td").all()
    return {cell.get_attribute("data-fact"): cell.inner_text() for cell in cells}


@pytest.fixture(scope="module")
def visit(shared_visit: Visit) -> Visit:
    return shared_visit


@pytest.fixture(scope="module")
def page(visit, lab_address, lab_folder) -> Page:
    write_notebook(lab_folder, "token_inspector", [CELL])
    open_notebook(visit, lab_address, "token_inspector")
    run_all_cells(visit)
    wait_until_done(visit, "token_inspector")
    visit.page.locator(".token-rows").wait_for()
    assert error_outputs(visit) == []
    yield visit.page
    visit.screenshot("token_inspector")


def test_hover_and_keyboard_read_numbers(page) -> None:
    tokens = page.locator(".token-rows .token")
    expect(tokens).to_have_count(8)
    assert tokens.all_inner_texts() == [
        *("6\n+1.00", "*\n0", "4\n+1.00", "⟨end⟩\n−1.50"),
        *("8\n−0.50", "⟨end⟩\n+0.10", "⟨pad⟩\n–", "⟨pad⟩\n–"),
    ]
    totals = page.locator(".token-total").all_inner_texts()
    assert totals[0].startswith("sum +0.500 nats · mean +0.125 over 4 counted")
    assert totals[1].startswith("sum −0.400 nats · mean −0.200 over 2 counted")
    tokens.nth(3).hover()
    facts = read_facts(page)
    assert facts["token"] == "⟨end⟩"
    assert facts["log π"] == "−2 nats"
    assert facts["log π_ref"] == "−0.5 nats"
    assert facts["log-ratio"].startswith("−1.5 nats")
    assert "× 0.223" in facts["log-ratio"]
    assert facts["running sum"] == "+0.5 nats"
    assert facts["counted"] == "yes"
    # by keyboard: one stop of the Tab key, then the arrows
    expect(page.locator(".token-rows .token[tabindex='0']")).to_have_count(1)
    tokens.nth(3).focus()
    page.keyboard.press("ArrowDown")
    facts = read_facts(page)
    assert facts["counted"] == "no: masked out"
    assert facts["log π"] == "−7 nats"
    assert facts["log-ratio"] == "– nats"
    assert facts["running sum"] == "−0.4 nats"  # what is not counted adds nothing
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert read_facts(page)["running sum"] == "−0.4 nats"
    focused = page.locator(":focus")
    assert "token ⟨end⟩" in focused.get_attribute("aria-label")
    assert "counted yes" in focused.get_attribute("aria-label")


def test_colours_have_the_sign_and_padding_has_none(page) -> None:
    colours = page.locator(".token-rows .token").evaluate_all(
        "all => all.map(e => getComputedStyle(e).backgroundColor)"
    )
    assert colours[0] == colours[2] == "rgba(0, 114, 178, 0.43)"
    assert colours[3] == "rgba(213, 94, 0, 0.65)"
    assert colours[1] == "rgba(213, 94, 0, 0)"
    assert colours[6] == colours[7] == "rgba(0, 0, 0, 0)"
    borders = page.locator(".token-rows .token").evaluate_all(
        "all => all.map(e => getComputedStyle(e).borderStyle)"
    )
    assert borders == ["solid"] * 6 + ["dashed"] * 2

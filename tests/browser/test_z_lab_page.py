"""The Z-lab in a real browser: move its controls, read its numbers from the page."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from pages import Visit, error_outputs, open_notebook, run_all_cells, write_notebook
from playwright.sync_api import Locator, expect

from flowrl_lab.widgets import ZLab

pytestmark = [pytest.mark.browser, pytest.mark.slow]

REWARDS = [0.0, 0.9, 0.3, 1.0, 0.1, 0.5, 0.2]
CELLS = (
    f"from flowrl_lab.widgets import ZLab\n"
    f"lab = ZLab({REWARDS}, reward_scale=4.0)\nlab",
    "print(lab.settings())",
    f"ZLab({REWARDS}, reward_scale=4.0)",
)


def read_numbers(lab: Locator) -> dict[str, float]:
    """Everything the page says in numbers."""
    texts = lab.locator(".numbers span").all_text_contents()
    found = {}
    for text in texts[1:]:
        name, value = text.rsplit(" ", 1)
        found[name] = float(value)
    verdict = lab.locator(".verdict").inner_text()
    match = re.search(r"at the end: (\S+)(?: ± (\S+))? nats", verdict)
    found["KL at the end"] = float(match[1])
    found["±"] = float(match[2] or 0)
    return found


def expect_python_says_the_same(lab: Locator, **settings) -> None:
    """The page's numbers are those of the Python side, to the digits shown."""
    ZLab._left.clear()
    wanted = ZLab(REWARDS, reward_scale=4.0, **settings).numbers()
    shown = read_numbers(lab)
    assert set(shown) == set(wanted)
    for name, value in shown.items():
        digits = 6e-3 if abs(value) >= 1e-3 else 6e-2  # three shown, or two
        assert value == pytest.approx(wanted[name], rel=digits, abs=1e-9), name


@pytest.mark.full
def test_the_learner_ruins_log_z_and_reads_what_it_does(
    visit: Visit, lab_address: str, lab_folder: Path
) -> None:
    write_notebook(lab_folder, "z_lab", CELLS)
    open_notebook(visit, lab_address, "z_lab")
    run_all_cells(visit)
    cells = visit.page.locator(".jp-Notebook .jp-CodeCell")
    lab = cells.nth(0).locator(".flowrl-explorer")
    expect(lab.locator(".verdict")).to_contain_text("5 different draws")
    expect_python_says_the_same(lab)
    learned = read_numbers(lab)["KL at the end"]

    lab.get_by_label("log Z is").select_option(label="frozen at truth + bias")
    bias = lab.get_by_label("bias, nats")
    bias.focus()
    for _ in range(8):  # half a nat each
        bias.press("ArrowLeft")
    expect_python_says_the_same(lab, mode="frozen", bias=-4.0)
    assert read_numbers(lab)["KL at the end"] > 2 * learned
    assert read_numbers(lab)["mean residual"] == pytest.approx(-4.0, abs=0.4)
    expect(lab.get_by_label("rate of log Z")).to_be_disabled()

    lab.get_by_label("batch size").fill("8")  # the last notch: exact means
    expect(lab.locator(".verdict")).to_contain_text("nothing is drawn")
    expect_python_says_the_same(lab, mode="frozen", bias=-4.0, batch_size=0)
    lab.get_by_label("log Z is").select_option("dropped")
    expect_python_says_the_same(lab, mode="dropped", batch_size=0)

    lab.get_by_label("samples from").select_option("reference")
    lab.get_by_label("show step").fill("20")
    settings = {"mode": "dropped", "sampler": "reference", "batch_size": 0}
    expect_python_says_the_same(lab, **settings, step=20)
    drawn = lab.locator("svg .policy").get_attribute("d")
    heights = np.array([float(y) for y in re.findall(r" ([\d.]+)(?=L|$)", drawn)])
    assert len(heights) == len(REWARDS)
    assert heights.argmin() == 3  # svg counts from the top: the best state
    visit.screenshot("z-lab")

    # The kernel knows, and the cell that runs again shows what was left.
    cells.nth(1).locator(".cm-content").click()
    visit.page.keyboard.press("Shift+Enter")
    printed = cells.nth(1).locator(".jp-OutputArea-output").last
    expect(printed).to_contain_text("mode='dropped'")
    expect(printed).to_contain_text("sampler='reference'")
    visit.page.keyboard.press("Shift+Enter")
    again = cells.nth(2).locator(".flowrl-explorer")
    expect(again.get_by_label("log Z is")).to_have_value("dropped")
    expect(again.get_by_label("show step")).to_have_value("20")
    assert not error_outputs(visit)

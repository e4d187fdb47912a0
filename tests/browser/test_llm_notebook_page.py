"""Notebook 9 in a real JupyterLab while it trains the real model."""

from __future__ import annotations

import pytest
from pages import error_outputs, open_notebook, run_all_cells, wait_until_done
from test_jupyterlab import check_live_plot
from trained_copy import write_trained_copy

from flowrl_lab.policies.loading import fetch_model

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.full]


def test_the_plots_move_while_a_language_model_trains(visit, lab_folder, lab_address):
    fetch_model("smollm2-135m")
    name = "trained"
    write_trained_copy(lab_folder / "notebooks" / f"{name}.ipynb")
    open_notebook(visit, lab_address, name)
    run_all_cells(visit)
    seen = wait_until_done(visit, name)
    assert error_outputs(visit) == []
    check_live_plot(visit, seen, 5)
    visit.screenshot("09_lora_llm-trained")
    assert (lab_folder / "notebooks" / "my_adapter").is_dir()

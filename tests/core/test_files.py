"""Files on disk: nothing is overwritten, and what JSON cannot hold is made plain."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from flowrl_lab._files import plain_values, refuse_used, write_json


@pytest.mark.bad_input
def test_used_names_are_refused_before_any_work(tmp_path):
    taken = tmp_path / "taken.json"
    taken.write_text("mine")
    refuse_used(tmp_path / "new.json", None, tmp_path / "deep" / "other.json")
    with pytest.raises(ValueError, match=r"taken\.json already exists; nothing"):
        refuse_used(tmp_path / "new.json", taken)
    with pytest.raises(ValueError, match="is named twice"):
        refuse_used(tmp_path / "new.json", str(tmp_path / "new.json"))
    with pytest.raises(ValueError, match=r"taken\.json is a file"):
        refuse_used(taken / "inside.json")


def test_what_json_cannot_hold_is_made_plain(tmp_path):
    value = {1: np.array([0.5, math.nan]), "up": (math.inf, "text")}
    assert plain_values(value) == {"1": [0.5, None], "up": ["inf", "text"]}
    assert plain_values(value, infinite=lambda _value: None)["up"] == [None, "text"]
    write_json(tmp_path / "one.json", value)
    assert json.loads((tmp_path / "one.json").read_text())["1"] == [0.5, None]

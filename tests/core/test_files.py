"""Files on disk: nothing is overwritten, and what JSON cannot hold is made plain."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest

from flowrl_lab._files import plain_values, refuse_used, write_atomically, write_json


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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_or_device_is_not_replaced(tmp_path):
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        with pytest.raises(OSError, match=r"is no plain file\. Fix: "):
            write_atomically(path, b"x")
    assert pipe.is_fifo() and link.is_symlink() and len(os.listdir(tmp_path)) == 2

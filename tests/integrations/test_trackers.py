"""Trackers: what was written is read back with the tracker's own reader."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowrl_lab import preset, race, train
from flowrl_lab.integrations.trackers import TRACKERS, numbers_of, track

ROOT = Path(__file__).resolve().parents[2]
CONFIG = preset("landscape", "flowrl", budget="quick", steps=4, eval_every=2)


@pytest.fixture(scope="module")
def records():
    """Two runs side by side, as a race yields them."""
    return list(race(CONFIG, CONFIG.replace(name="other", seed=3)))


def expected_rows(records) -> dict[tuple[str, int], dict[str, float]]:
    return {(f"{r.run}_seed{r.seed}", r.step): numbers_of(r) for r in records}


def test_numbers_have_no_nan_and_no_words(records):
    first, last = numbers_of(records[0]), numbers_of(records[-1])
    assert "loss" not in first  # nothing was sampled yet
    assert first["exact/accuracy"] == records[0].exact.accuracy
    assert last["loss"] == records[-1].loss
    assert last["exact/pass_at_64"] == records[-1].exact.pass_at_k[64]
    assert all(math.isfinite(value) for value in last.values())
    assert not {"run", "samples", "step"} & last.keys()


@pytest.mark.parametrize("name", ["csv", "jsonl"])
def test_plain_files_hold_every_number(records, name, tmp_path):
    passed = list(track(records, name, tmp_path / "new"))
    assert passed == records
    path = tmp_path / "new" / f"steps.{name}"
    with open(path, newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file) if name == "csv" else map(json.loads, file)
        found = {}
        for row in rows:
            key = (row.pop("run"), int(row.pop("step")))
            found[key] = {k: float(v) for k, v in row.items() if v != ""}
    assert found == expected_rows(records)


def test_tensorboard_reads_its_events_back(records, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert list(track(records, "tensorboard", tmp_path)) == records
    found: dict[tuple[str, int], dict[str, float]] = {}
    for folder in tmp_path.iterdir():
        events = EventAccumulator(str(folder))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            for event in events.Scalars(tag):
                found.setdefault((folder.name, event.step), {})[tag] = event.value
    expected = expected_rows(records)
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert found[key] == pytest.approx(values, rel=1e-6)  # it keeps float32


# Their threads and settings stay out of this process.
OTHER_PROCESS = """
import pickle, sys
from flowrl_lab.integrations.trackers import track
records = pickle.load(open(sys.argv[1], "rb"))
for name in ("wandb", "trackio"):
    assert list(track(records, name, sys.argv[2], project="a race")) == records
"""


@pytest.mark.full
def test_wandb_and_trackio_keep_the_race_without_an_account(records, tmp_path):
    import pickle

    (tmp_path / "records").write_bytes(pickle.dumps(records))
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "HF_HUB_OFFLINE": "1",
        "WANDB_ERROR_REPORTING": "false",
    }
    subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS, tmp_path / "records", tmp_path / "logs"],
        env=environment,
        check=True,
        capture_output=True,
    )
    expected = expected_rows(records)
    assert read_wandb(tmp_path / "logs") == expected
    assert read_trackio(tmp_path / "trackio" / "a-race.db") == expected


def read_wandb(folder: Path) -> dict:
    """Every history line of the offline runs."""
    from wandb.proto import wandb_internal_pb2

    found = {}
    for path in folder.glob("wandb/offline-run-*/run-*.wandb"):
        name = None
        for data in read_log(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                name = record.run.display_name
            if record.HasField("history"):
                values = {
                    item.key or item.nested_key[0]: json.loads(item.value_json)
                    for item in record.history.item
                }
                own = {k: v for k, v in values.items() if not k.startswith("_")}
                found[name, values["_step"]] = own
    return found


def read_log(content: bytes, block: int = 32768) -> Iterator[bytes]:
    """Records of a log in LevelDB's format: pieces with a header, none over a block."""
    position, record = 7, b""
    while position + 7 <= len(content):
        if block - position % block < 7:  # too little room for a header: padding
            position += block - position % block
            continue
        _checksum, length, kind = struct.unpack_from("<IHB", content, position)
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            yield record
            record = b""


def read_trackio(path: Path) -> dict:
    with contextlib.closing(sqlite3.connect(path)) as database:
        rows = database.execute("select run_name, step, metrics from metrics")
        return {(run, step): json.loads(values) for run, step, values in rows}


def test_a_run_that_is_left_early_is_written_so_far(tmp_path):
    for record in track(train(CONFIG), "jsonl", tmp_path):
        if record.step == 2:
            break
    assert len((tmp_path / "steps.jsonl").read_text().splitlines()) == 3


@pytest.mark.bad_input
def test_mistakes_show_before_any_work(tmp_path, monkeypatch):
    def never():
        raise AssertionError("the run was started")
        yield

    with pytest.raises(ValueError, match="did you mean 'tensorboard'"):
        track(never(), "tensorbord", tmp_path)
    (tmp_path / "steps.csv").write_text("mine")
    with pytest.raises(ValueError, match=r"already exists; nothing is overwritten"):
        track(never(), "csv", tmp_path)
    assert (tmp_path / "steps.csv").read_text() == "mine"
    for package in ("tensorboard", "wandb", "trackio"):
        name = "torch.utils.tensorboard" if package == "tensorboard" else package
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
        with pytest.raises(ImportError, match=rf"needs the package {package}.*\[track"):
            track(never(), package, tmp_path / package)
    assert set(TRACKERS) == {"csv", "jsonl", "tensorboard", "wandb", "trackio"}

"""Files of JSON lines: a line ends at a line feed, whatever else its text holds."""

from __future__ import annotations

import ast
import dataclasses
import json
from pathlib import Path

import pytest

from flowrl_lab import preset
from flowrl_lab._files import read_lines
from flowrl_lab.course.ledger import _salvage
from flowrl_lab.measuring.folder import RunResult
from flowrl_lab.measuring.recorded import add_recorded, load_recorded, write_recorded
from flowrl_lab.measuring.replay import load_replay
from flowrl_lab.tasks.real.word_problems import load_gsm8k
from flowrl_lab.training.run import Run

PACKAGE = Path(__file__).resolve().parents[2] / "flowrl_lab"
ODD = "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\x1dh\x1ei"  # where str.splitlines cuts


def write_raw(path: Path, rows: list) -> None:
    """JSON with every character as it is, where JSON allows that."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_bytes("".join(line + "\n" for line in lines).encode())


def test_lines_end_at_line_feeds_only(tmp_path):
    path = tmp_path / "odd.jsonl"
    write_raw(path, [{"x": ODD}, {"y": 1}])
    assert [json.loads(line) for line in read_lines(path)] == [{"x": ODD}, {"y": 1}]
    for content, lines in [
        (b"", []),
        (b"1", ["1"]),
        (b"1\n", ["1"]),
        (b"1\r\n2\r\n", ["1", "2"]),
        (b"1\n\n2", ["1", "", "2"]),
    ]:
        path.write_bytes(content)
        assert read_lines(path) == lines


def test_word_problems(tmp_path):
    write_raw(tmp_path / "a.jsonl", [{"question": ODD, "answer": f"{ODD} #### 18"}] * 2)
    problems = load_gsm8k(tmp_path / "a.jsonl")
    assert [(p.question, p.answer) for p in problems] == [(ODD, "18")] * 2


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """A recording of one run with an odd name, its characters written as they are."""
    config = preset("landscape", "flowrl", steps=1, eval_every=1, name=ODD)
    result = RunResult(dataclasses.asdict(config), tuple(Run(config)), {"note": ODD})
    path = tmp_path / "results" / "odd.jsonl"
    path.parent.mkdir()
    write_recorded(path, [result])
    write_raw(path, [json.loads(line) for line in path.read_text().split("\n")[:-1]])
    monkeypatch.setenv("FLOWRL_DATA", str(tmp_path))
    return path, result


def test_recorded_runs(recorded):
    path, result = recorded
    assert "\u2028b\u2029c\u0085" in path.read_text(encoding="utf-8")
    (loaded,) = load_recorded("odd")
    assert loaded.config["name"] == ODD
    assert add_recorded(path, [result]) == 0
    assert len(load_recorded("odd")) == 1


def test_recorded_steps(recorded):
    path, _ = recorded
    row = {"format": 1, "config": {"name": ODD}, "environment": {}, "records": []}
    write_raw(path.with_name("odd.replay.jsonl"), [row, row])
    assert [run.config["name"] for run in load_replay("odd")] == [ODD, ODD]


def test_a_salvaged_progress_file():
    event = {"id": "1", "time": "t", "kind": "k", "key": ODD}
    line = json.dumps(event, ensure_ascii=False)
    assert _salvage(f"[\n{line},\n{line}\n] rest".encode()) == [event, event]


def test_no_file_is_cut_by_splitlines():
    """``read_text().splitlines()`` is for kernel files, which hold no JSON."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr == "splitlines":
                text = ast.unparse(node.value)
                if "read_text" in text and "/proc/" not in text:
                    found.append(f"{path.name}: {text}")
    assert found == []

"""The progress file: nothing is lost, nothing it meets stops the course."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flowrl_lab.course import ledger as module
from flowrl_lab.course.ledger import (
    FILE_NAME,
    Ledger,
    merge_events,
    open_ledger,
    progress_path,
    read_events,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new folder" / FILE_NAME


def keys(events) -> list[str]:
    return [event["key"] for event in events]


def test_events_come_back_in_order_and_from_another_kernel(path):
    ledger = Ledger(path)
    ledger.record("prediction", "02.a", {"answer": "ψ", "unit": ""})
    ledger.record("check", "kl", {"status": "failed", "mistake": "sign"})
    assert keys(Ledger(path).events()) == ["02.a", "kl"]
    assert Ledger(path).latest("prediction", "02.a")["answer"] == "ψ"
    assert Ledger(path).latest("quiz", "02.a") is None
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["flowrl_lab_progress"] == 1
    assert len({event["id"] for event in document["events"]}) == 2


def test_the_same_again_is_not_added_but_a_change_is(path):
    ledger = Ledger(path)
    facts = {"status": "failed", "mistake": "sign"}
    first = ledger.record("check", "kl", facts)
    assert ledger.record("check", "kl", dict(facts)) == first
    ledger.record("check", "kl", {"status": "passed", "mistake": ""})
    ledger.record("check", "kl", facts)
    assert [e["status"] for e in ledger.events()] == ["failed", "passed", "failed"]


def test_two_kernels_do_not_lose_each_others_events(path):
    """Real processes, each adding as fast as it can."""
    program = (
        "import sys; from flowrl_lab.course.ledger import Ledger\n"
        "ledger = Ledger(sys.argv[1])\n"
        "for i in range(15): ledger.record('quiz', f'{sys.argv[2]}{i}', {})\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    kernels = [
        subprocess.Popen([sys.executable, "-c", program, path, n], env=environment)
        for n in "ab"
    ]
    assert [kernel.wait(timeout=100) for kernel in kernels] == [0, 0]
    wanted = {f"{n}{i}" for n in "ab" for i in range(15)}
    assert set(keys(read_events(path))) == wanted


def test_threads_of_one_kernel_do_not_either(path):
    def work(name: str) -> None:
        own = Ledger(path)
        for i in range(10):
            own.record("quiz", f"{name}{i}", {})

    threads = [threading.Thread(target=work, args=(n,)) for n in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(read_events(path)) == 30


def test_a_kernel_that_waits_for_the_lock_too_long_keeps_its_event(
    path, monkeypatch, capsys
):
    monkeypatch.setattr(module, "LOCK_SECONDS", 0.1)
    ledger = Ledger(path)
    path.parent.mkdir()
    with module._locked(path):
        ledger.record("quiz", "waits", {})
    assert "another kernel" in capsys.readouterr().out
    assert read_events(path) == []
    ledger.record("quiz", "next", {})
    assert keys(read_events(path)) == ["waits", "next"]


def test_merging_is_a_union_in_any_order_any_number_of_times(path):
    one, two = Ledger(path), Ledger(path.with_name("other.json"))
    for ledger in (one, two):
        for key in "ab":
            ledger.record("quiz", key, {"from": ledger.path.name})
    a, b = one.events(), two.events()
    merged = merge_events(a, b)
    assert len(merged) == 4
    assert merge_events(b, a) == merge_events(merged, a, b, a) == merged
    assert [e["time"] for e in merged] == sorted(e["time"] for e in merged)


@pytest.mark.parametrize(
    ("old", "new", "kept"),
    [
        ('"key": "b"', '"kee": "b"', ["a", "c"]),  # one event is not whole
        ("\n]}", "", ["a", "b", "c"]),  # cut off at its end
        ('"flowrl_lab_progress": 1', '"version": 1', ["a", "b", "c"]),
        ('{"flowrl_lab_progress": 1, "events": [', "not JSON", ["a", "b", "c"]),
    ],
)
def test_a_damaged_file_is_set_aside_and_what_is_whole_is_kept(
    path, old, new, kept, capsys
):
    ledger = Ledger(path)
    for key in "abc":
        ledger.record("quiz", key, {})
    text = path.read_text(encoding="utf-8")
    hurt = text.replace(old, new, 1)
    assert hurt != text
    path.write_text(hurt, encoding="utf-8")
    other = Ledger(path)
    assert other.events() == []  # reading alone changes nothing
    assert path.read_text(encoding="utf-8") == hurt
    other.record("quiz", "new", {})
    said = capsys.readouterr().out
    assert "was damaged" in said and "damaged-1" in said and f" {len(kept)} ev" in said
    aside = path.with_name("flowrl_progress.damaged-1.json")
    assert aside.read_text(encoding="utf-8") == hurt
    assert keys(read_events(path)) == [*kept, "new"]
    # a second accident takes the next name
    path.write_bytes(b"\xff\xfe")
    other.record("quiz", "newer", {})
    assert aside.read_text(encoding="utf-8") == hurt
    assert path.with_name("flowrl_progress.damaged-2.json").read_bytes() == b"\xff\xfe"
    assert keys(read_events(path)) == ["newer"]


def test_a_truncated_file_gives_up_every_whole_event(path):
    ledger = Ledger(path)
    for key in "abcd":
        ledger.record("quiz", key, {})
    text = path.read_text(encoding="utf-8")
    path.write_text(text[: text.index('"key": "d"')], encoding="utf-8")
    Ledger(path).record("quiz", "e", {})
    assert keys(read_events(path)) == ["a", "b", "c", "e"]


def test_an_empty_file_is_no_accident(path, capsys):
    path.parent.mkdir()
    path.touch()
    Ledger(path).record("quiz", "a", {})
    assert capsys.readouterr().out == ""
    assert [p.name for p in path.parent.iterdir() if not p.name.startswith(".")] == [
        FILE_NAME
    ]


def test_a_newer_file_is_left_alone(path, capsys):
    path.parent.mkdir()
    newer = '{"flowrl_lab_progress": 2, "events": {}}'
    path.write_text(newer)
    ledger = Ledger(path)
    ledger.record("quiz", "a", {})
    assert "newer flowrl_lab" in capsys.readouterr().out
    assert path.read_text() == newer and keys(ledger.events()) == ["a"]
    with pytest.raises(ValueError, match="newer flowrl_lab"):
        read_events(path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_where_nothing_can_be_written_the_course_goes_on(
    path, number, monkeypatch, capsys
):
    """One line says so; what waits is saved as soon as that works again."""

    def full(*_arguments) -> None:
        raise OSError(number, os.strerror(number))

    ledger = Ledger(path)
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_atomically", full)
        ledger.record("quiz", "a", {})
        ledger.record("quiz", "b", {})
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert os.strerror(number) in said and "The course goes on" in said
    assert keys(ledger.events()) == ["a", "b"] and not path.exists()
    ledger.record("quiz", "c", {})
    assert keys(read_events(path)) == ["a", "b", "c"]


def test_a_folder_in_the_place_of_the_file(tmp_path, capsys):
    ledger = Ledger(tmp_path)
    ledger.record("quiz", "a", {})
    assert "not saved" in capsys.readouterr().out
    assert ledger.latest("quiz", "a")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_or_device_in_its_place_is_neither_read_nor_replaced(tmp_path, capsys):
    """As FLOWRL_PROGRESS=/dev/null: root would put a file in the device's place."""
    pipe = tmp_path / FILE_NAME
    os.mkfifo(pipe)
    handle = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    before = signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(20)
    try:
        ledger = Ledger(pipe)
        ledger.record("quiz", "a", {})
        assert keys(ledger.events()) == ["a"]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        os.close(handle)
    assert pipe.is_fifo() and os.listdir(tmp_path) == [FILE_NAME]
    said = capsys.readouterr().out
    assert "is no plain file" in said and "The course goes on" in said


def _too_long(*_):
    raise KeyboardInterrupt  # no OSError, which a ledger would take for a full disk


@pytest.mark.skipif(
    hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write everywhere"
)
def test_a_read_only_folder(tmp_path, capsys):
    tmp_path.chmod(0o500)
    try:
        ledger = Ledger(tmp_path / FILE_NAME)
        ledger.record("quiz", "a", {})
    finally:
        tmp_path.chmod(0o700)
    assert "Permission denied" in capsys.readouterr().out
    assert ledger.latest("quiz", "a")


# ------------------------------------------------------------------------ its place


def test_path_from_the_variable_a_checkout_or_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWRL_PROGRESS", str(tmp_path / "mine.json"))
    assert progress_path() == tmp_path / "mine.json"
    assert open_ledger() is open_ledger()
    monkeypatch.setenv("FLOWRL_PROGRESS", "~nobody-of-this-name/mine.json")
    assert progress_path().name == "mine.json"
    monkeypatch.delenv("FLOWRL_PROGRESS")
    monkeypatch.chdir(ROOT / "notebooks")
    assert progress_path() == ROOT / FILE_NAME
    monkeypatch.chdir(tmp_path)
    assert progress_path() == tmp_path / FILE_NAME
    elsewhere = tmp_path / "notebooks"  # the same name, but no checkout above it
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert progress_path() == elsewhere / FILE_NAME


def test_the_learners_own_file_is_not_used_by_tests():
    chosen = Path(os.environ["FLOWRL_PROGRESS"])
    assert progress_path() == chosen and not chosen.is_relative_to(ROOT)
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert "flowrl_progress*.json" in ignored and ".flowrl_progress*" in ignored


# ------------------------------------------------------------------- who records what


@pytest.fixture
def own(path, monkeypatch) -> Path:
    """A progress file of this test's own."""
    monkeypatch.setenv("FLOWRL_PROGRESS", str(path))
    return path


def test_checks_record_verdicts_and_the_mistakes_name(own):
    import torch

    from flowrl_lab.course import EXERCISES, check
    from flowrl_lab.course.checking import load_solution

    def stub(*_):
        raise NotImplementedError

    exercise = EXERCISES["kl_divergence"]
    solution = load_solution(exercise)
    for function in (stub, exercise.mistakes[0].wrong, lambda *a: solution(*a)):
        check("kl_divergence", function)
    check("no_such_exercise", torch.add)
    check("kl_divergence", torch.add, exercises={})
    events = read_events(own)
    assert [(e["status"], e["mistake"]) for e in events] == [
        ("failed", exercise.mistakes[0].name),
        ("passed", ""),
    ]
    assert set(keys(events)) == {"kl_divergence"}


def test_setup_records_the_session(own):
    import torch

    import flowrl_lab

    session = flowrl_lab.setup(seed=3)
    (event,) = read_events(own)
    assert (event["kind"], event["seed"]) == ("session", 3)
    assert event["device"] == str(session.device)
    found = event["versions"]["torch"]  # a wheel may leave out the build's "+cu130"
    assert found.partition("+")[0] == torch.__version__.partition("+")[0]


def test_a_script_that_sets_a_seed_leaves_no_file(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "FLOWRL_PROGRESS"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-c", "import flowrl_lab; flowrl_lab.setup()"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=100)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.bad_input
def test_what_cannot_be_recorded_is_refused(path):
    ledger = Ledger(path)
    with pytest.raises(ValueError, match="`kind` is 'note'"):
        ledger.record("note", "a", {})
    for value in (float("nan"), object()):
        with pytest.raises(ValueError, match="cannot be saved"):
            ledger.record("quiz", "a", {"value": value})
    path.parent.mkdir()
    path.write_text("{")
    with pytest.raises(ValueError, match="no progress file that can be read"):
        read_events(path)
    assert path.read_text() == "{"


EVENT = {"id": "a", "time": "t", "kind": "check", "key": "k", "status": "passed"}
HEAD = b'{"flowrl_lab_progress": 1, "events": [\n'
ODD_FILES = {
    "lists in lists": b"[" * 100_000,
    "an event of lists in lists": HEAD
    + json.dumps(EVENT).encode()
    + b",\n"
    + b'{"id": '
    + b"[" * 100_000
    + b"\n]}",
    "5,000 digits": HEAD + json.dumps(EVENT).encode() + b",\n"
    b'{"id":"b","time":"t","kind":"check","key":"k","n":' + b"9" * 5000 + b"}\n]}",
    "bytes that are no text": b"\xff\xfe\x00",
    "null": b"null",
    "events that are none": HEAD + b"null, 3, {}\n]}",
}


@pytest.mark.parametrize("name", ODD_FILES)
def test_an_odd_file_is_set_aside_and_costs_nothing(path, name, capsys):
    path.parent.mkdir()
    path.write_bytes(ODD_FILES[name])
    ledger = Ledger(path)
    assert ledger.events() == []
    ledger.record("quiz", "q", {"right": True})
    ledger.record("quiz", "q2", {"right": True})
    kept = ["k"] if "EVENT" in name or b'"status"' in ODD_FILES[name] else []
    assert sorted(keys(Ledger(path).events())) == [*kept, "q", "q2"]
    aside = path.with_name(f"{path.stem}.damaged-1.json")
    assert aside.read_bytes() == ODD_FILES[name]
    assert capsys.readouterr().out.count("damaged") == 2  # its name says so too
    with pytest.raises(ValueError, match="no progress file"):
        read_events(aside)


def test_half_an_emoji_is_kept_and_stops_nothing(path):
    """In an answer of this kernel, and in a file from another."""
    half = "a cut \ud83d"
    ledger = Ledger(path)
    ledger.record("quiz", "first", {"choice": half})
    ledger.record("quiz", "second", {"choice": "fine"})
    assert Ledger(path).latest("quiz", "first")["choice"] == half
    assert Ledger(path).latest("quiz", "second")["choice"] == "fine"
    path.read_text(encoding="utf-8")


@pytest.mark.bad_input
def test_facts_without_end_are_refused_in_words(path):
    endless: list = []
    for _ in range(100_000):
        endless = [endless]
    with pytest.raises(ValueError, match="cannot be saved"):
        Ledger(path).record("quiz", "q", {"choice": endless})

"""Checkpoints: all or nothing on disk, and nothing damaged is ever used."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import pickle
import subprocess
import sys
import time
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from flowrl_lab import _files
from flowrl_lab._files import scratch_folder, write_atomically
from flowrl_lab.training.checkpoints import MAGIC, read_checkpoint, write_checkpoint
from flowrl_lab.training.presets import preset
from flowrl_lab.training.run import Run

STATE = {
    "step": 3,
    "seconds": 0.5,
    "config": '{"π": 1}',
    "records": ["a", "b"],
    "policy": {"weight": torch.arange(6.0).view(2, 3), "half": torch.ones(2).half()},
    "optimizer": {"state": {0: {"exp_avg": torch.rand(4)}}, "groups": [{"lr": 1e-3}]},
    "generator": torch.Generator().manual_seed(3).get_state(),
    "modules": OrderedDict(log_z=torch.zeros(1)),
    "nothing": None,
    "flag": True,
}


def assert_equal(first, second):
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype and torch.equal(first, second)
    elif isinstance(first, dict):
        assert list(first) == list(second)
        for key in first:
            assert_equal(first[key], second[key])
    else:
        assert first == second


@pytest.fixture(name="saved")
def fixture_saved(tmp_path):
    path = tmp_path / "run" / "checkpoint.pt"
    write_checkpoint(path, STATE)
    return path


def leftovers(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# ---------------------------------------------------------------------- round trip


def test_round_trip(saved):
    assert_equal(read_checkpoint(saved), STATE)
    assert leftovers(saved.parent) == ["checkpoint.pt"]


def test_the_header_is_the_sha256_of_the_rest(saved):
    header, _, payload = saved.read_bytes().partition(b"\n")
    assert header == MAGIC + hashlib.sha256(payload).hexdigest().encode()


def test_writing_again_replaces(saved):
    write_checkpoint(saved, {"step": 4})
    assert read_checkpoint(saved) == {"step": 4}
    assert leftovers(saved.parent) == ["checkpoint.pt"]


def test_text_files_are_written_the_same_way(tmp_path):
    path = tmp_path / "a" / "b" / "config.json"
    write_atomically(path, "β = ½".encode())
    assert path.read_text(encoding="utf-8") == "β = ½"


# -------------------------------------------------------------------------- damage


@pytest.mark.bad_input
@pytest.mark.parametrize("place", [70, 100, 0.3, 0.6, -1])
def test_one_flipped_bit_is_noticed(saved, place):
    content = bytearray(saved.read_bytes())
    place = int(place * len(content)) if isinstance(place, float) else place
    content[place] ^= 1
    saved.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged: .*sha256.*says.*Fix:"):
        read_checkpoint(saved)


@pytest.mark.bad_input
@pytest.mark.parametrize("share", [0.99, 0.5, 0.1])
def test_a_truncated_file_is_noticed(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged.*Fix:"):
        read_checkpoint(saved)


@pytest.mark.bad_input
def test_a_file_cut_right_after_its_header_is_noticed(saved):
    saved.write_bytes(saved.read_bytes().partition(b"\n")[0] + b"\n")
    with pytest.raises(ValueError, match=r"damaged.*\(0 bytes read\).*Fix:"):
        read_checkpoint(saved)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"PK\x03\x04 a bare torch archive",
        b"flowrl-lab checkpoint 0 " + b"0" * 64 + b"\nx",
        b"flowrl-lab checkpoint 2 " + b"0" * 64 + b"\nx",
        MAGIC[:-3],
    ],
)
def test_what_is_no_checkpoint_is_refused(saved, content):
    saved.write_bytes(content)
    with pytest.raises(ValueError, match=r"not a flowrl_lab checkpoint.*Fix:"):
        read_checkpoint(saved)


@pytest.mark.bad_input
def test_a_missing_file_is_named(tmp_path):
    for path in (tmp_path / "none" / "checkpoint.pt", tmp_path):
        with pytest.raises(ValueError, match=r"no checkpoint at .*Fix:") as caught:
            read_checkpoint(path)
        assert str(path) in str(caught.value)


class Malicious:
    """Runs code when it is unpickled."""

    ran = False

    def __reduce__(self):
        return (setattr, (Malicious, "ran", True))


def sealed(payload: bytes) -> bytes:
    return MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload


@pytest.mark.bad_input
@pytest.mark.parametrize("archive", ["torch", "pickle"])
def test_nothing_executable_is_unpickled(saved, archive):
    """Even under a correct sha256: the file may come from somebody else."""
    buffer = io.BytesIO()
    if archive == "torch":
        torch.save({"step": Malicious()}, buffer)
    else:
        pickle.dump({"step": Malicious()}, buffer)
    saved.write_bytes(sealed(buffer.getvalue()))
    with pytest.raises(ValueError, match=r"nothing in it was run.*Fix:"):
        read_checkpoint(saved)
    assert not Malicious.ran
    pickle.loads(pickle.dumps(Malicious()))
    assert Malicious.ran  # it does run when it is let
    Malicious.ran = False


@pytest.mark.bad_input
@pytest.mark.parametrize("payload", [b"", b"abc", b"PK\x03\x04"])
def test_a_sealed_file_that_is_no_archive_is_refused(saved, payload):
    saved.write_bytes(sealed(payload))
    with pytest.raises(ValueError, match=r"Fix:"):
        read_checkpoint(saved)


@pytest.mark.bad_input
def test_a_checkpoint_holds_a_dict(saved):
    buffer = io.BytesIO()
    torch.save([1, 2], buffer)
    saved.write_bytes(sealed(buffer.getvalue()))
    with pytest.raises(ValueError, match=r"holds a list; expected a dict.*Fix:"):
        read_checkpoint(saved)


# -------------------------------------------------------------- full disk, interrupt


class FullDisk:
    """A file that takes half of what it is given, then the disk is full."""

    def __init__(self, path, _mode):
        self._file = io.FileIO(path, "w")
        self.fileno = self._file.fileno

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def write(self, content):
        self._file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_a_full_disk_keeps_the_old_checkpoint(saved, monkeypatch, where):
    if where == "write":
        monkeypatch.setattr(_files, "open", FullDisk, raising=False)
    else:
        monkeypatch.setattr(_files.os, where, no_space)
    with pytest.raises(OSError, match=r"could not save .*untouched\. Fix:") as caught:
        write_checkpoint(saved, {"step": 4})
    monkeypatch.undo()
    assert caught.value.errno == errno.ENOSPC
    assert_equal(read_checkpoint(saved), STATE)
    assert leftovers(saved.parent) == ["checkpoint.pt"]


def test_an_interrupt_leaves_no_half_file(saved, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(_files.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(saved, {"step": 4})
    monkeypatch.undo()
    assert_equal(read_checkpoint(saved), STATE)
    assert leftovers(saved.parent) == ["checkpoint.pt"]


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "run").write_text("mine", encoding="utf-8")
    with pytest.raises(OSError, match=r"could not save .*Fix:"):
        write_checkpoint(tmp_path / "run" / "checkpoint.pt", STATE)
    assert (tmp_path / "run").read_text(encoding="utf-8") == "mine"


# ---------------------------------------------------------- what kills leave behind

GONE = 2**22 + 7  # above the largest process number of Linux
posix = pytest.mark.skipif(os.name != "posix", reason="needs links and signals")


@posix
def test_a_link_that_waits_under_the_temporary_name_is_not_followed(
    tmp_path, monkeypatch
):
    precious, target = tmp_path / "precious", tmp_path / "run.json"
    precious.write_bytes(b"mine")
    monkeypatch.setattr(_files.secrets, "token_hex", lambda _count: "known")
    link = tmp_path / f".run.json.{os.getpid()}-known.part"
    link.symlink_to(precious)
    with pytest.raises(OSError, match="could not save"):
        write_atomically(target, b"new")
    assert precious.read_bytes() == b"mine" and not target.exists()


def test_temporary_names_cannot_be_guessed(tmp_path, monkeypatch):
    seen = []
    replace = os.replace
    monkeypatch.setattr(
        _files.os, "replace", lambda a, b: (seen.append(a.name), replace(a, b))
    )
    for _ in range(3):
        write_atomically(tmp_path / "a", b"x")
    assert len(set(seen)) == 3


KILLED = """
import os, signal, sys
from pathlib import Path
from flowrl_lab import _files
_files.os.fsync = lambda _handle: os.kill(os.getpid(), signal.SIGKILL)
_files.write_atomically(Path(sys.argv[1]), b"half")
"""


@posix
def test_what_a_killed_write_left_is_removed_by_the_next(tmp_path):
    target = tmp_path / "run.json"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", KILLED, str(target)], check=False)
    assert len(leftovers(tmp_path)) == 2
    write_atomically(tmp_path / "other.json", b"another file's leftovers stay")
    assert len(leftovers(tmp_path)) == 3
    write_atomically(target, b"whole")
    assert leftovers(tmp_path) == ["other.json", "run.json"]


@posix
def test_what_is_in_use_or_not_ours_stays(tmp_path):
    names = {
        "running": f".a.{os.getpid()}-1.part",  # another thread's, at this moment
        "locked": f".a.{GONE}-1.part",  # by another container
        "of another file": f".ab.{GONE}-1.part",
        "no number": ".a.mine.part",
        "a person's": ".a.part",
    }
    for name in names.values():
        (tmp_path / name).write_bytes(b"x")
    with open(tmp_path / names["locked"], "rb") as file:
        assert _files.try_lock(file.fileno())
        write_atomically(tmp_path / "a", b"new")
        assert leftovers(tmp_path) == sorted([*names.values(), "a"])
    write_atomically(tmp_path / "a", b"new")
    del names["locked"]
    assert leftovers(tmp_path) == sorted([*names.values(), "a"])


@posix
def test_a_number_that_another_process_has_got_keeps_nothing_for_ever(tmp_path):
    old = tmp_path / f".a.{os.getppid()}-1.part"
    old.write_bytes(b"x")
    hour = time.time() - _files.ABANDONED_SECONDS - 60
    os.utime(old, (hour, hour))
    write_atomically(tmp_path / "a", b"new")
    assert leftovers(tmp_path) == ["a"]


@posix
def test_scratch_folders_of_killed_processes_are_removed(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from flowrl_lab import _files\n"
        "with _files.scratch_folder('flowrl-x-', Path(sys.argv[1])) as made:\n"
        "    (made / 'deep').mkdir(); (made / 'deep' / 'file').write_bytes(b'x')\n"
        "    os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    (left,) = tmp_path.iterdir()
    with scratch_folder("flowrl-x-", tmp_path) as first:
        assert not left.exists() and first.is_dir()
        with scratch_folder("flowrl-x-", tmp_path) as second:
            assert first.is_dir() and second != first
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------- sealed, and not what Run.save writes

WRONG = (
    None,
    True,
    -1,
    10**30,
    2.5,
    float("nan"),
    "text",
    [],
    [1, "a"],
    {},
    {"a": 1},
    {1: torch.ones(2)},
    torch.ones(3),
    torch.zeros(2, 2, dtype=torch.bool),
)


@pytest.fixture(name="run_folder", scope="module")
def fixture_run_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sealed") / "run"
    run = Run(preset("landscape", "flowrl", budget="quick", steps=3))
    next(iter(run))
    next(iter(run))
    run.save(folder)
    return folder


def places(value, path=()):
    """Every place in a nested state, the outermost first."""
    if path:
        yield path
    if isinstance(value, dict):
        items = value.items()
    else:
        items = enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def put(state, path, value):
    """``state`` with ``value`` in one place."""
    if not path:
        return value
    key, *rest = path
    if isinstance(state, tuple):
        return tuple(put(list(state), path, value))
    changed = state.copy()
    changed[key] = put(state[key], rest, value)
    return changed


@pytest.mark.bad_input
@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.full)])
def test_sealed_checkpoints_with_wrong_content_are_refused_or_go_on(run_folder, every):
    """Whatever lies where: a clear ValueError, or a run that trains to its end."""
    path = run_folder / "checkpoint.pt"
    whole = read_checkpoint(path)
    tried = [
        (place, value)
        for place in places(whole)
        if place[0] not in ("records", "config") or len(place) == 1 or place[1] <= 0
        for value in WRONG
    ]
    refused = 0
    try:
        for place, value in tried[::every]:
            write_checkpoint(path, put(whole, place, value))
            try:
                run = Run.load(run_folder)
            except ValueError as error:
                refused += 1
                assert "Fix:" in str(error), (place, value, error)
                continue
            run.folder = None
            try:
                list(run)
            except Exception as error:
                pytest.fail(f"{place} = {value!r}: {error!r}")
    finally:
        write_checkpoint(path, whole)
    assert refused > 200 // every
    assert Run.load(run_folder).step == 1

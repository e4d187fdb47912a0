"""Checkpoints: all or nothing on disk, and nothing damaged is ever used."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import pickle
from collections import OrderedDict

import pytest
import torch

from flowrl_lab import _files
from flowrl_lab._files import write_atomically
from flowrl_lab.training.checkpoints import MAGIC, read_checkpoint, write_checkpoint

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

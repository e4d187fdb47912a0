"""What the doctor says of a machine, on machines that are only pretended."""

from __future__ import annotations

import importlib
import types

import pytest
import torch

from flowrl_lab.course import doctor
from flowrl_lab.scaling import llm_presets as presets
from flowrl_lab.scaling import machine
from flowrl_lab.scaling.llm_presets import LLM_PRESETS
from flowrl_lab.scaling.machine import Check

T4 = ("Tesla T4", (7, 5), 14.6e9, 15.8e9)
A100 = ("NVIDIA A100-SXM4-40GB", (8, 0), 39e9, 42e9)


@pytest.fixture(autouse=True)
def plain_computer(monkeypatch):
    """No GPU and no Colab, wherever the tests run."""
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def pretend_gpu(monkeypatch, name, capability, free, total) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (int(free), int(total)))


# --------------------------------------------------------------------------- device


def test_a_torch_that_does_not_load_is_broken(monkeypatch):
    def fail(_name):
        raise OSError("libtorch_cpu.so: cannot open shared object file\nmore")

    monkeypatch.setattr(importlib, "import_module", fail)
    check = machine.check_device()
    assert check.status == "broken"
    assert check.found == "libtorch_cpu.so: cannot open shared object file"
    assert machine.check_dtypes().found == "unknown without torch"
    (memory,) = machine.check_device_memory()
    assert memory.found.startswith("cannot be measured (libtorch_cpu.so")


def test_a_driver_without_a_cuda_build_is_worth_a_note(monkeypatch):
    monkeypatch.setattr(machine.shutil, "which", lambda _name: "/bin/nvidia-smi")
    assert machine.check_device().status == "note"
    monkeypatch.setattr(machine.shutil, "which", lambda _name: None)
    assert machine.check_device().status == "ok"
    assert machine.check_device_memory() == []


def test_a_gpu_is_named_with_what_it_can(monkeypatch):
    pretend_gpu(monkeypatch, *T4)
    found = machine.check_device().found
    assert found == "cuda: Tesla T4, compute capability 7.5"
    (memory,) = machine.check_device_memory()
    assert (memory.status, memory.found) == ("ok", "14.6 of 15.8 GB free")
    pretend_gpu(monkeypatch, *T4[:2], 3e9, 15.8e9)
    (memory,) = machine.check_device_memory()
    assert memory.status == "note" and "nvidia-smi" in memory.fix


def test_an_apple_gpu_is_seen(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert machine.check_device().found == "mps (Apple GPU)"
    assert machine.check_device_memory() == []


# -------------------------------------------------------------------- number formats


@pytest.mark.parametrize(("native", "said"), [(True, ""), (False, " (emulated)")])
def test_the_processor_computes_gradients_in_all_three(monkeypatch, native, said):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    check = machine.check_dtypes()
    assert check.status == "ok"
    assert check.found == f"float32, bfloat16{said}, float16 on cpu"


@pytest.mark.parametrize(
    ("gpu", "found"),
    [
        (T4, "float32, bfloat16 (emulated), float16 on cuda"),
        (A100, "float32, bfloat16, float16 on cuda"),
    ],
)
def test_bfloat16_is_native_from_ampere_on(monkeypatch, gpu, found):
    pretend_gpu(monkeypatch, *gpu)
    monkeypatch.setattr(machine, "computes_gradient", lambda *_given: True)
    assert machine.check_dtypes().found == found


def test_a_device_that_fails_in_a_format_does_not_have_it(monkeypatch):
    real = torch.ones

    def without_bfloat16(*shape, **settings):
        if settings.get("dtype") is torch.bfloat16:
            raise TypeError("BFloat16 is not supported on MPS")
        return real(*shape, **settings)

    monkeypatch.setattr(torch, "ones", without_bfloat16)
    assert machine.check_dtypes().found == "float32, float16 on cpu"
    wrong = types.SimpleNamespace(
        ones=lambda *_s, **_k: torch.full((4, 4), 3.0, requires_grad=True),
        float32=torch.float32,
    )
    assert not machine.computes_gradient(wrong, "float32", "cpu")
    monkeypatch.setattr(machine, "computes_gradient", lambda *_given: False)
    assert machine.check_dtypes().status == "broken"


# ----------------------------------------------------------------- memory, disk, Colab


@pytest.mark.parametrize(("free", "status"), [(0.5, "note"), (3.9, "note"), (9, "ok")])
def test_little_memory_is_a_note(free, status):
    assert machine.check_memory(float(free)).status == status


def test_memory_is_measured_or_said_to_be_unknown(monkeypatch):
    assert 0 < machine.measure_memory() < 1e5
    monkeypatch.setattr(machine, "measure_memory", lambda: None)
    assert machine.check_memory().status == "note"


@pytest.mark.parametrize(("free", "status"), [(0.2, "broken"), (50.0, "ok")])
def test_a_full_disk_is_broken(tmp_path, free, status):
    check = machine.check_disk(tmp_path, free)
    assert check.status == status
    assert str(tmp_path) in check.found


def test_colab_is_known_and_what_is_lost_there(monkeypatch, tmp_path):
    assert machine.check_colab().found == "no"
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab_20260610")
    check = machine.check_colab(str(tmp_path / "drive"))
    assert check.status == "note"
    assert "release-colab_20260610" in check.found and "gone" in check.found
    assert "drive.mount" in check.fix
    check = machine.check_colab(str(tmp_path))
    assert check.status == "ok" and "Drive is mounted" in check.found


def test_colabs_page_draws_svg(monkeypatch):
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab_20260610")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    check = doctor.check_widgets()
    assert check.status == "ok"
    assert check.found == "Colab's page; drawn as static here, as svg in a notebook"


# -------------------------------------------------------------------------- the table


def what_the_doctor_prints(monkeypatch, capsys) -> str:
    monkeypatch.setattr(doctor, "run_doctor", lambda: [machine.check_device()])
    doctor.main()
    return capsys.readouterr().out


def test_the_minutes_of_every_preset_are_printed(monkeypatch, capsys):
    monkeypatch.setattr(presets, "measure_memory", lambda: 8.0)
    printed = what_the_doctor_prints(monkeypatch, capsys)
    assert "A real language model (notebook 9) on\ncpu: CPU, 8.0 GB free" in printed
    rows = {line.split()[0]: line for line in printed.replace("->", "").splitlines()
            if line.split() and line.split()[0] in LLM_PRESETS}  # fmt: skip
    assert rows.keys() == LLM_PRESETS.keys()
    for name, line in rows.items():
        assert f" {LLM_PRESETS[name].minutes:g} (" in line
    assert "-> " in next(line for line in printed.splitlines() if " cpu " in line)


def test_a_t4_gets_its_own_preset_and_a_full_one_a_smaller(monkeypatch, capsys):
    pretend_gpu(monkeypatch, *T4)
    printed = what_the_doctor_prints(monkeypatch, capsys)
    (chosen,) = (line for line in printed.splitlines() if line.startswith("->"))
    assert chosen.split()[1] == "t4"
    pretend_gpu(monkeypatch, *T4[:2], 5e9, 15.8e9)
    printed = what_the_doctor_prints(monkeypatch, capsys)
    (chosen,) = (line for line in printed.splitlines() if line.startswith("->"))
    assert chosen.split()[1] == "gpu-small"


def test_no_presets_where_torch_does_not_load(monkeypatch, capsys):
    broken = [Check("device", "broken", "no torch", "python3 lab.py setup")]
    monkeypatch.setattr(doctor, "run_doctor", lambda: broken)
    assert doctor.main() == 1
    assert "preset" not in capsys.readouterr().out

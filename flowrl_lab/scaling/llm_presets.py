"""Which model on which machine: presets, the memory they need, the minutes they take.

The memory is calculated, not measured: ``planner.estimate_memory`` says from what.
Minutes carry a note whether they were measured or follow from the operations to be
done.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from flowrl_lab._files import how_to_mend
from flowrl_lab.plots.tabulate import text_table
from flowrl_lab.policies.loading import find_model
from flowrl_lab.policies.packed import MAX_NODES
from flowrl_lab.scaling.machine import measure_memory
from flowrl_lab.scaling.planner import MODELS, Machine, Workload, peak_bytes
from flowrl_lab.training.config import ExperimentConfig
from flowrl_lab.training.presets import preset

__all__ = [
    "LLM_PRESETS",
    "Device",
    "LLMPreset",
    "Plan",
    "choose_way",
    "find_device",
    "format_presets",
    "llm_config",
    "one_pass",
    "pass_gigabytes",
    "pick_preset",
]

GB = 1e9
# CUDA's own share, cuBLAS workspaces and what the allocator loses to fragments.
OVERHEAD_GB = {"cuda": 1.5}
RESERVE = 0.9  # of what is free
SCORED_AT_ONCE = 64  # tokens, as ``policies.hf_lm`` scores them


@dataclass(frozen=True)
class LLMPreset:
    """One way to run the language-model notebook.

    Attributes:
        name: what it is called.
        model: for ``ExperimentConfig.model``.
        shape: key of ``planner.MODELS``.
        device: "cpu", "cuda" or "mps".
        weight_bytes: of the frozen base.
        minutes: expected for one run.
        min_gb: free memory that it is chosen for.
        measured: whether somebody ran it; else it follows from the operations.
        prompt_tokens: of the longest row.
        completion_tokens: of the longest row.
        settings: changes to the task's preset.
    """

    name: str
    model: str
    shape: str
    device: str
    weight_bytes: int
    minutes: int | float
    min_gb: float
    measured: bool = False
    prompt_tokens: int = 55
    completion_tokens: int = 4
    settings: dict[str, Any] = field(default_factory=lambda: {"steps": 60})

    @property
    def memory_gb(self) -> float:
        """Gigabytes (10⁹ bytes) of one step, as ``pass_gigabytes`` counts them."""
        config = llm_config(self, "flowrl")
        rows = config.micro_batch or config.prompts_per_step * config.num_generations
        work = one_pass(
            rows,
            num_generations=config.num_generations,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            weight_bytes=self.weight_bytes,
            lora_rank=config.lora_rank,
        )
        return pass_gigabytes(self.shape, work, device=self.device)


def one_pass(
    rows: int,
    *,
    num_generations: int,
    prompt_tokens: int,
    completion_tokens: int,
    weight_bytes: int = 2,
    lora_rank: int = 16,
) -> Workload:
    """What goes through the model at a time, as a workload of the planner.

    Completions of one prompt share its tokens as long as all fit into one packed
    sequence (``policies.packed``); beyond that each has its own.

    Args:
        rows: completions in one pass (``micro_batch``).
        num_generations: completions of one prompt.
        prompt_tokens, completion_tokens: of the longest row.
        weight_bytes: 2 for half precision, 4 for float32.
        lora_rank: of the adapter.
    """
    prompts = math.ceil(rows / num_generations)
    packed = prompts * prompt_tokens + rows * completion_tokens
    fits = packed <= MAX_NODES
    return Workload(
        prompts,
        math.ceil(rows / prompts),
        prompt_tokens,
        completion_tokens,
        lora_rank=lora_rank,
        weight_bytes=weight_bytes,
        share_prefix=fits,
        attended=packed if fits else prompt_tokens + completion_tokens,
        scored_at_once=SCORED_AT_ONCE,
    )


def pass_gigabytes(shape: str, work: Workload, *, device: str = "cuda") -> float:
    """Gigabytes (10⁹ bytes) that a pass of a model needs, the device's own included.

    Args:
        shape: key of ``planner.MODELS``.
        work: from ``one_pass``.
        device: whose overhead is added.
    """
    base = OVERHEAD_GB.get(device, 0.5) * GB
    return peak_bytes(MODELS[shape], work, Machine(1.0, memory_base=base)) / GB


_SMOLLM2 = ("smollm2-135m", "SmolLM2-135M")
_HALF_BILLION = ("Qwen/Qwen2.5-0.5B-Instruct", "Qwen2.5-0.5B")
_QWEN = ("Qwen/Qwen2.5-1.5B-Instruct", "Qwen2.5-1.5B")
# Cheapest first; ``pick_preset`` takes the last one that fits.
_PRESETS = (
    LLMPreset("cpu", *_SMOLLM2, "cpu", 4, minutes=4.6, min_gb=4.0, measured=True),
    LLMPreset("mps", *_SMOLLM2, "mps", 2, minutes=4, min_gb=4.0),
    LLMPreset("gpu-small", *_SMOLLM2, "cuda", 2, minutes=2, min_gb=4.0),
    LLMPreset("gpu-8gb", *_HALF_BILLION, "cuda", 2, minutes=3, min_gb=7.0),
    LLMPreset("t4", *_QWEN, "cuda", 2, minutes=6, min_gb=13.0),
)
LLM_PRESETS: dict[str, LLMPreset] = {one.name: one for one in _PRESETS}


@dataclass(frozen=True)
class Device:
    """What ``find_device`` found.

    Attributes:
        kind: "cuda", "mps" or "cpu".
        name: of the device.
        free_gb: memory that is free on it; NaN where nothing says.
    """

    kind: str
    name: str
    free_gb: float


def find_device() -> Device:
    """Look at the device that torch would use and at its free memory."""
    import torch

    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        return Device("cuda", torch.cuda.get_device_name(), free / GB)
    free_gb = measure_memory()
    free_gb = float("nan") if free_gb is None else free_gb
    if torch.backends.mps.is_available():
        return Device("mps", "Apple GPU", free_gb)
    return Device("cpu", "CPU", free_gb)


def pick_preset(device: Device | None = None) -> LLMPreset:
    """The largest preset for this device that fits into its free memory.

    Where nothing says how much is free, the smallest of the device is taken.
    """
    device = find_device() if device is None else device
    mine = [one for one in _PRESETS if one.device == device.kind]
    room = RESERVE * device.free_gb
    fitting = [p for p in mine if p.min_gb <= device.free_gb and p.memory_gb <= room]
    if fitting:
        return fitting[-1]
    return mine[0] if device.kind != "cuda" else LLM_PRESETS["cpu"]


@dataclass(frozen=True)
class Plan:
    """What the language-model notebook does on a machine.

    Attributes:
        way: "live" (a short run), "full" (the whole one), "replay" (a recording).
        preset: with which model.
        why: in one sentence.
    """

    way: str
    preset: LLMPreset
    why: str


def choose_way(device: Device | None = None) -> Plan:
    """Train in short on a CPU, in full on a GPU; play a recording if neither can be.

    Nothing is downloaded: a model counts that was fetched before.
    """
    device = find_device() if device is None else device
    best = pick_preset(device)
    here = [one for one in _PRESETS if one.device == best.device]
    here = [one for one in here[: here.index(best) + 1] if find_model(one.model)]
    if not here:
        why = (
            f"{best.model} is not on this machine. Fix: "
            f"{how_to_mend('python3 lab.py setup, or ', '')}"
            f"python -m flowrl_lab fetch-model {best.model}"
        )
        return Plan("replay", best, why)
    chosen, needed = here[-1], here[-1].min_gb
    if chosen.device == device.kind and device.free_gb < needed:
        free = f"{needed:g} GB of memory are needed, {device.free_gb:.1f} are free"
        return Plan("replay", chosen, f"{free}. Fix: close other programs")
    way = "live" if chosen.device == "cpu" else "full"
    return Plan(way, chosen, f"{chosen.model} is here and fits")


def llm_config(
    chosen: LLMPreset, variant: str, *, task: str = "open_sets", **overrides: Any
) -> ExperimentConfig:
    """The config of one variant under a preset; overrides come last."""
    settings = {"model": chosen.model, "device": chosen.device, **chosen.settings}
    return preset(task, variant, **{**settings, **overrides})


def format_presets(device: Device | None = None) -> str:
    """The presets as a table, the one for this machine marked."""
    device = find_device() if device is None else device
    chosen = pick_preset(device)
    rows = [("", "preset", "model", "memory (calculated)", "minutes a run")]
    for one in _PRESETS:
        mark, how = "->" * (one is chosen), "measured" if one.measured else "expected"
        memory, minutes = f"{one.memory_gb:.1f} GB", f"{one.minutes:g} ({how})"
        rows.append((mark, one.name, one.model, memory, minutes))
    free = f"{device.free_gb:.1f} GB free" if device.free_gb > 0 else "memory unknown"
    return f"{device.kind}: {device.name}, {free}\n{text_table(rows, numbers=False)}"

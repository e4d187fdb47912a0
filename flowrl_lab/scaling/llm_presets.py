"""Which model on which machine: presets, the memory they need, the minutes they take.

The memory is calculated, not measured: ``estimate_memory`` says from what.  Minutes
carry a note whether they were measured or follow from the operations to be done.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from flowrl_lab.policies.device import has_native_bfloat16
from flowrl_lab.policies.packed import MAX_NODES
from flowrl_lab.scaling.machine import measure_memory
from flowrl_lab.training.config import ExperimentConfig
from flowrl_lab.training.presets import preset

__all__ = [
    "LLM_PRESETS", "Architecture", "LLMPreset", "Machine", "estimate_memory",
    "format_presets", "llm_config", "pick_preset", "probe_machine", "tokens_in_a_pass",
]  # fmt: skip

GB = 1e9
# CUDA's own share, cuBLAS workspaces and what the allocator loses to fragments.
OVERHEAD_GB = 1.5
RESERVE = 0.9  # of what is free


@dataclass(frozen=True)
class Architecture:
    """The sizes of a Llama-like model that memory depends on.

    Attributes:
        layers, hidden, inner, heads, kv_heads, vocabulary: as in its config.
    """

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    vocabulary: int

    @property
    def kv_width(self) -> int:
        """Numbers in one token's keys (or values) of one layer."""
        return self.hidden // self.heads * self.kv_heads

    @property
    def parameters(self) -> int:
        """Weights, with the embedding tied to the head."""
        attention = 2 * self.hidden * (self.hidden + self.kv_width)
        layer = attention + 3 * self.hidden * self.inner
        return self.layers * layer + self.vocabulary * self.hidden

    def adapter_parameters(self, rank: int) -> int:
        """LoRA on the seven linear layers of every layer."""
        widths = 2 * (2 * self.hidden) + 2 * (self.hidden + self.kv_width)
        widths += 3 * (self.hidden + self.inner)
        return self.layers * rank * widths


SMOLLM2_135M = Architecture(30, 576, 1536, 9, 3, 49152)
QWEN_05B = Architecture(24, 896, 4864, 14, 2, 151936)
QWEN_15B = Architecture(28, 1536, 8960, 12, 2, 151936)


@dataclass(frozen=True)
class LLMPreset:
    """One way to run the language-model notebook.

    Attributes:
        name: what it is called.
        model: for ``ExperimentConfig.model``.
        sizes: its architecture.
        device: "cpu", "cuda" or "mps".
        bytes_per_weight: of the frozen base.
        prompt_tokens, completion_tokens: of the longest row.
        settings: changes to the task's preset.
        minutes: expected for one run.
        measured: whether somebody ran it; else it follows from the operations.
        min_gb: free memory that it is chosen for.
    """

    name: str
    model: str
    sizes: Architecture
    device: str
    bytes_per_weight: int
    prompt_tokens: int
    completion_tokens: int
    settings: dict[str, Any]
    minutes: int | float
    measured: bool
    min_gb: float

    @property
    def memory_gb(self) -> float:
        """What ``estimate_memory`` says."""
        config = llm_config(self, "flowrl")
        rows = config.micro_batch or config.prompts_per_step * config.num_generations
        tokens, attended = tokens_in_a_pass(
            rows, num_generations=config.num_generations,
            prompt_tokens=self.prompt_tokens, completion_tokens=self.completion_tokens,
        )  # fmt: skip
        return estimate_memory(
            self.sizes, tokens=tokens, attended=attended,
            bytes_per_weight=self.bytes_per_weight, rank=config.lora_rank,
            overhead_gb=OVERHEAD_GB if self.device == "cuda" else 0.5,
        )  # fmt: skip


def tokens_in_a_pass(
    rows: int, *, num_generations: int, prompt_tokens: int, completion_tokens: int
) -> tuple[int, int]:
    """Tokens that go through the model at a time, and with how many each is compared.

    Completions of one prompt share its tokens as long as all fit into one packed
    sequence (``policies.packed``); beyond that each has its own.  Both numbers are
    counted from above.

    Args:
        rows: completions in one pass (``micro_batch``).
        num_generations: completions of one prompt.
        prompt_tokens, completion_tokens: of the longest row.
    """
    prompts = math.ceil(rows / num_generations)
    packed = prompts * prompt_tokens + rows * completion_tokens
    if packed <= MAX_NODES:
        return packed, packed
    alone = prompt_tokens + completion_tokens
    return rows * alone, alone


def estimate_memory(
    sizes: Architecture,
    *,
    tokens: int,
    attended: int,
    bytes_per_weight: int = 2,
    rank: int = 16,
    tokens_scored_at_once: int = 64,
    overhead_gb: float = OVERHEAD_GB,
) -> float:
    """Peak gigabytes of one training step, counted from above.

        base      parameters · bytes
        adapter   its parameters · 16   (float32 weight, gradient, two of Adam's)
        log Z     2 (hidden² + hidden) · 16
        stored    tokens · layers · (10 hidden + 4 kv + 4 inner) · bytes
                  + the adapter's inputs in float32: tokens · layers ·
                  (6 hidden + inner + 7 rank) · 4    (float32: 7 rank · 4)
        attention tokens · attended · heads · layers · 4
        scores    4 copies · tokens scored at once · vocabulary · 4

    "stored" is what autograd keeps of a layer: normed input, queries, keys, values,
    attention's result, the sums, gate, up, their product, and the adapter's float32
    copies of its inputs.  "attention" are the weights of every pair of tokens, which
    only a device without a fused kernel for masks keeps.

    Args:
        sizes: of the model.
        tokens, attended: of one pass, as ``tokens_in_a_pass`` counts them.
        bytes_per_weight: 2 for half precision, 4 for float32.
        rank: of the adapter.
        tokens_scored_at_once: as in ``policies.hf_lm``.
        overhead_gb: what the device needs for itself.

    Returns:
        Gigabytes (10⁹ bytes).
    """
    base = sizes.parameters * bytes_per_weight
    adapter = sizes.adapter_parameters(rank) * 16
    log_z = 2 * (sizes.hidden**2 + sizes.hidden) * 16
    places = tokens * sizes.layers
    stored = places * (10 * sizes.hidden + 4 * sizes.kv_width + 4 * sizes.inner)
    copied = 6 * sizes.hidden + sizes.inner if bytes_per_weight < 4 else 0
    inputs = places * (copied + 7 * rank) * 4
    attention = places * attended * sizes.heads * 4
    scores = 4 * tokens_scored_at_once * sizes.vocabulary * 4
    kept = stored * bytes_per_weight + inputs + attention
    return (base + adapter + log_z + kept + scores) / GB + overhead_gb


_OPEN_SETS = {"task": "open_sets"}
# Cheapest first; ``pick_preset`` takes the last one that fits.
LLM_PRESETS: dict[str, LLMPreset] = {
    preset.name: preset
    for preset in (
        LLMPreset(
            "cpu", "smollm2-135m", SMOLLM2_135M, "cpu", 4, 55, 4,
            {"steps": 60}, minutes=4.6, measured=True, min_gb=4.0,
        ),
        LLMPreset(
            "mps", "smollm2-135m", SMOLLM2_135M, "mps", 2, 55, 4,
            {"steps": 60}, minutes=4, measured=False, min_gb=4.0,
        ),
        LLMPreset(
            "gpu-small", "smollm2-135m", SMOLLM2_135M, "cuda", 2, 55, 4,
            {"steps": 60}, minutes=2, measured=False, min_gb=4.0,
        ),
        LLMPreset(
            "gpu-8gb", "Qwen/Qwen2.5-0.5B-Instruct", QWEN_05B, "cuda", 2, 55, 4,
            {"steps": 60},
            minutes=3, measured=False, min_gb=7.0,
        ),
        LLMPreset(
            "t4", "Qwen/Qwen2.5-1.5B-Instruct", QWEN_15B, "cuda", 2, 55, 4,
            {"steps": 60},
            minutes=6, measured=False, min_gb=13.0,
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """What ``probe_machine`` found.

    Attributes:
        device: "cuda", "mps" or "cpu".
        name: of the device.
        free_gb: memory that is free on it; NaN where nothing says.
        native_bfloat16: whether it computes bfloat16 itself (a T4 does not).
    """

    device: str
    name: str
    free_gb: float
    native_bfloat16: bool


def probe_machine() -> Machine:
    """Look at the device that torch would use and at its free memory."""
    import torch

    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        native = has_native_bfloat16("cuda")
        return Machine("cuda", torch.cuda.get_device_name(), free / GB, native)
    free_gb = measure_memory()
    free_gb = float("nan") if free_gb is None else free_gb
    if torch.backends.mps.is_available():
        return Machine("mps", "Apple GPU", free_gb, False)
    return Machine("cpu", "CPU", free_gb, False)


def pick_preset(machine: Machine | None = None) -> LLMPreset:
    """The largest preset for this machine that fits into its free memory.

    Where nothing says how much is free, the smallest of the device is taken.
    """
    machine = probe_machine() if machine is None else machine
    mine = [p for p in LLM_PRESETS.values() if p.device == machine.device]
    fitting = [
        p
        for p in mine
        if p.min_gb <= machine.free_gb and p.memory_gb <= RESERVE * machine.free_gb
    ]
    if fitting:
        return fitting[-1]
    return mine[0] if machine.device != "cuda" else LLM_PRESETS["cpu"]


def llm_config(
    chosen: LLMPreset, variant: str, *, task: str = "open_sets", **overrides: Any
) -> ExperimentConfig:
    """The config of one variant under a preset; overrides come last."""
    settings = {"model": chosen.model, "device": chosen.device, **chosen.settings}
    return preset(task, variant, **{**settings, **overrides})


def format_presets(machine: Machine | None = None) -> str:
    """The presets as a table, the one for this machine marked."""
    machine = probe_machine() if machine is None else machine
    chosen = pick_preset(machine)
    rows = [("", "preset", "model", "memory (calculated)", "minutes a run")]
    for one in LLM_PRESETS.values():
        how = "measured" if one.measured else "expected"
        rows.append(
            (
                "->" if one is chosen else "",
                one.name,
                one.model,
                f"{one.memory_gb:.1f} GB",
                f"{one.minutes:g} ({how})",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    free = f"{machine.free_gb:.1f} GB free" if machine.free_gb > 0 else "memory unknown"
    return "\n".join([f"{machine.device}: {machine.name}, {free}", *lines])

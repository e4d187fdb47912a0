"""What a run will cost: memory, hours and money, before it is started.

    plan = make_plan(MODELS["Qwen2.5-7B"], Workload(...), MACHINES["H100"],
                     price_per_hour=2.0)
    print(format_plan(plan))

Counting gives the work: two floating-point operations a weight and token, the bytes
that decoding reads, the layers that are called.  A machine turns work into seconds.
Its rates are either fitted to steps that were measured on it (``calibrate``), or the
maker's peak times a share that has to be assumed.  The first kind is checked against
measurements (benchmarks/planner_check.py); the second is a guess, good to a factor of
two or three, and says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from flowrl_lab._validation import bad_input, check_count, check_number

__all__ = [
    "MACHINES",
    "MODELS",
    "Machine",
    "Measurement",
    "ModelShape",
    "Plan",
    "Work",
    "Workload",
    "calibrate",
    "count_work",
    "decode_seconds",
    "estimate_memory",
    "format_plan",
    "leave_one_out",
    "make_plan",
    "peak_bytes",
    "step_seconds",
    "training_gigabytes",
]


@dataclass(frozen=True)
class ModelShape:
    """What the cost of a Llama-like model depends on.

    Attributes:
        layers: depth.
        hidden: width.
        intermediate: width of the MLP.
        heads: of queries.
        kv_heads: of keys and values.
        vocab: V, the number of words.
        tied: the embedding is also the output layer.
        attention_bias: queries, keys and values have a bias (Qwen2.5).
        head_size: width of a head; 0 means hidden / heads.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool = True
    attention_bias: bool = False
    head_size: int = 0

    def __post_init__(self) -> None:
        for name in ("layers", "hidden", "intermediate", "heads", "kv_heads", "vocab"):
            check_count(name, getattr(self, name))

    @classmethod
    def of(cls, config) -> ModelShape:
        """The shape of a Hugging Face configuration."""
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            vocab=config.vocab_size,
            tied=bool(config.tie_word_embeddings),
            attention_bias=config.model_type == "qwen2",
            head_size=getattr(config, "head_dim", 0) or 0,
        )

    @property
    def kv_width(self) -> int:
        """Numbers that a layer keeps of a token's keys (and as many of its values)."""
        return self.kv_heads * (self.head_size or self.hidden // self.heads)

    @property
    def query_width(self) -> int:
        return self.heads * (self.head_size or self.hidden // self.heads)

    @property
    def matrix_weights(self) -> int:
        """Weights that every token is multiplied with, the output layer included."""
        attention = 2 * self.hidden * (self.query_width + self.kv_width)
        mlp = 3 * self.hidden * self.intermediate
        return self.layers * (attention + mlp) + self.hidden * self.vocab

    @property
    def parameters(self) -> int:
        """All weights."""
        norms = (2 * self.layers + 1) * self.hidden
        biases = self.layers * (self.query_width + 2 * self.kv_width)
        embedding = 0 if self.tied else self.hidden * self.vocab
        return (
            self.matrix_weights + norms + embedding + biases * int(self.attention_bias)
        )

    def lora_weights(self, rank: int) -> int:
        """Weights of an adapter on all linear layers (not the output layer)."""
        attention = 4 * self.hidden + 2 * (self.query_width + self.kv_width)
        mlp = 3 * (self.hidden + self.intermediate)
        return self.layers * rank * (attention + mlp)


@dataclass(frozen=True)
class Workload:
    """What one training step does, and how often.

    Attributes:
        prompts: P, how many.
        generations: G for each; B = P x G rows.
        prompt_tokens: mean length S.
        completion_tokens: mean length T.
        steps: rollouts.
        updates_per_batch: gradient steps on each.
        lora_rank: of the adapter; 0 trains all weights.
        weight_bytes: 2 for bfloat16, 4 for float32.
        share_prefix: a prompt is computed once for its G rows (this library) or
            once a row (TRL).
        checkpointing: activations are computed again in the backward pass.
        rows_at_once: rows of one forward and backward pass; 0 means all.
        attended: tokens that each token of a packed pass (``policies.packed``) is
            compared with, each pair with a weight that is kept; 0: rows lie beside
            each other, with copies of their prompt's keys, and no weight is kept.
        scored_at_once: tokens whose scores are held at a time; 0 means all.
    """

    prompts: int
    generations: int
    prompt_tokens: int
    completion_tokens: int | float
    steps: int = 1
    updates_per_batch: int = 1
    lora_rank: int = 16
    weight_bytes: int = 2
    share_prefix: bool = True
    checkpointing: bool = False
    rows_at_once: int = 0
    attended: int = 0
    scored_at_once: int = 0

    def __post_init__(self) -> None:
        positive = ("prompts", "generations", "prompt_tokens", "steps")
        for name in (*positive, "updates_per_batch"):
            check_count(name, getattr(self, name))
        for name in ("lora_rank", "rows_at_once", "attended", "scored_at_once"):
            check_count(name, getattr(self, name), least=0)
        check_number("completion_tokens", self.completion_tokens, above=True)
        if self.weight_bytes not in (1, 2, 4):
            raise bad_input(
                "weight_bytes", f"is {self.weight_bytes}", "1, 2 or 4", "bf16 is 2"
            )

    @property
    def rows(self) -> int:
        return self.prompts * self.generations

    @property
    def prefixes(self) -> int:
        """How often a prompt is computed in one pass over the batch."""
        return self.prompts if self.share_prefix else self.rows


@dataclass(frozen=True)
class Machine:
    """How fast work is done.

    Attributes:
        flops: floating-point operations a second, as reached.
        bandwidth: bytes read from memory a second, as reached; 0: not a limit.
        call_seconds: overhead of calling one layer once, however small the input.
        memory: bytes of one device; 0: unknown.
        memory_factor: bytes taken for a byte that ``estimate_memory`` counts.
        memory_base: bytes taken whatever the model (libraries, contexts).
        fitted: the rates were fitted to measurements on that machine.
    """

    flops: int | float
    bandwidth: int | float = 0.0
    call_seconds: int | float = 0.0
    memory: int | float = 0.0
    memory_factor: int | float = 1.0
    memory_base: int | float = 0.0
    fitted: bool = False

    def __post_init__(self) -> None:
        check_number("flops", self.flops, above=True)
        check_number("memory_factor", self.memory_factor, above=True)
        for name in ("bandwidth", "call_seconds", "memory", "memory_base"):
            check_number(name, getattr(self, name))


def _assumed(peak: float, bandwidth: float, gigabytes: int) -> Machine:
    """Shares that well-tuned training and decoding engines reach: assumptions."""
    rates = (0.4 * peak, 0.6 * bandwidth, 2e-5)
    return Machine(*rates, gigabytes * 1e9, memory_factor=1.2, memory_base=1.5e9)


# The makers' figures for bfloat16 without sparsity.
MACHINES = {
    "RTX 4090": _assumed(165e12, 1.01e12, 24),
    "A100 80 GB": _assumed(312e12, 2.04e12, 80),
    "H100": _assumed(989e12, 3.35e12, 80),
}

MODELS = {
    "tiny (this course)": ModelShape(4, 128, 256, 4, 4, 18),
    "SmolLM2-135M": ModelShape(30, 576, 1536, 9, 3, 49152),
    "Qwen2.5-0.5B": ModelShape(24, 896, 4864, 14, 2, 151936, True, True),
    "Qwen2.5-1.5B": ModelShape(28, 1536, 8960, 12, 2, 151936, True, True),
    "Qwen2.5-7B": ModelShape(28, 3584, 18944, 28, 4, 152064, False, True),
    "Qwen2.5-32B": ModelShape(64, 5120, 27648, 40, 8, 152064, False, True),
}


# ------------------------------------------------------------------------- time


@dataclass(frozen=True)
class Work:
    """Work of one phase: operations, bytes read, layer calls."""

    flops: int | float = 0.0
    bytes_read: int | float = 0.0
    calls: int | float = 0.0

    def seconds(self, machine: Machine) -> float:
        reading = self.bytes_read / machine.bandwidth if machine.bandwidth else 0.0
        return max(self.flops / machine.flops, reading) + (
            self.calls * machine.call_seconds
        )


def decode_seconds(
    weights: int | float,
    rows: int | float,
    *,
    weight_bytes: int,
    flops: int | float,
    bandwidth: int | float,
) -> int | float:
    """Seconds to write one more token in every row: the roofline.

        max(2 N B / flops,  N bytes / bandwidth)

    The weights are read once for all rows together, so more rows are free until the
    arithmetic takes as long as the reading.

    Args:
        weights: N, weights that every token is multiplied with.
        rows: B, completions that are written side by side.
        weight_bytes: of one weight.
        flops: operations a second.
        bandwidth: bytes a second.

    Raises:
        ValueError: a number that is not above 0.
    """
    named = {"weights": weights, "rows": rows, "weight_bytes": weight_bytes}
    named |= {"flops": flops, "bandwidth": bandwidth}
    for name, value in named.items():
        check_number(name, value, above=True)
    return max(2 * weights * rows / flops, weights * weight_bytes / bandwidth)


def count_work(model: ModelShape, work: Workload) -> dict[str, Work]:
    """The work of one step, by phase: sample, reference, update."""
    rows, tokens = work.rows, work.completion_tokens
    prompt, full = work.prompt_tokens, work.prompt_tokens + tokens
    prefix = work.prefixes * prompt
    # Every token looks back on half of its own stretch, and on all before it.
    pairs = prefix * prompt / 2 + rows * tokens * (prompt + tokens / 2)
    if not work.share_prefix:
        pairs = rows * full**2 / 2
    forward = 2 * model.matrix_weights * (prefix + rows * tokens)
    forward += 4 * model.layers * model.query_width * pairs
    weights = model.matrix_weights * work.weight_bytes
    cache = 2 * model.kv_width * model.layers * work.weight_bytes
    read = weights * (1 + tokens) + cache * rows * tokens * (prompt + tokens / 2)
    # Backward: gradients of the activations; of all weights, or of an adapter's.
    share = 2.0 if work.lora_rank else 3.0
    share += 1.0 if work.checkpointing else 0.0
    chunks = -(-rows // (work.rows_at_once or rows))
    passes = model.layers * chunks
    return {
        "sample": Work(forward, read, model.layers * (1 + tokens)),
        "reference": Work(forward, weights * chunks, passes),
        "update": Work(
            forward * share * work.updates_per_batch,
            3 * weights * chunks * work.updates_per_batch,
            3 * passes * work.updates_per_batch,
        ),
    }


def step_seconds(
    model: ModelShape, work: Workload, machine: Machine
) -> dict[str, float]:
    """Seconds of one training step on one device, by phase."""
    phases = count_work(model, work)
    return {name: phase.seconds(machine) for name, phase in phases.items()}


@dataclass(frozen=True)
class Measurement:
    """A training step that was timed: what it did and how long it took."""

    model: ModelShape
    work: Workload
    seconds: int | float
    peak_bytes: int | float = 0.0


def calibrate(measured: Sequence[Measurement], *, memory: int | float = 0.0) -> Machine:
    """The machine that explains measured steps best.

    1/flops and call_seconds are fitted to the seconds, memory_factor and memory_base
    to the peaks of memory, each pair to the smallest mean squared *relative* error.
    The bandwidth is not fitted (on a CPU it hides in the operations).

    Args:
        measured: at least two steps of different kinds.
        memory: bytes of the device, passed on.

    Raises:
        ValueError: fewer than two, or steps that are all of one kind.
    """
    if len(measured) < 2:
        raise bad_input(
            "measured", f"has {len(measured)} steps", "at least 2", "time another one"
        )
    counted = []
    for one in measured:
        check_number("seconds", one.seconds, above=True)
        phases = count_work(one.model, one.work).values()
        flops, calls = sum(p.flops for p in phases), sum(p.calls for p in phases)
        counted.append((float(flops), float(calls)))
    per_flop, per_call = _fit(counted, [float(one.seconds) for one in measured])
    machine = Machine(1 / per_flop, 0.0, per_call, memory, fitted=True)
    if not all(one.peak_bytes for one in measured):
        return machine
    sizes = [(_counted_peak(estimate_memory(m.model, m.work)), 1.0) for m in measured]
    factor, base = _fit(sizes, [float(one.peak_bytes) for one in measured])
    return dataclasses.replace(machine, memory_factor=factor, memory_base=base)


def _fit(
    parts: Sequence[tuple[float, float]], totals: Sequence[float]
) -> tuple[float, float]:
    """(a, b) >= 0 with a x + b y = total, by the least mean squared relative error."""
    rows = [(x / t, y / t) for (x, y), t in zip(parts, totals, strict=True)]
    xx, yy = sum(x * x for x, _ in rows), sum(y * y for _, y in rows)
    xy = sum(x * y for x, y in rows)
    x1, y1 = sum(x for x, _ in rows), sum(y for _, y in rows)
    determinant = xx * yy - xy * xy
    if determinant <= 1e-9 * xx * yy:
        raise bad_input(
            "measured",
            "has steps of one kind only",
            "a small and a large one",
            "time a step with another group size or another model as well",
        )
    a, b = (x1 * yy - y1 * xy) / determinant, (y1 * xx - x1 * xy) / determinant
    return (a, b) if a > 0 and b >= 0 else (x1 / xx, 0.0)  # else x explains it all


def leave_one_out(measured: Sequence[Measurement]) -> list[tuple[float, float]]:
    """Each step foretold from all the others: predicted seconds and peak bytes."""
    foretold = []
    for index, one in enumerate(measured):
        machine = calibrate([*measured[:index], *measured[index + 1 :]])
        seconds = sum(step_seconds(one.model, one.work, machine).values())
        foretold.append((seconds, peak_bytes(one.model, one.work, machine)))
    return foretold


# ----------------------------------------------------------------------- memory


def estimate_memory(model: ModelShape, work: Workload) -> dict[str, float]:
    """Peak bytes of one step on one device, by part, counted from above.

        weights         parameters · bytes
        reference       the same again; nothing with LoRA, whose base it is
        optimizer       trained weights · 12, or 16 beside half precision
        log Z           2 (hidden² + hidden) · 16
        activations     tokens · layers · (7 hidden + 3 query + 4 kv + 4 inner) · bytes
                        + the adapter's inputs in float32: tokens · layers ·
                        (6 hidden + inner + 7 rank) · 4    (float32: 7 rank · 4)
                        + copies of prompts' keys and values
        attention       tokens · attended · heads · layers · 4
        logits          4 copies · tokens scored at once · vocabulary · 4
        sampling cache  keys and values of every token of every row

    "Activations" is what autograd keeps of a layer: normed input, queries, keys,
    values, attention's result, the sums, gate, up, their product, and the adapter's
    float32 copies of its inputs.  "Attention" are the weights of every pair of tokens,
    which only a device without a fused kernel for masks keeps.
    """
    wide, size = work.weight_bytes == 4, work.weight_bytes
    trained = model.lora_weights(work.lora_rank) if work.lora_rank else model.parameters
    rows = work.rows_at_once or work.rows
    prompts = work.prompt_tokens * work.prefixes * rows / work.rows
    tokens = prompts + rows * work.completion_tokens
    layer = 7 * model.hidden + 3 * model.query_width
    layer += 4 * (model.kv_width + model.intermediate)
    copied = 0 if wide else 6 * model.hidden + model.intermediate
    inputs = (copied + 7 * work.lora_rank) * 4 if work.lora_rank else 0
    keys = 0.0
    if work.share_prefix and not work.attended:
        keys = 2.0 * (model.kv_width + model.query_width) * rows * work.prompt_tokens
    kept = (layer * size + inputs) * tokens + keys * size
    # Checkpointing keeps each layer's input, and one layer in full.
    below = model.hidden * tokens * size
    kept = below * model.layers + kept if work.checkpointing else kept * model.layers
    context = work.prompt_tokens + work.completion_tokens
    cached = 2 * model.kv_width * model.layers * work.rows * context
    # All at once, log-probs and entropies keep a fifth copy.
    scored = 4 * work.scored_at_once or 5 * rows * work.completion_tokens
    parts = {
        "weights": model.parameters * size,
        "reference": 0.0 if work.lora_rank else model.parameters * size,
        "optimizer": trained * (12 if wide and not work.lora_rank else 16),
        "log Z": 2 * (model.hidden**2 + model.hidden) * 16,
        "activations": kept,
        "attention": tokens * work.attended * model.heads * model.layers * 4,
        "logits": scored * model.vocab * 4,
        "sampling cache": cached * size,
    }
    return {name: float(size) for name, size in parts.items()}


def _counted_peak(parts: dict[str, float]) -> float:
    """Sampling and updating take turns: their own parts never add up."""
    always = ("weights", "reference", "optimizer", "log Z")
    update = sum(parts[name] for name in ("activations", "attention", "logits"))
    return sum(parts[name] for name in always) + max(update, parts["sampling cache"])


def peak_bytes(model: ModelShape, work: Workload, machine: Machine) -> float:
    """What a device needs at once: what is counted, and what the machine adds."""
    counted = _counted_peak(estimate_memory(model, work))
    return machine.memory_factor * counted + machine.memory_base


def training_gigabytes(
    weights: int | float,
    shards: int,
    *,
    rest: int | float,
    weight_bytes: int = 16,
    waste: int | float = 0.2,
    process: int | float = 1.5,
) -> float:
    """GB at once on each of several GPUs that share what training adds to a weight.

        (1 + waste) (weight_bytes N / shards + rest) + process

    Shared are the float32 copy of every trained weight, its gradient and AdamW's two
    moments (the sharding that DeepSpeed calls ZeRO-2).  The rest lies whole on each.

    Args:
        weights: N, how many weights are trained.
        shards: the GPUs that share those bytes.
        rest: GB that every GPU holds whole: weights in use, reference, activations.
        weight_bytes: what training adds to one weight.
        waste: the share that the allocator adds to all of it.
        process: GB that a process takes by itself.

    Raises:
        ValueError: a number that is below 0, or no weights or shards.
    """
    named = {"weights": weights, "shards": shards}
    for name, value in named.items():
        check_number(name, value, above=True)
    for name, value in {"rest": rest, "waste": waste, "process": process}.items():
        check_number(name, value)
    return (1 + waste) * (weight_bytes * weights / shards / 1e9 + rest) + process


# ------------------------------------------------------------------------- plan


@dataclass(frozen=True)
class Plan:
    """What a run costs.

    Attributes:
        seconds: of one step, by phase.
        memory: bytes, by part; ``peak_bytes`` is what is needed at once.
        hours: of the whole run, on ``devices`` devices.
        money: hours x devices x price, in the price's currency.
        fits: whether ``peak_bytes`` is within the device; None if that is unknown.
        fitted: the machine's rates were measured, not assumed.
    """

    seconds: dict[str, float]
    memory: dict[str, float]
    peak_bytes: float
    hours: float
    money: float
    devices: int
    fits: bool | None
    fitted: bool


def make_plan(
    model: ModelShape,
    work: Workload,
    machine: Machine,
    *,
    price_per_hour: int | float = 0.0,
    devices: int = 1,
    efficiency: int | float = 0.9,
) -> Plan:
    """Memory, hours and money of a run.

    Args:
        model: what is trained.
        work: what a step does, and how many there are.
        machine: how fast.
        price_per_hour: of one device, in your currency.
        devices: that share the rows (data parallel: each holds the whole model).
        efficiency: share of the speed-up that a second device really brings; 1 is
            perfect.  An assumption, unless you measured it.

    Raises:
        ValueError: a price below 0, no device, an efficiency outside (0, 1].
    """
    check_number("price_per_hour", price_per_hour)
    check_count("devices", devices)
    check_number("efficiency", efficiency, high=1.0, above=True)
    if work.rows % devices:
        raise bad_input(
            "devices",
            f"is {devices}, which does not divide the {work.rows} rows",
            "a divisor of prompts x generations",
            "change one of the three",
        )
    seconds = step_seconds(model, work, machine)
    speed_up = 1 + (devices - 1) * efficiency
    hours = sum(seconds.values()) * work.steps / speed_up / 3600
    share = dataclasses.replace(
        work,
        prompts=max(1, work.prompts // devices),
        rows_at_once=min(work.rows_at_once, work.rows // devices),
    )
    peak = peak_bytes(model, share, machine)
    return Plan(
        seconds=seconds,
        memory=estimate_memory(model, share),
        peak_bytes=peak,
        hours=hours,
        money=hours * devices * price_per_hour,
        devices=devices,
        fits=peak <= machine.memory if machine.memory else None,
        fitted=machine.fitted,
    )


def format_plan(plan: Plan) -> str:
    """The plan as a few lines of text."""
    total = sum(plan.seconds.values())
    lines = [
        f"one step on one device: {total:.3g} s ("
        + ", ".join(f"{k} {v:.2g}" for k, v in plan.seconds.items())
        + ")",
        f"the run, on {plan.devices} device(s): {plan.hours:.3g} hours, "
        f"{plan.money:.2f} in your currency",
        f"peak memory of a device: {plan.peak_bytes / 1e9:.3g} GB",
    ]
    lines += [f"  {k}: {v / 1e9:.3g} GB" for k, v in plan.memory.items() if v]
    if plan.fits is not None:
        lines.append("it fits" if plan.fits else "it does NOT fit: see what is largest")
    if not plan.fitted:
        lines.append(
            "the machine's rates are assumed, not measured: within two or three times"
        )
    return "\n".join(lines)

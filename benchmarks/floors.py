"""The least arithmetic of a training step, and how fast this machine multiplies."""

from __future__ import annotations

import os
import time

import torch

__all__ = [
    "attention_shape",
    "count_weights",
    "forward_flops",
    "matmul_peak",
    "matmul_peak_of_all_cores",
    "step_flops",
]


def matmul_peak(seconds: float = 1.0, size: int = 1024) -> float:
    """The best rate of a float32 matrix product here, FLOP/s."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def matmul_peak_of_all_cores() -> float:
    """The best rate of a matrix product when every core works at it, FLOP/s."""
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        return matmul_peak(seconds=1.0)
    finally:
        torch.set_num_threads(before)


def count_weights(model) -> tuple[int, int, int]:
    """Weights of the layers' linear maps, of their LoRA adapters, and of the head.

    The head (hidden states to words) is counted by itself: only states that predict
    a completion's token need it, and with 49,152 words it is a fifth of SmolLM2.
    The embedding is looked up, not multiplied, and not counted.
    """
    head = model.get_output_embeddings()
    layers = adapters = 0
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            if "lora_" in name:
                adapters += module.weight.numel()
            else:
                layers += module.weight.numel()
    return layers, adapters, head.weight.numel()


def forward_flops(
    weights: int, layers: int, width: int, tokens: float, pairs: float
) -> float:
    """FLOPs of one pass through the layers.

        2 · weights · tokens  +  4 · width · layers · pairs

    Args:
        weights: of the linear maps.
        layers: L.
        width: of all *query* heads together.  Fewer key and value heads make the
            maps to keys and values smaller (``weights``); every query head is still
            multiplied with a key and a value of every pair.
        tokens: that go through.
        pairs: of a token and one that it attends to, itself included.
    """
    return 2 * weights * tokens + 4 * width * layers * pairs


def attention_shape(config) -> tuple[int, int]:
    """Layers, and the width of all query heads together."""
    head = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    return config.num_hidden_layers, head * config.num_attention_heads


def step_flops(
    policy, prompts: int, prompt_tokens: float, rows: int, length: float
) -> dict[str, float]:
    """The least arithmetic of a step: every prompt read once, no padding.

    Sampling and the reference are a forward pass each; the update is a forward
    pass, a backward pass to the activations (the same products transposed, twice
    for attention), and the gradients of the adapters alone.  The head is needed
    once a prompt, for the first token of all its rows, and at every token fed after.

    Args:
        policy: with a peft-wrapped ``model``.
        prompts: P.
        prompt_tokens: of a prompt on average.
        rows: P * G completions.
        length: tokens of a completion on average.

    Returns:
        FLOPs of each part.
    """
    layers, lora, head = count_weights(policy.model)
    shape = attention_shape(policy.model.get_base_model().config)
    fed = length - 1  # the last token predicts nothing
    tokens = prompts * prompt_tokens + rows * fed
    pairs = prompts * prompt_tokens * (prompt_tokens + 1) / 2
    pairs += rows * fed * (prompt_tokens + (fed + 1) / 2)
    scores = 2 * head * (prompts + rows * fed)
    plain = forward_flops(layers, *shape, tokens, pairs)
    adapted = forward_flops(layers + lora, *shape, tokens, pairs)
    backward = forward_flops(layers + 2 * lora, *shape, tokens, 2 * pairs)
    return {
        "sampling": adapted + scores,
        "reference": plain + scores,
        "forward": adapted + scores,
        "backward": backward + scores,
    }

"""A causal language model with a LoRA adapter, as a policy.

Each prompt goes through the model once; its key-value cache is then repeated for
the prompt's G completions ("shared prefix"), in sampling and in the
differentiable pass alike.  The reference is the same model with the adapter
switched off, so no second copy is kept in memory.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from flowrl_lab._validation import bad_input, check_count, check_number, check_tensor
from flowrl_lab.partition import LogPartitionHead
from flowrl_lab.tokens import (
    entropy_from_logits,
    gather_log_probs,
    log_probs_from_logits,
    next_token_logits,
)
from flowrl_lab.types import Completions, PolicyOutput, PromptBatch

__all__ = [
    "LanguageModelPolicy",
    "ValueHead",
    "add_lora",
    "build_tiny_llama",
    "check_completions",
    "lora_parameters",
    "mask_through_end",
    "pick_prompts",
    "pool_features",
    "token_positions",
]

_MAMBA = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
TINY_LLAMA = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
}


def build_tiny_llama(
    vocab_size: int, *, pad_id: int, eos_id: int, seed: int = 0, **sizes: int
):
    """A randomly initialised four-layer Llama of about 0.7 million parameters.

    Args:
        vocab_size: V, how many words there are.
        pad_id: the padding token.
        eos_id: the token that ends a completion.
        seed: of the initial weights; the global random state is left as it was.
        sizes: what is not as in ``TINY_LLAMA``.

    Returns:
        A ``transformers.LlamaForCausalLM`` on the CPU, float32.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab_size,
        pad_token_id=pad_id,
        eos_token_id=eos_id,
        bos_token_id=None,
        tie_word_embeddings=True,
        **{**TINY_LLAMA, **sizes},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def add_lora(model, *, rank: int, alpha: float, seed: int = 0):
    """Freeze ``model`` and add a LoRA adapter (peft) to all its linear layers."""
    from peft import LoraConfig, get_peft_model

    # Their kernels read this layer's weights and pass by an adapter; peft refuses it.
    reads_weights = model.config.model_type in _MAMBA
    config = LoraConfig(
        exclude_modules=["out_proj"] if reads_weights else None,
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(seed)
        # peft notes that the tied embedding is frozen; that is what we want.
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")
        # peft asks transformers by an old name; nothing that we could change.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            raise _not_found_by_peft(model, error) from error


def _not_found_by_peft(model, error: ValueError) -> ValueError:
    """What to say where peft cannot place the adapter; 0.19 fails on some experts."""
    got = f"is a {model.config.model_type} in which peft finds no layers ({error})"
    fix = "pip install --upgrade peft, or take another model"
    return bad_input("model", got, "one that peft can add an adapter to", fix)


def token_positions(mask: Tensor) -> Tensor:
    """The place of each token in its own text, ``[P, S]``, whatever stands before it.

    Padding has no place; it gets 0, which a model must be given but never reads.

    Args:
        mask: ``[P, S]``, True where a token is part of the text.

    Returns:
        0 for the first token that counts, 1 for the second, …
    """
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def mask_through_end(token_ids: Tensor, end_ids: Tensor) -> Tensor:
    """Which tokens of a completion count: those with no end before them, ``[B, T]``.

    The first end itself counts, since the model has chosen it; what was written behind
    it is padding.  Of a row without an end all tokens count.

    Args:
        token_ids: ``[B, T]``, what ``generate`` has written.
        end_ids: ``[E]``, every token that ends a completion.

    Returns:
        True where a token counts.
    """
    ended = torch.isin(token_ids, end_ids).long()
    return ended.cumsum(-1) - ended == 0


def lora_parameters(shapes: Sequence[tuple[int, int]], rank: int) -> int:
    """How many numbers a LoRA adapter trains.

        Σ r (in + out),   since A is r x in and B is out x r

    Args:
        shapes: ``(out, in)`` of each adapted weight matrix.
        rank: r, of the adapter.

    Returns:
        The number of trained parameters.
    """
    return sum(rank * (rows + columns) for rows, columns in shapes)


class ValueHead(nn.Module):
    """PPO's critic: hidden states [B, T, H] -> values [B, T], in float32.

    It reads detached states, so its loss does not move the policy.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, 1)
        )
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, states: Tensor) -> Tensor:
        return self.layers(states.detach().float()).squeeze(-1)


class LanguageModelPolicy:
    """A peft-wrapped causal LM behind the ``Policy`` protocol.

    Args:
        model: what ``add_lora`` returned, already on its device.
        eos_id: the token that ends a completion.
        pad_id: the token that fills up finished rows.
        max_completion_tokens: T, the most that are sampled.
        name: for records and reports.
        ended: tells which rows end with the token just sampled, ``[B]`` from all
            tokens so far ``[B, t]``; None: those that end with ``eos_id``.
    """

    dtype, large_tensors = torch.float32, False

    def __init__(
        self,
        model,
        *,
        eos_id: int,
        pad_id: int,
        max_completion_tokens: int,
        name: str = "tiny_lm",
        ended: Callable[[Tensor], Tensor] | None = None,
    ):
        self.model = model
        self.name = name
        self.eos_id = eos_id
        self.pad_id = pad_id
        self.max_completion_tokens = max_completion_tokens
        self._ended = ended or (lambda tokens: tokens[:, -1] == eos_id)
        base = model.get_base_model()
        self._backbone, self._lm_head = base.base_model, base.get_output_embeddings()
        self.hidden_size = self._lm_head.weight.shape[1]
        # What the reference says of a row: "prompt, temperature, tokens" -> its
        # log-probs and entropies; and of a prompt: its pooled states [H].
        self.reference_memo: dict[str, list[list[float]] | Tensor] = {}
        model.train(False)  # no dropout anywhere: log-probs must be repeatable

    @property
    def device(self) -> torch.device:
        return self.model.device

    @torch.no_grad()
    def sample(
        self,
        prompts: PromptBatch,
        num_generations: int,
        *,
        temperature: float = 1.0,
        generator: torch.Generator,
    ) -> Completions:
        """Draw completions token by token with a shared-prefix cache."""
        check_number("temperature", temperature, above=True)
        check_count("num_generations", num_generations)
        decode = self._start_decoding(prompts.to(self.device), num_generations)
        rows = len(prompts) * num_generations
        alive = torch.ones(rows, dtype=torch.bool, device=self.device)
        tokens, masks, log_probs = [], [], []
        for position in range(self.max_completion_tokens):
            words = log_probs_from_logits(decode.logits, temperature=temperature)
            token = self._draw(words, decode.node, generator)
            token = torch.where(alive, token, self.pad_id)
            chosen = words[decode.node, token]
            tokens.append(token)
            masks.append(alive)
            log_probs.append(torch.where(alive, chosen, 0.0))
            alive = alive & ~self._ended(torch.stack(tokens, dim=1))
            if position + 1 == self.max_completion_tokens or not alive.any():
                break
            decode.step(token, alive)
        return Completions(
            *(torch.stack(rows, dim=1) for rows in (tokens, masks, log_probs))
        )

    def _draw(self, words: Tensor, node: Tensor, generator: torch.Generator) -> Tensor:
        """A token for each row: of log-probs ``[M, V]``, each row's line in them."""
        noise = words.new_empty(len(node), words.shape[-1])
        noise.exponential_(generator=generator)  # an exponential race
        return (words.exp()[node] / noise).argmax(-1)

    def _start_decoding(self, prompts: PromptBatch, copies: int):
        """A decoder: ``logits`` [M, V], ``node`` [B] (a row's logits), ``step``."""
        return _Decoder(self, prompts, copies)

    def evaluate(
        self,
        prompts: PromptBatch,
        completion_ids: Tensor,
        completion_mask: Tensor,
        *,
        temperature: float = 1.0,
        reference: bool = False,
    ) -> PolicyOutput:
        """Teacher-forced log-probs and entropies of given completions."""
        vocab_size = len(self._lm_head.weight)
        check_completions(prompts, completion_ids, completion_mask, vocab_size)
        prompts = prompts.to(self.device)
        states, log_probs, entropies = self._token_scores(
            prompts, completion_ids, completion_mask, temperature, reference
        )
        zero = log_probs.new_zeros(())
        return PolicyOutput(
            torch.where(completion_mask, log_probs, zero),
            torch.where(completion_mask, entropies, zero),
            states,
        )

    def _token_scores(
        self,
        prompts: PromptBatch,
        completion_ids: Tensor,
        completion_mask: Tensor,
        temperature: float,
        reference: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """States [B, T, H], and each token's log-prob and entropy [B, T]."""
        states, logits = self._score(
            prompts, completion_ids, completion_mask, reference
        )
        log_probs = gather_log_probs(logits, completion_ids, temperature=temperature)
        return states, log_probs, entropy_from_logits(logits, temperature=temperature)

    def _score(
        self,
        prompts: PromptBatch,
        completion_ids: Tensor,
        completion_mask: Tensor,
        reference: bool,
    ) -> tuple[Tensor, Tensor]:
        """States before each completion token [B, T, H], and their logits [B, T, V]."""
        with self._as_reference() if reference else contextlib.nullcontext():
            states = self._completion_states(prompts, completion_ids, completion_mask)
            return states, self._lm_head(states)

    @contextlib.contextmanager
    def _as_reference(self):
        with torch.no_grad(), self.model.disable_adapter():
            yield

    def _prefill(self, prompts: PromptBatch, use_cache: bool):
        mask = prompts.prompt_mask
        return self._backbone(
            input_ids=prompts.prompt_ids,
            attention_mask=None if mask.all() else mask.long(),
            position_ids=token_positions(mask),
            use_cache=use_cache,
        )

    def _completion_states(
        self,
        prompts: PromptBatch,
        completion_ids: Tensor,
        completion_mask: Tensor,  # noqa: ARG002 - here padding is scored, and ignored
    ) -> Tensor:
        """States that predict each completion token, ``[B, T, H]``.

        The prompt goes through the model once, its completions after it; the shift
        by one is that of ``next_token_logits``.
        """
        copies, length = len(completion_ids) // len(prompts), completion_ids.shape[1]
        prefix = self._prefill(prompts, use_cache=True)
        cache = cache_of(prefix)
        cache.batch_repeat_interleave(copies)
        rest = self._backbone(
            input_ids=completion_ids,
            use_cache=True,
            **as_cache(self._backbone, cache),
            **_continuation(prompts, copies, length),
        )
        last = prefix.last_hidden_state[:, -1:].repeat_interleave(copies, 0)
        states = torch.cat([last, rest.last_hidden_state], dim=1)
        return next_token_logits(states, length)

    def prompt_features(self, prompts: PromptBatch, pooling: str = "last") -> Tensor:
        """Final hidden states of the reference: last prompt token, or the mean.

        They never change, so each prompt is computed once and kept, in checkpoints
        too: which prompts come together first is chance, and another after a resume.
        """
        _check_pooling(pooling)
        keys = [f"{pooling} state of {text}" for text in prompts.texts]
        new = [row for row, key in enumerate(keys) if key not in self.reference_memo]
        if new:
            asked = pick_prompts(prompts, new).to(self.device)
            with self._as_reference():
                found = self._pooled_states(asked, pooling).cpu()
            named = [keys[row] for row in new]
            self.reference_memo.update(zip(named, found, strict=True))
        kept = torch.stack([self.reference_memo[key] for key in keys])
        return kept.to(self.device)

    def _pooled_states(self, prompts: PromptBatch, pooling: str) -> Tensor:
        states = self._prefill(prompts, use_cache=False).last_hidden_state.float()
        return pool_features(states, prompts.prompt_mask, pooling)

    def make_log_z(self) -> nn.Module:
        return LogPartitionHead(self.hidden_size).to(self.device)

    def make_value_head(self) -> nn.Module:
        return ValueHead(self.hidden_size).to(self.device)

    def trainable_parameters(self) -> list[nn.Parameter]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def state_dict(self) -> dict[str, Tensor]:
        named = self.model.named_parameters()
        return {n: p.detach().cpu().clone() for n, p in named if p.requires_grad}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        mine = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        wrong = sorted(
            name
            for name in mine.keys() | state.keys()
            if name not in mine
            or name not in state
            or mine[name].shape != state[name].shape
        )
        if wrong:
            raise ValueError(
                f"the checkpoint's adapter does not fit this model: {len(wrong)} "
                f"tensors differ, first {wrong[0]!r}. Fix: use the task, policy and "
                "lora_rank that the checkpoint was trained with."
            )
        with torch.no_grad():
            for name, parameter in mine.items():
                parameter.copy_(state[name])


def pick_prompts(prompts: PromptBatch, rows: list[int]) -> PromptBatch:
    """Some prompts of a batch, repeated as often as they are named."""
    texts = tuple(prompts.texts[row] for row in rows)
    parts = prompts.prompt_ids, prompts.prompt_mask, prompts.indices
    return PromptBatch(texts, *(part[rows] for part in parts))


def pool_features(states: Tensor, prompt_mask: Tensor, pooling: str) -> Tensor:
    """The last of each prompt's states, or their mean: ``[P, S, H]`` -> ``[P, H]``.

    The prompts are left-padded.
    """
    _check_pooling(pooling)
    if pooling == "last":
        return states[:, -1]
    keep = prompt_mask[..., None]
    return (states * keep).sum(1) / keep.sum(1)


def _check_pooling(pooling: str) -> None:
    if pooling not in ("last", "mean"):
        raise ValueError(
            f"pooling is {pooling!r}; expected 'last' or 'mean'. Fix: use 'last' "
            "(the last prompt token), which tells prompts apart best."
        )


def check_completions(
    prompts: PromptBatch,
    completion_ids: Tensor,
    completion_mask: Tensor,
    vocab_size: int,
) -> None:
    """Check ``[B, T]`` completions of P prompts, B a multiple of P.

    Raises:
        ValueError: wrong shapes or dtypes, rows that do not share out, or tokens
            that are not in the vocabulary.
    """
    check_tensor("completion_ids", completion_ids, (None, None), "[B, T]", "int")
    shape = completion_ids.shape
    check_tensor("completion_mask", completion_mask, shape, "[B, T]", "bool")
    if len(prompts) == 0 or len(completion_ids) % len(prompts):
        raise bad_input(
            "completion_ids",
            f"has {len(completion_ids)} rows for {len(prompts)} prompts",
            "the same number of completions for each prompt",
            "pass P * G rows, the G of a prompt in contiguous rows",
        )
    low, high = torch.stack(completion_ids.aminmax()).tolist()
    if low < 0 or high >= vocab_size:
        raise bad_input(
            "completion_ids",
            f"range from {low} to {high}",
            f"0 to {vocab_size - 1}",
            "encode them with this model's tokenizer; pad with its padding token",
        )


def _continuation(prompts: PromptBatch, copies: int, new_tokens: int) -> dict:
    """Attention mask and positions for tokens that follow the prompts."""
    mask = prompts.prompt_mask
    device = mask.device
    offsets = torch.arange(new_tokens, device=device)
    lengths = mask.sum(-1).repeat_interleave(copies)
    attention = None
    if not mask.all():
        kept = mask.long().repeat_interleave(copies, 0)
        attention = torch.cat([kept, kept.new_ones(len(kept), new_tokens)], dim=1)
    return {"attention_mask": attention, "position_ids": lengths[:, None] + offsets}


def as_cache(backbone: nn.Module, cache) -> dict:
    """``cache`` under the name that ``backbone`` takes it by; nothing for None.

    From transformers 5.24 on its own models call it ``cache``, as others do when they
    follow; before, all called it ``past_key_values``.
    """
    return {} if cache is None else {_cache_name(type(backbone)): cache}


@functools.cache
def _cache_name(kind: type[nn.Module]) -> str:
    names = inspect.signature(kind.forward).parameters
    new = "cache" in names and "past_key_values" not in names
    return "cache" if new else "past_key_values"


def cache_of(output):
    """The cache that a backbone's output carries, whatever it calls it."""
    return output["cache" if "cache" in output else "past_key_values"]


class _Decoder:
    """Next-token logits of P*G rows that share their prompts' caches."""

    def __init__(self, policy: LanguageModelPolicy, prompts: PromptBatch, copies: int):
        self._policy = policy
        prefix = policy._prefill(prompts, use_cache=True)
        self.logits = policy._lm_head(prefix.last_hidden_state[:, -1])
        prompt = torch.arange(len(prompts), device=self.logits.device)
        self.node = prompt.repeat_interleave(copies)
        self._cache = cache_of(prefix)
        # Unlike batch_repeat_interleave, what recurrent layers remember has this, too.
        self._cache.reorder_cache(self.node)
        self._positions = prompts.prompt_mask.sum(-1).repeat_interleave(copies)[:, None]
        self._mask = None
        if not prompts.prompt_mask.all():
            self._mask = prompts.prompt_mask.long().repeat_interleave(copies, 0)

    def step(self, token: Tensor, alive: Tensor) -> None:  # noqa: ARG002 - all rows go
        """Feed one token a row; ``logits`` then predict the next."""
        if self._mask is not None:
            self._mask = torch.cat([self._mask, torch.ones_like(token)[:, None]], dim=1)
        states = self._policy._backbone(
            input_ids=token[:, None],
            attention_mask=self._mask,
            position_ids=self._positions,
            use_cache=True,
            **as_cache(self._policy._backbone, self._cache),
        ).last_hidden_state
        self._positions = self._positions + 1
        self.logits = self._policy._lm_head(states[:, -1])
        self.node = torch.arange(len(token), device=token.device)

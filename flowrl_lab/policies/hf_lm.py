"""A causal language model of your choice with a LoRA adapter, as a policy.

The base is frozen, in half precision on a GPU; the adapter and log Z are float32.
The reference is the same model with the adapter switched off.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from flowrl_lab.policies.loading import LoadedModel
from flowrl_lab.policies.packed import PackedLanguageModelPolicy
from flowrl_lab.policies.self_check import find_ways
from flowrl_lab.tokens import token_scores_from_hidden
from flowrl_lab.types import PromptBatch

__all__ = ["TOKENS_AT_ONCE", "HFLanguageModelPolicy"]

# With 150,000 words, the scores of 64 tokens are 40 MB in float32.
TOKENS_AT_ONCE = 64


class HFLanguageModelPolicy(PackedLanguageModelPolicy):
    """A peft-wrapped model from ``load_language_model`` behind the ``Policy`` protocol.

    The scores ``[B, T, V]`` of a large vocabulary are never held as a whole: they are
    made for a few tokens at a time (``token_scores_from_hidden``).

    Args:
        loaded: where the model came from.
        model: its peft-wrapped form.
        settings: as for ``LanguageModelPolicy``.
    """

    large_tensors = True  # see ``workers.threads_for``

    def __init__(self, loaded: LoadedModel, model, **settings):
        if "ended" not in settings:
            ends = {settings["eos_id"]}
            ends |= set(getattr(loaded.tokenizer, "completion_ends", ()))
            settings["ended"] = lambda tokens: torch.isin(
                tokens[:, -1], torch.tensor(sorted(ends), device=tokens.device)
            )
        super().__init__(model, name="hf_lm", **settings)
        self.loaded = loaded
        self.dtype = self._backbone.dtype
        self.ways = find_ways(self)

    def _token_scores(
        self,
        prompts: PromptBatch,
        completion_ids: Tensor,
        completion_mask: Tensor,
        temperature: float,
        reference: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """States [B, T, H], and the log-prob and entropy of each token that counts.

        Raises:
            FloatingPointError: the model's scores are not finite.
        """
        batch = prompts, completion_ids, completion_mask
        words = len(self._lm_head.weight)
        with self._as_reference() if reference else contextlib.nullcontext():
            packed = self._packed_states(*batch)
            if packed is None:
                states = self._row_states(*batch)
                nodes = states.flatten(0, 1)
                at = torch.arange(len(nodes), device=nodes.device)
                at = at.view_as(completion_mask)
            else:
                nodes, at = packed
                states = nodes[at]
            # A token that follows one beginning in several rows is scored once.
            asked = at[completion_mask] * words + completion_ids[completion_mask]
            distinct, row = asked.unique(return_inverse=True)
            scored = self._head_scores(
                nodes[distinct // words], distinct % words, temperature
            )
        # Apart, so that the entropy's gradient is only computed where it is wanted.
        zeros = scored[0].new_zeros(completion_ids.shape)
        return states, *(
            zeros.masked_scatter(completion_mask, numbers[row]) for numbers in scored
        )

    def _head_scores(
        self, states: Tensor, token_ids: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        head = self._lm_head
        try:
            return token_scores_from_hidden(
                states,
                head.weight,
                token_ids,
                bias=head.bias,
                temperature=temperature,
                chunk_size=TOKENS_AT_ONCE,
                product_dtype=head.weight.dtype,
            )
        except ValueError as error:  # tokens and shapes were checked before
            raise FloatingPointError(
                f"the scores of model {self.loaded.name!r} are not finite. Fix: lower "
                "the learning rate, or set dtype='float32' (float16 ends at 65,504)."
            ) from error

    def _draw(self, words: Tensor, node: Tensor, generator: torch.Generator) -> Tensor:
        """By inverting the distribution function: one random number a row, not V.

        Sums of 50,000 shares need float64; where a device has none, as elsewhere.
        """
        if words.device.type == "mps":
            return super()._draw(words, node, generator)
        reached = words.exp().double().cumsum(-1)[node]
        drawn = reached.new_empty(len(node), 1).uniform_(generator=generator)
        # right: a word of no probability reaches no further than the one before it
        token = torch.searchsorted(reached, drawn * reached[:, -1:], right=True)
        return token.squeeze(-1).clamp(max=reached.shape[-1] - 1)

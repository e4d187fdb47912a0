"""A causal language model of your choice with a LoRA adapter, as a policy.

The base is frozen, in half precision on a GPU; the adapter and log Z are float32.
The reference is the same model with the adapter switched off.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from flowrl_lab.policies.head_scores import frozen_head_scores
from flowrl_lab.policies.loading import LoadedModel
from flowrl_lab.policies.packed import PackedLanguageModelPolicy
from flowrl_lab.types import PromptBatch

__all__ = ["HFLanguageModelPolicy"]


class HFLanguageModelPolicy(PackedLanguageModelPolicy):
    """A peft-wrapped model from ``load_language_model`` behind the ``Policy`` protocol.

    The scores ``[B, T, V]`` of a large vocabulary are never held as a whole: they are
    made for a few tokens at a time (``head_scores``).

    Args:
        loaded: where the model came from.
        model: its peft-wrapped form.
        settings: as for ``LanguageModelPolicy``.
    """

    large_tensors = True  # see ``workers.threads_for``

    def __init__(self, loaded: LoadedModel, model, **settings):
        super().__init__(model, name="hf_lm", **settings)
        self.loaded = loaded
        self.dtype = self._backbone.dtype

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
        with self._as_reference() if reference else contextlib.nullcontext():
            states = self._completion_states(prompts, completion_ids, completion_mask)
            scored = frozen_head_scores(
                states[completion_mask], self._lm_head, completion_ids[completion_mask],
                temperature,
            )  # fmt: skip
        if not all(torch.isfinite(numbers).all() for numbers in scored):
            raise FloatingPointError(
                f"the scores of model {self.loaded.name!r} are not finite. Fix: lower "
                "the learning rate, or set dtype='float32' (float16 ends at 65,504)."
            )
        # Apart, so that the entropy's gradient is only computed where it is wanted.
        zeros = scored[0].new_zeros(completion_ids.shape)
        return states, *(
            zeros.masked_scatter(completion_mask, numbers) for numbers in scored
        )

    def _draw(self, scaled: Tensor, node: Tensor, generator: torch.Generator) -> Tensor:
        """By inverting the distribution function: one random number a row, not V.

        Sums of 50,000 shares need float64; where a device has none, as elsewhere.
        """
        if scaled.device.type == "mps":
            return super()._draw(scaled, node, generator)
        reached = scaled.softmax(-1).double().cumsum(-1)[node]
        drawn = reached.new_empty(len(node), 1).uniform_(generator=generator)
        # right: a word of no probability reaches no further than the one before it
        token = torch.searchsorted(reached, drawn * reached[:, -1:], right=True)
        return token.squeeze(-1).clamp(max=reached.shape[-1] - 1)

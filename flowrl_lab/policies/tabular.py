"""A softmax policy with one logit for every token after every prefix.

The simplest policy there is, with nothing shared between prefixes: what it fails
to learn is the fault of the objective, never of a network.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from flowrl_lab.partition import LogZTable
from flowrl_lab.tokens import log_probs_from_logits
from flowrl_lab.types import Completions, PolicyOutput, PromptBatch

__all__ = ["MAX_LOGITS", "TabularPolicy", "TabularValueHead"]

# 256 MiB of float32; Adam keeps two more numbers for each.
MAX_LOGITS = 2**26


class TabularPolicy(nn.Module):
    """``π(y|x) = Π_t softmax(logits[x, prefix y_<t])[y_t]``, for tasks whose
    completions all have T tokens.

    The logits start at 0, so the policy starts uniform, and that start is the
    frozen reference: ``log π_ref(y|x) = −T log V``.  Prefixes are numbered level by
    level: the empty one is 0, then the V prefixes of one token, and so on.

    Args:
        task: a task without an end token (``task.eos_id is None``).
        seed: kept for the record; a uniform start needs no random numbers.

    Raises:
        ValueError: if the task's completions vary in length, or the table would
            hold more than ``MAX_LOGITS`` numbers.
    """

    name = "tabular"
    dtype, large_tensors = torch.float32, False
    pad_id = 0  # never needed: all completions are of one length

    def __init__(self, task, *, seed: int = 0):
        super().__init__()
        self.reference_memo: dict = {}  # the reference is uniform
        if task.eos_id is not None:
            raise ValueError(
                f"policy 'tabular': got task {task.name!r}, whose completions vary "
                "in length, expected a fixed length; use policy='tiny_lm'"
            )
        self.seed = seed
        self.vocab_size = task.vocab_size
        self.length = task.max_completion_tokens
        texts = (*task.prompts("train"), *task.prompts("heldout"))
        self.num_prompts = int(task.encode(texts).indices.max()) + 1
        sizes = [self.vocab_size**t for t in range(self.length)]
        starts = [sum(sizes[:t]) for t in range(self.length)]
        self.num_prefixes = sum(sizes)
        count = self.num_prompts * self.num_prefixes * self.vocab_size
        if count > MAX_LOGITS:
            raise ValueError(
                f"policy 'tabular': got a task that needs {count} logits, "
                f"expected at most {MAX_LOGITS}; use fewer prompts or shorter words"
            )
        shape = (self.num_prompts, self.num_prefixes, self.vocab_size)
        self.logits = nn.Parameter(torch.zeros(shape, dtype=torch.float32))
        self.register_buffer("_level_starts", torch.tensor(starts), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the logits live."""
        return self.logits.device

    @torch.no_grad()
    def sample(
        self,
        prompts: PromptBatch,
        num_generations: int,
        *,
        temperature: float = 1.0,
        generator: torch.Generator,
    ) -> Completions:
        """Draw completions, one token of the whole batch at a time.

        Args:
            prompts: P prompts.
            num_generations: G, completions of each prompt.
            temperature: logits are divided by it.
            generator: the only source of randomness.

        Returns:
            ``P * G`` completions of T tokens, all counting, with their log-probs.

        Raises:
            ValueError: for G < 1, temperature ≤ 0 or a prompt that is not in the
                table.
        """
        if num_generations < 1:
            raise ValueError(
                f"num_generations: got {num_generations}, expected at least 1"
            )
        rows = self._prompt_rows(prompts, num_generations)
        ids = torch.zeros(len(rows), self.length, dtype=torch.long, device=self.device)
        log_probs = torch.zeros(len(rows), self.length, device=self.device)
        number = torch.zeros_like(rows)
        for t in range(self.length):
            prefix = self._level_starts[t] + number
            log_p = self._log_probs(self.logits[rows, prefix], temperature)
            token = torch.multinomial(log_p.exp(), 1, generator=generator)
            ids[:, t] = token[:, 0]
            log_probs[:, t] = log_p.gather(1, token)[:, 0]
            number = number * self.vocab_size + token[:, 0]
        return Completions(ids, torch.ones_like(ids, dtype=torch.bool), log_probs)

    def evaluate(
        self,
        prompts: PromptBatch,
        completion_ids: Int[Tensor, "B T"],
        completion_mask: Bool[Tensor, "B T"],
        *,
        temperature: float = 1.0,
        reference: bool = False,
    ) -> PolicyOutput:
        """Log-probs and entropies of given completions.

        Args:
            prompts: P prompts; B must be a multiple of P.
            completion_ids: completions, the rows of a prompt contiguous.
            completion_mask: True everywhere (completions have a fixed length).
            temperature: logits are divided by it.
            reference: score under the uniform start, without gradient.

        Returns:
            Log-probs and entropies in nats, differentiable in the logits unless
            ``reference``; ``states`` are prefix numbers, different for different
            prompts.

        Raises:
            ValueError: for wrong shapes, ids out of range or temperature ≤ 0.
        """
        rows = self._check(prompts, completion_ids, completion_mask)
        prefixes = self._prefix_numbers(completion_ids)
        states = rows[:, None] * self.num_prefixes + prefixes
        if reference:
            _check_temperature(temperature)
            flat = torch.full(
                completion_ids.shape, math.log(self.vocab_size), device=self.device
            )
            return PolicyOutput(-flat, flat, states)
        log_p = self._log_probs(self.logits[rows[:, None], prefixes], temperature)
        chosen = log_p.gather(-1, completion_ids[..., None])[..., 0]
        entropies = -(log_p.exp() * log_p).sum(dim=-1)
        return PolicyOutput(chosen, entropies, states)

    def prompt_features(
        self,
        prompts: PromptBatch,
        pooling: str = "last",
    ) -> Int[Tensor, " P"]:
        """The prompts' numbers: a table looks log Z up, whatever the pooling."""
        if pooling not in ("last", "mean"):
            raise ValueError(f"pooling: got {pooling!r}, expected 'last' or 'mean'")
        return self._prompt_rows(prompts, 1)

    def make_log_z(self) -> nn.Module:
        """One learned log Z for each prompt, starting at 0."""
        return LogZTable(self.num_prompts).to(self.device)

    def make_value_head(self) -> nn.Module:
        """One value for each prefix of each prompt, starting at 0."""
        return TabularValueHead(self.num_prompts * self.num_prefixes).to(self.device)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The logits."""
        return [self.logits]

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put back what ``state_dict`` gave.

        Raises:
            ValueError: if a tensor is missing, extra, of another shape or not
                finite.
        """
        if set(state) != {"logits"}:
            raise ValueError(
                f"state of policy 'tabular': got {sorted(state)}, expected ['logits']"
            )
        logits = state["logits"]
        if logits.shape != self.logits.shape:
            raise ValueError(
                f"logits: got shape {tuple(logits.shape)}, expected "
                f"{tuple(self.logits.shape)}; was it saved for another task?"
            )
        if not torch.isfinite(logits).all():
            raise ValueError("logits: got NaN or infinity, expected finite numbers")
        with torch.no_grad():
            self.logits.copy_(logits)

    def _log_probs(self, logits: Tensor, temperature: float) -> Tensor:
        _check_temperature(temperature)
        return log_probs_from_logits(logits, temperature=temperature)

    def _prompt_rows(self, prompts: PromptBatch, repeats: int) -> Int[Tensor, " B"]:
        indices = prompts.indices.to(self.device)
        if bool(((indices < 0) | (indices >= self.num_prompts)).any()):
            raise ValueError(
                f"prompts: got indices {indices.tolist()[:8]}, expected 0 to "
                f"{self.num_prompts - 1}; encode them with the policy's own task"
            )
        return indices.repeat_interleave(repeats)

    def _prefix_numbers(self, ids: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        """The number of the prefix in front of each token."""
        number = torch.zeros_like(ids[:, 0])
        columns = []
        for t in range(self.length):
            columns.append(self._level_starts[t] + number)
            number = number * self.vocab_size + ids[:, t]
        return torch.stack(columns, dim=1)

    def _check(self, prompts: PromptBatch, ids: Tensor, mask: Tensor) -> Tensor:
        """Check a batch of completions; the prompt number of each row."""
        if ids.ndim != 2 or ids.shape[1] != self.length:
            raise ValueError(
                f"completion_ids: got shape {tuple(ids.shape)}, "
                f"expected [B, {self.length}]"
            )
        if not len(prompts) or not len(ids) or len(ids) % len(prompts):
            raise ValueError(
                f"completion_ids: got {len(ids)} rows for {len(prompts)} prompts, "
                "expected the same positive number of completions for each"
            )
        if mask.shape != ids.shape or mask.dtype != torch.bool or not bool(mask.all()):
            raise ValueError(
                f"completion_mask: got shape {tuple(mask.shape)}, {mask.dtype}, "
                f"expected True everywhere in {tuple(ids.shape)}"
            )
        low, high = (int(x) for x in ids.aminmax())
        if low < 0 or high >= self.vocab_size:
            raise ValueError(
                f"completion_ids: got ids from {low} to {high}, "
                f"expected 0 to {self.vocab_size - 1}"
            )
        return self._prompt_rows(prompts, len(ids) // len(prompts))


class TabularValueHead(nn.Module):
    """One value for each prefix: prefix numbers [B, T] -> values [B, T].

    Args:
        num_states: prefixes of all prompts together.
    """

    def __init__(self, num_states: int):
        super().__init__()
        self.values = nn.Parameter(torch.zeros(num_states, dtype=torch.float32))

    def forward(self, states: Int[Tensor, "B T"]) -> Tensor:
        """Look the values up."""
        return self.values[states]


def _check_temperature(temperature: float) -> None:
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature: got {temperature}, expected a positive number")

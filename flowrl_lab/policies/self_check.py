"""Which ways of computing shared beginnings a model allows: tried out on the model.

Whether layers obey a mask, positions, padding or a cache cannot be told from their
names.  So a few short rows go through each way that the policy has, and what comes
out is compared with what the model says of these rows by itself.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from flowrl_lab.policies.plain_rows import plain_states
from flowrl_lab.types import Completions, PromptBatch

__all__ = ["Ways", "find_ways", "is_as_sampled", "smallest_window"]

# Largest relative distance between states that rounding explains; mistakes in what a
# token sees move them by a tenth and more.
_ROUNDING = {torch.float32: 2e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}
# The same for log-probs of sampled tokens, nats, on average.
_ROUNDING_NATS = {torch.float32: 1e-3, torch.float16: 0.03, torch.bfloat16: 0.15}
_LARGE = 16.0  # a power of two: rounds nothing
_NO_NOISE = 0.2  # no dtype rounds that much
# Two prompts that share a beginning, two completions of each, in numbers for tokens;
# all rows are equally long, so the model itself needs no padding.
_PROMPTS = ((0, 1, 2, 3), (0, 4))
_COMPLETIONS = ((5, 6), (5, 7), (1, 8, 9, 5), (10, 1, 6, 8))
# Settings that say how far a layer looks back.
_WINDOW = re.compile(r"(^|_)(window|window_size|local_attention|chunk_size|topk)$")


@dataclass(frozen=True)
class Ways:
    """How a policy may compute what its model says.

    Attributes:
        packed: rows in one sequence, as a tree, in scoring and sampling.
        shared: scoring rows after the repeated cache of their left-padded prompts.
        cached: sampling so.  Where a way is not open, rows are computed whole.
        window: rows of so many tokens at most may be packed or shared: the fewest
            tokens that a layer of the model looks back to.
    """

    packed: bool = True
    shared: bool = True
    cached: bool = True
    window: int = sys.maxsize

    def __str__(self) -> str:
        if self.packed:
            return "packed"
        return "rows with a shared cache" if self.shared else "whole rows"


def smallest_window(config) -> int:
    """The fewest tokens that a setting of the model says a layer looks back to."""
    found = [sys.maxsize]
    for part in (config, config.get_text_config()):
        for name, value in part.to_dict().items():
            if _WINDOW.search(name):
                values = value if isinstance(value, list) else [value]
                # A local attention looks half as far back as it is wide.
                share = 2 if name == "local_attention" else 1
                found += [v // share for v in values if type(v) is int and v > 0]
    return min(found)


class _Probe:
    """The rows, and what the model says of them by itself."""

    def __init__(self, policy):
        self._policy = policy
        self._batch(policy)
        self._ask_model(policy)

    def _batch(self, policy) -> None:
        size = len(policy._lm_head.weight)
        picked = torch.randperm(size, generator=torch.Generator().manual_seed(0))
        words = [i for i in picked.tolist() if i not in (policy.pad_id, policy.eos_id)]
        token = lambda number: words[number % len(words)]  # noqa: E731
        ids, mask = _padded(_PROMPTS, token, policy.pad_id, left=True)
        indices = torch.arange(len(ids))
        self.prompts = PromptBatch(("a", "b"), ids, mask, indices).to(policy.device)
        ids, mask = _padded(_COMPLETIONS, token, policy.pad_id)
        self.ids, self.mask = ids.to(policy.device), mask.to(policy.device)
        rows = [_PROMPTS[n // 2] + row for n, row in enumerate(_COMPLETIONS)]
        self.rows = torch.tensor([list(map(token, row)) for row in rows])
        self.rows = self.rows.to(policy.device)

    def _ask_model(self, policy) -> None:
        """States in front of the head, and scores behind whatever follows it.

        Raises:
            ValueError: no policy that reads states and a head could be right.
        """
        states, scores = self._pass(policy, self.rows)
        alone, _ = self._pass(policy, self.rows[-1:])
        if not (states.isfinite().all() and scores.isfinite().all()):
            raise _refusal(policy, "has scores that are not finite in this dtype")
        noise = _distance(alone[0], states[-1])
        rounding = _ROUNDING.get(policy._backbone.dtype, _ROUNDING[torch.float32])
        self.tolerance = max(rounding, 4 * noise)
        head = policy._lm_head
        by_head = torch.nn.functional.linear(states, head.weight, head.bias)
        # The first tokens of two rows are the same; then they differ.
        same = len(_PROMPTS[0]) + 1
        ahead = _distance(states[0, :same], states[1, :same])
        for what, amount, limit in (
            ("says other things of a row in company", noise, _NO_NOISE),
            (
                "changes its scores behind its head",
                _distance(by_head, scores),
                self.tolerance,
            ),
            ("lets a token see what comes after it", ahead, self.tolerance),
        ):
            if amount > limit:
                raise _refusal(policy, what, amount)
        lengths = self.prompts.prompt_mask.sum(-1).repeat_interleave(2)[:, None]
        places = lengths - 1 + torch.arange(self.ids.shape[1], device=lengths.device)
        places = places.where(self.mask, 0)
        rows = torch.arange(len(places), device=places.device)[:, None]
        self.states, self.scores = states[rows, places], scores[rows, places]

    def _pass(self, policy, rows: Tensor) -> tuple[Tensor, Tensor]:
        seen: list[Tensor] = []

        def enlarge(_head, given, scores):
            """So that a cap on the scores shows, however small they are."""
            seen.append(given[0])
            return scores * _LARGE

        hook = policy._lm_head.register_forward_hook(enlarge)
        try:
            base = policy.model.get_base_model()
            scores = base(input_ids=rows, use_cache=False).logits
        finally:
            hook.remove()
        return seen[-1], scores / _LARGE

    def scores_right(self, ways: Ways) -> bool:
        """Whether the states of completions are the model's own."""
        self._policy.ways = ways
        states = self._policy._completion_states(self.prompts, self.ids, self.mask)
        found, right = states[self.mask], self.states[self.mask]
        return _distance(found, right) <= self.tolerance

    def samples_right(self, ways: Ways) -> bool:
        """Whether the scores of the first two tokens are the model's own."""
        self._policy.ways = ways
        decoder = self._policy._start_decoding(self.prompts, 2)
        found = [decoder.logits[decoder.node]]
        decoder.step(self.ids[:, 0], self.mask[:, 0])
        found.append(decoder.logits[decoder.node])
        distance = _distance(torch.stack(found, dim=1), self.scores[:, :2])
        return distance <= self.tolerance


def _padded(rows, token, pad: int, left: bool = False) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for number, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(len(row))
        ids[number, place] = torch.tensor([token(word) for word in row])
        mask[number, place] = True
    return ids, mask


def _distance(found: Tensor, right: Tensor) -> float:
    """The largest relative distance of two vectors of scores or states."""
    found, right = (
        t.float() - t.float().mean(-1, keepdim=True) for t in (found, right)
    )
    apart = (found - right).norm(dim=-1) / right.norm(dim=-1).clamp(min=1e-30)
    return apart.max().nan_to_num(nan=torch.inf).item()


def find_ways(policy) -> Ways:
    """Try out each way of a ``PackedLanguageModelPolicy`` on its model.

    A few passes of ten or twenty tokens.  Recurrent and convolutional layers get no
    way that needs a tree or goes on from a repeated state: no mask reaches them.

    Raises:
        ValueError: not even whole rows give what the model says; the message tells
            what differs.
    """
    config = policy.model.get_base_model().config
    with torch.no_grad():
        probe = _asked(policy)
        attends = _only_attends(config)
        trial = Ways(packed=attends)
        packed = attends and _works(probe.scores_right, trial)
        packed = packed and _works(probe.samples_right, trial)
        trial = Ways(packed=False)
        cached = _works(probe.samples_right, trial)
        shared = cached and attends and _works(probe.scores_right, trial)
        whole = Ways(packed=False, shared=False, cached=False)
        if not shared and not probe.scores_right(whole):
            raise _refusal(policy, "has more than its head behind its last states")
    return Ways(packed, shared, cached, smallest_window(config))


def is_as_sampled(
    policy, prompts: PromptBatch, sampled: Completions, temperature: float
) -> bool:
    """Whether the longest sampled row has the log-probs that it has as a whole row.

    For rows longer than a window, which no short trial can show.
    """
    copies = len(sampled.completion_ids) // len(prompts)
    lengths = prompts.prompt_mask.sum(-1).repeat_interleave(copies)
    lengths = lengths + sampled.completion_mask.sum(-1)
    row = int(lengths.argmax())
    prompt = prompts.part(slice(row // copies, row // copies + 1))
    ids, keep = sampled.completion_ids[row : row + 1], sampled.completion_mask[row]
    states = plain_states(policy._backbone, prompt, ids)[0, keep]
    log_probs = (policy._lm_head(states).float() / temperature).log_softmax(-1)
    right = log_probs.gather(-1, ids[0, keep, None]).squeeze(-1)
    apart = (sampled.log_probs[row, keep] - right).abs().mean()
    return apart.item() <= _ROUNDING_NATS.get(policy._backbone.dtype, 1e-3)


def _asked(policy) -> _Probe:
    try:
        return _Probe(policy)
    except (RuntimeError, TypeError, AttributeError, IndexError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        what = (
            f"cannot be asked about a row of tokens ({type(error).__name__}: {error})"
        )
        raise _refusal(policy, what) from error


def _works(trial, ways: Ways) -> bool:
    """Whether a way gives what it should; one that raises does not."""
    try:
        return trial(ways)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a layer raises that was not made for this
        return False


def _only_attends(config) -> bool:
    """Whether all that the layers remember are keys and values."""
    from transformers import cache_utils

    plain = (cache_utils.DynamicLayer, cache_utils.DynamicSlidingWindowLayer)
    layers = cache_utils.DynamicCache(config=config.get_text_config()).layers
    return bool(layers) and all(type(layer) in plain for layer in layers)


def _refusal(policy, what: str, amount: float | None = None) -> ValueError:
    kind = type(policy.model.get_base_model()).__name__
    by = "" if amount is None else f" ({amount:.1%} of their size)"
    return ValueError(
        f"the model (a {kind}) {what}{by}; expected one whose head's scores are the "
        "model's, token after token. Fix: take another causal language model, such as "
        "a Llama, Qwen, Mistral or SmolLM."
    )

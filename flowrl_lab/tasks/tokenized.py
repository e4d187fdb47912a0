"""A text task in the tokens of one model: what the training loop works with.

The traps of tokenizers are handled here, once: models without a padding token,
left-padded prompts, chat templates that add their own special tokens, a space that
belongs to the question or to the answer, special tokens inside an answer, and
answers that could be written in several ways.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from flowrl_lab._validation import bad_input
from flowrl_lab.tasks.base import Task
from flowrl_lab.tasks.text import RewardError, Scored, TextTask, cut_completion
from flowrl_lab.types import AnswerSet, PromptBatch

__all__ = ["TokenizedTask"]


class TokenizedTask(Task):
    """A ``TextTask`` as a ``Task``: prompts, scores and answers in tokens.

    A task that has ``answer_texts(prompt)`` gets an exact referee: an answer counts
    when it is written in the tokens in which the tokenizer itself writes it and is
    ended, so the listed rows are all that is ever right.  A task with ``render``
    says what the model reads for a prompt; otherwise that is the prompt itself.

    Args:
        task: the text task.
        tokenizer: a fast Hugging Face tokenizer with a padding token.
        vocab_size: the model's (it may be larger than the tokenizer's).
        context: how many tokens the model can read.
        chat: put prompts into the tokenizer's chat template.

    Raises:
        ValueError: a slow tokenizer or one without padding or end token, a prompt
            that does not fit into the context with its completion.
    """

    has_verdicts = True

    def __init__(
        self,
        task: TextTask,
        tokenizer,
        *,
        vocab_size: int,
        context: int,
        chat: bool = False,
    ):
        task = _complete(task)
        _check_tokenizer(tokenizer)
        self.task, self.tokenizer, self.chat = task, tokenizer, chat
        self.name, self.vocab_size = task.name, vocab_size
        self.max_completion_tokens = task.max_completion_tokens
        self.reward_scale = task.reward_scale
        self.pad_id = tokenizer.pad_token_id
        self.eos_id = tokenizer.eos_token_id
        self.has_referee = task.has_referee
        self._context = context
        # Where the task looks at the whole text, no stop ends it by itself.
        self._looks = task.cut is not None
        stops = () if self._looks else task.stop
        ends = {*getattr(tokenizer, "completion_ends", ()), self.eos_id}
        self._end_ids = sorted(number for number in ends if 0 <= number < vocab_size)
        self._ends = _ending_tokens(tokenizer, stops, vocab_size)
        self._ends[self._end_ids] = True
        self._ids: dict[str, list[int]] = {}
        if not task.prompts("train"):
            raise bad_input(
                "prompts",
                "is empty",
                "at least one prompt to train on",
                "give the task some prompts",
            )
        for split in ("train", "heldout"):
            for prompt in task.prompts(split):
                self._prompt_ids(prompt)

    def prompts(self, split: str) -> tuple[str, ...]:
        """All prompts of ``split``: ``"train"`` or ``"heldout"``."""
        return tuple(self.task.prompts(split))

    @functools.cached_property
    def _positions(self) -> dict[str, int]:
        every = dict.fromkeys(self.prompts("train") + self.prompts("heldout"))
        return {prompt: position for position, prompt in enumerate(every)}

    def render(self, prompt: str) -> str:
        """The text that the model reads for ``prompt``, chat template included."""
        if not self.chat:
            return self.task.render(prompt)
        messages = self.task.messages(prompt)
        begun = messages[-1]["role"] == "assistant"  # to be gone on with
        return self.tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=not begun,
            continue_final_message=begun,
        )

    def _tokens(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and the characters each stands for.

        A chat template has written its special tokens already.
        """
        coded = self.tokenizer(
            text, add_special_tokens=not self.chat, return_offsets_mapping=True
        )
        return coded["input_ids"], coded["offset_mapping"]

    def _prompt_ids(self, prompt: str) -> list[int]:
        if prompt not in self._ids:
            text = self.render(prompt)
            ids, _ = self._tokens(text)
            if self.has_referee:
                ids = self._before_answer(text, self.task.answer_texts(prompt))
            self._check_length(prompt, ids)
            self._ids[prompt] = ids
        return self._ids[prompt]

    def _before_answer(self, text: str, answers: Sequence[str]) -> list[int]:
        """The tokens that stand before every answer, whatever it is.

        Where a tokenizer joins the space before a word to the word, the space
        belongs to the answer.
        """
        shortest: list[int] | None = None
        for answer in answers:
            ids, spans = self._tokens(text + answer + self._stop)
            pairs = zip(ids, spans, strict=True)
            kept = [i for i, (_, end) in pairs if end <= len(text)]
            if shortest is None or len(kept) < len(shortest):
                shortest = kept
        return shortest or []

    @property
    def _stop(self) -> str:
        return self.task.stop[0] if self.task.stop else ""

    def _check_length(self, prompt: str, ids: list[int]) -> None:
        room = self._context - self.max_completion_tokens
        if not ids or len(ids) > room:
            raise ValueError(
                f"the prompt {prompt[:60]!r} has {len(ids)} tokens; expected 1 to "
                f"{room}: the model reads {self._context}, and "
                f"{self.max_completion_tokens} are for the answer. Fix: leave out long "
                "prompts, or choose a model with a longer context."
            )

    def encode(self, texts: Sequence[str]) -> PromptBatch:
        """Token ids of prompts, left-padded."""
        texts = tuple(texts)
        if not texts:
            raise ValueError("no prompt was given. Fix: pass at least one.")
        rows = [self._prompt_ids(text) for text in texts]
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.pad_id)
        mask = torch.zeros(len(rows), width, dtype=torch.bool)
        for number, row in enumerate(rows):
            ids[number, width - len(row) :] = torch.tensor(row)
            mask[number, width - len(row) :] = True
        indices = torch.tensor([self._positions.get(text, -1) for text in texts])
        return PromptBatch(texts, ids, mask, indices)

    def ended(self, tokens: Tensor) -> Tensor:
        """Which rows of tokens ``[B, t]`` are complete with their last token."""
        ends = self._ends.to(tokens.device)[tokens[:, -1]]
        stops = [stop for stop in self.task.stop if self._looks or len(stop) > 1]
        if stops:
            tail = max(map(len, stops)) + 1  # a token has a character at least
            texts = self.tokenizer.batch_decode(tokens[:, -tail:].tolist())
            found = [
                any(stop in text for stop in stops)
                and (not self._looks or self._is_cut(row))
                for text, row in zip(texts, tokens, strict=True)
            ]
            ends = ends | torch.tensor(found, device=tokens.device)
        return ends

    def _is_cut(self, row: Tensor) -> bool:
        text = self.tokenizer.decode(row.tolist())
        return cut_completion(self.task, text) != text

    def decode(self, completion_ids: Tensor, completion_mask: Tensor) -> list[str]:
        """Completions as text, without the end; special tokens inside stay visible.

        If they were left out, an answer with a stray control token would look right.
        """
        lengths = completion_mask.sum(-1).tolist()
        rows = [
            row[:length]
            for row, length in zip(completion_ids.tolist(), lengths, strict=True)
        ]
        no_text = {*self._end_ids, self.pad_id}
        rows = [row[:-1] if row and row[-1] in no_text else row for row in rows]
        texts = self.tokenizer.batch_decode(rows, skip_special_tokens=False)
        return [self._cut(text) for text in texts]

    def _cut(self, text: str) -> str:
        """The part before the first stop string; without the space of the question."""
        text = cut_completion(self.task, text)
        return text.removeprefix(" ") if self.has_referee else text

    def score(
        self,
        prompts: PromptBatch,
        completion_ids: Tensor,
        completion_mask: Tensor,
        num_generations: int,
    ) -> Tensor:
        """The reward of each completion, ``[B]``, on the ids' device."""
        scored = self.judge(prompts, completion_ids, completion_mask, num_generations)
        rewards = [float(one.reward) for one in scored]
        return torch.tensor(rewards, device=completion_ids.device)

    def judge(
        self,
        prompts: PromptBatch,
        completion_ids: Tensor,
        completion_mask: Tensor,
        num_generations: int,
    ) -> list[Scored]:
        """What the task says of each completion: reward, parts, reason.

        Raises:
            ValueError: rows that do not share out.
            RewardError: a reward function that raises, or returns something that is
                no ``Scored``.
        """
        if len(prompts) * num_generations != len(completion_ids):
            raise ValueError(
                f"got {len(completion_ids)} completions for {len(prompts)} prompts x "
                f"{num_generations} generations. Fix: pass P*G rows, groups contiguous."
            )
        texts = self.decode(completion_ids, completion_mask)
        asked = [text for text in prompts.texts for _ in range(num_generations)]
        rows = zip(completion_ids, completion_mask, strict=True)
        ids = [row[mask].tolist() for row, mask in rows]
        if self.task.score_all is not None:
            scored = self.task.score_all(asked, texts, ids)
        else:
            scored = [self._score_one(*row) for row in zip(asked, texts, strict=True)]
        found = zip(asked, texts, ids, scored, strict=True)
        return [self._as_answer(*row) for row in found]

    def _as_answer(self, prompt: str, text: str, ids: list[int], one: Scored) -> Scored:
        """A right one with what tells it from others; only in the list's tokens."""
        if one.correct and self.has_referee:
            one = self._as_listed(prompt, ids, one)
        if one.correct and one.answer is None:
            one = dataclasses.replace(one, answer=text.strip())
        return one

    def _score_one(self, prompt: str, text: str) -> Scored:
        try:
            one = self.task.score(prompt, text)
        except Exception as error:  # of a task that a learner wrote
            raise RewardError(
                f"the reward of task {self.name!r} raised {type(error).__name__}: "
                f"{error} for prompt {prompt[:60]!r} and completion {text[:60]!r}. "
                "Fix: return Scored(0.0, False, reason) for what cannot be judged "
                "(tasks.text.score_safely does)."
            ) from error
        if not isinstance(one, Scored):
            raise RewardError(
                f"the reward of task {self.name!r} gave a {type(one).__name__} for one "
                "completion; expected one Scored. Fix: return "
                "Scored(reward, correct, reason, parts)."
            )
        return one

    def _as_listed(self, prompt: str, ids: list[int], one: Scored) -> Scored:
        """Right only in the tokens of the list, so that the list is complete."""
        if tuple(ids) in self._listed(prompt):
            return one
        zeros = dict.fromkeys(one.parts, 0.0)
        return Scored(0.0, False, "right, but not ended or in unusual tokens", zeros)

    def completion_rows(
        self, prompt: str, texts: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """Ids and mask ``[N, T]`` of ended completions of one prompt.

        Raises:
            ValueError: one has more tokens than a completion may have.
        """
        start, text = self._prompt_ids(prompt), self.render(prompt)
        end = [] if self._stop else [self.eos_id]
        rows = [
            self._tokens(text + written + self._stop)[0][len(start) :] + end
            for written in texts
        ]
        return self._pad_rows(prompt, rows)

    def _pad_rows(
        self, prompt: str, rows: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor]:
        width = max(map(len, rows))
        if width > self.max_completion_tokens:
            raise ValueError(
                f"an answer of {prompt[:60]!r} has {width} tokens in this tokenizer; "
                f"expected at most {self.max_completion_tokens}. Fix: raise the task's "
                "max_completion_tokens."
            )
        ids = torch.full((len(rows), self.max_completion_tokens), self.pad_id)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row)
            mask[number, : len(row)] = True
        return ids, mask

    @functools.cache  # noqa: B019 - a task lives as long as its run
    def _listed(self, prompt: str) -> dict[tuple[int, ...], str]:
        """Every right answer: its tokens, the ending one included -> its text."""
        start, text = self._prompt_ids(prompt), self.render(prompt)
        listed = {}
        for answer in self.task.answer_texts(prompt):
            ids, _ = self._tokens(text + answer + self._stop)
            ends = [[]] if self._stop else [[end] for end in self._end_ids]
            listed |= {tuple(ids[len(start) :] + end): answer for end in ends}
        return listed

    def answers(self, prompt: str) -> AnswerSet:
        """Every right answer of ``prompt``, with its reward.

        Raises:
            ValueError: the task cannot list its answers; an answer is too long.
        """
        if not self.has_referee:
            raise ValueError(
                f"task {self.name!r} cannot list its answers. Fix: judge it by "
                "sampling (flowrl_lab.evaluation), or choose task 'open_sets'."
            )
        listed = self._listed(prompt)
        texts = list(dict.fromkeys(listed.values()))  # one may end in several ways
        ids, mask = self._pad_rows(prompt, list(listed))
        rewards = [self.task.score(prompt, text).reward for text in listed.values()]
        return AnswerSet(
            prompt=prompt,
            labels=tuple(listed.values()),
            completion_ids=ids,
            completion_mask=mask,
            rewards=torch.tensor(rewards),
            correct=torch.ones(len(listed), dtype=torch.bool),
            groups=torch.tensor([texts.index(text) for text in listed.values()]),
            exhaustive=False,
        )


class _WithDefaults:
    """A task of somebody's own, and ``TextTask``'s defaults for what it left out."""

    def __init__(self, task) -> None:
        self._task = task

    def __getattr__(self, name: str):
        if name.startswith("_"):  # while a copy of this is made, there is no task yet
            raise AttributeError(name)
        if not hasattr(self._task, name) and hasattr(TextTask, name):
            default = getattr(TextTask, name)
            return default.__get__(self) if callable(default) else default
        return getattr(self._task, name)


def _complete(task) -> TextTask:
    """``task`` with all that ``TextTask`` declares.

    Raises:
        ValueError: it lacks what has no default.
    """
    needed = ("name", "prompts", "score", "stop", "max_completion_tokens")
    missing = [name for name in needed if not hasattr(task, name)]
    if missing:
        name = type(task).__name__
        raise bad_input(
            "task",
            f"({name}) lacks {', '.join(missing)}",
            f"{', '.join(needed)}, as flowrl_lab.tasks.text.TextTask describes them",
            f"add {missing[0]} to class {name}",
        )
    return task if isinstance(task, TextTask) else _WithDefaults(task)


def _check_tokenizer(tokenizer) -> None:
    problems = {
        "is a slow one (no tokenizer.json)": not getattr(tokenizer, "is_fast", False),
        "has no padding token": tokenizer.pad_token_id is None,
        "has no end token": tokenizer.eos_token_id is None,
    }
    found = [problem for problem, holds in problems.items() if holds]
    if found:
        raise ValueError(
            f"the tokenizer {found[0]}; expected a fast one with padding and end "
            "tokens. Fix: load it with flowrl_lab.policies.loading.load_language_model."
        )


def _ending_tokens(tokenizer, stop: Sequence[str], vocab_size: int) -> Tensor:
    """``[V]``: True for tokens that end a completion by themselves."""
    ends = torch.zeros(vocab_size, dtype=torch.bool)
    ends[tokenizer.pad_token_id] = True
    if stop:
        texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
        for number, text in enumerate(texts):
            if any(part in text for part in stop):
                ends[number] = True
    return ends

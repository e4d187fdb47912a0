"""Your own task: prompts and a reward, and that is all.

    task = text_task(["A colour:", "A fruit:"], lambda _, text: float(text in GOOD))
    for record in train(preset(task, "flowrl"), task=task):
        plot.update(record)

Prompts are texts, chat messages, or a table with a column "prompt" (such as one of the
package ``datasets``).  A reward is ``reward(prompt, completion) -> float``, or a
function as TRL's ``reward_funcs`` are: it is called with ``prompts``, ``completions``,
``completion_ids`` and the table's other columns, and returns a list.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from flowrl_lab._validation import bad_input, check_count, check_number, shown
from flowrl_lab.tasks._registry import main_module
from flowrl_lab.tasks.text import RewardError, Scored, TextTask

__all__ = ["OwnTask", "place_of", "text_task"]

# By these names TRL hands over what a reward of its kind reads.
TRL_NAMES = {"prompts", "completions", "completion_ids"}
TRL_ONLY = {"trainer_state", "environments"}
# What Run says of a task that no module holds; such a name is found by nobody else.
NOWHERE = "__main__"


@dataclass(frozen=True)
class Row:
    """One prompt: as it was given, as text, and what else its table says of it."""

    text: str
    given: Any
    columns: Mapping[str, Any] = field(default_factory=dict)


class Reward:
    """A reward function of either kind, called with a whole batch.

    Raises:
        ValueError: it takes neither (prompt, completion) nor what TRL hands over.
    """

    def __init__(self, function: Callable, name: str, columns: set[str]):
        if not callable(function):
            raise bad_input(
                "reward",
                f"is a {type(function).__name__}",
                "a function (a reward model belongs to FlowRLTrainer)",
                "pass reward(prompt, completion) -> float",
            )
        if inspect.iscoroutinefunction(function):
            raise bad_input(name, "is async", "a plain function", "leave async out")
        self.function, self.name = function, name
        self.parameters = _parameters(function)
        names = {parameter.name for parameter in self.parameters or ()}
        self.of_batch = bool(names & TRL_NAMES)
        if self.of_batch:
            self._check_columns(columns)
        elif self.parameters is not None:
            self._check_pair()

    def _check_pair(self) -> None:
        try:
            inspect.Signature(self.parameters).bind("prompt", "completion")
        except TypeError as error:
            raise bad_input(
                self.name,
                f"does not take a prompt and a completion ({error})",
                "reward(prompt, completion), or TRL's reward(completions, **columns)",
                "change its parameters",
            ) from None

    def _check_columns(self, columns: set[str]) -> None:
        known = TRL_NAMES | columns | {"log_extra", "log_metric"}
        for one in self.parameters:
            needed = one.default is one.empty and one.kind in (
                one.POSITIONAL_OR_KEYWORD,
                one.KEYWORD_ONLY,
            )
            if one.name in TRL_ONLY or (needed and one.name not in known):
                raise bad_input(
                    self.name,
                    f"asks for {one.name!r}",
                    f"some of {sorted(known)}",
                    "train it with FlowRLTrainer"
                    if one.name in TRL_ONLY
                    else f"pass a table of prompts with a column {one.name!r}",
                )

    def __call__(
        self,
        rows: Sequence[Row],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
    ) -> list[float | None]:
        """The value of each completion; None where one of TRL's kind says nothing.

        Raises:
            RewardError: it raised, or returned something that is no number.
        """
        if not self.of_batch:
            pairs = zip(rows, completions, strict=True)
            return [self._number(self._ask(*pair), *pair) for pair in pairs]
        found = self._ask_all(rows, completions, completion_ids)
        return [
            None if value is None else self._number(value, row, completion)
            for value, row, completion in zip(found, rows, completions, strict=True)
        ]

    def _ask(self, row: Row, completion: str) -> Any:
        try:
            return self.function(row.given, completion)
        except Exception as error:
            raise self._raised(error, row, completion) from error

    def _ask_all(self, rows, completions, completion_ids) -> list:
        chat = [not isinstance(row.given, str) for row in rows]
        said = [
            [{"role": "assistant", "content": text}] if as_message else text
            for as_message, text in zip(chat, completions, strict=True)
        ]
        given = {
            "prompts": [row.given for row in rows],
            "completions": said,
            "completion_ids": [list(ids) for ids in completion_ids],
            **{key: [row.columns[key] for row in rows] for key in rows[0].columns},
            "log_extra": _ignore,
            "log_metric": _ignore,
        }
        if not any(one.kind is one.VAR_KEYWORD for one in self.parameters):
            names = {one.name for one in self.parameters}
            given = {key: value for key, value in given.items() if key in names}
        try:
            found = self.function(**given)
        except Exception as error:
            raise self._raised(error, rows[0], completions[0], len(rows)) from error
        several = hasattr(found, "__iter__") and not isinstance(found, str)
        found = list(found) if several else [found]
        if len(found) != len(rows):
            raise RewardError(
                f"the reward {self.name!r} returned {len(found)} numbers for a batch "
                f"of {len(rows)} completions; expected one each, in their order. Fix: "
                "return a list as long as completions."
            )
        return found

    def _raised(self, error: Exception, row: Row, completion: str, rows: int = 1):
        among = f" (the first of {rows})" if rows > 1 else ""
        return RewardError(
            f"the reward {self.name!r} raised {type(error).__name__}: {error} for the "
            f"prompt {row.text[:60]!r} and the completion {completion[:200]!r}{among}. "
            "Fix: let it return 0.0 for what it cannot judge."
        )

    def _number(self, value: Any, row: Row, completion: str) -> float:
        """The value as a float, if it is a finite number and no text."""
        if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
            value = value.item()  # of a tensor or an array
        if isinstance(value, Real) and math.isfinite(value):
            return float(value)
        hint = "return a number"
        if isinstance(value, (list, tuple)):
            hint = "name its parameters prompts and completions if it judges a batch"
        raise RewardError(
            f"the reward {self.name!r} returned {shown(value)} for the prompt "
            f"{row.text[:60]!r} and the completion {completion[:200]!r}; expected one "
            f"finite number. Fix: {hint}; 0.0 for what it cannot judge."
        )


class OwnTask(TextTask):
    """What ``text_task`` makes; see there."""

    def __init__(
        self,
        rows: Mapping[str, Sequence[Row]],
        rewards: Sequence[Reward],
        weights: Sequence[float],
        *,
        name: str,
        max_completion_tokens: int,
        stop: tuple[str, ...],
        answer: Callable[[str], Hashable],
        right_above: float,
    ):
        self.name, self.stop = name, stop
        self.max_completion_tokens = max_completion_tokens
        self._texts = {split: tuple(r.text for r in rows[split]) for split in rows}
        self._rows = {row.text: row for split in rows for row in rows[split]}
        self.chat = not all(isinstance(r.given, str) for r in self._rows.values())
        self._rewards, self._weights = tuple(rewards), tuple(weights)
        self._answer, self._right_above = answer, right_above

    def prompts(self, split: str) -> tuple[str, ...]:
        """All prompts of ``split``, as text: ``"train"`` or ``"heldout"``."""
        if split not in self._texts:
            raise bad_input(
                "split",
                f"is {shown(split)}",
                "'train' or 'heldout'",
                "choose one of them",
            )
        return self._texts[split]

    def messages(self, prompt: str) -> list[dict[str, str]]:
        """The prompt as chat messages, as it was given where it was given so."""
        given = self._row(prompt).given
        return super().messages(prompt) if isinstance(given, str) else list(given)

    def _row(self, prompt: str) -> Row:
        if prompt not in self._rows:
            raise bad_input(
                "prompt",
                f"is {shown(prompt)}",
                f"one of the task's {len(self._rows)}",
                "pass one that prompts() gives",
            )
        return self._rows[prompt]

    def score(self, prompt: str, completion: str) -> Scored:
        """Judge one completion by all rewards."""
        return self.score_all([prompt], [completion], [[]])[0]

    def score_all(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]],
    ) -> list[Scored]:
        """Judge a batch: each reward is asked for all of it.

        Raises:
            RewardError: a reward that raised, or did not return numbers; all of them
                said nothing of a completion; an ``answer`` that failed.
        """
        rows = [self._row(prompt) for prompt in prompts]
        columns = [one(rows, completions, completion_ids) for one in self._rewards]
        return [
            self._scored(row, completion, values)
            for row, completion, *values in zip(
                rows, completions, *columns, strict=True
            )
        ]

    def _scored(self, row: Row, completion: str, values: list) -> Scored:
        """One score from what each reward said."""
        if all(value is None for value in values):
            names = ", ".join(repr(one.name) for one in self._rewards)
            raise RewardError(
                f"{names} returned None for the prompt {row.text[:60]!r} and the "
                f"completion {completion[:200]!r}; expected a number of at least one "
                "reward. Fix: return 0.0 for what it cannot judge."
            )
        parts = {
            one.name: weight * (value or 0.0)
            for one, weight, value in zip(
                self._rewards, self._weights, values, strict=True
            )
        }
        reward = math.fsum(parts.values())
        right = reward > self._right_above
        said = ", ".join(f"{name} {value:g}" for name, value in parts.items())
        return Scored(
            reward,
            right,
            said,
            parts if len(parts) > 1 else {},
            self._key(row, completion) if right else None,
        )

    def _key(self, row: Row, completion: str) -> Hashable:
        try:
            key = self._answer(completion)
            hash(key)
        except Exception as error:
            raise RewardError(
                f"answer raised {type(error).__name__}: {error} for the prompt "
                f"{row.text[:60]!r} and the completion {completion[:200]!r}. Fix: "
                "return text, a number or a tuple for every right completion."
            ) from error
        return key


def text_task(
    prompts,
    reward: Callable | Sequence[Callable],
    *,
    weights: Sequence[int | float] | None = None,
    heldout=None,
    name: str = "",
    max_completion_tokens: int = 32,
    stop: str | Sequence[str] = (),
    answer: Callable[[str], Hashable] = str.strip,
    right_above: int | float = 0.0,
) -> OwnTask:
    """A task of your own prompts and your own reward, for any language model.

    Args:
        prompts: a list of texts, of chat messages (lists of ``{"role", "content"}``),
            or a table with a column "prompt" of either: rows as dicts, or a data set
            of the package ``datasets``.
        reward: ``reward(prompt, completion) -> float``, which gets the prompt as you
            gave it and the completion as text; or one as TRL's ``reward_funcs`` are,
            which is known by a parameter ``prompts``, ``completions`` or
            ``completion_ids``; or several.  Their weighted sum is the reward.
        weights: of several rewards; None counts each once.
        heldout: prompts to judge on; None judges on the same ones.
        name: for legends and folders; empty takes the first reward's name.
        max_completion_tokens: how many tokens a completion may have.
        stop: a completion ends before the first of these strings.
        answer: what makes two right completions the same answer: equal values do.
            Their text without spaces around it, unless you know a normal form or a
            value, such as ``int``.
        right_above: a completion is right if its reward is larger than this.

    Raises:
        ValueError: no prompts, one that is neither text nor messages, a reward of
            neither kind, weights that do not fit.

    Source: TRL's ``GRPOTrainer`` for its kind of reward and of table.
    """
    train = read_prompts("prompts", prompts)
    held = train if heldout is None else read_prompts("heldout", heldout)
    functions = [reward] if callable(reward) else list(reward)
    if not functions:
        raise bad_input("reward", "is empty", "at least one function", "pass one")
    columns = {key for row in train for key in row.columns}
    rewards = [
        Reward(function, one, columns)
        for function, one in zip(functions, _names(functions), strict=True)
    ]
    check_count("max_completion_tokens", max_completion_tokens)
    check_number("right_above", right_above)
    if not callable(answer):
        raise bad_input("answer", f"is {shown(answer)}", "a function", "pass str.strip")
    return OwnTask(
        {"train": train, "heldout": held},
        rewards,
        _check_weights(weights, len(rewards)),
        name=name or rewards[0].name,
        max_completion_tokens=max_completion_tokens,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        answer=answer,
        right_above=right_above,
    )


# ------------------------------------------------------------------------ prompts


def read_prompts(what: str, prompts) -> list[Row]:
    """The rows of a list or a table of prompts, each once.

    Raises:
        ValueError: none, one that is neither text nor messages, or the same text
            with other columns.
    """
    if isinstance(prompts, str) or not hasattr(prompts, "__iter__"):
        raise bad_input(what, f"is {shown(prompts)}", "a list of prompts", "use [...]")
    rows: dict[str, Row] = {}
    for number, one in enumerate(prompts):
        row = _read_row(f"{what}[{number}]", one)
        known = rows.setdefault(row.text, row)
        if known != row:
            raise bad_input(
                f"{what}[{number}]",
                f"repeats the prompt {row.text[:60]!r} with other columns",
                "each prompt once",
                "make the prompts differ, or leave one out",
            )
    if not rows:
        raise bad_input(what, "is empty", "at least one prompt", "add some")
    return list(rows.values())


def _read_row(where: str, one: Any) -> Row:
    """A prompt, or a table's row with a column "prompt"."""
    if not isinstance(one, Mapping):
        return Row(_text_of(where, one), one)
    if "prompt" not in one:
        raise bad_input(
            where,
            f"has the columns {sorted(one)}",
            "a column 'prompt'",
            "rename the column of the prompts",
        )
    others = {k: v for k, v in one.items() if k not in ("prompt", "completion")}
    return Row(_text_of(where, one["prompt"]), one["prompt"], others)


def _text_of(where: str, prompt: Any) -> str:
    """A prompt as a person reads it: its text, or its messages below each other."""
    if isinstance(prompt, str) and prompt.strip():
        return prompt
    is_chat = isinstance(prompt, Sequence) and not isinstance(prompt, str) and prompt
    if is_chat and all(
        isinstance(message, Mapping)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str)
        for message in prompt
    ):
        return "\n".join(message["content"] for message in prompt)
    raise bad_input(
        where,
        f"is {shown(prompt)}",
        "a text, or a list of messages with role and content",
        "leave it out, or write it as one of these",
    )


# ------------------------------------------------------------------------ rewards


def _ignore(*_given: Any, **_more: Any) -> None:
    """In the place of TRL's log, for rewards that write to it."""


def _parameters(function: Callable) -> list[inspect.Parameter] | None:
    """None where Python does not know them, as of some built-in functions."""
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None


def _names(functions: Sequence[Callable]) -> list[str]:
    """The functions' names, made different where two are equal."""
    names: list[str] = []
    for function in functions:
        name = getattr(function, "__name__", type(function).__name__)
        name = "reward" if name == "<lambda>" else name
        taken = [one for one in names if one.rstrip("0123456789") == name]
        names.append(f"{name}{len(taken) + 1}" if taken or name == "solved" else name)
    return names


def _check_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    found = [1.0] * count if weights is None else list(weights)
    if len(found) != count:
        got = f"has {len(found)} numbers for {count} rewards"
        raise bad_input("weights", got, "one each", "name one weight a reward")
    for number, weight in enumerate(found):
        check_number(f"weights[{number}]", weight)
    return found


# ------------------------------------------------------- where it is found again


def place_of(task) -> str:
    """The import path of a task: ``"package.module:name"``, under which it is bound.

    A script's names are found under its file's name, if somebody else imports it.  A
    task that no module holds, or a notebook's, is in ``__main__``: another process
    cannot find it there, and ``load_task`` says so.
    """
    found = {
        module: name
        for module, held in list(sys.modules.items())
        for name, value in list(getattr(held, "__dict__", {}).items())
        if value is task and not name.startswith("_")
    }
    for module, name in found.items():
        if module != NOWHERE:
            return f"{module}:{name}"
    name = found.get(NOWHERE, "".join(c if c.isalnum() else "_" for c in task.name))
    return f"{main_module() if found else NOWHERE}:{name}"

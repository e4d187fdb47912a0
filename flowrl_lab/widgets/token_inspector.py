"""What a policy changed, token by token: completions coloured by their log-ratio."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np
import torch
import traitlets
from jaxtyping import Bool, Float
from torch import Tensor

from flowrl_lab._validation import bad_input, check_batch
from flowrl_lab.plots.panels import format_number
from flowrl_lab.plots.static import INK, num, svg, text
from flowrl_lab.tokens import masked_mean, masked_sum
from flowrl_lab.types import Completions
from flowrl_lab.widgets._base import FOLDER, Explorer, read_styles

__all__ = ["TokenInspector"]

MORE, LESS = "#0072B2", "#D55E00"
# nats of the full colour: less is not worth one, more is no more to the eye
MIN_SCALE, MAX_SCALE = 0.05, 2.0
SHADE = 0.65  # of the full colour in a box: text stays readable on it
END, PAD = "⟨end⟩", "⟨pad⟩"
WIDTH, LINE = 830, 48  # pixels of the still picture, and of a line of boxes
# Impossible log-probs beyond this are no rounding of a probability of 1.
ROUNDING = 1e-4
# A token stands on its colour: its text has more contrast than other words.
ON_COLOUR = ".on{fill:var(--jp-content-font-color0,#000)}@media(prefers-color-scheme:"
ON_COLOUR += "dark){.on{fill:var(--jp-content-font-color0,#fff)}}"


class TokenInspector(Explorer):
    """Completions of one prompt, each token coloured by ``log π − log π_ref``.

    Blue and "+": more likely than under the reference; orange and "−": less.  Hover
    a token, or walk with the arrow keys, to read its numbers.  Below each completion
    stand the sum and the mean over the tokens that count; what the mask leaves out
    is grey and enters neither.

    Args:
        prompt: the prompt's text.
        tokens: for each of B completions its T tokens as text; a row may be shorter
            where only uncounted positions are missing.
        log_probs: log π of each token, nats.
        ref_log_probs: log π_ref of each token, nats.
        completion_mask: True where a token counts, at least once in each row.  What
            stands elsewhere may be anything, NaN too.
        rewards: one number for each completion, or None.

    Attributes:
        log_ratios: ``log π − log π_ref`` [B, T], float64; 0 where not counted.
        sums: sum over counted tokens [B], nats.
        means: mean over counted tokens [B], nats.
        counts: counted tokens [B].

    Raises:
        ValueError: for shapes or dtypes that do not agree, a row without a counted
            token, and counted numbers that are no log-probabilities.
    """

    _esm = FOLDER / "token_inspector.js"
    _css = read_styles("token_inspector.css")
    _prompt = traitlets.Unicode().tag(sync=True)
    _tokens = traitlets.List(traitlets.List(traitlets.Unicode())).tag(sync=True)
    _numbers = traitlets.Bytes().tag(sync=True)
    _counted = traitlets.List(traitlets.List(traitlets.Bool())).tag(sync=True)
    _totals = traitlets.List(traitlets.Unicode()).tag(sync=True)
    _heads = traitlets.List(traitlets.Unicode()).tag(sync=True)
    _scale = traitlets.Float().tag(sync=True)

    def __init__(
        self,
        prompt: str,
        tokens: Sequence[Sequence[str]],
        log_probs: Float[Tensor, "B T"],
        ref_log_probs: Float[Tensor, "B T"],
        completion_mask: Bool[Tensor, "B T"],
        rewards: Float[Tensor, " B"] | Sequence[int | float] | None = None,
    ) -> None:
        both = {"log_probs": log_probs, "ref_log_probs": ref_log_probs}
        rows = {} if rewards is None else {"rewards": as_rewards(rewards)}
        check_batch(completion_mask, both, rows)
        mask = completion_mask.detach().cpu()
        policy, reference = (
            check_log_probs(name, value.detach().cpu().double(), mask)
            for name, value in both.items()
        )
        self.prompt = str(prompt)
        self.tokens = check_tokens(tokens, mask)
        self.mask = mask.numpy()
        ratios = torch.where(mask, policy - reference, 0.0)
        self.log_ratios = ratios.numpy()
        self.sums = masked_sum(ratios, mask).numpy()
        self.means = masked_mean(ratios, mask).numpy()
        self.counts = mask.sum(1).numpy()
        self.log_probs, self.ref_log_probs = policy.numpy(), reference.numpy()
        self.rewards = rows["rewards"].tolist() if rows else None
        super().__init__(
            _prompt=self.prompt,
            _tokens=self.tokens,
            _numbers=self._stack_numbers().tobytes(),
            _counted=mask.tolist(),
            _totals=[self._total(row) for row in range(len(mask))],
            _heads=[self._head(row) for row in range(len(mask))],
            _scale=float(np.abs(self.log_ratios).max().clip(MIN_SCALE, MAX_SCALE)),
        )

    @classmethod
    @torch.no_grad()
    def from_policy(
        cls,
        policy,
        task,
        prompt: str,
        answers: Sequence[str] | Completions | None = None,
        *,
        num_generations: int = 6,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> TokenInspector:
        """Score completions under ``policy`` and its frozen reference.

        Args:
            policy: such as ``Run.policy``.
            task: the task that it was made for, such as ``Run.task``.
            prompt: one prompt of the task.
            answers: texts among ``task.answers(prompt)``, completions that you have
                already, or None to sample some.
            num_generations: how many to sample.
            temperature: of sampling and of all log-probs.
            seed: of sampling.

        Returns:
            The inspector, with the verifier's rewards.

        Raises:
            ValueError: for a text that is not among the listed answers.
        """
        prompts = task.encode((prompt,))
        if answers is None:
            generator = torch.Generator(policy.device).manual_seed(seed)
            answers = policy.sample(
                prompts,
                num_generations,
                temperature=temperature,
                generator=generator,
            )
        elif not isinstance(answers, Completions):
            answers = find_answers(task, prompt, answers)
        ids = answers.completion_ids.to(policy.device)
        mask = answers.completion_mask.to(policy.device)
        now, reference = (
            policy.evaluate(prompts, ids, mask, temperature=temperature, reference=ref)
            for ref in (False, True)
        )
        return cls(
            prompt,
            spell_tokens(task, ids.cpu(), mask.cpu()),
            now.log_probs,
            reference.log_probs,
            mask,
            task.score(prompts, ids, mask, len(ids)),
        )

    def _stack_numbers(self) -> np.ndarray:
        """[4, B, T]: log π, log π_ref, log-ratio, running sum of what counts."""
        running = self.log_ratios.cumsum(axis=1)
        ratios = self.log_probs - self.ref_log_probs
        return np.stack([self.log_probs, self.ref_log_probs, ratios, running])

    def _head(self, row: int) -> str:
        reward = ""
        if self.rewards is not None:
            reward = f" · reward {format_number(self.rewards[row])}"
        return f"completion {row + 1}{reward}"

    def _total(self, row: int) -> str:
        return (
            f"sum {signed(self.sums[row], 3)} nats · "
            f"mean {signed(self.means[row], 3)} over {self.counts[row]} counted "
            f"of {self.mask.shape[1]} tokens"
        )

    def still(self) -> tuple[str, str, str]:
        """Every completion as boxes with signed numbers; one line of text for each."""
        totals = [f"{self._head(r)}: {self._total(r)}" for r in range(len(self.tokens))]
        lines = []
        for row, total in enumerate(totals):
            known = zip(
                self.tokens[row], self.log_ratios[row], self.mask[row], strict=True
            )
            cells = [
                f"{show(name)} {signed(ratio)}" if kept else f"({show(name)} –)"
                for name, ratio, kept in known
            ]
            lines.append(f"{total}\n  {' | '.join(cells)}")
        alt = (
            f"Log-ratio of each token to the reference, {len(totals)} "
            f"completions of {self.prompt}. {'. '.join(totals)}."
        )
        return draw_rows(self, alt), alt, "\n".join(lines)


def signed(value: int | float, decimals: int = 2) -> str:
    """With a sign and a true minus: "+0.42", "−1.30"; "0" where nothing is left."""
    if not np.isfinite(value):
        return "–"
    shown = f"{abs(float(value)):.{decimals}f}"
    if float(shown) == 0:
        return "0"
    return f"{'+' if value > 0 else '−'}{shown}"


def show(token: str) -> str:
    """A token with what cannot be seen made visible."""
    return token.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥") or "∅"


def as_rewards(rewards) -> Tensor:
    """Rewards as a float64 tensor, whatever they came as.

    Raises:
        ValueError: if they are no numbers.
    """
    try:
        return torch.as_tensor(rewards).detach().cpu().double()
    except (TypeError, ValueError, RuntimeError) as error:
        raise bad_input(
            "rewards",
            f"is a {type(rewards).__name__} ({error})",
            "one number for each completion",
            "pass a list of floats or a tensor [B]",
        ) from None


def check_log_probs(name: str, values: Tensor, mask: Tensor) -> Tensor:
    """What counts must be a log-probability.

    Raises:
        ValueError: for a counted value above 0.
    """
    highest = values[mask].max().item()
    if highest > ROUNDING:
        raise bad_input(
            name,
            f"goes up to {highest:.3g} among the counted tokens",
            "log-probabilities, which are at most 0",
            "pass log π of the chosen tokens, not logits or probabilities",
        )
    return values


def check_tokens(tokens, mask: Tensor) -> list[list[str]]:
    """B rows of T texts; missing uncounted positions at the end become padding.

    Raises:
        ValueError: unless the tokens fit the mask.
    """
    rows, width = mask.shape
    if isinstance(tokens, str) or any(isinstance(row, str) for row in tokens):
        raise bad_input(
            "tokens",
            "holds a text that is not split into tokens",
            "a list of tokens for each completion",
            "split it as the tokenizer does, e.g. [list('6*4=24')] for characters",
        )
    filled = [[str(token) for token in row] for row in tokens]
    if len(filled) != rows:
        raise bad_input(
            "tokens",
            f"has {len(filled)} rows",
            f"{rows}, one for each completion",
            "pass a list of B lists",
        )
    for number, row in enumerate(filled):
        needed = int(mask[number].nonzero().max()) + 1
        if not needed <= len(row) <= width:
            raise bad_input(
                "tokens",
                f"has {len(row)} tokens in row {number}",
                f"{needed} (the counted ones) to {width} (T)",
                "give the text of each position of the tensors, padding included",
            )
        row += [PAD] * (width - len(row))
    return filled


def find_answers(task, prompt: str, texts: Sequence[str]) -> Completions:
    """The listed answers with these texts, as completions.

    Raises:
        ValueError: for no text, or one that is not listed.
    """
    listed = task.answers(prompt)
    if isinstance(texts, str) or not len(texts):
        raise bad_input(
            "answers",
            f"is {texts!r}",
            "a list of at least one answer",
            f"write answers=[{listed.labels[0]!r}]",
        )
    rows = []
    for wanted in texts:
        if wanted not in listed.labels:
            close = difflib.get_close_matches(str(wanted), listed.labels, n=1)
            raise bad_input(
                "answers",
                f"has {wanted!r}, which is not listed for {prompt!r}",
                f"some of its {len(listed)} answers",
                f"did you mean {close[0]!r}" if close else "see task.answers(prompt)",
            )
        rows.append(listed.labels.index(wanted))
    ids, mask = listed.completion_ids[rows], listed.completion_mask[rows]
    width = int(mask.any(0).nonzero().max()) + 1
    return Completions(ids[:, :width], mask[:, :width], torch.zeros(len(rows), width))


def spell_tokens(task, completion_ids: Tensor, mask: Tensor) -> list[list[str]]:
    """The text of every token, as far as the task tells: one character, or all."""
    spelled = []
    for row, ids in enumerate(completion_ids.tolist()):
        kept = mask[row].tolist()
        whole = task.decode(completion_ids[row : row + 1], mask[row : row + 1])[0]
        ended = [
            keep and token == task.eos_id for token, keep in zip(ids, kept, strict=True)
        ]
        written = [k and not e for k, e in zip(kept, ended, strict=True)]
        parts = [whole] if sum(written) == 1 else list(whole)
        if len(parts) != sum(written):
            parts = [str(token) for token, w in zip(ids, written, strict=True) if w]
        left = iter(parts)
        spelled.append(
            [
                next(left) if w else END if e else PAD
                for w, e in zip(written, ended, strict=True)
            ]
        )
    return spelled


def draw_rows(inspector: TokenInspector, alt: str) -> str:
    """The still picture: rows of boxes, broken where a line is full."""
    more = " or more" if np.abs(inspector.log_ratios).max() > inspector._scale else ""
    legend = (
        "blue +: more likely than under π_ref · orange −: less · full colour: "
        f"{format_number(inspector._scale)} nats{more} · dashed: not counted"
    )
    parts = [f"<style>{ON_COLOUR}</style>"]
    parts += [text(2, 16, f"prompt {inspector.prompt}", 13, bold=True)]
    parts.append(text(2, 36, legend, 11))
    y = 52
    for row, names in enumerate(inspector.tokens):
        head = f"{inspector._head(row)}: {inspector._total(row)}"
        parts.append(text(2, y + 14, head))
        x, y = 2, y + 22
        ratios, kept = inspector.log_ratios[row], inspector.mask[row]
        for name, ratio, keep in zip(names, ratios, kept, strict=True):
            wide = max(40, 10 + 8 * len(show(name)))
            if x > 2 and x + wide > WIDTH:
                x, y = 2, y + LINE
            shade = min(1.0, abs(ratio) / inspector._scale) if keep else None
            parts.append(draw_token(x, y, wide, show(name), ratio, shade))
            x += wide + 3
        y += LINE + 8
    return svg(WIDTH, y, alt, parts)


def draw_token(x, y, wide, name: str, ratio, shade) -> str:
    """A box with the token on its colour, and its number below.

    Without a shade the token does not count.
    """
    counted = shade is not None
    dash = "" if counted else ' stroke-dasharray="3 3"'
    fill = 'fill="none"'
    if counted:
        color = MORE if ratio > 0 else LESS
        fill = f'fill="{color}" fill-opacity="{SHADE * shade:.2f}"'
    middle, number = x + wide / 2, signed(ratio) if counted else "–"
    return (
        f'<rect x="{num(x)}" y="{num(y)}" width="{num(wide)}" height="28" rx="2" '
        f'{fill} stroke="{INK}" stroke-opacity=".5"{dash}/>'
        + text(middle, y + 18, name, 13, anchor="middle", bold=counted).replace(
            "<text", '<text class="on"' if counted else "<text"
        )
        + text(middle, y + 40, number, 10, anchor="middle")
    )

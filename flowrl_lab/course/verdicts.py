"""A prediction beside its outcome, as words and as a small picture."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from flowrl_lab.course.questions import say
from flowrl_lab.plots.static import INK, linear_ticks, svg

__all__ = ["number_line", "outcome_html", "outcome_text"]

PREDICTED, CAME_OUT = "#D55E00", "#0072B2"
WIDTH, MARGIN, AXIS = 560.0, 40.0, 52.0

Facts = Mapping[str, object]


def outcome_text(facts: Facts) -> str:
    """One sentence on what was predicted and what came out.

    Args:
        facts: an outcome event's: ``result``, ``unit``, and ``predicted`` if there
            was a prediction.
    """
    unit = str(facts.get("unit", ""))
    result, guess = facts["result"], facts.get("predicted")
    came_out = f"It came out as: {say(result, unit)}."
    if guess is None:
        return f"{came_out} (You made no prediction.)"
    begin = f"You predicted: {say(guess, unit)}. {came_out}"
    if isinstance(result, str):
        same = "Just as you thought." if guess == result else "Different: ask why."
        return f"{begin} {same}"
    gap = result - guess
    if say(guess, unit) == say(result, unit):
        return f"{begin} Spot on."
    return f"{begin} That is {say(abs(gap), unit)} {'more' if gap > 0 else 'less'}."


def outcome_html(facts: Facts) -> str:
    """The same with a picture: a number line, or the two choices."""
    words = escape(outcome_text(facts))
    if isinstance(facts["result"], str):
        body = f"<div>{_signed(facts)} {words}</div>"
    else:
        body = f"<div>{words}</div>{number_line(facts)}"
    question = escape(str(facts.get("question", "")))
    return (
        '<div role="status" style="border-left:5px solid #0072B2;padding:.4em 1em;'
        f'margin:.3em 0">{f"<b>{question}</b>" if question else ""}{body}</div>'
    )


def _signed(facts: Facts) -> str:
    if facts.get("predicted") is None:
        return "○"
    return "✓" if facts["predicted"] == facts["result"] else "≠"


def number_line(facts: Facts) -> str:
    """An SVG of both numbers on one line, the prediction above and the result below."""
    unit, result = str(facts.get("unit", "")), float(facts["result"])
    guess = facts.get("predicted")
    marks = [result] if guess is None else [result, float(guess)]
    ends = [*marks, *facts.get("range", ())]
    low, high = min(ends), max(ends)
    air = 0.5 if low == high else 0.0  # one number alone still needs a line
    low, high = low - air * max(1.0, abs(low)), high + air * max(1.0, abs(high))

    def place(value: float) -> float:
        return MARGIN + (value - low) / (high - low) * (WIDTH - 2 * MARGIN)

    parts = [
        f'<path d="M{MARGIN} {AXIS}H{WIDTH - MARGIN}" stroke="{INK}"/>',
    ]
    for tick in linear_ticks(low, high):
        x = place(tick)
        parts.append(
            f'<path d="M{x:.1f} {AXIS - 3}v6" stroke="{INK}"/><text x="{x:.1f}" '
            f'y="{AXIS + 17}" text-anchor="middle">{tick:g}</text>'
        )
    if guess is not None:
        here = place(float(guess))
        parts.append(
            f'<path d="M{here:.1f} {AXIS}H{place(result):.1f}" stroke="{INK}" '
            'stroke-width="5" stroke-opacity=".45"/>'
        )
        words = f"you: {say(guess, unit)}"
        parts.append(_mark(here, AXIS - 3, "▼", PREDICTED, AXIS - 22, words))
    words = f"came out: {say(result, unit)}"
    parts.append(_mark(place(result), AXIS + 34, "▲", CAME_OUT, AXIS + 50, words))
    return svg(WIDTH, 108, outcome_text(facts), parts)


def _mark(x: float, y: float, glyph: str, color: str, text_y: float, words: str) -> str:
    """A coloured pointer with its words, which stay inside the picture."""
    half = 3.4 * len(words)
    middle = min(max(x, half + 2), WIDTH - half - 2)
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}" text-anchor="middle" '
        f'font-size="14">{glyph}</text><text x="{middle:.1f}" y="{text_y:.1f}" '
        f'text-anchor="middle">{escape(words)}</text>'
    )

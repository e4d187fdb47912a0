"""Notebooks 4 to 6: tokens, groups, and the losses made of them."""

from __future__ import annotations

import torch

from drawings.sheet import Sheet
from flowrl_lab.advantages import group_normalized
from flowrl_lab.losses import flowrl_terms
from flowrl_lab.tasks.make_number import verify_answer

PROMPT = "24!37:"
GROUP = ("6*4", "4*6=24", "5+1=6", "8*2+8")
CELL = 30


def signed(value: float, form: str = ".2f") -> str:
    """A number with a true minus sign."""
    return format(value, form).replace("-", "−")


def tokens(
    sheet: Sheet, x: float, y: float, words: str, color: str, *, dashed: bool = False
) -> None:
    """One box for each character."""
    for place, letter in enumerate(words):
        sheet.box(
            *(x + CELL * place, y, CELL - 2, 30, color, letter),
            radius=3,
            dashed=dashed,
        )


def rollout() -> Sheet:
    """One prompt, G completions, T tokens; what is padding; what the verifier says."""
    sheet = Sheet(
        318,
        "A rollout: one prompt, G completions",
        "One prompt, make 24 without the digits 3 and 7, and four completions of it "
        "as rows of tokens: each ends with an end token, the rest is padding that the "
        "mask leaves out. The verifier gives each whole row one reward.",
    )
    sheet.text(20, 92, "prompt", "soft")
    tokens(sheet, 20, 102, PROMPT, "soft")
    sheet.lines(158, "make 24; 3 and 7 are banned", width=22)
    sheet.text(262, 66, "completions [G, T]", "blue")
    sheet.text(558, 66, "reward [G]", "orange")
    longest = max(map(len, GROUP)) + 1
    for row, answer in enumerate(GROUP):
        y = 80 + 46 * row
        sheet.arrow([(204, 117), (228, 117), (236, y + 15), (256, y + 15)], "blue")
        tokens(sheet, 262, y, answer, "blue")
        tokens(sheet, 262 + CELL * len(answer), y, "⏎", "pink")
        used = len(answer) + 1
        tokens(sheet, 262 + CELL * used, y, "·" * (longest - used), "soft", dashed=True)
        right = verify_answer(PROMPT, answer)
        sheet.arrow([(262 + CELL * longest + 6, y + 15), (552, y + 15)], "orange")
        words = "1  right" if right else "0  wrong"
        sheet.box(558, y, 84, 30, "orange" if right else "soft", words, radius=3)
    runs = [("■ counts\u2003", "blue"), ("■ the end token counts too\u2003", "pink")]
    sheet.text(20, 284, [*runs, ("□ padding: the mask is False", "soft")])
    sheet.lines(306, "one number for a whole row, and none for a single token")
    return sheet


LOG_PI = torch.tensor([[-0.9, -0.3, -1.2, -0.4]])
LOG_REF = torch.tensor([[-1.4, -0.3, -1.5, -0.6]])


def flowrl_loss_terms() -> Sheet:
    """The residual as a staircase of four terms, then square and weight."""
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0])
    score = group_normalized(rewards, 4)[:1]
    log_z, scale = torch.tensor([0.4]), 2.0
    terms = flowrl_terms(
        *(log_z, LOG_PI, LOG_PI - 0.05, LOG_REF, score),
        torch.ones_like(LOG_PI, dtype=torch.bool),
        reward_scale=scale,
    )
    steps = [
        ("log Z(x)", float(log_z), "green"),
        ("+ mean log π", float(LOG_PI.mean()), "blue"),
        ("− β·r̂", -scale * float(score), "orange"),
        ("− mean log π_ref", -float(LOG_REF.mean()), "soft"),
    ]
    sheet = Sheet(
        334,
        "The loss of one completion, taken apart",
        "The residual of one completion as a staircase: log Z, plus the mean log "
        "probability of its tokens, minus beta times the normalised reward, minus the "
        "mean log probability under the reference. It ends below 0: not likely enough.",
    )
    zero, unit, at = 480.0, 112.0, 0.0
    sheet.line([(zero, 62), (zero, 260)], dash="3 4")
    sheet.text(zero, 56, "0 nats", "soft", size=14, anchor="middle")
    for row, (name, value, color) in enumerate(steps):
        y, end = 70 + 38 * row, at + value
        left, right = sorted((zero + unit * at, zero + unit * end))
        sheet.text(20, y + 20, name, color, bold=True)
        inside = signed(value, "+.2f") if right - left > 60 else ""
        sheet.box(left, y, right - left, 28, color, inside, radius=2)
        if not inside:
            sheet.text(right + 8, y + 20, signed(value, "+.2f"), color)
        sheet.line([(zero + unit * end, y + 28), (zero + unit * end, y + 38)])
        at = end
    delta = float(terms.residuals)
    left, right = sorted((zero, zero + unit * delta))
    sheet.text(20, 242, "= δ, the residual", "pink", bold=True)
    sheet.box(left, 222, right - left, 28, "pink", signed(delta), radius=2)
    sheet.text(right + 8, 242, "not likely enough", "pink")
    weight, loss = float(terms.weights), float(terms.losses)
    square = (f"({signed(delta)})²", "pink")
    runs = ["loss = w · δ² = ", f"{weight:.2f} · ", square, f" = {loss:.2f}"]
    sheet.text(20, 288, runs, size=17, bold=True)
    sheet.lines(
        314, "gradients flow to log π and log Z, not through w (β = 2 here, not 15)"
    )
    return sheet


def grpo_group() -> Sheet:
    """A group's rewards become advantages; a group that agrees says nothing."""
    sheet = Sheet(
        300,
        "GRPO: judged by the group",
        "Two groups of six rewards. Where two of six are right, those get an advantage "
        "well above 0 and the others one below. Where all six are right, every "
        "advantage is 0 and nothing is learnt.",
    )
    sheet.text(20, 54, "advantage = (r − mean of the group) / std of the group", "soft")
    groups = [
        ("two of six are right", torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0, 0.0])),
        ("all are right", torch.ones(6)),
    ]
    for column, (name, rewards) in enumerate(groups):
        x = 30 + 340 * column
        advantages = group_normalized(rewards, 6)
        sheet.text(x, 88, name, bold=True)
        for place, reward in enumerate(rewards.tolist()):
            hue = "orange" if reward else "soft"
            sheet.box(x + 50 * place, 100, 40, 28, hue, f"{reward:g}", radius=3)
        heights = [42 * value for value in advantages.tolist()]
        hues = ["blue" if value > 0 else "pink" for value in heights]
        middles = sheet.bars(x, 212, heights, hues, width=40, gap=10)
        for middle, high in zip(middles, heights, strict=True):
            y = 212 - high - 6 if high >= 0 else 212 - high + 16
            hue = "blue" if high > 0 else "pink" if high < 0 else "soft"
            words = signed(high / 42, "+.2f") if high else "0"
            sheet.label(middle, y, words, hue, size=14)
    sheet.text(30, 280, "up: written more often; down: less", "soft")
    sheet.text(370, 280, "no difference, no gradient", "soft")
    return sheet

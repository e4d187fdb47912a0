"""The course itself, the training step, adapters, and machines."""

from __future__ import annotations

from drawings.sheet import Sheet


def training_step() -> Sheet:
    """One step as a loop of six stations."""
    sheet = Sheet(
        340,
        "One training step",
        "A loop of six stations: draw prompts, sample G completions each, let the "
        "verifier pay, score the tokens under policy and reference, form delta and the "
        "loss, update policy and log Z; then again.",
    )
    stations = [
        ("soft", "1 prompts\na batch of questions"),
        ("blue", "2 rollout\nG completions each"),
        ("orange", "3 verifier\nr, then r̂ in the group"),
        ("blue", "4 log-probs\nlog π and log π_ref"),
        ("green", "5 log Z\nread from the prompt"),
        ("pink", "6 loss\nw·δ², averaged"),
    ]
    spots = [(24, 60), (248, 60), (472, 60), (472, 190), (248, 190), (24, 190)]
    wide, high = 204, 62
    for (x, y), (color, words) in zip(spots, stations, strict=True):
        sheet.box(x, y, wide, high, color, words, bold=True)
    for x in (228, 452):
        sheet.arrow([(x, 91), (x + 20, 91)], "ink")
        sheet.arrow([(x + 20, 221), (x, 221)], "ink")
    sheet.arrow([(574, 122), (574, 190)], "ink")
    sheet.arrow([(126, 190), (126, 122)], "ink")
    sheet.text(138, 152, "backward, clip, update", "pink", bold=True)
    sheet.text(138, 172, "policy and log Z move; π_ref stays", "soft")
    sheet.text(562, 162, "the same tokens", "soft", anchor="end")
    sheet.text(20, 290, "δ = log Z + mean log π − β·r̂ − mean log π_ref")
    sheet.text(20, 314, "the verifier is asked, never differentiated", "soft")
    return sheet


def lora() -> Sheet:
    """On: the policy. Off: the reference. The same frozen weights below."""
    sheet = Sheet(
        330,
        "LoRA: one model, two policies",
        "Two pictures of one layer. With the adapter on, the input goes through the "
        "frozen matrix W and through two thin matrices A and B, and both are added: "
        "the policy. With the adapter off only W is left: the reference.",
    )
    for x, on in ((30, True), (380, False)):
        hue = "green" if on else "soft"
        name = "adapter on: policy π" if on else "adapter off: reference π_ref"
        sheet.text(x, 62, name, "blue" if on else "ink", bold=True)
        sheet.box(x, 120, 130, 110, "soft", "W\nfrozen", bold=True)
        sheet.box(x + 170, 120, 110, 30, hue, "B", dashed=not on)
        sheet.box(x + 200, 154, 50, 42, hue, "", dashed=not on)
        sheet.text(x + 225, 180, "r", hue, anchor="middle")
        sheet.box(x + 170, 200, 110, 30, hue, "A", dashed=not on)
        sheet.arrow([(x + 65, 262), (x + 65, 232)], "ink")
        sheet.text(x + 65, 280, "x", anchor="middle", bold=True)
        sheet.arrow([(x + 65, 118), (x + 65, 98)], "ink")
        sheet.text(x + 65, 90, "h = W·x" + (" + B·A·x" if on else ""), anchor="middle")
        if on:
            sheet.line([(x + 65, 250), (x + 225, 250), (x + 225, 232)], "green")
            sheet.line([(x + 225, 118), (x + 225, 108), (x + 75, 108)], "green")
    sheet.lines(312, "B starts at 0: on = off before the first step; W never moves")
    return sheet

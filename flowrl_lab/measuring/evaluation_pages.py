"""An evaluation as text for the terminal, as JSON, and as one HTML page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from flowrl_lab._files import write_atomically, write_json
from flowrl_lab.measuring.folder import describe_environment
from flowrl_lab.measuring.judged import Evaluation, to_plain
from flowrl_lab.measuring.noise_floors import SampledFigure
from flowrl_lab.measuring.pages import html_page, html_table
from flowrl_lab.metrics import calibration_error
from flowrl_lab.plots.panels import format_number

__all__ = ["format_evaluation", "render_evaluation", "write_evaluation"]

EXACT_HEAD = ("exact, from the list of answers", "policy", "perfect (p*)")
SAMPLED_HEAD = ("from samples", "policy", "its exact mean", "perfect sampler", "in sd")
BIN_HEAD = ("stated pass rate", "prompts", "stated", "exact")
NO_LIST = (
    "This task cannot list its answers: there are no exact figures, and what a perfect "
    "sampler would score is not known. ± is the standard error over the prompts."
)
HOW_TO_READ = (
    "± after the policy is the standard error over the prompts; ± after the perfect "
    "sampler is how much its figure scatters from draw to draw. The last column is the "
    "distance of the two in units of that scatter: within 2 the sample does not show "
    "that the policy differs from the target."
)


def format_evaluation(evaluation: Evaluation) -> str:
    """The tables as plain text."""
    parts = [_headline(evaluation)]
    if evaluation.exact:
        parts.append(_text_table(EXACT_HEAD, _exact_rows(evaluation)))
    parts.append(_text_table(SAMPLED_HEAD, _sampled_rows(evaluation)))
    parts.append(HOW_TO_READ if evaluation.exact else NO_LIST)
    if evaluation.log_z is not None:
        parts.append(_about_log_z(evaluation))
    if evaluation.pass_rates:
        parts.append(_text_table(BIN_HEAD, _bin_rows(evaluation)))
    return "\n\n".join(parts)


def render_evaluation(evaluation: Evaluation, *, command: str = "") -> str:
    """The same as a page that opens offline."""
    title = f"Evaluation: {evaluation.facts['run']}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(_headline(evaluation))}</p>",
    ]
    if evaluation.exact:
        rows = _exact_rows(evaluation)
        parts += ["<h2>Exact</h2>", html_table("Mean over prompts.", EXACT_HEAD, rows)]
    how = HOW_TO_READ if evaluation.exact else NO_LIST
    parts += [
        "<h2>From samples</h2>",
        html_table("Mean over prompts.", SAMPLED_HEAD, _sampled_rows(evaluation)),
        f"<p class='soft'>{escape(how)}</p>",
    ]
    if evaluation.log_z is not None:
        parts += ["<h2>log Z</h2>", f"<p>{escape(_about_log_z(evaluation))}</p>"]
    if evaluation.pass_rates:
        caption = "What log Z says about how hard the prompts are for π_ref."
        parts.append(html_table(caption, BIN_HEAD, _bin_rows(evaluation)))
    facts = [[key, str(value)] for key, value in evaluation.facts.items()]
    parts += ["<h2>Settings</h2>", html_table("This evaluation.", ("", ""), facts)]
    if command:
        parts.append(f"<h2>Again</h2><pre><code>{escape(command)}</code></pre>")
    return html_page(title, "\n".join(parts))


def write_evaluation(
    evaluation: Evaluation,
    *,
    json_path: Path | None = None,
    report_path: Path | None = None,
    command: str = "",
) -> None:
    """Write the files that are asked for; the caller has made sure they are new."""
    if json_path is not None:
        environment = describe_environment(evaluation.facts["device"])
        content = {**to_plain(evaluation), "environment": environment}
        write_json(json_path, content)
    if report_path is not None:
        page = render_evaluation(evaluation, command=command)
        write_atomically(report_path, page.encode())


def _headline(evaluation: Evaluation) -> str:
    facts = evaluation.facts
    state = "finished" if facts["finished"] else "stopped half-way"
    return (
        f"{facts['run']} on {facts['task']}, seed {facts['seed_of_run']}, step "
        f"{facts['step']} of {facts['steps']} ({state}); "
        f"{_prompts(facts['prompts'], 'held-out ')}, {facts['samples']} samples each, "
        f"temperature "
        f"{facts['temperature']:g}."
    )


def _exact_rows(evaluation: Evaluation) -> list[list[str]]:
    return [
        [f"{f.heading} {f.better}".strip(), *map(_number, (f.value, f.perfect))]
        for f in evaluation.exact
    ]


def _sampled_rows(evaluation: Evaluation) -> list[list[str]]:
    return [
        [
            f"{f.heading} {f.better}".strip(),
            _with_error(f.value, f.error),
            format_number(f.exact),
            _with_error(f.perfect, f.perfect_spread),
            _distance(f),
        ]
        for f in evaluation.sampled
    ]


def _distance(figure: SampledFigure) -> str:
    """How far from perfect, in standard deviations of a perfect sampler."""
    gap = figure.value - figure.perfect
    if abs(gap) < 1e-9:
        return "0"
    if math.isnan(gap) or not figure.perfect_spread > 1e-9:
        return "–"
    return f"{gap / figure.perfect_spread:+.1f}"


def _bin_rows(evaluation: Evaluation) -> list[list[str]]:
    return [
        [f"{b.low:g} to {b.high:g}", str(b.count)]
        + [f"{rate:.3f}" for rate in (b.stated, b.observed)]
        for b in evaluation.pass_rates
    ]


def _about_log_z(evaluation: Evaluation) -> str:
    line = evaluation.log_z
    text = (
        f"Learned against exact log Z over {_prompts(line.count)}: bias "
        f"{line.bias:+.3g}, RMS error {format_number(line.rmse)} nats"
    )
    if line.count > 2:  # through two points there is always a line
        text += (
            f", slope {format_number(line.slope)}, correlation "
            f"{format_number(line.correlation)}"
        )
    text += "."
    if evaluation.pass_rates:
        error = calibration_error(evaluation.pass_rates)
        text += (
            " As pass rates of the reference, what it states is off by "
            f"{error:.3f} on average."
        )
    return text


def _number(value: float) -> str:
    """Rounding errors of float64 are shown as the 0 that they are."""
    return format_number(0.0 if abs(value) < 1e-12 else value)


def _prompts(count: int, kind: str = "") -> str:
    return f"{count} {kind}prompt{'' if count == 1 else 's'}"


def _with_error(value: float, error: float) -> str:
    shown = _number(value)
    return shown if math.isnan(error) or shown == "–" else f"{shown} ± {error:.2g}"


def _text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    table = [list(head), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for first, *others in table:
        cells = [cell.rjust(w) for cell, w in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)

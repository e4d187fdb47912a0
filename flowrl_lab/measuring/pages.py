"""Self-contained HTML pages: about a set of runs, a study, an evaluation.

A page opens offline in any browser: styles and pictures (SVG) are inside it, it
has no script and asks for nothing from outside.  It follows the reader's light or
dark theme, and every picture carries its numbers as alt text.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

from flowrl_lab._files import write_atomically
from flowrl_lab._validation import bad_input
from flowrl_lab.measuring.folder import RunResult
from flowrl_lab.measuring.judged import Evaluation
from flowrl_lab.measuring.noise_floors import SampledFigure
from flowrl_lab.measuring.tables import (
    METRICS,
    Spread,
    average_runs,
    beside_untrained,
    compute_spread,
    group_runs,
    join_dials,
    metric_of,
    summarize,
)
from flowrl_lab.metrics import calibration_error
from flowrl_lab.plots.figures import svg_from_records
from flowrl_lab.plots.panels import (
    ALWAYS_LOG,
    format_number,
    format_seconds,
    run_styles,
)
from flowrl_lab.plots.placement import Box
from flowrl_lab.plots.static import draw_axes, svg
from flowrl_lab.plots.tabulate import html_table, text_table

__all__ = [
    "format_evaluation",
    "html_page",
    "render_evaluation",
    "render_report",
    "render_study",
    "write_page",
    "write_report",
]

CURVES = ("reward", "accuracy", "effective_answers", *ALWAYS_LOG, "entropy")
FRONT = ("accuracy", "effective_answers")
STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --soft: #5b5b5b;
  --page: #ffffff; --line: rgba(128,128,128,.35); --band: rgba(128,128,128,.09); }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececec; --soft: #b4b4b4; --page: #17181a; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--page); max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
.soft, figcaption, caption { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums;
  font-size: .9rem; }
caption { text-align: left; padding: .3rem 0; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line);
  text-align: right; vertical-align: top; white-space: nowrap; }
thead th { white-space: normal; }
th:first-child, td:first-child { text-align: left; }
thead th { vertical-align: bottom; }
tbody tr:nth-child(odd) { background: var(--band); }
td.text { text-align: left; overflow-wrap: anywhere; }
figure { margin: 1.5rem 0; } svg { max-width: 100%; height: auto; }
pre { overflow-x: auto; padding: .7rem; background: var(--band); }
"""


def write_page(path: str | Path, page: str, *, overwrite: bool = False) -> Path:
    """Write a page to a file; its folder is made if need be.

    Raises:
        ValueError: the file exists and ``overwrite`` is False.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise bad_input(
            "path",
            f"is {path}, which already exists",
            "a new file",
            "choose another name, or pass overwrite=True (--force)",
        )
    # half a surrogate pair, from a cut emoji, becomes a question mark
    write_atomically(path, page.encode("utf-8", "replace"))
    return path


def write_report(
    results: Sequence[RunResult],
    path: str | Path,
    *,
    title: str = "FlowRL lab: runs compared",
    command: str = "",
    overwrite: bool = False,
) -> Path:
    """Write the report as one HTML file.

    Args:
        results: finished runs; runs of one name are seeds of the same experiment.
        path: where to write.
        title: the page's headline.
        command: the command that makes these runs again; empty leaves it out.
        overwrite: replace a file that is already there.

    Returns:
        The path.

    Raises:
        ValueError: no results, or the file exists and ``overwrite`` is False.
    """
    page = render_report(results, title=title, command=command)
    return write_page(path, page, overwrite=overwrite)


def render_report(
    results: Sequence[RunResult], *, title: str, command: str = ""
) -> str:
    """The page that ``write_report`` writes."""
    results = list(results)
    if not results:
        raise bad_input("results", "is empty", "at least one run", "train one first")
    return html_page(title, *_about(results), again=command)


def render_study(
    studies: Mapping[str, Sequence[RunResult]], *, title: str, command: str = ""
) -> str:
    """One page about several sets of runs, each under its own headline.

    Raises:
        ValueError: no study, or one without runs.
    """
    if not studies or not all(studies.values()):
        got = {name: len(runs) for name, runs in studies.items()}
        raise bad_input("studies", f"are {got}", "runs in each", "train some first")
    links = "".join(
        f'<li><a href="#{quote(name)}">{escape(name)}</a>: {len(runs)} runs</li>'
        for name, runs in studies.items()
    )
    parts = [f"<ul>{links}</ul>"]
    for name, runs in studies.items():
        parts += [f'<h1 id="{quote(name)}">{escape(name)}</h1>', *_about(list(runs))]
    return html_page(title, *parts, again=command)


def _about(results: list[RunResult]) -> list[str]:
    """Everything there is to say about one set of runs."""
    groups = group_runs(results)
    return [
        _overview(results, groups),
        "<h2>Results</h2>",
        _summary_table(results),
        "<h2>While training</h2>",
        *_figures(groups),
        "<h2>Every run</h2>",
        _run_table(groups),
        "<h2>Settings</h2>",
        _settings(groups),
        "<h2>Where it ran</h2>",
        _environment_table(results),
    ]


def html_page(title: str, *parts: str, again: str = "") -> str:
    """A whole page: self-contained, in the reader's theme.

    Args:
        title: of the page, and its headline.
        parts: what stands below it, as HTML; empty ones are left out.
        again: the command that makes the page's content again.
    """
    body = [f"<h1>{escape(title)}</h1>", *filter(None, parts)]
    if again:
        body.append(f"<h2>Again</h2>\n<pre><code>{escape(again)}</code></pre>")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        "<body>\n<main>\n" + "\n".join(body) + "\n</main>\n</body>\n</html>\n"
    )


def _overview(results: list[RunResult], groups: dict[str, list[RunResult]]) -> str:
    tasks = sorted({str(result.config.get("task", "?")) for result in results})
    seeds = sorted({result.seed for result in results})
    devices = sorted({str(r.environment.get("device", "?")) for r in results})
    total = sum(result.wall_seconds for result in results)
    prompts = sorted({result.exact.num_prompts for result in results})
    return (
        f"<p>Task {escape(', '.join(tasks))}; {len(groups)} kinds of run, "
        f"{len(results)} runs, seeds {', '.join(map(str, seeds))}; device "
        f"{escape(', '.join(devices))}; wall time {format_seconds(total)}, all runs "
        "added up, evaluation included.</p>"
        "<p class='soft'>The numbers of the first table are exact: the referee "
        "enumerates the answers and asks the trained policy for the probability of "
        f"each ({', '.join(map(str, prompts))} prompts). ± is the sample standard "
        "deviation over seeds: it is the noise of training, not of measuring.</p>"
    )


def _summary_table(results: list[RunResult]) -> str:
    results = beside_untrained(results)
    table, groups = summarize(results), group_runs(results)
    keys = list(next(iter(table.values())))
    shown = [metric for metric in METRICS if metric.key in keys]
    head = ["run", "n", *(metric.title for metric in shown)]
    rows = [
        [name, str(len(groups[name])), *(str(row[key]) for key in keys)]
        for name, row in table.items()
    ]
    caption = (
        "At the end of training: mean ± standard deviation over n seeds. "
        "↑ higher is better, ↓ lower is better."
    )
    return html_table(caption, head, rows)


def _run_table(groups: dict[str, list[RunResult]]) -> str:
    runs = [result for group in groups.values() for result in group]
    shown = [
        metric
        for metric in METRICS
        if any(not math.isnan(metric_of(run, metric.key)) for run in runs)
    ]
    rows = [
        [run.name, *map(str, (run.seed, run.records[-1].step, run.records[-1].tokens))]
        + [format_number(metric_of(run, metric.key)) for metric in shown]
        for run in runs
    ]
    head = ["run", "seed", "steps", "tokens", *(metric.heading for metric in shown)]
    table = html_table("The last evaluation of each run.", head, rows)
    return f"<details><summary>{len(runs)} runs</summary>{table}</details>"


def _figures(groups: dict[str, list[RunResult]]) -> list[str]:
    """Curves, the accuracy-diversity picture, and the solution map."""
    averaged = {name: average_runs(group) for name, group in groups.items()}
    runs = itertools.chain(*groups.values())
    records = [record for rows in averaged.values() for record in rows]
    names = ", ".join(averaged)
    figures = [
        _figure(
            svg_from_records(records, CURVES, title="Training curves"),
            "Mean over seeds. Reward and entropy are of the sampled batches; the "
            "others are exact and drawn at evaluation steps.",
        ),
        _figure(
            draw_front(group_runs(beside_untrained(runs))),
            "What accuracy costs in diversity: up and to the right is better. Bars "
            "are one standard deviation over seeds.",
        ),
    ]
    if any(record.snapshot is not None for record in records):
        caption = (
            f"The whole distribution of {names} over the answers of one prompt, at "
            "the end of the first seed's run."
        )
        picture = svg_from_records(
            records, (), solution_map=True, title="Where the probability is"
        )
        figures.append(_figure(picture, caption))
    return figures


def _figure(picture: str, caption: str) -> str:
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"


def draw_front(groups: dict[str, list[RunResult]]) -> str:
    """Accuracy against effective answers, one mark a run name, as an SVG."""
    points = {
        name: (
            compute_spread(runs, "accuracy"),
            compute_spread(runs, "effective_answers"),
        )
        for name, runs in groups.items()
    }
    styles = run_styles([(name, runs[0].algorithm) for name, runs in groups.items()])
    box = Box(60.0, 24.0, 420.0, 300.0)
    x_range = _padded([accuracy for accuracy, _ in points.values()])
    y_range = _padded([answers for _, answers in points.values()])
    words = "; ".join(
        f"{name}: accuracy {right}, effective answers {answers}"
        for name, (right, answers) in points.items()
    )
    parts = [
        '<text x="20" y="14">effective answers</text>',
        draw_axes(box, x_range, y_range, "accuracy", False),
    ]

    def place(name: str) -> tuple[float, float]:
        accuracy, answers = points[name]
        return (
            box.left + _share(accuracy.mean, x_range) * box.width,
            box.bottom - _share(answers.mean, y_range) * box.height,
        )

    for family in join_dials(points):
        path = " ".join("{:.1f},{:.1f}".format(*place(name)) for name in family)
        parts.append(
            f'<polyline points="{path}" fill="none" opacity=".6" '
            f'stroke="{styles[family[0]].color}"/>'
        )
    for row, (name, (accuracy, answers)) in enumerate(points.items()):
        x, y = place(name)
        half_x = _bar(accuracy) / (x_range[1] - x_range[0]) * box.width
        half_y = _bar(answers) / (y_range[1] - y_range[0]) * box.height
        style = styles[name]
        parts.append(
            f'<path d="M{x - half_x:.1f} {y:.1f}h{2 * half_x:.1f}M{x:.1f} '
            f'{y - half_y:.1f}v{2 * half_y:.1f}" stroke="{style.color}"/>'
            f'<text x="{x:.1f}" y="{y + 5:.1f}" font-size="15" text-anchor="middle" '
            f'fill="{style.color}">{style.glyph}</text>'
            f'<text x="500" y="{40 + 22 * row}"><tspan fill="{style.color}">'
            f"{style.glyph}</tspan> {escape(name)}: {accuracy.mean:.3f}, "
            f"{answers.mean:.2f}</text>"
        )
    return svg(720, 360, f"Accuracy against effective answers. {words}", parts)


def _bar(spread: Spread) -> float:
    return 0.0 if math.isnan(spread.deviation) else spread.deviation


def _share(value: float, ends: tuple[float, float]) -> float:
    return (value - ends[0]) / (ends[1] - ends[0])


def _padded(spreads: Sequence[Spread]) -> tuple[float, float]:
    """An axis that holds all means and bars, with some air."""
    lows = [spread.mean - _bar(spread) for spread in spreads]
    highs = [spread.mean + _bar(spread) for spread in spreads]
    air = 0.08 * max(max(highs) - min(lows), 0.05)
    return min(lows) - air, max(highs) + air


def _settings(groups: dict[str, list[RunResult]]) -> str:
    """What all runs share, and what sets each name apart."""
    configs = {name: runs[0].config for name, runs in groups.items()}
    keys = list(dict.fromkeys(key for config in configs.values() for key in config))
    keys = [key for key in keys if key not in ("seed", "name")]
    rows = [[key, *(str(c.get(key, "–")) for c in configs.values())] for key in keys]
    shared = [row[:2] for row in rows if len(set(row[1:])) == 1]
    apart = [row for row in rows if len(set(row[1:])) > 1]
    parts = []
    if apart:
        parts.append(html_table("What differs.", ["setting", *configs], apart))
    table = html_table("The same in all runs.", ["setting", "value"], shared)
    parts.append(f"<details><summary>Shared settings</summary>{table}</details>")
    return "\n".join(parts)


def _environment_table(results: Sequence[RunResult]) -> str:
    """Versions, device and threads; several values where the runs differ."""
    facts: dict[str, list[str]] = {}
    for result in results:
        flat = dict(result.environment)
        flat |= flat.pop("versions", {})
        flat.pop("wall_seconds", None)
        for key, value in flat.items():
            values = facts.setdefault(key, [])
            if str(value) not in values:
                values.append(str(value))
    rows = [[key, ", ".join(values)] for key, values in facts.items()]
    return html_table("Versions and machine.", ["what", "value"], rows)


# -------------------------------------------------------------------- an evaluation

EXACT_HEAD = ("exact, from the list of answers", "policy", "perfect (p*)")
SAMPLED_HEAD = ("from samples", "policy", "its exact mean", "perfect sampler", "in sd")
UNLISTED_HEAD = ("from samples", "policy", "untrained")
BIN_HEAD = ("stated pass rate", "prompts", "stated", "exact")
NO_LIST = (
    "This task cannot list its answers: there are no exact figures, and what a perfect "
    "sampler would score is not known. Beside it stands what as many samples of the "
    "untrained model show. ± is the standard error over the prompts."
)
HOW_TO_READ = (
    "± after the policy is the standard error over the prompts; ± after the perfect "
    "sampler is how much its figure scatters from draw to draw. The last column is the "
    "distance of the two in units of that scatter: within 2 the sample does not show "
    "that the policy differs from the target."
)


@dataclass(frozen=True)
class Section:
    """A part of an evaluation: a table, words, or both."""

    title: str
    words: str = ""
    caption: str = "Mean over prompts."
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


def format_evaluation(evaluation: Evaluation) -> str:
    """An evaluation for the terminal: its tables as plain text."""
    parts = [_headline(evaluation)]
    for section in _sections(evaluation):
        parts += [text_table([section.head, *section.rows])] if section.rows else []
        parts += [section.words] if section.words else []
    return "\n\n".join(parts)


def render_evaluation(evaluation: Evaluation, *, command: str = "") -> str:
    """The same as a page that opens offline."""
    parts = [f"<p>{escape(_headline(evaluation))}</p>"]
    for section in _sections(evaluation):
        parts.append(f"<h2>{escape(section.title)}</h2>")
        if section.rows:
            parts.append(html_table(section.caption, section.head, section.rows))
        parts.append(f"<p class='soft'>{escape(section.words)}</p>")
    facts = [[key, str(value)] for key, value in evaluation.facts.items()]
    parts += ["<h2>Settings</h2>", html_table("This evaluation.", ("", ""), facts)]
    return html_page(f"Evaluation: {evaluation.facts['run']}", *parts, again=command)


def _sections(evaluation: Evaluation) -> list[Section]:
    exact = [
        [figure.title, _number(figure.value), _number(figure.perfect)]
        for figure in evaluation.exact
    ]
    how, head = (HOW_TO_READ, SAMPLED_HEAD) if exact else (NO_LIST, UNLISTED_HEAD)
    sampled = [_sampled_row(figure, bool(exact)) for figure in evaluation.sampled]
    found = [Section("From samples", how, head=head, rows=sampled)]
    if exact:
        found.insert(0, Section("Exact", head=EXACT_HEAD, rows=exact))
    if evaluation.log_z is not None:
        found.append(Section("log Z", _about_log_z(evaluation)))
    if evaluation.pass_rates:
        rows = [
            [f"{b.low:g} to {b.high:g}", str(b.count)]
            + [f"{rate:.3f}" for rate in (b.stated, b.observed)]
            for b in evaluation.pass_rates
        ]
        caption = "What log Z says about how hard the prompts are for π_ref."
        found.append(Section("Pass rates", "", caption, BIN_HEAD, rows))
    return found


def _sampled_row(figure: SampledFigure, listed: bool) -> list[str]:
    row = [figure.title, _with_error(figure.value, figure.error)]
    if not listed:
        return [*row, _with_error(figure.untrained, figure.untrained_error)]
    return [
        *row,
        format_number(figure.exact),
        _with_error(figure.perfect, figure.perfect_spread),
        _distance(figure),
    ]


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


def _distance(figure: SampledFigure) -> str:
    """How far from perfect, in standard deviations of a perfect sampler."""
    gap = figure.value - figure.perfect
    if abs(gap) < 1e-9:
        return "0"
    if math.isnan(gap) or not figure.perfect_spread > 1e-9:
        return "–"
    return f"{gap / figure.perfect_spread:+.1f}"


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

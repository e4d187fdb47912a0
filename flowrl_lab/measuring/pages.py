"""One self-contained HTML page about a set of runs.

The page opens offline in any browser: styles and pictures (SVG) are inside it, it
has no script and asks for nothing from outside.  It follows the reader's light or
dark theme, and every picture carries its numbers as alt text.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from flowrl_lab._files import write_atomically
from flowrl_lab._validation import bad_input
from flowrl_lab.measuring.folder import RunResult
from flowrl_lab.measuring.tables import (
    METRICS,
    Spread,
    average_runs,
    compute_spread,
    group_runs,
    metric_of,
    summarize,
)
from flowrl_lab.plots.figures import svg_from_records
from flowrl_lab.plots.panels import ALWAYS_LOG, format_number, run_styles
from flowrl_lab.plots.placement import Box
from flowrl_lab.plots.static import INK, draw_axes

__all__ = [
    "html_page",
    "html_table",
    "render_report",
    "render_study",
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
        path: where to write; its folder is made if need be.
        title: the page's headline.
        command: the command that makes these runs again; empty leaves it out.
        overwrite: replace a file that is already there.

    Returns:
        The path.

    Raises:
        ValueError: no results, or the file exists and ``overwrite`` is False.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise bad_input(
            "path",
            f"is {path}, which already exists",
            "a new file",
            "choose another name, or pass overwrite=True",
        )
    page = render_report(results, title=title, command=command)
    write_atomically(path, page.encode())
    return path


def render_report(
    results: Sequence[RunResult], *, title: str, command: str = ""
) -> str:
    """The page that ``write_report`` writes.

    Raises:
        ValueError: ``results`` is empty.
    """
    results = list(results)
    if not results:
        raise bad_input("results", "is empty", "at least one run", "train one first")
    parts = [f"<h1>{escape(title)}</h1>", *_about(results), _again(command)]
    return html_page(title, "\n".join(part for part in parts if part))


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
    parts = [f"<h1>{escape(title)}</h1>", f"<ul>{links}</ul>"]
    for name, runs in studies.items():
        parts.append(f'<h1 id="{quote(name)}">{escape(name)}</h1>')
        parts += _about(list(runs))
    return html_page(title, "\n".join([*parts, _again(command)]))


def _about(results: list[RunResult]) -> list[str]:
    """Everything there is to say about one set of runs."""
    groups = group_runs(results)
    return [
        _overview(results, groups),
        "<h2>Results</h2>",
        _summary_table(results, groups),
        "<h2>While training</h2>",
        *_figures(groups),
        "<h2>Every run</h2>",
        _run_table(groups),
        "<h2>Settings</h2>",
        _settings(groups),
        "<h2>Where it ran</h2>",
        _environment_table(results),
    ]


def html_page(title: str, body: str) -> str:
    """A whole page around ``body``: self-contained, in the reader's theme."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
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
        f"{escape(', '.join(devices))}; wall time {_duration(total)}, all runs "
        "added up, evaluation included.</p>"
        "<p class='soft'>The numbers of the first table are exact: the referee "
        "enumerates the answers and asks the trained policy for the probability of "
        f"each ({', '.join(map(str, prompts))} prompts). ± is the sample standard "
        "deviation over seeds: it is the noise of training, not of measuring.</p>"
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def html_table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first cell of a row is its heading."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in others)
        + "</tr>\n"
        for first, *others in rows
    )
    return (
        f'<div class="wide"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def _summary_table(results: list[RunResult], groups: dict) -> str:
    table = summarize(results)
    keys = list(next(iter(table.values())))
    shown = [metric for metric in METRICS if metric.key in keys]
    head = ["run", "n", *(f"{m.heading} {m.better}".strip() for m in shown)]
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
    averaged = {name: average_runs(runs) for name, runs in groups.items()}
    records = [record for rows in averaged.values() for record in rows]
    names = ", ".join(averaged)
    figures = [
        _figure(
            svg_from_records(records, CURVES, title="Training curves"),
            "Mean over seeds. Reward and entropy are of the sampled batches; the "
            "others are exact and drawn at evaluation steps.",
        ),
        _figure(
            draw_front(groups),
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
    label = quoteattr(f"Accuracy against effective answers. {words}")
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="720" height="360" '
        f'viewBox="0 0 720 360" role="img" aria-label={label} fill="{INK}" '
        'font-family="system-ui,sans-serif" font-size="12">',
        '<text x="20" y="14">effective answers</text>',
        draw_axes(box, x_range, y_range, "accuracy", False),
    ]

    def place(name: str) -> tuple[float, float]:
        accuracy, answers = points[name]
        return (
            box.left + _share(accuracy.mean, x_range) * box.width,
            box.bottom - _share(answers.mean, y_range) * box.height,
        )

    for family in _families(points):
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
    return "\n".join([*parts, "</svg>"])


def _families(names: Iterable[str]) -> list[list[str]]:
    """Names that differ in one number only, such as β, in that number's order."""
    families: dict[str, list[tuple[float, str]]] = {}
    for name in names:
        stem, found, number = name.rpartition("=")
        if found:
            with contextlib.suppress(ValueError):
                families.setdefault(stem, []).append((float(number), name))
    sorted_families = [sorted(family) for family in families.values()]
    return [[name for _, name in f] for f in sorted_families if len(f) > 1]


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


def _again(command: str) -> str:
    if not command:
        return ""
    return f"<h2>Again</h2>\n<pre><code>{escape(command)}</code></pre>"

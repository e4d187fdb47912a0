"""The same figures as small SVG pictures, with no drawing library.

Needed where scripts do not run: exported offline HTML, code hosts, a notebook
opened without plotly.  Text stays text (readable, searchable), colours suit a light
and a dark page, and the whole figure carries its numbers as alt text.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from flowrl_lab.plots.panels import (
    CellsPanel,
    LinePanel,
    Page,
    RunStyle,
    Series,
    StatesPanel,
    describe_page,
    format_number,
)
from flowrl_lab.plots.placement import (
    LEGEND_LINE,
    MARKERS_SHOWN,
    TEXT_LINE,
    Box,
    Placement,
    end_labels,
    legend_rows,
    mark_labels,
    point_labels,
    shown_names,
    title_lines,
)

__all__ = ["VIRIDIS", "draw_svg", "svg", "viridis"]

INK = "currentColor"
# JupyterLab names its own colour where the picture is part of the page; as an image
# it sees whether the page is light or dark.  Each has a contrast of 4.5 or more.
LIGHT_INK, DARK_INK = "#57606a", "#a9b3be"
COLOR = "color:var(--jp-content-font-color1,{})"
THEME = f".flowrl{{{COLOR.format(LIGHT_INK)}}}"
THEME += f"@media(prefers-color-scheme:dark){{.flowrl{{{COLOR.format(DARK_INK)}}}}}"
VIRIDIS = ("#440154", "#482878", "#3e4989", "#31688e", "#26828e")
VIRIDIS += ("#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725")
DASHES = {"solid": "", "dash": "8 5", "dot": "2 3", "dashdot": "8 4 2 4"}
DASHES |= {"longdash": "13 5", "longdashdot": "13 4 2 4"}
TITLED_CELLS = 128
COLOUR_LEVELS = 32
MOST_X_NAMED, MOST_X_DOUBLED = 6, 9
LONGEST_X, LETTER = 5, 0.012  # characters of a named x; a letter's share of the axis
DOT, FAINT = 5, 0.55  # of a seed: how wide, in pixels, and how opaque
LARGE, SMALL = 9, 5  # markers, where some are to stand out
LIGHT_CELL = 0.45  # of the scale: from here on black is read better than white


def viridis(fraction: float) -> str:
    """The viridis colour at 0 (dark) … 1 (bright), as ``#rrggbb``."""
    place = min(max(float(fraction), 0.0), 1.0) * (len(VIRIDIS) - 1)
    index = min(int(place), len(VIRIDIS) - 2)
    mix = place - index
    parts = []
    for at in (1, 3, 5):
        low = int(VIRIDIS[index][at : at + 2], 16)
        high = int(VIRIDIS[index + 1][at : at + 2], 16)
        parts.append(f"{round(low + mix * (high - low)):02x}")
    return "#" + "".join(parts)


def draw_svg(page: Page, placement: Placement) -> str:
    """Draw a page as a standalone SVG.

    Args:
        page: what is shown.
        placement: where each part goes.

    Returns:
        The SVG; ``role="img"`` and an ``aria-label`` say the end values in words.
    """
    parts = [
        *text_lines(2.0, placement.title_y + 16, placement.title, 15, 20),
        text(2.0, placement.progress_y + 14, page.progress),
        draw_legend(page, placement) if page.curves else "",
        *text_lines(2.0, placement.map_title_y + 14, placement.map_title, 13, 18),
    ]
    parts += [draw_curves(panel, box) for panel, box in placement.curves]
    for panel, box in placement.maps:
        draw = draw_cells if isinstance(panel, CellsPanel) else draw_states
        parts.append(draw(panel, box))
    if placement.scale:
        parts.append(draw_scale(page.maps[0].floor, placement))
    return svg(placement.width, placement.height, describe_page(page), parts)


def svg(width: int | float, height: int | float, alt: str, parts: Iterable[str]) -> str:
    """A picture of its parts, with what it says in words; empty parts are left out."""
    size = f'width="{round(width)}" height="{round(height)}"'
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} '
        f'viewBox="0 0 {round(width)} {round(height)}" role="img" '
        f'aria-label={quoteattr(alt)} font-family="system-ui,sans-serif" '
        f'font-size="12" class="flowrl" color="{LIGHT_INK}" fill="{INK}" '
        f'style="max-width:100%;height:auto"><style>{THEME}</style>'
    )
    return "\n".join([head, *filter(None, parts), "</svg>"])


def num(value: int | float) -> str:
    """A coordinate with one decimal, without a trailing zero."""
    return f"{value:.1f}".removesuffix(".0")


def text(
    x: int | float,
    y: int | float,
    content: str,
    size: int = 12,
    *,
    anchor: str = "start",
    bold: bool = False,
    color: str = "",
) -> str:
    """A line of text with its baseline at y; nothing for an empty one."""
    if not content:
        return ""
    more = f' font-size="{size}"' if size != 12 else ""
    more += f' text-anchor="{anchor}"' if anchor != "start" else ""
    more += ' font-weight="600"' if bold else ""
    more += f' fill="{color}"' if color else ""
    return f'<text x="{num(x)}" y="{num(y)}"{more}>{escape(content)}</text>'


def stroke(style: RunStyle, *, dashed: bool = True) -> str:
    """Attributes of a run's line."""
    dash = DASHES[style.dash] if dashed else ""
    more = f' stroke-dasharray="{dash}"' if dash else ""
    return f'fill="none" stroke="{style.color}" stroke-width="2"{more}'


def text_lines(
    x: int | float, y: int | float, lines: Sequence[str], size: int, step: int
) -> list[str]:
    """Bold lines below each other, the first with its baseline at y."""
    return [
        text(x, y + step * number, line, size, bold=True)
        for number, line in enumerate(lines)
    ]


def draw_legend(page: Page, placement: Placement) -> str:
    """Line, marker and name of every run, in as many rows as they need."""
    parts, y = [], placement.legend_y + 11
    for row in legend_rows(page.legend, placement.width):
        for x, name, style in row:
            if style.joined:
                parts.append(f'<path d="M{num(x)} {num(y)}h36" {stroke(style)}/>')
            parts.append(
                text(x + 18, y + 4, style.glyph, anchor="middle", color=style.color)
            )
            parts.append(text(x + 42, y + 4, name))
        y += LEGEND_LINE
    return "".join(parts)


def linear_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers inside a range, at most about ``most``."""
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 5, 10):
        if (high - low) / (step * factor) <= most:
            break
    step *= factor
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Values to label on a log axis whose range is given in log10 units.

    Powers of ten, at most about six; 1, 2 and 5 times these on a short axis.
    """
    powers = list(range(math.ceil(low), math.floor(high) + 1))
    if len(powers) > 2:
        return [10.0**p for p in powers[:: -(-len(powers) // 6)]]
    around = range(math.floor(low), math.ceil(high) + 1)
    values = [float(f"{factor}e{p}") for p in around for factor in (1, 2, 5)]
    return [value for value in values if low <= math.log10(value) <= high]


def log_x_ticks(panel: LinePanel) -> dict[float, str]:
    """What a log axis to the right says, and where: the points' own x, if legible.

    Places are in log10 units, like the panel's range.
    """
    every = np.unique(np.concatenate([curve.x for curve in panel.series]))
    few = MOST_X_NAMED
    if np.allclose(every[1:], 2 * every[:-1]):  # evenly spread, and short to name
        few = MOST_X_DOUBLED
    low, high = panel.x_range
    long = max(len(f"{value:g}") for value in every)
    room = np.diff(np.log10(every)).min(initial=high - low) / (high - low)
    own = len(every) <= few and long <= LONGEST_X and room > LETTER * long
    values = every if own else log_ticks(low, high)
    return {math.log10(value): f"{value:g}" for value in values}


def draw_axes(
    box: Box,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    x_title: str,
    log_y: bool,
    *,
    named: Mapping[int | float, str] | None = None,
    across: bool = True,
) -> str:
    """Grid lines, tick labels and the name of the x axis.

    ``named``: the x axis' own ticks; ``across``: with a grid line at each of them.
    """
    grid, labels = [], []
    ticks = named or {tick: f"{tick:g}" for tick in linear_ticks(*x_range)}
    for tick, name in ticks.items():
        x = box.left + (tick - x_range[0]) / (x_range[1] - x_range[0]) * box.width
        if across:
            grid.append(f"M{num(x)} {num(box.top)}v{num(box.height)}")
        labels.append(text(x, box.bottom + 14, name, anchor="middle"))
    for tick in log_ticks(*y_range) if log_y else linear_ticks(*y_range):
        rise = (math.log10(tick) if log_y else tick) - y_range[0]
        y = box.bottom - rise / (y_range[1] - y_range[0]) * box.height
        grid.append(f"M{num(box.left)} {num(y)}h{num(box.width)}")
        name = f"{tick if log_y else round(tick, 10):g}"
        labels.append(text(box.left - 6, y + 4, name, anchor="end"))
    middle = box.left + box.width / 2
    labels.append(text(middle, box.bottom + 28, x_title, anchor="middle"))
    frame = f"M{num(box.left)} {num(box.top)}v{num(box.height)}h{num(box.width)}"
    return (
        f'<path d="{"".join(grid)}" fill="none" stroke="{INK}" stroke-opacity=".25"/>'
        f'<path d="{frame}" fill="none" stroke="{INK}" stroke-opacity=".6"/>'
        + "".join(labels)
    )


def curve_points(curve: Series, panel: LinePanel, box: Box) -> list[list[tuple]]:
    """The curve in pixels, split where a value is missing."""
    pieces: list[list[tuple]] = [[]]
    floor, below = 10.0 ** panel.y_range[0] if panel.log_y else -np.inf, False
    for x, y in zip(curve.x, curve.y, strict=True):
        if not np.isfinite(y) or (panel.log_y and y <= 0) or (below and y < floor):
            pieces.append([])
            continue
        below = y < floor
        right = box.left + panel.place_of(x) * box.width
        pieces[-1].append((right, box.bottom - panel.height_of(y) * box.height))
    return [piece for piece in pieces if piece]


def line_path(points: list[tuple]) -> str:
    """An SVG path through points."""
    return "M" + "L".join(f"{num(x)} {num(y)}" for x, y in points)


def markers(curve: Series, points: list[tuple]) -> list[tuple]:
    """Which points wear a marker: (its place, the marker's size)."""
    shown = np.linspace(0, len(points) - 1, min(MARKERS_SHOWN, len(points)))
    if curve.marked or (curve.worded and len(points) <= MARKERS_SHOWN):
        shown = range(len(points))
    elif len(points) == len(curve.labels) and curve.worded:
        shown = curve.worded
    sizes = [12] * len(points)
    if len(curve.large) == len(points):
        sizes = [round(1.6 * (LARGE if big else SMALL)) for big in curve.large]
    return [(points[i], sizes[i]) for i in map(round, shown)]


def draw_curves(panel: LinePanel, box: Box) -> str:
    """One metric: its curves, markers, and the last values at the right."""
    ranges, named = (panel.x_range, panel.y_range), None
    if panel.log_x:
        named = log_x_ticks(panel)
    if panel.x_names:
        named = dict(enumerate(panel.x_names))
    parts = [
        *lines_above(panel, box.left - 40, box.top - 10),
        draw_axes(box, *ranges, panel.x_title, panel.log_y, named=named),
    ]
    for curve in panel.series:
        pieces = curve_points(curve, panel, box)
        if not pieces:
            continue
        style = curve.style
        if curve.dots:
            parts += [
                f'<circle cx="{num(x)}" cy="{num(y)}" r="{DOT / 2}" '
                f'fill="{style.color}" fill-opacity="{FAINT}"/>'
                for piece in pieces
                for x, y in piece
            ]
            continue
        if style.joined:
            path = "".join(line_path(piece) for piece in pieces)
            parts.append(f'<path d="{path}" {stroke(style)}/>')
        points = [point for piece in pieces for point in piece]
        parts += [
            text(x, y + n / 3, style.glyph, n, anchor="middle", color=style.color)
            for (x, y), n in markers(curve, points)
            if y < box.bottom  # there it leaves the frame
        ]
    parts += [
        text(*label.corner(), label.words, anchor=label.anchor, bold=True)
        for label in point_labels(panel, box)
    ]
    for mark in mark_labels(panel, box):
        line = f"M{num(box.left)} {num(mark.line_y)}h{num(box.width)}"
        parts.append(f'<path d="{line}" stroke="{INK}" stroke-dasharray="5 4"/>')
        x, anchor = (
            (box.right - 6, "end") if mark.rightward else (box.left + 6, "start")
        )
        parts.append(text(x, mark.text_y, mark.words, anchor=anchor))
    for label in end_labels(panel, box):
        words, line = label.reach
        if line:
            path = f"M{num(label.x)} {num(label.y - label.down)}l{num(line)}"
            ink = f'stroke="{label.style.color}" fill="none"'
            parts.append(f'<path d="{path} {num(label.down)}" {ink}/>')
        anchor = "end" if label.leftward else "start"
        number = format_number(label.value)
        parts.append(text(label.x + words, label.y + 4, number, anchor=anchor))
    return "".join(parts)


def lines_above(
    panel: LinePanel | StatesPanel, x: int | float, y: int | float
) -> list[str]:
    """What stands above a panel, the last line with its baseline at y."""
    lines = title_lines(panel)
    first = y - TEXT_LINE * (len(lines) - 1)
    parts = []
    if isinstance(panel, StatesPanel):  # in plotly's figure a part of the line
        parts.append(text(x, first, "━", color=panel.style.color))
    for number, line in enumerate(lines):
        right = x + 16 * bool(parts and not number)
        parts.append(text(right, first + TEXT_LINE * number, line))
    return parts


def draw_states(panel: StatesPanel, box: Box) -> str:
    """One distribution over states, as steps or bars over the grey target.

    Many narrow bars lie below it: it marks a height for each.
    """
    low, high = panel.x_range
    color = panel.style.color
    steps = steps_path if not panel.as_bars else bars_path

    def path(values: np.ndarray, share: float) -> str:
        heights = np.clip(np.nan_to_num(values) / panel.y_max, 0, 1) * box.height
        x = box.left + (panel.states - low) / (high - low) * box.width
        return steps(x, heights, box, share * box.width / (high - low))

    target, probs = path(panel.target, 0.9), path(panel.probs, 0.45)
    area = f"{target}H{num(box.left)}Z"
    drawn = f'<path d="{probs}" {stroke(panel.style, dashed=False)}/>'
    drawn = drawn.replace(
        'fill="none"', f'fill="{color}" fill-opacity="{panel.opacity}"'
    )
    if panel.as_bars:
        area, drawn = target, f'<path d="{probs}" fill="{color}"/>'
    edge = 1 if panel.as_bars else 0.6
    goal = (
        f'<path d="{area}" fill-opacity=".25" stroke="{INK}" stroke-opacity="{edge}"/>'
    )
    if panel.marks_target:
        steps = marks_path
        goal = f'<path d="{path(panel.target, 0.9)}" stroke="{INK}" stroke-width="2"/>'
    return "".join(
        [
            *lines_above(panel, box.left - 36, box.top - 12),
            draw_axes(
                *(box, panel.x_range, (0.0, panel.y_max), panel.x_title, False),
                named=shown_names(panel.names),
                across=not panel.names,
            ),
            *((drawn, goal) if panel.marks_target else (goal, drawn)),
        ]
    )


def steps_path(x: np.ndarray, heights: np.ndarray, box: Box, _wide: float) -> str:
    """A staircase through the heights, which lets one high state stay one bar."""
    edges = np.clip(
        np.append(x, 2 * x[-1] - x[-2]) - (x[1] - x[0]) / 2, box.left, box.right
    )
    start = f"M{num(edges[0])} {num(box.bottom)}"
    return (
        start
        + "".join(
            f"V{num(box.bottom - height)}H{num(edge)}"
            for height, edge in zip(heights, edges[1:], strict=True)
        )
        + f"V{num(box.bottom)}"
    )


def bars_path(x: np.ndarray, heights: np.ndarray, box: Box, wide: float) -> str:
    """A bar ``wide`` pixels across for every height."""
    return "".join(
        f"M{num(middle - wide / 2)} {num(box.bottom)}v{num(-height)}h{num(wide)}"
        f"v{num(height)}z"
        for middle, height in zip(x, heights, strict=True)
    )


def marks_path(x: np.ndarray, heights: np.ndarray, box: Box, wide: float) -> str:
    """A short level line, ``wide`` pixels long, at every height."""
    return "".join(
        f"M{num(middle - wide / 2)} {num(box.bottom - height)}h{num(wide)}"
        for middle, height in zip(x, heights, strict=True)
    )


def draw_cells(panel: CellsPanel, box: Box) -> str:
    """One distribution over answers as a grid of cells."""
    parts = [
        text(box.left + 14 * bool(panel.style), box.top - 28, panel.run, bold=True),
        text(box.left, box.top - 10, panel.title),
        text(box.left, box.bottom + 13, panel.note),
    ]
    if panel.style:
        color = panel.style.color
        parts.append(text(box.left, box.top - 28, panel.style.glyph, color=color))
    rows, columns = panel.grid(box.width, box.height)
    wide, high = box.width / columns, box.height / rows
    lights = (panel.levels - math.log10(panel.floor)) / -math.log10(panel.floor)
    gap = panel.gap(columns)
    corners = [
        f"M{num(box.left + (i % columns) * wide)} {num(box.top + i // columns * high)}"
        for i in range(len(lights))
    ]
    if len(lights) <= TITLED_CELLS:
        cell = f"h{num(wide - gap)}v{num(high - gap)}h-{num(wide - gap)}z"
        parts += [
            f'<path d="{corner}{cell}" fill="{viridis(light)}"><title>'
            f"{escape(name)}: {prob:.4g}</title></path>"
            for corner, light, name, prob in zip(
                corners, lights, panel.labels, panel.probs, strict=True
            )
        ]
        return "".join(parts) + draw_names(panel, lights, box)
    # many cells: one path for each of a few colours, and one piece for touching
    # equal neighbours, keep the picture small
    levels = [round(light * COLOUR_LEVELS) for light in lights]
    buckets: dict[int, list[str]] = {}
    for start, end in equal_runs(levels, columns, touching=not gap):
        across = num((end - start) * wide - gap)
        piece = f"{corners[start]}h{across}v{num(high - gap)}h-{across}z"
        buckets.setdefault(levels[start], []).append(piece)
    # crisp edges: without them hairlines shine through between touching cells
    crisp = "" if gap else ' shape-rendering="crispEdges"'
    parts += [
        f'<path d="{"".join(paths)}" fill="{viridis(level / COLOUR_LEVELS)}"{crisp}/>'
        for level, paths in buckets.items()
    ]
    return "".join(parts)


def equal_runs(
    levels: list[int], columns: int, *, touching: bool
) -> list[tuple[int, int]]:
    """Start and end of neighbours in one row with one level; else of single cells."""
    runs, start = [], 0
    for place in range(1, len(levels) + 1):
        ended = place == len(levels) or levels[place] != levels[start]
        if ended or place % columns == 0 or not touching:
            runs.append((start, place))
            start = place
    return runs


def draw_names(panel: CellsPanel, lights: np.ndarray, box: Box) -> str:
    """Each answer in its cell, black on bright ones; nothing where cells are small."""
    if not panel.names_fit(box.width, box.height):
        return ""
    rows, columns = panel.grid(box.width, box.height)
    wide, high = box.width / columns, box.height / rows
    return "".join(
        text(
            box.left + (i % columns + 0.5) * wide - 1,
            box.top + (i // columns + 0.5) * high + 3,
            name,
            anchor="middle",
            color="#000" if lights[i] > LIGHT_CELL else "#fff",
        )
        for i, name in enumerate(panel.labels)
    )


def draw_scale(floor: float, placement: Placement) -> str:
    """The colour scale of the cells."""
    box = placement.scale
    steps = 24
    wide = box.width / steps
    parts = [
        f'<path d="M{num(box.left + i * wide)} {num(box.top)}h{num(wide + 0.5)}'
        f'v{num(box.height)}h-{num(wide + 0.5)}z" fill="{viridis(i / (steps - 1))}"/>'
        for i in range(steps)
    ]
    low = math.log10(floor)
    for mark in range(math.ceil(low - 1e-9), 1):
        x = box.left + (mark - low) / -low * box.width
        parts.append(text(x, box.bottom + 14, f"{10.0**mark:g}", anchor="middle"))
    y = placement.remark_y + 14
    for number, line in enumerate(placement.remark):
        parts.append(text(placement.remark_x, y + TEXT_LINE * number, line))
    return "".join(parts)

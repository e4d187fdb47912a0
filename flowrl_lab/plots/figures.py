"""Plotly figures of training records, as plain dictionaries.

A figure here is the ``{"data": [...], "layout": {...}}`` that plotly.js reads, so
building one costs milliseconds and does not import plotly.  Where a figure object
is wanted, ``plotly.graph_objects.Figure(figure_from_records(...))`` makes one.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from functools import partial
from html import escape

import numpy as np

from flowrl_lab._files import plain_values
from flowrl_lab.plots.panels import (
    CellsPanel,
    History,
    LinePanel,
    Page,
    RunStyle,
    Series,
    StatesPanel,
    build_page,
    check_metrics,
    describe_page,
    format_number,
    tabulate_page,
)
from flowrl_lab.plots.placement import (
    WIDTH,
    Box,
    Placement,
    end_labels,
    mark_labels,
    place_page,
    shown_names,
)
from flowrl_lab.plots.static import draw_svg, log_ticks
from flowrl_lab.types import StepRecord

__all__ = [
    "bundle_from_page",
    "figure_from_records",
    "plotly_figure",
    "svg_from_records",
]

PLOTLY_MIME = "application/vnd.plotly.v1+json"
# A figure's text has one colour for light and dark pages, where nobody can say which
# it is on: 4.6 on white.  Where a live plot or an explorer has been shown, THEME puts
# the page's own colour in its place.
INK = "#757575"
THEME = (
    '.js-plotly-plot:has(.main-svg[style*="rgba(0, 0, 0, 0)"]) '
    "text:not(.hoverlayer *,.heatmap-label *)"  # a cell's name has its cell's contrast
    "{fill:var(--jp-content-font-color1,#757575)!important}"
)
GRID, GREY = "rgba(128,128,128,.3)", "rgba(128,128,128,.35)"
to_plain = partial(plain_values, infinite=lambda _value: None)  # a gap


def figure_from_records(
    records: Iterable[StepRecord],
    metrics: Sequence[str] = ("reward",),
    *,
    width: int | float = WIDTH,
    **options,
) -> dict:
    """The figure that ``LivePlot`` ends with, from finished records.

    Args:
        records: of one run or several, in any order between runs.
        metrics: fields of ``StepRecord`` or ``ExactReport``, or ``"pass@K"``; one
            panel each.
        width: pixels.
        options: of ``panels.build_page``: ``title``, ``solution_map`` (add the latest
            snapshot of each run), ``target_label``, ``log_y``.

    Returns:
        ``{"data", "layout"}`` for plotly, with numpy arrays in it.

    Raises:
        ValueError: for an unknown metric.
    """
    page = page_from_records(records, metrics, **options)
    return plotly_figure(page, place_page(page, width=width))


def svg_from_records(
    records: Iterable[StepRecord],
    metrics: Sequence[str] = ("reward",),
    *,
    width: int | float = WIDTH,
    **options,
) -> str:
    """The same figure as a standalone SVG with alt text; see ``figure_from_records``.

    Raises:
        ValueError: for an unknown metric.
    """
    page = page_from_records(records, metrics, **options)
    return draw_svg(page, place_page(page, width=width))


def page_from_records(
    records: Iterable[StepRecord],
    metrics: Sequence[str],
    *,
    solution_map: bool = False,
    **options,
) -> Page:
    """Check the names and lay out what finished records show."""
    metrics = check_metrics(metrics, solution_map=solution_map)
    history = History.of(records, metrics)
    return build_page(history, solution_map=solution_map, **options)


def bundle_from_page(page: Page, placement: Placement) -> dict:
    """One figure in every form a reader may need.

    Returns:
        mime type -> content: plotly JSON for JupyterLab, SVG for front ends without
        plotly, the same as an image with alt text (which nbconvert takes; it would
        drop the alt text of the SVG), and a plain table for everything else.
    """
    svg = draw_svg(page, placement)
    return {
        PLOTLY_MIME: to_plain(plotly_figure(page, placement)),
        "text/html": svg_image(svg, describe_page(page)),
        "image/svg+xml": svg,
        "text/plain": tabulate_page(page) + "\n" + describe_page(page),
    }


def svg_image(svg: str, alt: str) -> str:
    """An SVG as an HTML image that needs no other file."""
    data = b64encode(svg.encode()).decode()
    source = f"data:image/svg+xml;base64,{data}"
    return f'<img alt="{escape(alt)}" src="{source}" style="max-width:100%">'


def plotly_figure(page: Page, placement: Placement) -> dict:
    """Draw a page for plotly.js.

    Everything that changes while training runs is in the traces' data, the
    annotations and the axis ranges; the number of traces depends only on the runs.
    """
    # a template of our own, or plotly would add its light background to widgets
    clear = {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)"}
    layout = {
        "template": {"layout": clear},
        **clear,
        "width": placement.width,
        "height": round(placement.height),
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
        "font": {"color": INK, "size": 12},
        "hoverlabel": {"font": {"size": 12}},
        "barmode": "overlay",
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": INK},
        "showlegend": True,
        "legend": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 1 - placement.legend_y / placement.height,
            "yanchor": "top",
            "bgcolor": "rgba(0,0,0,0)",
            "itemwidth": 40,
        },
        "annotations": annotations(page, placement),
        "shapes": mark_lines(placement),
    }
    data: list[dict] = []
    places = [*placement.curves, *placement.maps]
    for number, (panel, box) in enumerate(places, start=1):
        suffix = "" if number == 1 else str(number)
        axes = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
        add_axes(layout, suffix, panel, box, placement)
        data.extend({**trace, **axes} for trace in traces(panel, box))
    if page.curves:
        data[:0] = [legend_entry(name, style) for name, style in page.legend]
    if placement.scale:
        layout["coloraxis"] = color_scale(page.maps[0].floor, placement)
    return {"data": data, "layout": layout}


def add_axes(
    layout: dict,
    suffix: str,
    panel: LinePanel | StatesPanel | CellsPanel,
    box: Box,
    placement: Placement,
) -> None:
    """Put a pair of axes on a box, given in pixels."""
    width, height = placement.width, placement.height
    ends_x = [box.left / width, box.right / width]
    ends_y = [1 - box.bottom / height, 1 - box.top / height]
    x = {"domain": ends_x, "anchor": f"y{suffix}", "gridcolor": GRID, "nticks": 6}
    y = {"domain": ends_y, "anchor": f"x{suffix}", "gridcolor": GRID, "nticks": 5}
    for axis in (x, y):
        axis.update(zeroline=False, linecolor=GRID, showline=True)
    if isinstance(panel, CellsPanel):
        rows, columns = panel.grid(box.width, box.height)
        x.update(visible=False, range=[-0.5, columns - 0.5])
        y.update(visible=False, range=[rows - 0.5, -0.5])
    elif isinstance(panel, StatesPanel):
        x.update(range=list(panel.x_range))
        title = escape(panel.x_title)
        x.update(title={"text": title, "standoff": 2, "font": {"size": 12}})
        if panel.names:
            named = shown_names(panel.names)
            names = [escape(name) for name in named.values()]
            x.update(tickvals=list(named), ticktext=names, showgrid=False)
        y.update(range=[0.0, panel.y_max])
    else:
        x.update(range=list(panel.x_range))
        title = escape(panel.x_title)
        x.update(title={"text": title, "standoff": 2, "font": {"size": 12}})
        y.update(range=list(panel.y_range))
        if panel.log_y:
            ticks = log_ticks(*panel.y_range)
            y.update(type="log", tickvals=ticks, ticktext=[f"{t:g}" for t in ticks])
    layout[f"xaxis{suffix}"], layout[f"yaxis{suffix}"] = x, y


def traces(panel: LinePanel | StatesPanel | CellsPanel, box: Box) -> list[dict]:
    """A panel's traces, without their axes."""
    if isinstance(panel, CellsPanel):
        return [cells_trace(panel, box)]
    if isinstance(panel, StatesPanel):
        return states_traces(panel)
    return [
        {
            "type": "scatter",
            "mode": "lines+markers" + ("+text" if curve.labels else ""),
            **(
                {"text": list(curve.labels), "textposition": "top right"}
                if curve.labels
                else {}
            ),
            "name": curve.run,
            "legendgroup": curve.run,
            "showlegend": False,
            # plotly drops a trace of length 0, and with it the trace's number
            "x": curve.x if len(curve.x) else np.array([np.nan]),
            "y": heights(panel, curve) if len(curve.y) else np.array([np.nan]),
            "line": {"color": curve.style.color, "dash": curve.style.dash, "width": 2},
            "marker": {"symbol": curve.style.marker, "size": 7, "maxdisplayed": 8},
            "hovertemplate": f"{escape(curve.run)}, {escape(panel.x_title)} "
            "%{x}: %{y:.4g}<extra></extra>",
        }
        for curve in panel.series
    ]


def heights(panel: LinePanel, curve: Series) -> np.ndarray:
    """What is drawn: on a log axis 0 is a gap, not a fall through the floor."""
    return np.where(curve.y > 0, curve.y, np.nan) if panel.log_y else curve.y


def legend_entry(name: str, style: RunStyle) -> dict:
    """A trace that draws nothing and stands in the legend for all of a run."""
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "legendgroup": name,
        "showlegend": True,
        "x": np.array([np.nan]),
        "y": np.array([np.nan]),
        "line": {"color": style.color, "dash": style.dash, "width": 2},
        "marker": {"symbol": style.marker, "size": 8},
    }


def states_traces(panel: StatesPanel) -> list[dict]:
    """The target in grey, the run's distribution over it: staircases, or bars."""
    names = panel.names or tuple(f"{state:g}" for state in panel.states)
    kind: dict = {"type": "scatter", "mode": "lines"}
    if panel.as_bars:
        kind = {"type": "bar"}
    drawn = []
    for name, values, color in (
        ("target", panel.target, INK),
        (panel.run, panel.probs, panel.style.color),
    ):
        trace = {
            **kind,
            "name": name,
            "showlegend": False,
            "x": panel.states,
            "y": values,
            "text": [escape(one) for one in names],
            "hovertemplate": f"{escape(name)}, {escape(panel.x_title)} %{{text}}: "
            "%{y:.4g}<extra></extra>",
        }
        if name != "target":
            trace["legendgroup"] = panel.run
        drawn.append(trace | style_states(panel, color, behind=name == "target"))
    return drawn


def style_states(panel: StatesPanel, color: str, *, behind: bool) -> dict:
    """How the target (``behind``) or a run is drawn."""
    if panel.as_bars:
        marker = {"color": GREY if behind else color}
        return {
            "marker": marker,
            "width": 0.9 if behind else 0.45,
            "textposition": "none",
        }
    # steps, filled: a single high state is one bar, not the two flanks of a triangle
    line = {"color": color, "width": 1 if behind else 1.5, "shape": "hvh"}
    tint = GREY if behind else faded(color)
    return {"line": line, "fill": "tozeroy", "fillcolor": tint}


def faded(color: str) -> str:
    """A ``#rrggbb`` that what lies behind shines through."""
    red, green, blue = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},.35)"


def cells_trace(panel: CellsPanel, box: Box) -> dict:
    """A grid of answers; the colour is log10 of the probability."""
    rows, columns = panel.grid(box.width, box.height)
    empty = rows * columns - len(panel.probs)
    names = [escape(label) for label in panel.labels] + [""] * empty
    levels = np.append(panel.levels, np.full(empty, np.nan))
    probs = np.append(panel.probs, np.full(empty, np.nan))
    gap = panel.gap(columns)
    return {
        "type": "heatmap",
        "name": panel.run,
        # nested lists: a two-dimensional NaN has no place in a widget's message
        "z": to_plain(levels.reshape(rows, columns)),
        "text": np.array(names, dtype=object).reshape(rows, columns),
        # plotly picks black or white, whichever is read better on the cell's colour
        "texttemplate": "%{text}" if panel.names_fit(box.width, box.height) else "",
        "customdata": to_plain(probs.reshape(rows, columns)),
        "coloraxis": "coloraxis",
        "xgap": gap,
        "ygap": gap,
        "hoverongaps": False,
        "hovertemplate": "%{text}<br>probability %{customdata:.4g}<extra>"
        f"{escape(panel.run)}</extra>",
    }


def color_scale(floor: float, placement: Placement) -> dict:
    """One viridis scale for all cells, from "no longer alive" to "certain"."""
    low = round(float(np.log10(floor)))
    marks = list(range(low, 1))
    box = placement.scale
    return {
        "cmin": low,
        "cmax": 0.0,
        "colorscale": "Viridis",
        "colorbar": {
            "orientation": "h",
            "x": box.left / placement.width,
            "xanchor": "left",
            "len": box.width,
            "lenmode": "pixels",
            "xpad": 0,
            "ypad": 0,
            "y": 1 - box.top / placement.height,
            "yanchor": "top",
            "thickness": box.height,
            "outlinewidth": 0,
            "tickvals": marks,
            "ticktext": [f"{10.0**mark:g}" for mark in marks],
        },
    }


def annotations(page: Page, placement: Placement) -> list[dict]:
    """All text that is not an axis: header, panel titles, numbers."""
    box = Box(0.0, 0.0, placement.width, placement.height)
    texts = [
        note(box, 2.0, placement.title_y, f"<b>{escape(page.title)}</b>", 15),
        note(box, 2.0, placement.progress_y, escape(page.progress), 12),
        note(box, 2.0, placement.map_title_y, f"<b>{escape(page.map_title)}</b>", 13),
    ]
    for panel, place in placement.curves:
        texts.append(note(box, place.left - 40, place.top - 22, escape(panel.title)))
        for label in end_labels(panel, place):
            color, glyph = label.style.color, label.style.glyph
            mark = (
                ""
                if label.at_marker
                else f'<span style="color:{color}">{glyph}</span> '
            )
            text = mark + format_number(label.value)
            texts.append(note(box, label.x + 5, label.y - 8, text, 12))
        for mark in mark_labels(panel, place):
            words = escape(mark.words)
            texts.append(note(box, place.left + 6, mark.text_y - 11, words, 12))
    for panel, place in placement.maps:
        texts.extend(map_notes(panel, place, box))
    if placement.scale:
        text = "probability of an answer; dark: no longer alive"
        x, y = placement.scale.right + 14, placement.scale.top - 4
        texts.append(note(box, x, y, text))
    return texts


def mark_lines(placement: Placement) -> list[dict]:
    """A dashed level line for every marked height."""
    return [
        {
            "type": "line",
            "xref": "paper",
            "yref": "paper",
            "x0": box.left / placement.width,
            "x1": box.right / placement.width,
            "y0": 1 - mark.line_y / placement.height,
            "y1": 1 - mark.line_y / placement.height,
            "line": {"color": INK, "dash": "dash", "width": 1.5},
        }
        for panel, box in placement.curves
        for mark in mark_labels(panel, box)
    ]


def map_notes(panel: StatesPanel | CellsPanel, place: Box, box: Box) -> list[dict]:
    """A map panel's name, effective number and remark."""
    name = f"<b>{escape(panel.run)}</b>"
    if panel.style:
        glyph = panel.style.glyph if isinstance(panel, CellsPanel) else "━"
        name = f'<span style="color:{panel.style.color}">{glyph}</span> {name}'
    title, remark = escape(panel.title), escape(panel.note)
    if isinstance(panel, StatesPanel):
        return [
            note(box, place.left - 36, place.top - 42, f"{name}: {title}"),
            note(box, place.left - 36, place.top - 24, remark),
        ]
    return [
        note(box, place.left, place.top - 40, name),
        note(box, place.left, place.top - 22, title),
        note(box, place.left, place.bottom + 1, remark),
    ]


def note(box: Box, x: float, y: float, text: str, size: int = 12) -> dict:
    """Text whose top left corner is at (x, y) pixels."""
    return {
        "text": text,
        "showarrow": False,
        "xref": "paper",
        "yref": "paper",
        "x": x / box.width,
        "y": 1 - y / box.height,
        "xanchor": "left",
        "yanchor": "top",
        "align": "left",
        "borderpad": 0,
        "font": {"size": size, "color": INK},
    }

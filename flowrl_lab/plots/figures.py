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
from pathlib import Path

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
    MARKERS_SHOWN,
    WIDTHS,
    Box,
    Placement,
    end_labels,
    mark_labels,
    place_page,
    point_labels,
    shown_names,
    title_lines,
)
from flowrl_lab.plots.static import (
    DOT,
    FAINT,
    LARGE,
    SMALL,
    draw_svg,
    log_ticks,
    log_x_ticks,
)
from flowrl_lab.types import StepRecord

__all__ = [
    "bundle_from_page",
    "figure_from_records",
    "page_script",
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
# Of plotly's ten buttons those that a curve does not need: the others have room.
BUTTONS = ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"]
SCRIPT = Path(__file__).parent / "reflow.js"
GRID, GREY = "rgba(128,128,128,.3)", "rgba(128,128,128,.35)"
to_plain = partial(plain_values, infinite=lambda _value: None)  # a gap


def figure_from_records(
    records: Iterable[StepRecord],
    metrics: Sequence[str] = ("reward",),
    **options,
) -> dict:
    """The figure that ``LivePlot`` ends with, from finished records.

    Args:
        records: of one run or several, in any order between runs.
        metrics: fields of ``StepRecord`` or ``ExactReport``, or ``"pass@K"``; one
            panel each.
        options: of ``panels.build_page``: ``title``, ``solution_map`` (add the latest
            snapshot of each run), ``target_label``, ``log_y``.

    Returns:
        ``{"data", "layout"}`` for plotly, with numpy arrays in it.

    Raises:
        ValueError: for an unknown metric.
    """
    page = page_from_records(records, metrics, **options)
    return whole_figure(page, place_page(page))


def svg_from_records(
    records: Iterable[StepRecord],
    metrics: Sequence[str] = ("reward",),
    **options,
) -> str:
    """The same figure as a standalone SVG with alt text; see ``figure_from_records``.

    Raises:
        ValueError: for an unknown metric.
    """
    page = page_from_records(records, metrics, **options)
    return draw_svg(page, place_page(page))


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
        mime type -> content; plotly JSON for JupyterLab, SVG for front ends without
        plotly, the same as an image with alt text (which nbconvert takes; it would
        drop the alt text of the SVG), and a plain table for everything else.
    """
    svg = draw_svg(page, placement)
    return {
        PLOTLY_MIME: to_plain(whole_figure(page, placement)),
        "text/html": svg_image(svg, describe_page(page)),
        "image/svg+xml": svg,
        "text/plain": tabulate_page(page) + "\n" + describe_page(page),
    }


def svg_image(svg: str, alt: str) -> str:
    """An SVG as an HTML image that needs no other file."""
    data = b64encode(svg.encode()).decode()
    source = f"data:image/svg+xml;base64,{data}"
    return f'<img alt="{escape(alt)}" src="{source}" style="max-width:100%">'


def page_script() -> str:
    """What lets finished figures fit their page, as HTML for a notebook's output."""
    script = SCRIPT.read_text(encoding="utf-8")
    return f"<style>{THEME}</style><script>{script}</script>"


def whole_figure(page: Page, placement: Placement) -> dict:
    """A page for plotly.js with its form for every width, of which a page takes one.

    ``layout.meta.flowrl`` lists what of the layout depends on the width, the
    narrowest form first; ``reflow.js`` puts the form that fits in place.
    """
    figure = plotly_figure(page, placement)
    forms = [
        flatten_layout(figure_layout(page, place_page(page, width=width)))
        for width in WIDTHS
    ]
    differing = [
        key for key in forms[-1] if any(f[key] != forms[-1][key] for f in forms)
    ]
    forms = [{key: form[key] for key in differing} for form in forms]
    figure["layout"]["meta"] = {"flowrl": forms}
    return figure


def flatten_layout(part: object, path: str = "") -> dict:
    """``{"legend": {"y": 1}}`` as ``{"legend.y": 1}``, plotly's name for a change."""
    if isinstance(part, list) and part and isinstance(part[0], dict):
        items = [(f"{path}[{number}]", value) for number, value in enumerate(part)]
    elif isinstance(part, dict):
        items = [(f"{path}.{key}".lstrip("."), value) for key, value in part.items()]
    else:
        return {path: part}
    return {
        k: v for name, value in items for k, v in flatten_layout(value, name).items()
    }


def plotly_figure(page: Page, placement: Placement) -> dict:
    """Draw a page for plotly.js, in one form.

    Everything that changes while training runs is in the traces' data, the
    annotations and the axis ranges; the number of traces depends only on the runs.
    """
    data: list[dict] = []
    for number, (panel, box) in enumerate(placed(placement)):
        suffix = axis_suffix(number)
        axes = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
        data.extend({**trace, **axes} for trace in traces(panel, box))
    if page.curves:
        data[:0] = [legend_entry(name, style) for name, style in page.legend]
    return {"data": data, "layout": figure_layout(page, placement)}


def placed(placement: Placement) -> list[tuple]:
    """All panels with their boxes, in the order of their axes."""
    return [*placement.curves, *placement.maps]


def axis_suffix(number: int) -> str:
    """Plotly's name of a panel's axes, after "x" or "y": "", "2", "3" …"""
    return str(number + 1) if number else ""


def figure_layout(page: Page, placement: Placement) -> dict:
    """Where everything stands, and all words."""
    # a template of our own, or plotly would add its light background to widgets
    clear = {"paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)"}
    layout = {
        "template": {"layout": clear},
        **clear,
        "width": placement.width,
        "height": round(placement.height),
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
        "font": {"color": INK, "size": 12, "family": "system-ui, sans-serif"},
        "hoverlabel": {"font": {"size": 12}},
        "barmode": "overlay",
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": INK, "remove": BUTTONS},
        "showlegend": True,
        "legend": {
            "orientation": "h",
            "traceorder": "normal",
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
    for number, (panel, box) in enumerate(placed(placement)):
        add_axes(layout, axis_suffix(number), panel, box, placement)
    if placement.scale:
        layout["coloraxis"] = color_scale(page.maps[0].floor, placement)
    return layout


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
        if panel.log_x:
            named = log_x_ticks(panel)
            ticks = [10.0**place for place in named]
            x.update(type="log", tickvals=ticks, ticktext=list(named.values()))
        if panel.x_names:
            ticks = list(range(len(panel.x_names)))
            x.update(tickvals=ticks, ticktext=[escape(n) for n in panel.x_names])
    layout[f"xaxis{suffix}"], layout[f"yaxis{suffix}"] = x, y


def traces(panel: LinePanel | StatesPanel | CellsPanel, box: Box) -> list[dict]:
    """A panel's traces, without their axes."""
    if isinstance(panel, CellsPanel):
        return [cells_trace(panel, box)]
    if isinstance(panel, StatesPanel):
        return states_traces(panel, box)
    return [
        {
            "type": "scatter",
            "mode": drawn_as(curve.style) + ("+text" if curve.labels else ""),
            **(words_beside(panel, curve, box) if curve.labels else {}),
            "name": curve.run,
            "legendgroup": curve.run,
            "showlegend": False,
            # plotly drops a trace of length 0, and with it the trace's number
            "x": curve.x if len(curve.x) else np.array([np.nan]),
            "y": heights(panel, curve) if len(curve.y) else np.array([np.nan]),
            "line": {"color": curve.style.color, "dash": curve.style.dash, "width": 2},
            "marker": marker_of(curve),
            "hovertemplate": f"{escape(curve.run)}, {escape(panel.x_title)} "
            + ("%{customdata}" if panel.x_names else "%{x}")
            + ": %{y:.4g}<extra></extra>",
            **({"customdata": names_of(panel, curve)} if panel.x_names else {}),
        }
        for curve in panel.series
    ]


def names_of(panel: LinePanel, curve: Series) -> list[str]:
    """What each point of a curve stands over."""
    last = len(panel.x_names) - 1
    return [escape(panel.x_names[min(max(round(x), 0), last)]) for x in curve.x]


def marker_of(curve: Series) -> dict:
    """The marker of its points: of all, of those with words, or of a few."""
    if curve.dots:
        return {"symbol": "circle", "size": DOT, "opacity": FAINT}
    if curve.large:
        size = [LARGE if big else SMALL for big in curve.large]
        return {"symbol": curve.style.marker, "size": size}
    size, most = 7, MARKERS_SHOWN
    if curve.worded and len(curve.x) > most and not curve.marked:
        size, most = [7 * bool(words) for words in curve.labels], 0
    most = 0 if curve.marked else most  # 0: all
    return {"symbol": curve.style.marker, "size": size, "maxdisplayed": most}


def drawn_as(style: RunStyle) -> str:
    """plotly's word for a line with markers, or for markers alone."""
    return "lines+markers" if style.joined else "markers"


def words_beside(panel: LinePanel, curve: Series, box: Box) -> dict:
    """The words of a curve's points, each on its side."""
    labels = [label for label in point_labels(panel, box) if label.run == curve.run]
    return {
        "text": [f"<b>{escape(one)}</b>" if one else "" for one in curve.labels],
        "textposition": [label.side for label in labels],
        "cliponaxis": False,  # the words of the last point stay whole
    }


def heights(panel: LinePanel, curve: Series) -> np.ndarray:
    """What is drawn: on a log axis 0 is a gap, not a fall through the floor."""
    return np.where(curve.y > 0, curve.y, np.nan) if panel.log_y else curve.y


def legend_entry(name: str, style: RunStyle) -> dict:
    """A trace that draws nothing and stands in the legend for all of a run."""
    return {
        "type": "scatter",
        "mode": drawn_as(style),
        "name": name,
        "legendgroup": name,
        "showlegend": True,
        "x": np.array([np.nan]),
        "y": np.array([np.nan]),
        "line": {"color": style.color, "dash": style.dash, "width": 2},
        "marker": {"symbol": style.marker, "size": 8},
    }


def states_traces(panel: StatesPanel, box: Box) -> list[dict]:
    """The target in grey, the run's distribution over it: staircases, or bars.

    A target that marks many bars is a scatter, which plotly draws above all bars.
    """
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
    if panel.marks_target:
        wide = max(3.0, 0.9 * box.width / len(panel.states))
        line = {"color": INK, "width": 2}
        marker = {"symbol": "line-ew", "size": wide, "line": line}
        del drawn[0]["width"], drawn[0]["textposition"]
        drawn[0] |= {"type": "scatter", "mode": "markers", "marker": marker}
    return drawn


def style_states(panel: StatesPanel, color: str, *, behind: bool) -> dict:
    """How the target (``behind``) or a run is drawn."""
    if panel.as_bars:
        marker: dict = {"color": GREY if behind else color}
        if behind:  # seen behind bars that fill it, on a dark page too
            marker["line"] = {"color": INK, "width": 1}
        return {
            "marker": marker,
            "width": 0.9 if behind else 0.45,
            "textposition": "none",
        }
    # steps, filled: a single high state is one bar, not the two flanks of a triangle
    line = {"color": color, "width": 1 if behind else 1.5, "shape": "hvh"}
    tint = GREY if behind else faded(color, panel.opacity)
    return {"line": line, "fill": "tozeroy", "fillcolor": tint}


def faded(color: str, opacity: float) -> str:
    """A ``#rrggbb`` that what lies behind shines through."""
    red, green, blue = (int(color[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


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
    """One viridis scale for all cells, from "next to nothing" to "certain"."""
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
    """All text that is not an axis: header, panel titles, numbers.

    What belongs to a panel is placed from its corner, wherever that is.
    """
    header = [
        (placement.title, placement.title_y, 15),
        ((page.progress,), placement.progress_y, 12),
        (placement.map_title, placement.map_title_y, 13),
    ]
    texts = [
        note(
            f"<b>{stack(lines)}</b>" if size > 12 else stack(lines),
            *(0.0, 1.0, 2.0, y),
            yanchor="top",
            size=size,
        )
        for lines, y, size in header
    ]
    for number, (panel, box) in enumerate(placed(placement)):
        made = curve_notes if isinstance(panel, LinePanel) else map_notes
        suffix = axis_suffix(number)
        refs = {"xref": f"x{suffix} domain", "yref": f"y{suffix} domain"}
        texts += [one | refs for one in made(panel, box)]
    if placement.scale:
        x, y = placement.remark_x, placement.remark_y
        texts.append(note(stack(placement.remark), 0.0, 1.0, x, y, yanchor="top"))
    return texts


def stack(lines: Sequence[str]) -> str:
    """Lines below each other, safe for plotly."""
    return "<br>".join(map(escape, lines))


def curve_notes(panel: LinePanel, box: Box) -> list[dict]:
    """A curve panel's title, its runs' last values, the names of its marks."""
    texts = [note(stack(title_lines(panel)), 0.0, 1.0, -40, -6, yanchor="bottom")]
    for label in end_labels(panel, box):
        x, y = box.fraction(label.x, label.y - label.down)
        words, line = label.reach
        one = note(format_number(label.value), x, y, words, round(label.down, 2))
        one["xanchor"] = "right" if label.leftward else "left"
        if line:
            one |= {"showarrow": True, "arrowhead": 0, "arrowwidth": 1}
            one |= {"arrowcolor": label.style.color, "ax": line, "ay": -one["yshift"]}
            one |= {"xshift": 0, "yshift": 0}
        texts.append(one | {"name": label.run})  # goes when the run is switched off
    for mark in mark_labels(panel, box):
        edge, away = (box.right, -6) if mark.rightward else (box.left, 6)
        x, y = box.fraction(edge, mark.text_y)
        one = note(escape(mark.words), x, y, away, 3, yanchor="bottom")
        texts.append(one | {"xanchor": "right" if mark.rightward else "left"})
    return texts


def mark_lines(placement: Placement) -> list[dict]:
    """A dashed level line for every marked height."""
    return [
        {
            "type": "line",
            "xref": f"x{axis_suffix(number)} domain",
            "yref": f"y{axis_suffix(number)}",
            "x0": 0,
            "x1": 1,
            "y0": value,
            "y1": value,
            "line": {"color": INK, "dash": "dash", "width": 1.5},
        }
        for number, (panel, _) in enumerate(placement.curves)
        for _, value in panel.marks
    ]


def map_notes(panel: StatesPanel | CellsPanel, _box: Box) -> list[dict]:
    """A map panel's name, effective number and remark."""
    run, bold = escape(panel.run), f"<b>{escape(panel.run)}</b>"
    glyph = ""
    if panel.style:
        glyph = panel.style.glyph if isinstance(panel, CellsPanel) else "━"
        glyph = f'<span style="color:{panel.style.color}">{glyph}</span> '
    if isinstance(panel, StatesPanel):
        words = stack(title_lines(panel)).replace(run, bold, 1)
        return [note(glyph + words, 0.0, 1.0, -36, -8, yanchor="bottom")]
    words = f"{glyph}{bold}<br>{escape(panel.title)}"
    return [
        note(words, 0.0, 1.0, 0, -6, yanchor="bottom"),
        note(escape(panel.note), 0.0, 0.0, 0, 1, yanchor="top"),
    ]


def note(
    text: str,
    x: int | float,
    y: int | float,
    right: int | float,
    down: int | float,
    *,
    yanchor: str = "middle",
    size: int = 12,
) -> dict:
    """Text at a fraction of the figure or a panel, moved by pixels from there."""
    return {
        "text": text,
        "showarrow": False,
        "xref": "paper",
        "yref": "paper",
        "x": x,
        "y": y,
        "xshift": right,
        "yshift": -down,
        "xanchor": "left",
        "yanchor": yanchor,
        "align": "left",
        "borderpad": 0,
        "font": {"size": size, "color": INK},
    }

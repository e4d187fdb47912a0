"""Where the parts of a figure go, in pixels: one layout for every renderer."""

from __future__ import annotations

from dataclasses import dataclass

from flowrl_lab.plots.panels import (
    CellsPanel,
    LinePanel,
    Page,
    RunStyle,
    StatesPanel,
    format_number,
)

__all__ = [
    "Box",
    "EndLabel",
    "MarkLabel",
    "Placement",
    "end_labels",
    "mark_labels",
    "place_page",
    "shown_names",
]

WIDTH = 740.0  # fits a cell of JupyterLab beside its file list on a 1200-pixel screen
HEADER_LINE = 24
CURVE_HEIGHT = 190.0
STATES_HEIGHT = 150.0
CELLS_HEIGHT, PICTURE_SIDE = 170.0, 320.0
LABEL_GAP = 13
MOST_NAMES = 12  # that an axis says; of more it says about eight
MAX_END_LABELS = MARKERS_SHOWN = 8


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels from the top left corner of the figure."""

    left: float
    top: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.left + self.width

    @property
    def bottom(self) -> float:
        return self.top + self.height


@dataclass(frozen=True)
class EndLabel:
    """The last value of a run, written beside the end of its curve.

    ``at_marker``: right beside the marker of its last point, so that no second one is
    needed to tell whose it is.
    """

    run: str
    style: RunStyle
    value: float
    x: float
    y: float
    at_marker: bool


@dataclass(frozen=True)
class MarkLabel:
    """A marked height: its line, and the baseline of the words above it."""

    words: str
    value: float
    line_y: float
    text_y: float


@dataclass(frozen=True)
class Placement:
    """Every panel with its box (the area inside the axes), top to bottom."""

    width: float
    height: float
    title_y: float
    progress_y: float
    legend_y: float
    map_title_y: float
    curves: tuple[tuple[LinePanel, Box], ...]
    maps: tuple[tuple[StatesPanel | CellsPanel, Box], ...]
    scale: Box | None


def split_row(count: int, most: int) -> int:
    """Panels in a row, so that rows are full: 4 of at most 3 become 2 + 2."""
    rows = -(-count // most)
    return -(-count // rows)


def place_row(
    count: int, per_row: int, width: float, margins: tuple[float, float]
) -> list[tuple[int, float, float]]:
    """(row, left, inner width) of ``count`` panels with left and right margins."""
    slot = width / per_row
    left, right = margins
    return [
        (i // per_row, (i % per_row) * slot + left, slot - left - right)
        for i in range(count)
    ]


def place_curves(page: Page, top: float, width: float) -> list[Box]:
    """Boxes of the metric panels: a title above each, numbers at its right."""
    if not page.curves:
        return []
    per_row = min(2, len(page.curves))
    spots = place_row(len(page.curves), per_row, width, (52.0, 70.0))
    slot = CURVE_HEIGHT + 72
    return [Box(x, top + 26 + row * slot, w, CURVE_HEIGHT) for row, x, w in spots]


def place_maps(page: Page, top: float, width: float) -> list[Box]:
    """Boxes of the solution map: two lines of text above each."""
    if not page.maps:
        return []
    cells = isinstance(page.maps[0], CellsPanel)
    picture = cells and page.maps[0].picture
    per_row = split_row(len(page.maps), 2 if picture else 4 if cells else 3)
    margins = (12.0, 12.0) if cells else (44.0, 10.0)
    spots = place_row(len(page.maps), per_row, width, margins)
    most = PICTURE_SIDE if picture else CELLS_HEIGHT
    height = min(spots[0][2], most) if cells else STATES_HEIGHT
    if picture:
        height = whole_pixels(page.maps[0], height)
    slot = height + (64 if cells else 96)
    return [
        Box(x, top + 44 + row * slot, height if picture else w, height)
        for row, x, w in spots
    ]


def whole_pixels(panel: CellsPanel, side: float) -> float:
    """The side of a picture with equally large cells, of whole screen pixels each."""
    rows, _ = panel.grid(1.0, 1.0)
    return float(rows * max(1, int(side) // rows))


def place_page(page: Page, *, width: int | float = WIDTH) -> Placement:
    """Give every part of a page its place.

    Args:
        page: what is shown.
        width: of the whole figure, pixels.

    Returns:
        The boxes, and a height that depends only on the number of panels (so that a
        live figure does not jump).
    """
    width = float(width)
    y = 4.0
    title_y = y
    y += HEADER_LINE if page.title else 0
    progress_y = y
    y += HEADER_LINE if page.progress else 0
    legend_y = y
    y += HEADER_LINE if page.curves else 0
    curves = place_curves(page, y, width)
    y = max([y, *(box.bottom + 44 for box in curves)])
    map_title_y = y
    maps = place_maps(page, y + (HEADER_LINE if page.map_title else 0), width)
    cells = bool(page.maps) and isinstance(page.maps[0], CellsPanel)
    y = max([y, *(box.bottom + (20 if cells else 44) for box in maps)])
    scale = Box(24.0, y + 4, min(360.0, width - 24), 10.0) if cells else None
    return Placement(
        width=width,
        height=y + (44 if scale else 4),
        title_y=title_y,
        progress_y=progress_y,
        legend_y=legend_y,
        map_title_y=map_title_y,
        curves=tuple(zip(page.curves, curves, strict=True)),
        maps=tuple(zip(page.maps, maps, strict=True)),
        scale=scale,
    )


def spread(positions: list[float], low: float, high: float) -> list[float]:
    """Move sorted label positions apart until none overlap, inside low … high."""
    placed: list[float] = []
    for position in positions:
        floor = placed[-1] + LABEL_GAP if placed else low
        placed.append(max(position, floor))
    ceiling = high
    for i in range(len(placed) - 1, -1, -1):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - LABEL_GAP
    return placed


def end_labels(panel: LinePanel, box: Box) -> list[EndLabel]:
    """Last values of a panel's runs as labels that do not overlap.

    Args:
        panel: the curves.
        box: where they are drawn.

    Returns:
        Labels with x and y in pixels, x where the curve ends; none when there are
        too many runs to read.
    """
    labelled = {curve.run for curve in panel.series if curve.labels}
    short = {curve.run for curve in panel.series if len(curve.x) <= MARKERS_SHOWN}
    ends = panel.last_values()
    ends = {run: end for run, end in ends.items() if run not in labelled}
    if len(ends) > MAX_END_LABELS:
        return []
    heights = {run: panel.height_of(value) for run, (_, value) in ends.items()}
    places = panel.ends()
    order = sorted(ends, key=lambda run: -heights[run])
    wanted = [box.bottom - heights[run] * box.height for run in order]
    placed = spread(wanted, box.top, box.bottom)
    return [
        EndLabel(
            *(run, *ends[run]),
            x=box.left + places[run] * box.width,
            y=y,
            at_marker=abs(y - at) < 3 and run in short,
        )
        for run, at, y in zip(order, wanted, placed, strict=True)
    ]


def shown_names(names: tuple[str, ...]) -> dict[int, str]:
    """The categories that an axis names, by their number; pointing tells the others."""
    every = 1 if len(names) <= MOST_NAMES else -(-len(names) // 8)
    return dict(list(enumerate(names))[::every])


def mark_labels(panel: LinePanel, box: Box) -> list[MarkLabel]:
    """A panel's marks with their words, above the line or, where it is tight, below."""
    marks = sorted(panel.marks, key=lambda mark: -panel.height_of(mark[1]))
    lines = [box.bottom - panel.height_of(value) * box.height for _, value in marks]
    wanted = [y - 4 for y in lines]
    placed = spread(wanted, box.top + 10, box.bottom - 2)
    return [
        MarkLabel(
            f"{name} {format_number(value)}",
            value,
            line,
            y if y <= line - 3 else max(y, line + 12),
        )
        for (name, value), line, y in zip(marks, lines, placed, strict=True)
    ]

"""Where the parts of a figure go, in pixels: one layout for every renderer."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

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
    "PointLabel",
    "end_labels",
    "legend_rows",
    "mark_labels",
    "place_page",
    "point_labels",
    "shown_names",
    "title_lines",
]

WIDTH = 740.0  # fits a cell of JupyterLab beside its file list on a 1200-pixel screen
# Where there is less room, panels stand below each other: the widths for which a
# figure has a form.  The least one is a cell of a 700-pixel window with its side bar.
WIDTHS = (230, 270, 320, 380, 450, 540, 640, 690, WIDTH)
LEAST_CURVE, LEAST_STATES = 320.0, 230.0  # of a panel with all that belongs to it
HEADER_LINE, TEXT_LINE, LEGEND_LINE = 24, 16, 20
TITLE_LETTERS = 34  # in one line above a panel, so that it fits the narrowest one
CURVE_HEIGHT = 190.0
STATES_HEIGHT = 150.0
CELLS_HEIGHT, PICTURE_SIDE = 170.0, 320.0
LABEL_GAP, LETTER, BOLD_LETTER = 13, 6.5, 7.0
# Labels are laid out for a panel of this size, so that each of a figure's forms has
# them on the same side.
NOMINAL = 260.0
SIDES = ("top right", "bottom right", "top left", "bottom left")
SIDES += ("middle right", "middle left")
MOST_NAMES = 12  # that an axis says; of more it says about eight
MAX_END_LABELS = MARKERS_SHOWN = 8
LEADER = 3.0  # pixels out of place from which on a line leads to a label
REMARK = "probability of an answer; dark: next to nothing"


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

    def fraction(self, x: int | float, y: int | float) -> tuple[float, float]:
        """A point's place: 0 at the left and at the bottom, 1 at the right and top."""
        right, up = (x - self.left) / self.width, (self.bottom - y) / self.height
        return round(right, 4), round(up, 4)  # the same wherever the box is


@dataclass(frozen=True)
class EndLabel:
    """The last value of a run, written beside the end of its curve.

    ``down``: pixels below that end, where it had to make room for another; a thin line
    then leads to it (a marker of its own would look like a second point).
    ``leftward``: it stands before the end, since others go on.
    """

    run: str
    style: RunStyle
    value: float
    x: float
    y: float
    down: float
    leftward: bool

    @property
    def reach(self) -> tuple[float, float]:
        """Pixels from the end to the words, and to the end of the line to them."""
        moved, away = abs(self.down) >= LEADER, -1 if self.leftward else 1
        return away * (16.0 if moved else 7.0), away * 14.0 * moved


@dataclass(frozen=True)
class PointLabel:
    """Bold words beside a point at x, y; ``side`` is plotly's name for where."""

    run: str
    words: str
    x: float
    y: float
    side: str

    @property
    def anchor(self) -> str:
        return "start" if self.side.endswith("right") else "end"

    def corner(self) -> tuple[float, float]:
        """Where the baseline of the words begins, or ends."""
        down = {"top": -6, "middle": 4, "bottom": 14}[self.side.split()[0]]
        return self.x + (8 if self.anchor == "start" else -8), self.y + down

    def box(self) -> Box:
        """The room that the words take."""
        wide, (x, y) = BOLD_LETTER * len(self.words), self.corner()
        return Box(x - wide * (self.anchor == "end"), y - 10, wide, 13.0)


@dataclass(frozen=True)
class MarkLabel:
    """A marked height: its line, and the baseline of the words above it.

    ``rightward``: they stand at the line's right end, since curves cross its left one.
    """

    words: str
    value: float
    line_y: float
    text_y: float
    rightward: bool


@dataclass(frozen=True)
class Placement:
    """Every panel with its box (the area inside the axes), top to bottom.

    ``title`` and ``map_title`` are the page's, in lines that fit, and ``remark`` is
    what is said about the colour scale, with the corner where it stands.
    """

    width: float
    height: float
    title: tuple[str, ...]
    title_y: float
    progress_y: float
    legend_y: float
    map_title: tuple[str, ...]
    map_title_y: float
    curves: tuple[tuple[LinePanel, Box], ...]
    maps: tuple[tuple[StatesPanel | CellsPanel, Box], ...]
    scale: Box | None
    remark: tuple[str, ...]
    remark_x: float
    remark_y: float


def wrap(words: str, width: int | float, size: int | float) -> tuple[str, ...]:
    """Lines of about ``width`` pixels, for a bold font of ``size`` pixels."""
    return tuple(textwrap.wrap(words, max(10, int(width / (0.62 * size)))))


def title_lines(panel: LinePanel | StatesPanel) -> tuple[str, ...]:
    """What stands above a panel, in lines that fit where it is narrow."""
    words = [panel.title]
    if isinstance(panel, StatesPanel):
        words = [f"{panel.run}: {panel.title}", panel.note]
        if len(words[0]) > TITLE_LETTERS:
            words[:1] = [f"{panel.run}:", panel.title]
        if len(panel.note) > TITLE_LETTERS:
            words[-1:] = panel.note.split(" · ")
    return tuple(line for one in words for line in textwrap.wrap(one, TITLE_LETTERS))


def map_heading(page: Page) -> str:
    """The title of the maps, and what a height is; of cells the scale says it."""
    if not page.maps or isinstance(page.maps[0], CellsPanel):
        return page.map_title
    height = f"probability of each {page.maps[0].x_title}"
    return f"{page.map_title}: {height}" if page.map_title else height


def legend_rows(
    names: tuple[tuple[str, RunStyle], ...], width: float
) -> list[list[tuple[float, str, RunStyle]]]:
    """Rows of (x, name, style): one if all fit, else columns of one width.

    As plotly lays out its own, so that both need the same height.
    """
    wide = [62.0 + 7 * len(name) for name, _ in names]
    if sum(wide) > width:
        wide = [max(wide)] * len(wide)
    rows, x = [[]], 4.0
    for (name, style), step in zip(names, wide, strict=True):
        if rows[-1] and x + step > width + 20:
            rows.append([])
            x = 4.0
        rows[-1].append((x, name, style))
        x += step
    return rows


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


def per_row(count: int, most: int, least: float, width: float) -> int:
    """Panels of a row: at most ``most``, each with ``least`` pixels, rows full."""
    return split_row(count, max(1, min(most, int(width // least))))


def place_curves(page: Page, top: float, width: float) -> list[Box]:
    """Boxes of the metric panels: a title above each, numbers at its right."""
    if not page.curves:
        return []
    across = per_row(len(page.curves), 2, LEAST_CURVE, width)
    spots = place_row(len(page.curves), across, width, (52.0, 70.0))
    # a log axis may get a second line while training runs: nothing jumps then
    lines = max(2 if p.log_y else len(title_lines(p)) for p in page.curves)
    above = 10 + TEXT_LINE * lines
    slot = CURVE_HEIGHT + 42 + above
    return [Box(x, top + above + row * slot, w, CURVE_HEIGHT) for row, x, w in spots]


def place_maps(page: Page, top: float, width: float) -> list[Box]:
    """Boxes of the solution map: lines of text above each."""
    if not page.maps:
        return []
    if isinstance(page.maps[0], CellsPanel):
        return place_cells(page.maps, top, width)
    across = per_row(len(page.maps), 3, LEAST_STATES, width)
    spots = place_row(len(page.maps), across, width, (44.0, 10.0))
    above = 12 + TEXT_LINE * max(len(title_lines(panel)) for panel in page.maps)
    slot = STATES_HEIGHT + 52 + above
    return [Box(x, top + above + row * slot, w, STATES_HEIGHT) for row, x, w in spots]


def place_cells(panels: Sequence[CellsPanel], top: float, width: float) -> list[Box]:
    """Boxes of cells, where there is room as large as in the widest figure.

    So their rows and columns are the same in each of a figure's forms.
    """
    picture, margin = panels[0].picture, 12.0
    most = 2 if picture else 4
    full = max(width, WIDTH) / split_row(len(panels), most)
    across = per_row(len(panels), most, min(full, PICTURE_SIDE + 24), width)
    spots = place_row(len(panels), across, width, (margin, margin))
    wide = min(spots[0][2], full - 2 * margin)
    height = min(wide, PICTURE_SIDE if picture else CELLS_HEIGHT)
    if picture:
        wide = height = whole_pixels(panels[0], height)
    slot = height + 64
    return [Box(x, top + 44 + row * slot, wide, height) for row, x, _ in spots]


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
    title, map_title = wrap(page.title, width, 15), wrap(map_heading(page), width, 13)
    title_y = 4.0
    progress_y = title_y + bool(title) * (4 + 20 * len(title))
    legend_y = progress_y + (HEADER_LINE if page.progress else 0)
    y = legend_y
    if page.curves and page.legend:
        y += 4 + LEGEND_LINE * len(legend_rows(page.legend, width))
    curves = place_curves(page, y, width)
    y = max([y, *(box.bottom + 44 for box in curves)])
    map_title_y = y
    y += bool(map_title) * (6 + 18 * len(map_title))
    maps = place_maps(page, y, width)
    cells = bool(page.maps) and isinstance(page.maps[0], CellsPanel)
    y = max([y, *(box.bottom + (20 if cells else 44) for box in maps)])
    scale = Box(24.0, y + 4, min(360.0, width - 48), 10.0) if cells else None
    beside = width > 360 + 330
    remark = (REMARK,) if beside else wrap(REMARK, width, 12)
    bottom = y + 44 if beside else y + 42 + TEXT_LINE * len(remark)
    return Placement(
        width=width,
        height=bottom if scale else y + 4,
        title=title,
        title_y=title_y,
        progress_y=progress_y,
        legend_y=legend_y,
        map_title=map_title,
        map_title_y=map_title_y,
        curves=tuple(zip(page.curves, curves, strict=True)),
        maps=tuple(zip(page.maps, maps, strict=True)),
        scale=scale,
        remark=remark,
        remark_x=398.0 if beside else 2.0,
        remark_y=y if beside else y + 38,
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
        Labels with x and y in pixels, x where the curve ends; none for points with
        words of their own or no line, none for a curve that has left the frame of a
        log axis, and none when there are too many to read.
    """
    labelled = {
        c.run
        for c in panel.series
        if c.labels or c.large or not (c.style.joined or c.dots)
    }
    floor = 10.0 ** panel.y_range[0] if panel.log_y else -np.inf
    ends = {
        run: end
        for run, end in panel.last_values().items()
        if run not in labelled and end[1] >= floor
    }
    if len(ends) > MAX_END_LABELS:
        return []
    places = panel.ends()
    labels = []
    for column in columns({run: places[run] for run in ends}):
        together = _say_once(column, ends)
        heights = {run: panel.height_of(ends[run][1]) for run in together}
        order = sorted(together, key=lambda run: -heights[run])
        wanted = [box.bottom - heights[run] * box.height for run in order]
        clear = [_clear_of_marks(panel, box, y) for y in wanted]
        placed = spread(clear, box.top, box.bottom)
        labels += [
            EndLabel(
                *(run, *ends[run]),
                x=box.left + places[run] * box.width,
                y=y,
                down=y - at,
                leftward=is_crossed(panel, places[run], (box.bottom - y) / box.height),
            )
            for run, at, y in zip(order, wanted, placed, strict=True)
        ]
    return labels


def _say_once(
    runs: list[str], ends: dict[str, tuple[RunStyle, float]]
) -> Iterable[str]:
    """One run for each value as it is written: curves that end together share it."""
    return {format_number(ends[run][1]): run for run in reversed(runs)}.values()


def _clear_of_marks(panel: LinePanel, box: Box, y: float) -> float:
    """The nearest place for a label where no mark's line runs through its words."""
    for _, value in panel.marks:
        line = box.bottom - panel.height_of(value) * box.height
        if abs(y - line) < LABEL_GAP / 2:
            return line + math.copysign(LABEL_GAP / 2, y - line)
    return y


def columns(places: dict[str, float]) -> list[list[str]]:
    """Runs that end so near to each other that their labels stand below each other."""
    found: list[list[str]] = []
    for run in sorted(places, key=places.__getitem__):
        if not found or places[run] - places[found[-1][-1]] > 0.2:
            found.append([])
        found[-1].append(run)
    return found


def is_crossed(panel: LinePanel, place: float, height: float) -> bool:
    """Whether more runs through a label on the right of a place than on its left."""
    if place > 1 - 50 / NOMINAL:  # beyond the last step nothing is drawn
        return False
    box = Box(0.0, 0.0, NOMINAL, CURVE_HEIGHT)
    x, y = place * NOMINAL, (1 - height) * CURVE_HEIGHT
    drawn = pixels(panel, box)
    right, left = (
        drawn_inside(drawn, Box(start, y - 8, 40.0, 16.0)) for start in (x + 6, x - 46)
    )
    return left < right and x >= 46


def pixels(panel: LinePanel, box: Box) -> np.ndarray:
    """Points along all curves of a panel, in pixels, [N, 2]."""
    found = [np.zeros((0, 2))]
    for curve in panel.series:
        seen = np.isfinite(curve.y) & ((curve.y > 0) | (not panel.log_y))
        if not seen.any():
            continue
        x = box.left + panel.place_of(curve.x[seen]) * box.width
        y = [box.bottom - panel.height_of(v) * box.height for v in curve.y[seen]]
        at = fine = np.arange(len(x))
        if not curve.dots:
            fine = np.linspace(0, len(x) - 1, 1 + 40 * (len(x) - 1))
        found.append(np.stack([np.interp(fine, at, x), np.interp(fine, at, y)], 1))
    return np.concatenate(found)


def drawn_inside(points: np.ndarray, room: Box) -> int:
    """How many of the points lie inside a rectangle."""
    x, y = points.T
    inside = (room.left < x) & (x < room.right) & (room.top < y) & (y < room.bottom)
    return int(inside.sum())


def point_labels(panel: LinePanel, box: Box) -> list[PointLabel]:
    """Words beside points, each on the side where the fewest curves and words are."""
    places = {
        curve.run: [
            (
                box.left + float(panel.place_of(x)) * box.width,
                box.bottom - panel.height_of(y) * box.height,
            )
            for x, y in zip(curve.x, curve.y, strict=True)
        ]
        for curve in panel.series
        if curve.labels
    }
    markers = [
        _cover(Box(x - 6, y - 6, 12.0, 12.0)) for at in places.values() for x, y in at
    ]
    taken, labels = np.concatenate([pixels(panel, box), *markers]), []
    for curve in panel.series:
        for at, words in zip(places.get(curve.run, ()), curve.labels, strict=False):
            choices = [PointLabel(curve.run, words, *at, side) for side in SIDES]
            if words:  # a point without any takes no room, and no time
                choices.sort(key=lambda one: _trouble(one.box(), taken, box))
                taken = np.concatenate([taken, _cover(choices[0].box())])
            labels.append(choices[0])
    return labels


def _trouble(room: Box, taken: np.ndarray, panel: Box) -> int:
    """What a word would lie over or touch; much for one that leaves its panel."""
    outside = room.left < panel.left or room.right > panel.right + 60
    near = Box(room.left - 2, room.top - 2, room.width + 4, room.height + 4)
    return drawn_inside(taken, near) + 1000 * outside


def _cover(room: Box) -> np.ndarray:
    """Points all over a rectangle, [N, 2]."""
    x = np.linspace(room.left, room.right, 9)
    y = np.linspace(room.top, room.bottom, 5)
    return np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)


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
    labels = []
    for (name, value), line, y in zip(marks, lines, placed, strict=True):
        words = f"{name} {format_number(value)}"
        at = y if y <= line - 3 else max(y, line + 12)
        rightward = is_mark_crossed(panel, words, (box.bottom - at) / box.height)
        labels.append(MarkLabel(words, value, line, at, rightward))
    return labels


def is_mark_crossed(panel: LinePanel, words: str, height: float) -> bool:
    """Whether more runs through a mark's words at the left of its line than right."""
    wide, y = LETTER * len(words), (1 - height) * CURVE_HEIGHT
    drawn = pixels(panel, Box(0.0, 0.0, NOMINAL, CURVE_HEIGHT))
    left, right = (
        drawn_inside(drawn, Box(start, y - 11, wide, 13.0))
        for start in (6.0, NOMINAL - wide - 6)
    )
    return right < left

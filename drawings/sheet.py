"""Paper and pen: SVG with a light and a dark set of colours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import atan2, cos, sin
from textwrap import wrap
from xml.sax.saxutils import escape, quoteattr

from flowrl_lab.plots.static import num

__all__ = ["COLORS", "WIDTH", "Frame", "Sheet"]

WIDTH = 700
SIZE = 15
Point = tuple[float, float]
Runs = Sequence[str | tuple[str, str]]
# Words and lines, tint of an area, and full strength, in light and in dark: the first
# on the paper and on every tint has a contrast of 4.5 or more.
COLORS = {
    "ink": (("#1f2328", "#e9ebee", "#57606a"), ("#e6edf3", "#30363d", "#9aa4af")),
    "soft": (("#57606a", "#eff1f3", "#8c959f"), ("#a9b3be", "#262c33", "#7d8590")),
    "blue": (("#00568a", "#d8eaf6", "#0072b2"), ("#7cc4f5", "#12354c", "#3d9bdb")),
    "orange": (("#9a4200", "#fde6d6", "#d55e00"), ("#ffa866", "#4a2710", "#e2762a")),
    "green": (("#00624a", "#d5f0e7", "#009e73"), ("#5fd6b0", "#0f3d31", "#1fae85")),
    "pink": (("#8a3a6b", "#f7e3ee", "#cc79a7"), ("#eea6cd", "#45233a", "#cc79a7")),
}
PAPER = (("#fcfcfb", "#d5d9de"), ("#161b21", "#3a424b"))


def palette(theme: int) -> str:
    """The classes of one theme: t- text, l- line, f- tinted area, s- strong area."""
    paper, edge = PAPER[theme]
    rules = [f".paper{{fill:{paper};stroke:{edge}}}"]
    for name, themes in COLORS.items():
        words, tint, strong = themes[theme]
        rules.append(
            f".t-{name}{{fill:{words}}}.l-{name}{{stroke:{words};fill:none}}"
            f".f-{name}{{fill:{tint};stroke:{strong}}}.s-{name}{{fill:{strong}}}"
        )
    return "".join(rules)


class Sheet:
    """A card of 700 units; sizes are such that 14 units stay 12 pixels at 600.

    Args:
        height: of the card.
        title: above the drawing.
        alt: the drawing in words.
    """

    def __init__(self, height: float, title: str, alt: str) -> None:
        self.height, self.alt = height, alt
        self.parts: list[str] = []
        self.text(20, 30, title, bold=True, size=17)

    def text(
        self,
        x: float,
        y: float,
        words: str | Runs,
        color: str = "ink",
        *,
        size: int = SIZE,
        anchor: str = "start",
        bold: bool = False,
    ) -> None:
        """A line with its baseline at y; runs are words or (words, colour)."""
        pairs = [(words, color)] if isinstance(words, str) else words
        pairs = [(pair, color) if isinstance(pair, str) else pair for pair in pairs]
        spans = "".join(
            f'<tspan class="t-{hue}">{escape(part)}</tspan>' for part, hue in pairs
        )
        if len(pairs) == 1:
            spans = escape(pairs[0][0])
        more = f' font-size="{size}"' if size != SIZE else ""
        more += f' text-anchor="{anchor}"' if anchor != "start" else ""
        more += ' font-weight="600"' if bold else ""
        hue = pairs[0][1]
        self.parts.append(
            f'<text class="t-{hue}" x="{num(x)}" y="{num(y)}"{more}>{spans}</text>'
        )

    def label(self, x: float, y: float, words: str | Runs, color: str = "soft", **how):
        """A line of text with its middle at x; nothing for an empty one."""
        if words:
            self.text(x, y, words, color, anchor="middle", **how)

    def lines(self, y: float, words: str, *, x: float = 20, width: int = 88) -> None:
        """A remark over several lines of at most ``width`` characters."""
        for row, line in enumerate(wrap(words, width)):
            self.text(x, y + 20 * row, line, "soft")

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        color: str = "soft",
        words: str | Runs = "",
        *,
        size: int = SIZE,
        bold: bool = False,
        radius: float = 6,
        dashed: bool = False,
        strong: bool = False,
    ) -> None:
        """A tinted box with words in its middle; lines are parted by a line break."""
        more = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<rect class="{"s" if strong else "f"}-{color}" x="{num(x)}" y="{num(y)}" '
            f'width="{num(width)}" height="{num(height)}" rx="{num(radius)}"{more}/>'
        )
        rows = words.split("\n") if isinstance(words, str) else [words]
        hue = "ink" if color in ("ink", "soft") else color
        for row, line in enumerate(rows):
            base = y + height / 2 + 0.35 * size + 20 * (row - (len(rows) - 1) / 2)
            self.label(x + width / 2, base, line, hue, size=size, bold=bold and not row)

    def line(
        self,
        points: Iterable[Point],
        color: str = "soft",
        *,
        width: float = 1.5,
        dash: str = "",
    ) -> None:
        """A line through points."""
        path = "M" + "L".join(f"{num(x)} {num(y)}" for x, y in points)
        more = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<path class="l-{color}" stroke-width="{num(width)}" d="{path}"{more}/>'
        )

    def area(
        self, points: Iterable[Point], color: str, *, strong: bool = False
    ) -> None:
        """A closed area."""
        path = "M" + "L".join(f"{num(x)} {num(y)}" for x, y in points)
        kind = "s" if strong else "f"
        self.parts.append(f'<path class="{kind}-{color}" d="{path}Z"/>')

    def arrow(
        self, points: Sequence[Point], color: str = "soft", *, width: float = 1.8
    ) -> None:
        """A line that ends in a head at its last point."""
        (x0, y0), (x, y) = points[-2:]
        angle, size = atan2(y - y0, x - x0), 9
        back = (x - 0.7 * size * cos(angle), y - 0.7 * size * sin(angle))
        self.line([*points[:-1], back], color, width=width)
        corners = [(x, y)]
        corners += [
            (x - size * cos(angle + turn), y - size * sin(angle + turn))
            for turn in (0.42, -0.42)
        ]
        path = "M" + "L".join(f"{num(a)} {num(b)}" for a, b in corners)
        self.parts.append(f'<path class="t-{color}" d="{path}Z"/>')

    def bars(
        self,
        x: float,
        base: float,
        heights: Iterable[float],
        color: str | Sequence[str],
        *,
        width: float = 22,
        gap: float = 8,
        strong: bool = True,
    ) -> list[float]:
        """Bars on a base line, down for negative heights; returns their middles."""
        middles = []
        for place, height in enumerate(heights):
            left = x + place * (width + gap)
            hue = color if isinstance(color, str) else color[place]
            top = base - max(height, 0)
            self.box(
                left, top, width, max(abs(height), 1), hue, radius=2, strong=strong
            )
            middles.append(left + width / 2)
        end = x + len(middles) * (width + gap) - gap
        self.line([(x - 5, base), (end + 5, base)])
        return middles

    def svg(self) -> str:
        """The file: no script, no outer font, both themes."""
        dark = f"@media (prefers-color-scheme:dark){{{palette(1)}}}"
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" '
                f'height="{num(self.height)}" viewBox="0 0 {WIDTH} {num(self.height)}" '
                f'role="img" aria-label={quoteattr(self.alt)} font-size="{SIZE}" '
                "font-family=\"system-ui,-apple-system,'Segoe UI',Roboto,"
                "'Helvetica Neue',Arial,'DejaVu Sans',sans-serif\">",
                f"<style>{palette(0)}{dark}</style>",
                f'<rect class="paper" x=".5" y=".5" width="{WIDTH - 1}" '
                f'height="{num(self.height - 1)}" rx="10"/>',
                *self.parts,
                "</svg>\n",
            ]
        )


@dataclass(frozen=True)
class Frame:
    """A small plot on a sheet: a rectangle with ranges along its sides."""

    sheet: Sheet
    left: float
    top: float
    width: float
    height: float
    x_range: Point
    y_range: Point

    def at(self, x: float, y: float) -> Point:
        """Where a value lies on the sheet."""
        (x0, x1), (y0, y1) = self.x_range, self.y_range
        right = self.left + (x - x0) / (x1 - x0) * self.width
        return right, self.top + (y1 - y) / (y1 - y0) * self.height

    def axes(
        self, x_ticks: Sequence[float], y_ticks: Sequence[float], x_name: str = ""
    ) -> None:
        """Both axes, their numbers, and a name below."""
        bottom = self.top + self.height
        right = self.left + self.width
        self.sheet.line([(self.left, self.top), (self.left, bottom), (right, bottom)])
        for tick in x_ticks:
            x, _ = self.at(tick, self.y_range[0])
            self.sheet.label(x, bottom + 18, f"{tick:g}".replace("-", "−"), size=14)
        for tick in y_ticks:
            _, y = self.at(self.x_range[0], tick)
            words = f"{tick:g}".replace("-", "−")
            self.sheet.text(self.left - 7, y + 5, words, "soft", size=14, anchor="end")
        self.sheet.label(self.left + self.width / 2, bottom + 38, x_name)

    def curve(
        self, xs: Iterable[float], ys: Iterable[float], color: str, **how
    ) -> None:
        """A line through values."""
        points = [self.at(x, y) for x, y in zip(xs, ys, strict=True)]
        self.sheet.line(points, color, width=how.pop("width", 2.5), **how)

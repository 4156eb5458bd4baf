"""The comparison chart: trained parameters against what they cost and bring, drawn as SVG at build time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from catalog.pages.claims import succeeded
from catalog.pages.data import SiteData
from catalog.pages.text import ratio, share
from catalog.taxonomy import Category

if TYPE_CHECKING:
    from catalog.query import Paper

WIDTH, HEIGHT = 720, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 20, 20, 52
_MARGIN = 1.6
"""Room at both ends of the logarithmic axis, as a factor."""
_MARKS: dict[str, str] = {
    Category.SELECTIVE: "M0,-6 L6,0 L0,6 L-6,0 Z",
    Category.ADDITIVE: "M-5,-5 H5 V5 H-5 Z",
    Category.PROMPT: "M0,-6 L6,5 L-6,5 Z",
    Category.REPARAMETERIZED: "M-5.5,0 A5.5,5.5 0 1 0 5.5,0 A5.5,5.5 0 1 0 -5.5,0 Z",
    Category.HYBRID: "M-2,-6 H2 V-2 H6 V2 H2 V6 H-2 V2 H-6 V-2 H-2 Z",
}


@dataclass(frozen=True)
class Point:
    """The newest benchmark run of one method."""

    paper: Paper
    run: Any


@dataclass(frozen=True)
class Panel:
    """One figure: the share of trained parameters against a second quantity."""

    key: str
    title: str
    axis: str
    svg: Markup


@dataclass(frozen=True)
class Axis:
    """A scale of the chart, from data to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def place(self, value: float) -> float:
        """Pixel of a value."""
        low, high, at = map(math.log10, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values inside the scale."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            decades = [value for value in (10.0**power for power in powers) if self.low <= value <= self.high]
            if len(decades) > 2:
                return decades
            between = (factor * 10.0**power for power in powers for factor in (1, 2, 5))
            return [value for value in between if self.low <= value <= self.high]
        step = _round_step((self.high - self.low) / 5)
        count = math.floor((self.high - self.low) / step + 1e-9)
        lowest = math.ceil(self.low / step - 1e-9) * step
        return [lowest + step * i for i in range(count + 1) if lowest + step * i <= self.high + 1e-9]


def _round_step(rough: float) -> float:
    magnitude = 10.0 ** math.floor(math.log10(rough))
    return next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough - 1e-12)


def points(data: SiteData) -> list[Point]:
    """The newest successful run of every method that has one."""
    return [Point(paper, succeeded(paper.bench)[0]) for paper in data.papers if succeeded(paper.bench)]


def panels(data: SiteData) -> list[Panel]:
    """The three figures; none while nothing was measured."""
    found = points(data)
    wanted: list[tuple[str, str, str, Callable[[Point], float | None], Callable[[float], str]]] = [
        ("step", "Training step", "time of a training step, LoRA = 1", lambda point: point.run.step_vs_lora, ratio),
        ("memory", "Peak memory", "peak memory in training, LoRA = 1", lambda point: point.run.peak_vs_lora, ratio),
        ("gap", "Gap closed", "share of the gap to full fine-tuning closed", lambda point: point.run.gap_closed, share),
    ]
    drawn = []
    for key, title, axis, value, show in wanted:
        shown = [(point, y) for point in found if (y := value(point)) is not None and point.run.share]
        if shown:
            drawn.append(Panel(key, title, axis, _draw(key, title, axis, shown, show)))
    return drawn


@dataclass(frozen=True)
class Dot:
    """A method at its place, with what the tooltip says."""

    paper: Paper
    x: float
    y: float
    words: str


@dataclass(frozen=True)
class Side:
    """One axis of a figure: its scale, its title, and how its ticks are written."""

    axis: Axis
    title: str
    show: Callable[[float], str]


def _draw(
    key: str, title: str, axis: str, shown: Sequence[tuple[Point, float]], show: Callable[[float], str]
) -> Markup:
    shares = [point.run.share for point, _ in shown]
    heights = [y for _, y in shown]
    across = Axis(min(shares) / _MARGIN, max(shares) * _MARGIN, _LEFT, WIDTH - _RIGHT, True)
    room = (max(heights) - min(heights)) * 0.08 or 0.1
    up = Axis(min(heights) - room, max(heights) + room, HEIGHT - _BOTTOM, _TOP, False)
    dots = [Dot(point.paper, point.run.share, y, f"{share(point.run.share)} trained, {show(y)}") for point, y in shown]
    return scatter(
        key,
        title,
        f"{len(shown)} methods by share of trained parameters (logarithmic) and {axis}.",
        dots,
        Side(across, "share of trained parameters", share),
        Side(up, axis, show),
    )


def scatter(key: str, title: str, description: str, dots: Sequence[Dot], across: Side, up: Side) -> Markup:
    """Dots with names in a frame with two axes; the page has the same figures in a table below."""
    opening = Markup(
        '<svg class="pc-chart" viewBox="0 0 {} {}" role="img" aria-labelledby="chart-{}-title chart-{}-text">'
        '<title id="chart-{}-title">{}</title>'
        '<desc id="chart-{}-text">{} The table below holds the same figures.</desc>'
    ).format(WIDTH, HEIGHT, key, key, key, title, key, description)
    parts = [*_grid(across, up), *_axis_titles(across.title, up.title), *_marks(dots, across.axis, up.axis)]
    return opening + Markup("").join(parts) + Markup("</svg>")


def frame() -> tuple[tuple[float, float], tuple[float, float]]:
    """Pixels between which the two axes run: from left to right, from bottom to top."""
    return (_LEFT, WIDTH - _RIGHT), (HEIGHT - _BOTTOM, _TOP)


def _grid(across: Side, up: Side) -> list[Markup]:
    lines = []
    for tick in across.axis.ticks():
        x = round(across.axis.place(tick), 1)
        lines.append(
            Markup('<line class="pc-grid" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(x, _TOP, HEIGHT - _BOTTOM)
            + Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(
                x, HEIGHT - _BOTTOM + 18, across.show(tick)
            )
        )
    for tick in up.axis.ticks():
        y = round(up.axis.place(tick), 1)
        lines.append(
            Markup('<line class="pc-grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(_LEFT, WIDTH - _RIGHT, y, y)
            + Markup('<text x="{}" y="{}" text-anchor="end">{}</text>').format(_LEFT - 8, y + 4, up.show(tick))
        )
    return lines


def _axis_titles(across: str, up: str) -> list[Markup]:
    middle = (HEIGHT - _BOTTOM + _TOP) / 2
    return [
        Markup('<text class="pc-axis" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            (WIDTH + _LEFT - _RIGHT) / 2, HEIGHT - 10, across
        ),
        Markup('<text class="pc-axis" transform="translate(14 {}) rotate(-90)" text-anchor="middle">{}</text>').format(
            middle, up
        ),
    ]


def _marks(dots: Sequence[Dot], across: Axis, up: Axis) -> list[Markup]:
    # Every mark keeps its own place free before the first name is put down.
    placed = [(across.place(dot.x) - 7, across.place(dot.x) + 7, up.place(dot.y) + 4) for dot in dots]
    marks = []
    for dot in sorted(dots, key=lambda dot: (dot.x, dot.paper.slug)):
        px, py = across.place(dot.x), up.place(dot.y)
        label = _label(dot.paper.name, px, py, placed)
        marks.append(
            Markup(
                '<a href="../../methods/{}/"><g class="pc-mark pc-cat-{}"><title>{}: {}</title>'
                '<path transform="translate({} {})" d="{}"/>{}</g></a>'
            ).format(
                dot.paper.slug,
                str(dot.paper.category),
                dot.paper.name,
                dot.words,
                round(px, 1),
                round(py, 1),
                _MARKS.get(dot.paper.category, _MARKS[Category.ADDITIVE]),
                label,
            )
        )
    return marks


def _label(name: str, x: float, y: float, placed: list[tuple[float, float, float]]) -> Markup:
    """The name beside its mark, on the first free place of a few; left out (the tooltip stays) where all are taken."""
    width = 6.4 * len(name)
    for dx, dy in ((9, 4), (9, -8), (9, 15), (-9 - width, 4), (-9 - width, -8), (-9 - width, 15)):
        left, line = x + dx, y + dy
        inside = left > _LEFT and left + width < WIDTH and _TOP < line < HEIGHT - _BOTTOM
        free = all(left + width < start or left > end or abs(line - at) > 13 for start, end, at in placed)
        if inside and free:
            placed.append((left, left + width, line))
            return Markup('<text x="{}" y="{}">{}</text>').format(round(left, 1), round(line, 1), name)
    return Markup("")


def legend() -> list[tuple[str, Markup]]:
    """Each category with the mark that stands for it."""
    return [
        (
            str(category),
            Markup(
                '<svg class="pc-mark pc-cat-{}" viewBox="-8 -8 16 16" aria-hidden="true"><path d="{}"/></svg>'
            ).format(str(category), mark),
        )
        for category, mark in _MARKS.items()
    ]

"""The page on strength: how the change of every method answers to its coefficient, and what merging leaves behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from catalog.pages.chart import Axis, Dot, Side, frame, legend, scatter
from catalog.pages.data import SiteData
from catalog.taxonomy import Strength

if TYPE_CHECKING:
    from catalog.lists_data import SourceList
    from catalog.query import Paper

BOUNDED = 2.0
"""A change that grows by less than this while everything learned moves ten times as far has a bound."""

_WIDE, _HIGH, _MARGIN = 132, 84, 6


@dataclass(frozen=True)
class Measured:
    """One method with its figures; ``curves`` are by level, each a tuple of (c, along, off)."""

    paper: Paper
    row: Mapping[str, Any]
    curves: Mapping[str, Sequence[tuple[float, float, float]]]

    @property
    def bounded(self) -> bool | None:
        """Whether the size of the change has a bound; None: nothing is learned that could grow."""
        growth = self.row["growth"]
        return None if growth is None else growth < BOUNDED

    def at(self, level: str, c: float) -> tuple[float, float] | None:
        """Along and off at one coefficient."""
        return next(((along, off) for at, along, off in self.curves.get(level, ()) if at == c), None)

    @property
    def picture(self) -> Markup:
        """Both curves, c from -1 to 2 against how far along the change at 1."""
        return sparkline(self.paper.name, self.curves)


def methods(site: SiteData) -> list[Measured]:
    """Every measured method: linear ones first, then by name."""
    curves: dict[tuple[str, str], dict[str, list[tuple[float, float, float]]]] = {}
    for point in site.strength_points:
        levels = curves.setdefault((point["slug"], point["backbone"]), {})
        levels.setdefault(point["level"], []).append((point["c"], point["along"], point["off"]))
    order = [str(word) for word in Strength]
    found = [
        Measured(site.by_slug[row["slug"]], row, curves.get((row["slug"], row["backbone"]), {}))
        for row in site.reversals
        if row["slug"] in site.by_slug and row["word"] in order
    ]
    return sorted(found, key=lambda m: (order.index(m.row["word"]), m.paper.name.lower()))


def values(site: SiteData) -> dict[str, Any]:
    """What the page's template is given."""
    found = methods(site)
    scaled = [m for m in found if m.curves]
    outputs = [back for m in found if (back := m.at("output", -1.0)) is not None]
    drift = {
        name: max((m.row[name] for m in found if m.row[name] is not None), default=0.0)
        for name in ("once_bfloat16", "often_bfloat16", "often_float32", "kept_bfloat16", "kept_float32", "cycles")
    }
    drift["kept"] = max(drift.pop("kept_bfloat16"), drift.pop("kept_float32"))
    return {
        "methods": found,
        "scaled": len(scaled),
        "linear": sum(m.row["word"] == Strength.LINEAR for m in scaled),
        "base_at_zero": sum(bool(m.row["zero_is_base"]) for m in scaled),
        "bounded": [m.paper.name for m in found if m.bounded],
        "exact": sum(abs(along + 1) < 1e-9 and off < 1e-9 for along, off in outputs),
        "best": min((along for along, _ in outputs), default=0.0),
        "worst": max((along for along, _ in outputs), default=0.0),
        "drift": drift,
        "opposites": opposites(found),
        "marks": legend(),
        "advice": [(item, advised(found, item)) for item in site.lists if item.steer_with or item.steer_without],
        "bound": f"{BOUNDED:g}",
    }


_FARTHEST = 1.5
"""Where the picture of opposites ends; what lies beyond is drawn at its edge."""


def opposites(found: Sequence[Measured]) -> Markup:
    """What c = -1 does to the model's output: how much of the opposite, and how much else; nothing without a curve."""
    places = [(m, *back) for m in found if (back := m.at("output", -1.0)) is not None]
    if not places:
        return Markup("")
    (left, right), (bottom, top) = frame()
    dots = [
        Dot(
            m.paper,
            min(max(along, -_FARTHEST), _FARTHEST),
            min(off, _FARTHEST),
            f"{along:.2f} times the change at 1, {off:.2f} off",
        )
        for m, along, off in places
    ]
    return scatter(
        "opposites",
        "The model's output at c = -1",
        f"{len(dots)} methods by how much of the change at 1 is in the change at -1, and how much else.",
        dots,
        Side(Axis(-_FARTHEST, _FARTHEST, left, right, False), "along the change at 1", lambda value: f"{value:g}"),
        Side(Axis(-0.1, _FARTHEST + 0.1, bottom, top, False), "off it", lambda value: f"{value:g}"),
    )


def advised(found: Sequence[Measured], item: SourceList) -> list[tuple[Measured, str, bool]]:
    """Methods on which a list gives advice for steering, what it says, and whether the measurement agrees."""
    says = {**dict.fromkeys(item.steer_with, "take it"), **dict.fromkeys(item.steer_without, "avoid it")}
    usable = (Strength.LINEAR, Strength.ANTISYMMETRIC)
    return [
        (m, says[m.paper.slug], (m.paper.slug in item.steer_with) == (m.row["word"] in usable))
        for m in found
        if m.paper.slug in says
    ]


def sparkline(name: str, curves: Mapping[str, Sequence[tuple[float, float, float]]]) -> Markup:
    """A small drawing of the curves; nothing without any."""
    if not curves:
        return Markup("")
    across = Axis(-1, 2, _MARGIN, _WIDE - _MARGIN, False)
    up = Axis(-1.25, 2.25, _HIGH - _MARGIN, _MARGIN, False)
    lines = [
        Markup('<line class="pc-grid" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(*(round(v, 1) for v in ends))
        for ends in (
            (across.place(-1), across.place(2), up.place(0), up.place(0)),
            (across.place(0), across.place(0), up.place(-1.25), up.place(2.25)),
        )
    ]
    for level, points in sorted(curves.items()):
        # A curve that leaves the frame is cut at it; the table has the figures.
        places = [(across.place(c), up.place(min(max(along, up.low), up.high))) for c, along, _ in sorted(points)]
        lines.append(
            Markup('<polyline class="pc-curve pc-{}" points="{}"/>').format(
                level, " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            )
        )
    title = Markup("<title>{}: the change along that at 1, for c from -1 to 2</title>").format(name)
    opening = Markup('<svg class="pc-spark" viewBox="0 0 {} {}" role="img">').format(_WIDE, _HIGH)
    return opening + title + Markup("").join(lines) + Markup("</svg>")

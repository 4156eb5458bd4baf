"""Our implementations beside peft's: what scripts/compare_with_peft.py measured, as goals, tables and a chart.

Rows are mappings with the keys of measured/comparison.jsonl: one for each method, width, thread count and library.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from catalog.pages.data import SiteData
    from catalog.query import Paper

Row = Mapping[str, Any]

OURS, PEFT, BASELINE = "peft-catalog", "peft", "lora"
ORTHOGONAL = frozenset({"oft", "boft", "hra", "ether"})
NEARER = frozenset({"loha", "lokr", "fourierft", "c3a", "randlora", "dora"})
"""Methods that cost far more than LoRA where their change of the weight is formed."""

NOISE = 1.05
"""Medians of one run repeat within 5 %; below that nobody is called slower."""
MEAN, TO_LORA, SAVED, INSTANT_S = 0.6, 1.3, 1.5, 0.01

LEFT_OUT: Mapping[str, str] = {
    "prefix-tuning": "it acts on the keys and values of attention, and the stack has none",
    "prompt-tuning": "it acts on the tokens that a transformer attends to, and the stack has no attention",
    "qlora": "peft has no 4-bit weights of its own and leaves them to bitsandbytes",
    "xlora": "peft mixes saved adapters by the hidden states of a model from transformers",
}
"""What peft ships and the catalog implements and is not compared, and why."""

WHY: Mapping[tuple[str, str], str] = {
    ("mean", ""): "Most methods add thin products or a few sums to a layer that costs both sides the same; a step can "
    "only be much shorter where peft forms a whole change of the weight.",
    ("step", "miss"): "Both sides do the same sums; in one place of four, by about what repeated runs differ in.",
    ("step", "trainable-tokens"): "Both sides look up the same rows; in one place of four, by about what repeated runs "
    "differ in.",
    ("step", "pissa"): "The base weight stays as it was, so that every pass takes off the factors' start by a wider "
    "low-rank product; peft overwrites the weight with the residual.",
    ("nearer", "randlora"): "Its bases add up to full rank: their two products are as large as the layer, and forming "
    "the change instead costs no less.",
    ("nearer", "fourierft"): "Every token is transformed there and back; LoRA's products are thin.",
    ("saved", "dora"): "The magnitude's gradient needs the output that it scales, beside the input that A's needs.",
    ("saved", "boft"): "The gain's gradient needs the output that it scales, which OFT without a gain does not keep.",
    (
        "saved",
        "shira",
    ): "The changed weight is kept for the input's gradient: as large as the layer, however few tokens.",
    ("orthogonal", "boft"): "The gain is one more pass over the output, which OFT without a gain does not make.",
}
"""(goal, slug) -> why a method misses the goal where it does; the slug "" is all methods together."""


@dataclass(frozen=True)
class Line:
    """One method at one width and thread count: our row, peft's, and that of our LoRA in the same run."""

    slug: str
    ours: Row
    theirs: Row | None
    lora: Row | None

    def ratio(self, key: str) -> float | None:
        """Ours through peft's; None where a figure is missing or peft's is 0."""
        return _ratio(self.ours, self.theirs, key)

    def to_lora(self, key: str) -> float | None:
        """Ours through that of our LoRA."""
        return _ratio(self.ours, self.lora, key)


def _ratio(row: Row, other: Row | None, key: str) -> float | None:
    below = other and other[key]
    return None if row[key] is None or not below else row[key] / below


@dataclass(frozen=True)
class Panel:
    """All methods at one width and thread count."""

    width: int
    threads: int
    lines: tuple[Line, ...]

    @property
    def key(self) -> str:
        """For addresses within the page."""
        return f"width-{self.width}-threads-{self.threads}"

    @property
    def place(self) -> str:
        """Width and threads in words."""
        return f"{self.width} wide, {self.threads} thread{'s' if self.threads > 1 else ''}"

    def mean(self, key: str) -> float | None:
        """Geometric mean of ours through peft's."""
        ratios = [ratio for line in self.lines if (ratio := line.ratio(key))]
        return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else None


@dataclass(frozen=True)
class Miss:
    """A method that misses a goal at one width and thread count; "" is all methods together."""

    slug: str
    place: str
    figure: str


@dataclass(frozen=True)
class Goal:
    """Something to reach, and who does not."""

    key: str
    label: str
    misses: tuple[Miss, ...]

    @property
    def met(self) -> bool:
        """Whether nobody misses it."""
        return not self.misses

    @property
    def by_slug(self) -> dict[str, list[Miss]]:
        """The misses of each method."""
        found: dict[str, list[Miss]] = {}
        for miss in self.misses:
            found.setdefault(miss.slug, []).append(miss)
        return found

    def why(self, slug: str) -> str:
        """Why a method misses it; empty where nobody has said so."""
        return WHY.get((self.key, slug), "")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "goal": self.label,
            "met": self.met,
            "misses": [{**asdict(miss), "why": self.why(miss.slug)} for miss in self.misses],
        }


def panels(rows: Iterable[Row]) -> list[Panel]:
    """What was measured, by width, and the most threads first."""
    places: dict[tuple[int, int], dict[str, dict[str, Row]]] = {}
    for row in rows:
        place = places.setdefault((row["width"], -row["threads"]), {})
        place.setdefault(row["slug"], {})[row["library"]] = row
    return [
        Panel(
            width,
            -threads,
            tuple(
                Line(slug, row[OURS], row.get(PEFT), found.get(BASELINE, {}).get(OURS))
                for slug, row in sorted(found.items())
                if OURS in row
            ),
        )
        for (width, threads), found in sorted(places.items())
    ]


def goals(rows: Iterable[Row]) -> list[Goal]:
    """Every goal, with those who miss it."""
    found = panels(rows)
    each: list[tuple[str, str, Callable[[Line], str | None]]] = [
        ("step", "No method is slower than peft's in a training step", _slower_step),
        ("orthogonal", f"Orthogonal methods take at most {TO_LORA} times the step of our LoRA", _far_from_lora),
        (
            "nearer",
            "LoHa, LoKr, FourierFT, C3A, RandLoRA, DoRA: nearer to our LoRA than to peft",
            _nearer_to_peft,
        ),
        ("saved", f"No method keeps more than {SAVED} times the activations of our LoRA", _keeps_more),
        ("attach", "Attaching is no slower than peft's", _slower_attach),
        ("unmerge", f"Unmerging is exact, and takes at most {1000 * INSTANT_S:.0f} ms", _inexact),
    ]
    checked = [
        Goal(
            key,
            label,
            tuple(
                Miss(line.slug, panel.place, figure)
                for panel in found
                for line in panel.lines
                if (figure := misses(line)) is not None
            ),
        )
        for key, label, misses in each
    ]
    means = [(panel, panel.mean("step_s")) for panel in found]
    missed = tuple(Miss("", panel.place, f"{mean:.2f}") for panel, mean in means if mean is not None and mean > MEAN)
    label = f"On the geometric mean a training step takes at most {MEAN} of peft's"
    return [checked[0], Goal("mean", label, missed), *checked[1:]]


def _above(value: float | None, limit: float, of: str) -> str | None:
    return f"{value:.2f} × {of}" if value is not None and value > limit else None


def _slower_step(line: Line) -> str | None:
    return _above(line.ratio("step_s"), NOISE, "peft")


def _slower_attach(line: Line) -> str | None:
    return _above(line.ratio("attach_s"), NOISE, "peft")


def _far_from_lora(line: Line) -> str | None:
    return _above(line.to_lora("step_s"), TO_LORA, "LoRA") if line.slug in ORTHOGONAL else None


def _keeps_more(line: Line) -> str | None:
    return _above(line.to_lora("saved_bytes"), SAVED, "LoRA")


def _nearer_to_peft(line: Line) -> str | None:
    """Distances are those of logarithms: twice and half are equally far."""
    lora, peft = line.to_lora("step_s"), line.ratio("step_s")
    if line.slug not in NEARER or lora is None or peft is None or abs(math.log(lora)) < abs(math.log(peft)):
        return None
    return f"{lora:.2f} × LoRA, {peft:.2f} × peft"


def _inexact(line: Line) -> str | None:
    seconds, error = line.ours["unmerge_s"], line.ours["unmerge_error"]
    if seconds is None or (error == 0 and seconds <= INSTANT_S):
        return None
    return f"error {error:.0e}, {1000 * seconds:.1f} ms"


# The page.

_WIDTH, _LEFT, _RIGHT, _BAR, _HEAD = 720, 232, 56, 22, 34


def values(site: SiteData, rows: Sequence[Row]) -> dict[str, Any]:
    """What the template shows: panels with the chart of each, goals, and with what and when it was measured."""
    found = panels(rows)
    newest = max(rows, key=lambda row: str(row["date"]), default=None)
    return {
        "panels": found,
        "charts": {panel.key: chart(panel, site.by_slug) for panel in found},
        "goals": goals(rows),
        "left_out": LEFT_OUT,
        "stamp": newest,
        "versions": {row["library"]: row["version"] for row in sorted(rows, key=lambda row: str(row["date"]))},
    }


def chart(panel: Panel, papers: Mapping[str, Paper]) -> Markup:
    """Steps of all methods through peft's, as bars from 1 on a logarithmic axis."""
    shown = sorted((ratio, line.slug) for line in panel.lines if (ratio := line.ratio("step_s")))
    if not shown:
        return Markup("")
    low, high = min(0.5, shown[0][0] * 0.9), max(1.25, shown[-1][0] * 1.1)
    scale = (_WIDTH - _LEFT - _RIGHT) / math.log(high / low)
    height = _HEAD + _BAR * len(shown) + 4

    def place(ratio: float) -> float:
        return round(_LEFT + scale * math.log(ratio / low), 1)

    ticks = [tick for tick in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0) if low <= tick <= high]
    parts = [
        Markup('<line class="pc-grid" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/>').format(place(tick), _HEAD - 8, height)
        + Markup('<text x="{}" y="{}" text-anchor="middle">{:g}×</text>').format(place(tick), _HEAD - 14, tick)
        for tick in ticks
    ]
    parts += [
        _bar(papers[slug], ratio, place(1.0), place(ratio), _HEAD + _BAR * index)
        for index, (ratio, slug) in enumerate(shown)
    ]
    opening = Markup(
        '<svg class="pc-chart" viewBox="0 0 {} {}" role="img" aria-label="Time of a training step through that '
        'of peft, logarithmic, {}: {} methods. The table below holds the same figures.">'
    ).format(_WIDTH, height, panel.place, len(shown))
    return opening + Markup("").join(parts) + Markup("</svg>")


def _bar(paper: Paper, ratio: float, start: float, end: float, y: int) -> Markup:
    left, width = min(start, end), max(abs(end - start), 1.0)
    side, anchor = (end - 5, "end") if end < start else (end + 5, "start")
    return Markup(
        '<a href="../../methods/{0}/"><g class="pc-mark pc-cat-{1}"><title>{2}: {3:.2f} times peft</title>'
        '<text x="{4}" y="{5}" text-anchor="end">{2}</text><path d="M{6},{7} h{8} v14 h-{8} Z"/>'
        '<text x="{9}" y="{5}" text-anchor="{10}">{3:.2f}×</text></g></a>'
    ).format(
        paper.slug,
        str(paper.category),
        paper.name,
        ratio,
        _LEFT - 14,
        y + 11,
        round(left, 1),
        y,
        round(width, 1),
        round(side, 1),
        anchor,
    )

"""Papers by year: a bar of each category's share, and the papers below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from catalog.pages.data import SiteData, published
from catalog.taxonomy import Category

if TYPE_CHECKING:
    from catalog.query import Paper

_BAR, _ROW = 560, 30


@dataclass(frozen=True)
class Year:
    """The papers of one year by first public date."""

    year: int
    papers: tuple[Paper, ...]

    def count(self, category: str) -> int:
        """Papers of one category in this year."""
        return sum(paper.category == category for paper in self.papers)


def years(data: SiteData) -> list[Year]:
    """All years that have papers, the newest first."""
    ordered = sorted(data.papers, key=published)
    numbers = sorted({paper.year for paper in ordered}, reverse=True)
    return [Year(year, tuple(paper for paper in ordered if paper.year == year)) for year in numbers]


def bars(found: Sequence[Year]) -> Markup:
    """Papers a year, split by category, as SVG."""
    if not found:
        return Markup("")
    longest = max(len(year.papers) for year in found)
    rows = Markup("").join(_bar(year, index, _BAR / longest) for index, year in enumerate(found))
    text = ", ".join(f"{year.year}: {len(year.papers)}" for year in found)
    return Markup(
        '<svg class="pc-years" viewBox="0 0 660 {}" role="img" aria-label="Papers a year. {}">{}</svg>'
    ).format(len(found) * _ROW + 4, text, rows)


def _bar(year: Year, index: int, unit: float) -> Markup:
    y, x = index * _ROW + 4, 52.0
    parts = [Markup('<text x="44" y="{}" text-anchor="end">{}</text>').format(y + 16, year.year)]
    for category in Category:
        count = year.count(category)
        if count:
            parts.append(
                Markup(
                    '<rect class="pc-cat-{}" x="{}" y="{}" width="{}" height="22"><title>{} {}: {}</title></rect>'
                ).format(str(category), round(x, 1), y, round(count * unit - 1, 1), year.year, str(category), count)
            )
            x += count * unit
    parts.append(Markup('<text x="{}" y="{}">{}</text>').format(round(x + 6, 1), y + 16, len(year.papers)))
    return Markup("").join(parts)

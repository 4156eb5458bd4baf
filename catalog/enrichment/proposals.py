"""What entries could take over from other indexes: from the database alone, and for people to decide."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

from sqlalchemy import Connection

from catalog.enrichment.cache import Kept, kept
from catalog.enrichment.facts import Facts, key
from catalog.enrichment.sources import SOURCES
from catalog.enrichment.venues import publishing, same_venue
from catalog.entry import Entry
from catalog.lists.matching import folded
from catalog.venues import parse

OTHER_PAPER = 60.0
"""Similarity of titles, 0 to 100, below which a source means another paper."""


@dataclass(frozen=True)
class Proposal:
    """A key of an entry, what the entry says and what a source said at some time (ISO 8601, UTC)."""

    slug: str
    key: str
    entry_says: str | None
    source_says: str
    source: str
    fetched: str

    def as_dict(self) -> dict[str, str | None]:
        """For JSON; the keys are stable."""
        return asdict(self)


def proposals(connection: Connection, entries: Iterable[Entry]) -> list[Proposal]:
    """Where sources know more than entries, or something else; in the order of the entries."""
    known = {source.name: kept(connection, source.name) for source in SOURCES}
    return [
        Proposal(entry.slug, name, says, other, source, row.fetched)
        for entry in entries
        for source, rows in known.items()
        if (row := rows.get(key(entry))) and _is_same(entry, row)
        for name, says, other in _differences(entry, row.facts)
    ]


def _is_same(entry: Entry, row: Kept) -> bool:
    from rapidfuzz import fuzz

    title = row.facts.title
    return row.facts.found and (title is None or fuzz.ratio(folded(title), folded(entry.title)) >= OTHER_PAPER)


def _differences(entry: Entry, facts: Facts) -> Iterator[tuple[str, str | None, str]]:
    """Key, what the entry says, what the source says."""
    venues = publishing(facts.venues)
    if venues and not (entry.venue and any(same_venue(entry.venue, venue) for venue in facts.venues)):
        year = f" ({facts.year})" if facts.year else ""
        yield "venue", entry.venue, f"{venues[0]}{year}"
    if facts.doi and facts.doi != (entry.doi or "").lower():
        yield "doi", entry.doi, facts.doi
    if facts.url and not entry.url and not entry.doi:
        yield "url", entry.url, facts.url
    years = {entry.year, *(parse(entry.venue).years if entry.venue else ())}
    if facts.year and min(abs(facts.year - year) for year in years) > 1:
        yield "year", ", ".join(map(str, sorted(years))), str(facts.year)

"""Entries held against what arXiv says: every place where they disagree, and what can be done about it.

Spelling is not disagreement: titles are compared without case, accents, punctuation and TeX, names by surname and first
initial. An entry that rightly differs says so under ``arxiv_differs``, with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from catalog import venues
from catalog.arxiv_sync.record import Record, State
from catalog.lists.matching import folded
from catalog.taxonomy import Status

if TYPE_CHECKING:
    from catalog.entry import Entry

Value = str | tuple[str, ...]
WRITTEN = ("title", "authors", "published", "arxiv_categories", "doi")
"""Keys that arXiv's word can correct; the others are a person's to decide."""


@dataclass(frozen=True)
class Drift:
    """One key of an entry that disagrees with arXiv. ``correction`` is what to write, None where a person decides."""

    slug: str
    key: str
    entry: Value | None
    arxiv: Value
    correction: Value | None = None
    advice: str = ""


def drifts(entry: Entry, record: Record) -> list[Drift]:
    """Every disagreement that the entry does not account for."""
    return [drift for drift in _all(entry, record) if drift.key not in entry.arxiv_differs]


def _all(entry: Entry, record: Record) -> Iterator[Drift]:
    yield from _state(entry, record)
    if folded(entry.title) != folded(record.title):
        yield Drift(entry.slug, "title", entry.title, record.title, record.title)
    if not same_people(entry.authors, record.names):
        yield Drift(entry.slug, "authors", entry.authors, record.names, record.names)
    day = record.published[:10]
    if not day.startswith(entry.published):
        yield Drift(entry.slug, "published", entry.published, day, day)
    if set(entry.arxiv_categories) != set(record.categories) and record.categories:
        yield Drift(entry.slug, "arxiv_categories", entry.arxiv_categories, record.categories, record.categories)
    yield from _doi(entry, record)
    yield from _venue(entry, record)


def _state(entry: Entry, record: Record) -> Iterator[Drift]:
    if record.state is not State.LISTED and entry.status is Status.CURRENT:
        says = f"{record.state}: {record.comment}" if record.comment else str(record.state)
        yield Drift(entry.slug, "status", str(entry.status), says, advice="read why, then set the status")


def _doi(entry: Entry, record: Record) -> Iterator[Drift]:
    if not record.doi:
        return
    if entry.doi is None:
        yield Drift(entry.slug, "doi", None, record.doi, record.doi.split()[0])
    elif entry.doi.lower() not in record.doi.lower().split():
        yield Drift(entry.slug, "doi", entry.doi, record.doi, advice="keep the one of the version of record")


def _venue(entry: Entry, record: Record) -> Iterator[Drift]:
    if not record.journal_ref:
        return
    says = venues.parse(record.journal_ref)
    if entry.venue is None or venues.parse(entry.venue).is_preprint:
        if not says.is_preprint:
            yield Drift(entry.slug, "venue", entry.venue, record.journal_ref, advice="a venue to fill in")
    elif not says.is_preprint and not says.same_place(venues.parse(entry.venue)):
        yield Drift(entry.slug, "venue", entry.venue, record.journal_ref, advice="see which of them is right")


def same_people(some: Sequence[str], others: Sequence[str]) -> bool:
    """Whether two lists of names are the same people in the same order."""
    return len(some) == len(others) and all(map(_same_person, some, others))


def _same_person(one: str, other: str) -> bool:
    first, second = folded(one).split(), folded(other).split()
    return first == second or (bool(first and second) and first[-1] == second[-1] and first[0][0] == second[0][0])

"""What the stand-in knows: papers with their versions, from the catalog's entries or made up."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta

from catalog.entry import Entry, load_entries


@dataclass(frozen=True)
class Paper:
    """A paper as arXiv knows it. ``versions`` are the moments of submission, v1 first."""

    arxiv: str
    title: str
    authors: tuple[str, ...]
    abstract: str
    versions: tuple[datetime, ...]
    categories: tuple[str, ...] = ("cs.CL",)
    comment: str | None = None
    journal_ref: str | None = None
    doi: str | None = None
    affiliations: dict[str, str] = field(default_factory=dict)
    datestamp: date | None = None
    deleted: bool = False

    @property
    def stamp(self) -> date:
        """Day of the metadata: the one given, else the day after the newest version."""
        return self.datestamp or (self.versions[-1] + timedelta(days=1)).date()

    def revised(self, when: datetime, **change: object) -> Paper:
        """The paper with one more version."""
        return replace(self, versions=(*self.versions, when), **change)  # type: ignore[arg-type]


def catalogued(root: str | None = None) -> list[Paper]:
    """The papers of the catalog that are on arXiv, as their entries state them."""
    return [of_entry(entry) for entry in load_entries(root) if entry.arxiv]


def of_entry(entry: Entry) -> Paper:
    """A paper that agrees with its entry."""
    assert entry.arxiv
    return Paper(
        arxiv=entry.arxiv,
        title=entry.title,
        authors=entry.authors,
        abstract=f"Words of the authors of {entry.name}.",
        versions=(submitted(entry.published),),
        categories=entry.arxiv_categories or ("cs.LG",),
        doi=entry.doi,
    )


def submitted(published: str) -> datetime:
    """A moment on the day, or in the month or year, of a date of an entry."""
    year, month, day = (int(part) for part in (*published.split("-"), "1", "1")[:3])
    return datetime(year, month, day, 15, 30, 12, tzinfo=UTC)


SYLLABLES = ("ba", "co", "di", "fu", "ga", "he", "ki", "lo", "mu", "na", "pe", "ra", "si", "to", "ve", "xu")


def invented(number: int, seed: int = 0, first: datetime = datetime(2026, 1, 5, 9, tzinfo=UTC)) -> Iterator[Paper]:
    """So many made-up papers, a minute apart, about nothing."""
    chance = random.Random(seed)

    def word() -> str:
        return "".join(chance.choices(SYLLABLES, k=chance.randint(2, 4)))

    for place in range(number):
        when = first + timedelta(minutes=place)
        yield Paper(
            arxiv=f"{when:%y%m}.{10_000 + place % 90_000:05d}",
            title=" ".join(word() for _ in range(8)).capitalize(),
            authors=tuple(f"{word().capitalize()} {word().capitalize()}" for _ in range(chance.randint(1, 6))),
            abstract=" ".join(word() for _ in range(150)).capitalize() + ".",
            versions=(when,),
            categories=("cs.LG", "cs.CL"),
        )

"""Records of arXiv, sifted: what is catalogued, rejected or known is left out, and the rest is scored."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from sqlalchemy import Connection, Engine, insert, select, update

from catalog.arxiv_sync.record import Record, bare_id
from catalog.arxiv_sync.record import State as Listed
from catalog.database import reading
from catalog.discovery.candidates import TABLE, Candidate, State, kept
from catalog.discovery.categories import Suggester
from catalog.discovery.entries import catalogued
from catalog.discovery.phrases import tokens
from catalog.discovery.queries import Rules, load
from catalog.discovery.scoring import Scorer
from catalog.discovery.slugs import suggested


@dataclass
class Found:
    """What became of records. ``new`` are kept for the first time, the highest score first; ``updated`` are candidates
    of which a newer version came."""

    seen: int = 0
    catalogued: dict[str, str] = field(default_factory=dict)
    """arXiv id -> slug of the entry."""
    known: int = 0
    rejected: int = 0
    below: int = 0
    new: list[Candidate] = field(default_factory=list)
    updated: list[Candidate] = field(default_factory=list)


class Sieve:
    """Holds what is catalogued and what is in the inbox, so that pages of records pass quickly.

    After a transaction in which `keep` was called has failed, make a new one: this one takes for kept what is not.
    """

    def __init__(
        self, database: Connection | Engine, root: Path | str | None = None, rules: Rules | None = None
    ) -> None:
        self.found = Found()
        self._rules = rules or load()
        self._scorer, self._suggester = Scorer(self._rules), Suggester(self._rules)
        self._entries = catalogued(root)
        self._known: dict[str, tuple[State, int]] = {}
        if isinstance(database, Connection):
            self._load(database)
        else:
            with reading(database) as connection:
                self._load(connection)

    def _load(self, connection: Connection) -> None:
        for arxiv, state, reasons in connection.execute(select(TABLE.c.arxiv, TABLE.c.state, TABLE.c.reasons)):
            self._known[arxiv] = (State(state), json.loads(reasons)["version"])

    def sift(self, records: Iterable[Record]) -> list[Candidate]:
        """New candidates among these records, and known ones of which this is a newer version; writes nothing."""
        news: dict[str, Candidate] = {}
        for record in records:
            self.found.seen += 1
            earlier = news.get(record.arxiv)
            if earlier is not None and earlier.version >= record.version:
                self.found.known += 1
            elif candidate := self._judged(record):
                news[record.arxiv] = candidate
        return list(news.values())

    def _judged(self, record: Record) -> Candidate | None:
        """What is news about a record; None, and counted, for anything else."""
        slug = self._entries.slug_of(record.arxiv)
        if slug is not None:
            self.found.catalogued[record.arxiv] = slug
            return None
        state, version = self._known.get(record.arxiv, (None, 0))
        if state is State.REJECTED:
            self.found.rejected += 1
        elif state is not None and version >= record.version:
            self.found.known += 1
        else:
            return self._scored(record)
        return None

    def _scored(self, record: Record) -> Candidate | None:
        """The candidate that a record makes. A version that makes none changes nothing about one that is known: so the
        order in which versions come does not matter."""
        score = self._scorer.score(record.title, record.abstract, record.categories)
        if score.points < self._rules.threshold or record.state is Listed.DELETED or not _usable(record.arxiv):
            self.found.below += 1
            return None
        slug = self._entries.slug_titled(record.title)
        if slug is not None:
            self.found.catalogued[record.arxiv] = slug
            return None
        suggestion = self._suggester.suggest(tokens(record.title), tokens(record.abstract))
        return Candidate.of(record, score, suggestion)

    def keep(self, connection: Connection, candidates: Iterable[Candidate], *, source: str, now: str) -> None:
        """Store what `sift` found, in the caller's transaction; what others have decided meanwhile stands."""
        for candidate in candidates:
            earlier = kept(connection, candidate.arxiv)
            if earlier is None:
                self._add(connection, replace(candidate, found=now, source=source))
            elif earlier.state is not State.REJECTED and earlier.version < candidate.version:
                self._renew(connection, candidate, earlier)
            else:
                self._known[candidate.arxiv] = (earlier.state, earlier.version)
        self.found.new.sort(key=lambda each: (-each.score, each.arxiv))

    def _add(self, connection: Connection, candidate: Candidate) -> None:
        slug = suggested(candidate.title, candidate.arxiv, _Taken(connection, self._entries.names))
        candidate = replace(candidate, slug=slug)
        connection.execute(insert(TABLE).values(candidate.as_row()))
        self._known[candidate.arxiv] = (State.WAITING, candidate.version)
        self.found.new.append(candidate)

    def _renew(self, connection: Connection, candidate: Candidate, earlier: Candidate) -> None:
        connection.execute(update(TABLE).where(TABLE.c.arxiv == earlier.arxiv).values(candidate.as_judged()))
        self._known[candidate.arxiv] = (earlier.state, candidate.version)
        self.found.updated.append(replace(candidate, slug=earlier.slug, state=earlier.state))


def _usable(arxiv: str) -> bool:
    return arxiv.isascii() and bare_id(arxiv) == (arxiv, None)


class _Taken:
    """Names that a candidate cannot have: those of entries, and those of the other candidates as of now."""

    def __init__(self, connection: Connection, names: frozenset[str]) -> None:
        self._connection, self._names = connection, names

    def __contains__(self, slug: object) -> bool:
        statement = select(TABLE.c.arxiv).where(TABLE.c.slug == slug)
        return slug in self._names or self._connection.execute(statement).first() is not None

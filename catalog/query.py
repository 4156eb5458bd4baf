"""The one way to read the catalog, for the command line, lists, exports and site alike.

import catalog

with catalog.open() as cat:
    cat.papers(category="reparameterized", mergeable=True, strength="linear")
    cat.paper("(IA)^3")
    cat.lineage("lora").descendants
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import ColumnElement, Connection, Engine, func, select, text

from catalog.columns import (
    ALIAS,
    AUTHOR,
    BENCH,
    DEVIATION,
    ENTRY,
    ERRATUM,
    EVIDENCE,
    LIBRARY,
    METHOD,
    PAPER,
    PAPER_AUTHOR,
)
from catalog.conditions import Filter, checked, matching, measured, unknown
from catalog.database import database_path, open_engine, reading, writing
from catalog.errors import UnknownEntry
from catalog.freshness import is_current
from catalog.paper import AuthorCount, Bench, CategoryCount, Evidence, Lineage, Paper
from catalog.taxonomy import Category, Kind, Strength, Subcategory
from catalog.words import fold

if TYPE_CHECKING:
    from catalog.arxiv_sync.archive import Statement
    from catalog.arxiv_sync.changes import Change
    from catalog.arxiv_sync.status import Status
    from catalog.entry import Deviation, Erratum, Listing
    from catalog.lists_data import SourceList

__all__ = ["AuthorCount", "Bench", "Catalog", "CategoryCount", "Evidence", "Filter", "Lineage", "Paper", "open"]

_WORDS: dict[str, dict[str, Any]] = {
    "kind": {str(word): word for word in Kind},
    "category": {str(word): word for word in Category},
    "subcategory": {str(word): word for word in Subcategory},
    "strength": {str(word): word for word in Strength},
}


class Catalog:
    """An open catalog; see :func:`open`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def path(self) -> Path:
        """The database file."""
        return Path(str(self._engine.url.database))

    @property
    def engine(self) -> Engine:
        """The database, for what follows sources and stores what they say."""
        return self._engine

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the file."""
        self._engine.dispose()

    # Papers.

    def papers(self, wanted: Filter | None = None, /, **conditions: Any) -> list[Paper]:
        """Papers that meet all conditions, given as a Filter or as its keywords; UsageError for a condition that
        makes no sense."""
        with reading(self._engine) as connection:
            return _papers(connection, self._ids(connection, wanted, conditions))

    def count(self, wanted: Filter | None = None, /, **conditions: Any) -> int:
        """How many papers meet the conditions."""
        with reading(self._engine) as connection:
            return len(self._ids(connection, wanted, conditions))

    def paper(self, name: str) -> Paper:
        """A paper by slug, name, alias, arXiv id or DOI; UnknownEntry with near misses otherwise."""
        with reading(self._engine) as connection:
            return _papers(connection, [_id(connection, name)])[0]

    def _ids(self, connection: Connection, wanted: Filter | None, conditions: dict[str, Any]) -> list[int]:
        chosen = checked(wanted, conditions)
        if chosen.builds_on is not None:
            _id(connection, chosen.builds_on)
        if chosen.listed_in is not None and chosen.listed_in not in (known := [s.slug for s in self.lists()]):
            raise unknown(chosen.listed_in, "list", known)
        ids = list(connection.execute(matching(chosen)).scalars())
        if not ids and chosen.library is not None:
            libraries = list(connection.execute(select(LIBRARY.library).distinct().order_by("library")).scalars())
            if chosen.library not in libraries:
                raise unknown(chosen.library, "library that ships a method", libraries)
        return ids

    # Overviews.

    def categories(self) -> list[CategoryCount]:
        """Every category with its counts, in the order of the vocabulary."""
        statement = (
            select(
                PAPER.category,
                func.count(),
                func.count().filter(METHOD.no_implementation.is_(None)),
                func.count().filter(METHOD.implementation.is_not(None)),
                func.count().filter(measured("verified", None)),
            )
            .where(METHOD.paper_id == PAPER.id)
            .group_by(PAPER.category)
        )
        with reading(self._engine) as connection:
            counts = {row[0]: tuple(row[1:]) for row in connection.execute(statement)}
        return [CategoryCount(category, *counts.get(str(category), (0, 0, 0, 0))) for category in Category]

    def authors(self, name: str | None = None, limit: int | None = None) -> list[AuthorCount]:
        """Authors by number of papers; ``name`` narrows to a part of the name."""
        number = func.count(PAPER_AUTHOR.paper_id)
        statement = (
            select(AUTHOR.name, number)
            .where(PAPER_AUTHOR.author_id == AUTHOR.id)
            .group_by(AUTHOR.id)
            .order_by(number.desc(), AUTHOR.name)
            .limit(checked(None, {"limit": limit}).limit)
        )
        if name:
            statement = statement.where(func.instr(AUTHOR.folded, fold(name)) > 0)
        with reading(self._engine) as connection:
            return [AuthorCount(*row) for row in connection.execute(statement)]

    def lineage(self, name: str) -> Lineage:
        """What a paper builds on and what builds on it, through any number of steps."""
        with reading(self._engine) as connection:
            number = _id(connection, name)
            slug = connection.execute(select(PAPER.slug).where(PAPER.id == number)).scalar_one()
            up = _walk(connection, number, "paper_id", "base_id")
            down = _walk(connection, number, "base_id", "paper_id")
        return Lineage(slug, up, down)

    def lists(self) -> tuple[SourceList, ...]:
        """The public lists that entries come from, with their items as printed."""
        from catalog.lists_data import load_lists

        return load_lists()

    def listings(self, list_slug: str) -> list[tuple[Paper, Listing]]:
        """Every appearance of a paper on a list."""
        return [
            (paper, listing)
            for paper in self.papers(listed_in=list_slug)
            for listing in paper.listed_in
            if listing.list_slug == list_slug
        ]

    def errata(self, list_slug: str | None = None) -> list[tuple[Paper, Erratum]]:
        """What lists say wrongly."""
        return [
            (paper, erratum)
            for paper in self._that(PAPER.id.in_(select(ERRATUM.paper_id)))
            for erratum in paper.errata
            if list_slug in (None, erratum.list_slug)
        ]

    def deviations(self) -> list[tuple[Paper, Deviation]]:
        """Who departs from a paper."""
        papers = self._that(PAPER.id.in_(select(DEVIATION.paper_id)))
        return [(paper, deviation) for paper in papers for deviation in paper.deviations]

    def evidence(self, slug: str | None = None) -> list[Evidence]:
        """What was measured, on one paper or all."""
        papers = self._that(PAPER.slug.in_(select(EVIDENCE.slug))) if slug is None else [self.paper(slug)]
        return [row for paper in papers for row in paper.evidence]

    def bench(self, slug: str | None = None) -> list[Bench]:
        """What methods cost, one or all."""
        papers = self._that(PAPER.slug.in_(select(BENCH.slug))) if slug is None else [self.paper(slug)]
        return [row for paper in papers for row in paper.bench]

    # What arXiv says.

    def history(self, name: str) -> list[tuple[Statement, list[Change]]]:
        """What arXiv said about a paper, oldest first, each statement with what changed; empty before a sync."""
        from catalog.arxiv_sync.archive import history

        arxiv = self.paper(name).arxiv
        with reading(self._engine) as connection:
            return history(connection, arxiv) if arxiv else []

    def histories(self) -> dict[str, list[tuple[Statement, list[Change]]]]:
        """What arXiv said about every paper of the catalog that it was asked for, by slug."""
        from catalog.arxiv_sync.archive import history

        statement = select(PAPER.slug, PAPER.arxiv).where(PAPER.arxiv.is_not(None))
        with reading(self._engine) as connection:
            found = {slug: history(connection, arxiv) for slug, arxiv in connection.execute(statement).all()}
        return {slug: statements for slug, statements in found.items() if statements}

    def status(self) -> Status:
        """How fresh the knowledge of arXiv is."""
        from catalog.arxiv_sync.status import status

        with reading(self._engine) as connection:
            return status(connection)

    def _that(self, condition: ColumnElement[bool]) -> list[Paper]:
        """Papers that meet a condition, by name."""
        statement = select(PAPER.id).where(condition).order_by(PAPER.name, PAPER.slug)
        with reading(self._engine) as connection:
            return _papers(connection, list(connection.execute(statement).scalars()))

    # What is measured here.

    def record_evidence(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Store measured claims."""
        from catalog.store import keep_evidence

        with writing(self._engine) as connection:
            keep_evidence(connection, rows)

    def record_reversals(self, rows: Iterable[Mapping[str, Any]], points: Iterable[Mapping[str, Any]]) -> None:
        """Store figures of strength and reversal."""
        from catalog.store import keep_reversals

        with writing(self._engine) as connection:
            keep_reversals(connection, rows, points)

    def measured(self, table: str) -> list[dict[str, Any]]:
        """Rows of a measured table (comparison, reversal, strength_point) in the order of their keys.

        One measured here takes the place of a shipped one with the same key.
        """
        from catalog import models

        known = models.EvidenceRow.metadata.tables[table]
        key = [column for column in known.primary_key if column.name != "source"]
        statement = known.select().order_by(*key, known.c.source.desc())  # local rows after shipped ones
        with reading(self._engine) as connection:
            rows = [dict(row) for row in connection.execute(statement).mappings()]
        return list({tuple(row[column.name] for column in key): row for row in rows}.values())

    def record_bench(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Store benchmark rows."""
        from catalog.store import keep_bench

        with writing(self._engine) as connection:
            keep_bench(connection, rows)


def open(db: Path | str | None = None, *, entries: Path | str | None = None) -> Catalog:
    """Open the catalog at ``db`` (else $PEFT_CATALOG_DB, else the user's data directory).

    The database is built at the first use and again whenever entries have changed or implementations have come.
    """
    engine = open_engine(database_path(db))
    if not is_current(engine, entries):
        from catalog.store import build

        build(engine, entries)
    return Catalog(engine)


def _id(connection: Connection, name: str) -> int:
    """Number of the paper that a name leads to; UnknownEntry with near misses."""
    found = connection.execute(select(ALIAS.paper_id).where(ALIAS.folded == fold(name))).scalar()
    if found is not None:
        return int(found)
    known = {row.folded: row.name for row in connection.execute(select(ALIAS.folded, ALIAS.name))}
    matches = difflib.get_close_matches(fold(name)[:80], known, n=5, cutoff=0.6)  # its time grows with the length
    near = list(dict.fromkeys(known[match] for match in matches))
    raise UnknownEntry(
        f"no paper is known as {name!r}",
        hint=f"did you mean {' or '.join(near)}?" if near else f"peft-catalog query {name!r} searches the texts",
    )


def _papers(connection: Connection, ids: list[int]) -> list[Paper]:
    """The papers of these numbers, in their order."""
    wanted = [table[f.name] for f in fields(Paper) for table in (PAPER, METHOD) if f.name in table]
    statement = select(PAPER.id, ENTRY.json_text.label("entry_json"), *wanted)
    joined = METHOD.paper_id == PAPER.id, ENTRY.paper_id == PAPER.id
    statement = statement.where(*joined, _among(PAPER.id, ids))
    rows = {row["id"]: dict(row) for row in connection.execute(statement).mappings()}
    slugs = [row["slug"] for row in rows.values()]
    evidence, bench = _evidence(connection, slugs), _bench(connection, slugs)
    return [
        Paper(**_worded(row), evidence=evidence.get(row["slug"], ()), bench=bench.get(row["slug"], ()))
        for row in (rows[number] for number in ids)
    ]


def _among(column: Any, values: list[Any]) -> ColumnElement[bool]:
    """Whether the column has one of these values, however many: as JSON they are a single parameter."""
    return column.in_(select(text("value")).select_from(func.json_each(json.dumps(values))))


def _worded(row: dict[str, Any]) -> dict[str, Any]:
    words = {name: word[row[name]] for name, word in _WORDS.items() if row[name] is not None}
    return {key: value for key, value in {**row, **words}.items() if key != "id"}


def _evidence(connection: Connection, slugs: list[str]) -> dict[str, tuple[Evidence, ...]]:
    """By slug, one row a claim and backbone: what was measured here, else what was shipped."""
    # Shipped rows come before local ones, which take their place.
    statement = select(*EVIDENCE).where(_among(EVIDENCE.slug, slugs)).order_by(EVIDENCE.source.desc())
    found: dict[str, dict[tuple[str, str], Evidence]] = {}
    for row in connection.execute(statement).mappings():
        found.setdefault(row["slug"], {})[row["backbone"], row["claim"]] = Evidence(**row)
    return {slug: tuple(rows.values()) for slug, rows in found.items()}


def _bench(connection: Connection, slugs: list[str]) -> dict[str, tuple[Bench, ...]]:
    """By slug, the newest good row of every backbone and device; one measured here goes before a shipped one."""
    statement = select(*BENCH).where(_among(BENCH.slug, slugs), BENCH.status == "ok")
    found: dict[str, dict[tuple[str, str], Bench]] = {}
    for row in connection.execute(statement.order_by(BENCH.source.desc(), BENCH.id)).mappings():
        values = {key: value for key, value in row.items() if key != "id"}
        found.setdefault(row["slug"], {})[row["backbone"], row["device"]] = Bench(**values)
    return {slug: tuple(rows.values()) for slug, rows in found.items()}


def _walk(connection: Connection, number: int, here: str, there: str) -> tuple[tuple[str, int], ...]:
    """Slugs reached over the edges of the lineage, with the least number of steps."""
    statement = text(
        f"""WITH RECURSIVE walk(id, steps) AS (
            SELECT {there}, 1 FROM builds_on WHERE {here} = :number
            UNION SELECT {there}, steps + 1 FROM builds_on JOIN walk ON {here} = walk.id WHERE steps < 50
        ) SELECT slug, min(steps) AS near FROM walk JOIN paper USING (id) GROUP BY slug ORDER BY near, slug"""
    )
    return tuple((row.slug, row.near) for row in connection.execute(statement, {"number": number}))

"""Entry files -> SQLite, in one transaction: killed at any moment, a build leaves the database as it was.

Tables derived from entries are emptied and filled; what was fetched or measured stays.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.exc import IntegrityError
from sqlmodel import SQLModel, delete, insert

from catalog import models
from catalog.database import migrate, revision, writing
from catalog.dimensions import MODELS
from catalog.entry import Entry, load_entries
from catalog.errors import StoreError
from catalog.freshness import signature
from catalog.lists_data import load_lists
from catalog.locations import MEASURED
from catalog.migrations import HEAD
from catalog.parameters import trained_at
from catalog.taxonomy import Status
from catalog.words import fold


def build(engine: Engine, root: Path | str | None = None) -> None:
    """Bring the schema up to date and fill the derived tables; EntryError or StoreError leave all as it was."""
    mark = signature(root)
    entries = load_entries(root)
    with writing(engine) as connection:
        if revision(engine) != HEAD:
            migrate(connection)
        try:
            fill(connection, entries)
        except IntegrityError as error:
            hint = "peft-catalog lint lists all faults"
            raise StoreError(f"the entries do not fit together: {error.orig}", hint=hint) from error
        put(connection, models.Meta, [{"key": "signature", "value": mark}])


def fill(connection: Connection, entries: list[Entry]) -> None:
    """Empty the derived tables and fill them from entries and the shipped measurements."""
    for derived in models.DERIVED:
        connection.execute(delete(derived))
    connection.execute(text("DELETE FROM paper_text"))
    rows = Rows(entries)
    for table, values in rows.tables():
        put(connection, table, values)
    if rows.text:
        statement = "INSERT INTO paper_text (rowid, name, aliases, title, authors, summary) VALUES "
        connection.execute(text(statement + "(:id, :name, :aliases, :title, :authors, :summary)"), rows.text)
    shipped(connection, models.EvidenceRow, "claims")
    shipped(connection, models.BenchRow, "bench")
    shipped(connection, models.ComparisonRow, "comparison")
    shipped(connection, models.ReversalRow, "reversal")
    shipped(connection, models.StrengthPointRow, "strength")
    connection.execute(text("ANALYZE"))  # lets SQLite choose the more selective of two indexes


def put(connection: Connection, table: type[SQLModel], rows: list[dict[str, Any]]) -> None:
    """Insert rows, if there are any."""
    if rows:
        connection.execute(insert(table), rows)


def shipped(connection: Connection, table: type[SQLModel], name: str) -> None:
    """Replace the shipped rows of a measured table by those of ``measured/<name>.jsonl``."""
    connection.execute(text(f"DELETE FROM {table.__tablename__} WHERE source = 'shipped'"))
    path = MEASURED / f"{name}.jsonl"
    if path.exists():
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        put(connection, table, [{**columns(table, row), "source": "shipped"} for row in rows])


def columns(table: type[SQLModel], row: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a row that the table has columns for, with defaults for the rest."""
    fields = {name: field for name, field in table.model_fields.items() if name != "id"}
    return {name: row.get(name, field.get_default()) for name, field in fields.items()}


def keep_evidence(connection: Connection, rows: Iterable[Mapping[str, Any]]) -> None:
    """Store claims measured here; a newer measurement of the same claim takes the older one's place."""
    replace(connection, models.EvidenceRow, rows)


def keep_reversals(
    connection: Connection, rows: Iterable[Mapping[str, Any]], points: Iterable[Mapping[str, Any]]
) -> None:
    """Store what was measured here of strength and reversal; newer figures take the place of older ones."""
    replace(connection, models.ReversalRow, rows)
    replace(connection, models.StrengthPointRow, points)


def replace(connection: Connection, table: type[SQLModel], rows: Iterable[Mapping[str, Any]]) -> None:
    """Insert rows measured here, in the place of those with the same key."""
    key = [column.name for column in inspect(table).primary_key]
    for row in rows:
        values = {**columns(table, row), "source": "local"}
        statement = upsert(table).values(values)
        connection.execute(
            statement.on_conflict_do_update(index_elements=key, set_={k: values[k] for k in values if k not in key})
        )


def keep_bench(connection: Connection, rows: Iterable[Mapping[str, Any]]) -> None:
    """Store benchmark rows measured here, beside earlier ones."""
    put(connection, models.BenchRow, [{**columns(models.BenchRow, row), "source": "local"} for row in rows])


class Rows:
    """The rows of all derived tables for a list of entries."""

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = entries
        self.ids = {entry.slug: number for number, entry in enumerate(entries, start=1)}
        names = sorted({name for entry in entries for name in entry.authors})
        self.people = {name: number for number, name in enumerate(names, start=1)}
        self.text = [self._text(entry) for entry in entries]

    def tables(self) -> Iterator[tuple[type[SQLModel], list[dict[str, Any]]]]:
        """Tables with their rows, parents before children."""
        yield models.PaperRow, [self._paper(entry) for entry in self.entries]
        yield (
            models.EntryRow,
            [
                {"paper_id": i, "json_text": entry.model_dump_json(by_alias=True, exclude_defaults=True)}
                for i, entry in self._numbered()
            ],
        )
        yield models.MethodRow, [self._method(entry) for entry in self.entries]
        yield models.Author, [{"id": i, "name": name, "folded": fold(name)} for name, i in self.people.items()]
        yield (
            models.PaperAuthor,
            [
                {"paper_id": i, "position": position, "author_id": self.people[name]}
                for i, entry in self._numbered()
                for position, name in enumerate(entry.authors, start=1)
            ],
        )
        yield (
            models.PaperModality,
            [{"paper_id": i, "modality": str(m)} for i, e in self._numbered() for m in e.modality],
        )
        yield (
            models.PaperLibrary,
            [
                {"paper_id": i, "library": library, "name": name}
                for i, entry in self._numbered()
                for library, name in entry.libraries.items()
            ],
        )
        yield models.Alias, self._aliases()
        yield models.BuildsOn, self._edges()
        yield (
            models.SourceListRow,
            [{"slug": s.slug, "title": s.title, "url": s.url, "style": str(s.style)} for s in load_lists()],
        )
        for table, name in (
            (models.ListingRow, "listed_in"),
            (models.ErratumRow, "errata"),
            (models.DeviationRow, "deviations"),
        ):
            yield table, [{"paper_id": i, **dict(part)} for i, e in self._numbered() for part in getattr(e, name)]
        yield (
            models.ParameterCount,
            [
                {"paper_id": i, "model": model, "trained": count}
                for i, entry in self._numbered()
                for model in (MODELS if entry.claims.parameters else ())
                if (count := trained_at(entry, model)) is not None
            ],
        )
        yield (
            models.ClaimRow,
            [
                {"paper_id": i, "claim": claim, "expected": expected}
                for i, entry in self._numbered()
                for claim, expected in claims(entry).items()
            ],
        )

    def _numbered(self) -> Iterator[tuple[int, Entry]]:
        return ((self.ids[entry.slug], entry) for entry in self.entries)

    def _paper(self, entry: Entry) -> dict[str, Any]:
        plain = ("slug", "name", "title", "arxiv", "doi", "url", "code", "venue", "published", "year")
        words = ("kind", "category", "subcategory", "status")
        return {
            "id": self.ids[entry.slug],
            **{name: getattr(entry, name) for name in plain},
            **{name: None if getattr(entry, name) is None else str(getattr(entry, name)) for name in words},
        }

    def _method(self, entry: Entry) -> dict[str, Any]:
        back = entry.reversibility if not entry.no_implementation else None
        return {
            "paper_id": self.ids[entry.slug],
            "implementation": entry.implementation if entry.has_implementation else None,
            "no_implementation": entry.no_implementation,
            "detachable": back and back.detachable,
            "mergeable": back and back.mergeable,
            "strength": back and str(back.strength),
            "strength_knob": back and back.strength_knob,
            "identity_at_init": entry.claims.identity_at_init,
            "parameters": entry.claims.parameters,
        }

    def _aliases(self) -> list[dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        # Where two entries share an identifier, it leads to the one that stands.
        for i, entry in sorted(self._numbered(), key=lambda pair: pair[1].status == Status.SUPERSEDED):
            for name in (entry.slug, entry.name, *entry.aliases, *filter(None, (entry.arxiv, entry.doi))):
                found.setdefault(fold(name), {"folded": fold(name), "name": name, "paper_id": i})
        for i, entry in self._numbered():  # a slug always means its own entry, whoever has it as a name
            found[entry.slug]["paper_id"] = i
        return list(found.values())

    def _edges(self) -> list[dict[str, Any]]:
        unknown = [(e.slug, base) for e in self.entries for base in e.builds_on if base not in self.ids]
        if unknown:
            raise StoreError(
                f"{unknown[0][0]} builds on {unknown[0][1]!r}, which is no entry",
                hint="peft-catalog lint lists all faults",
            )
        return [{"paper_id": i, "base_id": self.ids[base]} for i, entry in self._numbered() for base in entry.builds_on]

    def _text(self, entry: Entry) -> dict[str, Any]:
        return {
            "id": self.ids[entry.slug],
            "name": entry.name,
            "aliases": " ".join((entry.slug, *entry.aliases)),
            "title": entry.title,
            "authors": " ".join(entry.authors),
            "summary": f"{entry.summary} {entry.how_it_differs or ''}",
        }


def claims(entry: Entry) -> dict[str, str]:
    """What an entry claims, by the names of the measurements."""
    back, claim = entry.reversibility, entry.claims
    found: dict[str, str | None] = {
        "trained-parameters": claim.parameters,
        "reported-counts": "; ".join(f"{count.at}: {count.trained:,}" for count in claim.counts) or None,
        "identity-at-init": None if claim.identity_at_init is None else yes_or_no(claim.identity_at_init),
    }
    if back and not entry.no_implementation:
        found |= {
            "detachable": yes_or_no(back.detachable),
            "mergeable": yes_or_no(back.mergeable),
            "strength": str(back.strength),
        }
    return {name: value for name, value in found.items() if value is not None}


def yes_or_no(value: bool) -> str:
    """A truth value for people."""
    return "yes" if value else "no"

"""Statements of arXiv -> database: history only grows, and a statement that says nothing new writes nothing.

The newest statement about a paper is the one of the highest version; of one version, the one asked for last. So the
order in which statements arrive does not matter.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import Connection, text

from catalog.arxiv_sync.changes import Change, changes
from catalog.arxiv_sync.record import Record, State


@dataclass(frozen=True)
class Statement:
    """What arXiv said about a paper, when, and through which interface."""

    record: Record
    as_of: str
    source: str
    datestamp: str = ""

    @property
    def rank(self) -> tuple[int, str, str, str]:
        """Newer statements have a higher one; no two that differ have the same."""
        return (self.record.version, self.as_of, self.datestamp, self.record.digest)


@dataclass
class News:
    """What some statements say that was not known: rows for the database, and changes for people."""

    added: list[Statement] = field(default_factory=list)
    current: dict[str, Statement] = field(default_factory=dict)
    completed: dict[int, Record] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.added or self.completed)


def news(connection: Connection, statements: Sequence[Statement]) -> News:
    """What is new in these statements; reads only."""
    ids = list(dict.fromkeys(each.record.arxiv for each in statements))
    known = {row.record.arxiv: (number, row) for number, row in _current(connection, ids)}
    latest = {arxiv: statement for arxiv, (_, statement) in known.items()}
    found = News()
    for statement in statements:
        arxiv, now = statement.record.arxiv, latest.get(statement.record.arxiv)
        if now and statement.record.digest == now.record.digest:
            _complete(found, known, statement)
        elif now is None or statement.rank >= now.rank:
            whole = replace(statement, record=statement.record.with_known(now.record)) if now else statement
            found.added.append(whole)
            found.current[arxiv] = latest[arxiv] = whole
            found.changes += changes(now.record if now else None, whole.record)
        elif statement.record.digest not in _said(connection, found, arxiv):
            found.added.append(statement)
    return found


def keep(connection: Connection, found: News) -> None:
    """Write what is new."""
    first = int(connection.execute(text("SELECT coalesce(max(id), 0) FROM arxiv_statement")).scalar_one()) + 1
    numbers = {id(statement): first + place for place, statement in enumerate(found.added)}
    if found.added:
        connection.execute(
            text(
                "INSERT INTO arxiv_statement (id, arxiv, version, as_of, source, datestamp, digest, record) "
                "VALUES (:id, :arxiv, :version, :as_of, :source, :datestamp, :digest, :record)"
            ),
            [_statement_row(numbers[id(each)], each) for each in found.added],
        )
    if found.current:
        connection.execute(
            text(
                "INSERT INTO arxiv_record (arxiv, version, title, published, updated, state, as_of, statement_id) "
                "VALUES (:arxiv, :version, :title, :published, :updated, :state, :as_of, :statement_id) "
                "ON CONFLICT (arxiv) DO UPDATE SET version = excluded.version, title = excluded.title, "
                "published = excluded.published, updated = excluded.updated, state = excluded.state, "
                "as_of = excluded.as_of, statement_id = excluded.statement_id"
            ),
            [_record_row(numbers[id(each)], each) for each in found.current.values()],
        )
    if found.completed:
        connection.execute(
            text("UPDATE arxiv_statement SET record = :record WHERE id = :id"),
            [{"id": number, "record": record.to_json()} for number, record in found.completed.items()],
        )


def deleted(connection: Connection, ids: Iterable[str]) -> list[Record]:
    """Records of these papers, as far as they are known, in the state of having been deleted by arXiv."""
    return [
        replace(statement.record, state=State.DELETED)
        for _, statement in _current(connection, list(dict.fromkeys(ids)))
    ]


def current(connection: Connection, ids: Iterable[str]) -> dict[str, Statement]:
    """The newest statement about each of these papers, where there is one."""
    return {statement.record.arxiv: statement for _, statement in _current(connection, list(ids))}


def history(connection: Connection, arxiv: str) -> list[tuple[Statement, list[Change]]]:
    """Everything arXiv said about a paper, oldest first, each with what changed since the statement before."""
    rows = connection.execute(
        text(
            "SELECT id, as_of, source, datestamp, record FROM arxiv_statement WHERE arxiv = :arxiv "
            "ORDER BY version, as_of, datestamp, id"
        ),
        {"arxiv": arxiv},
    )
    found: list[tuple[Statement, list[Change]]] = []
    for row in rows:
        statement = Statement(Record.from_json(row.record), row.as_of, row.source, row.datestamp)
        found.append((statement, changes(found[-1][0].record if found else None, statement.record)))
    return found


def _complete(found: News, known: dict[str, tuple[int, Statement]], statement: Statement) -> None:
    """Note what this statement adds to a stored one that says the same, such as affiliations."""
    if statement.record.arxiv not in known or statement.record.arxiv in found.current:
        return
    number, stored = known[statement.record.arxiv]
    whole = stored.record.with_known(statement.record)
    if whole != stored.record:
        found.completed[number] = whole


def _current(connection: Connection, ids: list[str]) -> Iterator[tuple[int, Statement]]:
    rows = connection.execute(
        text(
            "SELECT s.id, s.as_of, s.source, s.datestamp, s.record FROM arxiv_record r "
            "JOIN arxiv_statement s ON s.id = r.statement_id "
            "WHERE r.arxiv IN (SELECT value FROM json_each(:ids))"
        ),
        {"ids": json.dumps(ids)},
    )
    for row in rows:
        yield row.id, Statement(Record.from_json(row.record), row.as_of, row.source, row.datestamp)


def _said(connection: Connection, found: News, arxiv: str) -> set[str]:
    """Digests of everything that was ever said about a paper, just now included."""
    rows = connection.execute(text("SELECT digest FROM arxiv_statement WHERE arxiv = :arxiv"), {"arxiv": arxiv})
    return {*rows.scalars(), *(each.record.digest for each in found.added if each.record.arxiv == arxiv)}


def _statement_row(number: int, statement: Statement) -> dict[str, object]:
    record = statement.record
    return {
        "id": number,
        "arxiv": record.arxiv,
        "version": record.version,
        "as_of": statement.as_of,
        "source": statement.source,
        "datestamp": statement.datestamp,
        "digest": record.digest,
        "record": record.to_json(),
    }


def _record_row(number: int, statement: Statement) -> dict[str, object]:
    record = statement.record
    return {
        "arxiv": record.arxiv,
        "version": record.version,
        "title": record.title,
        "published": record.published,
        "updated": record.updated,
        "state": str(record.state),
        "as_of": statement.as_of,
        "statement_id": number,
    }

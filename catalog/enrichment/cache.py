"""Facts -> database, with the source and the day; negative answers too."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from pydantic import ValidationError
from sqlalchemy import Connection, Engine, text

from catalog.arxiv_sync.follow import now
from catalog.database import reading, writing
from catalog.enrichment.facts import Facts

GOOD_DAYS = 30


class Kept(NamedTuple):
    """Facts, and when they were fetched."""

    fetched: str
    facts: Facts


def keep(engine: Engine, source: str, key: str, facts: Facts) -> bool:
    """Store what a source says about a paper just now; whether that is something new."""
    with writing(engine) as connection:
        before = kept(connection, source).get(key)
        connection.execute(
            text(
                "INSERT INTO enrichment (source, arxiv, fetched, facts) VALUES (:source, :key, :fetched, :facts) "
                "ON CONFLICT (source, arxiv) DO UPDATE SET fetched = excluded.fetched, facts = excluded.facts"
            ),
            {"source": source, "key": key, "fetched": now(), "facts": facts.model_dump_json()},
        )
    return before is None or before.facts != facts


def kept(connection: Connection, source: str) -> dict[str, Kept]:
    """What a source said about papers, by their key; rows that cannot be read count as not there."""
    found: dict[str, Kept] = {}
    statement = text("SELECT arxiv, fetched, facts FROM enrichment WHERE source = :source")
    for row in connection.execute(statement, {"source": source}):
        try:
            found[row.arxiv] = Kept(row.fetched, Facts.model_validate_json(row.facts))
        except ValidationError:
            continue
    return found


def good(engine: Engine, source: str) -> set[str]:
    """Keys of papers about which a source need not be asked again yet."""
    since = (datetime.now(UTC) - timedelta(days=GOOD_DAYS)).strftime("%Y-%m-%dT%H:%M:%SZ")
    with reading(engine) as connection:
        return {key for key, row in kept(connection, source).items() if row.fetched >= since}

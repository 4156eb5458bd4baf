"""The stored queries, asked of arXiv: each page is stored before the next is asked, candidates with what arXiv says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from sqlalchemy import Connection, Engine, text

from catalog.arxiv_sync.archive import Statement, keep, news
from catalog.arxiv_sync.feed import Feed
from catalog.arxiv_sync.follow import followed, now
from catalog.arxiv_sync.search import search
from catalog.arxiv_sync.transport import Transport
from catalog.database import reading, writing
from catalog.discovery.sieve import Found, Sieve
from catalog.errors import Unreachable

FIRST = timedelta(days=30)
"""How far the first search looks back."""
OVERLAP = timedelta(days=14)
"""How far later ones look back behind the last: a paper can be held that long before it is announced."""
SILENCE = timedelta(days=7)
"""In so many days all stored queries together always find something."""


@dataclass
class Outcome:
    """What the queries found. ``failure`` is why the search is not complete; what arrived before is stored."""

    since: date
    found: Found = field(default_factory=Found)
    totals: dict[str, int] = field(default_factory=dict)
    unusable: list[str] = field(default_factory=list)
    newest: str | None = None
    pages: int = 0
    failure: Unreachable | None = None


def discover(
    engine: Engine,
    transport: Transport,
    queries: Mapping[str, str],
    since: date,
    *,
    root: Path | str | None = None,
    arrived: Callable[[Outcome, str], None] = lambda outcome, query: None,
) -> Outcome:
    """Ask every query for papers first submitted since a day; ``arrived`` is told after every page, with its query."""
    sieve = Sieve(engine, root)
    outcome = Outcome(since, sieve.found)
    try:
        for name, query in queries.items():
            outcome.totals[name] = 0
            for page in search(transport, query, since):
                _take_in(engine, sieve, outcome, page, name)
                outcome.totals[name] = page.total
                arrived(outcome, name)
        if not any(outcome.totals.values()) and datetime.now(UTC).date() - since >= SILENCE:
            raise Unreachable(f"arXiv finds nothing at all since {since}, which cannot be", hint="try again later")
    except Unreachable as failure:
        outcome.failure = failure
    else:
        with writing(engine) as connection:
            learned = bool(outcome.found.new or outcome.found.updated)
            followed(connection, "discover", learned=learned, newest=outcome.newest)
    return outcome


def first_day(engine: Engine) -> date:
    """The day from which to search: somewhat before the last search that succeeded."""
    with reading(engine) as connection:
        last = _last(connection)
    today = datetime.now(UTC).date()
    return min(today, date.fromisoformat(last[:10])) - OVERLAP if last else today - FIRST


def _last(connection: Connection) -> str | None:
    return connection.execute(text("SELECT succeeded FROM follow WHERE kind = 'discover'")).scalar()


def _take_in(engine: Engine, sieve: Sieve, outcome: Outcome, page: Feed, query: str) -> None:
    candidates = sieve.sift(page.records)
    outcome.pages += 1
    outcome.unusable += page.unusable
    outcome.newest = max([outcome.newest or "", *(record.published for record in page.records)]) or None
    if not candidates:
        return
    at, wanted = now(), {candidate.arxiv for candidate in candidates}
    said = [Statement(record, at, "query") for record in page.records if record.arxiv in wanted]
    with writing(engine) as connection:
        keep(connection, news(connection, said))
        sieve.keep(connection, candidates, source=query, now=at)

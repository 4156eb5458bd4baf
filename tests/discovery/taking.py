"""Records -> inbox, page by page, as search and harvest do it with a sieve; without what they do besides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from sqlalchemy import Engine

from catalog.arxiv_sync.record import Record
from catalog.database import writing
from catalog.discovery.queries import Rules
from catalog.discovery.sieve import Found, Sieve


def take_in(
    engine: Engine,
    pages: Iterable[Sequence[Record]],
    *,
    source: str,
    now: str,
    root: Path | str | None = None,
    rules: Rules | None = None,
    on_page: Callable[[Found], None] | None = None,
) -> Found:
    """Take new candidates among the records into the inbox, each page in one short transaction.

    ``source`` says what found them, ``now`` when (ISO 8601 in UTC); ``on_page`` is told after every page what was
    found so far. The same records again, in any order, change nothing but which of two papers of one name got it.
    """
    sieve = Sieve(engine, root, rules)
    for page in pages:
        candidates = sieve.sift(page)
        if candidates:
            with writing(engine) as connection:
                sieve.keep(connection, candidates, source=source, now=now)
        if on_page is not None:
            on_page(sieve.found)
    return sieve.found

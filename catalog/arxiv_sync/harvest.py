"""Harvesting: page after page of what changed on arXiv, each stored in one transaction with where to go on.

Killed at any moment, a harvest loses the page it was waiting for and nothing else.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from sqlalchemy import Connection, Engine

from catalog.arxiv_sync.archive import News, Statement, deleted, keep, news
from catalog.arxiv_sync.bookmark import Bookmark, store
from catalog.arxiv_sync.changes import Kind
from catalog.arxiv_sync.follow import followed, now, seen
from catalog.arxiv_sync.oai import Page, Refused, read_page
from catalog.arxiv_sync.transport import Again, Answer, TooLong, Transport
from catalog.database import writing
from catalog.discovery.candidates import Candidate
from catalog.discovery.sieve import Sieve
from catalog.errors import Unreachable, UsageError

SHOWN = 20
"""Candidates, and records that could not be read, that are kept to be shown; all are counted."""
BEGINNINGS = 3
"""Times that a harvest begins again because the server refuses its own tokens."""
_TOKEN_REFUSED = ("badResumptionToken", "badArgument")
_USAGE = ("badArgument", "noSetHierarchy")


@dataclass
class Outcome:
    """What a run did; its numbers leave out what earlier runs of the same harvest had stored.

    ``complete`` means that the end of the list was reached, ``failure`` is why not; what arrived before is stored.
    """

    bookmark: Bookmark
    earlier: int = 0
    pages: int = 0
    records: int = 0
    new: int = 0
    changed: int = 0
    deleted: int = 0
    candidates: int = 0
    best: list[Candidate] = field(default_factory=list)
    unusable: int = 0
    problems: list[str] = field(default_factory=list)
    newest: str | None = None
    requests: int = 0
    complete: bool = False
    failure: Unreachable | None = None


def harvest(
    engine: Engine,
    transport: Transport,
    sieve: Sieve,
    bookmark: Bookmark,
    *,
    arrived: Callable[[Outcome], None] = lambda outcome: None,
    noticed: Callable[[str], None] = lambda message: None,
) -> Outcome:
    """Harvest from the bookmark to the end of the list. ``arrived`` is called after every stored page.

    UsageError for a set or a window that the server refuses.
    """
    run = _Run(engine, transport, sieve, bookmark, noticed)
    try:
        while not run.outcome.complete:
            run.step()
            arrived(run.outcome)
    except Unreachable as failure:
        run.outcome.failure = failure
    return run.outcome


class _Run:
    def __init__(
        self,
        engine: Engine,
        transport: Transport,
        sieve: Sieve,
        bookmark: Bookmark,
        noticed: Callable[[str], None],
    ) -> None:
        self.outcome = Outcome(bookmark, earlier=bookmark.pages)
        self._engine, self._transport, self._sieve, self._noticed = engine, transport, sieve, noticed
        self._beginnings = 0

    def step(self) -> None:
        """One page, or the way back to the start when the server has forgotten where the harvest was."""
        outcome = self.outcome
        try:
            page = self._ask(outcome.bookmark)
        except Refused as refusal:
            self._back(refusal)
        except TooLong as problem:
            raise Unreachable("the server finds its own resumption token too long") from problem
        else:
            self._take_in(page)
        finally:
            outcome.requests = self._transport.requests

    def _ask(self, bookmark: Bookmark) -> Page:
        def read(answer: Answer) -> Page:
            page = read_page(answer)
            if page.token is not None and page.token == bookmark.token:
                raise Again("a page that leads to itself")
            return page

        return self._transport.ask(bookmark.address, bookmark.request(), read)

    def _back(self, refusal: Refused) -> None:
        bookmark = self.outcome.bookmark
        if bookmark.token is None or refusal.code not in _TOKEN_REFUSED:
            raise _explained(bookmark, refusal) from refusal
        self._beginnings += 1
        if self._beginnings > BEGINNINGS:
            raise Unreachable(f"the server refuses the resumption tokens that it gave: {refusal}") from refusal
        self._noticed("the server has forgotten where the harvest was; it begins again, and what is stored stays")
        self.outcome.bookmark, self.outcome.earlier = bookmark.at_start(), 0

    def _take_in(self, page: Page) -> None:
        at = min(page.at or now(), now())
        candidates = self._sieve.sift(record for record, _ in page.records)
        bookmark = self.outcome.bookmark.after(page, at)
        newest = max((record.published for record, _ in page.records if record.published <= at), default=None)
        with writing(self._engine) as connection:
            said = _learn(connection, (Statement(record, at, "oai", stamp) for record, stamp in page.records))
            gone = [
                Statement(record, at, "oai", page.deleted[record.arxiv]) for record in deleted(connection, page.deleted)
            ]
            lost = _learn(connection, gone)
            self._sieve.keep(connection, candidates, source="harvest", now=at)
            store(connection, bookmark)
            tell = followed if page.token is None else seen
            tell(connection, "harvest", learned=bool(said or lost), newest=newest)
        self.outcome.bookmark, self.outcome.complete = bookmark, page.token is None
        self._count(page, said, lost, newest)

    def _count(self, page: Page, said: News, lost: News, newest: str | None) -> None:
        outcome, found = self.outcome, self._sieve.found
        new = {change.arxiv for change in said.changes if change.kind is Kind.FIRST_SEEN}
        outcome.pages += 1
        outcome.records += page.size
        outcome.new += len(new)
        outcome.changed += len(said.current.keys() - new)
        outcome.deleted += len(lost.current)
        outcome.candidates += len(found.new)
        outcome.best = heapq.nlargest(SHOWN, outcome.best + found.new, key=lambda each: each.score)
        outcome.unusable += len(page.unusable)
        outcome.problems += page.unusable[: SHOWN - len(outcome.problems)]
        outcome.newest = max(filter(None, (outcome.newest, newest)), default=None)
        # What was kept is counted; a harvest of a million records must not hold all of it.
        found.new.clear()
        found.updated.clear()


def _learn(connection: Connection, statements: Iterable[Statement]) -> News:
    found = news(connection, list(statements))
    keep(connection, found)
    return found


def _explained(bookmark: Bookmark, refusal: Refused) -> UsageError | Unreachable:
    """What a refusal means for a person."""
    if refusal.code in _USAGE and bookmark.token is None:
        return UsageError(
            f"arXiv refuses the harvest: {refusal}",
            where=f"--set {bookmark.set_name}, {bookmark.window.words}",
            hint="its datestamps begin on 2005-09-16; sets are named like cs, stat or cs:cs:LG",
        )
    return Unreachable(f"the server answers with the error {refusal.code[:50]!r}: {refusal}", hint="check --arxiv-url")

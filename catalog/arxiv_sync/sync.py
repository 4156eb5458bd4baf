"""The catalogued papers, asked for by id: what arXiv says now is stored, and held against the entries."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Engine

from catalog.arxiv_sync.archive import News, Statement, keep, news
from catalog.arxiv_sync.batches import SIZE, Batch, by_ids
from catalog.arxiv_sync.changes import Change
from catalog.arxiv_sync.follow import followed, now
from catalog.arxiv_sync.reconcile import Drift, drifts
from catalog.arxiv_sync.search import newest
from catalog.arxiv_sync.transport import Transport
from catalog.database import reading, writing
from catalog.entry import Entry
from catalog.errors import Unreachable

PROBE = "cat:cs.LG"
"""A category in which every announcement has papers: its newest one tells which announcement arXiv has reached."""


@dataclass
class Outcome:
    """What a sync found. ``failure`` is why it is not complete; what arrived before is stored and counted."""

    asked: int
    received: int = 0
    learned: int = 0
    changes: list[Change] = field(default_factory=list)
    drifts: list[Drift] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    malformed: dict[str, str] = field(default_factory=dict)
    unusable: list[str] = field(default_factory=list)
    withheld: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    newest: str | None = None
    requests: int = 0
    failure: Unreachable | None = None

    @property
    def drifted(self) -> bool:
        """Whether an entry and arXiv disagree, ids included."""
        return bool(self.drifts or self.unknown or self.malformed)


def sync(
    engine: Engine,
    transport: Transport,
    entries: Sequence[Entry],
    *,
    size: int = SIZE,
    store: bool = True,
    arrived: Callable[[Outcome], None] = lambda outcome: None,
) -> Outcome:
    """Ask for every entry that has an arXiv id, ``size`` a request, and store each answer before asking for the next.

    ``store=False`` compares and changes nothing. ``arrived`` is called after every answer.
    """
    wanted: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.arxiv:
            wanted[entry.arxiv].append(entry)
    outcome = Outcome(asked=len(wanted))
    try:
        for batch in by_ids(transport, list(wanted), size):
            _take_in(engine, outcome, batch, wanted, store=store)
            outcome.requests = transport.requests
            arrived(outcome)
        if outcome.withheld:
            raise Unreachable(f"arXiv counts these papers and does not send them: {', '.join(outcome.withheld)}")
    except Unreachable as failure:
        outcome.failure = failure
    else:
        _probe(transport, outcome)
    outcome.requests = transport.requests
    if store and not outcome.failure:
        with writing(engine) as connection:
            followed(connection, "sync", learned=bool(outcome.learned), newest=outcome.newest)
    return outcome


def _probe(transport: Transport, outcome: Outcome) -> None:
    """Ask which announcement arXiv has reached. A sync is complete without; what is known goes stale in time."""
    try:
        outcome.newest = newest(transport, PROBE)
    except Unreachable as failure:
        outcome.remarks.append(f"the newest announcement is not known: {failure.message}")


def _take_in(engine: Engine, outcome: Outcome, batch: Batch, wanted: dict[str, list[Entry]], *, store: bool) -> None:
    as_of = now()
    found = learn(engine, [Statement(record, as_of, "query") for record in batch.records], store=store)
    outcome.received += len(batch.records)
    outcome.learned += len(found.added)
    outcome.changes += found.changes
    outcome.unknown += batch.unknown
    outcome.malformed |= batch.malformed
    outcome.unusable += batch.unusable
    outcome.withheld += batch.withheld
    for record in batch.records:
        for entry in wanted[record.arxiv]:
            outcome.drifts += drifts(entry, record)


def learn(engine: Engine, statements: Sequence[Statement], *, store: bool = True) -> News:
    """Store what is new in these statements, in one transaction; nothing is written when nothing is."""
    with reading(engine) as connection:
        found = news(connection, statements)
    if not found or not store:
        return found
    with writing(engine) as connection:
        found = news(connection, statements)  # another process may have stored it meanwhile
        keep(connection, found)
    return found

"""The inbox: candidates that wait for a decision, and the decisions."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from sqlalchemy import Connection, Engine, select, update

from catalog.arxiv_sync.record import Record, bare_id
from catalog.columns import PAPER
from catalog.database import reading, writing
from catalog.discovery.candidates import TABLE, Candidate, State, kept
from catalog.errors import CatalogError, UsageError

LONGEST_KEY = 80
"""Letters of a name that near misses are looked for with: the time for that grows with the length."""


class UnknownCandidate(CatalogError):
    """No candidate has this slug or arXiv id."""


def listed(connection: Connection, *, everything: bool = False, categories: Iterable[str] = ()) -> list[Candidate]:
    """Candidates of these categories, the highest score first: those that wait for a decision and got no entry
    otherwise, or all there are."""
    statement = select(TABLE).order_by(TABLE.c.score.desc(), TABLE.c.arxiv)
    if not everything:
        has_entry = select(PAPER.arxiv).where(PAPER.arxiv == TABLE.c.arxiv).exists()
        statement = statement.where(TABLE.c.state == str(State.WAITING), ~has_entry)
    if wanted := list(categories):
        statement = statement.where(TABLE.c.category.in_(wanted))
    return [Candidate.from_row(dict(row)) for row in connection.execute(statement).mappings()]


def find(connection: Connection, key: str) -> Candidate:
    """The candidate with this suggested slug or arXiv id, version or not; UnknownCandidate with near misses."""
    bare = bare_id(key)
    found = kept(connection, bare[0]) if bare else _by_slug(connection, key.lower())
    if found is None:
        raise UnknownCandidate(f"no candidate is known as {key!r}", hint=_near(connection, key))
    return found


def record_of(connection: Connection, candidate: Candidate) -> Record | None:
    """What arXiv says about a candidate now, where that is stored."""
    from catalog.arxiv_sync.archive import current

    statement = current(connection, [candidate.arxiv]).get(candidate.arxiv)
    return statement.record if statement else None


def reject(engine: Engine, key: str, reason: str, *, now: str) -> Candidate:
    """Decide that a paper does not belong into the catalog, for good: it is never proposed again."""
    if not reason.strip():
        raise UsageError("a rejection needs a reason, for who wonders later", hint="inbox reject KEY 'the reason'")
    with writing(engine) as connection:
        candidate = find(connection, key)
        if candidate.state is not State.WAITING:
            raise _decided(candidate)
        return _decide(connection, candidate, State.REJECTED, reason.strip(), now)


def restore(engine: Engine, key: str) -> Candidate:
    """Take a decision back: the candidate waits again. An entry that was begun for it stays."""
    with writing(engine) as connection:
        candidate = find(connection, key)
        if candidate.state is State.WAITING:
            raise UsageError(f"{candidate.slug} waits for a decision: there is nothing to take back")
        return _decide(connection, candidate, State.WAITING, "", None)


def mark_accepted(engine: Engine, arxiv: str, *, now: str) -> Candidate:
    """Note that a candidate has an entry; the time of an earlier acceptance stands."""
    with writing(engine) as connection:
        candidate = find(connection, arxiv)
        if candidate.state is State.ACCEPTED:
            return candidate
        return _decide(connection, candidate, State.ACCEPTED, "", now)


def acceptable(engine: Engine, key: str) -> tuple[Candidate, Record | None]:
    """A candidate that may be accepted, and what arXiv says about it; UsageError for one that was rejected."""
    with reading(engine) as connection:
        candidate = find(connection, key)
        if candidate.state is State.REJECTED:
            raise _decided(candidate)
        return candidate, record_of(connection, candidate)


def _decide(connection: Connection, candidate: Candidate, state: State, reason: str, decided: str | None) -> Candidate:
    values = {"state": str(state), "reason": reason, "decided": decided}
    connection.execute(update(TABLE).where(TABLE.c.arxiv == candidate.arxiv).values(values))
    found = kept(connection, candidate.arxiv)
    assert found is not None
    return found


def _decided(candidate: Candidate) -> UsageError:
    reason = f": {candidate.reason}" if candidate.reason else ""
    hint = f"peft-catalog inbox restore {candidate.slug} takes that back"
    return UsageError(f"{candidate.slug} was {candidate.state} on {candidate.decided}{reason}", hint=hint)


def _by_slug(connection: Connection, slug: str) -> Candidate | None:
    row = connection.execute(select(TABLE).where(TABLE.c.slug == slug)).mappings().first()
    return Candidate.from_row(dict(row)) if row else None


def _near(connection: Connection, key: str) -> str:
    names = [name for row in connection.execute(select(TABLE.c.slug, TABLE.c.arxiv)) for name in row]
    near = difflib.get_close_matches(key.lower()[:LONGEST_KEY], names, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else "peft-catalog inbox list --all shows all candidates"

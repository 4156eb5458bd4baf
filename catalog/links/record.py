"""Outcomes -> database, one short transaction each, with since when an address is dead."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, text

from catalog.arxiv_sync.follow import now
from catalog.database import writing
from catalog.links.closed import closed_since
from catalog.links.outcome import LIVING, Outcome, State

_REMEMBERED = (State.ALIVE, State.MOVED, State.GONE, State.REFUSED)
"""States that hold for some days. The others cost no request, or nothing was learned."""


def keep(engine: Engine, outcome: Outcome) -> bool:
    """Store what became of an address just now; whether that is something new."""
    with writing(engine) as connection:
        before = rows(connection, [outcome.url]).get(outcome.url)
        values = _values(outcome, before, now())
        connection.execute(
            text(
                "INSERT INTO link_check "
                "(url, state, status, leads_to, redirects, detail, checked, alive_at, dead_since) "
                "VALUES (:url, :state, :status, :leads_to, :redirects, :detail, :checked, :alive_at, :dead_since) "
                "ON CONFLICT (url) DO UPDATE SET state = excluded.state, status = excluded.status, "
                "leads_to = excluded.leads_to, redirects = excluded.redirects, detail = excluded.detail, "
                "checked = excluded.checked, alive_at = excluded.alive_at, dead_since = excluded.dead_since"
            ),
            values,
        )
    return before is None or before["state"] != outcome.state


def rows(connection: Connection, addresses: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What is stored about these addresses."""
    statement = text("SELECT * FROM link_check WHERE url IN (SELECT value FROM json_each(:urls))")
    found = connection.execute(statement, {"urls": json.dumps(list(addresses))}).mappings()
    return {row["url"]: dict(row) for row in found}


def fresh(connection: Connection, addresses: Iterable[str], days: float) -> set[str]:
    """Those of the addresses that somebody answered for within so many days, and that need not be asked again."""
    if days <= 0:
        return set()
    since = (datetime.now(UTC) - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        url
        for url, row in rows(connection, addresses).items()
        if row["checked"] >= since and row["state"] in _REMEMBERED and row["status"] != 429
    }


def _values(outcome: Outcome, before: dict[str, Any] | None, at: str) -> dict[str, Any]:
    """The row of an address. Dead is gone or closed: since when is kept while it stays so, whatever happens between."""
    alive_at, dead_since = (before["alive_at"], before["dead_since"]) if before else (None, None)
    if outcome.state in LIVING:
        alive_at, dead_since = at, None
    elif outcome.state is State.GONE:
        dead_since = dead_since or at[:10]
    elif outcome.state is State.CLOSED:
        dead_since = closed_since(outcome.leads_to or outcome.url)
    return {
        "url": outcome.url,
        "state": str(outcome.state),
        "status": outcome.status,
        "leads_to": outcome.leads_to,
        "redirects": json.dumps([asdict(hop) for hop in outcome.redirects]),
        "detail": outcome.detail,
        "checked": at,
        "alive_at": alive_at,
        "dead_since": dead_since,
    }

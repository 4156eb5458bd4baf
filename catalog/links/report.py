"""What is known about the addresses of entries, from the database alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from catalog.entry import Entry
from catalog.links.addresses import Use, used
from catalog.links.advice import advice
from catalog.links.outcome import ASKED, PROBLEMS, State
from catalog.links.record import rows


@dataclass(frozen=True)
class Finding:
    """An address: where entries use it, how it is, since when, and what to do. Times are ISO 8601 in UTC."""

    url: str
    uses: tuple[Use, ...]
    state: State
    status: int | None
    leads_to: str | None
    redirects: tuple[dict[str, Any], ...]
    detail: str
    checked: str
    alive_at: str | None
    dead_since: str | None
    advice: str

    @property
    def only_printed(self) -> bool:
        """Whether no entry uses it as its own: the link is part of a public list's history."""
        return all(use.list_slug for use in self.uses)

    @property
    def is_problem(self) -> bool:
        """Whether an entry should change."""
        return self.state in PROBLEMS and not self.only_printed

    @property
    def since(self) -> str:
        """Since when it is so, in words; empty for what is alive, or was never known to be."""
        if self.dead_since:
            return self.dead_since
        if self.state in (State.UNREACHABLE, State.REFUSED):
            return f"alive on {self.alive_at[:10]}" if self.alive_at else "never seen alive"
        return ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON; the keys are stable."""
        return {
            "url": self.url,
            "state": str(self.state),
            "status": self.status,
            "leads_to": self.leads_to,
            "redirects": list(self.redirects),
            "detail": self.detail,
            "checked": self.checked,
            "alive_at": self.alive_at,
            "dead_since": self.dead_since,
            "uses": [{"slug": use.slug, "key": use.key, "list": use.list_slug} for use in self.uses],
            "only_printed_by_lists": self.only_printed,
            "advice": self.advice or None,
        }


def findings(connection: Connection, entries: Iterable[Entry]) -> list[Finding]:
    """Every address of the entries that was ever checked, in the order of the entries."""
    known = {entry.slug: entry for entry in entries}
    addresses = used(known.values())
    stored = rows(connection, addresses)
    return [_finding(url, uses, stored[url], known) for url, uses in addresses.items() if url in stored]


def counted(found: Iterable[Finding]) -> str:
    """States with their numbers, in words, the best first; `none` without any."""
    numbers = Counter(finding.state for finding in found)
    words = {State.ARXIV: "on arXiv (peft-catalog sync checks them)", State.INVALID: "no address"}
    return ", ".join(f"{numbers[state]} {words.get(state, str(state))}" for state in State if numbers[state]) or "none"


def as_dict(found: list[Finding], now: Collection[str]) -> dict[str, Any]:
    """All findings for JSON, with counts; ``now`` are the addresses that this run looked into. The keys are stable."""
    return {
        "addresses": len(found),
        "asked": sum(finding.url in now and finding.state in ASKED for finding in found),
        "counts": Counter(str(finding.state) for finding in found if not finding.only_printed),
        "printed_by_lists": Counter(str(finding.state) for finding in found if finding.only_printed),
        "links": [finding.as_dict() for finding in found],
    }


def _finding(url: str, uses: list[Use], row: dict[str, Any], entries: dict[str, Entry]) -> Finding:
    own = next((use for use in uses if not use.list_slug), uses[0])
    state = State(row["state"])
    return Finding(
        url=url,
        uses=tuple(uses),
        state=state,
        status=row["status"],
        leads_to=row["leads_to"],
        redirects=tuple(json.loads(row["redirects"])),
        detail=row["detail"],
        checked=row["checked"],
        alive_at=row["alive_at"],
        dead_since=row["dead_since"],
        advice=advice(entries[own.slug], own.key, url, state, row["leads_to"]),
    )

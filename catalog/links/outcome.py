"""What can become of an address."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """How an address is."""

    ALIVE = "alive"
    MOVED = "moved"
    """Permanently redirected."""
    GONE = "gone"
    """404, 410, or a host name that does not exist."""
    REFUSED = "refused"
    """The server does not talk to programs: nothing is known."""
    UNREACHABLE = "unreachable"
    """No usable answer this time."""
    CLOSED = "closed"
    """On a site known to have closed; not asked."""
    PRIVATE = "private"
    """Leads into a private network; not asked."""
    ARXIV = "arxiv"
    """On arXiv, where `peft-catalog sync` checks it; not asked."""
    INVALID = "invalid"
    """No address of the web."""


LIVING = frozenset({State.ALIVE, State.MOVED})
PROBLEMS = frozenset({State.MOVED, State.GONE, State.CLOSED, State.INVALID, State.PRIVATE})
"""States that call for a change of the entry."""
REACHED = LIVING | {State.GONE, State.REFUSED}
"""States that somebody's answer stands behind."""
ASKED = REACHED | {State.UNREACHABLE}
"""States of addresses to which a request was made."""


@dataclass(frozen=True)
class Hop:
    """A redirect: its status, and the address it names."""

    status: int
    to: str


@dataclass(frozen=True)
class Outcome:
    """What became of an address: the last status, where its redirects lead, and words on what happened."""

    url: str
    state: State
    status: int | None = None
    leads_to: str | None = None
    redirects: tuple[Hop, ...] = ()
    detail: str = ""

"""How far a harvest is: its window of days, where it goes on, and up to which day everything is known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Self

from sqlalchemy import Connection, text

from catalog.arxiv_sync.follow import now
from catalog.arxiv_sync.oai import Page
from catalog.errors import UsageError

OVERLAP = timedelta(days=2)
"""A harvest begins so much before the day up to which the last one was complete: changes can appear a day late."""
TOKEN_LIVES = timedelta(hours=20)
"""Older tokens are not tried: arXiv's live for a day at most."""


@dataclass(frozen=True)
class Window:
    """Days of metadata, both included; ``until`` None is up to now. Written as 2026-01-01 or 2026-01-01/2026-03-31."""

    since: date
    until: date | None = None

    def __str__(self) -> str:
        return "/".join(day.isoformat() for day in (self.since, self.until) if day)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The window that `str` wrote."""
        since, _, until = text.partition("/")
        return cls(date.fromisoformat(since), date.fromisoformat(until) if until else None)

    @property
    def words(self) -> str:
        """The window for people."""
        return f"from {self.since}" + (f" until {self.until}" if self.until else "")


@dataclass(frozen=True)
class Bookmark:
    """A harvest of a set of a server: under way while there is a ``token``, which was given at ``token_at``.

    ``pages`` and ``records`` are stored; ``complete_to`` is the newest datestamp that finished harvests have seen.
    """

    address: str
    set_name: str
    window: Window
    token: str | None = None
    token_at: str | None = None
    pages: int = 0
    records: int = 0
    complete_to: str | None = None

    def request(self) -> dict[str, str]:
        """The parameters of the next request: set and window at first, then the token alone, which stands for them."""
        if self.token is not None:
            return {"verb": "ListRecords", "resumptionToken": self.token}
        wanted = {"metadataPrefix": "arXivRaw", "set": self.set_name, "from": self.window.since.isoformat()}
        until = {"until": self.window.until.isoformat()} if self.window.until else {}
        return {"verb": "ListRecords", **wanted, **until}

    def after(self, page: Page, at: str) -> Bookmark:
        """The bookmark behind a page made at this moment; with the last page, the day to which everything is known.

        That is its newest datestamp, for arXiv lists by them. What shows no record shows nothing: after a list that was
        empty or cut off in error, the next harvest asks for the same days again.
        """
        counted = replace(self, pages=self.pages + 1, records=self.records + page.size)
        if page.token is not None:
            return replace(counted, token=page.token, token_at=now())
        shown = max((stamp for stamp in page.stamps if stamp <= at[:10]), default="")
        complete_to = max(shown, self.complete_to or "") or self.window.since.isoformat()
        return replace(counted, token=None, token_at=None, complete_to=complete_to)

    @property
    def next_day(self) -> date | None:
        """Where the next harvest begins; None when none was finished yet."""
        return date.fromisoformat(self.complete_to) - OVERLAP if self.complete_to else None

    def at_start(self) -> Bookmark:
        """The same harvest, from the first page on."""
        return replace(self, token=None, token_at=None, pages=0, records=0)

    def is_fresh(self) -> bool:
        """Whether its token may still be taken."""
        return self.token_at is not None and datetime.now(UTC) - datetime.fromisoformat(self.token_at) < TOKEN_LIVES


def stored(connection: Connection, address: str, set_name: str) -> Bookmark | None:
    """The bookmark of the last harvest of a set; None when there was none."""
    row = connection.execute(
        text(
            "SELECT since, token, token_at, pages, records, complete_to FROM harvest "
            "WHERE address = :address AND set_name = :set_name"
        ),
        {"address": address, "set_name": set_name},
    ).first()
    if row is None:
        return None
    since, *others = row
    return Bookmark(address, set_name, Window.parse(since), *others)


def store(connection: Connection, bookmark: Bookmark) -> None:
    """Put the bookmark in the place of the one before."""
    connection.execute(
        text(
            "INSERT OR REPLACE INTO harvest "
            "(address, set_name, since, token, token_at, pages, records, complete_to) "
            "VALUES (:address, :set_name, :window, :token, :token_at, :pages, :records, :complete_to)"
        ),
        vars(bookmark) | {"window": str(bookmark.window)},
    )


def chosen(
    last: Bookmark | None,
    address: str,
    set_name: str,
    since: date | None = None,
    until: date | None = None,
    *,
    restart: bool = False,
) -> Bookmark:
    """Where the harvest that was asked for begins; UsageError where that is not plain.

    One that is under way goes on when the same window is asked for, or none; ``restart`` begins it anew.
    """
    under_way = last is not None and last.token is not None
    if last and under_way and since is None and until is None:
        since, until = last.window.since, last.window.until
    if last and under_way and not restart:
        if until == last.window.until and since in (None, last.window.since):
            return last if last.is_fresh() else last.at_start()
        raise UsageError(
            f"a harvest {last.window.words} is under way ({last.pages:,} pages are stored)",
            where="--from, --until",
            hint="leave both out to go on with it, or add --restart to leave it",
        )
    window = Window(since or _following(last), until)
    if until and until < window.since:
        raise UsageError(f"{until} lies before {window.since}, where the harvest begins", where="--until")
    return replace(last.at_start(), window=window) if last else Bookmark(address, set_name, window)


def _following(last: Bookmark | None) -> date:
    if last is None or last.next_day is None:
        raise UsageError(
            "nothing of this set was harvested from this server yet",
            where="--from",
            allowed="a day such as 2026-01-01",
            hint="give the first day; later harvests go on by themselves",
        )
    return last.next_day

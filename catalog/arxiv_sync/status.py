"""Whether what is known of arXiv is fresh: the newest paper seen anywhere, and the announcements since."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection, text

from catalog.arxiv_sync.announcements import MISSED, MOST, missed


@dataclass(frozen=True)
class Followed:
    """A kind of run: when it last succeeded, when it last learned something, the newest thing it saw, a remark."""

    kind: str
    succeeded: str | None = None
    learned: str | None = None
    newest: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Status:
    """How well the catalog follows its sources. Moments are ISO 8601 in UTC."""

    runs: tuple[Followed, ...]
    newest: str | None
    missed: tuple[str, ...]
    waiting: int
    papers: int
    known: int

    def run(self, kind: str) -> Followed:
        """The runs of one kind; one that never succeeded says so."""
        return next((run for run in self.runs if run.kind == kind), Followed(kind))

    @property
    def synced(self) -> str | None:
        """When arXiv was last asked for the catalogued papers, with success."""
        return self.run("sync").succeeded

    @property
    def learned(self) -> str | None:
        """When anything was last learned."""
        return max((run.learned for run in self.runs if run.learned), default=None)

    @property
    def stale(self) -> bool:
        """Whether so many announcements were missed that something is wrong, or nothing was ever seen."""
        return self.newest is None or len(self.missed) >= MISSED

    @property
    def words(self) -> str:
        """The verdict in one sentence."""
        if self.newest is None:
            return "never synced: nothing is known of arXiv; peft-catalog sync asks it"
        seen = f"newest announced paper seen is of {self.newest[:10]}"
        if not self.stale:
            return f"fresh: the {seen}"
        many = f"{len(self.missed)}" if len(self.missed) < MOST else f"more than {MOST}"
        return f"stale: {many} announcements since {self.missed[0][:10]} were missed; the {seen}"


def status(connection: Connection, at: datetime | None = None) -> Status:
    """The state of following at a moment, by default this one."""
    runs = tuple(
        Followed(*row)
        for row in connection.execute(text("SELECT kind, succeeded, learned, newest, note FROM follow ORDER BY kind"))
    )
    newest = max((run.newest for run in runs if run.newest), default=None)
    late = missed(_moment(newest), at or datetime.now(UTC)) if newest else []

    def count(query: str) -> int:
        return int(connection.execute(text(query)).scalar_one())

    return Status(
        runs=runs,
        newest=newest,
        missed=tuple(each.strftime("%Y-%m-%dT%H:%M:%SZ") for each in late),
        waiting=count("SELECT count(*) FROM candidate WHERE state = 'waiting'"),
        papers=count("SELECT count(*) FROM paper WHERE arxiv IS NOT NULL"),
        known=count("SELECT count(*) FROM paper WHERE arxiv IN (SELECT arxiv FROM arxiv_record)"),
    )


def _moment(stamp: str) -> datetime:
    """A stored moment; a day alone is its end, for nothing newer of that day can be told apart."""
    if len(stamp) == len("2026-11-26"):
        stamp = f"{stamp}T23:59:59Z"
    return datetime.fromisoformat(stamp)

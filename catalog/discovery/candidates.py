"""A candidate as the inbox keeps it: one row of the table `candidate`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, column, select, table

from catalog.arxiv_sync.record import Record
from catalog.discovery.categories import Suggestion
from catalog.discovery.scoring import Reason, Score


class State(StrEnum):
    """What was decided about a candidate."""

    WAITING = "waiting"
    ACCEPTED = "accepted"
    REJECTED = "rejected"


@dataclass(frozen=True)
class Candidate:
    """A paper that may belong into the catalog. ``slug`` is the name suggested for it, given when it is kept; dates are
    ISO 8601 in UTC; ``words`` lead to the suggested category, which is empty where none does."""

    arxiv: str
    title: str
    published: str
    version: int
    score: float
    reasons: tuple[Reason, ...]
    category: str
    words: tuple[tuple[str, float], ...]
    slug: str = ""
    found: str = ""
    source: str = ""
    state: State = State.WAITING
    reason: str = ""
    decided: str | None = None

    @classmethod
    def of(cls, record: Record, score: Score, suggestion: Suggestion) -> Candidate:
        """The candidate that a record makes."""
        judged = (score.points, score.reasons, suggestion.category, suggestion.words)
        return cls(record.arxiv, record.title, record.published, record.version, *judged)

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Candidate:
        """A candidate as it was kept."""
        kept = json.loads(row["reasons"])
        return cls(
            **{name: row[name] for name in _PLAIN},
            version=kept["version"],
            reasons=tuple(Reason(*reason) for reason in kept["reasons"]),
            words=tuple((word, points) for word, points in json.loads(row["words"])),
            state=State(row["state"]),
        )

    def as_row(self) -> dict[str, Any]:
        """The columns of its row; the version stands beside the reasons that were found in it."""
        reasons = [(reason.word, reason.where, reason.points) for reason in self.reasons]
        return {name: getattr(self, name) for name in _PLAIN} | {
            "reasons": json.dumps({"version": self.version, "reasons": reasons}),
            "words": json.dumps(self.words),
            "state": str(self.state),
        }

    def as_judged(self) -> dict[str, Any]:
        """The columns that a newer version of the paper may change."""
        row = self.as_row()
        return {name: row[name] for name in ("title", "score", "reasons", "category", "words")}

    def as_dict(self) -> dict[str, Any]:
        """The candidate for programs."""
        return {name: getattr(self, name) for name in ("arxiv", "version", *_PLAIN[1:])} | {
            "state": str(self.state),
            "reasons": [{"word": r.word, "where": r.where, "points": r.points} for r in self.reasons],
            "words": [{"word": word, "points": points} for word, points in self.words],
        }


_PLAIN = ("arxiv", "slug", "title", "published", "found", "source", "score", "category", "reason", "decided")

TABLE = table("candidate", *map(column, (*_PLAIN, "reasons", "words", "state")))
"""The table without its class in catalog.models, which takes longer to import than the inbox to read."""


def kept(connection: Connection, arxiv: str) -> Candidate | None:
    """The candidate with this arXiv id, as it is in the inbox now."""
    row = connection.execute(select(TABLE).where(TABLE.c.arxiv == arxiv)).mappings().first()
    return Candidate.from_row(dict(row)) if row else None

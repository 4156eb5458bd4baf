"""What is new in what arXiv says about a paper."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from catalog.arxiv_sync.record import Record, State


class Kind(StrEnum):
    """What changed."""

    FIRST_SEEN = "first seen"
    VERSION = "new version"
    TITLE = "title"
    AUTHORS = "authors"
    ABSTRACT = "abstract"
    COMMENT = "comment"
    JOURNAL_REF = "journal reference"
    DOI = "DOI"
    CATEGORIES = "categories"
    DATES = "dates"
    STATE = "state"


@dataclass(frozen=True)
class Change:
    """One change of one paper, in words for people."""

    arxiv: str
    kind: Kind
    before: str
    now: str


def changes(old: Record | None, new: Record) -> list[Change]:
    """What the new record says that the old one did not; a paper without an old one was first seen."""
    if old is None:
        return [Change(new.arxiv, Kind.FIRST_SEEN, "", new.title)]
    return [Change(new.arxiv, kind, before, now) for kind, before, now in _pairs(old, new) if before != now]


def _pairs(old: Record, new: Record) -> list[tuple[Kind, str, str]]:
    hidden = State.LISTED
    return [
        (Kind.STATE, str(old.state if old.state != hidden else ""), str(new.state if new.state != hidden else "")),
        (Kind.VERSION, f"v{old.version}", f"v{new.version}"),
        (Kind.TITLE, old.title, new.title),
        (Kind.AUTHORS, ", ".join(old.names), ", ".join(new.names)),
        (Kind.DOI, (old.doi or "").lower(), (new.doi or "").lower()),
        (Kind.JOURNAL_REF, old.journal_ref or "", new.journal_ref or ""),
        (Kind.COMMENT, old.comment or "", new.comment or ""),
        (Kind.CATEGORIES, " ".join(sorted(old.categories)), " ".join(sorted(new.categories))),
        (Kind.DATES, f"{old.published}", f"{new.published}"),
        (Kind.ABSTRACT, old.abstract, new.abstract),
    ]

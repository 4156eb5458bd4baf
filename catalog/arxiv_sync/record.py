"""What arXiv says about a paper, in the same form whichever interface said it."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from functools import cached_property
from typing import Any, Self

from catalog.arxiv_sync.tex import decoded

LONGEST = {"title": 1_000, "abstract": 20_000, "comment": 5_000, "journal_ref": 2_000, "doi": 500, "name": 300}
"""Characters that a field may have; the longest real ones stay far below."""
MOST_AUTHORS = 6_000
_BARE = re.compile(r"(?P<id>\d{4}\.\d{4,5}|[a-z-]+(?:\.[A-Z]{2})?/\d{7})(?:v(?P<version>[1-9]\d{0,3}))?", re.ASCII)
_WITHDRAWN = re.compile(
    r"\b(?:this|the)\s+(?:\w+\s+){0,3}?(?:paper|article|submission|manuscript|preprint|version|work)\s+"
    r"(?:has\s+been|is|was|have\s+been|had\s+been)\s+(?:\w+\s+)?withdrawn\b"
    r"|^\W*withdrawn\b|\bwithdrawn\s+by\s+(?:the\s+)?(?:author|arxiv|submitter)",
    re.IGNORECASE,
)


class State(StrEnum):
    """What became of a paper on arXiv."""

    LISTED = "listed"
    WITHDRAWN = "withdrawn"
    DELETED = "deleted"


@dataclass(frozen=True)
class Person:
    """An author as arXiv prints the name; affiliations are rarely given."""

    name: str
    affiliations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Record:
    """One paper, in its newest version. Dates are ISO 8601 in UTC; ``versions`` are (number, date) where known."""

    arxiv: str
    version: int
    title: str
    authors: tuple[Person, ...]
    abstract: str
    published: str
    updated: str
    categories: tuple[str, ...]
    primary_category: str = ""
    comment: str | None = None
    journal_ref: str | None = None
    doi: str | None = None
    state: State = State.LISTED
    license: str | None = None
    versions: tuple[tuple[int, str], ...] = field(default=())

    @property
    def names(self) -> tuple[str, ...]:
        """The authors' names."""
        return tuple(person.name for person in self.authors)

    @cached_property
    def digest(self) -> str:
        """Equal for two records that say the same, whichever interface they came from.

        The query interface knows no license and no dates of versions, OAI-PMH no affiliations and no primary category.
        """
        said = {
            "version": self.version,
            "title": self.title,
            "names": self.names,
            "abstract": self.abstract,
            "published": self.published,
            "updated": self.updated,
            "categories": sorted(self.categories),
            "comment": self.comment,
            "journal_ref": self.journal_ref,
            "doi": (self.doi or "").lower(),
            "state": str(self.state),
        }
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()

    def to_json(self) -> str:
        """The record as JSON; `from_json` is its inverse."""
        people = [{"name": person.name, "affiliations": person.affiliations} for person in self.authors]
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        return json.dumps(plain | {"authors": people}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """A record that `to_json` wrote."""
        data: dict[str, Any] = json.loads(text)
        people = tuple(Person(each["name"], tuple(each["affiliations"])) for each in data.pop("authors"))
        versions = tuple((int(number), str(date)) for number, date in data.pop("versions"))
        categories = tuple(data.pop("categories"))
        state = State(data.pop("state"))
        return cls(authors=people, versions=versions, categories=categories, state=state, **data)

    def with_known(self, other: Record) -> Record:
        """This record, completed with what only the other interface says about the same paper."""
        silent = self.names == other.names and not any(person.affiliations for person in self.authors)
        dated = other.versions and other.versions[-1][0] < self.version
        return replace(
            self,
            authors=other.authors if silent else self.authors,
            primary_category=self.primary_category or other.primary_category,
            license=self.license or other.license,
            versions=self.versions or other.versions + (((self.version, self.updated),) if dated else ()),
        )


class UnusableRecord(ValueError):
    """A record that is not taken into the database; says which and why."""


def checked(record: Record) -> Record:
    """The record, when its fields are of a size that a paper can have; UnusableRecord otherwise."""
    texts = {name: getattr(record, name) or "" for name in ("title", "abstract", "comment", "journal_ref", "doi")}
    for name, value in texts.items():
        if len(value) > LONGEST[name]:
            raise UnusableRecord(f"{record.arxiv}: its {name} has {len(value):,} characters")
    if len(record.authors) > MOST_AUTHORS:
        raise UnusableRecord(f"{record.arxiv}: it has {len(record.authors):,} authors")
    longest = max((len(name) for person in record.authors for name in (person.name, *person.affiliations)), default=0)
    if longest > LONGEST["name"]:
        raise UnusableRecord(f"{record.arxiv}: an author's name or affiliation has {longest:,} characters")
    if not record.title:
        raise UnusableRecord(f"{record.arxiv}: it has no title")
    if not record.authors and record.state is not State.DELETED:
        raise UnusableRecord(f"{record.arxiv}: it has no authors")
    return record


def bare_id(text: str) -> tuple[str, int | None] | None:
    """(id, version) of an arXiv id such as 2106.09685v2 or hep-ex/0307015; None when it is none."""
    match = _BARE.fullmatch(text)
    return (match["id"], int(match["version"]) if match["version"] else None) if match else None


def is_withdrawn(comment: str | None) -> bool:
    """Whether a comment says that the paper was withdrawn."""
    return bool(comment and _WITHDRAWN.search(comment))


def one_line(text: str | None) -> str | None:
    """Text on one line, with TeX accents as letters; None for nothing."""
    joined = " ".join((text or "").split())
    return decoded(joined) or None


def person_name(text: str | None) -> str | None:
    """A name on one line; initials such as `J.-M.`, between which some interfaces put a space, are as people write."""
    name = one_line(text)
    return name and name.replace(". -", ".-")


def paragraphs(text: str) -> str:
    """An abstract with its lines joined; a blank line or an indented one begins a paragraph, as arXiv prints them."""
    parts: list[list[str]] = [[]]
    for line in text.strip().splitlines():
        if parts[-1] and (not line.strip() or line.startswith("  ")):
            parts.append([])
        parts[-1] += line.split()
    return decoded("\n\n".join(" ".join(part) for part in parts if part))

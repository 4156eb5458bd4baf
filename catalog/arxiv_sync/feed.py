"""The Atom feed of the query interface, in its present and its former form, as records.

The arxiv package reads single entries; everything around them is checked here first, because it takes what it can
from a feed that is cut off and skips entries without a word. It offers its parser under a private name only, so this
module is the one place that knows it, and the package's version is bounded in pyproject.toml.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from arxiv import Result, _feed
from lxml import etree

from catalog.arxiv_sync.record import (
    Person,
    Record,
    State,
    UnusableRecord,
    bare_id,
    checked,
    is_withdrawn,
    one_line,
    paragraphs,
    person_name,
)
from catalog.arxiv_sync.transport import Again, Answer

# The package logs what it skips, with words of the feed; they are reported here, and nowhere unchecked.
logging.getLogger(_feed.__name__).addHandler(logging.NullHandler())

ATOM = "{http://www.w3.org/2005/Atom}"
SEARCH = "{http://a9.com/-/spec/opensearch/1.1/}"


class RefusedRequest(Exception):
    """arXiv refuses the whole request, and says why: a feed whose one entry is an error."""


@dataclass(frozen=True)
class Feed:
    """One page: how many results there are in all, where it starts, its records, and what could not be read."""

    total: int
    start: int
    records: tuple[Record, ...]
    unusable: tuple[str, ...] = ()


def read_feed(answer: Answer) -> Feed:
    """The feed in an answer. RefusedRequest when it is an error; Again for what is no complete feed."""
    root = parsed(answer.body, f"{ATOM}feed")
    entries = root.findall(f"{ATOM}entry")
    for entry in entries:
        if "/api/errors" in (entry.findtext(f"{ATOM}id") or ""):
            raise RefusedRequest(" ".join((entry.findtext(f"{ATOM}summary") or "no reason given").split())[:500])
    if answer.status != 200:
        raise RefusedRequest(f"status {answer.status} without a reason")
    records: list[Record] = []
    unusable: list[str] = []
    for found in map(_record, entries):
        if isinstance(found, Record):
            records.append(found)
        else:
            unusable.append(found)
    return Feed(_number(root, "totalResults"), _number(root, "startIndex"), tuple(records), tuple(unusable))


def parsed(body: bytes, root_tag: str) -> Any:
    """The root of a complete XML document; Again for anything else.

    No entity is expanded and nothing is loaded from elsewhere; a document that declares any is refused.
    """
    if b"<html" in body[:1000].lower():
        raise Again("a page of HTML instead of an answer")
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, recover=False)
    try:
        root = etree.fromstring(body, parser=parser)
    except etree.XMLSyntaxError as error:
        raise Again(f"no complete XML instead of an answer ({len(body):,} bytes)") from error
    if root.getroottree().docinfo.doctype:
        raise Again("a document with declarations of its own, which no answer of arXiv has")
    if root.tag != root_tag:
        raise Again("XML of another kind")
    return root


def _number(root: Any, name: str) -> int:
    text = (root.findtext(f"{SEARCH}{name}") or "").strip()
    if not (text.isascii() and text.isdigit()):
        raise Again(f"a feed that does not say its {name}")
    return int(text)


def _record(entry: Any) -> Record | str:
    """The record of an entry, or why there is none."""
    shown = " ".join((entry.findtext(f"{ATOM}id") or "an entry without id").split())[:100]
    try:
        results = _feed.parse(_wrapped(entry)).results
        return checked(_converted(results[0])) if results else f"{shown}: its id or dates are missing"
    except UnusableRecord as problem:
        return str(problem)
    except ValueError:
        return f"{shown}: it has a date that is none"


def _wrapped(entry: Any) -> bytes:
    """A feed with this entry alone, so that one that cannot be read does not cost the others."""
    return b'<feed xmlns="http://www.w3.org/2005/Atom">' + etree.tostring(entry, with_tail=False) + b"</feed>"


def _converted(result: Result) -> Record:
    found = bare_id(result.entry_id.rpartition("/abs/")[2])
    if found is None or found[1] is None:
        raise UnusableRecord(f"{' '.join(result.entry_id.split())[:100]}: no id with a version")
    comment = one_line(result.comment)
    return Record(
        arxiv=found[0],
        version=found[1],
        title=one_line(result.title) or "",
        authors=tuple(_people(result)),
        abstract=paragraphs(result.summary),
        published=moment(result.published),
        updated=moment(result.updated),
        categories=tuple(dict.fromkeys(result.categories)),
        primary_category=result.primary_category,
        comment=comment,
        journal_ref=one_line(result.journal_ref),
        doi=one_line(result.doi),
        state=State.WITHDRAWN if is_withdrawn(comment) else State.LISTED,
    )


def _people(result: Result) -> Iterator[Person]:
    for author in result.authors:
        name = person_name(author.name)
        if name:
            yield Person(name, tuple(filter(None, map(one_line, author.affiliation))))


def moment(when: datetime) -> str:
    """A time as the catalog writes it: 2021-06-17T17:37:18Z."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

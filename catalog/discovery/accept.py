"""A candidate becomes the draft of an entry, with the facts that arXiv gives."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from catalog.arxiv_sync.record import Record
from catalog.arxiv_sync.record import State as Listed
from catalog.discovery.candidates import Candidate
from catalog.discovery.inbox import acceptable, mark_accepted
from catalog.discovery.slugs import short_name
from catalog.errors import UsageError
from catalog.scaffold import Draft, entry_of, scaffold
from catalog.skeletons import one_line
from catalog.taxonomy import Category, Status

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


@dataclass(frozen=True)
class Accepted:
    """An accepted candidate, the file of its entry, and the files written for it: none where it had an entry."""

    candidate: Candidate
    entry: Path
    written: tuple[Path, ...] = ()


def accept(
    engine: Engine,
    key: str,
    *,
    now: str,
    slug: str | None = None,
    category: str | None = None,
    root: Path | str | None = None,
    implementations: Path | str | None = None,
) -> Accepted:
    """Write the draft of an entry for a candidate, then mark the candidate accepted.

    Stopped in between, the same call again completes it: a paper that has an entry, finished or not, is just marked.
    """
    candidate, record = acceptable(engine, key)
    entry = entry_of(candidate.arxiv, root)
    written: tuple[Path, ...] = ()
    if entry is None:
        draft = drafted(candidate, record, slug or candidate.slug, _chosen(category, candidate))
        written = tuple(scaffold(draft, root, implementations))
        entry = written[0]
    return Accepted(mark_accepted(engine, candidate.arxiv, now=now), entry, written)


def drafted(candidate: Candidate, record: Record | None, slug: str, category: str) -> Draft:
    """What is known of the entry: arXiv's facts, and never its abstract."""
    title = one_line(record.title if record else candidate.title)
    day = _DATE.match(record.published if record else candidate.published)
    name = short_name(title)
    return Draft(
        slug,
        category,
        candidate.arxiv,
        name=name,
        title=title,
        authors=tuple(one_line(name) for name in record.names) if record else (),
        published=day[0] if day else None,
        arxiv_categories=tuple(one_line(name) for name in record.categories) if record else (),
        status=str(Status.WITHDRAWN) if record and record.state is Listed.WITHDRAWN else None,
        hints=tuple(_hints(record)) if record else (),
    )


def _hints(record: Record) -> Iterator[str]:
    """What arXiv says that may lead to keys of the entry, once somebody has looked."""
    for what, said in (("journal_ref", record.journal_ref), ("doi", record.doi), ("comment", record.comment)):
        if said:
            yield f"arXiv's {what}: {said}"


def _chosen(category: str | None, candidate: Candidate) -> str:
    found = category or candidate.category
    if not found:
        message = f"the words of {candidate.slug} lead to no category"
        raise UsageError(message, allowed=Category.words(), hint="choose one with --category")
    return found

"""What builds on what is known and has no loops."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

from catalog.lint.core import Collection, Finding
from catalog.taxonomy import Status


def builds_on_known(collection: Collection) -> Iterator[Finding]:
    """Every entry that another builds on exists."""
    for file in collection.files:
        for slug in file.entry.builds_on:
            if slug not in collection.slugs:
                message = _names_no_entry(slug, collection)
                yield file.finding("builds-on-known", "builds_on", message, slug, _near(slug, collection))


def builds_on_acyclic(collection: Collection) -> Iterator[Finding]:
    """No entry builds on itself, directly or through others."""
    graph = {file.entry.slug: file.entry.builds_on for file in collection.files}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        loop = error.args[1]
        file = collection.slugs[loop[0]]
        message = "the entry builds on itself"
        yield file.finding("builds-on-acyclic", "builds_on", message, " -> ".join(loop), "earlier work only")


def builds_on_earlier(collection: Collection) -> Iterator[Finding]:
    """What an entry builds on was public before it, give or take a month."""
    for file in collection.files:
        for slug in file.entry.builds_on:
            base = collection.slugs.get(slug)
            if base and _month(base.entry.published, 1) - _month(file.entry.published, 12) > 1:
                message = f"is later ({base.entry.published}) than the entry ({file.entry.published})"
                yield file.finding("builds-on-earlier", "builds_on", message, slug, "earlier work only")


def _month(published: str, unknown: int) -> int:
    """The months up to a date; `unknown` stands for the month of a date that is only a year."""
    return 12 * int(published[:4]) + int(published[5:7] or unknown)


def superseded_by_known(collection: Collection) -> Iterator[Finding]:
    """A superseded entry names its successor, and only a superseded entry does."""
    for file in collection.files:
        successor, status = file.entry.superseded_by, file.entry.status
        if (successor is None) == (status is Status.SUPERSEDED):
            message = f"does not go with the status {status}"
            allowed = "a slug when the status is superseded, and only then"
            yield file.finding("superseded-by-known", "superseded_by", message, successor or "nothing", allowed)
        if successor is not None and successor not in collection.slugs:
            message = _names_no_entry(successor, collection)
            yield file.finding("superseded-by-known", "superseded_by", message, successor, _near(successor, collection))


def _names_no_entry(slug: str, collection: Collection) -> str:
    return "names a draft" if slug in {path.stem for path in collection.drafts} else "names no entry"


def _near(slug: str, collection: Collection) -> str:
    matches = difflib.get_close_matches(slug, collection.slugs, n=3, cutoff=0.5)
    return f"the slug of an entry, such as {' or '.join(matches)}" if matches else "the slug of an entry"

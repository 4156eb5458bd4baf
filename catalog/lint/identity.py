"""No two entries are the same paper or answer to the same name."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator

from catalog.entry import Entry
from catalog.lint.core import Collection, EntryFile, Finding
from catalog.words import fold


def normalized_title(title: str) -> str:
    """A title without case, accents and punctuation."""
    letters = (c for c in unicodedata.normalize("NFKD", title) if not unicodedata.combining(c))
    return re.sub(r"[\W_]+", " ", "".join(letters).casefold()).strip()


def slug_unique(collection: Collection) -> Iterator[Finding]:
    """A slug belongs to one entry, whatever the folder."""
    yield from _unique(collection, "slug", lambda entry: entry.slug)


def arxiv_unique(collection: Collection) -> Iterator[Finding]:
    """An arXiv id belongs to one entry, or to entries that say they share it by building on each other."""
    yield from _unique(collection, "arxiv", lambda entry: entry.arxiv, shared=_say_so)


def doi_unique(collection: Collection) -> Iterator[Finding]:
    """A DOI belongs to one entry."""
    yield from _unique(collection, "doi", lambda entry: entry.doi and entry.doi.lower())


def title_unique(collection: Collection) -> Iterator[Finding]:
    """A title, apart from case and punctuation, belongs to one entry."""
    yield from _unique(collection, "title", lambda entry: normalized_title(entry.title))


def alias_unique(collection: Collection) -> Iterator[Finding]:
    """An alias leads to one entry: it is no other entry's slug, name or alias, and not the entry's own name."""
    owners: dict[str, set[str]] = defaultdict(set)
    for file in collection.files:
        for word in (file.entry.slug, file.entry.name, *file.entry.aliases):
            owners[fold(word)].add(file.entry.slug)
    for file in collection.files:
        for alias in file.entry.aliases:
            others = owners[fold(alias)] - {file.entry.slug}
            if others:
                message = f"also leads to {', '.join(sorted(others))}"
                yield file.finding("alias-unique", "aliases", message, alias, "a word that no other entry answers to")
            if alias in (file.entry.name, file.entry.slug):
                message = "repeats the entry's name or slug"
                yield file.finding("alias-unique", "aliases", message, alias, "another spelling")


def name_unique(collection: Collection) -> Iterator[Finding]:
    """A name belongs to one entry."""
    yield from _unique(collection, "name", lambda entry: fold(entry.name))


def _unique(
    collection: Collection,
    key: str,
    value_of: Callable[[Entry], str | None],
    shared: Callable[[EntryFile, EntryFile], bool] = lambda one, other: False,
) -> Iterator[Finding]:
    seen: dict[str, EntryFile] = {}
    for file in collection.files:
        value = value_of(file.entry)
        if value is None:
            continue
        first = seen.setdefault(value, file)
        if first is not file and not shared(first, file):
            message = f"is that of {first.name} too"
            yield file.finding(f"{key}-unique", key, message, getattr(file.entry, key), "one entry for one paper")


def _say_so(one: EntryFile, other: EntryFile) -> bool:
    """Two methods of one paper, or two names under one arXiv number: one of them names the other."""
    pairs = ((one.entry, other.entry), (other.entry, one.entry))
    return any(a.slug in b.builds_on or a.superseded_by == b.slug for a, b in pairs)

"""Authors are named once each, one name an item."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from catalog.lint.core import Collection, Finding

_NOT_ONE_NAME = re.compile(r"\bet al\b|\band\b| & |;|,(?! (Jr|Sr|II|III|IV)\b)|\d|@", re.IGNORECASE)


def authors_unique(collection: Collection) -> Iterator[Finding]:
    """No author is named twice."""
    for file in collection.files:
        for author, count in Counter(file.entry.authors).items():
            if count > 1:
                yield file.finding("authors-unique", "authors", "is named twice", author, "each author once")


def author_is_one_name(collection: Collection) -> Iterator[Finding]:
    """Each item is one name, given name first."""
    for file in collection.files:
        for author in file.entry.authors:
            if _NOT_ONE_NAME.search(author):
                message = "is not one name"
                yield file.finding("author-is-one-name", "authors", message, author, "'Given Family', one an item")

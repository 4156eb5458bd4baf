"""Dates are days of the calendar that have been, and agree with arXiv's numbers."""

from __future__ import annotations

import datetime
from collections.abc import Iterator

from catalog.lint.core import Collection, Finding

EARLIEST = 1990
"""No method or model that the catalog is about is older."""


def today() -> datetime.date:
    """The present day, UTC."""
    return datetime.datetime.now(datetime.UTC).date()


def date_exists(collection: Collection) -> Iterator[Finding]:
    """A full date is a day of the calendar."""
    for file in collection.files:
        published = file.entry.published
        if len(published) == len("2021-06-17"):
            try:
                datetime.date.fromisoformat(published)
            except ValueError:
                message = "is not a day of the calendar"
                yield file.finding("date-exists", "published", message, published, "YYYY-MM-DD, YYYY-MM or YYYY")


def date_plausible(collection: Collection) -> Iterator[Finding]:
    """A date is neither in the future nor too old; nor is the month in which sources were checked."""
    now = today().isoformat()
    for file in collection.files:
        dates = {"published": file.entry.published, "sources.checked_on": file.entry.sources.checked_on}
        for key, value in dates.items():
            if value is not None and not str(EARLIEST) <= value <= now[: len(value)]:
                message = "is not plausible"
                yield file.finding("date-plausible", key, message, value, f"{EARLIEST} to {now}")


def date_agrees_with_arxiv(collection: Collection) -> Iterator[Finding]:
    """A paper is first public no later than the month in its arXiv number, which arXiv gives on submission.

    An announcement may fall into the month after the number's (or before it by time zone), so one month is granted.
    """
    for file in collection.files:
        arxiv, published = file.entry.arxiv, file.entry.published
        if arxiv is None or "/" in arxiv:
            continue
        number = datetime.date(2000 + int(arxiv[:2]), max(1, min(12, int(arxiv[2:4]))), 1)
        year, month = int(published[:4]), int(published[5:7] or number.month)
        if (year - number.year) * 12 + month - number.month > 1:
            message = f"is later than its arXiv number {arxiv}"
            yield file.finding("date-agrees-with-arxiv", "published", message, published, f"{number:%Y-%m} or earlier")


def arxiv_month_exists(collection: Collection) -> Iterator[Finding]:
    """The third and fourth digits of an arXiv number are a month."""
    for file in collection.files:
        arxiv = file.entry.arxiv
        if arxiv and "/" not in arxiv and not 1 <= int(arxiv[2:4]) <= 12:
            yield file.finding("arxiv-month-exists", "arxiv", "has no such month", arxiv, "YYMM.number")

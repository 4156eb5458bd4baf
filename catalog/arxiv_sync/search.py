"""Queries, page by page."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from urllib.parse import parse_qsl, urlsplit

import arxiv

from catalog.arxiv_sync.feed import Feed, RefusedRequest, read_feed
from catalog.arxiv_sync.transport import Again, Answer, NoUsableAnswer, TooLong, Transport
from catalog.errors import Unreachable, UsageError

PAGE = 200
MOST = 30_000
"""Results of one query that arXiv gives out."""


def parameters(search: arxiv.Search, start: int, size: int) -> dict[str, str]:
    """The parameters of a request, as the arxiv package writes them."""
    url = arxiv.Client()._format_url(search, start, size)
    return dict(parse_qsl(urlsplit(url).query))


def search(
    transport: Transport, query: str, since: date | None = None, until: date | None = None, size: int = PAGE
) -> Iterator[Feed]:
    """Pages of results, newest submission first, of papers first submitted in these days (UTC, both included).

    UsageError for a query that arXiv refuses. Unreachable when a page does not come or stays short; what was given
    before is good, and so is the short page.
    """
    wanted = arxiv.Search(
        query=within(query, since, until),
        sort_by=arxiv.SortCriterion.SubmittedDate,
        sort_order=arxiv.SortOrder.Descending,
    )
    start = 0
    while True:
        try:
            page = _page(transport, wanted, start, size)
            if not (start or page.total):  # nothing at all looks like a failure: only twice in a row is it believed
                page = _page(transport, wanted, start, size)
        except (RefusedRequest, TooLong) as refusal:
            reason = str(refusal) or "it is too long"
            raise UsageError(f"arXiv refuses the query: {reason}", where=query, hint="mend the query") from refusal
        except NoUsableAnswer as problem:
            if isinstance(problem.partial, Feed):
                yield problem.partial
            raise
        yield page
        start += size
        if start >= min(page.total, MOST):
            return


def newest(transport: Transport, query: str) -> str | None:
    """When the newest paper of a query was submitted; None when the answer is empty. Unreachable without an answer."""
    wanted = arxiv.Search(query=query, sort_by=arxiv.SortCriterion.SubmittedDate, sort_order=arxiv.SortOrder.Descending)
    try:
        records = _page(transport, wanted, 0, 1).records
    except (RefusedRequest, TooLong) as refusal:
        raise Unreachable(f"arXiv refuses to name its newest paper: {refusal}") from refusal
    return records[0].published if records else None


def within(query: str, since: date | None, until: date | None) -> str:
    """The query, narrowed to days of first submission."""
    if since is None and until is None:
        return query
    first = f"{since:%Y%m%d}0000" if since else "199101010000"
    last = f"{until:%Y%m%d}2359" if until else "209912312359"
    return f"({query}) AND submittedDate:[{first} TO {last}]"


def _page(transport: Transport, wanted: arxiv.Search, start: int, size: int) -> Feed:
    def read(answer: Answer) -> Feed:
        feed = read_feed(answer)
        arrived, expected = len(feed.records) + len(feed.unusable), max(0, min(size, feed.total - start))
        if arrived < expected:
            raise Again(f"a page of {arrived} papers instead of {expected}", partial=feed)
        return feed

    return transport.ask(transport.settings.query, parameters(wanted, start, size), read)

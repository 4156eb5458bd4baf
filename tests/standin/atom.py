"""The Atom feed of the query interface: the form of 2026, and the one until 2025."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from datetime import datetime
from typing import Literal
from xml.sax.saxutils import escape, quoteattr

from tests.standin.papers import Paper

Form = Literal["present", "former"]
OPENSEARCH = "http://a9.com/-/spec/opensearch/1.1/"
ARXIV = "http://arxiv.org/schemas/atom"


def feed(papers: Sequence[Paper], total: int, start: int, size: int, form: Form = "present", query: str = "") -> bytes:
    """A page of results."""
    return _framed("".join(entry(paper, form) for paper in papers), total, start, size, form, query)


def error(reason: str, form: Form = "present") -> bytes:
    """A feed whose one entry is an error."""
    body = f"""<entry>
    <id>http://arxiv.org/api/errors#{escape(reason.split()[0])}</id>
    <title>Error</title>
    <summary>{escape(reason)}</summary>
    <updated>2026-11-26T00:00:00-05:00</updated>
    <link href="http://arxiv.org/api/errors#e" rel="alternate" type="text/html"/>
    <author><name>arXiv api core</name></author>
  </entry>"""
    return _framed(body, 1, 0, 1, form, "")


def _framed(entries: str, total: int, start: int, size: int, form: Form, query: str) -> bytes:
    if form == "present":
        root = f'<feed xmlns:opensearch="{OPENSEARCH}" xmlns:arxiv="{ARXIV}" xmlns="http://www.w3.org/2005/Atom">'
        title, declared = f"<title>arXiv Query: {escape(query)}</title>", ""
    else:
        root = '<feed xmlns="http://www.w3.org/2005/Atom">'
        title, declared = (
            f'<title type="html">ArXiv Query: {escape(query)}</title>',
            f' xmlns:opensearch="{OPENSEARCH}"',
        )
    counts = "".join(
        f"<opensearch:{name}{declared}>{value}</opensearch:{name}>"
        for name, value in (("itemsPerPage", size), ("totalResults", total), ("startIndex", start))
    )
    head = f"{root}\n  <id>https://arxiv.org/api/x</id>{title}<updated>2026-11-26T00:00:00Z</updated>"
    link = '<link href="https://arxiv.org/api/query" type="application/atom+xml"/>'
    return f"<?xml version='1.0' encoding='UTF-8'?>\n{head}{link}\n{counts}\n{entries}</feed>\n".encode()


def entry(paper: Paper, form: Form = "present") -> str:
    """One paper, hard-wrapped as arXiv does it."""
    own = "" if form == "present" else f' xmlns:arxiv="{ARXIV}"'
    scheme = "http" if form == "former" else "https"
    number = f"{paper.arxiv}v{len(paper.versions)}"

    def extra(name: str, value: str | None) -> str:
        return f"<arxiv:{name}{own}>{escape(value)}</arxiv:{name}>\n" if value is not None else ""

    authors = "".join(
        f"<author><name>{escape(name)}</name>{extra('affiliation', paper.affiliations.get(name))}</author>\n"
        for name in paper.authors
    )
    doi_link = (
        f"<link title='doi' href={quoteattr('http://dx.doi.org/' + paper.doi)} rel='related'/>" if paper.doi else ""
    )
    return f"""  <entry>
    <id>{scheme}://arxiv.org/abs/{number}</id>
    <title>{wrapped(paper.title)}</title>
    <updated>{stamp(paper.versions[-1])}</updated>
    <link href="{scheme}://arxiv.org/abs/{number}" rel="alternate" type="text/html"/>
    <link href="{scheme}://arxiv.org/pdf/{number}" rel="related" type="application/pdf" title="pdf"/>
    <summary>  {wrapped(paper.abstract)}
</summary>
    {"".join(f'<category term={quoteattr(each)} scheme="{ARXIV}"/>' for each in paper.categories)}
    <published>{stamp(paper.versions[0])}</published>
    {extra("comment", paper.comment)}{extra("journal_ref", paper.journal_ref)}{extra("doi", paper.doi)}
    <arxiv:primary_category{own} term={quoteattr(paper.categories[0])}/>
    {authors}{doi_link}
  </entry>
"""


def wrapped(text: str) -> str:
    """Escaped, and broken into lines of eighty characters in the middle of sentences."""
    if len(text) > 10_000:
        return escape(text)
    return escape("\n".join(textwrap.wrap(text, 80, break_long_words=False, break_on_hyphens=False)))


def stamp(when: datetime) -> str:
    """A moment as feeds print it."""
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")

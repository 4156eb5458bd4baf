"""Where an item of a list says something else than the catalog."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from catalog import venues
from catalog.lists import addresses
from catalog.lists.item import Item, Role
from catalog.lists.matching import Index, Match, folded, name_key, same_person
from catalog.markdown import plain


class Kind(StrEnum):
    """What sort of mistake a list makes."""

    ARXIV_ID = "wrong arXiv id"
    DOI = "wrong DOI"
    OTHER_PAPER = "link to another paper"
    CUT_TITLE = "title cut off"
    TITLE = "other title"
    YEAR = "year"
    VENUE = "venue"
    AUTHORS = "authors"
    NO_ADDRESS = "link without address"
    DEAD_LINK = "dead link"
    SECONDARY_LINK = "not the primary source"
    CODE = "not the paper's code"
    PLACE = "filed in the wrong place"
    STATEMENT = "wrong statement"


@dataclass(frozen=True)
class Contradiction:
    """One mistake: where, about which paper, what the list says and what is so."""

    line: int
    slug: str
    kind: Kind
    says: str
    fact: str
    evidence: str | None = None


def contradictions(item: Item, match: Match, index: Index) -> Iterator[Contradiction]:
    """Every contradiction between an item and the paper it means."""
    checks: tuple[Check, ...] = (_links_elsewhere, _ids, _links, _title, _venue_and_year, _authors)
    for check in checks:
        yield from check(item, match, index)


Check = Callable[[Item, Match, Index], Iterator[Contradiction]]


def source_address(match: Match) -> str:
    """Where the paper is, for a message."""
    paper = match.paper
    if paper.arxiv:
        return f"arXiv {paper.arxiv}"
    return f"doi {paper.doi}" if paper.doi else paper.url or paper.code or "no address known"


def _links_elsewhere(item: Item, match: Match, index: Index) -> Iterator[Contradiction]:
    for link, other in match.linked:
        fact = f"that is {other.name} ({other.slug}); {match.paper.name} is {source_address(match)}"
        yield Contradiction(link.line, match.paper.slug, Kind.OTHER_PAPER, link.url, fact)


def _ids(item: Item, match: Match, index: Index) -> Iterator[Contradiction]:
    paper = match.paper
    for link in (link for link in item.links if link.role is Role.PAPER):
        arxiv, doi = addresses.arxiv_id(link.url), addresses.doi(link.url)
        if arxiv and arxiv != paper.arxiv and not index.by_arxiv(arxiv):
            where = source_address(match) if paper.arxiv else f"not on arXiv: {source_address(match)}"
            yield Contradiction(link.line, paper.slug, Kind.ARXIV_ID, arxiv, f"{paper.name} is {where}")
        if not arxiv and doi and paper.doi and doi != paper.doi.lower() and not index.by_doi(doi):
            yield Contradiction(link.line, paper.slug, Kind.DOI, doi, f"{paper.name} is doi {paper.doi}")


def _links(item: Item, match: Match, index: Index) -> Iterator[Contradiction]:
    slug, code = match.paper.slug, match.paper.code
    for link in item.links:
        if not link.url and link.role is not Role.OTHER:
            yield Contradiction(link.line, slug, Kind.NO_ADDRESS, "empty link", source_address(match))
        elif addresses.is_on(link.url, addresses.CLOSED):
            what = f"code: {code}" if code and link.role is Role.CODE else source_address(match)
            fact = f"paperswithcode.com closed in July 2025; {what}"
            yield Contradiction(link.line, slug, Kind.DEAD_LINK, link.url, fact)
        elif link.role is Role.PAPER and addresses.is_on(link.url, addresses.SECONDARY):
            yield Contradiction(link.line, slug, Kind.SECONDARY_LINK, link.url, source_address(match))
        elif link.role is Role.CODE and not _is_code_of(link.url, code):
            fact = f"the code is {code}" if code else "no official code is known"
            yield Contradiction(link.line, slug, Kind.CODE, link.url, fact)


def _is_code_of(url: str, code: str | None) -> bool:
    """Whether an address can be that of the code: the repository, a folder of it, or any where none is known."""
    if not code or not addresses.is_code(url):
        return addresses.is_code(url)
    one, other = addresses.canonical(url), addresses.canonical(code)
    return one.startswith(other) or other.startswith(one)


def _title(item: Item, match: Match, index: Index) -> Iterator[Contradiction]:
    paper, printed, title = match.paper, folded(item.title), folded(match.paper.title)
    is_address = item.title.startswith(("http://", "https://"))
    if printed == title or item.mention or is_address or _is_name(item.title, match):
        return
    if printed.replace(" ", "") != title.replace(" ", ""):
        kind = Kind.CUT_TITLE if title.startswith(printed) else Kind.TITLE
        yield Contradiction(item.line, paper.slug, kind, plain(item.title), plain(paper.title))


def _is_name(words: str, match: Match) -> bool:
    paper = match.paper
    return name_key(words) in {name_key(name) for name in (paper.name, paper.slug, *paper.aliases)}


def _venue_and_year(item: Item, match: Match, index: Index) -> Iterator[Contradiction]:
    paper = match.paper
    published = venues.parse(plain(paper.venue)) if paper.venue else None
    known = published if published and not published.is_preprint else None
    printed = venues.parse(item.venue) if item.venue else None
    years = {paper.year} | (known.years if known else frozenset())
    facts = f"first public {paper.published}" + (f"; published at {paper.venue}" if paper.venue else "")
    if item.venue == "":
        yield Contradiction(item.line, paper.slug, Kind.VENUE, "no venue", facts)
    if printed and printed.is_preprint:
        if known:
            yield Contradiction(item.line, paper.slug, Kind.VENUE, printed.text, facts)
        years = {paper.year}
    elif printed and known:
        if not printed.same_place(known):
            yield Contradiction(item.line, paper.slug, Kind.VENUE, printed.text, facts)
        elif printed.year and printed.year not in (known.years or years):
            yield Contradiction(item.line, paper.slug, Kind.YEAR, printed.text, facts)
            return
    if item.year and item.year not in years:
        yield Contradiction(item.line, paper.slug, Kind.YEAR, str(item.year), facts)


def _authors(item: Item, match: Match, index: Index) -> Iterator[Contradiction]:
    printed, known = item.authors, match.paper.authors
    if not printed:
        return
    missing = [author for author in known if not any(same_person(name, author) for name in printed)]
    strange = [name for name in printed if not any(same_person(name, author) for author in known)]
    if missing or strange:
        parts = [f"missing: {', '.join(missing)}"] if missing else []
        parts += [f"not an author: {', '.join(strange)}"] if strange else []
        yield Contradiction(item.line, match.paper.slug, Kind.AUTHORS, ", ".join(printed), "; ".join(parts))

"""The indexes: what to ask them about an entry, and what their answers say about it."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

from catalog.enrichment.answers import CrossrefWork, OpenAlexLocation, crossref_works, openalex_work
from catalog.enrichment.facts import ARXIV_DOI, Facts, landing_page, published_doi
from catalog.entry import Entry
from catalog.errors import UsageError
from catalog.lists.matching import folded
from catalog.network.identity import contact

KEY_VARIABLE = "OPENALEX_API_KEY"
SAME_TITLE = 90.0
"""Similarity of folded titles, 0 to 100, from which a work found by its title can be the paper."""
YEARS_APART = 2
_CROSSREF_FIELDS = "DOI,title,container-title,URL,issued,author,type"
_OPENALEX_FIELDS = "id,doi,title,publication_year,type,primary_location,locations"


@dataclass(frozen=True)
class Request:
    """What to ask: an address, and parameters, of which the secret ones are neither shown nor kept."""

    url: str
    parameters: Mapping[str, str]
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


class Source(ABC):
    """An index of papers."""

    name: str
    default: str

    @property
    def base(self) -> str:
        """Its address, from $PEFT_CATALOG_<NAME>_URL where that is set; UsageError for what is none."""
        variable = f"PEFT_CATALOG_{self.name.upper()}_URL"
        given = os.environ.get(variable) or self.default
        try:
            parts = urlsplit(given)
            usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
        except ValueError:
            usable = False
        if not usable:
            raise UsageError("not an address to ask", where=variable, allowed="https://host or http://host:port")
        return given.rstrip("/")

    @abstractmethod
    def request(self, entry: Entry) -> Request | None:
        """What to ask about an entry; None where it could not be found by anything."""

    @abstractmethod
    def facts(self, entry: Entry, body: bytes) -> Facts:
        """What an answer says about an entry; Unusable for one that says nothing."""


class OpenAlex(Source):
    """OpenAlex, asked by DOI: the published one, else arXiv's. Such requests are free, with a key and without."""

    name = "openalex"
    default = "https://api.openalex.org"

    def request(self, entry: Entry) -> Request | None:
        doi = entry.doi or (f"{ARXIV_DOI}{entry.arxiv}" if entry.arxiv else None)
        if doi is None:
            return None
        secret = os.environ.get(KEY_VARIABLE, "").strip()
        url = f"{self.base}/works/doi:{quote(doi, safe='/')}"
        return Request(url, {"select": _OPENALEX_FIELDS, **_mailto()}, {"api_key": secret} if secret else {})

    def facts(self, entry: Entry, body: bytes) -> Facts:
        work = openalex_work(body)
        places = [place for place in (work.primary_location, *work.locations) if place and _is_venue(place)]
        names = [place.source.display_name for place in places if place.source and place.source.display_name]
        pages = [place.landing_page_url for place in places]
        return Facts(
            found=True,
            title=work.title,
            venues=tuple(dict.fromkeys(names)),
            doi=published_doi(work.doi),
            url=next(filter(None, map(landing_page, pages)), None),
            year=work.publication_year,
            type=work.type,
        )


class Crossref(Source):
    """Crossref, asked by the published DOI, else by title; arXiv's DOIs are not registered there."""

    name = "crossref"
    default = "https://api.crossref.org"

    def request(self, entry: Entry) -> Request:
        doi = published_doi(entry.doi)
        if doi:
            return Request(f"{self.base}/works/{quote(doi, safe='')}", _mailto())
        query = {"query.bibliographic": entry.title, "rows": "5", "select": _CROSSREF_FIELDS}
        return Request(f"{self.base}/works", query | _mailto())

    def facts(self, entry: Entry, body: bytes) -> Facts:
        works = crossref_works(body)
        if not published_doi(entry.doi):
            works = [work for work in works if is_paper(work, entry)]
        if not works:
            return Facts()
        work = works[0]
        return Facts(
            found=True,
            title=work.title[0] if work.title else None,
            venues=tuple(work.venues),
            doi=published_doi(work.doi),
            url=landing_page(work.url),
            year=work.year,
            type=work.type,
        )


SOURCES: tuple[Source, ...] = (OpenAlex(), Crossref())


def is_paper(work: CrossrefWork, entry: Entry) -> bool:
    """Whether a work found by title is the paper, published: title, year and an author's family name must agree."""
    from rapidfuzz import fuzz

    similar = any(fuzz.ratio(folded(title), folded(entry.title)) >= SAME_TITLE for title in work.title)
    near = work.year is not None and abs(work.year - entry.year) <= YEARS_APART
    families = {folded(author.family) for author in work.author if author.family}
    known = {folded(name) for name in entry.authors}
    named = any(name == family or name.endswith(f" {family}") for name in known for family in families)
    return similar and near and named and work.type != "posted-content"


def _is_venue(place: OpenAlexLocation) -> bool:
    """Whether a place publishes; repositories such as arXiv only keep."""
    return place.source is not None and place.source.type != "repository"


def _mailto() -> dict[str, str]:
    """The mail address of who asks, where there is one: these indexes answer such requests first."""
    address = contact()
    return {"mailto": address} if address and not address.startswith("http") else {}

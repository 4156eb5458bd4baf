"""What is kept of an answer."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from catalog.entry import Entry
from catalog.lists.addresses import arxiv_id, is_on

ARXIV_DOI = "10.48550/arxiv."


class Facts(BaseModel):
    """What a source says about a paper; ``found`` is false where it does not have it."""

    model_config = ConfigDict(frozen=True)

    found: bool = False
    title: str | None = None
    venues: tuple[str, ...] = ()
    """Where it appeared, by names of the same thing: a series and its volume, say."""
    doi: str | None = None
    url: str | None = None
    year: int | None = None
    type: str | None = None


def key(entry: Entry) -> str:
    """By what an entry's facts are kept: its arXiv id where it has one."""
    return entry.arxiv or (f"doi:{entry.doi.lower()}" if entry.doi else f"slug:{entry.slug}")


def published_doi(doi: str | None) -> str | None:
    """A DOI that is not just arXiv's own."""
    return doi if doi and not doi.lower().startswith(ARXIV_DOI) else None


def landing_page(url: str | None) -> str | None:
    """An address that is more than the paper's page at arXiv, or its DOI once more."""
    return url if url and not arxiv_id(url) and not is_on(url, ("arxiv.org", "doi.org")) else None

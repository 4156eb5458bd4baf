"""CSL-JSON, which Zotero, Pandoc and citation processors read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from catalog.exports.bibtex import citation_key
from catalog.exports.people import Person, person
from catalog.exports.places import landing_page, publication
from catalog.terminal import escaped

if TYPE_CHECKING:
    from catalog.entry import Entry
    from catalog.paper import Paper


def to_csl(papers: Iterable[Paper | Entry]) -> str:
    """A JSON array of items, in the order given."""
    return escaped(json.dumps([item(paper) for paper in papers], indent=2, ensure_ascii=False)) + "\n"


def item(paper: Paper | Entry) -> dict[str, Any]:
    """One paper; keys that say nothing are left out."""
    place = publication(paper)
    arxiv = paper.arxiv
    kind = "article" if place.container is None else "article-journal" if place.journal else "paper-conference"
    facts = {
        "id": citation_key(paper),
        "citation-key": citation_key(paper),
        "type": kind,
        "title": paper.title,
        "author": [_name(person(author)) for author in paper.authors],
        "issued": {"date-parts": [[part for part in (place.year, place.month, place.day) if part]]},
        "container-title": place.container,
        "volume": place.volume,
        "issue": place.number,
        "page": place.pages,
        "publisher": "arXiv" if arxiv and place.container is None else None,
        "number": f"arXiv:{arxiv}" if arxiv and place.container is None else None,
        "archive": "arXiv" if arxiv else None,
        "archive_location": arxiv,
        "DOI": paper.doi,
        "URL": landing_page(paper),
        "note": f"Published as “{place.other_title}”" if place.other_title else None,
    }
    return {key: value for key, value in facts.items() if value is not None}


def _name(who: Person) -> dict[str, str]:
    if who.group:
        return {"literal": who.family}
    parts = {
        "family": who.family,
        "given": who.given,
        "non-dropping-particle": who.particle,
        "suffix": who.suffix,
    }
    return {key: value for key, value in parts.items() if value}

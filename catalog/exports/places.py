"""What a bibliography says of the place where a paper appeared: kind of publication, full name, year, issue, pages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from catalog.venues import YEAR, Venue, parse

if TYPE_CHECKING:
    from catalog.entry import Entry
    from catalog.paper import Paper

_CONFERENCES = {
    "AAAI": "AAAI Conference on Artificial Intelligence",
    "ACL": "Annual Meeting of the Association for Computational Linguistics",
    "ASRU": "IEEE Automatic Speech Recognition and Understanding Workshop",
    "CIKM": "ACM International Conference on Information and Knowledge Management",
    "COLING": "International Conference on Computational Linguistics",
    "CVPR": "IEEE/CVF Conference on Computer Vision and Pattern Recognition",
    "EACL": "Conference of the European Chapter of the Association for Computational Linguistics",
    "ECCV": "European Conference on Computer Vision",
    "EMNLP": "Conference on Empirical Methods in Natural Language Processing",
    "ICCV": "IEEE/CVF International Conference on Computer Vision",
    "ICLR": "International Conference on Learning Representations",
    "ICME": "IEEE International Conference on Multimedia and Expo",
    "ICML": "International Conference on Machine Learning",
    "IJCAI": "International Joint Conference on Artificial Intelligence",
    "IJCNLP": "International Joint Conference on Natural Language Processing",
    "NAACL": "Conference of the North American Chapter of the Association for Computational Linguistics",
    "NeurIPS": "Advances in Neural Information Processing Systems",
    "SIGIR": "International ACM SIGIR Conference on Research and Development in Information Retrieval",
    "WACV": "IEEE/CVF Winter Conference on Applications of Computer Vision",
}
_JOURNALS = {
    "TACL": "Transactions of the Association for Computational Linguistics",
    "TMLR": "Transactions on Machine Learning Research",
}
_FINDINGS = "Findings of the Association for Computational Linguistics"
_OTHER_TITLE = re.compile(r"\(as '(?P<title>.+)'\)")
_REMARK = re.compile(r"\((oral|poster|spotlight|notable[^)]*|as '.+')\)", re.IGNORECASE)


@dataclass(frozen=True)
class Publication:
    """How a paper is cited. ``container`` is the journal or the proceedings; None for a preprint."""

    year: int
    month: int | None = None
    day: int | None = None
    container: str | None = None
    journal: bool = False
    volume: str | None = None
    number: str | None = None
    pages: str | None = None
    other_title: str | None = None


def publication(paper: Paper | Entry) -> Publication:
    """Where and when a paper appeared; the day of a preprint says nothing of when it was printed elsewhere."""
    place = parse(paper.venue) if paper.venue else None
    date = [int(part) for part in paper.published.split("-")]
    year, month, day = (*date, None, None)[:3]
    if place is None or place.is_preprint or not place.name:
        return Publication(year or paper.year, month, day)
    printed = place.year or paper.year
    own_date = paper.arxiv is None and printed == year
    other = _OTHER_TITLE.search(place.text)
    return Publication(
        year=printed,
        month=month if own_date else None,
        day=day if own_date else None,
        container=_journal(place) if place.journal else _proceedings(place),
        journal=place.journal,
        volume=place.volume,
        number=place.number,
        pages=place.pages,
        other_title=other["title"] if other else None,
    )


def landing_page(paper: Paper | Entry) -> str | None:
    """Where the paper can be read: its page, else arXiv, else its code; nothing where the DOI says the same."""
    resolver = f"https://doi.org/{paper.doi}"
    url = paper.url or (f"https://arxiv.org/abs/{paper.arxiv}" if paper.arxiv else None)
    if paper.doi:
        return None if url is None or url.lower() == resolver.lower() else url
    return url or paper.code


def _journal(place: Venue) -> str:
    return _JOURNALS.get(place.name, place.name)


def _proceedings(place: Venue) -> str:
    """The full name with the short one in brackets; the name as it stands where no full one is known."""
    if place.track == "findings":
        short = re.sub(r"(?i)^findings of (the )?", "", place.name)
        return f"{_FINDINGS}: {short} {place.year or ''}".strip()
    short, *rest = place.name.split(" ", 1)
    known = [_CONFERENCES[part] for part in short.split("-") if part in _CONFERENCES]
    if not known or len(known) != len(short.split("-")) or any(word.lower() not in _TRACKS for word in rest):
        return _REMARK.sub("", YEAR.sub("", place.name)).strip() or place.text
    return " ".join([" and ".join(known), f"({short})", *map(str.capitalize, rest)])


_TRACKS = frozenset({"workshop", "workshops"})

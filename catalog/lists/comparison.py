"""A list held against the catalog: what is known, what is new, where they contradict each other."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from urllib.parse import unquote

from catalog.entry import Erratum, Listing
from catalog.lists.contradictions import Contradiction, Kind, contradictions
from catalog.lists.item import Item, Notice, ReadList
from catalog.lists.matching import Index, Match, folded, name_key
from catalog.lists.paper import PaperLike
from catalog.lists_data import Style

_QUOTED = re.compile(r"(?<!\w)'(.{12,}?)'(?!\w)|\"([^\"]{12,})\"|(https?://\S+)")
_SCHEME = re.compile(r"^https?://(www\.)?")


@dataclass(frozen=True)
class Known:
    """An item and the paper of the catalog it means."""

    item: Item
    match: Match


@dataclass(frozen=True)
class Comparison:
    """What reading a list against the catalog found."""

    style: Style
    known: tuple[Known, ...]
    new: tuple[Item, ...]
    contradictions: tuple[Contradiction, ...]
    notices: tuple[Notice, ...]

    @property
    def consistent(self) -> bool:
        """Whether every item is known and nothing contradicts the catalog."""
        return not self.new and not self.contradictions

    @property
    def slugs(self) -> frozenset[str]:
        """The papers the list has."""
        return frozenset(known.match.paper.slug for known in self.known)


def compare(read: ReadList, papers: Iterable[PaperLike]) -> Comparison:
    """Match every item and collect contradictions, mistakes of this list that are on record among them."""
    index = Index(papers)
    known, new = [], []
    for item in read.items:
        match = index.match(item)
        if match:
            known.append(Known(item, match))
        else:
            new.append(item)
    found = [each for pair in known for each in contradictions(pair.item, pair.match, index)]
    found = _with_errata(found, known)
    found.sort(key=lambda each: (each.line, each.kind, each.slug))
    notices = sorted([*read.notices, *_repeated(known)], key=lambda notice: notice.line)
    return Comparison(read.style, tuple(known), tuple(new), tuple(found), tuple(notices))


def _repeated(known: Sequence[Known]) -> Iterator[Notice]:
    places: dict[str, list[int]] = defaultdict(list)
    for pair in known:
        if not pair.item.mention and not pair.item.commented:
            places[pair.match.paper.slug].append(pair.item.line)
    for slug, lines in places.items():
        for line in lines[1:]:
            yield Notice(line, f"{slug} is listed before, on line {lines[0]}")


def _with_errata(found: list[Contradiction], known: Sequence[Known]) -> list[Contradiction]:
    """Add what the catalog has on record about a list's mistakes, as evidence where the mistake was found anyway."""
    meant: dict[str, list[Item]] = defaultdict(list)
    linked: dict[str, list[Item]] = defaultdict(list)
    papers: dict[str, PaperLike] = {}
    for pair in known:
        others = [other for _, other in pair.match.linked]
        papers |= {paper.slug: paper for paper in (pair.match.paper, *others)}
        meant[pair.match.paper.slug].append(pair.item)
        for other in others:
            linked[other.slug].append(pair.item)
    for slug, paper in papers.items():
        for erratum in paper.errata:
            item = _where(erratum, meant[slug], linked[slug], paper)
            if item is None:
                continue
            again = next((n for n, each in enumerate(found) if _same(each, erratum, paper)), None)
            if again is None:
                found.append(_on_record(item, paper, erratum))
            else:
                fact = found[again].fact if found[again].kind is Kind.AUTHORS else erratum.fact
                found[again] = replace(found[again], fact=fact, evidence=erratum.evidence)
    return found


def _on_record(item: Item, paper: PaperLike, erratum: Erratum) -> Contradiction:
    return Contradiction(item.line, paper.slug, Kind.KNOWN_ERRATUM, erratum.claim, erratum.fact, erratum.evidence)


def _where(
    erratum: Erratum, meant: Sequence[Item], linked: Sequence[Item], paper: PaperLike
) -> Item | None:
    """The item an erratum speaks of: printed as the list had it when the mistake was recorded, and saying so still.

    An item that means another paper but links to this one counts when it has the very words of the claim.
    """
    listings = [row for row in paper.listed_in if row.list_slug == erratum.list_slug]
    printed = [item for item in meant if any(_is_printed(item, row) for row in listings)]
    quotes = ["".join(groups) for groups in _QUOTED.findall(erratum.claim)]
    saying = [item for item in (*printed, *linked) if any(_says(item, quote) for quote in quotes)]
    if saying or not printed:
        return saying[0] if saying else None
    has_address = any(quote.startswith("http") for quote in quotes)
    return None if has_address else max(printed, key=lambda item: _closeness(item, erratum))


def _is_printed(item: Item, listing: Listing) -> bool:
    """Whether an item is this appearance: same words, same link, under the same heading."""
    address = unquote(listing.link or "")
    parts = [folded(part) for part in (listing.section or "").split(" / ")]
    place = [folded(part) for part in item.section.split(" / ")]
    return (
        name_key(listing.printed_as).startswith(name_key(item.title))
        and (not address or any(link.url == address for link in item.links))
        and all(any(here.startswith(there) or there.startswith(here) for here in place) for there in parts)
    )


def _says(item: Item, quote: str) -> bool:
    return folded(quote.split("...")[0]) in folded(item.text)


def _closeness(item: Item, erratum: Erratum) -> float:
    from rapidfuzz import fuzz

    return fuzz.partial_ratio(folded(erratum.claim), folded(item.text))


def _same(found: Contradiction, erratum: Erratum, paper: PaperLike) -> bool:
    """Whether a contradiction is the recorded mistake found again."""
    if found.slug != paper.slug or found.evidence:
        return False
    claim = folded(erratum.claim)
    if found.kind is Kind.AUTHORS:
        return "author" in claim
    return folded(_SCHEME.sub("", found.says)) in claim

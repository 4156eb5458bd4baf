"""Mistakes of a list that are on record: found again where the list still makes them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from urllib.parse import unquote

from catalog.entry import Erratum, Listing
from catalog.lists.contradictions import Contradiction, Kind
from catalog.lists.item import Item, ReadList
from catalog.lists.matching import Match, folded, name_key
from catalog.lists.paper import PaperLike
from catalog.lists_data import load_lists

# What a claim is about, by its words; the first that fits.
_SUBJECTS: tuple[tuple[str, Kind], ...] = (
    (r"^(listed|filed|grouped|category|section)\b|^an? .*\bmethod\b", Kind.PLACE),
    (r"\bauthors?\b", Kind.AUTHORS),
    (r"^title\b", Kind.TITLE),
    (r"\bcode\b", Kind.CODE),
    (r"\b(empty|missing)\b", Kind.VENUE),
    (r"^year\b", Kind.YEAR),
    (r"^[\w .&-]+['‘]\d{4}(?: as venue)?$", Kind.VENUE),
    (r"^link\b", Kind.SECONDARY_LINK),
)
_QUOTED = re.compile(r"(?<!\w)'([^']{5,})'(?!\w)|\"([^\"]{5,})\"|\(([^()]{8,})\)|(https?://[^\s;]+)|\blink ([\w./-]+)")
_PIECES = re.compile(r"; | \.\.\. |: ")
_SHORTEST_PIECE = 12
_SCHEME = re.compile(r"^https?://(www\.)?")
# Similarity (rapidfuzz.fuzz.partial_ratio, 0 to 100) of a claim and a line from which the line says it, or says it
# word for word; and share of the claim's words, in percent, from which a whole item says it in words of its own.
_SAYS = 88.0
_VERBATIM = 96.0
_WORDS = 55.0
_FEWEST_WORDS = 6


@dataclass(frozen=True)
class _Place:
    """Where an erratum was found, and how sure that is."""

    line: int
    score: float


def with_errata(
    found: Sequence[Contradiction], read: ReadList, pairs: Iterable[tuple[Item, Match]]
) -> list[Contradiction]:
    """The contradictions, those on record with their evidence, and the mistakes on record that no check can see."""
    meant: dict[str, list[Item]] = defaultdict(list)
    linked: dict[str, list[Item]] = defaultdict(list)
    papers: dict[str, PaperLike] = {}
    for item, match in pairs:
        others = [other for _, other in match.linked]
        papers |= {paper.slug: paper for paper in (match.paper, *others)}
        meant[match.paper.slug].append(item)
        for other in others:
            linked[other.slug].append(item)
    result = list(found)
    same_layout = {source.slug for source in load_lists() if source.style is read.style}
    for slug, paper in papers.items():
        for erratum in (each for each in paper.errata if each.list_slug in same_layout):
            _take(result, erratum, paper, _candidates(erratum, paper, meant[slug], linked[slug]), read)
    return result


def _take(
    result: list[Contradiction], erratum: Erratum, paper: PaperLike, items: Sequence[Item], read: ReadList
) -> None:
    """Add an erratum to the contradictions, or its evidence to the one that is the same."""
    if not items:
        return
    again = next((n for n, each in enumerate(result) if _same(each, erratum, paper)), None)
    if again is not None:
        kind = result[again].kind
        fact = result[again].fact if kind is Kind.AUTHORS else erratum.fact
        result[again] = replace(result[again], fact=fact, evidence=erratum.evidence)
        return
    line = _line(erratum, items, read)
    if line:
        subject = subject_of(erratum) or Kind.STATEMENT
        result.append(Contradiction(line, paper.slug, subject, erratum.claim, erratum.fact, erratum.evidence))


def subject_of(erratum: Erratum) -> Kind | None:
    """What an erratum is about; None for a statement about the method."""
    claim = erratum.claim.casefold()
    return next((kind for pattern, kind in _SUBJECTS if re.search(pattern, claim)), None)


def _candidates(erratum: Erratum, paper: PaperLike, meant: Sequence[Item], linked: Sequence[Item]) -> list[Item]:
    """The items an erratum may speak of: those printed where and as the list had them when it was recorded.

    An item that means another paper but links to this one may be meant as well.
    """
    listings = [row for row in paper.listed_in if row.list_slug == erratum.list_slug]
    printed = [item for item in meant if any(_is_printed(item, row) for row in listings)]
    return [*printed, *linked] if not subject_of(erratum) else printed


def _is_printed(item: Item, listing: Listing) -> bool:
    """Whether an item is this appearance: same words, same link, under the same heading."""
    address = unquote(listing.link or "")
    parts = [folded(part) for part in (listing.section or "").split(" / ")]
    place = [folded(part) for part in item.section.split(" / ")]
    return (
        name_key(listing.printed_as).startswith(name_key(item.title))
        and (not address or any(link.url == address for link in item.links))
        and all(any(here.startswith(there) for here in place) for there in parts)
    )


def _line(erratum: Erratum, items: Sequence[Item], read: ReadList) -> int | None:
    """Where the list makes the mistake; None where it no longer does."""
    subject = subject_of(erratum)
    if subject is Kind.PLACE:
        return items[0].line
    if subject is Kind.VENUE:
        claimed = folded(re.sub(r" as venue$", "", erratum.claim))
        return next((item.line for item in items if item.venue and folded(item.venue) == claimed), None)
    best = max((_place(erratum, item.lines) for item in items), key=lambda place: place.score)
    if subject is None and best.score < _VERBATIM:
        # Lists also speak of their items in running text; there, only the very words count.
        elsewhere = _place(erratum, list(enumerate(read.lines, 1)))
        best = elsewhere if elsewhere.score >= _VERBATIM else best
    if best.score >= _SAYS:
        return best.line
    if subject:
        return None
    spoken = (item for item in items if _share_of_words(erratum.claim, item.text) >= _WORDS)
    return next((_place(erratum, item.lines).line for item in spoken), None)


def _place(erratum: Erratum, lines: Sequence[tuple[int, str]]) -> _Place:
    """The line that comes nearest to saying what the erratum claims."""
    phrases = [phrase for phrase in map(folded, _phrases(erratum.claim)) if phrase]
    scored = (
        _Place(number, max((_likeness(phrase, said) for phrase in phrases), default=0.0))
        for number, said in ((number, folded(words)) for number, words in lines)
        if said
    )
    return max(scored, key=lambda place: place.score, default=_Place(0, 0.0))


def _likeness(phrase: str, said: str) -> float:
    """How much of a phrase is in a line; a line that is part of the phrase does not say it."""
    from rapidfuzz import fuzz

    return fuzz.partial_ratio(phrase, said) if len(said) >= len(phrase) else fuzz.ratio(phrase, said)


def _phrases(claim: str) -> Iterator[str]:
    """A claim as a whole and in the pieces that a list would say word for word."""
    yield claim
    quoted = _quotes(claim)
    for piece in (piece for phrase in quoted or [claim] for piece in _PIECES.split(phrase)):
        if quoted or len(piece) >= _SHORTEST_PIECE:
            yield piece


def _quotes(claim: str) -> list[str]:
    return ["".join(groups) for groups in _QUOTED.findall(claim)]


def _share_of_words(claim: str, text: str) -> float:
    words, said = set(folded(claim).split()), set(folded(text).split())
    return 100 * len(words & said) / len(words) if len(words) >= _FEWEST_WORDS else 0.0


def _same(found: Contradiction, erratum: Erratum, paper: PaperLike) -> bool:
    """Whether a contradiction is the recorded mistake found again."""
    if found.slug != paper.slug or found.evidence:
        return False
    claim = folded(erratum.claim)
    if found.kind is Kind.AUTHORS:
        return subject_of(erratum) is Kind.AUTHORS
    if found.kind is Kind.NO_ADDRESS:
        return "link" in claim and "empty" in claim
    if found.kind is Kind.VENUE and found.says == "no venue":
        return "venue" in claim
    says = folded(_SCHEME.sub("", found.says))
    if found.kind in (Kind.TITLE, Kind.CUT_TITLE):
        return any(folded(phrase) in says for phrase in _quotes(erratum.claim) if folded(phrase))
    return bool(says) and says in claim

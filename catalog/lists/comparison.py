"""A list held against the catalog: what is known, what is new, where they contradict each other."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from catalog.lists.contradictions import Contradiction, contradictions
from catalog.lists.errata import with_errata
from catalog.lists.item import Item, Notice, ReadList
from catalog.lists.matching import Index, Match
from catalog.lists.paper import PaperLike
from catalog.lists_data import Style


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
        """Whether every item is known, nothing contradicts the catalog and nothing about the file is odd."""
        return not (self.new or self.contradictions or self.notices)

    @property
    def slugs(self) -> frozenset[str]:
        """The papers the list has."""
        return frozenset(known.match.paper.slug for known in self.known)

    @property
    def kinds(self) -> dict[str, int]:
        """How many contradictions there are of each kind, the most frequent first."""
        return dict(Counter(str(each.kind) for each in self.contradictions).most_common())


def compare(read: ReadList, papers: Iterable[PaperLike]) -> Comparison:
    """Match every item and collect contradictions, mistakes of this list that are on record among them."""
    index = Index(papers)
    matched = [(item, index.match(item)) for item in read.items]
    known = [Known(item, match) for item, match in matched if match]
    new = [item for item, match in matched if not match]
    found = [each for pair in known for each in contradictions(pair.item, pair.match, index)]
    found = with_errata(found, read, ((pair.item, pair.match) for pair in known))
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

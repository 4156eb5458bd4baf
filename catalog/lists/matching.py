"""Which paper of the catalog an item of a list means."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from catalog.lists import addresses
from catalog.lists.item import Item, Link, Role
from catalog.lists.paper import PaperLike
from catalog.markdown import plain

# Similarity (rapidfuzz.fuzz.ratio over folded titles, 0 to 100) from which two titles are one. The two most similar
# titles of different papers in the catalog reach 84.3; a title with one wrong letter in twenty keeps 95. A test holds
# both sides of the threshold as the catalog grows.
SAME_TITLE = 90.0
# A title cut off is recognized by its beginning when so many letters of it are left.
CUT_OFF_LENGTH = 25

Way = Literal["arXiv id", "DOI", "address", "title", "name", "similar title", "beginning of the title", "short name"]


def folded(text: str) -> str:
    """Words without case, accents and punctuation."""
    letters = (sign for sign in unicodedata.normalize("NFKD", text) if not unicodedata.combining(sign))
    return re.sub(r"[\W_]+", " ", "".join(letters).casefold()).strip()


def name_key(text: str) -> str:
    """A short name without case and any separators: `p_tuning`, `P-Tuning` and `P Tuning` are one."""
    return folded(text).replace(" ", "")


@dataclass(frozen=True)
class Match:
    """The paper an item means, all ways in which that was told, and papers its links lead to instead."""

    paper: PaperLike
    ways: tuple[Way, ...]
    score: float = 100.0
    linked: tuple[tuple[Link, PaperLike], ...] = ()


class Index:
    """Papers by everything a list may call them."""

    def __init__(self, papers: Iterable[PaperLike]) -> None:
        self.papers = tuple(papers)
        self._titles: dict[str, list[PaperLike]] = defaultdict(list)
        self._folded: dict[str, list[PaperLike]] = defaultdict(list)
        self._names: dict[str, list[PaperLike]] = defaultdict(list)
        self._arxiv: dict[str, list[PaperLike]] = defaultdict(list)
        self._dois: dict[str, list[PaperLike]] = defaultdict(list)
        self._addresses: dict[str, list[PaperLike]] = defaultdict(list)
        for paper in self.papers:
            self._add(paper)
        # A repository that several papers share, such as that of a library, tells nothing.
        for key, owners in self._repositories().items():
            self._addresses[key] += owners if len(owners) == 1 else []

    def _add(self, paper: PaperLike) -> None:
        self._titles[plain(paper.title).casefold()].append(paper)
        self._folded[folded(paper.title)].append(paper)
        for key in {name_key(name) for name in (paper.slug, paper.name, *paper.aliases)}:
            self._names[key].append(paper)
        if paper.arxiv:
            self._arxiv[paper.arxiv.lower()].append(paper)
        if paper.doi:
            self._dois[paper.doi.lower()].append(paper)
        # A public list's own link says which paper it means only where it is not itself one of the errors listed.
        printed = (row.link for row in paper.listed_in if row.link and not addresses.arxiv_id(row.link))
        for key in {addresses.canonical(url) for url in (paper.url, *printed) if url}:
            self._addresses[key].append(paper)

    def _repositories(self) -> dict[str, list[PaperLike]]:
        owners: dict[str, list[PaperLike]] = defaultdict(list)
        for paper in self.papers:
            if paper.code:
                owners[addresses.canonical(paper.code)].append(paper)
        return owners

    def match(self, item: Item) -> Match | None:
        """The paper an item means, or None for one that the catalog does not have.

        Title or name beat the link, for lists paste wrong links more often than wrong titles.
        """
        linked = self._linked(item)
        pointed = [paper for _, _, paper in linked]
        called, way = self._called(item)
        if called:
            return self._matched(next((paper for paper in pointed if paper in called), called[0]), way, linked)
        similar, score = self._similar(item)
        if similar:
            return self._matched(similar, "similar title", linked, score)
        if pointed:
            return self._matched(self._most_similar(item, pointed), None, linked)
        return self._partly_called(item)

    def by_arxiv(self, arxiv: str) -> list[PaperLike]:
        """Papers with this arXiv id."""
        return self._arxiv.get(arxiv.lower(), [])

    def by_doi(self, doi: str) -> list[PaperLike]:
        """Papers with this DOI."""
        return self._dois.get(doi.lower(), [])

    def _matched(
        self, paper: PaperLike, way: Way | None, linked: list[tuple[Link, Way, PaperLike]], score: float = 100.0
    ) -> Match:
        right = {link: told for link, told, other in linked if other is paper}
        elsewhere = {link: other for link, _, other in linked if link not in right}
        ways = dict.fromkeys([*right.values(), *([way] if way else [])])
        return Match(paper, tuple(ways), score, tuple(elsewhere.items()))

    def _linked(self, item: Item) -> list[tuple[Link, Way, PaperLike]]:
        found: list[tuple[Link, Way, PaperLike]] = []
        for link in item.links:
            if link.role is not Role.PAPER or not link.url:
                continue
            arxiv, doi = addresses.arxiv_id(link.url), addresses.doi(link.url)
            candidates: tuple[tuple[Way, list[PaperLike]], ...] = (
                ("arXiv id", self.by_arxiv(arxiv) if arxiv else []),
                ("DOI", self.by_doi(doi) if doi else []),
                ("address", self._addresses.get(addresses.canonical(link.url), [])),
            )
            way, papers = next(((way, papers) for way, papers in candidates if papers), ("address", []))
            found += [(link, way, paper) for paper in papers]
        return found

    def _called(self, item: Item) -> tuple[list[PaperLike], Way]:
        exact = self._titles.get(plain(item.title).casefold()) or self._folded.get(folded(item.title) or "\0")
        if exact:
            return exact, "title"
        return self._names.get(name_key(item.title) or "\0", []), "name"

    def _similar(self, item: Item) -> tuple[PaperLike | None, float]:
        from rapidfuzz import fuzz, process

        key = folded(item.title)
        if not key:
            return None, 0.0
        best = process.extractOne(key, list(self._folded), scorer=fuzz.ratio, score_cutoff=SAME_TITLE)
        return (self._folded[best[0]][0], float(best[1])) if best else (None, 0.0)

    def _most_similar(self, item: Item, papers: list[PaperLike]) -> PaperLike:
        from rapidfuzz import fuzz

        def likeness(paper: PaperLike) -> float:
            names = (paper.title, paper.name, paper.slug, *paper.aliases)
            return max(fuzz.ratio(folded(item.title), folded(name)) for name in names)

        return max(papers, key=likeness)

    def _partly_called(self, item: Item) -> Match | None:
        """A title cut off, or one whose short name before the colon and whose authors are known."""
        key = folded(item.title)
        if len(key) >= CUT_OFF_LENGTH:
            longer = [papers[0] for title, papers in self._folded.items() if title.startswith(key)]
            if len(longer) == 1:
                return Match(longer[0], ("beginning of the title",))
        named = self._names.get(name_key(item.title.split(":")[0]) or "\0", [])
        by_authors = [paper for paper in named if share_of_authors(item.authors, paper.authors) > 0.5]
        return Match(by_authors[0], ("short name",)) if by_authors else None


def share_of_authors(printed: Iterable[str], known: Iterable[str]) -> float:
    """Share of the printed authors that are among the known ones; 0 when none are printed."""
    names, authors = list(printed), list(known)
    return sum(any(same_person(name, author) for author in authors) for name in names) / len(names) if names else 0.0


def same_person(one: str, other: str) -> bool:
    """Whether two spellings mean one author: order of the names, accents, middle names and initials aside."""
    from rapidfuzz import fuzz

    if _bare(one) == _bare(other):
        return True
    first, second = folded(one), folded(other)
    short, long = sorted((first.split(), second.split()), key=len)
    if set(short) <= set(long) or _initials_agree(first.split(), second.split()):
        return bool(short)
    # 80 lets Rueckle pass for Rücklé, and keeps Jie Zhou and Jie Fu apart.
    return fuzz.token_sort_ratio(first, second) >= 80


def _bare(name: str) -> str:
    """A name without what a list puts around it."""
    return plain(name).strip(" .*")


def _initials_agree(one: list[str], other: list[str]) -> bool:
    """Whether the family names are equal and given names on one side are the initials of those on the other."""
    if not one or not other or one[-1] != other[-1] or len(one) != len(other):
        return False
    return all(a == b or (1 in (len(a), len(b)) and a[0] == b[0]) for a, b in zip(one, other, strict=True))

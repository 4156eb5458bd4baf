"""What the layouts share: grouping, links, venues and sentences."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from catalog import venues
from catalog.lists.paper import PaperLike
from catalog.markdown import address, escape, plain
from catalog.taxonomy import Category, Subcategory
from catalog.venues import Venue

SECTION_NAMES = {Category.CONTEXT: "Related work"}
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z(])")
_SENTENCE_SIGNS = (".", "!", "?", "…")
# Shorter openings, such as "Two stages.", say nothing without the sentence after them.
_LEAST_SAID = 50


def generated(style: str) -> str:
    """The line that says where a list comes from."""
    return f"<!-- Written by peft-catalog list write --style {style}; change the entries instead of this file. -->"


def by_category(papers: Iterable[PaperLike]) -> Iterator[tuple[Category, list[PaperLike]]]:
    """Papers of each category that has some, in the order of the vocabulary."""
    known = list(papers)
    for category in Category:
        of_category = [paper for paper in known if str(paper.category) == category]
        if of_category:
            yield category, sorted(of_category, key=_by_date)


def by_subcategory(papers: Sequence[PaperLike]) -> Iterator[tuple[str, list[PaperLike]]]:
    """Papers of each subcategory, in the order of the vocabulary; those without one last, under an empty name."""
    order = {word: place for place, word in enumerate(Subcategory.words())}
    for word in sorted(
        {str(paper.subcategory or "") for paper in papers}, key=lambda word: order.get(word, len(order))
    ):
        yield word, [paper for paper in papers if str(paper.subcategory or "") == word]


def _by_date(paper: PaperLike) -> tuple[str, str]:
    return paper.published, paper.slug


def category_name(category: Category) -> str:
    """A category as a heading."""
    return SECTION_NAMES.get(category, words_of(category))


def words_of(term: str) -> str:
    """A word of the vocabulary as a heading: `low-rank` becomes `Low rank`."""
    return term.replace("-", " ").capitalize()


def title_of(paper: PaperLike) -> str:
    """The title as one line of text."""
    return plain(paper.title) or paper.slug


def paper_address(paper: PaperLike, shared: Iterable[str] = ()) -> str:
    """Where to read the paper: arXiv, DOI, landing page or code; empty when no address is known.

    An arXiv id in `shared` belongs to several papers of the list and would not tell them apart.
    """
    arxiv = f"https://arxiv.org/abs/{paper.arxiv}" if paper.arxiv and paper.arxiv not in set(shared) else ""
    doi = f"https://doi.org/{paper.doi}" if paper.doi else ""
    fallback = f"https://arxiv.org/abs/{paper.arxiv}" if paper.arxiv else ""
    addresses = (address(url) for url in (arxiv, doi, paper.url, fallback, paper.code))
    return next((url for url in addresses if url), "")


def shared_ids(papers: Iterable[PaperLike]) -> frozenset[str]:
    """arXiv ids that belong to more than one paper."""
    ids = [paper.arxiv for paper in papers if paper.arxiv]
    return frozenset(arxiv for arxiv in ids if ids.count(arxiv) > 1)


def code_address(paper: PaperLike) -> str:
    """Where the authors' code is, or nothing."""
    return address(paper.code)


def venue_of(paper: PaperLike) -> Venue:
    """Where the paper appeared; the preprint server, or nothing but the year, when it was not published elsewhere."""
    text = paper.venue or (f"arXiv {paper.year}" if paper.arxiv else str(paper.year))
    return venues.parse(plain(text))


def short_venue(paper: PaperLike) -> str:
    """Venue and year without pages and remarks: `Findings of ACL 2022`."""
    venue = venue_of(paper)
    if not paper.venue:
        return venue.text
    return f"{venue.name} {venue.year or paper.year}"


def opening(text: str) -> str:
    """The first sentences of a text that say something, mostly one; escaped, with a full stop."""
    first, *rest = _SENTENCE_END.split(plain(text))
    while rest and len(first) < _LEAST_SAID:
        first = f"{first} {rest.pop(0)}"
    return escape(sentence(first))


def sentence(text: str) -> str:
    """Text that ends as a sentence does."""
    line = plain(text)
    return line if line.endswith(_SENTENCE_SIGNS) else f"{line.rstrip(' ,;:')}."


def document(lines: Iterable[str]) -> str:
    """Lines as a file: no more than one empty line in a row, one line end at the end."""
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n") + "\n"

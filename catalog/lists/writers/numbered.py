"""The numbered layout: categories, modalities and mechanisms as headings; title, venue'year, authors and link."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from catalog.lists.paper import PaperLike
from catalog.lists.writers.common import (
    by_category,
    by_subcategory,
    category_name,
    code_address,
    document,
    generated,
    paper_address,
    shared_ids,
    title_of,
    venue_of,
    words_of,
)
from catalog.markdown import escape
from catalog.taxonomy import Category, Modality


def write_numbered(papers: Sequence[PaperLike]) -> str:
    """Numbers start anew under every heading, as the list does that this layout comes from."""
    shared = shared_ids(papers)
    sections = list(by_category(papers))
    lines = ["# Parameter-Efficient Fine-Tuning for Foundation Models", "", generated("numbered"), ""]
    lines += ["## PEFT paper lists", "", "### [Content](#content)", "", "<table>", ""]
    lines += [_row(number, name) for number, name in enumerate(_names(sections), 1)]
    lines += ["", "</table>"]
    for name, (_, members) in zip(_names(sections), sections, strict=True):
        lines += ["", f"### [{name}](#content)"]
        for modality in [*Modality.words(), ""]:
            lines += _modality(modality, [paper for paper in members if _main_modality(paper) == modality], shared)
    return document(lines)


def _names(sections: Sequence[tuple[Category, list[PaperLike]]]) -> list[str]:
    return [category_name(category) for category, _ in sections]


def _row(number: int, name: str) -> str:
    return f'<tr><td><a href="#{name.lower().replace(" ", "-")}">{number}. {name}</a></td></tr>'


def _main_modality(paper: PaperLike) -> str:
    """A paper stands once, under the first kind of model it adapts."""
    return str(paper.modality[0]) if paper.modality else ""


def _modality(modality: str, papers: Sequence[PaperLike], shared: frozenset[str]) -> Iterator[str]:
    if not papers:
        return
    yield from ("", f"#### {modality.upper()}" if modality else "#### Other")
    for subcategory, group in by_subcategory(papers):
        if subcategory:
            yield from ("", f"##### {words_of(subcategory)}")
        for number, paper in enumerate(group, 1):
            yield from _item(number, paper, shared)


def _item(number: int, paper: PaperLike, shared: frozenset[str]) -> Iterator[str]:
    venue = venue_of(paper)
    where = f"{venue.name}'{venue.year or paper.year}" if venue.name != str(venue.year) else venue.name
    indent = " " * len(f"{number}. ")
    yield from ("", f"{number}. **{escape(title_of(paper))}**. **{escape(where)}**.")
    yield from ("", f"{indent}*{', '.join(escape(author) for author in paper.authors)}*")
    links = (("paper", paper_address(paper, shared)), ("code", code_address(paper)))
    if any(url for _, url in links):
        yield from ("", indent + " ".join(f"[{label}]({url})" for label, url in links if url))

"""The layout of awesome lists, clean under awesome-lint."""

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
    opening,
    paper_address,
    shared_ids,
    short_venue,
    title_of,
    words_of,
)
from catalog.markdown import escape

_BADGE = "[![Awesome](https://awesome.re/badge.svg)](https://awesome.re)"
_PITCH = "Papers on adapting large pretrained models by training few parameters, sorted by where the change is made."


def write_awesome(papers: Sequence[PaperLike]) -> str:
    """One section a category, one heading a subcategory, one line a paper."""
    shared = shared_ids(papers)
    sections = list(by_category(papers))
    names = [category_name(category) for category, _ in sections]
    lines = [f"# Awesome Parameter-Efficient Fine-Tuning {_BADGE}", "", f"> {_PITCH}", "", generated("awesome"), ""]
    lines += ["## Contents", "", *(f"- [{name}](#{name.lower().replace(' ', '-')})" for name in names)]
    for name, (category, members) in zip(names, sections, strict=True):
        lines += ["", f"## {name}", "", category.definition]
        for subcategory, group in by_subcategory(members):
            lines += ["", *_heading(name, subcategory), ""]
            lines += [line for paper in group for line in _item(paper, shared)]
    return document(lines)


def _heading(section: str, subcategory: str) -> list[str]:
    """Subcategories share names across categories, and headings of one document must differ."""
    return [f"### {section}: {words_of(subcategory).lower()}"] if subcategory else []


def _item(paper: PaperLike, shared: frozenset[str]) -> Iterator[str]:
    title, target = escape(title_of(paper)), paper_address(paper, shared)
    parts = [opening(paper.summary)]
    parts += [f"*{escape(short_venue(paper))}*."]
    code = code_address(paper)
    if code:
        parts.append(f"[Code]({code}).")
    yield f"- [{title}]({target}) - {' '.join(parts)}" if target else f"- {title} - {' '.join(parts)}"

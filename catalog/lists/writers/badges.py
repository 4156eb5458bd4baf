"""The layout with badges: a section a subcategory, the paper's link in brackets, badges for venue and code below."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from urllib.parse import quote

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
    short_venue,
    title_of,
    words_of,
)
from catalog.markdown import escape

_SHIELD = "https://img.shields.io/badge"
_GRAY, _BLUE = "4a4a4a", "2962FF"
_CODE_BADGE = f"![Code]({_SHIELD}/{quote('👩‍💻')}%20Code-{_BLUE}?style=flat&labelColor={_BLUE}&color={_BLUE})"


def write_badges(papers: Sequence[PaperLike]) -> str:
    """Sections named by category and subcategory, with items of two or three lines."""
    shared = shared_ids(papers)
    lines = ["# Parameter-Efficient Fine-Tuning Techniques", "", generated("badges")]
    for category, members in by_category(papers):
        for subcategory, group in by_subcategory(members):
            name = category_name(category)
            lines += ["", f"## 🚀 {name}: {words_of(subcategory).lower()}" if subcategory else f"## 🚀 {name}"]
            lines += [line for paper in group for line in _item(paper, shared)]
    return document(lines)


def _item(paper: PaperLike, shared: frozenset[str]) -> Iterator[str]:
    title, target = escape(title_of(paper)), paper_address(paper, shared)
    yield ""
    yield f"- {title} [[Paper]({target})]" if target else f"- {title}"
    yield f"  {_venue_badge(paper)}"
    code = code_address(paper)
    if code:
        yield f"  [{_CODE_BADGE}]({code})"


def _venue_badge(paper: PaperLike) -> str:
    """A badge with the venue; in badges a dash is doubled and an underscore stands for a space."""
    words = short_venue(paper) if paper.venue else "arXiv" if paper.arxiv else str(paper.year)
    label = quote(words.replace("-", "--").replace("_", "__"), safe="")
    logo = "&logo=arXiv&logoColor=white" if words == "arXiv" else f"&color={_GRAY}"
    return f"![{escape(words)}]({_SHIELD}/{label}-{_GRAY}?style=flat{logo}&labelColor={_GRAY})"

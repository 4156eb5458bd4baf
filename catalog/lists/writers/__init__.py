"""Writes papers as a list, one module a layout."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from catalog.lists.paper import PaperLike
from catalog.lists.writers.awesome import write_awesome
from catalog.lists.writers.badges import write_badges
from catalog.lists.writers.gist import write_gist
from catalog.lists.writers.numbered import write_numbered
from catalog.lists_data import Style

WRITERS: dict[Style, Callable[[Sequence[PaperLike]], str]] = {
    Style.AWESOME: write_awesome,
    Style.BADGES: write_badges,
    Style.NUMBERED: write_numbered,
    Style.GIST: write_gist,
}


def write_list(papers: Iterable[PaperLike], style: Style) -> str:
    """A list of papers in one of the layouts, as Markdown."""
    return WRITERS[style](list(papers))

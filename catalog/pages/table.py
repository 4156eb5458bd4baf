"""Rows of the table of all entries: what is shown, and what the filters look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from catalog.pages.claims import Badge, Parameters, badges, parameters, step_ratio
from catalog.pages.data import SiteData
from catalog.pages.finder import trained_part

if TYPE_CHECKING:
    from catalog.query import Paper


@dataclass(frozen=True)
class TableRow:
    """One entry in the table."""

    paper: Paper
    badges: tuple[Badge, ...]
    parameters: Parameters | None
    step: float | None
    standing: str

    @property
    def trained(self) -> str:
        """What is trained, in the finder's words."""
        return trained_part(self.paper.category)

    @property
    def claims(self) -> str:
        """Keys of the claims made, separated by spaces."""
        return " ".join(badge.key for badge in self.badges)

    @property
    def hidden_words(self) -> str:
        """What the text filter finds besides the words shown."""
        words = (*self.paper.aliases, self.paper.arxiv or "", *self.paper.libraries, str(self.paper.subcategory or ""))
        return " ".join(word for word in words if word).lower()


def row(paper: Paper) -> TableRow:
    """The row of one entry."""
    state = "none" if paper.no_implementation else paper.claim_status if paper.implementation else "not-yet"
    return TableRow(paper, tuple(badges(paper)), parameters(paper), step_ratio(paper), state)


def table(data: SiteData) -> list[TableRow]:
    """All entries by name."""
    return [row(paper) for paper in data.papers]

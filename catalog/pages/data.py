"""What the pages show, read from the catalog once: papers, what was measured on them, and how they hang together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from catalog.database import reading
from catalog.links.report import findings
from catalog.taxonomy import Category

if TYPE_CHECKING:
    from catalog.arxiv_sync.archive import Statement
    from catalog.arxiv_sync.changes import Change
    from catalog.arxiv_sync.status import Status
    from catalog.links.report import Finding
    from catalog.query import Paper


@dataclass(frozen=True)
class SiteData:
    """Everything the pages are rendered from."""

    papers: tuple[Paper, ...]
    lists: tuple[Any, ...] = ()
    cli: str = field(default="", repr=False)
    histories: Mapping[str, Sequence[tuple[Statement, Sequence[Change]]]] = field(default_factory=dict)
    status: Status | None = None
    links: Mapping[str, Sequence[tuple[str, Finding]]] = field(default_factory=dict)
    """Slug -> keys of the entry whose address is no longer good, and what is known of it."""
    reversals: Sequence[Mapping[str, Any]] = ()
    strength_points: Sequence[Mapping[str, Any]] = ()
    comparisons: Sequence[Mapping[str, Any]] = ()

    @cached_property
    def by_slug(self) -> Mapping[str, Paper]:
        """Papers by slug."""
        return {paper.slug: paper for paper in self.papers}

    @cached_property
    def methods(self) -> tuple[Paper, ...]:
        """What can be trained or applied: everything but context and entries without a method."""
        return tuple(
            paper for paper in self.papers if paper.category != Category.CONTEXT and not paper.no_implementation
        )

    @cached_property
    def _children(self) -> Mapping[str, tuple[Paper, ...]]:
        found: dict[str, list[Paper]] = {}
        for paper in self.papers:
            for parent in paper.builds_on:
                found.setdefault(parent, []).append(paper)
        return {slug: tuple(sorted(children, key=published)) for slug, children in found.items()}

    def parents(self, paper: Paper) -> tuple[Paper, ...]:
        """What the paper builds on directly."""
        return tuple(self.by_slug[slug] for slug in paper.builds_on if slug in self.by_slug)

    def children(self, paper: Paper) -> tuple[Paper, ...]:
        """What builds directly on the paper, oldest first."""
        return self._children.get(paper.slug, ())

    def of_category(self, category: str) -> tuple[Paper, ...]:
        """Papers of one category by name."""
        return tuple(paper for paper in self.papers if paper.category == category)

    @cached_property
    def checked_on(self) -> str:
        """Month of the oldest check of sources among the papers, as in 2026-11."""
        return min((paper.sources.checked_on for paper in self.papers if paper.sources.checked_on), default="")

    @property
    def facts_as_of(self) -> str:
        """How old the facts are, in one sentence."""
        if self.status is None or self.status.synced is None:
            return f"Facts as of {self.checked_on}, when sources were last read; this copy has not asked arXiv."
        words = self.status.words
        return f"Facts as of {self.status.synced[:10]}, when arXiv was last asked. {words[0].upper()}{words[1:]}."


@dataclass(frozen=True)
class Node:
    """A paper in a family tree, with what hangs below it."""

    paper: Paper
    below: tuple[Node, ...] = ()


def ancestors(data: SiteData, paper: Paper, depth: int = 8) -> tuple[Node, ...]:
    """What the paper builds on, and what that builds on."""
    return tuple(Node(parent, ancestors(data, parent, depth - 1) if depth else ()) for parent in data.parents(paper))


def descendants(data: SiteData, paper: Paper) -> tuple[Node, ...]:
    """What builds on the paper, and what builds on that; every paper once, as near to the root as it comes."""
    below: dict[str, list[Paper]] = {}
    seen, level = {paper.slug}, [paper]
    while level:
        found = []
        for parent in level:
            fresh = [child for child in data.children(parent) if child.slug not in seen]
            below[parent.slug] = fresh
            seen.update(child.slug for child in fresh)
            found += fresh
        level = found
    return _grown(below, paper)


def _grown(below: Mapping[str, list[Paper]], paper: Paper) -> tuple[Node, ...]:
    return tuple(Node(child, _grown(below, child)) for child in below[paper.slug])


def read(cat: Any, cli: str = "") -> SiteData:
    """The site's data from an open catalog."""
    papers: Iterable[Paper] = cat.papers()
    ordered = tuple(sorted(papers, key=name_key))
    return SiteData(
        ordered,
        tuple(cat.lists()),
        cli,
        cat.histories(),
        cat.status(),
        bad_links(cat, ordered),
        reversals=cat.measured("reversal"),
        strength_points=cat.measured("strength_point"),
        comparisons=cat.measured("comparison"),
    )


def bad_links(cat: Any, papers: Iterable[Paper]) -> dict[str, list[tuple[str, Finding]]]:
    """Addresses of entries that have moved or died, by slug and key."""
    found: dict[str, list[tuple[str, Finding]]] = {}
    with reading(cat.engine) as connection:
        known = findings(connection, [paper.entry for paper in papers])
    for finding in known:
        for use in finding.uses if finding.is_problem else ():
            if use.list_slug is None:
                found.setdefault(use.slug, []).append((use.key, finding))
    return found


def name_key(paper: Paper) -> tuple[str, str]:
    """Sorts papers by name as a person would look one up: without regard to case or leading brackets."""
    return paper.name.lower().lstrip("(["), paper.slug


def published(paper: Paper) -> tuple[str, str]:
    """Sorts papers by first public date."""
    return paper.published, paper.slug

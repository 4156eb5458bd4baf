"""The layout of notes on adapters: a heading `slug (year)` a method, with fields below it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from catalog.entry import Reversibility
from catalog.lists.paper import PaperLike
from catalog.lists.writers.common import (
    by_category,
    category_name,
    code_address,
    document,
    generated,
    paper_address,
    sentence,
    shared_ids,
    short_venue,
)
from catalog.markdown import escape
from catalog.taxonomy import Strength


def write_gist(papers: Sequence[PaperLike]) -> str:
    """One heading a category, one below it a paper."""
    shared = shared_ids(papers)
    lines = [generated("gist")]
    for category, members in by_category(papers):
        lines += ["", f"# PEFT papers: {category_name(category).lower()}"]
        lines += [line for paper in members for line in _item(paper, shared)]
    return document(lines)


def _item(paper: PaperLike, shared: frozenset[str]) -> Iterator[str]:
    yield from ("", f"## {paper.slug} ({paper.year})", "")
    yield f"- **Adapter**: {escape(_adapter(paper))}"
    target = paper_address(paper, shared)
    yield f"- **Paper**: <{target}>" if target else "- **Paper**: no address known"
    yield f"- **Year**: {paper.year} ({escape(short_venue(paper))})" if paper.venue else f"- **Year**: {paper.year}"
    yield f"- **How it differs**: {escape(sentence(paper.how_it_differs or paper.summary))}"
    if paper.reversibility:
        yield f"- **Reversibility**: {escape(sentence(_reversibility(paper.reversibility)))}"
    code = code_address(paper)
    if code:
        yield f"- **Code**: <{code}>"


def _adapter(paper: PaperLike) -> str:
    """The name in the library most readers have, and our name."""
    library_name = paper.libraries.get("peft")
    return f"{paper.name}; {library_name} in peft" if library_name else paper.name


def _reversibility(back: Reversibility) -> str:
    strength = "no strength coefficient" if back.strength is Strength.NONE else f"{back.strength} in its strength"
    knob = f" ({back.strength_knob})" if back.strength_knob and back.strength is not Strength.NONE else ""
    parts = [
        "detachable" if back.detachable else "cannot be detached",
        "can be merged" if back.mergeable else "cannot be merged",
        strength + knob,
    ]
    return "; ".join(parts) + (f". {back.note}" if back.note else "")

"""The layout of notes on adapters: names at a glance, then a heading `slug (year)` a method, with fields below it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from catalog.entry import Reversibility
from catalog.lists.paper import PaperLike
from catalog.lists.readers import is_bare_name
from catalog.lists.writers.common import (
    by_category,
    by_subcategory,
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
    """Two overviews of names, then one heading a category and one below it a paper."""
    shared = shared_ids(papers)
    sections = list(by_category(papers))
    everyone = [paper for _, members in sections for paper in members]
    lines = [generated("gist"), "", "# PEFT adapter papers", "", "## Overview"]
    for word, group in by_subcategory(everyone):
        lines += ["", _names(word or "other", group)]
    lines += _by_strength(everyone)
    for category, members in sections:
        lines += ["", f"## {category_name(category)}"]
        lines += [line for paper in members for line in _item(paper, shared)]
    return document(lines)


def _by_strength(papers: Sequence[PaperLike]) -> Iterator[str]:
    """Names by how the learned change answers to a coefficient: what notes on steering are read for."""
    by_word = {word: [paper for paper in papers if _strength(paper) == word] for word in Strength}
    if any(by_word.values()):
        yield from ("", "## Reversible steering (coefficient ±1)")
    for word, group in by_word.items():
        yield from ("", _names(word, group)) if group else ()


def _strength(paper: PaperLike) -> Strength | None:
    return paper.reversibility.strength if paper.reversibility else None


def _names(label: str, papers: Sequence[PaperLike]) -> str:
    """A line `Label: name, name`; a name that could be taken for several gives way to the slug."""
    names = (paper.name if is_bare_name(paper.name) else paper.slug for paper in papers)
    return f"{label.capitalize()}: {', '.join(map(escape, names))}"


def _item(paper: PaperLike, shared: frozenset[str]) -> Iterator[str]:
    yield from ("", f"### {paper.slug} ({paper.year})", "")
    yield f"- **Adapter**: {escape(_adapter(paper))}"
    target = paper_address(paper, shared)
    yield f"- **Paper**: {_bare(target)}" if target else "- **Paper**: no address known"
    yield f"- **Year**: {paper.year} ({escape(short_venue(paper))})" if paper.venue else f"- **Year**: {paper.year}"
    yield f"- **How it differs**: {escape(sentence(paper.how_it_differs or paper.summary))}"
    if paper.reversibility:
        yield f"- **Reversibility**: {escape(sentence(_reversibility(paper.reversibility)))}"
    code = code_address(paper)
    if code:
        yield f"- **Code**: {_bare(code)}"


def _bare(url: str) -> str:
    """An address without words; the brackets keep its underscores from emphasis, and need no entities."""
    return f"<{url.replace('&amp;', '&')}>"


def _adapter(paper: PaperLike) -> str:
    """The name in the library most readers have, and the field's."""
    library_name = paper.libraries.get("peft")
    return f"{library_name} ({paper.name})" if library_name else paper.name


def _reversibility(back: Reversibility) -> str:
    strength = "no strength coefficient" if back.strength is Strength.NONE else f"{back.strength} in its strength"
    knob = f" ({back.strength_knob})" if back.strength_knob and back.strength is not Strength.NONE else ""
    parts = [
        "detachable" if back.detachable else "cannot be detached",
        "can be merged" if back.mergeable else "cannot be merged",
        strength + knob,
    ]
    words = "; ".join(parts) + (f". {back.note}" if back.note else "")
    return f"{_mark(back)} {words}"


def _mark(back: Reversibility) -> str:
    """Whether the method suits steering: taken off without a trace, and turned around by a coefficient of -1."""
    if back.detachable and back.strength in (Strength.LINEAR, Strength.ANTISYMMETRIC):
        return "✅"
    return "❌" if back.strength is Strength.NONE else "⚠️"

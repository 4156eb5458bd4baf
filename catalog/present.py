"""Papers as text: a table and a page for people, JSON, CSV, Markdown and BibTeX for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from catalog.terminal import cell, clean, escaped

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from catalog.query import Lineage, Paper

MARKS = {True: "yes", False: "no", None: ""}


def table(papers: list[Paper], at: str | None = None) -> Table:
    """A row a paper; with ``at``, its trained parameters there."""
    from rich.table import Table

    count = f"{len(papers)} paper" + ("" if len(papers) == 1 else "s")
    shown = Table(box=None, pad_edge=False, caption=count, caption_justify="left")
    headings = ["slug", "year", "category", "subcategory", "merge", "strength", "claims", "title"]
    if at:
        headings.insert(7, f"trained at {at}")
    for heading in headings:
        shown.add_column(heading, no_wrap=heading != "title", overflow="fold" if heading == "title" else "ellipsis")
    for paper in papers:
        cells = row(paper)
        if at:
            number = paper.parameters_at(at)
            cells.insert(7, "" if number is None else f"{number:,}")
        shown.add_row(*map(cell, cells))
    return shown


def row(paper: Paper) -> list[Any]:
    """The cells of a paper."""
    return [
        paper.slug,
        paper.year,
        paper.category,
        paper.subcategory,
        paper.mergeable,
        paper.strength,
        "" if paper.implementation is None else paper.claim_status,
        paper.title,
    ]


def page(paper: Paper, lineage: Lineage) -> Group:
    """Everything a reader wants of one paper, in sections."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    parts: list[Any] = [Text(clean(f"{paper.name}: {paper.title}"), style="bold")]
    for heading, body in sections(paper, lineage):
        parts += [Text(f"\n{heading}", style="bold cyan"), Padding(Text(clean(body)), (0, 0, 0, 2))]
    return Group(*parts)


def sections(paper: Paper, lineage: Lineage) -> Iterator[tuple[str, str]]:
    """Headings with their text; empty ones left out."""
    facts = {
        "authors": ", ".join(paper.authors),
        "published": paper.published + (f", {paper.venue}" if paper.venue else ""),
        "arXiv": paper.arxiv_url,
        "page": paper.url,
        "code": paper.code,
        "kind": f"{paper.kind}, {paper.category}" + (f" / {paper.subcategory}" if paper.subcategory else ""),
        "models": ", ".join(paper.modality),
        "libraries": ", ".join(f"{library} ({name})" for library, name in paper.libraries.items()),
        "runs as": paper.implementation or paper.no_implementation or "not yet implemented",
    }
    yield "facts", "\n".join(f"{name}: {value}" for name, value in facts.items() if value)
    texts = {"summary": paper.summary, "how it differs": paper.how_it_differs, "equations": paper.mechanism.equations}
    yield from ((name, text) for name, text in texts.items() if text)
    if back := paper.reversibility:
        words = f"detachable: {MARKS[back.detachable]}; mergeable: {MARKS[back.mergeable]}; strength: {back.strength}"
        yield "reversibility", "\n".join(filter(None, (words, back.note)))
    if paper.evidence:
        yield "measured", "\n".join(measured(paper))
    yield "lineage", "\n".join(filter(None, family(lineage))) or "nothing in the catalog"
    if paper.deviations:
        yield "who departs from the paper", "\n".join(f"{d.who}: {d.what} ({d.evidence})" for d in paper.deviations)
    if paper.errata:
        yield "errata of lists", "\n".join(f"{e.list_slug}: {e.claim!r} -> {e.fact}" for e in paper.errata)


def measured(paper: Paper) -> Iterator[str]:
    """A line a claim that says something."""
    for item in paper.evidence:
        if item.status != "not-applicable":
            yield f"{item.claim} on {item.backbone}: {item.status}, {item.measured or item.detail}"


def family(lineage: Lineage) -> Iterator[str]:
    """What is above and below, nearest first."""
    for words, line in (("builds on", lineage.ancestors), ("built on by", lineage.descendants)):
        if line:
            yield f"{words}: {', '.join(slug for slug, _ in line)}"


def as_dict(paper: Paper) -> dict[str, Any]:
    """The entry as it stands, with what was measured."""
    from dataclasses import asdict

    data: dict[str, Any] = json.loads(paper.entry_json)
    data["implementation"] = paper.implementation
    data["evidence"] = [asdict(item) for item in paper.evidence]
    data["bench"] = [asdict(item) for item in paper.bench]
    return data


def to_json(papers: list[Paper]) -> str:
    """A JSON array of entries."""
    return escaped(json.dumps([as_dict(paper) for paper in papers], indent=2, ensure_ascii=False))


def to_jsonl(papers: list[Paper]) -> Iterator[str]:
    """A JSON object a line."""
    return (escaped(json.dumps(as_dict(paper), ensure_ascii=False)) for paper in papers)


COLUMNS = (
    "slug", "name", "title", "authors", "published", "venue", "arxiv", "doi", "url", "code", "kind", "category",
    "subcategory", "detachable", "mergeable", "strength", "implementation",
)  # fmt: skip


def to_csv(papers: list[Paper]) -> str:
    """The main facts, a line a paper."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for paper in papers:
        facts = {name: getattr(paper, name) for name in COLUMNS} | {"authors": "; ".join(paper.authors)}
        writer.writerow(map(inert, facts.values()))
    return out.getvalue()


def inert(value: object) -> str:
    """A cell that a spreadsheet will not take for a formula."""
    text = clean("" if value is None else MARKS[value] if isinstance(value, bool) else str(value))
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def to_markdown(papers: list[Paper]) -> str:
    """A Markdown table."""
    from catalog.markdown import escape, link

    lines = ["| paper | year | category | title |", "| --- | --- | --- | --- |"]
    for paper in papers:
        title = link(paper.title, paper.url_best) if paper.url_best else escape(paper.title)
        lines.append(f"| {escape(paper.name)} | {paper.year} | {paper.category} | {title} |")
    return "\n".join(lines) + "\n"


def to_bibtex(papers: list[Paper]) -> str:
    """BibTeX records."""
    from catalog.exports.bibtex import to_bibtex as convert

    return convert(papers)
